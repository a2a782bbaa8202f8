//! Whole maps in few system calls. An iterator needs two calls for each entry, and skips or repeats
//! entries while the programs change the map; a batch is a run of whole buckets.

#![expect(unsafe_code, reason = "the batch commands of bpf(2) have no wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use aya::Pod;

/// `BPF_MAP_LOOKUP_BATCH`.
const LOOKUP_BATCH: libc::c_int = 24;
/// Entries asked for at a time. A bucket that is larger makes the kernel ask for more.
const CHUNK: usize = 4096;

/// The `batch` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Every entry of a hash map. Kernel 5.6.
pub fn read_all<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut entries = Vec::new();
    let mut chunk = CHUNK;
    // Where the next batch begins; the kernel's own business, and no larger than this.
    let mut position = [0_u64; 8];
    let mut is_first = true;
    loop {
        let mut keys: Vec<K> = Vec::with_capacity(chunk);
        let mut values: Vec<V> = Vec::with_capacity(chunk);
        let mut next = [0_u64; 8];
        let mut attributes = Attributes {
            in_batch: if is_first {
                0
            } else {
                position.as_ptr() as u64
            },
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(chunk).unwrap_or(u32::MAX),
            map_fd: map.as_raw_fd().cast_unsigned(),
            ..Attributes::default()
        };
        // SAFETY: `attributes` is a valid `union bpf_attr` for the command and outlives the call, and so do
        // the buffers it points at, which have room for `count` keys and values.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                LOOKUP_BATCH,
                &raw mut attributes,
                size_of::<Attributes>(),
            )
        };
        let error = (result != 0).then(io::Error::last_os_error);
        let code = error.as_ref().and_then(io::Error::raw_os_error);
        if code == Some(libc::ENOSPC) && chunk < 1 << 20 {
            chunk *= 2;
            continue;
        }
        if let Some(error) = error
            && code != Some(libc::ENOENT)
        {
            return Err(error);
        }
        let count = (attributes.count as usize).min(chunk);
        // SAFETY: the kernel wrote that many keys and values, all bit patterns of which are valid (`Pod`).
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        entries.extend(keys.into_iter().zip(values));
        if code == Some(libc::ENOENT) {
            return Ok(entries);
        }
        position = next;
        is_first = false;
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::path::PathBuf;

    use aya::maps::{HashMap, Map, MapData};

    use super::*;
    use crate::dataplane::pin::PinDirectory;

    #[test]
    fn a_map_of_many_chunks_is_read_whole() {
        if tholepin_harness::skip::unless(tholepin_harness::skip::root()).is_none() {
            return;
        }
        let root = PathBuf::from(format!("/sys/fs/bpf/thpt-{}-batch", std::process::id()));
        let pins = PinDirectory::prepare(&root).unwrap();
        let map = HashMap::<MapData, u64, u32>::create(20_000, 0).unwrap();
        map.pin(pins.map("TEST")).unwrap();
        let pinned = MapData::from_pin(pins.map("TEST")).unwrap();
        let again = MapData::from_pin(pins.map("TEST")).unwrap();
        let mut map = HashMap::<_, u64, u32>::try_from(Map::HashMap(again)).unwrap();
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(read_all::<u64, u32>(pinned.fd().as_fd()).unwrap(), []);
        for key in 0..10_000_u32 {
            map.insert(u64::from(key), key, 0).unwrap();
        }
        let mut entries = read_all::<u64, u32>(pinned.fd().as_fd()).unwrap();
        entries.sort_unstable();
        assert_eq!(entries.len(), 10_000);
        assert_eq!(entries[9_999], (9_999, 9_999));
    }
}
