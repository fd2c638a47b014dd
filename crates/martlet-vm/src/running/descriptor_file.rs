//! A descriptor in memory, as a file QEMU can be handed.
//!
//! What QEMU writes cannot be bounded by seals, since it truncates the file first; but it is memory of QEMU's own
//! making, as any it allocates, and what is too large is not read.
#![allow(unsafe_code)] // memfd_create returns a number that must be claimed

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::fs::FileExt;

/// A memory file.
pub struct DescriptorFile {
    file: File,
}

impl DescriptorFile {
    /// An empty file. Opened for writing only, since QEMU takes from a set of descriptors the one with exactly the
    /// access it wants.
    pub fn for_writing() -> io::Result<Self> {
        let memfd = memfd()?;
        let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
        Ok(Self {
            file: File::options().write(true).open(path)?,
        })
    }

    /// A file with these bytes, which nobody can change.
    pub fn for_reading(bytes: &[u8]) -> io::Result<Self> {
        let mut file = memfd()?;
        file.write_all(bytes)?;
        file.seek(SeekFrom::Start(0))?;
        seal(
            &file,
            libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_WRITE,
        )?;
        Ok(Self { file })
    }

    /// What is handed to QEMU.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// What was written, unless it is too much.
    pub fn written(self, max_bytes: u64) -> io::Result<Vec<u8>> {
        let size_bytes = self.file.metadata()?.len();
        if size_bytes > max_bytes {
            let what = format!("{size_bytes} bytes written, {max_bytes} at most are believed");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
        }
        let mut bytes = vec![0; size_bytes as usize];
        File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

fn memfd() -> io::Result<File> {
    // SAFETY: a valid name; the result is checked before it is owned.
    let fd = unsafe {
        libc::memfd_create(
            c"descriptor".as_ptr(),
            libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn seal(file: &File, seals: libc::c_int) -> io::Result<()> {
    // SAFETY: plain system call on a descriptor that we hold.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bytes: &[u8], max_bytes: u64) -> io::Result<Vec<u8>> {
        let file = DescriptorFile::for_writing().unwrap();
        let mut other = File::from(file.fd().try_clone_to_owned().unwrap());
        other.write_all(bytes).unwrap();
        file.written(max_bytes)
    }

    #[test]
    fn what_was_written_is_read_back_and_no_more_than_agreed() {
        assert_eq!(written(b"device state", 12).unwrap(), b"device state");
        assert_eq!(written(b"", 12).unwrap(), b"");
        assert!(written(b"device state", 11).is_err());
    }

    #[test]
    fn what_is_handed_out_for_reading_cannot_be_changed() {
        let file = DescriptorFile::for_reading(b"state").unwrap();
        let mut other = File::from(file.fd().try_clone_to_owned().unwrap());
        assert!(other.write_all(b"other").is_err());
    }
}
