//! Commands and files in a guest.
//!
//! `POST /v1/machines/{name}/exec` with `Upgrade: martlet-exec` switches to frames both ways:
//! `kind: u8, length: u32 big endian, payload`. Kinds are [`ExecFrame`]'s discriminants.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Run a command in the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecRequest {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; `/` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// User name or number; root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Give it a terminal of this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<TtySize>,
    /// Will input follow? Otherwise it reads end of file.
    #[serde(default)]
    pub stdin: bool,
}

/// Size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TtySize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// Kind byte of a frame on an upgraded exec connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExecFrame {
    /// To the guest: bytes for stdin.
    Stdin = 0,
    /// To the guest: no more input.
    StdinEnd = 1,
    /// To the guest: JSON [`TtySize`].
    Resize = 2,
    /// To the guest: signal number as one byte.
    Signal = 3,
    /// From the guest: bytes of stdout (of the terminal in TTY mode).
    Stdout = 16,
    /// From the guest: bytes of stderr.
    Stderr = 17,
    /// From the guest, last: JSON [`ExitStatus`].
    Exit = 18,
    /// From the daemon, last: JSON [`crate::Problem`].
    Problem = 19,
}

impl ExecFrame {
    /// The kind a byte stands for.
    pub fn from_byte(byte: u8) -> Option<Self> {
        use ExecFrame::*;
        [Stdin, StdinEnd, Resize, Signal, Stdout, Stderr, Exit, Problem].into_iter().find(|k| *k as u8 == byte)
    }
}
