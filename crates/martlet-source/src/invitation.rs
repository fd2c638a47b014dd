//! How a realm's secrets go from one host to another: a line that is copied and pasted.
//!
//! ```text
//! martlet-realm:NAME:SECRET[.SECRET…]:CHECK     hexadecimal; the newest secret first
//! ```
//!
//! CHECK tells a line that was cut or mistyped from one that is whole. Who has the line can read all that the realm keeps.

use std::fmt;
use std::str::FromStr;

const SCHEME: &str = "martlet-realm";
/// No realm has had more secrets.
pub const SECRETS_MAX: usize = 64;

/// A realm's name and secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Invitation {
    /// What who invites calls it.
    pub name: String,
    /// The newest first; at least one.
    pub secrets: Vec<[u8; 32]>,
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invitation")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secrets = self
            .secrets
            .iter()
            .map(|secret| blake3::Hash::from_bytes(*secret).to_hex());
        let secrets: Vec<String> = secrets.map(|hex| hex.to_string()).collect();
        let body = format!("{SCHEME}:{}:{}", self.name, secrets.join("."));
        write!(f, "{body}:{}", check(&body))
    }
}

/// The line is no invitation, or not all of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a whole invitation to a realm: {0}")]
pub struct BadInvitation(&'static str);

impl FromStr for Invitation {
    type Err = BadInvitation;

    fn from_str(line: &str) -> Result<Self, BadInvitation> {
        let line = line.trim();
        let parts: Vec<&str> = line.split(':').collect();
        let [SCHEME, name, secrets, checked] = parts[..] else {
            return Err(BadInvitation(
                "it is a line of the form martlet-realm:NAME:SECRETS:CHECK",
            ));
        };
        if line
            .rsplit_once(':')
            .is_none_or(|(body, _)| check(body) != checked)
        {
            return Err(BadInvitation("something of it is missing or mistyped"));
        }
        let secrets: Vec<[u8; 32]> = secrets
            .split('.')
            .map(|hex| blake3::Hash::from_hex(hex).map(|hash| *hash.as_bytes()))
            .collect::<Result<_, _>>()
            .map_err(|_| BadInvitation("a secret has 64 hexadecimal digits"))?;
        if secrets.len() > SECRETS_MAX {
            return Err(BadInvitation("it has too many secrets"));
        }
        Ok(Self {
            name: name.to_owned(),
            secrets,
        })
    }
}

fn check(body: &str) -> String {
    blake3::derive_key("martlet 2026 realm: check of an invitation", body.as_bytes())[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written_and_only_whole() {
        let invitation = Invitation {
            name: "home".into(),
            secrets: vec![[7; 32], [255; 32]],
        };
        let line = invitation.to_string();
        assert_eq!(format!("  {line}\n").parse(), Ok(invitation.clone()));
        for end in 0..line.len() {
            line[..end].parse::<Invitation>().unwrap_err();
            let mut mistyped = line.clone().into_bytes();
            mistyped[end] = if mistyped[end] == b'0' { b'1' } else { b'0' };
            let mistyped = String::from_utf8(mistyped).unwrap();
            mistyped.parse::<Invitation>().unwrap_err();
        }
        assert!(
            !format!("{invitation:?}").contains("07"),
            "secrets are not printed"
        );
    }
}
