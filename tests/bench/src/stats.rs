//! Medians and spreads of a few noisy samples. Pure.

/// The middle of some samples and where most of them lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    /// 10th percentile.
    pub(crate) low: f64,
    /// 90th percentile.
    pub(crate) high: f64,
}

impl Summary {
    /// Of at least one sample.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        Some(Self {
            median: quantile(samples, 0.5)?,
            low: quantile(samples, 0.1)?,
            high: quantile(samples, 0.9)?,
        })
    }
}

/// A quantile, between neighbours where it falls between them.
pub(crate) fn quantile(samples: &[f64], at: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let position = at.clamp(0.0, 1.0) * last as f64;
    let below = sorted[position.floor() as usize];
    let above = sorted[position.ceil() as usize];
    Some(below + (above - below) * position.fract())
}

/// Ratios of what was measured in the same round, so that what the machine did meanwhile cancels out.
pub(crate) fn ratios(samples: &[f64], against: &[f64]) -> Vec<f64> {
    let pairs = samples.iter().zip(against);
    pairs
        .filter(|(_, other)| **other > 0.0)
        .map(|(one, other)| one / other)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let summary = Summary::of(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(summary.median, 2.5);
        assert!(summary.low < summary.median && summary.median < summary.high);
    }

    #[test]
    fn one_outlier_does_not_move_the_median() {
        let summary = Summary::of(&[10.0, 10.0, 10.0, 10.0, 9000.0]).unwrap();
        assert_eq!(summary.median, 10.0);
    }

    #[test]
    fn nothing_has_no_summary() {
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The machine was half as quick in the second round, for both.
        assert_eq!(ratios(&[100.0, 50.0], &[200.0, 100.0]), [0.5, 0.5]);
        assert_eq!(ratios(&[1.0], &[0.0]), Vec::<f64>::new());
    }
}
