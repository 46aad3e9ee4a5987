//! What there is to know of the host: a number without them says nothing.

use std::{fs, process::Command, time::SystemTime};

use rustix::system::uname;
use serde::Serialize;
use vmm::api::HostKind;

use crate::parts::Parts;

/// The host, as it was during a benchmark.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Facts {
    pub(crate) hrun: String,
    /// None without KVM.
    pub(crate) kvm: Option<HostKind>,
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    /// Whether this is itself a virtual machine.
    pub(crate) virtual_machine: bool,
    /// Bytes.
    pub(crate) memory: u64,
    pub(crate) cgroups: String,
    /// Runnable processes on average over the last minute (proc_loadavg(5)).
    pub(crate) load_at_begin: f64,
    pub(crate) load_at_end: f64,
    /// Seconds since the Unix epoch.
    pub(crate) begun: u64,
    pub(crate) took_seconds: f64,
}

impl Facts {
    /// Collects them at the beginning.
    pub(crate) fn collect(cgroups: String) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let (cpu, virtual_machine) = processor(&cpuinfo);
        let load = load();
        Self {
            hrun: env!("CARGO_PKG_VERSION").into(),
            kvm: kvm(),
            kernel: uname().release().to_string_lossy().into_owned(),
            cpu,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            virtual_machine,
            memory: meminfo("MemTotal:").unwrap_or(0),
            cgroups,
            load_at_begin: load,
            load_at_end: load,
            begun: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            took_seconds: 0.0,
        }
    }

    /// The kind of KVM in a word or two.
    pub(crate) fn kind(&self) -> &'static str {
        match self.kvm {
            Some(HostKind::Hardware) => "hardware KVM",
            Some(HostKind::Software) => "software KVM",
            None => "no KVM",
        }
    }
}

/// The load now.
pub(crate) fn load() -> f64 {
    fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse().ok())
        .unwrap_or(f64::NAN)
}

/// A field of `/proc/meminfo`, such as `MemAvailable:`, in bytes.
pub(crate) fn meminfo(field: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    field_of(&text, field)
}

fn field_of(meminfo: &str, field: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The name of the first CPU, and whether CPUID says that a hypervisor is below.
fn processor(cpuinfo: &str) -> (String, bool) {
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim())
        })
    };
    let virtual_machine = field("flags")
        .unwrap_or("")
        .split(' ')
        .any(|flag| flag == "hypervisor");
    (
        field("model name").unwrap_or("unknown").into(),
        virtual_machine,
    )
}

fn kvm() -> Option<HostKind> {
    let vmm = Parts::find().ok()?.vmm;
    let output = Command::new(vmm).arg("--probe").output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_described() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A CPU @ 2GHz\nflags\t\t: fpu hypervisor sse\n";
        assert_eq!(processor(cpuinfo), ("A CPU @ 2GHz".into(), true));
        assert_eq!(processor(""), ("unknown".into(), false));
    }

    #[test]
    fn memory_is_told_in_bytes() {
        let meminfo = "MemTotal:  100 kB\nMemAvailable:   50 kB\n";
        assert_eq!(field_of(meminfo, "MemAvailable:"), Some(51200));
        assert_eq!(field_of(meminfo, "SwapFree:"), None);
    }
}
