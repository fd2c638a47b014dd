//! Not one wrong byte: guests that verify their own memory and files are checkpointed, forked, suspended and resumed while
//! they work, ten times over. Every clone, and at the end the parent, proves that all is right; then an early checkpoint
//! is gone back to, and proves it too.

use crate::{Daemon, Fixture};
use serde_json::json;

const CYCLES: usize = 10;

/// Starts a line of shell that goes on by itself; what it says goes to `/work/NAME.log`.
fn start(daemon: &Daemon, machine: &str, name: &str, line: &str) {
    let script = format!("mkdir -p /work; cat > /work/{name}.sh; chmod +x /work/{name}.sh");
    let written = daemon.call_with_input(
        &["exec", "-i", machine, "--", "sh", "-c", &script],
        line.as_bytes(),
    );
    assert!(written.status.success(), "{written:?}");
    daemon.exec(
        machine,
        &format!("setsid sh /work/{name}.sh </dev/null >/work/{name}.log 2>&1 & echo $! > /work/{name}.pid"),
    );
}

/// Ten cycles over a guest that works; `verify` fails when anything in a machine is wrong.
fn cycles(daemon: &Daemon, machine: &str, verify: impl Fn(&str)) {
    verify(machine);
    let begun = std::time::Instant::now();
    for cycle in 0..CYCLES {
        eprintln!("cycle {cycle} begins after {:?}", begun.elapsed());
        let tag = format!("cycle-{cycle}");
        daemon.ok(&["checkpoint", machine, "--tag", &tag]);
        let fork = daemon.json(&["fork", machine, "-n", "1", "--prefix", "clone"]);
        assert_eq!(fork["clones"][0]["problem"], json!(null), "cycle {cycle}: {fork}");
        daemon.ok(&["suspend", machine]);
        // The clone is what the machine was, and works on.
        verify("clone-1");
        daemon.ok(&["rm", "--force", "clone-1"]);
        daemon.ok(&["resume", machine]);
    }
    verify(machine);
    let console = daemon.ok(&["logs", machine]);
    for word in ["I/O error", "EXT4-fs error", "BUG:", "Oops", "segfault"] {
        assert!(!console.contains(word), "{console}");
    }
    let kernel = daemon.exec(
        machine,
        "dmesg | grep -E 'I/O error|EXT4-fs error|BUG:|segfault' || true",
    );
    assert_eq!(kernel, "");
    daemon.ok(&["rollback", machine, &format!("{machine}:cycle-1")]);
    verify(machine);
    assert_eq!(daemon.json(&["verify"])["damaged"], json!([]));
}

#[test]
fn memory_and_files_under_stress() {
    let daemon = Daemon::new(Fixture::Debian);
    daemon.ok(&["run", "debian0:booted", "--name", "stress"]);
    daemon.exec(
        "stress",
        "mkdir -p /files && cd /files && for i in 1 2 3 4; do head -c 1M /dev/urandom > $i; done && sha256sum 1 2 3 4 > sums",
    );
    start(
        &daemon,
        "stress",
        "memory",
        "exec stress-ng --vm 1 --vm-bytes 40M --vm-keep --verify --oomable --timeout 0",
    );
    start(
        &daemon,
        "stress",
        "disk",
        "exec fio --name=disk --filename=/work/fio.data --size=8M --bs=4k --rw=randwrite --ioengine=psync --fsync=64 \
         --verify=crc32c --verify_fatal=1 --loops=100000",
    );
    // Both still work, neither has found anything wrong, and the files are what they were, on the disk too.
    let right = "cd /files && echo 3 > /proc/sys/vm/drop_caches && sha256sum --quiet -c sums && \
                 kill -0 $(cat /work/memory.pid) && kill -0 $(cat /work/disk.pid) && \
                 ! grep -iE 'fail|error|corrupt|bad magic|verify:' /work/memory.log /work/disk.log && echo right";
    cycles(&daemon, "stress", |machine| {
        assert_eq!(daemon.exec(machine, right), "right", "{machine}");
    });
    // Asked to end, stress-ng says whether any of its verifications ever failed.
    let said = daemon.exec(
        "stress",
        "kill -INT $(cat /work/memory.pid); while kill -0 $(cat /work/memory.pid) 2>/dev/null; do sleep 0.1; done; cat /work/memory.log",
    );
    assert!(
        said.contains("successful run completed") && !said.contains("fail"),
        "{said}"
    );
}

#[test]
fn databases_at_work() {
    let daemon = Daemon::new(Fixture::Debian);
    daemon.ok(&["run", "debian0:booted", "--name", "db"]);
    daemon.exec(
        "db",
        "mkdir -p /work && sqlite3 /work/s.db 'pragma journal_mode=wal; create table t(i integer primary key, v blob); create index v on t(v)'",
    );
    start(
        &daemon,
        "db",
        "sqlite",
        "while sqlite3 -cmd '.timeout 60000' /work/s.db 'begin; insert into t(v) values (randomblob(2000)); insert into t(v) values (randomblob(9)); commit;'; do sleep 0.1; done",
    );
    let version = daemon.exec("db", "ls /usr/lib/postgresql");
    daemon.exec(
        "db",
        &format!(
            "install -d -o postgres /work/pg && cd /work/pg && export PATH=$PATH:/usr/lib/postgresql/{version}/bin && \
             su postgres -c 'initdb -D /work/pg/data --data-checksums -N >/dev/null && \
             pg_ctl -D /work/pg/data -o \"-k /work/pg -c listen_addresses=\" -w -t 120 -l /work/pg/log start >/dev/null' </dev/null && \
             su postgres -c 'psql -q -h /work/pg -v ON_ERROR_STOP=1' <<'SQL'
create table account(id int primary key, balance int);
insert into account select i, 1000 from generate_series(1, 50) i;
create table transfer(n bigserial primary key, note text);
SQL"
        ),
    );
    start(
        &daemon,
        "db",
        "postgres",
        "while :; do echo \"begin; update account set balance = balance - 7 where id = 1 + floor(random() * 50); \
         update account set balance = balance + 7 where id = (select 1 + floor(random() * 50)::int); rollback; \
         begin; update account set balance = balance - 7 where id = 3; update account set balance = balance + 7 where id = 9; \
         insert into transfer(note) values (md5(random()::text)); commit;\"; sleep 0.05; done | \
         su postgres -c 'psql -q -h /work/pg -v ON_ERROR_STOP=1 postgres'",
    );
    let sqlite = "sqlite3 -cmd '.timeout 60000' /work/s.db 'pragma integrity_check; select count(*) = max(i), count(*) > 0 from t'";
    let postgres = "su postgres -c \"psql -qAt -h /work/pg postgres -c 'begin isolation level repeatable read; \
                    select sum(balance), (select 1000 - balance from account where id = 3) / 7 = (select count(*) from transfer) from account; commit'\"";
    let alive = "kill -0 $(cat /work/sqlite.pid) && kill -0 $(cat /work/postgres.pid) && \
                 ! grep -iE 'panic|invalid page|corrupt|could not read' /work/pg/log /work/sqlite.log && echo alive";
    cycles(&daemon, "db", |machine| {
        assert_eq!(daemon.exec(machine, sqlite), "ok\n1|1", "{machine}");
        assert_eq!(daemon.exec(machine, postgres), "50000|t", "{machine}");
        assert_eq!(daemon.exec(machine, alive), "alive", "{machine}");
    });
    // What is on the disk is whole as well: PostgreSQL's checksums over every page, by PostgreSQL.
    let offline = format!(
        "kill $(cat /work/postgres.pid); cd /; export PATH=$PATH:/usr/lib/postgresql/{version}/bin; \
         su postgres -c 'pg_ctl -D /work/pg/data -m fast -w stop >/dev/null && pg_checksums --check -D /work/pg/data | grep -c \"Bad checksums:  0\"'"
    );
    assert_eq!(daemon.exec("db", &offline), "1");
}
