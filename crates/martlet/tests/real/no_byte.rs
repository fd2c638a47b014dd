//! Not one wrong byte: guests that verify their own memory and files are checkpointed, forked, suspended and resumed while
//! they work, ten times over (`script/cycles`: as often as one likes). Every clone, and at the end the parent, proves that
//! all is right; then an early checkpoint is gone back to, and proves it too.

use crate::cycles::{self, start};
use crate::stress::Stress;
use crate::{Daemon, Fixture};

const CYCLES: u64 = 10;

#[test]
fn memory_and_files_under_stress() {
    let daemon = Daemon::new(Fixture::Debian);
    let stress = Stress::start(&daemon, "stress");
    let verify = |machine: &str| stress.verify(machine);
    cycles::run(&daemon, "stress", CYCLES, verify, |cycle| eprintln!("{cycle}"));
    stress.end();
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
    cycles::run(
        &daemon,
        "db",
        CYCLES,
        |machine| {
            assert_eq!(daemon.exec(machine, sqlite), "ok\n1|1", "{machine}");
            assert_eq!(daemon.exec(machine, postgres), "50000|t", "{machine}");
            assert_eq!(daemon.exec(machine, alive), "alive", "{machine}");
        },
        |cycle| eprintln!("{cycle}"),
    );
    // What is on the disk is whole as well: PostgreSQL's checksums over every page, by PostgreSQL.
    let offline = format!(
        "kill $(cat /work/postgres.pid); cd /; export PATH=$PATH:/usr/lib/postgresql/{version}/bin; \
         su postgres -c 'pg_ctl -D /work/pg/data -m fast -w stop >/dev/null && pg_checksums --check -D /work/pg/data | grep -c \"Bad checksums:  0\"'"
    );
    assert_eq!(daemon.exec("db", &offline), "1");
}
