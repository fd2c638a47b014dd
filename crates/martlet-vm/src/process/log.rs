//! Logs that a process of unknown manners appends to: read only their end, and keep them small.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

fn open(path: &Path, write: bool) -> io::Result<File> {
    // The directory belongs to the process's user: follow no link, and do not wait for a pipe's other end.
    File::options()
        .read(true)
        .write(write)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

/// The last whole lines of a log, at most `max_bytes` of them; empty when there is none.
pub fn tail(path: &Path, max_bytes: usize) -> String {
    tail_since(path, 0, max_bytes)
}

/// The same, of what was appended after the log had `begin_bytes`; from the start of one that was trimmed since.
pub fn tail_since(path: &Path, begin_bytes: u64, max_bytes: usize) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = open(path, false)?;
        let size = file.metadata()?.len();
        let begin_bytes = if size < begin_bytes { 0 } else { begin_bytes };
        let start = size.saturating_sub(max_bytes as u64).max(begin_bytes);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(max_bytes as u64).read_to_end(&mut bytes)?;
        if start > begin_bytes
            && let Some(newline) = bytes.iter().position(|b| *b == b'\n')
        {
            bytes.drain(..=newline);
        }
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default())
        .trim_end()
        .to_string()
}

/// Cuts a log that has grown beyond `max_bytes` down to its last half. The writer appends, so it goes on at the new
/// end; what it writes during the cut may be lost.
pub fn trim(path: &Path, max_bytes: u64) -> io::Result<bool> {
    let mut file = open(path, true)?;
    let size = file.metadata()?.len();
    if size <= max_bytes {
        return Ok(false);
    }
    file.seek(SeekFrom::Start(size - max_bytes / 2))?;
    let mut kept = Vec::new();
    (&file).take(max_bytes / 2).read_to_end(&mut kept)?;
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&kept)?;
    Ok(true)
}

/// Appends the end of a log, at most `max_bytes` of it, to another.
pub fn append_tail(from: &Path, max_bytes: u64, to: &Path) -> io::Result<()> {
    let mut from = match open(from, false) {
        // None, or a link in its place, which is not followed.
        Err(_) => return Ok(()),
        Ok(from) => from,
    };
    let size = from.metadata()?.len();
    if size == 0 {
        return Ok(());
    }
    from.seek(SeekFrom::Start(size.saturating_sub(max_bytes)))?;
    let mut to = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(to)?;
    io::copy(&mut from.take(max_bytes), &mut to).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_starts_at_a_line_and_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(tail(&path, 100), "");
        std::fs::write(&path, "first\nsecond\nthird\n").unwrap();
        assert_eq!(tail(&path, 100), "first\nsecond\nthird");
        assert_eq!(tail(&path, 10), "third");
        assert_eq!(tail_since(&path, 6, 100), "second\nthird");
        assert_eq!(tail_since(&path, 19, 100), "");
        assert_eq!(tail_since(&path, 100, 10), "third");
        std::fs::write(&path, [0xff, b'x']).unwrap();
        assert_eq!(tail(&path, 10), "\u{fffd}x");
    }

    #[test]
    fn a_trimmed_log_keeps_its_end_and_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = File::options().create(true).append(true).open(&path).unwrap();
        writer.write_all(&[b'a'; 1000]).unwrap();
        writer.write_all(b"end").unwrap();
        assert!(!trim(&path, 2000).unwrap());
        assert!(trim(&path, 100).unwrap());
        writer.write_all(b"more").unwrap();
        let kept = std::fs::read_to_string(&path).unwrap();
        assert_eq!(kept.len(), 54);
        assert!(kept.ends_with("aendmore"));
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        let path = dir.path().join("log");
        std::os::unix::fs::symlink(dir.path().join("secret"), &path).unwrap();
        assert_eq!(tail(&path, 100), "");
        assert!(trim(&path, 1).is_err());
    }
}
