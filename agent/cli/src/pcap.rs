//! Packets in a file that tcpdump and Wireshark read (classic pcap, nanoseconds).

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

/// Nanosecond timestamps, in this machine's byte order.
const MAGIC: u32 = 0xa1b2_3c4d;
const ETHERNET: u32 = 1;

/// A file being written.
#[derive(Debug)]
pub(crate) struct Pcap<W: Write> {
    out: W,
}

impl Pcap<BufWriter<File>> {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        Self::new(BufWriter::new(File::create(path)?))
    }
}

impl<W: Write> Pcap<W> {
    fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&MAGIC.to_ne_bytes())?;
        for half in [2_u16, 4] {
            out.write_all(&half.to_ne_bytes())?;
        }
        for word in [0, 0, 65_535, ETHERNET] {
            out.write_all(&u32::to_ne_bytes(word))?;
        }
        Ok(Self { out })
    }

    /// Appends a packet of `len` bytes of which the first ones are known, and writes it out at once: the
    /// usual end is a Ctrl-C.
    pub(crate) fn packet(&mut self, at: Duration, len: u32, bytes: &[u8]) -> io::Result<()> {
        let seconds = u32::try_from(at.as_secs()).unwrap_or(u32::MAX);
        let captured = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        for word in [seconds, at.subsec_nanos(), captured, len] {
            self.out.write_all(&word.to_ne_bytes())?;
        }
        self.out.write_all(bytes)?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_a_header_and_a_record_for_each_packet() {
        let mut out = Vec::new();
        let mut pcap = Pcap::new(&mut out).expect("memory");
        pcap.packet(Duration::new(5, 7), 1500, &[1, 2, 3])
            .expect("memory");
        assert_eq!(out.len(), 24 + 16 + 3);
        assert_eq!(out[..4], MAGIC.to_ne_bytes());
        assert_eq!(out[20..24], 1_u32.to_ne_bytes());
        let words = [5_u32, 7, 3, 1500].map(u32::to_ne_bytes).concat();
        assert_eq!(out[24..40], words);
    }
}
