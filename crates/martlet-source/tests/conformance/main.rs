//! One suite for every kind of remote, over real servers; and what becomes of an answer that is none.

mod liar;
mod registry;
mod scripted;
mod servers;
mod suite;

use martlet_source::{Cloud, Directory, Key, Objects, Patience, Put, Room, SourceError, Throttled, check};
use servers::{Bucket, Web};
use std::num::NonZeroU64;
use std::sync::Arc;
use suite::{conforms, key, noise};

#[test]
fn a_directory_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conforms(&Directory::new(&dir.path().join("made/when/needed")));
}

#[test]
fn a_throttled_remote_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let directory = Arc::new(Directory::new(dir.path()));
    conforms(&Throttled::new(directory, NonZeroU64::new(1 << 40).unwrap()));
}

#[test]
fn a_bucket_conforms() {
    let bucket = Bucket::start();
    conforms(&bucket.remote("suite"));
    // Another prefix of the same bucket is another remote.
    assert_eq!(bucket.remote("other").list(Room::Packs).unwrap(), []);
}

#[test]
fn a_web_server_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let behind = Directory::new(dir.path());
    let content = noise(3_000_000);
    let pack = key("pack");
    assert_eq!(behind.put_new(&pack, &content).unwrap(), Put::Made);
    let web = Web::serve(dir.path());
    let remote = Cloud::web(&web.address(), Patience::default()).unwrap();
    assert!(!remote.is_writable());
    assert_eq!(remote.get(&pack, 3_000_000).unwrap(), content);
    assert_eq!(
        remote.get_range(&pack, 1_000_000..1_000_010).unwrap(),
        content[1_000_000..1_000_010]
    );
    suite::reads_are_checked(&remote, &pack, 3_000_000);
    check(&remote).unwrap();
    for refused in [
        remote.put_new(&pack, b"").map(drop),
        remote.remove(&pack),
        remote.list(Room::Packs).map(drop),
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, SourceError::ReadOnly { .. }), "{error}");
    }
}

#[test]
fn a_server_that_is_not_there_is_unavailable() {
    let web = liar::nobody();
    let patience = liar::PATIENCE;
    let error = Cloud::web(&web, patience)
        .unwrap()
        .get(&key("pack"), 10)
        .unwrap_err();
    assert!(error.is_retryable(), "{error}");
}

#[test]
fn answers_that_are_none_are_told_apart() {
    liar::lies_are_told_apart(|port| Cloud::web(&liar::address(port), liar::PATIENCE).unwrap());
}

#[test]
fn a_server_that_fails_now_and_then_is_asked_again() {
    let server = liar::Liar::start(liar::Lie::FailsTwice);
    let remote = Cloud::web(&server.address(), liar::PATIENCE).unwrap();
    assert_eq!(remote.get(&key("pack"), 100).unwrap(), b"at last");
}

#[test]
fn a_part_that_is_the_whole_is_refused() {
    let server = liar::Liar::start(liar::Lie::WholeForAPart);
    let remote = Cloud::web(&server.address(), liar::PATIENCE).unwrap();
    remote.get_range(&key("pack"), 10..20).unwrap_err();
}

#[test]
fn what_replaces_objects_is_found_out() {
    /// Answers as if it knew the condition.
    #[derive(Debug)]
    struct Replaces(Directory);
    impl Objects for Replaces {
        fn place(&self) -> String {
            self.0.place()
        }
        fn get(&self, key: &Key, size_bytes_max: u64) -> martlet_source::Result<Vec<u8>> {
            self.0.get(key, size_bytes_max)
        }
        fn get_range(&self, key: &Key, range: std::ops::Range<u64>) -> martlet_source::Result<Vec<u8>> {
            self.0.get_range(key, range)
        }
        fn put_new(&self, key: &Key, bytes: &[u8]) -> martlet_source::Result<Put> {
            self.0.remove(key)?;
            self.0.put_new(key, bytes)
        }
        fn list(&self, room: Room) -> martlet_source::Result<Vec<martlet_source::Entry>> {
            self.0.list(room)
        }
        fn remove(&self, key: &Key) -> martlet_source::Result<()> {
            self.0.remove(key)
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let remote = Replaces(Directory::new(dir.path()));
    let error = check(&remote).unwrap_err();
    assert!(error.to_string().contains("in place of another"), "{error}");
    assert_eq!(remote.list(Room::Checks).unwrap(), []);
}
