//! Who says where clones go: plug-ins, and what a host takes.

use crate::deadline::wait_for;
use crate::hosts::fleet;
use crate::{Daemon, Fixture};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use tempfile::TempDir;

/// A directory of plug-ins, which note there what they are asked, and when they are given back.
pub struct Plugins(TempDir);

impl Plugins {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }

    pub fn dir(&self) -> &Path {
        self.0.path()
    }

    pub fn add(&self, name: &str, program: &[u8]) {
        let path = self.path(name);
        fs::write(&path, program).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// One that grants this, does that, and waits to be given back.
    fn add_granting(&self, name: &str, granted: &Value, then: &str) {
        let (asked, back) = (self.path("asked"), self.path("back"));
        let line = json!({ "granted": granted });
        let script = format!(
            "#!/bin/sh\nread -r request\nprintf %s \"$request\" > {}\necho '{line}'\n{then}\ncat > /dev/null\necho back >> {}\n",
            asked.display(),
            back.display()
        );
        self.add(name, script.as_bytes());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// How many allocations were given back.
    fn given_back(&self) -> usize {
        let back = fs::read_to_string(self.path("back")).unwrap_or_default();
        back.lines().count()
    }
}

impl Daemon {
    /// The command line with these arguments, at work.
    pub fn begin(&self, args: &[&str]) -> Child {
        let mut command = self.command(&[&["--json"], args].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// A fork's clones, however it ended.
    pub fn clones(&self, args: &[&str]) -> Vec<Value> {
        let output = self.call(&[&["--json"], args].concat());
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{words}"));
        report["clones"].as_array().unwrap().clone()
    }
}

/// Where each clone is, or the code of why not.
pub fn places(clones: &[Value]) -> Vec<String> {
    let place = |clone: &Value| match (&clone["problem"]["code"], &clone["host"]) {
        (Value::String(code), _) => code.clone(),
        (_, Value::String(host)) => host.clone(),
        _ => "here".into(),
    };
    clones.iter().map(place).collect()
}

#[test]
fn a_plug_in_says_where_clones_go_and_they_are_gone_when_it_is_over() {
    let mut here = Daemon::new(Fixture::Tiny);
    let (couch, attic) = (here.another(), here.another());
    let plugins = Plugins::new();
    here.set_env("MARTLET_ALLOCATORS", &plugins.dir().to_string_lossy());
    fleet(&[(&here, "desk"), (&couch, "couch"), (&attic, "attic")]);
    here.ok(&[
        "run",
        "tiny0:booted",
        "--name",
        "w",
        "--fork-by",
        "root",
        "--fork-on",
        "plugin:some",
    ]);
    let granted = json!([{"host": "couch", "count": 2}, {"host": "attic", "count": 1}]);
    plugins.add_granting("some", &granted, "");

    let clones = here.clones(&["fork", "w", "-n", "4", "--on", "plugin:some"]);
    assert_eq!(places(&clones), ["couch", "couch", "attic", "no_space"]);
    let asked: Value = serde_json::from_slice(&fs::read(plugins.path("asked")).unwrap()).unwrap();
    let asked = &asked["allocate"];
    assert_eq!((&asked["count"], &asked["machine"]), (&json!(4), &json!("w")));
    assert_eq!(asked["memory_bytes"], 128 << 20);
    let hosts = asked["hosts"].as_array().unwrap().iter();
    assert_eq!(
        hosts.map(|host| &host["name"]).collect::<Vec<_>>(),
        ["desk", "couch", "attic"]
    );
    // It is held by clones that stay, until the last of them is gone.
    couch.ok(&["rm", "--force", "w-1", "w-2"]);
    assert_eq!(plugins.given_back(), 0);
    attic.ok(&["rm", "--force", "w-3"]);
    wait_for("the allocation to be given back", || plugins.given_back() == 1);
    // Or by their work.
    let clones = here.clones(&["fork", "w", "-n", "3", "--on", "plugin:some", "--", "hostname"]);
    assert_eq!(places(&clones), ["couch", "couch", "attic"]);
    assert_eq!(plugins.given_back(), 2);
    let squares = here.ok_with_input(
        &[
            "map",
            "w",
            "-n",
            "3",
            "--on",
            "plugin:some",
            "--",
            "sh",
            "-c",
            "echo $(({} * {}))",
        ],
        "2\n3\n4\n5\n",
    );
    assert_eq!((squares.as_str(), plugins.given_back()), ("4\n9\n16\n25", 3));
    // Or by the daemon's death.
    let clones = here.clones(&["fork", "w", "-n", "3", "--on", "plugin:some", "--prefix", "k"]);
    assert_eq!(places(&clones), ["couch", "couch", "attic"]);
    here.kill_daemon();
    wait_for("the allocation to be given back", || plugins.given_back() == 4);
    assert_eq!(attic.names(), ["k-3"], "what runs is not lost with it");
    // So is a ticket of a program in the guest, also one that is not used.
    let inside = |line: &str| here.exec("w", &format!("export PATH=$PATH:/run/martlet; {line}"));
    inside("martlet-guest fork 3 -- true");
    wait_for("the ticket to be given back", || plugins.given_back() == 5);
    assert_eq!(inside("martlet-guest ticket 9 | cut -d' ' -f2"), "3");
    here.ok(&["rm", "--force", "w"]);
    wait_for("the unused ticket to be given back", || plugins.given_back() == 6);
}

#[test]
fn the_end_of_an_allocation_is_the_end_of_its_clones() {
    let mut here = Daemon::new(Fixture::Tiny);
    let (couch, attic) = (here.another(), here.another());
    let plugins = Plugins::new();
    here.set_env("MARTLET_ALLOCATORS", &plugins.dir().to_string_lossy());
    fleet(&[(&here, "desk"), (&couch, "couch"), (&attic, "attic")]);
    here.ok(&["run", "tiny0:booted", "--name", "w"]);
    let granted = ["desk", "couch", "attic"].map(|host| json!({"host": host, "count": 1}));
    let end = plugins.path("end");
    let wait = format!("while ! [ -e {} ]; do sleep 0.05; done", end.display());
    plugins.add_granting(
        "one-each",
        &json!(granted),
        &format!("{wait}; echo '{{\"ended\":\"reclaimed\"}}'"),
    );
    plugins.add_granting("dies", &json!(granted), &format!("{wait}; kill -9 $$"));
    let names = || [here.names(), couch.names(), attic.names()];
    let started = || names().iter().map(Vec::len).sum::<usize>() == 4;
    let gone = || names().iter().map(Vec::len).sum::<usize>() == 1;

    let mut work = here.begin(&[
        "fork",
        "w",
        "-n",
        "3",
        "--on",
        "plugin:one-each",
        "--",
        "sleep",
        "1000",
    ]);
    wait_for("the clones", started);
    assert!(work.try_wait().unwrap().is_none());
    fs::write(&end, "").unwrap();
    let output = work.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let clones = report["clones"].as_array().unwrap();
    assert_eq!(places(clones), ["wrong_state"; 3], "{report}");
    for clone in clones {
        let problem = &clone["problem"];
        assert_eq!(problem["message"], "the allocation by one-each has ended");
        assert_eq!(problem["cause"], "reclaimed");
    }
    wait_for("the end of the clones", gone);
    assert_eq!(here.names(), ["w"]);

    // Clones that stay, when the program dies.
    fs::remove_file(&end).unwrap();
    let clones = here.clones(&["fork", "w", "-n", "3", "--on", "plugin:dies"]);
    assert_eq!(places(&clones), ["here", "couch", "attic"]);
    assert!(started());
    fs::write(&end, "").unwrap();
    wait_for("the end of the clones", gone);
    assert_eq!(here.exec("w", "echo well"), "well");

    for (name, code) in [("plugin:none", "not_found"), ("plugin:../x", "invalid_argument")] {
        let fork = ["fork", "w", "-n", "1", "--on", name];
        let (_, words) = here.refused(&[&["--json"], &fork[..]].concat());
        assert!(
            words.contains(code) || words.contains("not a valid name"),
            "{words}"
        );
    }
}

#[test]
fn a_host_takes_so_many_clones_and_auto_asks_only_hosts_that_could() {
    let here = Daemon::new(Fixture::Tiny);
    let (mut couch, mut attic) = (here.another(), here.another());
    couch.set_env("MARTLET_CLONES_MAX", "2");
    let dir = Plugins::new();
    let words = "#!/bin/sh\ncase \"$*\" in\n*-machine?help*) qemu-system-x86_64 \"$@\" | grep -v pc-q35 ;;\n\
                 *) exec qemu-system-x86_64 \"$@\" ;;\nesac\n";
    dir.add("qemu-system-x86_64", words.as_bytes());
    let other_qemu = dir.path("qemu-system-x86_64");
    attic.set_env("MARTLET_QEMU", &other_qemu.to_string_lossy());
    fleet(&[(&here, "desk"), (&couch, "couch"), (&attic, "attic")]);
    here.ok(&["run", "tiny0:booted", "--name", "w"]);

    let clones = here.clones(&["fork", "w", "-n", "3", "--on", "couch"]);
    let mut told = places(&clones);
    told.sort();
    assert_eq!(told, ["couch", "couch", "no_space"]);
    let auto = here.clones(&["fork", "w", "-n", "3", "--on", "auto", "--prefix", "a"]);
    assert_eq!(
        places(&auto),
        ["here"; 3],
        "one has its clones, the other could not"
    );
    let names = couch.names();
    couch.ok(&["rm", "--force", &names[0]]);
    let again = here.clones(&["fork", "w", "-n", "1", "--on", "couch", "--prefix", "b"]);
    assert_eq!(places(&again), ["couch"]);
    let none = here.clones(&["fork", "w", "-n", "1", "--on", "attic", "--prefix", "c"]);
    assert_eq!(places(&none), ["incompatible"]);
}

#[test]
fn a_user_has_so_many_clones_at_a_host_and_another_has_as_many() {
    let here = Daemon::new(Fixture::Tiny);
    let (mut couch, mut afar) = (here.another(), here.another());
    couch.set_env("MARTLET_CLONES_EACH", "2");
    fleet(&[(&here, "desk"), (&couch, "couch")]);
    let config = tempfile::tempdir().unwrap();
    afar.set_env("XDG_CONFIG_HOME", &config.path().to_string_lossy());
    let line = here.ok(&["token", "create", "lab", "--role", "run"]);
    afar.ok_with_input(&["login", "--name", "desk"], &line);
    here.ok(&["run", "tiny0:booted", "--name", "w"]);

    // Whoever uses the socket is one user, and a token another one; both go to the other host by way of this one.
    let clones = here.clones(&["fork", "w", "-n", "3", "--on", "couch"]);
    let mut told = places(&clones);
    told.sort();
    assert_eq!(told, ["couch", "couch", "no_space"]);
    let asks = |args: &[&str]| afar.clones(&[&["--host", "desk"], args].concat());
    let clones = asks(&["fork", "w", "-n", "2", "--on", "couch", "--prefix", "l"]);
    assert_eq!(places(&clones), ["couch"; 2]);
    let top = here.json(&["host", "top"]);
    let of_couch = &top[1]["usage"];
    assert_eq!(
        of_couch["clones_by_user"],
        json!({"the users of desk": 2, "token lab of desk": 2}),
        "{top}"
    );
    // Who has all of its there is placed elsewhere.
    let auto = asks(&["fork", "w", "-n", "2", "--on", "auto", "--prefix", "a"]);
    assert_eq!(places(&auto), ["here"; 2]);
    // A clone that is gone makes room for its user alone.
    couch.ok(&["rm", "--force", "w-1"]);
    let told = |clones: &[Value]| places(clones).join(" ");
    assert_eq!(
        told(&asks(&["fork", "w", "-n", "1", "--on", "couch", "--prefix", "m"])),
        "no_space"
    );
    assert_eq!(
        told(&here.clones(&["fork", "w", "-n", "1", "--on", "couch", "--prefix", "n"])),
        "couch"
    );
    // One that is suspended leaves its place to another, and waits for the next.
    couch.ok(&["suspend", "n-1"]);
    assert_eq!(
        told(&here.clones(&["fork", "w", "-n", "1", "--on", "couch", "--prefix", "o"])),
        "couch"
    );
    assert_eq!(couch.fails_with_input(&["resume", "n-1"], ""), "no_space");
    couch.ok(&["rm", "--force", "o-1"]);
    couch.ok(&["resume", "n-1"]);
}
