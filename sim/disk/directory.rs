//! The names of a disk's files: changed at once, and durable when the directory is.

use std::collections::BTreeMap;

use super::Number;
use crate::io::RngStream;

/// Files by their names.
pub(super) type Names = BTreeMap<String, Number>;

/// Something that is done to a directory.
#[derive(Clone)]
pub(super) enum Naming {
    Made(String, Number),
    Removed(String),
    /// From one name to another.
    Renamed(String, String),
}

impl Naming {
    fn apply(self, names: &mut Names) {
        match self {
            Self::Made(name, number) => drop(names.insert(name, number)),
            Self::Removed(name) => drop(names.remove(&name)),
            Self::Renamed(from, to) => {
                if let Some(number) = names.remove(&from) {
                    names.insert(to, number);
                }
            }
        }
    }
}

/// A directory.
#[derive(Default)]
pub(super) struct Directory {
    live: Names,
    durable: Names,
    /// What was done to it since, in order.
    unsynced: Vec<Naming>,
}

impl Directory {
    /// One whose names are all durable.
    pub(super) fn of(names: Names) -> Self {
        Self { live: names.clone(), durable: names, unsynced: Vec::new() }
    }

    /// What its machine sees.
    pub(super) fn live(&self) -> &Names {
        &self.live
    }

    /// What is left for certain when the power goes.
    pub(super) fn durable(&self) -> &Names {
        &self.durable
    }

    /// Does something to it.
    pub(super) fn change(&mut self, naming: Naming) {
        naming.clone().apply(&mut self.live);
        self.unsynced.push(naming);
    }

    /// Makes all of it durable.
    pub(super) fn sync(&mut self) {
        self.durable = self.live.clone();
        self.unsynced.clear();
    }

    /// The power goes: any part of what was done to it since it was durable may be left, but nothing is left in half.
    pub(super) fn power_cut(&mut self, drop_permille: u64, rng: &mut RngStream) {
        for naming in self.unsynced.drain(..) {
            let undone = rng.chance(drop_permille);
            let replaces = matches!(&naming, Naming::Renamed(_, to) if self.durable.contains_key(to));
            sometimes!(undone && replaces, "a power cut undid that a file took another's place");
            sometimes!(undone && matches!(naming, Naming::Removed(_)), "a power cut undid that a file was removed");
            if !undone {
                naming.apply(&mut self.durable);
            }
        }
        self.live = self.durable.clone();
    }

    /// Whether a file has a name, or may have one after a power cut.
    pub(super) fn may_name(&self, number: Number) -> bool {
        let made = self.unsynced.iter().filter_map(|naming| match naming {
            Naming::Made(_, number) => Some(number),
            Naming::Removed(_) | Naming::Renamed(..) => None,
        });
        self.live.values().chain(self.durable.values()).chain(made).any(|other| *other == number)
    }
}
