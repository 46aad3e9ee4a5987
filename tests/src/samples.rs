//! Times of a benchmark, and what is said of them.

use std::time::Duration;

use serde::Serialize;

/// How long something took, each time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Samples(Vec<Duration>);

/// What is reported of them, in milliseconds. Nothing was measured if there is no median.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The one in the middle, or half-way between the two there.
    pub median_ms: Option<f64>,
    /// The shortest.
    pub min_ms: Option<f64>,
    /// The longest.
    pub max_ms: Option<f64>,
    /// In the order in which they were measured.
    pub all_ms: Vec<f64>,
}

impl Samples {
    /// Adds one.
    pub fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// What is to be said of them.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let all_ms: Vec<_> = self.0.iter().copied().map(milliseconds).collect();
        let mut sorted = all_ms.clone();
        sorted.sort_by(f64::total_cmp);
        Summary {
            median_ms: median(&sorted),
            min_ms: sorted.first().copied(),
            max_ms: sorted.last().copied(),
            all_ms,
        }
    }
}

/// A time in milliseconds.
#[must_use]
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The median of sorted numbers.
#[must_use]
pub fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length.is_multiple_of(2) => {
            Some(f64::midpoint(sorted[middle - 1], sorted[middle]))
        }
        _ => Some(sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(times: &[u64]) -> Summary {
        let mut samples = Samples::default();
        for &time in times {
            samples.push(Duration::from_millis(time));
        }
        samples.summary()
    }

    #[test]
    fn the_median_does_not_depend_on_the_order() {
        let three = summary(&[30, 10, 20]);
        assert_eq!(three.median_ms, Some(20.0));
        assert_eq!((three.min_ms, three.max_ms), (Some(10.0), Some(30.0)));
        assert_eq!(three.all_ms, [30.0, 10.0, 20.0]);
        assert_eq!(summary(&[4, 1, 3, 2]).median_ms, Some(2.5));
        assert_eq!(summary(&[]).median_ms, None);
    }
}
