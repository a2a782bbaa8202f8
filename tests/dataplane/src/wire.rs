//! Packets as the tests write them, and the bytes they are.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// TCP flags by their letters in a test.
const FLAGS: [(char, u8); 4] = [('F', 1), ('S', 2), ('R', 4), ('A', 16)];

/// What an IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Udp {
        payload: Vec<u8>,
    },
    Tcp {
        flags: u8,
        sequence: u32,
        acknowledgement: u32,
        payload: Vec<u8>,
    },
    /// The type of the first chunk, which has nothing but its header before the payload.
    Sctp {
        chunk: u8,
        payload: Vec<u8>,
    },
    /// Type, code, the word after the checksum, and the rest.
    Icmp {
        kind: u8,
        code: u8,
        word: u32,
        rest: Vec<u8>,
    },
    Other {
        protocol: u8,
        payload: Vec<u8>,
    },
}

/// An IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub ttl: u8,
    /// IPv4's, by which tests tell the packets of the stack from those the programs make.
    pub identification: u16,
    pub body: Body,
    /// IPv4 options or IPv6 destination options, in words of 4 or 8 bytes.
    pub options: usize,
}

/// `"source -> destination"`; ports are optional.
fn ends(text: &str) -> (SocketAddr, SocketAddr) {
    let (source, destination) = text.split_once(" -> ").expect("a packet has two ends");
    (end(source), end(destination))
}

/// An address with or without a port.
pub fn end(text: &str) -> SocketAddr {
    let text = text.trim();
    text.parse().unwrap_or_else(|_| {
        let address: IpAddr = text
            .parse()
            .unwrap_or_else(|_| panic!("`{text}` is no address"));
        SocketAddr::new(address, 0)
    })
}

fn packet(text: &str, body: Body) -> Packet {
    let (source, destination) = ends(text);
    Packet {
        source,
        destination,
        ttl: 64,
        identification: 0x1234,
        body,
        options: 0,
    }
}

/// A UDP datagram with a short payload.
pub fn udp(text: &str) -> Packet {
    packet(
        text,
        Body::Udp {
            payload: b"hello".to_vec(),
        },
    )
}

/// A TCP segment with flags such as `"S"` or `"FA"`.
pub fn tcp(flags: &str, text: &str) -> Packet {
    let flags = flags.chars().fold(0, |bits, letter| {
        let known = FLAGS.iter().find(|(name, _)| *name == letter);
        bits | known.unwrap_or_else(|| panic!("unknown flag `{letter}`")).1
    });
    let (sequence, acknowledgement) = (1000, if flags & 16 == 0 { 0 } else { 5000 });
    packet(
        text,
        Body::Tcp {
            flags,
            sequence,
            acknowledgement,
            payload: Vec::new(),
        },
    )
}

/// An SCTP packet with a chunk of a type and a short payload.
pub fn sctp(chunk: u8, text: &str) -> Packet {
    let payload = b"associate".to_vec();
    packet(text, Body::Sctp { chunk, payload })
}

/// An ICMP echo request of the family.
pub fn ping(text: &str) -> Packet {
    let (source, _) = ends(text);
    let kind = if source.is_ipv4() { 8 } else { 128 };
    let (word, rest) = (0x0001_0001, b"ping".to_vec());
    packet(
        text,
        Body::Icmp {
            kind,
            code: 0,
            word,
            rest,
        },
    )
}

/// An ICMP error that quotes `about`.
pub fn icmp_error(text: &str, kind: u8, code: u8, word: u32, about: &Packet) -> Packet {
    let mut quoted = about.ip_bytes();
    quoted.truncate(if about.is_v4() { 28 } else { 48 });
    packet(
        text,
        Body::Icmp {
            kind,
            code,
            word,
            rest: quoted,
        },
    )
}

impl Packet {
    pub fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    #[must_use]
    pub fn options(mut self, words: usize) -> Self {
        self.options = words;
        self
    }

    #[must_use]
    pub fn payload(mut self, bytes: &[u8]) -> Self {
        match &mut self.body {
            Body::Udp { payload }
            | Body::Tcp { payload, .. }
            | Body::Sctp { payload, .. }
            | Body::Other { payload, .. } => {
                *payload = bytes.to_vec();
            }
            Body::Icmp { rest, .. } => *rest = bytes.to_vec(),
        }
        self
    }

    pub fn protocol(&self) -> u8 {
        match self.body {
            Body::Udp { .. } => 17,
            Body::Tcp { .. } => 6,
            Body::Sctp { .. } => 132,
            Body::Icmp { .. } if self.is_v4() => 1,
            Body::Icmp { .. } => 58,
            Body::Other { protocol, .. } => protocol,
        }
    }

    /// The transport header and payload, checksummed.
    fn transport_bytes(&self) -> Vec<u8> {
        let (source, destination) = (self.source.port(), self.destination.port());
        let mut bytes = Vec::new();
        let at = match &self.body {
            Body::Udp { payload } => {
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                bytes.extend((8 + payload.len() as u16).to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(payload);
                Some(6)
            }
            Body::Tcp {
                flags,
                sequence,
                acknowledgement,
                payload,
            } => {
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                bytes.extend(sequence.to_be_bytes());
                bytes.extend(acknowledgement.to_be_bytes());
                // A reset has no window to offer.
                let window = if flags & 4 == 0 { 0x10 } else { 0 };
                bytes.extend([5 << 4, *flags, window, 0, 0, 0, 0, 0]);
                bytes.extend(payload);
                Some(16)
            }
            Body::Icmp {
                kind,
                code,
                word,
                rest,
            } => {
                bytes.extend([*kind, *code, 0, 0]);
                bytes.extend(word.to_be_bytes());
                bytes.extend(rest);
                Some(2)
            }
            Body::Sctp { chunk, payload } => {
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                bytes.extend([0, 0, 0, 7, 0, 0, 0, 0, *chunk, 0]);
                bytes.extend((4 + payload.len() as u16).to_be_bytes());
                bytes.extend(payload);
                let sum = crc32c(&bytes);
                bytes[8..12].copy_from_slice(&sum.to_le_bytes());
                None
            }
            Body::Other { payload, .. } => {
                bytes.extend(payload);
                None
            }
        };
        if let Some(at) = at {
            let sum = match checksum(&self.covered(&bytes)) {
                0 if self.protocol() == 17 => 0xffff,
                sum => sum,
            };
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    /// What the transport checksum covers.
    fn covered(&self, transport: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.protocol() != 1 {
            bytes.extend(octets(self.source.ip()));
            bytes.extend(octets(self.destination.ip()));
            bytes.extend((transport.len() as u32).to_be_bytes());
            bytes.extend([0, 0, 0, self.protocol()]);
        }
        bytes.extend(transport);
        bytes
    }

    /// The IP packet.
    pub fn ip_bytes(&self) -> Vec<u8> {
        let transport = self.transport_bytes();
        let mut bytes = Vec::new();
        if self.is_v4() {
            let header = 20 + 4 * self.options;
            bytes.extend([0x40 | (header / 4) as u8, 0]);
            bytes.extend(((header + transport.len()) as u16).to_be_bytes());
            bytes.extend(self.identification.to_be_bytes());
            bytes.extend([0x40, 0, self.ttl, self.protocol(), 0, 0]);
            bytes.extend(octets(self.source.ip()));
            bytes.extend(octets(self.destination.ip()));
            bytes.extend(vec![1; 4 * self.options]); // No-operation options.
            let sum = checksum(&bytes);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            let extension = 8 * self.options;
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(((extension + transport.len()) as u16).to_be_bytes());
            bytes.extend([
                if self.options > 0 {
                    60
                } else {
                    self.protocol()
                },
                self.ttl,
            ]);
            bytes.extend(octets(self.source.ip()));
            bytes.extend(octets(self.destination.ip()));
            if self.options > 0 {
                bytes.extend([
                    self.protocol(),
                    self.options as u8 - 1,
                    1,
                    extension as u8 - 4,
                ]);
                bytes.extend(vec![0; extension - 4]);
            }
        }
        bytes.extend(transport);
        bytes
    }

    /// Reads an IP packet, and insists on every length and checksum.
    pub fn from_ip_bytes(bytes: &[u8]) -> Result<Self, String> {
        let packet = Self::read(bytes)?;
        let same = packet.ip_bytes();
        if same != bytes {
            let at = same.iter().zip(bytes).position(|(a, b)| a != b);
            return Err(format!(
                "{packet} is not as it should be at byte {at:?}\n is     {bytes:02x?}\n should {same:02x?}"
            ));
        }
        Ok(packet)
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        let version = bytes.first().ok_or("an empty packet")? >> 4;
        let (source, destination, ttl, protocol, start, options): (IpAddr, IpAddr, _, _, _, _) =
            match version {
                4 => {
                    let header = usize::from(bytes[0] & 15) * 4;
                    let (s, d) = (array::<4>(bytes, 12)?, array::<4>(bytes, 16)?);
                    (
                        s.into(),
                        d.into(),
                        bytes[8],
                        bytes[9],
                        header,
                        header / 4 - 5,
                    )
                }
                6 => {
                    let (s, d) = (array::<16>(bytes, 8)?, array::<16>(bytes, 24)?);
                    let (mut protocol, mut start, mut options) = (bytes[6], 40, 0);
                    if protocol == 60 {
                        options = usize::from(bytes[41]) + 1;
                        (protocol, start) = (bytes[40], 40 + 8 * options);
                    }
                    (s.into(), d.into(), bytes[7], protocol, start, options)
                }
                _ => return Err(format!("IP version {version}")),
            };
        let identification = if version == 4 {
            u16::from_be_bytes(array(bytes, 4)?)
        } else {
            0x1234
        };
        let transport = bytes.get(start..).ok_or("no transport header")?;
        let ports = |body| -> Result<_, String> {
            Ok((
                u16::from_be_bytes(array(transport, 0)?),
                u16::from_be_bytes(array(transport, 2)?),
                body,
            ))
        };
        let (sport, dport, body) = match protocol {
            17 => ports(Body::Udp {
                payload: transport[8..].to_vec(),
            })?,
            6 => ports(Body::Tcp {
                flags: transport[13],
                sequence: u32::from_be_bytes(array(transport, 4)?),
                acknowledgement: u32::from_be_bytes(array(transport, 8)?),
                payload: transport[20..].to_vec(),
            })?,
            132 => ports(Body::Sctp {
                chunk: transport[12],
                payload: transport[16..].to_vec(),
            })?,
            1 | 58 => (
                0,
                0,
                Body::Icmp {
                    kind: transport[0],
                    code: transport[1],
                    word: u32::from_be_bytes(array(transport, 4)?),
                    rest: transport[8..].to_vec(),
                },
            ),
            _ => (
                0,
                0,
                Body::Other {
                    protocol,
                    payload: transport.to_vec(),
                },
            ),
        };
        let (source, destination) = (
            SocketAddr::new(source, sport),
            SocketAddr::new(destination, dport),
        );
        Ok(Self {
            source,
            destination,
            ttl,
            identification,
            body,
            options,
        })
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.body {
            Body::Udp { .. } => "udp",
            Body::Tcp { .. } => "tcp",
            Body::Sctp { .. } => "sctp",
            Body::Icmp { .. } => "icmp",
            Body::Other { .. } => "ip",
        };
        if let Body::Icmp { kind, code, .. } = self.body {
            write!(
                f,
                "{name} {kind}/{code} {} -> {}",
                self.source.ip(),
                self.destination.ip()
            )?;
        } else {
            write!(f, "{name} {} -> {}", self.source, self.destination)?;
        }
        match &self.body {
            Body::Tcp { flags, .. } if flags & 4 != 0 => write!(f, " RST"),
            Body::Icmp {
                kind, word, rest, ..
            } if quotes(self.is_v4(), *kind) => {
                if *word != 0 {
                    write!(f, " mtu {word}")?;
                }
                let quoted = quoted(rest).unwrap_or_else(|error| error);
                write!(f, " about {quoted}")
            }
            _ => Ok(()),
        }
    }
}

/// Whether an ICMP type quotes a packet.
fn quotes(v4: bool, kind: u8) -> bool {
    if v4 {
        matches!(kind, 3 | 11 | 12)
    } else {
        (1..=4).contains(&kind)
    }
}

/// The ends of a quoted packet; its IPv4 header must still check.
fn quoted(bytes: &[u8]) -> Result<String, String> {
    let v4 = bytes.first().is_some_and(|byte| byte >> 4 == 4);
    let (addresses, transport) = if v4 { (12, 20) } else { (8, 40) };
    if v4 && checksum(&bytes[..20]) != 0 {
        return Err("a packet with a wrong header checksum".to_owned());
    }
    let address = |at| -> Result<IpAddr, String> {
        Ok(if v4 {
            array::<4>(bytes, at)?.into()
        } else {
            array::<16>(bytes, at)?.into()
        })
    };
    let step = if v4 { 4 } else { 16 };
    let port = |at| Ok::<_, String>(u16::from_be_bytes(array(bytes, at)?));
    let source = SocketAddr::new(address(addresses)?, port(transport)?);
    let destination = SocketAddr::new(address(addresses + step)?, port(transport + 2)?);
    Ok(format!("{source} -> {destination}"))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], String> {
    let slice = bytes
        .get(at..at + N)
        .ok_or_else(|| format!("cut short at byte {at}"))?;
    Ok(slice.try_into().expect("of this length"))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// CRC32c (RFC 9260, appendix A), a bit at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}
