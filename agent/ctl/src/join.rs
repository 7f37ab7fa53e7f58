//! `agentctl join`: hands a token to this host's agent, and never shows it.

use std::io::Read;

use anyhow::{Context as _, Result};
use isthmus_model::token::Token;
use isthmus_proto::v1;
use serde_json::json;

use crate::cli::Join;
use crate::errors::{Exit, Failure};
use crate::output::{self, Tone, clean, paint};
use crate::transport::{Session, ask_agent};

/// More than any token; whoever pipes more has the wrong file.
const MOST_BYTES: u64 = 64 << 10;

pub(crate) async fn join(session: &Session, arguments: Join) -> Result<Exit> {
    let token = token(&arguments)?;
    let mut agent = session.agent().await?;
    let host = arguments.name.map(|name| name.to_string()).unwrap_or_default();
    let joined = ask_agent(agent.join(v1::LocalJoinRequest { token, host })).await?;
    let v1::LocalJoinResponse { host_id, host, mesh, ipv6, ipv4 } = &joined;
    output::show(
        session.output,
        || {
            let addresses = clean(&format!("{ipv4}, {ipv6}"));
            let joined = paint("joined", Tone::Good);
            format!("{joined} mesh {} as host {} ({addresses})", clean(mesh), clean(host))
        },
        || json!({ "mesh": mesh, "host": host, "host_id": host_id, "ipv4": ipv4, "ipv6": ipv6 }),
    )?;
    Ok(Exit::Success)
}

fn token(arguments: &Join) -> Result<String> {
    let text = match (&arguments.file, &arguments.token) {
        (Some(path), _) => {
            let context = || format!("Failed to read the token from {}", path.display());
            limited(std::fs::File::open(path).with_context(context)?).with_context(context)?
        }
        (None, Some(token)) if token != "-" => token.clone(),
        (None, _) => {
            if output::is_interactive() {
                output::complain("Paste the join token, then Enter and Ctrl-D:");
            }
            limited(std::io::stdin()).context("Failed to read the token from standard input")?
        }
    };
    let text = text.trim();
    // A damaged token needn't bother the agent. The error says what is wrong without the token.
    match text.parse::<Token>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(Failure::Refused(format!("Failed to join: {error}")).into()),
    }
}

fn limited(source: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    source.take(MOST_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a file that says this.
    fn from_file(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, text).unwrap();
        let arguments = Join { token: None, file: Some(file), name: None };
        token(&arguments).unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn a_token_is_trimmed() {
        let good = Token {
            id: "0102030405060708".parse().unwrap(),
            secret: [9; 32].into(),
            ca_hash: [7; 32],
            controllers: vec!["10.9.0.1:7443".to_owned()],
        };
        let line = good.encode();
        assert_eq!(from_file(&format!("\n {} \n", *line)), *line);
    }

    #[test]
    fn a_bad_token_is_not_repeated() {
        let error = from_file("isthmus1.c2VjcmV0");
        assert!(error.contains("damaged") && !error.contains("c2VjcmV0"), "{error}");
        let arguments =
            Join { token: Some("isthmus1.c2VjcmV0".to_owned()), file: None, name: None };
        assert!(!format!("{arguments:?}").contains("c2VjcmV0"));
    }
}
