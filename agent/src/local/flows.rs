//! Flows, with those who opened them, as far as `agentctl flows` asks for them.

use std::sync::Arc;

use isthmus_core::FlowView;
use isthmus_proto::v1;

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
    v1::Flows { flows, total }
}

fn fits(asked: &v1::ListFlowsRequest, flow: &v1::Flow) -> bool {
    let is = |wanted: &str, name: &str| {
        wanted.is_empty() || name == wanted || name.split_once(':').is_some_and(|it| it.1 == wanted)
    };
    let denied = flow.verdict == "deny" || flow.audited;
    (!asked.denied || denied) && is(&asked.from, &flow.from) && is(&asked.to, &flow.to)
}

fn is_user(caller: &Caller, wanted: &str) -> bool {
    caller.uid.to_string() == wanted || caller.user() == wanted
}

#[cfg(test)]
mod tests {
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
}
