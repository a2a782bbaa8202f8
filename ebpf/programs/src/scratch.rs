//! Working memory of one packet's way through a hook, one per CPU.
//!
//! It is a map and not the stack for two reasons. A program and what it calls have 512 bytes of
//! stack together, less than a packet's tuple, its translation and both halves of a new flow. And
//! the verifier follows what is on the stack value by value, through every combination of the
//! branches that led there, while it forgets what is in a map: "combined stack size of 2 calls is
//! 752" and 930,000 of 1,000,000 instructions (6.18) became a fraction. The test that loads every
//! program guards both.
//!
//! TC programs of one CPU do not interrupt each other: they run with soft interrupts off.

#![expect(unsafe_code, reason = "a mutable reference into a per-CPU map")]

use tholepin_ebpf_abi::{
    Address, BackendValue, ConntrackEntry, DropReason, FlowKey, SourceRangeKey,
};
use tholepin_ebpf_core::Translation;
use tholepin_ebpf_core::answer::MAX_QUOTE_WORDS;

use crate::maps::SCRATCH;
use crate::parse::Packet;
use crate::policy::Questions;
use crate::skb::FibQuestion;

/// What the clock said, and when it was asked; see [`crate::skb::now`].
#[repr(C)]
pub struct Clock {
    pub jiffies: u64,
    pub ticks: u64,
}

/// What the stages hand to each other.
#[repr(C)]
pub struct Scratch {
    /// What the headers say.
    pub packet: Packet,
    /// What the packet becomes.
    pub translation: Translation,
    /// `balance`: the halves of a new flow, and the key of the second.
    pub forward: ConntrackEntry,
    pub reply: ConntrackEntry,
    pub reply_key: FlowKey,
    /// `refuse`: the start of the packet that an error quotes.
    pub quote: [u32; MAX_QUOTE_WORDS],
    /// `policy`: what is looked up.
    pub questions: Questions,
    /// `balance`: whom session affinity takes the client for, and what is looked up about it.
    pub client: Address,
    pub range: SourceRangeKey,
    /// `balance`: what was chosen.
    pub chosen_id: u32,
    pub service_id: u32,
    pub frontend_flags: u16,
    pub chosen: BackendValue,
    /// `balance`: the question to the kernel's routing table.
    pub fib: FibQuestion,
    /// `balance`: whether the new flow leaves the pod network, so that its port is one of those kept
    /// for that.
    pub masquerade: bool,
}

/// This CPU's scratch memory.
#[inline(always)]
pub fn scratch() -> Result<&'static mut Scratch, DropReason> {
    let slot = SCRATCH.get_ptr_mut(0).ok_or(DropReason::RewriteFailed)?;
    // SAFETY: a live value of this CPU's own slot; only `pipeline::run` asks for it, once a packet,
    // and `policy`, whose caller does not look at it while it runs.
    Ok(unsafe { &mut *slot })
}

/// Makes the compiler write to memory what it holds, and read it again when it is needed.
#[inline(always)]
pub fn settle() {
    // SAFETY: no instruction at all.
    unsafe { core::arch::asm!("", options(nostack, preserves_flags)) };
}
