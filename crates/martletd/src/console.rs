//! A serial console over an upgraded connection. When the machine goes on in another process the client stays: what it
//! types meanwhile is read when the console is there again.

use crate::control::ConsoleSession;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::io;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const BUFFER_BYTES: usize = 16 << 10;

/// Joins consoles with the client, one after the other. `again` connects to the one that follows, if there is one.
pub async fn serve<Next: Future<Output = Option<ConsoleSession>>>(
    upgrade: OnUpgrade,
    first: ConsoleSession,
    again: impl Fn() -> Next,
) -> io::Result<()> {
    let client = TokioIo::new(upgrade.await.map_err(io::Error::other)?);
    let (mut client_reader, mut client_writer) = tokio::io::split(client);
    let (mut typed, mut said) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    let mut session = first;
    let mut types = true;
    let mut unsent = Vec::new();
    loop {
        // A copy of the descriptor for the runtime; both are closed at the end.
        let socket = session.socket.try_clone()?;
        socket.set_nonblocking(true)?;
        let (mut reader, mut writer) = UnixStream::from_std(socket)?.into_split();
        writer.write_all(&unsent).await?;
        unsent.clear();
        loop {
            tokio::select! {
                read = client_reader.read(&mut typed), if types => match read? {
                    0 => {
                        types = false;
                        writer.shutdown().await?;
                    }
                    length => match writer.write_all(&typed[..length]).await {
                        Err(_) if session.moved.load(Ordering::SeqCst) => {
                            unsent = typed[..length].to_vec();
                            break;
                        }
                        written => written?,
                    },
                },
                read = reader.read(&mut said) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(length) => {
                        client_writer.write_all(&said[..length]).await?;
                        client_writer.flush().await?; // what TLS could not send at once it keeps until it is asked
                    }
                },
            }
        }
        if !session.moved.load(Ordering::SeqCst) {
            return client_writer.shutdown().await;
        }
        match again().await {
            Some(next) => session = next,
            None => return client_writer.shutdown().await,
        }
    }
}
