use agent_protocol::{Capabilities, ProcessId, Scheduler, TimeOffsets};
use oci_spec::runtime::{Process, Spec};
use serde_json::{Value, json};

use super::{least, plan, refused, with};
use crate::oci::plan::exec_process;

fn planned(pointer: &str, value: Value) -> agent_protocol::Process {
    plan(&with(pointer, value)).unwrap().process
}

#[test]
fn the_user_is_a_number_with_groups_and_a_mask() {
    let user = json!({"uid": 7, "gid": 8, "additionalGids": [9, 10], "umask": 63});
    let process = planned("/process/user", user);
    assert_eq!(process.user, "7:8");
    assert_eq!(process.additional_groups, ["9", "10"]);
    assert_eq!(process.umask, Some(0o77));
    assert!(process.create_cwd);
}

#[test]
fn capabilities_are_five_sets() {
    let sets = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL"],
        "permitted": ["CAP_CHOWN"],
        "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_KILL"],
        "ambient": ["CAP_CHOWN"],
    });
    let found = plan(&with("/process/capabilities", sets)).unwrap();
    assert_eq!(
        found.process.capabilities,
        Capabilities {
            bounding: 0b10_0001,
            permitted: 1,
            effective: 1,
            inheritable: 0b10_0000,
            ambient: 0,
        }
    );
    assert_eq!(found.container.capabilities, 0b10_0001);
    assert!(
        found.warnings[0].contains("ambient"),
        "{:?}",
        found.warnings
    );
    assert_eq!(
        plan(&least()).unwrap().process.capabilities,
        Capabilities::of(0)
    );
}

#[test]
fn limits_have_the_kernels_numbers() {
    let limits = json!([{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": u64::MAX}]);
    let process = planned("/process/rlimits", limits);
    assert_eq!(
        (process.rlimits[0].resource, process.rlimits[0].hard),
        (7, u64::MAX)
    );
    let bad = json!([{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}]);
    assert!(refused("/process/rlimits", bad).starts_with("process.rlimits[0]"));
}

#[test]
fn filters_are_compiled_with_their_flags() {
    let seccomp = json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"],
        "syscalls": [
            {"names": ["read", "exit"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone"], "action": "SCMP_ACT_KILL", "args":
                [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}]},
        ],
    });
    let process = planned("/linux/seccomp", seccomp);
    assert_eq!((process.seccomp.len(), process.seccomp_flags), (1, 2));
    let refuse = |name: &str, value: Value| {
        let mut seccomp = json!({"defaultAction": "SCMP_ACT_ALLOW"});
        seccomp[name] = value;
        refused("/linux/seccomp", seccomp)
    };
    assert!(refuse("listenerPath", json!("/s")).starts_with("linux.seccomp.listenerPath"));
    assert!(refuse("defaultAction", json!("SCMP_ACT_NOTIFY")).contains("SCMP_ACT_NOTIFY"));
    let flags = json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]);
    assert!(refuse("flags", flags).contains("WAIT_KILLABLE_RECV"));
}

#[test]
fn scheduling_is_the_kernels() {
    let process = planned(
        "/process/scheduler",
        json!({"policy": "SCHED_FIFO", "priority": 9, "flags": ["SCHED_RESET_ON_FORK"]}),
    );
    let expected = Scheduler {
        policy: 1,
        flags: 1,
        priority: 9,
        ..Scheduler::default()
    };
    assert_eq!(process.treatment.scheduler, Some(expected));
    for bad in [
        json!({"policy": "SCHED_ISO"}),
        json!({"policy": "SCHED_OTHER", "nice": 20}),
        json!({"policy": "SCHED_BATCH", "priority": 1}),
        json!({"policy": "SCHED_OTHER", "runtime": 5}),
        json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_UTIL_CLAMP_MIN"]}),
    ] {
        assert!(refused("/process/scheduler", bad).starts_with("process.scheduler."));
    }
}

#[test]
fn input_and_output_have_a_class_and_a_level() {
    let level = |level: i64| json!({"class": "IOPRIO_CLASS_IDLE", "priority": level});
    let process = planned("/process/ioPriority", level(3));
    assert_eq!(process.treatment.io_priority, Some(3 << 13 | 3));
    assert!(refused("/process/ioPriority", level(8)).starts_with("process.ioPriority"));
}

#[test]
fn domains_and_clocks_are_the_containers() {
    let process = planned("/linux/personality", json!({"domain": "LINUX32"}));
    assert_eq!(process.treatment.personality, Some(8));
    let process = planned("/linux/personality", json!({"domain": "LINUX"}));
    assert_eq!(process.treatment.personality, None);
    let offsets = json!({"monotonic": {"secs": -5, "nanosecs": 7}, "boottime": {"secs": 1}});
    let process = planned("/linux/timeOffsets", offsets);
    let expected = TimeOffsets {
        monotonic: (-5, 7),
        boottime: (1, 0),
    };
    assert_eq!(process.treatment.time_offsets, Some(expected));
    let odd = json!({"realtime": {"secs": 1}});
    assert!(refused("/linux/timeOffsets", odd).contains("realtime"));
}

#[test]
fn scores_and_labels_are_checked() {
    assert!(refused("/process/oomScoreAdj", json!(1001)).contains("-1000 to 1000"));
    let found = plan(&with("/process/apparmorProfile", json!("docker-default"))).unwrap();
    assert!(
        found.warnings[0].contains("apparmorProfile"),
        "{:?}",
        found.warnings
    );
}

#[test]
fn a_further_process_is_as_the_first_where_it_says_nothing() {
    let mut spec = with("/process/capabilities", json!({"bounding": ["CAP_KILL"]}));
    spec["process"]["noNewPrivileges"] = json!(true);
    spec["process"]["oomScoreAdj"] = json!(5);
    spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    let spec: Spec = serde_json::from_value(spec).unwrap();
    let exec = |process: Value| {
        let process: Process = serde_json::from_value(process).unwrap();
        exec_process(&process, &spec, ProcessId(9))
    };
    let further = exec(json!({"user": {}, "cwd": "/x", "args": ["ls"]})).unwrap();
    assert_eq!(further.id, ProcessId(9));
    assert_eq!(further.capabilities.bounding, 1 << 5);
    assert_eq!(
        (further.no_new_privileges, further.oom_score_adj),
        (true, Some(5))
    );
    assert_eq!(further.treatment.personality, Some(8));
    assert!(!further.create_cwd);
    let own = json!({"user": {"uid": 3}, "cwd": "/", "args": ["ls"], "noNewPrivileges": false,
        "capabilities": {"bounding": ["CAP_CHOWN"]},
        "execCPUAffinity": {"initial": "0", "final": "1-3,1"}});
    let further = exec(own).unwrap();
    assert_eq!((&*further.user, further.no_new_privileges), ("3:0", false));
    assert_eq!(further.capabilities.bounding, 1);
    assert_eq!(further.treatment.cpus, [1, 2, 3]);
    let far = json!({"user": {}, "cwd": "/", "args": ["ls"], "execCPUAffinity": {"final": "5000"}});
    assert!(
        exec(far)
            .unwrap_err()
            .to_string()
            .contains("execCPUAffinity")
    );
}
