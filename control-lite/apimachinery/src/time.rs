//! `metav1.Time` (seconds) and `metav1.MicroTime` (microseconds): parsing and printing.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// `2006-01-02T15:04:05Z`.
pub fn format(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

/// `2006-01-02T15:04:05.000000Z`.
pub fn format_micro(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
        .to_string()
}

/// RFC 3339; `None` when it is not.
pub fn parse(text: &str) -> Option<Timestamp> {
    // jiff takes more than RFC 3339 (a space for the T, annotations); clients of ours should not learn to rely on it.
    let shape_is_right = text.len() >= 20 && text.as_bytes()[10] == b'T' && !text.contains('[');
    shape_is_right.then(|| text.parse().ok()).flatten()
}

/// Seconds and nanoseconds since the epoch to a time; `None` out of range.
pub fn from_unix(secs: i64, nanos: i32) -> Option<Timestamp> {
    Timestamp::new(secs, nanos).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_in_utc_with_the_types_precision() {
        let at = parse("2026-01-02T03:04:05.678901+01:00").expect("valid");
        assert_eq!(format(at), "2026-01-02T02:04:05Z");
        assert_eq!(format_micro(at), "2026-01-02T02:04:05.678901Z");
    }

    #[test]
    fn what_is_no_rfc_3339_is_refused() {
        for text in [
            "",
            "yesterday",
            "2026-01-02",
            "2026-01-02 03:04:05Z",
            "2026-01-02T03:04:05",
            "2026-13-02T03:04:05Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
