//! Service load balancing at the socket: an accelerator of what `balance` does with packets.
//!
//! A TCP socket is connected to a backend instead of the Service, and a datagram of a socket that is
//! not connected is sent to one; the packets are then no Service's. What cannot be decided here, or
//! would be decided otherwise, is left as the application wrote it, and the packets are translated:
//! no program here ever refuses anything. Connected UDP sockets are left alone, because nothing would
//! tell them that their backend is gone. See docs/design/socket-lb.md.

use aya_ebpf::bindings::bpf_sock_addr;
use tholepin_ebpf_abi::service::SCOPE_CLUSTER;
use tholepin_ebpf_abi::socket::SOCKET_NETNS_NODE;
use tholepin_ebpf_abi::{Address, Be16, FrontendKey, SocketNetnsKey, SocketValue};
use tholepin_ebpf_core::packet::{TCP, UDP};
use tholepin_ebpf_core::socket;

use crate::sock_addr::{SockAddr, touch};
use crate::{choose, lookup, skb};

/// What every hook answers: the call goes on.
const PROCEED: i32 = 1;

macro_rules! hooks {
    ($($(#[$doc:meta])* $name:ident: $section:literal, $body:ident::<$v6:literal>;)+) => {$(
        $(#[$doc])*
        #[expect(unsafe_code, reason = "the loader finds programs by section and symbol")]
        // SAFETY: no other symbol has the name, and the section is for programs of this type.
        #[unsafe(no_mangle)]
        #[unsafe(link_section = $section)]
        pub extern "C" fn $name(context: *mut bpf_sock_addr) -> i32 {
            $body::<$v6>(&SockAddr::new(context));
            PROCEED
        }
    )+};
}

hooks! {
    /// `connect` of IPv4 sockets.
    sock_connect4: "cgroup/connect4", connect::<false>;
    /// `connect` of IPv6 sockets, also to mapped IPv4 addresses.
    sock_connect6: "cgroup/connect6", connect::<true>;
    /// `getpeername` of IPv4 sockets.
    sock_getpeer4: "cgroup/getpeername4", peer::<false>;
    /// `getpeername` of IPv6 sockets.
    sock_getpeer6: "cgroup/getpeername6", peer::<true>;
    /// Datagrams to IPv4 addresses, also mapped ones.
    sock_sendmsg4: "cgroup/sendmsg4", send::<false>;
    /// Datagrams to IPv6 addresses.
    sock_sendmsg6: "cgroup/sendmsg6", send::<true>;
    /// The source of datagrams on IPv4 sockets.
    sock_recvmsg4: "cgroup/recvmsg4", receive::<false>;
    /// The source of datagrams on IPv6 sockets.
    sock_recvmsg6: "cgroup/recvmsg6", receive::<true>;
}

#[inline(always)]
fn connect<const V6: bool>(call: &SockAddr<V6>) {
    // Whatever the socket did before, it has another peer now.
    call.forget();
    if call.protocol() == TCP {
        choose(call, TCP);
    }
}

#[inline(always)]
fn send<const V6: bool>(call: &SockAddr<V6>) {
    if call.has_source() {
        return;
    }
    if let Some(kept) = call.kept() {
        let now = skb::now();
        if !socket::is_frontend(kept, &call.address(), call.port()) {
            // One Service at a time: what else the socket talks to goes by packets.
            if !socket::is_idle(kept, now) {
                return;
            }
        } else if socket::keeps_backend(kept, lookup::backend(kept.backend_id), now) {
            touch(kept, now);
            return call.rewrite(&kept.backend, kept.backend_port);
        }
        call.forget();
    }
    choose(call, UDP);
}

/// Sends the call to a backend of the Service it is for, if it is for one.
#[inline(always)]
fn choose<const V6: bool>(call: &SockAddr<V6>, protocol: u8) {
    let netns = SocketNetnsKey {
        netns_cookie: call.netns_cookie(),
    };
    let Some(known) = lookup::socket_netns(&netns) else {
        return;
    };
    let (address, port) = (call.address(), call.port());
    let key = FrontendKey {
        address,
        port,
        protocol,
        scope: SCOPE_CLUSTER,
    };
    let Some(frontend) = lookup::frontend(&key) else {
        return;
    };
    if !socket::decides(frontend) || call.is_bound() {
        return;
    }
    // As `balance` knows its clients.
    let cookie = netns.netns_cookie;
    let client = match known.flags & SOCKET_NETNS_NODE {
        0 => Address::from_words([cookie as u32, (cookie >> 32) as u32, 0, 0]),
        _ => Address::UNSPECIFIED,
    };
    // Where there is no backend, the packets are answered or dropped.
    let Ok((backend_id, backend)) = choose::backend(frontend, &client, skb::random(), false) else {
        return;
    };
    if backend.address.is_v4() != address.is_v4() {
        return;
    }
    let mut value = SocketValue {
        frontend: address,
        backend: backend.address,
        frontend_port: port,
        backend_port: backend.port,
        backend_id,
        backend_generation: backend.generation,
        last_used: skb::now(),
        protocol: protocol.into(),
    };
    // Two threads may send the first datagram at once: both get the backend of the faster one.
    match call.keep(&mut value) {
        Some(kept) if socket::is_frontend(kept, &address, port) => {
            call.rewrite(&kept.backend, kept.backend_port);
        }
        _ => {}
    }
}

#[inline(always)]
fn peer<const V6: bool>(call: &SockAddr<V6>) {
    restore(call, TCP);
}

#[inline(always)]
fn receive<const V6: bool>(call: &SockAddr<V6>) {
    restore(call, UDP);
}

/// Shows the Service's address instead of the backend's.
#[inline(always)]
fn restore<const V6: bool>(call: &SockAddr<V6>, protocol: u8) {
    let Some(kept) = call.kept() else { return };
    if kept.protocol == u32::from(protocol)
        && socket::is_backend(kept, &call.address(), call.port())
    {
        let (address, port): (Address, Be16) = (kept.frontend, kept.frontend_port);
        call.rewrite(&address, port);
    }
}
