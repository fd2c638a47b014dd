//! Machines in the networks of their families.
//!
//! ```text
//!   run --family ──► member 0, the parent: a key of its own
//!        │ fork
//!        └──► members 1 … n: the key goes along, here and to other hosts ──► plugged in, each at its host's switch
//! ```
//!
//! A family is called by the id of its parent. A fork of one of its clones founds a family of its own, without that clone. (SnowFlock: Lagar-Cavilla et al.,
//! EuroSys 2009, section 5.5; what goes through: `martlet-switch`.)

use crate::engine::{Engine, lock};
use crate::fork::CLONES_MAX;
use crate::identity;
use crate::machine::{Config, Machine, Record};
use crate::problem::{self, Told};
use crate::state::When;
use martlet_agent_api as agent;
use martlet_api::{FamilyInfo, Problem, ProblemCode};
use martlet_switch::{FamilyId, HOSTS_MAX, MTU, NUMBER_MAX, Number, PREFIX, Plug, Plugged};
use martlet_vm::RunningVm;
use martlet_vm::spec::FamilyCard;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// As many clones have names in every guest of a family; more, if a fork may be larger.
const NAMES: u32 = 64;

/// Which member of which family a machine is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Id of the family's parent.
    pub family: String,
    /// 0 is the parent.
    pub number: u32,
    /// 64 hexadecimal digits.
    key: String,
    /// Other hosts that have had members of it.
    hosts: Vec<String>,
    /// Of the parent: the highest number of a clone that stays when it has started.
    #[serde(default)]
    given: u32,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Member({}, {})", self.family, self.number)
    }
}

/// The network of a fork's clones.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ForkNetwork {
    /// What all of them have; the number is that of the one before the first.
    of: Member,
}

impl ForkNetwork {
    /// Who the clone with this index is.
    pub(crate) fn member(&self, index: u32) -> Member {
        Member {
            number: self.of.number + index,
            ..self.of.clone()
        }
    }

    /// Other hosts say what they want.
    pub(crate) fn check(&self) -> Result<(), Problem> {
        let last = self.of.number.saturating_add(CLONES_MAX);
        let is_family = family_id(&self.of.family).is_some() && key(&self.of.key).is_some();
        match is_family && last <= u32::from(NUMBER_MAX) && self.of.hosts.len() <= HOSTS_MAX {
            true => Ok(()),
            false => Err(Problem::new(
                ProblemCode::InvalidArgument,
                "there is no such family network",
            )),
        }
    }
}

/// Numbers of clones that are not gone yet, by family.
pub(crate) type Numbers = Arc<Mutex<HashMap<String, Vec<Range<u32>>>>>;

/// Numbers that a fork's clones have until this is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    all: Numbers,
    family: String,
    range: Range<u32>,
}

impl Taken {
    fn new(all: &Numbers, family: &str, above: u32, count: u32) -> Option<Self> {
        let mut families = lock(all);
        let taken = families.get(family).into_iter().flatten();
        let last = taken.map(|range| range.end - 1).fold(above, u32::max);
        let range = last + 1..last + 1 + count;
        if last + CLONES_MAX > u32::from(NUMBER_MAX) {
            return None;
        }
        families.entry(family.to_owned()).or_default().push(range.clone());
        Some(Self {
            all: all.clone(),
            family: family.to_owned(),
            range,
        })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut families = lock(&self.all);
        if let Some(taken) = families.get_mut(&self.family) {
            taken.retain(|range| *range != self.range);
            if taken.is_empty() {
                families.remove(&self.family);
            }
        }
    }
}

impl Member {
    /// The parent of a new family, if a machine is to have one.
    pub(crate) fn founder(id: &str, config: &Config) -> Option<Self> {
        config.family.then(|| Self {
            family: id.to_owned(),
            number: 0,
            key: identity::random::<32>()
                .map(|byte| format!("{byte:02x}"))
                .concat(),
            hosts: Vec::new(),
            given: 0,
        })
    }

    /// Its network card.
    pub(crate) fn card(&self) -> FamilyCard {
        card(self.number())
    }

    /// The card of nobody yet: the device state that is loaded says whose it is.
    pub(crate) fn any_card() -> FamilyCard {
        card(Number::PARENT)
    }

    /// What users are told.
    pub(crate) fn info(&self) -> FamilyInfo {
        let number = self.number();
        FamilyInfo {
            family: self.family.clone(),
            name: number.name(),
            address: number.address().to_string(),
        }
    }

    fn number(&self) -> Number {
        Number::new(self.number).unwrap_or(Number::PARENT)
    }

    /// What its guest is told.
    pub(crate) fn to_guest(&self, config: &Config) -> agent::FamilyNetwork {
        let number = self.number();
        let most = config.fork.as_ref().map_or(0, |policy| policy.most);
        let names = NAMES.max(most).max(self.number).min(u32::from(NUMBER_MAX));
        let mut hosts = String::new();
        for member in (0..=names).filter_map(Number::new) {
            // Writing to a string does not fail.
            let _ = writeln!(hosts, "{}\t{}", member.address(), member.name());
        }
        agent::FamilyNetwork {
            network: agent::Network {
                interface: None,
                mac: Some(identity::mac_text(number.mac())),
                address: number.address(),
                prefix: PREFIX,
                gateway: config.has_list().then_some(martlet_egress::ADDRESS),
                dns: config
                    .has_list()
                    .then_some(martlet_egress::ADDRESS)
                    .into_iter()
                    .collect(),
            },
            mtu: MTU,
            hosts,
        }
    }
}

fn card(number: Number) -> FamilyCard {
    FamilyCard {
        mac: identity::mac_text(number.mac()),
        mtu: MTU,
    }
}

fn bytes<const N: usize>(hex: &str) -> Option<[u8; N]> {
    if hex.len() != 2 * N || !hex.is_ascii() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

fn family_id(text: &str) -> Option<FamilyId> {
    identity::is_machine_id(text)
        .then(|| bytes(text).map(FamilyId))
        .flatten()
}

fn key(text: &str) -> Option<[u8; 32]> {
    bytes(text)
}

impl Engine {
    /// Listens to the switches of other hosts, at the address where their requests come.
    pub fn serve_families(&self, address: SocketAddr) -> Result<(), Problem> {
        let served = match self.switch.serve(address) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()), // from before
            served => served.map(drop),
        };
        served.map_err(|error| {
            let words = format!("cannot listen on UDP {address}: families have no network across hosts");
            Problem::new(ProblemCode::Internal, words).cause(error)
        })
    }

    /// How many frames of guests went nowhere, because they cannot truly have sent them or sent too many.
    pub fn family_frames_refused(&self) -> u64 {
        self.switch.refused()
    }

    /// Plugs a machine into its family's network. Its QEMU is told of it if it was `started` just now; one that was found
    /// again knows.
    pub(crate) fn plug_in(
        &self,
        record: &Record,
        dir: &Path,
        started: Option<&RunningVm>,
    ) -> Result<Option<Plugged>, Problem> {
        let Some(member) = &record.member else {
            return Ok(None);
        };
        let bad = || {
            Problem::new(
                ProblemCode::Damaged,
                "what is remembered of its family makes no sense",
            )
        };
        let family = family_id(&member.family).ok_or_else(bad)?;
        let plug = Plug {
            family,
            key: key(&member.key).ok_or_else(bad)?,
            random: identity::random(),
            number: member.number(),
            dir: dir.to_owned(),
        };
        let told = |error| problem::io("plug a machine into its family's network in", dir, &error);
        let plugged = self.switch.plug(plug).map_err(told)?;
        self.switch.reach(family, self.addresses(&member.hosts));
        if let Some(vm) = started {
            vm.bind_family(
                &dir.join(martlet_switch::TO_QEMU),
                &dir.join(martlet_switch::FROM_QEMU),
            )
            .told()?;
        }
        self.lead_out(record, &plugged)?;
        plugged.connect().map_err(told)?;
        Ok(Some(plugged))
    }

    /// The network of a fork into so many clones, some of them at other hosts; none, if the machine has none.
    pub(crate) fn fork_network<'a>(
        &self,
        machine: &Machine,
        count: u32,
        stay: bool,
        hosts: impl Iterator<Item = &'a str>,
    ) -> Result<Option<(ForkNetwork, Taken)>, Problem> {
        let record = machine.record();
        let Some(mut of) = record.member.clone() else {
            return Ok(None);
        };
        if of.number != 0 {
            // A clone: what it forks into is another family, whose parent is not in it.
            of = Member::founder(&record.id, &record.config).unwrap_or(of);
        }
        let mut hosts: Vec<String> = hosts.map(str::to_owned).chain(of.hosts).collect();
        hosts.sort_unstable();
        hosts.dedup();
        of.hosts = hosts;
        let taken = Taken::new(&self.family_numbers, &of.family, of.given, count);
        let taken = taken.ok_or_else(|| {
            let words = format!(
                "the family of {} has had as many clones as its network has addresses",
                record.name
            );
            Problem::new(ProblemCode::NoSpace, words)
        })?;
        of.number = taken.range.start - 1;
        if of.family == record.id && record.member.as_ref().is_some_and(|member| member.number == 0) {
            let (hosts, last) = (of.hosts.clone(), taken.range.end - 1);
            if let Some(family) = family_id(&of.family) {
                self.switch.reach(family, self.addresses(&hosts));
            }
            self.update(machine, When::Now, |record| {
                if let Some(member) = &mut record.member {
                    member.hosts = hosts;
                    if stay {
                        member.given = last;
                    }
                }
            })?;
        }
        Ok(Some((ForkNetwork { of }, taken)))
    }

    /// A fork's network, for another host.
    pub(crate) fn network_for_others(
        &self,
        network: Option<&ForkNetwork>,
    ) -> Result<Option<ForkNetwork>, Problem> {
        let (Some(network), Some(this)) = (network, self.this_name()?) else {
            return Ok(None);
        };
        let mut there = network.clone();
        there.of.hosts.push(this);
        Ok(Some(there))
    }

    /// Who a machine is in its family, for the host that goes on with it.
    pub(crate) fn member_elsewhere(&self, record: &Record) -> Result<Option<Member>, Problem> {
        let mut member = record.member.clone();
        if let (Some(member), Some(this)) = (&mut member, self.this_name()?) {
            member.hosts.push(this);
        }
        Ok(member)
    }

    /// Where the switches of other hosts listen. One that cannot be found is left out: it will be heard of.
    fn addresses(&self, hosts: &[String]) -> Vec<SocketAddr> {
        let roll = self.roll().hosts;
        let entries = roll.iter().filter(|entry| hosts.contains(&entry.name));
        let others = entries.filter(|entry| !self.is_this(&entry.name).unwrap_or(true));
        others
            .filter_map(|entry| entry.address.to_socket_addrs().ok()?.next())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_familys_numbers_begin_anew_when_all_its_clones_are_gone() {
        let all = Numbers::default();
        let take = |above, count| Taken::new(&all, "f", above, count);
        let first = take(0, 16).unwrap();
        assert_eq!(first.range, 1..17);
        let second = take(0, 4).unwrap();
        assert_eq!(second.range, 17..21);
        drop(first);
        assert_eq!(take(0, 1).unwrap().range, 21..22, "those above are still there");
        drop(second);
        assert_eq!(take(0, 3).unwrap().range, 1..4);
        assert_eq!(take(40, 3).unwrap().range, 41..44, "those that stay keep theirs");
        assert!(take(u32::from(NUMBER_MAX) - 10, 1).is_none());
        assert!(lock(&all).is_empty());
    }

    #[test]
    fn guests_know_the_card_by_its_mac_address() {
        for number in [0, 1, u32::from(NUMBER_MAX)] {
            let mac = Number::new(number).unwrap().mac();
            assert!(mac.starts_with(&agent::FAMILY_MAC));
            assert!(!identity::mac(number.into()).starts_with(&agent::FAMILY_MAC));
        }
    }

    #[test]
    fn what_another_host_says_is_checked() {
        let good = ForkNetwork {
            of: Member {
                family: "0123456789ab".into(),
                number: 0,
                key: "0f".repeat(32),
                hosts: Vec::new(),
                given: 0,
            },
        };
        good.check().unwrap();
        let bad: [fn(&mut Member); 5] = [
            |of| of.family = "../../../etc".into(),
            |of| of.key = "0f".repeat(31),
            |of| of.key = "é".repeat(32),
            |of| of.number = u32::MAX,
            |of| of.hosts = vec![String::new(); HOSTS_MAX + 1],
        ];
        for change in bad {
            let mut network = good.clone();
            change(&mut network.of);
            assert!(network.check().is_err(), "{network:?}");
        }
    }
}
