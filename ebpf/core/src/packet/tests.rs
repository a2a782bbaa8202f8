//! Header parsing: tables for what must be understood, properties for what must not be trusted.

use proptest::prelude::*;

use super::*;

fn v4_words(bytes: [u8; 20]) -> [u32; 5] {
    core::array::from_fn(|i| u32::from_ne_bytes(bytes[4 * i..][..4].try_into().unwrap()))
}

fn v4(version_ihl: u8, total_len: u16, flags_offset: u16) -> [u32; 5] {
    let [len_high, len_low] = total_len.to_be_bytes();
    let [flags_high, flags_low] = flags_offset.to_be_bytes();
    v4_words([
        version_ihl,
        0,
        len_high,
        len_low,
        0xab,
        0xcd,
        flags_high,
        flags_low,
        64,
        17,
        0,
        0,
        10,
        244,
        1,
        2,
        10,
        96,
        0,
        10,
    ])
}

#[test]
fn ipv4_options_move_the_transport_header() {
    let network = ipv4(&v4(0x46, 60, 0)).unwrap();
    assert_eq!((network.header_len, network.total_len), (24, 60));
    assert_eq!(network.source, Address::from_v4([10, 244, 1, 2]));
    assert_eq!((network.protocol, network.hop_limit), (UDP, 64));
}

#[test]
fn ipv4_fragments_are_told_apart() {
    let identification = u32::from(u16::from_ne_bytes([0xab, 0xcd]));
    assert_eq!(ipv4(&v4(0x45, 60, 0)).unwrap().fragment, Fragment::Whole);
    let first = ipv4(&v4(0x45, 60, 0x2000)).unwrap();
    assert_eq!(first.fragment, Fragment::First(identification));
    for later in [0x2001, 0x0001, 0x1fff] {
        let network = ipv4(&v4(0x45, 60, later)).unwrap();
        assert_eq!(network.fragment, Fragment::Later(identification));
    }
    let dont_fragment = ipv4(&v4(0x45, 60, 0x4000)).unwrap();
    assert_eq!(
        (dont_fragment.fragment, dont_fragment.dont_fragment),
        (Fragment::Whole, true)
    );
}

#[test]
fn headers_that_contradict_themselves_are_malformed() {
    for (version_ihl, total_len) in [(0x44, 60), (0x65, 60), (0x45, 19), (0x4f, 59)] {
        assert_eq!(
            ipv4(&v4(version_ihl, total_len, 0)),
            Err(DropReason::Malformed)
        );
    }
    assert_eq!(
        ipv6(&[u32::from_ne_bytes([0x45, 0, 0, 0]); 10]),
        Err(DropReason::Malformed)
    );
}

/// Walks `chain`, which starts right behind the IPv6 header.
fn walk(first: u8, chain: &[u8]) -> Result<Transport, DropReason> {
    walk_extensions(first, |offset| {
        let start = (offset - IPV6_LEN) as usize;
        chain.get(start..start + 8)?.try_into().ok()
    })
}

#[test]
fn extension_headers_are_stepped_over() {
    let chain = [
        60, 0, 0, 0, 0, 0, 0, 0, // hop-by-hop, 8 bytes, then destination options
        43, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // 16 bytes, then routing
        51, 0, 0, 0, 0, 0, 0, 0, // then authentication
        6, 4, 0, 0, 0, 0, 0, 0, // 24 bytes, then TCP
    ];
    let transport = walk(0, &chain).unwrap();
    assert_eq!(
        transport,
        Transport {
            protocol: TCP,
            offset: 40 + 8 + 16 + 8 + 24,
            fragment: Fragment::Whole,
        }
    );
}

#[test]
fn ipv6_fragments_are_told_apart() {
    let header = |offset: u16, more: u16| {
        let [high, low] = (offset << 3 | more).to_be_bytes();
        [UDP, 0, high, low, 1, 2, 3, 4]
    };
    let identification = u32::from_ne_bytes([1, 2, 3, 4]);
    for (offset, more, fragment) in [
        (0, 0, Fragment::Whole),
        (0, 1, Fragment::First(identification)),
        (1, 1, Fragment::Later(identification)),
        (7, 0, Fragment::Later(identification)),
    ] {
        let transport = walk(44, &header(offset, more)).unwrap();
        assert_eq!(
            transport,
            Transport {
                protocol: UDP,
                offset: 48,
                fragment
            }
        );
    }
}

#[test]
fn what_follows_a_later_fragment_is_not_a_header() {
    let chain = [0, 0, 0, 8, 1, 2, 3, 4, 44, 0xff, 0, 0, 0, 0, 0, 0];
    assert_eq!(walk(44, &chain).unwrap().offset, 48);
}

#[test]
fn endless_and_cut_extension_chains_are_malformed() {
    assert_eq!(walk(0, &[0; 8 * 32]), Err(DropReason::Malformed));
    assert_eq!(walk(0, &[6, 0, 0, 0]), Err(DropReason::Malformed));
}

#[test]
fn link_scope_is_what_a_router_keeps() {
    let v6 = |text: &str| Address::from(text.parse::<std::net::Ipv6Addr>().unwrap());
    let v4 = |text: &str| Address::from(text.parse::<std::net::Ipv4Addr>().unwrap());
    for address in ["ff02::1", "fe80::1", "febf::1", "::"] {
        assert!(is_link_scope(&v6(address)), "{address}");
    }
    for address in [
        "224.0.0.1",
        "239.1.2.3",
        "255.255.255.255",
        "0.0.0.0",
        "169.254.1.1",
    ] {
        assert!(is_link_scope(&v4(address)), "{address}");
    }
    for address in ["fd00::1", "fec0::1", "2001:db8::1"] {
        assert!(!is_link_scope(&v6(address)), "{address}");
    }
    assert!(!is_link_scope(&v4("10.96.0.10")) && !is_link_scope(&v4("192.168.0.1")));
}

proptest! {
    #[test]
    fn no_ipv4_header_points_outside_of_its_packet(bytes: [u8; 20]) {
        if let Ok(network) = ipv4(&v4_words(bytes)) {
            prop_assert!((20..=60).contains(&network.header_len));
            prop_assert!(network.total_len >= network.header_len);
        }
    }

    #[test]
    fn any_extension_chain_ends(first: u8, chain in prop::collection::vec(any::<u8>(), 0..512)) {
        if let Ok(transport) = walk(first, &chain) {
            prop_assert!(transport.offset >= 40 && transport.offset < 40 + 6 * 2048);
            prop_assert!(
                !is_extension(transport.protocol)
                    || matches!(transport.fragment, Fragment::Later(_))
            );
        }
    }
}
