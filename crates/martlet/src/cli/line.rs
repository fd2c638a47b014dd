//! Lines of machines: what is published of them, and who may go on.

use crate::cli::Policy;
use crate::values::{name, new_reference, reference};
use clap::{Args, Subcommand};

/// `--to`
#[derive(Debug, Args)]
pub struct LineArgs {
    /// Remote that is to keep the machine's line, if it has none yet
    #[arg(long, value_parser = name, value_name = "REMOTE")]
    pub to: Option<String>,
    /// What the line is to be called there [default: NAME:latest]
    #[arg(long = "as", value_parser = new_reference, value_name = "NAME:TAG", requires = "to")]
    pub reference: Option<String>,
}

/// `--from`
#[derive(Debug, Args)]
pub struct FromLine {
    /// Remote that the machine is published at
    #[arg(long, value_parser = name, value_name = "REMOTE")]
    pub from: Option<String>,
    /// What the machine is to be called here [default: as there]
    #[arg(long = "name", value_parser = name, value_name = "NAME", requires = "from")]
    pub called: Option<String>,
    /// What comes when
    #[arg(long, value_enum, default_value_t, requires = "from")]
    pub policy: Policy,
    /// If somebody holds it, ask for it and wait so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "300", requires = "from")]
    pub ask: Option<u32>,
    /// Keep it so many days, also without a connection
    #[arg(long, value_name = "DAYS", requires = "from")]
    pub check_out: Option<u32>,
}

/// `martlet lease …`
#[derive(Debug, Subcommand)]
pub enum LeaseCommand {
    /// Show who holds a line, and since when
    Show(LineAt),
    /// Ask who holds it to suspend its machine, publish it and let go of it
    Ask(LineAt),
    /// Take it from who holds it. What that has not published becomes a side branch
    Break(LineAt),
}

/// A line at a remote.
#[derive(Debug, Args)]
pub struct LineAt {
    /// Remote
    #[arg(value_parser = name)]
    pub remote: String,
    /// What it is called there: NAME:TAG, or NAME for NAME:latest
    #[arg(value_parser = reference)]
    pub reference: String,
}

/// `martlet follow …`
#[derive(Debug, Subcommand)]
pub enum FollowCommand {
    /// Follow a line
    Add {
        /// Only when this host is likely to be the next that goes on with it
        #[arg(long)]
        when_likely: bool,
        #[command(flatten)]
        line: LineAt,
    },
    /// List lines that are followed, and who is likely to go on with them
    Ls,
    /// Follow a line no more; what has come stays
    Rm(LineAt),
}
