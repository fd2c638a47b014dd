//! The layers of an OCI image: the merged tree is a tree, of names that are names, and within its limits.
#![no_main]
use libfuzzer_sys::{arbitrary, fuzz_target};
use martlet_base::fuzzing::merged;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::LazyLock;

/// A member of a tar archive. The fuzzer would hardly get a header's checksum right.
#[derive(Debug, arbitrary::Arbitrary)]
struct Member<'a> {
    kind: u8,
    path: Vec<Step<'a>>,
    link: Vec<Step<'a>>,
    content: &'a [u8],
    /// Written over the header before it is summed.
    scribble: Option<(u16, &'a [u8])>,
}

/// What paths are made of: few names, so that members meet.
#[derive(Debug, arbitrary::Arbitrary)]
enum Step<'a> {
    A,
    B,
    Up,
    Root,
    Hidden,
    Opaque,
    Bytes(&'a [u8]),
}

fn path(steps: &[Step<'_>]) -> Vec<u8> {
    let step = |step: &Step<'_>| match step {
        Step::A => b"a/".to_vec(),
        Step::B => b"b/".to_vec(),
        Step::Up => b"../".to_vec(),
        Step::Root => b"/".to_vec(),
        Step::Hidden => b".wh.".to_vec(),
        Step::Opaque => b".wh..wh..opq".to_vec(),
        Step::Bytes(bytes) => bytes.to_vec(),
    };
    let mut path: Vec<u8> = steps.iter().flat_map(step).take(99).collect();
    path.pop_if(|byte| *byte == b'/');
    path
}

fn tar(members: &[Member<'_>]) -> Vec<u8> {
    const KINDS: &[u8] = b"0000122334567xgLKS5555";
    let mut tar = Vec::new();
    for member in members {
        let mut header = [0; 512];
        let (path, link) = (path(&member.path), path(&member.link));
        header[..path.len()].copy_from_slice(&path);
        header[100..107].copy_from_slice(b"0000755");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{:011o}", member.content.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000000");
        header[156] = KINDS[usize::from(member.kind) % KINDS.len()];
        header[157..157 + link.len()].copy_from_slice(&link);
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[329..336].copy_from_slice(b"0000001");
        header[337..344].copy_from_slice(b"0000003");
        if let Some((at, bytes)) = member.scribble {
            header[usize::from(at) % 512..]
                .iter_mut()
                .zip(bytes)
                .for_each(|(old, new)| *old = *new);
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        tar.extend_from_slice(&header);
        tar.extend_from_slice(member.content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

static CONTENT: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("layers-{}", std::process::id())));

fuzz_target!(|input: (Vec<Vec<Member<'_>>>, Option<&[u8]>)| {
    let (layers, raw) = input;
    let mut layers: Vec<Vec<u8>> = layers.iter().map(|members| tar(members)).collect();
    layers.extend(raw.map(<[u8]>::to_vec));
    std::fs::create_dir_all(&*CONTENT).expect("a directory for content");
    let names = merged(&layers, &CONTENT).unwrap_or_default();
    let (mut paths, mut content_bytes) = (BTreeSet::new(), 0);
    for name in &names {
        content_bytes += name.content_bytes;
        assert!(name.path.len() <= 257, "too deep");
        assert!(paths.insert(&name.path), "twice");
        for step in &name.path {
            assert!(!matches!(&step[..], b"" | b"." | b".."), "{step:?}");
            assert!(
                step.len() <= 255 && !step.contains(&0) && !step.contains(&b'/'),
                "{step:?}"
            );
        }
    }
    let hidden = names
        .iter()
        .filter_map(|name| name.path.last())
        .find(|step| step.starts_with(b".wh."));
    assert_eq!(hidden, None, "a whiteout became a file");
    assert!(content_bytes <= (1 << 20) * names.len() as u64);
    for file in std::fs::read_dir(&*CONTENT)
        .expect("the directory for content")
        .flatten()
    {
        std::fs::remove_file(file.path()).ok();
    }
});
