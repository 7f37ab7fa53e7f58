//! Files become the running revision, or it is said why they don't.

use std::collections::BTreeSet;

use isthmus_controller_core::{AppliedRevision, Consequences, State};
use isthmus_model::Revision;
use isthmus_model::topology::{self, ChangeKind, Diagnostic, SourceFile, Topology};
use isthmus_proto::v1;
use tonic::Status;

use crate::agents::Clash;
use crate::mesh::Mesh;
use crate::operators::Deed;
use crate::revisions::{Applied, ApplyError, Terms};

const MOST_FILES: usize = 1_000;
const LONGEST_NOTE: usize = 1_024;
/// Long enough to look; who takes longer means it for good.
const LONGEST_TRIAL: u64 = 7 * 86_400;

/// Options of a request beside its files.
pub(crate) fn terms(request: &v1::ApplyRequest) -> Result<Terms, Status> {
    let v1::ApplyRequest { dry_run, yes, if_revision, note, confirm_within_seconds, .. } = request;
    if note.len() > LONGEST_NOTE || note.chars().any(char::is_control) {
        return Err(Status::invalid_argument(format!(
            "A note is one line of at most {LONGEST_NOTE} bytes."
        )));
    }
    if *confirm_within_seconds > LONGEST_TRIAL {
        return Err(Status::invalid_argument(
            "A revision can't wait for its confirmation for more than 7 days.",
        ));
    }
    Ok(Terms {
        dry_run: *dry_run,
        yes: *yes,
        if_revision: if_revision.map(Revision),
        note: note.clone(),
        confirm_within: Some(*confirm_within_seconds).filter(|within| *within > 0),
    })
}

/// In words, for the audit log.
pub(crate) fn what(terms: &Terms) -> String {
    let mut what = "apply a topology".to_owned();
    if let Some(within) = terms.confirm_within {
        what.push_str(&format!(", to be confirmed within {within} s"));
    }
    if !terms.note.is_empty() {
        what.push_str(&format!(" ({})", terms.note));
    }
    what
}

/// Why it was in vain, if it was.
pub(crate) fn in_vain(response: &v1::ApplyResponse, terms: &Terms) -> Option<String> {
    if terms.dry_run {
        return None;
    }
    if let [first, ..] = &*response.asks
        && !terms.yes
    {
        return Some(format!("not without a yes: {first}"));
    }
    if let [first, ..] = &*response.diagnostics {
        return Some(format!("refused: {}", first.message));
    }
    let failed = response.tests.iter().find(|test| !test.passed);
    failed.map(|test| format!("refused: test {:?} fails", test.name))
}

pub(crate) fn source_files(files: Vec<v1::File>) -> Result<Vec<SourceFile>, Status> {
    if files.len() > MOST_FILES {
        return Err(Status::invalid_argument(format!(
            "A topology has at most {MOST_FILES} files, not {}.",
            files.len()
        )));
    }
    let mut names = BTreeSet::new();
    if let Some(twice) = files.iter().find(|file| !names.insert(file.name.as_str())) {
        return Err(Status::invalid_argument(format!("The file {:?} is given twice.", twice.name)));
    }
    let source = |file: v1::File| SourceFile { name: file.name.into(), text: file.text };
    Ok(files.into_iter().map(source).collect())
}

/// A topology that is well-formed and passes its own tests.
pub(crate) struct Proposal {
    files: Vec<SourceFile>,
    pub(crate) topology: Topology,
    tests: Vec<v1::TestOutcome>,
}

pub(crate) enum Read {
    Good(Box<Proposal>),
    Refused(Box<v1::ApplyResponse>),
}

pub(crate) fn read(mesh: &Mesh, files: Vec<SourceFile>) -> Read {
    let topology = match topology::parse(&files) {
        Ok(topology) => topology,
        Err(diagnostics) => {
            return Read::Refused(Box::new(refused(mesh, &diagnostics, Vec::new())));
        }
    };
    let results = isthmus_policy::run_tests(&topology);
    let tests: Vec<v1::TestOutcome> = results
        .iter()
        .map(|test| v1::TestOutcome {
            name: test.name.to_string(),
            passed: test.passed,
            detail: test.detail.clone(),
        })
        .collect();
    if results.iter().any(|test| !test.passed) {
        return Read::Refused(Box::new(refused(mesh, &[], tests)));
    }
    Read::Good(Box::new(Proposal { files, topology, tests }))
}

fn refused(
    mesh: &Mesh,
    diagnostics: &[Diagnostic],
    tests: Vec<v1::TestOutcome>,
) -> v1::ApplyResponse {
    v1::ApplyResponse {
        revision: mesh.now().state.revision.0,
        diagnostics: diagnostics.iter().map(diagnostic).collect(),
        tests,
        ..v1::ApplyResponse::default()
    }
}

pub(crate) fn apply(
    mesh: &Mesh,
    proposal: Proposal,
    clashes: &[Clash],
    terms: &Terms,
    deed: &Deed,
) -> Result<v1::ApplyResponse, Status> {
    let Proposal { files, topology, tests } = proposal;
    let after = topology.clone();
    let applied = match mesh.apply(files, topology, terms, deed) {
        Ok(applied) => applied,
        Err(ApplyError::Contradicts(diagnostics)) => {
            return Ok(refused(mesh, &diagnostics, tests));
        }
        Err(ApplyError::Conflict(sentences)) => return Err(Status::aborted(sentences)),
        Err(ApplyError::Store(error)) => return Err(error.into()),
    };
    let Applied { revision, before, replaces, affected, unchanged, consequences, undone_at } =
        applied;
    let Consequences { asks, mut notes } = consequences;
    notes.extend(clashes.iter().map(|clash| State::clash(&clash.host, &clash.route)));
    let held = if terms.dry_run || terms.yes { &[][..] } else { &asks };
    let changes = topology::diff(Some(&before.topology), &after);
    Ok(v1::ApplyResponse {
        revision: revision.0,
        unchanged,
        changes: changes.into_iter().map(change).collect(),
        diagnostics: held.iter().map(|ask| unasked(ask)).collect(),
        tests,
        notes,
        asks,
        undone_at,
        replaces: replaces.map(|it| replaced(&it)),
        affected: affected.iter().map(ToString::to_string).collect(),
    })
}

/// One on trial is replaced by nothing, before it is confirmed.
fn replaced(one: &AppliedRevision) -> v1::AppliedRevision {
    v1::AppliedRevision {
        revision: one.revision.0,
        at: one.at,
        by: one.by.clone(),
        note: one.note.clone(),
        undone_at: 0,
    }
}

fn change(change: topology::Change) -> v1::Change {
    let kind = match change.kind {
        ChangeKind::Added => v1::change::Kind::Added,
        ChangeKind::Changed => v1::change::Kind::Changed,
        ChangeKind::Removed => v1::change::Kind::Removed,
    };
    v1::Change { kind: kind.into(), subject: change.subject, detail: change.detail }
}

fn diagnostic(diagnostic: &Diagnostic) -> v1::Diagnostic {
    let offset = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    v1::Diagnostic {
        file: diagnostic.file.to_string(),
        line: diagnostic.line,
        column: diagnostic.column,
        start: offset(diagnostic.span.start),
        end: offset(diagnostic.span.end),
        message: diagnostic.message.clone(),
        help: diagnostic.help.clone(),
    }
}

/// For an `agentctl` that doesn't know of questions.
fn unasked(ask: &str) -> v1::Diagnostic {
    v1::Diagnostic {
        message: ask.to_owned(),
        help: "if it is meant, apply it with an agentctl that has `apply --yes`".to_owned(),
        ..v1::Diagnostic::default()
    }
}
