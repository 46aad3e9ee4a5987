use agent_protocol::{ContainerId, Device, DeviceKind, Joined, Namespace};
use serde_json::{Value, json};

use super::{Plan, least, plan, refused, with};

fn planned(pointer: &str, value: Value) -> Plan {
    plan(&with(pointer, value)).unwrap()
}

#[test]
fn paths_and_parameters_are_passed_on() {
    let mut spec = least();
    spec["linux"] = json!({
        "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"],
        "sysctl": {"b": "2", "a": "1"},
    });
    let found = plan(&spec).unwrap();
    assert_eq!(found.container.masked_paths, ["/proc/kcore"]);
    assert_eq!(found.container.readonly_paths, ["/proc/sys"]);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(found.container.sysctls, [pair("a", "1"), pair("b", "2")]);
    assert!(plan(&least()).unwrap().container.masked_paths.is_empty());
}

#[test]
fn new_namespaces_are_what_a_guest_has() {
    let all = ["pid", "network", "ipc", "uts", "mount", "cgroup", "time"]
        .map(|kind| json!({"type": kind}));
    let found = planned("/linux/namespaces", json!(all));
    assert!(found.container.joined.is_empty());
    assert!(found.warnings.is_empty());
    let few = planned("/linux/namespaces", json!([{"type": "mount"}]));
    assert_eq!(few.warnings.len(), 3, "{:?}", few.warnings);
}

#[test]
fn namespaces_of_others_are_the_networks_or_those_of_the_vm() {
    let list = json!([
        {"type": "network", "path": "/run/netns/box"},
        {"type": "ipc", "path": "/proc/42/ns/ipc"},
        {"type": "pid"},
    ]);
    let found = planned("/linux/namespaces", list);
    let joined = Joined {
        namespace: Namespace::Ipc,
        container: ContainerId(7),
    };
    assert_eq!(found.container.joined, [joined]);
    let error = refused(
        "/linux/namespaces",
        json!([{"type": "pid", "path": "/proc/7/ns/pid"}]),
    );
    assert!(error.starts_with("linux.namespaces[0].path"), "{error}");
    let user = json!([{"type": "user", "path": "/proc/42/ns/user"}]);
    assert!(refused("/linux/namespaces", user).contains("users are its own"));
}

#[test]
fn users_are_mapped_to_themselves_only() {
    let mapping = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 65536}]);
    assert!(plan(&with("/linux/uidMappings", mapping(0))).is_ok());
    let error = refused("/linux/gidMappings", mapping(1000));
    assert!(error.starts_with("linux.gidMappings[0]"), "{error}");
}

#[test]
fn what_no_guest_has_is_refused_by_name() {
    for (name, asked) in [
        ("intelRdt", json!({"closID": "x"})),
        ("netDevices", json!({"eth0": {}})),
        ("memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "0"})),
        ("rootfsPropagation", json!("odd")),
    ] {
        let error = refused(&format!("/linux/{name}"), asked);
        assert!(error.starts_with(&format!("linux.{name}")), "{error}");
    }
}

#[test]
fn a_root_that_spreads_is_one_that_is_shared() {
    let spread = |name: &str| {
        let found = planned("/linux/rootfsPropagation", json!(name));
        found
            .container
            .propagation
            .map(|spread| (spread.kind >> 17, spread.recursive))
    };
    assert_eq!(spread("rshared"), Some((8, true)));
    assert_eq!(spread("unbindable"), Some((1, false)));
    assert_eq!(
        (spread("rslave"), spread("private"), spread("")),
        (None, None, None)
    );
}

fn device(path: &str, kind: &str, major: i64, minor: i64) -> Value {
    json!({"path": path, "type": kind, "major": major, "minor": minor})
}

#[test]
fn devices_are_those_that_the_guest_has_and_does_not_show_anyway() {
    let mut plain = device("/dev/null", "c", 1, 3);
    plain["fileMode"] = json!(0o20_666);
    let mut zero = device("/dev/zero", "c", 1, 5);
    zero["fileMode"] = json!(0o600);
    let list = json!([
        plain,
        zero,
        device("/dev/fuse", "c", 10, 229),
        device("/run/fifo", "p", 0, 0),
        device("/dev/ptmx", "c", 5, 2),
    ]);
    let found = planned("/linux/devices", list).container.devices;
    let paths: Vec<_> = found.iter().map(|device| &*device.path).collect();
    assert_eq!(paths, ["/dev/zero", "/dev/fuse", "/run/fifo"]);
    assert_eq!(
        found[0],
        Device {
            path: "/dev/zero".into(),
            kind: DeviceKind::Character { major: 1, minor: 5 },
            mode: 0o600,
            uid: 0,
            gid: 0,
        }
    );
}

#[test]
fn devices_of_the_host_are_refused_unless_all_of_them_were_meant() {
    let list = json!([
        device("/dev/kvm", "c", 10, 232),
        device("/dev/sda", "b", 8, 0)
    ]);
    let error = refused("/linux/devices", list.clone());
    assert!(
        error.contains("linux.devices[0]: \"/dev/kvm (c 10:232)\""),
        "{error}"
    );
    let mut spec = with("/linux/devices", list);
    spec["linux"]["resources"] = json!({"devices": [{"allow": true, "access": "rwm"}]});
    let found = plan(&spec).unwrap();
    assert!(found.container.devices.is_empty());
    assert!(
        found.warnings[0].contains("2 devices"),
        "{:?}",
        found.warnings
    );
    let relative = json!([device("dev/null", "c", 1, 3)]);
    assert!(refused("/linux/devices", relative).contains("must be absolute"));
}

#[test]
fn the_vm_is_as_large_as_its_limits() {
    let class = |resources: Value| {
        let class = planned("/linux/resources", resources).class;
        (class.cpus, class.memory >> 20)
    };
    assert_eq!(class(json!({})), (1, 256));
    assert_eq!(class(json!({"memory": {"limit": 512 << 20}})), (1, 512));
    assert_eq!(class(json!({"memory": {"limit": -1}})), (1, 256));
    assert_eq!(class(json!({"memory": {"limit": 6 << 20}})), (1, 32));
    assert_eq!(
        class(json!({"cpu": {"quota": 150_000, "period": 100_000}})).0,
        2
    );
    assert_eq!(class(json!({"cpu": {"quota": 50_000}})).0, 1);
    assert_eq!(class(json!({"cpu": {"quota": -1, "cpus": "0-3,8"}})).0, 5);
    assert_eq!(
        class(json!({"cpu": {"quota": 800_000, "cpus": "0,1"}})).0,
        2
    );
    assert_eq!(
        class(json!({"cpu": {"quota": i64::MAX, "period": 1}})).0,
        32
    );
    assert!(refused("/linux/resources", json!({"cpu": {"cpus": "3-1"}})).contains("cpu.cpus"));
}

#[test]
fn processes_are_counted_in_the_guest() {
    let files = |resources: Value| planned("/linux/resources", resources).container.cgroup;
    let pids = |limit: &str| vec![("pids.max".to_owned(), limit.to_owned())];
    assert_eq!(files(json!({"pids": {"limit": 2048}})), pids("2048"));
    assert!(files(json!({"pids": {"limit": 0}})).is_empty());
    assert!(files(json!({"pids": {"limit": -1}})).is_empty());
    let unified = json!({"pids": {"limit": 9}, "unified": {"pids.max": "7", "memory.high": "1"}});
    assert_eq!(files(unified), pids("7"));
    let odd = json!({"unified": {"../x": "1"}});
    assert!(refused("/linux/resources", odd).contains("unified"));
}
