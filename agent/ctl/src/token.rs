//! `agentctl token`: the right to join, handed out, listed and withdrawn.

use anyhow::Result;
use comfy_table::Cell;
use isthmus_proto::v1;
use serde_json::{Value, json};

use crate::cli::{CreateToken, Format, Token};
use crate::errors::{Exit, Failure};
use crate::mesh_view::known;
use crate::output::{self, Tone, cell, number, table, toned};
use crate::transport::{Session, ask_controller};
use crate::words::{count, now, relative, timestamp};

pub(crate) async fn token(session: &Session, command: &Token) -> Result<Exit> {
    match command {
        Token::Create(options) => create(session, options).await,
        Token::List => list(session).await,
        Token::Revoke { id } => revoke(session, id).await,
    }
}

async fn create(session: &Session, options: &CreateToken) -> Result<Exit> {
    let mut admin = session.controller().await?;
    let request = v1::CreateTokenRequest {
        lifetime_seconds: options.expires.as_secs(),
        uses: options.uses,
        labels: options.labels.iter().cloned().collect(),
        host: options.host.as_ref().map(ToString::to_string).unwrap_or_default(),
    };
    let created = ask_controller(admin.create_token(request)).await?;
    let info = created.info.unwrap_or_default();
    match session.output {
        // The token alone, so that it can be piped; the rest is for the eyes.
        Format::Text => {
            output::say(&created.token)?;
            output::complain(&about(&info, now()));
        }
        Format::Json => output::json(&json!({
            "token": created.token,
            "id": info.id,
            "expires": timestamp(info.expires),
            "uses": info.uses,
            "labels": info.labels,
            "host": known(&info.host),
        }))?,
    }
    Ok(Exit::Success)
}

fn about(info: &v1::TokenInfo, now: i64) -> String {
    let whom = match &*info.host {
        "" => count(info.uses as usize, "host"),
        name => format!("host {name}"),
    };
    format!(
        "This secret is shown only now. It lets {whom} join, and expires {} (token {}).\n\
         On the host: agentctl join -     and paste it, or pipe it in",
        relative(info.expires, now),
        info.id
    )
}

async fn list(session: &Session) -> Result<Exit> {
    let mut admin = session.controller().await?;
    let mut tokens = ask_controller(admin.list_tokens(v1::ListTokensRequest {})).await?.tokens;
    newest_first(&mut tokens);
    output::show(session.output, || token_table(&tokens, now()), || tokens_json(&tokens, now()))?;
    Ok(Exit::Success)
}

/// The controller doesn't say when a token was made; the last to expire stands in for the newest.
fn newest_first(tokens: &mut [v1::TokenInfo]) {
    tokens.sort_by_key(|token| std::cmp::Reverse(token.expires));
}

async fn revoke(session: &Session, id: &str) -> Result<Exit> {
    if id.parse::<isthmus_model::token::TokenId>().is_err() {
        // Somebody may have pasted the token itself: don't repeat it.
        let problem =
            "That is no token's id; `agentctl token list` shows the ids, 16 hex digits each";
        return Err(Failure::Usage(problem.to_owned()).into());
    }
    let mut admin = session.controller().await?;
    ask_controller(admin.revoke_token(v1::RevokeTokenRequest { id: id.to_owned() })).await?;
    output::show(
        session.output,
        || format!("revoked token {id}: nobody can join with it any more"),
        || json!({ "revoked": id }),
    )?;
    Ok(Exit::Success)
}

/// What has become of a token, in the words of JSON.
fn state(token: &v1::TokenInfo, now: i64) -> &'static str {
    if token.revoked {
        "revoked"
    } else if token.used >= token.uses {
        "used up"
    } else if token.expires <= now {
        "expired"
    } else {
        "valid"
    }
}

fn token_table(tokens: &[v1::TokenInfo], now: i64) -> String {
    if tokens.is_empty() {
        return "no tokens; `agentctl token create` makes one".to_owned();
    }
    let row = |token: &v1::TokenInfo| -> Vec<Cell> {
        let state = state(token, now);
        let tone = if state == "valid" { Tone::Good } else { Tone::Quiet };
        let labels: Vec<String> = token.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        vec![
            cell(&token.id),
            toned(state, tone),
            cell(relative(token.expires, now)),
            number(format!("{} of {}", token.used, token.uses)),
            cell(&token.host),
            cell(labels.join(" ")),
        ]
    };
    let header = ["TOKEN", "STATE", "EXPIRES", "USED", "HOST", "LABELS"];
    table(&header, tokens.iter().map(row).collect())
}

fn tokens_json(tokens: &[v1::TokenInfo], now: i64) -> Value {
    let one = |token: &v1::TokenInfo| {
        json!({
            "id": token.id,
            "state": state(token, now),
            "expires": timestamp(token.expires),
            "uses": token.uses,
            "used": token.used,
            "labels": token.labels,
            "host": known(&token.host),
        })
    };
    tokens.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::plain;

    const NOW: i64 = 1_700_000_000;

    fn token(id: &str) -> v1::TokenInfo {
        v1::TokenInfo {
            id: id.to_owned(),
            expires: NOW + 3_600,
            uses: 2,
            used: 1,
            ..v1::TokenInfo::default()
        }
    }

    #[test]
    fn a_tokens_state_follows_from_its_facts() {
        assert_eq!(state(&token("a"), NOW), "valid");
        assert_eq!(state(&token("a"), NOW + 3_600), "expired");
        assert_eq!(state(&v1::TokenInfo { used: 2, ..token("a") }, NOW), "used up");
        // What an operator did counts most; a token that let its host in isn't called expired.
        assert_eq!(state(&v1::TokenInfo { revoked: true, used: 2, ..token("a") }, NOW), "revoked");
        assert_eq!(state(&v1::TokenInfo { used: 2, ..token("a") }, NOW + 9_999), "used up");
    }

    #[test]
    fn tokens_are_listed_newest_first() {
        let mut tokens = [token("old"), v1::TokenInfo { expires: NOW + 9_000, ..token("new") }];
        newest_first(&mut tokens);
        let value = tokens_json(&tokens, NOW);
        assert_eq!((&value[0]["id"], &value[1]["id"]), (&"new".into(), &"old".into()));
        assert_eq!(value[0]["state"], "valid");
        assert_eq!(value[0]["host"], Value::Null);
        assert!(plain(&token_table(&tokens, NOW)).contains("1 of 2"));
    }
}
