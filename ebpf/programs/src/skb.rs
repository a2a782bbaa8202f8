//! The socket buffer: every access to packet bytes and every packet helper, checked.
//!
//! Reads and writes at constant offsets go straight to the packet; the verifier wants the length
//! check next to them, so each is made here. Offsets that depend on the packet (options, extension
//! headers) go through helpers, which check for themselves: a pointer plus a variable is what
//! verifiers of different kernels disagree about.

#![expect(unsafe_code, reason = "packet memory, context fields and helper calls")]

use core::mem::{MaybeUninit, offset_of, size_of};
use core::ptr;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_TUNINFO_IPV6,
    BPF_F_ZERO_CSUM_TX, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
};
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::helpers::{
    bpf_fib_lookup, bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_l4_csum_replace, bpf_redirect,
    bpf_redirect_peer, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_get_tunnel_key,
    bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_set_tunnel_key, bpf_skb_store_bytes,
};
use tholepin_ebpf_abi::DropReason;
use tholepin_ebpf_abi::conntrack::TICK_SHIFT;
use tholepin_ebpf_abi::event::EVENT_CAPTURE;
use tholepin_ebpf_core::Verdict;
use tholepin_ebpf_core::answer::MAX_QUOTE_WORDS;
use tholepin_ebpf_core::packet::ETHERNET_LEN;

use crate::maps::CLOCK;

/// `BPF_F_IPV6` of `bpf_l4_csum_replace`, newer than aya's bindings.
const BPF_F_IPV6: u64 = 1 << 7;

/// Ethernet types as `__sk_buff::protocol` has them.
pub const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
pub const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;
pub const ETH_P_ARP: u32 = 0x0806_u16.to_be() as u32;

/// One packet under way through a TC hook.
#[derive(Clone, Copy)]
pub struct Skb {
    context: *mut __sk_buff,
}

/// `struct bpf_tunnel_key` up to `tunnel_label`: a size every supported kernel takes.
#[repr(C)]
pub struct TunnelKey {
    pub tunnel_id: u32,
    pub remote: [u32; 4],
    pub tos: u8,
    pub ttl: u8,
    pub ext: u16,
    pub label: u32,
}

/// `struct bpf_fib_lookup`.
#[repr(C)]
pub struct FibQuestion {
    pub family: u8,
    pub l4_protocol: u8,
    pub ports: [u16; 2],
    pub total_len: u16,
    /// Where the packet comes from, and then where it would go.
    pub ifindex: u32,
    pub class: u32,
    pub source: [u32; 4],
    pub destination: [u32; 4],
    pub answer: [u32; 4],
}

const _: () = assert!(size_of::<FibQuestion>() == 64);

impl Skb {
    #[inline(always)]
    pub fn new(context: *mut __sk_buff) -> Self {
        Self { context }
    }

    /// What global functions are handed in place of this.
    #[inline(always)]
    pub fn context(&self) -> *mut __sk_buff {
        self.context
    }

    /// Ethernet type, in network order.
    #[inline(always)]
    pub fn protocol(&self) -> u32 {
        // SAFETY: the kernel hands a valid context to the program.
        unsafe { (*self.context).protocol }
    }

    /// Interface the program runs on.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: as in `protocol`.
        unsafe { (*self.context).ifindex }
    }

    /// Whether the packet was made on this node, and not received from anywhere.
    #[inline(always)]
    pub fn is_of_this_node(&self) -> bool {
        // SAFETY: as in `protocol`.
        unsafe { (*self.context).ingress_ifindex == 0 }
    }

    /// Whether the device will cut this packet into segments that fit.
    #[inline(always)]
    pub fn is_gso(&self) -> bool {
        // SAFETY: as in `protocol`.
        unsafe { (*self.context).gso_size != 0 }
    }

    /// A byte at a constant offset, if it is in the linear part.
    #[inline(always)]
    pub fn read_u8<const OFFSET: usize>(&self) -> Option<u8> {
        let start = self.at::<OFFSET>(1)?;
        // SAFETY: `at` checked that the byte is in the packet.
        Some(unsafe { load_byte(start) })
    }

    /// `N` 16-bit words at a constant, even offset. Packets start on an even address.
    #[inline(always)]
    pub fn read_u16<const OFFSET: usize, const N: usize>(&self) -> Option<[u16; N]> {
        const { assert!(OFFSET % 2 == 0) };
        let start = self.at::<OFFSET>(2 * N)?;
        // SAFETY: `at` checked that the words are in the packet.
        Some(unsafe { ptr::read(start as *const [u16; N]) })
    }

    /// `N` words at a constant offset.
    #[inline(always)]
    pub fn read<const OFFSET: usize, const N: usize>(&self) -> Option<[u32; N]> {
        let start = self.at::<OFFSET>(4 * N)?;
        let mut words = [0; N];
        let mut index = 0;
        while index < N {
            // SAFETY: `at` checked that the words are in the packet.
            words[index] = unsafe { load_word(start + 4 * index) };
            index += 1;
        }
        Some(words)
    }

    /// Writes a byte at a constant offset.
    #[inline(always)]
    pub fn write_u8<const OFFSET: usize>(&self, value: u8) -> Result<(), DropReason> {
        let start = self.at::<OFFSET>(1).ok_or(DropReason::RewriteFailed)?;
        // SAFETY: `at` checked that the byte is in the packet, which the kernel made writable
        // before it started a program that writes to it.
        unsafe { ptr::write(start as *mut u8, value) };
        Ok(())
    }

    /// Writes 16-bit words at a constant, even offset.
    #[inline(always)]
    pub fn write_u16<const OFFSET: usize, const N: usize>(
        &self,
        words: [u16; N],
    ) -> Result<(), DropReason> {
        const { assert!(OFFSET % 2 == 0) };
        let start = self.at::<OFFSET>(2 * N).ok_or(DropReason::RewriteFailed)?;
        // SAFETY: as in `write_u8`.
        unsafe { ptr::write(start as *mut [u16; N], words) };
        Ok(())
    }

    /// Writes words at a constant offset.
    #[inline(always)]
    pub fn write<const OFFSET: usize, const N: usize>(
        &self,
        words: [u32; N],
    ) -> Result<(), DropReason> {
        let start = self.at::<OFFSET>(4 * N).ok_or(DropReason::RewriteFailed)?;
        let mut index = 0;
        while index < N {
            // SAFETY: as in `write_u8`.
            unsafe { store_word(start + 4 * index, words[index]) };
            index += 1;
        }
        Ok(())
    }

    /// Start and end of the linear part.
    ///
    /// The context has them as 32-bit fields which the verifier knows to be pointers. The compiler
    /// does not, and moves them between 32-bit halves of registers, after which they are numbers to
    /// the verifier ("R6=scalar", seen on 6.18 with -Ctarget-cpu=v3; every test that loads a
    /// program guards this).
    #[inline(always)]
    pub fn bounds(&self) -> (usize, usize) {
        let (data, end): (usize, usize);
        // SAFETY: reads two fields of the context the kernel handed to the program.
        unsafe {
            core::arch::asm!(
                "{data} = *(u32 *)({context} + {data_at})",
                "{end} = *(u32 *)({context} + {end_at})",
                data = out(reg) data,
                end = lateout(reg) end,
                context = in(reg) self.context,
                data_at = const offset_of!(__sk_buff, data),
                end_at = const offset_of!(__sk_buff, data_end),
                options(readonly, nostack, preserves_flags),
            );
        }
        (data, end)
    }

    /// The address of `len` bytes at a constant offset, if they are in the linear part.
    #[inline(always)]
    fn at<const OFFSET: usize>(&self, len: usize) -> Option<usize> {
        let (data, end) = self.bounds();
        let start = data + OFFSET;
        (start + len <= end).then_some(start)
    }

    /// Makes sure that the first `len` bytes are in the linear part.
    #[inline(always)]
    pub fn pull(&self, len: u32) -> bool {
        // SAFETY: valid context.
        unsafe { bpf_skb_pull_data(self.context, len) == 0 }
    }

    /// Copies bytes from any offset.
    #[inline(always)]
    pub fn load<T: Copy + Default>(&self, offset: u32) -> Option<T> {
        // Not zeroed first: that would be a call of its own, and a frame of the few there is room for.
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: `value` is `size_of::<T>()` writable bytes.
        let result = unsafe {
            bpf_skb_load_bytes(
                self.context.cast(),
                offset,
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            )
        };
        if result != 0 {
            return None;
        }
        // SAFETY: the helper has written all bytes, and all bit patterns are valid.
        Some(unsafe { value.assume_init() })
    }

    /// Bytes of the packet, its link-layer header included.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        // SAFETY: as in `protocol`.
        unsafe { (*self.context).len }
    }

    /// Copies the start of a packet of `len` bytes, as much as an event takes; how much that is.
    ///
    /// # Safety
    /// `to` is that of [`EVENT_CAPTURE`] writable bytes.
    #[inline(always)]
    pub unsafe fn copy_start(&self, len: u32, to: *mut u8) -> u32 {
        let mut size = u64::from(len);
        if size > EVENT_CAPTURE as u64 {
            size = EVENT_CAPTURE as u64;
        }
        // Two comparisons that the compiler may not merge: verifiers before 6.8 learn from "less than"
        // that a size is not zero, and nothing from "not equal".
        // SAFETY: no instruction at all.
        unsafe { core::arch::asm!("/* {size} */", size = inout(reg) size) };
        if size < u64::from(ETHERNET_LEN) {
            return 0;
        }
        // SAFETY: `to` has room for the largest size, by the caller's promise.
        let result = unsafe { bpf_skb_load_bytes(self.context.cast(), 0, to.cast(), size as u32) };
        if result == 0 { size as u32 } else { 0 }
    }

    /// Copies the first `WORDS` words from `offset` into a larger array.
    #[inline(always)]
    pub fn load_into<const WORDS: usize>(
        &self,
        offset: u32,
        words: &mut [u32; MAX_QUOTE_WORDS],
    ) -> bool {
        const { assert!(WORDS <= MAX_QUOTE_WORDS) };
        // SAFETY: `words` has at least `WORDS` writable words (asserted above).
        let result = unsafe {
            bpf_skb_load_bytes(
                self.context.cast(),
                offset,
                words.as_mut_ptr().cast(),
                (WORDS * 4) as u32,
            )
        };
        result == 0
    }

    /// Copies bytes to any offset. Checksums are the caller's.
    #[inline(always)]
    pub fn store<T: Copy>(&self, offset: u32, value: &T) -> Result<(), DropReason> {
        // SAFETY: `value` is `size_of::<T>()` readable bytes.
        let result = unsafe {
            bpf_skb_store_bytes(
                self.context,
                offset,
                ptr::from_ref(value).cast(),
                size_of::<T>() as u32,
                0,
            )
        };
        done(result, DropReason::RewriteFailed)
    }

    /// Applies a change of covered words to the transport checksum at `offset`.
    ///
    /// `pseudo` says that the words are of the pseudo-header, which is all that the field of a
    /// packet whose checksum is still to be computed covers.
    #[inline(always)]
    pub fn change_checksum(
        &self,
        offset: u32,
        difference: u32,
        pseudo: bool,
        kind: Checksum,
    ) -> Result<(), DropReason> {
        let mut flags = 0;
        if pseudo {
            flags |= u64::from(BPF_F_PSEUDO_HDR);
            if kind.v6 && crate::globals::enabled(&crate::globals::CSUM_IPV6) {
                flags |= BPF_F_IPV6;
            }
        }
        if kind.zero_is_none {
            flags |= u64::from(BPF_F_MARK_MANGLED_0);
        }
        // SAFETY: valid context.
        let result =
            unsafe { bpf_l4_csum_replace(self.context, offset, 0, u64::from(difference), flags) };
        done(result, DropReason::RewriteFailed)
    }

    /// Cuts the packet to `len` bytes.
    #[inline(always)]
    pub fn truncate(&self, len: u32) -> Result<(), DropReason> {
        // SAFETY: valid context.
        done(
            unsafe { bpf_skb_change_tail(self.context, len, 0) },
            DropReason::RewriteFailed,
        )
    }

    /// Makes `len` bytes of room before the packet.
    #[inline(always)]
    pub fn push(&self, len: u32) -> Result<(), DropReason> {
        // SAFETY: valid context.
        done(
            unsafe { bpf_skb_change_head(self.context, len, 0) },
            DropReason::RewriteFailed,
        )
    }

    /// The interface by which the kernel would forward a packet; `None` if it would not.
    #[inline(always)]
    pub fn route(&self, question: &mut FibQuestion) -> Option<u32> {
        // SAFETY: valid context; `question` has the layout of `struct bpf_fib_lookup`.
        let result = unsafe {
            bpf_fib_lookup(
                self.context.cast(),
                ptr::from_mut(question).cast(),
                size_of::<FibQuestion>() as i32,
                0,
            )
        };
        // A neighbour that has yet to be resolved is the kernel's business.
        let forwarded = result == i64::from(BPF_FIB_LKUP_RET_SUCCESS)
            || result == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH);
        forwarded.then_some(question.ifindex)
    }

    /// The network identifier under which the packet came through the overlay.
    #[inline(always)]
    pub fn tunnel_id(&self) -> Option<u32> {
        let mut key = TunnelKey {
            tunnel_id: 0,
            remote: [0; 4],
            tos: 0,
            ttl: 0,
            ext: 0,
            label: 0,
        };
        let size = size_of::<TunnelKey>() as u32;
        let to = ptr::from_mut(&mut key).cast();
        // SAFETY: valid context; `key` has the layout of the first fields of `struct bpf_tunnel_key`.
        // Without the flag the helper refuses the keys of tunnels over IPv6.
        let over_v4 = unsafe { bpf_skb_get_tunnel_key(self.context, to, size, 0) } == 0;
        // SAFETY: likewise.
        let found = over_v4
            || unsafe {
                bpf_skb_get_tunnel_key(self.context, to, size, u64::from(BPF_F_TUNINFO_IPV6))
            } == 0;
        found.then_some(key.tunnel_id)
    }

    #[inline(always)]
    pub fn set_tunnel_key(&self, key: &TunnelKey, v6: bool) -> Result<(), DropReason> {
        // IPv6 demands a UDP checksum; over IPv4 the inner checksums are enough.
        let flags = if v6 {
            BPF_F_TUNINFO_IPV6
        } else {
            BPF_F_ZERO_CSUM_TX
        };
        // SAFETY: `key` has the layout of the first fields of `struct bpf_tunnel_key`.
        let result = unsafe {
            bpf_skb_set_tunnel_key(
                self.context,
                ptr::from_ref(key).cast_mut().cast(),
                size_of::<TunnelKey>() as u32,
                u64::from(flags),
            )
        };
        done(result, DropReason::TunnelFailed)
    }
}

/// What kind of transport checksum it is.
#[derive(Clone, Copy)]
pub struct Checksum {
    /// The packet is IPv6.
    pub v6: bool,
    /// UDP: a field of zero means that there is none.
    pub zero_is_none: bool,
}

/// Sends the packet out of an interface.
#[inline(always)]
pub fn redirect(ifindex: u32) -> Verdict {
    // SAFETY: no pointers.
    Verdict::Redirected(unsafe { bpf_redirect(ifindex, 0) } as i32)
}

/// Lets the packet arrive on an interface.
#[inline(always)]
pub fn redirect_ingress(ifindex: u32) -> Verdict {
    // SAFETY: no pointers.
    Verdict::Redirected(unsafe { bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) } as i32)
}

/// Lets the packet arrive on the other side of a veth pair, in its namespace. Ingress hooks only.
#[inline(always)]
pub fn redirect_peer(ifindex: u32) -> Verdict {
    // SAFETY: no pointers.
    Verdict::Redirected(unsafe { bpf_redirect_peer(ifindex, 0) } as i32)
}

/// The coarse monotonic clock in ticks.
///
/// It changes with the timer interrupt only, as jiffies do, which the verifier reads in place while
/// the clock is two function calls. So it is asked once per processor and jiffy.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: no pointers.
    let jiffies = unsafe { bpf_jiffies64() };
    let Some(known) = CLOCK.get_ptr_mut(0) else {
        return clock();
    };
    // SAFETY: a live value of this CPU's own slot. Another program may interrupt this one and write
    // both words; ticks that are newer than their jiffies are right as well.
    unsafe {
        if (*known).jiffies != jiffies {
            (*known).ticks = u64::from(clock());
            (*known).jiffies = jiffies;
        }
        (*known).ticks as u32
    }
}

#[inline(always)]
fn clock() -> u32 {
    ticks_of(now_ns())
}

/// The coarse monotonic clock itself.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no pointers.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// A time of that clock in ticks.
#[inline(always)]
pub fn ticks_of(ns: u64) -> u32 {
    (ns >> TICK_SHIFT) as u32
}

#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: no pointers.
    unsafe { bpf_get_prandom_u32() }
}

#[inline(always)]
fn done(result: i64, reason: DropReason) -> Result<(), DropReason> {
    if result == 0 { Ok(()) } else { Err(reason) }
}

/// Loads a word that the wire need not have aligned.
///
/// In Rust an unaligned word is four bytes to be put together. The machines load it at once, and
/// the verifier lets them; only the compiler must be kept from drawing conclusions, and from
/// treating the stack the same way, which verifiers do not let pass.
///
/// # Safety
/// `address` is that of four readable bytes of the packet.
#[inline(always)]
unsafe fn load_word(address: usize) -> u32 {
    let word: u64;
    // SAFETY: the caller's promise; the instruction reads four bytes and changes nothing else.
    unsafe {
        core::arch::asm!(
            "{word} = *(u32 *)({address} + 0)",
            word = out(reg) word,
            address = in(reg) address,
            options(readonly, nostack, preserves_flags),
        );
    }
    word as u32
}

/// Loads a byte, here and not where the compiler would rather have it.
///
/// # Safety
/// `address` is that of a readable byte of the packet.
#[inline(always)]
unsafe fn load_byte(address: usize) -> u8 {
    let byte: u64;
    // SAFETY: the caller's promise; the instruction reads a byte and changes nothing else.
    unsafe {
        core::arch::asm!(
            "{byte} = *(u8 *)({address} + 0)",
            byte = out(reg) byte,
            address = in(reg) address,
            options(readonly, nostack, preserves_flags),
        );
    }
    byte as u8
}

/// Stores a word, see [`load_word`].
///
/// # Safety
/// `address` is that of four writable bytes of the packet.
#[inline(always)]
unsafe fn store_word(address: usize, word: u32) {
    // SAFETY: the caller's promise; the instruction writes four bytes and changes nothing else.
    unsafe {
        core::arch::asm!(
            "*(u32 *)({address} + 0) = {word}",
            word = in(reg) u64::from(word),
            address = in(reg) address,
            options(nostack, preserves_flags),
        );
    }
}
