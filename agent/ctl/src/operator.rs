//! `agentctl operator` and `audit`: who may operate the mesh, and what they did.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use isthmus_model::Name;
use isthmus_proto::v1;
use serde_json::{Value, json};

use crate::credentials::{self, NewKey};
use crate::errors::Exit;
use crate::mesh_view::known;
use crate::output::{self, Tone, cell, clean, paint, table, toned};
use crate::transport::{Session, ask_controller};
use crate::words::{now, relative, timestamp};

#[derive(Debug, Subcommand)]
pub(crate) enum Operator {
    /// Lists the operators
    #[command(after_help = "Example:\n  agentctl operator list")]
    List,
    /// Makes credentials for an operator, new or known
    ///
    /// They are good for hours, and renew themselves while they are used at least every 30 days. Give the
    /// folder to the operator: it goes to ~/.config/isthmus/.
    #[command(after_help = "Example:\n  agentctl operator add bob --role apply --out bob/")]
    Add {
        /// The name, which history and audit log will show
        name: Name,
        /// `view`, `apply` or `admin`
        #[arg(long, value_parser = ["view", "apply", "admin"])]
        role: String,
        /// The folder to write; it must not exist yet
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Gives an operator another role
    #[command(after_help = "Example:\n  agentctl operator role bob view")]
    Role {
        /// The name
        name: Name,
        /// `view`, `apply` or `admin`
        #[arg(value_parser = ["view", "apply", "admin"])]
        role: String,
    },
    /// Makes an operator's credentials worthless at once
    #[command(after_help = "Example:\n  agentctl operator revoke bob")]
    Revoke {
        /// The name
        name: Name,
        /// Also if the controller never heard of them
        #[arg(long, short)]
        yes: bool,
    },
}

pub(crate) async fn operator(session: &Session, command: Operator) -> Result<Exit> {
    match command {
        Operator::List => list(session).await,
        Operator::Add { name, role, out } => add(session, name.as_str(), &role, &out).await,
        Operator::Role { name, role } => give_role(session, name.as_str(), &role).await,
        Operator::Revoke { name, yes } => revoke(session, name.as_str(), yes).await,
    }
}

async fn list(session: &Session) -> Result<Exit> {
    let mut admin = session.controller().await?;
    let operators = ask_controller(admin.list_operators(v1::ListOperatorsRequest {})).await?;
    output::show(
        session.output,
        || operator_table(&operators.operators, now()),
        || operators.operators.iter().map(operator_json).collect(),
    )?;
    Ok(Exit::Success)
}

async fn add(session: &Session, name: &str, role: &str, out: &Path) -> Result<Exit> {
    // Nobody becomes an operator whose credentials have no place.
    let folder = credentials::new_folder(out)?;
    let key = NewKey::generate()?;
    let mut admin = session.controller().await?;
    let request = v1::AddOperatorRequest {
        name: name.to_owned(),
        role: role.to_owned(),
        certificate_request: key.request()?,
    };
    let added = ask_controller(admin.add_operator(request)).await;
    let chain = match added {
        Ok(added) => added.certificate.unwrap_or_default().chain,
        Err(error) => {
            folder.discard();
            return Err(error);
        }
    };
    let leaf = chain.first().context("The controller gave no certificate")?;
    let file = folder.fill(&session.operator()?, &key, leaf)?;
    let file = file.display().to_string();
    output::show(
        session.output,
        || {
            let added = paint("added", Tone::Good);
            format!(
                "{added} operator {name} ({role}): hand {} over to them, and keep no copy",
                clean(&out.display().to_string())
            )
        },
        || json!({ "name": name, "role": role, "credentials": file }),
    )?;
    Ok(Exit::Success)
}

async fn give_role(session: &Session, name: &str, role: &str) -> Result<Exit> {
    let mut admin = session.controller().await?;
    let request = v1::AddOperatorRequest {
        name: name.to_owned(),
        role: role.to_owned(),
        certificate_request: Vec::new(),
    };
    ask_controller(admin.add_operator(request)).await?;
    output::show(
        session.output,
        || format!("operator {name} has the role {role} from now on"),
        || json!({ "name": name, "role": role }),
    )?;
    Ok(Exit::Success)
}

async fn revoke(session: &Session, name: &str, yes: bool) -> Result<Exit> {
    let mut admin = session.controller().await?;
    let request = v1::RevokeOperatorRequest { name: name.to_owned(), yes };
    ask_controller(admin.revoke_operator(request)).await?;
    output::show(
        session.output,
        || {
            format!(
                "revoked operator {name}: all credentials of that name are worth nothing any more"
            )
        },
        || json!({ "revoked": name }),
    )?;
    Ok(Exit::Success)
}

pub(crate) async fn audit(session: &Session, who: Option<String>, most: u32) -> Result<Exit> {
    let mut admin = session.controller().await?;
    let request = v1::ReadAuditRequest { who: who.unwrap_or_default(), most };
    let acts = ask_controller(admin.read_audit(request)).await?.acts;
    output::show(
        session.output,
        || audit_table(&acts, now()),
        || acts.iter().map(act_json).collect(),
    )?;
    Ok(Exit::Success)
}

fn operator_table(operators: &[v1::OperatorInfo], now: i64) -> String {
    let row = |one: &v1::OperatorInfo| {
        let (state, tone) = match &*one.revoked_by {
            "" => ("good".to_owned(), Tone::Good),
            by => (format!("revoked {} by {by}", relative(one.revoked, now)), Tone::Bad),
        };
        let added = match (one.added, &*one.added_by) {
            (0, _) => "on the controller's machine".to_owned(),
            (at, by) => format!("{} by {by}", relative(at, now)),
        };
        let seen = match one.seen {
            0 => String::new(),
            at => format!("{} from {}", relative(at, now), one.seen_from),
        };
        vec![
            toned(&one.name, Tone::Strong),
            cell(&one.role),
            toned(state, tone),
            cell(added),
            cell(seen),
        ]
    };
    table(
        &["OPERATOR", "ROLE", "CREDENTIALS", "ADDED", "SEEN"],
        operators.iter().map(row).collect(),
    )
}

fn operator_json(one: &v1::OperatorInfo) -> Value {
    json!({
        "name": one.name,
        "role": one.role,
        "added": timestamp(one.added),
        "added_by": known(&one.added_by),
        "revoked": timestamp(one.revoked),
        "revoked_by": known(&one.revoked_by),
        "seen": timestamp(one.seen),
        "seen_from": known(&one.seen_from),
    })
}

fn audit_table(acts: &[v1::Act], now: i64) -> String {
    if acts.is_empty() {
        return "nothing was done yet".to_owned();
    }
    let row = |act: &v1::Act| {
        let times = if act.times > 1 { format!("{} times, ", act.times) } else { String::new() };
        let tone = if act.done { Tone::Plain } else { Tone::Bad };
        vec![
            cell(relative(act.at, now)),
            toned(&act.who, Tone::Strong),
            cell(&act.from),
            cell(&act.what),
            toned(format!("{times}{}", act.result), tone),
        ]
    };
    table(&["WHEN", "WHO", "FROM", "WHAT", "RESULT"], acts.iter().map(row).collect())
}

fn act_json(act: &v1::Act) -> Value {
    json!({
        "number": act.number,
        "at": timestamp(act.at),
        "who": act.who,
        "from": known(&act.from),
        "what": act.what,
        "done": act.done,
        "result": act.result,
        "times": act.times,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::plain;

    const NOW: i64 = 1_700_000_000;

    #[test]
    fn operators_are_shown_with_what_they_may_and_whether_they_still_may() {
        let bob = v1::OperatorInfo {
            name: "bob".to_owned(),
            role: "apply".to_owned(),
            added: NOW - 86_400,
            added_by: "admin".to_owned(),
            revoked: NOW - 5,
            revoked_by: "admin".to_owned(),
            ..v1::OperatorInfo::default()
        };
        let admin = v1::OperatorInfo {
            name: "admin".to_owned(),
            role: "admin".to_owned(),
            seen: NOW - 1,
            seen_from: "192.0.2.7".to_owned(),
            ..v1::OperatorInfo::default()
        };
        let text = plain(&operator_table(&[admin, bob.clone()], NOW));
        for part in [
            "admin     admin  good                    on the controller's machine  1 s ago from 192.0.2.7",
            "bob       apply  revoked 5 s ago by admin  24 h ago by admin",
        ] {
            let words: Vec<&str> = part.split_whitespace().collect();
            let found = text
                .lines()
                .any(|line| line.split_whitespace().collect::<Vec<_>>().starts_with(&words));
            assert!(found, "{part} in\n{text}");
        }
        assert_eq!(operator_json(&bob)["seen"], Value::Null);
    }

    #[test]
    fn acts_are_shown_with_what_came_of_them() {
        let act = |done, result: &str, times| v1::Act {
            number: 1,
            at: NOW - 60,
            who: "eve".to_owned(),
            from: "192.0.2.7".to_owned(),
            what: "remove host a".to_owned(),
            done,
            result: result.to_owned(),
            times,
        };
        let text = plain(&audit_table(
            &[act(false, "her role is view", 3), act(true, "revision 8", 1)],
            NOW,
        ));
        assert!(
            text.contains("60 s ago  eve  192.0.2.7  remove host a  3 times, her role is view"),
            "{text}"
        );
        assert!(text.contains("remove host a  revision 8"), "{text}");
        assert_eq!(act_json(&act(true, "", 1))["at"], "2023-11-14T22:12:20Z");
    }
}
