//! A crate imports only crates above it in the table of `docs/architecture.md`.

use std::process::Command;

/// The rooms, top first, read from the document so that it cannot lie.
fn rooms() -> Vec<String> {
    let text = std::fs::read_to_string("docs/architecture.md").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.strip_prefix("| martlet"))
        .filter_map(|rest| rest.split(" |").next())
        .map(|rest| format!("martlet{rest}"))
        .collect()
}

/// Problems found, one line each.
pub fn check() -> Vec<String> {
    let rooms = rooms();
    let rank = |name: &str| rooms.iter().position(|room| room == name);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .output();
    let metadata: serde_json::Value = match output {
        Ok(output) => serde_json::from_slice(&output.stdout).unwrap_or_default(),
        Err(error) => return vec![format!("direction: cargo metadata did not run: {error}")],
    };
    let empty = Vec::new();
    let packages = metadata["packages"].as_array().unwrap_or(&empty);
    let mut problems = Vec::new();
    let mut seen = 0;
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        if name == "xtask" {
            continue;
        }
        let Some(own) = rank(name) else {
            problems.push(format!(
                "direction: {name} is not in the table of docs/architecture.md"
            ));
            continue;
        };
        seen += 1;
        for dependency in package["dependencies"].as_array().unwrap_or(&empty) {
            let (target, dev) = (
                dependency["name"].as_str().unwrap_or_default(),
                dependency["kind"] == "dev",
            );
            if !dev && rank(target).is_some_and(|above| above >= own) {
                problems.push(format!("direction: {name} imports {target}, which is below it"));
            }
        }
    }
    if seen != rooms.len() {
        problems.push(format!(
            "direction: {} rooms in docs/architecture.md, {seen} crates in the workspace",
            rooms.len()
        ));
    }
    problems
}
