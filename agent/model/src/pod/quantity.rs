//! Kubernetes quantities as integers. Only what a node needs of them: thousandths, rounded up.

/// Why a quantity does not parse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid quantity {text:?}")]
pub struct InvalidQuantity {
    pub text: String,
}

/// Thousandths of the quantity, rounded up: `100m` is 100, `1` is 1000, `1Ki` is 1 024 000.
pub fn parse_milli(text: &str) -> Result<i128, InvalidQuantity> {
    let invalid = || InvalidQuantity {
        text: text.to_owned(),
    };
    let trimmed = text.trim();
    let (negative, unsigned) = match trimmed.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, trimmed.strip_prefix('+').unwrap_or(trimmed)),
    };
    let digits_end = unsigned
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(digits_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return Err(invalid());
    }
    let digits: i128 = format!("{whole}{fraction}")
        .parse()
        .map_err(|_| invalid())?;
    // value = digits * numerator / 10^fraction, in thousandths.
    let (factor, divisor): (i128, i128) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power: i32 = exponent
                .strip_prefix(['e', 'E'])
                .and_then(|digits| digits.parse().ok())
                .filter(|power: &i32| power.abs() <= 18)
                .ok_or_else(invalid)?;
            let ten = 10_i128.pow(power.unsigned_abs());
            if power >= 0 { (ten, 1) } else { (1, ten) }
        }
    };
    let scale = u32::try_from(fraction.len()).map_err(|_| invalid())?;
    let denominator = 10_i128
        .checked_pow(scale)
        .and_then(|ten| ten.checked_mul(divisor))
        .ok_or_else(invalid)?;
    let numerator = digits
        .checked_mul(factor)
        .and_then(|n| n.checked_mul(1000))
        .ok_or_else(invalid)?;
    let rounded_up = numerator / denominator + i128::from(numerator % denominator != 0);
    Ok(if negative { -rounded_up } else { rounded_up })
}

/// Whole units, rounded up: bytes of memory, numbers of pods.
pub fn parse_units(text: &str) -> Result<i64, InvalidQuantity> {
    let milli = parse_milli(text)?;
    let units = milli / 1000 + i128::from(milli % 1000 > 0);
    i64::try_from(units).map_err(|_| InvalidQuantity {
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_scale_and_round_up() {
        for (text, milli) in [
            ("100m", 100),
            ("1", 1000),
            ("0.5", 500),
            ("1.5Gi", 1_610_612_736_000),
            ("128Mi", 134_217_728_000),
            ("1e3", 1_000_000),
            ("2G", 2_000_000_000_000),
            ("100u", 1),
            ("0", 0),
        ] {
            assert_eq!(parse_milli(text), Ok(milli), "{text}");
        }
        assert_eq!(parse_units("1100m"), Ok(2));
        for text in ["", "Mi", "1Q", "1.2.3", "--1", "e5"] {
            assert!(parse_milli(text).is_err(), "{text}");
        }
    }
}
