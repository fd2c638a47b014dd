//! Users and groups from `/etc/passwd` and `/etc/group`: the static binary has no name service.

use crate::fault::{Result, fault};
use martlet_agent_api::RemoteErrorKind;
use std::fs;
use std::path::Path;

/// Whom a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Name, or the number when it has none.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

impl User {
    /// The superuser, who is there even without files.
    pub fn root() -> Self {
        Self {
            name: "root".into(),
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            home: "/root".into(),
        }
    }

    /// `name`, `number`, `name:group` or `number:number`; root when absent.
    pub fn find(etc: &Path, wanted: Option<&str>) -> Result<Self> {
        let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else {
            return Ok(Self::root());
        };
        let passwd = fs::read_to_string(etc.join("passwd")).unwrap_or_default();
        let group = fs::read_to_string(etc.join("group")).unwrap_or_default();
        Self::look_up(&passwd, &group, wanted)
    }

    fn look_up(passwd: &str, group: &str, wanted: &str) -> Result<Self> {
        let (user, group_wanted) = match wanted.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (wanted, None),
        };
        let number: Option<u32> = user.parse().ok();
        let known = passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, _, home, ..] = fields[..] else {
                return None;
            };
            let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
            (name == user || number == Some(uid)).then(|| (name.to_owned(), uid, gid, home.to_owned()))
        });
        let (name, uid, gid, home) = match (known, number) {
            (Some(known), _) => known,
            (None, Some(uid)) => (uid.to_string(), uid, uid, "/".to_owned()),
            (None, None) if user == "root" => return Ok(Self::root()),
            (None, None) => {
                return Err(fault(
                    RemoteErrorKind::NotFound,
                    format!("the guest has no user {user:?}"),
                ));
            }
        };
        let groups: Vec<(String, u32, bool)> =
            group.lines().filter_map(|line| group_line(line, &name)).collect();
        let gid = match group_wanted {
            None => gid,
            Some(wanted) => {
                let named = groups
                    .iter()
                    .find(|(name, ..)| name == wanted)
                    .map(|(_, gid, _)| *gid);
                named.or_else(|| wanted.parse().ok()).ok_or_else(|| {
                    fault(
                        RemoteErrorKind::NotFound,
                        format!("the guest has no group {wanted:?}"),
                    )
                })?
            }
        };
        let member_of = groups
            .iter()
            .filter(|(_, _, member)| *member)
            .map(|(_, gid, _)| *gid);
        Ok(Self {
            groups: member_of.collect(),
            name,
            uid,
            gid,
            home,
        })
    }
}

/// Name and number of a group, and whether `user` is a member.
fn group_line(line: &str, user: &str) -> Option<(String, u32, bool)> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, gid, members, ..] = fields[..] else {
        return None;
    };
    Some((
        name.to_owned(),
        gid.parse().ok()?,
        members.split(',').any(|member| member == user),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken line\nredis:x:101:102::/var/lib/redis:/usr/sbin/nologin\n";
    const GROUP: &str = "root:x:0:\nredis:x:102:\nadm:x:4:syslog,redis\ntape:x:26:\n";

    #[test]
    fn names_numbers_and_groups() {
        let redis = User::look_up(PASSWD, GROUP, "redis").unwrap();
        assert_eq!(
            (redis.uid, redis.gid, redis.groups.as_slice()),
            (101, 102, &[4][..])
        );
        assert_eq!(redis.home, "/var/lib/redis");
        assert_eq!(User::look_up(PASSWD, GROUP, "101").unwrap(), redis);
        assert_eq!(User::look_up(PASSWD, GROUP, "redis:tape").unwrap().gid, 26);
        let stranger = User::look_up(PASSWD, GROUP, "4242:7").unwrap();
        assert_eq!(
            (stranger.uid, stranger.gid, stranger.home.as_str()),
            (4242, 7, "/")
        );
        assert_eq!(
            User::look_up(PASSWD, GROUP, "nobody").unwrap_err().kind,
            RemoteErrorKind::NotFound
        );
        assert_eq!(
            User::look_up(PASSWD, GROUP, "redis:nogroup").unwrap_err().kind,
            RemoteErrorKind::NotFound
        );
        assert_eq!(User::look_up("", "", "root").unwrap(), User::root());
    }
}
