use super::*;
use crate::pack::PackHash;
use crate::{Directory, Realm, point};
use martlet_image::SnapshotId;
use martlet_store::faulty::FaultyFiles;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

const HERE: SnapshotId = SnapshotId([1; 32]);
const LATER: SnapshotId = SnapshotId([2; 32]);

fn web() -> RefName {
    RefName::new("web", "latest").unwrap()
}

/// Hosts of one realm, at one place.
fn hosts<const N: usize>(names: [&str; N]) -> [Remote; N] {
    let directory = Arc::new(Directory::on(Path::new("/remote"), Arc::new(FaultyFiles::new())));
    names.map(|name| Remote::new(directory.clone(), Realm::new(&[7; 32])).with_host(name))
}

fn put(remote: &Remote, snapshot: SnapshotId, under: Under<'_>) -> Result<Ref> {
    let before = remote.newest(&web())?;
    let lease = remote.may_follow(&web(), before.as_ref(), under)?;
    remote.put_ref(&web(), snapshot, BTreeSet::new(), lease, before.as_ref())
}

fn acquire(remote: &Remote) -> Result<Lease> {
    let found = remote.find_ref(&web())?.unwrap();
    let acquired = remote.acquire(&web(), &found, Lease::new(60, None), None)?;
    Ok(acquired.lease.unwrap())
}

#[test]
fn a_lease_is_acquired_published_under_and_released() {
    let [home, office] = hosts(["home", "office"]);
    put(&home, HERE, Under::Nothing).unwrap();
    let lease = acquire(&home).unwrap();
    for refused in [
        acquire(&office).unwrap_err(),
        put(&office, LATER, Under::Nothing).unwrap_err(),
        office.remove_ref(&web()).unwrap_err(),
    ] {
        assert!(
            matches!(&refused, SourceError::Held { host, .. } if host == "home"),
            "{refused}"
        );
        assert!(!refused.is_retryable());
    }
    assert_eq!(
        put(&home, LATER, Under::Lease(&lease)).unwrap().lease.as_ref(),
        Some(&lease)
    );
    assert_eq!(home.is_held(&web(), &lease.id).unwrap().version, 3);
    assert_eq!(put(&home, HERE, Under::LastOf(&lease)).unwrap().lease, None);
    let lease = acquire(&office).unwrap();
    office.release(&web(), &lease.id).unwrap();
    office.release(&web(), &lease.id).unwrap();
    let history = home.history(&web()).unwrap();
    let snapshots: Vec<_> = history.iter().map(|version| version.snapshot).collect();
    assert_eq!(snapshots, [HERE, HERE, HERE, LATER, HERE, HERE]);
}

#[test]
fn who_lost_a_lease_puts_nothing_more() {
    let [home, office] = hosts(["home", "office"]);
    put(&home, HERE, Under::Nothing).unwrap();
    let lost = acquire(&home).unwrap();
    let found = office.find_ref(&web()).unwrap().unwrap();
    let other = LeaseId([9; 16]);
    let lease = || Lease::new(60, None);
    office.acquire(&web(), &found, lease(), Some(&other)).unwrap_err();
    office.acquire(&web(), &found, lease(), Some(&lost.id)).unwrap();
    for refused in [
        put(&home, LATER, Under::Lease(&lost)).unwrap_err(),
        put(&home, LATER, Under::LastOf(&lost)).unwrap_err(),
        home.is_held(&web(), &lost.id).unwrap_err(),
    ] {
        let by_office = matches!(&refused, SourceError::Lost { host, version: 3, .. } if host == "office");
        assert!(by_office, "{refused}");
    }
    home.release(&web(), &lost.id).unwrap();
    assert!(office.find_ref(&web()).unwrap().unwrap().lease.is_some());
}

#[test]
fn of_those_who_acquire_at_once_one_has_it() {
    const AT_ONCE: usize = 8;
    let hosts = hosts([(); AT_ONCE].map(|()| "same"));
    put(&hosts[0], HERE, Under::Nothing).unwrap();
    let found = hosts[0].find_ref(&web()).unwrap().unwrap();
    let start = std::sync::Barrier::new(AT_ONCE);
    let acquired = std::thread::scope(|scope| {
        let race = hosts.each_ref().map(|host| {
            let (found, start) = (&found, &start);
            scope.spawn(move || {
                start.wait();
                host.acquire(&web(), found, Lease::new(60, None), None)
            })
        });
        race.map(|host| host.join().unwrap())
    });
    let (got, refused): (Vec<_>, Vec<_>) = acquired.into_iter().partition(Result::is_ok);
    assert_eq!(got.len(), 1);
    for refused in refused {
        assert!(matches!(refused, Err(SourceError::Changed { .. })), "{refused:?}");
    }
}

#[test]
fn beats_are_counted_and_askers_are_heard() {
    let [home, office] = hosts(["home", "office"]);
    put(&home, HERE, Under::Nothing).unwrap();
    let lease = acquire(&home).unwrap();
    assert_eq!(office.last_beat(&lease.id).unwrap(), None);
    for number in 0..3 {
        assert_eq!(home.beat(&lease.id).unwrap(), None);
        let beat = office.last_beat(&lease.id).unwrap().unwrap();
        assert_eq!((beat.number, &*beat.by.host), (number + 1, "home"));
    }
    office.ask(&lease.id).unwrap();
    office.ask(&lease.id).unwrap();
    assert_eq!(home.beat(&lease.id).unwrap().unwrap().host, "office");
    home.release(&web(), &lease.id).unwrap();
    assert_eq!(home.objects.list(Room::Leases).unwrap(), []);
}

#[test]
fn a_name_goes_back_by_a_new_version_and_only_to_what_is_there() {
    let [home] = hosts(["home"]);
    let first = put(&home, HERE, Under::Nothing).unwrap();
    put(&home, LATER, Under::Nothing).unwrap();
    let back = point(&home, &web(), &first).unwrap();
    assert_eq!((back.version, back.snapshot), (3, HERE));
    let side = RefName::new("web", "side").unwrap();
    assert_eq!(point(&home, &side, &first).unwrap().version, 1);
    let gone = Ref {
        packs: BTreeSet::from([PackHash([5; 32])]),
        ..first
    };
    let error = point(&home, &web(), &gone).unwrap_err();
    assert!(matches!(error, SourceError::Incomplete { .. }), "{error}");
    acquire(&home).unwrap();
    let error = point(&home, &web(), &back).unwrap_err();
    assert!(matches!(error, SourceError::Held { .. }), "{error}");
}

#[test]
fn what_is_no_lease_is_none() {
    let lease = Lease::new(60, Some(7));
    assert_eq!(lease.id.to_string().parse(), Ok(lease.id));
    let bytes = Lease::encode(Some(&lease));
    assert_eq!(Lease::decode(&bytes), Some((Some(lease), &[][..])));
    for len in 0..bytes.len() {
        assert_eq!(Lease::decode(&bytes[..len]), None);
    }
    assert_eq!(Lease::decode(&[2; 40]), None);
}

#[test]
fn garbage_collection_takes_what_ended_leases_left() {
    let [home, office] = hosts(["home", "office"]);
    put(&home, HERE, Under::Nothing).unwrap();
    let lost = acquire(&home).unwrap();
    office.release(&web(), &lost.id).unwrap();
    home.beat(&lost.id).unwrap(); // too late
    office.ask(&lost.id).unwrap();
    let held = acquire(&office).unwrap();
    office.beat(&held.id).unwrap();
    home.ask(&held.id).unwrap();
    crate::gc(
        &home,
        crate::GcOptions {
            keep_versions: 1,
            dry_run: false,
        },
        &mut |_, _| (),
    )
    .unwrap();
    let left = home.objects.list(Room::Leases).unwrap();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(home.last_beat(&held.id).unwrap().unwrap().number, 1);
    assert_eq!(office.asked(&held.id).unwrap().unwrap().host, "home");
}
