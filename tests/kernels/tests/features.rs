//! What the running kernel has of what the dataplane uses, and whether the agent's own probes agree.

use aya::maps::MapType;
use aya::programs::{ProgramType, SchedClassifier, tc::TcAttachType};
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tholepin_agent::dataplane::AttachMode;
use tholepin_agent::dataplane::features::Features;
use tholepin_harness::skip;
use tholepin_tests_kernels::{at_least, report};

/// Reports a feature and fails where a kernel of that version must have it.
fn expect(name: &str, since: (u8, u8), has: bool) {
    let (major, minor) = since;
    report(&format!("{name} ({major}.{minor})"), has);
    let must = at_least(major, minor);
    assert!(
        has || !must,
        "{name}: there since {major}.{minor}, and this kernel does not have it"
    );
}

#[test]
fn helpers_are_there_since_the_kernels_that_are_documented() {
    if skip::unless(skip::root()).is_none() {
        return;
    }
    for (name, helper, since) in [
        (
            "bpf_redirect_peer",
            BpfHelper::BPF_FUNC_redirect_peer,
            (5, 10),
        ),
        (
            "bpf_redirect_neigh",
            BpfHelper::BPF_FUNC_redirect_neigh,
            (5, 10),
        ),
        (
            "bpf_ktime_get_coarse_ns",
            BpfHelper::BPF_FUNC_ktime_get_coarse_ns,
            (5, 11),
        ),
        (
            "bpf_ringbuf_output",
            BpfHelper::BPF_FUNC_ringbuf_output,
            (5, 8),
        ),
        (
            "bpf_for_each_map_elem",
            BpfHelper::BPF_FUNC_for_each_map_elem,
            (5, 13),
        ),
        (
            "helper bpf_timer_init",
            BpfHelper::BPF_FUNC_timer_init,
            (5, 15),
        ),
        ("helper bpf_loop", BpfHelper::BPF_FUNC_loop, (5, 17)),
    ] {
        let has = is_helper_supported(ProgramType::SchedClassifier, helper);
        expect(
            name,
            since,
            has.unwrap_or_else(|error| panic!("{name}: {error}")),
        );
    }
}

#[test]
fn maps_and_programs_are_there_since_the_kernels_that_are_documented() {
    if skip::unless(skip::root()).is_none() {
        return;
    }
    for (name, kind, since) in [
        ("map ring buffer", MapType::RingBuf, (5, 8)),
        ("map LPM trie", MapType::LpmTrie, (4, 11)),
        ("map LRU hash", MapType::LruHash, (4, 10)),
    ] {
        let has = is_map_supported(kind);
        expect(
            name,
            since,
            has.unwrap_or_else(|error| panic!("{name}: {error}")),
        );
    }
    for (name, kind, since) in [
        ("program XDP", ProgramType::Xdp, (4, 8)),
        (
            "program cgroup/sock_addr",
            ProgramType::CgroupSockAddr,
            (4, 17),
        ),
        ("program sched_cls", ProgramType::SchedClassifier, (4, 1)),
    ] {
        let has = is_program_supported(kind);
        expect(
            name,
            since,
            has.unwrap_or_else(|error| panic!("{name}: {error}")),
        );
    }
}

#[test]
fn the_agent_s_own_probes_find_what_the_kernel_has() {
    if skip::unless(skip::root()).is_none() {
        return;
    }
    let features = Features::probe(AttachMode::Auto);
    let tcx = SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok();
    expect("attachment TCX", (6, 6), tcx);
    assert_eq!(features.tcx, tcx);
    assert!(!Features::probe(AttachMode::Clsact).tcx);
    report("flag BPF_F_IPV6 (6.16)", features.csum_ipv6);
    assert_eq!(features.redirect_peer, at_least(5, 10));
}

/// Devices and sockets that are a matter of configuration, not of version.
#[tokio::test(flavor = "current_thread")]
async fn devices_and_protocols_are_reported() {
    use rtnetlink::packet_route::link::NetkitMode;
    use rtnetlink::{LinkIfb, LinkNetkit, LinkVeth, LinkVxlan};
    if skip::unless(skip::root()).is_none() {
        return;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a namespace of its own");
    let (connection, handle, _) = rtnetlink::new_connection().expect("a netlink socket");
    let connection = tokio::spawn(connection);
    let mut devices = Vec::new();
    for (name, message) in [
        ("veth", LinkVeth::new("v0", "v1").build()),
        ("vxlan", LinkVxlan::new("x0", 1).port(8472).build()),
        (
            "netkit",
            LinkNetkit::new("n0", "n1", NetkitMode::L3).build(),
        ),
        ("ifb", LinkIfb::new("i0").build()),
    ] {
        devices.push((name, handle.link().add(message).execute().await.is_ok()));
    }
    connection.abort();
    for (name, has) in &devices {
        report(&format!("device {name}"), *has);
    }
    let sctp = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::empty(),
        SockProtocol::Sctp,
    );
    report("sockets SCTP", sctp.is_ok());
    let required = devices
        .iter()
        .filter(|(name, _)| ["veth", "vxlan"].contains(name));
    for (name, has) in required {
        assert!(has, "the pod network needs {name}");
    }
}
