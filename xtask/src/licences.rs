//! Licences and sources of everything that is compiled in, by the rules of `deny.toml`.
//!
//! `cargo deny` reads the same file and checks more; it takes longer to build than Martlet does, so this much is checked
//! without it, on every run.

use std::process::Command;

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Problems found, one line each.
pub fn check() -> Vec<String> {
    let rules = std::fs::read_to_string("deny.toml").unwrap_or_default();
    let allowed = strings(&rules, "allow = [");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .output();
    let metadata: serde_json::Value = match output {
        Ok(output) if output.status.success() => serde_json::from_slice(&output.stdout).unwrap_or_default(),
        Ok(output) => {
            return vec![format!(
                "licences: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            )];
        }
        Err(error) => return vec![format!("licences: cargo metadata did not run: {error}")],
    };
    let empty = Vec::new();
    let used: Vec<_> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap_or(&empty)
        .iter()
        .map(|node| &node["id"])
        .collect();
    let packages = metadata["packages"].as_array().unwrap_or(&empty);
    let mut problems = Vec::new();
    if packages.is_empty() || allowed.is_empty() {
        problems.push("licences: nothing to check, or no rules".into());
    }
    for package in packages.iter().filter(|package| used.contains(&&package["id"])) {
        let name = package["name"].as_str().unwrap_or_default();
        let licence = package["license"].as_str().unwrap_or_default();
        if !Expression(licence).is_allowed(&allowed) {
            problems.push(format!(
                "licences: {name} is {licence:?}, which deny.toml does not allow"
            ));
        }
        if !matches!(package["source"].as_str(), None | Some(REGISTRY)) {
            problems.push(format!("licences: {name} comes from {}", package["source"]));
        }
        if rules.contains(&format!("name = \"{name}\"")) {
            problems.push(format!("licences: {name} is banned by deny.toml"));
        }
    }
    problems
}

/// The strings of a list in a TOML file, which ends at the next `]`.
fn strings<'a>(text: &'a str, begin: &str) -> Vec<&'a str> {
    let list = text
        .split(begin)
        .nth(1)
        .and_then(|rest| rest.split(']').next())
        .unwrap_or_default();
    list.split('"').skip(1).step_by(2).collect()
}

/// An SPDX expression of OR, AND and parentheses.
struct Expression<'a>(&'a str);

impl Expression<'_> {
    fn is_allowed(&self, allowed: &[&str]) -> bool {
        // The old way to write OR.
        let text = self
            .0
            .replace('/', " OR ")
            .replace('(', " ( ")
            .replace(')', " ) ");
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut at = 0;
        let held = any(&words, &mut at, allowed);
        held && at == words.len() && at > 0
    }
}

fn any(words: &[&str], at: &mut usize, allowed: &[&str]) -> bool {
    let mut held = all(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        held |= all(words, at, allowed);
    }
    held
}

fn all(words: &[&str], at: &mut usize, allowed: &[&str]) -> bool {
    let mut held = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        held &= one(words, at, allowed);
    }
    held
}

fn one(words: &[&str], at: &mut usize, allowed: &[&str]) -> bool {
    let Some(&word) = words.get(*at) else { return false };
    *at += 1;
    if word == "(" {
        let held = any(words, at, allowed);
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return held && closed;
    }
    if words.get(*at) == Some(&"WITH") {
        let exception = words.get(*at + 1).copied().unwrap_or_default();
        *at += 2;
        return allowed.contains(&format!("{word} WITH {exception}").as_str());
    }
    allowed.contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_read_as_they_are_meant() {
        let is = |text| Expression(text).is_allowed(&["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"]);
        assert!(
            is("MIT")
                && is("GPL-3.0 OR MIT")
                && is("MIT/Apache-2.0")
                && is("(MIT OR GPL-3.0) AND Apache-2.0")
        );
        assert!(is("Apache-2.0 WITH LLVM-exception OR X"));
        assert!(
            !is("")
                && !is("GPL-3.0")
                && !is("MIT AND GPL-3.0")
                && !is("(MIT")
                && !is("MIT MIT")
                && !is("MIT WITH X")
        );
    }
}
