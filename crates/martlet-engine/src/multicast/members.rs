//! Groups that this host listens to.

use super::{ComingFrames, FRAMES_MAX, OfferedGroup, WantedFrames};
use crate::away::{Away, Place};
use crate::engine::{Engine, lock};
use crate::hosts::PeerPlace;
use martlet_api::Problem;
use martlet_image::{Codec, FrameId, SnapshotId};
use martlet_multicast::{Heard, Parcel, Patience, Receiver, local_address_towards};
use martlet_pager::FramePages;
use martlet_source::SourceError;
use martlet_store::{Key, Kind, StoreError, Stored, Verified};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Who listens looks so often whether it is still to.
const LISTEN: Duration = Duration::from_millis(200);
/// What nobody reads may come so many times later than what somebody waits for.
const BEHIND: u32 = 2;
/// A group of which nothing was heard for so long, although something was wanted, is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(1);
/// But not before so much was wanted in vain.
const GIVE_UP_WANTS: u32 = 3;
/// The sender may say that it will take long: no more than so long is believed.
const WITHIN_MAX: Duration = Duration::from_secs(2);
/// Nor longer than so for what was sent: who reads one of them meanwhile waits as well.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// A guest stands still no longer than so for what the group may give.
const URGENT_MAX: Duration = Duration::from_millis(300);
/// After that it is not made to wait for the group for so long, and then twice as long, as often as this.
const HURRY: Duration = Duration::from_secs(1);
const HURRY_DOUBLINGS: u32 = 5;
const HEAD: usize = 5;

/// A frame as a parcel: `codec 1 | content length 4 | stored bytes`.
pub(super) fn encode(stored: &Stored) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + stored.bytes.len());
    bytes.push(stored.codec as u8);
    bytes.extend_from_slice(&stored.content_len.to_le_bytes());
    bytes.extend_from_slice(&stored.bytes);
    bytes
}

/// The frame that a parcel says that it is, if it is that.
fn verified(parcel: Parcel) -> Result<Verified, StoreError> {
    let key = Key::new(Kind::Frame, parcel.name);
    let wrong = || StoreError::Invalid(format!("{key}: a parcel that is no frame"));
    let ([codec, len @ ..], bytes) = parcel.bytes.split_first_chunk::<HEAD>().ok_or_else(wrong)?;
    let stored = Stored {
        key,
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
    /// Frames that somebody here has asked for, and what has come of them.
    waiting: Mutex<HashMap<FrameId, Option<Stored>>>,
    came: Condvar,
    silence: Mutex<Silence>,
    patience: Mutex<Patience>,
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

/// Nobody waits for these any more.
struct Waiting<'a> {
    member: &'a Member,
    frames: Vec<FrameId>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = lock(&self.member.waiting);
        for frame in &self.frames {
            waiting.remove(frame);
        }
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
            waiting: Mutex::default(),
            came: Condvar::new(),
            silence: Mutex::default(),
            patience: Mutex::default(),
            hurry: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let listener = Listener {
            engine: Arc::downgrade(self),
            away: self.away.clone(),
            id,
            pages: None,
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
}

impl Listener {
    fn listen(mut self, mut receiver: Receiver, member: &Member) {
        while !member.is_over.load(Relaxed) && !self.away.is_stopping() {
            match receiver.next(LISTEN) {
                Ok(Some(parcel)) => self.take(member, parcel),
                Ok(None) => {}
                Err(error) => return tracing::warn!(%error, snapshot = %self.id, "nothing is heard any more"),
            }
        }
    }

    fn take(&mut self, member: &Member, parcel: Parcel) {
        let frame = FrameId(parcel.name);
        let taken = verified(parcel).and_then(|verified| {
            // Who begins to wait meanwhile looks at what has come afterwards.
            let mut waiting = lock(&member.waiting);
            let is_taken = match waiting.get_mut(&frame) {
                Some(place) => {
                    *place = Some(verified.stored().clone());
                    member.came.notify_all();
                    true
                }
                None => self.away.overhear(&verified)?,
            };
            drop(waiting);
            Ok(is_taken.then_some(verified))
        });
        match taken {
            Ok(Some(verified)) => self.push(&frame, verified),
            Ok(None) => {} // it was here
            Err(error) => tracing::warn!(%error, snapshot = %self.id, "a parcel is of no use"),
        }
    }

    /// Into the page cache of whatever machines have the image.
    fn push(&mut self, frame: &FrameId, verified: Verified) {
        let image = self
            .engine
            .upgrade()
            .and_then(|engine| engine.images.shown(&self.id));
        if let Some(image) = image {
            let pages = self
                .pages
                .get_or_insert_with(|| FramePages::of(&image.image.manifest()));
            image.image.arrived(pages, frame, verified.into_content().into());
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

    /// Gives out those of these frames that have come.
    fn take_come(
        &self,
        waiting: &mut Waiting<'_>,
        each: &mut dyn FnMut(Stored) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let mut come = Vec::new();
        {
            let mut all = lock(&self.waiting);
            waiting
                .frames
                .retain(|frame| match all.get_mut(frame).map(Option::take) {
                    Some(Some(stored)) => {
                        all.remove(frame);
                        come.push(stored);
                        false
                    }
                    _ => true,
                });
        }
        come.into_iter().try_for_each(each)
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
    /// While the group is too slow for what a guest stands still for: from the host, but for what has just come.
    fn get_at_once(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Stored) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let mut rest = Vec::new();
        for key in keys {
            match self.away.upgrade().and_then(|away| away.just_came(key)) {
                Some(stored) => each(stored)?,
                None => rest.push(*key),
            }
        }
        match rest.is_empty() {
            true => Ok(()),
            false => self.host.objects(&rest, each),
        }
    }

    /// Gets objects, first by the group; what does not come by that, from the host.
    fn get(
        &self,
        keys: &[Key],
        is_urgent: bool,
        each: &mut dyn FnMut(Stored) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let mut rest = keys.to_vec();
        if self.member.is_of_use() {
            let is_frame = |key: &Key| key.kind == Kind::Frame;
            let (frames, others): (Vec<Key>, Vec<Key>) = keys.iter().partition(|key| is_frame(key));
            rest = others;
            for frames in frames.chunks(FRAMES_MAX) {
                let frames = frames.iter().map(|key| FrameId(key.id)).collect();
                let left = self.by_group(frames, is_urgent, each)?;
                rest.extend(left.into_iter().map(|frame| Key::new(Kind::Frame, frame.0)));
            }
        }
        match rest.is_empty() {
            true => Ok(()),
            false => self.host.objects(&rest, each),
        }
    }

    /// Has frames sent to the group, and gives out those that come; the others.
    fn by_group(
        &self,
        frames: Vec<FrameId>,
        is_urgent: bool,
        each: &mut dyn FnMut(Stored) -> Result<(), SourceError>,
    ) -> Result<Vec<FrameId>, SourceError> {
        let member = &*self.member;
        if frames.is_empty() || !member.is_of_use() {
            return Ok(frames);
        }
        let asked = Instant::now();
        // Before they are asked for, as they may come before the answer.
        let mut waiting = Waiting { member, frames };
        let came = |frame: &FrameId| self.away.upgrade()?.just_came(&Key::new(Kind::Frame, frame.0));
        lock(&member.waiting).extend(waiting.frames.iter().map(|frame| (*frame, None)));
        for frame in &waiting.frames {
            // Another host, which does the same at the same time, may have asked for it a moment ago.
            if let Some(stored) = came(frame) {
                lock(&member.waiting).insert(*frame, Some(stored));
            }
        }
        member.take_come(&mut waiting, each)?;
        if waiting.frames.is_empty() {
            return Ok(Vec::new());
        }
        let coming = match self.want(&waiting.frames, is_urgent) {
            Ok(coming) => coming,
            Err(why) => {
                member.give_up(&why);
                return Ok(waiting.frames.clone());
            }
        };
        let mut comes = coming.comes.into_iter().chain(std::iter::repeat(false));
        let (awaited, others): (Vec<FrameId>, Vec<FrameId>) =
            waiting.frames.iter().partition(|_| comes.next() == Some(true));
        let mut others = others;
        lock(&member.waiting).retain(|frame, _| !others.contains(frame));
        waiting.frames = awaited;
        let sent_at = asked + Duration::from_millis(coming.within_ms).min(WITHIN_MAX);
        let patience = lock(&member.patience).wait();
        let until = match is_urgent {
            true => (sent_at + patience).min(asked + URGENT_MAX),
            false => sent_at + (patience * BEHIND).min(WAIT_MAX),
        };
        while !waiting.frames.is_empty() {
            member.take_come(&mut waiting, each)?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || member.is_over.load(Relaxed) {
                break;
            }
            let all = lock(&member.waiting);
            let none_came = |all: &mut HashMap<FrameId, Option<Stored>>| {
                !waiting
                    .frames
                    .iter()
                    .any(|frame| matches!(all.get(frame), Some(Some(_))))
            };
            let waited = member.came.wait_timeout_while(all, left, none_came);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
        if waiting.frames.is_empty() {
            lock(&member.patience).came_after(Instant::now().saturating_duration_since(sent_at));
            if is_urgent {
                *lock(&member.hurry) = Hurry::default();
            }
        } else {
            lock(&member.patience).waited_in_vain();
            if is_urgent {
                lock(&member.hurry).begin(Instant::now());
            }
            let heard = member.heard.last();
            tracing::debug!(frames = waiting.frames.len(), "did not come by the group");
            if lock(&member.silence).note(asked, heard, Instant::now()) {
                member.give_up("the network seems to carry no multicast");
            }
        }
        others.extend(&waiting.frames);
        Ok(others)
    }

    fn want(&self, frames: &[FrameId], is_urgent: bool) -> Result<ComingFrames, String> {
        let report = self.member.heard.report();
        let wanted = WantedFrames {
            group: self.member.group.clone(),
            frames: frames.iter().map(FrameId::to_string).collect(),
            is_urgent,
            heard_bytes: report.rate_bytes,
            lost: report.lost,
        };
        let answer: Result<Result<ComingFrames, Problem>, _> =
            self.host.0.post("/peer/multicast/want", &wanted);
        match answer {
            Ok(Ok(coming)) => Ok(coming),
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
        each: &mut dyn FnMut(Stored) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        if lock(&self.member.hurry).is_over(Instant::now()) {
            self.get(keys, true, each)
        } else {
            self.get_at_once(keys, each)
        }
    }

    fn behind(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Stored) -> Result<(), SourceError>,
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
                now += URGENT_MAX; // in vain
                stood_still += URGENT_MAX;
                hurry.begin(now);
            }
            now += Duration::from_millis(10);
        }
        assert!(stood_still <= URGENT_MAX * 6, "{stood_still:?}");
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
