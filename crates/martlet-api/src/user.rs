//! Whose clones are: what quotas of users count by.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Who asks a host for clones: somebody with a token of it, or whoever may use its socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct User {
    /// Name of the token; none of those who use the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The host that was asked; none is this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

impl User {
    /// Who has that token of this host.
    pub fn of_token(name: impl Into<String>) -> Self {
        Self {
            token: Some(name.into()),
            host: None,
        }
    }

    /// The same, to other hosts than the one of this name.
    pub fn at(self, host: &str) -> Self {
        Self {
            host: self.host.or_else(|| Some(host.to_owned())),
            ..self
        }
    }

    /// The same, to the host of this name.
    pub fn here(self, host: &str) -> Self {
        Self {
            host: self.host.filter(|of| of != host),
            ..self
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host.as_deref().unwrap_or("this host");
        match &self.token {
            Some(token) => write!(f, "token {token} of {host}"),
            None => write!(f, "the users of {host}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_the_same_seen_from_any_host() {
        let lab = User::of_token("lab");
        assert_eq!(lab.to_string(), "token lab of this host");
        let elsewhere = lab.clone().at("desk");
        assert_eq!(elsewhere.to_string(), "token lab of desk");
        // By way of another host, and back.
        assert_eq!(elsewhere.clone().at("couch"), elsewhere);
        assert_eq!(elsewhere.clone().here("couch"), elsewhere);
        assert_eq!(elsewhere.here("desk"), lab);
        assert_eq!(User::default().at("desk").to_string(), "the users of desk");
        let old: User = serde_json::from_str("{}").unwrap();
        assert_eq!(old, User::default());
    }
}
