//! A file sent to several sites over plain TCP, as one would copy a suspended machine to where it is to be started.

use super::{Site, lab_failed};
use crate::BenchError;
use std::fs::File;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Instant;

/// Milliseconds until all have all of it.
pub fn copy_to_all(file: &Path, from: &Site, to: &[Site]) -> Result<f64, BenchError> {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let copies: Vec<_> = to
            .iter()
            .map(|site| scope.spawn(move || copy(file, from, site)))
            .collect();
        copies.into_iter().try_for_each(|copy| {
            copy.join()
                .unwrap_or_else(|_| Err(BenchError::Other("a copy panicked".into())))
        })
    })?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

fn copy(file: &Path, from: &Site, to: &Site) -> Result<(), BenchError> {
    let address = to.host.address();
    let listener = to.host.run(|| TcpListener::bind((address, 0)));
    let listener = listener.map_err(lab_failed)?.map_err(BenchError::io("listen"))?;
    let address = listener.local_addr().map_err(BenchError::io("listen"))?;
    let arrived = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        io::copy(&mut stream, &mut io::sink())
    });
    let stream = from.host.run(|| TcpStream::connect(address));
    let mut stream = stream.map_err(lab_failed)?.map_err(BenchError::io("connect"))?;
    let mut file = File::open(file).map_err(BenchError::io("open a file"))?;
    let sent_bytes = io::copy(&mut file, &mut stream).map_err(BenchError::io("send a file"))?;
    drop(stream);
    let arrived = arrived
        .join()
        .map_err(|_| BenchError::Other("a copy panicked".into()))?;
    match arrived.map_err(BenchError::io("receive a file"))? == sent_bytes {
        true => Ok(()),
        false => Err(BenchError::Other("a copy is not whole".into())),
    }
}
