//! The command line: each option is defined once, here, and feeds help, man pages and completions.

mod access;
mod bench;
mod elsewhere;
mod line;

pub use access::*;
pub use bench::*;
pub use elsewhere::*;
pub use line::*;

use crate::values::{env_pair, name, new_reference, place, port, probe, reference, size, tag};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use martlet_api::{Accel, CheckpointMethod, InitKind, PortForward, Probe};
use std::path::PathBuf;

/// What the exit status means; in the long help and in the man page.
pub const EXIT_CODES: &str = "\
Exit status:
  0    it worked
  1    it did not work, for a reason not listed here
  2    the command line or the request is wrong
  3    no such machine, snapshot, base or path
  4    it exists already, is in use, is in the wrong state, or another command is at work on it
  5    this host cannot do it: incompatible, or something is missing (see `martlet doctor`)
  6    stored data is damaged (see `martlet verify`)
  7    no space or memory left (see `martlet df`, `martlet gc`)
  8    the guest or its hypervisor failed (see `martlet logs`)
  exec has the command's own status (128 + N when signal N ended it), and
  125  exec itself failed    126  the command cannot be executed    127  there is no such command";

/// Checkpoint, suspend, resume and fork running virtual machines.
///
/// The daemon (martletd) is started when it is needed and not there.
#[derive(Debug, Parser)]
#[command(name = "martlet", version, propagate_version = true, after_long_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Print the API's answer as JSON (errors too, on standard error)
    #[arg(long, global = true)]
    pub json: bool,
    /// Say nothing but results and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// The daemon's socket [default: the user's own daemon, else the system-wide one if it may be used]
    #[arg(long, global = true, env = "MARTLET_SOCKET", value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
    /// Ask another host, where you are logged in, and no daemon here
    #[arg(long, global = true, env = "MARTLET_HOST", value_name = "NAME", value_parser = name)]
    pub host: Option<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make and keep bases: what machines boot from
    #[command(subcommand)]
    Base(BaseCommand),
    /// Start a machine from a base (boots) or a snapshot (restores under a new identity)
    Run(RunArgs),
    /// List machines
    #[command(visible_alias = "ls")]
    Ps,
    /// Show everything about a machine, snapshot or base
    Inspect {
        /// Machine, snapshot (NAME:TAG or id) or base
        #[arg(value_parser = reference)]
        name: String,
    },
    /// Execute a command in a machine
    Exec(ExecArgs),
    /// Copy files and directories: `martlet cp file NAME:/path`, `martlet cp NAME:/path .`
    ///
    /// Directories are copied with what is in them. Files copied in belong to root, files copied out to you. `-` is a tar
    /// stream on standard input or output.
    Cp {
        /// Path, NAME:PATH or -
        source: String,
        /// Path, NAME:PATH or -
        destination: String,
    },
    /// Attach to the serial console; Ctrl-] detaches
    Console {
        /// Machine
        #[arg(value_parser = name)]
        name: String,
    },
    /// Print the console's log
    Logs {
        /// Go on while the machine runs
        #[arg(short, long)]
        follow: bool,
        /// Machine
        #[arg(value_parser = name)]
        name: String,
    },
    /// Shut machines down
    Stop {
        /// End it by force after this many seconds
        #[arg(short, long, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=86400))]
        timeout: u64,
        /// Machines
        #[arg(required = true, value_parser = name)]
        names: Vec<String>,
    },
    /// End machines at once
    Kill {
        /// Machines
        #[arg(required = true, value_parser = name)]
        names: Vec<String>,
    },
    /// Boot stopped machines again from their disks
    Start {
        /// Machines
        #[arg(required = true, value_parser = name)]
        names: Vec<String>,
    },
    /// Forget machines and their disks; their snapshots stay
    Rm {
        /// Also while they run
        #[arg(short, long)]
        force: bool,
        /// Machines
        #[arg(required = true, value_parser = name)]
        names: Vec<String>,
    },
    /// Have another host of the fleet go on with a machine, while it runs
    Move {
        /// Interface of that host that the network of a machine at a tap interface leads to [default: of the same name]
        #[arg(long, value_name = "INTERFACE")]
        tap: Option<String>,
        /// Machine
        #[arg(value_parser = name)]
        name: String,
        /// Host
        #[arg(value_parser = name, value_name = "HOST")]
        to: String,
    },
    /// Give a machine another name
    Rename {
        /// Machine
        #[arg(value_parser = name)]
        name: String,
        /// Its new name
        #[arg(value_parser = name)]
        new: String,
    },
    /// Show what machines use
    Top {
        /// Once, instead of again and again (also when the output is no terminal)
        #[arg(long)]
        once: bool,
    },
    /// Save a running machine's state as a snapshot; it goes on
    Checkpoint {
        #[command(flatten)]
        args: CheckpointArgs,
        /// What becomes of its memory while it is written
        #[arg(long, value_enum, default_value_t)]
        method: Method,
    },
    /// Save a running machine's state as a snapshot, and leave nothing running. One that has a line is published, so that
    /// it can go on elsewhere
    Suspend {
        #[command(flatten)]
        args: CheckpointArgs,
        #[command(flatten)]
        line: LineArgs,
    },
    /// Let a suspended machine go on where it was, or one of another host that is published at a remote
    Resume {
        #[command(flatten)]
        from: FromLine,
        /// Host of the fleet that is to go on with it instead of this one
        #[arg(long, value_parser = name, value_name = "HOST", conflicts_with_all = ["from", "probe"])]
        on: Option<String>,
        #[command(flatten)]
        probe: ProbeArg,
        /// Machine; with --from, what its line is called there
        #[arg(value_parser = reference)]
        name: String,
    },
    /// Publish a machine's newest state on its line; it goes on
    Publish {
        /// From now on, do so by itself every so many seconds while it runs; 0: no more
        #[arg(long, value_name = "SECONDS")]
        every: Option<u32>,
        #[command(flatten)]
        line: LineArgs,
        /// Machine
        #[arg(value_parser = name)]
        name: String,
    },
    /// See who holds a machine's line, and get it from them
    #[command(subcommand)]
    Lease(LeaseCommand),
    /// Follow lines of other hosts: what is published on them comes here at once
    #[command(subcommand)]
    Follow(FollowCommand),
    /// Start clones of a running machine or a snapshot, each with an identity of its own
    Fork {
        /// How many
        #[arg(short = 'n', long, default_value_t = 1)]
        count: u32,
        /// Clones are called PREFIX-1, PREFIX-2, … [default: the machine's name]
        #[arg(long, value_parser = name)]
        prefix: Option<String>,
        /// Fork even though no agent is in the guest: clones keep the parent's identity and entropy
        #[arg(long)]
        allow_agentless: bool,
        /// What becomes of the machine's memory while it is written
        #[arg(long, value_enum, default_value_t)]
        method: Method,
        #[command(flatten)]
        probe: ProbeArg,
        /// Hosts of the fleet that start the clones by turns; `auto` chooses those that have room, `plugin:NAME` asks an allocator [default:
        /// this host]
        #[arg(long, value_name = "HOST,…", value_delimiter = ',', value_parser = place)]
        on: Vec<String>,
        /// A command is killed when it has run for so many seconds
        #[arg(long, value_name = "SECONDS", requires = "command")]
        timeout: Option<u64>,
        /// Keep the clones when their command has ended
        #[arg(long, requires = "command")]
        keep: bool,
        /// Machine, or snapshot (NAME:TAG or id)
        #[arg(value_parser = reference)]
        source: String,
        /// Run this in each clone, show how it ended, and remove the clone; `{id}` is the clone's number
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Run a command over a list of inputs in clones, and collect its outputs in order
    Map {
        /// How many clones [default: as many as the hosts have processors]
        #[arg(short = 'n', long)]
        count: Option<u32>,
        /// Inputs, one on each line; `-` is standard input
        #[arg(short, long, value_name = "FILE", default_value = "-")]
        input: PathBuf,
        /// Hosts of the fleet that start the clones by turns; `auto` chooses those that have room, `plugin:NAME` asks an allocator [default:
        /// this host]
        #[arg(long, value_name = "HOST,…", value_delimiter = ',', value_parser = place)]
        on: Vec<String>,
        /// The command is killed when it has run for so many seconds over one input
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        /// Clones are called PREFIX-1, PREFIX-2, … [default: the machine's name]
        #[arg(long, value_parser = name)]
        prefix: Option<String>,
        /// Machine, or snapshot (NAME:TAG or id)
        #[arg(value_parser = reference)]
        source: String,
        /// Run this for each input, which is put in for `{}`, or added at its end
        #[arg(last = true, value_name = "COMMAND", required = true)]
        command: Vec<String>,
    },
    /// Put a machine back to one of its snapshots
    Rollback {
        /// Machine
        #[arg(value_parser = name)]
        name: String,
        /// Snapshot (NAME:TAG or id)
        #[arg(value_parser = reference)]
        to: String,
    },
    /// List snapshots, or remove some
    Images {
        #[command(subcommand)]
        command: Option<ImagesCommand>,
    },
    /// Show the ancestry of a machine or snapshot
    Log {
        /// Machine, or snapshot (NAME:TAG or id)
        #[arg(value_parser = reference)]
        source: String,
    },
    /// Show how two snapshots differ
    Diff {
        /// Snapshot (NAME:TAG or id)
        #[arg(value_parser = reference)]
        from: String,
        /// Snapshot (NAME:TAG or id)
        #[arg(value_parser = reference)]
        to: String,
    },
    /// Give a snapshot one more reference
    Tag {
        /// Snapshot (NAME:TAG or id)
        #[arg(value_parser = reference)]
        reference: String,
        /// NAME:TAG
        #[arg(value_parser = new_reference)]
        new: String,
    },
    /// Remove snapshots (the same as `images rm`)
    Rmi {
        /// Snapshots (NAME:TAG or id)
        #[arg(required = true, value_parser = reference)]
        references: Vec<String>,
    },
    /// Know places that keep snapshots: directories, S3 buckets, registries, web servers
    #[command(subcommand)]
    Remote(RemoteCommand),
    /// Know other hosts: a fleet whose hosts authenticate each other. Their names are as good as those of remotes
    #[command(subcommand)]
    Host(HostCommand),
    /// Know realms: who can read what leaves this host
    #[command(subcommand)]
    Realm(RealmCommand),
    /// Let people use this host from afar, as far as a role goes
    #[command(subcommand)]
    Token(TokenCommand),
    /// Be able to ask another host (`--host`) by a token of it
    Login {
        /// What it is to be called here [default: as in its fleet]
        #[arg(long, value_parser = self::name, value_name = "NAME")]
        name: Option<String>,
        /// The line that `martlet token create` printed there; - is standard input, which other users do not see
        #[arg(default_value = "-")]
        line: String,
    },
    /// Forget the tokens of hosts. They stay good there, until `martlet token rm`
    Logout {
        /// Hosts
        #[arg(required = true, value_parser = name)]
        names: Vec<String>,
    },
    /// Send a snapshot to a remote: what that lacks of it
    Push {
        /// Only say what would be sent
        #[arg(long)]
        dry_run: bool,
        /// Send no more than so many bytes in a second (5M, 200K)
        #[arg(long, value_parser = size, value_name = "BYTES")]
        bandwidth: Option<u64>,
        /// What the remote is to call it [default: as it is called here]
        #[arg(long = "as", value_parser = new_reference, value_name = "NAME:TAG")]
        reference: Option<String>,
        /// Snapshot (NAME:TAG or id)
        #[arg(value_parser = reference)]
        snapshot: String,
        /// Remote
        #[arg(value_parser = name)]
        remote: String,
    },
    /// Get a snapshot from a remote: what is lacking here of it
    Pull {
        /// Only say what would come
        #[arg(long)]
        dry_run: bool,
        /// Get no more than so many bytes in a second (5M, 200K)
        #[arg(long, value_parser = size, value_name = "BYTES")]
        bandwidth: Option<u64>,
        #[command(flatten)]
        from: FromRemote,
    },
    /// Get what a snapshot consists of from a remote. It can be run at once: memory and disks come when they are read
    Fetch {
        /// Have the rest come, too, while nothing is read
        #[arg(long)]
        rest: bool,
        #[command(flatten)]
        from: FromRemote,
    },
    /// Run a machine from a remote's snapshot
    Clone {
        /// Name of the machine [default: a generated one]
        #[arg(long, value_parser = name)]
        name: Option<String>,
        /// What comes when
        #[arg(long, value_enum, default_value_t)]
        policy: Policy,
        #[command(flatten)]
        from: FromRemote,
    },
    /// Fill a disk that is carried with what is most likely to be read of machines or snapshots. Hosts that know it (`remote
    /// add`) look there before they ask anybody else, whatever they get
    Carry {
        /// No more than so much (4G)
        #[arg(long, value_parser = size, value_name = "BYTES")]
        size: Option<u64>,
        /// Realm that it is sealed in, if the directory is no remote yet [default: default]
        #[arg(long, value_parser = name, value_name = "NAME")]
        realm: Option<String>,
        /// Directory
        #[arg(value_hint = ValueHint::DirPath)]
        dir: String,
        /// Machines, or snapshots (NAME:TAG or id), the most wanted first
        #[arg(required = true, value_parser = reference)]
        sources: Vec<String>,
    },
    /// List snapshots of which not all is here yet, and what has come of them
    Away,
    /// Show where the time of a machine's last start went: what of its memory and disk it waited for
    Explain {
        /// List so many of the longest waits
        #[arg(long, value_name = "N", default_value_t = 10)]
        top: usize,
        /// Machine, or snapshot (NAME:TAG or id) that one was started from
        #[arg(value_parser = reference)]
        source: String,
    },
    /// Free space that nothing refers to
    Gc {
        /// Only say what would be freed
        #[arg(long)]
        dry_run: bool,
    },
    /// Read everything in the store and check it against its hashes
    Verify {
        /// Take whole copies of damaged frames from the store in this state directory
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        repair_from: Vec<PathBuf>,
    },
    /// Show where the space goes
    Df,
    /// Check this host: KVM, QEMU, FUSE, kernel, space, permissions; and say how to mend each
    Doctor,
    /// Start, stop or ask after the daemon
    #[command(subcommand)]
    Daemon(DaemonCommand),
    /// Measure Martlet beside what one would use without it
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Print a completion script: `martlet completions bash > /etc/bash_completion.d/martlet`
    Completions {
        /// Shell
        shell: Shell,
    },
    /// Write the man pages into a directory
    Man {
        /// Directory
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
    /// Print the versions of this program and of the daemon
    Version,
}

/// `martlet base …`
#[derive(Debug, Subcommand)]
pub enum BaseCommand {
    /// Build a base from Debian packages
    Build {
        /// Name of the base
        #[arg(value_parser = name)]
        name: String,
        /// Packages beyond the minimal system, separated by commas
        #[arg(long, value_delimiter = ',', value_name = "PACKAGES")]
        packages: Vec<String>,
        /// Size of the root disk, such as 2G [default: from the content]
        #[arg(long, value_parser = size)]
        size: Option<u64>,
        /// Debian suite
        #[arg(long, default_value = "bookworm")]
        suite: String,
        /// What runs as process 1
        #[arg(long, value_enum, default_value = "systemd")]
        init: Init,
        /// The smallest base there is: busybox and the agent
        #[arg(long, conflicts_with_all = ["packages", "init"])]
        tiny: bool,
    },
    /// Make a base of a raw or qcow2 disk, an OCI layout directory or a `docker save` archive
    Import {
        /// Name of the base [default: from the file's name]
        #[arg(long, value_parser = name)]
        name: Option<String>,
        /// Size of the root disk of an OCI image, such as 2G [default: from the content]
        #[arg(long, value_parser = size)]
        size: Option<u64>,
        /// What runs as process 1 [default: told from the content]
        #[arg(long, value_enum)]
        init: Option<Init>,
        /// Disk, directory or archive
        #[arg(value_hint = ValueHint::AnyPath)]
        file: PathBuf,
    },
    /// List bases
    Ls,
    /// Remove bases
    Rm {
        /// Also when machines were started from it
        #[arg(short, long)]
        force: bool,
        /// Bases
        #[arg(required = true, value_parser = name)]
        names: Vec<String>,
    },
    /// Show everything about a base
    Inspect {
        /// Base
        #[arg(value_parser = name)]
        name: String,
    },
}

/// What runs as process 1.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Init {
    /// The image's own init
    Systemd,
    /// The agent, which runs the machine's command
    Command,
    /// The disk's boot loader; no agent
    Firmware,
}

impl From<Init> for InitKind {
    fn from(init: Init) -> Self {
        match init {
            Init::Systemd => Self::Systemd,
            Init::Command => Self::Command,
            Init::Firmware => Self::Firmware,
        }
    }
}

/// `martlet run …`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Name of the machine [default: made up]
    #[arg(long, value_parser = name)]
    pub name: Option<String>,
    /// Virtual CPUs
    #[arg(long)]
    pub cpus: Option<u32>,
    /// Memory, such as 512M or 2G
    #[arg(short, long, value_parser = size, value_name = "SIZE")]
    pub memory: Option<u64>,
    /// Grow the root disk to this size
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub disk: Option<u64>,
    /// Environment of the command
    #[arg(short, long, value_parser = env_pair, value_name = "NAME=VALUE")]
    pub env: Vec<(String, String)>,
    /// Forward a port of the host's loopback to the guest: 8080:80; 80 alone picks a free host port
    #[arg(short, long = "port", value_parser = port, value_name = "[HOST:]GUEST")]
    pub ports: Vec<PortForward>,
    /// Accelerator [default: kvm where the CPU has it, else tcg]
    #[arg(long, value_enum)]
    pub accel: Option<Accelerator>,
    /// Let the guest reach the outside
    #[arg(long)]
    pub outbound: bool,
    /// Let the guest and its clones reach these only: 192.0.2.7:443, 192.0.2.0/24, pypi.org:443, *.debian.org, any
    #[arg(long, value_delimiter = ',', value_name = "TO,...", conflicts_with_all = ["outbound", "tap"])]
    pub outbound_to: Vec<String>,
    /// Bytes a second for each of them, both ways together [example: 1M]
    #[arg(long, value_parser = size, requires = "outbound_to", value_name = "SIZE")]
    pub outbound_rate: Option<u64>,
    /// Lead its network to this tap interface of the host, instead of user-mode networking
    #[arg(long, value_name = "INTERFACE", conflicts_with_all = ["ports", "outbound"])]
    pub tap: Option<String>,
    /// Give it and its clones a network of their own, across hosts: `parent`, `clone-1`, `clone-2`, ...
    #[arg(long)]
    pub family: bool,
    /// Let programs of these users of the guest fork it by `martlet-guest` [example: root,1000; or: any]
    #[arg(long, value_delimiter = ',', value_name = "USER,...")]
    pub fork_by: Vec<String>,
    /// How many processes they may have in clones at the same time
    #[arg(long, default_value_t = martlet_api::FORK_MOST, requires = "fork_by", value_name = "N")]
    pub fork_most: u32,
    /// Hosts of the fleet where those clones start, `auto`, or `plugin:NAME` [default: this one]
    #[arg(long, value_delimiter = ',', requires = "fork_by", value_name = "HOST,...", value_parser = place)]
    pub fork_on: Vec<String>,
    /// Return at once: the start goes on by itself, `ps` and `inspect` show what becomes of it
    #[arg(short, long)]
    pub detach: bool,
    /// Start again from the last checkpoint when QEMU dies
    #[arg(long)]
    pub restart: bool,
    /// Start even though the snapshot's guest has no agent to give it a new identity
    #[arg(long)]
    pub allow_agentless: bool,
    #[command(flatten)]
    pub probe: ProbeArg,
    /// Command to run instead of the base's (as one shell line)
    #[arg(long, value_name = "LINE", conflicts_with = "command")]
    pub cmd: Option<String>,
    /// Base, or snapshot (NAME:TAG or id)
    #[arg(value_parser = reference)]
    pub from: String,
    /// Command to run instead of the base's
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// `--probe`
#[derive(Debug, Args)]
pub struct ProbeArg {
    /// Ask a service until it answers, and time it: connect to PORT, send SEND, expect EXPECT (\r, \n, \t are understood)
    #[arg(long, value_parser = probe, value_name = "PORT[=SEND[=EXPECT]]")]
    pub probe: Option<Probe>,
}

/// An accelerator.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Accelerator {
    /// Hardware virtualisation
    Kvm,
    /// Emulation
    Tcg,
}

impl From<Accelerator> for Accel {
    fn from(accelerator: Accelerator) -> Self {
        match accelerator {
            Accelerator::Kvm => Self::Kvm,
            Accelerator::Tcg => Self::Tcg,
        }
    }
}

/// `martlet exec …`
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub struct ExecArgs {
    /// Pass standard input on; without it the command reads end of file
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Add to its environment
    #[arg(short, long, value_parser = env_pair, value_name = "NAME=VALUE")]
    pub env: Vec<(String, String)>,
    /// Working directory [default: /]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User name or number [default: root]
    #[arg(short, long)]
    pub user: Option<String>,
    /// Machine
    #[arg(value_parser = name)]
    pub name: String,
    /// Command and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// `martlet checkpoint …`, `martlet suspend …`
#[derive(Debug, Args)]
pub struct CheckpointArgs {
    /// Tag of the snapshot: it is called NAME:TAG [default: a number]
    #[arg(short, long, value_parser = tag)]
    pub tag: Option<String>,
    /// A note to keep with it
    #[arg(long)]
    pub note: Option<String>,
    /// First let the guest discard the disk blocks that its file systems do not use
    #[arg(long)]
    pub trim: bool,
    /// First let the guest drop its page cache: a shorter pause, but it reads its files anew
    #[arg(long)]
    pub drop_caches: bool,
    /// Machine
    #[arg(value_parser = name)]
    pub name: String,
}

/// How a machine that goes on leaves its memory to a checkpoint.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum Method {
    /// By handover where that is possible
    #[default]
    Auto,
    /// It is copied, most of it while the machine runs
    Copy,
    /// A twin of its process keeps it as it is until it is stored
    Handover,
}

impl From<Method> for CheckpointMethod {
    fn from(method: Method) -> Self {
        match method {
            Method::Auto => Self::Auto,
            Method::Copy => Self::Copy,
            Method::Handover => Self::Handover,
        }
    }
}

/// `martlet images …`
#[derive(Debug, Subcommand)]
pub enum ImagesCommand {
    /// List snapshots
    Ls,
    /// Remove references, the last of a snapshot with the snapshot
    Rm {
        /// Snapshots (NAME:TAG or id)
        #[arg(required = true, value_parser = reference)]
        references: Vec<String>,
    },
}

/// `martlet daemon …`
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum DaemonCommand {
    /// Start it, unless it is there
    Start,
    /// Stop it; machines go on
    Stop,
    /// Is it there?
    Status,
}
