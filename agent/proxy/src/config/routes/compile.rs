//! A route as requests need it: names looked up, header fields made.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use isthmus_http::headers;
use isthmus_model::route::{
    HeaderChanges, Hedge, Redirect, Retry, Rewrite, Route, RouteAction, Share,
};
use isthmus_model::{Name, ServiceId};

/// A route, compiled.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) name: Arc<str>,
    pub(crate) act: Act,
    pub(crate) request_headers: Fields,
    pub(crate) response_headers: Fields,
    pub(crate) timeout: Option<Duration>,
    pub(crate) try_timeout: Option<Duration>,
    pub(crate) hedge: Option<Hedge>,
    pub(crate) retry: Option<Retry>,
    pub(crate) mirrors: Vec<(ServiceId, Share)>,
    pub(crate) delay: Option<(Duration, Share)>,
    pub(crate) abort: Option<(u16, Share)>,
}

/// Compiled action of a route.
#[derive(Debug)]
pub(crate) enum Act {
    Forward { to: Weighted, rewrite: Rewrite },
    Redirect(Redirect),
    Respond { status: u16, body: Arc<str> },
}

/// Backends and their shares.
#[derive(Debug)]
pub(crate) struct Weighted {
    backends: Vec<(ServiceId, u32)>,
    sum: u64,
}

/// Changes to header fields. Most routes make none.
#[derive(Debug, Default)]
pub(crate) struct Fields(Option<Box<Changes>>);

#[derive(Debug)]
struct Changes {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
}

impl Compiled {
    pub(crate) fn new(route: &Route, ids: &HashMap<&Name, ServiceId>) -> Self {
        let act = match &route.action {
            RouteAction::Forward { to, rewrite } => Act::Forward {
                to: Weighted::new(
                    to.iter().filter_map(|it| Some((*ids.get(&it.service)?, it.weight))).collect(),
                ),
                rewrite: rewrite.clone(),
            },
            RouteAction::Redirect(redirect) => Act::Redirect(redirect.clone()),
            RouteAction::Respond { status, body } => {
                Act::Respond { status: *status, body: Arc::clone(body) }
            }
        };
        let mirrors = route.mirrors.iter();
        Self {
            name: Arc::clone(&route.name),
            act,
            request_headers: Fields::new(&route.request_headers),
            response_headers: Fields::new(&route.response_headers),
            timeout: route.timeout,
            try_timeout: route.try_timeout,
            hedge: route.hedge,
            retry: route.retry.clone(),
            mirrors: mirrors.filter_map(|it| Some((*ids.get(&it.service)?, it.share))).collect(),
            delay: route.delay,
            abort: route.abort,
        }
    }
}

impl Weighted {
    pub(crate) fn new(backends: Vec<(ServiceId, u32)>) -> Self {
        let sum = backends.iter().map(|(_, weight)| u64::from(*weight)).sum();
        Self { backends, sum }
    }

    /// The backend that a random number falls to; none if nobody has a weight.
    pub(crate) fn pick(&self, random: u64) -> Option<ServiceId> {
        let mut at = random.checked_rem(self.sum)?;
        let mut backends = self.backends.iter();
        let found = backends.find(|(_, weight)| match at.checked_sub(u64::from(*weight)) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        });
        found.map(|(service, _)| *service)
    }
}

impl Fields {
    fn new(changes: &HeaderChanges) -> Self {
        if changes.is_empty() {
            return Self(None);
        }
        // The model holds only what can be a field and is a route's to say; the wire may hold more.
        let is_ours = |name: &HeaderName| headers::is_claim(name.as_str());
        let name = |name: &str| HeaderName::try_from(name).ok().filter(|name| !is_ours(name));
        let pair = |(field, value): &(Arc<str>, Arc<str>)| {
            Some((name(field)?, HeaderValue::from_str(value).ok()?))
        };
        Self(Some(Box::new(Changes {
            remove: changes.remove.iter().filter_map(|field| name(field)).collect(),
            set: changes.set.iter().filter_map(pair).collect(),
            add: changes.add.iter().filter_map(pair).collect(),
        })))
    }

    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        let Some(changes) = &self.0 else { return };
        for name in &changes.remove {
            headers.remove(name);
        }
        for (name, value) in &changes.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &changes.add {
            headers.append(name, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_get_their_shares() {
        let split = Weighted::new(vec![(ServiceId(1), 95), (ServiceId(2), 0), (ServiceId(3), 5)]);
        let count = |service| (0..1000).filter(|it| split.pick(*it) == Some(service)).count();
        assert_eq!([1, 2, 3].map(|id| count(ServiceId(id))), [950, 0, 50]);
        assert_eq!(Weighted::new(Vec::new()).pick(7), None);
    }

    #[test]
    fn what_only_the_proxy_says_is_no_routes_to_change() {
        let text = |text: &str| Arc::from(text);
        let names = ["x-isthmus-identity", "x_isthmus_identity", "x-isthmus_panic"];
        let names = names.into_iter().chain(["X-Forwarded-Client-Cert", "x_forwarded_client_cert"]);
        for name in names {
            let forged = vec![(text(name), text("admin"))];
            let changes = HeaderChanges { set: forged.clone(), add: forged, remove: Vec::new() };
            let mut headers = HeaderMap::new();
            Fields::new(&changes).apply(&mut headers);
            assert!(headers.is_empty(), "{headers:?}");
        }
    }

    #[test]
    fn fields_are_removed_then_set_then_added() {
        let text = |text: &str| Arc::from(text);
        let changes = HeaderChanges {
            remove: vec![text("gone"), text("again")],
            set: vec![(text("set"), text("new"))],
            add: vec![(text("set"), text("more")), (text("again"), text("x"))],
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [("gone", "1"), ("again", "1"), ("set", "old"), ("kept", "1")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        Fields::new(&changes).apply(&mut headers);
        let all = |name: &str| headers.get_all(name).iter().cloned().collect::<Vec<_>>();
        assert_eq!(all("gone").len(), 0);
        assert_eq!(all("again"), ["x"]);
        assert_eq!(all("set"), ["new", "more"]);
        assert_eq!(all("kept"), ["1"]);
    }
}
