//! Clones whose places are Slurm's: with its own daemons, as Debian has them.

use crate::allocators::{Plugins, places};
use crate::deadline::wait_for;
use crate::hosts::fleet;
use crate::{Daemon, Fixture};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A cluster whose nodes are all this machine; each has room for two guests of 128 MiB.
struct Slurm {
    dir: TempDir,
    daemons: Vec<Child>,
}

impl Slurm {
    fn start(nodes: &[&str]) -> Self {
        let mut slurm = Self {
            dir: tempfile::tempdir().unwrap(),
            daemons: Vec::new(),
        };
        let path = |name: &str| slurm.dir.path().join(name).to_string_lossy().into_owned();
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let host = host.trim().split('.').next().unwrap().to_owned();
        let listeners: Vec<_> = (0..=nodes.len())
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
            .collect();
        let ports: Vec<u16> = listeners
            .iter()
            .map(|one| one.local_addr().unwrap().port())
            .collect();
        drop(listeners);
        let mut conf = format!(
            "ClusterName=martlet\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={}\nAuthType=auth/munge\n\
             AuthInfo=socket={}\nSlurmUser=root\nSlurmdUser=root\nMpiDefault=none\nProctrackType=proctrack/pgid\n\
             TaskPlugin=task/none\nSelectType=select/cons_tres\nSelectTypeParameters=CR_Core_Memory\nReturnToService=2\n\
             StateSaveLocation={}\nSlurmdSpoolDir={}/%n\nSlurmdPidFile={}/slurmd-%n.pid\nSlurmctldPidFile={}\n\
             SlurmdParameters=config_overrides\nSchedulerParameters=sched_interval=1\nKillWait=2\n\
             PartitionName=all Nodes=ALL Default=YES State=UP\n",
            ports[0],
            path("munge.sock"),
            path("state"),
            path("spool"),
            path(""),
            path("slurmctld.pid"),
        );
        for (node, port) in nodes.iter().zip(&ports[1..]) {
            conf += &format!(
                "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=300\n"
            );
        }
        fs::write(path("slurm.conf"), conf).unwrap();
        fs::write(path("munge.key"), [7; 1024]).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o400);
        fs::set_permissions(path("munge.key"), private).unwrap();
        fs::create_dir(path("state")).unwrap();
        fs::create_dir(path("spool")).unwrap();

        let of_munge = [
            ("--key-file", "munge.key"),
            ("--socket", "munge.sock"),
            ("--pid-file", "munged.pid"),
            ("--log-file", "munged.log"),
            ("--seed-file", "munge.seed"),
        ];
        let mut munged = vec!["--foreground".to_owned(), "--force".to_owned()];
        munged.extend(of_munge.map(|(option, name)| format!("{option}={}", path(name))));
        let socket = path("munge.sock");
        slurm.spawn("munged", &munged);
        wait_for("munged", || fs::exists(&socket).unwrap());
        slurm.spawn("slurmctld", &["-D", "-c"].map(str::to_owned));
        for node in nodes {
            slurm.spawn("slurmd", &["-D", "-N", *node].map(str::to_owned));
        }
        wait_for("the nodes", || {
            let states = slurm.ask("sinfo", &["-h", "-N", "-o", "%T"]);
            states.lines().filter(|state| *state == "idle").count() == nodes.len()
        });
        slurm
    }

    fn conf(&self) -> PathBuf {
        self.dir.path().join("slurm.conf")
    }

    fn spawn(&mut self, program: &str, args: &[String]) {
        let log =
            fs::File::create(self.dir.path().join(format!("{program}-{}", self.daemons.len()))).unwrap();
        let mut command = Command::new(program);
        command
            .args(args)
            .env("SLURM_CONF", self.conf())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let daemon = command.spawn();
        let daemon = daemon.unwrap_or_else(|error| panic!("{program}: {error}: script/bootstrap --tests"));
        self.daemons.push(daemon);
    }

    fn ask(&self, program: &str, args: &[&str]) -> String {
        let output = Command::new(program)
            .args(args)
            .env("SLURM_CONF", self.conf())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// States and processors of its jobs.
    fn jobs(&self) -> String {
        self.ask("squeue", &["-h", "-o", "%T %C"])
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

#[test]
fn an_allocation_of_slurm_is_a_ticket_and_its_end_ends_the_clones() {
    let mut here = Daemon::new(Fixture::Tiny);
    let (couch, attic) = (here.another(), here.another());
    let slurm = Slurm::start(&["desk", "couch", "attic"]);
    let plugins = Plugins::new();
    let plugin = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/allocators/slurm");
    plugins.add("slurm", &fs::read(plugin).unwrap());
    here.set_env("MARTLET_ALLOCATORS", &plugins.dir().to_string_lossy());
    here.set_env("SLURM_CONF", &slurm.conf().to_string_lossy());
    here.set_env("MARTLET_SLURM_WAIT", "2");
    fleet(&[(&here, "desk"), (&couch, "couch"), (&attic, "attic")]);
    here.ok(&[
        "run",
        "tiny0:booted",
        "--name",
        "w",
        "--fork-by",
        "root",
        "--fork-on",
        "plugin:slurm",
    ]);
    let clones = || here.names().len() + couch.names().len() + attic.names().len() - 1;

    // All fit.
    let fork = here.clones(&["fork", "w", "-n", "5", "--on", "plugin:slurm"]);
    let mut told = places(&fork);
    told.sort();
    assert_eq!(told.len(), 5);
    for host in ["attic", "couch", "here"] {
        let count = told.iter().filter(|place| *place == host).count();
        assert!((1..=2).contains(&count), "{told:?}");
    }
    assert_eq!((slurm.jobs().as_str(), clones()), ("RUNNING 5", 5));
    // Its end is theirs.
    slurm.ask("scancel", &["--name", "martlet-w"]);
    wait_for("the end of the clones", || clones() == 0);
    wait_for("the end of the job", || slurm.jobs().is_empty());

    // Fewer fit; their end is the job's.
    let fork = here.clones(&["fork", "w", "-n", "7", "--on", "plugin:slurm", "--", "hostname"]);
    let mut told = places(&fork);
    told.sort();
    assert_eq!(
        told,
        ["attic", "attic", "couch", "couch", "here", "here", "no_space"]
    );
    wait_for("the end of the job", || slurm.jobs().is_empty());

    // A ticket of a program in the guest.
    let inside = |line: &str| {
        [
            "exec".into(),
            "w".into(),
            "--".into(),
            "sh".into(),
            "-c".into(),
            format!("export PATH=$PATH:/run/martlet; {line}"),
        ]
    };
    let line = inside("martlet-guest fork 3 -- sleep 1000");
    let program = here.begin(&line.each_ref().map(String::as_str));
    wait_for("the clones", || clones() == 3);
    assert_eq!(slurm.jobs(), "RUNNING 3");
    slurm.ask("scancel", &["--name", "martlet-w"]);
    let output = program.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(words.contains("Slurm has ended job"), "{words}");
    wait_for("the end of the clones", || clones() == 0);
}
