//! `resource.Quantity`: parsing, upstream's canonical text, comparison and sums.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Sub};

const NANO: i128 = 1_000_000_000;

/// Which suffixes a quantity is printed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `1k`, `500m`.
    DecimalSi,
    /// `1Ki`.
    BinarySi,
    /// `1e3`.
    DecimalExponent,
}

/// An exact amount in billionths.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// A text that is no quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQuantity {
    /// Not a number with a known suffix.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    /// A number that cannot be held.
    #[error("unable to parse numeric part of quantity")]
    Range,
    /// An unknown suffix.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self {
        nanos: 0,
        format: Format::DecimalSi,
    };

    /// Parses, for example, `500m`, `1.5Gi`, `1e3`.
    pub fn parse(text: &str) -> Result<Self, InvalidQuantity> {
        let (is_negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
            None => return Err(InvalidQuantity::Format),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(InvalidQuantity::Format);
        }
        let (format, base, exponent) = parse_suffix(suffix)?;
        let digits: i128 = format!("{whole}{fraction}")
            .parse()
            .map_err(|_| InvalidQuantity::Range)?;
        let fraction_length = u32::try_from(fraction.len()).map_err(|_| InvalidQuantity::Range)?;
        let nanos = scale(digits, fraction_length, base, exponent)?;
        Ok(Self {
            nanos: if is_negative { -nanos } else { nanos },
            format,
        })
    }

    /// A whole number.
    pub const fn from_units(units: i64) -> Self {
        Self {
            nanos: units as i128 * NANO,
            format: Format::DecimalSi,
        }
    }

    /// A number of thousandths.
    pub const fn from_millis(millis: i64) -> Self {
        Self {
            nanos: millis as i128 * (NANO / 1000),
            format: Format::DecimalSi,
        }
    }

    /// Rounded up to a whole number, clamped to 64 bits.
    pub fn units(self) -> i64 {
        clamp(div_up(self.nanos, NANO))
    }

    /// Rounded up to thousandths, clamped to 64 bits.
    pub fn millis(self) -> i64 {
        clamp(div_up(self.nanos, NANO / 1000))
    }

    /// Rounded up to thousandths, as upstream does with every resource list.
    #[must_use]
    pub fn round_up_to_millis(self) -> Self {
        Self {
            nanos: div_up(self.nanos, NANO / 1000) * (NANO / 1000),
            ..self
        }
    }

    /// Whether it is zero.
    pub const fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// Whether it is below zero.
    pub const fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether it has no fraction.
    pub const fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// Division that rounds away from zero, as upstream's `RoundUp`.
fn div_up(value: i128, by: i128) -> i128 {
    let quotient = value / by;
    if value % by == 0 {
        quotient
    } else {
        quotient + value.signum()
    }
}

fn parse_suffix(suffix: &str) -> Result<(Format, i128, i32), InvalidQuantity> {
    Ok(match suffix {
        "" => (Format::DecimalSi, 10, 0),
        "n" => (Format::DecimalSi, 10, -9),
        "u" => (Format::DecimalSi, 10, -6),
        "m" => (Format::DecimalSi, 10, -3),
        "k" => (Format::DecimalSi, 10, 3),
        "M" => (Format::DecimalSi, 10, 6),
        "G" => (Format::DecimalSi, 10, 9),
        "T" => (Format::DecimalSi, 10, 12),
        "P" => (Format::DecimalSi, 10, 15),
        "E" => (Format::DecimalSi, 10, 18),
        "Ki" => (Format::BinarySi, 2, 10),
        "Mi" => (Format::BinarySi, 2, 20),
        "Gi" => (Format::BinarySi, 2, 30),
        "Ti" => (Format::BinarySi, 2, 40),
        "Pi" => (Format::BinarySi, 2, 50),
        "Ei" => (Format::BinarySi, 2, 60),
        other => match other.strip_prefix(['e', 'E']) {
            Some(digits) if !digits.is_empty() => {
                let exponent: i32 = digits.parse().map_err(|_| InvalidQuantity::Suffix)?;
                (Format::DecimalExponent, 10, exponent)
            }
            _ if other
                .chars()
                .all(|c| "eEinumkKMGTP+-0123456789".contains(c)) =>
            {
                return Err(InvalidQuantity::Suffix);
            }
            _ => return Err(InvalidQuantity::Format),
        },
    })
}

/// `digits / 10^fraction * base^exponent` in billionths; finer digits are rounded up.
fn scale(digits: i128, fraction: u32, base: i128, exponent: i32) -> Result<i128, InvalidQuantity> {
    if digits == 0 {
        return Ok(0);
    }
    let power =
        |base: i128, exponent: u32| base.checked_pow(exponent).ok_or(InvalidQuantity::Range);
    if base == 2 {
        let raised = digits
            .checked_mul(power(2, exponent.unsigned_abs())?)
            .and_then(|v| v.checked_mul(NANO))
            .ok_or(InvalidQuantity::Range)?;
        return Ok(div_up(raised, power(10, fraction)?));
    }
    let fraction = i32::try_from(fraction).map_err(|_| InvalidQuantity::Range)?;
    let exponent = exponent
        .checked_add(9 - fraction)
        .ok_or(InvalidQuantity::Range)?;
    if exponent >= 0 {
        digits
            .checked_mul(power(10, exponent.unsigned_abs())?)
            .ok_or(InvalidQuantity::Range)
    } else {
        // Beyond what the divisor can hold, the amount is below a billionth and rounds up to one.
        Ok(power(10, exponent.unsigned_abs()).map_or(1, |divisor| div_up(digits, divisor)))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let magnitude = self.nanos.abs();
        // Small or broken binary amounts are printed as decimal ones, so that nothing is rounded away.
        if self.format == Format::BinarySi && magnitude >= 1024 * NANO && self.is_whole() {
            let mut value = self.nanos / NANO;
            let mut steps = 0;
            while value % 1024 == 0 && steps < 6 {
                value /= 1024;
                steps += 1;
            }
            return write!(
                f,
                "{value}{}",
                ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][steps]
            );
        }
        let (mut value, mut exponent) = (self.nanos, -9);
        while value % 1000 == 0 && exponent < 18 {
            value /= 1000;
            exponent += 3;
        }
        match (self.format, exponent) {
            (_, 0) => write!(f, "{value}"),
            (Format::DecimalExponent, _) => write!(f, "{value}e{exponent}"),
            _ => {
                let suffix = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
                write!(
                    f,
                    "{value}{}",
                    suffix[usize::try_from((exponent + 9) / 3).expect("exponent is -9..=18")]
                )
            }
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        // Zero takes the other's format, so that sums print like their parts.
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        Self {
            nanos: self.nanos.saturating_add(other.nanos),
            format,
        }
    }
}

impl Sub for Quantity {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        Self {
            nanos: self.nanos.saturating_sub(other.nanos),
            format,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_become_upstreams_canonical_form() {
        let table = [
            ("0", "0"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("1500m", "1500m"),
            ("2000m", "2"),
            ("100Ki", "100Ki"),
            ("0.1", "100m"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("1E", "1E"),
            ("1Ei", "1Ei"),
            ("-1.5", "-1500m"),
            ("+5", "5"),
            ("0.0000000001", "1n"),
            ("1023Ki", "1023Ki"),
            ("0.5Ki", "512"),
            ("396.71Gi", "425964118999040m"),
            ("1.953125Ki", "2000"),
            ("1000000", "1M"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("123Mi", "123Mi"),
            (".5", "500m"),
            ("5.", "5"),
            ("1000Ki", "1000Ki"),
            ("4Mi", "4Mi"),
            ("0Ki", "0"),
        ];
        for (text, canonical) in table {
            assert_eq!(
                Quantity::parse(text).map(|q| q.to_string()),
                Ok(canonical.to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "",
            "abc",
            "1.2.3",
            "1x",
            "--1",
            "1 Gi",
            "Gi",
            ".",
            "1ki",
            "1e",
            "99999999999999999999999999999999999999999",
        ] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
        assert_eq!(Quantity::parse("1ki"), Err(InvalidQuantity::Suffix));
    }

    #[test]
    fn amounts_compare_and_add_across_formats() {
        let q = |t| Quantity::parse(t).expect("valid");
        assert!(q("1Gi") > q("1G") && q("1000m") == q("1"));
        assert_eq!((q("500m") + q("1")).to_string(), "1500m");
        assert_eq!(
            (Quantity::ZERO + q("1Gi") - q("512Mi")).to_string(),
            "512Mi"
        );
        assert_eq!(
            (q("1.0001").millis(), q("1.0001").units(), q("-0.5").units()),
            (1001, 2, -1)
        );
    }

    proptest! {
        #[test]
        fn the_canonical_form_parses_to_the_same_amount(text in "[+-]?[0-9]{1,12}(\\.[0-9]{0,6})?(m|k|M|G|Ki|Mi|Gi|e3|)") {
            if let Ok(quantity) = Quantity::parse(&text) {
                let again = Quantity::parse(&quantity.to_string()).expect("canonical");
                prop_assert_eq!(again, quantity);
                // A binary amount without a factor of 1024 has no suffix left to tell that it was one.
                if !text.ends_with('i') {
                    prop_assert_eq!(again.to_string(), quantity.to_string());
                }
            }
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,20}|[0-9.eE+-]{0,24}") {
            prop_assert!(Quantity::parse(&text).is_ok_and(|q| !q.to_string().is_empty()) || Quantity::parse(&text).is_err());
        }
    }
}
