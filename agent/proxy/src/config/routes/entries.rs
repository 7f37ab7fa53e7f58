//! Routes that stand at the same host and path, and which of them a request takes.

use std::cmp::Reverse;
use std::sync::Arc;

use isthmus_model::route::{FieldMatch, RouteMatch, ValueMatch};

use super::compile::Compiled;
use super::matching::{Asked, fits};
use crate::config::view::Map;

/// Of fewer each is looked at.
const MANY: usize = 8;

/// Routes of one host and path, in the order in which they are tried.
#[derive(Debug, Default)]
pub(super) struct Entries {
    all: Vec<Entry>,
    /// The same by a header field, where there are so many that it pays.
    by_field: Option<Box<ByField>>,
}

#[derive(Debug)]
pub(super) struct Entry {
    /// Conditions besides host and path, if any.
    pub(super) wanted: Option<Box<Wanted>>,
    order: u32,
    route: Arc<Compiled>,
}

/// All of it must fit.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) method: Option<Arc<str>>,
    pub(super) headers: Box<[FieldMatch]>,
    pub(super) query: Box<[FieldMatch]>,
}

/// Positions of entries by the value of the first header field that must have a certain one.
#[derive(Debug, Default)]
struct ByField {
    fields: Map<Arc<str>, Map<Arc<str>, Vec<u32>>>,
    /// Those without such a field.
    others: Vec<u32>,
}

impl Entry {
    pub(super) fn new(wanted: &RouteMatch, order: u32, route: &Arc<Compiled>) -> Self {
        let RouteMatch { hosts: _, sni: _, path: _, method, headers, query } = wanted;
        let is_plain = method.is_none() && headers.is_empty() && query.is_empty();
        let wanted = || Wanted {
            method: method.clone(),
            headers: headers.clone().into(),
            query: query.clone().into(),
        };
        let wanted = (!is_plain).then(|| Box::new(wanted()));
        Self { wanted, order, route: Arc::clone(route) }
    }

    fn fits(&self, asked: &Asked<'_>) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| fits(wanted, asked))
    }

    fn rank(&self) -> (bool, Reverse<usize>, Reverse<usize>, u32) {
        match &self.wanted {
            Some(it) => {
                let (headers, query) = (it.headers.len(), it.query.len());
                (it.method.is_none(), Reverse(headers), Reverse(query), self.order)
            }
            None => (true, Reverse(0), Reverse(0), self.order),
        }
    }

    /// The first header field that must have a certain value.
    fn field(&self) -> Option<(&Arc<str>, &Arc<str>)> {
        let mut fields = self.wanted.as_ref()?.headers.iter();
        fields.find_map(|field| match &field.value {
            ValueMatch::Exact(value) => Some((&field.name, value)),
            ValueMatch::Regex(_) | ValueMatch::Present | ValueMatch::Absent => None,
        })
    }
}

impl Entries {
    pub(super) fn add(&mut self, entry: Entry) {
        // Most stay alone.
        self.all.reserve_exact(usize::from(self.all.is_empty()));
        self.all.push(entry);
    }

    /// Puts them in order, once all are there.
    pub(super) fn finish(&mut self) {
        self.all.shrink_to_fit();
        self.all.sort_by_key(Entry::rank);
        if self.all.len() > MANY {
            let by_field = ByField::new(&self.all);
            self.by_field =
                (by_field.others.len() < self.all.len() / 2).then(|| Box::new(by_field));
        }
    }

    /// The route of the first one that fits.
    pub(super) fn first(&self, asked: &Asked<'_>) -> Option<&Arc<Compiled>> {
        let fits = |entry: &&Entry| entry.fits(asked);
        let Some(by_field) = &self.by_field else {
            return self.all.iter().find(fits).map(|entry| &entry.route);
        };
        let first = |list: &[u32]| {
            let mut list = list.iter().copied();
            list.find(|at| self.all.get(*at as usize).is_some_and(|entry| entry.fits(asked)))
        };
        let found = by_field.lists(asked).filter_map(first).min()?;
        self.all.get(found as usize).map(|entry| &entry.route)
    }

    /// Maximum number of comparisons.
    #[cfg(test)]
    pub(super) fn candidates(&self, asked: &Asked<'_>) -> usize {
        match &self.by_field {
            Some(by_field) => by_field.lists(asked).map(<[u32]>::len).sum(),
            None => self.all.len(),
        }
    }
}

impl ByField {
    fn new(entries: &[Entry]) -> Self {
        let mut by_field = Self::default();
        for (position, entry) in (0..).zip(entries) {
            let list = match entry.field() {
                Some((name, value)) => {
                    let values = by_field.fields.entry(Arc::clone(name)).or_default();
                    values.entry(Arc::clone(value)).or_default()
                }
                None => &mut by_field.others,
            };
            list.push(position);
        }
        by_field
    }

    /// Those that the fields leave.
    fn lists(&self, asked: &Asked<'_>) -> impl Iterator<Item = &[u32]> {
        let by_value = self.fields.iter().filter_map(move |(name, values)| {
            let value = asked.header(name)?;
            values.get(&*value).map(Vec::as_slice)
        });
        by_value.chain([self.others.as_slice()])
    }
}
