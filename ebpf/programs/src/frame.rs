//! The context of XDP programs: packet bounds, room at the front, and the routing table.

#![expect(unsafe_code, reason = "context fields and helper calls")]

use core::mem::{offset_of, size_of};
use core::ptr;

use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_SUCCESS, xdp_md};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_xdp_adjust_head};

use crate::head::Head;
use crate::skb::FibQuestion;

/// One packet as the driver received it.
#[derive(Clone, Copy)]
pub struct Frame {
    context: *mut xdp_md,
}

impl Frame {
    #[inline(always)]
    pub fn new(context: *mut xdp_md) -> Self {
        Self { context }
    }

    /// Start and end. In assembly for the reason that [`crate::skb::Skb::bounds`] gives.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        let (data, end): (usize, usize);
        // SAFETY: reads two fields of the context the kernel handed to the program.
        unsafe {
            core::arch::asm!(
                "{data} = *(u32 *)({context} + {data_at})",
                "{end} = *(u32 *)({context} + {end_at})",
                data = out(reg) data,
                end = lateout(reg) end,
                context = in(reg) self.context,
                data_at = const offset_of!(xdp_md, data),
                end_at = const offset_of!(xdp_md, data_end),
                options(readonly, nostack, preserves_flags),
            );
        }
        (data, end)
    }

    /// The first bytes. What is before a change of the packet's start is void after it.
    #[inline(always)]
    pub fn head<const LEN: usize>(&self) -> Option<Head<LEN>> {
        let (start, end) = self.bounds();
        Head::within(start, end)
    }

    /// Bytes of the frame.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        let (start, end) = self.bounds();
        (end - start) as u32
    }

    /// Interface it came by.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: the kernel hands a valid context to the program.
        unsafe { (*self.context).ingress_ifindex }
    }

    /// Makes `len` bytes of room before the packet; false leaves it as it is.
    #[inline(always)]
    pub fn push(&self, len: u32) -> bool {
        // SAFETY: valid context.
        unsafe { bpf_xdp_adjust_head(self.context, -(len as i32)) == 0 }
    }

    /// Whether the kernel would forward a packet of the node's and knows its neighbour; the answer has
    /// the interface and the MACs.
    #[inline(always)]
    pub fn route(&self, question: &mut FibQuestion) -> bool {
        // SAFETY: valid context; `question` has the layout of `struct bpf_fib_lookup`.
        let result = unsafe {
            bpf_fib_lookup(
                self.context.cast(),
                ptr::from_mut(question).cast(),
                size_of::<FibQuestion>() as i32,
                0,
            )
        };
        result == i64::from(BPF_FIB_LKUP_RET_SUCCESS)
    }
}
