//! Where objects are, in the packs whose indexes were read.

use crate::pack::{Extent, Name, PackHash};
use std::collections::{BTreeSet, HashMap, HashSet};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Index {
    packs: Vec<PackHash>,
    known: HashSet<PackHash>,
    places: HashMap<Name, (u32, Extent)>,
}

impl Index {
    /// Adds what is in a pack. What is in several is looked for in the first.
    pub(crate) fn add(&mut self, pack: PackHash, entries: Vec<(Name, Extent)>) {
        if self.known.insert(pack) {
            let number = self.packs.len() as u32;
            self.packs.push(pack);
            for (name, extent) in entries {
                self.places.entry(name).or_insert((number, extent));
            }
        }
    }

    /// Was the index of this pack read?
    pub(crate) fn knows(&self, pack: &PackHash) -> bool {
        self.known.contains(pack)
    }

    /// Where an object is.
    pub(crate) fn place(&self, name: &Name) -> Option<(PackHash, Extent)> {
        let (pack, extent) = self.places.get(name)?;
        Some((self.packs[*pack as usize], *extent))
    }

    /// The packs in which these objects are.
    pub(crate) fn packs_of<'a>(&self, names: impl IntoIterator<Item = &'a Name>) -> BTreeSet<PackHash> {
        let places = names.into_iter().filter_map(|name| self.place(name));
        places.map(|(pack, _)| pack).collect()
    }
}
