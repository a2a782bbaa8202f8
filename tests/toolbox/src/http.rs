//! As much of HTTP/1.1 as an echo server and its client need: a head, and a body of known length.

use std::io::{self, BufRead, Read, Write};

/// Longest line and head accepted; more is an error, not memory.
const HEAD_LIMIT: u64 = 64 * 1024;
const BODY_LIMIT: usize = 16 * 1024 * 1024;

/// A parsed head (of a request or an answer) with its body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) first_line: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// A header's value; names are compared without case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(header, _)| header.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Reads one message; `None` when the other side has closed before a first byte.
    pub(crate) fn read(stream: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut head = stream.take(HEAD_LIMIT);
        let first_line = read_line(&mut head)?;
        if first_line.is_empty() {
            return Ok(None);
        }
        let mut headers = Vec::new();
        loop {
            let line = read_line(&mut head)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| malformed("header"))?;
            headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
        let mut message = Self {
            first_line,
            headers,
            body: Vec::new(),
        };
        let length = match message.header("content-length") {
            Some(text) => text.parse().map_err(|_| malformed("content-length"))?,
            None => 0,
        };
        if length > BODY_LIMIT {
            return Err(malformed("content-length"));
        }
        message.body.resize(length, 0);
        stream.read_exact(&mut message.body)?;
        Ok(Some(message))
    }

    /// Method, path and query of a request.
    pub(crate) fn request(&self) -> Option<(&str, &str, &str)> {
        let mut words = self.first_line.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Some((method, path, query))
    }

    /// Status code of an answer.
    pub(crate) fn status(&self) -> Option<u16> {
        self.first_line.split(' ').nth(1)?.parse().ok()
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed {what}"))
}

fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Writes an answer in one piece, so that it is one packet when it fits.
pub(crate) fn answer(
    stream: &mut impl Write,
    status: &str,
    host: &str,
    body: &[u8],
) -> io::Result<()> {
    let length = body.len();
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nTholepin-Host: {host}\r\n\r\n"
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    stream.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_back_as_it_was_written() {
        let mut wire = Vec::new();
        answer(&mut wire, "200 OK", "web-1", b"hello\n").unwrap();
        let message = Message::read(&mut wire.as_slice()).unwrap().unwrap();
        assert_eq!(message.status(), Some(200));
        assert_eq!(message.header("tholepin-host"), Some("web-1"));
        assert_eq!(message.body, b"hello\n");
    }

    #[test]
    fn a_request_line_is_split_into_method_path_and_query() {
        let wire = b"GET /exit?3 HTTP/1.1\r\nHost: x\r\n\r\n";
        let message = Message::read(&mut wire.as_slice()).unwrap().unwrap();
        assert_eq!(message.request(), Some(("GET", "/exit", "3")));
    }

    #[test]
    fn a_closed_connection_is_none_and_a_cut_body_is_an_error() {
        assert_eq!(Message::read(&mut b"".as_slice()).unwrap(), None);
        let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc";
        assert!(Message::read(&mut cut.as_slice()).is_err());
    }
}
