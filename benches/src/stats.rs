//! Statistics of repeated measurements. Knows nothing of what was measured.

use serde::{Deserialize, Serialize};

/// So many values are needed before a 99th percentile says anything.
const ENOUGH_FOR_P99: usize = 100;

/// What a set of values amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many values.
    pub runs: usize,
    /// The middle value, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// `(max - min) / median`; none if the median is zero.
    pub spread: Option<f64>,
    /// The least value that 99 of 100 values do not exceed; none below 100 values.
    pub p99: Option<f64>,
}

impl Summary {
    /// Of `values`, in any order; none if there are none, or one that is not finite.
    pub fn of(values: &[f64]) -> Option<Summary> {
        if values.iter().any(|v| !v.is_finite()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        let p99 =
            (sorted.len() >= ENOUGH_FOR_P99).then(|| sorted[(sorted.len() * 99).div_ceil(100) - 1]);
        let spread = (median != 0.0).then(|| (max - min) / median);
        Some(Summary { runs: sorted.len(), median, min, max, spread, p99 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_and_even_numbers_of_values() {
        let odd = Summary::of(&[3.0, 1.0, 2.0]).unwrap();
        let expected =
            Summary { runs: 3, median: 2.0, min: 1.0, max: 3.0, spread: Some(1.0), p99: None };
        assert_eq!(odd, expected);
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 10.0]).unwrap().median, 3.0);
        let one = Summary::of(&[5.0]).unwrap();
        assert_eq!((one.median, one.spread), (5.0, Some(0.0)));
    }

    #[test]
    fn nothing_is_made_of_nothing() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
        assert_eq!(Summary::of(&[f64::INFINITY]), None);
        assert_eq!(Summary::of(&[0.0, 0.0]).unwrap().spread, None);
    }

    #[test]
    fn the_tail_is_the_nearest_rank() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(Summary::of(&values).unwrap().p99, Some(198.0));
        assert_eq!(Summary::of(&values[..100]).unwrap().p99, Some(199.0));
        assert_eq!(Summary::of(&values[..99]).unwrap().p99, None);
    }
}
