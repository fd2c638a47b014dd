//! A QEMU that was taken over by its guest says whatever it likes on its control socket.

use martlet_vm::qmp::QmpClient;
use proptest::prelude::*;
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const GREETING: &[u8] = b"{\"QMP\":{}}\n{\"return\":{},\"id\":0}\n";

/// Lines of QMP, of something like it, and of none.
fn lines() -> impl Strategy<Value = Vec<u8>> {
    const LINES: [&str; 8] = [
        r#"{"return":{},"id":1}"#,
        r#"{"return":[[[]]],"id":7}"#,
        r#"{"error":{"class":"GenericError","desc":"no"},"id":1}"#,
        r#"{"error":7,"id":1}"#,
        r#"{"event":"STOP","data":{"a":[1,2]}}"#,
        r#"{"event":{},"id":-1}"#,
        r#"{"id":18446744073709551615}"#,
        "[]",
    ];
    let line = prop::sample::select(&LINES[..]).prop_map(|text| text.as_bytes().to_vec());
    let changed = (
        line,
        prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    );
    let changed = changed.prop_map(|(mut line, change)| {
        if let Some((at, byte)) = change {
            let at = at.index(line.len());
            line[at] = byte;
        }
        line.push(b'\n');
        line
    });
    prop_oneof![4 => changed, 1 => prop::collection::vec(any::<u8>(), 0..300)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_it_says_a_command_ends(said in prop::collection::vec(lines(), 0..30), has_greeting in any::<bool>()) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let talking = std::thread::spawn(move || {
            if has_greeting {
                theirs.write_all(GREETING).unwrap();
            }
            for line in said {
                let _ = theirs.write_all(&line); // our end may have had enough
            }
            let _ = theirs.shutdown(std::net::Shutdown::Write);
            let _ = theirs.read_to_end(&mut Vec::new());
        });
        let soon = Duration::from_secs(10);
        if let Ok(client) = QmpClient::start(ours, soon, |_| ()) {
            for _ in 0..2 {
                if let Err(error) = client.execute("query-status", Value::Null, soon) {
                    prop_assert!(!error.is_retryable(), "it was waited for: {error}");
                }
            }
        }
        talking.join().unwrap();
    }
}
