//! The routes of one service, indexed: what a request costs doesn't grow with their number.

use std::cmp::Reverse;
use std::sync::Arc;

use isthmus_model::route::{HostMatch, PathMatch, Pattern, RouteMatch};
use isthmus_policy::Starts;

use super::compile::Compiled;
use super::entries::{Entries, Entry};
use super::matching::Asked;
use crate::config::view::Map;

/// The routes of one service.
#[derive(Debug, Default)]
pub(crate) struct Table {
    hosts: Map<Arc<str>, Paths>,
    suffixes: Map<Arc<str>, Paths>,
    /// Of a suffix, in bytes.
    longest_suffix: usize,
    any_host: Paths,
    compares_paths: bool,
    count: u32,
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
    exact: Map<Arc<str>, Entries>,
    patterns: Patterns,
    prefixes: Map<Arc<str>, Entries>,
    /// Of a prefix, in bytes.
    longest_prefix: usize,
}

/// Routes by expressions.
#[derive(Debug, Default)]
struct Patterns {
    /// The longest first, once all are there.
    all: Vec<(Pattern, Entries)>,
    starts: Starts,
    /// Their indices, while they are being added.
    known: Map<Arc<str>, usize>,
}

impl Table {
    /// Adds a route that stands behind those that are here already, with those of its `matches` that
    /// are about requests.
    pub(super) fn add(&mut self, route: &Arc<Compiled>, matches: &[RouteMatch]) {
        self.count += 1;
        if matches.is_empty() {
            return self.add_match(route, &RouteMatch::default());
        }
        for wanted in matches.iter().filter(|wanted| wanted.sni.is_empty()) {
            self.add_match(route, wanted);
        }
    }

    fn add_match(&mut self, route: &Arc<Compiled>, wanted: &RouteMatch) {
        self.compares_paths |= wanted.path.is_some();
        let order = self.count;
        let entry = || Entry::new(wanted, order, route);
        if wanted.hosts.is_empty() {
            return self.any_host.add(wanted.path.as_ref(), entry());
        }
        for host in &wanted.hosts {
            let paths = match host {
                HostMatch::Exact(host) => self.hosts.entry(Arc::clone(host)),
                HostMatch::Suffix(suffix) => {
                    self.longest_suffix = self.longest_suffix.max(suffix.len());
                    self.suffixes.entry(Arc::clone(suffix))
                }
            };
            paths.or_default().add(wanted.path.as_ref(), entry());
        }
    }

    /// Puts everything in order, once all routes are there.
    pub(super) fn finish(&mut self) {
        let hosts = self.hosts.values_mut().chain(self.suffixes.values_mut());
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
            let known = suffixes(asked.host, self.longest_suffix);
            let mut known = known.filter_map(|suffix| self.suffixes.get(suffix));
            known.find_map(|paths| paths.choose(asked))
        };
        exact.or_else(by_suffix).or_else(|| self.any_host.choose(asked))
    }
}

/// What a name ends in, from each of its dots on, the longest first. A dot that it begins with doesn't
/// count, nor what is longer than `longest`.
pub(super) fn suffixes(name: &str, longest: usize) -> impl Iterator<Item = &str> {
    let first = name.len().saturating_sub(longest).max(1);
    let dots = name.bytes().enumerate().skip(first).filter(|(_, byte)| *byte == b'.');
    dots.map(|(at, _)| &name[at..])
}

impl Paths {
    fn add(&mut self, path: Option<&PathMatch>, entry: Entry) {
        let entries = match path {
            Some(PathMatch::Exact(path)) => self.exact.entry(Arc::clone(path)).or_default(),
            Some(PathMatch::Regex(pattern)) => self.patterns.of(pattern),
            Some(PathMatch::Prefix(prefix)) => self.of_prefix(Arc::clone(prefix)),
            None => self.of_prefix("/".into()),
        };
        entries.add(entry);
    }

    fn of_prefix(&mut self, prefix: Arc<str>) -> &mut Entries {
        self.longest_prefix = self.longest_prefix.max(prefix.len());
        self.prefixes.entry(prefix).or_default()
    }

    fn finish(&mut self) {
        self.patterns.finish();
        self.exact.values_mut().chain(self.prefixes.values_mut()).for_each(Entries::finish);
    }

    fn choose(&self, asked: &Asked<'_>) -> Option<Chosen> {
        let exact = self.exact.get(asked.path).and_then(|entries| entries.first(asked));
        if let Some(route) = exact.or_else(|| self.patterns.choose(asked)) {
            return Some(Chosen { route: Arc::clone(route), prefix: None });
        }
        self.by_prefix(asked)
    }

    /// From the whole path to `/`, one segment less each time.
    fn by_prefix(&self, asked: &Asked<'_>) -> Option<Chosen> {
        let mut path = within(asked.path.trim_end_matches('/'), self.longest_prefix);
        loop {
            // `*`, which asks about the server as a whole, has no segments.
            let is_root = path.is_empty() || path == "*";
            let key = if is_root { "/" } else { path };
            if let Some((prefix, entries)) = self.prefixes.get_key_value(key)
                && let Some(route) = entries.first(asked)
            {
                return Some(Chosen { route: Arc::clone(route), prefix: Some(Arc::clone(prefix)) });
            }
            if is_root {
                return None;
            }
            path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
    }
}

/// As many segments of a path as are no longer than this: a path of very many is looked up no more
/// often than one of the longest prefix's.
fn within(path: &str, longest: usize) -> &str {
    match path.as_bytes().get(..=longest) {
        Some(start) => {
            let end = start.iter().rposition(|byte| *byte == b'/');
            &path[..end.unwrap_or(0)]
        }
        None => path,
    }
}

impl Patterns {
    fn of(&mut self, pattern: &Pattern) -> &mut Entries {
        let next = self.all.len();
        let at = *self.known.entry(pattern.as_str().into()).or_insert(next);
        if at == next {
            self.all.push((pattern.clone(), Entries::default()));
        }
        &mut self.all[at].1
    }

    fn finish(&mut self) {
        self.known = Map::default();
        self.all.sort_by_key(|(pattern, _)| Reverse(pattern.as_str().len()));
        for (position, (pattern, entries)) in (0..).zip(&mut self.all) {
            entries.finish();
            self.starts.insert(pattern, position);
        }
    }

    /// Positions of those that a path can fit.
    fn candidates(&self, path: &str) -> Vec<u32> {
        let mut found: Vec<u32> = self.starts.find(path).flatten().copied().collect();
        found.sort_unstable();
        found
    }

    fn choose(&self, asked: &Asked<'_>) -> Option<&Arc<Compiled>> {
        let known = self.candidates(asked.path).into_iter();
        let known = known.filter_map(|position| self.all.get(position as usize));
        let mut fitting = known.filter(|(pattern, _)| pattern.fits(asked.path));
        fitting.find_map(|(_, entries)| entries.first(asked))
    }
}

#[cfg(test)]
impl Table {
    /// Number of any-host routes that a request is compared with.
    pub(super) fn candidates(&self, asked: &Asked<'_>) -> usize {
        let paths = &self.any_host;
        let begins = asked.path.match_indices('/').map(|(at, _)| &asked.path[..at]);
        let prefixes = begins.chain([asked.path]).filter_map(|it| paths.prefixes.get(it));
        let entries = paths.exact.get(asked.path).into_iter().chain(prefixes);
        let plain: usize = entries.map(|entries| entries.candidates(asked)).sum();
        plain + paths.patterns.candidates(asked.path).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_in_what_stands_behind_their_dots() {
        let of = |name, longest| suffixes(name, longest).collect::<Vec<_>>();
        assert_eq!(of("a.b.example", 99), [".b.example", ".example"]);
        assert_eq!(of("a.b.example", 9), [".example"]);
        assert_eq!(of(".example", 99), Vec::<&str>::new());
        assert_eq!(of("", 99), Vec::<&str>::new());
        assert!(suffixes(&"a.".repeat(100_000), 20).count() <= 10);
    }

    #[test]
    fn of_long_paths_only_the_begin_is_looked_up() {
        for (path, longest, start) in [
            ("/a/b", 99, "/a/b"),
            ("/a/b", 4, "/a/b"),
            ("/a/b", 3, "/a"),
            ("/a/b/c", 4, "/a/b"),
            ("/a/b/c", 3, "/a"),
            ("/abc", 1, ""),
            ("/\u{e9}/b", 2, ""),
            ("*", 1, "*"),
            ("", 0, ""),
        ] {
            assert_eq!(within(path, longest), start, "{path} {longest}");
        }
    }
}
