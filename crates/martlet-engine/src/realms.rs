//! Realms: by what secrets that which leaves this host is sealed.
//!
//! ```text
//! create ──► 1 secret ──► rotate ──► 2 secrets, sealed with the newest ──► rotate ──► …
//!               │ share: a line ──► join, on another host
//! ```
//!
//! What was sealed with an older secret stays readable. Who had it and did not get the newer one reads nothing that is
//! pushed from then on.

use crate::engine::Engine;
use crate::problem::Told;
use martlet_api::{Problem, ProblemCode, RealmInfo, RealmInvitation, RealmJoinRequest};
use martlet_source::{BadInvitation, Invitation, Realm, SECRETS_MAX};
use std::collections::BTreeMap;

/// Setting in the state database: a realm's secrets by its name, the newest first.
const REALMS: &str = "realms";
/// That of remotes for which none was chosen; made when it is first needed.
pub const DEFAULT_REALM: &str = "default";

type Secrets = Vec<[u8; 32]>;

impl Engine {
    fn known_realms(&self) -> Result<BTreeMap<String, Secrets>, Problem> {
        Ok(self.state.setting(REALMS).told()?.unwrap_or_default())
    }

    fn secrets(&self, name: &str) -> Result<Secrets, Problem> {
        self.known_realms()?.remove(name).ok_or_else(|| no_realm(name))
    }

    fn change_realms(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Secrets>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let changed = self.state.change_setting(REALMS, |realms: Option<_>| {
            let mut realms = realms.unwrap_or_default();
            change(&mut realms)?;
            Ok(realms)
        });
        changed.told()?
    }

    /// A realm for each of its secrets, the newest first.
    pub(crate) fn realm(&self, name: &str) -> Result<Vec<Realm>, Problem> {
        if name == DEFAULT_REALM && !self.known_realms()?.contains_key(name) {
            self.change_realms(|realms| {
                realms.entry(name.to_owned()).or_insert_with(new_secrets);
                Ok(())
            })?;
        }
        let secrets = self.secrets(name)?;
        Ok(secrets.iter().map(Realm::new).collect())
    }

    /// Makes a realm.
    pub fn realm_create(&self, name: &str) -> Result<RealmInfo, Problem> {
        martlet_api::names::check_name(name)?;
        self.change_realms(|realms| match realms.contains_key(name) {
            true => Err(exists(name)),
            false => {
                realms.insert(name.to_owned(), new_secrets());
                Ok(())
            }
        })?;
        self.realm_info(name)
    }

    /// All realms.
    pub fn realms(&self) -> Result<Vec<RealmInfo>, Problem> {
        let realms = self.known_realms()?;
        realms.keys().map(|name| self.realm_info(name)).collect()
    }

    /// What lets another host join a realm.
    pub fn realm_share(&self, name: &str) -> Result<RealmInvitation, Problem> {
        let invitation = Invitation {
            name: name.to_owned(),
            secrets: self.secrets(name)?,
        };
        Ok(RealmInvitation {
            name: name.to_owned(),
            invitation: invitation.to_string(),
        })
    }

    /// Joins a realm of another host, or gets the newer secrets of one that was joined.
    pub fn realm_join(&self, request: &RealmJoinRequest) -> Result<RealmInfo, Problem> {
        let invitation: Invitation = request.invitation.parse().map_err(|error: BadInvitation| {
            Problem::new(ProblemCode::InvalidArgument, error.to_string())
                .remediation("`martlet realm share NAME` on a host that has the realm prints one")
        })?;
        let name = request.name.clone().unwrap_or(invitation.name);
        martlet_api::names::check_name(&name)?;
        let theirs = invitation.secrets;
        self.change_realms(|realms| {
            let ours = realms.entry(name.clone()).or_insert_with(|| theirs.clone());
            if !ours.iter().any(|secret| theirs.contains(secret)) {
                return Err(exists(&name).cause("the invitation is to another realm of this name"));
            }
            *ours = merged(ours, &theirs);
            Ok(())
        })?;
        self.realm_info(&name)
    }

    /// Gives a realm a new secret, by which everything is sealed from now on.
    pub fn realm_rotate(&self, name: &str) -> Result<RealmInfo, Problem> {
        self.change_realms(|realms| {
            let secrets = realms.get_mut(name).ok_or_else(|| no_realm(name))?;
            if secrets.len() == SECRETS_MAX {
                return Err(Problem::new(
                    ProblemCode::WrongState,
                    format!("realm {name} has had {SECRETS_MAX} secrets, no more are kept"),
                )
                .remediation("make another realm, and a remote with it"));
            }
            secrets.insert(0, crate::identity::random());
            Ok(())
        })?;
        self.realm_info(name)
    }

    fn realm_info(&self, name: &str) -> Result<RealmInfo, Problem> {
        let secrets = self.secrets(name)?;
        Ok(RealmInfo {
            name: name.to_owned(),
            id: secrets
                .first()
                .map(|secret| Realm::new(secret).id())
                .unwrap_or_default(),
            secrets: secrets.len() as u32,
            remotes: self.remotes_in(name)?,
        })
    }
}

/// All secrets of both, the newest first. Who was told of more rotations knows the newer ones.
fn merged(ours: &[[u8; 32]], theirs: &[[u8; 32]]) -> Secrets {
    let (mut all, fewer) = match theirs.len() > ours.len() {
        true => (theirs.to_vec(), ours),
        false => (ours.to_vec(), theirs),
    };
    for secret in fewer {
        if !all.contains(secret) {
            all.push(*secret);
        }
    }
    all
}

fn new_secrets() -> Secrets {
    vec![crate::identity::random()]
}

fn no_realm(name: &str) -> Problem {
    Problem::new(ProblemCode::NotFound, format!("there is no realm {name}"))
        .remediation("`martlet realm ls` lists those there are")
}

fn exists(name: &str) -> Problem {
    Problem::new(
        ProblemCode::AlreadyExists,
        format!("there is a realm {name} already"),
    )
    .remediation("choose another name")
}
