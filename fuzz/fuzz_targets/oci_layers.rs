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
    /// Longer than a header holds, and twice longer than names may be.
    Long,
    /// A third of what may be nested.
    Deep,
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
        Step::Long => vec![b'n'; 200],
        Step::Deep => b"a/".repeat(100),
        Step::Bytes(bytes) => bytes.to_vec(),
    };
    let mut path: Vec<u8> = steps.iter().flat_map(step).collect();
    path.pop_if(|byte| *byte == b'/');
    path
}

/// Appends a member; a name or link too long for its field is put into members of its own before, as GNU tar does.
fn append(tar: &mut Vec<u8>, member: &Member<'_>) {
    const KINDS: &[u8] = b"0000122334567xgLKS5555";
    let (path, link) = (path(&member.path), path(&member.link));
    for (kind, name) in [(b'L', &path), (b'K', &link)] {
        if name.len() > 99 {
            append_as(tar, kind, b"long", b"", name, None);
        }
    }
    let kind = KINDS[usize::from(member.kind) % KINDS.len()];
    append_as(tar, kind, &path, &link, member.content, member.scribble);
}

fn append_as(
    tar: &mut Vec<u8>,
    kind: u8,
    path: &[u8],
    link: &[u8],
    content: &[u8],
    scribble: Option<(u16, &[u8])>,
) {
    let mut header = [0; 512];
    let mut put = |at: usize, most: usize, bytes: &[u8]| {
        header[at..at + most]
            .iter_mut()
            .zip(bytes)
            .for_each(|(old, new)| *old = *new);
    };
    put(0, 99, path);
    put(100, 7, b"0000755");
    put(108, 7, b"0000000");
    put(116, 7, b"0000000");
    put(124, 11, format!("{:011o}", content.len()).as_bytes());
    put(136, 11, b"00000000000");
    put(156, 1, &[kind]);
    put(157, 99, link);
    put(257, 8, b"ustar\x0000");
    put(329, 7, b"0000001");
    put(337, 7, b"0000003");
    if let Some((at, bytes)) = scribble {
        let at = usize::from(at) % 512;
        put(at, 512 - at, bytes);
    }
    put(148, 8, b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    tar.extend_from_slice(&header);
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

fn tar(members: &[Member<'_>]) -> Vec<u8> {
    let mut tar = Vec::new();
    members.iter().for_each(|member| append(&mut tar, member));
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
