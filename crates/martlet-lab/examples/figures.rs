//! What links of a lab achieve on this machine: `cargo run --release -p martlet-lab --example figures`.

use martlet_lab::{Host, Lab, LabError, Link};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const DURATION: Duration = Duration::from_secs(5);

fn main() -> Result<(), LabError> {
    println!("Mbit/s   RTT ms   loss  congestion    goodput  RTT median     p99");
    for (rate_mbit, rtt_ms, loss, congestion) in [
        (None, 0.0, 0.0, "bbr"),
        (Some(1000.0), 0.2, 0.0, "bbr"),
        (Some(1000.0), 0.2, 0.0, "reno"),
        (Some(1000.0), 10.0, 0.0, "bbr"),
        (Some(100.0), 10.0, 0.0, "bbr"),
        (Some(50.0), 40.0, 0.01, "bbr"),
        (Some(50.0), 40.0, 0.01, "reno"),
        (Some(20.0), 20.0, 0.0, "bbr"),
        (Some(5.0), 50.0, 0.0, "bbr"),
    ] {
        let lab = Lab::new()?;
        let link = Link {
            rate_mbit,
            delay_ms: rtt_ms / 2.0,
            loss,
            ..Link::local()
        };
        let (near, far) = (lab.host("near", Link::local())?, lab.host("far", link)?);
        for host in [&near, &far] {
            host.set_sysctl("net.ipv4.tcp_congestion_control", congestion)?;
        }
        let mut rtts_ms = rtts_ms(&near, &far);
        rtts_ms.sort_by(f64::total_cmp);
        println!(
            "{:>6} {rtt_ms:>8} {loss:>6} {congestion:>11} {:>10.1} {:>11.2} {:>7.2}",
            rate_mbit.map_or("any".into(), |rate| rate.to_string()),
            goodput_mbit(&near, &far),
            rtts_ms[rtts_ms.len() / 2],
            rtts_ms[rtts_ms.len() * 99 / 100],
        );
    }
    Ok(())
}

/// Two ends of a connection.
fn connection(near: &Host, far: &Host) -> (TcpStream, TcpStream) {
    let listener = far
        .run(|| TcpListener::bind((far.address(), 0)).unwrap())
        .unwrap();
    let address = listener.local_addr().unwrap();
    let here = near.run(|| TcpStream::connect(address).unwrap()).unwrap();
    here.set_nodelay(true).unwrap();
    let (there, _) = listener.accept().unwrap();
    there.set_nodelay(true).unwrap();
    (here, there)
}

fn rtts_ms(near: &Host, far: &Host) -> Vec<f64> {
    let (mut here, mut there) = connection(near, far);
    thread::spawn(move || {
        let mut byte = [0];
        while there.read_exact(&mut byte).is_ok() && there.write_all(&byte).is_ok() {}
    });
    let round = |_| {
        let begin = Instant::now();
        here.write_all(&[1]).unwrap();
        here.read_exact(&mut [0]).unwrap();
        begin.elapsed().as_secs_f64() * 1e3
    };
    (0..200).map(round).collect()
}

/// What arrives, without the first second.
fn goodput_mbit(near: &Host, far: &Host) -> f64 {
    let (mut here, mut there) = connection(near, far);
    thread::spawn(move || while here.write_all(&[7; 64 << 10]).is_ok() {});
    let mut buffer = vec![0; 256 << 10];
    let (mut begin, mut bytes) = (Instant::now(), 0);
    let mut is_warm = false;
    loop {
        bytes += there.read(&mut buffer).unwrap();
        let passed = begin.elapsed();
        if !is_warm && passed > Duration::from_secs(1) {
            (begin, bytes, is_warm) = (Instant::now(), 0, true);
        } else if passed > DURATION {
            return bytes as f64 * 8e-6 / passed.as_secs_f64();
        }
    }
}
