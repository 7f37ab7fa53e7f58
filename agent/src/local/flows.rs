//! Flows, with those who opened them, as far as `agentctl flows` asks for them.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use isthmus_core::FlowView;
use isthmus_proto::v1;
use isthmus_proxy::{RefusedRequest, Side};

use super::show;
use crate::callers::{Caller, LiveCallers};
use crate::dataplane::Listed;
use crate::status::Shared;

/// Whether only some flows are asked for.
pub(super) const fn is_filtered(asked: &v1::ListFlowsRequest) -> bool {
    asked.denied || !asked.from.is_empty() || !asked.to.is_empty() || !asked.user.is_empty()
}

pub(super) fn show(
    shared: &Shared,
    listed: &Listed,
    asked: &v1::ListFlowsRequest,
    limit: usize,
) -> v1::Flows {
    let senders = shared.senders.get().map(Arc::clone);
    let mut live = LiveCallers::new(senders, Arc::clone(&shared.cgroups));
    let mut caller_of = |flow: &FlowView| -> Option<Caller> {
        if flow.ingress.is_some() {
            return None;
        }
        shared.callers.of(&flow.original).or_else(|| live.of(&flow.original))
    };
    let mut flows = Vec::new();
    let mut total = 0;
    for flow in &listed.flows {
        let named = show::flow(&listed.state, flow, None);
        if !fits(asked, &named) {
            continue;
        }
        // Whoever asks for nobody in particular needs only those that are shown.
        let caller =
            if asked.user.is_empty() && flows.len() >= limit { None } else { caller_of(flow) };
        if !asked.user.is_empty() && !caller.as_ref().is_some_and(|it| is_user(it, &asked.user)) {
            continue;
        }
        total += 1;
        if flows.len() < limit {
            flows.push(show::flow(&listed.state, flow, caller.as_ref()));
        }
    }
    let total = if is_filtered(asked) { total } else { listed.total as u64 };
    let requests = match asked.denied {
        true => requests(&shared.proxy.refused_requests(), asked, limit),
        false => Vec::new(),
    };
    v1::Flows { flows, total, requests }
}

/// The refused requests that are asked for.
fn requests(
    refused: &[RefusedRequest],
    asked: &v1::ListFlowsRequest,
    limit: usize,
) -> Vec<v1::RefusedRequest> {
    let fits = |it: &&RefusedRequest| {
        let user = it.process.as_ref().map_or("", |process| process.user.as_str());
        let is_user = |wanted: &str| user == wanted || number_of(user).as_deref() == Some(wanted);
        is_named(&asked.from, &it.from)
            && is_named(&asked.to, &it.to)
            && (asked.user.is_empty() || is_user(&asked.user))
    };
    refused.iter().filter(fits).take(limit).map(request).collect()
}

/// A user is asked for by number, too.
fn number_of(user: &str) -> Option<String> {
    isthmus_net::process::user_id(user).map(|id| id.to_string())
}

fn request(refused: &RefusedRequest) -> v1::RefusedRequest {
    let since = refused.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let process = refused.process.clone().unwrap_or_default();
    v1::RefusedRequest {
        at: i64::try_from(since).unwrap_or_default(),
        request_id: refused.request_id.clone(),
        side: match refused.side {
            Side::Client => "client".to_owned(),
            Side::Server => "server".to_owned(),
        },
        from: refused.from.clone(),
        to: refused.to.clone(),
        source: refused.source.to_string(),
        method: refused.method.to_string(),
        path: refused.path.clone(),
        status: refused.status.unwrap_or_default().into(),
        rule: refused.rule.clone(),
        origin: refused.origin.as_ref().map(ToString::to_string).unwrap_or_default(),
        judged_at: refused.judged_at.clone(),
        user: process.user,
        unit: process.unit,
        program: process.program,
    }
}

/// "web" or "service:web"; nothing: everybody.
fn is_named(wanted: &str, name: &str) -> bool {
    wanted.is_empty() || name == wanted || name.split_once(':').is_some_and(|it| it.1 == wanted)
}

fn fits(asked: &v1::ListFlowsRequest, flow: &v1::Flow) -> bool {
    let denied = flow.verdict == "deny" || flow.audited;
    (!asked.denied || denied) && is_named(&asked.from, &flow.from) && is_named(&asked.to, &flow.to)
}

fn is_user(caller: &Caller, wanted: &str) -> bool {
    caller.uid.to_string() == wanted || caller.user() == wanted
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isthmus_proxy::Process;

    use super::*;

    #[test]
    fn flows_are_chosen_by_what_was_decided_and_by_whom_they_are() {
        let flow = v1::Flow {
            from: "service:client".to_owned(),
            to: "host:web-1".to_owned(),
            verdict: "deny".to_owned(),
            ..v1::Flow::default()
        };
        let asked = |from: &str, to: &str| v1::ListFlowsRequest {
            denied: true,
            from: from.to_owned(),
            to: to.to_owned(),
            ..v1::ListFlowsRequest::default()
        };
        assert!(fits(&asked("", ""), &flow) && fits(&asked("client", "host:web-1"), &flow));
        assert!(!fits(&asked("service:web", ""), &flow) && !fits(&asked("", "web"), &flow));
        let passed = v1::Flow { verdict: "allow".to_owned(), ..flow.clone() };
        assert!(!fits(&asked("", ""), &passed));
        assert!(fits(&asked("", ""), &v1::Flow { audited: true, ..passed }));
        assert!(is_filtered(&asked("", "")) && !is_filtered(&v1::ListFlowsRequest::default()));
        let root = Caller { uid: 0, cgroup: None, program: None };
        assert!(is_user(&root, "root") && is_user(&root, "0") && !is_user(&root, "web"));
    }
    #[test]
    fn refused_requests_are_chosen_likewise() {
        let refused = |from: &str, user: &str| RefusedRequest {
            at: UNIX_EPOCH + Duration::from_secs(7),
            request_id: "0123456789abcdef".to_owned(),
            side: Side::Client,
            from: from.to_owned(),
            to: "service:web".to_owned(),
            source: "100.64.0.17:41000".parse().unwrap(),
            method: "GET".parse().unwrap(),
            path: "/admin".to_owned(),
            status: Some(403),
            rule: "no admin".to_owned(),
            origin: None,
            judged_at: "web-1".to_owned(),
            process: Some(Process { user: user.to_owned(), ..Process::default() }),
        };
        let all = [refused("service:client", "root"), refused("host:app-1", "nobody")];
        let shown = |from: &str, user: &str, limit| {
            let asked = v1::ListFlowsRequest {
                denied: true,
                from: from.to_owned(),
                user: user.to_owned(),
                ..v1::ListFlowsRequest::default()
            };
            let shown = requests(&all, &asked, limit).into_iter();
            shown.map(|it| it.from).collect::<Vec<_>>()
        };
        assert_eq!(shown("", "", 9), ["service:client", "host:app-1"]);
        assert_eq!(shown("", "", 1), ["service:client"]);
        assert_eq!(shown("app-1", "", 9), ["host:app-1"]);
        assert_eq!(shown("", "0", 9), ["service:client"]);
        assert_eq!(shown("", "root", 9), ["service:client"]);
        let one = request(&all[0]);
        assert_eq!((one.at, &*one.side, &*one.method, one.status), (7, "client", "GET", 403));
        assert_eq!((&*one.judged_at, &*one.origin, &*one.user), ("web-1", "", "root"));
    }
}
