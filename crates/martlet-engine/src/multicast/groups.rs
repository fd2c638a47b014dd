//! Groups that this host sends to.

use super::{OBJECTS_MAX, OfferedGroup, SentFrames, WantedFrames};
use crate::engine::{Engine, lock};
use crate::identity;
use crate::problem::Told;
use martlet_api::{Problem, ProblemCode};
use martlet_image::{FrameId, SnapshotId};
use martlet_multicast::{Group, Name, Parcels, Report, Sender, local_address_towards, random_address};
use martlet_store::{Key, Kind, Store};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A group that nobody asked of for so long is closed.
const KEPT: Duration = Duration::from_secs(120);
/// So many at the same time; of more, the one that was asked of longest ago is closed.
const GROUPS_MAX: usize = 16;
/// Who wants frames waits no longer than so, whatever it says.
const WITHIN_MAX: Duration = Duration::from_secs(5);
/// Hosts wait so long for each other before their clones start, so that what the first read of them all hear.
const TOGETHER: Duration = Duration::from_secs(2);
/// What no guest waits for is not sent before all listen, unless that takes longer than this: who comes late would want all of it
/// again.
const ALL_LISTEN_WITHIN: Duration = Duration::from_secs(10);

/// All groups of this host, and who sends to them.
#[derive(Default)]
pub(crate) struct Groups(Mutex<Sending>);

#[derive(Default)]
struct Sending {
    /// Started when it is first needed.
    sender: Option<Arc<Sender>>,
    open: HashMap<String, Arc<Open>>,
}

struct Open {
    group: Group,
    members: HashSet<String>,
    /// What it is for: frames and blobs of a snapshot.
    objects: HashMap<Name, Kind>,
    asked: Mutex<Instant>,
    opened: Instant,
    deaf: Arc<Hosts>,
}

/// Objects of a group as they are stored.
struct Objects(Arc<Store>, HashMap<Name, Kind>);

impl Parcels for Objects {
    fn parcel(&self, name: &Name) -> Option<Vec<u8>> {
        let Self(store, kinds) = self;
        let stored = store.stored(&Key::new(*kinds.get(name)?, *name));
        let stored = stored.inspect_err(|error| tracing::debug!(%error, "a frame is not sent to a group"));
        Some(super::members::encode(&stored.ok()?))
    }
}

/// A group, and the hosts that it is offered to.
pub(crate) struct Invited {
    offer: OfferedGroup,
    members: HashSet<String>,
    /// Those that cannot start clones yet.
    unready: Hosts,
    /// Those that do not listen yet.
    deaf: Arc<Hosts>,
}

impl Invited {
    /// What a host is offered, if it is.
    pub(crate) fn offer_for(&self, host: &str) -> Option<OfferedGroup> {
        self.members.contains(host).then(|| self.offer.clone())
    }

    /// While what is returned lives, a host gets ready to start clones.
    pub(crate) fn getting_ready(&self, host: &str) -> Option<GettingReady<'_>> {
        self.members.contains(host).then(|| GettingReady {
            one: One(&self.unready),
            joining: One(&self.deaf),
        })
    }
}

/// See [`Invited::getting_ready`].
pub(crate) struct GettingReady<'a> {
    one: One<'a>,
    joining: One<'a>,
}

impl<'a> GettingReady<'a> {
    /// This host is ready; waits until all are, but not for long. While what is returned lives, it joins.
    pub(crate) fn together(self) -> One<'a> {
        let unready = self.one.0;
        drop(self.one);
        unready.wait(TOGETHER);
        self.joining
    }
}

/// Hosts that others wait for.
struct Hosts {
    count: Mutex<usize>,
    changed: Condvar,
}

/// One of them, until it is dropped.
pub(crate) struct One<'a>(&'a Hosts);

impl Hosts {
    fn new(count: usize) -> Self {
        Self {
            count: Mutex::new(count),
            changed: Condvar::new(),
        }
    }

    /// Until nobody waits for any of them, or this long.
    fn wait(&self, at_most: Duration) {
        let count = lock(&self.count);
        let waited = self
            .changed
            .wait_timeout_while(count, at_most, |count| *count > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for One<'_> {
    fn drop(&mut self) {
        *lock(&self.0.count) -= 1;
        self.0.changed.notify_all();
    }
}

impl Engine {
    /// A group for the frames of a snapshot that goes to these hosts; none if that is not wanted, would be of no use, or cannot be.
    pub(crate) fn offer_group(&self, id: &SnapshotId, hosts: &[&str]) -> Option<Invited> {
        let options = self.options.multicast.filter(|_| hosts.len() > 1)?;
        // All that one interface leads to: a group has one.
        let towards = |host: &&str| local_address_towards(&self.address_of(host)?);
        let interface = hosts.iter().find_map(towards)?;
        let members = hosts.iter().filter(|host| towards(host) == Some(interface));
        let members: HashSet<String> = members.map(|host| (*host).to_owned()).collect();
        if members.len() < 2 {
            return None;
        }
        let record = self.store.snapshot(id).ok()?;
        let leaves = self.store.leaves(&record).ok()?.into_iter();
        let objects: HashMap<Name, Kind> = leaves.map(|key| (key.id, key.kind)).collect();
        let offer = OfferedGroup {
            id: identity::machine_id(),
            address: random_address(identity::random(), options.port),
            key: identity::random(),
        };
        let mut sending = lock(&self.groups.0);
        let opened = sending.sender(options.rate_bytes).and_then(|sender| {
            sending.close_old(&sender);
            let parcels = Arc::new(Objects(self.store.clone(), objects.clone()));
            sender.open(offer.address, interface, &offer.key, parcels)
        });
        let opened = opened.inspect_err(|error| tracing::warn!(%error, "frames go to each host by itself"));
        let open = Open {
            group: opened.ok()?,
            members: members.clone(),
            objects,
            asked: Mutex::new(Instant::now()),
            opened: Instant::now(),
            deaf: Arc::new(Hosts::new(members.len())),
        };
        let deaf = open.deaf.clone();
        sending.open.insert(offer.id.clone(), Arc::new(open));
        tracing::info!(?offer, hosts = members.len(), snapshot = %id, "its frames go to several hosts at once");
        Some(Invited {
            unready: Hosts::new(members.len()),
            deaf,
            offer,
            members,
        })
    }

    /// A member of a group wants objects: they are sent to all, if they are of what the group is for, and here.
    pub fn multicast_wanted(&self, from: &str, wanted: &WantedFrames) -> Result<SentFrames, Problem> {
        let gone = || {
            let words = "this host sends to no such group, or not to you";
            Problem::new(ProblemCode::NotFound, words)
        };
        let (open, sender) = lock(&self.groups.0).of(&wanted.group, from).ok_or_else(gone)?;
        *lock(&open.asked) = Instant::now();
        let ids = wanted.objects.iter().map(|id| id.parse::<FrameId>());
        let ids: Result<Vec<FrameId>, _> = ids.collect();
        let ids = ids.ok().filter(|ids| ids.len() <= OBJECTS_MAX).ok_or_else(|| {
            let words = format!("objects are wanted by their ids, and at most {OBJECTS_MAX} at once");
            Problem::new(ProblemCode::InvalidArgument, words)
        })?;
        let keys = ids
            .iter()
            .filter_map(|id| Some(Key::new(*open.objects.get(&id.0)?, id.0)));
        let keys: Vec<Key> = keys.collect();
        if !wanted.is_urgent {
            open.deaf
                .wait(ALL_LISTEN_WITHIN.saturating_sub(open.opened.elapsed()));
        }
        // What is still to come here itself would be waited for.
        let lacking: HashSet<Key> = self.store.lacks(&keys).told()?.into_iter().collect();
        let here = keys.iter().filter(|key| !lacking.contains(key));
        let names: Vec<Name> = here.map(|key| key.id).collect();
        let report = Report {
            rate_bytes: wanted.heard_bytes,
            lost: wanted.lost,
        };
        let within = Duration::from_millis(wanted.within_ms).min(WITHIN_MAX);
        let sent = sender.send(open.group, from, &names, wanted.is_urgent, report, within);
        let through_packets = sent.ok_or_else(gone)?;
        let age_ms = open.opened.elapsed().as_millis() as u64;
        tracing::debug!(from, objects = names.len(), wanted.is_urgent, age_ms, "sent");
        Ok(SentFrames { through_packets })
    }

    /// What was sent to groups so far.
    pub(crate) fn multicast_sent(&self) -> martlet_multicast::Sent {
        let sender = lock(&self.groups.0).sender.clone();
        sender.map(|sender| sender.sent()).unwrap_or_default()
    }
}

impl Sending {
    fn sender(&mut self, rate_bytes: u64) -> std::io::Result<Arc<Sender>> {
        match &self.sender {
            Some(sender) => Ok(sender.clone()),
            None => Ok(self.sender.insert(Arc::new(Sender::start(rate_bytes)?)).clone()),
        }
    }

    fn of(&self, id: &str, member: &str) -> Option<(Arc<Open>, Arc<Sender>)> {
        let open = self.open.get(id).filter(|open| open.members.contains(member))?;
        Some((open.clone(), self.sender.clone()?))
    }

    /// Makes room for one more.
    fn close_old(&mut self, sender: &Sender) {
        let mut by_age: Vec<(Duration, String)> = self
            .open
            .iter()
            .map(|(id, open)| (lock(&open.asked).elapsed(), id.clone()))
            .collect();
        by_age.sort_unstable();
        for (at, (unasked, id)) in by_age.into_iter().enumerate() {
            if (unasked > KEPT || at + 1 >= GROUPS_MAX)
                && let Some(open) = self.open.remove(&id)
            {
                sender.close(open.group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_waited_for_until_the_last_is_there_or_has_failed() {
        let invited = Invited {
            offer: OfferedGroup {
                id: String::new(),
                address: "239.0.0.1:1".parse().unwrap(),
                key: identity::random(),
            },
            members: ["attic", "cellar"].map(str::to_owned).into(),
            unready: Hosts::new(2),
            deaf: Arc::new(Hosts::new(2)),
        };
        assert!(invited.getting_ready("desk").is_none(), "it is not invited");
        let attic = invited.getting_ready("attic").unwrap();
        let cellar = invited.getting_ready("cellar").unwrap();
        drop(cellar); // it cannot be reached, say
        let joining = attic.together();
        assert_eq!(*lock(&invited.unready.count), 0);
        assert_eq!(*lock(&invited.deaf.count), 1);
        invited.deaf.wait(Duration::from_millis(1)); // not for ever
        std::thread::scope(|scope| {
            scope.spawn(|| invited.deaf.wait(Duration::from_secs(60)));
            drop(joining);
        });
        assert_eq!(*lock(&invited.deaf.count), 0);
    }
}
