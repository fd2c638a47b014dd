//! Errors as people see them, and exit codes. The only place where one becomes the other.

use martlet_api::{Problem, ProblemCode};
use std::fmt::Write;

/// Exit code of an `exec` that failed itself.
pub const EXEC_FAILED: u8 = 125;

/// Why a command ends without success.
#[derive(Debug)]
pub struct Failure {
    /// What to say.
    pub problem: Problem,
    /// What to exit with.
    pub exit_code: u8,
}

/// What commands answer.
pub type Outcome<T = ()> = Result<T, Failure>;

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self {
            exit_code: exit_code(problem.code),
            problem,
        }
    }
}

impl Failure {
    /// A failure of this program's own.
    pub fn new(code: ProblemCode, message: impl Into<String>) -> Self {
        Problem::new(code, message).into()
    }

    /// An operation on this host that failed.
    pub fn io(message: impl Into<String>, error: std::io::Error) -> Self {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => ProblemCode::NotFound,
            std::io::ErrorKind::PermissionDenied => ProblemCode::PermissionDenied,
            std::io::ErrorKind::StorageFull => ProblemCode::NoSpace,
            _ => ProblemCode::Internal,
        };
        Problem::new(code, message).cause(error).into()
    }

    /// With another exit code.
    pub fn exit_with(self, exit_code: u8) -> Self {
        Self { exit_code, ..self }
    }

    /// The words on standard error.
    pub fn text(&self, json: bool) -> String {
        if json {
            return format!(
                "{}\n",
                serde_json::to_string(&self.problem).expect("a problem is plain data")
            );
        }
        // What comes from a guest or a file must not steer the terminal.
        let mut text = format!("error: {}\n", printable(&self.problem.message));
        for (word, part) in [("cause", &self.problem.cause), ("try", &self.problem.remediation)] {
            if let Some(part) = part {
                let _ = writeln!(text, "{word}: {}", printable(part));
            }
        }
        text
    }
}

/// The text without control characters other than line ends.
pub fn printable(text: &str) -> String {
    let clean = text.trim_end().chars().map(|c| {
        if c.is_control() && c != '\n' {
            '\u{fffd}'
        } else {
            c
        }
    });
    clean.collect()
}

/// Documented in [`crate::cli::EXIT_CODES`].
fn exit_code(code: ProblemCode) -> u8 {
    use ProblemCode::*;
    match code {
        Internal | PermissionDenied => 1,
        InvalidArgument => 2,
        NotFound => 3,
        AlreadyExists | InUse | WrongState | Busy => 4,
        Incompatible | MissingDependency => 5,
        Damaged => 6,
        NoSpace => 7,
        GuestFailed | HypervisorFailed => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_an_error() {
        let problem = Problem::new(ProblemCode::InUse, "snapshot web:1 is in use")
            .cause("machine clone-1 runs from it\x1b[2J")
            .remediation("martlet rm clone-1");
        let failure = Failure::from(problem);
        assert_eq!(failure.exit_code, 4);
        assert_eq!(
            failure.text(false),
            "error: snapshot web:1 is in use\ncause: machine clone-1 runs from it\u{fffd}[2J\ntry: martlet rm clone-1\n"
        );
        assert!(failure.text(true).starts_with(r#"{"code":"in_use""#));
    }
}
