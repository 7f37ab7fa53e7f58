//! `agentctl status` and `agentctl peers`.

use anyhow::Result;
use isthmus_proto::v1;

use crate::errors::Exit;
use crate::output;
use crate::transport::{Session, Whom, ask_agent, ask_controller};
use crate::{agent_view, mesh_view, problems, words};

/// Shows it; says whether nothing is wrong.
pub(crate) async fn status(session: &Session, mesh: bool, agent: bool) -> Result<bool> {
    let whom = match (mesh, agent) {
        (true, _) => Whom::Mesh,
        (false, true) => Whom::Agent,
        (false, false) => session.status_from(),
    };
    match whom {
        Whom::Mesh => {
            let status = read_mesh(session).await?;
            output::show(
                session.output,
                || mesh_view::text(&status, words::now()),
                || mesh_view::json(&status),
            )?;
            Ok(problems::of_mesh(&status).is_empty())
        }
        Whom::Agent => {
            let mut agent = session.agent().await?;
            let status = ask_agent(agent.read_status(v1::ReadAgentStatusRequest {})).await?;
            output::show(
                session.output,
                || agent_view::text(&status, words::now()),
                || agent_view::json(&status),
            )?;
            Ok(status.problems.is_empty())
        }
    }
}

/// The mesh as the controller sees it, everything in order of its name.
pub(crate) async fn read_mesh(session: &Session) -> Result<v1::MeshStatus> {
    let mut admin = session.controller().await?;
    let mut status = ask_controller(admin.read_status(v1::ReadStatusRequest {})).await?;
    status
        .hosts
        .sort_by(|a, b| a.host.as_ref().map(|h| &h.name).cmp(&b.host.as_ref().map(|h| &h.name)));
    Ok(status)
}

pub(crate) async fn peers(session: &Session) -> Result<Exit> {
    let mut agent = session.agent().await?;
    let peers = ask_agent(agent.list_peers(v1::ListPeersRequest {})).await?.peers;
    output::show(
        session.output,
        || agent_view::peer_table(&peers),
        || agent_view::peers_json(&peers),
    )?;
    Ok(Exit::Success)
}
