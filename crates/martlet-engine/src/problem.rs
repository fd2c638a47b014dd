//! Errors of the rooms below, told as problems: what happened, why, what to do.

use crate::state::StateError;
use martlet_api::{Problem, ProblemCode};
use martlet_base::BaseError;
use martlet_disk::DiskError;
use martlet_fuse::{RegistryError, ServerError};
use martlet_pager::SourceError;
use martlet_store::StoreError;
use martlet_vm::agent::AgentError;
use martlet_vm::{RunningVm, VmError};
use std::path::Path;

const MAKE_ROOM: &str = "make room (`martlet gc` frees what nothing refers to, `martlet df` shows where the space goes) and try again; nothing that was saved is lost";
const VERIFY: &str = "`martlet verify` names what is damaged and whom it hurts, and `--repair-from DIR` mends it from another store";
const LOOK_AT_GUEST: &str =
    "`martlet logs NAME` shows the guest's console, `martlet kill NAME` ends a guest that hangs";

/// Words for an error of a lower room.
pub trait Tell {
    /// The problem it is.
    fn tell(self) -> Problem;
}

/// `store.frame(id).told()?`
pub trait Told<T> {
    /// The lower error as a problem.
    fn told(self) -> Result<T, Problem>;
    /// The lower error as the cause of `message`.
    fn told_as(self, message: impl Into<String>) -> Result<T, Problem>;
}

impl<T, E: Tell> Told<T> for Result<T, E> {
    fn told(self) -> Result<T, Problem> {
        self.map_err(Tell::tell)
    }
    fn told_as(self, message: impl Into<String>) -> Result<T, Problem> {
        self.map_err(|error| {
            let lower = error.tell();
            let cause = match &lower.cause {
                Some(cause) => format!("{}: {cause}", lower.message),
                None => lower.message.clone(),
            };
            Problem {
                message: message.into(),
                cause: Some(cause),
                ..lower
            }
        })
    }
}

/// A machine stands still, because a write of its guest found the disk full.
pub fn out_of_room(message: impl Into<String>) -> Problem {
    Problem::new(ProblemCode::NoSpace, message)
        .cause("there was no space for a write of its guest, which stands still until there is")
        .remediation(MAKE_ROOM)
}

/// Why a guest did not do what it was asked: perhaps it stands still because the disk is full.
pub fn of_guest(vm: &RunningVm, problem: Problem) -> Problem {
    let is_silent = matches!(
        problem.code,
        ProblemCode::GuestFailed | ProblemCode::HypervisorFailed
    );
    match is_silent && vm.is_alive() && vm.is_out_of_room() {
        true => out_of_room(problem.message),
        false => problem,
    }
}

pub(crate) fn problem(code: ProblemCode, error: &dyn std::error::Error, remedy: &str) -> Problem {
    let problem = Problem::new(code, error.to_string());
    if remedy.is_empty() {
        problem
    } else {
        problem.remediation(remedy)
    }
}

/// A file operation of the engine's own.
pub fn io(action: &str, path: &Path, error: &std::io::Error) -> Problem {
    let code = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ProblemCode::NoSpace,
        std::io::ErrorKind::PermissionDenied => ProblemCode::PermissionDenied,
        _ => ProblemCode::Internal,
    };
    let told = Problem::new(code, format!("cannot {action} {}", path.display())).cause(error);
    if code == ProblemCode::NoSpace {
        told.remediation(MAKE_ROOM)
    } else {
        told
    }
}

impl Tell for StateError {
    fn tell(self) -> Problem {
        match self.is_no_space() {
            true => problem(ProblemCode::NoSpace, &self, MAKE_ROOM),
            false => problem(ProblemCode::Internal, &self, ""),
        }
    }
}

impl Tell for RegistryError {
    fn tell(self) -> Problem {
        problem(ProblemCode::Internal, &self, "")
    }
}

impl Tell for ServerError {
    fn tell(self) -> Problem {
        problem(ProblemCode::Internal, &self, "`martlet doctor` checks FUSE")
    }
}

impl Tell for SourceError {
    fn tell(self) -> Problem {
        let code = match &self {
            SourceError::Missing { .. } | SourceError::Damaged { .. } | SourceError::Apart { .. } => {
                ProblemCode::Damaged
            }
            SourceError::Io { .. } => ProblemCode::Internal,
        };
        Problem {
            retry: self.is_retryable(),
            ..problem(code, &self, VERIFY)
        }
    }
}

impl Tell for DiskError {
    fn tell(self) -> Problem {
        match self {
            DiskError::Source(source) => source.tell(),
            DiskError::Io { .. } if self.errno() == libc::ENOSPC => {
                problem(ProblemCode::NoSpace, &self, MAKE_ROOM)
            }
            DiskError::Damaged { .. } => problem(
                ProblemCode::Damaged,
                &self,
                "go back to a snapshot: `martlet rollback NAME SNAPSHOT`",
            ),
            DiskError::InUse { .. } => problem(ProblemCode::InUse, &self, ""),
            _ => problem(ProblemCode::Internal, &self, ""),
        }
    }
}

impl Tell for BaseError {
    fn tell(self) -> Problem {
        let retry = self.is_retryable();
        let (code, remedy) = match &self {
            _ if self.is_no_space() => (ProblemCode::NoSpace, MAKE_ROOM),
            BaseError::MissingTool { .. } => (
                ProblemCode::MissingDependency,
                "`martlet doctor` lists all that is missing",
            ),
            BaseError::Invalid(_) | BaseError::TooSmall { .. } | BaseError::BadSource { .. } => {
                (ProblemCode::InvalidArgument, "")
            }
            BaseError::NeedsRoot { .. } => (ProblemCode::PermissionDenied, ""),
            BaseError::Download { .. } => (
                ProblemCode::MissingDependency,
                "check the network and the package sources, and try again",
            ),
            _ => (ProblemCode::Internal, ""),
        };
        Problem {
            retry,
            ..problem(code, &self, remedy)
        }
    }
}

impl Tell for VmError {
    fn tell(self) -> Problem {
        let retry = self.is_retryable();
        let (code, remedy) = match &self {
            VmError::QemuMissing { .. } | VmError::QemuTooOld { .. } | VmError::NotQemu { .. } => (
                ProblemCode::MissingDependency,
                "`apt-get install qemu-system-x86`, or name another with MARTLET_QEMU",
            ),
            VmError::Incompatible(_) => (
                ProblemCode::Incompatible,
                "resume it on a host (or with a QEMU, see MARTLET_QEMU) that has what it needs",
            ),
            VmError::BadSpec(_) => (ProblemCode::InvalidArgument, ""),
            VmError::BadDescriptor { .. } => (ProblemCode::Damaged, VERIFY),
            VmError::Memory { .. } => (
                ProblemCode::HypervisorFailed,
                "`martlet doctor` checks what reading guest memory needs",
            ),
            VmError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                (ProblemCode::NoSpace, MAKE_ROOM)
            }
            _ => (
                ProblemCode::HypervisorFailed,
                "`martlet logs NAME` shows the guest's console, `martlet doctor` checks the host",
            ),
        };
        Problem {
            retry,
            ..problem(code, &self, remedy)
        }
    }
}

impl Tell for AgentError {
    fn tell(self) -> Problem {
        use martlet_agent_api::RemoteErrorKind as Kind;
        let retry = self.is_retryable();
        let (code, remedy) = match &self {
            AgentError::Remote(remote) => match remote.kind {
                Kind::NotFound => (ProblemCode::NotFound, ""),
                Kind::Denied => (ProblemCode::PermissionDenied, ""),
                Kind::Invalid => (ProblemCode::InvalidArgument, ""),
                Kind::State => (ProblemCode::WrongState, ""),
                Kind::Unsupported | Kind::Failed => (ProblemCode::GuestFailed, ""),
            },
            _ => (ProblemCode::GuestFailed, LOOK_AT_GUEST),
        };
        Problem {
            retry,
            ..problem(code, &self, remedy)
        }
    }
}

impl Tell for StoreError {
    fn tell(self) -> Problem {
        let retry = self.is_retryable();
        let (code, remedy) = match &self {
            StoreError::NoSpace { .. } => (ProblemCode::NoSpace, MAKE_ROOM),
            StoreError::Damaged { .. } => (ProblemCode::Damaged, VERIFY),
            StoreError::NotFound { .. } => (
                ProblemCode::NotFound,
                "`martlet images` lists the snapshots there are",
            ),
            StoreError::InUse { .. } => (ProblemCode::InUse, ""),
            _ => (ProblemCode::Internal, ""),
        };
        Problem {
            retry,
            ..problem(code, &self, remedy)
        }
    }
}
