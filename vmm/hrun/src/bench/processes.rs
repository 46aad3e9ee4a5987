//! Processes of an arm and what they use, from `/proc` (proc(5)).

use std::{collections::HashMap, fs, time::Duration};

use rustix::param::clock_ticks_per_second;
use serde::Serialize;

pub(crate) use crate::usage::Share;
use crate::usage::{cpu, is_vmm, memory_of};

/// Memory of all processes of an arm, by what it is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Footprint {
    /// `hrun run`, `crun run`: the process that the user started.
    pub(crate) front: Share,
    /// The pool daemon.
    pub(crate) daemon: Share,
    /// VMMs without the guest's memory.
    pub(crate) vmm: Share,
    /// Memory of the guests.
    pub(crate) guest: Share,
    /// What runs in namespace containers; in VMs it is part of the guest's memory.
    pub(crate) app: Share,
    pub(crate) processes: usize,
}

impl Footprint {
    /// All parts of it.
    pub(crate) fn parts(&self) -> [(&'static str, Share); 5] {
        [
            ("front", self.front),
            ("daemon", self.daemon),
            ("vmm", self.vmm),
            ("guest", self.guest),
            ("app", self.app),
        ]
    }

    /// Everything together.
    pub(crate) fn total(&self) -> Share {
        let mut total = Share::default();
        for (_, part) in self.parts() {
            total += part;
        }
        total
    }

    /// What processes use: those that the user started, the pool daemon, and all below them.
    pub(crate) fn of(fronts: &[i32], daemon: Option<i32>) -> Self {
        let mut found = Self::default();
        let children = children();
        let mut add = |pid: i32, kind: fn(&mut Self) -> &mut Share| {
            // A process that has just ended uses nothing.
            let Ok((own, guest)) = memory_of(pid) else {
                return;
            };
            found.processes += 1;
            found.guest += guest;
            *kind(&mut found) += own;
        };
        for &front in fronts {
            add(front, |found| &mut found.front);
            for pid in below(front, &children) {
                if is_vmm(pid) {
                    add(pid, |found| &mut found.vmm);
                } else {
                    add(pid, |found| &mut found.app);
                }
            }
        }
        if let Some(daemon) = daemon {
            add(daemon, |found| &mut found.daemon);
            for pid in below(daemon, &children) {
                if is_vmm(pid) {
                    add(pid, |found| &mut found.vmm);
                } else {
                    add(pid, |found| &mut found.daemon);
                }
            }
        }
        found
    }
}

/// CPU time of a process, of its children that were waited for, and of all that live below it.
pub(crate) fn cpu_of_tree(pid: i32) -> Duration {
    let own = cpu(pid).map_or(0, |(own, waited)| own + waited);
    let below: u64 = below(pid, &children())
        .into_iter()
        .filter_map(cpu)
        .map(|(own, waited)| own + waited)
        .sum();
    from_ticks(own + below)
}

/// CPU time of all children of this process that were waited for.
pub(crate) fn cpu_of_waited() -> Duration {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    from_ticks(cpu(own).map_or(0, |(_, waited)| waited))
}

fn from_ticks(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1000 / clock_ticks_per_second().max(1))
}

/// All processes by their parents.
fn children() -> HashMap<i32, Vec<i32>> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let parent = fs::read_to_string(entry.path().join("stat"))
            .ok()
            .and_then(|stat| parent(&stat));
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    children
}

fn parent(stat: &str) -> Option<i32> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Children, their children and so on.
fn below(pid: i32, children: &HashMap<i32, Vec<i32>>) -> Vec<i32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next) {
        found.extend(children.get(parent).into_iter().flatten().copied());
        next += 1;
    }
    found.split_off(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_an_odd_command_name() {
        let stat = "12 (a) b) S 7 2 3 4 5 6 7 8 9 10 100 20 3 4 15 16";
        assert_eq!(parent(stat), Some(7));
    }

    #[test]
    fn descendants_are_all_below() {
        let children = HashMap::from([(1, vec![2, 3]), (3, vec![4]), (9, vec![5])]);
        assert_eq!(below(1, &children), [2, 3, 4]);
        assert_eq!(below(4, &children), [0; 0]);
    }

    #[test]
    fn this_process_and_its_children_use_memory() {
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let found = Footprint::of(&[own], None);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.front.pss > 0 && found.app.pss > 0 && found.processes >= 2);
        assert_eq!(found.total().pss, found.front.pss + found.app.pss);
    }
}
