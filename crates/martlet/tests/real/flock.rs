//! Forks whose clones start at other hosts of the fleet.

use crate::allocators::places;
use crate::deadline::wait_for;
use crate::hosts::fleet;
use crate::{Daemon, Fixture};
use martlet_bench::roam::Site;
use martlet_lab::{Lab, Link};
use serde_json::{Value, json};
use std::path::Path;

const FILL: &str = "mkdir -p /dev/shm; for dir in /dev/shm /; do cd $dir; head -c 3000000 /dev/urandom > random; \
                    sha256sum random > sum; done; sync";
const RIGHT: &str =
    "for dir in /dev/shm /; do cd $dir && sha256sum -c sum >/dev/null || exit 1; done; hostname";

impl Daemon {
    /// Names of all machines.
    pub fn names(&self) -> Vec<String> {
        let machines = self.json(&["ps"]);
        let name = |machine: &Value| machine["name"].as_str().unwrap().to_owned();
        machines.as_array().unwrap().iter().map(name).collect()
    }
}

#[test]
fn clones_start_at_other_hosts_and_outlive_their_parents() {
    let here = Daemon::new(Fixture::Tiny);
    let (couch, attic) = (here.another(), here.another());
    fleet(&[(&here, "desk"), (&couch, "couch"), (&attic, "attic")]);
    here.ok(&["run", "tiny0:booted", "--name", "w"]);
    here.exec("w", FILL);

    let fork = here.json(&["fork", "w", "-n", "5", "--on", "desk,couch,attic"]);
    let clones = fork["clones"].as_array().unwrap();
    let of = |clone: &Value| {
        (
            clone["name"].clone(),
            clone["host"].clone(),
            clone["problem"].clone(),
        )
    };
    let told = |name: &str, host: Value| (json!(name), host, Value::Null);
    assert_eq!(
        clones.iter().map(of).collect::<Vec<_>>(),
        [
            told("w-1", Value::Null),
            told("w-2", json!("couch")),
            told("w-3", json!("attic")),
            told("w-4", Value::Null),
            told("w-5", json!("couch")),
        ]
    );
    let sent_bytes = fork["sent_bytes"].as_u64().unwrap();
    assert!((1..2 << 20).contains(&sent_bytes), "{sent_bytes}");
    for (daemon, name) in [(&here, "w-1"), (&couch, "w-2"), (&attic, "w-3"), (&couch, "w-5")] {
        assert_eq!(daemon.exec(name, RIGHT), name);
    }
    assert_eq!(here.exec("w", RIGHT), "w");

    // When all has come, nothing of the parent is needed.
    for daemon in [&couch, &attic] {
        wait_for("the rest", || daemon.json(&["away"]) == json!([]));
    }
    here.ok(&["rm", "--force", "w"]);
    here.kill_daemon();
    for (daemon, name) in [(&couch, "w-2"), (&attic, "w-3"), (&couch, "w-5")] {
        assert_eq!(daemon.exec(name, RIGHT), name);
    }
    // Nor is anything left of those that are gone.
    couch.ok(&["rm", "--force", "w-2", "w-5"]);
    assert_eq!(couch.names(), Vec::<String>::new());
    couch.ok(&["gc"]);
    let images = couch.json(&["images"]);
    let is_of = |image: &Value| image["machine"] == "w";
    assert!(!images.as_array().unwrap().iter().any(is_of), "{images}");
}

#[test]
fn a_host_that_fails_fails_its_clones_and_no_others() {
    let here = Daemon::new(Fixture::Tiny);
    let (couch, attic) = (here.another(), here.another());
    fleet(&[(&here, "desk"), (&couch, "couch"), (&attic, "attic")]);
    here.ok(&["run", "tiny0:booted", "--name", "w"]);
    let fails = |args: &[&str]| here.fails_with_input(args, "");
    assert_eq!(fails(&["fork", "w", "-n", "2", "--on", "cellar"]), "not_found");
    assert_eq!(
        fails(&["fork", "w", "-n", "2", "--on", "auto,couch"]),
        "invalid_argument"
    );

    // A name that is taken there, and a host that is gone.
    here.ok(&["fork", "w", "-n", "2", "--on", "desk,couch"]);
    here.ok(&["rm", "--force", "w-1"]);
    attic.kill_daemon();
    let output = here.call(&["--json", "fork", "w", "-n", "4", "--on", "desk,couch,attic"]);
    let fork: Value = serde_json::from_slice(&output.stdout).unwrap();
    let codes = fork["clones"].as_array().unwrap().iter();
    let codes: Vec<_> = codes.map(|clone| clone["problem"]["code"].clone()).collect();
    assert_eq!(
        codes,
        [Value::Null, json!("already_exists"), json!("busy"), Value::Null]
    );
    assert!(!output.status.success());
    assert_eq!(here.names(), ["w", "w-1", "w-4"]);
    assert_eq!(here.exec("w-4", "hostname"), "w-4");
    assert_eq!(couch.json(&["away"]), json!([]), "nothing comes for nobody");
}

#[test]
fn clones_do_what_they_are_told_and_go() {
    let here = Daemon::new(Fixture::Tiny);
    let couch = here.another();
    fleet(&[(&here, "desk"), (&couch, "couch")]);
    here.ok(&["run", "tiny0:booted", "--name", "w"]);
    let line = "echo {id} $(hostname); [ {id} = 2 ] && exit 7; [ {id} = 3 ] && sleep 100; true";
    let fork = ["fork", "w", "-n", "4", "--on", "desk,couch", "--timeout", "40"];
    let args = [&["--json"], &fork[..], &["--", "sh", "-c", line]].concat();
    let output = here.call(&args);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(8), "{told}");
    let clones = told["clones"].as_array().unwrap();
    let ends = |at: usize| {
        (
            &clones[at]["output"]["status"],
            &clones[at]["output"]["stdout"],
            &clones[at]["host"],
        )
    };
    assert_eq!(ends(0), (&json!({"code": 0}), &json!("1 w-1\n"), &Value::Null));
    assert_eq!(ends(1), (&json!({"code": 7}), &json!("2 w-2\n"), &json!("couch")));
    assert_eq!(clones[2]["problem"]["code"], "guest_failed");
    assert_eq!(ends(3), (&json!({"code": 0}), &json!("4 w-4\n"), &json!("couch")));
    assert_eq!((here.names(), couch.names()), (vec!["w".to_owned()], vec![]));
    assert_eq!(couch.json(&["away"]), json!([]));
    let images = here.ok(&["images"]);
    assert!(!images.contains("fork-"), "{images}");
    // Or stay.
    here.ok(&["fork", "w", "-n", "1", "--prefix", "k", "--keep", "--", "true"]);
    assert_eq!(here.names(), ["k-1", "w"]);
}

#[test]
fn a_command_runs_for_each_input_in_clones_here_and_there() {
    let here = Daemon::new(Fixture::Tiny);
    let couch = here.another();
    fleet(&[(&here, "desk"), (&couch, "couch")]);
    here.ok(&["run", "tiny0:booted", "--name", "w"]);
    let inputs: String = (1..=12).map(|number| format!("{number}\n")).collect();
    let map = ["map", "w", "-n", "3", "--on", "desk,couch"];
    let square = ["--", "sh", "-c", "echo $(({} * {}))"];
    let squares: String = (1..=12).map(|number| format!("{}\n", number * number)).collect();
    assert_eq!(
        here.ok_with_input(&[&map[..], &square].concat(), &inputs),
        squares.trim()
    );
    // Some fail: the others' outputs are there, and why.
    let bad = [
        "--json",
        "map",
        "w",
        "-n",
        "2",
        "--timeout",
        "20",
        "--",
        "sh",
        "-c",
        "case $0 in 2) exit 3;; 3) sleep 600;; esac; echo $0",
    ];
    let output = here.call_with_input(&bad, b"1\n2\n3\n4\n");
    assert_eq!(output.status.code(), Some(8));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |at: usize| &report["outputs"][at];
    assert_eq!(
        (&of(0)["output"]["stdout"], &of(3)["output"]["stdout"]),
        (&json!("1\n"), &json!("4\n"))
    );
    assert_eq!(of(1)["output"]["status"], json!({"code": 3}));
    assert!(
        of(2)["problem"]["message"]
            .as_str()
            .unwrap()
            .contains("was killed")
    );
    // A clone that ends takes no input with it: another one does it.
    let once = [
        "map",
        "w",
        "-n",
        "2",
        "--",
        "sh",
        "-c",
        "[ $0 != end ] || [ -e /sys/class/net/eth0 -a $(hostname) != w-1 ] || { echo o > /proc/sysrq-trigger; sleep 60; }; echo $0",
    ];
    assert_eq!(here.ok_with_input(&once, "end\na\nb\n"), "end\na\nb");
    wait_for("the end of all clones", || {
        here.names() == ["w"] && couch.names().is_empty()
    });
    assert_eq!(
        here.fails_with_input(&["map", "w", "--", "true"], ""),
        "invalid_argument"
    );
}

#[test]
fn a_host_whose_disk_is_full_fails_its_clones_and_no_others() {
    let here = Daemon::new(Fixture::Tiny);
    let (couch, attic) = (here.another(), here.another());
    couch.on_small_disk();
    fleet(&[(&here, "desk"), (&couch, "couch"), (&attic, "attic")]);
    here.ok(&["run", "tiny0:booted", "--name", "w"]);
    here.exec("w", FILL);
    let fork = |prefix: &str| {
        let clones = here.clones(&["fork", "w", "-n", "2", "--on", "couch,attic", "--prefix", prefix]);
        let mut told = places(&clones);
        let elsewhere = told.pop().unwrap();
        assert_eq!(elsewhere, "attic", "{clones:?}");
        attic.exec(&format!("{prefix}-2"), RIGHT);
        attic.ok(&["rm", "--force", &format!("{prefix}-2")]);
        told.pop().unwrap()
    };
    // There is room for nothing, then for some of what a clone needs. Each time its user is told, or it is right.
    for left_mib in [0u64, 1, 4] {
        let ballast = couch.fill_up(left_mib);
        let prefix = format!("left{left_mib}");
        match &fork(&prefix)[..] {
            "no_space" => assert!(couch.names().is_empty(), "{:?}", couch.names()),
            "couch" if left_mib > 0 => drop(couch.ok(&["rm", "--force", &format!("{prefix}-1")])),
            other => panic!("{left_mib} MiB left: {other}"),
        };
        here.exec("w", RIGHT);
        std::fs::remove_file(ballast).unwrap();
        couch.ok(&["gc"]);
        assert_eq!(couch.json(&["away"]), json!([]));
        assert_eq!(couch.json(&["verify"])["damaged"], json!([]));
    }
    // With room, all is as if nothing had been.
    assert_eq!(fork("room"), "couch");
    couch.exec("room-1", RIGHT);
    wait_for("all of it", || couch.json(&["away"]) == json!([]));
    // A disk that fills up while the rest comes: what has come is read all the same, and the rest comes when there is room.
    here.exec("w", FILL);
    let ballast = couch.fill_up(6);
    if fork("meanwhile") == "couch" {
        couch.exec("meanwhile-1", RIGHT);
        std::fs::remove_file(&ballast).unwrap();
        wait_for("the rest", || couch.json(&["away"]) == json!([]));
        couch.exec("meanwhile-1", RIGHT);
    }
    here.exec("w", RIGHT);
    assert_eq!(couch.json(&["verify"])["damaged"], json!([]));
}

#[test]
fn what_clones_lack_that_are_over_does_not_come() {
    let _turn = Daemon::empty(); // it is never started
    let lab = Lab::new().unwrap();
    let site = |name| Site::new(&lab, name, Path::new(env!("CARGO_BIN_EXE_martlet"))).unwrap();
    let (desk, couch) = (site("desk"), site("couch"));
    Fixture::Tiny.copy_to(desk.state_dir());
    desk.found_fleet().unwrap();
    desk.admit(&couch).unwrap();
    // The clones work long before all has come.
    let slow = Link {
        rate_mbit: Some(8.0),
        ..Link::local()
    };
    couch.set_link(slow).unwrap();
    for name in ["v", "w"] {
        desk.run(&["run", "tiny0:booted", "--name", name]).unwrap();
        desk.run(&["fork", name, "--on", "couch"]).unwrap();
    }
    let away = couch.run(&["away"]).unwrap();
    assert_eq!(away.as_array().unwrap().len(), 2, "{away}");
    // They lack much of the same: who goes first leaves it to the other, who goes last to nobody.
    couch.run(&["rm", "--force", "v-1"]).unwrap();
    let away = couch.run(&["away"]).unwrap();
    assert_eq!(away.as_array().unwrap().len(), 1, "{away}");
    couch.run(&["rm", "--force", "w-1"]).unwrap();
    assert_eq!(couch.run(&["away"]).unwrap(), json!([]));
    couch.run(&["gc"]).unwrap();
    let images = couch.run(&["images"]).unwrap();
    assert_eq!(images, json!([]));
}
