//! Work: what a container costs once it runs.
//!
//! One container of each arm holds a shell, which gets pieces of work on its standard input and
//! says when it is done. The clock is the host's. A piece is made as large as it must be to take
//! a while, because what takes a second in one arm takes a millisecond in another; what it takes
//! to begin and to end, measured with a piece of nothing, is taken off.

use std::{
    io::Write,
    process::ChildStdin,
    time::{Duration, Instant},
};

use super::{
    Bench, Interrupt,
    arm::{Arm, ArmError, START_LIMIT, Start},
    launch::{self, LaunchError, Running, Until},
    plan::Part,
    report::WorkSample,
};
use crate::signals::Signals;

/// How long a piece of work may take: it is tried in growing sizes.
const LIMIT: Duration = Duration::from_secs(60);

/// How long a shell may take to end that has nothing to do.
const PATIENCE: Duration = Duration::from_secs(1);

/// A kind of work; `N` in its script stands for the size of the piece.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// What it is, for people.
    pub(crate) about: &'static str,
    /// What must be there before.
    before: &'static str,
    script: &'static str,
    /// How much a piece of size 1 is, in the unit.
    each: f64,
    /// The first size to try, and the last.
    sizes: (u64, u64),
}

/// MiB in a block of 64 KiB.
const BLOCK: f64 = 1.0 / 16.0;

/// All kinds.
pub(crate) const WORKS: [Work; 8] = [
    Work {
        name: "CPU",
        unit: "loops/s",
        about: "a shell counts",
        before: ":",
        script: "i=0; while [ $i -lt N ]; do i=$((i+1)); done",
        each: 1.0,
        sizes: (2_000, 1 << 40),
    },
    Work {
        name: "system calls",
        unit: "calls/s",
        about: "dd copies single bytes from /dev/zero to /dev/null",
        before: ":",
        script: "dd if=/dev/zero of=/dev/null bs=1 count=N 2>/dev/null",
        each: 2.0,
        sizes: (200, 1 << 40),
    },
    Work {
        name: "processes",
        unit: "runs/s",
        about: "a shell runs /bin/true",
        before: ":",
        script: "i=0; while [ $i -lt N ]; do /bin/true; i=$((i+1)); done",
        each: 1.0,
        sizes: (1, 1 << 20),
    },
    Work {
        name: "file opens",
        unit: "files/s",
        about: "a shell opens and reads a small file",
        before: "echo x >/hrun-bench/small",
        script: "i=0; while [ $i -lt N ]; do read x </hrun-bench/small; i=$((i+1)); done",
        each: 1.0,
        sizes: (5, 1 << 20),
    },
    Work {
        name: "file creations",
        unit: "files/s",
        about: "a shell makes empty files",
        before: "rm -rf /hrun-bench/made && mkdir /hrun-bench/made",
        script: "i=0; while [ $i -lt N ]; do : >/hrun-bench/made/$i; i=$((i+1)); done",
        each: 1.0,
        sizes: (5, 20_000),
    },
    Work {
        name: "file writes",
        unit: "MiB/s",
        about: "dd writes a new file, not synced, in blocks of 64 KiB",
        before: "rm -f /hrun-bench/big",
        script: "dd if=/dev/zero of=/hrun-bench/big bs=64k count=N 2>/dev/null",
        each: BLOCK,
        sizes: (4, 4096),
    },
    Work {
        name: "file reads",
        unit: "MiB/s",
        about: "dd reads a file that was just written, in blocks of 64 KiB",
        before: "dd if=/dev/zero of=/hrun-bench/big bs=64k count=N 2>/dev/null",
        script: "dd if=/hrun-bench/big of=/dev/null bs=64k 2>/dev/null",
        each: BLOCK,
        sizes: (4, 4096),
    },
    Work {
        name: "pipe",
        unit: "MiB/s",
        about: "dd to dd, in blocks of 64 KiB",
        before: ":",
        script: "dd if=/dev/zero bs=64k count=N 2>/dev/null | dd of=/dev/null bs=64k 2>/dev/null",
        each: BLOCK,
        sizes: (4, 1 << 30),
    },
];

/// Shells by the names of their arms.
type Shells = Vec<(&'static str, Shell)>;

/// All kinds of work in all arms, in turns.
pub(super) fn measure(bench: &mut Bench<'_>) -> Result<(), Interrupt> {
    let steps = (bench.plan.work_rounds * WORKS.len() + 1) * bench.arms.len();
    let deadline = bench.begin(Part::Work, steps);
    let mut shells = Shells::new();
    let measured = all(bench, &mut shells, deadline);
    for (name, shell) in shells {
        if let Some(arm) = bench.arms.iter_mut().find(|arm| arm.name == name) {
            shell.close(arm);
        }
    }
    measured
}

fn all(bench: &mut Bench<'_>, shells: &mut Shells, deadline: Instant) -> Result<(), Interrupt> {
    let rounds = bench.plan.work_rounds;
    let target = Duration::from_millis(bench.plan.work_ms);
    let others = bench.arms.iter().any(|arm| arm.is_vm() && !arm.boots());
    let cold_works = bench.plan.cold_works || !others;
    bench.turn("shell", |arm, signals, _| {
        let wanted = cold_works || !arm.boots();
        if !wanted || Instant::now() >= deadline {
            return Ok(());
        }
        shells.push((arm.name, Shell::open(arm, signals)?));
        Ok(())
    })?;
    for round in 0..rounds {
        for (index, work) in WORKS.iter().enumerate() {
            if Instant::now() >= deadline {
                let done = round * WORKS.len() + index;
                bench.cut(Part::Work, done, rounds * WORKS.len(), "pieces of work");
                return Ok(());
            }
            bench.turn(work.name, |arm, signals, report| {
                let Some(place) = shells.iter().position(|(name, _)| *name == arm.name) else {
                    return Ok(());
                };
                match shells[place].1.work(index, target, signals) {
                    Ok((amount, seconds)) => report.work.push(WorkSample {
                        arm: arm.name,
                        work: work.name,
                        unit: work.unit,
                        round,
                        amount,
                        seconds,
                        rate: amount / seconds,
                    }),
                    Err(error) => {
                        // Whatever it is doing: with this shell it cannot go on.
                        shells.remove(place).1.close(arm);
                        return Err(error.into());
                    }
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// A shell in a container.
#[derive(Debug)]
struct Shell {
    /// The shell ends by itself when this is closed.
    stdin: Option<ChildStdin>,
    running: Vec<Running>,
    said: usize,
    /// The sizes that were found to take long enough, by kind of work.
    sizes: [u64; WORKS.len()],
    /// What a piece of nothing takes.
    nothing: [Duration; WORKS.len()],
}

impl Shell {
    fn open(arm: &mut Arm, signals: &mut Signals) -> Result<Self, ArmError> {
        let start = Start {
            slot: 0,
            words: &["sh"],
            stdin: true,
            lasting: true,
        };
        let mut started = arm.launch(&[start])?;
        let mut running = started.pop().expect("one was started");
        let mut shell = Self {
            stdin: running.take_stdin(),
            running: vec![running],
            said: 0,
            sizes: WORKS.each_ref().map(|work| work.sizes.0),
            nothing: [Duration::MAX; WORKS.len()],
        };
        match shell.run("mkdir -p /hrun-bench", START_LIMIT, signals) {
            Ok(_) => Ok(shell),
            Err(error) => {
                shell.close(arm);
                Err(error.into())
            }
        }
    }

    /// Lets the shell end in its own time, or what it does at the moment by force.
    fn close(mut self, arm: &mut Arm) {
        self.stdin = None;
        if !launch::ended(&mut self.running, PATIENCE) {
            arm.end(self.running);
        }
    }

    /// Runs a script and gives the time from its being sent to its being done.
    fn run(
        &mut self,
        script: &str,
        limit: Duration,
        signals: &mut Signals,
    ) -> Result<Duration, LaunchError> {
        let line = format!("{{ {script}; }} && echo x || exit 9\n");
        let begun = Instant::now();
        if let Some(stdin) = &mut self.stdin {
            // A shell that has ended says so below, with its last words.
            let _ = stdin.write_all(line.as_bytes());
        }
        self.said += "x\n".len();
        launch::wait(&mut self.running, Until::Bytes(self.said), limit, signals)?;
        Ok(begun.elapsed())
    }

    /// Does a piece of work that takes about `target`; gives its amount and the seconds it took.
    fn work(
        &mut self,
        index: usize,
        target: Duration,
        signals: &mut Signals,
    ) -> Result<(f64, f64), LaunchError> {
        let work = &WORKS[index];
        let mut piece = |shell: &mut Self, size: u64| {
            let sized = |script: &str| script.replace('N', &size.to_string());
            shell.run(&sized(work.before), LIMIT, signals)?;
            shell.run(&sized(work.script), LIMIT, signals)
        };
        if self.nothing[index] == Duration::MAX {
            self.nothing[index] = piece(self, 0)?.min(piece(self, 0)?);
        }
        loop {
            let size = self.sizes[index];
            let took = piece(self, size)?.saturating_sub(self.nothing[index]);
            if took * 2 >= target || size >= work.sizes.1 {
                // The clock has no finer step that matters.
                let seconds = took.max(Duration::from_micros(1)).as_secs_f64();
                return Ok((size as f64 * work.each, seconds));
            }
            self.sizes[index] = next_size(size, took, target).min(work.sizes.1);
        }
    }
}

/// The size to try after one that took too short: at least twice, at most twenty times as large.
fn next_size(size: u64, took: Duration, target: Duration) -> u64 {
    let times = target.as_nanos() / took.as_nanos().max(1);
    size.saturating_mul(u64::try_from(times.clamp(2, 20)).unwrap_or(20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_grow_towards_the_target_but_not_by_leaps() {
        let ms = Duration::from_millis;
        assert_eq!(next_size(10, ms(100), ms(500)), 50);
        assert_eq!(next_size(10, ms(0), ms(500)), 200);
        assert_eq!(next_size(10, ms(400), ms(500)), 20);
    }

    #[test]
    fn every_script_is_a_shells() {
        for work in &WORKS {
            for script in [work.before, work.script] {
                let script = script.replace('N', "0");
                let status = std::process::Command::new("sh")
                    .args(["-n", "-c", &format!("{{ {script}; }} && echo x || exit 9")])
                    .status()
                    .unwrap();
                assert!(status.success(), "{script}");
            }
            assert!(work.script.contains('N') || work.before.contains('N'));
        }
    }
}
