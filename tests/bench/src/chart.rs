//! The chart: a bar per row with a ratio, grouped by section, with the line of 1 and the bar to reach.
//! SVG by hand: rectangles and text need no library. Pure.

use std::fmt::Write as _;

use crate::rows::{Bar, Row, Verdict};

const LINE: f64 = 18.0;
const LEFT: f64 = 330.0;
const WIDTH: f64 = 520.0;
const RIGHT: f64 = 170.0;

/// The rows with a ratio as an SVG document.
pub(crate) fn svg(title: &str, subtitle: &str, rows: &[Row]) -> String {
    let bars: Vec<(&Row, f64, f64, f64)> = rows
        .iter()
        .filter_map(|row| {
            let (_, ratio) = row.against.as_ref()?;
            let ratio = (*ratio)?;
            Some((row, ratio.median, ratio.low, ratio.high))
        })
        .collect();
    let largest = bars.iter().map(|bar| bar.1).fold(1.2, f64::max);
    let scale = WIDTH / (largest * 1.05);
    let mut body = String::new();
    let mut y = 56.0;
    let mut section = "";
    for (row, median, low, high) in &bars {
        if row.section != section {
            section = &row.section;
            y += LINE * 0.8;
            text(&mut body, 10.0, y + 12.0, "start", "bold", section);
            y += LINE;
        }
        let colour = match row.verdict() {
            Some(Verdict::Stretch) => "#1a7f37",
            Some(Verdict::Pass) => "#4ac26b",
            Some(Verdict::Missed) => "#cf222e",
            Some(Verdict::NotMeasured) | None => "#8c959f",
        };
        text(&mut body, LEFT - 8.0, y + 12.0, "end", "normal", &row.name);
        rectangle(&mut body, LEFT, y + 2.0, median * scale, LINE - 5.0, colour);
        let middle = y + LINE / 2.0;
        stroke(
            &mut body,
            LEFT + low * scale,
            middle,
            LEFT + high * scale,
            middle,
            "#24292f",
        );
        if let Some(Bar::RatioAtLeast(bar, _)) = row.bar {
            let x = LEFT + bar * scale;
            stroke(&mut body, x, y, x, y + LINE - 1.0, "#0969da");
        }
        let against = row.against.as_ref().map_or("", |(against, _)| against);
        let label = format!("{median:.3} ÷ {against}");
        let x = LEFT + high.max(*median) * scale + 6.0;
        text(&mut body, x, y + 12.0, "start", "normal", &label);
        y += LINE;
    }
    let one = LEFT + scale;
    stroke(&mut body, one, 48.0, one, y, "#57606a");
    let (width, height) = (LEFT + WIDTH + RIGHT, y + 20.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    text(&mut out, 10.0, 22.0, "start", "bold", title);
    text(&mut out, 10.0, 40.0, "start", "normal", subtitle);
    out += &body;
    out += "</svg>\n";
    out
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, weight: &str, content: &str) {
    let content = content
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-weight=\"{weight}\">{content}</text>"
    )
    .expect("a String takes all");
}

fn rectangle(out: &mut String, x: f64, y: f64, width: f64, height: f64, colour: &str) {
    writeln!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
    )
    .expect("a String takes all");
}

fn stroke(out: &mut String, x1: f64, y1: f64, x2: f64, y2: f64, colour: &str) {
    writeln!(
        out,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
    )
    .expect("a String takes all");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Summary;

    #[test]
    fn rows_with_a_ratio_become_bars_and_text_is_escaped() {
        let flat = Summary {
            median: 0.9,
            low: 0.8,
            high: 1.0,
        };
        let row = Row {
            against: Some(("a<b".to_owned(), Some(flat))),
            ..Row::value("s", "one & two", "/s", flat)
        };
        let plain = Row::value("s", "alone", "/s", flat);
        let text = svg("t", "u", &[row, plain]);
        assert!(text.contains("one &amp; two") && text.contains("0.900 ÷ a&lt;b"));
        assert!(!text.contains("alone"));
        assert_eq!(text.matches("<svg").count(), text.matches("</svg>").count());
    }
}
