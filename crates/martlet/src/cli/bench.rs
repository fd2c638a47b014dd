//! `bench`: what is measured, and how often.

use crate::values::{name, size};
use clap::{Args, Subcommand, ValueHint};
use std::path::PathBuf;

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Checkpoint, resume, fork, boot and the store on this host, beside QEMU's own way, casync and restic
    ///
    /// Takes turns with a stock QEMU that has the same hardware and disk, and saves to and restores from a file, and with
    /// casync and restic, which must be installed. Leaves nothing behind.
    Local(BenchLocalArgs),
    /// Ways to keep free memory, page cache and deleted files out of checkpoints, beside giving up nothing
    ///
    /// Ways that Martlet does not go are measured in a stock QEMU with the same hardware and disk. Leaves nothing behind.
    Dead(BenchDeadArgs),
    /// Single pages, resumes and sessions on another host, over links of 1000, 100, 20 and 5 Mb/s, by each policy
    ///
    /// Hosts are network namespaces of this one, with daemons and stores of their own; between them is an S3 server, which
    /// must be installed (`script/bootstrap --tests`). Needs root. Leaves nothing behind.
    Roam(BenchRoamArgs),
    /// Forks across hosts, beside copying a suspended image to each of them
    ///
    /// Hosts are network namespaces of this one, with daemons and stores of their own. Needs root. Leaves nothing behind but the
    /// bases of examples.
    Fork(BenchForkArgs),
    /// What forks across up to 1024 hosts would take, simulated from what `bench fork --plots` has measured
    ///
    /// Also says how far the simulation of the lab is from what was measured there. Measures nothing.
    ForkModel(BenchForkModelArgs),
    /// Draws what a bench has answered with --json as SVG, again or elsewhere. Measures nothing
    Plot(BenchPlotArgs),
    /// Pushes, pulls and suspends that are interrupted at random moments and continued: does anything get lost?
    ///
    /// Daemons and commands are killed, links are cut, disks are full. What came of each is compared with what it was.
    /// Needs what `roam` needs. Leaves nothing behind.
    Interrupted(BenchInterruptedArgs),
}

/// How often is interrupted.
#[derive(Debug, Args)]
pub struct BenchInterruptedArgs {
    /// How often
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    pub times: u32,
    /// Moments follow from it
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Base of the machine [default: a tiny one, made for this and removed]
    #[arg(long, value_parser = name)]
    pub base: Option<String>,
}

/// How roaming is measured.
#[derive(Debug, Args)]
pub struct BenchRoamArgs {
    /// Links to measure, in Mb/s: single pages at 1000, sessions at the others; move: moves of a busy machine; work: suspends after ten minutes of work
    #[arg(long, value_delimiter = ',', default_value = "1000,move,100,20,5", value_name = "LINK,...", value_parser = ["1000", "move", "work", "100", "20", "5"])]
    pub links: Vec<String>,
    /// Rounds of each figure; the median is shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Guest memory
    #[arg(long, default_value = "512M", value_parser = size, value_name = "SIZE")]
    pub memory: u64,
    /// Base to measure [default: a tiny one, made for this and removed]
    #[arg(long, value_parser = name)]
    pub base: Option<String>,
}

/// How forks across hosts are measured.
#[derive(Debug, Args)]
pub struct BenchForkArgs {
    /// What to measure: spread: forks beside copies of an image; multicast: how often frames cross a link; avoidance: what is not fetched because clones overwrite it; overhead: work of the examples; adversarial: several parents at a time
    #[arg(long, value_delimiter = ',', default_value = "spread,multicast", value_name = "WHAT,...", value_parser = ["spread", "multicast", "avoidance", "overhead", "adversarial"])]
    pub only: Vec<String>,
    /// Where the examples are that `overhead` measures
    #[arg(long, default_value = "examples", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub examples: PathBuf,
    /// Which of them
    #[arg(long, value_delimiter = ',', default_value = "blast,clustal,bwa,quantlib,povray,python-trials", value_name = "NAME,...", value_parser = ["blast", "clustal", "bwa", "quantlib", "povray", "python-trials"])]
    pub works: Vec<String>,
    /// Rounds of each figure; the median is shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Guest memory
    #[arg(long, default_value = "1G", value_parser = size, value_name = "SIZE")]
    pub memory: u64,
    /// Clones of the large fork
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    pub clones: u32,
    /// Hosts that they start at
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64), value_name = "N")]
    pub hosts: u32,
    /// Also measure by the number of clones, beside multicast copies and clones that are there; draw all of it here, as SVG
    #[arg(long, value_name = "DIR")]
    pub plots: Option<PathBuf>,
    /// Base to measure [default: a tiny one, made for this and removed]
    #[arg(long, value_parser = name)]
    pub base: Option<String>,
}

/// What is simulated.
#[derive(Debug, Args)]
pub struct BenchForkModelArgs {
    /// Answer of `martlet --json bench fork --plots DIR`
    #[arg(value_name = "FILE")]
    pub results: PathBuf,
    /// Most hosts; simulated are 2, 4, 8 and so on
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(2..=4096), value_name = "N")]
    pub hosts: u32,
    /// Processors of each host, and clones at it [default: as many as the lab had]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=256), value_name = "N")]
    pub processors: Option<u32>,
    /// Draw it here, as SVG
    #[arg(long, value_name = "DIR")]
    pub plots: Option<PathBuf>,
}

/// What is drawn.
#[derive(Debug, Args)]
pub struct BenchPlotArgs {
    /// Answer of `martlet --json bench`
    #[arg(value_name = "FILE")]
    pub results: PathBuf,
    /// Where the plots go
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// How it is measured.
#[derive(Debug, Args)]
pub struct BenchLocalArgs {
    /// Rounds of each figure; the median is shown
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Guest memory
    #[arg(long, default_value = "512M", value_parser = size, value_name = "SIZE")]
    pub memory: u64,
    /// Base to measure [default: a tiny one, made for this and removed]
    #[arg(long, value_parser = name)]
    pub base: Option<String>,
    /// Clones of the large fork
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    pub clones: u32,
}

/// How dead bytes are measured.
#[derive(Debug, Args)]
pub struct BenchDeadArgs {
    /// Rounds of each figure; the median is shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Guest memory, below 2G
    #[arg(long, default_value = "256M", value_parser = size, value_name = "SIZE")]
    pub memory: u64,
    /// Base to measure [default: a tiny one, made for this and removed]
    #[arg(long, value_parser = name)]
    pub base: Option<String>,
    /// How long a guest has to report what it freed
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=600), value_name = "SECONDS")]
    pub settle: u64,
}
