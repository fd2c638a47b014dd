//! The same program by each way to call: it says on lines that begin with `: ` what came of its calls.

use crate::agent::Agent;
use martlet_guest::{Checkpointed, Cloned, Error, Guest, TicketOptions, Wait};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// With the library.
    Rust,
    /// A shell script.
    Command,
    /// `programs/program.py`.
    Python,
    /// `programs/program.c`.
    C,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Rust, Self::Command, Self::Python, Self::C];
}

/// What came of a run.
pub struct Ended {
    /// The lines that it said, sorted: processes of a clone speak at the same time.
    pub lines: Vec<String>,
    /// All of its output.
    pub stdout: String,
    /// Its errors.
    pub errors: String,
    /// Its status.
    pub code: Option<i32>,
}

/// Runs it against an agent.
pub fn run(program: Program, agent: &Agent, arguments: &[&str]) -> Ended {
    let mut command = match program {
        Program::Rust => {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args([
                "--exact",
                "program",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ]);
            command.env("PROGRAM_ARGUMENTS", arguments.join(" "));
            command
        }
        Program::Command => {
            let mut command = Command::new("sh");
            command.arg(programs().join("program.sh")).args(arguments);
            command.env("MARTLET_GUEST", env!("CARGO_BIN_EXE_martlet-guest"));
            command
        }
        Program::Python => {
            let mut command = Command::new("python3");
            command
                .arg("-B")
                .arg(programs().join("program.py"))
                .args(arguments);
            command.env("PYTHONPATH", guest().join("python"));
            command.env_remove("PYTHONUNBUFFERED"); // or processes write into each other's lines
            command
        }
        Program::C => {
            let mut command = Command::new(compiled());
            command.args(arguments);
            command
        }
    };
    ended(command.env("MARTLET_GUEST_SOCKET", &agent.socket))
}

/// Runs `martlet-guest` itself.
pub fn command(agent: &Agent, arguments: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_martlet-guest"));
    command.args(arguments);
    ended(command.env("MARTLET_GUEST_SOCKET", &agent.socket))
}

fn ended(command: &mut Command) -> Ended {
    // What it prints is read to its end, which is when the last of a clone's processes is gone.
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("cannot run {:?} ({e}): install it", command.get_program()));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines: Vec<String> = stdout
        .lines()
        .filter_map(|line| Some(line.strip_prefix(": ")?.to_string()))
        .collect();
    lines.sort_unstable();
    Ended {
        lines,
        stdout,
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        code: output.status.code(),
    }
}

fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs")
}

fn guest() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest")
}

/// The program in C, made once, with all that a compiler can find fault with.
fn compiled() -> &'static Path {
    static COMPILED: OnceLock<PathBuf> = OnceLock::new();
    COMPILED.get_or_init(|| {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-program");
        let mut compiler = Command::new("cc");
        compiler
            .args("-std=c99 -Wall -Wextra -Werror -pedantic -g -fsanitize=address,undefined".split(' '))
            .arg("-fno-sanitize-recover=all")
            .arg("-I")
            .arg(guest().join("c"))
            .arg(guest().join("c/martlet_guest.c"))
            .arg(programs().join("program.c"))
            .arg("-o")
            .arg(&program);
        let made = compiler
            .output()
            .unwrap_or_else(|e| panic!("there is no C compiler, cc ({e}): apt install gcc libc6-dev"));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        program
    })
}

/// The library for C, built and installed as people do it, with the program linked to it: what the program says.
pub fn with_the_installed_c_library() -> String {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let done = |command: &mut Command| {
        let output = command.output().unwrap_or_else(|e| {
            let program = command.get_program().to_string_lossy().into_owned();
            panic!("there is no {program} ({e}): apt install gcc libc6-dev make")
        });
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        String::from_utf8(output.stdout).unwrap()
    };
    let mut make = Command::new("make");
    make.arg("--silent").arg("-C").arg(guest().join("c"));
    make.arg("PREFIX=").arg("install");
    for (name, path) in [
        ("BUILD", directory.path().join("build")),
        ("DESTDIR", root.clone()),
    ] {
        make.arg(format!("{name}={}", path.display()));
    }
    done(&mut make);
    let description = std::fs::read_to_string(root.join("lib/pkgconfig/martlet_guest.pc")).unwrap();
    assert!(
        description.contains("Libs: -L/lib -lmartlet_guest"),
        "{description}"
    );
    let program = directory.path().join("program");
    let mut compiler = Command::new("cc");
    compiler.arg("-I").arg(root.join("include"));
    compiler.arg(programs().join("program.c")).arg("-o").arg(&program);
    compiler.arg("-L").arg(root.join("lib")).arg("-lmartlet_guest");
    done(&mut compiler);
    done(
        Command::new(program)
            .args(["storm", "0"])
            .env("LD_LIBRARY_PATH", root.join("lib")),
    )
}

/// The program in Rust: this process is it.
pub fn rust() {
    let arguments = std::env::var("PROGRAM_ARGUMENTS").unwrap();
    let words: Vec<&str> = arguments.split(' ').collect();
    if let Err(error) = work(&words) {
        say(&format!("error {}", error.kind));
        eprintln!("{error}");
        std::process::exit(1);
    }
}

/// The test's harness has begun a line.
fn say(line: &str) {
    println!("\n: {line}");
}

fn work(words: &[&str]) -> Result<(), Error> {
    let mut guest = Guest::connect()?;
    let ticket = |count: &str, hierarchical| {
        guest.request_ticket(
            count.parse().unwrap(),
            TicketOptions {
                hierarchical,
                timeout: Some(Duration::from_secs(30)),
            },
        )
    };
    match words {
        ["fork", count, hierarchical @ ..] => {
            let ticket = ticket(count, !hierarchical.is_empty())?;
            say(&format!("ticket {} {}", ticket.name, ticket.granted));
            match guest.fork(&ticket, Wait::Running)? {
                Cloned::Child { id } => {
                    say(&format!("cloned {id}"));
                    match guest.exit(id as i32 + 10, format!("from {id}").as_bytes())? {}
                }
                Cloned::Parent { failed } => {
                    say("cloned 0");
                    for clone in failed {
                        say(&format!("failed {} {}", clone.id, clone.problem));
                    }
                }
            }
            for exited in guest.join(&ticket)? {
                match (exited.status, exited.problem) {
                    (Some(status), _) => {
                        let data = String::from_utf8_lossy(&exited.data).into_owned();
                        say(&format!("exited {} {status} {data}", exited.id));
                    }
                    (None, problem) => {
                        say(&format!("exited {} - {}", exited.id, problem.unwrap_or_default()));
                    }
                }
            }
            say("joined");
        }
        ["checkpoint"] => {
            let ticket = ticket("2", false)?;
            match guest.checkpoint()? {
                Checkpointed::Child { id } => {
                    say(&format!("cloned {id}"));
                    match guest.exit(0, b"")? {}
                }
                Checkpointed::Saved { checkpoint } => {
                    say(&format!("saved {checkpoint}"));
                    guest.create_clones(&checkpoint, &ticket, Wait::No)?;
                }
            }
            say(&format!("killed {}", guest.kill(&ticket)?));
            say(&format!("vmid {}", guest.vmid()?));
            let me = guest.family()?;
            say(&format!("family {} {} {}", me.family, me.size, me.name));
        }
        ["exit", length] => match guest.exit(0, &vec![0xff; length.parse().unwrap()])? {},
        ["storm", count] => {
            for _ in 0..count.parse().unwrap() {
                let _ = guest.family();
            }
            say("over");
        }
        other => panic!("{other:?}"),
    }
    Ok(())
}
