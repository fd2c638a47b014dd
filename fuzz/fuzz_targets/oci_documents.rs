//! The documents of an OCI image: they lead nowhere outside of it, and digests are digests.
//!
//! The input is `index.json`, manifest and configuration, parted by zero bytes. In them `MANIFEST` and `CONFIG` stand for
//! the digests of the other two, which the fuzzer cannot guess. Without an index it is an archive of `docker save`.
#![no_main]
use libfuzzer_sys::fuzz_target;
use martlet_base::fuzzing::image_parts;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const SECRET: &[u8] = b"a file of the host";

/// A directory for the image, with a file beside it that no image may have read.
static IMAGE: LazyLock<PathBuf> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("documents-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("image/blobs/sha256")).expect("a directory for the image");
    std::fs::write(dir.join("secret"), SECRET).expect("a file beside it");
    dir.join("image")
});

fn name(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn blob(dir: &Path, bytes: &[u8]) -> (PathBuf, String) {
    let name = name(bytes);
    let path = dir.join("blobs/sha256").join(&name);
    std::fs::write(&path, bytes).expect("a blob");
    (path, name)
}

fuzz_target!(|bytes: &[u8]| {
    let mut documents = bytes.splitn(3, |byte| *byte == 0);
    let mut next = || String::from_utf8_lossy(documents.next().unwrap_or_default()).into_owned();
    let (index, manifest, config) = (next(), next(), next());
    let (config_path, config_name) = blob(&IMAGE, config.as_bytes());
    let manifest = manifest.replace("CONFIG", &config_name);
    let (manifest_path, manifest_name) = blob(&IMAGE, manifest.as_bytes());
    let (top, text) = match index.is_empty() {
        true => ("manifest.json", manifest),
        false => ("index.json", index.replace("MANIFEST", &manifest_name)),
    };
    let top = IMAGE.join(top);
    std::fs::write(&top, text).expect("the first document");
    for (digests, first) in image_parts(&IMAGE).unwrap_or_default() {
        for digest in digests {
            assert_eq!(digest.len(), 64);
            assert!(digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
        }
        assert_ne!(first.as_deref(), Some(SECRET));
    }
    for path in [top, config_path, manifest_path] {
        std::fs::remove_file(path).ok();
    }
});
