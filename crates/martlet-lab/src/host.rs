//! A host: a network namespace with one interface, `eth0`, whose other end the relay holds.

use crate::relay::{FRAMES_WAITING_MAX, Relay, Switch};
use crate::syscalls::{start_within, tap};
use crate::{LabError, Link, Result};
use nix::sched::{CloneFlags, setns, unshare};
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::{panic, thread};

/// Hosts have addresses 192.0.2.1 to 192.0.2.254.
const HOSTS_MAX: usize = 254;

/// See the module's documentation. Clones are the same host.
#[derive(Clone)]
pub struct Host {
    name: String,
    port: usize,
    address: Ipv4Addr,
    namespace: Arc<OwnedFd>,
    relay: Arc<Relay>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({} {})", self.name, self.address)
    }
}

impl Host {
    pub(crate) fn new(relay: Arc<Relay>, name: &str, link: Link) -> Result<Self> {
        link.check()?;
        let (namespace, tap) = namespace()?;
        let failed = |source| LabError::Failed {
            host: name.into(),
            action: "plug it in".into(),
            source,
        };
        let port = relay
            .change(move |switch| switch.add(tap, link))
            .map_err(failed)?;
        let number = u8::try_from(port + 1)
            .ok()
            .filter(|number| usize::from(*number) <= HOSTS_MAX);
        let host = Self {
            name: name.into(),
            port,
            address: Ipv4Addr::new(192, 0, 2, number.ok_or(LabError::Full(HOSTS_MAX))?),
            namespace: Arc::new(namespace),
            relay,
        };
        host.set_up()
            .map_err(|source| host.failed("set its network up", source))?;
        Ok(host)
    }

    fn set_up(&self) -> io::Result<()> {
        let mut ip = self
            .command("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let lines = format!(
            "link set lo up
link set eth0 txqueuelen {FRAMES_WAITING_MAX} up
address add {}/24 dev eth0
",
            self.address
        );
        let written = ip.stdin.take().map(|mut stdin| stdin.write_all(lines.as_bytes()));
        let output = ip.wait_with_output()?;
        match output.status.success() {
            true => written.unwrap_or(Ok(())),
            false => Err(io::Error::other(format!(
                "ip: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ))),
        }
    }

    /// What it was called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the other hosts of its lab reach it.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A command that runs `program` on this host. Whoever starts it ends it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        start_within(&mut command, self.namespace.clone());
        command
    }

    /// Calls `body` on this host, in a thread of its own, and waits for it. Threads that it starts are on the host too, and
    /// sockets that it makes stay there, wherever they are used.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        let entered = within(|| setns(&*self.namespace, CloneFlags::CLONE_NEWNET), body);
        entered.map_err(|source| self.failed("enter it", source))
    }

    /// Has its link be like this from now on. What was sent before goes on as before.
    pub fn set_link(&self, link: Link) -> Result<()> {
        link.check()?;
        self.change("change its link", move |switch, port| switch.set_link(port, link))
    }

    /// Cuts its link: what is under way and what is sent is lost, and neither end is told, as when a cable breaks somewhere.
    pub fn cut(&self) -> Result<()> {
        self.change("cut its link", |switch, port| switch.set_cut(port, true))
    }

    /// Mends what was cut.
    pub fn mend(&self) -> Result<()> {
        self.change("mend its link", |switch, port| switch.set_cut(port, false))
    }

    /// A parameter of its network, by its name in `sysctl` (`net.ipv4.tcp_congestion_control`).
    pub fn sysctl(&self, name: &str) -> Result<String> {
        match self.run(|| fs::read_to_string(sysctl_path(name)))? {
            Ok(value) => Ok(value.trim_end().into()),
            Err(source) => Err(self.failed(format!("read {name}"), source)),
        }
    }

    /// Sets such a parameter.
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.run(|| fs::write(sysctl_path(name), value))?
            .map_err(|source| self.failed(format!("set {name} to {value}"), source))
    }

    fn change(&self, action: &str, change: impl FnOnce(&mut Switch, usize) + Send + 'static) -> Result<()> {
        let port = self.port;
        let changed = self.relay.change(move |switch| change(switch, port));
        changed.map_err(|source| self.failed(action, source))
    }

    fn failed(&self, action: impl Into<String>, source: io::Error) -> LabError {
        LabError::Failed {
            host: self.name.clone(),
            action: action.into(),
            source,
        }
    }
}

/// A new network namespace that nobody is in, held by its descriptor, and its `eth0`.
pub(crate) fn namespace() -> Result<(OwnedFd, File)> {
    let lacking = |what| move |source| LabError::Lacking { what, source };
    within(
        || unshare(CloneFlags::CLONE_NEWNET),
        || {
            let tap = tap("eth0").map_err(lacking("tap interfaces (/dev/net/tun)"))?;
            let namespace = File::open("/proc/thread-self/ns/net").map_err(lacking("/proc"))?;
            Ok((namespace.into(), tap))
        },
    )
    .map_err(lacking("the right to make network namespaces, which root has"))?
}

/// Calls `body` in a thread that has gone elsewhere by `enter`.
fn within<T: Send>(
    enter: impl FnOnce() -> nix::Result<()> + Send,
    body: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, || {
            enter()?;
            Ok(body())
        })?;
        thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}

fn sysctl_path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name.replace('.', "/"))
}
