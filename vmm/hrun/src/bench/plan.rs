//! What is to be measured, and how long that may take.

use std::time::{Duration, Instant};

use serde::Serialize;

/// The parts of a benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Part {
    /// One start after the other
    Starts,
    /// Several starts at once
    Bursts,
    /// Memory of idle containers
    Idle,
    /// What a container costs while it works
    Work,
}

impl Part {
    pub(crate) const ALL: [Self; 4] = [Self::Starts, Self::Bursts, Self::Idle, Self::Work];

    /// Its part of the time, by experience.
    fn weight(self) -> u32 {
        match self {
            Self::Starts => 4,
            Self::Bursts => 2,
            Self::Idle | Self::Work => 3,
        }
    }
}

/// How much is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Plan {
    pub(crate) image: String,
    /// Names of the arms that are wanted.
    pub(crate) arms: Vec<&'static str>,
    pub(crate) parts: Vec<Part>,
    /// Starts of each arm.
    pub(crate) samples: usize,
    /// Starts of the cold arm, whose every start is a boot.
    pub(crate) cold_samples: usize,
    /// Starts before the first that counts.
    pub(crate) warm_up: usize,
    /// Numbers of starts at once.
    pub(crate) at_once: Vec<usize>,
    pub(crate) burst_rounds: usize,
    /// Numbers of idle containers.
    pub(crate) idle: Vec<usize>,
    /// Most containers that the cold arm runs at once.
    pub(crate) cold_most: usize,
    /// Whether the cold arm works, too, if there are other VMs: one that runs is like the other.
    pub(crate) cold_works: bool,
    /// Idle containers to try for until memory is full; none: not tried.
    pub(crate) density: Option<usize>,
    pub(crate) work_rounds: usize,
    /// How long a piece of work is to take.
    pub(crate) work_ms: u64,
    /// VMs that the pool holds ready.
    pub(crate) pool_size: usize,
    pub(crate) time_limit_seconds: u64,
    /// Decides the order of turns.
    pub(crate) seed: u64,
}

impl Plan {
    /// Whether this is one of the rounds in which the cold arm has a turn, too: they are spread
    /// evenly.
    pub(crate) fn is_cold_round(&self, round: usize) -> bool {
        let cold = self.cold_samples.min(self.samples);
        let turns = |rounds: usize| rounds * cold / self.samples.max(1);
        turns(round + 1) > turns(round)
    }
}

/// The time that is left, shared among the parts.
#[derive(Debug)]
pub(crate) struct Budget {
    end: Instant,
    left: Vec<Part>,
}

impl Budget {
    pub(crate) fn new(limit: Duration, parts: &[Part]) -> Self {
        Self {
            end: Instant::now() + limit,
            left: parts.to_vec(),
        }
    }

    /// Until when a part may take that begins now. What it does not need is the next one's.
    pub(crate) fn begin(&mut self, part: Part) -> Instant {
        let all: u32 = self.left.iter().map(|part| part.weight()).sum();
        self.left.retain(|left| *left != part);
        let now = Instant::now();
        let rest = self.end.saturating_duration_since(now);
        now + rest * part.weight() / all.max(part.weight())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cold_rounds_are_as_many_as_wanted_and_spread() {
        let mut plan = Plan {
            image: String::new(),
            arms: Vec::new(),
            parts: Vec::new(),
            samples: 50,
            cold_samples: 10,
            warm_up: 0,
            at_once: Vec::new(),
            burst_rounds: 0,
            idle: Vec::new(),
            cold_most: 0,
            cold_works: false,
            density: None,
            work_rounds: 0,
            work_ms: 0,
            pool_size: 0,
            time_limit_seconds: 0,
            seed: 0,
        };
        let rounds = |plan: &Plan| {
            (0..plan.samples)
                .filter(|round| plan.is_cold_round(*round))
                .collect::<Vec<_>>()
        };
        assert_eq!(rounds(&plan), [4, 9, 14, 19, 24, 29, 34, 39, 44, 49]);
        plan.cold_samples = 100;
        assert_eq!(rounds(&plan).len(), 50);
        plan.cold_samples = 0;
        assert!(rounds(&plan).is_empty());
    }

    #[test]
    fn the_last_part_gets_all_that_is_left() {
        let mut budget = Budget::new(Duration::from_secs(120), &Part::ALL);
        let first = budget.begin(Part::Starts).duration_since(Instant::now());
        assert!((30..=40).contains(&first.as_secs()), "{first:?}");
        budget.begin(Part::Bursts);
        budget.begin(Part::Idle);
        let last = budget.begin(Part::Work).duration_since(Instant::now());
        assert!(last.as_secs() >= 115, "{last:?}");
    }
}
