//! How the guest's kernel treats a process: scheduling, input and output, clocks, execution domain.

use agent_protocol::{Scheduler, TimeOffsets, Treatment};
use oci_spec::runtime::{
    IOPriorityClass, LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy, Process,
    Spec,
};

use super::refused::{Refused, value};

/// `PER_LINUX32` of personality(2).
const PER_LINUX32: u32 = 8;

/// `IOPRIO_CLASS_SHIFT` of linux/ioprio.h.
const CLASS_SHIFT: u32 = 13;

pub(super) fn treatment(process: &Process, spec: &Spec) -> Result<Treatment, Refused> {
    Ok(Treatment {
        scheduler: scheduler(process)?,
        io_priority: io_priority(process)?,
        cpus: Vec::new(),
        personality: personality(spec)?,
        time_offsets: time_offsets(spec)?,
    })
}

fn scheduler(process: &Process) -> Result<Option<Scheduler>, Refused> {
    let Some(asked) = process.scheduler() else {
        return Ok(None);
    };
    let refuse = |name: &str, asked: String, reason: &str| {
        Err(value(format!("process.scheduler.{name}"), asked, reason))
    };
    // sched(7), linux/sched.h
    let policy = match asked.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
        LinuxSchedulerPolicy::SchedIso => {
            return refuse(
                "policy",
                asked.policy().to_string(),
                "Linux has no such policy",
            );
        }
    };
    let is_real_time = matches!(policy, 1 | 2);
    let nice = asked.nice().unwrap_or(0);
    let priority = asked.priority().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return refuse("nice", nice.to_string(), "it must be -20 to 19");
    }
    if priority != 0 && !is_real_time {
        return refuse(
            "priority",
            priority.to_string(),
            "it is for SCHED_FIFO and SCHED_RR",
        );
    }
    let is_deadline = [asked.runtime(), asked.deadline(), asked.period()];
    if policy != 6
        && is_deadline
            .iter()
            .any(|time| time.is_some_and(|time| time != 0))
    {
        let asked = asked.policy().to_string();
        return refuse("policy", asked, "times are for SCHED_DEADLINE");
    }
    let mut flags = 0;
    for flag in asked.flags().iter().flatten() {
        flags |= match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 1,
            LinuxSchedulerFlag::SchedFlagReclaim => 2,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 4,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 8,
            LinuxSchedulerFlag::SchedFlagKeepParams => 16,
            clamp => {
                let reason = "the specification has no value to clamp to";
                return refuse("flags", clamp.to_string(), reason);
            }
        };
    }
    Ok(Some(Scheduler {
        policy,
        flags,
        nice,
        priority: u32::try_from(priority).unwrap_or(0),
        runtime: asked.runtime().unwrap_or(0),
        deadline: asked.deadline().unwrap_or(0),
        period: asked.period().unwrap_or(0),
    }))
}

fn io_priority(process: &Process) -> Result<Option<u32>, Refused> {
    let Some(asked) = process.io_priority() else {
        return Ok(None);
    };
    let class = match asked.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u32::try_from(asked.priority()) {
        Ok(level @ 0..=7) => Ok(Some(class << CLASS_SHIFT | level)),
        _ => Err(value(
            "process.ioPriority.priority",
            asked.priority().to_string(),
            "it must be 0 to 7",
        )),
    }
}

/// The CPUs of a further process: of those for its beginning and those for its program the latter,
/// as in a guest nothing happens between the two.
pub(super) fn affinity(process: &Process) -> Result<Vec<u32>, Refused> {
    let asked = process.exec_cpu_affinity().as_ref();
    let list = asked.and_then(|asked| {
        let last = asked.cpu_affinity_final().as_deref();
        last.or(asked.initial().as_deref())
    });
    match list {
        None | Some("") => Ok(Vec::new()),
        Some(list) => cpus(list).ok_or_else(|| {
            let reason = "it must be a list such as 0-3,7 of CPUs below 1024";
            value("process.execCPUAffinity", list, reason)
        }),
    }
}

/// The numbers of a list as cpuset(7) has it.
pub(super) fn cpus(list: &str) -> Option<Vec<u32>> {
    const CPUS: u32 = 1024;
    let mut all = Vec::new();
    for range in list
        .split(',')
        .map(str::trim)
        .filter(|range| !range.is_empty())
    {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        if first > last || last >= CPUS {
            return None;
        }
        all.extend(first..=last);
    }
    all.sort_unstable();
    all.dedup();
    Some(all)
}

fn personality(spec: &Spec) -> Result<Option<u32>, Refused> {
    let linux = spec.linux().as_ref();
    let Some(asked) = linux.and_then(|linux| linux.personality().as_ref()) else {
        return Ok(None);
    };
    if let Some(flag) = asked.flags().iter().flatten().next() {
        let reason = "the specification knows no flags as yet";
        return Err(value("linux.personality.flags", flag, reason));
    }
    Ok(match asked.domain() {
        LinuxPersonalityDomain::PerLinux => None,
        LinuxPersonalityDomain::PerLinux32 => Some(PER_LINUX32),
    })
}

fn time_offsets(spec: &Spec) -> Result<Option<TimeOffsets>, Refused> {
    let linux = spec.linux().as_ref();
    let asked = linux.and_then(|linux| linux.time_offsets().as_ref());
    let mut offsets = TimeOffsets::default();
    for (clock, offset) in asked.into_iter().flatten() {
        let property = || format!("linux.timeOffsets.{clock}");
        let nanoseconds = offset.nanosecs().unwrap_or(0);
        if nanoseconds >= 1_000_000_000 {
            let reason = "nanoseconds are less than a second";
            return Err(value(property(), nanoseconds.to_string(), reason));
        }
        let offset = (offset.secs().unwrap_or(0), nanoseconds);
        match clock.as_str() {
            "monotonic" => offsets.monotonic = offset,
            "boottime" => offsets.boottime = offset,
            other => {
                let reason = "only monotonic and boottime can be set off";
                return Err(value(property(), other, reason));
            }
        }
    }
    Ok(Some(offsets).filter(|offsets| *offsets != TimeOffsets::default()))
}
