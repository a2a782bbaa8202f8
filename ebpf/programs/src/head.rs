//! The first bytes of a packet, whose length was checked once.
//!
//! [`crate::skb::Skb`] checks at each access, which is what a packet that helpers change in between
//! needs. Here one check serves all reads and writes up to the first such helper; after it the verifier
//! refuses any use.

#![expect(unsafe_code, reason = "packet memory")]

use crate::skb::Skb;

/// The first `LEN` bytes.
#[derive(Clone, Copy)]
pub struct Head<const LEN: usize> {
    start: usize,
}

impl<const LEN: usize> Head<LEN> {
    /// The head, if that much is in the linear part.
    #[inline(always)]
    pub fn of(skb: &Skb) -> Option<Self> {
        let (start, end) = skb.bounds();
        Self::within(start, end)
    }

    /// The head of what is between two addresses, which must be the packet's bounds.
    #[inline(always)]
    pub fn within(start: usize, end: usize) -> Option<Self> {
        (start + LEN <= end).then_some(Self { start })
    }

    /// A byte.
    #[inline(always)]
    pub fn byte<const OFFSET: usize>(&self) -> u8 {
        const { assert!(OFFSET < LEN) };
        let byte: u64;
        // SAFETY: within the bytes that `of` checked; the instruction changes nothing.
        unsafe {
            core::arch::asm!(
                "{byte} = *(u8 *)({start} + {at})",
                byte = out(reg) byte,
                start = in(reg) self.start,
                at = const OFFSET,
                options(readonly, nostack, preserves_flags),
            );
        }
        byte as u8
    }

    /// A word, which need not be aligned.
    #[inline(always)]
    pub fn word<const OFFSET: usize>(&self) -> u32 {
        const { assert!(OFFSET + 4 <= LEN) };
        let word: u64;
        // SAFETY: as in `byte`.
        unsafe {
            core::arch::asm!(
                "{word} = *(u32 *)({start} + {at})",
                word = out(reg) word,
                start = in(reg) self.start,
                at = const OFFSET,
                options(readonly, nostack, preserves_flags),
            );
        }
        word as u32
    }

    /// Writes a byte.
    #[inline(always)]
    pub fn set_byte<const OFFSET: usize>(&self, byte: u8) {
        const { assert!(OFFSET < LEN) };
        // SAFETY: within the bytes that `of` checked, which the kernel made writable before it started
        // a program that writes to them.
        unsafe {
            core::arch::asm!(
                "*(u8 *)({start} + {at}) = {byte}",
                byte = in(reg) u64::from(byte),
                start = in(reg) self.start,
                at = const OFFSET,
                options(nostack, preserves_flags),
            );
        }
    }

    /// Writes a word, which need not be aligned.
    #[inline(always)]
    pub fn set_word<const OFFSET: usize>(&self, word: u32) {
        const { assert!(OFFSET + 4 <= LEN) };
        // SAFETY: as in `set_byte`.
        unsafe {
            core::arch::asm!(
                "*(u32 *)({start} + {at}) = {word}",
                word = in(reg) u64::from(word),
                start = in(reg) self.start,
                at = const OFFSET,
                options(nostack, preserves_flags),
            );
        }
    }
}
