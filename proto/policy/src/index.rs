//! Finds the rules that relate two identities without looking at the others.
//!
//! An identity answers to at most four subjects (`service:web`, `service:*`, `namespace:prod`,
//! `any`), so a pair of identities answers to at most sixteen pairs of subjects. The index holds,
//! for each pair of subjects that rules name, their positions in order; a look-up merges the lists.
//! A rule that names very many pairs isn't spelled out: it is found by its destination, and its
//! sources are checked then.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use isthmus_model::{Identity, Name, Rule, Subject};

/// Up to sixteen look-ups make a decision. What operators write needs no defence against flooding, so
/// the hash may be a fast one, and the same in every process.
pub(crate) type Map<K, V> = HashMap<K, V, FixedState>;

/// A subject, as a small number.
type Id = u32;

const ANY: Id = 0;
const ANY_SERVICE: Id = 1;
const ANY_HOST: Id = 2;
const ANY_DEVICE: Id = 3;
const FIRST_NAMED: Id = 4;

/// Rules with more pairs than this are found by destination only.
const MAX_PAIRS: usize = 256;

/// Numbers for the subjects that rules name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subjects {
    services: Map<Name, Id>,
    namespaces: Map<Name, Id>,
    hosts: Map<Name, Id>,
    devices: Map<Name, Id>,
}

/// The subjects that one identity answers to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ids {
    ids: [Id; 4],
    len: usize,
}

impl Ids {
    fn new(always: &[Id], named: &[Option<Id>]) -> Self {
        let mut ids = Self { ids: [ANY; 4], len: 0 };
        for id in always.iter().copied().chain(named.iter().copied().flatten()) {
            ids.ids[ids.len] = id;
            ids.len += 1;
        }
        ids
    }

    fn as_slice(&self) -> &[Id] {
        &self.ids[..self.len]
    }
}

impl Subjects {
    pub(crate) fn of(&self, identity: &Identity) -> Ids {
        match identity {
            Identity::Service { namespace, name } => {
                let named = [self.services.get(name), self.namespaces.get(namespace)];
                Ids::new(&[ANY, ANY_SERVICE], &named.map(Option::<&Id>::copied))
            }
            Identity::Host(name) => Ids::new(&[ANY, ANY_HOST], &[self.hosts.get(name).copied()]),
            Identity::Device(name) => {
                Ids::new(&[ANY, ANY_DEVICE], &[self.devices.get(name).copied()])
            }
        }
    }

    fn number(&mut self, subject: &Subject) -> Id {
        let named = self.services.len() + self.namespaces.len() + self.hosts.len();
        let next = FIRST_NAMED + u32::try_from(named + self.devices.len()).unwrap_or(u32::MAX);
        let (table, name) = match subject {
            Subject::Any => return ANY,
            Subject::AnyService => return ANY_SERVICE,
            Subject::AnyHost => return ANY_HOST,
            Subject::AnyDevice => return ANY_DEVICE,
            Subject::Service(name) => (&mut self.services, name),
            Subject::Namespace(name) => (&mut self.namespaces, name),
            Subject::Host(name) => (&mut self.hosts, name),
            Subject::Device(name) => (&mut self.devices, name),
        };
        *table.entry(name.clone()).or_insert(next)
    }

    fn numbers(&mut self, subjects: &[Subject]) -> Vec<Id> {
        let mut ids: Vec<Id> = subjects.iter().map(|subject| self.number(subject)).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// Rules by whom they relate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pairs: Map<(Id, Id), Vec<u32>>,
    /// By destination: the rules that name too many pairs.
    wide: Map<Id, Vec<u32>>,
    /// The sources of those.
    wide_from: Map<u32, Vec<Id>>,
}

impl Index {
    /// Adds a rule; its position must be greater than those before.
    pub(crate) fn insert(&mut self, subjects: &mut Subjects, position: u32, rule: &Rule) {
        let from = subjects.numbers(&rule.from);
        let to = subjects.numbers(&rule.to);
        if from.len().saturating_mul(to.len()) > MAX_PAIRS {
            for to in to {
                self.wide.entry(to).or_default().push(position);
            }
            self.wide_from.insert(position, from);
            return;
        }
        for from in from {
            for to in &to {
                self.pairs.entry((from, *to)).or_default().push(position);
            }
        }
    }

    /// The positions of the rules that relate two identities, in order.
    pub(crate) fn related(&self, from: Ids, to: Ids) -> Related<'_> {
        let mut related = Related { index: self, from, pairs: [&[]; 16], wide: [&[]; 4] };
        let mut slots = related.pairs.iter_mut();
        for from in from.as_slice() {
            for to in to.as_slice() {
                if let (Some(list), Some(slot)) = (self.pairs.get(&(*from, *to)), slots.next()) {
                    *slot = list;
                }
            }
        }
        if !self.wide.is_empty() {
            for (slot, to) in related.wide.iter_mut().zip(to.as_slice()) {
                *slot = self.wide.get(to).map_or(&[], Vec::as_slice);
            }
        }
        related
    }
}

#[cfg(test)]
impl Index {
    /// How many entries it keeps.
    pub(crate) fn entries(&self) -> usize {
        let lists = self.pairs.values().chain(self.wide.values()).map(Vec::len);
        lists.chain(self.wide_from.values().map(Vec::len)).sum()
    }
}

/// Merges lists of positions.
#[derive(Debug)]
pub(crate) struct Related<'a> {
    index: &'a Index,
    from: Ids,
    pairs: [&'a [u32]; 16],
    wide: [&'a [u32]; 4],
}

impl Iterator for Related<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        loop {
            let lists = self.pairs.iter().chain(&self.wide);
            let next = lists.filter_map(|list| list.first().copied()).min()?;
            let paired = advance(&mut self.pairs, next);
            advance(&mut self.wide, next);
            if paired || self.has_source(next) {
                return Some(next);
            }
        }
    }
}

impl Related<'_> {
    fn has_source(&self, position: u32) -> bool {
        let sources = self.index.wide_from.get(&position);
        let has = |id: &Id| sources.is_some_and(|sources| sources.binary_search(id).is_ok());
        self.from.as_slice().iter().any(has)
    }
}

/// Steps over a position in every list that it heads; whether there was one.
fn advance(lists: &mut [&[u32]], position: u32) -> bool {
    let mut any = false;
    for list in lists {
        if let [first, rest @ ..] = *list
            && *first == position
        {
            *list = rest;
            any = true;
        }
    }
    any
}
