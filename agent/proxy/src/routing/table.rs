//! The routes of one service, indexed: what a request costs doesn't grow with their number.

use std::cmp::Reverse;
use std::sync::Arc;

use isthmus_model::route::{HostMatch, PathMatch, Pattern, RouteMatch};

use super::compile::Compiled;
use super::matching::{Asked, fits};
use crate::view::Map;

/// The routes of one service.
#[derive(Debug, Default)]
pub(crate) struct Table {
    hosts: Map<Arc<str>, Paths>,
    /// The longest first.
    suffixes: Vec<(Arc<str>, Paths)>,
    any_host: Paths,
    compares_paths: bool,
    count: usize,
}

/// The route that a request takes.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) route: Arc<Compiled>,
    /// The prefix that its path matched.
    pub(crate) prefix: Option<Arc<str>>,
}

/// Routes of one host, by path.
#[derive(Debug, Default)]
struct Paths {
    exact: Map<Arc<str>, Vec<Entry>>,
    /// The longest first.
    patterns: Vec<(Pattern, Vec<Entry>)>,
    prefixes: Map<Arc<str>, Vec<Entry>>,
}

#[derive(Clone, Debug)]
struct Entry {
    wanted: RouteMatch,
    order: usize,
    route: Arc<Compiled>,
}

impl Table {
    /// Adds a route that stands behind those that are here already.
    pub(super) fn add(&mut self, route: Arc<Compiled>, matches: &[RouteMatch]) {
        self.count += 1;
        if matches.is_empty() {
            return self.add_match(&route, RouteMatch::default());
        }
        for wanted in matches {
            self.add_match(&route, wanted.clone());
        }
    }

    fn add_match(&mut self, route: &Arc<Compiled>, wanted: RouteMatch) {
        self.compares_paths |= wanted.path.is_some();
        let entry = Entry { wanted, order: self.count, route: Arc::clone(route) };
        if entry.wanted.hosts.is_empty() {
            return self.any_host.add(entry);
        }
        for host in &entry.wanted.hosts {
            match host {
                HostMatch::Exact(host) => {
                    self.hosts.entry(Arc::clone(host)).or_default().add(entry.clone());
                }
                HostMatch::Suffix(suffix) => {
                    let found = self.suffixes.iter().position(|(known, _)| known == suffix);
                    let at = found.unwrap_or_else(|| {
                        self.suffixes.push((Arc::clone(suffix), Paths::default()));
                        self.suffixes.len() - 1
                    });
                    self.suffixes[at].1.add(entry.clone());
                }
            }
        }
    }

    /// Puts everything in order, once all routes are there.
    pub(super) fn finish(&mut self) {
        self.suffixes.sort_by_key(|(suffix, _)| Reverse(suffix.len()));
        let hosts = self.hosts.values_mut().chain(self.suffixes.iter_mut().map(|(_, it)| it));
        hosts.chain([&mut self.any_host]).for_each(Paths::finish);
    }

    /// Whether some route depends on the path, which then must not be ambiguous.
    pub(crate) const fn compares_paths(&self) -> bool {
        self.compares_paths
    }

    /// The route that a request takes, if one fits.
    pub(crate) fn choose(&self, asked: &Asked<'_>) -> Option<Chosen> {
        let exact = self.hosts.get(asked.host).and_then(|paths| paths.choose(asked));
        let by_suffix = || {
            let suffixes = self.suffixes.iter().filter(|(suffix, _)| {
                asked.host.len() > suffix.len() && asked.host.ends_with(&**suffix)
            });
            suffixes.map(|(_, paths)| paths).find_map(|paths| paths.choose(asked))
        };
        exact.or_else(by_suffix).or_else(|| self.any_host.choose(asked))
    }
}

impl Paths {
    fn add(&mut self, entry: Entry) {
        match &entry.wanted.path {
            Some(PathMatch::Exact(path)) => {
                self.exact.entry(Arc::clone(path)).or_default().push(entry);
            }
            Some(PathMatch::Prefix(prefix)) => {
                self.prefixes.entry(Arc::clone(prefix)).or_default().push(entry);
            }
            None => self.prefixes.entry("/".into()).or_default().push(entry),
            Some(PathMatch::Regex(pattern)) => {
                let pattern = pattern.clone();
                match self.patterns.iter_mut().find(|(known, _)| *known == pattern) {
                    Some((_, entries)) => entries.push(entry),
                    None => self.patterns.push((pattern, vec![entry])),
                }
            }
        }
    }

    fn finish(&mut self) {
        self.patterns.sort_by_key(|(pattern, _)| Reverse(pattern.as_str().len()));
        let entries = self.exact.values_mut().chain(self.prefixes.values_mut());
        for entries in entries.chain(self.patterns.iter_mut().map(|(_, entries)| entries)) {
            entries.sort_by_key(|entry| {
                let RouteMatch { hosts: _, sni: _, path: _, method, headers, query } =
                    &entry.wanted;
                let (headers, query) = (Reverse(headers.len()), Reverse(query.len()));
                (method.is_none(), headers, query, entry.order)
            });
        }
    }

    fn choose(&self, asked: &Asked<'_>) -> Option<Chosen> {
        let exact = self.exact.get(asked.path).and_then(|entries| first(entries, asked));
        if let Some(route) = exact.or_else(|| self.by_pattern(asked)) {
            return Some(Chosen { route, prefix: None });
        }
        self.by_prefix(asked)
    }

    fn by_pattern(&self, asked: &Asked<'_>) -> Option<Arc<Compiled>> {
        let fitting = self.patterns.iter().filter(|(pattern, _)| pattern.fits(asked.path));
        fitting.map(|(_, entries)| entries).find_map(|entries| first(entries, asked))
    }

    /// From the whole path to `/`, one segment less each time.
    fn by_prefix(&self, asked: &Asked<'_>) -> Option<Chosen> {
        let mut path = asked.path.trim_end_matches('/');
        loop {
            // `*`, which asks about the server as a whole, has no segments.
            let is_root = path.is_empty() || path == "*";
            let key = if is_root { "/" } else { path };
            if let Some((prefix, entries)) = self.prefixes.get_key_value(key)
                && let Some(route) = first(entries, asked)
            {
                return Some(Chosen { route, prefix: Some(Arc::clone(prefix)) });
            }
            if is_root {
                return None;
            }
            path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
    }
}

fn first(entries: &[Entry], asked: &Asked<'_>) -> Option<Arc<Compiled>> {
    entries.iter().find(|entry| fits(&entry.wanted, asked)).map(|entry| Arc::clone(&entry.route))
}
