//! Tokens of people: who may use this host from afar, and as what. Of a token's secret only the hash is kept.

use crate::engine::Engine;
use crate::problem::Told;
use martlet_api::{Problem, ProblemCode, Role, TokenCreateRequest, TokenInfo, TokenLine};
use martlet_peer::{AuditEntry, Secret};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// Setting in the state database.
const TOKENS: &str = "tokens";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Clocks that go back by no more are believed.
const CLOCK_SLACK_MS: u64 = 5 * 60 * 1000;
/// When a token was used is remembered to this.
const USED_STEP_MS: u64 = 60 * 1000;

/// The tokens there are, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Tokens(BTreeMap<String, Kept>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    hash: String,
    role: Role,
    created_unix_ms: u64,
    expires_unix_ms: u64,
    used_unix_ms: Option<u64>,
}

impl Kept {
    /// Is it good? A clock that has gone back far does not make it good for longer.
    fn is_good(&self, now_unix_ms: u64) -> bool {
        (self.created_unix_ms.saturating_sub(CLOCK_SLACK_MS)..self.expires_unix_ms).contains(&now_unix_ms)
    }

    fn info(&self, name: &str) -> TokenInfo {
        TokenInfo {
            name: name.to_owned(),
            role: self.role,
            created_unix_ms: self.created_unix_ms,
            expires_unix_ms: self.expires_unix_ms,
            used_unix_ms: self.used_unix_ms,
        }
    }
}

impl Tokens {
    /// A new token. One of the same name that is over makes room for it.
    fn add(
        &mut self,
        name: &str,
        role: Role,
        secret: &Secret,
        lasts: Duration,
        now_unix_ms: u64,
    ) -> Result<(), Problem> {
        if self.0.get(name).is_some_and(|there| there.is_good(now_unix_ms)) {
            return Err(
                Problem::new(ProblemCode::AlreadyExists, format!("there is a token {name}"))
                    .remediation(format!("choose another name, or `martlet token rm {name}`")),
            );
        }
        let kept = Kept {
            hash: secret.hash(),
            role,
            created_unix_ms: now_unix_ms,
            expires_unix_ms: now_unix_ms.saturating_add(lasts.as_millis() as u64),
            used_unix_ms: None,
        };
        self.0.insert(name.to_owned(), kept);
        Ok(())
    }

    /// The token of this secret, if it is good. Hashes are looked for, so how long that takes says nothing of a secret.
    fn find(&self, secret: &Secret, now_unix_ms: u64) -> Result<TokenInfo, Problem> {
        let hash = secret.hash();
        let found = self.0.iter().find(|(_, kept)| kept.hash == hash);
        let refuse = |words: String| Problem::new(ProblemCode::PermissionDenied, words).remediation(WAY_IN);
        match found {
            Some((name, kept)) if kept.is_good(now_unix_ms) => Ok(kept.info(name)),
            Some((name, _)) => Err(refuse(format!("the time of token {name} is over"))),
            None => Err(refuse("this host knows no such token, or it was removed".into())),
        }
    }
}

/// What who is not let in can do.
const WAY_IN: &str = "have `martlet token create` make another on that host, and `martlet login` with it";

impl Engine {
    /// Makes a token.
    pub fn token_create(&self, request: &TokenCreateRequest) -> Result<TokenLine, Problem> {
        let secret = Secret::random();
        let access = self.access(secret.clone())?;
        let lasts = DAY * request.days;
        let added = self.state.edit_setting(TOKENS, |tokens: &mut Tokens| {
            tokens.add(&request.name, request.role, &secret, lasts, now_unix_ms())
        });
        added.told()??;
        Ok(TokenLine {
            token: access.to_string(),
        })
    }

    /// All tokens.
    pub fn tokens(&self) -> Result<Vec<TokenInfo>, Problem> {
        let tokens = self.kept_tokens()?;
        Ok(tokens.0.iter().map(|(name, kept)| kept.info(name)).collect())
    }

    /// Has a token be good for nothing from now on.
    pub fn token_remove(&self, name: &str) -> Result<(), Problem> {
        let removed = self
            .state
            .edit_setting(TOKENS, |tokens: &mut Tokens| tokens.0.remove(name));
        removed.told()?.map(drop).ok_or_else(|| {
            Problem::new(ProblemCode::NotFound, format!("there is no token {name}"))
                .remediation("`martlet token ls` lists those there are")
        })
    }

    /// Whose token this is, if it is good. That it was used is remembered.
    pub fn token(&self, secret: &str) -> Result<TokenInfo, Problem> {
        let secret: Secret = secret.parse().map_err(|error| {
            Problem::new(ProblemCode::PermissionDenied, "this is no token")
                .cause(error)
                .remediation(WAY_IN)
        })?;
        let now_unix_ms = now_unix_ms();
        let found = self.kept_tokens()?.find(&secret, now_unix_ms)?;
        let is_noted = |used: u64| now_unix_ms.saturating_sub(used) < USED_STEP_MS;
        if !found.used_unix_ms.is_some_and(is_noted) {
            let noted = self.state.edit_setting(TOKENS, |tokens: &mut Tokens| {
                if let Some(kept) = tokens.0.get_mut(&found.name) {
                    kept.used_unix_ms = Some(now_unix_ms);
                }
            });
            if let Err(error) = noted {
                tracing::warn!(%error, "that a token was used is not remembered"); // a full disk keeps nobody out
            }
        }
        Ok(found)
    }

    /// Notes in the audit log what somebody did, or wanted to do.
    pub fn note_in_audit(
        &self,
        caller: &str,
        action: &str,
        object: &str,
        outcome: &str,
    ) -> Result<(), Problem> {
        let noted = self
            .audit()?
            .note(&AuditEntry::now(caller, action, object, outcome));
        noted.map_err(|error| {
            Problem::new(ProblemCode::Internal, "the audit log cannot be written")
                .cause(error)
                .remediation("make space on that host")
        })
    }

    fn kept_tokens(&self) -> Result<Tokens, Problem> {
        Ok(self.state.setting(TOKENS).told()?.unwrap_or_default())
    }
}

fn now_unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;
    const HOUR_MS: u64 = 60 * 60 * 1000;

    /// Somebody's token for a day.
    fn add(tokens: &mut Tokens, name: &str, role: Role, now_unix_ms: u64) -> Result<Secret, Problem> {
        let secret = Secret::random();
        tokens.add(name, role, &secret, DAY, now_unix_ms).map(|()| secret)
    }

    #[test]
    fn only_the_hash_of_a_secret_is_kept() {
        let mut tokens = Tokens::default();
        let secret = add(&mut tokens, "ann", Role::Run, NOW).unwrap();
        let kept = serde_json::to_string(&tokens).unwrap();
        assert!(!kept.contains(&secret.to_string()) && kept.contains(&secret.hash()));
        let tokens: Tokens = serde_json::from_str(&kept).unwrap();
        let found = tokens.find(&secret, NOW).unwrap();
        assert_eq!((found.name.as_str(), found.role), ("ann", Role::Run));
        assert_eq!(found.expires_unix_ms, NOW + 24 * HOUR_MS);
    }

    #[test]
    fn a_token_is_good_for_its_time_and_until_it_is_removed() {
        let mut tokens = Tokens::default();
        let ann = add(&mut tokens, "ann", Role::Read, NOW).unwrap();
        let ben = add(&mut tokens, "ben", Role::Admin, NOW).unwrap();
        let refused = |tokens: &Tokens, secret: &Secret, at| {
            let problem = tokens.find(secret, at).unwrap_err();
            assert_eq!(problem.code, ProblemCode::PermissionDenied);
            assert!(problem.remediation.is_some());
            problem.message
        };
        tokens.find(&ann, NOW + 24 * HOUR_MS - 1).unwrap();
        assert_eq!(
            refused(&tokens, &ann, NOW + 24 * HOUR_MS),
            "the time of token ann is over"
        );
        // Clocks: a little back is nothing, an hour back is no longer life.
        tokens.find(&ann, NOW - 60_000).unwrap();
        refused(&tokens, &ann, NOW - HOUR_MS);
        assert!(refused(&tokens, &Secret::random(), NOW).contains("no such token"));
        tokens.0.remove("ann");
        refused(&tokens, &ann, NOW);
        assert_eq!(tokens.find(&ben, NOW).unwrap().role, Role::Admin);
    }

    #[test]
    fn a_name_is_free_again_when_its_token_is_over() {
        let mut tokens = Tokens::default();
        let first = add(&mut tokens, "ann", Role::Admin, NOW).unwrap();
        let taken = add(&mut tokens, "ann", Role::Read, NOW).unwrap_err();
        assert_eq!(taken.code, ProblemCode::AlreadyExists);
        let second = add(&mut tokens, "ann", Role::Read, NOW + 48 * HOUR_MS).unwrap();
        tokens.find(&first, NOW + 48 * HOUR_MS).unwrap_err();
        assert_eq!(tokens.find(&second, NOW + 48 * HOUR_MS).unwrap().role, Role::Read);
    }
}
