//! Commands about people who use a host from afar.

use crate::values::name;
use clap::{Subcommand, ValueEnum};

/// `martlet token …`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Print a line by which a person uses this host from afar (`martlet login`). It is shown once
    Create {
        /// What it allows
        #[arg(long, value_enum)]
        role: Role,
        /// It is good for so many days
        #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
        /// What it is to be called
        #[arg(value_parser = name)]
        name: String,
    },
    /// List tokens, and when they were last used
    Ls,
    /// Have tokens be good for nothing any more, at once
    Rm {
        /// Tokens
        #[arg(required = true, value_parser = name)]
        names: Vec<String>,
    },
}

/// What a token allows.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Role {
    /// To look: lists, figures, logs
    Read,
    /// To use machines and snapshots, with all that is in them
    Run,
    /// All that the daemon's socket allows
    Admin,
}

impl From<Role> for martlet_api::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Read => Self::Read,
            Role::Run => Self::Run,
            Role::Admin => Self::Admin,
        }
    }
}
