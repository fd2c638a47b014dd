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
        [Stdin, StdinEnd, Resize, Signal, Stdout, Stderr, Exit, Problem]
            .into_iter()
            .find(|k| *k as u8 == byte)
    }

    /// The frame on the wire.
    pub fn encode(self, payload: &[u8]) -> Vec<u8> {
        debug_assert!(payload.len() <= Self::PAYLOAD_MAX);
        let mut frame = Vec::with_capacity(Self::HEADER_LEN + payload.len());
        frame.push(self as u8);
        frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    /// Kind and payload length that a header announces; `None` when it is no header of ours.
    pub fn decode_header(header: [u8; Self::HEADER_LEN]) -> Option<(Self, usize)> {
        let [kind, length @ ..] = header;
        let length = u32::from_be_bytes(length) as usize;
        Some((Self::from_byte(kind)?, length)).filter(|_| length <= Self::PAYLOAD_MAX)
    }

    /// Bytes before the payload.
    pub const HEADER_LEN: usize = 5;
    /// Longest payload; longer data goes in several frames.
    pub const PAYLOAD_MAX: usize = 1 << 20;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_strange_ones_are_refused() {
        let frame = ExecFrame::Stderr.encode(b"abc");
        let header = *frame.first_chunk().unwrap();
        assert_eq!(ExecFrame::decode_header(header), Some((ExecFrame::Stderr, 3)));
        assert_eq!(&frame[ExecFrame::HEADER_LEN..], b"abc");
        assert_eq!(ExecFrame::decode_header([99, 0, 0, 0, 0]), None);
        assert_eq!(
            ExecFrame::decode_header([16, 0, 16, 0, 1]),
            None,
            "longer than PAYLOAD_MAX"
        );
        assert_eq!(ExecFrame::decode_header([16, 255, 255, 255, 255]), None);
    }
}
