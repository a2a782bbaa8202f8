//! Durations as kubectl prints them for people.

use jiff::Timestamp;

/// Two or three significant figures: `5s`, `3m20s`, `25h`, `4d3h`, `2y10d`.
pub fn human(secs: i64) -> String {
    let (minutes, hours) = (secs / 60, secs / 3600);
    let pair = |big: i64, big_unit: char, small: i64, small_unit: char| {
        if small == 0 {
            format!("{big}{big_unit}")
        } else {
            format!("{big}{big_unit}{small}{small_unit}")
        }
    };
    match secs {
        ..=-2 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{secs}s"),
        _ if minutes < 10 => pair(minutes, 'm', secs % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 24 * 8 => pair(hours / 24, 'd', hours % 24, 'h'),
        _ if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        _ if hours < 24 * 365 * 8 => pair(hours / 24 / 365, 'y', hours / 24 % 365, 'd'),
        _ => format!("{}y", hours / 24 / 365),
    }
}

/// Time since an RFC 3339 text; `<unknown>` when there is none.
pub fn since(text: &str, now: Timestamp) -> String {
    match crate::time::parse(text) {
        // Rounds toward zero like upstream, so that clocks a fraction ahead do not show `<invalid>`.
        Some(at) => human((now.as_millisecond() - at.as_millisecond()) / 1000),
        None => "<unknown>".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_upstreams_figures() {
        const D: i64 = 86_400;
        let table = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (121, "2m1s"),
            (599, "9m59s"),
            (600, "10m"),
            (3 * 3600 - 1, "179m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 61, "3h1m"),
            (8 * 3600, "8h"),
            (2 * D - 1, "47h"),
            (2 * D, "2d"),
            (2 * D + 3600, "2d1h"),
            (8 * D, "8d"),
            (730 * D - 1, "729d"),
            (730 * D, "2y"),
            (731 * D, "2y1d"),
            (8 * 365 * D, "8y"),
        ];
        for (secs, text) in table {
            assert_eq!(human(secs), text, "{secs}");
        }
    }
}
