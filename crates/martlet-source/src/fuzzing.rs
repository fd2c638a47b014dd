//! A door for the fuzz targets: what is sealed at a remote, opened. Only there under cargo-fuzz.

use crate::refs::Content;
use crate::run::Run;
use crate::{intent, pack};

/// Decodes what any of them may be; what one is encodes to the same again.
pub fn decode(bytes: &[u8]) {
    for (_, extent) in pack::decode_index(bytes).into_iter().flatten() {
        assert!(extent.offset.checked_add(extent.len).is_some());
    }
    if let Some(content) = Content::decode(bytes) {
        assert_eq!(Content::decode(&content.encode()), Some(content));
    }
    if let Some(run) = Run::decode(bytes) {
        assert_eq!(Run::decode(&run.encode()), Some(run));
    }
    if let Some(stamp) = intent::decode(bytes) {
        assert_eq!(stamp.encode(), bytes);
    }
}
