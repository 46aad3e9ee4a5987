mod engines;
mod linux;
mod mounts;
mod pods;
mod process;

use std::path::Path;

use agent_protocol::{ContainerId, Stdio, WindowSize};
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::{Place, Plan, Refused, Role, changes};

/// The least that is a container.
pub(super) fn least() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh"]},
    })
}

pub(super) fn plan(spec: &Value) -> Result<Plan, Refused> {
    let spec: Spec = serde_json::from_value(spec.clone()).unwrap();
    plan_of(&spec)
}

fn plan_of(spec: &Spec) -> Result<Plan, Refused> {
    Plan::new(
        spec,
        Place {
            bundle: Path::new("/bundle"),
            id: "box",
            role: &Role::Alone,
            owner: &|path| path.starts_with("/proc/42").then_some(ContainerId(7)),
        },
    )
}

/// [`least`] with the value at a JSON pointer replaced.
pub(super) fn with(pointer: &str, value: Value) -> Value {
    let mut spec = least();
    let mut place = &mut spec;
    for name in pointer.split('/').skip(1) {
        place = match place {
            Value::Object(map) => map.entry(name).or_insert_with(|| json!({})),
            other => panic!("{other} has no {name}"),
        };
    }
    *place = value;
    spec
}

/// Why a value at a JSON pointer is refused.
fn refused(pointer: &str, value: Value) -> String {
    let error = plan(&with(pointer, value)).unwrap_err();
    anyhow::Error::new(error)
        .chain()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[test]
fn the_least_specification_is_a_container() {
    let plan = plan(&least()).unwrap();
    assert_eq!(plan.root, Path::new("/bundle/rootfs"));
    assert!(!plan.container.read_only);
    assert_eq!(plan.process.args, ["sh"]);
    assert_eq!(plan.process.user, "0:0");
    assert_eq!(plan.process.stdio, Stdio::Pipes { stdin: true });
    assert!(plan.warnings.is_empty());
}

#[test]
fn an_absolute_root_is_taken_as_it_is() {
    let plan = plan(&with("/root", json!({"path": "/srv/fs", "readonly": true}))).unwrap();
    assert_eq!(plan.root, Path::new("/srv/fs"));
    assert!(plan.container.read_only);
}

#[test]
fn what_must_be_there_is_missed_by_name() {
    for (pointer, name) in [("root", "root"), ("process", "process")] {
        let mut spec = least();
        spec.as_object_mut().unwrap().remove(pointer);
        let error = plan(&spec).unwrap_err().to_string();
        assert_eq!(error, format!("{name} is missing in the configuration"));
    }
    let error = plan(&with("/process/args", json!([]))).unwrap_err();
    assert!(error.to_string().starts_with("process.args"), "{error}");
}

#[test]
fn only_version_1_is_known() {
    for version in ["2.0.0", "0.9", ""] {
        let error = plan(&with("/ociVersion", json!(version))).unwrap_err();
        assert!(error.to_string().starts_with("ociVersion"), "{error}");
    }
    assert!(plan(&with("/ociVersion", json!("1.0.2-dev"))).is_ok());
}

#[test]
fn a_host_without_a_name_is_called_as_the_container() {
    assert_eq!(plan(&least()).unwrap().container.hostname, "box");
    let plan = plan(&with("/hostname", json!("web"))).unwrap();
    assert_eq!(plan.container.hostname, "web");
}

#[test]
fn hooks_of_the_container_run_in_the_guest_and_know_its_state() {
    let mut spec = with(
        "/hooks/startContainer",
        json!([{"path": "/bin/hook", "args": ["hook", "-x"], "env": ["A=b"], "timeout": 5}]),
    );
    spec["hooks"]["poststart"] = json!([{"path": "/bin/host"}]);
    spec["annotations"] = json!({"a": "b"});
    let found = plan(&spec).unwrap();
    assert_eq!(found.process.hooks.len(), 1);
    let hook = &found.process.hooks[0];
    assert_eq!((&*hook.path, hook.timeout), ("/bin/hook", Some(5)));
    let state: Value = serde_json::from_slice(&hook.input).unwrap();
    assert_eq!(state["id"], "box");
    assert_eq!(state["status"], "created");
    assert_eq!(state["bundle"], "/bundle");
    assert_eq!(state["annotations"]["a"], "b");
    for bad in [
        json!([{"path": "hook"}]),
        json!([{"path": "/h", "timeout": 0}]),
    ] {
        let error = plan(&with("/hooks/startContainer", bad)).unwrap_err();
        assert!(
            error.to_string().starts_with("hooks.startContainer[0]"),
            "{error}"
        );
    }
}

#[test]
fn a_working_directory_is_absolute() {
    let error = plan(&with("/process/cwd", json!("proc/self"))).unwrap_err();
    assert!(error.to_string().starts_with("process.cwd"), "{error}");
}

#[test]
fn a_terminal_has_the_size_that_the_engine_knows() {
    let size = |process: Value| {
        let mut spec = with("/process/terminal", json!(true));
        spec["process"]["consoleSize"] = process;
        plan(&spec).unwrap().process.stdio
    };
    let terminal = |rows, columns| Stdio::Terminal(WindowSize { rows, columns });
    assert_eq!(size(json!({"height": 50, "width": 300})), terminal(50, 300));
    assert_eq!(size(json!({"height": 0, "width": 0})), terminal(24, 80));
    assert_eq!(
        size(json!({"height": 1_u64 << 40, "width": 1})),
        terminal(65535, 1)
    );
}
