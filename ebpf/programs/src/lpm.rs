//! A longest-prefix-match trie whose key is a type of ours.
//!
//! aya-ebpf's own wraps the key into a packed struct, in which an aligned address cannot be, and
//! which BTF then shows instead of `RouteKey`.

#![expect(unsafe_code, reason = "map definition and helper call")]

use core::ptr;

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_LPM_TRIE};
use aya_ebpf::helpers::bpf_map_lookup_elem;

/// The shape by which loaders recognise a BTF map definition.
#[repr(C)]
pub struct LpmTrie<K, V, const MAX_ENTRIES: usize> {
    r#type: *const [i32; BPF_MAP_TYPE_LPM_TRIE as usize],
    key: *const K,
    value: *const V,
    max_entries: *const [i32; MAX_ENTRIES],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the fields are only read by the loader; nothing can be aliased through them.
unsafe impl<K, V, const MAX_ENTRIES: usize> Sync for LpmTrie<K, V, MAX_ENTRIES> {}

impl<K, V, const MAX_ENTRIES: usize> LpmTrie<K, V, MAX_ENTRIES> {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// The value of the longest prefix that contains `key`.
    #[inline(always)]
    pub fn get(&self, key: &K) -> Option<&V> {
        let map = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: `key` is a live key of this map's type. Entries are freed after an RCU grace
        // period, so what is returned outlives this run of the program.
        unsafe {
            bpf_map_lookup_elem(map, ptr::from_ref(key).cast())
                .cast::<V>()
                .as_ref()
        }
    }
}
