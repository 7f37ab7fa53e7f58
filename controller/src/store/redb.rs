//! The embedded store: one file.
//!
//! ```text
//!  meta     "format", "revision", "files", "allocation", "deliveries", "leaving"  JSON
//!  members  by name                                      JSON
//!  tokens   by id                                        JSON
//! ```

use std::path::Path;

use isthmus_controller_core::delivery::Delivery;
use isthmus_model::topology::SourceFile;
use isthmus_model::{HostId, Revision};
use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, TableDefinition,
    WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Change, Saved, Store, StoreError};
use crate::files;

type Table = TableDefinition<'static, &'static str, &'static [u8]>;

const META: Table = TableDefinition::new("meta");
const MEMBERS: Table = TableDefinition::new("members");
const TOKENS: Table = TableDefinition::new("tokens");

const FORMAT: u32 = 1;
/// The whole of a large mesh is a few megabytes.
const CACHE_BYTES: usize = 4 << 20;

/// A store in one file, which no other process can open meanwhile.
#[derive(Debug)]
pub struct Redb {
    database: Database,
    file: String,
}

#[derive(Serialize, serde::Deserialize)]
struct SavedFile {
    name: String,
    text: String,
}

impl Redb {
    /// The file's name in the state directory.
    pub const FILE: &str = "store.redb";

    /// Makes a new, empty store.
    ///
    /// # Errors
    ///
    /// There is one already, or it can't be written.
    pub fn create(state_dir: &Path) -> Result<Self, StoreError> {
        let path = state_dir.join(Self::FILE);
        let name = path.display().to_string();
        let failed =
            |error: &dyn std::fmt::Display| StoreError::Failed(name.clone(), error.to_string());
        let file = files::create(&path).map_err(|error| failed(&error))?;
        let backend = FileBackend::new(file).map_err(|error| failed(&error))?;
        let database = Builder::new()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(backend)
            .map_err(|error| failed(&error))?;
        let store = Self { database, file: name };
        store.write(|transaction| put(transaction, META, "format", &FORMAT))?;
        Ok(store)
    }

    /// Opens the store of a state directory.
    ///
    /// # Errors
    ///
    /// There is none, another process has it open, or a newer version wrote it.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let path = state_dir.join(Self::FILE);
        let file = path.display().to_string();
        let database = Builder::new().set_cache_size(CACHE_BYTES).open(&path);
        let database = database.map_err(|error| {
            if matches!(error, DatabaseError::DatabaseAlreadyOpen) {
                return StoreError::InUse(file.clone());
            }
            StoreError::Failed(file.clone(), error.to_string())
        })?;
        let store = Self { database, file };
        let found: u32 = store.meta("format")?.unwrap_or_default();
        if found > FORMAT {
            return Err(StoreError::TooNew { file: store.file, found, known: FORMAT });
        }
        Ok(store)
    }

    fn write(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        let transact = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            work(&transaction)?;
            transaction.commit()?;
            Ok(())
        };
        transact().map_err(|error| StoreError::Failed(self.file.clone(), error.to_string()))
    }

    fn meta<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let value = self.read(|| {
            let table = self.database.begin_read()?.open_table(META)?;
            Ok(table.get(key)?.map(|value| value.value().to_vec()))
        })?;
        value.map(|json| self.decode(&json)).transpose()
    }

    fn all<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<T>, StoreError> {
        let values = self.read(|| match self.database.begin_read()?.open_table(table) {
            Ok(table) => table.iter()?.map(|entry| Ok(entry?.1.value().to_vec())).collect(),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        })?;
        values.iter().map(|json: &Vec<u8>| self.decode(json)).collect()
    }

    fn read<T>(&self, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, StoreError> {
        work().map_err(|error| StoreError::Failed(self.file.clone(), error.to_string()))
    }

    fn decode<T: DeserializeOwned>(&self, json: &[u8]) -> Result<T, StoreError> {
        serde_json::from_slice(json)
            .map_err(|error| StoreError::Damaged(self.file.clone(), error.to_string()))
    }
}

impl Store for Redb {
    fn load(&self) -> Result<Saved, StoreError> {
        let files: Vec<SavedFile> = self.meta("files")?.unwrap_or_default();
        let source = |file: SavedFile| SourceFile { name: file.name.into(), text: file.text };
        let deliveries: Vec<(String, Delivery)> = self.meta("deliveries")?.unwrap_or_default();
        let named = |(name, delivery): (String, Delivery)| Some((name.parse().ok()?, delivery));
        let leaving: Vec<(String, u32, i64)> = self.meta("leaving")?.unwrap_or_default();
        let workload = |(service, host, since): (String, u32, i64)| {
            Some((service.parse().ok()?, HostId(host), since))
        };
        Ok(Saved {
            revision: Revision(self.meta("revision")?.unwrap_or_default()),
            files: files.into_iter().map(source).collect(),
            allocation: self.meta("allocation")?.unwrap_or_default(),
            members: self.all(MEMBERS)?,
            tokens: self.all(TOKENS)?,
            deliveries: deliveries.into_iter().filter_map(named).collect(),
            leaving: leaving.into_iter().filter_map(workload).collect(),
        })
    }

    fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.write(|transaction| changes.iter().try_for_each(|change| apply(transaction, change)))
    }
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

#[cfg(test)]
mod tests {
    use isthmus_controller_core::Leaving;

    use super::*;

    #[test]
    fn what_was_committed_is_there_after_opening_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = SourceFile { name: "a.toml".into(), text: "[mesh]".to_owned() };
        let store = Redb::create(folder.path()).unwrap();
        let leaving: Leaving = [("api".parse().unwrap(), HostId(3), 1_000)].into_iter().collect();
        let changes = [
            Change::Revision(Revision(7)),
            Change::Files(vec![file.clone()]),
            Change::Leaving(leaving.clone()),
        ];
        store.commit(&changes).unwrap();
        drop(store);
        let saved = Redb::open(folder.path()).unwrap().load().unwrap();
        assert_eq!(saved.revision, Revision(7));
        assert_eq!(saved.files, [file]);
        assert_eq!(saved.leaving, leaving);
        assert!(saved.members.is_empty() && saved.tokens.is_empty());
    }

    #[test]
    fn a_store_in_use_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let _open = Redb::create(folder.path()).unwrap();
        let error = Redb::open(folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::InUse(_)), "{error}");
    }

    #[test]
    fn a_newer_format_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Redb::create(folder.path()).unwrap();
        store.write(|transaction| put(transaction, META, "format", &99)).unwrap();
        drop(store);
        let error = Redb::open(folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::TooNew { found: 99, .. }), "{error}");
    }
}
