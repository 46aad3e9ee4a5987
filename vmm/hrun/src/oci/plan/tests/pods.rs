//! Containers that have a VM in common with others.

use std::path::Path;

use agent_protocol::{ContainerId, Joined, Namespace, Source};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::{Place, Plan, changes, least};
use crate::oci::pod::{Membership, Role};

fn planned(spec: &Value, role: &Role) -> Plan {
    let spec: Spec = serde_json::from_value(spec.clone()).unwrap();
    Plan::new(
        &spec,
        Place {
            bundle: Path::new("/bundle"),
            id: "box",
            role,
            owner: &|path| path.starts_with("/proc/42").then_some(ContainerId(0)),
        },
    )
    .unwrap()
}

fn member(counts_memory: bool) -> Role {
    let membership = json!({
        "sandbox": "pod", "runtime_dir": "/run/pod", "number": 3, "has_room": true, "volumes": 1,
        "vmm": {"pid": 1, "start_ticks": 1}, "counts_memory": counts_memory,
    });
    Role::Member(serde_json::from_value::<Membership>(membership).unwrap())
}

fn with_limits() -> Value {
    let mut spec = least();
    spec["linux"]["resources"] = json!({
        "memory": {"limit": 64 << 20}, "cpu": {"quota": 50_000, "period": 100_000},
    });
    spec
}

#[test]
fn a_sandbox_is_as_large_as_its_members_may_become() {
    let mut spec = with_limits();
    assert_eq!(planned(&spec, &Role::Sandbox).class.memory, 64 << 20);
    spec["annotations"] = json!({
        "io.kubernetes.cri.sandbox-memory": "1073741824",
        "io.kubernetes.cri.sandbox-cpu-quota": "150000",
        "io.kubernetes.cri.sandbox-cpu-period": "100000",
    });
    let found = planned(&spec, &Role::Sandbox);
    assert_eq!((found.class.cpus, found.class.memory), (2, 1 << 30));
    assert_eq!(found.container.root.source, Source::share("rootfs", "0"));
    assert!(found.container.cgroup.is_empty());
    for nonsense in ["0", "-1", "much"] {
        spec["annotations"]["io.kubernetes.cri.sandbox-memory"] = json!(nonsense);
        assert_eq!(planned(&spec, &Role::Sandbox).class.memory, 64 << 20);
    }
    // Alone it is nobody's sandbox, whatever it says.
    assert_eq!(planned(&spec, &Role::Alone).class.cpus, 1);
}

#[test]
fn a_member_that_runs_gets_other_limits_in_the_guest() {
    let changes = |resources: Value, role: &Role| {
        let resources = serde_json::from_value(resources).unwrap();
        let files = changes(&resources, role, &mut Vec::new()).unwrap();
        let file = |(name, value): (String, String)| format!("{name}={value}");
        files.into_iter().map(file).collect::<Vec<_>>()
    };
    let some = json!({
        "memory": {"limit": 64 << 20}, "cpu": {"quota": 50_000}, "pids": {"limit": 9},
    });
    let all = ["pids.max=9", "memory.max=67108864", "cpu.max=50000 100000"];
    assert_eq!(changes(some.clone(), &member(true)), all);
    assert_eq!(changes(some.clone(), &member(false)), [all[0], all[2]]);
    // A VM of its own is limited from outside.
    assert_eq!(changes(some, &Role::Alone), all[..1]);
    let none = json!({"memory": {"limit": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1}});
    assert_eq!(
        changes(none, &member(true)),
        ["pids.max=max", "memory.max=max", "cpu.max=max"]
    );
    let same = json!({"memory": {"limit": 0}, "cpu": {"quota": 0, "shares": 5}});
    assert!(changes(same, &member(true)).is_empty());
}

#[test]
fn a_member_has_its_number_everywhere_and_its_limits_in_the_guest() {
    let mut spec = with_limits();
    spec["mounts"] = json!([{"destination": "/usr", "type": "bind", "source": "/usr"}]);
    let found = planned(&spec, &member(true));
    let container = &found.container;
    assert_eq!((container.id, found.process.id.0), (ContainerId(3), 3));
    assert_eq!(found.process.container, ContainerId(3));
    assert_eq!(container.root.source, Source::share("rootfs", "3"));
    assert_eq!(container.mounts[0].source, Source::share("volumes", "3-0"));
    assert_eq!(found.volumes[0].name, "3-0");
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let limits = [
        pair("memory.max", "67108864"),
        pair("cpu.max", "50000 100000"),
    ];
    assert_eq!(container.cgroup, limits);
    let found = planned(&spec, &member(false));
    assert_eq!(found.container.cgroup, limits[1..]);
    assert!(
        found
            .warnings
            .iter()
            .any(|warning| warning.contains("memory.limit"))
    );
}

#[test]
fn who_joins_the_message_queues_has_the_shared_memory_too() {
    let mut spec = least();
    spec["mounts"] = json!([{"destination": "/dev/shm", "type": "bind", "source": "/tmp"}]);
    spec["linux"]["namespaces"] = json!([
        {"type": "ipc", "path": "/proc/42/ns/ipc"}, {"type": "pid"},
        {"type": "network", "path": "/proc/42/ns/net"},
    ]);
    let found = planned(&spec, &member(true));
    let joined = Joined {
        namespace: Namespace::Ipc,
        container: ContainerId(0),
    };
    assert_eq!(found.container.joined, [joined]);
    let shared = Source::Joined {
        container: ContainerId(0),
        path: "/dev/shm".into(),
    };
    let sources: Vec<_> = found
        .container
        .mounts
        .iter()
        .map(|mount| &mount.source)
        .collect();
    assert_eq!(sources, [&shared]);
    spec["linux"]["namespaces"] = json!([{"type": "ipc"}]);
    let found = planned(&spec, &member(true));
    assert!(found.container.joined.is_empty());
    let is_shared = |mount: &agent_protocol::Mount| matches!(mount.source, Source::Joined { .. });
    assert!(!found.container.mounts.iter().any(is_shared));
}
