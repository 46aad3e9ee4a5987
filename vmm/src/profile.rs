//! Where the guest spends its time: samples of the vCPUs' instruction pointer and stack.
//!
//! A signal takes the vCPUs out of KVM every [`INTERVAL`], and the address they stood at is
//! counted, with the return addresses on the kernel's stack. On software KVM, where guest kernel
//! code is interpreted, this is the profile of what the interpreter had to do.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    ops::Range,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Time between two samples.
pub const INTERVAL: Duration = Duration::from_millis(2);

/// Addresses at and above this one belong to the kernel (x86-64, upper half).
const KERNEL: u64 = 1 << 63;
/// The kernel's code (x86-64, Documentation/arch/x86/x86_64/mm.rst).
const TEXT: Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_a000_0000;
/// `THREAD_SIZE` of x86-64: a stack ends at a multiple of it.
const STACK_SIZE: u64 = 16 << 10;
const USER: &str = "[user]";
const UNKNOWN: &str = "[unknown]";

/// Samples of a VM.
pub struct Profile {
    memory: GuestMemoryMmap,
    /// How often each was seen: the instruction pointer, then return addresses, outwards.
    samples: Mutex<HashMap<Vec<u64>, u64>>,
}

impl Profile {
    /// No samples yet, of a VM with this memory.
    #[must_use]
    pub fn new(memory: GuestMemoryMmap) -> Self {
        Self {
            memory,
            samples: Mutex::default(),
        }
    }

    /// Counts a sample at this instruction pointer; `stack` is the physical address of the top of
    /// the kernel's stack, if it has one.
    pub fn sample(&self, rip: u64, stack: Option<u64>) {
        let mut addresses = vec![rip];
        if let Some(top) = stack.filter(|_| rip >= KERNEL) {
            let mut words = (top & !7)..((top / STACK_SIZE + 1) * STACK_SIZE);
            while words.start < words.end {
                // A stack outside of memory has nothing to tell.
                let word: u64 = self
                    .memory
                    .read_obj(GuestAddress(words.start))
                    .unwrap_or_default();
                addresses.extend(TEXT.contains(&word).then_some(word));
                words.start += 8;
            }
        }
        *self
            .samples
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(addresses)
            .or_default() += 1;
    }

    /// A table of functions, the most frequent first, and behind it the stacks in the folded form
    /// that flame graphs are made of. Without frame pointers a stack is every word on it that could
    /// be a return address: some of them are long out of date. `system_map` is the kernel's symbol
    /// table as its build leaves it: lines of address, type and name.
    #[must_use]
    pub fn report(&self, system_map: &str) -> String {
        let symbols = symbols(system_map);
        let name = |address: u64| {
            let symbol = symbols.range(..=address).next_back();
            symbol.map_or(UNKNOWN, |(_, name)| *name)
        };
        let mut functions: HashMap<&str, u64> = HashMap::new();
        let mut stacks: BTreeMap<String, u64> = BTreeMap::new();
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        for (addresses, &count) in samples.iter() {
            let function = if addresses[0] < KERNEL {
                USER
            } else {
                name(addresses[0])
            };
            *functions.entry(function).or_default() += count;
            let callers = addresses[1..].iter().rev().map(|&address| name(address));
            let stack: Vec<_> = callers.chain([function]).collect();
            *stacks.entry(stack.join(";")).or_default() += count;
        }
        let total: u64 = functions.values().sum();
        let mut functions: Vec<_> = functions.into_iter().collect();
        functions.sort_by_key(|&(name, count)| (std::cmp::Reverse(count), name));
        let mut report = format!("# {total} samples, one every {INTERVAL:?} of each vCPU\n");
        for (name, count) in functions {
            let share = count as f64 * 100.0 / total as f64;
            let _ = writeln!(report, "{share:6.2} % {count:8} {name}");
        }
        report.push_str("\n# stacks, the innermost function last\n");
        for (stack, count) in stacks {
            let _ = writeln!(report, "{stack} {count}");
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

    const SYSTEM_MAP: &str =
        "ffffffff81000000 T start\nffffffff81000010 t memcpy\nffffffff81000020 T last\n";

    fn profile() -> Profile {
        Profile::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 10)]).unwrap())
    }

    #[test]
    fn samples_are_attributed_to_the_function_they_fall_into() {
        let profile = profile();
        for rip in [
            0xffff_ffff_8100_0010,
            0xffff_ffff_8100_001f,
            0xffff_ffff_8100_0020,
            0x40_0000,
        ] {
            profile.sample(rip, None);
        }
        let report = profile.report(SYSTEM_MAP);
        let lines: Vec<_> = report.lines().skip(1).collect();
        assert!(lines[0].ends_with("2 memcpy"), "{report}");
        assert!(
            report.contains("[user]") && report.contains("1 last") && !report.contains("start")
        );
    }

    #[test]
    fn a_stack_tells_the_callers_up_to_its_end() {
        let profile = profile();
        let stack = STACK_SIZE - 32;
        for (address, word) in [
            (stack, 0xffff_ffff_8100_0021),
            (stack + 8, 0x1234),
            (stack + 16, 0xffff_ffff_8100_0001),
            (STACK_SIZE, 0xffff_ffff_8100_0011),
        ] {
            profile
                .memory
                .write_obj::<u64>(word, GuestAddress(address))
                .unwrap();
        }
        profile.sample(0xffff_ffff_8100_0010, Some(stack));
        profile.sample(0xffff_ffff_8100_0010, Some(1 << 40));
        profile.sample(0x40_0000, Some(stack));
        let report = profile.report(SYSTEM_MAP);
        assert!(report.contains("\nstart;last;memcpy 1\n"), "{report}");
        assert!(report.contains("\nmemcpy 1\n"), "{report}");
        assert!(report.contains("\n[user] 1\n"), "{report}");
    }
}
