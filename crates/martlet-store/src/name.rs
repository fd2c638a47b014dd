//! Names of snapshots: `name:tag`.

use crate::StoreError;
use std::fmt;
use std::str::FromStr;

/// Longest name, and longest tag.
pub const NAME_BYTES_MAX: usize = 63;

/// The tag that is meant when none is given: the newest of that name.
pub const LATEST: &str = "latest";

/// `name:tag`, both of `[a-z0-9][a-z0-9._-]{0,62}`; tags may have capitals too, as those of container images may.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RefName {
    name: String,
    tag: String,
}

impl RefName {
    /// From its two halves.
    pub fn new(name: &str, tag: &str) -> Result<Self, StoreError> {
        check("name", name)?;
        check("tag", tag)?;
        Ok(Self {
            name: name.to_owned(),
            tag: tag.to_owned(),
        })
    }
    /// Before the colon.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// After the colon.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

impl FromStr for RefName {
    type Err = StoreError;
    /// `name:tag`, or `name` for `name:latest`.
    fn from_str(text: &str) -> Result<Self, StoreError> {
        match text.split_once(':') {
            Some((name, tag)) => Self::new(name, tag),
            None => Self::new(text, LATEST),
        }
    }
}

fn check(what: &str, text: &str) -> Result<(), StoreError> {
    let refuse = |why: String| Err(StoreError::Invalid(why));
    if text.is_empty() {
        return refuse(format!(
            "the {what} is empty: use a to z, 0 to 9, '.', '_' and '-'"
        ));
    }
    if text.len() > NAME_BYTES_MAX {
        let start: String = text.chars().take(20).collect();
        return refuse(format!(
            "the {what} {start:?}... is too long: at most {NAME_BYTES_MAX} characters"
        ));
    }
    let capitals = what == "tag";
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || capitals && c.is_ascii_uppercase();
    if let Some(bad) = text.chars().find(|&c| !plain(c) && !matches!(c, '.' | '_' | '-')) {
        return refuse(format!(
            "{text:?} is not a {what}: {bad:?} is not one of a to z,{} 0 to 9, '.', '_' and '-'",
            if capitals { " A to Z," } else { "" }
        ));
    }
    if !text.starts_with(plain) {
        return refuse(format!(
            "{text:?} is not a {what}: it must begin with a letter or a digit"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_round_trip() {
        for text in ["a:b", "web-1.2_x:2026-01-01", "0:0", "web:Before-2"] {
            assert_eq!(text.parse::<RefName>().unwrap().to_string(), text);
        }
        assert_eq!("web".parse::<RefName>().unwrap().to_string(), "web:latest");
        let longest = "a".repeat(63);
        assert!(RefName::new(&longest, &longest).is_ok());
    }

    #[test]
    fn bad_names_are_refused_in_words() {
        let long = "a".repeat(300);
        for (text, words) in [
            ("", "empty"),
            ("web:", "tag is empty"),
            ("a/b", "'/'"),
            ("../x:y", "'/'"),
            (".hidden", "begin with"),
            ("a b:c", "' '"),
            ("größe", "'ö'"),
            ("Web", "'W'"),
            ("a:b:c", "':'"),
            ("a\0b", "'\\0'"),
            (long.as_str(), "too long"),
        ] {
            let error = text.parse::<RefName>().unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }
}
