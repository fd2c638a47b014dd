//! Commands about what is not on this host: remotes, realms, other hosts.

use crate::values::{name, new_reference, reference};
use clap::{Args, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;

/// A remote's snapshot.
#[derive(Debug, Args)]
pub struct FromRemote {
    /// What it is to be called here [default: as the remote calls it]
    #[arg(long = "as", value_parser = new_reference, value_name = "NAME:TAG")]
    pub reference: Option<String>,
    /// Remote
    #[arg(value_parser = name)]
    pub remote: String,
    /// What the remote calls it (NAME:TAG)
    #[arg(value_parser = reference)]
    pub snapshot: String,
}

/// When the state of a machine comes from a remote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// All of it before the start
    Baseline,
    /// What is read, when it is read
    Demand,
    /// What is read, when it is read, and the rest behind
    #[default]
    Adaptive,
}

/// `martlet host …`
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Make a fleet of which this is the first host
    Init {
        /// What this host is to be called by the others
        #[arg(value_parser = name)]
        name: String,
        /// Where they reach it (ADDRESS:PORT)
        address: String,
    },
    /// Print a line by which another host joins, good once and for an hour
    Invite,
    /// Join the fleet of another host
    Join {
        /// File with the line that `martlet host invite` printed; - is standard input
        #[arg(long, default_value = "-", value_name = "FILE", value_hint = ValueHint::FilePath)]
        invitation: PathBuf,
        /// What this host is to be called by the others
        #[arg(value_parser = name)]
        name: String,
        /// Where they reach it (ADDRESS:PORT)
        address: String,
    },
    /// List the hosts of the fleet, and whether they answer
    Ls,
    /// Show how the hosts of the fleet are: memory, load, store and machines
    Top {
        /// Again every so many seconds, until Ctrl-C
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
        watch: Option<u64>,
    },
    /// Have hosts be none of the fleet any more
    Rm {
        /// Hosts
        #[arg(required = true, value_parser = name)]
        names: Vec<String>,
    },
}

/// `martlet realm …`
#[derive(Debug, Subcommand)]
pub enum RealmCommand {
    /// Make a realm: a secret by which what is pushed is sealed
    Create {
        /// Its name
        #[arg(value_parser = name)]
        name: String,
    },
    /// Print a line by which another host joins a realm. Who sees it can read and write all that the realm keeps
    Share {
        /// Realm
        #[arg(value_parser = name, default_value = "default")]
        name: String,
    },
    /// Join a realm of another host, or get its newer secrets
    Join {
        /// What it is to be called here [default: as there]
        #[arg(long = "as", value_parser = name, value_name = "NAME")]
        name: Option<String>,
        /// File with the line that `martlet realm share` printed; - is standard input
        #[arg(default_value = "-", value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Give a realm a new secret, by which everything is sealed from now on; share it again with who is to have it
    Rotate {
        /// Realm
        #[arg(value_parser = name)]
        name: String,
    },
    /// List realms
    Ls,
}

/// `martlet remote …`
#[derive(Debug, Subcommand)]
pub enum RemoteCommand {
    /// Give a place a name, once it was tried out
    Add {
        /// Its name
        #[arg(value_parser = name)]
        name: String,
        /// Directory, s3://BUCKET/PREFIX, oci://HOST/REPOSITORY, http://HOST/PATH or https://HOST/PATH
        address: String,
        /// The S3 server [default: Amazon's]
        #[arg(long, value_name = "URL")]
        endpoint: Option<String>,
        /// The S3 region
        #[arg(long)]
        region: Option<String>,
        /// S3 access key, or user of the registry [default: for S3, as the daemon's environment says]
        #[arg(long, value_name = "NAME", requires = "secret_file")]
        user: Option<String>,
        /// File with its secret or password; - is standard input
        #[arg(long, value_name = "FILE", requires = "user", value_hint = ValueHint::FilePath)]
        secret_file: Option<PathBuf>,
        /// Realm that what is pushed to it is sealed in [default: default]
        #[arg(long, value_parser = name, value_name = "NAME")]
        realm: Option<String>,
    },
    /// List remotes, or what one has
    Ls {
        /// Remote
        #[arg(value_parser = name)]
        name: Option<String>,
    },
    /// Forget remotes; what they keep stays
    Rm {
        /// Remotes
        #[arg(required = true, value_parser = name)]
        names: Vec<String>,
    },
    /// Show what a name stood for at a remote
    Log {
        /// Remote
        #[arg(value_parser = name)]
        name: String,
        /// Snapshot (NAME:TAG)
        #[arg(value_parser = reference)]
        snapshot: String,
    },
    /// Have a name stand for an earlier version of it, by a new one
    Rollback {
        /// Remote
        #[arg(value_parser = name)]
        name: String,
        /// Snapshot, or line of a machine that nobody holds (NAME:TAG)
        #[arg(value_parser = reference)]
        snapshot: String,
        /// Version, as `remote log` shows them
        version: u32,
    },
    /// Have a new name stand for a version of another one
    Branch {
        /// Of an earlier version [default: the newest]
        #[arg(long)]
        version: Option<u32>,
        /// Remote
        #[arg(value_parser = name)]
        name: String,
        /// Snapshot, or line of a machine (NAME:TAG)
        #[arg(value_parser = reference)]
        snapshot: String,
        /// NAME:TAG
        #[arg(value_parser = new_reference)]
        new: String,
    },
    /// Take a name away at a remote; `remote gc` then removes what only it needed
    Forget {
        /// Remote
        #[arg(value_parser = name)]
        name: String,
        /// Snapshot (NAME:TAG)
        #[arg(value_parser = reference)]
        snapshot: String,
    },
    /// Remove what no snapshot of a remote needs. Pushes may go on meanwhile
    Gc {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        /// Of each name, keep so many versions
        #[arg(long, value_name = "N", default_value_t = 10)]
        keep_versions: u32,
        /// Remote
        #[arg(value_parser = name)]
        name: String,
    },
    /// Try a remote out
    Check {
        /// Remote
        #[arg(value_parser = name)]
        name: String,
    },
}
