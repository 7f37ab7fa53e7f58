//! What is where in the database.
//!
//! ```text
//!  meta     "format", "revision", "files", "allocation", "deliveries", "leaving"  JSON
//!           "epochs", "belongs"                                                  JSON
//!           "mark": a number of each commit's own                                JSON
//!  members  by name                                                              JSON
//!  tokens   by id                                                                JSON
//! ```

use isthmus_controller_core::delivery::Delivery;
use isthmus_model::topology::SourceFile;
use isthmus_model::{HostId, Revision};
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

pub(super) fn format(database: &Database) -> Result<u32, redb::Error> {
    Ok(meta(database, "format")?.unwrap_or_default())
}

pub(super) fn mark(database: &Database) -> Result<Mark, redb::Error> {
    Ok(meta(database, "mark")?.unwrap_or_default())
}

pub(super) fn load(database: &Database) -> Result<Saved, redb::Error> {
    let files: Vec<SavedFile> = meta(database, "files")?.unwrap_or_default();
    let source = |file: SavedFile| SourceFile { name: file.name.into(), text: file.text };
    let deliveries: Vec<(String, Delivery)> = meta(database, "deliveries")?.unwrap_or_default();
    let named = |(name, delivery): (String, Delivery)| Some((name.parse().ok()?, delivery));
    let leaving: Vec<(String, u32, i64)> = meta(database, "leaving")?.unwrap_or_default();
    let workload = |(service, host, since): (String, u32, i64)| {
        Some((service.parse().ok()?, HostId(host), since))
    };
    Ok(Saved {
        revision: Revision(meta(database, "revision")?.unwrap_or_default()),
        files: files.into_iter().map(source).collect(),
        allocation: meta(database, "allocation")?.unwrap_or_default(),
        members: all(database, MEMBERS)?,
        tokens: all(database, TOKENS)?,
        deliveries: deliveries.into_iter().filter_map(named).collect(),
        leaving: leaving.into_iter().filter_map(workload).collect(),
        epochs: meta(database, "epochs")?.unwrap_or_default(),
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
        Change::Files(files) => {
            let saved = |file: &SourceFile| SavedFile {
                name: file.name.to_string(),
                text: file.text.clone(),
            };
            put(transaction, META, "files", &files.iter().map(saved).collect::<Vec<_>>())
        }
        Change::Epochs(epochs) => put(transaction, META, "epochs", epochs),
        Change::Belongs(belongs) => put(transaction, META, "belongs", belongs),
        Change::Allocation(allocation) => put(transaction, META, "allocation", allocation),
        Change::Deliveries(deliveries) => {
            let named: Vec<(&str, &Delivery)> =
                deliveries.iter().map(|(name, delivery)| (name.as_str(), delivery)).collect();
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
