//! The calls, as functions.

use crate::connection::{self, call};
use crate::error::{Error, ErrorKind, Result};
use crate::process::{self, Side};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use martlet_agent_api::guest::{DATA_BYTES, FailedClone, GuestAnswer, GuestCall, GuestErrorKind};
use std::convert::Infallible;
use std::io::Write;
use std::ops::Range;
use std::time::Duration;

/// Most processes that are started in a clone, whatever the agent says.
const PROCESSES_MOST: u32 = 4096;

/// How often a call that was interrupted is repeated: for a minute, in which a daemon is long started anew.
const TRIES_MOST: u32 = 32;
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LONGEST: Duration = Duration::from_secs(2);

/// What a ticket is to be.
#[derive(Debug, Clone, Default)]
pub struct TicketOptions {
    /// As many processes in each clone as it has processors: fewer VMs.
    pub hierarchical: bool,
    /// Each clone is ended so long after its start. In whole seconds, rounded up.
    pub timeout: Option<Duration>,
}

/// Room for clones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// What calls call it.
    pub name: String,
    /// For how many processes: at least 1, at most what was asked for.
    pub granted: u32,
}

impl AsRef<str> for Ticket {
    fn as_ref(&self) -> &str {
        &self.name
    }
}

/// What the parent waits for when it forks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until its clones run, or have failed to.
    Running,
    /// For nothing.
    No,
}

/// A VM fork returned, and this process is the only one that knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClonedVm {
    /// In the parent.
    Parent {
        /// Processes whose clone did not start.
        failed: Vec<FailedClone>,
    },
    /// In a clone.
    Child(Processes),
}

/// The processes that are to work in a clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processes {
    /// Number of the first, 1 and up.
    pub first: u32,
    /// How many, with ids from this one up.
    pub count: u32,
}

impl Processes {
    /// Their numbers.
    pub fn ids(&self) -> Range<u32> {
        self.first..self.first + self.count
    }
}

/// A fork returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cloned {
    /// In the parent.
    Parent {
        /// Processes whose clone did not start.
        failed: Vec<FailedClone>,
    },
    /// In a process of a clone.
    Child {
        /// Its number, 1 and up.
        id: u32,
    },
}

/// A checkpoint returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checkpointed {
    /// In the VM that was saved.
    Saved {
        /// To be given to [`Guest::create_clones`].
        checkpoint: String,
    },
    /// In a process of a clone of what was saved.
    Child {
        /// Its number, 1 and up.
        id: u32,
    },
}

/// A checkpoint returned, and this process is the only one that knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointedVm {
    /// In the VM that was saved.
    Saved {
        /// To be given to [`Guest::create_clones`].
        checkpoint: String,
    },
    /// In a clone of what was saved.
    Child(Processes),
}

/// A process of a clone ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exited {
    /// Which.
    pub id: u32,
    /// What it gave to [`Guest::exit`]; none when its clone ended otherwise.
    pub status: Option<i32>,
    /// The data that it gave.
    pub data: Vec<u8>,
    /// Why its clone ended otherwise.
    pub problem: Option<String>,
}

impl Exited {
    /// Did it exit with status 0?
    pub fn success(&self) -> bool {
        self.status == Some(0)
    }
}

/// Who a VM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// 0 in a VM that is nobody's clone by such a call; else the number of its first process.
    pub id: u32,
    /// What parent and clones have in common: the parent's id at its host.
    pub family: String,
    /// How many processes the family has, without the parent's; 0 when there is none.
    pub size: u32,
    /// The VM's name at its host.
    pub name: String,
}

/// The VM that this program runs in.
#[derive(Debug, Clone)]
pub struct Guest {
    /// This process's number, once it is known to be one of a clone. It stays so: a clone cannot fork again.
    id: Option<u32>,
}

impl Guest {
    /// Finds out whether there is an agent; each call makes a connection of its own.
    pub fn connect() -> Result<Self> {
        connection::connect()?;
        Ok(Self { id: None })
    }

    /// Asks for room for `count` processes in clones of this VM; fewer may be granted.
    pub fn request_ticket(&self, count: u32, options: TicketOptions) -> Result<Ticket> {
        let timeout_s = options.timeout.map(|timeout| {
            timeout
                .as_secs()
                .saturating_add(u64::from(timeout.subsec_nanos() > 0))
        });
        let asked = GuestCall::Ticket {
            count,
            hierarchical: options.hierarchical,
            timeout_s,
        };
        match call(&asked)? {
            GuestAnswer::Ticket { ticket, granted } if (1..=count).contains(&granted) => Ok(Ticket {
                name: ticket,
                granted,
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// Forks the VM, then, in the clones of a hierarchical ticket, this process: returns in all of them. What is shared
    /// by threads must be at rest, as for fork(2): a new process has this thread only.
    pub fn fork(&mut self, ticket: impl AsRef<str>, wait: Wait) -> Result<Cloned> {
        Ok(match self.clone_vm(ticket, wait)? {
            ClonedVm::Parent { failed } => Cloned::Parent { failed },
            ClonedVm::Child(processes) => Cloned::Child {
                id: self.start(&processes),
            },
        })
    }

    /// Forks the VM, and leaves it to the caller to start the other processes of a hierarchical ticket.
    pub fn clone_vm(&self, ticket: impl AsRef<str>, wait: Wait) -> Result<ClonedVm> {
        flush();
        let asked = GuestCall::Clone {
            ticket: ticket.as_ref().to_owned(),
            wait: wait == Wait::Running,
        };
        cloned(call(&asked)?)
    }

    /// Saves the VM's state. Returns in this VM, and, when [`Guest::create_clones`] starts them, in clones of the state.
    pub fn checkpoint(&mut self) -> Result<Checkpointed> {
        Ok(match self.checkpoint_vm()? {
            CheckpointedVm::Saved { checkpoint } => Checkpointed::Saved { checkpoint },
            CheckpointedVm::Child(processes) => Checkpointed::Child {
                id: self.start(&processes),
            },
        })
    }

    /// Saves the VM's state, and leaves it to the caller to start the other processes of a clone.
    pub fn checkpoint_vm(&self) -> Result<CheckpointedVm> {
        flush();
        match call(&GuestCall::Checkpoint)? {
            GuestAnswer::Checkpoint { checkpoint } => Ok(CheckpointedVm::Saved { checkpoint }),
            answer => match cloned(answer)? {
                ClonedVm::Child(processes) => Ok(CheckpointedVm::Child(processes)),
                ClonedVm::Parent { .. } => Err(Error::protocol("a checkpoint was answered as a fork")),
            },
        }
    }

    /// Starts clones of a checkpoint; they go on where it was taken. Says which did not start.
    pub fn create_clones(
        &self,
        checkpoint: &str,
        ticket: impl AsRef<str>,
        wait: Wait,
    ) -> Result<Vec<FailedClone>> {
        let asked = GuestCall::CreateClones {
            checkpoint: checkpoint.to_owned(),
            ticket: ticket.as_ref().to_owned(),
            wait: wait == Wait::Running,
        };
        match cloned(call(&asked)?)? {
            ClonedVm::Parent { failed } => Ok(failed),
            ClonedVm::Child(_) => Err(Error::protocol("clones of a checkpoint began elsewhere")),
        }
    }

    /// Ends this process of a clone, and hands `data`, at most [`DATA_BYTES`], to the parent. Returns only when it could not.
    pub fn exit(&self, status: i32, data: &[u8]) -> Result<Infallible> {
        check_length(data)?;
        let id = self.vmid()?;
        flush();
        self.end_process(id, status, data)?;
        process::exit_now(status)
    }

    /// Says that a process of this clone has ended. Returns when others go on.
    pub fn end_process(&self, id: u32, status: i32, data: &[u8]) -> Result<()> {
        check_length(data)?;
        if id == 0 {
            return Err(Error::invalid(
                "only a clone can exit; this VM is nobody's clone by such a call",
            ));
        }
        let asked = GuestCall::Exit {
            id,
            status,
            data: BASE64.encode(data),
        };
        match persist(&asked)? {
            GuestAnswer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Waits for the end of all of a ticket's processes, and discards the ticket. In the order in which they ended.
    pub fn join(&self, ticket: impl AsRef<str>) -> Result<Vec<Exited>> {
        let mut exits = Vec::new();
        self.join_each(ticket, |exited| exits.push(exited))?;
        Ok(exits)
    }

    /// The same, and tells of each end as it comes.
    pub fn join_each(&self, ticket: impl AsRef<str>, mut tell: impl FnMut(Exited)) -> Result<()> {
        let ticket = ticket.as_ref();
        for seen in 0.. {
            let asked = GuestCall::NextExit {
                ticket: ticket.to_owned(),
                seen,
            };
            match persist(&asked)? {
                GuestAnswer::Exited {
                    id,
                    status,
                    data,
                    problem,
                } => tell(Exited {
                    id,
                    status,
                    data: decode(&data)?,
                    problem,
                }),
                GuestAnswer::Over => break,
                other => return Err(unexpected(&other)),
            }
        }
        // What was asked for is known. A ticket that stays is the host's to clear away.
        let _ = self.kill(ticket);
        Ok(())
    }

    /// Ends all clones of a ticket, and the ticket. Returns how many were ended.
    pub fn kill(&self, ticket: impl AsRef<str>) -> Result<u32> {
        let ticket = ticket.as_ref().to_owned();
        match persist(&GuestCall::Kill { ticket })? {
            GuestAnswer::Killed { clones } => Ok(clones),
            other => Err(unexpected(&other)),
        }
    }

    /// This process's number: 0 in a VM that is nobody's clone by such a call.
    pub fn vmid(&self) -> Result<u32> {
        match self.id {
            Some(id) => Ok(id),
            None => Ok(self.family()?.id),
        }
    }

    /// Who this VM is.
    pub fn family(&self) -> Result<Family> {
        match persist(&GuestCall::Me)? {
            GuestAnswer::Me {
                id,
                family,
                size,
                name,
            } => Ok(Family {
                id,
                family,
                size,
                name,
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// Starts the other processes of a clone. Returns in each of them with its number.
    fn start(&mut self, processes: &Processes) -> u32 {
        self.id = Some(processes.first);
        for id in processes.ids().skip(1) {
            match process::fork() {
                Ok(Side::Parent) => {}
                Ok(Side::Child) => {
                    self.id = Some(id);
                    return id;
                }
                Err(error) => {
                    // Its parent waits for it. If that cannot be told either, the clone's end tells it.
                    let _ = self.end_process(id, 1, format!("cannot fork: {error}").as_bytes());
                }
            }
        }
        processes.first
    }
}

/// Calls, and calls again when the host's side was lost: for calls that may be repeated.
fn persist(asked: &GuestCall) -> Result<GuestAnswer> {
    let mut pause = PAUSE_FIRST;
    for tries in 0..TRIES_MOST {
        match call(asked) {
            Err(error) if passes(error.kind, tries) => std::thread::sleep(pause),
            answered => return answered,
        }
        pause = PAUSE_LONGEST.min(pause * 2);
    }
    call(asked)
}

/// May it be well in a moment? An agent that was there and is not is being started anew.
fn passes(kind: ErrorKind, tries: u32) -> bool {
    match kind {
        ErrorKind::Refused(GuestErrorKind::Interrupted) | ErrorKind::Lost => true,
        ErrorKind::Absent => tries > 0,
        _ => false,
    }
}

/// What is written but not yet out would come out once from each clone.
fn flush() {
    let _ = std::io::stdout().flush(); // stderr has no buffer
}

fn cloned(answer: GuestAnswer) -> Result<ClonedVm> {
    match answer {
        GuestAnswer::Cloned { id: 0, failed, .. } => Ok(ClonedVm::Parent { failed }),
        GuestAnswer::Cloned { id, processes, .. }
            if (1..=PROCESSES_MOST).contains(&processes) && id.checked_add(processes).is_some() =>
        {
            Ok(ClonedVm::Child(Processes {
                first: id,
                count: processes,
            }))
        }
        other => Err(unexpected(&other)),
    }
}

fn check_length(data: &[u8]) -> Result<()> {
    if data.len() > DATA_BYTES {
        return Err(Error::invalid(format!(
            "{} bytes of data are more than the {DATA_BYTES} that a clone can hand over; write them where its parent can read them",
            data.len()
        )));
    }
    Ok(())
}

fn decode(data: &str) -> Result<Vec<u8>> {
    match BASE64.decode(data) {
        Ok(data) if data.len() <= DATA_BYTES => Ok(data),
        _ => Err(Error::protocol(
            "the data of a process that ended are not understood",
        )),
    }
}

fn unexpected(answer: &GuestAnswer) -> Error {
    let words: String = format!("{answer:?}").chars().take(200).collect();
    Error::protocol(format!("the agent's answer makes no sense here: {words}"))
}
