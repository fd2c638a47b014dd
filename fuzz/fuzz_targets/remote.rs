//! What is kept at a remote: indexes, refs, intents and collections are refused, or say the same when they are made again.
#![no_main]
use libfuzzer_sys::fuzz_target;
use martlet_source::fuzzing::decode;

fuzz_target!(|bytes: &[u8]| decode(bytes));
