//! Where the clones of a fork go: the allocator that is built in, or a plug-in ([`super::allocator`]).
//!
//! Each clone goes to the host whose processors have least to do by then, among those that could run it, have the memory for one more and take one more; when none
//! has, to the one with most memory, which may refuse. A host that is named gets an even share.

use super::allocator::{self, Allocation, Grant, Offered};
use super::config_of;
use crate::engine::Engine;
use crate::machine::{HardwareRecord, Machine};
use crate::run::planned_hardware;
use martlet_api::names::{AUTO, plugin};
use martlet_api::{HostUsage, Problem, ProblemCode, User};
use martlet_image::SnapshotRecord;
use std::collections::BTreeSet;
use std::time::Duration;

/// A plug-in may ask somebody who has a queue.
const ANSWER_WITHIN: Duration = Duration::from_secs(600);

/// The clones that one host starts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Which; none is this one.
    pub host: Option<String>,
    /// Their indices, ascending.
    pub indices: Vec<u32>,
}

/// What clones need.
pub(crate) struct Demand {
    /// Whose they are.
    pub machine: String,
    /// How many.
    pub count: u32,
    /// Memory of each.
    pub memory_bytes: u64,
    /// Processors of each.
    pub cpus: u32,
    /// What runs them.
    pub hardware: HardwareRecord,
    /// Who asks.
    pub user: User,
    /// The guest's user whose program asks, if one does.
    pub guest_uid: Option<u32>,
}

/// Where clones go.
pub(crate) struct Placed {
    /// Maybe fewer than were asked for, if a plug-in says so.
    pub shares: Vec<Share>,
    /// By whose leave.
    pub allocation: Option<Allocation>,
}

/// What a host has room for.
#[derive(Debug, Clone)]
struct Room {
    host: Option<String>,
    name: String,
    cpus: u32,
    load: f64,
    available_bytes: u64,
    clones_left: Option<u32>,
}

impl Room {
    /// What a host has for clones of a user, who is called so there.
    fn of(name: String, is_this: bool, usage: &HostUsage, user: &User) -> Self {
        let theirs = usage.clones_by_user.get(&user.to_string());
        let left_each = usage
            .clones_each
            .map(|each| each.saturating_sub(theirs.copied().unwrap_or(0)));
        Self {
            host: (!is_this).then(|| name.clone()),
            name,
            cpus: usage.cpus,
            load: usage.load,
            available_bytes: usage.memory_available_bytes,
            clones_left: usage.clones_left.into_iter().chain(left_each).min(),
        }
    }

    fn has(&self, memory_bytes: u64) -> bool {
        self.available_bytes >= memory_bytes && self.clones_left != Some(0)
    }

    fn most(&self, memory_bytes: u64) -> usize {
        let by_memory = self.available_bytes / memory_bytes.max(1);
        let most = by_memory.min(self.clones_left.map_or(u64::MAX, u64::from));
        usize::try_from(most).unwrap_or(usize::MAX)
    }
}

impl Demand {
    /// Of clones of a machine.
    pub(crate) fn of_machine(machine: &Machine, count: u32, user: &User) -> Self {
        let record = machine.record();
        Self {
            machine: record.name,
            count,
            memory_bytes: record.config.memory_bytes,
            cpus: record.config.cpus,
            hardware: record.hardware,
            user: user.clone(),
            guest_uid: None,
        }
    }

    /// Of clones of a snapshot that holds so much memory.
    pub(crate) fn of_snapshot(
        snapshot: &SnapshotRecord,
        memory_bytes: u64,
        count: u32,
        user: &User,
    ) -> Result<Self, Problem> {
        let config = config_of(snapshot)?;
        Ok(Self {
            machine: snapshot.machine.clone(),
            count,
            memory_bytes,
            cpus: config.cpus,
            hardware: planned_hardware(&config, snapshot),
            user: user.clone(),
            guest_uid: None,
        })
    }
}

impl Engine {
    /// Who starts which of these clones: these hosts, or whom an allocator says, or this one.
    pub(crate) fn place(&self, on: &[String], demand: &Demand) -> Result<Placed, Problem> {
        if let [one] = on
            && let Some(name) = plugin(one)
        {
            return self.allocate(name, demand);
        }
        let count = demand.count as usize;
        let (hosts, turns) = match on {
            [] => (vec![None], vec![0; count]),
            [one] if one == AUTO => {
                let rooms = self.rooms_for(demand)?;
                let hosts = rooms.iter().map(|room| room.host.clone()).collect();
                (hosts, spread(rooms, demand.count, demand.memory_bytes))
            }
            _ => {
                let hosts = on.iter().map(|name| self.named(name));
                let hosts = hosts.collect::<Result<Vec<_>, _>>()?;
                let turns = (0..count).map(|at| at % hosts.len()).collect();
                (hosts, turns)
            }
        };
        Ok(Placed {
            shares: shares(&hosts, &turns),
            allocation: None,
        })
    }

    /// The same, for as many of them as there is room for; at least one.
    pub(crate) fn place_within(&self, on: &[String], demand: &Demand) -> Result<Placed, Problem> {
        let mut placed = self.place(on, demand)?;
        if placed.allocation.is_some() {
            return Ok(placed);
        }
        let known = match on {
            [] => vec![self.own_room(&demand.user)?],
            _ => self.known_rooms(&demand.user)?,
        };
        let of = |host: &Option<String>| known.iter().find(|room| room.host == *host);
        for share in &mut placed.shares {
            if let Some(room) = of(&share.host) {
                share.indices.truncate(room.most(demand.memory_bytes));
            }
        }
        placed.shares = renumbered(placed.shares);
        Ok(placed)
    }

    /// How many processors those hosts have.
    pub(crate) fn processors(&self, on: &[String]) -> Result<u32, Problem> {
        let known = match on {
            [] => vec![self.own_room(&User::default())?],
            [one] if one == AUTO || plugin(one).is_some() => self.rooms(&User::default())?,
            _ => {
                let named = on.iter().map(|name| self.named(name));
                let named = named.collect::<Result<Vec<_>, _>>()?;
                let mut known = self.known_rooms(&User::default())?;
                known.retain(|room| named.contains(&room.host));
                known
            }
        };
        Ok(known.iter().map(|room| room.cpus).sum::<u32>().max(1))
    }

    fn allocate(&self, name: &str, demand: &Demand) -> Result<Placed, Problem> {
        let program = allocator::find(&self.options.allocators, name)?;
        let rooms = self.rooms_for(demand)?;
        let offered = |room: &Room| Offered {
            name: room.name.clone(),
            cpus: room.cpus,
            load: room.load,
            memory_available_bytes: room.available_bytes,
            clones_left: room.clones_left,
        };
        let request = allocator::Request {
            count: demand.count,
            memory_bytes: demand.memory_bytes,
            cpus: demand.cpus,
            machine: demand.machine.clone(),
            guest_uid: demand.guest_uid,
            hosts: rooms.iter().map(offered).collect(),
        };
        let (granted, allocation) = Allocation::ask(&program, name, &request, ANSWER_WITHIN)?;
        let hosts: Vec<Option<String>> = rooms.iter().map(|room| room.host.clone()).collect();
        Ok(Placed {
            shares: shares(&hosts, &turns_of(&granted, &rooms)),
            allocation: Some(allocation),
        })
    }

    fn own_room(&self, user: &User) -> Result<Room, Problem> {
        Ok(Room::of(String::new(), true, &self.host_usage()?, user))
    }

    fn named(&self, name: &str) -> Result<Option<String>, Problem> {
        if self.is_this(name)? {
            return Ok(None);
        }
        match self.peer(name)? {
            Some(_) => Ok(Some(name.to_owned())),
            None => Err(crate::hosts::no_host(name)),
        }
    }

    /// Hosts that could run a machine with that hardware, and what they have room for.
    fn rooms_for(&self, demand: &Demand) -> Result<Vec<Room>, Problem> {
        let hardware = &demand.hardware;
        let mut rooms = self.rooms(&demand.user)?;
        let could: BTreeSet<String> = self.hosts_that_could(hardware)?.into_iter().collect();
        let here = self.could(hardware);
        rooms.retain(|room| match &room.host {
            Some(host) => could.contains(host),
            None => here.is_ok(),
        });
        match here {
            Err(refused) if rooms.is_empty() => Err(Problem {
                message: "no host of the fleet that answers could run it".into(),
                cause: refused.cause.or(Some(refused.message)),
                ..refused
            }),
            _ => Ok(rooms),
        }
    }

    /// Hosts that answer, and what they have room for. This one is always among them.
    fn rooms(&self, user: &User) -> Result<Vec<Room>, Problem> {
        let rooms = self.known_rooms(user)?;
        if rooms.is_empty() {
            return Err(Problem::new(
                ProblemCode::WrongState,
                "this host is in no fleet: there is nothing to choose from",
            )
            .remediation("`martlet host init` makes one, `martlet host join` joins one"));
        }
        Ok(rooms)
    }

    fn known_rooms(&self, user: &User) -> Result<Vec<Room>, Problem> {
        let mut rooms = Vec::new();
        let here = self.this_name()?.unwrap_or_default();
        for top in self.host_top()? {
            if let Some(usage) = top.usage {
                let user = user.clone().at(&here).here(&top.name);
                rooms.push(Room::of(top.name, top.is_this, &usage, &user));
            }
        }
        Ok(rooms)
    }
}

/// For each clone in turn, which host a plug-in has granted it at.
fn turns_of(granted: &[Grant], rooms: &[Room]) -> Vec<usize> {
    let turns = granted.iter().filter_map(|grant| {
        let at = rooms.iter().position(|room| room.name == grant.host)?;
        Some(std::iter::repeat_n(at, grant.count as usize))
    });
    turns.flatten().collect()
}

/// For each clone in turn, which host.
fn spread(mut rooms: Vec<Room>, count: u32, memory_bytes: u64) -> Vec<usize> {
    let mut turns = Vec::new();
    for _ in 0..count {
        let busy = |room: &Room| room.load / f64::from(room.cpus.max(1));
        let by_load = (0..rooms.len())
            .filter(|at| rooms[*at].has(memory_bytes))
            .min_by(|one, other| busy(&rooms[*one]).total_cmp(&busy(&rooms[*other])));
        let by_memory = || {
            let last = |at: &usize| (rooms[*at].clones_left != Some(0), rooms[*at].available_bytes);
            (0..rooms.len()).max_by_key(last)
        };
        let Some(at) = by_load.or_else(by_memory) else {
            return turns;
        };
        let room = &mut rooms[at];
        room.load += 1.0;
        room.available_bytes = room.available_bytes.saturating_sub(memory_bytes);
        room.clones_left = room.clones_left.map(|left| left.saturating_sub(1));
        turns.push(at);
    }
    turns
}

/// Their clones numbered from 1 up without gaps, and at least one of them.
fn renumbered(mut shares: Vec<Share>) -> Vec<Share> {
    if shares.iter().all(|share| share.indices.is_empty()) {
        shares.truncate(1);
        shares.iter_mut().for_each(|share| share.indices = vec![1]);
    }
    let mut next = 1..;
    for share in &mut shares {
        let count = share.indices.len();
        share.indices = next.by_ref().take(count).collect();
    }
    shares.retain(|share| !share.indices.is_empty());
    shares
}

/// Those of them that get any, this host first.
fn shares(hosts: &[Option<String>], turns: &[usize]) -> Vec<Share> {
    let share = |(at, host): (usize, &Option<String>)| Share {
        host: host.clone(),
        indices: (1..)
            .zip(turns)
            .filter(|(_, turn)| **turn == at)
            .map(|(index, _)| index)
            .collect(),
    };
    let mut shares: Vec<Share> = hosts.iter().enumerate().map(share).collect();
    shares.retain(|share| !share.indices.is_empty());
    shares.sort_by_key(|share| share.host.is_some());
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(host: &str, cpus: u32, load: f64, available_bytes: u64) -> Room {
        Room {
            host: Some(host.to_owned()),
            name: host.to_owned(),
            cpus,
            load,
            available_bytes,
            clones_left: None,
        }
    }

    #[test]
    fn clones_go_where_processors_and_memory_are() {
        let rooms = || vec![room("small", 2, 0.0, 100), room("large", 6, 0.0, 100)];
        let turns = spread(rooms(), 8, 1);
        let large = turns.iter().filter(|at| **at == 1).count();
        assert_eq!(large, 6, "{turns:?}");
        // Nothing more fits there.
        let turns = spread(rooms(), 8, 25);
        assert_eq!(turns.iter().filter(|at| **at == 1).count(), 4, "{turns:?}");
        // Nor anywhere: they are placed all the same, and whoever has no room says so.
        assert_eq!(spread(rooms(), 20, 25).len(), 20);
        let busy = vec![room("busy", 2, 9.0, 100), room("idle", 2, 0.1, 100)];
        assert_eq!(spread(busy, 3, 1), [1, 1, 1]);
        // A host that takes no more clones gets none while another one does.
        let few = Room {
            clones_left: Some(2),
            ..room("few", 8, 0.0, 100)
        };
        assert_eq!(few.most(10), 2);
        let turns = spread(vec![few, room("other", 1, 0.0, 50)], 9, 10);
        assert_eq!(turns.iter().filter(|at| **at == 0).count(), 2, "{turns:?}");
    }

    #[test]
    fn a_plug_in_grants_a_host_as_often_as_it_likes() {
        let rooms = [room("a", 1, 0.0, 0), room("b", 1, 0.0, 0)];
        let grant = |host: &str, count| Grant {
            host: host.into(),
            count,
        };
        let turns = turns_of(&[grant("b", 2), grant("a", 1), grant("b", 1)], &rooms);
        assert_eq!(turns, [1, 1, 0, 1]);
    }

    #[test]
    fn each_clone_is_of_one_share() {
        let hosts = [Some("a".to_owned()), None, Some("c".to_owned())];
        let shares = shares(&hosts, &[0, 1, 0, 1]);
        let share = |host: Option<&str>, indices: &[u32]| Share {
            host: host.map(str::to_owned),
            indices: indices.to_vec(),
        };
        assert_eq!(shares, [share(None, &[2, 4]), share(Some("a"), &[1, 3])]);
    }
}
