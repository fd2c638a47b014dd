//! What every remote must do.

use martlet_source::{Entry, Key, Objects, Put, Room, SourceError, check};
use std::sync::Barrier;

/// More than a server lists in one answer.
const MANY: usize = 1100;
const RACES: usize = 10;
const RACERS: u8 = 8;

pub fn key(name: &str) -> Key {
    Key::new(Room::Packs, name).unwrap()
}

/// Bytes that are different everywhere.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = len as u64;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

pub fn conforms(remote: &dyn Objects) {
    assert!(remote.is_writable());
    for room in Room::ALL {
        assert_eq!(remote.list(room).unwrap(), [], "of nothing");
    }
    what_is_put_is_got(remote);
    nothing_is_replaced(remote);
    one_of_many_is_first(remote);
    all_is_listed(remote);
    check(remote).unwrap();
    assert_eq!(remote.list(Room::Checks).unwrap(), []);
}

fn what_is_put_is_got(remote: &dyn Objects) {
    for len in [0, 1, 4096, 9_000_000] {
        let (key, content) = (key(&format!("{len}-bytes")), noise(len));
        assert_eq!(remote.put_new(&key, &content).unwrap(), Put::Made);
        assert!(remote.get(&key, len as u64).unwrap() == content);
        reads_are_checked(remote, &key, len as u64);
        if len > 1 {
            for range in [0..1, len / 2..len, len - 1..len, 0..len] {
                let part = remote
                    .get_range(&key, range.start as u64..range.end as u64)
                    .unwrap();
                assert!(part == content[range.clone()]);
                let mut pieces = Vec::new();
                let read = remote.read_range(&key, range.start as u64..range.end as u64, &mut |piece| {
                    pieces.extend_from_slice(piece);
                    Ok(())
                });
                read.unwrap();
                assert!(pieces == part);
            }
        }
    }
    remote.remove(&key("4096-bytes")).unwrap();
    remote.remove(&key("4096-bytes")).unwrap();
    let error = remote.get(&key("4096-bytes"), 4096).unwrap_err();
    assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
}

/// Of an object that is there.
pub fn reads_are_checked(remote: &dyn Objects, key: &Key, size_bytes: u64) {
    if size_bytes > 0 {
        let error = remote.get(key, size_bytes - 1).unwrap_err();
        assert!(matches!(error, SourceError::Wrong { .. }), "{error}");
        let error = remote.get_range(key, size_bytes - 1..size_bytes + 1).unwrap_err();
        assert!(matches!(error, SourceError::Wrong { .. }), "{error}");
    }
    let missing = Key::new(Room::Refs, "missing").unwrap();
    for error in [
        remote.get(&missing, 1).unwrap_err(),
        remote.get_range(&missing, 0..1).unwrap_err(),
    ] {
        assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
    }
}

fn nothing_is_replaced(remote: &dyn Objects) {
    let key = key("once");
    assert_eq!(remote.put_new(&key, b"first").unwrap(), Put::Made);
    assert_eq!(remote.put_new(&key, b"second").unwrap(), Put::WasThere);
    assert_eq!(remote.get(&key, 5).unwrap(), b"first");
}

fn one_of_many_is_first(remote: &dyn Objects) {
    for race in 0..RACES {
        let key = Key::new(Room::Refs, format!("race-{race}")).unwrap();
        let start = Barrier::new(RACERS.into());
        let put = |racer: u8| {
            start.wait();
            remote.put_new(&key, &[racer; 1000]).unwrap()
        };
        let first: Vec<u8> = std::thread::scope(|scope| {
            let put = &put;
            let racers: Vec<_> = (0..RACERS)
                .map(|racer| scope.spawn(move || (racer, put(racer))))
                .collect();
            let ended = racers.into_iter().map(|racer| racer.join().unwrap());
            ended
                .filter(|(_, put)| *put == Put::Made)
                .map(|(racer, _)| racer)
                .collect()
        });
        assert_eq!(first.len(), 1, "race {race} has {first:?} as its first");
        assert_eq!(remote.get(&key, 1000).unwrap(), [first[0]; 1000]);
    }
}

fn all_is_listed(remote: &dyn Objects) {
    let name = |number: usize| Key::new(Room::Indexes, format!("{number:05}@x=1.idx")).unwrap();
    std::thread::scope(|scope| {
        for part in 0..4 {
            scope.spawn(move || {
                for number in (part..MANY).step_by(4) {
                    remote.put_new(&name(number), &vec![0; number % 7]).unwrap();
                }
            });
        }
    });
    let expected: Vec<Entry> = (0..MANY)
        .map(|number| Entry {
            key: name(number),
            size_bytes: (number % 7) as u64,
        })
        .collect();
    assert_eq!(remote.list(Room::Indexes).unwrap(), expected);
}
