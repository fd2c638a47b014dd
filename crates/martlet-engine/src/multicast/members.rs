//! Groups that this host listens to.

use super::{OBJECTS_MAX, OfferedGroup, SentFrames, WantedFrames};
use crate::away::Away;
use crate::engine::{Engine, lock};
use crate::hosts::PeerPlace;
use crate::place::Place;
use martlet_api::Problem;
use martlet_image::{Codec, FrameId, SnapshotId};
use martlet_multicast::{Heard, Parcel, Receiver, local_address_towards};
use martlet_pager::FramePages;
use martlet_source::SourceError;
use martlet_store::{Key, Kind, StoreError, Stored, Verified};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// Who listens looks so often whether it is still to.
const LISTEN: Duration = Duration::from_millis(200);
/// A group of which nothing was heard for so long, although something was wanted, is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(1);
/// But not before so much was wanted in vain.
const GIVE_UP_WANTS: u32 = 3;
/// A guest stands still no longer than so until what it reads has been sent.
const URGENT: Duration = Duration::from_millis(150);
/// What nobody reads may take so long.
const BEHIND: Duration = Duration::from_secs(2);
/// What was sent is here after this time, or lost; nobody waits as long when packets that were sent later have come. A host that
/// is busy may be behind with what it hears.
const ON_ITS_WAY: Duration = Duration::from_secs(2);
/// As long as nothing was ever heard.
const FIRST_ON_ITS_WAY: Duration = Duration::from_millis(300);
const URGENT_ON_ITS_WAY: Duration = Duration::from_millis(50);
/// What comes before anybody knows what it is for is kept up to so much.
const EARLY_BYTES: usize = 32 << 20;
/// After that it is not made to wait for the group for so long, and then twice as long, as often as this.
const HURRY: Duration = Duration::from_secs(1);
const HURRY_DOUBLINGS: u32 = 5;
const HEAD: usize = 6;

/// An object as a parcel: `kind 1 | codec 1 | content length 4 | stored bytes`.
pub(super) fn encode(stored: &Stored) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + stored.bytes.len());
    bytes.extend([stored.key.kind as u8, stored.codec as u8]);
    bytes.extend_from_slice(&stored.content_len.to_le_bytes());
    bytes.extend_from_slice(&stored.bytes);
    bytes
}

/// What a parcel says that it is, if it is that.
fn verified(parcel: Parcel) -> Result<Verified, StoreError> {
    let wrong = || StoreError::Invalid("a parcel that is no object".to_owned());
    let ([kind, codec, len @ ..], bytes) = parcel.bytes.split_first_chunk::<HEAD>().ok_or_else(wrong)?;
    let kind = [Kind::Frame, Kind::Blob]
        .into_iter()
        .find(|of| *of as u8 == *kind);
    let stored = Stored {
        key: Key::new(kind.ok_or_else(wrong)?, parcel.name),
        codec: Codec::try_from(*codec).map_err(|_| wrong())?,
        content_len: u32::from_le_bytes(*len),
        bytes: bytes.to_vec(),
    };
    stored.verify()
}

/// All groups that this host listens to, by the snapshot whose frames they give.
#[derive(Default)]
pub(crate) struct Members(Mutex<HashMap<SnapshotId, Arc<Member>>>);

impl Members {
    pub(crate) fn of(&self, id: &SnapshotId) -> Option<Arc<Member>> {
        lock(&self.0).get(id).cloned()
    }

    /// All of a snapshot is here, or nobody wants it.
    pub(crate) fn leave(&self, id: &SnapshotId) {
        if let Some(member) = lock(&self.0).remove(id) {
            member.is_over.store(true, Relaxed);
            tracing::info!(snapshot = %id, packets = member.heard.packets(), "left its group");
        }
    }
}

/// A member of a group.
pub(crate) struct Member {
    group: String,
    heard: Arc<Heard>,
    silence: Mutex<Silence>,
    hurry: Mutex<Hurry>,
    is_over: AtomicBool,
}

/// A time in which reads that a guest stands still for do without the group, since it was too slow for one: each time twice as
/// long, so that a group that loses much, or a host that is too busy to hear it, costs a guest little.
#[derive(Debug, Default)]
struct Hurry {
    until: Option<Instant>,
    times: u32,
}

impl Hurry {
    fn begin(&mut self, now: Instant) {
        self.until = Some(now + HURRY * 2u32.pow(self.times.min(HURRY_DOUBLINGS)));
        self.times += 1;
    }

    fn is_over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }
}

/// How long, and how often, something was wanted of a group of which nothing is heard.
#[derive(Debug, Default)]
struct Silence {
    since: Option<Instant>,
    wants: u32,
    is_given_up: bool,
}

impl Silence {
    /// Something was wanted at `asked`, and not all of it came. Is the group given up now?
    fn note(&mut self, asked: Instant, heard: Option<Instant>, now: Instant) -> bool {
        if heard.is_some_and(|heard| heard >= asked) {
            (self.since, self.wants) = (None, 0);
            return false;
        }
        let since = *self.since.get_or_insert(asked);
        self.wants += 1;
        let gives_up = self.wants >= GIVE_UP_WANTS && now.saturating_duration_since(since) >= GIVE_UP_AFTER;
        gives_up && !std::mem::replace(&mut self.is_given_up, true)
    }
}

impl Engine {
    /// Listens to a group that a host has offered for a snapshot's frames, if this host does that.
    pub(crate) fn join_group(self: &Arc<Self>, from: &str, id: SnapshotId, offer: &OfferedGroup) {
        if self.options.multicast.is_none() || !offer.address.ip().is_multicast() {
            return;
        }
        let interface = self
            .address_of(from)
            .and_then(|address| local_address_towards(&address));
        let joined = interface.map(|interface| Receiver::join(offer.address, interface, &offer.key));
        let receiver = match joined {
            Some(Ok(receiver)) => receiver,
            Some(Err(error)) => return tracing::warn!(%error, ?offer, "a group cannot be joined"),
            None => return tracing::debug!(from, "nothing leads there by IPv4"),
        };
        let member = Arc::new(Member {
            group: offer.id.clone(),
            heard: receiver.heard(),
            silence: Mutex::default(),
            hurry: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let listener = Listener {
            engine: Arc::downgrade(self),
            away: self.away.clone(),
            id,
            pages: None,
            early: Vec::new(),
            early_bytes: 0,
        };
        let listening = member.clone();
        let listen = move || listener.listen(receiver, &listening);
        if let Err(error) = std::thread::Builder::new().name("group".into()).spawn(listen) {
            return tracing::warn!(%error, "a group cannot be listened to");
        }
        // Another fork of the same snapshot: who listened to its group listens to this one.
        if let Some(other) = lock(&self.members.0).insert(id, member) {
            other.is_over.store(true, Relaxed);
        }
    }
}

/// Takes what comes to a member.
struct Listener {
    engine: Weak<Engine>,
    away: Arc<Away>,
    id: SnapshotId,
    /// Found out when the image is first mapped.
    pages: Option<FramePages>,
    /// What came before the snapshot's outline, while this host is told of it.
    early: Vec<Parcel>,
    early_bytes: usize,
}

impl Listener {
    fn listen(mut self, mut receiver: Receiver, member: &Member) {
        while !member.is_over.load(Relaxed) && !self.away.is_stopping() {
            let parcel = match receiver.next(LISTEN) {
                Ok(parcel) => parcel,
                Err(error) => return tracing::warn!(%error, snapshot = %self.id, "nothing is heard any more"),
            };
            let is_known = self.away.has(&self.id);
            if is_known {
                self.early_bytes = 0;
                std::mem::take(&mut self.early)
                    .into_iter()
                    .for_each(|parcel| self.take(parcel));
            }
            match parcel {
                Some(parcel) if is_known => self.take(parcel),
                Some(parcel) if self.early_bytes < EARLY_BYTES => {
                    self.early_bytes += parcel.bytes.len();
                    self.early.push(parcel);
                }
                _ => {}
            }
        }
    }

    fn take(&mut self, parcel: Parcel) {
        let taken =
            verified(parcel).and_then(|verified| Ok(self.away.overhear(&verified)?.then_some(verified)));
        match taken {
            Ok(Some(verified)) if verified.stored().key.kind == Kind::Frame => self.push(verified),
            Ok(Some(_)) => {}
            Ok(None) => {} // it was here
            Err(error) => tracing::warn!(%error, snapshot = %self.id, "a parcel is of no use"),
        }
    }

    /// Into the page cache of whatever machines have the image.
    fn push(&mut self, verified: Verified) {
        let image = self
            .engine
            .upgrade()
            .and_then(|engine| engine.images.shown(&self.id));
        if let Some(image) = image {
            let pages = self
                .pages
                .get_or_insert_with(|| FramePages::of(&image.image.manifest()));
            let frame = FrameId(verified.stored().key.id);
            image.image.arrived(pages, &frame, verified.into_content());
        }
    }
}

impl Member {
    fn is_of_use(&self) -> bool {
        !self.is_over.load(Relaxed) && !lock(&self.silence).is_given_up
    }

    fn give_up(&self, why: &str) {
        lock(&self.silence).is_given_up = true;
        self.is_over.store(true, Relaxed);
        tracing::warn!(group = self.group, why, "frames come by unicast from now on");
    }
}

/// A host as a place that sends to a group what several want of it.
pub(crate) struct ByMulticast {
    pub(crate) member: Arc<Member>,
    pub(crate) host: PeerPlace,
    /// What has come; it has this place.
    pub(crate) away: Weak<Away>,
}

impl fmt::Debug for ByMulticast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByMulticast")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl ByMulticast {
    /// What of these has come, however that was, is given out; the others.
    fn come(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
    ) -> Result<Vec<Key>, SourceError> {
        let mut rest = Vec::new();
        for key in keys {
            match self.away.upgrade().and_then(|away| away.came(key)) {
                Some(object) => each(object)?,
                None => rest.push(*key),
            }
        }
        Ok(rest)
    }

    /// Gets objects: what has not come to the group, from the host.
    fn get(
        &self,
        keys: &[Key],
        is_urgent: bool,
        each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        // Another host, which does the same at the same time, may have asked for some a moment ago.
        let wanted = self.come(keys, each)?;
        let mut rest = Vec::new();
        for wanted in wanted.chunks(OBJECTS_MAX) {
            self.have_sent(wanted, is_urgent);
            rest.extend(self.come(wanted, each)?);
        }
        if rest.is_empty() {
            return Ok(());
        }
        tracing::debug!(objects = rest.len(), is_urgent, "by unicast");
        self.host.objects(&rest, each)
    }

    /// Has objects sent to the group, and waits until they have come or are lost.
    fn have_sent(&self, objects: &[Key], is_urgent: bool) {
        let member = &*self.member;
        let asked = Instant::now();
        if !member.is_of_use() || is_urgent && !lock(&member.hurry).is_over(asked) {
            return;
        }
        let through = match self.want(objects, is_urgent) {
            Ok(sent) => sent.through_packets,
            Err(why) => return member.give_up(&why),
        };
        let on_its_way = match (is_urgent, member.heard.last()) {
            (true, _) => URGENT_ON_ITS_WAY,
            (false, None) => FIRST_ON_ITS_WAY,
            (false, Some(_)) => ON_ITS_WAY,
        };
        let is_heard = member.heard.wait_through(through, Instant::now() + on_its_way);
        let now = Instant::now();
        if is_urgent && (!is_heard || now - asked >= URGENT) {
            lock(&member.hurry).begin(now);
            tracing::debug!(
                is_heard,
                took_ms = (now - asked).as_millis() as u64,
                "the group is too slow for a guest"
            );
        }
        let heard = if is_heard { Some(now) } else { member.heard.last() };
        if lock(&member.silence).note(asked, heard, now) {
            member.give_up("the network seems to carry no multicast");
        }
    }

    fn want(&self, objects: &[Key], is_urgent: bool) -> Result<SentFrames, String> {
        let report = self.member.heard.report();
        let within = if is_urgent { URGENT } else { BEHIND };
        let wanted = WantedFrames {
            group: self.member.group.clone(),
            objects: objects.iter().map(|key| FrameId(key.id).to_string()).collect(),
            is_urgent,
            heard_bytes: report.rate_bytes,
            lost: report.lost,
            within_ms: within.as_millis() as u64,
        };
        let answer: Result<Result<SentFrames, Problem>, _> =
            self.host.0.post("/peer/multicast/want", &wanted);
        match answer {
            Ok(Ok(sent)) => Ok(sent),
            Ok(Err(problem)) => Err(problem.message),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Place for ByMulticast {
    fn name(&self) -> String {
        self.host.name()
    }

    fn objects(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        self.get(keys, true, each)
    }

    fn behind(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        self.get(keys, false, each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_is_silent_is_given_up_in_bounded_time() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut silence = Silence::default();
        assert!(!silence.note(at(0), None, at(100)));
        assert!(!silence.note(at(100), None, at(1200)), "twice may be chance");
        assert!(silence.note(at(1200), None, at(1300)));
        assert!(
            silence.is_given_up && !silence.note(at(1300), None, at(1400)),
            "told once"
        );
        // One of which something is heard now and then is not.
        let mut silence = Silence::default();
        for want in 0..100 {
            let asked = at(want * 400);
            let heard = (want % 3 == 2).then_some(asked);
            assert!(!silence.note(asked, heard, at(want * 400 + 300)));
        }
        assert!(!silence.is_given_up);
    }

    #[test]
    fn a_group_that_is_too_slow_costs_a_guest_little() {
        let begin = Instant::now();
        let (mut hurry, mut now, mut stood_still) = (Hurry::default(), begin, Duration::ZERO);
        while now < begin + Duration::from_secs(60) {
            if hurry.is_over(now) {
                now += URGENT + URGENT_ON_ITS_WAY; // in vain
                stood_still += URGENT + URGENT_ON_ITS_WAY;
                hurry.begin(now);
            }
            now += Duration::from_millis(10);
        }
        assert!(stood_still <= (URGENT + URGENT_ON_ITS_WAY) * 6, "{stood_still:?}");
        assert!(hurry.is_over(now + HURRY * 2u32.pow(HURRY_DOUBLINGS)));
    }

    #[test]
    fn a_parcel_is_the_frame_that_it_says_or_nothing() {
        let (codec, bytes) = martlet_image::compress(&[7; 4096]);
        let stored = Stored {
            key: Key::new(Kind::Frame, [0; 32]),
            codec,
            content_len: 4096,
            bytes,
        };
        for bytes in [encode(&stored), vec![], vec![9; 4], vec![255; 100]] {
            let parcel = Parcel { name: [0; 32], bytes };
            assert!(verified(parcel).is_err());
        }
    }
}
