//! From values to places on an axis.

/// A logarithmic axis: where some are a hundred times as slow as others, no other shows both.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Log {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Log {
    /// An axis from place `from` to place `to` that holds all values, with a little room at
    /// either end. None if there are no values that have a logarithm.
    pub(super) fn over(values: impl IntoIterator<Item = f64>, from: f64, to: f64) -> Option<Self> {
        let logs = values
            .into_iter()
            .filter(|value| value.is_finite() && *value > 0.0)
            .map(f64::log10);
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for log in logs {
            (low, high) = (low.min(log), high.max(log));
        }
        if low > high {
            return None;
        }
        // At least a decade, or ticks would lie outside.
        let room = (0.05 * (high - low))
            .max((1.0 - (high - low)) / 2.0)
            .max(0.05);
        Some(Self {
            low: low - room,
            high: high + room,
            from,
            to,
        })
    }

    /// Where a value is.
    pub(super) fn place(&self, value: f64) -> f64 {
        let part = (value.max(f64::MIN_POSITIVE).log10() - self.low) / (self.high - self.low);
        self.from + part.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// Round values on the axis: powers of ten, with twice and five times those if there are few.
    pub(super) fn ticks(&self) -> Vec<f64> {
        let steps: &[f64] = match self.high - self.low {
            decades if decades < 2.5 => &[1.0, 2.0, 5.0],
            decades if decades < 4.0 => &[1.0, 3.0],
            _ => &[1.0],
        };
        let mut ticks = Vec::new();
        let mut exponent = self.low.floor();
        while exponent <= self.high {
            ticks.extend(steps.iter().map(|step| step * 10f64.powf(exponent)));
            exponent += 1.0;
        }
        ticks.retain(|tick| (self.low..=self.high).contains(&tick.log10()));
        ticks
    }
}

/// A linear axis from zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Linear {
    high: f64,
    from: f64,
    to: f64,
}

impl Linear {
    /// An axis from zero at `from` to the greatest value at `to`.
    pub(super) fn up_to(high: f64, from: f64, to: f64) -> Self {
        let high = if high > 0.0 { high } else { 1.0 };
        Self { high, from, to }
    }

    pub(super) fn place(&self, value: f64) -> f64 {
        self.from + (value / self.high).clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// Four to ten round values.
    pub(super) fn ticks(&self) -> Vec<f64> {
        let ten = 10f64.powf(self.high.log10().floor());
        let step = [0.1, 0.2, 0.5, 1.0]
            .map(|part| part * ten)
            .into_iter()
            .find(|step| self.high / step <= 10.0)
            .unwrap_or(ten);
        let mut ticks = vec![0.0];
        while let Some(next) = ticks.last().map(|last| last + step)
            && next <= self.high * 1.0001
        {
            ticks.push(next);
        }
        ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logarithmic_axis_holds_all_and_shows_round_values() {
        let axis = Log::over([3.0, 4000.0], 100.0, 900.0).unwrap();
        assert!(axis.place(3.0) > 100.0 && axis.place(4000.0) < 900.0);
        assert!((axis.place(109.5) - 500.0).abs() < 1.0);
        let ticks = axis.ticks();
        assert!(ticks.len() >= 4, "{ticks:?}");
        assert!(ticks.iter().any(|tick| (tick - 100.0).abs() < 1e-6));
        assert!(axis.place(0.0) >= 100.0 && axis.place(1e30) <= 900.0);
    }

    #[test]
    fn one_value_still_makes_an_axis_and_none_does_not() {
        let axis = Log::over([50.0], 0.0, 1.0).unwrap();
        assert!((axis.place(50.0) - 0.5).abs() < 1e-9);
        assert!(!axis.ticks().is_empty());
        assert_eq!(Log::over([0.0, f64::NAN], 0.0, 1.0), None);
    }

    #[test]
    fn a_linear_axis_begins_at_zero() {
        let axis = Linear::up_to(47.0, 0.0, 470.0);
        assert_eq!(axis.place(0.0), 0.0);
        assert_eq!(axis.ticks().first(), Some(&0.0));
        assert!((4..=11).contains(&axis.ticks().len()), "{:?}", axis.ticks());
        assert!(Linear::up_to(0.0, 0.0, 1.0).place(0.5) > 0.0);
    }
}
