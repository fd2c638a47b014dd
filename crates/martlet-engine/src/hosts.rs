//! The hosts of a fleet, of which this is one.
//!
//! ```text
//!   alone ──init──► first: has the fleet's key, invites ──┐
//!     └────join─────────────────────────────────────────► a host: serves and asks the others
//! ```
//!
//! Who is in the fleet is said by the first host; the others know what they have heard from it.

use crate::engine::{Engine, lock};
use crate::problem::{Tell, Told, problem};
use martlet_api::{
    HostInfo, HostInitRequest, HostInvitationInfo, HostJoinRequest, Problem, ProblemCode, RealmJoinRequest,
};
use martlet_peer::{
    AccessLine, Audit, Code, Fleet, HostEntry, HostIdentity, HostInvitation, Inviter, Newcomer, Patience,
    PeerClient, PeerError, Refusal, Removed, Secret, TokenBook, Validity, Welcome,
};
use martlet_source::SourceError;
use martlet_store::{Key, Store, Verified};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak};
use std::time::{Duration, SystemTime};

/// Setting in the state database.
const HOST: &str = "host";
/// How long a host that is only asked who is there is waited for.
const HEARING: Patience = Patience {
    connect: Duration::from_secs(3),
    answer: Duration::from_secs(5),
    stall: Duration::from_secs(5),
};
/// The audit log is cut when it is larger.
const AUDIT_BYTES: u64 = 8 << 20;

/// What this host knows of its fleet.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    identity: HostIdentity,
    address: String,
    /// The key that signs, on the first host.
    fleet: Option<Fleet>,
    tokens: TokenBook,
    hosts: Vec<HostEntry>,
    removed: BTreeSet<String>,
}

/// A host, and what it answered or why it did not. This one is not asked.
pub(crate) type Asked<T> = (HostEntry, Option<Result<T, String>>);

/// What hosts tell each other of the fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roll {
    /// Its hosts.
    pub hosts: Vec<HostEntry>,
    /// Those that were removed.
    pub removed: BTreeSet<String>,
}

/// What is shared with the server for other hosts.
#[derive(Debug)]
pub struct Fellowship {
    removed: Removed,
    /// Is this host in a fleet?
    joined: Mutex<bool>,
    changed: Condvar,
    /// Opened when it is first needed.
    audit: OnceLock<Arc<Audit>>,
}

impl Default for Fellowship {
    fn default() -> Self {
        Self {
            removed: Removed::new([]),
            joined: Mutex::default(),
            changed: Condvar::new(),
            audit: OnceLock::new(),
        }
    }
}

/// What a server for other hosts needs.
pub struct PeerService {
    /// What this host shows.
    pub identity: HostIdentity,
    /// Where it is to listen, if that is nobody else's to say.
    pub address: String,
    /// Hosts that are not served any more.
    pub removed: Removed,
    /// What is served.
    pub store: Arc<Store>,
    /// May a host do this? It is noted.
    pub policy: martlet_peer::Policy,
    /// Lets hosts in, if this one does.
    pub inviter: Option<Arc<dyn Inviter>>,
}

impl Engine {
    fn known_host(&self) -> Result<Option<Known>, Problem> {
        self.state.setting(HOST).told()
    }

    /// Are there other hosts in its fleet?
    pub(crate) fn has_fellows(&self) -> Result<bool, Problem> {
        let is_other = |known: Known| known.hosts.iter().any(|host| host.name != known.identity.name);
        Ok(self.known_host()?.is_some_and(is_other))
    }

    fn this_host(&self) -> Result<Known, Problem> {
        self.known_host()?.ok_or_else(no_fleet)
    }

    /// Changes what is known of the fleet, in one transaction.
    fn change_host<T>(&self, change: impl FnOnce(&mut Known) -> T) -> Result<T, Problem> {
        let mut answer = None;
        let changed = self.state.change_setting(HOST, |known: Option<Known>| {
            let mut known = known.ok_or_else(no_fleet)?;
            answer = Some(change(&mut known));
            Ok(known)
        });
        changed.told()??;
        answer.ok_or_else(no_fleet)
    }

    /// This host is in a fleet from now on.
    fn be_host(&self, known: Known) -> Result<(), Problem> {
        let made = self
            .state
            .change_setting(HOST, |there: Option<Known>| match there {
                None => Ok(known),
                Some(there) => Err(Problem::new(
                    ProblemCode::AlreadyExists,
                    format!("this host is in a fleet already, as {}", there.identity.name),
                )),
            });
        made.told()??;
        *lock(&self.fellowship.joined) = true;
        self.fellowship.changed.notify_all();
        Ok(())
    }

    /// Makes a fleet of which this is the first host.
    pub fn host_init(self: &Arc<Self>, request: HostInitRequest) -> Result<Vec<HostInfo>, Problem> {
        check_address(&request.address)?;
        let fleet = Fleet::create(&request.name, Validity::of_fleet()).told()?;
        let identity = fleet.host(&request.name, Validity::of_host()).told()?;
        self.be_host(Known {
            hosts: vec![HostEntry {
                name: request.name,
                address: request.address.clone(),
            }],
            identity,
            address: request.address,
            fleet: Some(fleet),
            tokens: TokenBook::default(),
            removed: BTreeSet::new(),
        })?;
        self.hosts()
    }

    /// A line by which one more host can join.
    pub fn host_invite(&self) -> Result<HostInvitationInfo, Problem> {
        let invitation = self.change_host(|known| {
            let fleet = known.fleet.as_ref().ok_or_else(|| {
                Problem::new(
                    ProblemCode::WrongState,
                    "only the first host of a fleet invites others",
                )
            })?;
            let (address, port) = check_address(&known.address)?;
            let token = known.tokens.add(TokenBook::LASTS, SystemTime::now());
            HostInvitation::new(address, port, token, &fleet.ca_pem).told()
        })??;
        Ok(HostInvitationInfo {
            invitation: invitation.to_string(),
        })
    }

    /// Joins the fleet of another host.
    pub fn host_join(self: &Arc<Self>, request: HostJoinRequest) -> Result<Vec<HostInfo>, Problem> {
        check_address(&request.address)?;
        if let Some(known) = self.known_host()? {
            let words = format!("this host is in a fleet already, as {}", known.identity.name);
            return Err(Problem::new(ProblemCode::AlreadyExists, words));
        }
        let own = HostEntry {
            name: request.name,
            address: request.address.clone(),
        };
        let joined = martlet_peer::join(&request.invitation, &own, Patience::default()).told()?;
        self.be_host(Known {
            identity: joined.identity,
            address: request.address,
            fleet: None,
            tokens: TokenBook::default(),
            hosts: joined.hosts,
            removed: BTreeSet::new(),
        })?;
        // So that what one pushes to a remote another can pull. A realm of one's own stays what it is.
        let realm = self.realm_join(&RealmJoinRequest {
            invitation: joined.extra,
            name: None,
        });
        if let Err(problem) = realm {
            tracing::info!(%problem, "the realm of the fleet was not joined");
        }
        self.hosts()
    }

    /// Asks all other hosts of the fleet something, at the same time, with little patience. Every host is in the answer, in their
    /// order.
    pub(crate) fn ask_hosts<T: Send>(
        &self,
        ask: impl Fn(PeerClient) -> Result<T, String> + Sync,
    ) -> Result<Vec<Asked<T>>, Problem> {
        let Some(known) = self.known_host()? else {
            return Ok(Vec::new());
        };
        let asked = |host: &HostEntry| {
            let client = PeerClient::new(&known.identity, &host.name, &host.address, HEARING);
            client.map_err(|error| error.to_string()).and_then(&ask)
        };
        std::thread::scope(|scope| {
            let asking = known.hosts.iter().map(|host| {
                let is_this = host.name == known.identity.name;
                (host, (!is_this).then(|| scope.spawn(|| asked(host))))
            });
            let asking: Vec<_> = asking.collect();
            let answers = asking.into_iter().map(|(host, thread)| {
                let answer = thread.map(|thread| {
                    let answer = thread.join();
                    answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                });
                (host.clone(), answer)
            });
            Ok(answers.collect())
        })
    }

    /// The hosts of the fleet; each is asked whether it answers.
    pub fn hosts(self: &Arc<Self>) -> Result<Vec<HostInfo>, Problem> {
        let asked = self.ask_hosts(|client| client.get("/peer/roll").map_err(|error| error.to_string()))?;
        let mut problems = std::collections::BTreeMap::new();
        // The first host lets others in: only what it says of the fleet is believed.
        for (at, (host, answer)) in asked.into_iter().enumerate() {
            match answer {
                Some(Ok(roll)) if at == 0 => self.believe(roll),
                Some(Err(problem)) => drop(problems.insert(host.name, problem)),
                Some(Ok(_)) | None => {}
            }
        }
        let Some(known) = self.known_host()? else {
            return Ok(Vec::new());
        };
        let info = |host: HostEntry| HostInfo {
            is_this: host.name == known.identity.name,
            answers: !problems.contains_key(&host.name),
            problem: problems.remove(&host.name),
            name: host.name,
            address: host.address,
        };
        Ok(known.hosts.into_iter().map(info).collect())
    }

    /// Takes over what the first host says of the fleet.
    fn believe(&self, roll: Roll) {
        let changed = self.change_host(|known| {
            known.removed.extend(roll.removed);
            for host in roll.hosts {
                if !known.hosts.iter().any(|there| there.name == host.name) {
                    known.hosts.push(host);
                }
            }
            known.hosts.retain(|host| !known.removed.contains(&host.name));
            known
                .removed
                .iter()
                .for_each(|name| self.fellowship.removed.add(name));
        });
        if let Err(problem) = changed {
            tracing::warn!(%problem, "what another host said of the fleet is not remembered");
        }
    }

    /// Has a host be none of the fleet any more.
    pub fn host_remove(&self, name: &str) -> Result<(), Problem> {
        self.change_host(|known| {
            if name == known.identity.name {
                return Err(
                    Problem::new(ProblemCode::InvalidArgument, "a host does not remove itself")
                        .remediation("remove it on another one"),
                );
            }
            if !known.hosts.iter().any(|host| host.name == name) {
                return Err(no_host(name));
            }
            known.hosts.retain(|host| host.name != name);
            known.removed.insert(name.to_owned());
            Ok(())
        })??;
        self.fellowship.removed.add(name);
        Ok(())
    }

    /// What this host says of the fleet.
    pub fn roll(&self) -> Roll {
        let known = self.known_host().ok().flatten();
        known.map_or_else(Roll::default, |known| Roll {
            hosts: known.hosts,
            removed: known.removed,
        })
    }

    /// Is this host called so?
    pub(crate) fn is_this(&self, name: &str) -> Result<bool, Problem> {
        Ok(self
            .known_host()?
            .is_some_and(|known| known.identity.name == name))
    }

    /// What this host is called, if it is in a fleet.
    pub(crate) fn this_name(&self) -> Result<Option<String>, Problem> {
        Ok(self.known_host()?.map(|known| known.identity.name))
    }

    /// The other hosts of the fleet.
    pub(crate) fn other_hosts(&self) -> Result<Vec<String>, Problem> {
        let Some(known) = self.known_host()? else {
            return Ok(Vec::new());
        };
        let names = known.hosts.into_iter().map(|host| host.name);
        Ok(names.filter(|name| *name != known.identity.name).collect())
    }

    /// Another host of the fleet, if it has one of this name.
    pub(crate) fn peer(&self, name: &str) -> Result<Option<PeerClient>, Problem> {
        let Some(known) = self.known_host()? else {
            return Ok(None);
        };
        let host = known.hosts.iter().find(|host| host.name == name);
        let client =
            host.map(|host| PeerClient::new(&known.identity, &host.name, &host.address, Patience::default()));
        client.transpose().told()
    }

    /// Where a host of the fleet is to be found.
    pub(crate) fn address_of(&self, name: &str) -> Option<String> {
        let hosts = self.known_host().ok()??.hosts;
        hosts
            .into_iter()
            .find(|host| host.name == name)
            .map(|host| host.address)
    }

    /// Waits until this host is in a fleet, and says what is to be served then; `None` when it is to stop.
    pub fn wait_for_fleet(self: &Arc<Self>) -> Result<Option<PeerService>, Problem> {
        let joined = lock(&self.fellowship.joined);
        let joined = self
            .fellowship
            .changed
            .wait_while(joined, |joined| !*joined && !self.away.is_stopping());
        drop(joined);
        let Some(known) = self.known_host()?.filter(|_| !self.away.is_stopping()) else {
            return Ok(None);
        };
        known
            .removed
            .iter()
            .for_each(|name| self.fellowship.removed.add(name));
        let audit = self.audit()?;
        let inviter: Option<Arc<dyn Inviter>> = match known.fleet {
            Some(fleet) => Some(Arc::new(Invites {
                engine: Arc::downgrade(self),
                fleet,
            })),
            None => None,
        };
        Ok(Some(PeerService {
            identity: known.identity,
            address: known.address,
            removed: self.fellowship.removed.clone(),
            store: self.store.clone(),
            policy: crate::host_policy::noting(audit),
            inviter,
        }))
    }

    /// Where it is noted what others do here.
    pub(crate) fn audit(&self) -> Result<Arc<Audit>, Problem> {
        if let Some(audit) = self.fellowship.audit.get() {
            return Ok(audit.clone());
        }
        let path = self.dirs.state.join("audit.log");
        let opened = Audit::open(&path, AUDIT_BYTES);
        let opened = opened.map_err(|error| crate::problem::io("write", &path, &error))?;
        Ok(self.fellowship.audit.get_or_init(|| opened.into()).clone())
    }

    /// What leads a person with this secret to this host.
    pub(crate) fn access(&self, secret: Secret) -> Result<AccessLine, Problem> {
        let known = self.this_host()?;
        let (address, port) = check_address(&known.address)?;
        let identity = &known.identity;
        AccessLine::new(&identity.name, address, port, secret, &identity.ca_pem).told()
    }

    /// Is the daemon to end?
    pub fn is_ending(&self) -> bool {
        self.away.is_stopping()
    }

    /// Is there something to do without being asked: do other hosts ask, do snapshots come?
    pub fn is_at_work(&self) -> bool {
        *lock(&self.fellowship.joined)
            || self.holds_lines()
            || self.follows_any()
            || self.away.all().iter().any(|id| !self.away.is_on_demand(id))
    }

    /// Finds out whether this host is in a fleet.
    pub(crate) fn recover_host(&self) -> Result<(), Problem> {
        *lock(&self.fellowship.joined) = self.known_host()?.is_some();
        Ok(())
    }

    /// Ends the wait for a fleet.
    pub(crate) fn stop_waiting_for_fleet(&self) {
        drop(lock(&self.fellowship.joined));
        self.fellowship.changed.notify_all();
    }
}

/// Lets hosts in.
struct Invites {
    engine: Weak<Engine>,
    fleet: Fleet,
}

impl Inviter for Invites {
    fn fleet(&self) -> Fleet {
        self.fleet.clone()
    }

    fn admit(&self, newcomer: &Newcomer) -> Result<Welcome, Refusal> {
        let engine = self.engine.upgrade();
        let engine = engine.ok_or_else(|| Refusal::new(Code::Busy, "the daemon is ending"))?;
        let failed = |problem: Problem| Refusal::new(Code::Busy, problem.message);
        let name = &newcomer.host.name;
        let admitted = engine.change_host(|known| {
            if known.removed.contains(name) || known.hosts.iter().any(|host| host.name == *name) {
                let words = format!("the fleet has had a host {name}");
                return Err(Refusal::new(Code::NameTaken, words));
            }
            known.tokens.redeem(&newcomer.token, SystemTime::now())?;
            known.hosts.push(newcomer.host.clone());
            Ok(known.hosts.clone())
        });
        let hosts = admitted.map_err(failed)??;
        let _ = engine.realm(crate::realms::DEFAULT_REALM).map_err(failed)?; // made, if there is none
        let extra = engine
            .realm_share(crate::realms::DEFAULT_REALM)
            .map_err(failed)?
            .invitation;
        Ok(Welcome { hosts, extra })
    }
}

/// A host as a place that has what is away.
#[derive(Debug)]
pub struct PeerPlace(pub PeerClient);

impl crate::place::Place for PeerPlace {
    fn name(&self) -> String {
        format!("host {}", self.0.peer())
    }

    fn objects(
        &self,
        keys: &[Key],
        each: &mut dyn FnMut(Verified) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let mut refused = None;
        let got = self.0.receive(keys, &mut |stored| {
            if let Err(error) = stored.verify().map_err(SourceError::from).and_then(&mut *each) {
                refused.get_or_insert(error);
            }
            Ok(())
        });
        if let Some(error) = refused {
            return Err(error);
        }
        let unavailable = |reason: String| SourceError::Unavailable {
            place: self.name(),
            action: "give objects",
            reason,
        };
        match got {
            Ok(lacking) => match lacking.first() {
                Some(key) => Err(SourceError::Incomplete {
                    place: self.name(),
                    object: key.to_string(),
                }),
                None => Ok(()),
            },
            Err(PeerError::Store(error)) => Err(error.into()),
            Err(error) => Err(unavailable(error.to_string())),
        }
    }
}

/// The two parts of `ADDRESS:PORT`.
fn check_address(address: &str) -> Result<(&str, u16), Problem> {
    let parts = address.rsplit_once(':').and_then(|(host, port)| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Some((host, port.parse().ok().filter(|port| *port > 0)?)).filter(|(host, _)| !host.is_empty())
    });
    parts.ok_or_else(|| {
        Problem::new(
            ProblemCode::InvalidArgument,
            format!("{address:?} is no address of a host"),
        )
        .remediation("ADDRESS:PORT is one, where the other hosts reach this one (192.0.2.7:7077)")
    })
}

fn no_fleet() -> Problem {
    Problem::new(ProblemCode::WrongState, "this host is in no fleet").remediation(
        "`martlet host init NAME ADDRESS:PORT` makes one, `martlet host join` joins that of another host",
    )
}

pub(crate) fn no_host(name: &str) -> Problem {
    Problem::new(ProblemCode::NotFound, format!("there is no host {name}"))
        .remediation("`martlet host ls` lists those there are")
}

impl Tell for PeerError {
    fn tell(self) -> Problem {
        let retry = self.is_retryable();
        let (code, remedy) = match self {
            Self::Store(error) => return error.tell(),
            Self::NoSnapshot { .. } => (
                ProblemCode::NotFound,
                "`martlet remote ls HOST` lists what it has",
            ),
            Self::Incomplete { .. } | Self::Wrong { .. } => (
                ProblemCode::Damaged,
                "`martlet verify` on that host says what it has lost",
            ),
            Self::BadInvitation(_) => (
                ProblemCode::InvalidArgument,
                "`martlet host invite` on the first host of the fleet prints one",
            ),
            Self::WrongCertificate { .. }
            | Self::Expired { .. }
            | Self::Removed { .. }
            | Self::Stranger { .. } => (
                ProblemCode::PermissionDenied,
                "`martlet host ls` says who is in the fleet",
            ),
            Self::Refused { code, .. } => match code {
                Code::NameTaken => (ProblemCode::AlreadyExists, "choose another name"),
                Code::NoSpace => (ProblemCode::NoSpace, "make room on that host's disk"),
                Code::NotFound => (ProblemCode::NotFound, ""),
                Code::Busy => (ProblemCode::Busy, "do it again in a while"),
                Code::Failed => (ProblemCode::Internal, "the log of that host's martletd says more"),
                _ => (ProblemCode::PermissionDenied, ""),
            },
            _ => (
                ProblemCode::Busy,
                "see whether that host can be reached, and do it again",
            ),
        };
        Problem {
            retry,
            ..problem(code, &self, remedy)
        }
    }
}
