//! A guest under memory and disk load that verifies itself: stress-ng over its memory, fio over its disk, and files of
//! random bytes on both whose checksums are known.

use crate::Daemon;
use crate::cycles::start;

/// Machine and load.
pub struct Stress<'a> {
    daemon: &'a Daemon,
    machine: &'a str,
}

impl<'a> Stress<'a> {
    /// Runs a machine of the Debian fixture that works until it is ended.
    pub fn start(daemon: &'a Daemon, machine: &'a str) -> Self {
        daemon.ok(&["run", "debian0:booted", "--name", machine]);
        daemon.exec(
            machine,
            "mkdir -p /files && for dir in /files /dev/shm; do cd $dir && \
             for i in 1 2 3 4; do head -c 1M /dev/urandom > $i; done && sha256sum 1 2 3 4 > sums || exit 1; done",
        );
        start(
            daemon,
            machine,
            "memory",
            "exec stress-ng --vm 1 --vm-bytes 40M --vm-keep --verify --oomable --timeout 0",
        );
        start(
            daemon,
            machine,
            "disk",
            "exec fio --name=disk --filename=/work/fio.data --size=8M --bs=4k --rw=randwrite --ioengine=psync --fsync=64 \
             --verify=crc32c --verify_fatal=1 --loops=100000",
        );
        Self { daemon, machine }
    }

    /// In the machine, or a clone of it, both still work, neither has found anything wrong, and the files are what they
    /// were: those in memory, and those on the disk, read from there.
    pub fn verify(&self, machine: &str) {
        let right = "echo 3 > /proc/sys/vm/drop_caches && \
                     for dir in /files /dev/shm; do cd $dir && sha256sum --quiet -c sums || exit 1; done && \
                     kill -0 $(cat /work/memory.pid) && kill -0 $(cat /work/disk.pid) && \
                     ! grep -iE 'fail|error|corrupt|bad magic|verify:' /work/memory.log /work/disk.log && echo right";
        assert_eq!(self.daemon.exec(machine, right), "right", "{machine}");
    }

    /// Asked to end, stress-ng says whether any of its verifications ever failed.
    pub fn end(self) {
        let said = self.daemon.exec(
            self.machine,
            "kill -INT $(cat /work/memory.pid); while kill -0 $(cat /work/memory.pid) 2>/dev/null; do sleep 0.1; done; cat /work/memory.log",
        );
        assert!(
            said.contains("successful run completed") && !said.contains("fail"),
            "{said}"
        );
    }
}
