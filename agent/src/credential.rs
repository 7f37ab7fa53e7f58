//! Joining by a token that systemd hands over (`LoadCredential=isthmus.token`, systemd.exec(5)): a machine that is
//! made from an image becomes a member by itself. The token may come from /etc/credstore, or from whoever
//! made the machine (`systemd-nspawn --set-credential`, SMBIOS).

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use isthmus_model::{Code, Problem};
use isthmus_proto::v1;
use isthmus_proto::v1::local_server::Local;
use tonic::Request;
use zeroize::Zeroizing;

use crate::status::Shared;

/// The credential's name.
const NAME: &str = "isthmus.token";
/// A token names a few controllers: it is shorter by far.
const MOST_BYTES: u64 = 16 << 10;
/// Between two attempts, while no controller answers.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Path of the token, if there is one.
#[must_use]
pub(crate) fn path() -> Option<PathBuf> {
    let path = Path::new(&std::env::var_os("CREDENTIALS_DIRECTORY")?).join(NAME);
    path.exists().then_some(path)
}

/// Joins, again and again until a controller answers. What it then says is final.
pub(crate) async fn join(path: PathBuf, shared: Arc<Shared>, api: impl Local) {
    let mut wait = FIRST_WAIT;
    loop {
        if shared.status().member.is_some() {
            break;
        }
        let Err((message, code)) = attempt(&path, &api).await else { break };
        shared.problems.raise(problem(&message));
        if code != tonic::Code::Unavailable {
            return;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
    shared.problems.set(Code::JoinFailed, None);
}

async fn attempt(path: &Path, api: &impl Local) -> Result<(), (String, tonic::Code)> {
    let token = read(path).map_err(|error| (format!("{error:#}"), tonic::Code::InvalidArgument))?;
    let request = v1::LocalJoinRequest { token: token.to_string(), host: String::new() };
    match api.join(Request::new(request)).await {
        Ok(_) => Ok(()),
        Err(status) => Err((status.message().to_owned(), status.code())),
    }
}

fn read(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let mut token = Zeroizing::new(String::new());
    let file = std::fs::File::open(path);
    file.and_then(|file| file.take(MOST_BYTES).read_to_string(&mut token))
        .with_context(|| format!("Failed to read the token in {}", path.display()))?;
    Ok(Zeroizing::new(token.trim().to_owned()))
}

fn problem(message: &str) -> Problem {
    let message = message.trim_end_matches('.');
    Problem::new(
        Code::JoinFailed,
        format!("this host didn't join by the credential {NAME}: {message}"),
        "make a token where an operator is (agentctl token create), and give it to `agentctl join -` here",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_without_what_is_around_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        std::fs::write(&path, " token\n").unwrap();
        assert_eq!(*read(&path).unwrap(), "token");
        std::fs::write(&path, [0xff]).unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains(NAME), "{error}");
    }
}
