//! The rows of a result: what was measured, against what, and which bar it must reach. Pure.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::stats::Summary;

/// What a value, or a ratio, must reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bar {
    /// The ratio must be at least this; the second is the stretch.
    RatioAtLeast(f64, f64),
    /// The value must be at most this; the second is the stretch.
    AtMost(f64, f64),
}

/// How a row stands to its bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Stretch,
    Pass,
    Missed,
    NotMeasured,
}

impl Verdict {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Stretch => "pass+",
            Self::Pass => "pass",
            Self::Missed => "MISSED",
            Self::NotMeasured => "not measured",
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) section: String,
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    /// What was measured; the reason when it could not be.
    pub(crate) value: Result<Summary, String>,
    /// What it is compared with, and the ratios of the rounds.
    pub(crate) against: Option<(String, Option<Summary>)>,
    pub(crate) bar: Option<Bar>,
}

impl Row {
    /// A row of a value alone.
    pub(crate) fn value(section: &str, name: &str, unit: &'static str, value: Summary) -> Self {
        Self {
            section: section.to_owned(),
            name: name.to_owned(),
            unit,
            value: Ok(value),
            against: None,
            bar: None,
        }
    }

    /// A row of what could not be measured.
    pub(crate) fn missing(section: &str, name: &str, why: &str, bar: Option<Bar>) -> Self {
        Self {
            section: section.to_owned(),
            name: name.to_owned(),
            unit: "",
            value: Err(why.to_owned()),
            against: None,
            bar,
        }
    }

    pub(crate) fn with_bar(mut self, bar: Bar) -> Self {
        self.bar = Some(bar);
        self
    }

    fn ratio(&self) -> Option<Summary> {
        self.against.as_ref().and_then(|(_, ratio)| *ratio)
    }

    /// `None` for a row without a bar.
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        let bar = self.bar?;
        let (Ok(value), ratio) = (&self.value, self.ratio()) else {
            return Some(Verdict::NotMeasured);
        };
        let reached = |limit: f64| match bar {
            Bar::RatioAtLeast(..) => ratio.is_some_and(|ratio| rounded(ratio.median) >= limit),
            Bar::AtMost(..) => value.median <= limit,
        };
        let (Bar::RatioAtLeast(bar, stretch) | Bar::AtMost(bar, stretch)) = bar;
        Some(if reached(stretch) {
            Verdict::Stretch
        } else if reached(bar) {
            Verdict::Pass
        } else {
            Verdict::Missed
        })
    }

    pub(crate) fn json(&self) -> Value {
        let spread = |summary: Summary| json!([summary.low, summary.high]);
        let mut row = json!({"section": self.section, "name": self.name, "unit": self.unit});
        match &self.value {
            Ok(value) => {
                row["value"] = json!(value.median);
                row["spread"] = spread(*value);
            }
            Err(why) => row["not_measured"] = json!(why),
        }
        if let Some((against, ratio)) = &self.against {
            row["against"] = json!(against);
            if let Some(ratio) = ratio {
                row["ratio"] = json!(ratio.median);
                row["ratio_spread"] = spread(*ratio);
            }
        }
        if let (Some(bar), Some(verdict)) = (self.bar, self.verdict()) {
            let (kind, bar, stretch) = match bar {
                Bar::RatioAtLeast(bar, stretch) => ("ratio at least", bar, stretch),
                Bar::AtMost(bar, stretch) => ("value at most", bar, stretch),
            };
            row["bar"] = json!({"kind": kind, "bar": bar, "stretch": stretch});
            row["verdict"] = json!(verdict.label());
        }
        row
    }
}

/// A ratio as the table shows it: 0.97 in the table is 0.97 to the bar.
fn rounded(ratio: f64) -> f64 {
    (ratio * 1000.0).round() / 1000.0
}

/// The table for people.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let width = rows.iter().map(|row| row.name.chars().count()).max();
    let width = width.unwrap_or(0).max(20);
    let mut section = "";
    for row in rows {
        if row.section != section {
            section = &row.section;
            writeln!(text, "\n{section}").expect("a String takes all");
            let (median, spread) = ("median", "p10 … p90");
            writeln!(
                text,
                "  {:<width$}  {median:>12} {:<6} {spread:>21}  ratio (p10 … p90), against",
                "", ""
            )
            .expect("a String takes all");
        }
        writeln!(text, "  {}", line(row, width)).expect("a String takes all");
    }
    text
}

fn line(row: &Row, width: usize) -> String {
    let mut line = format!("{:<width$}  ", row.name);
    match &row.value {
        Ok(value) => {
            let spread = format!("{} … {}", number(value.low), number(value.high));
            line += &format!(
                "{:>12} {:<6} {spread:>21}  ",
                number(value.median),
                row.unit
            );
            let against = match &row.against {
                Some((against, Some(ratio))) => format!(
                    "{:.3} ({:.3} … {:.3}) ÷ {against}",
                    ratio.median, ratio.low, ratio.high
                ),
                Some((against, None)) => format!("— ÷ {against}"),
                None => String::new(),
            };
            line += &format!("{against:<44} ");
        }
        Err(why) => line += &format!("not measured: {why}  "),
    }
    if let (Some(bar), Some(verdict)) = (row.bar, row.verdict()) {
        let bar = match bar {
            Bar::RatioAtLeast(bar, stretch) => format!("≥ {bar} (≥ {stretch})"),
            Bar::AtMost(bar, stretch) => format!("≤ {} (≤ {})", number(bar), number(stretch)),
        };
        line += &format!("{bar} {}", verdict.label());
    }
    line.trim_end().to_owned()
}

/// Digits that carry meaning: 12,345 or 4.321.
fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        let digits = if value.abs() < 10.0 { 3 } else { 2 };
        let text = format!("{value:.digits$}");
        return text;
    }
    let digits = format!("{value:.0}");
    let (sign, digits) = digits
        .strip_prefix('-')
        .map_or(("", digits.as_str()), |rest| ("-", rest));
    let mut grouped = String::from(sign);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(value: f64) -> Summary {
        Summary {
            median: value,
            low: value,
            high: value,
        }
    }

    fn ratio(value: f64, bar: Bar) -> Row {
        Row {
            against: Some(("direct".to_owned(), Some(flat(value)))),
            bar: Some(bar),
            ..Row::value("s", "n", "/s", flat(1.0))
        }
    }

    #[test]
    fn a_ratio_passes_at_its_bar_and_reaches_the_stretch_at_the_stretch() {
        let verdict = |value| ratio(value, Bar::RatioAtLeast(0.97, 1.03)).verdict();
        assert_eq!(verdict(0.96), Some(Verdict::Missed));
        assert_eq!(verdict(0.97), Some(Verdict::Pass));
        assert_eq!(verdict(1.03), Some(Verdict::Stretch));
    }

    #[test]
    fn a_value_passes_below_its_bar() {
        let verdict = |value| {
            let row = Row::value("s", "n", "ns", flat(value));
            row.with_bar(Bar::AtMost(150.0, 90.0)).verdict()
        };
        assert_eq!(verdict(151.0), Some(Verdict::Missed));
        assert_eq!(verdict(150.0), Some(Verdict::Pass));
        assert_eq!(verdict(90.0), Some(Verdict::Stretch));
    }

    #[test]
    fn what_was_not_measured_never_passes_and_says_why() {
        let row = Row::missing("s", "n", "not built", Some(Bar::AtMost(1.0, 1.0)));
        assert_eq!(row.verdict(), Some(Verdict::NotMeasured));
        assert_eq!(row.json()["not_measured"], "not built");
        assert!(table(&[row]).contains("not measured: not built"));
    }

    #[test]
    fn the_table_shows_value_ratio_bar_and_verdict() {
        let text = table(&[ratio(0.5, Bar::RatioAtLeast(0.97, 1.03))]);
        for part in ["1.000", "0.500", "÷ direct", "≥ 0.97", "MISSED"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn large_numbers_are_grouped() {
        assert_eq!(number(1_234_567.0), "1,234,567");
        assert_eq!(number(123.4), "123");
        assert_eq!(number(12.345), "12.35");
    }
}
