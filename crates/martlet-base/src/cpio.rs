//! A writer of `newc` cpio archives, the format of an initramfs.
//!
//! Each member is a 110-byte header (`070701`, then 13 fields of 8 hexadecimal digits), the name with its NUL, and the
//! content; name and content are each padded to 4 bytes. Everything belongs to root and has time 0, so that equal
//! inputs give equal bytes.

/// An archive being written.
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

impl Archive {
    pub(crate) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            inodes: 0,
        }
    }

    pub(crate) fn directory(&mut self, name: &str) {
        self.member(name, DIRECTORY | 0o755, 2, (0, 0), &[]);
    }

    pub(crate) fn file(&mut self, name: &str, permissions: u32, content: &[u8]) {
        self.member(name, REGULAR | permissions, 1, (0, 0), content);
    }

    pub(crate) fn character_device(&mut self, name: &str, permissions: u32, major: u32, minor: u32) {
        self.member(name, CHARACTER | permissions, 1, (major, minor), &[]);
    }

    /// The archive with its trailer, padded to whole 512-byte blocks.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.member("TRAILER!!!", 0, 1, (0, 0), &[]);
        self.pad(512);
        self.bytes
    }

    fn member(&mut self, name: &str, mode: u32, links: u32, device: (u32, u32), content: &[u8]) {
        debug_assert!(!name.starts_with('/') && !name.contains('\0'));
        let size = u32::try_from(content.len()).expect("members are programs and modules, far below 4 GiB");
        let inode = if mode == 0 { 0 } else { self.inodes + 1 };
        self.inodes = self.inodes.max(inode);
        self.bytes.extend_from_slice(b"070701");
        let name_size = name.len() as u32 + 1;
        for field in [
            inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ] {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(content);
        self.pad(4);
    }

    fn pad(&mut self, alignment: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(alignment), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_reads_what_we_write() {
        let mut archive = Archive::new();
        archive.directory("dev");
        archive.character_device("dev/console", 0o600, 5, 1);
        archive.file("init", 0o755, b"#!/bin/sh\n");
        archive.file("odd", 0o644, &[7; 4097]);
        let mut child = Command::new("cpio")
            .args(["-itv", "--quiet", "--numeric-uid-gid"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is installed (script/bootstrap)");
        child.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        let listing = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let rows: Vec<Vec<&str>> = listing
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let brief: Vec<String> = rows
            .iter()
            .map(|row| format!("{} {}:{} {}", row[0], row[2], row[3], row[row.len() - 1]))
            .collect();
        assert_eq!(
            brief,
            [
                "drwxr-xr-x 0:0 dev",
                "crw------- 0:0 dev/console",
                "-rwxr-xr-x 0:0 init",
                "-rw-r--r-- 0:0 odd"
            ]
        );
        assert_eq!(rows[3][4], "4097");
        assert!(rows[1].concat().contains("5,1"), "{listing}");
    }

    #[test]
    fn equal_inputs_give_equal_bytes() {
        let make = || {
            let mut archive = Archive::new();
            archive.file("a", 0o644, b"x");
            archive.finish()
        };
        assert_eq!(make(), make());
        assert_eq!(make().len() % 512, 0);
    }
}
