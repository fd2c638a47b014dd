//! Hosts on links as they are asked for. Bounds leave room for a machine that does other things too.

use martlet_lab::{Host, Lab, LabError, Link};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

fn lab_of_two(link: Link) -> (Host, Host) {
    let lab = Lab::new().unwrap();
    (
        lab.host("near", Link::local()).unwrap(),
        lab.host("far", link).unwrap(),
    )
}

/// Both ends of a connection.
fn connection(near: &Host, far: &Host) -> (TcpStream, TcpStream) {
    let listener = far
        .run(|| TcpListener::bind((far.address(), 0)).unwrap())
        .unwrap();
    let address = listener.local_addr().unwrap();
    let here = near.run(|| TcpStream::connect(address).unwrap()).unwrap();
    let (there, _) = listener.accept().unwrap();
    for end in [&here, &there] {
        end.set_nodelay(true).unwrap();
        end.set_read_timeout(Some(LONG)).unwrap();
    }
    (here, there)
}

/// A connection to where each byte comes back from.
fn echo(near: &Host, far: &Host) -> TcpStream {
    let (here, mut there) = connection(near, far);
    thread::spawn(move || {
        let mut byte = [0];
        while there.read_exact(&mut byte).is_ok() && there.write_all(&byte).is_ok() {}
    });
    here
}

fn ask(echo: &mut TcpStream, byte: u8) -> Duration {
    let begin = Instant::now();
    echo.write_all(&[byte]).unwrap();
    let mut answer = [0];
    echo.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [byte]);
    begin.elapsed()
}

fn median_rtt_ms(echo: &mut TcpStream) -> f64 {
    let mut rtts: Vec<Duration> = (0..21).map(|byte| ask(echo, byte)).collect();
    rtts.sort();
    rtts[10].as_secs_f64() * 1e3
}

#[track_caller]
fn assert_rtt(echo: &mut TcpStream, wanted_ms: f64) {
    let rtt_ms = median_rtt_ms(echo);
    // Not how much more: that is the machine's, and measured by `examples/figures.rs`.
    assert!(rtt_ms >= wanted_ms, "{rtt_ms} ms of {wanted_ms}");
}

#[test]
fn hosts_reach_each_other_by_code_and_by_programs() {
    let (near, far) = lab_of_two(Link::local());
    assert_eq!(
        (near.address().to_string(), near.name()),
        ("192.0.2.1".into(), "near")
    );
    assert_eq!(format!("{far:?}"), "Host(far 192.0.2.2)");
    ask(&mut echo(&near, &far), 1);
    ask(&mut echo(&far, &near), 2);
    ask(&mut echo(&near, &near), 3); // lo is up

    let listener = far
        .run(|| TcpListener::bind((far.address(), 0)).unwrap())
        .unwrap();
    let to = format!(
        "echo hello >/dev/tcp/{}/{}",
        far.address(),
        listener.local_addr().unwrap().port()
    );
    let status = near.command("bash").args(["-c", &to]).status().unwrap();
    assert!(status.success(), "{status}");
    let mut words = String::new();
    let (mut from, peer) = listener.accept().unwrap();
    from.read_to_string(&mut words).unwrap();
    assert_eq!((words.as_str(), peer.ip()), ("hello\n", near.address().into()));
}

#[test]
fn a_body_that_panics_panics_here() {
    let (near, _) = lab_of_two(Link::local());
    let panicked = thread::scope(|scope| scope.spawn(|| near.run(|| panic!("as asked"))).join());
    assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"as asked"));
    near.run(|| ()).unwrap();
}

#[test]
fn the_rate_is_what_was_asked_for() {
    const RATE_MBIT: f64 = 20.0;
    let link = Link {
        rate_mbit: Some(RATE_MBIT),
        delay_ms: 5.0,
        ..Link::local()
    };
    let (near, far) = lab_of_two(link);
    for (from, to) in [(&near, &far), (&far, &near)] {
        let (mut here, mut there) = connection(from, to);
        // From before the first byte: what has piled up while this thread was not running came in that time too.
        let (begin, mut bytes) = (Instant::now(), 0);
        let sender = thread::spawn(move || while here.write_all(&[7; 64 << 10]).is_ok() {});
        let mut buffer = vec![0; 64 << 10];
        while begin.elapsed() < Duration::from_secs(2) {
            bytes += there.read(&mut buffer).unwrap();
        }
        let rate_mbit = bytes as f64 * 8e-6 / begin.elapsed().as_secs_f64();
        drop(there);
        sender.join().unwrap();
        assert!(
            rate_mbit < 1.1 * RATE_MBIT, // nor how much less
            "{rate_mbit} Mbit/s to {to:?}"
        );
    }
}

#[test]
fn delays_are_what_was_asked_for_and_change_while_connections_last() {
    let delayed = |delay_ms| Link {
        delay_ms,
        ..Link::local()
    };
    let (near, far) = lab_of_two(delayed(10.0));
    let mut echo = echo(&near, &far);
    assert_rtt(&mut echo, 20.0);
    near.set_link(delayed(40.0)).unwrap();
    assert_rtt(&mut echo, 100.0); // both links count
    near.set_link(Link::local()).unwrap();
    far.set_link(Link {
        jitter_ms: 5.0,
        ..Link::local()
    })
    .unwrap();
    assert_rtt(&mut echo, 0.0);
}

#[test]
fn as_much_is_lost_as_was_asked_for() {
    const SENT: usize = 100;
    let (near, far) = lab_of_two(Link::local());
    let socket = |host: &Host| {
        host.run(|| UdpSocket::bind((host.address(), 0)).unwrap())
            .unwrap()
    };
    let (here, there) = (socket(&near), socket(&far));
    here.connect(there.local_addr().unwrap()).unwrap();
    there.set_read_timeout(Some(LONG)).unwrap();
    // They fit in the socket's buffer, whatever each takes of it, and none waits for an address to be found.
    nix::sys::socket::setsockopt(&there, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20)).unwrap();
    here.send(&[2]).unwrap();
    there.recv(&mut [0]).unwrap();
    let arrived = || {
        (0..SENT).for_each(|_| assert_eq!(here.send(&[1]).unwrap(), 1));
        // Then one for sure, in its place behind the others.
        far.set_link(Link::local()).unwrap();
        here.send(&[2]).unwrap();
        let mut byte = [0];
        std::iter::from_fn(|| {
            there.recv(&mut byte).unwrap();
            (byte == [1]).then_some(())
        })
        .count()
    };
    assert_eq!(arrived(), SENT);
    for (loss, wanted) in [(1.0, 0..=0), (0.5, 25..=75)] {
        far.set_link(Link {
            loss,
            ..Link::local()
        })
        .unwrap();
        let arrived = arrived();
        assert!(
            wanted.contains(&arrived),
            "{arrived} of {SENT} at a loss of {loss}"
        );
    }
}

#[test]
fn a_cut_link_is_silent_and_a_mended_one_goes_on() {
    let (near, far) = lab_of_two(Link::local());
    let mut echo = echo(&near, &far);
    ask(&mut echo, 1);
    far.cut().unwrap();
    echo.write_all(&[2]).unwrap();
    echo.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let silence = echo.read_exact(&mut [0]).unwrap_err();
    assert_eq!(silence.kind(), ErrorKind::WouldBlock);
    far.mend().unwrap();
    echo.set_read_timeout(Some(LONG)).unwrap();
    let mut late = [0];
    echo.read_exact(&mut late).unwrap(); // sent again
    assert_eq!(late, [2]);
    ask(&mut echo, 3);
}

#[test]
fn a_host_that_deletes_its_interface_harms_nobody() {
    let lab = Lab::new().unwrap();
    let [odd, near, far] = ["odd", "near", "far"].map(|name| lab.host(name, Link::local()).unwrap());
    let mut echo = echo(&near, &far);
    ask(&mut echo, 1);
    let deleted = odd.command("ip").args(["link", "delete", "eth0"]).status();
    assert!(deleted.unwrap().success());
    ask(&mut echo, 2);
    odd.set_link(Link::local()).unwrap();
    ask(&mut echo, 3);
}

#[test]
fn labs_do_not_meet() {
    let labs: Vec<(Host, Host)> = (0..3).map(|_| lab_of_two(Link::local())).collect();
    let listeners: Vec<TcpListener> = labs
        .iter()
        .map(|(_, far)| {
            far.run(|| TcpListener::bind((far.address(), 7777)).unwrap())
                .unwrap()
        })
        .collect();
    let streams: Vec<TcpStream> = labs
        .iter()
        .map(|(near, far)| {
            near.run(|| TcpStream::connect((far.address(), 7777)).unwrap())
                .unwrap()
        })
        .collect();
    for (number, (listener, mut stream)) in listeners.iter().zip(streams).enumerate() {
        stream.write_all(&[number as u8]).unwrap();
        let mut byte = [0];
        listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [number as u8]);
    }
}

#[test]
fn parameters_are_those_of_one_host() {
    const NAME: &str = "net.ipv4.tcp_congestion_control";
    let (near, far) = lab_of_two(Link::local());
    let before = far.sysctl(NAME).unwrap();
    near.set_sysctl(NAME, "reno").unwrap();
    far.set_sysctl("net.ipv4.tcp_fin_timeout", "7").unwrap();
    assert_eq!(near.sysctl(NAME).unwrap(), "reno");
    assert_eq!(far.sysctl(NAME).unwrap(), before);
    assert_ne!(near.sysctl("net.ipv4.tcp_fin_timeout").unwrap(), "7");
    let refused = near.set_sysctl(NAME, "none-such").unwrap_err();
    assert!(
        refused
            .to_string()
            .starts_with("host near: cannot set net.ipv4.tcp_congestion_control to none-such: "),
        "{refused}"
    );
}

#[test]
fn links_that_cannot_be_are_refused() {
    let lab = Lab::new().unwrap();
    let local = Link::local();
    for link in [
        Link {
            rate_mbit: Some(0.0),
            ..local
        },
        Link {
            rate_mbit: Some(f64::NAN),
            ..local
        },
        Link {
            delay_ms: -1.0,
            ..local
        },
        Link {
            jitter_ms: f64::INFINITY,
            ..local
        },
        Link { loss: 1.1, ..local },
    ] {
        let refused = lab.host("bad", link).unwrap_err();
        assert!(matches!(refused, LabError::BadLink { .. }), "{link:?}: {refused}");
    }
    let host = lab.host("good", local).unwrap();
    let refused = host
        .set_link(Link {
            delay_ms: 1e9,
            ..local
        })
        .unwrap_err();
    assert_eq!(refused.to_string(), "no link has a delay in ms of 1000000000");
}
