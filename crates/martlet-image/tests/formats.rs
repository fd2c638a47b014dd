//! Manifests against a reference model, files of the first version, and bytes that are not what they should be.

use martlet_image::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;

const PAGES: u64 = 1500;

fn location(code: u16) -> PageLocation {
    match code % 40 {
        0..10 => PageLocation::Zero,
        frame => PageLocation::Frame {
            frame: FrameId::of(&[frame as u8]),
            slot: (code / 40 % 16) as u8,
        },
    }
}

fn edits() -> impl Strategy<Value = Vec<(u64, u16)>> {
    // Runs, as real images have them: a few starts, each with consecutive slots.
    let run = (0..PAGES + 20, any::<u16>(), 1u16..30).prop_map(|(at, code, len)| {
        (0..len)
            .map(|i| (at + u64::from(i), code.wrapping_add(i * 40)))
            .collect::<Vec<_>>()
    });
    prop::collection::vec(run, 0..12).prop_map(|runs| runs.concat())
}

fn no_parent(_: &ManifestId) -> Result<Manifest, FormatError> {
    panic!("a full manifest has no parent")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_manifest_says_what_was_set(first in edits(), second in edits(), new_count in 0..PAGES * 2) {
        let mut model = BTreeMap::new();
        let mut manifest = Manifest::zero(PAGES);
        for (at, code) in first {
            manifest.set(at, location(code));
            model.insert(at, location(code));
        }
        let parent = manifest.clone();
        let parent_bytes = parent.encode(None);
        let id = ManifestId::of(&parent_bytes);
        manifest = manifest.resized(new_count);
        for at in new_count.min(PAGES)..PAGES {
            model.insert(at, PageLocation::Zero);
        }
        model.retain(|at, _| *at < PAGES);
        for (at, code) in second {
            manifest.set(at, location(code));
            model.insert(at, location(code));
        }
        model.retain(|at, _| *at < new_count);
        let stored = model.values().filter(|location| **location != PageLocation::Zero).count();
        prop_assert_eq!(manifest.stored_count(), stored as u64);
        prop_assert_eq!(manifest.stored_pages().count(), stored);
        for at in 0..PAGES * 2 {
            let expected = model.get(&at).copied().unwrap_or(PageLocation::Zero);
            prop_assert_eq!(manifest.locate(at), expected, "page {}", at);
        }
        // In full, and as a delta.
        let full = manifest.encode(None);
        prop_assert_eq!(&Manifest::decode(&full, &mut no_parent).unwrap(), &manifest);
        let delta = manifest.encode(Some(ManifestParent { id, depth: 0, manifest: &parent }));
        let decoded = Manifest::decode(&delta, &mut |asked| {
            assert_eq!(*asked, id);
            Manifest::decode(&parent_bytes, &mut no_parent)
        }).unwrap();
        prop_assert_eq!(&decoded, &manifest);
        let header = Manifest::decode_header(&delta[..64]).unwrap();
        prop_assert_eq!((header.page_count, header.stored_count), (new_count, stored as u64));
        let diff = manifest.diff(&parent);
        prop_assert_eq!(diff.same_pages + diff.changed_pages + diff.added_pages, stored as u64);
        prop_assert_eq!(diff.same_pages + diff.changed_pages + diff.removed_pages, parent.stored_count());
    }
}

#[test]
fn a_chain_is_squashed_when_it_grows_too_deep() {
    let frame = FrameId::of(b"frame");
    let mut manifest = Manifest::zero(1000);
    (0..1000).for_each(|at| {
        manifest.set(
            at,
            PageLocation::Frame {
                frame,
                slot: (at % 16) as u8,
            },
        )
    });
    let mut at = (ManifestId::of(&manifest.encode(None)), 0);
    for round in 1..=u64::from(MANIFEST_DEPTH_MAX) + 1 {
        let parent = manifest.clone();
        manifest.set(round, PageLocation::Zero);
        let bytes = manifest.encode(Some(ManifestParent {
            id: at.0,
            depth: at.1,
            manifest: &parent,
        }));
        let header = Manifest::decode_header(&bytes).unwrap();
        let squashed = round > u64::from(MANIFEST_DEPTH_MAX);
        assert_eq!(header.parent, (!squashed).then_some(at.0));
        at = (ManifestId::of(&bytes), header.depth);
    }
}

fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let mut manifest = Manifest::zero(5000);
    for at in 0..60 {
        manifest.set(
            at * 3 / 2 + 100,
            PageLocation::Frame {
                frame: FrameId::of(&[at as u8 / 16]),
                slot: at as u8 % 16,
            },
        );
    }
    let parent = manifest.clone();
    let full = manifest.encode(None);
    manifest.set_zero(110..120);
    manifest.set(
        4999,
        PageLocation::Frame {
            frame: FrameId::of(b"new"),
            slot: 3,
        },
    );
    let id = ManifestId::of(&full);
    let delta = manifest.encode(Some(ManifestParent {
        id,
        depth: 0,
        manifest: &parent,
    }));
    let hardware = Hardware {
        machine_type: "pc-q35-7.2".into(),
        cpus: 2,
        ..Hardware::default()
    };
    let descriptor = BlobId::of(b"descriptor");
    let memory = MemoryRecord {
        manifest: id,
        size_bytes: 20_480_000,
        descriptor,
        trace: None,
        starter: None,
        free_pages: 7,
    };
    let boot = BootRecord {
        kernel: BlobId::of(b"kernel"),
        initrd: BlobId::of(b"initrd"),
        cmdline: "quiet".into(),
    };
    let record = SnapshotRecord {
        machine: "web".into(),
        created_unix_ms: 1_790_000_000_000,
        parent: Some(SnapshotId::of(b"parent")),
        memory: Some(memory),
        disks: vec![DiskRecord {
            manifest: id,
            size_bytes: 20_480_000,
        }],
        boot: Some(boot),
        hardware: Some(hardware),
        agent: true,
        init: "systemd".into(),
        ..SnapshotRecord::default()
    };
    let pages: Vec<u8> = (0..3 * PAGE_SIZE).map(|i| (i / 100) as u8).collect();
    vec![
        ("manifest-full", full),
        ("manifest-delta", delta),
        (
            "trace",
            Trace::new((0..300).map(|i| i * 17 % 1000).collect()).encode(),
        ),
        ("snapshot", record.encode().unwrap()),
        ("frame", encode_frame(&pages).bytes),
    ]
}

/// Files of the first version decode for ever, and today's encoder still writes the records so (zstd's output may
/// change from release to release, so a frame only has to decode).
#[test]
fn golden_files_stay_readable() {
    for (name, bytes) in samples() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(name);
        if std::env::var_os("MARTLET_WRITE_GOLDEN").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        let golden = std::fs::read(&path).unwrap();
        if name == "frame" {
            let pages: Vec<u8> = (0..3 * PAGE_SIZE).map(|i| (i / 100) as u8).collect();
            assert_eq!(
                decode_frame(&FrameId::of(&pages), Codec::Zstd, &golden, 3),
                Ok(pages.into())
            );
        } else {
            assert!(
                golden == bytes,
                "{name} is written differently now: raise its version"
            );
        }
    }
}

/// Every decoder, on bytes that were damaged on purpose: it may refuse, but not panic, hang or take much memory.
#[test]
fn decoders_bear_damaged_bytes() {
    let samples = samples();
    let parent = Manifest::decode(&samples[0].1, &mut no_parent).unwrap();
    let mut random = 1u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for round in 0..40_000 {
        let (_, bytes) = &samples[round % samples.len()];
        let mut bytes = bytes.clone();
        for _ in 0..1 + next() % 4 {
            let at = next() as usize % bytes.len();
            match next() % 4 {
                0 => bytes[at] ^= 1 << (next() % 8),
                1 => bytes[at] = [0, 0x7f, 0x80, 0xff][next() as usize % 4],
                2 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, next() as u8),
            }
        }
        if let Ok(manifest) = Manifest::decode(&bytes, &mut |_| Ok::<_, FormatError>(parent.clone())) {
            assert!(manifest.page_count() <= MANIFEST_PAGES_MAX);
            assert!(manifest.frames().len() as u64 <= manifest.stored_count());
        }
        if let Ok(trace) = Trace::decode(&bytes) {
            assert!(trace.pages().len() <= TRACE_PAGES_MAX);
        }
        let _ = SnapshotRecord::decode(&bytes);
        let _ = decode_frame(&FrameId([0; 32]), Codec::Zstd, &bytes, 1 + round % 16);
    }
}
