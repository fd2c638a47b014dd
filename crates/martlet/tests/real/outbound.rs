//! What guests reach by a list: that, at whatever host they are, and nothing else.

use crate::{Daemon, Fixture};
use martlet_bench::roam::Site;
use martlet_lab::{Host, Lab, Link};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

const ALLOWED: u16 = 8080;
const OTHER: u16 = 8081;

/// Sends everything back once all has come, and notes who came.
struct Echo {
    host: Host,
    callers: Arc<Mutex<BTreeSet<IpAddr>>>,
}

impl Echo {
    fn new(lab: &Lab) -> Self {
        let host = lab.host("web", Link::local()).unwrap();
        let callers = Arc::<Mutex<BTreeSet<IpAddr>>>::default();
        for port in [ALLOWED, OTHER] {
            let listener = host.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
            let (listener, callers) = (listener.unwrap(), callers.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    callers.lock().unwrap().insert(stream.peer_addr().unwrap().ip());
                    std::thread::spawn(move || echo(stream));
                }
            });
        }
        Self { host, callers }
    }
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    stream.write_all(&all)?;
    stream.shutdown(Shutdown::Both)
}

fn site(lab: &Lab, name: &str) -> Site {
    Site::new(lab, name, Path::new(env!("CARGO_BIN_EXE_martlet"))).unwrap()
}

#[test]
fn guests_reach_what_is_on_their_list_and_nothing_else() {
    let _turn = Daemon::empty(); // for its turn among the tests, and its deadline
    let lab = Lab::new().unwrap();
    let (desk, couch) = (site(&lab, "desk"), site(&lab, "couch"));
    Fixture::Tiny.copy_to(desk.state_dir());
    desk.found_fleet().unwrap();
    desk.admit(&couch).unwrap();
    let web = Echo::new(&lab);
    let address = web.host.address();
    let list = format!("{address}:{ALLOWED},*.allowed.example");
    desk.run(&[
        "run",
        "tiny",
        "--name",
        "w",
        "--memory",
        "128M",
        "--outbound-to",
        &list,
    ])
    .unwrap();

    // Both ways, more than any buffer on the way has, and each end is told when the other has said all.
    let much = format!(
        "head -c 3000000 /dev/urandom > /much; \
         [ \"$(nc {address} {ALLOWED} < /much | sha256sum)\" = \"$(sha256sum < /much)\" ]"
    );
    let often =
        format!("for i in $(seq 20); do [ \"$(echo $i | nc {address} {ALLOWED})\" = $i ] || exit 1; done");
    let refused = |to: Ipv4Addr, port: u16| format!("! nc -w 5 {to} {port} < /dev/null");
    let nothing_else = [
        refused(address, OTHER),
        refused(Ipv4Addr::new(192, 0, 2, 250), ALLOWED),
        // This host, as the guest sees it, and as the gateway does.
        refused(Ipv4Addr::new(10, 77, 0, 2), 22),
        refused(Ipv4Addr::new(10, 78, 255, 253), 22),
        refused(Ipv4Addr::new(169, 254, 169, 254), 80),
        "! ping -c 1 -W 1 192.0.2.1".to_owned(),
        // Who it asks for names knows none but those; and of these, what there is.
        "nslookup evil.example 2>&1 | grep -qi refused".to_owned(),
        "! nslookup a.allowed.example > /dev/null 2>&1".to_owned(),
    ];
    let all = [&much[..], &often]
        .into_iter()
        .chain(nothing_else.iter().map(String::as_str));
    let lines: Vec<String> = all.map(str::to_owned).collect();
    let check = |site: &Site, machine: &str| {
        for line in &lines {
            site.exec(machine, line)
                .unwrap_or_else(|error| panic!("{machine}: {line}: {error}"));
        }
    };
    check(&desk, "w");
    // Clones have their own host's, and a connection of the parent goes on through the fork.
    // Somebody who can write is there from the beginning, so that what is written first is not the last.
    let talk = format!(
        "mkfifo /tmp/in; exec 9<>/tmp/in; (nc {address} {ALLOWED} </tmp/in 9>&- >/tmp/out 2>&1 &) >/dev/null 2>&1; \
         (sleep 100000 & echo $! > /tmp/pid) >/dev/null 2>&1; echo before >&9"
    );
    desk.exec("w", &talk).unwrap();
    desk.run(&["fork", "w", "-n", "2", "--on", "desk,couch"]).unwrap();
    check(&desk, "w-1");
    check(&couch, "w-2");
    let heard = "echo after > /tmp/in; kill $(cat /tmp/pid); \
                 for i in $(seq 100); do grep -q after /tmp/out && exec grep -q before /tmp/out; sleep 0.2; done; exit 1";
    desk.exec("w", heard).unwrap();
    let callers: BTreeSet<IpAddr> = [&desk, &couch].map(|site| site.address().into()).into();
    assert_eq!(*web.callers.lock().unwrap(), callers);
    // It comes up with the same list, after a suspend as well.
    desk.run(&["suspend", "w-1"]).unwrap();
    desk.run(&["resume", "w-1"]).unwrap();
    check(&desk, "w-1");
    // One that has no list has no way out.
    desk.run(&["run", "tiny", "--name", "n", "--memory", "128M", "--family"])
        .unwrap();
    for line in [&refused(address, ALLOWED), &nothing_else[3]] {
        desk.exec("n", line).unwrap();
    }
}

#[test]
fn a_list_that_cannot_be_is_refused_in_words() {
    let daemon = Daemon::new(Fixture::Tiny);
    let refused = |args: &[&str]| {
        daemon
            .refused(&[&["run", "tiny", "--name", "w"], args].concat())
            .1
    };
    assert!(
        refused(&["--outbound-to", "http://x"]).contains("\"http://x\" says nothing that may be reached")
    );
    assert!(
        refused(&["--outbound-to", "any", "--outbound-rate", "10"])
            .contains("10 bytes a second are not possible")
    );
    let (_, words) = daemon.refused(&["run", "tiny0:booted", "--name", "w", "--outbound-to", "any"]);
    assert!(words.contains("no card"), "{words}");
    assert_eq!(daemon.names().len(), 0);
}
