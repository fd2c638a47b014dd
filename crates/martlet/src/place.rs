//! Arguments of `cp`: a path here, a path in a machine, or a tar stream.

use crate::failure::{Failure, Outcome};
use martlet_api::{Problem, ProblemCode, names::check_name};
use std::path::PathBuf;

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A path on this host.
    Here(PathBuf),
    /// `NAME:PATH`.
    Guest {
        /// Machine.
        name: String,
        /// Absolute path in it.
        path: String,
    },
    /// `-`
    Stream,
}

impl Place {
    /// Reads an argument. What stands before the first colon is a machine, unless it cannot be the name of one.
    pub fn parse(text: &str) -> Outcome<Self> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        let Some((name, path)) = text.split_once(':').filter(|(name, _)| check_name(name).is_ok()) else {
            return Ok(Self::Here(text.into()));
        };
        if !path.starts_with('/') {
            return Err(Failure::from(
                Problem::new(
                    ProblemCode::InvalidArgument,
                    format!("{path:?} in machine {name} is not an absolute path"),
                )
                .remediation(format!("write {name}:/{path}, or ./{text} for a file here")),
            ));
        }
        Ok(Self::Guest {
            name: name.into(),
            path: path.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colons_belong_to_machines_or_to_paths() {
        let guest = |name: &str, path: &str| Place::Guest {
            name: name.into(),
            path: path.into(),
        };
        assert_eq!(Place::parse("web:/tmp").unwrap(), guest("web", "/tmp"));
        assert_eq!(Place::parse("web:/a:b").unwrap(), guest("web", "/a:b"));
        for here in ["a", "./web:/tmp", "/a:b", "A:/b", ""] {
            assert_eq!(Place::parse(here).unwrap(), Place::Here(here.into()), "{here:?}");
        }
        assert_eq!(Place::parse("-").unwrap(), Place::Stream);
        assert_eq!(Place::parse("web:tmp").unwrap_err().exit_code, 2);
    }
}
