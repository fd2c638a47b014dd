//! Starting user code: always in its own session, its own user and a cgroup that a hold freezes.
#![allow(unsafe_code)] // work between fork and exec is the only way to do that

use crate::fault::{Result, fault, io_failed};
use crate::syscalls;
use crate::users::User;
use martlet_agent_api::{Command, RemoteErrorKind};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command as Process, Stdio};

/// What programs find when nobody says otherwise.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a program's input and output go.
pub enum Streams {
    /// A pipe each; standard input only when asked for.
    Pipes {
        /// Is there input?
        stdin: bool,
    },
    /// A terminal.
    Terminal(std::os::fd::OwnedFd),
    /// Output to the console, no input.
    Console,
}

/// Starts a program as `user`, in the cgroup whose `cgroup.procs` is given.
pub fn spawn(command: &Command, user: &User, streams: Streams, cgroup: Option<File>) -> Result<Child> {
    let [program, arguments @ ..] = command.argv.as_slice() else {
        return Err(fault(RemoteErrorKind::Invalid, "there is no command to run"));
    };
    let mut process = Process::new(program);
    process.args(arguments).env_clear();
    process
        .env("PATH", PATH)
        .env("HOME", &user.home)
        .env("USER", &user.name)
        .env("LOGNAME", &user.name);
    let mut terminal = None;
    match streams {
        Streams::Pipes { stdin } => {
            process.stdin(if stdin { Stdio::piped() } else { Stdio::null() });
            process.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        Streams::Terminal(slave) => {
            let copy = || {
                slave
                    .try_clone()
                    .map(Stdio::from)
                    .map_err(|e| io_failed("cannot use the terminal", &e))
            };
            process.stdin(copy()?).stdout(copy()?).stderr(copy()?);
            process.env("TERM", "xterm");
            terminal = Some(slave);
        }
        Streams::Console => {
            process.stdin(Stdio::null());
            let console = || {
                File::options()
                    .write(true)
                    .open("/dev/console")
                    .map_or_else(|_| Stdio::null(), Stdio::from)
            };
            process.stdout(console()).stderr(console());
        }
    }
    process
        .envs(&command.env)
        .current_dir(command.cwd.as_deref().unwrap_or("/"));
    let user = user.clone();
    // SAFETY: the closure only makes system calls on values it owns; it neither allocates nor takes a lock.
    unsafe {
        process.pre_exec(move || {
            if let Some(procs) = &cgroup {
                let mut procs: &File = procs;
                procs.write_all(b"0")?;
            }
            // The agent is never killed for want of memory; what it starts may be.
            let _ = File::options()
                .write(true)
                .open("/proc/self/oom_score_adj")
                .and_then(|mut file| file.write_all(b"0"));
            syscalls::new_session()?;
            if let Some(terminal) = &terminal {
                let terminal: BorrowedFd<'_> = terminal.as_fd();
                syscalls::take_terminal(terminal)?;
            }
            syscalls::become_user(user.uid, user.gid, &user.groups)
        });
    }
    process
        .spawn()
        .map_err(|error| io_failed(format_args!("cannot run {program:?}"), &error))
}
