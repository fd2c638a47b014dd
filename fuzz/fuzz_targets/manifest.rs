//! Manifests, full and as deltas to an image of zeros: what decodes is written and read again unchanged.
#![no_main]
use libfuzzer_sys::fuzz_target;
use martlet_image::{FormatError, Manifest};

fuzz_target!(|bytes: &[u8]| {
    let _ = Manifest::decode_header(bytes);
    let mut parent = |_: &_| Ok::<_, FormatError>(Manifest::zero(1000));
    if let Ok(manifest) = Manifest::decode(bytes, &mut parent) {
        let again = Manifest::decode(&manifest.encode(None), &mut parent);
        assert_eq!(again, Ok(manifest));
    }
});
