//! A command in a clone: how it exits and what it prints is for the parent.

use martlet_agent_api::guest::DATA_BYTES;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

/// Runs it, with `id` for each `{id}`: its status as a shell has it, and what it printed, cut to what can be handed over.
pub fn run(command: &[OsString], id: u32) -> (i32, Vec<u8>) {
    let mut words = command.iter().map(|word| replaced(word, id));
    let program = words.next().unwrap_or_default();
    let child = Command::new(&program)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    match child.and_then(wait) {
        Ok(ended) => ended,
        Err(error) => {
            eprintln!("martlet-guest: {}: {error}", program.to_string_lossy());
            let status = if error.kind() == io::ErrorKind::NotFound {
                127
            } else {
                126
            };
            (status, Vec::new())
        }
    }
}

fn wait(mut child: Child) -> io::Result<(i32, Vec<u8>)> {
    let mut data = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.by_ref().take(DATA_BYTES as u64).read_to_end(&mut data)?;
        io::copy(&mut stdout, &mut io::sink())?; // or it would wait, or fail, for want of a reader
    }
    let status = child.wait()?;
    let signal = status.signal().map(|signal| 128 + signal);
    Ok((status.code().or(signal).unwrap_or(1), data))
}

fn replaced(word: &OsStr, id: u32) -> OsString {
    const PLACE: &[u8] = b"{id}";
    let (mut rest, mut replaced) = (word.as_bytes(), Vec::new());
    while let Some(at) = rest.windows(PLACE.len()).position(|bytes| bytes == PLACE) {
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(id.to_string().as_bytes());
        rest = &rest[at + PLACE.len()..];
    }
    replaced.extend_from_slice(rest);
    OsString::from_vec(replaced)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str]) -> (i32, Vec<u8>) {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        super::run(&words, 7)
    }

    #[test]
    fn status_output_and_id() {
        assert_eq!(
            run(&["sh", "-c", "echo {id}-{id}; exit 3"]),
            (3, b"7-7\n".to_vec())
        );
        assert_eq!(run(&["sh", "-c", "kill -9 $$"]), (137, Vec::new()));
        assert_eq!(run(&["/nonexistent/{id}"]), (127, Vec::new()));
        assert_eq!(run(&["/"]), (126, Vec::new()));
    }

    #[test]
    fn more_output_than_can_be_handed_over() {
        let (status, data) = run(&["head", "-c", "1000000", "/dev/zero"]);
        assert_eq!((status, data.len()), (0, DATA_BYTES));
    }
}
