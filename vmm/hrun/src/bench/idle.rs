//! Memory: what idle containers take, and how many there is room for.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    Bench, Interrupt,
    arm::{Arm, ArmError, START_LIMIT, Start},
    facts,
    launch::{self, Running, Until},
    plan::Part,
    report::{Density, Idle},
};
use crate::signals::Signals;

/// A container that does nothing, and says when it has begun to.
const IDLE: [&str; 3] = ["sh", "-c", "echo x; exec sleep 1000000"];

/// Containers that are started at the same moment: more would only wait for a CPU.
const STEP: usize = 4;

/// How long new containers may take to come to rest; some never do altogether.
const REST: Duration = Duration::from_secs(5);

/// How long the CPU time of idle containers is watched.
const WATCH: Duration = Duration::from_secs(1);

/// Memory is full when less than this part of it is available: a fifth.
const FULL: u64 = 5;

/// Idle containers in growing numbers, one arm after the other: two at once could not be told
/// apart in the memory that is left.
pub(super) fn memory(bench: &mut Bench<'_>) -> Result<(), Interrupt> {
    let mut counts = bench.plan.idle.clone();
    counts.sort_unstable();
    let deadline = bench.begin(Part::Idle, bench.arms.len());
    let cold_most = bench.plan.cold_most;
    let mut cut = Vec::new();
    bench.turn_cold_last("idle containers", |arm, signals, report| {
        let mut crowd = Crowd::default();
        let mut measure = || {
            report.idle.push(crowd.measured(arm, signals)?);
            for &count in &counts {
                if arm.boots() && count > cold_most {
                    break;
                }
                let full = crowd.grow(arm, count, Some(deadline), signals)?;
                if let Some(end) = full {
                    cut.push((arm.name, count, end));
                    break;
                }
                report.idle.push(crowd.measured(arm, signals)?);
            }
            Ok(())
        };
        let measured = measure();
        arm.end(crowd.running);
        arm.rest(signals)?;
        measured
    })?;
    for (arm, count, end) in cut {
        bench.note(format!(
            "{arm}: not {count} idle containers: {}",
            end.describe()
        ));
    }
    Ok(())
}

/// As many idle containers as there is room for, one arm after the other.
pub(super) fn density(bench: &mut Bench<'_>, most: usize) -> Result<(), Interrupt> {
    bench.part("density", bench.arms.len());
    let deadline = bench.end();
    bench.turn("as many as fit", |arm, signals, report| {
        if arm.boots() {
            return Ok(());
        }
        let mut crowd = Crowd::default();
        arm.rest(signals)?;
        let available_before = available();
        let grown = crowd.grow(arm, most, Some(deadline), signals);
        let rested = arm.rest_within(REST, signals);
        let available_after = available();
        let count = crowd.running.len();
        arm.end(crowd.running);
        arm.rest(signals)?;
        rested?;
        report.density.push(Density {
            arm: arm.name,
            count,
            available_before,
            available_after,
            end: match grown {
                Ok(None) => "as many as were asked for".into(),
                Ok(Some(end)) => end.describe().into(),
                Err(error) if error.is_interrupt() => return Err(error),
                Err(error) => error.to_string(),
            },
        });
        Ok(())
    })
}

/// Why there are no more containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Memory,
    Time,
}

impl End {
    fn describe(self) -> &'static str {
        match self {
            Self::Memory => "80 % of the memory is full",
            Self::Time => "the time was up",
        }
    }
}

/// Idle containers of one arm.
#[derive(Debug, Default)]
struct Crowd {
    running: Vec<Running>,
}

impl Crowd {
    /// Starts containers until there are so many. Gives the reason if there are fewer.
    fn grow(
        &mut self,
        arm: &mut Arm,
        count: usize,
        deadline: Option<Instant>,
        signals: &mut Signals,
    ) -> Result<Option<End>, ArmError> {
        while self.running.len() < count {
            if available() < facts::meminfo("MemTotal:").unwrap_or(0) / FULL {
                return Ok(Some(End::Memory));
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(Some(End::Time));
            }
            let first = self.running.len();
            let more = STEP.min(arm.burst()).min(count - first).max(1);
            let starts: Vec<Start<'_>> = (first..first + more)
                .map(|slot| Start {
                    slot,
                    words: &IDLE,
                    stdin: false,
                    lasting: true,
                })
                .collect();
            self.running.extend(arm.launch(&starts)?);
            let started = &mut self.running[first..];
            launch::wait(started, Until::Bytes(1), START_LIMIT, signals)?;
            if arm.burst() < usize::MAX {
                arm.rest_within(REST, signals)?;
            }
        }
        Ok(None)
    }

    fn measured(&self, arm: &Arm, signals: &mut Signals) -> Result<Idle, ArmError> {
        arm.rest_within(REST, signals)?;
        let (begun, before) = (Instant::now(), arm.cpu());
        thread::sleep(WATCH);
        let used = arm.cpu().saturating_sub(before);
        Ok(Idle {
            arm: arm.name,
            count: self.running.len(),
            available: available(),
            cgroup_charge: arm.charge(),
            memory: arm.footprint(&self.running),
            cpu_percent: used.as_secs_f64() * 100.0 / begun.elapsed().as_secs_f64(),
        })
    }
}

fn available() -> u64 {
    facts::meminfo("MemAvailable:").unwrap_or(0)
}
