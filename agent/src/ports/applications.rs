//! Application addresses: where local services listen, for `status`, and problems with that.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use isthmus_core::Deaf;
use isthmus_model::{Action, Code, Layer4, Problem, Service, Snapshot, Subject};

use super::{Key, Port, guarded};

/// The codes of problems.
pub(super) const NOWHERE: Code = Code::NotListening;
pub(super) const UNREACHED: Code = Code::NotReached;

/// An application that is started again doesn't listen for a moment.
const PATIENCE: Duration = Duration::from_secs(5);

/// Listening address of a service's application here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Listens {
    /// On the workload's IPv4 address, or where `listen` says if that is one.
    pub(super) v4: bool,
    /// Likewise, IPv6.
    pub(super) v6: bool,
    /// On loopback, where it listens nowhere else.
    pub(super) loopback: Option<SocketAddr>,
    /// In a container with a network of its own, into which nobody here sees.
    pub(super) contained: bool,
}

impl Listens {
    const fn is_reached(self) -> bool {
        self.v4 || self.v6
    }
}

/// State kept between two looks.
#[derive(Debug, Default)]
pub(super) struct Applications {
    /// As it was last seen to listen.
    known: BTreeMap<Key, Listens>,
    /// Since when it listens nowhere.
    nowhere: BTreeMap<Key, Instant>,
}

impl Applications {
    /// Takes in what a look has found.
    pub(super) fn note(&mut self, found: &BTreeMap<Key, Listens>, now: Instant) {
        self.known.retain(|id, _| found.contains_key(id));
        self.nowhere.retain(|id, _| found.get(id).is_some_and(|it| *it == Listens::default()));
        for (id, listens) in found {
            if *listens == Listens::default() {
                self.nowhere.entry(*id).or_insert(now);
            } else {
                self.known.insert(*id, *listens);
            }
        }
    }

    /// Those that listen on one family, as long as they don't turn up on the other.
    pub(super) fn deaf(&self, snapshot: &Snapshot) -> Deaf {
        let by_connection = guarded(snapshot).filter(|(_, it)| {
            matches!(it.layer4(), Layer4::Tcp(_)) && it.application.listen.is_none()
        });
        let one_family = by_connection.filter_map(|(key, _)| {
            let known = self.known.get(&key).filter(|it| it.v4 != it.v6)?;
            Some((key.0, key.1, !known.v4))
        });
        one_family.collect()
    }

    /// In a few words, for each service here.
    pub(super) fn words(&self, snapshot: &Snapshot) -> BTreeMap<Key, String> {
        let words = |(id, service): (Key, Cow<'_, Service>)| {
            let known = self.known.get(&id).filter(|_| !self.nowhere.contains_key(&id));
            (id, words(&service, known.copied().unwrap_or_default()))
        };
        guarded(snapshot).map(words).collect()
    }

    /// Services that nobody listens for, though some rule lets somebody call them.
    pub(super) fn nowhere(&self, snapshot: &Snapshot, now: Instant) -> Vec<Problem> {
        let since =
            |id| self.nowhere.get(&id).is_some_and(|at| now.duration_since(*at) >= PATIENCE);
        let silent = guarded(snapshot).filter(|(id, it)| since(*id) && is_called(snapshot, it));
        silent.map(|(_, service)| nowhere(&service)).collect()
    }

    /// Services whose application listens where some, or all, of what is meant for it doesn't arrive.
    pub(super) fn unreached(&self, snapshot: &Snapshot) -> Vec<Problem> {
        guarded(snapshot)
            .filter(|(id, service)| !self.nowhere.contains_key(id) && is_called(snapshot, service))
            .filter_map(|(id, service)| unreached(&service, *self.known.get(&id)?))
            .collect()
    }
}

fn words(service: &Service, found: Listens) -> String {
    if found.contained {
        return "in a container".to_owned();
    }
    match (found.v4, found.v6, service.application.listen, found.loopback) {
        (false, false, _, Some(address)) => format!("on {address} only"),
        (false, false, _, None) => "nowhere".to_owned(),
        (_, _, Some(address), _) => format!("on {address}"),
        (true, true, None, _) => "on IPv4 and IPv6".to_owned(),
        (true, false, None, _) => "on IPv4 only".to_owned(),
        (false, true, None, _) => "on IPv6 only".to_owned(),
    }
}

/// A service has a problem for each of its ports.
fn about(service: &Service) -> String {
    format!("{} {}", service.name, Port::of(service))
}

fn nowhere(service: &Service) -> Problem {
    let (name, port) = (&service.name, Port::of(service));
    let (what, remedy) = match service.application.listen {
        Some(address) => (
            format!("nothing listens on {address}, where service {name} says"),
            format!("start it, or correct `listen` of [service.{name}]"),
        ),
        None => (
            format!("nothing listens on {port}, the port of service {name}"),
            format!(
                "start it, or correct `port` of [service.{name}]; leave it out if the service only calls others"
            ),
        ),
    };
    Problem::new(NOWHERE, format!("{what}: whoever calls it here is refused"), remedy)
        .about(about(service))
}

fn unreached(service: &Service, found: Listens) -> Option<Problem> {
    let (name, port) = (&service.name, Port::of(service));
    let problem = |text, remedy| Some(Problem::new(UNREACHED, text, remedy).about(about(service)));
    if found.contained && service.shows_callers() {
        let text = format!(
            "service {name} is in a container with a network of its own, whose answers to \
             callers' addresses (`source = \"caller\"`) don't come back"
        );
        let remedy = format!(
            "leave `source` out of [service.{name}], or run the container in the host's network \
             (`--network host`)"
        );
        return problem(text, remedy);
    }
    if let Some(address) = found.loopback.filter(|_| !found.is_reached()) {
        let text = format!(
            "the application of service {name} listens on {address} only, where its callers don't reach it"
        );
        let remedy = if port.udp {
            "have it listen on all addresses, or on its workload's".to_owned()
        } else {
            format!(
                "write `listen = \"{address}\"` in [service.{name}], or have it listen on all addresses"
            )
        };
        return problem(text, remedy);
    }
    if port.udp && found.v4 != found.v6 {
        let (heard, lost, any) =
            if found.v4 { ("IPv4", "IPv6", "[::]") } else { ("IPv6", "IPv4", "0.0.0.0") };
        let text = format!(
            "the application of service {name} listens on {heard} only: what comes by {lost} is lost"
        );
        return problem(text, format!("have it listen on {any}, too"));
    }
    None
}

/// Whether some rule may let somebody call it.
fn is_called(snapshot: &Snapshot, service: &Service) -> bool {
    let fits = |subject: &Subject| match subject {
        Subject::Any | Subject::AnyService => true,
        Subject::Service(name) => *name == service.name,
        Subject::Namespace(name) => *name == service.namespace,
        Subject::Host(_) | Subject::AnyHost | Subject::Device(_) | Subject::AnyDevice => false,
    };
    let rules = &snapshot.rules;
    let mut allows = rules.rules.iter().filter(|it| it.action == Action::Allow);
    rules.default == Action::Allow || allows.any(|rule| rule.to.iter().any(fits))
}

#[cfg(test)]
mod tests {
    use isthmus_model::{Exposure, Protocol, ServiceId};

    use super::super::tests::snapshot;
    use super::*;

    const WEB: Key = (ServiceId(20), 8080);
    const V4: Listens = Listens { v4: true, v6: false, loopback: None, contained: false };
    const BOTH: Listens = Listens { v4: true, v6: true, loopback: None, contained: false };
    const NOWHERE: Listens = Listens { v4: false, v6: false, loopback: None, contained: false };

    fn open(protocol: Protocol) -> Snapshot {
        let mut snapshot = snapshot(&[(8080, protocol, Exposure::Mesh)]);
        snapshot.rules.default = Action::Allow;
        snapshot
    }

    fn seen(looks: &[Listens]) -> Applications {
        let mut applications = Applications::default();
        for listens in looks {
            applications.note(&[(WEB, *listens)].into(), Instant::now());
        }
        applications
    }

    #[test]
    fn one_family_is_remembered_while_an_application_starts_again() {
        let snapshot = open(Protocol::Tcp);
        let is_deaf =
            |looks: &[Listens]| seen(looks).deaf(&snapshot).contains(&(WEB.0, WEB.1, false));
        assert!(is_deaf(&[V4]) && is_deaf(&[V4, NOWHERE]));
        assert!(!is_deaf(&[NOWHERE]) && !is_deaf(&[V4, BOTH]));
        assert!(seen(&[V4]).deaf(&open(Protocol::Udp)).is_empty());
        let six = Listens { v4: false, v6: true, loopback: None, contained: false };
        assert!(seen(&[six]).deaf(&snapshot).contains(&(WEB.0, WEB.1, true)));
    }

    #[test]
    fn nobody_is_told_after_a_while_and_only_where_somebody_may_call() {
        let mut snapshot = open(Protocol::Http);
        let applications = seen(&[V4, NOWHERE]);
        let later = Instant::now() + PATIENCE;
        assert!(applications.nowhere(&snapshot, Instant::now()).is_empty());
        let told = applications.nowhere(&snapshot, later);
        assert!(told[0].text.contains("nothing listens on tcp/8080, the port of service s20"));
        assert_eq!(applications.words(&snapshot)[&WEB], "nowhere");
        snapshot.rules.default = Action::Deny;
        assert!(applications.nowhere(&snapshot, later).is_empty());
    }

    #[test]
    fn loopback_alone_is_told_with_the_line_that_mends_it() {
        let at: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        let alone = seen(&[Listens { loopback: Some(at), ..NOWHERE }]);
        let snapshot = open(Protocol::Tcp);
        let told = alone.unreached(&snapshot);
        assert!(told[0].remedy.contains("write `listen = \"127.0.0.1:8080\"` in [service.s20]"));
        assert_eq!(alone.words(&snapshot)[&WEB], "on 127.0.0.1:8080 only");
        assert!(seen(&[V4]).unreached(&snapshot).is_empty(), "the proxy finds it");
        let datagrams = open(Protocol::Udp);
        let told = seen(&[V4]).unreached(&datagrams);
        assert!(told[0].text.contains("what comes by IPv6 is lost"), "{told:?}");
    }
}
