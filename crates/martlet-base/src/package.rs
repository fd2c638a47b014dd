//! Names that end up as arguments of package tools: checked, so that none is read as an option or a second argument.

use crate::BaseError;

/// Far more than a machine needs; keeps command lines and error messages bounded.
const PACKAGES_MAX: usize = 2000;

/// Debian policy 5.6.1: at least two characters, lower case letters, digits, `+ - .`, beginning with a letter or digit.
pub(crate) fn check_packages(names: &[String]) -> Result<(), BaseError> {
    if names.len() > PACKAGES_MAX {
        return Err(BaseError::Invalid(format!(
            "{} packages asked for, at most {PACKAGES_MAX} are possible",
            names.len()
        )));
    }
    match names.iter().find(|name| !is_package(name)) {
        None => Ok(()),
        Some(name) => Err(BaseError::Invalid(format!(
            "{name:?} is not a Debian package name: names are lower case letters, digits and `+-.`, begin with a \
             letter or digit, and have 2 to 100 characters"
        ))),
    }
}

fn is_package(name: &str) -> bool {
    (2..=100).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte))
        && name.as_bytes()[0].is_ascii_alphanumeric()
        // apt reads a trailing `-` as "remove", unless a package is really called so. (`+` is "install".)
        && !name.ends_with('-')
}

/// A suite is a code name or a class: `bookworm`, `stable`, `trixie-backports`.
pub(crate) fn check_suite(suite: &str) -> Result<(), BaseError> {
    let fits = (3..=40).contains(&suite.len())
        && suite
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && suite.as_bytes()[0].is_ascii_lowercase();
    match fits {
        true => Ok(()),
        false => Err(BaseError::Invalid(format!(
            "{suite:?} is not the name of a Debian suite; `bookworm` and `trixie` are"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_names() {
        for good in [
            "redis-server",
            "g++",
            "ncbi-blast+",
            "libstdc++6",
            "python3.11",
            "0ad",
            "libc6",
        ] {
            assert!(is_package(good), "{good}");
        }
        for bad in [
            "",
            "a",
            "-y",
            "--option",
            "Redis",
            "a b",
            "a,b",
            "a;b",
            "redis/sid",
            "redis=1.0",
            "a\n",
            "é1",
            "?true",
            "~nfoo",
            "redis-",
            "./x.deb",
            "a*",
        ] {
            assert!(!is_package(bad), "{bad:?}");
        }
        assert!(
            check_packages(&["x".repeat(300)])
                .unwrap_err()
                .to_string()
                .contains("not a Debian package name")
        );
        assert!(check_packages(&vec!["ab".to_owned(); PACKAGES_MAX + 1]).is_err());
    }

    #[test]
    fn suites() {
        for good in ["bookworm", "trixie", "stable", "bookworm-backports"] {
            assert!(check_suite(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "../x",
            "-o",
            "book worm",
            "bookworm/updates",
            "Bookworm",
            "deb http://x",
        ] {
            assert!(check_suite(bad).is_err(), "{bad:?}");
        }
    }
}
