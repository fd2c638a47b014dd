//! Who we are to a registry: nobody, a user, or who holds a token for what is to be done.

use reqwest::RequestBuilder;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use serde::Deserialize;
use std::collections::HashMap;
use std::fmt;

/// A user of a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// Their name.
    pub user: String,
    /// Their password, or a token in its place.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({}, …)", self.user)
    }
}

/// What a registry wants to see.
#[derive(Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A user's password.
    Basic,
    /// A token that is got at `realm`, with these questions.
    Bearer {
        realm: String,
        questions: Vec<(&'static str, String)>,
    },
}

impl Challenge {
    /// The best of those of an answer that we know.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let challenges = headers.get_all(WWW_AUTHENTICATE).into_iter();
        let challenges = challenges.filter_map(|value| Self::read(value.to_str().ok()?));
        challenges.reduce(|best, other| match best {
            Self::Basic => other,
            Self::Bearer { .. } => best,
        })
    }

    fn read(value: &str) -> Option<Self> {
        let (scheme, parameters) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = read_parameters(parameters);
        let realm = parameters.remove("realm")?;
        let questions = ["service", "scope"].into_iter();
        Some(Self::Bearer {
            realm,
            questions: questions
                .filter_map(|name| Some((name, parameters.remove(name)?)))
                .collect(),
        })
    }
}

/// `name="value",other=value`.
fn read_parameters(text: &str) -> HashMap<String, String> {
    let mut parameters = HashMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        let name = name.trim_matches([',', ' ']).to_ascii_lowercase();
        parameters.insert(name, value.trim().to_owned());
        rest = after;
    }
    parameters
}

/// What requests of a kind show.
#[derive(Clone)]
pub enum Pass {
    Basic(Login),
    Bearer(String),
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pass(…)")
    }
}

impl Pass {
    pub fn show(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Basic(login) => request.basic_auth(&login.user, Some(&login.password)),
            Self::Bearer(token) => request.bearer_auth(token),
        }
    }

    /// What is got for a challenge. There are two names for the same.
    pub fn of_answer(answer: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let answer: Token = serde_json::from_slice(answer).ok()?;
        answer.token.or(answer.access_token).map(Self::Bearer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
            }
            Challenge::of(&headers)
        };
        let bearer =
            "bearer Realm=\"https://auth.test/token\", service=a.test,scope=\"repository:x:pull,push\",x=y";
        let wanted = Challenge::Bearer {
            realm: "https://auth.test/token".into(),
            questions: vec![
                ("service", "a.test".into()),
                ("scope", "repository:x:pull,push".into()),
            ],
        };
        assert_eq!(of(&["Basic realm=\"x\"", bearer]), Some(wanted));
        assert_eq!(of(&["Negotiate", "Basic"]), Some(Challenge::Basic));
        for none in [
            "",
            "Negotiate",
            "Bearer",
            "Bearer realm",
            "Bearer service=\"x",
            "Bearer =,=\"\"==",
        ] {
            assert_eq!(of(&[none]), None, "{none}");
        }
    }
}
