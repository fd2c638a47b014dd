//! The agent in a real guest: Debian's cloud kernel, an initramfs with nothing but the agent and busybox, and a small
//! ext4 disk. One boot serves all checks, which take it through a machine's life in order.

mod boot;

use boot::Guest;
use martlet_agent_api::{Command, ExecSpec, Finished, Identity, Network, Outcome, Start, TtySize};
use martlet_vm::agent::{AgentClient, AgentError, ExecEvent, ExecOutcome};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(60);
/// 2033-05-18: no guest has this time by itself.
const FAR_FUTURE_NS: u64 = 2_000_000_000_000_000_000;

/// What a user's program would do at its worst: look at the clock and at random bytes as often as it can. Each line is
/// `epoch-seconds random-bytes generation`; no line may be written between hold and release.
const WITNESS: &str = "while :; do echo \"$(date +%s) $(head -c 8 /dev/urandom | hexdump -e '8/1 \"%02x\"') \
                       $(hexdump -n 4 -e '1/4 \"%d\"' /run/martlet/generation 2>/dev/null)\" >> /tmp/witness; done";

fn shell(script: &str) -> Command {
    Command {
        argv: ["sh", "-c", script].map(String::from).to_vec(),
        ..Command::default()
    }
}

fn run(client: &AgentClient, script: &str) -> ExecOutcome {
    client
        .exec_wait(shell(script), &[], 1 << 20, TIMEOUT)
        .unwrap_or_else(|error| panic!("{script}: {error}"))
}

fn output(client: &AgentClient, script: &str) -> String {
    let outcome = run(client, script);
    assert!(outcome.is_success(), "{script}: {outcome:?}");
    String::from_utf8(outcome.stdout).unwrap().trim().to_owned()
}

fn identity(index: u32) -> Identity {
    Identity {
        family: None,
        asked: None,
        clone_id: format!("00000000000{index}"),
        generation: u64::from(index),
        parent_id: Some("000000000000".into()),
        index,
        name: format!("clone-{index}"),
        realtime_unix_ns: FAR_FUTURE_NS,
        entropy: vec![index as u8; Identity::ENTROPY_BYTES],
        hostname: Some(format!("clone-{index}")),
        machine_id: None,
        network: Some(Network {
            interface: None,
            mac: Some(format!("52:54:00:00:00:{index:02x}")),
            address: [10, 77, 0, 10 + index as u8].into(),
            prefix: 16,
            gateway: Some([10, 77, 0, 1].into()),
            dns: vec![[10, 77, 0, 3].into()],
        }),
        policy: Default::default(),
    }
}

#[test]
fn a_machines_life() {
    let guest = Guest::boot("martlet.init=command martlet.hold=1");
    let client = guest.connect();
    let reply = client
        .hello_booting(TIMEOUT)
        .unwrap_or_else(|error| panic!("{error}\n{}", guest.console()));
    assert!(
        reply.held,
        "martlet.hold=1 holds the guest from the first instant"
    );
    first_identity(&client);
    commands(&client);
    terminal_and_signals(&client);
    files(&client);
    disks(&client);
    let client = hold_and_clone(&guest, client);
    shutdown(guest, &client);
}

fn first_identity(client: &AgentClient) {
    assert!(matches!(
        client.exec(ExecSpec {
            command: shell("true"),
            ..Default::default()
        }),
        Err(AgentError::Remote(_))
    ));
    client
        .start_command(&shell("echo started > /tmp/command; exec sleep 1000"))
        .unwrap();
    client.identify(&identity(1), TIMEOUT).unwrap();
    client.release(None).unwrap();
    assert_eq!(
        output(client, "hostname; ls /var/lib/systemd"),
        "clone-1",
        "the image's random seed is gone"
    );
    assert_eq!(
        output(
            client,
            "while [ ! -s /tmp/command ]; do :; done; cat /tmp/command"
        ),
        "started"
    );
}

fn commands(client: &AgentClient) {
    assert!(output(client, "uname -a").starts_with("Linux clone-1 "));
    assert_eq!(run(client, "exit 42").status, Finished::Exited(42));
    assert_eq!(run(client, "kill -9 $$").status, Finished::Killed(9));
    let echoed = client
        .exec_wait(shell("cat; echo err >&2"), b"hello\n", 1 << 20, TIMEOUT)
        .unwrap();
    assert_eq!(
        (echoed.stdout.as_slice(), echoed.stderr.as_slice()),
        (&b"hello\n"[..], &b"err\n"[..])
    );
    let metrics = client.metrics().unwrap();
    assert!(
        metrics.memory_available_bytes > 0 && metrics.memory_available_bytes < metrics.memory_total_bytes
    );
    assert!(metrics.processes > 3 && metrics.disk_total_bytes > 0);
}

fn terminal_and_signals(client: &AgentClient) {
    let tty = Some(TtySize { rows: 33, cols: 99 });
    let script = "stty size; trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.1; done";
    let exec = client
        .exec(ExecSpec {
            command: shell(script),
            tty,
            stdin: true,
        })
        .unwrap();
    let mut seen = String::new();
    let status = loop {
        match exec.output.next(TIMEOUT).unwrap().expect("output in time") {
            ExecEvent::Stdout(bytes) => seen.push_str(std::str::from_utf8(&bytes).unwrap()),
            ExecEvent::Stderr(_) => panic!("a terminal has one output"),
            ExecEvent::Exit(status) => break status,
        }
        if seen.ends_with("ready\r\n") {
            exec.input.write_all(b"\x03").unwrap(); // the terminal makes a signal of it
        }
    };
    assert_eq!(
        (seen.contains("33 99"), seen.contains("caught"), status),
        (true, true, Finished::Exited(7)),
        "{seen}"
    );
    let exec = client
        .exec(ExecSpec {
            command: shell("exec sleep 1000"),
            ..Default::default()
        })
        .unwrap();
    exec.input.signal(15).unwrap();
    assert_eq!(
        exec.output.next(TIMEOUT).unwrap(),
        Some(ExecEvent::Exit(Finished::Killed(15)))
    );
}

fn files(client: &AgentClient) {
    output(
        client,
        "mkdir -p /tmp/tree/sub; seq 100000 > /tmp/tree/sub/numbers; ln -s sub/numbers /tmp/tree/link",
    );
    output(client, "chown 12:34 /tmp/tree/sub/numbers");
    let mut tar = Vec::new();
    std::io::copy(&mut client.read_path("/tmp/tree").unwrap(), &mut tar).unwrap();
    let mut writer = client.write_path("/tmp/back").unwrap();
    std::io::Write::write_all(&mut writer, &tar).unwrap();
    writer.finish(TIMEOUT).unwrap();
    let sums = output(
        client,
        "cd /tmp; md5sum < tree/sub/numbers; md5sum < back/tree/link; stat -c %u:%g back/tree/link/../tree/sub/numbers 2>/dev/null; stat -c %u:%g back/tree/sub/numbers",
    );
    let lines: Vec<_> = sums.lines().collect();
    assert_eq!((lines[0], lines[2]), (lines[1], "12:34"));
}

fn disks(client: &AgentClient) {
    assert!(output(client, "mount").contains("/dev/vda on / type ext4"));
    let before = client.metrics().unwrap().disk_total_bytes;
    let grown = client.grow_root(TIMEOUT).unwrap();
    assert!(grown > before * 3 / 2, "{before} -> {grown}");
    assert!(client.fstrim(TIMEOUT).unwrap() > 0);
    let cached = "grep '^Cached:' /proc/meminfo | tr -cd 0-9";
    let cached_kib = || output(client, cached).parse::<u64>().unwrap();
    output(client, "dd if=/dev/zero of=/cached bs=1M count=8; sync");
    let before_kib = cached_kib();
    client.drop_caches(TIMEOUT).unwrap();
    assert!(
        cached_kib() + (7 << 10) < before_kib,
        "8 MiB of a file were cached"
    );
    assert_eq!(client.freeze_fs(Duration::from_secs(30)).unwrap(), 1);
    assert_eq!(client.thaw_fs().unwrap(), 1);
    client.freeze_fs(Duration::from_millis(100)).unwrap();
    output(client, "echo x > /thawed-by-itself; sync");
    assert_eq!(client.thaw_fs().unwrap(), 0, "nobody thawed it but its watchdog");
}

/// All of a clone's hazards, without the clone: the guest cannot tell whether its host is a new one.
fn hold_and_clone(guest: &Guest, client: AgentClient) -> AgentClient {
    let old_ids = output(&client, "cat /etc/machine-id /proc/sys/kernel/random/boot_id");
    output(
        &client,
        "mkdir -p /etc/martlet/hooks.d; h=/etc/martlet/hooks.d; \
        printf '#!/bin/sh\\necho $MARTLET_NAME $MARTLET_GENERATION > /tmp/hook\\n' > $h/10-note; \
        printf '#!/bin/sh\\nexit 3\\n' > $h/20-fails; printf '#!/bin/sh\\nsleep 100\\n' > $h/30-hangs; chmod +x $h/*",
    );
    output(&client, ": > /tmp/witness");
    let witness = client
        .exec(ExecSpec {
            command: shell(WITNESS),
            ..Default::default()
        })
        .unwrap();
    let lines = |client: &AgentClient| {
        let mut tar = Vec::new();
        std::io::copy(&mut client.read_path("/tmp/witness").unwrap(), &mut tar).unwrap();
        let content = tar.split_off(512);
        content
            .into_iter()
            .take_while(|byte| *byte != 0)
            .collect::<Vec<u8>>()
    };
    output(
        &client,
        "until [ $(wc -l < /tmp/witness) -ge 3 ]; do sleep 0.1; done",
    );
    let prepared = client.prepare(TIMEOUT).unwrap();
    println!("held in {:.1} ms", prepared.hold_ms);

    // The host goes away in the middle of a frame, and another one comes.
    client.close();
    let clone = guest.connect();
    assert!(clone.hello(Start::Clone, TIMEOUT).unwrap().held);
    let at_hold = lines(&clone);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(lines(&clone), at_hold, "nothing is written while held");
    assert!(
        matches!(clone.release(None), Err(AgentError::Remote(_))),
        "no release without an identity"
    );
    let mut who = identity(2);
    who.entropy.truncate(3);
    assert!(matches!(
        clone.identify(&who, TIMEOUT),
        Err(AgentError::NotIdentified(_))
    ));
    assert!(
        matches!(clone.release(None), Err(AgentError::Remote(_))),
        "nor after one that failed"
    );
    let mut who = identity(2);
    who.policy.hook_timeout_ms = 500;
    let identified = clone.identify(&who, TIMEOUT).unwrap();
    assert_eq!(lines(&clone), at_hold, "nothing was written before the release");
    for step in &identified.steps {
        println!("{}: {:?} in {:.1} ms", step.name, step.outcome, step.took_ms);
        let fails = ["hook 20-fails", "hook 30-hangs"].contains(&step.name.as_str());
        assert_eq!(matches!(step.outcome, Outcome::Failed(_)), fails, "{step:?}");
    }
    clone.release(None).unwrap();
    output(
        &clone,
        &format!(
            "n={}; while [ $(wc -c < /tmp/witness) -le $((n + 200)) ]; do sleep 0.1; done",
            at_hold.len()
        ),
    );
    let after = lines(&clone);
    assert!(after.starts_with(&at_hold));
    // The line that was being written when the hold came may have its time from before it.
    let text = String::from_utf8(after[at_hold.len()..].to_vec()).unwrap();
    let first_whole = text.lines().nth(2).unwrap();
    let fields: Vec<_> = first_whole.split(' ').collect();
    assert!(
        fields[0].parse::<u64>().unwrap() >= FAR_FUTURE_NS / 1_000_000_000,
        "{text}"
    );
    assert_eq!(fields[2], "2", "{text}");
    drop(witness);

    let new_ids = output(&clone, "cat /etc/machine-id /proc/sys/kernel/random/boot_id");
    assert!(
        old_ids
            .lines()
            .zip(new_ids.lines())
            .all(|(old, new)| old != new && new.len() >= 32),
        "{old_ids}\n{new_ids}"
    );
    assert_eq!(
        output(&clone, "hostname; cat /etc/hostname; cat /tmp/hook"),
        "clone-2\nclone-2\nclone-2 2"
    );
    let addresses = output(
        &clone,
        "cat /sys/class/net/eth0/address; ip -4 addr show eth0; ip route; cat /etc/resolv.conf",
    );
    for wanted in [
        "52:54:00:00:00:02",
        "inet 10.77.0.12/16",
        "default via 10.77.0.1 ",
        "nameserver 10.77.0.3",
    ] {
        assert!(addresses.contains(wanted), "{wanted} in {addresses}");
    }
    assert!(
        !addresses.contains("10.77.0.11"),
        "the old address is gone: {addresses}"
    );
    assert!(output(&clone, "cat /run/martlet/clone").contains("\"name\":\"clone-2\""));
    clone
}

fn shutdown(mut guest: Guest, client: &AgentClient) {
    client.shutdown(false).unwrap();
    guest.wait_for_end(TIMEOUT);
}
