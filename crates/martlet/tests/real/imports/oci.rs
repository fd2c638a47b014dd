//! Container images: a layout directory and a `docker save` archive of the same layers.

use super::{busybox, shell, usable};
use crate::{Daemon, Fixture};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::path::Path;
use tar::{Builder, EntryType, Header};

const OWNER: (u64, u64) = (1000, 2000);
/// What the image's command leaves behind: who and where it is, and an environment that needs care.
const COMMAND: &str = "echo \"$(id -u):$(id -g) $(pwd) $GREETING [$*]\" > /srv/facts; exec sleep 100000";
const WAIT: &str = "until [ -s /srv/facts ]; do sleep 0.1; done; cat /srv/facts";
const FACTS: &str = "1000:2000 /srv/deep hello = 'world' [one two  three]";

const APPLETS: [&str; 6] = ["cat", "hostname", "id", "sh", "sleep", "stat"];

/// What must be in the guest, in the words of `stat -c '%A %u:%g %h %n'`.
const TREE: &str = "\
drwxr-x--- 1000:2000 2 /opaque
-rw-r--r-- 0:0 1 /opaque/new
-rwsr-xr-x 0:0 1 /setuid
drwxrwxrwx 0:0 3 /srv
-rw-r--r-- 1000:2000 2 /srv/one
-rw-r--r-- 1000:2000 2 /srv/two
drwxrwxrwt 0:0 2 /tmp
-rw-r----- 70000:5 1 /was-dir
drwxr-xr-x 0:0 2 /was-file
";

struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, mode: u32, owner: (u64, u64), size_bytes: usize) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_000_000_000);
        header.set_size(size_bytes as u64);
        header
    }

    fn entry(mut self, kind: EntryType, mode: u32, owner: (u64, u64), name: &str, content: &[u8]) -> Self {
        let mut header = Self::header(kind, mode, owner, content.len());
        self.0.append_data(&mut header, name, content).unwrap();
        self
    }

    fn dir(self, mode: u32, owner: (u64, u64), name: &str) -> Self {
        self.entry(EntryType::Directory, mode, owner, name, b"")
    }

    fn file(self, mode: u32, owner: (u64, u64), name: &str, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, mode, owner, name, content)
    }

    fn link(mut self, kind: EntryType, name: &str, target: &str) -> Self {
        let mut header = Self::header(kind, 0o777, (0, 0), 0);
        self.0.append_link(&mut header, name, target).unwrap();
        self
    }

    fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn layers() -> [Vec<u8>; 2] {
    let root = (0, 0);
    let applets =
        |layer: Layer, name: &&str| layer.link(EntryType::Symlink, &format!("bin/{name}"), "busybox");
    let lower = APPLETS
        .iter()
        .fold(Layer::new(), applets)
        .file(0o755, root, "bin/busybox", &busybox())
        .dir(0o755, root, "etc")
        .file(
            0o644,
            root,
            "etc/passwd",
            b"root:x:0:0::/:/bin/sh\napp:x:1000:2000::/srv:/bin/sh\n",
        )
        .file(0o644, root, "etc/group", b"root:x:0:\napp:x:2000:\n")
        .dir(0o777, root, "srv")
        .dir(0o755, root, "srv/deep")
        .file(0o644, OWNER, "srv/one", b"linked")
        .link(EntryType::Link, "srv/two", "srv/one")
        .file(0o644, root, "gone", b"")
        .file(0o644, root, "was-file", b"")
        .dir(0o755, root, "was-dir/below")
        .dir(0o755, root, "opaque")
        .file(0o644, root, "opaque/old", b"")
        .finish();
    let upper = Layer::new()
        .file(0o644, root, ".wh.gone", b"")
        .dir(0o755, root, "was-file")
        .file(0o640, (70_000, 5), "was-dir", b"")
        .dir(0o750, OWNER, "opaque")
        .file(0o644, root, "opaque/.wh..wh..opq", b"")
        .file(0o644, root, "opaque/new", b"")
        .file(0o4755, root, "setuid", b"")
        .finish();
    [lower, upper]
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers
        .iter()
        .map(|layer| format!("sha256:{}", sha256(layer)))
        .collect();
    serde_json::to_vec(&serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "config": {
            "Env": ["PATH=/bin:/usr/bin", "GREETING=hello = 'world'"], "User": "app", "WorkingDir": "/srv/deep",
            "Entrypoint": ["/bin/busybox", "sh", "-c", COMMAND],
            "Cmd": ["sh", "one", "two  three"],
        },
    }))
    .unwrap()
}

/// A layout as registries' tools write it: a platform's manifest in an index, the second layer compressed.
pub fn write_layout(dir: &Path) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |kind: &str, bytes: &[u8]| {
        let digest = sha256(bytes);
        fs::write(blobs.join(&digest), bytes).unwrap();
        let media_type = format!("application/vnd.oci.image.{kind}");
        serde_json::json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() })
    };
    let layers = layers();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&layers[1]).unwrap();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "config": put("config.v1+json", &config(&layers)),
        "layers": [put("layer.v1.tar", &layers[0]), put("layer.v1.tar+gzip", &gzip.finish().unwrap())],
    });
    let manifest = put("manifest.v1+json", &serde_json::to_vec(&manifest).unwrap());
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn write_saved(path: &Path) {
    let layers = layers();
    let manifest = serde_json::json!([{
        "Config": "config.json", "RepoTags": ["shop:2"], "Layers": ["a/layer.tar", "b/layer.tar"],
    }]);
    let archive = Layer::new()
        .file(0o644, (0, 0), "a/layer.tar", &layers[0])
        .file(0o644, (0, 0), "b/layer.tar", &layers[1])
        .file(0o644, (0, 0), "config.json", &config(&layers))
        .file(0o644, (0, 0), "manifest.json", manifest.to_string().as_bytes())
        .finish();
    fs::write(path, archive).unwrap();
}

/// The merged layers are there as the image has them, and its command runs as the image says.
fn check(daemon: &Daemon, machine: &str) {
    let list =
        "stat -c '%A %u:%g %h %n' /opaque /opaque/* /setuid /srv /srv/one /srv/two /tmp /was-dir /was-file";
    assert_eq!(shell(daemon, machine, list), TREE.trim_end());
    assert_eq!(
        shell(daemon, machine, "cd /; echo gone* opaque/* was-dir/*"),
        "gone* opaque/new was-dir/*"
    );
    assert_eq!(shell(daemon, machine, WAIT), FACTS);
}

#[test]
fn a_layout_becomes_a_machine_that_runs_the_images_command() {
    let daemon = Daemon::new(Fixture::Tiny);
    let layout = daemon.state_dir().join("shop");
    write_layout(&layout);
    daemon.ok(&["base", "import", "--name", "shop", layout.to_str().unwrap()]);
    let base = daemon.json(&["base", "inspect", "shop"]);
    assert_eq!(
        (&base["init"], &base["cmd"][4]),
        (&"command".into(), &"sh".into())
    );
    daemon.ok(&["run", "shop", "--name", "web", "--memory", "128M"]);
    check(&daemon, "web");
    usable(&daemon, "web");
    // Another command, and more environment: the rest of the image's wishes stay.
    daemon.ok(&["rm", "--force", "web"]);
    let other = "echo $(id -u) $(pwd) $GREETING $MORE > /srv/facts";
    daemon.ok(&[
        "run", "shop", "--name", "web", "--memory", "128M", "--env", "MORE=yes", "--cmd", other,
    ]);
    assert_eq!(shell(&daemon, "web", WAIT), "1000 /srv/deep hello = 'world' yes");
}

#[test]
fn a_docker_archive_becomes_the_same_machine() {
    let daemon = Daemon::new(Fixture::Tiny);
    let archive = daemon.state_dir().join("shop.tar");
    write_saved(&archive);
    daemon.ok(&["base", "import", archive.to_str().unwrap()]);
    assert_eq!(daemon.json(&["base", "inspect", "shop"])["origin"], "oci shop:2");
    daemon.ok(&["run", "shop", "--name", "web", "--memory", "128M"]);
    check(&daemon, "web");
    // Damaged on the way: refused, and nothing of it stays.
    let mut bytes = fs::read(&archive).unwrap();
    bytes[100_000] ^= 1;
    fs::write(&archive, bytes).unwrap();
    let (code, words) = daemon.refused(&["base", "import", "--name", "bad", archive.to_str().unwrap()]);
    assert_eq!(code, 2, "{words}");
    assert!(words.contains("digest"), "{words}");
    assert_eq!(fs::read_dir(daemon.state_dir().join("work")).unwrap().count(), 0);
}
