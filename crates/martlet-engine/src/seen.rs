//! What was seen of remotes' refs, remembered in the state database.

use crate::engine::Engine;
use martlet_source::{Seen, Version};
use martlet_store::RefName;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// See the module's documentation. One remote's, as one realm's secret shows it.
pub struct SeenRefs {
    engine: Weak<Engine>,
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
            setting: Self::setting(remote, realm_id),
        }
    }

    /// The setting in the state database that remembers it.
    pub fn setting(remote: &str, realm_id: &str) -> String {
        format!("seen {remote} {realm_id}")
    }
}

impl Seen for SeenRefs {
    fn newest(&self, name: &RefName) -> Option<Version> {
        let engine = self.engine.upgrade()?;
        let seen: Option<BTreeMap<String, Version>> =
            engine.state.setting(&self.setting).unwrap_or_else(|error| {
                tracing::warn!(%error, "what was seen of a remote cannot be read");
                None
            });
        seen?.remove(&name.to_string())
    }

    fn saw(&self, name: &RefName, version: Version) {
        let Some(engine) = self.engine.upgrade() else {
            return;
        };
        let changed =
            engine
                .state
                .change_setting(&self.setting, |seen: Option<BTreeMap<String, Version>>| {
                    let mut seen = seen.unwrap_or_default();
                    seen.insert(name.to_string(), version);
                    Ok::<_, std::convert::Infallible>(seen)
                });
        if let Err(error) = changed {
            tracing::warn!(%error, "what was seen of a remote cannot be remembered");
        }
    }
}
