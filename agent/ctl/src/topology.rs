//! `agentctl topology` and `confirm`: what was applied, by whom, and the way back.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use isthmus_proto::v1;
use serde_json::{Value, json};

use crate::apply;
use crate::cli::{Format, How};
use crate::errors::{Exit, Failure};
use crate::mesh_view::known;
use crate::output::{self, Tone, cell, clean, table, toned};
use crate::sources;
use crate::transport::{Session, ask_controller};
use crate::words::{now, relative, timestamp};

#[derive(Debug, Subcommand)]
pub(crate) enum Topology {
    /// Prints the files of the running topology, or of a former one
    #[command(
        after_help = "Examples:\n  agentctl topology get > mesh.toml\n  agentctl topology get --revision 12 --out before/"
    )]
    Get {
        /// What was in force at this revision
        #[arg(long, value_name = "N")]
        revision: Option<u64>,
        /// Write them into a folder that doesn't exist yet, each as a file of its own
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Lists what was applied, by whom and when, the newest first
    #[command(after_help = "Example:\n  agentctl topology history -o json")]
    History,
    /// Applies a former topology again: the one before, or what was in force at a revision
    #[command(
        after_help = "Examples:\n  agentctl topology rollback --dry-run\n  agentctl topology rollback 12"
    )]
    Rollback {
        /// What was in force at this revision [default: what ran before]
        #[arg(value_name = "REVISION")]
        revision: Option<u64>,
        #[command(flatten)]
        how: How,
    },
}

pub(crate) async fn topology(session: &Session, command: Topology) -> Result<Exit> {
    match command {
        Topology::Get { revision, out } => get(session, revision, out.as_deref()).await,
        Topology::History => {
            let revisions = history(session).await?;
            output::show(
                session.output,
                || history_text(&revisions, now()),
                || revisions.iter().map(revision_json).collect(),
            )?;
            Ok(Exit::Success)
        }
        Topology::Rollback { revision, how } => rollback(session, revision, how).await,
    }
}

pub(crate) async fn confirm(session: &Session, undo: bool) -> Result<Exit> {
    let mut admin = session.controller().await?;
    let done = ask_controller(admin.confirm(v1::ConfirmRequest { undo })).await?;
    let revision = done.revision;
    output::show(
        session.output,
        || {
            if undo {
                format!("undone: revision {revision} is what was before")
            } else {
                format!("confirmed: revision {revision} stays")
            }
        },
        || json!({ "revision": revision, "undone": undo }),
    )?;
    Ok(Exit::Success)
}

async fn read(session: &Session, revision: u64) -> Result<v1::Topology> {
    let mut admin = session.controller().await?;
    ask_controller(admin.read_topology(v1::ReadTopologyRequest { revision })).await
}

async fn history(session: &Session) -> Result<Vec<v1::AppliedRevision>> {
    let mut admin = session.controller().await?;
    Ok(ask_controller(admin.list_revisions(v1::ListRevisionsRequest {})).await?.revisions)
}

async fn get(session: &Session, revision: Option<u64>, out: Option<&Path>) -> Result<Exit> {
    let topology = read(session, revision.unwrap_or_default()).await?;
    if let Some(out) = out {
        write(out, &topology.files)?;
    }
    match session.output {
        Format::Json => output::json(&topology_json(&topology))?,
        Format::Text if out.is_none() => output::say(&files_text(&topology.files))?,
        Format::Text => {}
    }
    if session.output == Format::Text {
        output::complain(&about(&topology, now()));
    }
    Ok(Exit::Success)
}

/// As they stand; where there are several, a comment before each says which it is.
fn files_text(files: &[v1::File]) -> String {
    match files {
        [only] => only.text.clone(),
        files => {
            let one = |file: &v1::File| {
                let end = if file.text.ends_with('\n') { "" } else { "\n" };
                format!("# ==> {} <==\n{}{end}", clean(&file.name), file.text)
            };
            files.iter().map(one).collect()
        }
    }
}

fn about(topology: &v1::Topology, now: i64) -> String {
    match &topology.applied {
        None => "nobody has applied a topology yet".to_owned(),
        Some(applied) => in_words(applied, now),
    }
}

/// "revision 7, applied by alice 3 min ago: more hosts"
pub(crate) fn in_words(applied: &v1::AppliedRevision, now: i64) -> String {
    format!("revision {}{}{}", applied.revision, by(applied, now), note(applied))
}

/// ", applied by alice 3 min ago"
fn by(applied: &v1::AppliedRevision, now: i64) -> String {
    match (&*applied.by, applied.at) {
        (_, 0) => String::new(),
        (by, at) => format!(", applied by {} {}", clean(by), relative(at, now)),
    }
}

fn note(applied: &v1::AppliedRevision) -> String {
    if applied.note.is_empty() { String::new() } else { format!(": {}", clean(&applied.note)) }
}

/// Into a new folder, each under the last part of its name.
fn write(out: &Path, files: &[v1::File]) -> Result<()> {
    let made = fs::DirBuilder::new().mode(0o700).create(out);
    made.with_context(|| format!("Failed to make the folder {}", out.display()))?;
    let mut taken = BTreeSet::new();
    for file in files {
        let path = out.join(free_name(&file.name, &mut taken));
        fs::write(&path, &file.text)
            .with_context(|| format!("Failed to write {}", path.display()))?;
    }
    Ok(())
}

fn free_name(name: &str, taken: &mut BTreeSet<PathBuf>) -> PathBuf {
    let last = Path::new(name).file_name().unwrap_or_default();
    let mut path = PathBuf::from(last);
    if path.extension().is_none_or(|extension| extension != "toml") {
        path = "topology.toml".into();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let others = (2..).map(|number| PathBuf::from(format!("{stem}-{number}.toml")));
    let free = std::iter::once(path.clone()).chain(others).find(|name| !taken.contains(name));
    let free = free.unwrap_or(path);
    taken.insert(free.clone());
    free
}

async fn rollback(session: &Session, revision: Option<u64>, how: How) -> Result<Exit> {
    let wanted = match revision {
        Some(revision) => revision,
        None => before(&history(session).await?)?,
    };
    let topology = read(session, wanted).await?;
    let Some(applied) = &topology.applied else {
        let problem = format!("There is nothing to go back to at revision {wanted}");
        return Err(Failure::Refused(problem).into());
    };
    if session.output == Format::Text {
        output::complain(&format!("going back to {}", about(&topology, now())));
    }
    let note = how.note.unwrap_or_else(|| format!("rollback to revision {}", applied.revision));
    let files = sources::from_messages(topology.files);
    apply::submit(session, &files, &How { note: Some(note), ..how }).await
}

/// What ran before what runs.
fn before(newest_first: &[v1::AppliedRevision]) -> Result<u64> {
    match newest_first {
        [_, before, ..] => Ok(before.revision),
        [] | [_] => Err(Failure::Refused(
            "There is no topology before this one; `agentctl topology history` shows all"
                .to_owned(),
        )
        .into()),
    }
}

fn history_text(newest_first: &[v1::AppliedRevision], now: i64) -> String {
    if newest_first.is_empty() {
        return "nobody has applied a topology yet".to_owned();
    }
    let row = |(place, one): (usize, &v1::AppliedRevision)| {
        let (state, tone) = match (place, one.undone_at) {
            (0, 0) => ("runs".to_owned(), Tone::Good),
            (0, at) => (format!("on trial, undone {}", relative(at, now)), Tone::Warn),
            (_, _) => (String::new(), Tone::Plain),
        };
        vec![
            toned(one.revision, Tone::Strong),
            cell(relative(one.at, now)),
            cell(&one.by),
            toned(state, tone),
            cell(&one.note),
        ]
    };
    table(
        &["REVISION", "APPLIED", "BY", "STATE", "NOTE"],
        newest_first.iter().enumerate().map(row).collect(),
    )
}

pub(crate) fn revision_json(one: &v1::AppliedRevision) -> Value {
    json!({
        "revision": one.revision,
        "at": timestamp(one.at),
        "by": known(&one.by),
        "note": known(&one.note),
        "undone_at": timestamp(one.undone_at),
    })
}

fn topology_json(topology: &v1::Topology) -> Value {
    let file = |file: &v1::File| json!({ "name": file.name, "text": file.text });
    json!({
        "revision": topology.revision,
        "applied": topology.applied.as_ref().map(revision_json),
        "files": topology.files.iter().map(file).collect::<Value>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::plain;

    const NOW: i64 = 1_700_000_000;

    fn applied(revision: u64, by: &str, note: &str) -> v1::AppliedRevision {
        let (by, note) = (by.to_owned(), note.to_owned());
        v1::AppliedRevision { revision, at: NOW - 600, by, note, undone_at: 0 }
    }

    fn file(name: &str) -> v1::File {
        v1::File { name: name.to_owned(), text: format!("# {name}") }
    }

    #[test]
    fn history_says_who_when_and_what_runs() {
        let old = v1::AppliedRevision { at: 0, ..applied(3, "", "no history") };
        let trial = v1::AppliedRevision { undone_at: NOW + 300, ..applied(12, "alice", "") };
        let text = plain(&history_text(&[trial.clone(), applied(7, "bob", "api v2"), old], NOW));
        for part in [
            "12        10 min ago  alice  on trial, undone in 5 min",
            "7         10 min ago  bob",
            "no history",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(plain(&history_text(&[applied(7, "bob", "")], NOW)).contains("runs"));
        assert_eq!(revision_json(&trial)["undone_at"], "2023-11-14T22:18:20Z");
        assert_eq!(
            (before(&[trial, applied(7, "", "")]).unwrap(), before(&[]).is_err()),
            (7, true)
        );
    }

    #[test]
    fn files_are_written_beside_each_other_and_over_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let names = ["/etc/a/mesh.toml", "b/mesh.toml", "<stdin>", "..", "c.toml"];
        write(&out, &names.map(file)).unwrap();
        let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
        assert_eq!(read("mesh.toml"), "# /etc/a/mesh.toml");
        assert_eq!(read("mesh-2.toml"), "# b/mesh.toml");
        assert_eq!(
            (read("topology.toml"), read("topology-2.toml")),
            ("# <stdin>".into(), "# ..".into())
        );
        assert_eq!(fs::read_dir(&out).unwrap().count(), 5);
        assert!(write(&out, &[file("d.toml")]).is_err());
    }

    #[test]
    fn one_file_is_printed_as_it_is() {
        assert_eq!(files_text(&[file("a")]), "# a");
        assert_eq!(files_text(&[file("a"), file("b")]), "# ==> a <==\n# a\n# ==> b <==\n# b\n");
    }
}
