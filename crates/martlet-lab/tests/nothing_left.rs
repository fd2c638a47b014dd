//! Nothing of a lab is left behind. One test after the other, in a process of their own: they count.

use martlet_lab::{Lab, Link};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

/// Ends with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(60), "never {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn count(dir: &str) -> usize {
    fs::read_dir(dir).unwrap().count()
}

/// Is there an `eth0` where this process is?
fn has_network(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/net/dev"))
        .unwrap()
        .contains("eth0:")
}

#[test]
fn nothing_is_left_of_a_lab_that_was_dropped_or_whose_process_was_killed() {
    dropped();
    killed();
}

fn dropped() {
    let counts = || (count("/proc/self/task"), count("/proc/self/fd"));
    let before = counts();
    let lab = Lab::new().unwrap();
    let host = lab.host("a", Link::local()).unwrap();
    lab.host("b", Link::local()).unwrap();
    let program = Program(host.command("sleep").arg("1000").spawn().unwrap());
    assert!(has_network(program.0.id()));
    drop(lab);
    assert!(has_network(program.0.id()), "a host keeps its lab");
    drop(host);
    wait_until("without an interface", || !has_network(program.0.id()));
    drop(program);
    wait_until("as before", || counts() == before);
}

fn killed() {
    let mut process = Program(
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "process_that_is_killed", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
    let program: u32 = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("program ")?.parse().ok())
        .unwrap();
    assert!(has_network(program));
    process.0.kill().unwrap();
    wait_until("without an interface", || !has_network(program));
    kill(Pid::from_raw(program as i32), Signal::SIGKILL).unwrap();
}

#[test]
#[ignore = "the process that the other test kills"]
fn process_that_is_killed() {
    let lab = Lab::new().unwrap();
    let host = lab.host("a", Link::local()).unwrap();
    let mut program = host.command("sleep");
    program.arg("1000").stdin(Stdio::null()).stdout(Stdio::null());
    let mut program = program.spawn().unwrap();
    println!("\nprogram {}", program.id());
    std::io::stdout().flush().unwrap();
    program.wait().unwrap();
}
