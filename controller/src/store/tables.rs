//! Tables of the database.
//!
//! ```text
//!  meta     "format", "revision", "files", "allocation", "deliveries", "leaving"  JSON
//!           "epochs", "belongs", "pending"                                       JSON
//!           "mark": a number of each commit's own                                JSON
//!  members  by name                                                              JSON
//!  tokens   by id                                                                JSON
//!  applied  by revision; acts by number; operators by name                       JSON
//! ```
//!
//! Versions from before a table was there leave it alone.

use isthmus_controller_core::rollout::Rollout;
use isthmus_controller_core::{AppliedRevision, Pending};
use isthmus_model::topology::SourceFile;
use isthmus_model::{HostId, Name, Revision};
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Change, Saved};

type Table = TableDefinition<'static, &'static str, &'static [u8]>;

const META: Table = TableDefinition::new("meta");
const MEMBERS: Table = TableDefinition::new("members");
const TOKENS: Table = TableDefinition::new("tokens");
const APPLIED: Table = TableDefinition::new("applied");
const ACTS: Table = TableDefinition::new("acts");
const OPERATORS: Table = TableDefinition::new("operators");

/// The newest format that this program knows.
pub(super) const FORMAT: u32 = 1;

/// A number of each commit's own: tells whether one that failed was made all the same. 0 in stores
/// from before there were any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub(super) struct Mark(u64);

impl Mark {
    pub(super) fn random() -> Result<Self, redb::Error> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
        Ok(Self(u64::from_le_bytes(bytes)))
    }
}

#[derive(Serialize, serde::Deserialize)]
struct SavedFile {
    name: String,
    text: String,
}

impl SavedFile {
    fn of(file: &SourceFile) -> Self {
        Self { name: file.name.to_string(), text: file.text.clone() }
    }

    fn all(files: &[SourceFile]) -> Vec<Self> {
        files.iter().map(Self::of).collect()
    }

    fn source(self) -> SourceFile {
        SourceFile { name: self.name.into(), text: self.text }
    }
}

#[derive(Serialize, serde::Deserialize)]
struct SavedRevision {
    revision: u64,
    at: i64,
    by: String,
    note: String,
    files: Vec<SavedFile>,
}

impl SavedRevision {
    fn of(one: &AppliedRevision) -> Self {
        let AppliedRevision { revision, at, by, note, files } = one;
        let (by, note, files) = (by.clone(), note.clone(), SavedFile::all(files));
        Self { revision: revision.0, at: *at, by, note, files }
    }

    fn applied(self) -> AppliedRevision {
        let Self { revision, at, by, note, files } = self;
        let files = files.into_iter().map(SavedFile::source).collect();
        AppliedRevision { revision: Revision(revision), at, by, note, files }
    }
}

#[derive(Serialize, serde::Deserialize)]
struct SavedPending {
    revision: u64,
    by: String,
    deadline: i64,
    within: u64,
    files: Vec<SavedFile>,
    rollouts: Vec<(String, Rollout)>,
}

impl SavedPending {
    fn of(pending: &Pending) -> Self {
        let Pending { revision, by, deadline, within, files, rollouts } = pending;
        let named = |(name, rollout): (&Name, &Rollout)| (name.to_string(), rollout.clone());
        Self {
            revision: revision.0,
            by: by.clone(),
            deadline: *deadline,
            within: *within,
            files: SavedFile::all(files),
            rollouts: rollouts.iter().map(named).collect(),
        }
    }

    fn pending(self) -> Pending {
        let Self { revision, by, deadline, within, files, rollouts } = self;
        Pending {
            revision: Revision(revision),
            by,
            deadline,
            within,
            files: files.into_iter().map(SavedFile::source).collect(),
            rollouts: rollouts.into_iter().filter_map(named).collect(),
        }
    }
}

fn named((name, rollout): (String, Rollout)) -> Option<(Name, Rollout)> {
    Some((name.parse().ok()?, rollout))
}

/// Numbers in the order of their texts.
fn key(number: u64) -> String {
    format!("{number:020}")
}

pub(super) fn format(database: &Database) -> Result<u32, redb::Error> {
    Ok(meta(database, "format")?.unwrap_or_default())
}

pub(super) fn mark(database: &Database) -> Result<Mark, redb::Error> {
    Ok(meta(database, "mark")?.unwrap_or_default())
}

pub(super) fn load(database: &Database) -> Result<Saved, redb::Error> {
    let files: Vec<SavedFile> = meta(database, "files")?.unwrap_or_default();
    let rollouts: Vec<(String, Rollout)> = meta(database, "deliveries")?.unwrap_or_default();
    let leaving: Vec<(String, u32, i64)> = meta(database, "leaving")?.unwrap_or_default();
    let workload = |(service, host, since): (String, u32, i64)| {
        Some((service.parse().ok()?, HostId(host), since))
    };
    let applied: Vec<SavedRevision> = all(database, APPLIED)?;
    let pending: Option<Option<SavedPending>> = meta(database, "pending")?;
    Ok(Saved {
        revision: Revision(meta(database, "revision")?.unwrap_or_default()),
        files: files.into_iter().map(SavedFile::source).collect(),
        allocation: meta(database, "allocation")?.unwrap_or_default(),
        members: all(database, MEMBERS)?,
        tokens: all(database, TOKENS)?,
        rollouts: rollouts.into_iter().filter_map(named).collect(),
        leaving: leaving.into_iter().filter_map(workload).collect(),
        epochs: meta(database, "epochs")?.unwrap_or_default(),
        applied: applied.into_iter().map(SavedRevision::applied).collect(),
        pending: pending.flatten().map(SavedPending::pending),
        operators: all(database, OPERATORS)?,
        acts: all(database, ACTS)?,
        belongs: meta(database, "belongs")?,
    })
}

/// Makes a new database one of ours.
pub(super) fn begin(database: &Database) -> Result<(), redb::Error> {
    begin_as(database, FORMAT)
}

pub(super) fn begin_as(database: &Database, format: u32) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    put(&transaction, META, "format", &format)?;
    put(&transaction, META, "mark", &Mark::default())?;
    transaction.commit()?;
    Ok(())
}

/// Makes changes, all or none.
pub(super) fn write(
    database: &Database,
    changes: &[Change],
    mark: Mark,
) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    changes.iter().try_for_each(|change| apply(&transaction, change))?;
    put(&transaction, META, "mark", &mark)?;
    transaction.commit()?;
    Ok(())
}

fn meta<T: DeserializeOwned>(database: &Database, key: &str) -> Result<Option<T>, redb::Error> {
    let table = database.begin_read()?.open_table(META)?;
    let value = table.get(key)?;
    value.map(|json| decode(json.value())).transpose()
}

fn all<T: DeserializeOwned>(database: &Database, table: Table) -> Result<Vec<T>, redb::Error> {
    let table = match database.begin_read()?.open_table(table) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    table.iter()?.map(|entry| decode(entry?.1.value())).collect()
}

fn decode<T: DeserializeOwned>(json: &[u8]) -> Result<T, redb::Error> {
    serde_json::from_slice(json).map_err(|error| redb::Error::Corrupted(error.to_string()))
}

fn apply(transaction: &WriteTransaction, change: &Change) -> Result<(), redb::Error> {
    match change {
        Change::Revision(revision) => put(transaction, META, "revision", &revision.0),
        Change::Files(files) => put(transaction, META, "files", &SavedFile::all(files)),
        Change::Applied(one) => {
            put(transaction, APPLIED, &key(one.revision.0), &SavedRevision::of(one))
        }
        Change::AppliedGone(revision) => remove(transaction, APPLIED, &key(revision.0)),
        Change::Pending(pending) => {
            put(transaction, META, "pending", &pending.as_ref().map(SavedPending::of))
        }
        Change::Operator(operator) => put(transaction, OPERATORS, operator.name.as_str(), operator),
        Change::Act(act) => put(transaction, ACTS, &key(act.number), act),
        Change::ActGone(number) => remove(transaction, ACTS, &key(*number)),
        Change::Epochs(epochs) => put(transaction, META, "epochs", epochs),
        Change::Belongs(belongs) => put(transaction, META, "belongs", belongs),
        Change::Allocation(allocation) => put(transaction, META, "allocation", allocation),
        Change::Rollouts(rollouts) => {
            let named: Vec<(&str, &Rollout)> =
                rollouts.iter().map(|(name, rollout)| (name.as_str(), rollout)).collect();
            put(transaction, META, "deliveries", &named)
        }
        Change::Leaving(leaving) => {
            let all =
                leaving.iter().map(|(service, host, since)| (service.as_str(), host.0, since));
            put(transaction, META, "leaving", &all.collect::<Vec<_>>())
        }
        Change::Member(member) => put(transaction, MEMBERS, member.name.as_str(), member),
        Change::MemberGone(name) => remove(transaction, MEMBERS, name.as_str()),
        Change::Token(token) => put(transaction, TOKENS, &token.id.to_string(), token),
        Change::TokenGone(id) => remove(transaction, TOKENS, &id.to_string()),
    }
}

fn put(
    transaction: &WriteTransaction,
    table: Table,
    key: &str,
    value: &impl Serialize,
) -> Result<(), redb::Error> {
    let json = serde_json::to_vec(value).map_err(std::io::Error::from)?;
    transaction.open_table(table)?.insert(key, json.as_slice())?;
    Ok(())
}

fn remove(transaction: &WriteTransaction, table: Table, key: &str) -> Result<(), redb::Error> {
    transaction.open_table(table)?.remove(key)?;
    Ok(())
}
