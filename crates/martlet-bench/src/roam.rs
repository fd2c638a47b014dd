//! Hosts of a lab that machines roam between, and a bucket that both reach.

use crate::BenchError;
use martlet_lab::{Host, Lab, Link};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

mod bare;
mod bridge;
mod census;
mod copying;
mod disturb;
mod multicasting;
mod pings;
mod small_disk;

pub use bare::Bare;
pub use bridge::TAP;
pub use census::Census;
pub use copying::copy_to_all;
pub use multicasting::multicast_to_all;
pub use pings::Pings;
pub use small_disk::{Ballast, SmallDisk};

const START_TIMEOUT: Duration = Duration::from_secs(60);
const S3_PORT: u16 = 8333;
const PEER_PORT: u16 = 7077;
const BUCKET: &str = "martlet";
const KEY: &str = "bench-key";
const SECRET: &str = "bench-secret";

/// What has to be installed that is not.
pub fn missing() -> Vec<&'static str> {
    let is_there = |program: &&str| {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&paths).any(|dir| dir.join(program).exists())
    };
    ["weed", "curl"]
        .into_iter()
        .filter(|program| !is_there(program))
        .collect()
}

/// A host with a daemon and a state of its own, driven by the command line.
#[derive(Debug)]
pub struct Site {
    host: Host,
    /// Of the state directory: goes before that does.
    disk: Option<SmallDisk>,
    state: tempfile::TempDir,
    program: PathBuf,
    env: Vec<(String, String)>,
}

impl Site {
    /// One of a lab, with nothing in its store. `program` is the command line.
    pub fn new(lab: &Lab, name: &str, program: &Path) -> Result<Self, BenchError> {
        let state = tempfile::Builder::new().prefix("martlet-roam-").tempdir();
        let state = state.map_err(BenchError::io("make a directory"))?;
        // QEMU, which runs unprivileged, has to get through.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(state.path(), open).map_err(BenchError::io("open a directory"))?;
        Ok(Self {
            host: lab.host(name, Link::local()).map_err(lab_failed)?,
            disk: None,
            state,
            program: program.to_owned(),
            env: Vec::new(),
        })
    }

    /// One whose state directory is a disk of so many MiB.
    pub fn on_small_disk(lab: &Lab, name: &str, program: &Path, size_mib: u64) -> Result<Self, BenchError> {
        let mut site = Self::new(lab, name, program)?;
        site.disk = Some(SmallDisk::mount(site.state.path(), size_mib)?);
        Ok(site)
    }

    /// What it is called, also among the hosts of its fleet.
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// The disk of its own that its state is on, if it has one.
    pub fn disk(&self) -> Option<&SmallDisk> {
        self.disk.as_ref()
    }

    /// Has its link be like this.
    pub fn set_link(&self, link: Link) -> Result<(), BenchError> {
        self.host.set_link(link).map_err(lab_failed)
    }

    /// An environment variable for every later command, and for the daemon that it may start.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.retain(|(set, _)| set != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Its state directory.
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    fn peer_address(&self) -> String {
        format!("{}:{PEER_PORT}", self.host.address())
    }

    /// Has this be the first host of a fleet, in which each is called as its host is.
    pub fn found_fleet(&self) -> Result<(), BenchError> {
        self.run(&["host", "init", self.host.name(), &self.peer_address()])
            .map(drop)
    }

    /// Has another host be of its fleet.
    pub fn admit(&self, other: &Self) -> Result<(), BenchError> {
        let until = Instant::now() + START_TIMEOUT;
        loop {
            // An invitation is good once, and the first host may not listen yet.
            let line = self.run(&["host", "invite"])?;
            let line = line["invitation"].as_str().unwrap_or_default();
            let joined =
                other.run_with_input(&["host", "join", other.host.name(), &other.peer_address()], line);
            if joined.is_ok() || Instant::now() > until {
                return joined;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// How many bytes have come to it from other hosts.
    pub fn received_bytes(&self) -> Result<u64, BenchError> {
        self.interface_count(0)
    }

    /// How many bytes it has sent to other hosts: what goes to several at once is counted once.
    pub fn sent_bytes(&self) -> Result<u64, BenchError> {
        self.interface_count(8)
    }

    /// One of the counts that the kernel has of its interface.
    fn interface_count(&self, column: usize) -> Result<u64, BenchError> {
        let read = self
            .host
            .run(|| std::fs::read_to_string("/proc/thread-self/net/dev"));
        let table = read.map_err(lab_failed)?.map_err(BenchError::io("read a file"))?;
        // `eth0: bytes packets …`, after two lines of header.
        let of_interface = |line: &str| {
            let (name, counts) = line.split_once(':')?;
            let count = counts.split_ascii_whitespace().nth(column)?.parse::<u64>().ok()?;
            (name.trim() != "lo").then_some(count)
        };
        Ok(table.lines().skip(2).filter_map(of_interface).sum())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.host.command(&self.program);
        command
            .args(["--json", "--quiet"])
            .args(args)
            .env("MARTLET_STATE_DIR", self.state.path())
            .env("MARTLET_SOCKET", self.state.path().join("martletd.sock"))
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// A command of the command line; its answer.
    pub fn run(&self, args: &[&str]) -> Result<Value, BenchError> {
        Ok(serde_json::from_str(&self.output(args)?).unwrap_or_default())
    }

    /// A command of the command line; what it wrote.
    pub fn output(&self, args: &[&str]) -> Result<String, BenchError> {
        let output = self
            .command(args)
            .output()
            .map_err(BenchError::io("run martlet"))?;
        if !output.status.success() {
            // When some clones failed, the report says which.
            let [written, said] =
                [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
            let words = if said.is_empty() { written } else { said };
            return Err(BenchError::Other(format!("martlet {}: {words}", args.join(" "))));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A line of shell in a guest of it.
    pub fn exec(&self, machine: &str, line: &str) -> Result<(), BenchError> {
        self.run(&["exec", machine, "--", "sh", "-c", line]).map(drop)
    }

    /// A command with this standard input.
    pub fn run_with_input(&self, args: &[&str], input: &str) -> Result<(), BenchError> {
        use std::io::Write;
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().map_err(BenchError::io("run martlet"))?;
        let mut stdin = child.stdin.take();
        let written = stdin
            .as_mut()
            .map_or(Ok(()), |stdin| stdin.write_all(input.as_bytes()));
        drop(stdin);
        written.map_err(BenchError::io("talk to martlet"))?;
        match child.wait().map_err(BenchError::io("run martlet"))?.success() {
            true => Ok(()),
            false => Err(BenchError::Other(format!("martlet {} failed", args.join(" ")))),
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // As far as it goes: what is left is in a directory of its own.
        if let Ok(machines) = self.run(&["ps"]) {
            for machine in machines.as_array().into_iter().flatten() {
                if let Some(name) = machine["name"].as_str() {
                    let _ = self.run(&["rm", "--force", name]);
                }
            }
        }
        let _ = self.run(&["daemon", "stop"]);
    }
}

/// An S3 server of its own, on a host of its own.
#[derive(Debug)]
pub struct Bucket {
    host: Host,
    server: Child,
    dir: tempfile::TempDir,
}

impl Bucket {
    /// Starts one in a lab.
    pub fn start(lab: &Lab) -> Result<Self, BenchError> {
        let host = lab.host("store", Link::local()).map_err(lab_failed)?;
        let dir = tempfile::tempdir().map_err(BenchError::io("make a directory"))?;
        let (config, data) = (dir.path().join("s3.json"), dir.path().join("data"));
        let identity = serde_json::json!({"identities": [{
            "name": "bench",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List"],
        }]});
        std::fs::write(&config, identity.to_string()).map_err(BenchError::io("write a file"))?;
        std::fs::write(dir.path().join("secret"), SECRET).map_err(BenchError::io("write a file"))?;
        std::fs::create_dir(&data).map_err(BenchError::io("make a directory"))?;
        // It ends with this process, however that ends.
        let mut command = host.command("setpriv");
        command
            .current_dir(dir.path())
            .args(["--pdeathsig", "KILL", "weed"])
            .args([
                "server",
                "-s3",
                "-master.telemetry=false",
                "-master.volumeSizeLimitMB=64",
                "-volume.max=200",
            ])
            .arg("-ip=127.0.0.1")
            .arg("-ip.bind=0.0.0.0")
            .arg(format!("-dir={}", data.display()))
            .arg(format!("-s3.config={}", config.display()))
            .arg(format!("-s3.port={S3_PORT}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let server = command.spawn().map_err(BenchError::io("start weed"))?;
        let bucket = Self { host, server, dir };
        bucket.make()?;
        Ok(bucket)
    }

    fn make(&self) -> Result<(), BenchError> {
        let until = Instant::now() + START_TIMEOUT;
        loop {
            let mut command = self.host.command("curl");
            command
                .args([
                    "-fsS",
                    "--max-time",
                    "10",
                    "-X",
                    "PUT",
                    "--aws-sigv4",
                    "aws:amz:us-east-1:s3",
                ])
                .args(["--user", &format!("{KEY}:{SECRET}")])
                .arg(format!("http://127.0.0.1:{S3_PORT}/{BUCKET}"))
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            if command.status().map_err(BenchError::io("run curl"))?.success() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(BenchError::Other("the S3 server does not come up".into()));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Gives a site a part of the bucket as a remote of this name.
    pub fn add_to(&self, site: &Site, name: &str, prefix: &str) -> Result<(), BenchError> {
        let endpoint = format!("http://{}:{S3_PORT}", self.host.address());
        let secret = self.dir.path().join("secret");
        let address = format!("s3://{BUCKET}/{prefix}");
        let options = ["--endpoint", &endpoint, "--region", "us-east-1", "--user", KEY];
        let secret = ["--secret-file", &*secret.to_string_lossy()];
        let args = [&["remote", "add", name, &address][..], &options, &secret].concat();
        site.run(&args).map(drop)
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let _ = self.server.kill(); // it has ended
        let _ = self.server.wait();
    }
}

fn lab_failed(error: martlet_lab::LabError) -> BenchError {
    BenchError::Other(format!("the lab: {error}"))
}
