//! The context of the socket programs: every access to it, and every helper they call.
//!
//! The verifier takes context fields one by one and at their own size, so each is read and written
//! by itself: two that the compiler made one access are refused.

#![expect(unsafe_code, reason = "context fields and helper calls")]

use core::ptr;

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::SockAddrContext;
use tholepin_ebpf_abi::byte_order::MAPPED_V4_WORD;
use tholepin_ebpf_abi::{Address, Be16, SocketValue};

use crate::maps::SOCKETS;

/// A socket's call that has an address, in one of the families.
#[derive(Clone, Copy)]
pub struct SockAddr<const V6: bool> {
    context: *mut bpf_sock_addr,
}

macro_rules! field {
    ($self:ident.$($field:tt)+) => {
        // SAFETY: the kernel hands a valid context to the program.
        unsafe { (&raw const (*$self.context).$($field)+).read_volatile() }
    };
}

impl<const V6: bool> SockAddr<V6> {
    #[inline(always)]
    pub fn new(context: *mut bpf_sock_addr) -> Self {
        Self { context }
    }

    #[inline(always)]
    pub fn protocol(&self) -> u8 {
        // Numbers above 255 exist (MPTCP) and are none of ours.
        u8::try_from(field!(self.protocol)).unwrap_or(0)
    }

    /// The address of the call: where to, or from where. Mapped ones on IPv6 sockets are as mapped as
    /// all IPv4 addresses are here.
    #[inline(always)]
    pub fn address(&self) -> Address {
        if V6 {
            Address::from_words([
                field!(self.user_ip6[0]),
                field!(self.user_ip6[1]),
                field!(self.user_ip6[2]),
                field!(self.user_ip6[3]),
            ])
        } else {
            Address::from_words([0, 0, MAPPED_V4_WORD, field!(self.user_ip4)])
        }
    }

    #[inline(always)]
    pub fn port(&self) -> Be16 {
        Be16::from_wire(field!(self.user_port) as u16)
    }

    /// Replaces address and port.
    #[inline(always)]
    pub fn rewrite(&self, address: &Address, port: Be16) {
        let words = address.words();
        let context = self.context;
        // SAFETY: as in `field!`; the kernel lets programs of these hooks write these fields.
        unsafe {
            if V6 {
                (&raw mut (*context).user_ip6[0]).write_volatile(words[0]);
                (&raw mut (*context).user_ip6[1]).write_volatile(words[1]);
                (&raw mut (*context).user_ip6[2]).write_volatile(words[2]);
                (&raw mut (*context).user_ip6[3]).write_volatile(words[3]);
            } else {
                (&raw mut (*context).user_ip4).write_volatile(words[3]);
            }
            (&raw mut (*context).user_port).write_volatile(u32::from(port.be));
        }
    }

    #[inline(always)]
    fn socket(&self) -> *const bpf_sock {
        field!(self.__bindgen_anon_1.sk)
    }

    /// Whether the socket has an address or an interface of its own already.
    #[inline(always)]
    pub fn is_bound(&self) -> bool {
        let socket = self.socket();
        // SAFETY: the context's socket is live during the call; each field is read by itself.
        unsafe {
            let mut bound = (&raw const (*socket).bound_dev_if).read_volatile()
                | (&raw const (*socket).src_ip4).read_volatile();
            if V6 {
                bound |= (&raw const (*socket).src_ip6[0]).read_volatile()
                    | (&raw const (*socket).src_ip6[1]).read_volatile()
                    | (&raw const (*socket).src_ip6[2]).read_volatile()
                    | (&raw const (*socket).src_ip6[3]).read_volatile();
            }
            bound != 0
        }
    }

    /// Whether this one datagram has a source of its own (`IP_PKTINFO`). Only where one is sent.
    #[inline(always)]
    pub fn has_source(&self) -> bool {
        if V6 {
            field!(self.msg_src_ip6[0])
                | field!(self.msg_src_ip6[1])
                | field!(self.msg_src_ip6[2])
                | field!(self.msg_src_ip6[3])
                != 0
        } else {
            field!(self.msg_src_ip4) != 0
        }
    }

    /// Cookie of the socket's network namespace.
    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the helper wants the program's context.
        unsafe { bpf_get_netns_cookie(self.context.cast()) }
    }

    /// What is kept with the socket.
    #[inline(always)]
    pub fn kept(&self) -> Option<&SocketValue> {
        let context = SockAddrContext::new(self.context);
        // SAFETY: the helper gives a live value or null, and frees values only after the programs
        // that may see them have ended. Only `last_used` is ever written, by itself.
        unsafe { SOCKETS.get_ptr_mut(&context).as_ref() }
    }

    /// Keeps a value with the socket, unless another thread was faster: what is kept then. `None`
    /// when the kernel has no memory for the socket.
    #[inline(always)]
    pub fn keep(&self, value: &mut SocketValue) -> Option<&SocketValue> {
        let context = SockAddrContext::new(self.context);
        // SAFETY: as in `kept`.
        unsafe {
            SOCKETS
                .get_or_insert_ptr_mut(&context, Some(value))
                .as_ref()
        }
    }

    /// Forgets what is kept with the socket, if anything.
    #[inline(always)]
    pub fn forget(&self) {
        // SAFETY: the context's socket is live during the call.
        unsafe { SOCKETS.delete(self.socket().cast_mut()) }.ok();
    }
}

/// Notes that a kept value was used.
#[inline(always)]
pub fn touch(value: &SocketValue, now: u32) {
    if value.last_used != now {
        // SAFETY: an aligned word of map memory, which nobody relies on to stay.
        unsafe {
            ptr::from_ref(&value.last_used)
                .cast_mut()
                .write_volatile(now)
        };
    }
}
