//! Snapshot records: what decodes is written and read again unchanged.
#![no_main]
use libfuzzer_sys::fuzz_target;
use martlet_image::SnapshotRecord;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = SnapshotRecord::decode(bytes)
        && let Ok(again) = record.encode()
    {
        assert_eq!(SnapshotRecord::decode(&again), Ok(record));
    }
});
