//! The packet that is asked about.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use tholepin_ebpf_abi::{Be16, FlowKey};

use super::cannot_read;
use crate::names::protocol_name;

/// What a client's kernel might choose.
const SOME_PORT: u16 = 40_000;

/// A packet's tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) protocol: u8,
    pub(super) source: IpAddr,
    pub(super) source_port: u16,
    pub(super) destination: IpAddr,
    pub(super) destination_port: u16,
}

impl Question {
    /// `tcp 10.0.0.1:1 -> 10.0.0.2:2`, as one word or several, with or without the arrow.
    pub(super) fn parse(words: &[String]) -> Result<Self> {
        let text = words.join(" ");
        let words: Vec<&str> = text
            .split_whitespace()
            .filter(|word| !["->", "to"].contains(word))
            .collect();
        let [protocol, from, to] = words[..] else {
            return Err(cannot_read(
                &text,
                "PROTOCOL SOURCE[:PORT] DESTINATION[:PORT] is wanted",
            ));
        };
        let end = |word: &str| {
            end(word).ok_or_else(|| cannot_read(&text, &format!("`{word}` is no address")))
        };
        let ((source, source_port), (destination, destination_port)) = (end(from)?, end(to)?);
        if source.is_ipv4() != destination.is_ipv4() {
            return Err(cannot_read(&text, "its ends are of different families"));
        }
        let number = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => 6,
            "udp" => 17,
            "sctp" => 132,
            "icmp" | "icmpv6" | "ping" => {
                if source.is_ipv4() {
                    1
                } else {
                    58
                }
            }
            other => {
                return Err(cannot_read(
                    &text,
                    &format!("`{other}` is no protocol: tcp, udp, sctp or icmp"),
                ));
            }
        };
        let has_ports = matches!(number, 6 | 17 | 132);
        if has_ports && destination_port.is_none() {
            return Err(cannot_read(&text, "the destination has no port"));
        }
        let port = |port: Option<u16>, or: u16| if has_ports { port.unwrap_or(or) } else { 0 };
        Ok(Self {
            protocol: number,
            source,
            source_port: port(source_port, SOME_PORT),
            destination,
            destination_port: port(destination_port, 0),
        })
    }

    pub(super) fn has_ports(&self) -> bool {
        matches!(self.protocol, 6 | 17 | 132)
    }

    pub(super) fn key(&self) -> FlowKey {
        FlowKey {
            source: self.source.into(),
            destination: self.destination.into(),
            source_port: Be16::new(self.source_port),
            destination_port: Be16::new(self.destination_port),
            protocol: self.protocol,
            _pad: [0; 3],
        }
    }
}

fn end(word: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(both) = word.parse::<SocketAddr>() {
        return Some((both.ip(), Some(both.port())));
    }
    let address = word
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(word);
    Some((address.parse().ok()?, None))
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", protocol_name(self.protocol))?;
        if !self.has_ports() {
            return write!(f, "{} -> {}", self.source, self.destination);
        }
        let from = SocketAddr::new(self.source, self.source_port);
        let to = SocketAddr::new(self.destination, self.destination_port);
        write!(f, "{from} -> {to}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String> {
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        Ok(Question::parse(&words)?.to_string())
    }

    #[test]
    fn packets_are_written_in_several_ways() {
        for (text, read) in [
            (
                "tcp 10.244.0.5:4000 -> 10.96.0.10:80",
                "tcp 10.244.0.5:4000 -> 10.96.0.10:80",
            ),
            (
                "TCP 10.244.0.5 10.96.0.10:80",
                "tcp 10.244.0.5:40000 -> 10.96.0.10:80",
            ),
            (
                "udp fd00::5 to [fd00::a]:53",
                "udp [fd00::5]:40000 -> [fd00::a]:53",
            ),
            ("icmp fd00::5 fd00::6", "icmpv6 fd00::5 -> fd00::6"),
        ] {
            assert_eq!(parse(text).expect(text), read);
        }
    }

    #[test]
    fn what_is_wrong_with_a_packet_is_said() {
        for (text, why) in [
            ("tcp 10.244.0.5", "is wanted"),
            ("tcp 10.244.0.5 10.96.0.10", "no port"),
            ("tcp 10.244.0.5 fd00::1", "different families"),
            ("tcp web 10.96.0.10:80", "`web` is no address"),
            ("gre 10.244.0.5 10.96.0.10", "`gre` is no protocol"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
