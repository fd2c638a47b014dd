//! What a fault costs: cold, decoded, pushed; by readahead and threads. And a disk's reads and writes.
//!
//! `cargo bench -p martlet-fuse --bench fault`; prints a table, asserts nothing. Needs root.
#![allow(unsafe_code)] // the mapping

#[path = "../tests/support/mod.rs"]
mod support;

use bytes::Bytes;
use martlet_disk::CowDisk;
use martlet_fuse::{Placement, Prefetcher, Registry, Server, set_readahead};
use martlet_image::{EncodedFrame, FrameId, PAGE_SIZE, Trace, decode_frame, encode_frame};
use martlet_pager::{FrameSource, MemoryImage, Pager, SourceError};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;
use support::{Mapping, Mounted, Shelf, image};

const PAGES: u64 = 16_384; // 64 MiB

/// The shelf with the price of a frame: decompressed and verified. (The shelf's own content does not compress.)
struct Verifying {
    shelf: Arc<Shelf>,
    sample: EncodedFrame,
}

impl Verifying {
    fn source(shelf: Arc<Shelf>) -> Arc<dyn FrameSource> {
        let text: Vec<u8> = (0..16 * PAGE_SIZE)
            .map(|at| ((at * at / 97) % 61) as u8 ^ (at / 900) as u8)
            .collect();
        Arc::new(Self {
            shelf,
            sample: encode_frame(&text),
        })
    }
}

impl FrameSource for Verifying {
    fn frame(&self, id: &FrameId) -> Result<Bytes, SourceError> {
        let sample = &self.sample;
        let pages = decode_frame(&sample.id, sample.codec, &sample.bytes, sample.page_count.into());
        std::hint::black_box(pages.expect("a good frame"));
        self.shelf.frame(id)
    }
}

/// Pages in an order without neighbours: every other one, or few.
fn scattered(part: u64) -> impl Iterator<Item = u64> {
    (0..PAGES / part).map(|n| n.wrapping_mul(7919) % PAGES)
}

fn touch(mapping: &Mapping, pages: impl Iterator<Item = u64>) -> Times {
    let mut times: Vec<f64> = pages
        .map(|page| {
            let start = Instant::now();
            std::hint::black_box(mapping.page(page)[0]);
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    let total_ms = times.iter().sum::<f64>() / 1e3;
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100], total_ms)
}

/// One line for each way of going through the memory; of five rounds the least total.
fn memory(readahead_kib: u32, threads: usize, push: bool) {
    for (order, part) in [("1 in 2", 2), ("1 in 64", 64), ("all", 1)] {
        let rounds = (0..5).map(|_| memory_round(readahead_kib, threads, push, part));
        let (cold, warm, reads) = rounds
            .min_by(|one, other| one.0.2.total_cmp(&other.0.2))
            .expect("five rounds");
        println!(
            "readahead {readahead_kib:3} KiB, {threads} threads, push {push:5}, {order:7}: cold p50 {:5.1} p99 {:6.1} us, total \
             {:6.1} ms, {reads:5} reads; decoded p50 {:5.1} p99 {:6.1} us, total {:6.1} ms",
            cold.0, cold.1, cold.2, warm.0, warm.1, warm.2
        );
    }
}

type Times = (f64, f64, f64);

fn memory_round(readahead_kib: u32, threads: usize, push: bool, part: u64) -> (Times, Times, u64) {
    let (shelf, manifest, _) = image(PAGES, 1);
    let memory = MemoryImage::new(Pager::new(Verifying::source(shelf), 256 << 20), manifest);
    let registry = Registry::new();
    let ino = registry
        .add_memory("m", memory.clone(), Placement::default())
        .unwrap();
    let (mounted, fd) = Mounted::new();
    let server = Server::start(fd, registry, None, threads).unwrap();
    set_readahead(&mounted.dir, readahead_kib).unwrap();
    if !push {
        memory.set_push(None);
    }
    let run = |mapping: Mapping| match part {
        1 => touch(&mapping, 0..PAGES),
        _ => touch(&mapping, scattered(part)),
    };
    let cold = run(Mapping::private(&mounted.mem("m")));
    let reads = memory.stats().reads;
    memory.set_push(None);
    server.invalidate(ino).unwrap();
    (cold, run(Mapping::private(&mounted.mem("m"))), reads)
}

fn pushed() {
    let (shelf, manifest, _) = image(PAGES, 1);
    let memory = MemoryImage::new(Pager::new(Verifying::source(shelf), 256 << 20), manifest);
    let registry = Registry::new();
    registry
        .add_memory("m", memory.clone(), Placement::default())
        .unwrap();
    let (mounted, _server) = Mounted::served(&registry);
    let mapping = Mapping::private(&mounted.mem("m"));
    let start = Instant::now();
    let report = Prefetcher::start(memory, Trace::new((0..PAGES as u32).collect()), 1 << 30)
        .unwrap()
        .join();
    let seconds = start.elapsed().as_secs_f64();
    let mib = report.pushed_pages as f64 / 256.0;
    let after = touch(&mapping, scattered(2));
    println!(
        "prefetch: {:.0} MiB/s; then p50 {:.2} p99 {:.2} us",
        mib / seconds,
        after.0,
        after.1
    );
}

fn disk() {
    let (shelf, manifest, _) = image(PAGES, 1);
    let store = tempfile::tempdir().unwrap();
    let pager = Pager::new(Verifying::source(shelf), 256 << 20);
    let disk = CowDisk::create(&store.path().join("d"), pager, manifest, PAGES * 4096).unwrap();
    let registry = Registry::new();
    registry
        .add_disk("d", disk.clone(), Placement::default())
        .unwrap();
    let (mounted, _server) = Mounted::served(&registry);
    let file = File::options()
        .read(true)
        .write(true)
        .open(mounted.disk("d"))
        .unwrap();
    let timed = |what: &str, size: usize, work: &mut dyn FnMut(u64)| {
        let start = Instant::now();
        let count = 2000.min(PAGES as usize * PAGE_SIZE / size) as u64;
        (0..count).for_each(|n| {
            work(n.wrapping_mul(7919) % (PAGES * PAGE_SIZE as u64 / size as u64) * size as u64)
        });
        let each_us = start.elapsed().as_secs_f64() * 1e6 / count as f64;
        println!(
            "disk {what:12} {:4} KiB: {each_us:7.1} us, {:7.0} MiB/s",
            size >> 10,
            size as f64 / each_us * 1e6 / 1048576.0
        );
    };
    for size in [PAGE_SIZE, 1 << 16, 1 << 20] {
        let mut buf = vec![7; size];
        timed("read base", size, &mut |at| {
            file.read_exact_at(&mut buf, at).unwrap()
        });
        timed("write", size, &mut |at| file.write_all_at(&buf, at).unwrap());
        timed("read written", size, &mut |at| {
            file.read_exact_at(&mut buf.clone(), at).unwrap()
        });
    }
    let mut freezes: Vec<f64> = (0..100u64)
        .map(|n| {
            disk.write_at(n * 4096, &[1; 4096]).unwrap();
            disk.prepare_freeze().unwrap();
            let start = Instant::now();
            drop(disk.freeze().unwrap());
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    freezes.sort_by(f64::total_cmp);
    println!("disk freeze: p50 {:.1} max {:.1} us", freezes[50], freezes[99]);
}

fn main() {
    for (readahead_kib, push) in [
        (0, false),
        (0, true),
        (16, true),
        (64, true),
        (128, false),
        (128, true),
    ] {
        memory(readahead_kib, 4, push);
    }
    for threads in [1, 2] {
        memory(16, threads, true);
    }
    pushed();
    disk();
}
