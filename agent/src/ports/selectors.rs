//! Selectors by which no process of this host can be known.

use std::path::Path;

use isthmus_model::{Code, Problem, Selector, Snapshot};
use isthmus_net::{privileges, process};

use super::residents;

/// The code of these problems.
pub(super) const CODE: Code = Code::Selector;

/// The packages' drop-in, and what does without.
const LET_SEE: &str = "give the agent CAP_SYS_PTRACE: install -Dm644 \
    /usr/share/isthmus-agent/programs.conf -t /etc/systemd/system/isthmus-agent.service.d && \
    systemctl daemon-reload && systemctl restart isthmus-agent; or use `systemd`, `user` or `cgroup` \
    instead of `exe` in its `workload`";

/// Where units of the system are, but for those that come and go.
const UNITS: [&str; 7] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/run/systemd/generator",
    "/run/systemd/transient",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// What selects nothing, as far as that can be told whether or not the service runs.
fn unknown_at_once(snapshot: &Snapshot) -> Vec<Problem> {
    let services = residents(snapshot);
    services
        .filter_map(|(_, service)| {
            let missing = service.selectors.iter().find_map(missing)?;
            let name = service.name.as_str();
            let text = format!("no process here can be service {name}'s: {missing}");
            let remedy = format!("correct `workload` of [service.{name}]");
            Some(Problem::new(CODE, text, remedy).about(name))
        })
        .collect()
}

/// Likewise, and those by which anybody's process may be known.
pub(super) fn problems(snapshot: &Snapshot) -> Vec<Problem> {
    let mut problems = unknown_at_once(snapshot);
    if !privileges::sees_processes() {
        problems.extend(unseen(snapshot));
    }
    for (_, service) in residents(snapshot) {
        let name = service.name.as_str();
        let is_known = problems.iter().any(|it| it.subject == name);
        let by_program = service.selectors.iter().all(|it| matches!(it, Selector::Exe(_)));
        if !is_known && by_program && !service.selectors.is_empty() {
            let text = format!(
                "service {name} is known by its program alone, which any user here can run and \
                 make do something else"
            );
            let remedy =
                format!("add `user`, `systemd` or `cgroup` to `workload` of [service.{name}]");
            problems.push(Problem::new(CODE, text, remedy).about(name));
        }
    }
    problems
}

/// Services that are known by their program, where programs can't be seen.
fn unseen(snapshot: &Snapshot) -> Vec<Problem> {
    residents(snapshot)
        .filter(|(_, service)| service.selectors.iter().any(|it| matches!(it, Selector::Exe(_))))
        .map(|(_, service)| {
            let name = service.name.as_str();
            let text = format!(
                "no process here can be service {name}'s: the agent may not see which program a \
                 process runs"
            );
            Problem::new(CODE, text, LET_SEE).about(name)
        })
        .collect()
}

fn missing(selector: &Selector) -> Option<String> {
    match selector {
        Selector::User(user) => {
            let unknown = user.parse::<u32>().is_err() && process::user_id(user).is_none();
            unknown.then(|| format!("there is no user {user}"))
        }
        Selector::Exe(path) => {
            (!path.exists()).then(|| format!("there is no program {}", path.display()))
        }
        Selector::Systemd(unit) => (!has_unit(unit)).then(|| format!("systemd has no unit {unit}")),
        // It may be there only while the service runs.
        Selector::Cgroup(_) | Selector::Container(_) => None,
    }
}

/// Whether there is a unit, as far as can be told: scopes and slices have no files.
fn has_unit(unit: &str) -> bool {
    let unit = if unit.contains('.') { unit.to_owned() } else { format!("{unit}.service") };
    let Some(stem) = unit.strip_suffix(".service") else { return true };
    let template = stem.split_once('@').map(|(name, _)| format!("{name}@.service"));
    let is_there = |name: &str| {
        UNITS.iter().any(|folder| Path::new(folder).join(name).symlink_metadata().is_ok())
    };
    !Path::new("/run/systemd/system").exists()
        || is_there(&unit)
        || template.is_some_and(|template| is_there(&template))
}

#[cfg(test)]
mod tests {
    use isthmus_model::{Exposure, Protocol, ServiceId};

    use super::super::tests::snapshot;
    use super::*;

    fn texts(selectors: Vec<Selector>) -> [Vec<String>; 2] {
        let mut snapshot = snapshot(&[(80, Protocol::Tcp, Exposure::Mesh)]);
        snapshot.services.get_mut(&ServiceId(20)).unwrap().selectors = selectors;
        [unknown_at_once(&snapshot), problems(&snapshot)]
            .map(|problems| problems.into_iter().map(|it| it.text).collect())
    }

    #[test]
    fn programs_that_cannot_be_seen_select_nothing() {
        let mut snapshot = snapshot(&[(80, Protocol::Tcp, Exposure::Mesh)]);
        let service = snapshot.services.get_mut(&ServiceId(20)).unwrap();
        service.selectors = vec![Selector::User("0".into())];
        assert_eq!(unseen(&snapshot), []);
        let service = snapshot.services.get_mut(&ServiceId(20)).unwrap();
        service.selectors.push(Selector::Exe("/bin/sh".into()));
        let problems = unseen(&snapshot);
        assert!(problems[0].text.contains("may not see which program"), "{problems:?}");
        assert!(problems[0].remedy.contains("programs.conf"), "{problems:?}");
    }

    #[test]
    fn what_selects_nothing_is_named() {
        let user = |user: &str| Selector::User(user.into());
        let exe = |path: &str| Selector::Exe(path.into());
        let nobody = texts(vec![user("no-such-user-here")]);
        assert!(
            nobody.iter().all(|texts| texts[0].ends_with("there is no user no-such-user-here"))
        );
        let nothing = texts(vec![user("0"), exe("/no/such/program")]);
        assert!(nothing[0][0].ends_with("there is no program /no/such/program"), "{nothing:?}");
        let none: [Vec<String>; 2] = Default::default();
        assert_eq!(texts(vec![user("54321")]), none, "numbers need no name");
        assert_eq!(texts(vec![user("root"), exe("/bin/sh")]), none);
        assert_eq!(texts(vec![]), none);
    }

    #[test]
    fn a_program_alone_is_a_problem_but_no_warning_of_a_revision() {
        let [at_once, standing] = texts(vec![Selector::Exe("/bin/sh".into())]);
        assert_eq!(at_once, Vec::<String>::new());
        assert!(standing[0].contains("by its program alone"), "{standing:?}");
    }
}
