//! Routes of TLS that isn't ended here: by the server's name that the client asks for. Gateway API's
//! TLSRoute: an exact name, then the longest `*.suffix`, then what takes every name and none.

use std::sync::Arc;

use isthmus_model::ServiceId;
use isthmus_model::route::{HostMatch, RouteMatch};

use super::compile::{Act, Compiled};
use super::table::suffixes;
use crate::config::view::Map;

/// The routes of one service, by server name. Of equals the first counts.
#[derive(Debug, Default)]
pub(crate) struct Names {
    exact: Map<Arc<str>, Arc<Compiled>>,
    suffixes: Map<Arc<str>, Arc<Compiled>>,
    /// Of a suffix, in bytes.
    longest_suffix: usize,
    any: Option<Arc<Compiled>>,
}

impl Names {
    /// Adds a route that stands behind those that are here already, if it is about TLS.
    pub(super) fn add(&mut self, route: &Arc<Compiled>, matches: &[RouteMatch]) {
        if !matches!(route.act, Act::Forward { .. }) {
            return;
        }
        if matches.is_empty() {
            self.any.get_or_insert_with(|| Arc::clone(route));
        }
        for name in matches.iter().flat_map(|entry| &entry.sni) {
            match name {
                HostMatch::Exact(name) => {
                    self.exact.entry(Arc::clone(name)).or_insert_with(|| Arc::clone(route));
                }
                HostMatch::Suffix(suffix) => {
                    self.longest_suffix = self.longest_suffix.max(suffix.len());
                    let known = self.suffixes.entry(Arc::clone(suffix));
                    known.or_insert_with(|| Arc::clone(route));
                }
            }
        }
    }

    /// Whether there is nothing to choose.
    pub(crate) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.suffixes.is_empty() && self.any.is_none()
    }

    /// The route of a server's name, in lower case.
    pub(crate) fn choose(&self, name: Option<&str>) -> Option<&Arc<Compiled>> {
        let by_suffix = |name: &str| {
            suffixes(name, self.longest_suffix).find_map(|suffix| self.suffixes.get(suffix))
        };
        let named = name.and_then(|name| self.exact.get(name).or_else(|| by_suffix(name)));
        named.or(self.any.as_ref())
    }
}

impl Compiled {
    /// The backend that a random number falls to.
    pub(crate) fn pick(&self, random: u64) -> Option<ServiceId> {
        match &self.act {
            Act::Forward { to, .. } => to.pick(random),
            Act::Redirect(_) | Act::Respond { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use isthmus_model::route::Route;
    use isthmus_model::topology::{SourceFile, parse};

    use super::*;

    fn names(routes: &str) -> Names {
        let text = format!(
            "[host.a]\n[service.shop]\nport = 1\nprotocol = \"tls\"\nhosts = [\"a\"]\n{routes}"
        );
        let topology = parse(&[SourceFile { name: "t.toml".into(), text }]).unwrap();
        let mut names = Names::default();
        for route in &topology.routes {
            let route: &Route = route;
            names.add(&Arc::new(Compiled::new(route, &HashMap::new())), &route.matches);
        }
        names
    }

    #[test]
    fn the_most_specific_name_decides() {
        let names = names(
            r#"
[[route.shop]]
name = "any"
to = [{ service = "shop" }]
[[route.shop]]
name = "wide"
match = { sni = "*.example" }
[[route.shop]]
name = "narrow"
match = [{ sni = ["*.eu.example", "eu.example"] }, { sni = "us.example" }]
[[route.shop]]
name = "late"
match = { sni = "us.example" }
"#,
        );
        for (name, route) in [
            (Some("us.example"), "narrow"),
            (Some("eu.example"), "narrow"),
            (Some("a.b.eu.example"), "narrow"),
            (Some("a.example"), "wide"),
            (Some("example"), "any"),
            (Some("notexample"), "any"),
            (None, "any"),
        ] {
            assert_eq!(&*names.choose(name).unwrap().name, route, "{name:?}");
        }
    }

    #[test]
    fn without_a_name_only_what_takes_everything_fits() {
        let names = names("[[route.shop]]\nmatch = { sni = \"a.example\" }\n");
        assert!(names.choose(None).is_none() && names.choose(Some("b.example")).is_none());
        assert!(names.choose(Some("a.example")).is_some());
    }
}
