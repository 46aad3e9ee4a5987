//! Where the time of a start goes: moments, each with the time since hrun began.

use std::{
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use agent_protocol::Hello;
use serde::Serialize;

use crate::table;

/// Moments of one run. Threads may note theirs.
#[derive(Debug)]
pub(crate) struct Timeline {
    start: Instant,
    moments: Mutex<Vec<Moment>>,
    guest: OnceLock<Guest>,
    way: OnceLock<Way>,
}

/// How the container came to its VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Way {
    /// `pool`, `template`, `grow` or `boot`.
    name: &'static str,
    /// Why it was this one.
    why: String,
}

/// What the guest says about itself: the truth about what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Guest {
    kernel: String,
    cpus: u32,
    /// `MemTotal`, in bytes.
    memory_total: u64,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Moment {
    /// Who noticed it.
    pub(crate) by: By,
    /// What happened.
    pub(crate) name: String,
    /// When, in microseconds since hrun began.
    pub(crate) at_us: u64,
}

/// Who notices moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum By {
    Hrun,
    Vmm,
    Guest,
}

impl Timeline {
    /// Begins now.
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            moments: Mutex::default(),
            guest: OnceLock::new(),
            way: OnceLock::new(),
        }
    }

    /// Notes how the container came to its VM, and why.
    pub(crate) fn note_way(&self, name: &'static str, why: impl Into<String>) {
        self.way.get_or_init(|| Way {
            name,
            why: why.into(),
        });
    }

    /// Notes what the guest says about itself.
    pub(crate) fn note_guest(&self, hello: &Hello) {
        self.guest.get_or_init(|| Guest {
            kernel: hello.kernel.clone(),
            cpus: hello.cpus,
            memory_total: hello.memory_total,
        });
    }

    /// Microseconds since the beginning.
    pub(crate) fn now_us(&self) -> u64 {
        micros(self.start.elapsed())
    }

    /// Notes that something has happened just now.
    pub(crate) fn mark(&self, name: &str) {
        self.mark_at(By::Hrun, name, self.now_us());
    }

    /// Notes when something happened.
    pub(crate) fn mark_at(&self, by: By, name: &str, at_us: u64) {
        let moment = Moment {
            by,
            name: name.into(),
            at_us,
        };
        self.moments
            .lock()
            .expect("no panic while the timeline is locked")
            .push(moment);
    }

    /// All moments in the order of time.
    pub(crate) fn moments(&self) -> Vec<Moment> {
        let mut moments = self
            .moments
            .lock()
            .expect("no panic while the timeline is locked")
            .clone();
        moments.sort_by_key(|moment| moment.at_us);
        moments
    }

    /// A table for people.
    pub(crate) fn table(&self) -> String {
        let mut last = 0;
        let rows: Vec<Vec<String>> = self
            .moments()
            .into_iter()
            .map(|moment| {
                let since = moment.at_us - last;
                last = moment.at_us;
                let by = match moment.by {
                    By::Hrun => "hrun",
                    By::Vmm => "vmm",
                    By::Guest => "guest",
                };
                vec![
                    format!("{:>10}", millis(moment.at_us)),
                    format!("{:>10}", format!("+{}", millis(since))),
                    by.into(),
                    moment.name,
                ]
            })
            .collect();
        let mut table = table::render(&["   AT (ms)", " STEP (ms)", "BY", "WHAT"], &rows);
        if let Some(way) = self.way.get() {
            table.push_str(&format!("VM by {} ({})\n", way.name, way.why));
        }
        if let Some(guest) = self.guest.get() {
            table.push_str(&format!(
                "guest: Linux {}, {} CPUs, {} KiB of memory\n",
                table::printable(&guest.kernel),
                guest.cpus,
                guest.memory_total / 1024
            ));
        }
        table
    }

    /// One line of JSON.
    pub(crate) fn json(&self) -> String {
        serde_json::json!({
            "way": self.way.get(),
            "guest": self.guest.get(),
            "timeline": self.moments(),
        })
        .to_string()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn millis(micros: u64) -> String {
    format!("{}.{:03}", micros / 1000, micros % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_in_the_order_of_time_with_the_steps_between() {
        let timeline = Timeline::new();
        timeline.mark_at(By::Guest, "ready", 2_500);
        timeline.mark_at(By::Vmm, "running", 1_000);
        let table = timeline.table();
        let lines: Vec<Vec<&str>> = table
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines,
            [
                ["1.000", "+1.000", "vmm", "running"],
                ["2.500", "+1.500", "guest", "ready"]
            ]
        );
    }

    #[test]
    fn the_json_form_is_one_line_for_programs() {
        let timeline = Timeline::new();
        timeline.mark_at(By::Vmm, "running", 7);
        assert_eq!(
            timeline.json(),
            r#"{"guest":null,"timeline":[{"at_us":7,"by":"vmm","name":"running"}],"way":null}"#
        );
    }
}
