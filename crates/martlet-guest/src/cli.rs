//! The command `martlet-guest`: the calls, for shell scripts.

mod arguments;
mod family_card;
mod mpi;
mod remote;
mod run;

use crate::error::Error;
use crate::guest::{CheckpointedVm, Cloned, ClonedVm, Exited, Guest, Processes, TicketOptions, Wait};
use crate::interrupt::Taken;
use arguments::{Arguments, Usage};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use martlet_agent_api::guest::{DATA_BYTES, FailedClone};
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

const USAGE: &str = "\
Forks the virtual machine that it runs in.

  martlet-guest ticket N [--hierarchical] [--timeout S]
      Asks for room for N processes in clones. Prints TICKET GRANTED: its name, and for how many there is room.
      --hierarchical: as many processes in each clone as it has processors. --timeout: clones end after S seconds.
  martlet-guest clone TICKET [--no-wait]
      Forks the machine. Prints 0 in the parent; in a clone the ids of its processes, one a line.
  martlet-guest exit STATUS [DATA | -] [--id ID]
      Ends a clone, and hands DATA, or what comes from standard input, to the parent: at most 32768 bytes. Of several
      processes in a clone, --id says which has ended.
  martlet-guest join TICKET [--json]
      Waits until all clones have ended. Prints ID STATUS DATA of each, with control characters and \\ as printf %b
      takes them; a STATUS of - is that of a clone that did not exit, and what follows is why. Fails if any failed.
  martlet-guest kill TICKET
      Ends all clones of a ticket. Prints how many.
  martlet-guest checkpoint
      Saves the machine's state. Prints 0 CHECKPOINT; in clones of the state the ids of their processes, one a line.
  martlet-guest create-clones CHECKPOINT TICKET [--no-wait]
      Starts clones of that state.
  martlet-guest me [--json]
      Prints ID FAMILY SIZE NAME: who this machine is, 0 when it is nobody's clone.
  martlet-guest fork N [--hierarchical] [--timeout S] [--json] -- COMMAND...
      Runs COMMAND in each of N clones, with its id for {id}, and prints as join does how it exited and what it printed.
  martlet-guest mpi N [--hierarchical] [--timeout S] -- PROGRAM...
      Runs an MPI program as mpich's mpiexec does, its N ranks in clones. The machine needs --family.

Exits with 1 when a call or a clone failed, and with 2 when it was called wrongly.
Whether it may be used is said where the machine is run: martlet run --fork-by.
";

/// Why the command failed.
enum Failure {
    /// It was called wrongly.
    Usage(Usage),
    /// A call failed.
    Call(Error),
    /// Input or output failed.
    Io(io::Error),
}

impl From<Usage> for Failure {
    fn from(usage: Usage) -> Self {
        Self::Usage(usage)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Call(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Runs the command with these arguments, of which the program's name is none.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    match run_command(args) {
        Ok(code) => code,
        Err(Failure::Usage(Usage(words))) => {
            eprintln!("martlet-guest: {words}; martlet-guest --help lists what there is");
            ExitCode::from(2)
        }
        Err(Failure::Call(error)) => {
            eprintln!("martlet-guest: {error}");
            ExitCode::FAILURE
        }
        Err(Failure::Io(error)) => {
            eprintln!("martlet-guest: input or output failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_command(mut args: impl Iterator<Item = OsString>) -> Result<ExitCode, Failure> {
    let Some(verb) = args.next() else {
        return Err(Usage("which command?".into()).into());
    };
    match verb.to_string_lossy().as_ref() {
        "ticket" => ticket(Arguments::parse(args, &["hierarchical"], &["timeout"])?),
        "clone" => clone(Arguments::parse(args, &["no-wait"], &[])?),
        "exit" => exit(Arguments::parse(args, &[], &["id"])?),
        "join" => join(Arguments::parse(args, &["json"], &[])?),
        "kill" => kill(Arguments::parse(args, &[], &[])?),
        "checkpoint" => checkpoint(Arguments::parse(args, &[], &[])?),
        "create-clones" => create_clones(Arguments::parse(args, &["no-wait"], &[])?),
        "me" => me(Arguments::parse(args, &["json"], &[])?),
        "fork" => fork(Arguments::parse(args, &["hierarchical", "json"], &["timeout"])?),
        "mpi" => mpi::mpi(Arguments::parse(args, &["hierarchical"], &["timeout"])?),
        "launch" => Ok(remote::launch(args)?),
        "help" | "--help" | "-h" => say(USAGE),
        other => Err(Usage(format!("there is no command {other}")).into()),
    }
}

fn ticket(mut arguments: Arguments) -> Result<ExitCode, Failure> {
    let options = ticket_options(&mut arguments)?;
    let count = arguments.number("N, how many processes")?;
    arguments.end()?;
    let ticket = Guest::connect()?.request_ticket(count, options)?;
    say(&format!("{} {}\n", ticket.name, ticket.granted))
}

fn clone(mut arguments: Arguments) -> Result<ExitCode, Failure> {
    let wait = wait(&arguments);
    let ticket = arguments.word("TICKET")?;
    arguments.end()?;
    match Guest::connect()?.clone_vm(ticket, wait)? {
        ClonedVm::Parent { failed } => {
            tell_failed(&failed);
            say("0\n")
        }
        ClonedVm::Child(processes) => say_ids(&processes),
    }
}

fn exit(mut arguments: Arguments) -> Result<ExitCode, Failure> {
    let id = arguments.value("id")?;
    let status = arguments.number("STATUS")?;
    let data = match arguments.raw() {
        Some(dash) if dash == "-" => read_data(io::stdin())?,
        Some(data) => data.as_bytes().to_vec(),
        None => Vec::new(),
    };
    arguments.end()?;
    let guest = Guest::connect()?;
    let id = match id {
        Some(id) => id,
        None => guest.vmid()?,
    };
    guest.end_process(id, status, &data)?;
    Ok(ExitCode::SUCCESS)
}

/// All, or as much as shows that it is too much.
fn read_data(input: impl Read) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    input.take(DATA_BYTES as u64 + 1).read_to_end(&mut data)?;
    Ok(data)
}

fn join(mut arguments: Arguments) -> Result<ExitCode, Failure> {
    let json = arguments.flag("json");
    let ticket = arguments.word("TICKET")?;
    arguments.end()?;
    join_and_tell(&Guest::connect()?, &ticket, json)
}

fn kill(mut arguments: Arguments) -> Result<ExitCode, Failure> {
    let ticket = arguments.word("TICKET")?;
    arguments.end()?;
    say(&format!("{}\n", Guest::connect()?.kill(ticket)?))
}

fn checkpoint(mut arguments: Arguments) -> Result<ExitCode, Failure> {
    arguments.end()?;
    match Guest::connect()?.checkpoint_vm()? {
        CheckpointedVm::Saved { checkpoint } => say(&format!("0 {checkpoint}\n")),
        CheckpointedVm::Child(processes) => say_ids(&processes),
    }
}

fn create_clones(mut arguments: Arguments) -> Result<ExitCode, Failure> {
    let wait = wait(&arguments);
    let checkpoint = arguments.word("CHECKPOINT")?;
    let ticket = arguments.word("TICKET")?;
    arguments.end()?;
    let failed = Guest::connect()?.create_clones(&checkpoint, ticket, wait)?;
    tell_failed(&failed);
    Ok(ExitCode::SUCCESS)
}

fn me(mut arguments: Arguments) -> Result<ExitCode, Failure> {
    let json = arguments.flag("json");
    arguments.end()?;
    let me = Guest::connect()?.family()?;
    if json {
        let me = serde_json::json!({"id": me.id, "family": me.family, "size": me.size, "name": me.name});
        return say(&format!("{me}\n"));
    }
    say(&format!("{} {} {} {}\n", me.id, me.family, me.size, me.name))
}

fn fork(mut arguments: Arguments) -> Result<ExitCode, Failure> {
    let options = ticket_options(&mut arguments)?;
    let json = arguments.flag("json");
    let count = arguments.number("N, how many processes")?;
    let command = arguments.command()?;
    let mut guest = Guest::connect()?;
    let ticket = guest.request_ticket(count, options)?;
    if ticket.granted < count {
        eprintln!("martlet-guest: there is room for {} of {count}", ticket.granted);
    }
    let name = ticket.name.clone();
    let taken = Taken::new(move || {
        // It has no clones yet, or they end; that cannot be told to anybody.
        let _ = Guest::connect().and_then(|guest| guest.kill(&name));
    })?;
    let joined = match guest.fork(&ticket, Wait::Running) {
        Ok(Cloned::Child { id }) => {
            taken.give_back()?;
            let (status, data) = run::run(&command, id);
            match guest.exit(status, &data)? {}
        }
        Ok(Cloned::Parent { failed }) => {
            tell_failed(&failed);
            join_and_tell(&guest, &ticket.name, json).map(|code| match failed.is_empty() {
                true => code,
                false => ExitCode::FAILURE,
            })
        }
        Err(error) => Err(error.into()),
    };
    taken.stay();
    if joined.is_err() {
        let _ = guest.kill(&ticket); // nobody else knows of it; the first failure is the one to tell of
    }
    joined
}

fn ticket_options(arguments: &mut Arguments) -> Result<TicketOptions, Usage> {
    Ok(TicketOptions {
        hierarchical: arguments.flag("hierarchical"),
        timeout: arguments
            .value("timeout")?
            .map(|s: u32| std::time::Duration::from_secs(s.into())),
    })
}

fn wait(arguments: &Arguments) -> Wait {
    if arguments.flag("no-wait") {
        Wait::No
    } else {
        Wait::Running
    }
}

fn join_and_tell(guest: &Guest, ticket: &str, json: bool) -> Result<ExitCode, Failure> {
    let (mut code, mut said) = (ExitCode::SUCCESS, Ok(()));
    guest.join_each(ticket, |exited| {
        if !exited.success() {
            code = ExitCode::FAILURE;
        }
        if said.is_ok() {
            said = write_out(&line(&exited, json));
        }
    })?;
    said?;
    Ok(code)
}

/// How a process ended, in one line.
fn line(exited: &Exited, json: bool) -> String {
    if json {
        let exited = serde_json::json!({
            "id": exited.id, "status": exited.status,
            "data": BASE64.encode(&exited.data), "problem": exited.problem,
        });
        return format!("{exited}\n");
    }
    let status = match exited.status {
        Some(status) => status.to_string(),
        None => "-".into(),
    };
    let words = match &exited.problem {
        Some(problem) => escaped(problem.as_bytes()),
        None => escaped(&exited.data),
    };
    let line = format!("{} {status} {words}", exited.id);
    format!("{}\n", line.trim_end())
}

/// As `printf %b` takes it: on one line, whatever it holds. The last line's end is not shown.
fn escaped(data: &[u8]) -> String {
    let data = data.strip_suffix(b"\n").unwrap_or(data);
    let mut text = String::new();
    for chunk in data.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '\\' => text.push_str("\\\\"),
                c if c.is_ascii_control() => text.push_str(&format!("\\x{:02x}", u32::from(c))),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

fn tell_failed(failed: &[FailedClone]) {
    for clone in failed {
        eprintln!(
            "martlet-guest: clone {} did not start: {}",
            clone.id, clone.problem
        );
    }
}

fn say_ids(processes: &Processes) -> Result<ExitCode, Failure> {
    let lines: String = processes.ids().map(|id| format!("{id}\n")).collect();
    say(&lines)
}

fn say(text: &str) -> Result<ExitCode, Failure> {
    write_out(text)?;
    Ok(ExitCode::SUCCESS)
}

fn write_out(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_a_line() {
        let exited = |status, data: &[u8]| Exited {
            id: 3,
            status,
            data: data.to_vec(),
            problem: None,
        };
        assert_eq!(line(&exited(Some(0), b""), false), "3 0\n");
        assert_eq!(
            line(&exited(Some(2), b"a\nb\\\xff\x1b\n"), false),
            "3 2 a\\nb\\\\\\xff\\x1b\n"
        );
        let killed = Exited {
            problem: Some("out of memory\n\n".into()),
            ..exited(None, b"")
        };
        assert_eq!(line(&killed, false), "3 - out of memory\\n\n");
        assert_eq!(
            line(&exited(Some(0), b"ok"), true),
            "{\"data\":\"b2s=\",\"id\":3,\"problem\":null,\"status\":0}\n"
        );
    }
}
