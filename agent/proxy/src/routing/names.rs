//! Routes of TLS that isn't ended here: by the server's name that the client asks for. Gateway API's
//! TLSRoute: an exact name, then the longest `*.suffix`, then what takes every name and none.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use isthmus_model::ServiceId;
use isthmus_model::route::{HostMatch, RouteMatch};

use super::compile::{Act, Compiled};

/// The routes of one service, by server name. Of equals the first counts.
#[derive(Debug, Default)]
pub(crate) struct Names {
    exact: HashMap<Arc<str>, Arc<Compiled>>,
    /// The longest first.
    suffixes: Vec<(Arc<str>, Arc<Compiled>)>,
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
                    self.suffixes.push((Arc::clone(suffix), Arc::clone(route)));
                }
            }
        }
    }

    /// Puts everything in order, once all routes are there.
    pub(super) fn finish(&mut self) {
        self.suffixes.sort_by_key(|(suffix, _)| Reverse(suffix.len()));
    }

    /// Whether there is nothing to choose.
    pub(crate) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.suffixes.is_empty() && self.any.is_none()
    }

    /// The route of a server's name, in lower case.
    pub(crate) fn choose(&self, name: Option<&str>) -> Option<&Arc<Compiled>> {
        let by_suffix = |name: &str| {
            let fits = |(suffix, _): &&(Arc<str>, _)| {
                name.len() > suffix.len() && name.ends_with(&**suffix)
            };
            self.suffixes.iter().find(fits).map(|(_, route)| route)
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
        names.finish();
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
