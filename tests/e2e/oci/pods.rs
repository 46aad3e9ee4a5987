//! Pods: several containers in one VM.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::{Case, Test, eventually};

use super::{Bundle, PATIENT, signal};

pub(super) fn tests() -> Vec<Test> {
    crate::tests![
        containers_of_a_pod_share_one_vm_and_what_they_ask_for,
        what_is_not_shared_is_a_members_own,
        members_come_and_go_and_leave_nothing_in_the_vm,
        a_member_whose_shim_is_killed_can_be_removed,
        a_paused_member_stands_still_alone,
        a_pod_ends_with_its_sandbox,
        limits_of_a_member_are_kept_in_the_guest,
        any_container_can_be_joined,
        a_sandbox_that_is_not_there_is_named,
    ]
    .into()
}

/// The annotations of containerd, and those of CRI-O and podman.
const CONTAINERD: [&str; 2] = [
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri.sandbox-id",
];
const CRIO: [&str; 2] = [
    "io.kubernetes.cri-o.ContainerType",
    "io.kubernetes.cri-o.SandboxID",
];

/// The sandbox of a pod, which runs.
fn sandbox<'a>(case: &'a Case<'a>, names: [&str; 2]) -> Result<Bundle<'a>> {
    let sandbox = Bundle::named(case, "pod", PATIENT, |config| {
        config["annotations"] = json!({names[0]: "sandbox", names[1]: "pod"});
        config["hostname"] = json!("podbox");
    })?;
    sandbox.ready()?;
    Ok(sandbox)
}

/// A member of the pod, which is not created yet. It joins these of the sandbox's namespaces.
fn member<'a>(
    case: &'a Case<'a>,
    sandbox: &Bundle<'_>,
    id: &str,
    joined: &[&str],
    edit: impl FnOnce(&mut Value),
) -> Result<Bundle<'a>> {
    let pid = sandbox.pid()?;
    let namespaces = ["pid", "mount", "ipc", "uts", "network"].map(|kind| {
        let path = match kind {
            "network" => "net",
            kind => kind,
        };
        match joined.contains(&kind) {
            true => json!({"type": kind, "path": format!("/proc/{pid}/ns/{path}")}),
            false => json!({"type": kind}),
        }
    });
    Bundle::named(case, id, PATIENT, |config| {
        config["annotations"] = json!({CONTAINERD[0]: "container", CONTAINERD[1]: "pod"});
        config["linux"]["namespaces"] = json!(namespaces);
        config["hostname"] = json!(id);
        edit(config);
    })
}

/// What a command in a container says.
fn says(bundle: &Bundle<'_>, id: &str, script: &str) -> Result<String> {
    let outcome = bundle.hrun(&["exec", id, "sh", "-c", script]).run()?;
    Ok(outcome.exits(0)?.text())
}

/// A directory of the host that engines mount as the pod's shared memory.
fn shared_memory(case: &Case<'_>, config: &mut Value) -> Result<()> {
    let shm = case.path("shm");
    fs::create_dir_all(&shm)?;
    let mounts = config["mounts"].as_array_mut().context("no mounts")?;
    mounts.push(json!({
        "destination": "/dev/shm", "type": "bind", "source": shm, "options": ["rbind"],
    }));
    Ok(())
}

fn containers_of_a_pod_share_one_vm_and_what_they_ask_for(case: &Case) -> Result<()> {
    let pod = sandbox(case, CONTAINERD)?;
    let shared = ["ipc", "uts", "network"];
    let mut members = Vec::new();
    for id in ["a", "b"] {
        let mut mounted = Ok(());
        let member = member(case, &pod, id, &shared, |config| {
            mounted = shared_memory(case, config);
        })?;
        mounted?;
        member.ready()?;
        members.push(member);
    }
    let [a, b] = &members[..] else {
        unreachable!("two were made")
    };
    ensure!(case.vmms().len() == 1, "{} VMs", case.vmms().len());
    for id in ["a", "b"] {
        ensure!(says(a, id, "hostname")? == "podbox\n", "{id}");
    }
    // The network is one.
    says(a, "a", "nc -l -p 7000 -e cat >/dev/null 2>&1 </dev/null &")?;
    let echo = eventually(
        "an answer over the loopback",
        Duration::from_secs(60),
        || {
            let said = says(b, "b", "echo hello | nc 127.0.0.1 7000").ok()?;
            (!said.is_empty()).then_some(said)
        },
    )?;
    ensure!(echo == "hello\n", "{echo}");
    // Shared memory and message queues are one.
    says(a, "a", "echo x > /dev/shm/file; touch /dev/mqueue/queue")?;
    let seen = says(b, "b", "cat /dev/shm/file; ls /dev/mqueue")?;
    ensure!(seen == "x\nqueue\n", "{seen}");
    let ipc = |id| says(a, id, "readlink /proc/self/ns/ipc");
    ensure!(ipc("a")? == ipc("b")? && ipc("a")? == ipc("pod")?);
    // Each has its own root, processes and cgroup.
    says(a, "a", "echo mine > /mine")?;
    ensure!(says(b, "b", "test -e /mine || echo none")? == "none\n");
    ensure!(a.path.join("rootfs/mine").exists());
    for name in ["mnt", "pid", "cgroup"] {
        let link = format!("readlink /proc/self/ns/{name}");
        ensure!(says(a, "a", &link)? != says(b, "b", &link)?, "{name}");
    }
    // The end of one is not the end of the other.
    a.hrun(&["kill", "a", "TERM"]).run()?.exits(0)?;
    a.ends()?;
    a.delete()?.exits(0)?;
    ensure!(says(b, "b", "cat /dev/shm/file")? == "x\n");
    for bundle in [b, &pod] {
        bundle.delete()?.exits(0)?;
    }
    pod.is_gone()?;
    a.is_gone()
}

fn what_is_not_shared_is_a_members_own(case: &Case) -> Result<()> {
    let pod = sandbox(case, CRIO)?;
    let own = member(case, &pod, "own", &[], |config| {
        config["annotations"] = json!({CRIO[0]: "container", CRIO[1]: "pod"});
    })?;
    own.ready()?;
    let shared = member(case, &pod, "shared", &["pid"], |config| {
        config["annotations"] = json!({});
        config["process"]["args"] = json!(["sh", "-c", "sleep 4000 & echo ready; wait"]);
    })?;
    shared.ready()?;
    ensure!(case.vmms().len() == 1);
    ensure!(says(&own, "own", "hostname")? == "own\n");
    ensure!(says(&own, "own", "echo $(ps | grep -c sleep)")? != "0\n");
    // One sees the others' processes, and its own are not the first.
    let first = |id| says(&own, id, "readlink /proc/1/ns/pid");
    ensure!(first("shared")? == first("pod")? && first("own")? != first("pod")?);
    let count = "ps | grep -c '[s]leep 4000$'; true";
    ensure!(says(&pod, "pod", count)? == "1\n");
    ensure!(says(&own, "own", count)? == "0\n");
    // Its end is that of all its processes, and of nobody else's.
    shared.hrun(&["kill", "shared", "KILL"]).run()?.exits(0)?;
    shared.ends()?;
    eventually("its processes to end", Duration::from_secs(30), || {
        (says(&pod, "pod", count).ok()? == "0\n").then_some(())
    })?;
    for bundle in [&shared, &own, &pod] {
        bundle.delete()?.exits(0)?;
        bundle.is_gone_alone()?;
    }
    pod.is_gone()
}

fn members_come_and_go_and_leave_nothing_in_the_vm(case: &Case) -> Result<()> {
    let pod = sandbox(case, CONTAINERD)?;
    let vmm = case.vmm()?.pid;
    let open = || -> Result<usize> { Ok(fs::read_dir(format!("/proc/{vmm}/fd"))?.count()) };
    let before = open()?;
    let volume = case.path("volume");
    fs::create_dir_all(&volume)?;
    for number in 0..100 {
        fs::write(volume.join(number.to_string()), "x")?;
    }
    for round in 0..3 {
        let one = member(case, &pod, "one", &["ipc"], |config| {
            let mounts = config["mounts"].as_array_mut();
            mounts.into_iter().for_each(|mounts| {
                mounts.push(json!({
                    "destination": "/volume", "type": "bind", "source": volume,
                }));
            });
        })?;
        one.ready()?;
        says(&one, "one", "cat /volume/* /bin/* > /dev/null")?;
        ensure!(says(&one, "one", "cat /volume/7")? == "x");
        let during = open()?;
        ensure!(
            during > before + 20,
            "{before} before, {during} during round {round}"
        );
        one.delete()?.exits(0)?;
        one.is_gone_alone()?;
        eventually(
            "the VMM to close the member's files",
            Duration::from_secs(30),
            || (open().ok()? < before + 5).then_some(()),
        )
        .with_context(|| format!("round {round}: {before} before, now {:?}", open()))?;
        fs::remove_dir_all(&one.path)?;
    }
    pod.delete()?.exits(0)?;
    pod.is_gone()
}

fn a_member_whose_shim_is_killed_can_be_removed(case: &Case) -> Result<()> {
    let pod = sandbox(case, CONTAINERD)?;
    let lost = member(case, &pod, "lost", &["pid"], |config| {
        config["process"]["args"] = json!(["sh", "-c", "echo ready; exec sleep 4000"]);
    })?;
    lost.ready()?;
    let count = "ps | grep -c '[s]leep 4000$'; true";
    ensure!(says(&pod, "pod", count)? == "1\n");
    signal(lost.pid()?, Signal::KILL)?;
    lost.ends()?;
    lost.delete()?.exits(0)?;
    lost.is_gone_alone()?;
    ensure!(says(&pod, "pod", count)? == "0\n");
    // Before it ran anything.
    fs::remove_dir_all(&lost.path)?;
    let lost = member(case, &pod, "lost", &["pid"], |_| {})?;
    lost.create(&[])?.exits(0)?;
    lost.hrun(&["delete", "lost"]).run()?.exits(0)?;
    lost.is_gone_alone()?;
    ensure!(says(&pod, "pod", "echo lives")? == "lives\n");
    pod.delete()?.exits(0)?;
    pod.is_gone()
}

fn a_paused_member_stands_still_alone(case: &Case) -> Result<()> {
    let pod = sandbox(case, CONTAINERD)?;
    let one = member(case, &pod, "one", &[], |_| {})?;
    one.ready()?;
    one.hrun(&["pause", "one"]).run()?.exits(0)?;
    ensure!(one.status()? == "paused" && pod.status()? == "running");
    let refused = one.hrun(&["exec", "one", "true"]).run()?.exits(1)?;
    ensure!(refused.stderr.contains("paused"), "{}", refused.describe());
    ensure!(says(&pod, "pod", "echo runs")? == "runs\n");
    one.hrun(&["resume", "one"]).run()?.exits(0)?;
    ensure!(says(&one, "one", "echo runs")? == "runs\n");
    // The sandbox's container as well, but not its VM.
    pod.hrun(&["pause", "pod"]).run()?.exits(0)?;
    ensure!(pod.status()? == "paused");
    ensure!(says(&one, "one", "echo runs")? == "runs\n");
    one.hrun(&["pause", "one"]).run()?.exits(0)?;
    one.hrun(&["kill", "one", "KILL"]).run()?.exits(0)?;
    one.ends()?;
    for bundle in [&one, &pod] {
        bundle.delete()?.exits(0)?;
    }
    pod.is_gone()
}

fn a_pod_ends_with_its_sandbox(case: &Case) -> Result<()> {
    let pod = sandbox(case, CONTAINERD)?;
    let running = member(case, &pod, "running", &[], |_| {})?;
    running.ready()?;
    let created = member(case, &pod, "created", &[], |_| {})?;
    created.create(&[])?.exits(0)?;
    pod.hrun(&["kill", "pod", "KILL"]).run()?.exits(0)?;
    for bundle in [&pod, &running, &created] {
        bundle.ends()?;
    }
    let late = member(case, &created, "late", &[], |_| {});
    ensure!(late.is_err(), "a container that has stopped has no process");
    let late = Bundle::named(case, "late", PATIENT, |config| {
        config["annotations"] = json!({CONTAINERD[0]: "container", CONTAINERD[1]: "pod"});
    })?;
    late.create(&[])?.exits(1)?;
    ensure!(
        late.said("err")
            .contains("The sandbox pod of the container's pod is stopped")
    );
    for bundle in [&running, &created, &pod] {
        bundle.delete()?.exits(0)?;
    }
    pod.is_gone()
}

fn limits_of_a_member_are_kept_in_the_guest(case: &Case) -> Result<()> {
    let pod = Bundle::named(case, "pod", PATIENT, |config| {
        config["annotations"] = json!({
            CONTAINERD[0]: "sandbox", CONTAINERD[1]: "pod",
            "io.kubernetes.cri.sandbox-memory": (512_u64 << 20).to_string(),
        });
    })?;
    pod.ready()?;
    let total = says(&pod, "pod", "grep MemTotal /proc/meminfo | tr -d ' '")?;
    ensure!(total == "MemTotal:524288kB\n", "{total}");
    let small = member(case, &pod, "small", &[], |config| {
        config["linux"]["resources"] = json!({
            "memory": {"limit": 64 << 20},
            "cpu": {"quota": 50_000, "period": 100_000},
            "pids": {"limit": 50},
        });
    })?;
    small.ready()?;
    const LIMITS: &str = "cd /sys/fs/cgroup; cat cpu.max pids.max";
    let limits = says(&small, "small", LIMITS)?;
    ensure!(limits == "50000 100000\n50\n", "{limits}");
    let other = [
        "update",
        "--cpu-quota",
        "20000",
        "--pids-limit",
        "60",
        "small",
    ];
    small.hrun(&other).run()?.exits(0)?;
    let limits = says(&small, "small", LIMITS)?;
    ensure!(limits == "20000 100000\n60\n", "{limits}");
    // Where the guest's kernel is interpreted, it does not count memory.
    let memory = says(&small, "small", "cat /sys/fs/cgroup/memory.max 2>&1; true")?;
    ensure!(
        memory == "67108864\n" || memory.contains("No such file"),
        "{memory}"
    );
    for bundle in [&small, &pod] {
        bundle.delete()?.exits(0)?;
    }
    pod.is_gone()
}

fn any_container_can_be_joined(case: &Case) -> Result<()> {
    let alone = Bundle::new(case, PATIENT, |_| {})?;
    alone.ready()?;
    let guest = member(case, &alone, "guest", &["ipc", "network"], |config| {
        config["annotations"] = json!({});
    })?;
    guest.ready()?;
    ensure!(case.vmms().len() == 1);
    let ipc = |id| says(&guest, id, "readlink /proc/self/ns/ipc");
    ensure!(ipc("guest")? == ipc("box")?);
    ensure!(says(&guest, "guest", "echo mine > /mine; hostname")? == "guest\n");
    ensure!(guest.path.join("rootfs/mine").exists());
    // Who joins a member joins the same VM.
    let third = member(case, &guest, "third", &["pid"], |config| {
        config["annotations"] = json!({});
    })?;
    third.ready()?;
    ensure!(case.vmms().len() == 1);
    let pid = |id| says(&guest, id, "readlink /proc/1/ns/pid");
    ensure!(pid("third")? == pid("guest")? && pid("third")? != pid("box")?);
    for bundle in [&third, &guest] {
        bundle.delete()?.exits(0)?;
        bundle.is_gone_alone()?;
    }
    ensure!(says(&alone, "box", "echo lives")? == "lives\n");
    alone.delete()?.exits(0)?;
    alone.is_gone()
}

fn a_sandbox_that_is_not_there_is_named(case: &Case) -> Result<()> {
    for (annotations, expected) in [
        (
            json!({CONTAINERD[0]: "container", CONTAINERD[1]: "nobody"}),
            "The sandbox nobody of the container's pod is not there",
        ),
        (json!({CRIO[0]: "container"}), "names no sandbox"),
    ] {
        let bundle = Bundle::named(case, "late", PATIENT, |config| {
            config["annotations"] = annotations;
        })?;
        bundle.create(&[])?.exits(1)?;
        ensure!(
            bundle.said("err").contains(expected),
            "{}",
            bundle.said("err")
        );
        bundle.is_gone()?;
        fs::remove_dir_all(&bundle.path)?;
    }
    Ok(())
}
