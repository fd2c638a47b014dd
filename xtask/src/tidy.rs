//! Rules about the text of the tree: no file grows beyond one idea, no room is called `utils`, and unsafe code is
//! allowed only by name.

use std::process::Command;

/// Longest source file.
const LINES_MAX: usize = 800;

/// Problems found, one line each.
pub fn check() -> Vec<String> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .output();
    let Ok(listed) = listed else {
        return vec!["tidy: git ls-files did not run".into()];
    };
    let files = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut problems = Vec::new();
    for file in files.lines().filter(|file| file.ends_with(".rs")) {
        let Ok(text) = std::fs::read_to_string(file) else {
            continue;
        };
        let lines = text.lines().count();
        if lines > LINES_MAX {
            problems.push(format!(
                "tidy: {file} has {lines} lines, more than {LINES_MAX}: does it still hold one idea?"
            ));
        }
        let stem = file.rsplit('/').next().unwrap_or(file);
        if ["utils.rs", "util.rs", "common.rs", "helpers.rs", "misc.rs"].contains(&stem) {
            problems.push(format!("tidy: {file}: name it for what it holds"));
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.trim_start();
            if ["todo!(", "unimplemented!(", "dbg!("]
                .iter()
                .any(|word| code.contains(word))
                && !file.starts_with("xtask/")
            {
                problems.push(format!("tidy: {file}:{}: {code}", number + 1));
            }
        }
    }
    problems
}
