//! Hosts that this user may ask from here, by tokens: `hosts.json` in the user's configuration directory, which nobody else may read.

use crate::failure::{Failure, Outcome};
use martlet_api::{Problem, ProblemCode};
use martlet_peer::AccessLine;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// See the module's documentation.
pub struct Logins {
    path: PathBuf,
}

/// Lines of tokens, by what the user calls their hosts.
type Kept = BTreeMap<String, String>;

impl Logins {
    /// Those of who runs this program.
    pub fn of_this_user() -> Self {
        // XDG: relative paths are to be ignored.
        let absolute = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let config = absolute("XDG_CONFIG_HOME").unwrap_or_else(|| {
            let home = absolute("HOME").unwrap_or_else(|| "/".into());
            home.join(".config")
        });
        Self {
            path: config.join("martlet/hosts.json"),
        }
    }

    /// What leads to a host.
    pub fn get(&self, name: &str) -> Outcome<AccessLine> {
        let kept = self.read()?;
        let Some(line) = kept.get(name) else {
            return Err(unknown(name, &kept));
        };
        line.parse().map_err(|error| {
            let words = format!("the token for host {name} in {} is damaged", self.path.display());
            Problem::new(ProblemCode::Damaged, words)
                .cause(error)
                .remediation("`martlet login` with its line again")
                .into()
        })
    }

    /// Keeps it, in place of what there was by this name.
    pub fn put(&self, name: &str, access: &AccessLine) -> Outcome {
        let mut kept = self.read()?;
        kept.insert(name.to_owned(), access.to_string());
        self.write(&kept)
    }

    /// Forgets a host.
    pub fn remove(&self, name: &str) -> Outcome {
        let mut kept = self.read()?;
        match kept.remove(name) {
            Some(_) => self.write(&kept),
            None => Err(unknown(name, &kept)),
        }
    }

    fn read(&self) -> Outcome<Kept> {
        match fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                Problem::new(
                    ProblemCode::Damaged,
                    format!("{} is damaged", self.path.display()),
                )
                .cause(error)
                .remediation("mend it, or remove it and log in again")
                .into()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kept::new()),
            Err(error) => Err(Failure::io(format!("cannot read {}", self.path.display()), error)),
        }
    }

    /// The whole file anew, or as it was.
    fn write(&self, kept: &Kept) -> Outcome {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        let write = || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            let mut file = tempfile::NamedTempFile::new_in(dir)?; // of mode 0600
            serde_json::to_writer_pretty(&mut file, kept)?;
            file.write_all(b"\n")?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            Ok(())
        };
        write().map_err(|error| Failure::io(format!("cannot write {}", self.path.display()), error))
    }
}

fn unknown(name: &str, kept: &Kept) -> Failure {
    let names: Vec<_> = kept.keys().map(String::as_str).collect();
    let problem = Problem::new(
        ProblemCode::NotFound,
        format!("you are not logged in at a host called {name}"),
    );
    match names[..] {
        [] => problem.remediation("`martlet token create` on that host prints a line for `martlet login`"),
        _ => problem.remediation(format!("you are logged in at {}", names.join(", "))),
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use martlet_peer::Secret;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_kept_is_the_users_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/martlet/hosts.json");
        let logins = Logins { path };
        let access = |host: &str| AccessLine {
            host: host.into(),
            address: "192.0.2.7".into(),
            port: 7077,
            secret: Secret::random(),
            ca_fingerprint: [3; 32],
        };
        assert_eq!(logins.get("desk").unwrap_err().exit_code, 3);
        let [desk, couch] = ["desk", "couch"].map(access);
        logins.put("desk", &desk).unwrap();
        logins.put("work", &couch).unwrap();
        assert_eq!(logins.get("desk").unwrap(), desk);
        assert_eq!(logins.get("work").unwrap(), couch);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&logins.path), mode(logins.path.parent().unwrap())),
            (0o600, 0o700)
        );
        logins.remove("desk").unwrap();
        let words = logins.get("desk").unwrap_err().text(false);
        assert!(words.contains("logged in at work"), "{words}");
        assert_eq!(fs::read_dir(logins.path.parent().unwrap()).unwrap().count(), 1);
    }
}
