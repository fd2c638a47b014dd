//! What the agent has to say goes to the kernel's log, which every guest has and the console shows.

use std::fs::OpenOptions;
use std::io::Write;

/// Writes one line.
pub fn log(message: &str) {
    let line = format!("<3>martlet-agent: {message}\n");
    let kmsg = OpenOptions::new().write(true).open("/dev/kmsg");
    if kmsg.and_then(|mut file| file.write_all(line.as_bytes())).is_err() {
        eprint!("{}", &line[3..]);
    }
}
