//! Many entries of a map in one system call (kernel 5.6), which aya does not have.

#![expect(unsafe_code, reason = "the bpf system call's batch commands")]

use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;

use aya::Pod;
use aya::maps::MapData;

use super::{MapAccessError, access};
use crate::dataplane::pin::PinDirectory;

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;

/// Entries a look-up asks for at a time.
const CHUNK: usize = 16_384;

/// The part of `union bpf_attr` that the batch commands use.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A pinned map whose keys and values have the sizes of `K` and `V`.
#[derive(Debug)]
pub struct BatchMap<K, V> {
    name: &'static str,
    data: MapData,
    types: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> BatchMap<K, V> {
    /// Opens the pinned map.
    pub fn open(pins: &PinDirectory, name: &'static str) -> Result<Self, MapAccessError> {
        let path = pins.map(name);
        let opened = MapData::from_pin(&path).and_then(|data| Ok((data.info()?, data)));
        let (info, data) = match opened {
            Ok(opened) => opened,
            Err(source) => return Err(MapAccessError::Open { path, source }),
        };
        let sizes = (size(info.key_size()), size(info.value_size()));
        if sizes != (size_of::<K>(), size_of::<V>()) {
            return Err(MapAccessError::Layout { path });
        }
        Ok(Self {
            name,
            data,
            types: PhantomData,
        })
    }

    /// Inserts or replaces in order; how many were done, and why not the next.
    pub fn update(&self, keys: &[K], values: &[V]) -> Result<(), (usize, MapAccessError)> {
        assert_eq!(keys.len(), values.len(), "a value for each key");
        let mut attr = self.attr(keys.len());
        attr.keys = keys.as_ptr() as u64;
        attr.values = values.as_ptr() as u64;
        // SAFETY: both point to `count` live elements of the sizes the map has (checked in `open`),
        // which the kernel only reads.
        let done = unsafe { self.call(BPF_MAP_UPDATE_BATCH, &mut attr) };
        done.map_err(|error| (size(attr.count), self.error("write", error)))
    }

    /// Removes; what is not there is done.
    pub fn remove(&self, keys: &[K]) -> Result<(), MapAccessError> {
        let mut rest = keys;
        while !rest.is_empty() {
            let mut attr = self.attr(rest.len());
            attr.keys = rest.as_ptr() as u64;
            // SAFETY: as in `update`.
            match unsafe { self.call(BPF_MAP_DELETE_BATCH, &mut attr) } {
                Ok(()) => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    rest = &rest[(size(attr.count) + 1).min(rest.len())..];
                }
                Err(error) => return Err(self.error("remove", error)),
            }
        }
        Ok(())
    }

    /// Up to `limit` entries: of an array the first ones, of a hash map any.
    pub fn read(&self, limit: usize) -> Result<Vec<(K, V)>, MapAccessError> {
        let mut entries: Vec<(K, V)> = Vec::new();
        let mut chunk = CHUNK;
        let (mut keys, mut values): (Vec<K>, Vec<V>) = (Vec::new(), Vec::new());
        // Where to go on: a key of an array, a bucket of a hash map. Neither is longer than this.
        let (mut from, mut to) = ([0_u64; 8], [0_u64; 8]);
        assert!(size_of::<K>() <= size_of_val(&from), "a key fits");
        let mut first = true;
        while entries.len() < limit {
            let count = chunk.min(limit - entries.len()).max(1);
            keys.reserve(count);
            values.reserve(count);
            let mut attr = self.attr(count);
            attr.in_batch = if first { 0 } else { from.as_mut_ptr() as u64 };
            attr.out_batch = to.as_mut_ptr() as u64;
            attr.keys = keys.as_mut_ptr() as u64;
            attr.values = values.as_mut_ptr() as u64;
            // SAFETY: `keys` and `values` have room for `count` elements of the sizes the map has,
            // `from` and `to` for a key.
            let outcome = unsafe { self.call(BPF_MAP_LOOKUP_BATCH, &mut attr) };
            let end = match outcome {
                Ok(()) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && chunk < 1 << 20 => {
                    // A bucket of the hash map has more entries than there was room for.
                    chunk *= 2;
                    continue;
                }
                Err(error) => return Err(self.error("read", error)),
            };
            let found = size(attr.count).min(count);
            // SAFETY: the kernel has filled that many elements, and any bytes are valid (`Pod`).
            unsafe {
                keys.set_len(found);
                values.set_len(found);
            }
            entries.extend(keys.drain(..).zip(values.drain(..)));
            if end {
                break;
            }
            (from, first) = (to, false);
        }
        Ok(entries)
    }

    fn attr(&self, count: usize) -> BatchAttr {
        BatchAttr {
            count: u32::try_from(count).expect("maps are smaller"),
            map_fd: u32::try_from(std::os::fd::AsFd::as_fd(self.data.fd()).as_raw_fd())
                .expect("an open descriptor is not negative"),
            ..BatchAttr::default()
        }
    }

    /// Makes the call; `attr.count` says how many elements were done, also after an error.
    ///
    /// # Safety
    /// What `attr` points to must be live, of the map's sizes, and writable where the command writes.
    unsafe fn call(&self, command: libc::c_long, attr: &mut BatchAttr) -> io::Result<()> {
        if attr.count == 0 {
            return Ok(());
        }
        // SAFETY: `attr` is as long as said, and what it points to is the caller's promise.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                &raw mut *attr,
                size_of::<BatchAttr>(),
            )
        };
        if result < 0 {
            let error = io::Error::last_os_error();
            if matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::EPERM | libc::EFAULT)
            ) {
                // Refused before the first element, when the kernel does not write the count.
                attr.count = 0;
            }
            return Err(error);
        }
        Ok(())
    }

    fn error(&self, operation: &'static str, error: io::Error) -> MapAccessError {
        let source = aya::maps::MapError::IoError(error);
        match access::<()>(operation, self.name, Err(source)) {
            Err(error) => error,
            Ok(()) => unreachable!("an error stays one"),
        }
    }
}

fn size(count: u32) -> usize {
    usize::try_from(count).expect("usize holds a u32")
}
