//! What many samples come to: percentiles, and how much each more of something costs.

use serde::Serialize;

/// A set of samples in a few numbers, in the samples' own unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// How many samples.
    pub(crate) n: usize,
    pub(crate) min: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    pub(crate) mean: f64,
}

impl Summary {
    /// Sums up; of nothing there is nothing to say.
    pub(crate) fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            n: sorted.len(),
            min: *sorted.first()?,
            p50: percentile(&sorted, 50.0)?,
            p90: percentile(&sorted, 90.0)?,
            p99: percentile(&sorted, 99.0)?,
            max: *sorted.last()?,
            mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
        })
    }
}

/// A percentile of sorted samples. Between two samples it lies on the straight line, as
/// spreadsheets and numpy have it by default.
fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = percent / 100.0 * last as f64;
    let below = (0..=last).rev().find(|&index| index as f64 <= place)?;
    let above = (below + 1).min(last);
    let part = place - below as f64;
    Some(sorted[below] + part * (sorted[above] - sorted[below]))
}

/// The slope of the straight line through points (x, y) with the least squares; none if all have
/// the same x.
pub(crate) fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let n = points.len() as f64;
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / n;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / n;
    let along: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let both: f64 = points
        .iter()
        .map(|(x, y)| (x - mean_x) * (y - mean_y))
        .sum();
    (along > 0.0).then(|| both / along)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_the_samples_around_them() {
        let summary = Summary::of([4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(summary.n, 4);
        assert_eq!((summary.min, summary.max, summary.mean), (1.0, 4.0, 2.5));
        assert!((summary.p50 - 2.5).abs() < 1e-9);
        assert!((summary.p90 - 3.7).abs() < 1e-9);
        assert!((summary.p99 - 3.97).abs() < 1e-9);
    }

    #[test]
    fn one_sample_is_every_percentile_and_none_is_nothing() {
        let summary = Summary::of([7.0]).unwrap();
        assert_eq!([summary.p50, summary.p90, summary.p99], [7.0; 3]);
        assert_eq!(Summary::of([]), None);
    }

    #[test]
    fn a_percentile_of_a_hundred_and_one_samples_is_the_sample_itself() {
        let summary = Summary::of((0..=100).rev().map(f64::from)).unwrap();
        assert_eq!((summary.p50, summary.p90, summary.p99), (50.0, 90.0, 99.0));
    }

    #[test]
    fn the_slope_is_that_of_the_line() {
        let line = [(0.0, 3.0), (1.0, 5.0), (10.0, 23.0)];
        assert!((slope(&line).unwrap() - 2.0).abs() < 1e-9);
        assert_eq!(slope(&[(1.0, 2.0), (1.0, 3.0)]), None);
        assert_eq!(slope(&[]), None);
    }
}
