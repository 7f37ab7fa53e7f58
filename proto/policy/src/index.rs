//! Finds the rules that relate two identities without looking at the others.
//!
//! An identity answers to at most four subjects (`service:web`, `service:*`, `namespace:prod`,
//! `any`), so a pair of identities answers to at most sixteen pairs of subjects. The index holds,
//! for each pair of subjects that rules name, their positions in order; a look-up merges the lists.
//! A rule that names very many pairs isn't spelled out: it is found by its destination, and its
//! sources are checked then. Where many rules name the same pair, those that can't fit a request's path
//! are passed over ([`crate::paths`]).

use std::collections::HashMap;

use foldhash::fast::FixedState;
use isthmus_model::{Identity, Name, Rule, Subject};

use crate::paths::ByPath;
use crate::policy::RequestPattern;

/// Up to sixteen look-ups make a decision. What operators write needs no defence against flooding, so
/// the hash may be a fast one, and the same in every process.
pub(crate) type Map<K, V> = HashMap<K, V, FixedState>;

/// A subject, as a small number.
pub(crate) type Id = u32;

const ANY: Id = 0;
const ANY_SERVICE: Id = 1;
const ANY_HOST: Id = 2;
const ANY_DEVICE: Id = 3;
const FIRST_NAMED: Id = 4;

/// Rules with more pairs than this are found by destination only.
const MAX_PAIRS: usize = 256;

/// Of fewer rules between the same two each is looked at.
const MANY: usize = 8;

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

    /// Whether one of them is among `others`.
    pub(crate) fn has_any(&self, others: &[Id]) -> bool {
        others.iter().any(|id| self.as_slice().contains(id))
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

    pub(crate) fn numbers(&mut self, subjects: &[Subject]) -> Vec<Id> {
        let mut ids: Vec<Id> = subjects.iter().map(|subject| self.number(subject)).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// Rules by whom they relate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pairs: Map<(Id, Id), List>,
    /// By destination: the rules that name too many pairs.
    wide: Map<Id, List>,
    /// The sources of those.
    wide_from: Map<u32, Vec<Id>>,
}

/// Positions of rules, in order.
#[derive(Clone, Debug, Default)]
struct List {
    all: Vec<u32>,
    /// The same by path, where there are so many that it pays.
    by_path: Option<Box<ByPath>>,
}

/// What is known of the path, and so which rules can be passed over.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Look<'a> {
    /// None.
    All,
    /// Those that ask for another path than this canonical one.
    Path(&'a str),
    /// All that ask for a path.
    Pathless,
}

impl Index {
    /// Adds a rule; its position must be greater than those before.
    pub(crate) fn insert(&mut self, subjects: &mut Subjects, position: u32, rule: &Rule) {
        let from = subjects.numbers(&rule.from);
        let to = subjects.numbers(&rule.to);
        if from.len().saturating_mul(to.len()) > MAX_PAIRS {
            for to in to {
                self.wide.entry(to).or_default().all.push(position);
            }
            self.wide_from.insert(position, from);
            return;
        }
        for from in from {
            for to in &to {
                self.pairs.entry((from, *to)).or_default().all.push(position);
            }
        }
    }

    /// Sorts long lists by path, once all rules are there; `requests` are the rules' `http`.
    pub(crate) fn finish(&mut self, requests: &[Vec<RequestPattern>]) {
        let lists = self.pairs.values_mut().chain(self.wide.values_mut());
        lists.for_each(|list| list.finish(requests));
    }

    /// The positions of the rules that relate two identities, in order.
    pub(crate) fn related(&self, from: Ids, to: Ids) -> Related<'_> {
        self.related_by(from, to, Look::All)
    }

    /// The same, without those that can be passed over.
    pub(crate) fn related_by(&self, from: Ids, to: Ids, look: Look<'_>) -> Related<'_> {
        let mut related =
            Related { index: self, from, pairs: Heads::default(), wide: Heads::default() };
        for from in from.as_slice() {
            for to in to.as_slice() {
                if let Some(list) = self.pairs.get(&(*from, *to)) {
                    list.look(look, &mut related.pairs);
                }
            }
        }
        if !self.wide.is_empty() {
            for list in to.as_slice().iter().filter_map(|to| self.wide.get(to)) {
                list.look(look, &mut related.wide);
            }
        }
        related
    }
}

impl List {
    fn finish(&mut self, requests: &[Vec<RequestPattern>]) {
        self.all.shrink_to_fit();
        if self.all.len() <= MANY {
            return;
        }
        let mut by_path = ByPath::default();
        for position in &self.all {
            by_path.insert(*position, &requests[*position as usize]);
        }
        if by_path.any.len() < self.all.len() / 2 {
            self.by_path = Some(Box::new(by_path));
        }
    }

    fn look<'a>(&'a self, look: Look<'_>, heads: &mut Heads<'a>) {
        match (&self.by_path, look) {
            (Some(by_path), Look::Path(path)) => by_path.find(path, &mut |list| heads.push(list)),
            (Some(by_path), Look::Pathless) => heads.push(&by_path.any),
            (Some(_), Look::All) | (None, _) => heads.push(&self.all),
        }
    }
}

#[cfg(test)]
impl Index {
    /// How many entries it keeps.
    pub(crate) fn entries(&self) -> usize {
        let lists = self.pairs.values().chain(self.wide.values()).map(|list| list.all.len());
        lists.chain(self.wide_from.values().map(Vec::len)).sum()
    }
}

/// Merges lists of positions.
#[derive(Debug)]
pub(crate) struct Related<'a> {
    index: &'a Index,
    from: Ids,
    pairs: Heads<'a>,
    wide: Heads<'a>,
}

/// Lists that are stepped through together. There are few, unless a path fits many templates.
#[derive(Debug, Default)]
struct Heads<'a> {
    few: [&'a [u32]; 4],
    len: usize,
    more: Vec<&'a [u32]>,
}

impl Iterator for Related<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        loop {
            let next = self.pairs.least().into_iter().chain(self.wide.least()).min()?;
            let paired = self.pairs.step_over(next);
            self.wide.step_over(next);
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

impl<'a> Heads<'a> {
    fn push(&mut self, list: &'a [u32]) {
        if list.is_empty() {
            return;
        }
        match self.few.get_mut(self.len) {
            Some(slot) => {
                *slot = list;
                self.len += 1;
            }
            None => self.more.push(list),
        }
    }

    fn least(&self) -> Option<u32> {
        let lists = self.few[..self.len].iter().chain(&self.more);
        lists.filter_map(|list| list.first().copied()).min()
    }

    /// Steps over a position in every list that it heads; whether there was one.
    fn step_over(&mut self, position: u32) -> bool {
        let mut any = false;
        for list in self.few[..self.len].iter_mut().chain(&mut self.more) {
            if let [first, rest @ ..] = *list
                && *first == position
            {
                *list = rest;
                any = true;
            }
        }
        any
    }
}
