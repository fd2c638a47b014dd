//! Where Debian packages come from: the archives that this host's apt uses, or the one that its administrator names.

use crate::BaseError;
use std::path::Path;

/// Names another archive than the host's apt does: `http://mirror.example/debian`.
pub const MIRROR_ENV: &str = "MARTLET_DEBIAN_MIRROR";

/// Suites that have updates and security updates of their own.
const STABLE: [&str; 5] = ["bullseye", "bookworm", "trixie", "stable", "oldstable"];

/// Archives of Debian packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirrors {
    main: String,
    security: Option<String>,
}

impl Mirrors {
    /// Those of this host.
    pub(crate) fn of_host() -> Result<Self, BaseError> {
        if let Ok(main) = std::env::var(MIRROR_ENV)
            && !main.is_empty()
        {
            return Ok(Self { main, security: None });
        }
        Self::of_apt(Path::new("/etc/apt")).ok_or_else(|| {
            BaseError::Invalid(format!(
                "apt on this host has no archive of Debian to install from; name one in {MIRROR_ENV} \
                 (`http://HOST/debian`) and start the daemon again"
            ))
        })
    }

    /// Those in apt's configuration: an archive is Debian's if it serves one of Debian's suites from a path that ends
    /// as Debian's do.
    fn of_apt(etc: &Path) -> Option<Self> {
        let mut files = vec![etc.join("sources.list")];
        let parts = std::fs::read_dir(etc.join("sources.list.d"))
            .into_iter()
            .flatten()
            .flatten();
        files.extend(parts.map(|part| part.path()));
        files.sort();
        let (mut main, mut security) = (None, None);
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let entries = match file.extension().is_some_and(|extension| extension == "sources") {
                true => deb822(&text),
                false => lines(&text),
            };
            for (uri, suite) in entries {
                let uri = uri.trim_end_matches('/').to_owned();
                let plain = suite.trim_end_matches("-security").trim_end_matches("-updates");
                if !STABLE.contains(&plain) && !["testing", "sid", "unstable"].contains(&plain) {
                    continue;
                }
                if uri.ends_with("debian-security") {
                    security.get_or_insert(uri);
                } else if uri.ends_with("debian") {
                    main.get_or_insert(uri);
                }
            }
        }
        Some(Self {
            main: main?,
            security,
        })
    }

    /// Lines of a sources.list for a suite, signed by this keyring.
    pub(crate) fn sources(&self, suite: &str, keyring: &str) -> String {
        let line = |mirror: &str, suite: &str| format!("deb [signed-by={keyring}] {mirror} {suite} main\n");
        let mut lines = line(&self.main, suite);
        if STABLE.contains(&suite) {
            lines += &line(&self.main, &format!("{suite}-updates"));
            if let Some(security) = &self.security {
                lines += &line(security, &format!("{suite}-security"));
            }
        }
        lines
    }
}

/// Archives and suites of one-line entries: `deb [options] URI SUITE COMPONENT…`.
fn lines(text: &str) -> Vec<(String, String)> {
    let entry = |line: &str| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']')?.1,
            None => rest,
        };
        let mut words = rest.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    text.lines().filter_map(entry).collect()
}

/// Archives and suites of deb822 stanzas.
fn deb822(text: &str) -> Vec<(String, String)> {
    let mut entries = Vec::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| -> Vec<&str> {
            let lines = stanza.lines().filter(|line| !line.starts_with('#'));
            let value = lines
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.eq_ignore_ascii_case(name));
            value.map_or(Vec::new(), |(_, value)| value.split_whitespace().collect())
        };
        if !field("Types").contains(&"deb") || field("Enabled").contains(&"no") {
            continue;
        }
        for uri in field("URIs") {
            entries.extend(
                field("Suites")
                    .iter()
                    .map(|suite| (uri.to_owned(), (*suite).to_owned())),
            );
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Option<Mirrors> {
        let etc = tempfile::tempdir().unwrap();
        std::fs::create_dir(etc.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            std::fs::write(etc.path().join(name), text).unwrap();
        }
        Mirrors::of_apt(etc.path())
    }

    #[test]
    fn archives_are_those_of_apt_in_either_form() {
        let mirrors = Mirrors {
            main: "http://a.example/debian".into(),
            security: Some("http://b.example/debian-security".into()),
        };
        let old = "# deb http://no.example/debian bookworm main\ndeb [arch=amd64 signed-by=/k] http://a.example/debian/ bookworm main\n\
                   deb http://b.example/debian-security bookworm-security main\n";
        assert_eq!(of(&[("sources.list", old)]).as_ref(), Some(&mirrors));
        let new = "Types: deb\n# a comment: here\nURIs: http://a.example/debian\nSuites: trixie trixie-updates\nComponents: main\n\n\
                   Types: deb\nURIs: http://b.example/debian-security\nSuites: trixie-security\n";
        assert_eq!(
            of(&[("sources.list.d/debian.sources", new)]).as_ref(),
            Some(&mirrors)
        );
        assert_eq!(
            mirrors.sources("trixie", "/k"),
            "deb [signed-by=/k] http://a.example/debian trixie main\n\
             deb [signed-by=/k] http://a.example/debian trixie-updates main\n\
             deb [signed-by=/k] http://b.example/debian-security trixie-security main\n"
        );
        assert_eq!(mirrors.sources("sid", "/k").lines().count(), 1);
    }

    #[test]
    fn other_archives_are_not_debians() {
        let others = "deb http://a.example/ubuntu noble main\ndeb http://a.example/apt cloud-bookworm main\n\
                      deb-src http://a.example/debian bookworm main\n";
        assert_eq!(of(&[("sources.list", others)]), None);
        let off = "Types: deb\nEnabled: no\nURIs: http://a.example/debian\nSuites: trixie\n";
        assert_eq!(of(&[("sources.list.d/debian.sources", off)]), None);
    }
}
