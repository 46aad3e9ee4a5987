//! `linux.resources`: what makes the VM, and what has to be kept inside of it.
//!
//! Memory and CPUs are the VM's size. What limits a VM as a whole, from outside, is the business of
//! who has it in a cgroup. In the guest's cgroup there is what the host does not see: processes.

use oci_spec::runtime::{LinuxCpu, LinuxPids, LinuxResources, Spec};
use vmm::config::{MAX_MEMORY, MAX_VCPUS};

use super::{
    refused::{Refused, value},
    treatment,
};
use crate::{oci::pod::Role, template::Class};

/// What a guest has if the bundle sets no limit, in bytes.
const DEFAULT_MEMORY: u64 = 256 << 20;

/// Less holds no guest.
const MIN_MEMORY: u64 = 32 << 20;

/// `cpu.cfs_period_us`, if nobody says otherwise (sched-bwc of the kernel), in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// What the resources come to.
#[derive(Debug)]
pub(super) struct Limits {
    pub(super) class: Class,
    /// Files of the cgroup in the guest, with what is in them.
    pub(super) cgroup: Vec<(String, String)>,
}

pub(super) fn limits(
    resources: Option<&LinuxResources>,
    warnings: &mut Vec<String>,
) -> Result<Limits, Refused> {
    let mut limits = Limits {
        class: Class {
            cpus: 1,
            memory: DEFAULT_MEMORY,
        },
        cgroup: Vec::new(),
    };
    let Some(resources) = resources else {
        return Ok(limits);
    };
    if let Some(cpu) = resources.cpu() {
        limits.class.cpus = cpus(cpu)?;
        if cpu.realtime_runtime().is_some_and(|time| time != 0) {
            warnings.push(
                "linux.resources.cpu.realtimeRuntime: the guest's kernel does not ration real time"
                    .into(),
            );
        }
    }
    if let Some(memory) = resources.memory() {
        limits.class.memory = guest_memory(memory.limit(), warnings);
    }
    if let Some(pids) = resources.pids()
        && pids.limit() > 0
    {
        set(&mut limits.cgroup, "pids.max", &pids.limit().to_string());
    }
    let hugepages = resources.hugepage_limits().iter().flatten();
    if hugepages.clone().any(|limit| limit.limit() != 0) {
        warnings.push(
            "linux.resources.hugepageLimits: the guest's kernel has no huge pages to give".into(),
        );
    }
    if resources
        .rdma()
        .as_ref()
        .is_some_and(|rdma| !rdma.is_empty())
    {
        warnings.push("linux.resources.rdma: the guest has no such devices".into());
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (name, content) in unified {
        if name.contains('/') {
            let reason = "it is a name of a file in a cgroup";
            return Err(value("linux.resources.unified", name, reason));
        }
        if name.starts_with("pids.") {
            set(&mut limits.cgroup, name, content);
        }
    }
    Ok(limits)
}

/// What containerd's CRI plugin says about all containers of a pod to come.
const POD_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const POD_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const POD_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// How large the VM of a pod is to be: what the engine says its members may use, or else as for the
/// sandbox alone.
pub(super) fn of_pod(spec: &Spec, own: Class, warnings: &mut Vec<String>) -> Class {
    let annotations = spec.annotations().as_ref();
    let number = |name: &str| annotations?.get(name)?.parse::<u64>().ok();
    let number = |name: &str| number(name).filter(|number| *number > 0);
    let memory = number(POD_MEMORY).and_then(|memory| i64::try_from(memory).ok());
    let cpus =
        number(POD_QUOTA).map(|quota| quota.div_ceil(number(POD_PERIOD).unwrap_or(DEFAULT_PERIOD)));
    Class {
        cpus: cpus.map_or(own.cpus, |cpus| {
            u8::try_from(cpus).map_or(MAX_VCPUS, |cpus| cpus.clamp(1, MAX_VCPUS))
        }),
        memory: match memory {
            Some(memory) => guest_memory(Some(memory), warnings),
            None => own.memory,
        },
    }
}

/// What limits a container that has a VM in common with others is in the guest's cgroup.
pub(super) fn add_in_guest(
    resources: Option<&LinuxResources>,
    counts_memory: bool,
    files: &mut Vec<(String, String)>,
    warnings: &mut Vec<String>,
) {
    let Some(resources) = resources else {
        return;
    };
    let positive = |number: Option<i64>| number.filter(|number| *number > 0);
    let memory = resources.memory().and_then(|memory| memory.limit());
    if let Some(limit) = positive(memory)
        && counts_memory
    {
        set(files, "memory.max", &limit.to_string());
    } else if positive(memory).is_some() {
        warnings.push(
            "linux.resources.memory.limit: without hardware virtualization the limit is that of \
             the pod's VM"
                .into(),
        );
    }
    let cpu = resources.cpu().as_ref();
    if let Some(quota) = positive(cpu.and_then(LinuxCpu::quota)) {
        let period = cpu.and_then(LinuxCpu::period).unwrap_or(DEFAULT_PERIOD);
        set(files, "cpu.max", &format!("{quota} {period}"));
    }
}

/// What changes in the guest's cgroup of a container that runs and is to have these resources; a
/// negative number is no limit, and 0 leaves things as they are.
pub(crate) fn changes(
    resources: &LinuxResources,
    role: &Role,
    warnings: &mut Vec<String>,
) -> Result<Vec<(String, String)>, Refused> {
    let mut files = limits(Some(resources), warnings)?.cgroup;
    let is_negative = |number: Option<i64>| number.is_some_and(|number| number < 0);
    let pids = resources.pids().as_ref().map(LinuxPids::limit);
    if is_negative(pids) {
        set(&mut files, "pids.max", "max");
    }
    if let Some(member) = role.membership() {
        add_in_guest(Some(resources), member.counts_memory, &mut files, warnings);
        let memory = resources.memory().and_then(|memory| memory.limit());
        if is_negative(memory) && member.counts_memory {
            set(&mut files, "memory.max", "max");
        }
        let cpu = resources.cpu().as_ref();
        if is_negative(cpu.and_then(LinuxCpu::quota)) {
            set(&mut files, "cpu.max", "max");
        }
    }
    Ok(files)
}

/// The file has this content; what was said before does not count.
fn set(files: &mut Vec<(String, String)>, name: &str, content: &str) {
    files.retain(|(known, _)| known != name);
    files.push((name.into(), content.into()));
}

/// As many CPUs as the quota fills, but no more than there may be used.
fn cpus(cpu: &LinuxCpu) -> Result<u8, Refused> {
    let most = u64::from(MAX_VCPUS);
    let quota = u64::try_from(cpu.quota().unwrap_or(0)).unwrap_or(0);
    let period = cpu
        .period()
        .filter(|period| *period > 0)
        .unwrap_or(DEFAULT_PERIOD);
    let by_quota = Some(quota.div_ceil(period)).filter(|cpus| *cpus > 0);
    let by_set = match cpu.cpus().as_deref() {
        None | Some("") => None,
        Some(list) => Some(treatment::cpus(list).ok_or_else(|| {
            let reason = "it must be a list such as 0-3,7 of CPUs below 1024";
            value("linux.resources.cpu.cpus", list, reason)
        })?),
    };
    let by_set = by_set.map(|cpus| cpus.len() as u64);
    let cpus = match (by_quota, by_set) {
        (Some(quota), Some(set)) => quota.min(set),
        (cpus, other) => cpus.or(other).unwrap_or(1),
    };
    Ok(u8::try_from(cpus.clamp(1, most)).unwrap_or(MAX_VCPUS))
}

fn guest_memory(limit: Option<i64>, warnings: &mut Vec<String>) -> u64 {
    let limit = match limit.map(u64::try_from) {
        Some(Ok(limit)) if limit > 0 => limit,
        _ => return DEFAULT_MEMORY,
    };
    if limit < MIN_MEMORY {
        warnings.push(format!(
            "linux.resources.memory.limit: {limit} bytes hold no guest, which gets {MIN_MEMORY}"
        ));
    }
    limit.clamp(MIN_MEMORY, MAX_MEMORY / 2)
}
