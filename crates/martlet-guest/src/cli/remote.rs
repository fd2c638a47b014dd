//! A command for a clone: from who wants it run, by way of the parent, to the clone that runs it.
//!
//! ```text
//!   mpiexec ─► martlet-guest launch HOST COMMAND ──unix──► martlet-guest mpi ──TCP──► clone: sh -c COMMAND
//!                      output, status  ◄──────────────────────────◄──────────────────────┘
//! ```
//!
//! Requests are `length, bytes`, and what comes back is `kind, length, bytes`; numbers are big-endian.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Where [`launch`] finds who can reach the clones.
pub const BROKER: &str = "MARTLET_BROKER";

const OUTPUT: u8 = 1;
const ERRORS: u8 = 2;
const STATUS: u8 = 3;
/// Commands are not longer.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// What a message carries at most.
const PIECE_BYTES: usize = 16 << 10;
/// Between looks whether a command has ended.
const LOOK: Duration = Duration::from_millis(10);

/// Sends a request.
pub fn write_request(to: &mut impl Write, request: &[u8]) -> io::Result<()> {
    let length = u32::try_from(request.len()).map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
    to.write_all(&[&length.to_be_bytes(), request].concat())
}

/// The next request; `None` at the end.
pub fn read_request(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    bytes(from, u32::from_be_bytes(length) as usize, REQUEST_BYTES_MAX).map(Some)
}

fn bytes(from: &mut impl Read, length: usize, most: usize) -> io::Result<Vec<u8>> {
    if length > most {
        return Err(io::Error::new(ErrorKind::InvalidData, "a message is too long"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn tell(to: &Mutex<impl Write>, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let length = bytes.len() as u32; // at most a piece
    let message = [&[kind][..], &length.to_be_bytes(), bytes].concat();
    to.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .write_all(&message)
}

/// In a clone: runs the command that comes, if one does, and tells all of it. Its status; it ends when nobody is at the
/// other end any more.
pub fn serve(mut stream: TcpStream) -> io::Result<i32> {
    let Some(request) = read_request(&mut stream)? else {
        return Ok(0);
    };
    let line = OsString::from(String::from_utf8_lossy(&request).into_owned());
    let mut child = Command::new("/bin/sh")
        .arg("-c")
        .arg(line)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    let (tells, listens) = (Mutex::new(stream.try_clone()?), stream.try_clone()?);
    let child = Mutex::new(child);
    let status = std::thread::scope(|scope| {
        let told = [
            scope.spawn(|| pass_on(output, OUTPUT, &tells)),
            scope.spawn(|| pass_on(errors, ERRORS, &tells)),
        ];
        scope.spawn(|| {
            // Nothing else comes: it is the end of the connection, or of this command.
            let _ = (&listens).read(&mut [0]);
            let _ = child.lock().unwrap_or_else(PoisonError::into_inner).kill();
        });
        let status = wait(&child);
        for thread in told {
            let _ = thread.join(); // who is gone is told nothing
        }
        if let Ok(status) = &status {
            let _ = tell(&tells, STATUS, &status.to_be_bytes());
        }
        let _ = stream.shutdown(Shutdown::Both);
        status
    })?;
    Ok(status)
}

fn wait(child: &Mutex<Child>) -> io::Result<i32> {
    loop {
        let ended = child.lock().unwrap_or_else(PoisonError::into_inner).try_wait()?;
        if let Some(status) = ended {
            let signal = status.signal().map(|signal| 128 + signal);
            return Ok(status.code().or(signal).unwrap_or(1));
        }
        std::thread::sleep(LOOK);
    }
}

fn pass_on(from: Option<impl Read>, kind: u8, to: &Mutex<TcpStream>) -> io::Result<()> {
    let Some(mut from) = from else {
        return Ok(());
    };
    let mut piece = [0; PIECE_BYTES];
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(()),
            length => tell(to, kind, &piece[..length])?,
        }
    }
}

/// Called as a launcher of mpich's: has a command run in a clone, and is as if it ran here.
pub fn launch(args: impl Iterator<Item = OsString>) -> io::Result<ExitCode> {
    // Options are ssh's.
    let mut words = args.skip_while(|word| word.as_bytes().first() == Some(&b'-'));
    let host = words.next().unwrap_or_default();
    let command: Vec<OsString> = words.collect();
    let command = command.join(&OsString::from(" "));
    let broker = std::env::var_os(BROKER)
        .ok_or_else(|| io::Error::new(ErrorKind::NotFound, "it is not called by `martlet-guest mpi`"))?;
    let mut stream = UnixStream::connect(broker)?;
    write_request(
        &mut stream,
        &[host.as_bytes(), b"\0", command.as_bytes()].concat(),
    )?;
    let status = hear(&mut stream, &mut io::stdout(), &mut io::stderr())?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
}

/// Passes on what is told of a command; its status.
fn hear(stream: &mut impl Read, output: &mut impl Write, errors: &mut impl Write) -> io::Result<i32> {
    loop {
        let mut header = [0; 5];
        stream
            .read_exact(&mut header)
            .map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => io::Error::new(error.kind(), "the clone is gone"),
                _ => error,
            })?;
        let [kind, length @ ..] = header;
        let body = bytes(stream, u32::from_be_bytes(length) as usize, PIECE_BYTES)?;
        match (kind, body.first_chunk()) {
            (STATUS, Some(status)) => return Ok(i32::from_be_bytes(*status)),
            (OUTPUT, _) => {
                output.write_all(&body)?;
                output.flush()?;
            }
            (ERRORS, _) => errors.write_all(&body)?,
            _ => {
                return Err(io::Error::new(
                    ErrorKind::InvalidData,
                    "a clone says what makes no sense",
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn a_command_is_as_if_it_ran_here() {
        let (mut here, there) = pair();
        let clone = std::thread::spawn(|| serve(there).unwrap());
        write_request(
            &mut here,
            b"echo out; echo err >&2; head -c 100000 /dev/zero; exit 7",
        )
        .unwrap();
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        assert_eq!(hear(&mut here, &mut output, &mut errors).unwrap(), 7);
        assert_eq!(
            (output.len(), &output[..4], &errors[..]),
            (100_004, &b"out\n"[..], &b"err\n"[..])
        );
        assert_eq!(clone.join().unwrap(), 7);
    }

    #[test]
    fn a_command_ends_with_who_wanted_it() {
        let (mut here, there) = pair();
        let clone = std::thread::spawn(|| serve(there).unwrap());
        write_request(&mut here, b"exec sleep 1000").unwrap();
        drop(here);
        assert_eq!(clone.join().unwrap(), 137);
        let (here, there) = pair();
        drop(here);
        assert_eq!(serve(there).unwrap(), 0, "nobody wanted anything");
    }

    #[test]
    fn nonsense_is_refused() {
        let hear = |mut bytes: &[u8]| hear(&mut bytes, &mut io::sink(), &mut io::sink());
        for nonsense in [
            &[9, 0, 0, 0, 0][..],
            &[1, 0xff, 0, 0, 0],
            &[3, 0, 0, 0, 1, 0],
            &[1, 0, 0],
        ] {
            assert!(hear(nonsense).is_err(), "{nonsense:?}");
        }
        assert!(read_request(&mut &[0xff, 0, 0, 0, 1][..]).is_err());
    }
}
