//! Small files that get other content.
//!
//! In place, and only if it is other: a file system that is told to truncate a file first finds it new blocks when it is
//! closed (`auto_da_alloc` in ext4(5)), which is more for a guest that was just restored than the write itself.

use std::fs::{self, File};
use std::io::{Result, Write};
use std::path::Path;

/// The file has this content, then.
pub fn rewrite(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let content = content.as_ref();
    let old = fs::read(path);
    if old.as_ref().is_ok_and(|old| old == content) {
        return Ok(());
    }
    let mut options = File::options();
    let mut file = options.write(true).create(true).truncate(false).open(path)?;
    file.write_all(content)?;
    match old {
        Ok(old) if old.len() <= content.len() => Ok(()),
        _ => file.set_len(content.len() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_new_content_and_nothing_of_the_old() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hostname");
        for content in [
            "a-long-name\n",
            "short\n",
            "a-longer-name-than-before\n",
            "",
            "x",
            "x",
        ] {
            rewrite(&path, content).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert!(rewrite(dir.path(), "a directory is no file").is_err());
    }
}
