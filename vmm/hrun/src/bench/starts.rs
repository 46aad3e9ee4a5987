//! Starts: one after the other, and several at once.

use std::time::Instant;

use super::{
    Bench, Interrupt,
    arm::{Arm, ArmError, START_LIMIT, Start},
    launch::{self, Until},
    plan::Part,
    report::{Burst, StartSample, ms},
};
use crate::signals::Signals;

/// Commands of a start: the least there is, and the least that prints something.
const COMMANDS: [(&str, &[&str]); 2] = [("true", &["true"]), ("echo", &["echo", "x"])];

/// One start after the other, arms in turns.
pub(super) fn alone(bench: &mut Bench<'_>) -> Result<(), Interrupt> {
    let deadline = bench.begin(Part::Starts, bench.plan.samples * bench.arms.len());
    for _ in 0..bench.plan.warm_up {
        bench.turn("warming up", |arm, signals, _| {
            if !arm.boots() {
                for (_, words) in COMMANDS {
                    arm.run(&Start::short(0, words), signals)?;
                    arm.rest(signals)?;
                }
            }
            Ok(())
        })?;
    }
    for round in 0..bench.plan.samples {
        if Instant::now() >= deadline {
            bench.cut(Part::Starts, round, bench.plan.samples, "rounds");
            break;
        }
        let cold = bench.plan.is_cold_round(round);
        bench.turn(&format!("round {}", round + 1), |arm, signals, report| {
            if arm.boots() && !cold {
                return Ok(());
            }
            for (command, words) in COMMANDS {
                report
                    .starts
                    .push(one(arm, round, command, words, signals)?);
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn one(
    arm: &mut Arm,
    round: usize,
    command: &'static str,
    words: &[&str],
    signals: &mut Signals,
) -> Result<StartSample, ArmError> {
    let before = arm.cpu();
    let times = arm.run(&Start::short(0, words), signals)?;
    arm.rest(signals)?;
    Ok(StartSample {
        arm: arm.name,
        round,
        command,
        first_byte_ms: times.first_byte.map(ms),
        exit_ms: ms(times.exit),
        cpu_ms: ms(arm.cpu().saturating_sub(before)),
    })
}

/// Several starts at once, arms in turns.
pub(super) fn bursts(bench: &mut Bench<'_>) -> Result<(), Interrupt> {
    let counts = bench.plan.at_once.clone();
    let rounds = bench.plan.burst_rounds;
    let deadline = bench.begin(Part::Bursts, rounds * counts.len() * bench.arms.len());
    let cold_most = bench.plan.cold_most;
    for round in 0..rounds {
        for (done, &count) in counts.iter().enumerate() {
            if Instant::now() >= deadline {
                let all = rounds * counts.len();
                bench.cut(Part::Bursts, round * counts.len() + done, all, "bursts");
                return Ok(());
            }
            bench.turn_cold_last(&format!("{count} at once"), |arm, signals, report| {
                let possible = count <= arm.burst() && (count <= cold_most || !arm.boots());
                if possible {
                    report.bursts.push(burst(arm, round, count, signals)?);
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn burst(
    arm: &mut Arm,
    round: usize,
    count: usize,
    signals: &mut Signals,
) -> Result<Burst, ArmError> {
    let (_, words) = COMMANDS[0];
    let starts: Vec<Start<'_>> = (0..count).map(|slot| Start::short(slot, words)).collect();
    let cpu = arm.cpu();
    let mut running = arm.launch(&starts)?;
    launch::wait(&mut running, Until::Exit, START_LIMIT, signals)?;
    let begun = running.iter().map(launch::Running::started).min();
    let mut exit_ms = Vec::new();
    let mut last = None;
    for running in &mut running {
        let times = running.times()?;
        last = last.max(Some(running.started() + times.exit));
        exit_ms.push(ms(times.exit));
    }
    let all = last.zip(begun).map(|(last, begun)| last - begun);
    arm.rest(signals)?;
    Ok(Burst {
        arm: arm.name,
        round,
        count,
        all_ms: ms(all.unwrap_or_default()),
        cpu_ms: ms(arm.cpu().saturating_sub(cpu)),
        exit_ms,
    })
}
