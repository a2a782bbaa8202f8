//! The same scenario in the other address family.

use std::net::{Ipv6Addr, SocketAddr};

/// The same host in the other family: `10.244.1.7` and `fd00:10:244:1::7`.
pub fn in_v6(text: &str) -> String {
    let mut out = String::new();
    for (index, word) in text.split(' ').enumerate() {
        if index > 0 {
            out.push(' ');
        }
        let (word, mark) = word
            .strip_suffix(';')
            .map_or((word, ""), |word| (word, ";"));
        let (at, rest) = word
            .split_once('/')
            .map_or((word, None), |(at, p)| (at, Some(p)));
        match at.parse::<SocketAddr>() {
            Ok(SocketAddr::V4(v4)) => {
                out += &format!("[{}]:{}", mapped(v4.ip().octets()), v4.port());
            }
            _ => match at.parse::<std::net::Ipv4Addr>() {
                Ok(v4) => out += &mapped(v4.octets()).to_string(),
                Err(_) => out += at,
            },
        }
        if let Some(rest) = rest {
            out += &format!("/{rest}");
        }
        out += mark;
    }
    out
}

fn mapped([a, b, c, d]: [u8; 4]) -> Ipv6Addr {
    let decimal = |byte: u8| u16::from_str_radix(&byte.to_string(), 16).expect("decimal digits");
    Ipv6Addr::new(
        0xfd00,
        decimal(a),
        decimal(b),
        decimal(c),
        0,
        0,
        0,
        decimal(d),
    )
}
