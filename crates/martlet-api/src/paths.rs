//! Where a daemon and its command line find each other when nobody says otherwise.
//!
//! | | root | user |
//! | --- | --- | --- |
//! | state | `/var/lib/martlet` | `$XDG_STATE_HOME/martlet`, else `~/.local/state/martlet` |
//! | socket | `/run/martlet/martletd.sock` | `$XDG_RUNTIME_DIR/martlet/martletd.sock`, else `run/martletd.sock` in the state |

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Socket of the system-wide daemon.
pub const SYSTEM_SOCKET: &str = "/run/martlet/martletd.sock";
/// A daemon exits with this when another one has its state directory; that one may just be coming or going.
pub const EXIT_TAKEN: u8 = 4;
/// State of the system-wide daemon.
pub const SYSTEM_STATE_DIR: &str = "/var/lib/martlet";

/// Default places of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Directory that keeps everything.
    pub state_dir: PathBuf,
    /// The API's socket.
    pub socket: PathBuf,
}

impl Paths {
    /// The places of the user who runs this process.
    pub fn of_this_user() -> Self {
        // The owner of /proc/self is the effective user.
        let root = std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0);
        Self::from_environment(root, |name| std::env::var_os(name).map(PathBuf::from))
    }

    fn from_environment(root: bool, var: impl Fn(&str) -> Option<PathBuf>) -> Self {
        if root {
            return Self {
                state_dir: SYSTEM_STATE_DIR.into(),
                socket: SYSTEM_SOCKET.into(),
            };
        }
        // XDG: relative paths are to be ignored.
        let absolute = |name| var(name).filter(|path| path.is_absolute());
        let state_dir = absolute("XDG_STATE_HOME")
            .unwrap_or_else(|| {
                absolute("HOME")
                    .unwrap_or_else(|| "/".into())
                    .join(".local/state")
            })
            .join("martlet");
        let run_dir =
            absolute("XDG_RUNTIME_DIR").map_or_else(|| state_dir.join("run"), |dir| dir.join("martlet"));
        Self {
            socket: run_dir.join("martletd.sock"),
            state_dir,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_follow_xdg() {
        let set = |pairs: &'static [(&str, &str)]| {
            move |name: &str| {
                pairs
                    .iter()
                    .find(|(n, _)| *n == name)
                    .map(|(_, v)| PathBuf::from(v))
            }
        };
        let all = Paths::from_environment(
            false,
            set(&[
                ("HOME", "/h"),
                ("XDG_STATE_HOME", "/s"),
                ("XDG_RUNTIME_DIR", "/run/user/7"),
            ]),
        );
        assert_eq!(all.state_dir, PathBuf::from("/s/martlet"));
        assert_eq!(all.socket, PathBuf::from("/run/user/7/martlet/martletd.sock"));
        let home = Paths::from_environment(false, set(&[("HOME", "/h"), ("XDG_STATE_HOME", "relative")]));
        assert_eq!(home.state_dir, PathBuf::from("/h/.local/state/martlet"));
        assert_eq!(
            home.socket,
            PathBuf::from("/h/.local/state/martlet/run/martletd.sock")
        );
        assert_eq!(
            Paths::from_environment(true, set(&[("HOME", "/root")])).socket,
            PathBuf::from(SYSTEM_SOCKET)
        );
    }
}
