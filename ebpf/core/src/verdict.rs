//! What happens to a packet.

use tholepin_ebpf_abi::DropReason;

/// The outcome of a hook that does not refuse the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a verdict that is not returned to the kernel decides nothing"]
pub enum Verdict {
    /// The kernel's own stack goes on with it.
    Pass,
    /// A redirect helper took it; the action it returned.
    Redirected(i32),
}

impl Verdict {
    /// The return value of a TC program.
    #[inline(always)]
    #[must_use]
    pub const fn into_tc_action(self) -> i32 {
        match self {
            Self::Pass => 0, // TC_ACT_OK
            Self::Redirected(action) => action,
        }
    }
}

/// Where a packet comes from: what decides how it is answered and what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A pod of this node.
    Pod,
    /// The node's own stack.
    Host,
    /// Another node, through the overlay.
    Overlay,
    /// The network the nodes are in.
    Underlay,
}

/// What a refused packet's sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing.
    Silence,
    /// TCP RST, or ICMP port unreachable.
    Unreachable,
    /// ICMP time exceeded.
    TimeExceeded,
    /// ICMP fragmentation needed, or packet too big.
    TooBig,
}

/// The answer that belongs to a reason.
#[must_use]
#[inline(always)]
pub const fn answer(reason: DropReason) -> Answer {
    match reason {
        DropReason::NoBackend | DropReason::NoRoute => Answer::Unreachable,
        DropReason::TtlExceeded => Answer::TimeExceeded,
        DropReason::PacketTooBig => Answer::TooBig,
        _ => Answer::Silence,
    }
}
