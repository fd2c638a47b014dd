//! The command line as people and scripts meet it: the real program, a real socket, an engine in memory.

#[path = "../../martletd/tests/fake/mod.rs"]
mod fake;
mod pty;

use fake::{Fake, GATED, Served, TROUBLES};
use pty::Pty;
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;

fn program(served: &Served) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_martlet"));
    command
        .env("MARTLET_SOCKET", served.socket())
        .env("MARTLET_STATE_DIR", served.dir.path())
        .env_remove("TERM");
    command
}

fn martlet(served: &Served, args: &[&str]) -> Output {
    program(served).args(args).stdin(Stdio::null()).output().unwrap()
}

fn with_input(served: &Served, args: &[&str], input: &[u8]) -> Output {
    let mut command = program(served);
    command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    })
}

fn code(output: &Output) -> i32 {
    output
        .status
        .code()
        .unwrap_or_else(|| panic!("ended by a signal: {output:?}"))
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn exit_codes_and_words_of_errors() {
    let names: Vec<_> = TROUBLES.iter().map(|(name, _)| *name).chain(["web"]).collect();
    let served = Served::new(Fake::with(&names));
    for ((name, _), expected) in TROUBLES.iter().zip([4, 5, 6, 7, 8, 1]) {
        let output = martlet(&served, &["checkpoint", name]);
        assert_eq!(code(&output), expected, "{name}: {output:?}");
        assert!(err(&output).contains("\ncause: "), "{output:?}");
    }
    let missing = martlet(&served, &["stop", "none"]);
    assert_eq!(code(&missing), 3);
    assert_eq!(
        err(&missing),
        "error: there is no machine called none\ncause: it was never there\ntry: see `martlet ps`\n"
    );
    let json = martlet(&served, &["stop", "none", "--json"]);
    assert_eq!(
        serde_json::from_slice::<Value>(&json.stderr).unwrap()["code"],
        "not_found"
    );
    assert_eq!(code(&martlet(&served, &["rm", "web"])), 4);
    assert_eq!(code(&martlet(&served, &["rmi", "web:1"])), 4);
    assert_eq!(code(&martlet(&served, &["base", "rm", "debian"])), 4);
    assert_eq!(code(&martlet(&served, &["inspect", "nowhere"])), 3);
    assert_eq!(code(&martlet(&served, &["verify"])), 6);
    assert_eq!(code(&martlet(&served, &["verify", "--repair-from", "/x"])), 0);
    let long = "a".repeat(300);
    let wrong: [&[&str]; 12] = [
        &["run", "a/b"],
        &["run", "a b"],
        &["run", "ünï"],
        &["run", &long],
        &["run", "debian", "--memory", "0"],
        &["run", "debian", "--memory=-1G"],
        &["run", "debian", "--memory", "9999999T"],
        &["run", "debian", "--memory", "1K"],
        &["run", "debian", "--cpus", "0"],
        &["fork", "web", "-n", "0"],
        &["fork", "web", "-n=-3"],
        &["run", "debian", "-p", "80:0"],
    ];
    for args in wrong {
        let output = martlet(&served, args);
        assert_eq!(code(&output), 2, "{args:?}: {output:?}");
        assert!(err(&output).starts_with("error: "), "{args:?}: {output:?}");
    }
}

#[test]
fn several_names_are_all_tried() {
    let served = Served::new(Fake::with(&["a", "b"]));
    let output = martlet(&served, &["rm", "--force", "a", "none", "b"]);
    assert_eq!(code(&output), 3);
    // All at once: each is named when it is gone.
    let gone = out(&output);
    assert_eq!(
        gone.lines().collect::<std::collections::BTreeSet<_>>(),
        ["a", "b"].into()
    );
    assert!(served.fake.machines.lock().unwrap().is_empty());
}

#[test]
fn json_is_the_answer_unchanged() {
    let served = Served::new(Fake::with(&["web"]));
    let answer = |args: &[&str]| -> Value {
        let output = martlet(&served, args);
        assert_eq!(code(&output), 0, "{output:?}");
        assert_eq!(err(&output), "", "{args:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let machine = serde_json::to_value(fake::machine("web", martlet_api::MachineState::Running)).unwrap();
    assert_eq!(answer(&["--json", "ps"]), Value::Array(vec![machine.clone()]));
    assert_eq!(answer(&["inspect", "web", "--json"]), machine);
    assert_eq!(answer(&["inspect", "web:1", "--json"])["references"][0], "web:1");
    assert_eq!(
        answer(&["run", "debian", "--json", "--name", "b", "-p", "8080:80"])["ports"][0]["host_port"],
        8080
    );
    assert_eq!(
        answer(&["checkpoint", "web", "-t", "x", "--json"])["reference"],
        "web:x"
    );
    assert_eq!(answer(&["gc", "--dry-run", "--json"])["dry_run"], true);
    assert_eq!(answer(&["diff", "web:1", "web:2", "--json"])["to"], "web:2");
    assert_eq!(
        answer(&["daemon", "status", "--json"])["daemon"]["state_dir"],
        "/nowhere"
    );
    assert_eq!(
        answer(&["version", "--json"])["martlet"],
        env!("CARGO_PKG_VERSION")
    );
    for args in [
        &["df"][..],
        &["images"],
        &["log", "web"],
        &["base", "ls"],
        &["top"],
        &["suspend", "web"],
    ] {
        answer(&[args, &["--json"]].concat());
    }
}

#[test]
fn the_hosts_of_a_fleet_are_seen_together() {
    let served = Served::new(Fake::with(&["web"]));
    let top = out(&martlet(&served, &["host", "top"]));
    let lines: Vec<_> = top.lines().collect();
    assert_eq!(
        lines[..3],
        [
            "HOST   MEMORY   AVAILABLE  LOAD       RUNNING  STORE",
            "desk   8.0 GiB  3.0 GiB    0.52 of 4  1 of 1   5.0 GiB",
            "couch  -        -          -          -        -",
        ]
    );
    assert!(
        lines[5].starts_with("web      desk  running  12 %  512 MiB"),
        "{top}"
    );
    assert!(
        top.ends_with("\n\ncouch (192.0.2.8:7077) cannot be reached: not within 3000 ms\n"),
        "{top}"
    );
    assert!(lines.iter().all(|line| line.len() <= 80), "{top}");
    let json: Value = serde_json::from_slice(&martlet(&served, &["host", "top", "--json"]).stdout).unwrap();
    assert!(
        json[0]["usage"]["machines"][0]["name"] == "web" && json[1]["problem"].is_string(),
        "{json}"
    );
}

#[test]
fn another_host_is_asked_only_by_who_is_logged_in() {
    let served = Served::new(Fake::with(&["web"]));
    let at_home = |args: &[&str]| {
        let mut command = program(&served);
        command.env("XDG_CONFIG_HOME", served.dir.path()).args(args);
        command.stdin(Stdio::null()).output().unwrap()
    };
    let nobody = at_home(&["--host", "desk", "ps"]);
    assert_eq!(
        code(&nobody),
        3,
        "the daemon here is not asked instead: {nobody:?}"
    );
    assert!(err(&nobody).contains("try: `martlet token create`"), "{nobody:?}");
    for about_here in [["doctor"].as_slice(), &["daemon", "stop"], &["daemon", "status"]] {
        assert_eq!(code(&at_home(&[&["--host", "desk"], about_here].concat())), 2);
    }
    assert_eq!(code(&at_home(&["login", "martlet-token:cut"])), 2);
    assert_eq!(code(&at_home(&["logout", "desk"])), 3);
    assert!(!served.dir.path().join("martlet").exists(), "nothing is kept");
    let tokens = at_home(&["token", "create", "ann", "--role", "run"]);
    assert_eq!(out(&tokens), "martlet-token:…\n");
    assert!(err(&tokens).contains("as role run, for 30 days"), "{tokens:?}");
    assert!(out(&at_home(&["token", "ls"])).contains("\nann   run"));
    assert_eq!(code(&at_home(&["token", "create", "ann", "--role", "owner"])), 2);
    assert_eq!(
        code(&at_home(&[
            "token", "create", "ann", "--role", "run", "--days", "0"
        ])),
        2
    );
}

#[test]
fn people_see_stages_tables_and_timelines() {
    let served = Served::new(Fake::with(&["web"]));
    let run = martlet(&served, &["run", "debian", "--name", "db", "-p", "0:6379"]);
    assert_eq!(err(&run), "starting QEMU\nwaiting for the agent\n");
    assert!(out(&run).starts_with("machine db running\n"), "{run:?}");
    assert!(
        out(&run).contains("load 42 ms, first instruction 44 ms\n"),
        "{run:?}"
    );
    assert_eq!(err(&martlet(&served, &["-q", "checkpoint", "web"])), "");
    let saved = out(&martlet(&served, &["checkpoint", "web"]));
    assert!(saved.starts_with("snapshot web:1 (abababababab)\n"), "{saved}");
    assert!(saved.contains("300 MiB  the guest reported it free\n"), "{saved}");
    let ps = out(&martlet(&served, &["ps"]));
    assert_eq!(ps.lines().count(), 3, "{ps}");
    assert!(ps.starts_with("NAME  STATE    FROM"), "{ps}");
    let images = out(&martlet(&served, &["images"]));
    assert!(
        images.contains("web:1") && !images.contains('\x1b'),
        "a note cannot steer the terminal: {images:?}"
    );
    let forked = martlet(&served, &["fork", "web", "-n", "3"]);
    assert_eq!(code(&forked), 8, "a clone did not start");
    let table = out(&forked);
    let header = table.lines().next().unwrap();
    let place = |column: &str| {
        header
            .find(column)
            .unwrap_or_else(|| panic!("no {column} in {header}"))
    };
    assert!(place("LOAD") < place("FIRST INSTRUCTION"));
    assert!(place("FIRST EXEC") < place("FIRST RESPONSE"));
    assert_eq!(
        &table.lines().nth(1).unwrap()[place("FIRST EXEC")..][..5],
        "77 ms"
    );
    assert!(
        table.contains("web-3: error: the agent did not confirm\n"),
        "{table}"
    );
    assert!(
        err(&forked).ends_with("error: 1 of 3 clones did not start\n"),
        "{forked:?}"
    );
    assert_eq!(
        code(&martlet(&served, &["fork", "web:1", "-n", "2", "--prefix", "x"])),
        0
    );
}

#[test]
fn exec_passes_bytes_status_and_environment() {
    let served = Served::new(Fake::with(&["web"]));
    let exec = |args: &[&str]| martlet(&served, &[&["exec", "web", "--"], args].concat());
    assert_eq!(code(&exec(&["exit", "0"])), 0);
    assert_eq!(code(&exec(&["exit", "42"])), 42);
    assert_eq!(code(&exec(&["die", "9"])), 137);
    let unknown = exec(&["frobnicate"]);
    assert_eq!((code(&unknown), out(&unknown)), (127, String::new()));
    assert!(err(&unknown).contains("no program frobnicate"));
    assert_eq!(code(&martlet(&served, &["exec", "none", "--", "exit", "3"])), 125);
    let big = exec(&["big", "5000000"]);
    assert_eq!(big.stdout.len(), 5_000_000);
    assert!(big.stdout.iter().all(|byte| *byte == b'x'));
    let described = martlet(
        &served,
        &[
            "exec", "-e", "A=1=2", "-w", "/tmp", "-u", "nobody", "web", "env", "-x",
        ],
    );
    assert_eq!(
        out(&described),
        "{\"A\": \"1=2\"} Some(\"/tmp\") Some(\"nobody\") false false\n"
    );
    // Bytes of all kinds, more than any buffer holds, while the command writes as it reads.
    let input: Vec<u8> = (0..3_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let echoed = with_input(&served, &["exec", "-i", "web", "cat"], &input);
    assert!(
        echoed.stdout == input,
        "{} bytes came back of {}",
        echoed.stdout.len(),
        input.len()
    );
    assert_eq!(err(&echoed), "cat has seen the end\n");
    // Without -i input stays here.
    let mute = with_input(&served, &["exec", "web", "env"], b"");
    assert!(out(&mute).ends_with("false\n"));
}

#[test]
fn exec_passes_signals_on() {
    let served = Served::new(Fake::with(&["web"]));
    for (name, number) in [("INT", 2), ("TERM", 15), ("HUP", 1), ("USR1", 10)] {
        let mut child = program(&served)
            .args(["exec", "web", "wait"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut line = [0; 8];
        stdout.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"waiting\n");
        let kill = Command::new("kill")
            .args(["-s", name, &child.id().to_string()])
            .status()
            .unwrap();
        assert!(kill.success());
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, format!("got signal {number}\n"));
        assert_eq!(child.wait().unwrap().code(), Some(128 + number));
    }
}

#[test]
fn a_terminal_is_raw_resized_and_put_back() {
    let served = Served::new(Fake::with(&["web"]));
    let mut pty = Pty::open(24, 80);
    let mut command = program(&served);
    command.args(["exec", "-it", "web", "size"]);
    let mut child = pty.spawn(&mut command);
    pty.expect("24 80");
    assert!(!pty.echoes(), "raw while the command runs");
    pty.resize(50, 132);
    pty.expect("50 132");
    // Ctrl-C is a byte for the command, not a signal for us.
    pty.write(b"\x03");
    pty.expect("typed [3]");
    assert!(child.wait().unwrap().success());
    assert!(pty.echoes(), "put back");
}

#[test]
fn the_terminal_is_put_back_when_the_daemon_dies() {
    let served = Served::new(Fake::with(&["web"]));
    let mut pty = Pty::open(24, 80);
    let mut command = program(&served);
    command.args(["exec", "-it", "web", "size"]);
    let mut child = pty.spawn(&mut command);
    pty.expect("24 80");
    drop(served);
    assert_eq!(child.wait().unwrap().code(), Some(125));
    pty.expect("error: ");
    assert!(pty.echoes(), "put back");
}

#[test]
fn the_console_is_detached_by_its_escape() {
    let served = Served::new(Fake::with(&["web"]));
    let mut pty = Pty::open(24, 80);
    let mut command = program(&served);
    command.args(["console", "web"]);
    let mut child = pty.spawn(&mut command);
    pty.expect("Ctrl-] detaches");
    let mut guest = served.fake.console.lock().unwrap().take().unwrap();
    guest.write_all(b"login: ").unwrap();
    pty.expect("login: ");
    pty.write(b"root\r\x1d");
    let mut typed = [0; 5];
    guest.read_exact(&mut typed).unwrap();
    assert_eq!(&typed, b"root\r");
    assert!(child.wait().unwrap().success());
    assert_eq!(guest.read(&mut typed).unwrap(), 0, "the guest's end is closed");
    assert!(pty.echoes());
}

#[test]
fn cp_in_names_things_as_cp_does() {
    let served = Served::new(Fake::with(&["web"]));
    served
        .fake
        .files
        .lock()
        .unwrap()
        .insert("/srv/there".into(), b"x".to_vec());
    let dir = served.dir.path().join("data");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("a"), "first").unwrap();
    fs::write(dir.join("sub/b"), "second").unwrap();
    std::os::unix::fs::symlink("a", dir.join("link")).unwrap();
    let file = dir.join("a").display().to_string();
    let cases: [(&str, &str, &[&str], &str); 5] = [
        (&file, "/tmp/new", &["new"], "/tmp"),
        (&file, "/tmp/", &["a"], "/tmp"),
        (&file, "/srv", &["a"], "/srv"),           // a directory that exists
        (&file, "/srv/there", &["there"], "/srv"), // a file that exists
        (
            dir.to_str().unwrap(),
            "/opt/x",
            &["x", "x/a", "x/link", "x/sub", "x/sub/b"],
            "/opt",
        ),
    ];
    for (from, to, names, into) in cases {
        let output = martlet(&served, &["cp", from, &format!("web:{to}")]);
        assert_eq!(code(&output), 0, "{output:?}");
        let (put_into, bytes) = served.fake.put.lock().unwrap().pop().unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut entries: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                assert_eq!(entry.header().uid().unwrap(), 0, "belongs to root");
                entry
                    .path()
                    .unwrap()
                    .to_string_lossy()
                    .trim_end_matches('/')
                    .to_string()
            })
            .collect();
        entries.sort();
        assert_eq!(
            (put_into.as_str(), entries),
            (into, names.iter().map(|name| name.to_string()).collect()),
            "{to}"
        );
    }
    assert_eq!(code(&martlet(&served, &["cp", "/nonexistent", "web:/tmp/"])), 3);
    assert_eq!(code(&martlet(&served, &["cp", &file, "none:/tmp/x"])), 3);
    assert_eq!(code(&martlet(&served, &["cp", &file, "web:tmp"])), 2);
    assert_eq!(code(&martlet(&served, &["cp", &file, "elsewhere"])), 2);
    assert_eq!(code(&with_input(&served, &["cp", "-", "web:/x"], b"raw tar")), 0);
    assert_eq!(
        served.fake.put.lock().unwrap().pop().unwrap(),
        ("/x".into(), b"raw tar".to_vec())
    );
}

#[test]
fn cp_out_names_things_as_cp_does() {
    let served = Served::new(Fake::with(&["web"]));
    let big = vec![7; 3_000_000];
    for (path, content) in [("/d/a b", &b"first"[..]), ("/d/sub/b", b"second"), ("/big", &big)] {
        served
            .fake
            .files
            .lock()
            .unwrap()
            .insert(path.into(), content.to_vec());
    }
    let here = |name: &str| served.dir.path().join("here").join(name);
    fs::create_dir(here("")).unwrap();
    let cp = |from: &str, to: &Path| martlet(&served, &["cp", &format!("web:{from}"), to.to_str().unwrap()]);
    assert_eq!(code(&cp("/d/a b", &here("renamed"))), 0);
    assert_eq!(fs::read(here("renamed")).unwrap(), b"first");
    assert_eq!(code(&cp("/d", &here(""))), 0);
    assert_eq!(fs::read(here("d/sub/b")).unwrap(), b"second");
    assert_eq!(code(&cp("/d", &here("copy"))), 0);
    assert_eq!(fs::read(here("copy/a b")).unwrap(), b"first");
    assert_eq!(code(&cp("/big", &here("big"))), 0);
    assert!(fs::read(here("big")).unwrap() == big);
    let missing = cp("/none", &here("x"));
    assert_eq!(code(&missing), 3, "{missing:?}");
    assert!(!here("x").exists());
    let tar = martlet(&served, &["cp", "web:/d/a b", "-"]);
    assert_eq!(tar::Archive::new(&tar.stdout[..]).entries().unwrap().count(), 1);
    let left: Vec<_> = fs::read_dir(here(""))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 4, "no scratch directory is left: {left:?}");
}

#[test]
fn logs_are_copied_as_they_are() {
    let served = Served::new(Fake::with(&["web"]));
    assert_eq!(code(&martlet(&served, &["logs", "web"])), 3, "no log yet");
    let path = served.dir.path().join("console.log");
    fs::write(&path, b"boot\xff\x00\n").unwrap();
    *served.fake.log.lock().unwrap() = path;
    assert_eq!(martlet(&served, &["logs", "web"]).stdout, b"boot\xff\x00\n");
}

#[test]
fn interrupting_the_program_does_not_cut_a_checkpoint_short() {
    let served = Served::new(Fake::with(&[GATED]));
    let ((open, gate), (begun, begins)) = (channel(), channel());
    *served.fake.gate.lock().unwrap() = Some(gate);
    *served.fake.begun.lock().unwrap() = Some(begun);
    let mut child = program(&served)
        .args(["checkpoint", GATED])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    begins.recv().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    open.send(()).unwrap();
    while served.fake.checkpoints.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
}

#[test]
fn a_daemon_that_does_not_start_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_martlet"), bin.join("martlet")).unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(bin.join("martlet"));
        command
            .env("PATH", &bin)
            .env("MARTLET_STATE_DIR", dir.path().join("state"))
            .env("HOME", dir.path());
        command
            .env("MARTLET_SOCKET", dir.path().join("s"))
            .args(args)
            .output()
            .unwrap()
    };
    let missing = run(&["ps"]);
    assert_eq!(code(&missing), 5);
    assert!(err(&missing).contains("cannot start martletd"), "{missing:?}");
    assert_eq!(code(&run(&["daemon", "status"])), 3);
    assert_eq!(code(&run(&["daemon", "stop"])), 0);
    let script = "#!/bin/sh\necho '{\"level\":\"ERROR\",\"message\":\"the store is on fire\"}' >&2\nexit 1\n";
    fs::write(bin.join("martletd"), script).unwrap();
    fs::set_permissions(bin.join("martletd"), PermissionsExt::from_mode(0o755)).unwrap();
    let died = run(&["ps"]);
    assert_eq!(code(&died), 1);
    assert!(
        err(&died).contains("\ncause: the store is on fire\ntry: "),
        "{died:?}"
    );
    assert_eq!(code(&run(&["exec", "web", "true"])), 125);
}

#[test]
fn doctor_completions_and_man_need_no_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_martlet"));
        command
            .env("MARTLET_SOCKET", dir.path().join("s"))
            .env("MARTLET_STATE_DIR", dir.path());
        command.args(args).output().unwrap()
    };
    let doctor = run(&["doctor", "--json"]);
    let checks: Vec<martlet_api::Check> = serde_json::from_slice(&doctor.stdout).unwrap();
    assert!(checks.iter().any(|check| check.name == "qemu"));
    assert!(
        checks
            .iter()
            .all(|check| check.remedy.is_some() == (check.status != martlet_api::CheckStatus::Ok))
    );
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            out(&run(&["completions", shell])).contains("checkpoint"),
            "{shell}"
        );
    }
    let pages = dir.path().join("man");
    assert_eq!(code(&run(&["man", pages.to_str().unwrap()])), 0);
    let page = fs::read_to_string(pages.join("martlet.1")).unwrap();
    assert!(page.contains("Exit status:"), "exit codes are in the man page");
    assert!(pages.join("martlet-fork.1").exists());
    let head = Command::new("sh")
        .args([
            "-c",
            &format!("{} completions bash | head -1", env!("CARGO_BIN_EXE_martlet")),
        ])
        .output()
        .unwrap();
    assert_eq!(err(&head), "", "a reader that has seen enough is no error");
}

/// Not a test but the daemon of the next one, which starts this program again as `martletd`.
#[test]
#[ignore = "serves for ever; run by a_daemon_is_started_on_demand_and_answers_before_it_ends"]
fn daemon_in_memory() {
    let Ok(state_dir) = std::env::var("MARTLET_STATE_DIR") else {
        return;
    };
    let state_dir = Path::new(&state_dir).to_path_buf();
    let socket = std::env::var("MARTLET_SOCKET").unwrap();
    let fake = Fake::with(&[GATED]);
    let ((open, gate), (begun, begins)) = (channel(), channel());
    *fake.gate.lock().unwrap() = Some(gate);
    *fake.begun.lock().unwrap() = Some(begun);
    let dir = state_dir.clone();
    std::thread::spawn(move || {
        begins.recv().unwrap();
        fs::write(dir.join("begun"), "").unwrap();
        wait_for(|| dir.join("open").exists());
        open.send(()).unwrap();
    });
    martletd::daemon::run(&state_dir, Path::new(&socket), None, |_| Ok(fake), |_, _| Ok(())).unwrap();
    fs::write(state_dir.join("ended"), "").unwrap();
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    while !condition() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_daemon_is_started_on_demand_and_answers_before_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (bin, state, socket) = (
        dir.path().join("bin"),
        dir.path().join("state"),
        dir.path().join("run/s"),
    );
    fs::create_dir(&bin).unwrap();
    // By another process: a program that we have open for writing cannot be executed, and a thread beside us that starts
    // one just then keeps it open.
    let made = |line: String| assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
    made(format!(
        "cp {} {}",
        env!("CARGO_BIN_EXE_martlet"),
        bin.join("martlet").display()
    ));
    let this = std::env::current_exe().unwrap();
    made(format!(
        "printf '#!/bin/sh\\nexec {} --exact daemon_in_memory --ignored --nocapture\\n' > {1} && chmod 755 {1}",
        this.display(),
        bin.join("martletd").display()
    ));
    let martlet = |args: &[&str]| {
        let mut command = Command::new(bin.join("martlet"));
        command
            .env("MARTLET_STATE_DIR", &state)
            .env("MARTLET_SOCKET", &socket)
            .args(args);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    };
    let checkpoint = martlet(&["checkpoint", GATED]).spawn().unwrap();
    wait_for(|| state.join("begun").exists());
    assert_eq!(code(&martlet(&["daemon", "status"]).output().unwrap()), 0);
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let stop = martlet(&["daemon", "stop"]).spawn().unwrap();
    // Told to end, it takes no more requests, and still owes one answer.
    wait_for(|| std::os::unix::net::UnixStream::connect(&socket).is_err());
    assert!(!state.join("ended").exists());
    fs::write(state.join("open"), "").unwrap();
    let checkpoint = checkpoint.wait_with_output().unwrap();
    assert_eq!(code(&checkpoint), 0, "{checkpoint:?}");
    assert!(
        out(&checkpoint).starts_with("snapshot gated:1 "),
        "{checkpoint:?}"
    );
    assert_eq!(code(&stop.wait_with_output().unwrap()), 0);
    assert_eq!(code(&martlet(&["daemon", "status"]).output().unwrap()), 3);
}
