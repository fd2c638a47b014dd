//! Whole images, made here by hand, imported, and looked at in the ext4 file system that comes out.

use super::*;
use crate::testing::Bench;
use sha2::{Digest, Sha256};
use std::io::Write;
use tar::{Builder, EntryType, Header};

/// A layer being made.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn entry(
        mut self,
        kind: EntryType,
        name: &str,
        link: &str,
        mode: u32,
        owner: (u64, u64),
        content: &[u8],
    ) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        // Written into the field directly: the library would refuse hostile names.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        if kind == EntryType::Char {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, mode: u32, owner: (u64, u64), content: &[u8]) -> Self {
        self.entry(EntryType::Regular, name, "", mode, owner, content)
    }

    /// The next entry has this extended attribute.
    fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.0
            .append_pax_extensions([(format!("SCHILY.xattr.{name}").as_str(), value)])
            .unwrap();
        self
    }

    fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// version 2, cap_net_raw permitted and effective: what `setcap cap_net_raw+ep` writes.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn lower() -> Vec<u8> {
    Layer::new()
        .entry(EntryType::Directory, "./", "", 0o755, (0, 0), b"")
        .entry(EntryType::Directory, "home/user/", "", 0o700, (1000, 1001), b"")
        .file("home/user/gone", 0o644, (1000, 1001), b"gone")
        .file("home/user/kept", 0o4755, (70_000, 5), b"kept")
        .file("cache/a", 0o644, (0, 0), b"a")
        .file("cache/deep/b", 0o644, (0, 0), b"b")
        .entry(EntryType::Symlink, "lib", "usr/lib", 0o777, (0, 0), b"")
        .entry(EntryType::Char, "dev/null", "", 0o666, (0, 0), b"")
        .entry(EntryType::Fifo, "pipe", "", 0o600, (0, 0), b"")
        .finish()
}

fn upper() -> Vec<u8> {
    Layer::new()
        .file("home/user/.wh.gone", 0o644, (0, 0), b"")
        .file("cache/.wh..wh..opq", 0o644, (0, 0), b"")
        .file("cache/new", 0o644, (0, 0), b"new")
        .file("usr/lib/x", 0o644, (0, 0), b"x")
        .xattr("security.capability", CAPABILITY)
        .file("lib/ping", 0o755, (0, 0), b"through the link")
        .entry(EntryType::Link, "lib/ping6", "lib/ping", 0o755, (0, 0), b"")
        .finish()
}

const CONFIG: &str = r#""config":{"Env":["PATH=/bin","A=b=c"],"Entrypoint":["/bin/run"],"Cmd":["arg"],"WorkingDir":"/home","User":"1000"}"#;

/// Writes an OCI layout of these layers; each is stored as given and promised as `plain`.
fn layout(dir: &Path, layers: &[(Vec<u8>, &[u8])]) {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        std::fs::write(blobs.join(sha256(bytes)), bytes).unwrap();
        format!(
            r#"{{"mediaType":"x","digest":"sha256:{}","size":{}}}"#,
            sha256(bytes),
            bytes.len()
        )
    };
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|(_, plain)| format!(r#""sha256:{}""#, sha256(plain)))
        .collect();
    let config = format!(
        r#"{{"architecture":"amd64",{CONFIG},"rootfs":{{"diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    );
    let stored: Vec<String> = layers.iter().map(|(stored, _)| put(stored)).collect();
    let manifest = format!(
        r#"{{"config":{},"layers":[{}]}}"#,
        put(config.as_bytes()),
        stored.join(",")
    );
    std::fs::write(
        dir.join("index.json"),
        format!(r#"{{"manifests":[{}]}}"#, put(manifest.as_bytes())),
    )
    .unwrap();
}

fn import(bench: &Bench, source: &Path) -> Result<(Image, std::path::PathBuf), BaseError> {
    let disk = bench.path().join("root.img");
    let scratch = Scratch::new(bench.path()).unwrap();
    root_file_system(source, None, &disk, &scratch, &bench.job()).map(|image| (image, disk))
}

/// What debugfs says to a request.
fn debugfs(disk: &Path, request: &str) -> String {
    let output = std::process::Command::new("debugfs")
        .args(["-R", request])
        .arg(disk)
        .output();
    let output = output.expect("e2fsprogs is installed (script/bootstrap)");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn names(disk: &Path, dir: &str) -> Vec<String> {
    // `ls -p` prints /inode/mode/uid/gid/name/size/
    let listing = debugfs(disk, &format!("ls -p {dir}"));
    let mut names: Vec<String> = listing
        .lines()
        .filter_map(|line| line.split('/').nth(5))
        .map(str::to_owned)
        .collect();
    names.retain(|name| !matches!(name.as_str(), "." | ".." | "lost+found"));
    names.sort();
    names
}

fn check_disk(disk: &Path) {
    assert_eq!(names(disk, "/home/user"), ["kept"]);
    assert_eq!(names(disk, "/cache"), ["new"]);
    assert_eq!(names(disk, "/usr/lib"), ["ping", "ping6", "x"]);
    let squeezed = |request: &str| {
        debugfs(disk, request)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    let kept = squeezed("stat /home/user/kept");
    assert!(
        kept.contains("Mode: 04755") && kept.contains("User: 70000 Group: 5"),
        "{kept}"
    );
    let home = squeezed("stat /home/user");
    assert!(
        home.contains("Mode: 0700") && home.contains("User: 1000 Group: 1001"),
        "{home}"
    );
    let null = squeezed("stat /dev/null");
    assert!(
        null.contains("Type: character special") && null.contains("01:03"),
        "{null}"
    );
    assert!(squeezed("stat /pipe").contains("Type: FIFO"));
    assert!(squeezed("stat /lib").contains("Fast link dest: \"usr/lib\""));
    let ping = squeezed("stat /usr/lib/ping");
    assert!(
        ping.contains("Links: 2") && ping.contains("security.capability (20)"),
        "{ping}"
    );
    assert_eq!(
        debugfs(disk, "cat /usr/lib/ping6").lines().last().unwrap(),
        "through the link"
    );
    let sound = std::process::Command::new("e2fsck")
        .args(["-fn"])
        .arg(disk)
        .output()
        .unwrap();
    assert!(
        sound.status.success(),
        "{}",
        String::from_utf8_lossy(&sound.stdout)
    );
}

#[test]
fn layouts_with_every_compression_become_the_same_disk() {
    let bench = Bench::new();
    let source = bench.path().join("layout");
    let zstd = zstd::encode_all(&upper()[..], 1).unwrap();
    layout(&source, &[(gzip(&lower()), &lower()), (zstd, &upper())]);
    let (image, disk) = import(&bench, &source).unwrap();
    assert_eq!(image.config.command(), ["/bin/run", "arg"]);
    check_disk(&disk);
    assert_eq!(
        std::fs::read_dir(bench.path()).unwrap().count(),
        2,
        "only the layout and the disk are left"
    );
}

#[test]
fn docker_archives_plain_and_compressed() {
    let bench = Bench::new();
    let config = format!(
        r#"{{"architecture":"amd64",{CONFIG},"rootfs":{{"diff_ids":["sha256:{}","sha256:{}"]}}}}"#,
        sha256(&lower()),
        sha256(&upper())
    );
    let manifest = r#"[{"Config":"c.json","RepoTags":["box:1"],"Layers":["1/layer.tar","2/layer.tar"]}]"#;
    let archive = Layer::new()
        .file("3/layer.tar", 0o644, (0, 0), &upper())
        .entry(
            EntryType::Symlink,
            "2/layer.tar",
            "../3/layer.tar",
            0o777,
            (0, 0),
            b"",
        )
        .file("1/layer.tar", 0o644, (0, 0), &lower())
        .file("c.json", 0o644, (0, 0), config.as_bytes())
        .file("manifest.json", 0o644, (0, 0), manifest.as_bytes())
        .finish();
    for (name, bytes) in [("plain.tar", archive.clone()), ("packed.tar.gz", gzip(&archive))] {
        let source = bench.path().join(name);
        std::fs::write(&source, bytes).unwrap();
        let (image, disk) = import(&bench, &source).unwrap();
        assert_eq!(image.name, "box:1");
        check_disk(&disk);
    }
}

#[test]
fn damaged_and_hostile_images_are_refused() {
    let refused = |layers: &[(Vec<u8>, &[u8])], damage: &dyn Fn(&Path), expected: &str| {
        let bench = Bench::new();
        let source = bench.path().join("layout");
        layout(&source, layers);
        damage(&source);
        let error = import(&bench, &source).unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        assert_eq!(
            std::fs::read_dir(bench.path()).unwrap().count(),
            1,
            "{expected}: something is left behind"
        );
    };
    let one = Layer::new().file("a", 0o644, (0, 0), b"a").finish();
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", sha256(bytes));
    let mut flipped = one.clone();
    flipped[700] ^= 1; // in the padding behind the content: only the digest can tell
    refused(
        &[(one.clone(), &one)],
        &|dir| std::fs::write(dir.join(blob(&one)), &flipped).unwrap(),
        "digest",
    );
    refused(&[(gzip(&flipped), &one)], &|_| (), "configuration gives");
    refused(
        &[(one.clone(), &one)],
        &|dir| std::fs::remove_file(dir.join(blob(&one))).unwrap(),
        "no such file",
    );
    refused(
        &[(one.clone(), &one)],
        &|dir| std::fs::write(dir.join("index.json"), "{").unwrap(),
        "JSON",
    );
    refused(&[(one[..600].to_vec(), &one[..600])], &|_| (), "");
    refused(&[(gzip(&one)[..30].to_vec(), &one)], &|_| (), "");
    let up = Layer::new().file("../../escaped", 0o644, (0, 0), b"x").finish();
    refused(&[(up.clone(), &up)], &|_| (), "`..`");
    let within = Layer::new().file(".wh.a/b", 0o644, (0, 0), b"b").finish();
    refused(&[(within.clone(), &within)], &|_| (), "whiteout");
    let hard = Layer::new()
        .entry(EntryType::Link, "x", "/etc/passwd", 0o644, (0, 0), b"")
        .finish();
    refused(&[(hard.clone(), &hard)], &|_| (), "not there");
    let kind = Layer::new()
        .entry(EntryType::new(b'V'), "x", "", 0o644, (0, 0), b"")
        .finish();
    refused(&[(kind.clone(), &kind)], &|_| (), "unknown");
}

#[test]
fn a_link_out_of_the_image_stays_inside() {
    let bench = Bench::new();
    let outside = bench.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let target = outside.to_str().unwrap();
    let layer = Layer::new()
        .entry(EntryType::Symlink, "way", target, 0o777, (0, 0), b"")
        .file("way/planted", 0o644, (0, 0), b"x")
        .finish();
    let source = bench.path().join("layout");
    layout(&source, &[(layer.clone(), &layer)]);
    let (_, disk) = import(&bench, &source).unwrap();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(names(&disk, target), ["planted"]);
}
