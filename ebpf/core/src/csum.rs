//! The Internet checksum (RFC 1071) and incremental updates of it (RFC 1624).
//!
//! All words are in memory order: one's complement sums do not care about byte order as long as it
//! is the same on both sides.

/// A one's complement sum that has not been folded yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Sum(u64);

impl Sum {
    /// Nothing summed yet.
    pub const ZERO: Self = Self(0);

    /// Adds a word.
    #[inline(always)]
    pub const fn add(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// Takes a word out again, by adding its complement.
    #[inline(always)]
    pub const fn remove(self, word: u32) -> Self {
        self.add(!word)
    }

    /// Adds four words.
    #[inline(always)]
    pub const fn add_address(self, words: [u32; 4]) -> Self {
        self.add(words[0]).add(words[1]).add(words[2]).add(words[3])
    }

    /// Takes four words out again.
    #[inline(always)]
    pub const fn remove_address(self, words: [u32; 4]) -> Self {
        self.remove(words[0])
            .remove(words[1])
            .remove(words[2])
            .remove(words[3])
    }

    /// Adds all words of an array.
    #[inline(always)]
    pub fn add_words<const N: usize>(mut self, words: &[u32; N]) -> Self {
        let mut index = 0;
        while index < N {
            self = self.add(words[index]);
            index += 1;
        }
        self
    }

    /// As a 32-bit difference, the form `bpf_l4_csum_replace` takes.
    #[must_use]
    #[inline(always)]
    pub const fn difference(self) -> u32 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((once & 0xffff_ffff) + (once >> 32)) as u32
    }

    /// Folded to 16 bits, not complemented.
    #[must_use]
    #[inline(always)]
    pub const fn folded(self) -> u16 {
        let word = self.difference();
        let once = (word & 0xffff) + (word >> 16);
        ((once & 0xffff) + (once >> 16)) as u16
    }

    /// As it is stored in a header, in memory order.
    #[must_use]
    #[inline(always)]
    pub const fn finish(self) -> u16 {
        !self.folded()
    }
}

/// A stored checksum after the words it covers changed by `change`.
#[must_use]
#[inline(always)]
pub const fn updated(stored: u16, change: Sum) -> u16 {
    Sum(change.0 + (!stored) as u64).finish()
}

/// What a transport's checksum field covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// The whole segment: the field is as it goes over the wire.
    Whole,
    /// The pseudo-header only; the rest is still to be added, by the kernel or the device.
    PseudoHeader,
    /// The change does not tell.
    Unknown,
}

/// What a field covers, by what the kernel made of it when it applied a change of the pseudo-header:
/// it takes the change out of a field that is a complement, and puts it into one that is a sum.
#[must_use]
#[inline(always)]
pub const fn coverage(before: u16, after: u16, change: Sum) -> Coverage {
    let change = canonical(change.folded());
    if change == 0 {
        Coverage::Unknown
    } else if canonical(Sum(before as u64 + change as u64).folded()) == canonical(after) {
        Coverage::PseudoHeader
    } else {
        Coverage::Whole
    }
}

/// Zero has two forms in one's complement.
#[inline(always)]
const fn canonical(sum: u16) -> u16 {
    if sum == 0xffff { 0 } else { sum }
}

/// What the pseudo-header of TCP, UDP and ICMPv6 adds to a sum.
#[inline(always)]
pub const fn pseudo_header(source: [u32; 4], destination: [u32; 4], protocol: u8, len: u32) -> Sum {
    // The mapped prefix of an IPv4 address adds 0xffff, which is zero in one's complement, so that
    // one formula serves both families.
    Sum::ZERO
        .add_address(source)
        .add_address(destination)
        .add((protocol as u32).to_be())
        .add(len.to_be())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 by its text: big-endian 16-bit words.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
        core::array::from_fn(|i| u32::from_ne_bytes(bytes[4 * i..][..4].try_into().unwrap()))
    }

    #[test]
    fn the_header_of_the_rfc_1071_literature_checks() {
        let mut header = [
            0x45, 0x00, 0x00, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8,
            0, 0xc7,
        ];
        let sum = Sum::ZERO.add_words(&words::<5>(&header)).finish();
        assert_eq!(u16::from_be(sum), 0xb861);
        header[10..12].copy_from_slice(&sum.to_ne_bytes());
        assert_eq!(Sum::ZERO.add_words(&words::<5>(&header)).finish(), 0);
    }

    proptest! {
        #[test]
        fn a_sum_is_that_of_the_rfc(bytes in prop::array::uniform32(any::<u8>())) {
            let sum = Sum::ZERO.add_words(&words::<8>(&bytes)).finish();
            prop_assert_eq!(u16::from_be(sum), reference(&bytes));
        }

        #[test]
        fn an_update_gives_what_a_new_sum_gives(
            before in prop::array::uniform32(any::<u8>()),
            after in prop::array::uniform32(any::<u8>()),
        ) {
            let old = Sum::ZERO.add_words(&words::<8>(&before)).finish();
            let mut change = Sum::ZERO;
            for (old, new) in words::<8>(&before).into_iter().zip(words::<8>(&after)) {
                change = change.remove(old).add(new);
            }
            let new = updated(old, change);
            // 0 and 0xffff are the same number in one's complement.
            let fresh = Sum::ZERO.add_words(&words::<8>(&after)).finish();
            prop_assert!(new == fresh || (new ^ fresh) == 0xffff);
        }

        #[test]
        fn what_a_field_covers_shows_in_what_a_change_does_to_it(
            before: u16, changes in prop::array::uniform8(any::<u32>())
        ) {
            let change = Sum::ZERO.add_words(&changes);
            // As `inet_proto_csum_replace_by_diff` does.
            let whole = updated(before, change);
            let pseudo = Sum(u64::from(before) + u64::from(change.difference())).folded();
            if change.folded().is_multiple_of(0xffff) {
                prop_assert_eq!(coverage(before, whole, change), Coverage::Unknown);
            } else {
                prop_assert_eq!(coverage(before, whole, change), Coverage::Whole);
                prop_assert_eq!(coverage(before, pseudo, change), Coverage::PseudoHeader);
            }
        }

        #[test]
        fn the_32_bit_difference_is_congruent(values in prop::array::uniform8(any::<u32>())) {
            let sum = Sum::ZERO.add_words(&values);
            prop_assert_eq!(Sum::ZERO.add(sum.difference()).folded(), sum.folded());
        }
    }
}
