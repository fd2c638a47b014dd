//! What a frame costs that somebody waits for: asked of another host over loopback, beside as many bytes over a bare connection.
//!
//! `cargo bench -p martlet-peer --bench fetch`; prints a table, asserts nothing.

#[path = "../tests/support/mod.rs"]
mod support;

use martlet_store::{Key, Kind};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;
use support::{IMAGE_PAGES, Stored, client, host, new_fleet};

const ROUNDS: usize = 7;
/// What a key and the head of a request take.
const ASKED_BYTES: usize = 160;

/// Answers each request with as many bytes as it says.
fn bare() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.set_nodelay(true).unwrap();
        let mut asked = [0; ASKED_BYTES];
        while stream.read_exact(&mut asked).is_ok() {
            let len = u32::from_le_bytes(asked[..4].try_into().unwrap());
            stream.write_all(&vec![7; len as usize]).unwrap();
        }
    });
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn median_us(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let fleet = new_fleet();
    let here = Stored::new();
    let served = here.serve(&host(&fleet, "attic"), |_, _| true);
    let id = here.save(None, 0..IMAGE_PAGES, "web:1");
    let calls = client(&host(&fleet, "cellar"), "attic", &served.address);
    let needs = here.store.needs(&id).unwrap().into_iter();
    let frames: Vec<Key> = needs
        .map(|(key, _)| key)
        .filter(|key| key.kind == Kind::Frame)
        .collect();
    let mut bare = bare();
    println!("round  a frame of a host  as many bytes  ratio");
    for round in 1..=ROUNDS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for frame in &frames {
            let begun = Instant::now();
            let mut len = 0;
            calls
                .receive(std::slice::from_ref(frame), &mut |stored| {
                    len = stored.bytes.len();
                    Ok(())
                })
                .unwrap();
            ours.push(begun.elapsed().as_secs_f64() * 1e6);
            let (mut asked, mut answer) = ([0; ASKED_BYTES], vec![0; len]);
            asked[..4].copy_from_slice(&(len as u32).to_le_bytes());
            let begun = Instant::now();
            bare.write_all(&asked).unwrap();
            bare.read_exact(&mut answer).unwrap();
            theirs.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        let (ours, theirs) = (median_us(ours), median_us(theirs));
        println!(
            "{round:5}  {ours:14.0} us  {theirs:10.0} us  {:5.2}",
            ours / theirs
        );
    }
}
