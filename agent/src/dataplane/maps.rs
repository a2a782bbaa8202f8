//! Typed handles of the pinned maps: domain types outside, ABI layouts inside. One map per file.

use std::path::PathBuf;

use aya::maps::{Map, MapData, MapError};

pub mod backend_slots;
pub mod backends;
pub mod batch;
pub mod batch_read;
pub mod drops;
pub mod frontends;
pub mod pod_routes;
pub mod policies;
pub mod socket_netns;
pub mod source_ranges;
pub mod workloads;

/// Why a map operation failed.
#[derive(Debug, thiserror::Error)]
pub enum MapAccessError {
    #[error("failed to open the pinned map {}", path.display())]
    Open { path: PathBuf, source: MapError },
    #[error("the pinned map {} has entries of another size", path.display())]
    Layout { path: PathBuf },
    #[error("the {map} map is full")]
    Full { map: &'static str },
    #[error("failed to {operation} an entry of {map}")]
    Access {
        operation: &'static str,
        map: &'static str,
        source: MapError,
    },
}

type Pinned = MapData;

fn open(pins: &super::pin::PinDirectory, name: &str) -> Result<Map, MapAccessError> {
    let path = pins.map(name);
    MapData::from_pin(&path)
        .and_then(Map::from_map_data)
        .map_err(|source| MapAccessError::Open { path, source })
}

fn opened<T>(
    pins: &super::pin::PinDirectory,
    name: &str,
    result: Result<T, MapError>,
) -> Result<T, MapAccessError> {
    result.map_err(|source| MapAccessError::Open {
        path: pins.map(name),
        source,
    })
}

/// Names the map on the result of an operation.
fn access<T>(
    operation: &'static str,
    map: &'static str,
    result: Result<T, MapError>,
) -> Result<T, MapAccessError> {
    result.map_err(|source| match &source {
        MapError::SyscallError(error)
            if matches!(
                error.io_error.raw_os_error(),
                Some(libc::E2BIG | libc::ENOSPC)
            ) =>
        {
            MapAccessError::Full { map }
        }
        MapError::IoError(error)
            if matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) =>
        {
            MapAccessError::Full { map }
        }
        _ => MapAccessError::Access {
            operation,
            map,
            source,
        },
    })
}

/// A removal of what is not there is done.
fn removed(map: &'static str, result: Result<(), MapError>) -> Result<(), MapAccessError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => access("remove", map, other),
    }
}

/// Every entry, read back.
fn entries<K, V>(
    map: &'static str,
    iterator: impl Iterator<Item = Result<(K, V), MapError>>,
) -> Result<Vec<(K, V)>, MapAccessError> {
    access("read", map, iterator.collect())
}
