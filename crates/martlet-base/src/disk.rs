//! Disks made bases: raw and qcow2.
//!
//! ```text
//! raw, qcow2 ─ qemu-img info, check ─► refused unless whole and self-contained ─ qemu-img convert ─► raw, sparse
//!     boot loader in the first sector ─► Firmware: boots by itself, no agent
//!     ext4, bare or on a partition    ─► our kernel, initramfs and agent; also what is asked for with `--init`
//! ```
//!
//! The format is told from the first bytes and then named to qemu-img, which otherwise would guess: a guest that wrote a
//! qcow2 header onto its raw disk could have it open any file of the host as a backing file.

use crate::boot::{Boot, DEFAULT_SUITE, ROOT_DISK};
use crate::command::Run;
use crate::error::IoContext;
use crate::ext4::SIZE_MAX_BYTES;
use crate::scratch::Unfinished;
use crate::{Artifacts, BaseError, Job, partitions};
use martlet_api::InitKind;
use serde::Deserialize;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

const ALIGN_BYTES: u64 = 4096;
/// Bit of qcow2's incompatible features.
const EXTERNAL_DATA: u64 = 1 << 2;
const QCOW2_MAGIC: &[u8] = b"QFI\xfb";

/// What `qemu-img info` says, as far as it matters here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    format: String,
    #[serde(default)]
    backing_filename: Option<String>,
    #[serde(default)]
    encrypted: bool,
    #[serde(default)]
    format_specific: Option<FormatSpecific>,
}

#[derive(Debug, Deserialize)]
struct FormatSpecific {
    #[serde(default)]
    data: FormatData,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct FormatData {
    data_file: Option<String>,
    corrupt: bool,
}

/// What a disk holds, as far as booting goes.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) struct Layout {
    /// Is there code in the first sector, which firmware would start?
    pub boot_loader: bool,
    /// Device name of the ext4 root, bare or on a partition.
    pub root: Option<String>,
}

/// Imports a raw or qcow2 disk. `init` is told from the content when absent: a disk with a boot loader boots by firmware,
/// an ext4 file system by our kernel with the image's own init.
pub fn import_disk(path: &Path, init: Option<InitKind>, job: &Job) -> Result<Artifacts, BaseError> {
    let format = format_of(path)?;
    let info = inspect(path, format, job)?;
    let mut unfinished = Unfinished::new();
    let root_disk = unfinished.add(job.work_dir.join("root.img"));
    convert(path, format, &info, &root_disk, job)?;
    let layout = layout_of(&root_disk, path)?;
    let refused = |reason: &str| Err(BaseError::bad_source(path, reason));
    let artifacts = match (init, layout.root, layout.boot_loader) {
        (None | Some(InitKind::Firmware), _, true) => Artifacts {
            root_disk,
            kernel: None,
            initrd: None,
            cmdline: String::new(),
            init: InitKind::Firmware,
            origin: format.to_owned(),
            kernel_version: None,
            cmd: Vec::new(),
            env: Vec::new(),
            workdir: None,
            user: None,
        },
        (Some(InitKind::Firmware), _, false) => {
            return refused("it has no boot loader in its first sector: firmware could not boot it");
        }
        (_, None, true) => {
            return refused(
                "it has no ext4 file system that our kernel could boot; it boots by firmware only",
            );
        }
        (_, None, false) => {
            return refused("it has neither a boot sector nor an ext4 file system: nothing could boot it");
        }
        (init, Some(root), _) => Boot::new(DEFAULT_SUITE, job)?.artifacts(
            root_disk,
            &root,
            init.unwrap_or(InitKind::Systemd),
            format.to_owned(),
            &mut unfinished,
            job,
        )?,
    };
    unfinished.keep();
    Ok(artifacts)
}

fn format_of(path: &Path) -> Result<&'static str, BaseError> {
    let meta = std::fs::metadata(path).during("open", path)?;
    if !meta.is_file() || meta.len() == 0 {
        return Err(BaseError::bad_source(
            path,
            "it is not a file with anything in it",
        ));
    }
    let mut magic = Vec::new();
    File::open(path)
        .and_then(|file| file.take(4).read_to_end(&mut magic))
        .during("read", path)?;
    Ok(if magic == QCOW2_MAGIC { "qcow2" } else { "raw" })
}

/// Refuses what names other files by its header alone: some versions of qemu-img open an external data file, which may be
/// any file or network address, merely to describe the image.
pub(crate) fn check_qcow2_header(path: &Path) -> Result<(), BaseError> {
    let mut header = Vec::new();
    File::open(path)
        .and_then(|file| file.take(80).read_to_end(&mut header))
        .during("read", path)?;
    let word = |at: usize| {
        header
            .get(at..)?
            .first_chunk()
            .map(|bytes| u64::from_be_bytes(*bytes))
    };
    let version = header
        .get(4..)
        .and_then(|rest| rest.first_chunk())
        .map(|bytes| u32::from_be_bytes(*bytes));
    let reason = match (version, word(8), word(72)) {
        (_, Some(backing @ 1..), _) => format!(
            "it is an overlay over another image (named at {backing}): make it whole with `qemu-img convert -O qcow2` first"
        ),
        (Some(2), Some(0), _) => return Ok(()),
        (Some(3), Some(0), Some(features)) if features & EXTERNAL_DATA == 0 => return Ok(()),
        (Some(3), Some(0), Some(_)) => {
            "its data is in another file: make it whole with `qemu-img convert -O qcow2` first".into()
        }
        _ => "its qcow2 header is cut short or of an unknown version".into(),
    };
    Err(BaseError::bad_source(path, reason))
}

fn inspect(path: &Path, format: &str, job: &Job) -> Result<Info, BaseError> {
    if format == "qcow2" {
        check_qcow2_header(path)?;
    }
    job.stage("looking at the disk");
    let answer = Run::new("qemu-img", "qemu-utils")
        .args(["info", "--output=json", "-f", format])
        .arg(image_name(path))
        .output(job)
        .map_err(|error| unreadable(error, path))?;
    let info: Info = serde_json::from_slice(&answer)
        .map_err(|error| BaseError::bad_source(path, format!("qemu-img describes it strangely: {error}")))?;
    check(&info, path)?;
    if format == "qcow2" {
        check_clusters(path, job)?;
    }
    Ok(info)
}

/// `qemu-img convert` reads clusters behind the end of the file as zeros, so that a download cut short would become a disk
/// with holes.
fn check_clusters(path: &Path, job: &Job) -> Result<(), BaseError> {
    const ONLY_LEAKS: &str = "exit status: 3";
    let checked = Run::new("qemu-img", "qemu-utils")
        .args(["check", "-q", "-f", "qcow2"])
        .arg(image_name(path))
        .output(job);
    match checked {
        Err(BaseError::Tool { status, .. }) if status == ONLY_LEAKS => Ok(()),
        Err(BaseError::Tool { last_words, .. }) => {
            let first = last_words
                .lines()
                .next()
                .unwrap_or("qemu-img check does not say why");
            Err(BaseError::bad_source(
                path,
                format!("it is damaged or cut short: {first:.200}"),
            ))
        }
        other => other.map(drop),
    }
}

fn check(info: &Info, path: &Path) -> Result<(), BaseError> {
    let data = info.format_specific.as_ref().map(|specific| &specific.data);
    let reason = if let Some(file) = &info.backing_filename {
        format!("it is an overlay over {file:.200?}: make it whole with `qemu-img convert -O qcow2` first")
    } else if let Some(file) = data.and_then(|data| data.data_file.as_ref()) {
        format!(
            "its data is in another file, {file:.200?}: make it whole with `qemu-img convert -O qcow2` first"
        )
    } else if info.encrypted {
        "it is encrypted".into()
    } else if data.is_some_and(|data| data.corrupt) {
        "it is marked as damaged: try `qemu-img check -r all` on a copy".into()
    } else if info.virtual_size == 0 || info.virtual_size > SIZE_MAX_BYTES {
        format!(
            "its size of {} bytes is not possible, at most {SIZE_MAX_BYTES} are",
            info.virtual_size
        )
    } else {
        return Ok(());
    };
    Err(BaseError::bad_source(path, reason))
}

fn convert(path: &Path, format: &str, info: &Info, to: &Path, job: &Job) -> Result<(), BaseError> {
    job.bytes("copying the disk", 0, Some(info.virtual_size));
    Run::new("qemu-img", "qemu-utils")
        .args([
            "convert",
            "-f",
            &info.format,
            "-O",
            "raw",
            "-S",
            "4k",
            "-t",
            "writeback",
        ])
        .arg(image_name(path))
        .arg(to)
        .output(job)
        .map_err(|error| unreadable(error, path))?;
    debug_assert_eq!(info.format, format);
    let file = File::options().write(true).open(to).during("open", to)?;
    file.set_len(info.virtual_size.next_multiple_of(ALIGN_BYTES))
        .during("size", to)
}

/// Names with a colon would be taken for a protocol.
fn image_name(path: &Path) -> std::ffi::OsString {
    let mut name = std::ffi::OsString::from("file:");
    name.push(path);
    name
}

fn unreadable(error: BaseError, path: &Path) -> BaseError {
    match error {
        error if error.is_no_space() => error,
        BaseError::Tool { last_words, .. } => BaseError::bad_source(path, last_words),
        other => other,
    }
}

pub(crate) fn layout_of(disk: &Path, source: &Path) -> Result<Layout, BaseError> {
    let file = File::open(disk).during("open", disk)?;
    let disk_bytes = file.metadata().during("open", disk)?.len();
    let bad = |reason: String| BaseError::bad_source(source, reason);
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 0).during("read", disk)?;
    // The mark alone is left by partitioning tools, without any code.
    let boot_loader = sector[510..] == [0x55, 0xaa] && sector[..440].iter().any(|byte| *byte != 0);
    let whole = ext4_bytes(&file, 0).during("read", disk)?;
    let root = match whole {
        Some(size_bytes) if size_bytes > disk_bytes => return Err(bad(cut_short(size_bytes, disk_bytes))),
        Some(_) => Some(ROOT_DISK.to_owned()),
        None => {
            let mut best = None;
            for partition in partitions::read(&file, disk_bytes).map_err(bad)? {
                match ext4_bytes(&file, partition.start_bytes).during("read", disk)? {
                    Some(size_bytes) if size_bytes > partition.size_bytes => {
                        return Err(bad(cut_short(size_bytes, partition.size_bytes)));
                    }
                    Some(_) => {
                        best = best.max(Some((partition.is_root, partition.size_bytes, partition.number)))
                    }
                    None => {}
                }
            }
            best.map(|(_, _, number)| format!("{ROOT_DISK}{number}"))
        }
    };
    Ok(Layout { boot_loader, root })
}

fn cut_short(size_bytes: u64, there_bytes: u64) -> String {
    format!("its file system has {size_bytes} bytes and only {there_bytes} are there: the disk is cut short")
}

/// Size of the ext4 file system that begins at `start`, if one does: by its superblock.
fn ext4_bytes(disk: &File, start: u64) -> std::io::Result<Option<u64>> {
    let mut superblock = [0; 1024];
    match disk.read_exact_at(&mut superblock, start.saturating_add(1024)) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    if superblock[0x38..0x3a] != [0x53, 0xef] {
        return Ok(None);
    }
    let word = |at: usize| u32::from_le_bytes(superblock[at..at + 4].try_into().expect("four bytes"));
    const BIT64: u32 = 0x80;
    let high = if word(0x60) & BIT64 != 0 { word(0x150) } else { 0 };
    let blocks = (u64::from(high) << 32) | u64::from(word(0x4));
    Ok(Some(blocks.saturating_mul(1024 << word(0x18).min(6))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    fn qemu_img(args: &[&str], dir: &Path) {
        let status = std::process::Command::new("qemu-img")
            .args(args)
            .current_dir(dir)
            .stdout(std::process::Stdio::null())
            .status();
        assert!(
            status
                .expect("qemu-img is installed (script/bootstrap)")
                .success(),
            "{args:?}"
        );
    }

    #[test]
    fn a_bootable_qcow2_becomes_a_raw_firmware_disk() {
        let bench = Bench::new();
        let mut disk = vec![0; 1 << 20];
        disk[0] = 0xeb;
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk[700_000] = 7;
        std::fs::write(bench.path().join("a: odd, name.raw"), &disk).unwrap();
        qemu_img(
            &["convert", "-O", "qcow2", "file:a: odd, name.raw", "b.qcow2"],
            bench.path(),
        );
        for name in ["a: odd, name.raw", "b.qcow2"] {
            let artifacts = import_disk(&bench.path().join(name), None, &bench.job()).unwrap();
            assert_eq!(artifacts.init, InitKind::Firmware);
            assert!(artifacts.kernel.is_none());
            assert!(std::fs::read(&artifacts.root_disk).unwrap() == disk, "{name}");
        }
    }

    #[test]
    fn overlays_external_data_and_damage_are_refused_and_leave_nothing() {
        let bench = Bench::new();
        let dir = bench.path();
        qemu_img(&["create", "-q", "-f", "qcow2", "whole.qcow2", "1M"], dir);
        qemu_img(
            &[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-b",
                "whole.qcow2",
                "-F",
                "qcow2",
                "overlay.qcow2",
            ],
            dir,
        );
        qemu_img(
            &[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-o",
                "data_file=secret.raw",
                "outside.qcow2",
                "1M",
            ],
            dir,
        );
        let whole = std::fs::read(dir.join("whole.qcow2")).unwrap();
        std::fs::write(dir.join("short.qcow2"), &whole[..60]).unwrap();
        let mut absurd = whole.clone();
        absurd[24..32].copy_from_slice(&u64::MAX.to_be_bytes());
        std::fs::write(dir.join("absurd.qcow2"), &absurd).unwrap();
        let made = std::process::Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "full.raw", "8M"])
            .current_dir(dir)
            .status();
        assert!(made.unwrap().success());
        qemu_img(&["convert", "-O", "qcow2", "full.raw", "full.qcow2"], dir);
        for kind in ["raw", "qcow2"] {
            let full = std::fs::read(dir.join(format!("full.{kind}"))).unwrap();
            std::fs::write(dir.join(format!("cut.{kind}")), &full[..full.len() * 3 / 4]).unwrap();
        }
        std::fs::write(dir.join("empty.raw"), b"").unwrap();
        std::fs::write(dir.join("noise.raw"), [9; 8192]).unwrap();
        let cases = [
            ("overlay.qcow2", "overlay over"),
            ("outside.qcow2", "another file"),
            ("short.qcow2", "cut short"),
            ("absurd.qcow2", ""),
            ("empty.raw", "not a file with anything"),
            ("noise.raw", "neither a boot sector"),
            ("whole.qcow2", "neither a boot sector"),
            ("cut.qcow2", "cut short"),
            ("cut.raw", "cut short"),
        ];
        for (name, expected) in cases {
            let error = import_disk(&dir.join(name), None, &bench.job()).unwrap_err();
            assert!(matches!(error, BaseError::BadSource { .. }), "{name}: {error}");
            assert!(error.to_string().contains(expected), "{name}: {error}");
            assert!(!dir.join("root.img").exists(), "{name}");
        }
    }

    #[test]
    fn a_raw_disk_that_begins_like_nothing_is_never_opened_as_qcow2() {
        let bench = Bench::new();
        let path = bench.path().join("ext4.img");
        let mut disk = vec![0; 4097];
        disk[1028] = 1; // block
        disk[1080..1082].copy_from_slice(&[0x53, 0xef]);
        std::fs::write(&path, &disk).unwrap();
        assert_eq!(format_of(&path).unwrap(), "raw");
        assert_eq!(layout_of(&path, &path).unwrap().root.as_deref(), Some("/dev/vda"));
        let error = import_disk(&path, Some(InitKind::Firmware), &bench.job()).unwrap_err();
        assert!(error.to_string().contains("no boot loader"), "{error}");
    }
}
