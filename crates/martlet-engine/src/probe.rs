//! The first response: a service in the guest is asked until it answers.

use crate::engine::Engine;
use crate::identity;
use crate::machine::Machine;
use crate::problem::Told;
use crate::run::stage;
use crate::state::When;
use martlet_api::{PortForward, Probe, Problem, ProblemCode, ProgressSink};
use martlet_vm::spec::Forward;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two attempts.
const INTERVAL: Duration = Duration::from_millis(2);
const ANSWER_MAX_BYTES: usize = 64 << 10;

impl Engine {
    /// Asks a machine's service until it answers, and enters the instant into the machine's timeline.
    pub(crate) fn probe(
        &self,
        machine: &Arc<Machine>,
        probe: Option<&Probe>,
        requested: Instant,
        progress: ProgressSink<'_>,
    ) -> Result<(), Problem> {
        let Some(probe) = probe else { return Ok(()) };
        progress(stage("waiting for the service's first response"));
        let address = self.reached(machine, probe.guest_port)?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut last = String::new();
        while Instant::now() < deadline {
            match ask(address, probe) {
                Ok(()) => {
                    let first_response_ms = requested.elapsed().as_secs_f64() * 1e3;
                    return self.update(machine, When::Later, |record| {
                        record.timeline.first_response_ms = Some(first_response_ms)
                    });
                }
                Err(why) => last = why,
            }
            if !machine.live().is_some_and(|live| live.vm.is_alive()) {
                break;
            }
            std::thread::sleep(INTERVAL);
        }
        let name = machine.record().name;
        Err(Problem::new(
            ProblemCode::GuestFailed,
            format!(
                "the service on port {} of machine {name} did not answer",
                probe.guest_port
            ),
        )
        .cause(last)
        .remediation(format!(
            "the machine runs; `martlet exec {name} -- ss -ltn` shows what listens in it"
        )))
    }

    /// Where a port of the guest is reached from the host. A port is forwarded to it if there is none.
    fn reached(&self, machine: &Arc<Machine>, guest_port: u16) -> Result<SocketAddrV4, Problem> {
        let record = machine.record();
        if record.config.tap.is_some() {
            let address = identity::address(record.number).into();
            return Ok(SocketAddrV4::new(address, guest_port));
        }
        let at_host = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let ports = record.config.ports;
        if let Some(port) = ports.iter().find(|port| port.guest_port == guest_port) {
            return Ok(at_host(port.host_port));
        }
        let live = machine.live_for(crate::phase::Verb::Exec)?;
        let made = live
            .vm
            .add_forward(Forward {
                host_port: 0,
                guest_port,
            })
            .told()?;
        let port = PortForward {
            host_port: made.host_port,
            guest_port,
        };
        self.update(machine, When::Later, |record| record.config.ports.push(port))?;
        Ok(at_host(made.host_port))
    }
}

fn ask(address: SocketAddrV4, probe: &Probe) -> Result<(), String> {
    let attempt = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address.into(), ATTEMPT_TIMEOUT)?;
        stream.set_read_timeout(Some(ATTEMPT_TIMEOUT))?;
        stream.set_nodelay(true)?;
        if !probe.send.is_empty() {
            stream.write_all(probe.send.as_bytes())?;
            stream.write_all(b"\r\n")?;
        }
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let read = stream.read(&mut buffer)?;
            answer.extend_from_slice(&buffer[..read]);
            if read == 0 || contains(&answer, probe.expect.as_bytes()) || answer.len() > ANSWER_MAX_BYTES {
                return Ok(answer);
            }
        }
    };
    match attempt() {
        Ok(answer) if !answer.is_empty() && contains(&answer, probe.expect.as_bytes()) => Ok(()),
        Ok(answer) if answer.is_empty() => Err("it closed the connection without a word".into()),
        Ok(answer) => Err(format!(
            "it said {:?}",
            String::from_utf8_lossy(&answer[..answer.len().min(80)])
        )),
        Err(error) => Err(error.to_string()),
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    wanted.is_empty() && !bytes.is_empty()
        || !wanted.is_empty() && bytes.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn served(answer: &'static [u8]) -> SocketAddrV4 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 6]).unwrap();
            stream.write_all(answer).unwrap();
        });
        address
    }

    #[test]
    fn an_answer_must_contain_what_is_expected() {
        let probe = Probe {
            guest_port: 1,
            send: "PING".into(),
            expect: "PONG".into(),
        };
        ask(served(b"+PONG\r\n"), &probe).unwrap();
        assert!(
            ask(served(b"-LOADING\r\n"), &probe)
                .unwrap_err()
                .contains("LOADING")
        );
        assert!(ask(served(b""), &probe).unwrap_err().contains("without a word"));
        ask(
            served(b"x"),
            &Probe {
                expect: String::new(),
                ..probe
            },
        )
        .unwrap();
    }
}
