//! Project automation. `cargo xtask check` fails when the tree breaks a rule that the compiler does not know:
//! crate direction, licences and sources, file size, words that do not belong in project text.

mod direction;
mod licences;
mod tidy;

use std::process::ExitCode;

fn main() -> ExitCode {
    let task = std::env::args().nth(1).unwrap_or_default();
    let problems = match task.as_str() {
        "check" => [direction::check(), licences::check(), tidy::check()].concat(),
        _ => {
            eprintln!("usage: cargo xtask check");
            return ExitCode::from(2);
        }
    };
    for problem in &problems {
        eprintln!("{problem}");
    }
    if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
