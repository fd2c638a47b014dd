//! Names of objects in a remote: a room and a name in it, which any kind of remote can have.

use std::fmt;

/// Longest name in a room.
pub const NAME_BYTES_MAX: usize = 200;

/// A kind of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Room {
    /// Frames, manifests and snapshots, many in each.
    Packs,
    /// Where things are in the packs.
    Indexes,
    /// What snapshots are called.
    Refs,
    /// Who is pushing.
    Intents,
    /// That who holds a line is still there.
    Leases,
    /// What is being collected.
    Condemned,
    /// What `Objects::check` tries.
    Checks,
}

impl Room {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Packs,
        Self::Indexes,
        Self::Refs,
        Self::Intents,
        Self::Leases,
        Self::Condemned,
        Self::Checks,
    ];

    /// Its name in a remote. **A format**: add, never rename.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Packs => "packs",
            Self::Indexes => "indexes",
            Self::Refs => "refs",
            Self::Intents => "intents",
            Self::Leases => "leases",
            Self::Condemned => "condemned",
            Self::Checks => "checks",
        }
    }
}

/// The name of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    room: Room,
    name: String,
}

impl Key {
    /// None for a name that not every kind of remote can have: 1 to [`NAME_BYTES_MAX`] letters, digits and `-_=@.`, not
    /// beginning with a point (FAT, URLs and S3 each forbid some others).
    pub fn new(room: Room, name: impl Into<String>) -> Option<Self> {
        let name = name.into();
        let fits = (1..=NAME_BYTES_MAX).contains(&name.len())
            && !name.starts_with('.')
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_=@.".contains(&byte));
        fits.then_some(Self { room, name })
    }

    /// The `number`-th of those called `name`, which follow each other. None as of [`Key::new`].
    pub(crate) fn numbered(room: Room, name: &str, number: u32) -> Option<Self> {
        Self::new(room, format!("{name}@{number:08}"))
    }

    /// What it is called, and which of those it is. None if it is none of several.
    pub(crate) fn number(&self) -> Option<(&str, u32)> {
        let (name, number) = self.name.rsplit_once('@')?;
        let number = number.parse().ok()?;
        let is_it = Self::numbered(self.room, name, number).as_ref() == Some(self);
        is_it.then_some((name, number))
    }

    /// Its room.
    pub fn room(&self) -> Room {
        self.room
    }

    /// Its name in the room.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.room.as_str(), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_some_remote_cannot_have_are_none() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for bad in ["", ".", "..", ".tmp", "a/b", "a b", "a:b", "a%2f", "ä", &long] {
            assert_eq!(Key::new(Room::Refs, bad), None, "{bad:?}");
        }
        let key = Key::new(Room::Refs, "web@latest@00000001").unwrap();
        assert_eq!(key.to_string(), "refs/web@latest@00000001");
        assert_eq!(key.number(), Some(("web@latest", 1)));
        for none in ["web", "web@", "web@1", "web@x", "web@000000001"] {
            assert_eq!(Key::new(Room::Refs, none).unwrap().number(), None, "{none}");
        }
    }
}
