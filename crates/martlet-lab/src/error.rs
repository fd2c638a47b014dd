//! What goes wrong with a lab.

use std::io;
use thiserror::Error;

/// Something in a lab failed.
#[derive(Debug, Error)]
pub enum LabError {
    /// This machine, or this user, cannot have a lab.
    #[error("a lab needs {what}: {source}")]
    Lacking {
        /// What lacks.
        what: &'static str,
        /// How that showed.
        source: io::Error,
    },
    /// No link is like that.
    #[error("no link has a {quantity} of {value}")]
    BadLink {
        /// What is wrong with it.
        quantity: &'static str,
        /// How much of it was asked for.
        value: f64,
    },
    /// All addresses are in use.
    #[error("a lab has no more than {0} hosts")]
    Full(usize),
    /// Something else.
    #[error("host {host}: cannot {action}: {source}")]
    Failed {
        /// Where.
        host: String,
        /// What was tried.
        action: String,
        /// Why not.
        source: io::Error,
    },
}
