//! `agentctl apply`: files become the running revision.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::Result;
use isthmus_model::Code;
use isthmus_model::topology::SourceFile;
use isthmus_proto::v1;
use isthmus_proto::v1::change::Kind;
use serde_json::{Value, json};
use tonic::{Response, Status};

use crate::cli::{Apply, Format, How};
use crate::convergence::{self, Progress};
use crate::diagnostics;
use crate::errors::{Exit, Failure};
use crate::output::{self, Tone, clean, paint};
use crate::problems;
use crate::sources;
use crate::status::read_mesh;
use crate::topology;
use crate::transport::{Session, ask_controller};
use crate::validate::{Checked, check};
use crate::words::{self, count, relative, timestamp};

/// Time for an answer to an apply that was interrupted.
const LAST_WORD: Duration = Duration::from_secs(3);

pub(crate) async fn apply(session: &Session, arguments: &Apply) -> Result<Exit> {
    let files = sources::read(&arguments.files.file)?;
    // What is wrong in the files themselves needs no controller to be seen.
    let checked = check(&files);
    if !checked.findings.is_empty() {
        return broken(session, &checked, &files);
    }
    checked.warn(session, &files);
    submit(session, &files, &arguments.how).await
}

/// Makes files the topology, and waits for the agents.
pub(crate) async fn submit(session: &Session, files: &[SourceFile], how: &How) -> Result<Exit> {
    let mut admin = session.controller().await?;
    let started = Instant::now();
    let request = v1::ApplyRequest {
        files: sources::to_messages(files),
        dry_run: how.dry_run,
        despite_clashes: how.despite_clashes,
        yes: how.yes,
        if_revision: how.if_revision,
        note: how.note.clone().unwrap_or_default(),
        confirm_within_seconds: how.confirm_within.map_or(0, |within| within.as_secs()),
    };
    let mut response = answered(admin.apply(request.clone())).await?;
    if is_held(&request, &response) {
        if !is_meant(session, &response).await? {
            return Ok(Exit::Negative);
        }
        // What was shown is what is done.
        let if_revision = Some(response.revision);
        let request = v1::ApplyRequest { yes: true, if_revision, ..request };
        response = answered(admin.apply(request)).await?;
    }
    if is_refused(&response) {
        return refused(session, &response, files);
    }
    if session.output == Format::Text {
        output::say(&differences(&response, words::now()))?;
        if how.dry_run {
            output::say(&dry_run(&response))?;
        }
    }
    let progress = if how.dry_run || response.unchanged {
        None
    } else {
        let revision = response.revision;
        Some(convergence::wait(&mut admin, revision, started, how.timeout).await?)
    };
    let status = if how.dry_run { None } else { Some(read_mesh(session).await?) };
    // What is wrong with the mesh whatever this revision says.
    let mut standing = status.as_ref().map(problems::of_mesh).unwrap_or_default();
    standing.retain(|(host, problem)| {
        let told = progress.as_ref().is_some_and(|it| it.tells_of(host, problem));
        // What is on trial is told beside it.
        !told && problem.code != Code::Unconfirmed.name()
    });
    match session.output {
        Format::Json => {
            let mut value = json(&response, progress.as_ref());
            value["standing"] = problems::json_of_mesh(&standing);
            output::json(&value)?;
        }
        Format::Text => {
            output::say(&progress.as_ref().map(Progress::text).unwrap_or_default())?;
            output::say(&trial(&response, how, words::now()))?;
            output::say(&standing_text(standing))?;
        }
    }
    Ok(progress.map_or(Exit::Success, |progress| progress.exit()))
}

/// What the controller makes of it. Whoever presses Ctrl-C still hears whether it was done.
async fn answered(
    call: impl Future<Output = Result<Response<v1::ApplyResponse>, Status>>,
) -> Result<v1::ApplyResponse> {
    let call = ask_controller(call);
    tokio::pin!(call);
    tokio::select! {
        response = &mut call => return response,
        _ = tokio::signal::ctrl_c() => {}
    }
    match tokio::time::timeout(LAST_WORD, call).await {
        Ok(response) => response,
        Err(_) => Err(Failure::Unreachable(
            "Interrupted before the controller answered: `agentctl topology history` says whether it was applied"
                .to_owned(),
        )
        .into()),
    }
}

/// When it is undone.
fn trial(response: &v1::ApplyResponse, how: &How, now: i64) -> String {
    let Some(at) = timestamp(response.undone_at) else {
        let in_vain = how.confirm_within.is_some() && !how.dry_run && !response.unchanged;
        let older = "the controller is too old for --confirm-within: nothing will be undone";
        return if in_vain { paint(older, Tone::Bad) } else { String::new() };
    };
    let when = format!("on trial: it is undone {} ({at})", relative(response.undone_at, now));
    format!("{} unless `agentctl confirm` comes\n", paint(&when, Tone::Warn))
}

fn standing_text(standing: Vec<(&str, &v1::Problem)>) -> String {
    if standing.is_empty() {
        return String::new();
    }
    let title = count(standing.len(), "problem");
    format!("{title} not of this revision:\n{}\n", problems::list(standing, words::now()))
}

fn broken(session: &Session, checked: &Checked, files: &[SourceFile]) -> Result<Exit> {
    match session.output {
        Format::Text => {
            let complaint = checked.complaint(files);
            output::complain(&format!("{complaint}; nothing was changed"));
        }
        Format::Json => {
            let tests = checked.tests.iter().map(|test| v1::TestOutcome {
                name: test.name.to_string(),
                passed: test.passed,
                detail: test.detail.clone(),
            });
            let response = v1::ApplyResponse {
                diagnostics: checked.findings.clone(),
                tests: tests.collect(),
                ..v1::ApplyResponse::default()
            };
            output::json(&json(&response, None))?;
        }
    }
    Ok(Exit::Negative)
}

/// Whether the controller waits for a yes.
fn is_held(request: &v1::ApplyRequest, response: &v1::ApplyResponse) -> bool {
    !request.dry_run && !request.yes && !response.asks.is_empty()
}

/// Whether an operator wants what the controller has questions about.
async fn is_meant(session: &Session, response: &v1::ApplyResponse) -> Result<bool> {
    let asks = bullets("this has to be asked:", Tone::Warn, &response.asks);
    if output::is_interactive() {
        output::complain(&format!("{}{asks}", differences(response, words::now())));
        return output::confirm("Apply it?", "nothing was changed").await;
    }
    if session.output == Format::Json {
        // What is asked stands in `asks`.
        let held = v1::ApplyResponse { diagnostics: Vec::new(), ..response.clone() };
        output::json(&json(&held, None))?;
    } else {
        output::complain(&format!("{}{asks}", differences(response, words::now())));
    }
    let refused = paint("refused:", Tone::Bad);
    output::complain(&format!("{refused} nothing was changed; if it is meant, say --yes"));
    Ok(false)
}

fn bullets(title: &str, tone: Tone, sentences: &[String]) -> String {
    if sentences.is_empty() {
        return String::new();
    }
    let line = |sentence: &String| format!("  {}\n", clean(sentence));
    format!("{}\n{}", paint(title, tone), sentences.iter().map(line).collect::<String>())
}

fn is_refused(response: &v1::ApplyResponse) -> bool {
    !response.diagnostics.is_empty() || response.tests.iter().any(|test| !test.passed)
}

fn refused(session: &Session, response: &v1::ApplyResponse, files: &[SourceFile]) -> Result<Exit> {
    if session.output == Format::Json {
        output::json(&json(response, None))?;
        return Ok(Exit::Negative);
    }
    let mut text = diagnostics::render(&response.diagnostics, files);
    for test in response.tests.iter().filter(|test| !test.passed) {
        let failed = paint("test failed:", Tone::Bad);
        text.push_str(&format!("\n{failed} {:?}: {}", test.name, clean(&test.detail)));
    }
    let refused = paint("refused:", Tone::Bad);
    output::complain(&format!("{text}\n\n{refused} the controller has changed nothing"));
    Ok(Exit::Negative)
}

/// What changes, what comes of it, and what the tests say.
fn differences(response: &v1::ApplyResponse, now: i64) -> String {
    if response.unchanged {
        return format!("nothing to change: revision {} says this already", response.revision);
    }
    let mut text = String::new();
    for change in &response.changes {
        text.push_str(&change_line(change));
    }
    if let Some(before) = &response.replaces {
        let line = format!("in place of {}\n", topology::in_words(before, now));
        text.push_str(&paint(&line, Tone::Quiet));
    }
    text.push_str(&bullets("what comes of it:", Tone::Warn, &response.notes));
    if !response.tests.is_empty() {
        let passed = count(response.tests.len(), "test");
        text.push_str(&format!("{}\n", paint(&format!("{passed} passed"), Tone::Good)));
    }
    text
}

fn dry_run(response: &v1::ApplyResponse) -> String {
    if response.unchanged {
        return String::new();
    }
    let changes = count(response.changes.len(), "change");
    let concerned = match &*response.affected {
        [] => "no agent is concerned".to_owned(),
        names => format!("it concerns {}", clean(&names.join(", "))),
    };
    let asks = bullets("it would have to be asked (or --yes):", Tone::Warn, &response.asks);
    let unseen = match &*response.affected {
        [] => "",
        _ => {
            "not looked at: whether the hosts have the users, programs and certificates that it names; \
              their agents say so after an apply\n"
        }
    };
    format!("{asks}dry run: {changes}, nothing was applied; {concerned}\n{unseen}")
}

fn change_line(change: &v1::Change) -> String {
    let (sign, tone) = match change.kind() {
        Kind::Added => ('+', Tone::Good),
        Kind::Changed => ('~', Tone::Warn),
        Kind::Removed => ('-', Tone::Bad),
        Kind::Unspecified => ('?', Tone::Plain),
    };
    let subject = paint(&format!("{sign} {}", clean(&change.subject)), tone);
    if change.detail.is_empty() {
        return format!("{subject}\n");
    }
    format!("{subject}: {}\n", clean(&change.detail))
}

fn json(response: &v1::ApplyResponse, progress: Option<&Progress>) -> Value {
    let change = |change: &v1::Change| {
        let kind = match change.kind() {
            Kind::Added => "added",
            Kind::Changed => "changed",
            Kind::Removed => "removed",
            Kind::Unspecified => "unspecified",
        };
        json!({ "kind": kind, "subject": change.subject, "detail": change.detail })
    };
    let test = |test: &v1::TestOutcome| json!({ "name": test.name, "passed": test.passed, "detail": test.detail });
    json!({
        "revision": response.revision,
        "unchanged": response.unchanged,
        "changes": response.changes.iter().map(change).collect::<Value>(),
        "diagnostics": diagnostics::json(&response.diagnostics),
        "tests": response.tests.iter().map(test).collect::<Value>(),
        "affected": response.affected,
        "notes": response.notes,
        "asks": response.asks,
        "undone_at": timestamp(response.undone_at),
        "replaces": response.replaces.as_ref().map(topology::revision_json),
        "rollout": progress.map(Progress::json),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response() -> v1::ApplyResponse {
        let change = |kind: Kind, subject: &str, detail: &str| v1::Change {
            kind: kind.into(),
            subject: subject.to_owned(),
            detail: detail.to_owned(),
        };
        v1::ApplyResponse {
            revision: 7,
            changes: vec![
                change(Kind::Added, "host app-3", ""),
                change(Kind::Changed, "service web", "port 80 -> 8080"),
                change(Kind::Removed, "rule old", ""),
            ],
            tests: vec![v1::TestOutcome { name: "t".into(), passed: true, detail: String::new() }],
            affected: vec!["app-1".into()],
            ..v1::ApplyResponse::default()
        }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn differences_have_signs() {
        assert_eq!(
            plain(&differences(&response(), 1_000)),
            "+ host app-3\n~ service web: port 80 -> 8080\n- rule old\n1 test passed\n"
        );
        assert_eq!(
            plain(&dry_run(&response())),
            "dry run: 3 changes, nothing was applied; it concerns app-1\n\
             not looked at: whether the hosts have the users, programs and certificates that it \
             names; their agents say so after an apply\n"
        );
    }

    #[test]
    fn whose_revision_is_replaced_is_said() {
        let replaces = v1::AppliedRevision {
            revision: 6,
            at: 940,
            by: "bob".to_owned(),
            note: "two more hosts".to_owned(),
            undone_at: 0,
        };
        let response = v1::ApplyResponse { replaces: Some(replaces), ..response() };
        let text = plain(&differences(&response, 1_000));
        let line = "- rule old\nin place of revision 6, applied by bob 60 s ago: two more hosts\n";
        assert!(text.contains(line), "{text}");
        let value = json(&response, None);
        assert_eq!(value["replaces"]["by"], "bob");
        assert_eq!(value["replaces"]["revision"], 6);
        assert_eq!(value["replaces"]["at"], "1970-01-01T00:15:40Z");
    }

    #[test]
    fn what_has_to_be_asked_is_held_until_somebody_says_yes() {
        let asked =
            v1::ApplyResponse { asks: vec!["it removes gateway shop".into()], ..response() };
        let held = |dry_run, yes| {
            is_held(&v1::ApplyRequest { dry_run, yes, ..v1::ApplyRequest::default() }, &asked)
        };
        assert!(held(false, false) && !held(true, false) && !held(false, true));
        assert!(!is_held(&v1::ApplyRequest::default(), &response()));
        let text = plain(&dry_run(&asked));
        assert!(
            text.starts_with("it would have to be asked (or --yes):\n  it removes gateway shop\n")
        );
    }

    #[test]
    fn an_equal_file_says_so() {
        let same =
            v1::ApplyResponse { unchanged: true, revision: 7, ..v1::ApplyResponse::default() };
        assert_eq!(differences(&same, 0), "nothing to change: revision 7 says this already");
    }

    #[test]
    fn failed_tests_and_diagnostics_are_refusals() {
        assert!(!is_refused(&response()));
        let mut failed = response();
        failed.tests[0].passed = false;
        assert!(is_refused(&failed));
        let mut broken = response();
        broken.diagnostics.push(v1::Diagnostic::default());
        assert!(is_refused(&broken));
    }

    #[test]
    fn json_has_the_shape_that_scripts_rely_on() {
        let value = json(&response(), None);
        assert_eq!(value["changes"][1]["kind"], "changed");
        assert_eq!(value["rollout"], Value::Null);
        assert_eq!((&value["revision"], &value["unchanged"]), (&7.into(), &false.into()));
    }
}
