//! Workload selection: from facts about a process to its service.

use std::path::Path;

use isthmus_core::Owner;
use isthmus_model::{ContainerMatch, Selector, ServiceId, Snapshot};
use isthmus_net::process;

use crate::containers::Container;

/// Attributes of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process<'a> {
    /// `None` where it is another host's user, or a container's.
    pub(crate) uid: Option<u32>,
    pub(crate) cgroup: Option<&'a str>,
    /// `None` while nobody has looked for it.
    pub(crate) exe: Option<&'a Path>,
    /// The container that it is in, if it is in one.
    pub(crate) container: Option<&'a Container>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    Owner(Owner),
    /// A service could match, depending on the program.
    NeedsProgram,
}

/// A service with a workload here whose processes can be told.
#[derive(Debug)]
pub(crate) struct LocalService {
    pub(crate) id: ServiceId,
    pub(crate) name: String,
    /// The cheapest first.
    pub(super) selectors: Vec<Wanted>,
    /// Combined specificity.
    pub(super) weight: usize,
}

/// A selector with its names looked up.
#[derive(Debug)]
pub(super) enum Wanted {
    User(Option<u32>),
    Systemd(String),
    Cgroup(String),
    Exe(std::path::PathBuf),
    Container(ContainerMatch),
}

pub(crate) fn local_services(snapshot: &Snapshot) -> Vec<LocalService> {
    let mut services: Vec<_> = snapshot
        .local_services()
        .filter(|(_, service, _)| !service.selectors.is_empty())
        .map(|(id, service, _)| LocalService {
            id,
            name: service.name.to_string(),
            selectors: service.selectors.iter().map(|it| wanted(it, &service.name)).collect(),
            weight: service.selectors.iter().map(weight).sum(),
        })
        .collect();
    // The most specific first; `sort` keeps the order of the numbers among equals.
    services.sort_by_key(|service| std::cmp::Reverse(service.weight));
    services
}

/// Specificity of a selector.
fn weight(selector: &Selector) -> usize {
    match selector {
        Selector::Container(container) => container.parts(),
        Selector::User(_) | Selector::Systemd(_) | Selector::Cgroup(_) | Selector::Exe(_) => 1,
    }
}

fn wanted(selector: &Selector, service: &isthmus_model::Name) -> Wanted {
    match selector {
        Selector::User(user) => {
            let uid = user.parse().ok().or_else(|| process::user_id(user));
            if uid.is_none() {
                tracing::debug!(%service, %user, "no such user here: no process will match");
            }
            Wanted::User(uid)
        }
        Selector::Systemd(unit) if unit.contains('.') => Wanted::Systemd(unit.to_string()),
        Selector::Systemd(unit) => Wanted::Systemd(format!("{unit}.service")),
        Selector::Cgroup(path) => Wanted::Cgroup(cgroup_path(path)),
        Selector::Exe(path) => Wanted::Exe(path.clone()),
        Selector::Container(container) => Wanted::Container(container.clone()),
    }
}

/// Below the root of the hierarchy, wherever that is mounted.
fn cgroup_path(path: &Path) -> String {
    let inside = path.strip_prefix("/sys/fs/cgroup").unwrap_or(path);
    format!("/{}", inside.to_string_lossy().trim_matches('/'))
}

/// The service that the process is of, and another that it could be of as well.
pub(super) fn best(
    services: &[LocalService],
    process: &Process<'_>,
) -> (Match, Option<(ServiceId, ServiceId)>) {
    let mut found: Option<&LocalService> = None;
    for service in services {
        let tied = found.is_none_or(|it| it.weight == service.weight);
        if !tied {
            break;
        }
        let results = || service.selectors.iter().map(|selector| selector.matches(process));
        if results().any(|result| result == Some(false)) {
            continue;
        }
        if results().any(|result| result.is_none()) {
            return (Match::NeedsProgram, None);
        }
        match found {
            None => found = Some(service),
            Some(first) => {
                return (Match::Owner(Owner::Service(first.id)), Some((first.id, service.id)));
            }
        }
    }
    (Match::Owner(found.map_or(Owner::Host, |service| Owner::Service(service.id))), None)
}

/// Of each selector of a service, whether it fits.
pub(crate) type Fits = Vec<(Selector, Option<bool>)>;

/// Service of a process, with the reason.
#[derive(Debug)]
pub(crate) struct Judgement {
    /// None: it speaks as the host, or its program has to be known first.
    pub(crate) service: Option<ServiceId>,
    /// The program decides, and it isn't known.
    pub(crate) needs_program: bool,
    /// Another one that it could be of as well.
    pub(crate) tie: Option<ServiceId>,
    /// Of each service here, whether its selectors fit, in the snapshot's order; `None`: that depends on
    /// the program.
    pub(crate) fits: Vec<(ServiceId, Fits)>,
}

/// Judges a process as the data plane would judge its sockets.
pub(crate) fn judge(snapshot: &Snapshot, process: &Process<'_>) -> Judgement {
    let (found, tie) = best(&local_services(snapshot), process);
    let fits = snapshot.local_services().map(|(id, service, _)| {
        let one = |selector: &Selector| {
            (selector.clone(), wanted(selector, &service.name).matches(process))
        };
        (id, service.selectors.iter().map(one).collect())
    });
    Judgement {
        service: match found {
            Match::Owner(Owner::Service(id)) => Some(id),
            Match::Owner(Owner::Host | Owner::Unknown) | Match::NeedsProgram => None,
        },
        needs_program: found == Match::NeedsProgram,
        tie: tie.map(|(_, other)| other),
        fits: fits.collect(),
    }
}

impl LocalService {
    /// Whether its processes are known by their container.
    pub(crate) fn is_container(&self) -> bool {
        self.selectors.iter().any(|it| matches!(it, Wanted::Container(_)))
    }

    /// Whether a process is one of its own, whichever else it may be of. `None`: the program decides,
    /// and nobody has looked for it.
    pub(crate) fn has(&self, process: &Process<'_>) -> Option<bool> {
        let results = || self.selectors.iter().map(|selector| selector.matches(process));
        if results().any(|result| result == Some(false)) {
            return Some(false);
        }
        results().all(|result| result.is_some()).then_some(true)
    }
}

impl Wanted {
    /// `None`: the program decides, and nobody has looked for it.
    pub(super) fn matches(&self, process: &Process<'_>) -> Option<bool> {
        match self {
            Self::User(uid) => Some(uid.is_some() && *uid == process.uid),
            Self::Systemd(unit) => {
                Some(process.cgroup.is_some_and(|cgroup| is_in_unit(cgroup, unit)))
            }
            Self::Cgroup(path) => {
                Some(process.cgroup.is_some_and(|cgroup| Path::new(cgroup).starts_with(path)))
            }
            Self::Exe(path) => process.exe.map(|exe| exe == path),
            Self::Container(wanted) => Some(
                process.container.is_some_and(|it| wanted.fits(&it.name, &it.image, &it.labels)),
            ),
        }
    }
}

/// A cgroup's path begins with slices, then comes the unit. What follows belongs to whoever the
/// unit delegates to: a user may well name a cgroup below `user@1000.service` like a system's unit.
fn is_in_unit(cgroup: &str, unit: &str) -> bool {
    for component in cgroup.split('/').filter(|component| !component.is_empty()) {
        if component == unit {
            return true;
        }
        if Path::new(component).extension().is_none_or(|kind| kind != "slice") {
            return false;
        }
    }
    false
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const WEB: &str = "/system.slice/web.service";

    pub(crate) fn service(id: u32, selectors: Vec<Wanted>) -> LocalService {
        let weight = selectors.len();
        LocalService { id: ServiceId(id), name: format!("s{id}"), selectors, weight }
    }

    pub(crate) fn user(uid: u32) -> Wanted {
        Wanted::User(Some(uid))
    }

    fn unit(name: &str) -> Wanted {
        Wanted::Systemd(name.to_owned())
    }

    pub(crate) fn process(uid: u32, cgroup: &str) -> Process<'_> {
        Process { uid: Some(uid), cgroup: Some(cgroup), exe: None, container: None }
    }

    pub(crate) fn of(id: u32) -> Match {
        Match::Owner(Owner::Service(ServiceId(id)))
    }

    #[test]
    fn a_process_that_matches_nothing_speaks_as_its_host() {
        let services = [service(1, vec![user(33)]), service(2, vec![unit("web.service")])];
        let other = process(1000, "/user.slice/user-1000.slice/session-1.scope");
        assert_eq!(best(&services, &other), (Match::Owner(Owner::Host), None));
        assert_eq!(best(&[], &other), (Match::Owner(Owner::Host), None));
    }

    #[test]
    fn all_selectors_of_a_service_must_match() {
        let services = [service(1, vec![user(33), unit("web.service")])];
        assert_eq!(best(&services, &process(33, WEB)).0, of(1));
        assert_eq!(best(&services, &process(34, WEB)).0, Match::Owner(Owner::Host));
        let elsewhere = process(33, "/system.slice/other.service");
        assert_eq!(best(&services, &elsewhere).0, Match::Owner(Owner::Host));
    }

    #[test]
    fn the_most_specific_service_wins_and_ties_go_to_the_lowest_number() {
        let specific = || service(9, vec![user(33), unit("web.service")]);
        let services = [specific(), service(1, vec![user(33)])];
        assert_eq!(best(&services, &process(33, WEB)), (of(9), None));
        assert_eq!(best(&services, &process(33, "/")), (of(1), None));

        let tied = [service(3, vec![user(33)]), service(4, vec![unit("web.service")])];
        let both = (ServiceId(3), ServiceId(4));
        assert_eq!(best(&tied, &process(33, WEB)), (of(3), Some(both)));
    }

    #[test]
    fn the_program_is_looked_for_only_where_it_could_decide() {
        let exe = || Wanted::Exe("/usr/sbin/nginx".into());
        let services = [service(1, vec![user(33), exe()])];
        assert_eq!(best(&services, &process(34, WEB)).0, Match::Owner(Owner::Host));
        assert_eq!(best(&services, &process(33, WEB)).0, Match::NeedsProgram);
        let nginx = Process { exe: Some(Path::new("/usr/sbin/nginx")), ..process(33, WEB) };
        assert_eq!(best(&services, &nginx).0, of(1));
        let curl = Process { exe: Some(Path::new("/usr/bin/curl")), ..process(33, WEB) };
        assert_eq!(best(&services, &curl).0, Match::Owner(Owner::Host));
    }

    #[test]
    fn a_unit_is_the_first_component_below_the_slices() {
        assert!(is_in_unit(WEB, "web.service"));
        assert!(is_in_unit("/system.slice/web.service/worker", "web.service"));
        assert!(is_in_unit("/a.slice/a-b.slice/web@1.service", "web@1.service"));
        assert!(is_in_unit("/batch.slice/job.scope", "batch.slice"));
        assert!(!is_in_unit("/system.slice/web.service.d", "web.service"));
        assert!(!is_in_unit("/", "web.service"));
    }

    #[test]
    fn a_user_cannot_name_a_cgroup_like_a_unit_of_the_system() {
        let own = "/user.slice/user-1000.slice/user@1000.service/app.slice/web.service";
        assert!(!is_in_unit(own, "web.service"));
        assert!(is_in_unit(own, "user@1000.service"));
    }

    #[test]
    fn a_cgroup_selector_covers_what_is_below_it() {
        let wanted = Wanted::Cgroup(cgroup_path(Path::new("/sys/fs/cgroup/jobs/")));
        assert_eq!(wanted.matches(&process(0, "/jobs")), Some(true));
        assert_eq!(wanted.matches(&process(0, "/jobs/7")), Some(true));
        assert_eq!(wanted.matches(&process(0, "/jobs-of-others")), Some(false));
        let unknown = Process { cgroup: None, ..process(0, "/") };
        assert_eq!(wanted.matches(&unknown), Some(false));
    }

    #[test]
    fn an_unknown_user_matches_nobody() {
        assert_eq!(Wanted::User(None).matches(&process(0, "/")), Some(false));
    }
}
