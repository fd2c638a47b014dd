//! A stock QEMU with the hardware, the kernel and the disk of a machine of ours.
//!
//! Its command line is that machine's own, with nothing of Martlet's in it: anonymous memory, a qcow2 overlay for a disk,
//! no sandbox. Saving is QEMU's way since 9.0, `migrate` to a file with `mapped-ram`, which writes each page to its place;
//! an older QEMU streams to a file.

use crate::BenchError;
use martlet_agent_api::{Command as GuestCommand, Start};
use martlet_vm::agent::AgentClient;
use martlet_vm::qmp::{Message, QmpClient, QmpError};
use serde_json::{Value, json};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

mod migrate;

pub use migrate::Migration;

const START_TIMEOUT: Duration = Duration::from_secs(30);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// A whole memory goes to a file, or comes from one, within this time.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(300);
const GUEST_TIMEOUT: Duration = Duration::from_secs(240);
/// A command's output beyond this is cut off.
const OUTPUT_MAX_BYTES: usize = 64 << 20;
/// A balloon that has not grown for this long will not.
const BALLOON_PATIENCE: Duration = Duration::from_secs(2);

/// How to start stock QEMUs like one machine.
pub struct Recipe {
    argv: Vec<String>,
    disk: PathBuf,
    dir: tempfile::TempDir,
    next: AtomicU64,
}

/// How a guest differs from that of the recipe's machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// It is not to report its free pages.
    pub keeps_free_pages: bool,
    /// More words on its kernel's command line.
    pub kernel_words: &'static str,
}

/// A stock QEMU. Dropping it kills it.
pub struct Stock {
    child: Child,
    qmp: QmpClient,
    events: Receiver<Message>,
    run: PathBuf,
    overlay: PathBuf,
    restored: bool,
    started: Instant,
}

/// Instants of a restore, in milliseconds since QEMU was executed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Restored {
    /// The state is loaded.
    pub load_ms: f64,
    /// The virtual CPUs run.
    pub first_instruction_ms: f64,
    /// A command was executed in the guest.
    pub first_exec_ms: f64,
    /// What the virtual CPUs took of processors until then, no instant: its memory is all there, so it is the guest's code.
    pub guest_ms: f64,
}

impl Recipe {
    /// The recipe of the machine whose QEMU is `pid`, with a copy of its disk as it is now.
    pub fn of(pid: u32) -> Result<Self, BenchError> {
        let dir = tempfile::Builder::new()
            .prefix("martlet-bench-")
            .tempdir()
            .map_err(BenchError::io("make a directory"))?;
        let path = format!("/proc/{pid}/cmdline");
        let words = std::fs::read(&path).map_err(BenchError::io(format!("read {path}")))?;
        let argv: Vec<String> = words
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let source = disk_of(&argv)
            .ok_or_else(|| BenchError::Other("the machine's QEMU has no disk that is a file".into()))?;
        let disk = dir.path().join("disk.raw");
        run(Command::new("cp").arg("--sparse=always").arg(source).arg(&disk))?;
        Ok(Self {
            argv,
            disk,
            dir,
            next: AtomicU64::new(0),
        })
    }

    /// A place for a saved state.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An overlay over a disk: the machine's, or another overlay that nobody writes any more.
    pub fn overlay(&self, below: Option<&Path>) -> Result<PathBuf, BenchError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let overlay = self.dir.path().join(format!("overlay-{number}.qcow2"));
        let (below, format) = below.map_or((self.disk.as_path(), "raw"), |below| (below, "qcow2"));
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", format, "-b"])
            .args([below, &overlay]))?;
        Ok(overlay)
    }

    /// Boots; QEMU answers, its virtual CPUs do not run yet.
    pub fn boot(&self, overlay: &Path) -> Result<Stock, BenchError> {
        self.start(&self.argv, overlay, false)
    }

    /// The same with another guest.
    pub fn boot_changed(&self, overlay: &Path, change: Change) -> Result<Stock, BenchError> {
        self.start(&changed(&self.argv, change), overlay, false)
    }

    /// Restores a saved state and executes a command in the guest.
    pub fn restore(&self, overlay: &Path, state: &Path) -> Result<(Stock, Restored), BenchError> {
        let stock = self.start(&self.argv, overlay, true)?;
        stock.load(state)?;
        let load_ms = stock.age_ms();
        stock.cont()?;
        let first_instruction_ms = stock.age_ms();
        stock.first_exec()?;
        let restored = Restored {
            load_ms,
            first_instruction_ms,
            first_exec_ms: stock.age_ms(),
            guest_ms: stock.guest_ms()?,
        };
        Ok((stock, restored))
    }

    fn start(&self, argv: &[String], overlay: &Path, incoming: bool) -> Result<Stock, BenchError> {
        self.start_by(|program| Command::new(program), argv, overlay, incoming)
    }

    fn start_by(
        &self,
        command: impl FnOnce(&str) -> Command,
        argv: &[String],
        overlay: &Path,
        incoming: bool,
    ) -> Result<Stock, BenchError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let run = self.dir.path().join(format!("run-{number}"));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&run)
            .map_err(BenchError::io(format!("make {}", run.display())))?;
        let argv = stock_argv(argv, overlay, &run, incoming);
        let log = std::fs::File::create(run.join("qemu.log")).map_err(BenchError::io("make QEMU's log"))?;
        let started = Instant::now();
        let mut child = command(&argv[0])
            .args(&argv[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(BenchError::io(format!("start {}", argv[0])))?;
        let connected = connect(&run.join("qmp.sock"), &mut child);
        let (qmp, events) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let words = std::fs::read_to_string(run.join("qemu.log")).unwrap_or_default();
                return Err(BenchError::Other(format!("{error}; QEMU said: {}", words.trim())));
            }
        };
        Ok(Stock {
            child,
            qmp,
            events,
            run,
            overlay: overlay.to_owned(),
            restored: incoming,
            started,
        })
    }
}

impl Stock {
    /// Milliseconds since QEMU was executed.
    pub fn age_ms(&self) -> f64 {
        self.started.elapsed().as_secs_f64() * 1e3
    }

    /// Its disk.
    pub fn overlay(&self) -> &Path {
        &self.overlay
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets the virtual CPUs run.
    pub fn cont(&self) -> Result<(), BenchError> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            match self.command("cont", Value::Null) {
                // After a migration QEMU says that it has completed, and then tidies up for a while.
                Err(BenchError::Qmp(QmpError::Refused { .. })) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                other => return other.map(drop),
            }
        }
    }

    /// Executes a shell's line in the guest.
    pub fn exec(&self, line: &str) -> Result<(), BenchError> {
        self.output(line).map(drop)
    }

    /// The same; what it printed.
    pub fn output(&self, line: &str) -> Result<Vec<u8>, BenchError> {
        self.execute(&["/bin/sh", "-c", line])
    }

    fn execute(&self, argv: &[&str]) -> Result<Vec<u8>, BenchError> {
        let epoch =
            u64::from(std::process::id()) << 32 | self.started.elapsed().as_nanos() as u64 & 0xffff_ffff;
        let agent = AgentClient::connect(&self.run.join("agent.sock"), epoch, START_TIMEOUT)?;
        // As a restored QEMU's guest is told by a host that knows nothing of clones: it goes on as it was.
        let reply = match self.restored {
            true => agent.hello(Start::Same, GUEST_TIMEOUT)?,
            false => agent.hello_booting(GUEST_TIMEOUT)?,
        };
        if reply.held {
            agent.release(None)?;
        }
        let command = GuestCommand {
            argv: argv.iter().map(|word| String::from(*word)).collect(),
            ..GuestCommand::default()
        };
        Ok(agent
            .exec_wait(command, &[], OUTPUT_MAX_BYTES, GUEST_TIMEOUT)?
            .stdout)
    }

    /// Executes the least there is, as a machine of ours is asked to at its start.
    pub fn first_exec(&self) -> Result<(), BenchError> {
        self.execute(&["/bin/true"]).map(drop)
    }

    /// What its virtual CPUs have taken of processors.
    fn guest_ms(&self) -> Result<f64, BenchError> {
        let vcpus = self.command("query-cpus-fast", Value::Null)?;
        let mut used_ns = 0;
        for vcpu in vcpus.as_array().into_iter().flatten() {
            let file = format!("/proc/{}/task/{}/schedstat", self.child.id(), vcpu["thread-id"]);
            let stat = std::fs::read_to_string(&file).map_err(BenchError::io(format!("read {file}")))?;
            let used = stat
                .split_whitespace()
                .next()
                .and_then(|used| used.parse::<u64>().ok());
            used_ns +=
                used.ok_or_else(|| BenchError::Other(format!("{file} does not say what a thread used")))?;
        }
        Ok(used_ns as f64 / 1e6)
    }

    /// Stops the guest, saves all of it to a file, and lets it go on if asked to. Milliseconds that it stood still.
    pub fn save(&self, file: &Path, goes_on: bool) -> Result<f64, BenchError> {
        let mapped = self.wants_events(&["mapped-ram"]).is_ok();
        let begun = Instant::now();
        self.command("stop", Value::Null)?;
        self.command("migrate", json!({ "uri": uri(file, mapped, true) }))?;
        self.wait_for_migration()?;
        if goes_on {
            self.cont()?;
        }
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    /// Stops the guest, and copies its memory to a file as it is.
    pub fn dump(&self, file: &Path, size_bytes: u64) -> Result<(), BenchError> {
        self.command("stop", Value::Null)?;
        let arguments = json!({ "val": 0, "size": size_bytes, "filename": file });
        self.command("pmemsave", arguments).map(drop)
    }

    /// Blows up its balloon, or lets air out, until the guest has `left_bytes`, or does not give more.
    pub fn balloon(&self, left_bytes: u64) -> Result<(), BenchError> {
        self.command("balloon", json!({ "value": left_bytes }))?;
        let has_now = || -> Result<Option<u64>, BenchError> {
            Ok(self.command("query-balloon", Value::Null)?["actual"].as_u64())
        };
        let (mut last, mut since) = (has_now()?, Instant::now());
        while last != Some(left_bytes) && since.elapsed() < BALLOON_PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
            let now = has_now()?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    fn load(&self, file: &Path) -> Result<(), BenchError> {
        let mapped = self.wants_events(&["mapped-ram"]).is_ok();
        self.command("migrate-incoming", json!({ "uri": uri(file, mapped, false) }))?;
        self.wait_for_migration()
    }

    /// Asks for events of a migration, and for these capabilities; fails where QEMU does not have them.
    fn wants_events(&self, capabilities: &[&str]) -> Result<(), BenchError> {
        let on = |name: &str| json!({ "capability": name, "state": true });
        self.command(
            "migrate-set-capabilities",
            json!({ "capabilities": [on("events")] }),
        )?;
        // At most as fast as it can: QEMU's own limit is for networks.
        self.command("migrate-set-parameters", json!({ "max-bandwidth": 1u64 << 40 }))?;
        let wanted: Vec<_> = capabilities.iter().map(|name| on(name)).collect();
        self.command("migrate-set-capabilities", json!({ "capabilities": wanted }))
            .map(drop)
    }

    fn wait_for_migration(&self) -> Result<(), BenchError> {
        let deadline = Instant::now() + MIGRATION_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self
                .events
                .recv_timeout(left)
                .map_err(|_| BenchError::Other("the stock QEMU's migration does not end".into()))?;
            match message {
                Message::Closed => return Err(BenchError::Other("the stock QEMU ended".into())),
                Message::Event { name, data } if name == "MIGRATION" => match data["status"].as_str() {
                    Some("completed") => return Ok(()),
                    Some("failed") => {
                        return Err(BenchError::Other("the stock QEMU's migration failed".into()));
                    }
                    _ => {}
                },
                Message::Event { .. } => {}
            }
        }
    }

    fn command(&self, name: &str, arguments: Value) -> Result<Value, BenchError> {
        Ok(self.qmp.execute(name, arguments, COMMAND_TIMEOUT)?)
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        // Best effort: it has no state that anybody needs.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.run);
    }
}

fn connect(socket: &Path, child: &mut Child) -> Result<(QmpClient, Receiver<Message>), BenchError> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let (sender, events) = channel();
        let told = move |message| drop(sender.send(message));
        match QmpClient::connect(socket, COMMAND_TIMEOUT, told) {
            Ok(qmp) => return Ok((qmp, events)),
            Err(QmpError::Socket(_)) if Instant::now() < deadline => {}
            Err(error) => return Err(error.into()),
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(BenchError::Other(format!("QEMU ended at once: {status}")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn uri(file: &Path, mapped: bool, out: bool) -> String {
    match (mapped, out) {
        (true, _) => format!("file:{}", file.display()),
        (false, true) => format!("exec:cat > {}", file.display()),
        (false, false) => format!("exec:cat < {}", file.display()),
    }
}

fn run(command: &mut Command) -> Result<(), BenchError> {
    let what = format!("run {}", command.get_program().to_string_lossy());
    let status = command
        .stdin(Stdio::null())
        .status()
        .map_err(BenchError::io(what.clone()))?;
    match status.success() {
        true => Ok(()),
        false => Err(BenchError::Other(format!("cannot {what}: {status}"))),
    }
}

/// The file behind the first disk.
fn disk_of(argv: &[String]) -> Option<PathBuf> {
    let node: Value = serde_json::from_str(value_of(argv, "-blockdev")?).ok()?;
    Some(node["file"]["filename"].as_str()?.into())
}

fn value_of<'a>(argv: &'a [String], option: &str) -> Option<&'a str> {
    let at = argv.iter().position(|word| word == option)?;
    argv.get(at + 1).map(String::as_str)
}

/// The command line with another guest.
fn changed(argv: &[String], change: Change) -> Vec<String> {
    let mut argv = argv.to_vec();
    for at in 0..argv.len() {
        if change.keeps_free_pages {
            argv[at] = argv[at].replace("free-page-reporting=on", "free-page-reporting=off");
        }
        if at > 0 && argv[at - 1] == "-append" {
            argv[at] = format!("{} {}", argv[at], change.kernel_words);
        }
    }
    argv
}

/// The same machine without Martlet: see the module's documentation.
fn stock_argv(argv: &[String], overlay: &Path, run: &Path, incoming: bool) -> Vec<String> {
    let mut words = argv.iter();
    let mut stock: Vec<String> = words.next().into_iter().cloned().collect();
    while let Some(option) = words.next() {
        let alone = ["-no-user-config", "-nodefaults", "-S"].contains(&option.as_str());
        let value = (!alone).then(|| words.next().cloned().unwrap_or_default());
        let value = match (option.as_str(), value) {
            ("-sandbox" | "-incoming" | "-global", _) => continue,
            // A restored machine has its kernel in its memory.
            ("-kernel" | "-initrd" | "-append", _) if incoming => continue,
            ("-object", Some(value)) if value.starts_with("memory-backend-file,") => {
                let size = value
                    .split(',')
                    .find(|part| part.starts_with("size="))
                    .unwrap_or_default();
                Some(format!("memory-backend-ram,id=mem,{size}"))
            }
            ("-blockdev", Some(value)) => Some(disk(&value, overlay)),
            ("-chardev", Some(value)) => Some(moved(&value, run)),
            ("-netdev", Some(value)) => Some(
                value
                    .split(',')
                    .filter(|part| !part.starts_with("hostfwd="))
                    .collect::<Vec<_>>()
                    .join(","),
            ),
            (_, value) => value,
        };
        stock.push(option.clone());
        stock.extend(value);
    }
    if incoming {
        stock.extend(["-incoming".into(), "defer".into()]);
    }
    stock
}

fn disk(node: &str, overlay: &Path) -> String {
    let mut node: Value = serde_json::from_str(node).unwrap_or_default();
    node["driver"] = json!("qcow2");
    node["file"]["filename"] = json!(overlay.display().to_string());
    node.to_string()
}

/// A socket or log in another directory.
fn moved(chardev: &str, run: &Path) -> String {
    let part = |part: &str| match part.split_once('=') {
        Some((key @ ("path" | "logfile"), path)) => {
            let name = Path::new(path).file_name().unwrap_or_default();
            format!("{key}={}", run.join(name).display())
        }
        _ => part.to_owned(),
    };
    chardev.split(',').map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_guest_has_other_words_and_may_keep_its_free_pages() {
        let ours: Vec<String> = "qemu -append quiet -device balloon,free-page-reporting=on"
            .split_whitespace()
            .map(String::from)
            .collect();
        assert_eq!(changed(&ours, Change::default())[4], ours[4]);
        let change = Change {
            keeps_free_pages: true,
            kernel_words: "a=1",
        };
        let changed = changed(&ours, change);
        assert_eq!(changed[2], "quiet a=1");
        assert_eq!(changed[4], "balloon,free-page-reporting=off");
    }

    #[test]
    fn nothing_of_ours_is_left_in_a_stock_command_line() {
        let ours = "qemu -nodefaults -sandbox on -object memory-backend-file,id=mem,size=7,mem-path=/s/mnt/mem/x,share=off \
                    -blockdev {\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"/s/mnt/disk/y\"}} -kernel k -S \
                    -chardev socket,id=qmp,path=/s/qmp.sock,server=on -netdev user,id=net,hostfwd=tcp::1-:2,restrict=on";
        let ours: Vec<String> = ours.split_whitespace().map(String::from).collect();
        assert_eq!(disk_of(&ours), Some("/s/mnt/disk/y".into()));
        let stock = stock_argv(&ours, Path::new("/o.qcow2"), Path::new("/r"), true).join(" ");
        assert!(
            !stock.contains("/s/") && !stock.contains("sandbox") && !stock.contains("hostfwd"),
            "{stock}"
        );
        assert!(stock.contains("memory-backend-ram,id=mem,size=7 "), "{stock}");
        assert!(stock.contains("path=/r/qmp.sock") && stock.ends_with("-S -chardev socket,id=qmp,path=/r/qmp.sock,server=on -netdev user,id=net,restrict=on -incoming defer"), "{stock}");
        assert!(!stock.contains("-kernel"), "{stock}");
        let boots = stock_argv(&ours, Path::new("/o.qcow2"), Path::new("/r"), false).join(" ");
        assert!(
            boots.contains("-kernel k") && !boots.contains("-incoming"),
            "{boots}"
        );
    }
}
