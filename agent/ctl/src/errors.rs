//! Exit codes, and errors that people can act on.

use std::error::Error;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use tonic::{Code, Status};

/// Exit codes. Scripts rely on the numbers; `agentctl --help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done; allowed.
    Success = 0,
    /// Failed, refused, denied, broken, no reply.
    Negative = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Nobody to ask.
    Unreachable = 3,
    /// Applied, but not everywhere.
    Incomplete = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failure whose exit code isn't just "failed". Each is a whole sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line asks for something that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The controller or agent didn't answer.
    #[error("{0}")]
    Unreachable(String),
    /// It answered, and refused.
    #[error("{0}")]
    Refused(String),
}

/// The exit code for an error.
pub(crate) fn exit(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        match cause.downcast_ref::<Failure>() {
            Some(Failure::Usage(_)) => return Exit::Usage,
            Some(Failure::Unreachable(_)) => return Exit::Unreachable,
            Some(Failure::Refused(_)) => return Exit::Negative,
            None => {}
        }
    }
    Exit::Negative
}

/// Whether whoever read our output has gone, as `head` does.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// Error for a call's status; `whom` is "the agent" or "the controller".
pub(crate) fn refused(status: &Status, whom: &str) -> Failure {
    if let Some(source) = status.source() {
        let cause = root_cause(source);
        return Failure::Unreachable(format!(
            "Lost the connection to {whom}: {cause}; {}",
            lost_hint(&cause, whom)
        ));
    }
    let message = match status.message() {
        "" => format!("{whom} refused: {}", status.code()),
        message => message.to_owned(),
    };
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => Failure::Unreachable(message),
        Code::Unimplemented => Failure::Refused(format!(
            "{} doesn't know this command; is it older than this agentctl ({})?",
            capitalised(whom),
            env!("CARGO_PKG_VERSION")
        )),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => Failure::Refused(message),
    }
}

fn lost_hint(cause: &str, whom: &str) -> String {
    if cause.contains("alert") || cause.contains("ertificate") {
        "it doesn't accept these credentials: have they expired, or was the mesh made anew?"
            .to_owned()
    } else if whom == "the controller" {
        // With TLS 1.3 a client learns by its first request that its certificate was refused.
        "is it still running, and are the credentials of this mesh and not expired? Its log tells"
            .to_owned()
    } else {
        format!("is {whom} still running? Its log tells")
    }
}

/// The innermost cause, in the words that people know.
pub(crate) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    match find_io(error).map(io::Error::kind) {
        Some(io::ErrorKind::NotFound) => "no such file".to_owned(),
        Some(io::ErrorKind::ConnectionRefused) => "connection refused".to_owned(),
        Some(io::ErrorKind::PermissionDenied) => "permission denied".to_owned(),
        _ => {
            let text = innermost.to_string();
            text.split(" (os error").next().unwrap_or(&text).to_owned()
        }
    }
}

/// A failure to read a file, in one sentence.
pub(crate) fn unreadable(what: &str, path: &Path, error: &io::Error) -> Failure {
    let cause = if error.kind() == io::ErrorKind::InvalidData {
        "it isn't text (UTF-8)".to_owned()
    } else {
        root_cause(error)
    };
    Failure::Refused(format!("Failed to read {what} {}: {cause}", path.display()))
}

/// The system's error behind a library's.
pub(crate) fn find_io<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<io::Error>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn the_kind_of_failure_makes_the_exit_code() {
        let code = |failure: Failure| {
            exit(&Err::<(), _>(failure).context("Failed to look").unwrap_err()) as u8
        };
        assert_eq!(code(Failure::Refused(String::new())), 1);
        assert_eq!(code(Failure::Usage(String::new())), 2);
        assert_eq!(code(Failure::Unreachable(String::new())), 3);
        assert_eq!(exit(&anyhow::anyhow!("anything else")) as u8, 1);
        assert_eq!(Exit::Success as u8, 0);
        assert_eq!(Exit::Incomplete as u8, 4);
    }

    #[test]
    fn a_status_is_told_in_the_servers_words() {
        let told = |status: Status| refused(&status, "the controller");
        let text = "There is no host \"app-9\".";
        assert_eq!(told(Status::not_found(text)), Failure::Refused(text.to_owned()));
        let away = told(Status::unavailable("The controller can't be reached."));
        assert!(matches!(away, Failure::Unreachable(_)));
        assert!(told(Status::unimplemented("")).to_string().starts_with("The controller doesn't"));
    }

    #[test]
    fn causes_are_told_without_error_numbers() {
        let error = io::Error::from_raw_os_error(113);
        assert_eq!(root_cause(&error), "No route to host");
        assert_eq!(root_cause(&io::Error::from(io::ErrorKind::NotFound)), "no such file");
    }
}
