//! The documents of an OCI image: they lead nowhere outside of it, and digests are digests.
//!
//! An image is `index.json`, manifest and configuration. In them `MANIFEST` and `CONFIG` stand for the digests of the other
//! two, which the fuzzer cannot guess. Without an index it is an archive of `docker save`.
#![no_main]
use libfuzzer_sys::{arbitrary, fuzz_target};
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

/// Documents as they may be, so that what is in them is come to; and any others.
#[derive(Debug, arbitrary::Arbitrary)]
enum Image<'a> {
    Layout {
        indexed: Vec<Indexed>,
        layers: Vec<Name<'a>>,
        diff_ids: Vec<Name<'a>>,
        config: Vec<Setting<'a>>,
    },
    Saved {
        layers: Vec<Name<'a>>,
        diff_ids: Vec<Name<'a>>,
        config: Vec<Setting<'a>>,
    },
    Any([&'a str; 3]),
}

#[derive(Debug, arbitrary::Arbitrary)]
enum Indexed {
    Manifest,
    /// The manifest, said to be for another platform.
    Foreign,
    /// An index that is the manifest.
    Index,
    Config,
}

/// Of a layer: its digest, or the name of its file.
#[derive(Debug, arbitrary::Arbitrary)]
enum Name<'a> {
    Digest(u8),
    Secret,
    Absolute,
    Blob,
    Text(&'a str),
    DigestText(&'a str),
}

#[derive(Debug, arbitrary::Arbitrary)]
enum Setting<'a> {
    Null(Key),
    Text(Key, &'a str),
    List(Key, Vec<&'a str>),
}

#[derive(Debug, arbitrary::Arbitrary)]
enum Key {
    Env,
    Cmd,
    Entrypoint,
    WorkingDir,
    User,
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("text is text")
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}

fn spelled(name: &Name<'_>) -> String {
    match name {
        Name::Digest(byte) => quoted(&format!("sha256:{}", format!("{byte:02x}").repeat(32))),
        Name::Secret => quoted("../secret"),
        Name::Absolute => quoted(&IMAGE.with_file_name("secret").to_string_lossy()),
        Name::Blob => quoted("sha256:CONFIG"),
        Name::Text(text) => quoted(text),
        Name::DigestText(text) => quoted(&format!("sha256:{text}")),
    }
}

fn configuration(diff_ids: &[Name<'_>], config: &[Setting<'_>]) -> String {
    let setting = |setting: &Setting<'_>| match setting {
        Setting::Null(key) => format!(r#""{key:?}":null"#),
        Setting::Text(key, text) => format!(r#""{key:?}":{}"#, quoted(text)),
        Setting::List(key, texts) => format!(r#""{key:?}":{}"#, list(texts.iter().map(|text| quoted(text)))),
    };
    let config: Vec<String> = config.iter().map(setting).collect();
    let diff_ids = list(diff_ids.iter().map(spelled));
    format!(
        r#"{{"architecture":"amd64","config":{{{}}},"rootfs":{{"diff_ids":{diff_ids}}}}}"#,
        config.join(",")
    )
}

/// Index (none for an archive of `docker save`), manifest and configuration.
fn documents(image: &Image<'_>) -> [String; 3] {
    match image {
        Image::Any(documents) => documents.map(str::to_owned),
        Image::Saved {
            layers,
            diff_ids,
            config,
        } => {
            let layers = list(layers.iter().map(spelled));
            let manifest =
                format!(r#"[{{"Config":"blobs/sha256/CONFIG","RepoTags":["a:b"],"Layers":{layers}}}]"#);
            [String::new(), manifest, configuration(diff_ids, config)]
        }
        Image::Layout {
            indexed,
            layers,
            diff_ids,
            config,
        } => {
            let descriptor = |indexed: &Indexed| match indexed {
                Indexed::Manifest => r#"{"digest":"sha256:MANIFEST"}"#,
                Indexed::Foreign => {
                    r#"{"digest":"sha256:MANIFEST","platform":{"architecture":"arm64","os":"linux"}}"#
                }
                Indexed::Index => r#"{"mediaType":"index","digest":"sha256:MANIFEST","size":1}"#,
                Indexed::Config => r#"{"digest":"sha256:CONFIG","annotations":null}"#,
            };
            let index = list(indexed.iter().map(|indexed| descriptor(indexed).to_owned()));
            let digest = |name| format!(r#"{{"digest":{}}}"#, spelled(name));
            let layers = list(layers.iter().map(digest));
            // The index may name the manifest as one of its own kind.
            let manifest =
                format!(r#"{{"config":{{"digest":"sha256:CONFIG"}},"layers":{layers},"manifests":[]}}"#);
            [
                format!(r#"{{"manifests":{index}}}"#),
                manifest,
                configuration(diff_ids, config),
            ]
        }
    }
}

fn name(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn blob(dir: &Path, bytes: &[u8]) -> (PathBuf, String) {
    let name = name(bytes);
    let path = dir.join("blobs/sha256").join(&name);
    std::fs::write(&path, bytes).expect("a blob");
    (path, name)
}

fuzz_target!(|image: Image<'_>| {
    let [index, manifest, config] = documents(&image);
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
            assert!(
                digest
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            );
        }
        assert_ne!(first.as_deref(), Some(SECRET));
    }
    for path in [top, config_path, manifest_path] {
        std::fs::remove_file(path).ok();
    }
});
