//! Problems of the mesh or a host, and their remedies.

use isthmus_proto::v1;
use serde_json::{Value, json};

use crate::output::{Tone, clean, paint};
use crate::words::{relative, timestamp};

/// "the disk is full; make room"
pub(crate) fn sentence(problem: &v1::Problem) -> String {
    let text = clean(&problem.text);
    match &*problem.remedy {
        "" => text,
        remedy => format!("{text}; {}", clean(remedy)),
    }
}

/// Two lines for each: what is wrong and where, its code and since when; then the remedy.
pub(crate) fn list<'a>(
    problems: impl IntoIterator<Item = (&'a str, &'a v1::Problem)>,
    now: i64,
) -> String {
    let line = |(at, problem): (&str, &v1::Problem)| {
        let at = if at.is_empty() { String::new() } else { format!("{}: ", clean(at)) };
        let text = paint(&format!("{at}{}", clean(&problem.text)), Tone::Warn);
        let since = match problem.since {
            0 => String::new(),
            since => format!(", {}", relative(since, now)),
        };
        let since = paint(&format!("({}{since})", clean(&problem.code)), Tone::Quiet);
        match &*problem.remedy {
            "" => format!("{text} {since}"),
            remedy => format!("{text} {since}\n  remedy: {}", clean(remedy)),
        }
    };
    problems.into_iter().map(line).collect::<Vec<_>>().join("\n")
}

/// All problems of a mesh, each with the host that it is on; the controller's own first.
pub(crate) fn of_mesh(status: &v1::MeshStatus) -> Vec<(&str, &v1::Problem)> {
    let own = status.problems.iter().map(|problem| ("controller", problem));
    let hosts = status.hosts.iter().flat_map(|host| {
        let name = host.host.as_ref().map_or("", |it| it.name.as_str());
        host.problems.iter().map(move |problem| (name, problem))
    });
    own.chain(hosts).collect()
}

pub(crate) fn json(problems: &[v1::Problem]) -> Value {
    problems.iter().map(one).collect()
}

/// Each with where it is.
pub(crate) fn json_of_mesh(problems: &[(&str, &v1::Problem)]) -> Value {
    let at = |(at, problem): &(&str, &v1::Problem)| {
        let mut value = one(problem);
        value["at"] = (*at).into();
        value
    };
    problems.iter().map(at).collect()
}

fn one(problem: &v1::Problem) -> Value {
    json!({
        "code": problem.code,
        "subject": problem.subject,
        "text": problem.text,
        "remedy": problem.remedy,
        "since": timestamp(problem.since),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_says_where_since_when_and_what_to_do() {
        let problem = v1::Problem {
            code: "guard-missing".into(),
            text: "the overlay's filter is gone".into(),
            remedy: "install nftables".into(),
            since: 1_000,
            ..v1::Problem::default()
        };
        let host = v1::Host { name: "app-1".into(), ..v1::Host::default() };
        let status = v1::MeshStatus {
            hosts: vec![v1::HostStatus {
                host: Some(host),
                problems: vec![problem.clone()],
                ..v1::HostStatus::default()
            }],
            problems: vec![v1::Problem { text: "the disk is full".into(), ..problem }],
            ..v1::MeshStatus::default()
        };
        let text = list(of_mesh(&status), 1_041);
        assert_eq!(
            anstream::adapter::strip_str(&text).to_string(),
            "controller: the disk is full (guard-missing, 41 s ago)\n  remedy: install nftables\n\
             app-1: the overlay's filter is gone (guard-missing, 41 s ago)\n  remedy: install nftables"
        );
    }
}
