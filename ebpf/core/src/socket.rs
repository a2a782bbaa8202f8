//! Service load balancing at the socket: what it may decide, and how long it holds.

use tholepin_ebpf_abi::backend::BACKEND_SERVING;
use tholepin_ebpf_abi::conntrack::UDP_IDLE;
use tholepin_ebpf_abi::service::{FRONTEND_MAGLEV, FRONTEND_SOURCE_RANGES};
use tholepin_ebpf_abi::{Address, BackendValue, Be16, FrontendValue, SocketValue};

/// Whether a backend can be chosen before there is a packet. Maglev and source ranges want the
/// client's address and port, which a socket has only later.
#[must_use]
#[inline(always)]
pub const fn decides(frontend: &FrontendValue) -> bool {
    frontend.flags & (FRONTEND_MAGLEV | FRONTEND_SOURCE_RANGES) == 0
}

/// Whether datagrams of a socket stay with its backend, as those of a UDP flow do.
#[must_use]
#[inline(always)]
pub fn keeps_backend(socket: &SocketValue, backend: Option<&BackendValue>, now: u32) -> bool {
    let Some(backend) = backend else {
        return false;
    };
    !is_idle(socket, now)
        && backend.generation == socket.backend_generation
        && backend.flags & BACKEND_SERVING != 0
}

/// Whether a socket's choice is as old as that of a UDP flow that is over.
#[must_use]
#[inline(always)]
pub const fn is_idle(socket: &SocketValue, now: u32) -> bool {
    now.saturating_sub(socket.last_used) > UDP_IDLE
}

/// Whether this is what the application asked for.
#[must_use]
#[inline(always)]
pub fn is_frontend(socket: &SocketValue, address: &Address, port: Be16) -> bool {
    socket.frontend_port == port && socket.frontend.words() == address.words()
}

/// Whether this is where the socket's traffic goes.
#[must_use]
#[inline(always)]
pub fn is_backend(socket: &SocketValue, address: &Address, port: Be16) -> bool {
    socket.backend_port == port && socket.backend.words() == address.words()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::UDP;

    const SERVICE: Address = Address::from_v4([10, 96, 0, 10]);
    const POD: Address = Address::from_v4([10, 244, 1, 7]);

    fn socket() -> SocketValue {
        SocketValue {
            frontend: SERVICE,
            backend: POD,
            frontend_port: Be16::new(53),
            backend_port: Be16::new(5353),
            backend_id: 7,
            backend_generation: 4,
            last_used: 1000,
            protocol: UDP.into(),
        }
    }

    fn backend(generation: u32, flags: u8) -> BackendValue {
        BackendValue {
            address: POD,
            port: Be16::new(5353),
            protocol: UDP,
            flags,
            generation,
            service_id: 1,
        }
    }

    #[test]
    fn datagrams_leave_a_backend_that_is_gone_or_does_not_serve() {
        assert!(keeps_backend(
            &socket(),
            Some(&backend(4, BACKEND_SERVING)),
            1001
        ));
        assert!(!keeps_backend(
            &socket(),
            Some(&backend(5, BACKEND_SERVING)),
            1001
        ));
        assert!(!keeps_backend(&socket(), Some(&backend(4, 0)), 1001));
        assert!(!keeps_backend(&socket(), None, 1001));
    }

    #[test]
    fn a_choice_is_over_when_a_udp_flow_would_be() {
        let serving = backend(4, BACKEND_SERVING);
        assert!(keeps_backend(&socket(), Some(&serving), 1000 + UDP_IDLE));
        assert!(!keeps_backend(&socket(), Some(&serving), 1001 + UDP_IDLE));
        assert!(
            !is_idle(&socket(), 999),
            "another processor's clock is behind"
        );
    }

    #[test]
    fn what_depends_on_the_client_s_address_is_left_to_the_packets() {
        let with = |flags| FrontendValue {
            flags,
            ..FrontendValue::default()
        };
        assert!(decides(&with(0)));
        assert!(!decides(&with(FRONTEND_MAGLEV)));
        assert!(!decides(&with(FRONTEND_SOURCE_RANGES)));
    }

    #[test]
    fn an_address_is_the_frontend_s_only_with_its_port() {
        assert!(is_frontend(&socket(), &SERVICE, Be16::new(53)));
        assert!(!is_frontend(&socket(), &SERVICE, Be16::new(5353)));
        assert!(is_backend(&socket(), &POD, Be16::new(5353)));
        assert!(!is_backend(&socket(), &SERVICE, Be16::new(5353)));
    }
}
