//! The JSON of an image: index, manifest, configuration. Unknown fields do not matter; what is used is bounded.

use super::layer::Promise;
use super::source::Source;
use crate::BaseError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

const LAYERS_MAX: usize = 500;
const INDEX_DEPTH_MAX: usize = 4;
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An image, ready to have its layers applied.
#[derive(Debug)]
pub(crate) struct Image {
    /// Its tag, or the name of its file.
    pub name: String,
    pub layers: Vec<LayerPart>,
    pub config: Config,
}

#[derive(Debug)]
pub(crate) struct LayerPart {
    /// Name of the part in the source.
    pub part: String,
    pub promise: Promise,
    pub size_bytes: Option<u64>,
}

/// What the image says about the process to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Config {
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    #[serde(deserialize_with = "or_default")]
    pub user: String,
}

impl Config {
    /// Program and arguments.
    pub(crate) fn command(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.cmd).cloned().collect()
    }
}

/// Images say `null` where nothing is set.
fn or_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    value: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    config: Config,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Deserialize, Default)]
struct RootFs {
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<String>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    #[serde(default, deserialize_with = "or_default")]
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize, Clone)]
struct Platform {
    architecture: String,
    os: String,
}

/// One image of a `docker save` archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default, deserialize_with = "or_default")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    layers: Vec<String>,
}

/// Reads what the source holds, told by its files.
pub(super) fn read(source: &Source, path: &Path) -> Result<Image, BaseError> {
    let bad = |reason: String| BaseError::bad_source(path, reason);
    let file_name = path
        .file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned();
    let image = if source.has("index.json") {
        layout(source, path, file_name)?
    } else if source.has("manifest.json") {
        saved(source, path, file_name)?
    } else {
        return Err(bad(
            "it is neither an OCI layout (no index.json) nor a `docker save` archive (no manifest.json)"
                .into(),
        ));
    };
    if image.layers.len() > LAYERS_MAX {
        return Err(bad(format!(
            "it has {} layers, at most {LAYERS_MAX} are possible",
            image.layers.len()
        )));
    }
    Ok(image)
}

fn layout(source: &Source, path: &Path, file_name: String) -> Result<Image, BaseError> {
    let bad = |reason: String| BaseError::bad_source(path, reason);
    let mut index: Index = parse(&source.small_part("index.json")?, path)?;
    let mut name = None;
    for _ in 0..INDEX_DEPTH_MAX {
        let chosen = choose(index.manifests).map_err(bad)?;
        name = name.or_else(|| chosen.annotations.get(REF_NAME).cloned());
        let bytes = blob(source, &chosen, path)?;
        if !(chosen.media_type.contains("index") || chosen.media_type.contains("manifest.list")) {
            let manifest: Manifest = parse(&bytes, path)?;
            let file: ConfigFile = parse(&blob(source, &manifest.config, path)?, path)?;
            let parts: Result<Vec<_>, _> = manifest
                .layers
                .iter()
                .map(|layer| layer_part(layer, path))
                .collect();
            return assemble(name.unwrap_or(file_name), parts?, file, path);
        }
        index = parse(&bytes, path)?;
    }
    Err(bad("its indexes are nested too deeply".into()))
}

fn saved(source: &Source, path: &Path, file_name: String) -> Result<Image, BaseError> {
    let images: Vec<Saved> = parse(&source.small_part("manifest.json")?, path)?;
    let [image] = <[Saved; 1]>::try_from(images).map_err(|images| {
        let tags: Vec<String> = images
            .into_iter()
            .flat_map(|image| image.repo_tags)
            .take(20)
            .collect();
        BaseError::bad_source(
            path,
            format!(
                "it holds several images ({}): save the one you want alone",
                tags.join(", ")
            ),
        )
    })?;
    let file: ConfigFile = parse(&source.small_part(&image.config)?, path)?;
    if file.rootfs.diff_ids.len() != image.layers.len() {
        return Err(BaseError::bad_source(
            path,
            "its configuration names another number of layers than there are",
        ));
    }
    let part = |part: String| LayerPart {
        part,
        promise: Promise::default(),
        size_bytes: None,
    };
    let layers = image.layers.into_iter().map(part).collect();
    assemble(
        image.repo_tags.into_iter().next().unwrap_or(file_name),
        layers,
        file,
        path,
    )
}

fn assemble(
    name: String,
    mut layers: Vec<LayerPart>,
    file: ConfigFile,
    path: &Path,
) -> Result<Image, BaseError> {
    if !matches!(file.architecture.as_str(), "amd64" | "") {
        return Err(BaseError::bad_source(
            path,
            format!("it is for {}; machines are amd64", file.architecture),
        ));
    }
    for (layer, diff_id) in layers.iter_mut().zip(&file.rootfs.diff_ids) {
        layer.promise.plain_sha256 = Some(sha256_of(diff_id, path)?.to_owned());
    }
    Ok(Image {
        name,
        layers,
        config: file.config,
    })
}

/// The one manifest a machine can run.
fn choose(manifests: Vec<Descriptor>) -> Result<Descriptor, String> {
    let runnable = |descriptor: &Descriptor| {
        descriptor
            .platform
            .as_ref()
            .is_none_or(|platform| platform.architecture == "amd64" && platform.os == "linux")
    };
    let mut fitting: Vec<Descriptor> = manifests.into_iter().filter(runnable).collect();
    fitting.dedup_by(|one, other| one.digest == other.digest);
    match (fitting.pop(), fitting.first()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err("it has no image for linux/amd64".into()),
        (Some(last), Some(_)) => {
            let names: Vec<&str> = fitting
                .iter()
                .chain([&last])
                .filter_map(|descriptor| descriptor.annotations.get(REF_NAME))
                .map(String::as_str)
                .take(20)
                .collect();
            Err(format!(
                "it holds several images ({}): copy the one you want into a layout of its own, \
                 for example with `skopeo copy oci:LAYOUT:TAG oci:NEW`",
                names.join(", ")
            ))
        }
    }
}

fn layer_part(layer: &Descriptor, path: &Path) -> Result<LayerPart, BaseError> {
    let digest = sha256_of(&layer.digest, path)?;
    Ok(LayerPart {
        part: format!("blobs/sha256/{digest}"),
        promise: Promise {
            blob_sha256: Some(digest.to_owned()),
            plain_sha256: None,
        },
        size_bytes: Some(layer.size),
    })
}

/// A small blob, checked against its digest.
fn blob(source: &Source, descriptor: &Descriptor, path: &Path) -> Result<Vec<u8>, BaseError> {
    let digest = sha256_of(&descriptor.digest, path)?;
    let bytes = source.small_part(&format!("blobs/sha256/{digest}"))?;
    match super::hex(&Sha256::digest(&bytes)) == digest {
        true => Ok(bytes),
        false => Err(BaseError::bad_source(
            path,
            format!("the bytes of blob {digest} do not have that digest"),
        )),
    }
}

/// The digest's 64 hexadecimal digits, which become part of a file's name.
fn sha256_of<'a>(digest: &'a str, path: &Path) -> Result<&'a str, BaseError> {
    let digits = digest.strip_prefix("sha256:").filter(|digits| {
        digits.len() == 64
            && digits
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    });
    digits.ok_or_else(|| BaseError::bad_source(path, format!("{digest:.100?} is not a SHA-256 digest")))
}

fn parse<T: DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<T, BaseError> {
    serde_json::from_slice(bytes)
        .map_err(|error| BaseError::bad_source(path, format!("its JSON cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entrypoint_comes_before_cmd_and_null_is_nothing() {
        let json =
            br#"{"architecture":"amd64","config":{"Env":["A=1"],"Cmd":["-c","x"],"Entrypoint":["/bin/sh"],
            "WorkingDir":null,"User":"1:2"},"rootfs":{"diff_ids":null}}"#;
        let file: ConfigFile = parse(json, Path::new("x")).unwrap();
        assert_eq!(file.config.command(), ["/bin/sh", "-c", "x"]);
        assert_eq!(
            (file.config.user.as_str(), file.config.working_dir.as_str()),
            ("1:2", "")
        );
        let none: ConfigFile = parse(br#"{"config":null}"#, Path::new("x")).unwrap();
        assert_eq!(none.config, Config::default());
    }

    #[test]
    fn the_manifest_for_our_platform_is_chosen() {
        let index = |text: &str| parse::<Index>(text.as_bytes(), Path::new("x")).unwrap().manifests;
        let one = |arch: &str, digest: &str| {
            format!(r#"{{"digest":"{digest}","platform":{{"architecture":"{arch}","os":"linux"}}}}"#)
        };
        let both = format!(
            r#"{{"manifests":[{},{},{}]}}"#,
            one("arm64", "a"),
            one("amd64", "b"),
            one("unknown", "c")
        );
        assert_eq!(choose(index(&both)).unwrap().digest, "b");
        let foreign = format!(r#"{{"manifests":[{}]}}"#, one("arm64", "a"));
        assert!(choose(index(&foreign)).unwrap_err().contains("linux/amd64"));
        let several = format!(r#"{{"manifests":[{},{}]}}"#, one("amd64", "a"), one("amd64", "b"));
        assert!(choose(index(&several)).unwrap_err().contains("several"));
    }

    #[test]
    fn digests_that_are_not_digests_never_become_paths() {
        for bad in [
            "sha256:../../../etc/passwd",
            "sha256:",
            "md5:0",
            &format!("sha256:{}", "G".repeat(64)),
        ] {
            assert!(sha256_of(bad, Path::new("x")).is_err(), "{bad}");
        }
    }
}
