//! What may be called what. Names become file names, host names and path segments of URLs, so they are checked
//! before anything believes them.

use crate::{Problem, ProblemCode};

/// Longest machine, base or tag name, in bytes: a host name's label.
pub const NAME_MAX: usize = 63;

/// Checks the name of a machine or base: `[a-z0-9][a-z0-9-]{0,62}`.
pub fn check_name(name: &str) -> Result<(), Problem> {
    let fits = (1..=NAME_MAX).contains(&name.len())
        && !name.starts_with('-')
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits { Ok(()) } else { Err(bad("name", name)) }
}

/// Where clones go, instead of names of hosts: whichever have room.
pub const AUTO: &str = "auto";

/// Where clones go, instead of names of hosts: `plugin:NAME`, wherever that allocator says; its name.
pub fn plugin(place: &str) -> Option<&str> {
    place.strip_prefix("plugin:")
}

/// Checks one place where clones may go: the name of a host, `auto`, or `plugin:NAME`.
pub fn check_place(place: &str) -> Result<(), Problem> {
    check_name(plugin(place).unwrap_or(place))
}

/// Checks where clones are to go: hosts, or one allocator.
pub fn check_places(on: &[String]) -> Result<(), Problem> {
    on.iter().try_for_each(|place| check_place(place))?;
    let is_allocator = |place: &&String| *place == AUTO || plugin(place).is_some();
    match on.iter().find(is_allocator) {
        Some(allocator) if on.len() > 1 => Err(Problem::new(
            ProblemCode::InvalidArgument,
            format!("{allocator} chooses among all hosts"),
        )
        .remediation(format!("name hosts, or say only {allocator}"))),
        _ => Ok(()),
    }
}

/// Checks the tag of a snapshot: like a name, and also `.`, `_` and capitals after the first character.
pub fn check_tag(tag: &str) -> Result<(), Problem> {
    let fits = (1..=NAME_MAX).contains(&tag.len())
        && tag.starts_with(|c: char| c.is_ascii_alphanumeric())
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if fits { Ok(()) } else { Err(bad("tag", tag)) }
}

/// Checks the shape of a reference to a snapshot: a name, `name:tag`, or (the beginning of) an id.
pub fn check_reference(reference: &str) -> Result<(), Problem> {
    if let Some((name, tag)) = reference.split_once(':') {
        return check_name(name).and_then(|()| check_tag(tag));
    }
    let id = reference.len() == 64 && reference.bytes().all(|b| b.is_ascii_hexdigit());
    if id { Ok(()) } else { check_name(reference) }
}

/// Checks a reference that is to be made: `name:tag`, nothing shorter.
pub fn check_new_reference(reference: &str) -> Result<(), Problem> {
    match reference.split_once(':') {
        Some((name, tag)) => check_name(name).and_then(|()| check_tag(tag)),
        None => Err(Problem::new(
            ProblemCode::InvalidArgument,
            format!("{} is not NAME:TAG", quoted(reference)),
        )
        .remediation("write the reference as name:tag, for example web:before-upgrade")),
    }
}

fn bad(what: &str, given: &str) -> Problem {
    let (rule, example) = match what {
        "tag" => (
            "letters, digits, '-', '.' and '_', beginning with a letter or digit",
            "before-upgrade",
        ),
        _ => (
            "lower-case letters, digits and '-', beginning with a letter or digit",
            "web-1",
        ),
    };
    let why = match given.len() {
        0 => "it is empty".to_string(),
        n if n > NAME_MAX => format!("it is {n} bytes long, {NAME_MAX} are allowed"),
        _ => {
            let odd = given
                .chars()
                .find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit()));
            odd.map_or("it begins badly".into(), |c| format!("it contains {c:?}"))
        }
    };
    Problem::new(
        ProblemCode::InvalidArgument,
        format!("{} is not a valid {what}", quoted(given)),
    )
    .cause(why)
    .remediation(format!("use 1 to {NAME_MAX} {rule}, for example {example}"))
}

/// The text in quotes, escaped, and cut short: it came from outside and goes to terminals and logs.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((at, _)) => format!("{:?}…", &text[..at]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_host_name_labels() {
        for good in ["a", "0", "web-1", "redis", &"a".repeat(63)] {
            check_name(good).unwrap();
        }
        let long = "a".repeat(300);
        for bad in [
            "", "-a", "A", "a/b", "../x", "a b", "naïve", "a_b", "a.b", "a:b", "a\0", &long,
        ] {
            let problem = check_name(bad).unwrap_err();
            assert_eq!(problem.code, ProblemCode::InvalidArgument, "{bad:?}");
            assert!(problem.message.len() < 200, "{}", problem.message);
            assert!(problem.cause.is_some() && problem.remediation.is_some());
        }
    }

    #[test]
    fn references_are_names_tags_or_ids() {
        for good in [
            "web",
            "web:1",
            "web:Before.2_x",
            &"0af".repeat(21),
            &"ab".repeat(32),
            "0a1b2c3d",
        ] {
            check_reference(good).unwrap();
        }
        for bad in [
            "",
            ":",
            "web:",
            ":1",
            "web:a:b",
            "web:a/b",
            "web:ü",
            "Web:1",
            &"zz".repeat(32),
            "a/b",
        ] {
            assert!(check_reference(bad).is_err(), "{bad:?}");
        }
        assert!(check_new_reference("web:1").is_ok());
        assert!(check_new_reference("web").is_err());
    }

    #[test]
    fn clones_go_to_hosts_or_where_one_allocator_says() {
        let check = |on: &[&str]| check_places(&on.iter().map(|one| one.to_string()).collect::<Vec<_>>());
        for good in [&[][..], &["desk", "couch"], &["auto"], &["plugin:slurm"]] {
            check(good).unwrap();
        }
        let bad = [
            &["auto", "desk"][..],
            &["desk", "plugin:slurm"],
            &["plugin:"],
            &["plugin:../x"],
            &["plugin:a:b"],
            &["other:slurm"],
            &["plugin:slurm", "plugin:slurm"],
        ];
        for bad in bad {
            assert_eq!(
                check(bad).unwrap_err().code,
                ProblemCode::InvalidArgument,
                "{bad:?}"
            );
        }
    }
}
