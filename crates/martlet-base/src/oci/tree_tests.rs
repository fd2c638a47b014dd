use super::*;

fn meta(mode: u32) -> Meta {
    Meta {
        mode,
        ..Meta::default()
    }
}

fn file(tree: &mut Tree, path: &str) -> Result<(), Refusal> {
    tree.put(path.as_bytes(), Kind::File(path.into()), meta(0o644))
}

fn dir(tree: &mut Tree, path: &str, mode: u32) {
    tree.put(path.as_bytes(), Kind::Directory(BTreeMap::new()), meta(mode))
        .unwrap();
}

fn symlink(tree: &mut Tree, path: &str, target: &str) {
    tree.put(path.as_bytes(), Kind::Symlink(target.into()), meta(0o777))
        .unwrap();
}

/// All names but the root's, directories with a slash behind.
fn listing(tree: &Tree) -> Vec<String> {
    let (mut out, mut left) = (Vec::new(), vec![(ROOT, String::new())]);
    while let Some((inode, prefix)) = left.pop() {
        for (name, &Entry { inode: child, .. }) in tree.children(inode).unwrap() {
            let path = format!("{prefix}{}", show(name));
            match tree.children(child) {
                Some(_) => {
                    out.push(format!("{path}/"));
                    left.push((child, format!("{path}/")));
                }
                None => out.push(path),
            }
        }
    }
    out.sort();
    out
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    let mut tree = Tree::new();
    tree.begin_layer();
    for path in ["./a/old", "a/kept", "b/old"] {
        file(&mut tree, path).unwrap();
    }
    tree.begin_layer();
    file(&mut tree, "b/new").unwrap();
    tree.whiteout(b"a/old").unwrap();
    tree.whiteout(b"b").unwrap(); // after this layer's own entry: only the lower ones go
    tree.whiteout(b"not/there").unwrap();
    assert_eq!(listing(&tree), ["a/", "a/kept", "b/", "b/new"]);
}

#[test]
fn opaque_keeps_this_layers_entries_whatever_their_order() {
    for first in [true, false] {
        let mut tree = Tree::new();
        tree.begin_layer();
        for path in ["d/x", "d/sub/y", "e/z"] {
            file(&mut tree, path).unwrap();
        }
        tree.begin_layer();
        if first {
            tree.opaque(b"d").unwrap();
        }
        file(&mut tree, "d/sub/new").unwrap();
        if !first {
            tree.opaque(b"./d").unwrap();
        }
        assert_eq!(
            listing(&tree),
            ["d/", "d/sub/", "d/sub/new", "e/", "e/z"],
            "opaque first: {first}"
        );
    }
}

#[test]
fn kinds_replace_each_other_and_directories_merge() {
    let mut tree = Tree::new();
    tree.begin_layer();
    file(&mut tree, "d/x").unwrap();
    file(&mut tree, "f").unwrap();
    tree.begin_layer();
    dir(&mut tree, "d", 0o700);
    dir(&mut tree, "f", 0o755);
    assert_eq!(listing(&tree), ["d/", "d/x", "f/"]);
    let d = tree.descend(&[b"d".to_vec()], false).unwrap().unwrap();
    assert_eq!(tree.node(d).meta.mode, 0o700);
    tree.begin_layer();
    file(&mut tree, "d").unwrap();
    assert_eq!(listing(&tree), ["d", "f/"]);
}

#[test]
fn links_on_the_way_are_followed_inside() {
    let mut tree = Tree::new();
    tree.begin_layer();
    dir(&mut tree, "usr/lib", 0o755);
    symlink(&mut tree, "lib", "usr/lib");
    symlink(&mut tree, "abs", "/usr/lib");
    symlink(&mut tree, "out", "../../../../../etc");
    tree.begin_layer();
    file(&mut tree, "lib/a").unwrap();
    file(&mut tree, "abs/b").unwrap();
    file(&mut tree, "out/passwd").unwrap();
    assert_eq!(
        listing(&tree),
        [
            "abs",
            "etc/",
            "etc/passwd",
            "lib",
            "out",
            "usr/",
            "usr/lib/",
            "usr/lib/a",
            "usr/lib/b"
        ]
    );
    // The last name is not followed: a file put over a link replaces the link.
    file(&mut tree, "lib").unwrap();
    file(&mut tree, "usr/lib/c").unwrap();
    assert!(listing(&tree).contains(&"lib".to_owned()));
}

#[test]
fn hostile_paths_are_refused() {
    let mut tree = Tree::new();
    tree.begin_layer();
    for path in [
        "../etc/passwd",
        "a/../../b",
        "..",
        &"x".repeat(256),
        &"a/".repeat(1000),
        "nul\0",
    ] {
        assert!(file(&mut tree, path).is_err(), "{path:.20}");
    }
    symlink(&mut tree, "loop", "loop");
    assert!(file(&mut tree, "loop/x").is_err());
    symlink(&mut tree, "ping", "pong/x");
    symlink(&mut tree, "pong", "ping/x");
    assert!(file(&mut tree, "ping/x").is_err());
    file(&mut tree, "plain").unwrap();
    assert!(file(&mut tree, "plain/below").is_err());
    assert!(tree.put(b"/", Kind::Fifo, meta(0)).is_err());
    // An absolute path is one below the tree's own root.
    file(&mut tree, "/etc/shadow").unwrap();
    assert!(listing(&tree).contains(&"etc/shadow".to_owned()));
}

#[test]
fn hard_links_share_an_inode() {
    let mut tree = Tree::new();
    tree.begin_layer();
    file(&mut tree, "bin/a").unwrap();
    tree.begin_layer();
    tree.hard_link(b"bin/b", b"/bin/a").unwrap();
    let at = |tree: &mut Tree, name: &str| {
        let dir = tree.descend(&[b"bin".to_vec()], false).unwrap().unwrap();
        tree.look_up(dir, name.as_bytes()).map(|entry| entry.inode)
    };
    assert!(at(&mut tree, "a").is_some() && at(&mut tree, "a") == at(&mut tree, "b"));
    // The lower layer's name can go while this layer's stays.
    tree.whiteout(b"bin/a").unwrap();
    assert_eq!(listing(&tree), ["bin/", "bin/b"]);
    assert!(tree.hard_link(b"x", b"missing").is_err());
    assert!(tree.hard_link(b"x", b"missing/way").is_err());
    assert!(tree.hard_link(b"x", b"../../etc/shadow").is_err());
    assert!(tree.hard_link(b"x", b"bin").is_err());
    assert!(tree.hard_link(b"x", b"/").is_err());
}

/// The same operations on a flat map of path to layer: what remains must agree.
#[test]
fn merging_agrees_with_a_flat_model() {
    use std::collections::BTreeMap as Map;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    for _ in 0..300 {
        let (mut tree, mut model) = (Tree::new(), Map::<String, usize>::new());
        for layer in 1..=3 {
            tree.begin_layer();
            for _ in 0..random(8) {
                let (dir, name) = (random(3), random(4));
                let path = format!("d{dir}/s{}/f{name}", random(2));
                match random(4) {
                    0 => {
                        tree.whiteout(path.as_bytes()).unwrap();
                        model.retain(|there, from| *there != path || *from == layer);
                    }
                    1 => {
                        let top = format!("d{dir}");
                        tree.opaque(top.as_bytes()).unwrap();
                        model.retain(|there, from| !there.starts_with(&format!("{top}/")) || *from == layer);
                    }
                    _ => {
                        file(&mut tree, &path).unwrap();
                        model.insert(path, layer);
                    }
                }
            }
        }
        let files: Vec<String> = listing(&tree)
            .into_iter()
            .filter(|path| !path.ends_with('/'))
            .collect();
        assert_eq!(files, model.into_keys().collect::<Vec<_>>());
    }
}
