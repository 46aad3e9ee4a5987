//! Where the guest spends its time: samples of the vCPUs' instruction pointer.
//!
//! A signal takes the vCPUs out of KVM every [`INTERVAL`] and the address they stood at is
//! counted. On software KVM, where guest kernel code is interpreted, this is the profile of what
//! the interpreter had to do.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Time between two samples.
pub const INTERVAL: Duration = Duration::from_millis(2);

/// Addresses at and above this one belong to the kernel (x86-64, upper half).
const KERNEL: u64 = 1 << 63;
const USER: &str = "[user]";
const UNKNOWN: &str = "[unknown]";

/// Samples of a VM.
#[derive(Default)]
pub struct Profile {
    samples: Mutex<HashMap<u64, u64>>,
}

impl Profile {
    /// Counts a sample at this instruction pointer.
    pub fn sample(&self, rip: u64) {
        *self
            .samples
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(rip)
            .or_default() += 1;
    }

    /// A table of functions, the most frequent first. `system_map` is the kernel's symbol table
    /// as its build leaves it: lines of address, type and name.
    #[must_use]
    pub fn report(&self, system_map: &str) -> String {
        let symbols = symbols(system_map);
        let mut functions: HashMap<&str, u64> = HashMap::new();
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        for (&rip, &count) in samples.iter() {
            let name = if rip < KERNEL {
                USER
            } else {
                symbols
                    .range(..=rip)
                    .next_back()
                    .map_or(UNKNOWN, |(_, name)| *name)
            };
            *functions.entry(name).or_default() += count;
        }
        let total: u64 = functions.values().sum();
        let mut functions: Vec<_> = functions.into_iter().collect();
        functions.sort_by_key(|&(name, count)| (std::cmp::Reverse(count), name));
        let mut report = format!("# {total} samples, one every {INTERVAL:?} of each vCPU\n");
        for (name, count) in functions {
            let share = count as f64 * 100.0 / total as f64;
            let _ = writeln!(report, "{share:6.2} % {count:8} {name}");
        }
        report
    }
}

fn symbols(system_map: &str) -> BTreeMap<u64, &str> {
    let parse = |line: &'_ str| -> Option<(u64, usize)> {
        let mut words = line.split(' ');
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let name = words.nth(1)?;
        Some((address, line.len() - name.len()))
    };
    system_map
        .lines()
        .filter_map(|line| parse(line).map(|(address, name)| (address, &line[name..])))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_attributed_to_the_function_they_fall_into() {
        let profile = Profile::default();
        for rip in [
            0xffff_ffff_8100_0010,
            0xffff_ffff_8100_001f,
            0xffff_ffff_8100_0020,
            0x40_0000,
        ] {
            profile.sample(rip);
        }
        let report = profile.report(
            "ffffffff81000000 T start\nffffffff81000010 t memcpy\nffffffff81000020 T last\n",
        );
        let lines: Vec<_> = report.lines().skip(1).collect();
        assert!(lines[0].ends_with("2 memcpy"), "{report}");
        assert!(
            report.contains("[user]") && report.contains("1 last") && !report.contains("start")
        );
    }
}
