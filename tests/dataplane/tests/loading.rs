//! Every program with every switch passes the verifier, and the maps are what the ABI says.

use anyhow::Context;
use aya::maps::{Map, MapData};
use tholepin_ebpf_abi::*;
use tholepin_ebpf_object::OBJECT;
use tholepin_harness::skip;
use tholepin_tests_dataplane::stage::{Globals, patiently, stage_with};

#[test]
fn every_program_passes_the_verifier_with_every_switch() {
    for bits in 0..64 {
        let bit = |at: u32| bits >> at & 1;
        let globals = Globals {
            enforce_source: bit(0),
            redirect_peer: bit(1),
            csum_ipv6: bit(2),
            overlay: bit(3) == 1,
            mtu: 1450 * bit(4),
            masquerade: bit(5) == 1,
            ..Globals::default()
        };
        if stage_with(globals).is_none() {
            return;
        }
    }
}

#[test]
fn the_socket_programs_and_the_front_door_pass_the_verifier() {
    let Some(mut ebpf) = skip::unless(skip::root()).map(|()| small()) else {
        return;
    };
    for name in names::SOCKET_PROGRAMS {
        let program: &mut aya::programs::CgroupSockAddr = ebpf
            .program_mut(name)
            .unwrap_or_else(|| panic!("no program `{name}`"))
            .try_into()
            .expect("a program for socket addresses");
        patiently(|| program.load()).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
    let front: &mut aya::programs::Xdp = ebpf
        .program_mut(names::XDP_FRONT)
        .expect("the object has the program")
        .try_into()
        .expect("an XDP program");
    patiently(|| front.load()).unwrap_or_else(|error| panic!("{error:?}"));
}

/// The object on maps of its own, which take little memory.
fn small() -> aya::Ebpf {
    let mut loader = aya::EbpfLoader::new();
    for map in names::MAPS {
        if ![
            names::DROPS,
            names::EVENTS,
            names::EVENT_SWITCH,
            names::SOCKETS,
            names::WORKLOADS,
        ]
        .contains(&map)
        {
            loader.map_max_entries(map, 16);
        }
    }
    loader.load(OBJECT).expect("the object loads")
}

/// The bytes of a map definition's key and value, as the kernel was told.
fn sizes(map: &Map) -> (u32, u32) {
    let data: &MapData = match map {
        Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::SkStorage(data)
        | Map::Array(data)
        | Map::PerCpuArray(data) => data,
        other => panic!("unexpected kind of map: {other:?}"),
    };
    let info = data.info().expect("the map exists");
    (info.key_size(), info.value_size())
}

#[test]
fn maps_have_the_sizes_of_the_abi() {
    let Some(_) = stage_with(Globals::default()) else {
        return;
    };
    let ebpf = small();
    let of = |name: &str| sizes(ebpf.map(name).unwrap_or_else(|| panic!("no map `{name}`")));
    fn size<K, V>() -> (u32, u32) {
        (size_of::<K>() as u32, size_of::<V>() as u32)
    }
    assert_eq!(of(names::FRONTENDS), size::<FrontendKey, FrontendValue>());
    assert_eq!(of(names::BACKEND_SLOTS), size::<u32, SlotValue>());
    assert_eq!(of(names::BACKENDS), size::<u32, BackendValue>());
    assert_eq!(of(names::CONNTRACK), size::<FlowKey, ConntrackEntry>());
    assert_eq!(of(names::WORKLOADS), size::<u32, WorkloadValue>());
    assert_eq!(of(names::POD_ROUTES), size::<RouteKey, RouteValue>());
    assert_eq!(of(names::FRAGMENTS), size::<FragmentKey, FragmentValue>());
    assert_eq!(of(names::SOCKETS), size::<u32, SocketValue>());
    assert_eq!(
        of(names::SOCKET_NETNS),
        size::<SocketNetnsKey, SocketNetnsValue>()
    );
    assert_eq!(of(names::DROPS), size::<u32, u64>());
    assert_eq!(of(names::EVENT_SWITCH), size::<u32, EventSwitch>());
}

#[test]
fn the_object_s_btf_shows_the_layouts_of_the_abi() {
    let file = std::env::temp_dir().join(format!("tholepin-layout-{}.o", std::process::id()));
    std::fs::write(&file, OBJECT).expect("the object fits into the temporary directory");
    let dump = std::process::Command::new("bpftool")
        .args(["-j", "btf", "dump", "file"])
        .arg(&file)
        .output();
    std::fs::remove_file(&file).expect("just written");
    let Some(dump) = skip::unless(dump.context("bpftool does not run")) else {
        return;
    };
    assert!(
        dump.status.success(),
        "{}",
        String::from_utf8_lossy(&dump.stderr)
    );
    let btf: serde_json::Value = serde_json::from_slice(&dump.stdout).expect("JSON of BTF");
    let types = btf["types"].as_array().expect("a list of types");
    macro_rules! compare {
        ($($ty:ident)+) => {$(
            let found = types
                .iter()
                .find(|ty| ty["kind"] == "STRUCT" && ty["name"] == stringify!($ty))
                .unwrap_or_else(|| panic!("no BTF of {}", stringify!($ty)));
            assert_eq!(found["size"], size_of::<$ty>(), "{}", stringify!($ty));
            let members: Vec<_> = found["members"]
                .as_array()
                .expect("a list of members")
                .iter()
                .map(|member| {
                    let bits = member["bits_offset"].as_u64().expect("an offset");
                    (member["name"].as_str().expect("a name"), bits as usize / 8)
                })
                .collect();
            assert_eq!(members, $ty::LAYOUT, "{}", stringify!($ty));
        )+};
    }
    compare! {
        FrontendKey FrontendValue SlotValue BackendValue FlowKey ConntrackEntry
        WorkloadValue RouteKey RouteValue FragmentKey FragmentValue Event EventSwitch
        SocketNetnsKey SocketNetnsValue SocketValue FlowStats
    }
}
