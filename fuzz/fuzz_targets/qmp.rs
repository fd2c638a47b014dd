//! QMP as a QEMU speaks it that was taken over by its guest: every command ends when it hangs up, at the latest.
#![no_main]
use libfuzzer_sys::fuzz_target;
use martlet_vm::qmp::QmpClient;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);
const GREETING: &[u8] = b"{\"QMP\":{}}\n{\"return\":{},\"id\":0}\n";

fuzz_target!(|input: (bool, &[u8])| {
    let (has_greeting, bytes) = input;
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    if has_greeting {
        theirs.write_all(GREETING).expect("it fits");
    }
    theirs.write_all(bytes).expect("it fits");
    theirs
        .shutdown(std::net::Shutdown::Write)
        .expect("it is connected");
    if let Ok(client) = QmpClient::start(ours, SOON, |_| ()) {
        if let Err(error) = client.execute("query-status", serde_json::Value::Null, SOON) {
            assert!(!error.is_retryable(), "{error}");
        }
    }
});
