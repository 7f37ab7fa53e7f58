//! Of many rules between the same two, those that a path can fit.
//!
//! Templates are kept as a tree of segments, expressions by the text that they begin with. What is
//! found may still not fit, for its method or whatever else it asks for; what isn't found can't.

use isthmus_model::route::Pattern as Expression;

use crate::index::Map;
use crate::path::{Pattern, Segment, Tail, segments};
use crate::policy::RequestPattern;

/// Rules by the paths that they ask for; each list in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct ByPath {
    /// Those that may fit whatever the path is.
    pub(crate) any: Vec<u32>,
    nodes: Vec<Node>,
    expressions: Starts,
}

/// What may stand behind some segments.
#[derive(Clone, Debug, Default)]
struct Node {
    literal: Map<Box<str>, u32>,
    any: Option<u32>,
    /// Rules whose template ends here, goes on by one segment or more, by any number.
    ends: [Vec<u32>; 3],
}

/// Expressions, by the text that all that fits them begins with.
#[derive(Clone, Debug, Default)]
pub struct Starts {
    found: Map<Box<str>, Vec<u32>>,
    /// Of the texts, each once.
    lengths: Vec<usize>,
}

impl ByPath {
    /// Adds a rule; its position must be greater than those before.
    pub(crate) fn insert(&mut self, position: u32, entries: &[RequestPattern]) {
        if entries.is_empty() || entries.iter().any(|entry| !is_bound(entry)) {
            return self.any.push(position);
        }
        for entry in entries {
            match (&entry.path, expression(entry)) {
                (Some(path), _) if path.never => {}
                (Some(path), _) => self.insert_template(path, position),
                (None, Some(expression)) => self.expressions.insert(expression, position),
                (None, None) => {}
            }
        }
    }

    fn insert_template(&mut self, path: &Pattern, position: u32) {
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let mut at = 0;
        for segment in &path.segments {
            let next = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
            let node = &mut self.nodes[at];
            let found = match segment {
                Segment::Literal(text) => *node.literal.entry(text.clone()).or_insert(next),
                Segment::Any => *node.any.get_or_insert(next),
            };
            if found == next {
                self.nodes.push(Node::default());
            }
            at = found as usize;
        }
        push(&mut self.nodes[at].ends[path.tail as usize], position);
    }

    /// The lists of those that a canonical path can fit.
    pub(crate) fn find<'a>(&'a self, path: &str, found: &mut impl FnMut(&'a [u32])) {
        found(&self.any);
        self.expressions.find(path).for_each(&mut *found);
        if let Some(root) = self.nodes.first() {
            self.walk(root, &mut segments(path), found);
        }
    }

    fn walk<'a, 'p>(
        &'a self,
        node: &'a Node,
        rest: &mut (impl Iterator<Item = &'p str> + Clone),
        found: &mut impl FnMut(&'a [u32]),
    ) {
        let next = rest.next();
        found(&node.ends[Tail::Any as usize]);
        let end = if next.is_some() { Tail::Some } else { Tail::Nothing };
        found(&node.ends[end as usize]);
        let Some(segment) = next else { return };
        let children = [node.literal.get(segment).copied(), node.any];
        for child in children.into_iter().flatten() {
            self.walk(&self.nodes[child as usize], &mut rest.clone(), found);
        }
    }
}

/// Whether the path decides something, and the index can tell what.
fn is_bound(entry: &RequestPattern) -> bool {
    entry.path.is_some() || expression(entry).is_some_and(|it| !it.literal_start().is_empty())
}

fn expression(entry: &RequestPattern) -> Option<&Expression> {
    entry.more.as_ref()?.path_regex.as_ref()
}

impl Starts {
    /// Texts that are longer are cut: so many look-ups are the most.
    const LONGEST: usize = 64;

    /// Adds an expression; its position must not be less than those before.
    pub fn insert(&mut self, expression: &Expression, position: u32) {
        let mut start = expression.literal_start();
        start.truncate(start.floor_char_boundary(Self::LONGEST));
        if let Err(at) = self.lengths.binary_search(&start.len()) {
            self.lengths.insert(at, start.len());
        }
        push(self.found.entry(start.into()).or_default(), position);
    }

    /// Lists of those that a text can fit.
    pub fn find(&self, text: &str) -> impl Iterator<Item = &[u32]> {
        let starts = self.lengths.iter().map_while(move |length| text.get(..*length));
        starts.filter_map(|start| self.found.get(start)).map(Vec::as_slice)
    }
}

fn push(list: &mut Vec<u32>, position: u32) {
    if list.last() != Some(&position) {
        list.push(position);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_fits_begins_as_its_expression_does(
            expression in "[ab/.?*+()|\\[\\]{}2,\\\\^$-]{0,10}",
            text in "[ab/.2]{0,6}",
        ) {
            if let Ok(expression) = expression.parse::<Expression>() {
                let mut starts = Starts::default();
                starts.insert(&expression, 7);
                let found = starts.find(&text).any(|list| list == [7]);
                prop_assert!(found || !expression.fits(&text), "{:?}", expression);
            }
        }
    }

    #[test]
    fn what_an_expression_begins_with_is_found() {
        for (expression, start) in [
            ("/accounts/[0-9]+", "/accounts/"),
            ("/a", "/a"),
            ("/a?", "/"),
            ("/ab*", "/a"),
            ("/a{2}", "/"),
            ("/a+", "/"),
            ("/v1\\.2/.*", "/v1.2/"),
            ("/a\\d", "/a"),
            ("/a|/b", ""),
            ("/a/(b|c)", "/a/"),
            ("(/a)", ""),
            ("^/a$", ""),
            ("/é+", "/"),
            ("", ""),
        ] {
            assert_eq!(expression.parse::<Expression>().unwrap().literal_start(), start);
        }
    }
}
