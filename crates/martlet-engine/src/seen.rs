//! What was seen of remotes' refs, remembered in the state database.

use crate::engine::Engine;
use crate::state::StateError;
use martlet_source::{Seen, SourceError, Version};
use martlet_store::RefName;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// See the module's documentation. One remote's, as one realm's secret shows it.
pub struct SeenRefs {
    engine: Weak<Engine>,
    remote: String,
    setting: String,
}

impl std::fmt::Debug for SeenRefs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SeenRefs({})", self.setting)
    }
}

impl SeenRefs {
    /// What was seen of a remote in the realm of this id.
    pub fn new(engine: &Arc<Engine>, remote: &str, realm_id: &str) -> Self {
        Self {
            engine: Arc::downgrade(engine),
            remote: remote.to_owned(),
            setting: Self::setting(remote, realm_id),
        }
    }

    /// The setting in the state database that remembers it.
    pub fn setting(remote: &str, realm_id: &str) -> String {
        format!("seen {remote} {realm_id}")
    }
}

impl SeenRefs {
    fn with<T>(&self, does: impl FnOnce(&Engine) -> Result<T, StateError>) -> Result<T, SourceError> {
        let failed = |reason: String| SourceError::Unavailable {
            place: self.remote.clone(),
            action: "be compared with what was seen there",
            reason,
        };
        let engine = self
            .engine
            .upgrade()
            .ok_or_else(|| failed("the daemon is ending".into()))?;
        does(&engine).map_err(|error| failed(error.to_string()))
    }
}

impl Seen for SeenRefs {
    fn newest(&self, name: &RefName) -> Result<Option<Version>, SourceError> {
        let seen: Option<BTreeMap<String, Version>> =
            self.with(|engine| engine.state.setting(&self.setting))?;
        Ok(seen.and_then(|mut seen| seen.remove(&name.to_string())))
    }

    fn saw(&self, name: &RefName, version: Version) -> Result<(), SourceError> {
        self.with(|engine| {
            engine
                .state
                .edit_setting(&self.setting, |seen: &mut BTreeMap<String, Version>| {
                    seen.insert(name.to_string(), version);
                })
        })
    }
}
