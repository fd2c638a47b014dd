//! The same memory images put into a store of ours, and into casync's and restic's.

use crate::BenchError;
use martlet_image::{Manifest, PAGE_SIZE, decompress};
use martlet_store::{Kind, RealFiles, Store, scan};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

/// Programs that our store is compared with.
pub const PEERS: [&str; 2] = ["casync", "restic"];
/// Read and put at once.
const CHUNK_BYTES: usize = 4 << 20;
/// Where a store of ours has its packs (docs/format.md).
const PACKS: &str = "packs";

/// What it took to keep some images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kept {
    /// What the store takes on disk.
    pub size_bytes: f64,
    /// How long it took.
    pub took_ms: f64,
}

/// Keeps `images` in a new store of ours at `dir`: zero pages, deduplication, frames, packs, index, fsync.
pub fn ours(images: &[PathBuf], dir: &Path) -> Result<Kept, BenchError> {
    let begun = Instant::now();
    let store = Store::open(dir, Arc::new(RealFiles))?;
    let mut parent = None;
    for image in images {
        let file = File::open(image).map_err(BenchError::io(format!("open {}", image.display())))?;
        let size_bytes = file
            .metadata()
            .map_err(BenchError::io("look at the image"))?
            .len();
        let mut manifest = Manifest::zero(size_bytes / PAGE_SIZE as u64);
        let mut batch = store.begin()?;
        let mut chunk = vec![0; CHUNK_BYTES];
        for at in (0..size_bytes).step_by(CHUNK_BYTES) {
            let size = CHUNK_BYTES.min((size_bytes - at) as usize);
            file.read_exact_at(&mut chunk[..size], at)
                .map_err(BenchError::io("read the image"))?;
            let pages = chunk[..size].as_chunks::<PAGE_SIZE>().0;
            let numbers = at / PAGE_SIZE as u64..;
            for (page, location) in batch.put_pages(numbers.zip(pages))? {
                manifest.set(page, location);
            }
        }
        parent = Some(batch.put_manifest(&manifest, parent)?);
        batch.commit(&[])?;
    }
    store.compact()?; // as the daemon does at its end
    drop(store);
    let took_ms = begun.elapsed().as_secs_f64() * 1e3;
    Ok(Kept {
        size_bytes: on_disk(dir)?,
        took_ms,
    })
}

/// Decompresses all frames of a store of ours, its packs being in memory; bytes of content per second.
pub fn decompress_all(dir: &Path) -> Result<f64, BenchError> {
    let mut packs = Vec::new();
    for entry in std::fs::read_dir(dir.join(PACKS))
        .map_err(BenchError::io("list the packs"))?
        .flatten()
    {
        packs.push(std::fs::read(entry.path()).map_err(BenchError::io("read a pack"))?);
    }
    let frames: Vec<_> = packs
        .iter()
        .flat_map(|pack| scan(pack, 0).into_iter().map(move |record| (pack, record)))
        .filter(|(_, record)| record.header.key.kind == Kind::Frame)
        .collect();
    let header_bytes = martlet_store::RECORD_HEADER;
    let mut content_bytes = 0;
    let begun = Instant::now();
    for (pack, record) in &frames {
        let begin = record.offset as usize + header_bytes;
        let body = &pack[begin..begin + record.header.stored_len as usize];
        let content = decompress(record.header.codec, body, record.header.content_len as usize)
            .map_err(|error| BenchError::Other(format!("a frame of our own: {error}")))?;
        content_bytes += std::hint::black_box(content).len();
    }
    Ok(content_bytes as f64 / begun.elapsed().as_secs_f64())
}

/// Keeps them with `casync make`.
pub fn casync(images: &[PathBuf], dir: &Path) -> Result<Kept, BenchError> {
    let store = dir.join("store.castr");
    let begun = Instant::now();
    for (number, image) in images.iter().enumerate() {
        let mut command = Command::new("casync");
        command.arg("make").arg(format!("--store={}", store.display()));
        command.arg(dir.join(format!("{number}.caibx"))).arg(image);
        run(&mut command)?;
    }
    kept(dir, begun)
}

/// Keeps them with `restic backup`. Making its repository is not counted.
pub fn restic(images: &[PathBuf], dir: &Path) -> Result<Kept, BenchError> {
    let restic = || {
        let mut command = Command::new("restic");
        command
            .arg("--repo")
            .arg(dir.join("repository"))
            .env("RESTIC_PASSWORD", "not a secret")
            .env("RESTIC_CACHE_DIR", dir.with_extension("cache"));
        command
    };
    run(restic().arg("init"))?;
    let begun = Instant::now();
    for image in images {
        run(restic().arg("backup").arg(image))?;
    }
    kept(dir, begun)
}

fn kept(dir: &Path, begun: Instant) -> Result<Kept, BenchError> {
    let took_ms = begun.elapsed().as_secs_f64() * 1e3;
    Ok(Kept {
        size_bytes: on_disk(dir)?,
        took_ms,
    })
}

/// Those of [`PEERS`] that are not installed.
pub fn missing() -> Vec<&'static str> {
    let is_there = |name: &&str| {
        Command::new(name)
            .arg("--help")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok()
    };
    PEERS.into_iter().filter(|name| !is_there(name)).collect()
}

/// Runs a program to its end.
fn run(command: &mut Command) -> Result<(), BenchError> {
    let program = command.get_program().display().to_string();
    match command.stdin(Stdio::null()).output() {
        Err(source) => Err(BenchError::io(format!("run {program}"))(source)),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(BenchError::Other(format!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))),
    }
}

/// What a directory takes on disk.
fn on_disk(dir: &Path) -> Result<f64, BenchError> {
    let what = || format!("look at {}", dir.display());
    let mut bytes = 0.0;
    for entry in std::fs::read_dir(dir).map_err(BenchError::io(what()))? {
        let entry = entry.map_err(BenchError::io(what()))?;
        let metadata = entry.metadata().map_err(BenchError::io(what()))?;
        bytes += match metadata.is_dir() {
            true => on_disk(&entry.path())?,
            false => metadata.blocks() as f64 * 512.0,
        };
    }
    Ok(bytes)
}
