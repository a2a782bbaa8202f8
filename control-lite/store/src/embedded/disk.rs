//! The redb file: one row per object, and the numbers that keep revisions from ever going back.
//!
//! Volatile writes take revisions without touching the disk, so the last revision on disk may be
//! older than one a client has seen. Therefore the file holds a *ceiling* that is raised before
//! revisions pass it; after a crash the store goes on from there. After an orderly close it goes on
//! exactly where it stopped.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::state::{Entry, Loaded};
use crate::error::OpenError;
use crate::store::{Class, Revision};

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
/// No revision above this one was ever handed out.
const CEILING: &str = "ceiling";
/// The last revision, written by an orderly close and removed by the next open.
const CLOSED_AT: &str = "closed-at";
/// How far the ceiling is raised at a time: one small write per million volatile writes.
const CEILING_STEP: u64 = 1_000_000;

const ROW_FORMAT: u8 = 1;
const ROW_HEADER: usize = 10;
/// Live objects are in memory, so redb's cache only serves the pages it is about to write.
const PAGE_CACHE_BYTES: usize = 4 << 20;

/// One row to write or remove.
#[derive(Debug)]
pub(super) enum Row {
    Put(Arc<str>, Entry),
    Remove(Arc<str>),
}

impl Row {
    pub(super) fn key(&self) -> &Arc<str> {
        match self {
            Self::Put(key, _) | Self::Remove(key) => key,
        }
    }
}

#[derive(Debug)]
pub(super) struct Disk {
    database: Database,
    ceiling: Revision,
    /// Volatile objects of which some version is on disk: their deletion has to reach it.
    pub(super) volatile_keys: HashSet<Arc<str>>,
}

/// Secrets lie in the file: nobody but its owner reads it, also where an older version made it.
fn open_for_owner(path: &Path) -> std::io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

impl Disk {
    pub(super) fn open(path: &Path) -> Result<(Self, Loaded), OpenError> {
        let failed = |source: redb::Error| OpenError::Open {
            path: path.to_path_buf(),
            source: Box::new(source),
        };
        let database = Database::builder()
            .set_cache_size(PAGE_CACHE_BYTES)
            .create_file(open_for_owner(path).map_err(|error| failed(redb::Error::Io(error)))?)
            .map_err(|error| failed(error.into()))?;
        create_tables(&database).map_err(failed)?;
        let rows = read_rows(&database).map_err(failed)?;
        let (closed_at, ceiling) = read_numbers(&database).map_err(failed)?;
        let loaded = decode(path, rows, closed_at.unwrap_or(ceiling))?;
        let volatile_keys = loaded
            .objects
            .iter()
            .filter(|(_, entry)| entry.class == Class::Volatile)
            .map(|(key, _)| Arc::clone(key))
            .collect();
        let mut disk = Self {
            database,
            ceiling: loaded.revision,
            volatile_keys,
        };
        // Reserves revisions for volatile writes and forgets the orderly close.
        disk.commit(&[], loaded.revision + 1).map_err(failed)?;
        Ok((disk, loaded))
    }

    /// Whether a write of this revision needs the disk even if nothing else does.
    pub(super) fn must_raise_ceiling(&self, revision: Revision) -> bool {
        revision > self.ceiling
    }

    /// Makes rows durable. On return they survive a power cut.
    pub(super) fn commit(&mut self, rows: &[Row], last: Revision) -> Result<(), redb::Error> {
        let ceiling = if last > self.ceiling {
            last + CEILING_STEP
        } else {
            self.ceiling
        };
        let transaction = self.database.begin_write()?;
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            for row in rows {
                match row {
                    Row::Put(key, entry) => {
                        objects.insert(&**key, encode(entry).as_slice())?;
                    }
                    Row::Remove(key) => {
                        objects.remove(&**key)?;
                    }
                }
            }
            if ceiling != self.ceiling {
                let mut numbers = transaction.open_table(NUMBERS)?;
                numbers.insert(CEILING, ceiling)?;
                numbers.remove(CLOSED_AT)?;
            }
        }
        transaction.commit()?;
        self.ceiling = ceiling;
        self.remember_volatile(rows);
        Ok(())
    }

    /// The last commit: the next open goes on from exactly this revision.
    pub(super) fn close(mut self, rows: &[Row], last: Revision) -> Result<(), redb::Error> {
        self.commit(rows, last)?;
        let transaction = self.database.begin_write()?;
        transaction.open_table(NUMBERS)?.insert(CLOSED_AT, last)?;
        transaction.commit()?;
        Ok(())
    }

    fn remember_volatile(&mut self, rows: &[Row]) {
        for row in rows {
            match row {
                Row::Put(key, entry) if entry.class == Class::Volatile => {
                    self.volatile_keys.insert(Arc::clone(key));
                }
                Row::Put(key, _) | Row::Remove(key) => {
                    self.volatile_keys.remove(key);
                }
            }
        }
    }
}

fn create_tables(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(OBJECTS)?;
    transaction.open_table(NUMBERS)?;
    transaction.commit()?;
    Ok(())
}

fn read_rows(database: &Database) -> Result<Vec<(Arc<str>, Bytes)>, redb::Error> {
    let table = database.begin_read()?.open_table(OBJECTS)?;
    let mut rows = Vec::new();
    for row in table.iter()? {
        let (key, value) = row?;
        rows.push((
            Arc::from(key.value()),
            Bytes::copy_from_slice(value.value()),
        ));
    }
    Ok(rows)
}

fn read_numbers(database: &Database) -> Result<(Option<Revision>, Revision), redb::Error> {
    let table = database.begin_read()?.open_table(NUMBERS)?;
    let closed_at = table.get(CLOSED_AT)?.map(|value| value.value());
    let ceiling = table.get(CEILING)?.map_or(0, |value| value.value());
    Ok((closed_at, ceiling))
}

fn decode(
    path: &Path,
    rows: Vec<(Arc<str>, Bytes)>,
    revision: Revision,
) -> Result<Loaded, OpenError> {
    let mut objects = BTreeMap::new();
    for (key, row) in rows {
        let entry = decode_row(&row).ok_or_else(|| OpenError::Row {
            path: PathBuf::from(path),
            key: key.to_string(),
        })?;
        objects.insert(key, entry);
    }
    Ok(Loaded { objects, revision })
}

fn encode(entry: &Entry) -> Vec<u8> {
    let mut row = Vec::with_capacity(ROW_HEADER + entry.value.len());
    row.push(ROW_FORMAT);
    row.push(match entry.class {
        Class::Durable => 0,
        Class::Volatile => 1,
    });
    row.extend_from_slice(&entry.revision.to_le_bytes());
    row.extend_from_slice(&entry.value);
    row
}

fn decode_row(row: &Bytes) -> Option<Entry> {
    let (header, _) = row.split_first_chunk::<ROW_HEADER>()?;
    let [format, class, revision @ ..] = *header;
    let class = match (format, class) {
        (ROW_FORMAT, 0) => Class::Durable,
        (ROW_FORMAT, 1) => Class::Volatile,
        _ => return None,
    };
    Some(Entry {
        value: row.slice(ROW_HEADER..),
        revision: Revision::from_le_bytes(revision),
        class,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_survives_encoding() {
        let entry = Entry {
            value: Bytes::from_static(b"{}"),
            revision: 1 << 40,
            class: Class::Volatile,
        };
        let row = Bytes::from(encode(&entry));
        let decoded = decode_row(&row).unwrap();
        assert_eq!(decoded.value, entry.value);
        assert_eq!(decoded.revision, entry.revision);
        assert_eq!(decoded.class, entry.class);
    }

    #[test]
    fn a_row_of_an_unknown_format_is_refused() {
        assert!(decode_row(&Bytes::from_static(&[9, 0, 0, 0, 0, 0, 0, 0, 0, 0])).is_none());
        assert!(decode_row(&Bytes::from_static(&[1, 0, 0])).is_none());
    }
}
