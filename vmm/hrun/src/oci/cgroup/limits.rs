//! What an engine allows a container, as files of control groups: names, units and conversions
//! are those of runtime-spec (config-linux.md) and of the kernel's cgroup documents.
//!
//! Not here, as they are the guest's business: devices, the number of processes and huge pages. The
//! VMM's own threads and devices must not count against them.

use std::fmt::Display;

use oci_spec::runtime::{LinuxMemory, LinuxResources};

use super::Group;

type Setting = (String, String);

/// Files to be written in this group, in this order.
pub(super) fn of(group: &Group, resources: &LinuxResources, overhead: u64) -> Vec<Setting> {
    let mut settings = Vec::new();
    let has = |controller: &str| group.has(controller);
    if let Some(memory) = resources.memory().filter(|_| has("memory")) {
        settings.extend(memory_of(group, &memory, overhead));
    }
    if has("cpu") {
        settings.extend(cpu_of(group, resources));
    }
    if let Some(cpu) = resources.cpu().as_ref().filter(|_| has("cpuset")) {
        let lists = [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())];
        for (file, list) in lists {
            let list = list.as_ref().filter(|list| !list.is_empty());
            settings.extend(list.map(|list| (file.to_owned(), list.clone())));
        }
    }
    if let Some(io) = resources.block_io().as_ref().filter(|_| has("blkio")) {
        let weight = io.weight().filter(|weight| *weight != 0);
        if group.version2 {
            settings.extend(weight.map(|weight| set("io.weight", io_weight(weight))));
        } else {
            settings.extend(weight.map(|weight| set("blkio.weight", weight)));
        }
        let throttles = [
            (
                "blkio.throttle.read_bps_device",
                "rbps",
                io.throttle_read_bps_device(),
            ),
            (
                "blkio.throttle.write_bps_device",
                "wbps",
                io.throttle_write_bps_device(),
            ),
            (
                "blkio.throttle.read_iops_device",
                "riops",
                io.throttle_read_iops_device(),
            ),
            (
                "blkio.throttle.write_iops_device",
                "wiops",
                io.throttle_write_iops_device(),
            ),
        ];
        for (file, key, devices) in throttles {
            for device in devices.iter().flatten() {
                let place = format!("{}:{}", device.major(), device.minor());
                settings.push(if group.version2 {
                    set("io.max", format!("{place} {key}={}", device.rate()))
                } else {
                    set(file, format!("{place} {}", device.rate()))
                });
            }
        }
    }
    if group.version2 {
        let unified = resources.unified().iter().flatten();
        settings.extend(unified.map(|(file, value)| (file.clone(), value.clone())));
    }
    settings
}

fn set(file: &str, value: impl Display) -> Setting {
    (file.into(), value.to_string())
}

fn memory_of(group: &Group, memory: &LinuxMemory, overhead: u64) -> Vec<Setting> {
    let mut settings = Vec::new();
    let limit = memory.limit().filter(|limit| *limit != 0);
    let with_overhead = |bytes: i64| match u64::try_from(bytes) {
        Ok(bytes) => Some(bytes.saturating_add(overhead)),
        // -1 is no limit.
        Err(_) => None,
    };
    let reservation = memory.reservation().filter(|bytes| *bytes != 0);
    let swap = memory.swap().filter(|bytes| *bytes != 0);
    if group.version2 {
        let text = |bytes: Option<u64>| bytes.map_or_else(|| "max".to_owned(), |b| b.to_string());
        if let Some(limit) = limit {
            settings.push(set("memory.max", text(with_overhead(limit))));
        }
        if let Some(reservation) = reservation {
            settings.push(set("memory.low", text(u64::try_from(reservation).ok())));
        }
        // The specification's figure is memory and swap together, as in version 1.
        if let (Some(limit), Some(swap)) = (limit, swap) {
            let swap = u64::try_from(swap).ok();
            let limit = u64::try_from(limit).unwrap_or(0);
            settings.push(set(
                "memory.swap.max",
                text(swap.map(|swap| swap.saturating_sub(limit))),
            ));
        }
        return settings;
    }
    let text = |bytes: Option<u64>| bytes.map_or_else(|| "-1".to_owned(), |b| b.to_string());
    if let Some(limit) = limit {
        settings.push(set("memory.limit_in_bytes", text(with_overhead(limit))));
    }
    if let Some(reservation) = reservation {
        let value = text(u64::try_from(reservation).ok());
        settings.push(set("memory.soft_limit_in_bytes", value));
    }
    settings
}

fn cpu_of(group: &Group, resources: &LinuxResources) -> Vec<Setting> {
    let mut settings = Vec::new();
    let Some(cpu) = resources.cpu() else {
        return settings;
    };
    let shares = cpu.shares().filter(|shares| *shares != 0);
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if group.version2 {
        settings.extend(shares.map(|shares| set("cpu.weight", cpu_weight(shares))));
        if quota.is_some() || period.is_some() {
            let quota = quota
                .and_then(|quota| u64::try_from(quota).ok())
                .map_or_else(|| "max".into(), |quota| quota.to_string());
            let period = period.unwrap_or(100_000);
            settings.push(set("cpu.max", format!("{quota} {period}")));
        }
        return settings;
    }
    settings.extend(shares.map(|shares| set("cpu.shares", shares)));
    settings.extend(period.map(|period| set("cpu.cfs_period_us", period)));
    settings.extend(quota.map(|quota| set("cpu.cfs_quota_us", quota)));
    settings
}

/// From 2..=262144, of which 1024 is the default, to 1..=10000.
fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// From 10..=1000 to 1..=10000.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(version2: bool, controllers: &[&str]) -> Group {
        Group {
            dir: "/g".into(),
            base: "/".into(),
            version2,
            controllers: controllers.iter().map(|name| (*name).into()).collect(),
            made: true,
        }
    }

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    fn lines(group: &Group, json: &str) -> Vec<String> {
        of(group, &resources(json), 100)
            .into_iter()
            .map(|(file, value)| format!("{file}={value}"))
            .collect()
    }

    #[test]
    fn memory_has_room_for_the_vm() {
        let json = r#"{"memory":{"limit":1000,"reservation":500,"swap":3000}}"#;
        let old = lines(&group(false, &["memory"]), json);
        assert_eq!(
            old,
            [
                "memory.limit_in_bytes=1100",
                "memory.soft_limit_in_bytes=500"
            ]
        );
        let new = lines(
            &group(true, &["cpu", "cpuset", "io", "memory", "pids"]),
            json,
        );
        assert_eq!(
            new,
            ["memory.max=1100", "memory.low=500", "memory.swap.max=2000"]
        );
        let unlimited = r#"{"memory":{"limit":-1}}"#;
        assert_eq!(
            lines(
                &group(true, &["cpu", "cpuset", "io", "memory", "pids"]),
                unlimited
            ),
            ["memory.max=max"]
        );
        assert_eq!(
            lines(&group(false, &["memory"]), unlimited),
            ["memory.limit_in_bytes=-1"]
        );
        for version2 in [false, true] {
            assert!(lines(&group(version2, &["cpu"]), json).is_empty());
        }
    }

    #[test]
    fn cpu_shares_become_weights() {
        let json = r#"{"cpu":{"shares":1024,"quota":50000,"period":100000,"cpus":"0-1"}}"#;
        let old = lines(&group(false, &["cpu", "cpuacct"]), json);
        assert_eq!(
            old,
            [
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000"
            ]
        );
        assert_eq!(lines(&group(false, &["cpuset"]), json), ["cpuset.cpus=0-1"]);
        let new = lines(
            &group(true, &["cpu", "cpuset", "io", "memory", "pids"]),
            json,
        );
        assert_eq!(
            new,
            ["cpu.weight=39", "cpu.max=50000 100000", "cpuset.cpus=0-1"]
        );
        let free = lines(
            &group(true, &["cpu", "cpuset", "io", "memory", "pids"]),
            r#"{"cpu":{"quota":-1}}"#,
        );
        assert_eq!(free, ["cpu.max=max 100000"]);
        assert_eq!((cpu_weight(2), cpu_weight(262_144)), (1, 10_000));
        assert_eq!((io_weight(10), io_weight(1000)), (1, 10_000));
    }

    #[test]
    fn devices_are_throttled_by_number() {
        let json = r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":5}]}}"#;
        assert_eq!(
            lines(&group(false, &["blkio"]), json),
            ["blkio.throttle.read_bps_device=8:0 5"]
        );
        assert_eq!(
            lines(
                &group(true, &["cpu", "cpuset", "io", "memory", "pids"]),
                json
            ),
            ["io.max=8:0 rbps=5"]
        );
    }

    #[test]
    fn what_is_the_guests_business_is_left_to_it() {
        let json = r#"{"pids":{"limit":5},"devices":[{"allow":false,"access":"rwm"}]}"#;
        assert!(
            lines(
                &group(true, &["cpu", "cpuset", "io", "memory", "pids"]),
                json
            )
            .is_empty()
        );
        assert!(lines(&group(false, &["pids", "devices"]), json).is_empty());
    }
}
