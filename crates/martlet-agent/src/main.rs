//! `martlet-agent`: as process 1 it boots the guest; started by an existing init it only serves.

use martlet_agent::{Agent, AgentOptions, init, log, port};

fn main() {
    if std::process::id() == 1 {
        let error = init::run();
        // Process 1 must not return: the kernel panics and QEMU's last words say why.
        log::log(&format!("cannot start the guest: {error}"));
        std::process::exit(1);
    }
    let agent = Agent::new(AgentOptions::service());
    let error = port::serve(&agent);
    log::log(&format!("stopped: {error}"));
    std::process::exit(1);
}
