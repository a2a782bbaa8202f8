//! What the maps take of the kernel's memory.

use std::os::fd::{AsFd, AsRawFd};

use aya::maps::{HashMap, Map, MapData};
use tholepin_ebpf_abi::*;
use tholepin_ebpf_object::OBJECT;
use tholepin_harness::skip;

/// The kernel's own figure, as `bpftool map show` has it.
fn bytes(data: &MapData) -> u64 {
    let fd = data.fd().as_fd().as_raw_fd();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("an open map");
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    let text = line.expect("maps say what they take").trim();
    text.parse().expect("a number")
}

fn data(map: &Map) -> &MapData {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data) => data,
        other => panic!("unexpected kind of map: {other:?}"),
    }
}

#[test]
fn all_maps_at_default_sizes_with_a_thousand_services_take_less_than_30_mb() {
    let Some(()) = skip::unless(skip::root()) else {
        return;
    };
    let mut ebpf = aya::EbpfLoader::new()
        .load(OBJECT)
        .expect("the object loads");
    let map = ebpf.map_mut(names::FRONTENDS).expect("there are frontends");
    let mut frontends: HashMap<_, FrontendKey, FrontendValue> = map.try_into().expect("a hash");
    for service in 0..1000_u16 {
        let [high, low] = service.to_be_bytes();
        // Slots and backends are arrays: what they take does not depend on what is in them.
        let key = FrontendKey {
            address: Address::from_v4([10, 96, high, low]),
            port: Be16::new(80),
            protocol: 6,
            scope: 0,
        };
        let room = frontends.insert(key, FrontendValue::default(), 0);
        room.expect("room for a frontend");
    }
    let mut all: Vec<_> = ebpf
        .maps()
        .map(|(name, map)| (bytes(data(map)), name))
        .collect();
    all.sort_unstable_by(|a, b| b.cmp(a));
    for (bytes, name) in &all {
        println!("{name:<16} {bytes:>12}");
    }
    let total: u64 = all.iter().map(|(bytes, _)| bytes).sum();
    println!("{:<16} {total:>12}", "all");
    assert!(total <= 30_000_000, "{total} bytes");
}
