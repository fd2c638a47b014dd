//! The serial console, joined with this terminal until Ctrl-].

use crate::client::Client;
use crate::failure::{Failure, Outcome};
use crate::terminal::RawMode;
use std::io::{self, IsTerminal, Read, Write};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::{Sender, channel};

/// Ctrl-]
const ESCAPE: u8 = 0x1d;

/// Attaches until the user detaches or the machine ends.
pub fn attach(client: &Client, name: &str, quiet: bool) -> Outcome {
    let done = client.runtime.block_on(async {
        let path = format!("/v1/machines/{name}/console");
        let connection = client
            .upgrade(&path, "martlet-console", &serde_json::json!({}))
            .await?;
        if !quiet {
            eprintln!("connected to the console of {name}; Ctrl-] detaches, Enter wakes it up");
        }
        let _raw = match io::stdin().is_terminal() {
            true => Some(RawMode::enter().map_err(|error| Failure::io("cannot set up the terminal", error))?),
            false => None,
        };
        join(connection)
            .await
            .map_err(|error| Failure::io("the console's connection broke", error))
    });
    if done.is_ok() && !quiet {
        eprintln!("\ndetached from the console of {name}");
    }
    done
}

async fn join(connection: impl AsyncRead + AsyncWrite) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(connection);
    let (keys, mut typed) = channel(8);
    std::thread::spawn(move || read_keys(&keys));
    let typing = async {
        while let Some(bytes) = typed.recv().await {
            let end = bytes.iter().position(|byte| *byte == ESCAPE);
            writer.write_all(&bytes[..end.unwrap_or(bytes.len())]).await?;
            writer.flush().await?; // what TLS could not send at once it keeps until it is asked
            if end.is_some() {
                return Ok(());
            }
        }
        // Input has ended without the escape (a pipe): go on showing.
        std::future::pending().await
    };
    let showing = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let length = reader.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            let mut out = io::stdout().lock();
            out.write_all(&buffer[..length])?;
            out.flush()?;
        }
    };
    tokio::select! {
        done = typing => done,
        done = showing => done,
    }
}

fn read_keys(keys: &Sender<Vec<u8>>) {
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = io::stdin().lock().read(&mut buffer) {
        if keys.blocking_send(buffer[..length].to_vec()).is_err() {
            return;
        }
    }
}
