//! Frames: a fixed header, then a payload.
//!
//! ```text
//!  0  magic        4   F7 'M' 'L' 'T'
//!  4  version      2   little endian, as all numbers here
//!  6  kind         1
//!  7  flags        1
//!  8  stream       4   chosen by the host; 0 for Hello
//! 12  epoch        8
//! 20  length       4   of the payload, at most 64 KiB
//! 24  payload crc  4   CRC-32
//! 28  header crc   4   CRC-32 of the 28 bytes before
//! 32  payload
//! ```
//!
//! A decoder that meets anything else slides forward byte by byte to the next good header. A good header whose payload
//! does not arrive whole (its sender was cut off) swallows what comes next; the payload checksum then fails and the
//! decoder slides over that one header only, so nothing whole is lost. To push such a swallower out of the way a
//! sender puts [`PREAMBLE_BYTES`] of zeros in front of a Hello that got no answer.

use std::fmt;

/// First bytes of a frame.
pub const MAGIC: [u8; 4] = *b"\xf7MLT";
/// Version of the framing.
pub const VERSION: u16 = 1;
/// Size of the header.
pub const HEADER_BYTES: usize = 32;
/// Largest payload.
pub const MAX_PAYLOAD_BYTES: usize = 64 * 1024;
/// As many zeros push out whatever half a frame the other side still waits for.
pub const PREAMBLE_BYTES: usize = MAX_PAYLOAD_BYTES;

/// On [`Kind::Data`]: standard error instead of standard output.
pub const FLAG_STDERR: u8 = 1;
/// On [`Kind::Data`]: nothing follows in this direction.
pub const FLAG_END: u8 = 0x80;

/// What a frame's payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Host: [`crate::Hello`]. Sets the epoch.
    Hello = 1,
    /// Guest: [`crate::HelloReply`].
    HelloReply = 2,
    /// Host: [`crate::Request`].
    Request = 3,
    /// Guest: [`crate::Reply`].
    Reply = 4,
    /// Both: raw bytes of a stream.
    Data = 5,
    /// Both: u32, so many more bytes of the stream may come.
    Credit = 6,
    /// Host: [`crate::Control`] of a running stream.
    Control = 7,
    /// Guest: [`crate::Finished`], the last frame of a stream.
    Finished = 8,
    /// Guest: [`crate::guest::Ask`], to hosts that said [`crate::FEATURE_ASKS`]. The stream's number is the guest's choice.
    Ask = 9,
}

impl Kind {
    /// The kind a byte stands for.
    pub fn from_byte(byte: u8) -> Option<Self> {
        use Kind::*;
        [
            Hello, HelloReply, Request, Reply, Data, Credit, Control, Finished, Ask,
        ]
        .into_iter()
        .find(|k| *k as u8 == byte)
    }
}

/// One frame.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is.
    pub kind: Kind,
    /// `FLAG_*`.
    pub flags: u8,
    /// Request or stream it belongs to.
    pub stream: u32,
    /// Whom it is meant for.
    pub epoch: u64,
    /// At most [`MAX_PAYLOAD_BYTES`].
    pub payload: Vec<u8>,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Frame {
            kind,
            flags,
            stream,
            epoch,
            payload,
        } = self;
        write!(
            f,
            "{kind:?}(stream {stream}, flags {flags:#x}, epoch {epoch:016x}, {} bytes)",
            payload.len()
        )
    }
}

/// Appends a frame to `out`.
///
/// # Panics
/// When `payload` is longer than [`MAX_PAYLOAD_BYTES`]: senders split their data.
pub fn encode(kind: Kind, flags: u8, stream: u32, epoch: u64, payload: &[u8], out: &mut Vec<u8>) {
    assert!(
        payload.len() <= MAX_PAYLOAD_BYTES,
        "a payload of {} bytes must be split",
        payload.len()
    );
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[kind as u8, flags]);
    out.extend_from_slice(&stream.to_le_bytes());
    out.extend_from_slice(&epoch.to_le_bytes());
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    let header_crc = crc32fast::hash(&out[start..]);
    out.extend_from_slice(&header_crc.to_le_bytes());
    out.extend_from_slice(payload);
}

impl Frame {
    /// The frame as bytes.
    ///
    /// # Panics
    /// As [`encode`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.payload.len());
        encode(
            self.kind,
            self.flags,
            self.stream,
            self.epoch,
            &self.payload,
            &mut out,
        );
        out
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// A header whose checksum holds; its kind may still be unknown.
struct Header {
    kind: u8,
    flags: u8,
    stream: u32,
    epoch: u64,
    length: usize,
    payload_crc: u32,
}

/// `bytes` is at least [`HEADER_BYTES`] long.
fn parse_header(bytes: &[u8]) -> Option<Header> {
    let length = u32::from_le_bytes(number(bytes, 20)) as usize;
    let good = bytes[..4] == MAGIC
        && u16::from_le_bytes(number(bytes, 4)) == VERSION
        && length <= MAX_PAYLOAD_BYTES
        && crc32fast::hash(&bytes[..28]) == u32::from_le_bytes(number(bytes, 28));
    good.then(|| Header {
        kind: bytes[6],
        flags: bytes[7],
        stream: u32::from_le_bytes(number(bytes, 8)),
        epoch: u64::from_le_bytes(number(bytes, 12)),
        length,
        payload_crc: u32::from_le_bytes(number(bytes, 24)),
    })
}

/// Finds frames in a byte stream, whatever lies between them.
///
/// Holds at most one unfinished frame and what was pushed last.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    damaged: u64,
}

impl Decoder {
    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes in; ask [`Decoder::next_frame`] until there is none before pushing more.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        } else if self.start > MAX_PAYLOAD_BYTES {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame. Frames of a kind that this version does not know are passed over.
    pub fn next_frame(&mut self) -> Option<Frame> {
        loop {
            self.slide_to_magic();
            let pending = &self.buffer[self.start..];
            if pending.len() < HEADER_BYTES {
                return None;
            }
            let Some(header) = parse_header(pending) else {
                self.start += 1;
                continue;
            };
            let payload = pending.get(HEADER_BYTES..HEADER_BYTES + header.length)?;
            if crc32fast::hash(payload) != header.payload_crc {
                self.damaged += 1;
                self.start += 1;
                continue;
            }
            let frame = Kind::from_byte(header.kind).map(|kind| Frame {
                kind,
                flags: header.flags,
                stream: header.stream,
                epoch: header.epoch,
                payload: payload.to_vec(),
            });
            self.start += HEADER_BYTES + header.length;
            if frame.is_some() {
                return frame;
            }
        }
    }

    /// How many good headers had a payload that was not theirs. A peer that keeps doing this is not one to talk to:
    /// each costs a checksum of up to 64 KiB.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    fn slide_to_magic(&mut self) {
        let pending = &self.buffer[self.start..];
        let at = (0..pending.len()).find(|&at| {
            let rest = &pending[at..];
            let seen = rest.len().min(MAGIC.len());
            rest[..seen] == MAGIC[..seen]
        });
        self.start += at.unwrap_or(pending.len());
    }
}
