//! Traces: what decodes is written and read again unchanged.
#![no_main]
use libfuzzer_sys::fuzz_target;
use martlet_image::Trace;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(trace) = Trace::decode(bytes) {
        assert_eq!(Trace::decode(&trace.encode()), Ok(trace));
    }
});
