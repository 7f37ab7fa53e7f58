//! `agentctl leave`: this host is to be no member any more.

use anyhow::Result;
use isthmus_proto::v1;
use serde_json::json;

use crate::errors::{Exit, Failure};
use crate::output::{self, Tone, clean, paint, warn};
use crate::transport::{Session, ask_agent};

pub(crate) async fn leave(session: &Session, yes: bool) -> Result<Exit> {
    let mut agent = session.agent().await?;
    let status = ask_agent(agent.read_status(v1::ReadAgentStatusRequest {})).await?;
    if !status.joined {
        return Err(Failure::Refused("This host is not a member of a mesh".to_owned()).into());
    }
    let question = question(&status);
    if !yes {
        if !output::is_interactive() {
            let refused = paint("refused:", Tone::Bad);
            output::complain(&format!(
                "{question}\n{refused} nothing was done; if it is meant, say --yes"
            ));
            return Ok(Exit::Negative);
        }
        if !output::confirm(&question, "nothing was done").await? {
            return Ok(Exit::Negative);
        }
    }
    let left = ask_agent(agent.leave(v1::LocalLeaveRequest {})).await?;
    let v1::LocalLeaveResponse { host, mesh, revision, untold, unremoved } = &left;
    output::show(
        session.output,
        || {
            let word = paint("left", Tone::Good);
            let told =
                if untold.is_empty() { format!(" (revision {revision})") } else { String::new() };
            format!("{word} mesh {}: host {} is no member any more{told}", clean(mesh), clean(host))
        },
        || json!({ "mesh": mesh, "host": host, "revision": revision, "untold": untold, "unremoved": unremoved }),
    )?;
    if !unremoved.is_empty() {
        warn(&format!("not everything was removed here: {}", clean(unremoved)));
    }
    if untold.is_empty() {
        return Ok(if unremoved.is_empty() { Exit::Success } else { Exit::Negative });
    }
    warn(&format!(
        "the controller wasn't told ({}); until an operator says `agentctl host remove {}`, others keep its place",
        clean(untold.trim_end_matches('.')),
        clean(host)
    ));
    Ok(Exit::Incomplete)
}

fn question(status: &v1::AgentStatus) -> String {
    let services: Vec<&str> = status.services.iter().map(|it| &*it.name).collect();
    let services = match &*services {
        [] => String::new(),
        [one] => format!(", and its workload of service {}", clean(one)),
        all => format!(", and its workloads of services {}", clean(&all.join(", "))),
    };
    format!(
        "Leave mesh {}? Host {} loses its place in it{services}. Its connections in the mesh end, its keys are \
         removed, and it needs a new token to come back.",
        clean(&status.mesh),
        paint(&clean(&status.host), Tone::Strong),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::plain;

    #[test]
    fn who_leaves_is_asked_with_what_goes() {
        let service = |name: &str| v1::LocalService { name: name.to_owned(), ..Default::default() };
        let asked = |services: &[&str]| {
            let services = services.iter().map(|name| service(name)).collect();
            let (mesh, host) = ("corp".to_owned(), "web-1".to_owned());
            plain(&question(&v1::AgentStatus { mesh, host, services, ..Default::default() }))
        };
        assert!(asked(&[]).starts_with("Leave mesh corp? Host web-1 loses its place in it. Its"));
        assert!(asked(&["api"]).contains("in it, and its workload of service api. Its"));
        assert!(asked(&["api", "web"]).contains("workloads of services api, web. Its"));
    }
}
