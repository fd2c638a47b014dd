//! Messages between host and agent: what decodes is written and read again unchanged.
#![no_main]
use libfuzzer_sys::fuzz_target;
use martlet_agent_api::{Control, Finished, Hello, HelloReply, Reply, Request, from_payload, to_payload};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

fn round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(message) = from_payload::<T>(bytes, "message") {
        let again = from_payload::<T>(&to_payload(&message), "message");
        assert_eq!(again.expect("what was written can be read"), message);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    match kind % 6 {
        0 => round_trip::<Hello>(bytes),
        1 => round_trip::<HelloReply>(bytes),
        2 => round_trip::<Request>(bytes),
        3 => round_trip::<Reply>(bytes),
        4 => round_trip::<Control>(bytes),
        _ => round_trip::<Finished>(bytes),
    }
});
