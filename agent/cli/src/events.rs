//! Listening to single packets: the switch, the ring buffer, and what a record says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData, RingBuf};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tholepin_ebpf_abi::event::EVENT_CAPTURE;
use tholepin_ebpf_abi::{Event, EventSwitch, names};

use crate::maps::{Live, now_ticks};
use crate::names::protocol_name;

/// For how many ticks the switch is set ahead. A listener that is killed leaves it on for so long.
const AHEAD: u32 = 10;
/// How often the switch is set again.
const REFRESH: Duration = Duration::from_secs(3);

/// What to listen to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interest {
    pub(crate) drops: u64,
    pub(crate) flow_sample: u32,
}

/// A listener. Dropping it switches the events off.
pub(crate) struct Listener {
    ring: RingBuf<MapData>,
    switch: Array<MapData, EventSwitch>,
    interest: Interest,
    refreshed: std::time::Instant,
}

impl Listener {
    /// Switches on, for this listener's interest alone: the last one decides.
    pub(crate) fn start(live: &Live, interest: Interest) -> Result<Self> {
        let ring = RingBuf::try_from(live.map(names::EVENTS)?).context("cannot use EVENTS")?;
        let switch =
            Array::try_from(live.map(names::EVENT_SWITCH)?).context("cannot use EVENT_SWITCH")?;
        let refreshed = std::time::Instant::now();
        let mut listener = Self {
            ring,
            switch,
            interest,
            refreshed,
        };
        // What an earlier listener left is old news.
        while listener.ring.next().is_some() {}
        listener.set(now_ticks().saturating_add(AHEAD))?;
        Ok(listener)
    }

    fn set(&mut self, until: u32) -> Result<()> {
        let Interest { drops, flow_sample } = self.interest;
        let switch = EventSwitch {
            drops,
            until,
            flow_sample,
        };
        self.switch
            .set(0, switch, 0)
            .context("cannot write EVENT_SWITCH")
    }

    /// The next event; `None` when `patience` is over or a signal came.
    pub(crate) fn next(&mut self, patience: Duration) -> Result<Option<Event>> {
        let give_up = std::time::Instant::now() + patience;
        loop {
            if let Some(record) = self.ring.next() {
                if let Some(event) = decode(&record) {
                    return Ok(Some(event));
                }
                continue;
            }
            if self.refreshed.elapsed() >= REFRESH {
                self.set(now_ticks().saturating_add(AHEAD))?;
                self.refreshed = std::time::Instant::now();
            }
            let left = give_up.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() || !self.wait(left.min(REFRESH))? {
                return Ok(None);
            }
        }
    }

    /// Until there may be an event; false after a signal.
    fn wait(&self, limit: Duration) -> Result<bool> {
        let ring = Borrowed(&self.ring);
        let mut descriptors = [PollFd::new(ring.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut descriptors, limit) {
            Ok(_) => Ok(true),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error).context("cannot wait for events"),
        }
    }
}

/// aya gives the raw descriptor of a ring buffer only.
struct Borrowed<'a>(&'a RingBuf<MapData>);

impl AsFd for Borrowed<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        #[expect(
            unsafe_code,
            reason = "aya gives the raw descriptor of a ring buffer only"
        )]
        // SAFETY: the ring buffer owns the descriptor and is borrowed for as long as this is.
        unsafe {
            BorrowedFd::borrow_raw(self.0.as_raw_fd())
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It would end by itself; what cannot be switched off costs little for some seconds.
        self.set(0).ok();
    }
}

/// A record, field by field.
fn decode(record: &[u8]) -> Option<Event> {
    let word = |at: usize| Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
    Some(Event {
        at_ns: u64::from_ne_bytes(record.get(..8)?.try_into().ok()?),
        kind: word(8)?,
        detail: word(12)?,
        backend_id: word(16)?,
        ifindex: word(20)?,
        packet_len: word(24)?,
        captured: word(28)?.min(EVENT_CAPTURE as u32),
        packet: {
            let bytes = record.get(32..32 + EVENT_CAPTURE)?;
            std::array::from_fn(|row| std::array::from_fn(|at| bytes[32 * row + at]))
        },
    })
}

/// What the headers of a packet say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Headers {
    pub(crate) protocol: String,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) ports: Option<(u16, u16)>,
    /// TCP only: `SYN`, `SYN,ACK`, ….
    pub(crate) flags: Option<String>,
}

impl Headers {
    /// Reads an Ethernet frame as far as it goes.
    pub(crate) fn of(frame: &[u8]) -> Option<Self> {
        let ether_type = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
        let ip = frame.get(14..)?;
        let (protocol, source, destination, transport) = match ether_type {
            0x0800 => {
                let address = |at: usize| {
                    let octets: [u8; 4] = ip.get(at..at + 4)?.try_into().ok()?;
                    Some(IpAddr::from(Ipv4Addr::from(octets)))
                };
                let later = u16::from_be_bytes([*ip.get(6)?, *ip.get(7)?]) & 0x1fff != 0;
                let transport = ip.get(usize::from(ip[0] & 0x0f) * 4..).filter(|_| !later);
                (*ip.get(9)?, address(12)?, address(16)?, transport)
            }
            0x86dd => {
                let address = |at: usize| {
                    let octets: [u8; 16] = ip.get(at..at + 16)?.try_into().ok()?;
                    Some(IpAddr::from(Ipv6Addr::from(octets)))
                };
                (*ip.get(6)?, address(8)?, address(24)?, ip.get(40..))
            }
            _ => return None,
        };
        let transport = transport.unwrap_or_default();
        let ports = matches!(protocol, 6 | 17 | 132)
            .then(|| {
                let port = |at: usize| {
                    Some(u16::from_be_bytes([
                        *transport.get(at)?,
                        *transport.get(at + 1)?,
                    ]))
                };
                Some((port(0)?, port(2)?))
            })
            .flatten();
        let flags = (protocol == 6)
            .then(|| transport.get(13).map(|bits| tcp_flags(*bits)))
            .flatten();
        Some(Self {
            protocol: protocol_name(protocol),
            source,
            destination,
            ports,
            flags,
        })
    }

    /// Both ends as people write them.
    pub(crate) fn ends(&self) -> (String, String) {
        match self.ports {
            Some((from, to)) => (
                SocketAddr::new(self.source, from).to_string(),
                SocketAddr::new(self.destination, to).to_string(),
            ),
            None => (self.source.to_string(), self.destination.to_string()),
        }
    }
}

fn tcp_flags(bits: u8) -> String {
    let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG"];
    let set: Vec<&str> = (0..6)
        .filter(|bit| bits >> bit & 1 != 0)
        .map(|bit| names[bit])
        .collect();
    set.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(ether_type: u16, rest: &[u8]) -> Vec<u8> {
        [&[0; 12][..], &ether_type.to_be_bytes(), rest].concat()
    }

    #[test]
    fn headers_of_both_families_are_read() {
        let mut ip = vec![
            0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 244, 0, 5, 10, 96, 0, 10,
        ];
        ip.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x12]);
        let headers = Headers::of(&frame(0x0800, &ip)).expect("IPv4");
        assert_eq!(
            headers.ends(),
            ("10.244.0.5:40000".to_owned(), "10.96.0.10:80".to_owned())
        );
        assert_eq!(
            (headers.protocol.as_str(), headers.flags.as_deref()),
            ("tcp", Some("SYN,ACK"))
        );
        let mut ip = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
        ip.extend(Ipv6Addr::LOCALHOST.octets());
        ip.extend("fd00::2".parse::<Ipv6Addr>().expect("an address").octets());
        ip.extend([0, 53, 0, 54]);
        let headers = Headers::of(&frame(0x86dd, &ip)).expect("IPv6");
        assert_eq!(
            headers.ends(),
            ("[::1]:53".to_owned(), "[fd00::2]:54".to_owned())
        );
    }

    #[test]
    fn what_is_cut_short_or_no_ip_is_no_packet_of_ours() {
        assert_eq!(Headers::of(&[]), None);
        assert_eq!(Headers::of(&frame(0x0806, &[0; 40])), None);
        assert_eq!(Headers::of(&frame(0x0800, &[0x45; 10])), None);
        let later_fragment = [
            0x45, 0, 0, 40, 0, 0, 0x20, 1, 64, 17, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 9, 9, 9, 9,
        ];
        let headers = Headers::of(&frame(0x0800, &later_fragment)).expect("addresses are there");
        assert_eq!(headers.ports, None, "payload is not ports");
    }

    #[test]
    fn a_record_of_another_size_is_no_event() {
        assert!(decode(&[0; 31]).is_none());
        assert!(decode(&[0xff; size_of::<Event>()]).is_some_and(|event| event.captured == 128));
    }
}
