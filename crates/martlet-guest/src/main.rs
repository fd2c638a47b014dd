//! `martlet-guest`: the calls of a guest's programs, for shell scripts.

fn main() -> std::process::ExitCode {
    martlet_guest::cli::main(std::env::args_os().skip(1))
}
