//! What the configuration of an OCI bundle asks for, as a container in a real guest finds it.

use std::{fs, os::unix::net::UnixListener};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests::{Case, Outcome, Test};

use crate::oci::Bundle;

pub(crate) fn tests() -> Vec<Test> {
    let with_vm = crate::tests![
        mounts_are_what_was_asked_for_and_no_more,
        what_engines_confine_is_out_of_reach,
        a_process_has_the_rights_and_the_treatment_of_its_bundle,
        devices_and_limits_are_the_guests,
        hooks_of_the_container_run_in_the_guest,
        a_further_process_has_rights_of_its_own,
    ];
    let without_vm = crate::tests![what_no_guest_can_have_is_refused_by_its_property];
    let without_vm = without_vm.map(Test::without_vm);
    with_vm.into_iter().chain(without_vm).collect()
}

/// Runs a script to its end in a container whose configuration `edit` has changed.
fn run(case: &Case, script: &str, edit: impl FnOnce(&mut Value)) -> Result<Outcome> {
    let bundle = Bundle::new(case, script, edit)?;
    let path = bundle.path.display().to_string();
    let outcome = bundle.hrun(&["run", "--bundle", &path, "box"]).run()?;
    bundle.is_gone()?;
    Ok(outcome)
}

/// The lines that a script prints, which must succeed.
fn lines(case: &Case, script: &str, edit: impl FnOnce(&mut Value)) -> Result<Vec<String>> {
    let outcome = run(case, script, edit)?.exits(0)?;
    Ok(outcome.lines().iter().map(ToString::to_string).collect())
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}

/// As runc, docker and podman write them.
fn usual_mounts() -> Vec<Value> {
    let inert = ["nosuid", "noexec", "nodev"];
    let with = |more: &[&'static str]| [&inert[..], more].concat();
    vec![
        mount("/proc", "proc", "proc", &inert),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount("/dev/shm", "tmpfs", "shm", &with(&["mode=1777", "size=1m"])),
        mount("/dev/mqueue", "mqueue", "mqueue", &inert),
        mount("/sys", "sysfs", "sysfs", &with(&["ro"])),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &with(&["relatime", "rw"]),
        ),
    ]
}

fn mounts_are_what_was_asked_for_and_no_more(case: &Case) -> Result<()> {
    let data = case.path("data");
    fs::create_dir(&data)?;
    fs::write(data.join("file"), "shared\n")?;
    let script = "cat /data/file /etc/single /tmp/kept
        echo x 2>/dev/null >/data/new || echo read-only
        echo back >/etc/single
        grep -c . /proc/self/mounts
        grep ' /dev/shm ' /proc/self/mounts; grep ' /sys/fs/cgroup ' /proc/self/mounts
        grep ' /data ' /proc/self/mounts; grep ' /scratch ' /proc/self/mounts
        grep ' /shared ' /proc/self/mountinfo | grep -c shared:";
    let single = data.join("single");
    fs::write(&single, "single\n")?;
    let found = lines(case, script, |config| {
        let source = data.display().to_string();
        let mut mounts = usual_mounts();
        mounts.extend([
            mount(
                "/data",
                "bind",
                &source,
                &["rbind", "ro", "nodev", "rprivate"],
            ),
            mount(
                "/etc/single",
                "bind",
                &single.display().to_string(),
                &["bind"],
            ),
            mount(
                "/scratch",
                "tmpfs",
                "mine",
                &["size=64k", "noexec", "mode=1770", "uid=7"],
            ),
            mount("/shared", "tmpfs", "tmpfs", &["rshared"]),
            mount("/tmp", "tmpfs", "tmpfs", &["tmpcopyup", "nosuid"]),
        ]);
        config["mounts"] = mounts.into();
        let kept = case.path("bundle/rootfs/tmp");
        let _ = fs::create_dir(&kept);
        let _ = fs::write(kept.join("kept"), "kept\n");
    })?;
    let inert = "nosuid,nodev,noexec,relatime";
    let expected = [
        "shared".to_owned(),
        "single".to_owned(),
        "kept".to_owned(),
        "read-only".to_owned(),
        // The root, the usual seven and five more.
        "13".to_owned(),
        format!("tmpfs /dev/shm tmpfs rw,{inert},size=1024k 0 0"),
        format!("cgroup2 /sys/fs/cgroup cgroup2 rw,{inert} 0 0"),
        "volumes /data virtiofs ro,nodev,relatime 0 0".to_owned(),
        "mine /scratch tmpfs rw,noexec,relatime,size=64k,mode=1770,uid=7 0 0".to_owned(),
        "1".to_owned(),
    ];
    ensure!(found == expected, "{found:#?}");
    ensure!(fs::read_to_string(&single)? == "back\n");
    ensure!(!data.join("new").exists());
    Ok(())
}

fn what_engines_confine_is_out_of_reach(case: &Case) -> Result<()> {
    let script = "cat /proc/timer_list | grep -c .; ls /sys/firmware | grep -c .
        for at in /proc/sys/kernel/msgmax /proc/sysrq-trigger; do
            (echo 1 >$at) 2>&1 | grep -c Read-only
        done
        cat /secret; ls /hidden | grep -c .; echo end";
    let found = lines(case, script, |config| {
        config["mounts"] = usual_mounts().into();
        config["linux"]["maskedPaths"] = json!([
            "/proc/acpi",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/sched_debug",
            "/proc/scsi",
            "/sys/firmware",
            "/secret",
            "/hidden",
            "/none",
        ]);
        config["linux"]["readonlyPaths"] = json!([
            "/proc/bus",
            "/proc/fs",
            "/proc/irq",
            "/proc/sys",
            "/proc/sysrq-trigger",
        ]);
        let root = case.path("bundle/rootfs");
        let _ = fs::write(root.join("secret"), "secret\n");
        let _ = fs::create_dir(root.join("hidden"));
        let _ = fs::write(root.join("hidden/file"), "");
    })?;
    ensure!(found == ["0", "0", "1", "1", "0", "end"], "{found:?}");
    Ok(())
}

fn a_process_has_the_rights_and_the_treatment_of_its_bundle(case: &Case) -> Result<()> {
    let script = "id -u; id -G; pwd; umask; ulimit -n; uname -m
        grep -e CapEff -e CapAmb -e NoNewPrivs /proc/self/status | cut -f 2
        cat /proc/self/oom_score_adj /proc/sys/kernel/domainname; hostname
        grep boottime /proc/self/timens_offsets | tr -s ' '
        cat /proc/self/stat | cut -d ' ' -f 19,41
        mkdir /denied 2>&1 | grep -c 'not permitted'";
    let found = lines(case, script, |config| {
        config["process"]["user"] =
            json!({"uid": 7, "gid": 8, "additionalGids": [9], "umask": 0o27});
        config["process"]["cwd"] = json!("/made/here");
        config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 100}]);
        let sets = json!(["CAP_KILL"]);
        config["process"]["capabilities"] = json!({"bounding": sets, "effective": sets,
            "permitted": sets, "inheritable": sets, "ambient": sets});
        config["process"]["noNewPrivileges"] = json!(true);
        config["process"]["oomScoreAdj"] = json!(77);
        config["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
        config["domainname"] = json!("lan");
        config["linux"]["personality"] = json!({"domain": "LINUX32"});
        config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000}});
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
        });
    })?;
    let set = "0000000000000020";
    let expected = [
        "7",
        "8 9",
        "/made/here",
        "0027",
        "99",
        "i686",
        set,
        set,
        "1",
        "77",
        "lan",
        "box",
        "boottime 1000000 0",
        "5 3",
        "1",
    ];
    ensure!(found == expected, "{found:?}");
    Ok(())
}

fn devices_and_limits_are_the_guests(case: &Case) -> Result<()> {
    let script = "ls -l /dev/fuse /dev/other | tr -s ' ' | cut -d ' ' -f 1-6
        cat /sys/fs/cgroup/pids.max; grep MemTotal /proc/meminfo | tr -s ' '
        grep -c ^processor /proc/cpuinfo; cat /proc/sys/net/ipv4/ping_group_range
        (sleep 1 & sleep 1 & sleep 1 & sleep 1 & sleep 1 & wait) 2>&1 | grep -c fork";
    let found = lines(case, script, |config| {
        config["mounts"] = usual_mounts().into();
        config["linux"]["devices"] = json!([
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640,
                "uid": 1, "gid": 2},
            {"path": "/dev/other", "type": "c", "major": 1, "minor": 3},
            {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666},
        ]);
        config["linux"]["sysctl"] = json!({"net.ipv4.ping_group_range": "0 5"});
        config["linux"]["resources"] = json!({
            "pids": {"limit": 5}, "memory": {"limit": 192 << 20},
            "cpu": {"quota": 150_000, "period": 100_000},
        });
    })?;
    let expected = [
        "crw-r----- 1 1 2 10, 229",
        "crw-rw-rw- 1 0 0 1, 3",
        "5",
        "MemTotal: 196608 kB",
        "2",
        "0\t5",
        "1",
    ];
    ensure!(found == expected, "{found:?}");
    Ok(())
}

fn hooks_of_the_container_run_in_the_guest(case: &Case) -> Result<()> {
    let script = "cat /log; echo program";
    let hook = |script: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
    let found = lines(case, script, |config| {
        let script = "uname -r >>/log; cat >>/log; echo >>/log";
        config["hooks"]["startContainer"] = json!([hook(script), hook("echo second >>/log")]);
    })?;
    ensure!(found.len() == 4, "{found:?}");
    ensure!(found[0].ends_with("-hrun"), "{found:?}");
    let state: Value = serde_json::from_str(&found[1])?;
    ensure!(
        state["id"] == "box" && state["status"] == "created",
        "{state}"
    );
    ensure!(found[2..] == ["second", "program"], "{found:?}");
    Ok(())
}

fn a_further_process_has_rights_of_its_own(case: &Case) -> Result<()> {
    let bundle = Bundle::new(case, crate::PATIENT, |config| {
        config["process"]["capabilities"] = json!({"bounding": ["CAP_KILL"]});
        config["process"]["oomScoreAdj"] = json!(5);
    })?;
    bundle.ready()?;
    let script =
        "grep -e CapEff -e CapBnd /proc/self/status | cut -f 2; cat /proc/self/oom_score_adj";
    let exec = |more: Value| -> Result<Outcome> {
        let mut process = json!({"args": ["sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/"});
        for (name, value) in more.as_object().into_iter().flatten() {
            process[name] = value.clone();
        }
        let file = bundle.path.join("process.json");
        fs::write(&file, process.to_string())?;
        let words = ["exec", "--process", &file.display().to_string(), "box"];
        bundle.hrun(&words).run()
    };
    let same = exec(json!({}))?.exits(0)?;
    // Programs of root get what they can get.
    let killer = "0000000000000020";
    ensure!(same.lines() == [killer, killer, "5"], "{}", same.describe());
    // CAP_FLY is of a kernel to come.
    let sets = json!(["CAP_SYS_ADMIN", "CAP_FLY"]);
    let more = exec(json!({"oomScoreAdj": 9, "capabilities":
        {"bounding": sets, "effective": sets, "permitted": sets}}))?
    .exits(0)?;
    let admin = "0000000000200000";
    ensure!(more.lines() == [admin, admin, "9"], "{}", more.describe());
    bundle.hrun(&["delete", "--force", "box"]).run()?.exits(0)?;
    bundle.is_gone()
}

fn what_no_guest_can_have_is_refused_by_its_property(case: &Case) -> Result<()> {
    let socket = case.path("socket");
    let _listener = UnixListener::bind(&socket)?;
    let socket = socket.display().to_string();
    let bind = |target: &str, source: &str| json!([mount(target, "bind", source, &["bind"])]);
    let device = json!([{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}]);
    let mapping = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    let cases = [
        (
            "/mounts",
            bind("/run/docker.sock", &socket),
            "mounts[0].source",
        ),
        (
            "/mounts",
            bind("/proc/sys", "/etc"),
            "mounts[0].destination",
        ),
        (
            "/mounts",
            json!([mount("/x", "hugetlbfs", "x", &[])]),
            "mounts[0].type",
        ),
        (
            "/mounts",
            json!([mount("/x", "bind", "/etc", &["idmap"])]),
            "mounts[0].idmap",
        ),
        ("/linux/devices", device, "linux.devices[0]"),
        ("/linux/uidMappings", mapping, "linux.uidMappings[0]"),
        ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt"),
        (
            "/linux/namespaces",
            json!([{"type": "pid", "path": "/proc/1/ns/pid"}]),
            "linux.namespaces[0].path",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/s"}),
            "linux.seccomp.listenerPath",
        ),
    ];
    for (pointer, value, property) in cases {
        let _ = fs::remove_dir_all(case.path("bundle"));
        let outcome = run(case, "true", |config| {
            let (parent, name) = pointer.rsplit_once('/').unwrap_or_default();
            if let Some(parent) = config.pointer_mut(parent) {
                parent[name] = value;
            }
        })?;
        ensure!(
            outcome.status.code() == Some(1) && outcome.stderr.contains(property),
            "{property}: {}",
            outcome.describe()
        );
    }
    Ok(())
}
