//! Bounds on what requests may ask for, checked before the engine hears of them.
//!
//! Whether a thing exists, fits this host or is in the right state is the engine's to say; here is only what no
//! host could mean: zero virtual CPUs, an exabyte of memory, a package called `--option`.

use martlet_api::names::{NAME_MAX, check_name, check_places, check_reference, check_tag};
use martlet_api::*;
use std::ops::RangeInclusive;

const MIB: u64 = 1 << 20;
const MEMORY_BYTES: RangeInclusive<u64> = 16 * MIB..=4 << 40;
const DISK_BYTES: RangeInclusive<u64> = MIB..=64 << 40;
const CPUS: RangeInclusive<u64> = 1..=255;
const CLONES: RangeInclusive<u64> = 1..=1000;
const TOKEN_DAYS: RangeInclusive<u64> = 1..=3650;
const TIMEOUT_MS: RangeInclusive<u64> = 0..=24 * 3600 * 1000;
const INPUTS_MAX: usize = 10_000;
const NOTE_MAX_BYTES: usize = 4096;

type Checked = Result<(), Problem>;

/// Checks a request to build a base.
pub fn base_build(request: &BaseBuildRequest) -> Checked {
    check_name(&request.name)?;
    size("size of the root disk", request.size_bytes, DISK_BYTES)?;
    let word = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && text.len() <= 100
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+.-:".contains(&b))
    };
    if !word(&request.suite) {
        return Err(invalid(format!(
            "{:.60?} is not the name of a Debian suite",
            request.suite
        ))
        .remediation("use for example bookworm or trixie"));
    }
    match request.packages.iter().find(|package| !word(package)) {
        Some(package) => Err(
            invalid(format!("{package:.60?} is not the name of a Debian package"))
                .remediation("give package names separated by commas: --packages redis-server,python3"),
        ),
        None => Ok(()),
    }
}

/// Checks a request to import a base.
pub fn base_import(request: &BaseImportRequest) -> Checked {
    check_name(&request.name)?;
    absolute_path(&request.path)?;
    size("size of the root disk", request.size_bytes, DISK_BYTES)
}

/// Checks a request to run a machine.
pub fn run(request: &RunRequest) -> Checked {
    check_reference(&request.from)?;
    if let Some(name) = &request.name {
        check_name(name)?;
    }
    bounds("number of virtual CPUs", request.cpus.map(u64::from), CPUS)?;
    size("size of the memory", request.memory_bytes, MEMORY_BYTES)?;
    size("size of the root disk", request.disk_bytes, DISK_BYTES)?;
    environment(request.env.iter())?;
    command(&request.cmd)?;
    for (at, forward) in request.ports.iter().enumerate() {
        if forward.guest_port == 0 {
            return Err(invalid("0 is not a port in the guest".into()).remediation("write -p HOST:GUEST"));
        }
        let taken = |other: &PortForward| other.host_port == forward.host_port && other.host_port != 0;
        if request.ports[..at].iter().any(taken) {
            return Err(invalid(format!(
                "host port {} is forwarded twice",
                forward.host_port
            )));
        }
    }
    if let Some(fork) = &request.fork {
        fork.check()?;
        check_places(&fork.on)?;
        bounds("number of processes in clones", Some(fork.most.into()), CLONES)?;
    }
    probe(request.probe.as_ref())
}

/// Checks a request to take a checkpoint.
pub fn checkpoint(request: &CheckpointRequest) -> Checked {
    if let Some(tag) = &request.tag {
        check_tag(tag)?;
    }
    match &request.note {
        Some(note) if note.len() > NOTE_MAX_BYTES => Err(invalid(format!(
            "the note is {} bytes long, {NOTE_MAX_BYTES} are allowed",
            note.len()
        ))),
        _ => Ok(()),
    }
}

/// Checks a request to fork.
pub fn fork(request: &ForkRequest) -> Checked {
    clones(Some(request.count), request.prefix.as_deref(), &request.on)?;
    if let Some(work) = &request.command {
        command(&work.argv)?;
    }
    probe(request.probe.as_ref())
}

/// Checks a request to run a command over inputs.
pub fn map(request: &MapRequest) -> Checked {
    clones(request.count, request.prefix.as_deref(), &request.on)?;
    if request.argv.is_empty() {
        return Err(invalid("there is no command to run".into()).remediation("`martlet map NAME -- COMMAND`"));
    }
    if request.inputs.len() > INPUTS_MAX {
        return Err(invalid(format!(
            "{} inputs are too many at once; {INPUTS_MAX} are allowed",
            request.inputs.len()
        ))
        .remediation("give them in several commands"));
    }
    command(&request.argv)?;
    command(&request.inputs)
}

fn clones(count: Option<u32>, prefix: Option<&str>, on: &[String]) -> Checked {
    bounds("number of clones", count.map(u64::from), CLONES)?;
    if let Some(prefix) = prefix {
        check_name(prefix)?;
        let longest = format!("{prefix}-{}", count.unwrap_or(*CLONES.end() as u32));
        if longest.len() > NAME_MAX {
            return Err(invalid(format!(
                "the clone's name {longest:?} would be longer than {NAME_MAX} bytes"
            ))
            .remediation("give a shorter --prefix"));
        }
    }
    check_places(on)
}

/// Checks a request to execute a command.
pub fn exec(request: &ExecRequest) -> Checked {
    if request.argv.first().is_none_or(String::is_empty) {
        return Err(invalid("there is no command to execute".into())
            .remediation("write it after the machine's name: martlet exec web -- ls /"));
    }
    command(&request.argv)?;
    environment(request.env.iter())?;
    request.cwd.as_deref().map_or(Ok(()), absolute_path)
}

/// Checks a path in the guest or on the host.
pub fn absolute_path(path: &str) -> Checked {
    if !path.starts_with('/') || path.contains('\0') || path.len() > 4096 {
        return Err(invalid(format!("{path:.80?} is not an absolute path")).remediation("begin it with /"));
    }
    Ok(())
}

/// Checks a request to make a token.
pub fn token(request: &TokenCreateRequest) -> Checked {
    check_name(&request.name)?;
    bounds("number of days", Some(request.days.into()), TOKEN_DAYS)
}

/// Checks what is asked of a service until it answers.
pub fn probe(probe: Option<&Probe>) -> Checked {
    bounds(
        "probed port",
        probe.map(|probe| probe.guest_port.into()),
        1..=65535,
    )
}

/// Checks how long to wait for a shutdown.
pub fn stop(request: &StopRequest) -> Checked {
    bounds("timeout in milliseconds", Some(request.timeout_ms), TIMEOUT_MS)
}

fn environment<'a>(variables: impl Iterator<Item = (&'a String, &'a String)>) -> Checked {
    for (name, value) in variables {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid(format!("{name:.60?} is not an environment variable"))
                .remediation("write NAME=value"));
        }
    }
    Ok(())
}

fn command(argv: &[String]) -> Checked {
    match argv.iter().find(|argument| argument.contains('\0')) {
        Some(argument) => Err(invalid(format!(
            "the argument {argument:.60?} has a zero byte in it"
        ))),
        None => Ok(()),
    }
}

fn bounds(what: &str, value: Option<u64>, allowed: RangeInclusive<u64>) -> Checked {
    match value {
        Some(value) if !allowed.contains(&value) => Err(invalid(format!("{value} is no sensible {what}"))
            .remediation(format!("choose from {} to {}", allowed.start(), allowed.end()))),
        _ => Ok(()),
    }
}

fn size(what: &str, value: Option<u64>, allowed: RangeInclusive<u64>) -> Checked {
    let (min, max) = (allowed.start() / MIB, allowed.end() >> 40);
    bounds(what, value, allowed)
        .map_err(|problem| problem.remediation(format!("choose from {min} MiB (write {min}M) to {max} TiB")))
}

fn invalid(message: String) -> Problem {
    Problem::new(ProblemCode::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_request(change: impl FnOnce(&mut RunRequest)) -> Checked {
        let mut request: RunRequest = serde_json::from_str(r#"{"from":"debian"}"#).unwrap();
        change(&mut request);
        run(&request)
    }

    #[test]
    fn absurd_machines_are_refused() {
        run_request(|_| ()).unwrap();
        run_request(|r| r.memory_bytes = Some(512 * MIB)).unwrap();
        let absurd: [fn(&mut RunRequest); 10] = [
            |r| r.memory_bytes = Some(0),
            |r| r.memory_bytes = Some(u64::MAX),
            |r| r.disk_bytes = Some(0),
            |r| r.disk_bytes = Some(u64::MAX),
            |r| r.cpus = Some(0),
            |r| r.cpus = Some(100_000),
            |r| {
                r.ports = vec![PortForward {
                    host_port: 80,
                    guest_port: 0,
                }]
            },
            |r| {
                r.ports = vec![
                    PortForward {
                        host_port: 80,
                        guest_port: 1
                    };
                    2
                ]
            },
            |r| r.env = [("A=B".to_string(), String::new())].into(),
            |r| r.from = "../etc".into(),
        ];
        for (at, change) in absurd.into_iter().enumerate() {
            let problem = run_request(change).expect_err(&format!("case {at}"));
            assert_eq!(problem.code, ProblemCode::InvalidArgument);
        }
        // Port 0 picks a free one each time.
        run_request(|r| {
            r.ports = vec![
                PortForward {
                    host_port: 0,
                    guest_port: 1
                };
                2
            ]
        })
        .unwrap();
    }

    #[test]
    fn packages_cannot_be_options() {
        let request = |package: &str| BaseBuildRequest {
            name: "b".into(),
            packages: vec![package.into()],
            size_bytes: None,
            suite: "bookworm".into(),
            init: InitKind::Systemd,
            tiny: false,
        };
        base_build(&request("libstdc++6")).unwrap();
        for bad in ["--setup-hook=x", "a b", "", "a;b", "A"] {
            assert!(base_build(&request(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn forks_are_bounded() {
        let fork_of = |count, prefix: Option<&str>| {
            fork(&ForkRequest {
                count,
                prefix: prefix.map(Into::into),
                allow_agentless: false,
                method: martlet_api::CheckpointMethod::Auto,
                probe: None,
                on: Vec::new(),
                command: None,
            })
        };
        fork_of(8, Some("web")).unwrap();
        assert!(fork_of(0, None).is_err());
        assert!(fork_of(4_000_000_000, None).is_err());
        assert!(
            fork_of(10, Some(&"a".repeat(61))).is_err(),
            "name of the tenth clone is too long"
        );
        fork_of(9, Some(&"a".repeat(61))).unwrap();
    }
}
