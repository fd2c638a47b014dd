//! Frames of guests, and datagrams of who is between hosts: what goes on is in its sender's name.
#![no_main]
use libfuzzer_sys::fuzz_target;
use martlet_switch::{FamilyId, Number, Seal, check, source};

fuzz_target!(|bytes: &[u8]| {
    if let Some(from) = source(bytes)
        && check(bytes, from).is_ok()
    {
        assert_eq!(bytes[6..12], from.mac());
        assert!(check(bytes, Number::new(u32::from(from.get()) ^ 1).unwrap_or(Number::PARENT)).is_err());
    }
    let seal = Seal::new(FamilyId([0; 6]), &[0; 32], [0; 16]);
    assert!(seal.open(bytes).is_none());
    assert_eq!(seal.open(&seal.seal(bytes)).as_deref(), Some(bytes));
});
