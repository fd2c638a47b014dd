//! Putting on an identity while user code is held.
//!
//! The steps go from what nothing may do without (the clock, entropy) to what is built on them (ids, addresses), and
//! end with the hooks. Clock, entropy, network and the generation files must succeed, and so must hooks that say so;
//! any other failure is reported and does not keep the clone from running. All steps are tried.

use crate::fault::{self, failed};
use crate::rewrite::rewrite;
use crate::{hooks, network, syscalls, tools};
use martlet_agent_api::{Identified, Identity, Outcome, Step};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The file system under which names and ids are kept.
#[derive(Debug, Clone)]
pub struct Places {
    /// `/etc`.
    pub etc: PathBuf,
    /// `/run/martlet`.
    pub run: PathBuf,
    /// `/var/lib`.
    pub var_lib: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            etc: "/etc".into(),
            run: "/run/martlet".into(),
            var_lib: "/var/lib".into(),
        }
    }
}

enum Done {
    Yes,
    No(&'static str),
}

type StepResult = fault::Result<Done>;

/// Takes the steps that the policy asks for.
pub fn put_on(identity: &Identity, places: &Places) -> Identified {
    let policy = &identity.policy;
    let mut steps = Steps {
        taken: Vec::new(),
        complete: true,
    };
    steps.must("clock", policy.clock, || set_clock(identity));
    steps.must("entropy", policy.entropy, || add_entropy(identity));
    steps.may("hostname", policy.hostname, || set_hostname(identity, places));
    steps.may("machine-id", policy.machine_id, || {
        set_machine_id(identity, places)
    });
    steps.may("boot-id", policy.boot_id, || set_boot_id(places));
    steps.must("network", policy.network, || match &identity.network {
        Some(wanted) => network::configure(wanted).map(|()| Done::Yes),
        None => Ok(Done::No("no address was given")),
    });
    steps.may("name-servers", policy.network, || {
        match identity.network.as_ref().map(|network| network.dns.as_slice()) {
            None | Some([]) => Ok(Done::No("none were given")),
            Some(servers) => network::set_name_servers(&places.etc, servers).map(|()| Done::Yes),
        }
    });
    if let Some(family) = &identity.family {
        steps.must("family", true, || {
            network::join_family(family, &places.etc).map(|()| Done::Yes)
        });
        steps.may("name-servers", !family.network.dns.is_empty(), || {
            network::set_name_servers(&places.etc, &family.network.dns).map(|()| Done::Yes)
        });
    }
    steps.may("random-seed", policy.random_seed, || remove_random_seed(places));
    steps.may("ssh-host-keys", policy.ssh_host_keys, || {
        renew_ssh_host_keys(places)
    });
    steps.must("generation", true, || write_generation(identity, places));
    steps.may("tools", policy.tools, || {
        tools::offer(&places.run).map(|()| Done::Yes)
    });
    if policy.hooks {
        let timeout = Duration::from_millis(policy.hook_timeout_ms.into());
        for hook in hooks::find(&places.etc.join("martlet/hooks.d")) {
            let started = Instant::now();
            let result = hooks::run(&hook, identity, timeout);
            steps.record(
                format!("hook {}", result.name),
                result.required,
                result.outcome,
                started,
            );
        }
    }
    Identified {
        complete: steps.complete,
        steps: steps.taken,
        boot_id: boot_id(),
        machine_id: first_line(&places.etc.join("machine-id")),
        hostname: first_line(Path::new("/proc/sys/kernel/hostname")),
    }
}

/// The guest's boot id.
pub fn boot_id() -> String {
    first_line(Path::new(BOOT_ID))
}

struct Steps {
    taken: Vec<Step>,
    complete: bool,
}

impl Steps {
    fn must(&mut self, name: &str, wanted: bool, step: impl FnOnce() -> StepResult) {
        self.take(name, true, wanted, step);
    }

    fn may(&mut self, name: &str, wanted: bool, step: impl FnOnce() -> StepResult) {
        self.take(name, false, wanted, step);
    }

    fn take(&mut self, name: &str, required: bool, wanted: bool, step: impl FnOnce() -> StepResult) {
        let started = Instant::now();
        let outcome = match wanted.then(step) {
            None => Outcome::Skipped("by policy".into()),
            Some(Ok(Done::Yes)) => Outcome::Done,
            Some(Ok(Done::No(reason))) => Outcome::Skipped(reason.into()),
            Some(Err(error)) => Outcome::Failed(error.message),
        };
        self.record(name.to_owned(), required, outcome, started);
    }

    fn record(&mut self, name: String, required: bool, outcome: Outcome, started: Instant) {
        self.complete &= !(required && matches!(outcome, Outcome::Failed(_)));
        self.taken.push(Step {
            name,
            outcome,
            took_ms: started.elapsed().as_secs_f64() * 1e3,
        });
    }
}

fn set_clock(identity: &Identity) -> StepResult {
    syscalls::set_realtime(identity.realtime_unix_ns)
        .map_err(|error| failed("cannot set the clock", error))?;
    Ok(Done::Yes)
}

fn add_entropy(identity: &Identity) -> StepResult {
    if identity.entropy.len() < Identity::ENTROPY_BYTES {
        return Err(failed(
            "cannot reseed",
            format_args!("{} bytes are too few", identity.entropy.len()),
        ));
    }
    syscalls::reseed_random(&identity.entropy).map_err(|error| failed("cannot reseed", error))?;
    Ok(Done::Yes)
}

fn set_hostname(identity: &Identity, places: &Places) -> StepResult {
    let Some(name) = &identity.hostname else {
        return Ok(Done::No("no name was given"));
    };
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if name.is_empty() || name.len() > 64 || !name.chars().all(good) {
        return Err(failed("not a host name", format_args!("{name:?}")));
    }
    syscalls::set_hostname(name).map_err(|error| failed("cannot set the host name", error))?;
    let written = write_hostname_files(name, places);
    written.map_err(|error| failed("the host name is set, but cannot be written to /etc", error))?;
    Ok(Done::Yes)
}

fn write_hostname_files(name: &str, places: &Places) -> io::Result<()> {
    rewrite(&places.etc.join("hostname"), format!("{name}\n"))?;
    let hosts = places.etc.join("hosts");
    let old = match fs::read_to_string(&hosts) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => "127.0.0.1\tlocalhost\n".to_owned(),
        other => other?,
    };
    rewrite(&hosts, with_own_name(&old, name))
}

/// Debian gives a host's own name the address 127.0.1.1.
fn with_own_name(hosts: &str, name: &str) -> String {
    let others = hosts
        .lines()
        .filter(|line| line.split_whitespace().next() != Some("127.0.1.1"));
    let mut lines: Vec<String> = others.map(str::to_owned).collect();
    lines.push(format!("127.0.1.1\t{name}"));
    lines.join("\n") + "\n"
}

fn set_machine_id(identity: &Identity, places: &Places) -> StepResult {
    let id = match &identity.machine_id {
        Some(id)
            if id.len() == 32
                && id
                    .bytes()
                    .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()) =>
        {
            id.clone()
        }
        Some(id) => return Err(failed("not a machine id", format_args!("{id:?}"))),
        None => hex(&random_bytes::<16>().map_err(|error| failed("cannot make a machine id", error))?),
    };
    let file = places.etc.join("machine-id");
    let line = format!("{id}\n");
    if let Err(error) = rewrite(&file, &line) {
        // A root file system that is read-only: put it over the old one.
        let over = places.run.join("machine-id");
        fs::create_dir_all(&places.run)
            .and_then(|()| rewrite(&over, &line))
            .and_then(|()| syscalls::mount(&over, &file, "", libc::MS_BIND, ""))
            .map_err(|second| failed("cannot write the machine id", format_args!("{error}; {second}")))?;
    }
    let dbus = places.var_lib.join("dbus/machine-id");
    if fs::symlink_metadata(&dbus).is_ok_and(|metadata| metadata.is_file()) {
        rewrite(&dbus, &line).map_err(|error| failed("cannot write D-Bus's machine id", error))?;
    }
    Ok(Done::Yes)
}

/// The kernel's boot id cannot be changed, so a file is mounted over it; a clone of a clone rewrites that file.
fn set_boot_id(places: &Places) -> StepResult {
    let cannot = |error: io::Error| failed("cannot set the boot id", error);
    let mut bytes = random_bytes::<16>().map_err(cannot)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = hex(&bytes);
    let groups = [
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..],
    ];
    let id = groups.join("-");
    fs::create_dir_all(&places.run).map_err(cannot)?;
    let file = places.run.join("boot_id");
    rewrite(&file, format!("{id}\n")).map_err(cannot)?;
    if boot_id() != id {
        syscalls::mount(&file, Path::new(BOOT_ID), "", libc::MS_BIND, "").map_err(cannot)?;
    }
    Ok(Done::Yes)
}

fn remove_random_seed(places: &Places) -> StepResult {
    match fs::remove_file(places.var_lib.join("systemd/random-seed")) {
        Ok(()) => Ok(Done::Yes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Done::No("there is none")),
        Err(error) => Err(failed("cannot remove the random seed", error)),
    }
}

fn renew_ssh_host_keys(places: &Places) -> StepResult {
    let entries = fs::read_dir(places.etc.join("ssh"));
    let is_key = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|n| n.starts_with("ssh_host_"))
    };
    let keys: Vec<_> = entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(is_key)
        .collect();
    if keys.is_empty() {
        return Ok(Done::No("there are none"));
    }
    for key in keys {
        fs::remove_file(&key).map_err(|error| failed(format_args!("cannot remove {key:?}"), error))?;
    }
    let mut keygen = Command::new("ssh-keygen");
    keygen
        .arg("-A")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    match keygen.status() {
        Ok(status) if status.success() => Ok(Done::Yes),
        Ok(status) => Err(failed("ssh-keygen", status)),
        Err(error) => Err(failed("cannot run ssh-keygen", error)),
    }
}

/// `/run/martlet/generation` is 8 bytes, little endian, always the same inode: programs may map it and look at it.
fn write_generation(identity: &Identity, places: &Places) -> StepResult {
    let cannot = |error: io::Error| failed("cannot write /run/martlet", error);
    fs::create_dir_all(&places.run).map_err(cannot)?;
    let clone = serde_json::json!({
        "id": identity.clone_id,
        "generation": identity.generation,
        "parent": identity.parent_id,
        "index": identity.index,
        "name": identity.name,
    });
    rewrite(&places.run.join("clone"), format!("{clone}\n")).map_err(cannot)?;
    let generation = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(places.run.join("generation"));
    let generation = generation.map_err(cannot)?;
    std::os::unix::fs::FileExt::write_all_at(&generation, &identity.generation.to_le_bytes(), 0)
        .map_err(cannot)?;
    Ok(Done::Yes)
}

fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn first_line(path: &Path) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_keeps_the_rest() {
        let old = "127.0.0.1 localhost\n127.0.1.1 parent parent.lan\n10.0.0.9 db\n";
        assert_eq!(
            with_own_name(old, "clone-3"),
            "127.0.0.1 localhost\n10.0.0.9 db\n127.0.1.1\tclone-3\n"
        );
    }
}
