//! The benchmark: hrun in all its ways against containers made of namespaces, in one run in which
//! they take turns, so that whatever the machine does meanwhile happens to all of them.
//!
//! Here is the recipe and what its parts share. What an arm is, [`arm`] says; what is measured,
//! [`starts`], [`idle`] and [`work`]; how it is shown, [`tables`] and [`plot`].

mod arm;
mod cgroup;
mod facts;
mod idle;
mod launch;
pub(crate) mod namespace;
mod order;
mod owned;
pub(crate) mod plan;
pub(crate) mod plot;
mod processes;
mod progress;
pub(crate) mod report;
mod starts;
mod stats;
pub(crate) mod tables;
mod work;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use image::Image;

pub(crate) use arm::NAMES;
use arm::{Arm, ArmError, Common};
use cgroup::Cgroups;
use facts::Facts;
use launch::LaunchError;
use order::Order;
use owned::Directory;
use plan::{Budget, Part, Plan};
use progress::Progress;
use report::{Failure, Report};

use crate::{dirs::Dirs, signals::Signals};

/// An arm that fails so often in a row is given up.
const STRIKES: u32 = 3;

/// A signal that ends the benchmark.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Interrupt(pub(crate) i32);

/// A benchmark under way.
struct Bench<'a> {
    plan: &'a Plan,
    arms: Vec<Arm>,
    /// Failures in a row, by arm.
    strikes: Vec<u32>,
    signals: &'a mut Signals,
    progress: Progress,
    budget: Budget,
    end: Instant,
    order: Order,
    report: Report,
}

/// Measures. A signal that asks to end ends it early: what was measured until then is given as
/// well.
pub(crate) fn run(
    plan: &Plan,
    image: Image,
    dirs: &Dirs,
    quiet: bool,
    signals: &mut Signals,
) -> anyhow::Result<(Report, Option<Interrupt>)> {
    // Dropped last: everything below uses them.
    let directory = |parent: &Path| {
        Directory::new(parent)
            .with_context(|| format!("Failed to make a directory in {}", parent.display()))
    };
    let hidden = namespace::simplify_cgroups();
    let cgroups = Cgroups::open();
    let work = directory(&dirs.store)?;
    // The path of a Unix socket has 107 bytes: short ones, wherever the store is.
    let state = directory(&dirs.state)?;
    let tag = format!("hb{}", std::process::id());
    let counted = match &cgroups {
        Ok(cgroups) => cgroups.describe(),
        Err(error) => format!("none: {error}"),
    };
    let cgroups = cgroups.ok();
    let common = Common {
        image,
        image_name: plan.image.clone(),
        store: dirs.store.clone(),
        work: work.path().into(),
        state: state.path().into(),
        tag,
        pool_size: plan.pool_size,
    };
    let limit = Duration::from_secs(plan.time_limit_seconds);
    let mut bench = Bench {
        plan,
        arms: Vec::new(),
        strikes: Vec::new(),
        signals,
        progress: Progress::new(!quiet),
        budget: Budget::new(limit, &plan.parts),
        end: Instant::now() + limit,
        order: Order::new(plan.seed),
        report: Report::new(Facts::collect(counted), plan.clone()),
    };
    bench.report.notes.extend(hidden);
    let begun = Instant::now();
    let measured = bench.everything(&common, cgroups.as_ref());
    bench.progress.finish();
    let Bench {
        arms, mut report, ..
    } = bench;
    // With them go pool, bundles and mounts; then the cgroups, which are empty by then.
    drop(arms);
    drop(cgroups);
    report.facts.load_at_end = facts::load();
    report.facts.took_seconds = begun.elapsed().as_secs_f64();
    match measured {
        Ok(()) => {
            if report.present().next().is_none() {
                let reasons: Vec<String> = report
                    .arms
                    .iter()
                    .map(|arm| format!("{}: {}", arm.name, arm.missing.as_deref().unwrap_or("")))
                    .collect();
                bail!("There is nothing to measure: {}", reasons.join("; "));
            }
            Ok((report, None))
        }
        Err(interrupt) => {
            report
                .notes
                .push("interrupted: not all was measured".into());
            Ok((report, Some(interrupt)))
        }
    }
}

impl Bench<'_> {
    fn everything(&mut self, common: &Common, cgroups: Option<&Cgroups>) -> Result<(), Interrupt> {
        self.find_arms(common, cgroups)?;
        let wanted = |part| self.plan.parts.contains(&part);
        let [alone, bursts, idle, work] = Part::ALL.map(wanted);
        if alone {
            starts::alone(self)?;
        }
        if bursts {
            starts::bursts(self)?;
        }
        if idle {
            idle::memory(self)?;
        }
        if work {
            work::measure(self)?;
        }
        if let Some(most) = self.plan.density {
            idle::density(self, most)?;
        }
        Ok(())
    }

    /// Finds the arms that are there; each has run a container then.
    fn find_arms(&mut self, common: &Common, cgroups: Option<&Cgroups>) -> Result<(), Interrupt> {
        self.progress.part("looking for arms", self.plan.arms.len());
        for &name in &self.plan.arms {
            self.progress.step(name.into());
            let (mut described, found) = Arm::find(name, common, cgroups);
            let probed = found.map(|mut arm| match arm.probe(self.signals) {
                Ok(()) => Ok(arm),
                Err(error) => Err(error),
            });
            match probed {
                Ok(Ok(arm)) => {
                    self.arms.push(arm);
                    self.strikes.push(0);
                }
                Ok(Err(ArmError::Launch(LaunchError::Interrupted(signal)))) => {
                    return Err(Interrupt(signal));
                }
                Ok(Err(error)) => described.missing = Some(error.to_string()),
                Err(reason) => described.missing = Some(reason),
            }
            if let Some(reason) = &described.missing {
                self.progress.note(&format!("{name} is missing: {reason}"));
            }
            self.report.arms.push(described);
        }
        Ok(())
    }

    /// Shows that something begins.
    fn part(&mut self, name: &str, steps: usize) {
        self.progress.part(name, steps);
    }

    /// Begins a part of the plan; it is to end at the time that is given.
    fn begin(&mut self, part: Part, steps: usize) -> Instant {
        let name = match part {
            Part::Starts => "starts",
            Part::Bursts => "starts at once",
            Part::Idle => "memory",
            Part::Work => "work",
        };
        self.part(name, steps);
        self.budget.begin(part)
    }

    /// When everything is to end.
    fn end(&self) -> Instant {
        self.end
    }

    fn note(&mut self, text: String) {
        self.progress.note(&text);
        self.report.notes.push(text);
    }

    /// Writes down that a part was cut short.
    fn cut(&mut self, part: Part, done: usize, all: usize, what: &str) {
        let part = format!("{part:?}").to_lowercase();
        self.note(format!(
            "{part}: the time was up after {done} of {all} {what}"
        ));
    }

    /// Gives every arm a turn, in a new order. An arm whose turn fails keeps what it has got; one
    /// that fails again and again is left out from then on.
    fn turn(
        &mut self,
        what: &str,
        measure: impl FnMut(&mut Arm, &mut Signals, &mut Report) -> Result<(), ArmError>,
    ) -> Result<(), Interrupt> {
        let order = self.order.of(self.arms.len());
        self.turn_in(&order, what, measure)
    }

    /// The same, but the cold arm comes last: if the time does not do for all, the others have
    /// had theirs.
    fn turn_cold_last(
        &mut self,
        what: &str,
        measure: impl FnMut(&mut Arm, &mut Signals, &mut Report) -> Result<(), ArmError>,
    ) -> Result<(), Interrupt> {
        let mut order = self.order.of(self.arms.len());
        order.sort_by_key(|&index| self.arms[index].boots());
        self.turn_in(&order, what, measure)
    }

    fn turn_in(
        &mut self,
        order: &[usize],
        what: &str,
        mut measure: impl FnMut(&mut Arm, &mut Signals, &mut Report) -> Result<(), ArmError>,
    ) -> Result<(), Interrupt> {
        for &index in order {
            let arm = &mut self.arms[index];
            if self.strikes[index] >= STRIKES {
                continue;
            }
            self.progress.step(format!("{what}, {}", arm.name));
            match measure(arm, self.signals, &mut self.report) {
                Ok(()) => self.strikes[index] = 0,
                Err(ArmError::Launch(LaunchError::Interrupted(signal))) => {
                    return Err(Interrupt(signal));
                }
                Err(error) => {
                    self.strikes[index] += 1;
                    let failure = Failure {
                        arm: arm.name,
                        doing: what.into(),
                        error: error.to_string(),
                    };
                    self.progress
                        .note(&format!("{} failed ({what}): {error}", arm.name));
                    self.report.failures.push(failure);
                    if self.strikes[index] == STRIKES {
                        let text = format!("{}: given up after {STRIKES} failures", arm.name);
                        self.note(text);
                    }
                }
            }
        }
        Ok(())
    }
}
