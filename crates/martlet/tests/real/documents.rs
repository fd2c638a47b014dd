//! The documents tell what is so: their examples are executed and their output is compared.

use crate::{Daemon, Fixture};
use std::path::Path;
use std::process::{Command, Stdio};

fn document(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read_to_string(root.join(path)).unwrap()
}

/// The blocks of a Markdown document that are written in `language`.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    let begins = text.split(&fence).skip(1);
    begins.map(|block| block.split("```").next().unwrap()).collect()
}

/// Runs a line of shell in which `martlet` is the one under test. Its output, then its errors without the progress.
fn run(daemon: &Daemon, line: &str) -> String {
    let programs = Path::new(env!("CARGO_BIN_EXE_martlet")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-c", line])
        .env("PATH", path)
        .env("MARTLET_STATE_DIR", daemon.state_dir())
        .env("MARTLET_SOCKET", daemon.socket())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    let told = |line: &&str| {
        ["error: ", "cause: ", "try: "]
            .iter()
            .any(|word| line.starts_with(word))
    };
    let errors: Vec<_> = words.lines().filter(told).collect();
    format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout).trim_end(),
        errors.join("\n")
    )
    .trim()
    .to_owned()
}

/// Is `text` what `wanted` says? In it `...` stands for anything in a line, and alone for any lines; blanks are as good as one.
fn matches(wanted: &[&str], text: &[&str]) -> bool {
    match (wanted.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((&"...", rest)), _) => (0..=text.len()).any(|skipped| matches(rest, &text[skipped..])),
        (Some((wanted, rest)), Some((line, more))) => line_matches(wanted, line) && matches(rest, more),
        _ => false,
    }
}

fn line_matches(wanted: &str, line: &str) -> bool {
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (wanted, line) = (plain(wanted), plain(line));
    let mut parts = wanted.split("...").map(str::trim);
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let mut last = "";
    for part in parts.clone() {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
        last = part;
    }
    match parts.next() {
        None => rest.is_empty(),
        Some(_) => last.is_empty() || line.ends_with(last),
    }
}

#[test]
fn patterns_match_what_they_should() {
    let is = |wanted: &str, text: &str| {
        matches(
            &wanted.lines().collect::<Vec<_>>(),
            &text.lines().collect::<Vec<_>>(),
        )
    };
    assert!(is("a ... c", "a   b c") && is("a\n...\nd", "a\nb\nc\nd") && is("...", "") && is("x ...", "x y"));
    assert!(
        !is("a ... c", "a b d")
            && !is("a", "b")
            && !is("a", "a\nb")
            && !is("a\nb", "a")
            && !is("a ... c", "a b c d")
    );
}

#[test]
fn the_semantics_are_as_documented() {
    let daemon = Daemon::new(Fixture::Tiny);
    let text = document("docs/semantics.md");
    let mut commands = 0;
    for block in blocks(&text, "console") {
        for example in block.split("$ ").skip(1).filter(|example| !example.is_empty()) {
            let (line, wanted) = example.split_once('\n').unwrap_or((example, ""));
            let got = run(&daemon, line);
            let wanted: Vec<_> = wanted.trim().lines().collect();
            let lines: Vec<_> = got.lines().collect();
            assert!(
                matches(&wanted, &lines),
                "$ {line}\n{got}\n\nwanted:\n{}",
                wanted.join("\n")
            );
            commands += 1;
        }
    }
    assert!(commands > 30, "only {commands} examples were found");
}

#[test]
fn the_readme_is_as_it_says() {
    let daemon = Daemon::new(Fixture::Debian);
    let text = document("README.md");
    let usb = tempfile::tempdir().unwrap();
    let lines = blocks(&text, "sh")
        .into_iter()
        .filter(|block| block.contains("martlet "))
        .flat_map(str::lines);
    for line in lines {
        // The fixture's base has been built the same way, with more packages.
        let line = line.replace("martlet run redis", "martlet run debian");
        let line = line.replace("/media/usb", &usb.path().to_string_lossy());
        if line.contains("base build") {
            continue;
        }
        let (command, wanted) = line.split_once('#').unwrap_or((&line, ""));
        let got = run(&daemon, &format!("{command}\necho status $?"));
        assert!(got.contains("status 0"), "{command}: {got}");
        if command.contains("redis-cli get") {
            assert_eq!(got.lines().next().unwrap().trim(), wanted.trim(), "{command}");
        }
    }
}
