//! A serial console over an upgraded connection.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const BUFFER_BYTES: usize = 16 << 10;

/// Joins a console with the client, until the console ends. A client that types no more still reads.
pub async fn serve(upgrade: OnUpgrade, console: std::os::unix::net::UnixStream) -> io::Result<()> {
    let client = TokioIo::new(upgrade.await.map_err(io::Error::other)?);
    let (mut client_reader, mut client_writer) = tokio::io::split(client);
    console.set_nonblocking(true)?;
    let (mut reader, mut writer) = UnixStream::from_std(console)?.into_split();
    let (mut typed, mut said) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
    let mut types = true;
    loop {
        tokio::select! {
            read = client_reader.read(&mut typed), if types => match read? {
                0 => {
                    types = false;
                    writer.shutdown().await?;
                }
                length => writer.write_all(&typed[..length]).await?,
            },
            read = reader.read(&mut said) => match read {
                Ok(0) | Err(_) => return client_writer.shutdown().await,
                Ok(length) => {
                    client_writer.write_all(&said[..length]).await?;
                    client_writer.flush().await?; // what TLS could not send at once it keeps until it is asked
                }
            },
        }
    }
}
