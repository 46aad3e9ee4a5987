//! What came out, raw: every sample, for programs and for whoever wants to reckon anew.

use std::time::Duration;

use serde::Serialize;

use super::{
    arm::Described,
    facts::Facts,
    plan::Plan,
    processes::Footprint,
    stats::{self, Summary},
};

/// Raised when a reader of the JSON would have to know.
const FORMAT: u32 = 1;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) format: u32,
    pub(crate) facts: Facts,
    pub(crate) plan: Plan,
    pub(crate) arms: Vec<Described>,
    pub(crate) starts: Vec<StartSample>,
    pub(crate) bursts: Vec<Burst>,
    pub(crate) idle: Vec<Idle>,
    pub(crate) density: Vec<Density>,
    pub(crate) work: Vec<WorkSample>,
    pub(crate) failures: Vec<Failure>,
    /// What a reader should know, such as parts that were cut short.
    pub(crate) notes: Vec<String>,
}

/// One start, alone.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct StartSample {
    pub(crate) arm: &'static str,
    pub(crate) round: usize,
    pub(crate) command: &'static str,
    pub(crate) first_byte_ms: Option<f64>,
    pub(crate) exit_ms: f64,
    /// CPU time of everything that worked for it, until all was quiet again.
    pub(crate) cpu_ms: f64,
}

/// Several starts at once.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Burst {
    pub(crate) arm: &'static str,
    pub(crate) round: usize,
    pub(crate) count: usize,
    /// From the first start to the last exit.
    pub(crate) all_ms: f64,
    pub(crate) cpu_ms: f64,
    pub(crate) exit_ms: Vec<f64>,
}

/// A number of idle containers.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Idle {
    pub(crate) arm: &'static str,
    pub(crate) count: usize,
    /// Bytes, as all below.
    pub(crate) memory: Footprint,
    pub(crate) cgroup_charge: Option<u64>,
    pub(crate) available: u64,
    /// CPU time that all of them use, in hundredths of one CPU.
    pub(crate) cpu_percent: f64,
}

/// As many idle containers as there is room for.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Density {
    pub(crate) arm: &'static str,
    pub(crate) count: usize,
    pub(crate) available_before: u64,
    pub(crate) available_after: u64,
    /// Why there are no more.
    pub(crate) end: String,
}

/// A piece of work in a container.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct WorkSample {
    pub(crate) arm: &'static str,
    pub(crate) work: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) round: usize,
    pub(crate) amount: f64,
    pub(crate) seconds: f64,
    /// Amount by second.
    pub(crate) rate: f64,
}

/// Something that did not work, which no number shows.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Failure {
    pub(crate) arm: &'static str,
    pub(crate) doing: String,
    pub(crate) error: String,
}

impl Report {
    pub(crate) fn new(facts: Facts, plan: Plan) -> Self {
        Self {
            format: FORMAT,
            facts,
            plan,
            arms: Vec::new(),
            starts: Vec::new(),
            bursts: Vec::new(),
            idle: Vec::new(),
            density: Vec::new(),
            work: Vec::new(),
            failures: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Arms that were measured, in their order.
    pub(crate) fn present(&self) -> impl Iterator<Item = &'static str> {
        self.arms
            .iter()
            .filter(|arm| arm.missing.is_none())
            .map(|arm| arm.name)
    }

    /// Milliseconds from the command to its exit.
    pub(crate) fn exits(&self, arm: &str) -> Vec<f64> {
        let of = |sample: &&StartSample| sample.arm == arm && sample.command == "true";
        self.starts
            .iter()
            .filter(of)
            .map(|sample| sample.exit_ms)
            .collect()
    }

    /// Milliseconds from the command to the first byte that it prints.
    pub(crate) fn first_bytes(&self, arm: &str) -> Vec<f64> {
        self.starts
            .iter()
            .filter(|sample| sample.arm == arm && sample.command == "echo")
            .filter_map(|sample| sample.first_byte_ms)
            .collect()
    }

    /// CPU milliseconds of a start.
    pub(crate) fn cpu(&self, arm: &str) -> Option<Summary> {
        let of = |sample: &&StartSample| sample.arm == arm && sample.command == "true";
        Summary::of(self.starts.iter().filter(of).map(|sample| sample.cpu_ms))
    }

    /// All bursts of so many starts.
    pub(crate) fn bursts(&self, arm: &str, count: usize) -> Vec<&Burst> {
        self.bursts
            .iter()
            .filter(|burst| burst.arm == arm && burst.count == count)
            .collect()
    }

    /// The most idle containers of an arm, and none of them.
    pub(crate) fn most_idle(&self, arm: &str) -> Option<(&Idle, &Idle)> {
        let mut counts = self.idle.iter().filter(|idle| idle.arm == arm);
        let none = counts.find(|idle| idle.count == 0)?;
        counts
            .max_by_key(|idle| idle.count)
            .map(|most| (most, none))
    }

    /// Bytes of MemAvailable that each further container takes.
    pub(crate) fn available_slope(&self, arm: &str) -> Option<f64> {
        let points: Vec<(f64, f64)> = self
            .idle
            .iter()
            .filter(|idle| idle.arm == arm)
            .map(|idle| (idle.count as f64, idle.available as f64))
            .collect();
        stats::slope(&points).map(|slope| -slope)
    }

    /// Median rate of a kind of work.
    pub(crate) fn rate(&self, arm: &str, work: &str) -> Option<f64> {
        let of = |sample: &&WorkSample| sample.arm == arm && sample.work == work;
        Summary::of(self.work.iter().filter(of).map(|sample| sample.rate)).map(|all| all.p50)
    }
}

/// Milliseconds, as the report has them.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
