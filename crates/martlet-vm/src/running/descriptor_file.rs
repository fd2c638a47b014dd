//! A descriptor in memory, as a file QEMU can be handed.
#![allow(unsafe_code)] // memfd_create returns a number that must be claimed

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::fs::FileExt;

/// A memory file of bounded size.
pub struct DescriptorFile {
    file: File,
}

impl DescriptorFile {
    /// An empty file, which cannot grow beyond `max_bytes`. Opened for writing only, since QEMU takes from a set of
    /// descriptors the one with exactly the access it wants.
    pub fn for_writing(max_bytes: u64) -> io::Result<Self> {
        let file = memfd()?;
        file.set_len(max_bytes)?;
        seal(&file, libc::F_SEAL_GROW | libc::F_SEAL_SHRINK)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
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

    /// What is handed to QEMU. It shares our position in the file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// What was written, up to the position where the writer left off.
    pub fn written(mut self) -> io::Result<Vec<u8>> {
        let size = self.file.stream_position()?;
        let mut bytes = vec![0; size as usize];
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        File::open(path)?.read_exact_at(&mut bytes, 0)?;
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

    #[test]
    fn what_was_written_is_read_back_and_no_more() {
        let file = DescriptorFile::for_writing(1 << 20).unwrap();
        let mut other = File::from(file.fd().try_clone_to_owned().unwrap());
        other.write_all(b"device state").unwrap();
        assert_eq!(file.written().unwrap(), b"device state");
    }

    #[test]
    fn nobody_can_write_beyond_the_bound() {
        let file = DescriptorFile::for_writing(4096).unwrap();
        let mut other = File::from(file.fd().try_clone_to_owned().unwrap());
        assert!(other.write_all(&[1; 8192]).is_err());
        assert!(file.written().unwrap().len() <= 4096);
    }
}
