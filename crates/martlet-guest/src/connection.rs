//! One call, one connection: there is nothing to get out of step, and nothing that processes or threads could share.

use crate::error::{Error, ErrorKind, Result};
use martlet_agent_api::guest::{GuestAnswer, GuestCall, GuestReply, LINE_BYTES, SOCKET};
use std::ffi::OsString;
use std::io::{ErrorKind as Io, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixStream};

/// Names another socket: `@NAME` in the abstract namespace, or a path. For tests.
const SOCKET_VARIABLE: &str = "MARTLET_GUEST_SOCKET";

/// Connects to the agent.
pub fn connect() -> Result<UnixStream> {
    let name = std::env::var_os(SOCKET_VARIABLE).unwrap_or_else(|| OsString::from(format!("@{SOCKET}")));
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&name),
    };
    address
        .and_then(|address| UnixStream::connect_addr(&address))
        .map_err(|error| {
            let name = name.to_string_lossy();
            Error::new(
                ErrorKind::Absent,
                format!("no agent of Martlet listens at {name} ({error}); is this a guest of Martlet?"),
            )
        })
}

/// Asks, and waits for the answer.
pub fn call(call: &GuestCall) -> Result<GuestAnswer> {
    let mut line =
        serde_json::to_vec(call).map_err(|e| Error::invalid(format!("cannot write the call: {e}")))?;
    line.push(b'\n');
    if line.len() > LINE_BYTES {
        return Err(Error::invalid(format!(
            "the call has {} bytes, more than {LINE_BYTES}",
            line.len()
        )));
    }
    let mut stream = connect()?;
    stream.write_all(&line).map_err(|e| lost(&e))?;
    match serde_json::from_slice(&read_line(&mut stream)?) {
        Ok(GuestReply::Ok(answer)) => Ok(answer),
        Ok(GuestReply::Error(error)) => Err(error.into()),
        Err(error) => Err(Error::protocol(format!(
            "the agent's answer is not understood: {error}"
        ))),
    }
}

fn lost(error: &std::io::Error) -> Error {
    Error::new(
        ErrorKind::Lost,
        format!("the connection to the agent was lost: {error}"),
    )
}

/// The one line of the answer, without its end.
fn read_line(stream: &mut impl Read) -> Result<Vec<u8>> {
    let mut line = vec![0; LINE_BYTES];
    let mut filled = 0;
    loop {
        let count = match stream.read(&mut line[filled..]) {
            Ok(0) => return Err(lost(&Io::UnexpectedEof.into())),
            Ok(count) => count,
            Err(error) if error.kind() == Io::Interrupted => continue,
            Err(error) => return Err(lost(&error)),
        };
        let end = line[filled..filled + count]
            .iter()
            .position(|byte| *byte == b'\n');
        let read = filled + count;
        match end {
            Some(end) if filled + end + 1 == read => {
                line.truncate(read - 1);
                return Ok(line);
            }
            Some(_) => return Err(Error::protocol("the agent's answer has more than a line")),
            None if read == LINE_BYTES => {
                return Err(Error::protocol(format!(
                    "the agent's answer has more than {LINE_BYTES} bytes"
                )));
            }
            None => filled = read,
        }
    }
}
