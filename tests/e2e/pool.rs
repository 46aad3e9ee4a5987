//! The warm pool: VMs that wait, claimed by containers, and a daemon that may die at any time.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tests::{Case, Invocation, Running, Test, eventually};

/// The class that `hrun run` asks for by default, as it is typed.
const CLASS: &str = "1x256m";

pub(crate) fn tests() -> Vec<Test> {
    let without_vm = crate::tests![
        without_a_daemon_there_is_no_pool,
        there_is_one_daemon_and_the_second_hears_which,
        a_daemon_that_is_told_to_end_leaves_nothing,
        a_new_daemon_takes_over_from_a_killed_one,
        sizes_that_cannot_be_are_refused,
    ];
    let with_vm = crate::tests![
        a_container_starts_in_a_vm_of_the_pool,
        vms_that_know_an_image_are_for_its_containers,
        a_container_of_another_kernel_gets_none,
        killing_the_daemon_ends_the_vms_that_wait_and_no_others,
        a_vm_that_dies_while_it_waits_is_replaced,
        an_operator_drains_and_resizes,
        what_is_asked_for_is_kept_from_then_on,
        a_claimed_vm_is_in_the_claimers_cgroups,
        many_starts_leave_the_daemon_as_it_was,
    ];
    without_vm
        .map(Test::without_vm)
        .into_iter()
        .chain(with_vm)
        .collect()
}

/// Starts a daemon and waits until it answers.
pub(crate) fn serve(case: &Case, options: &[&str]) -> Result<Running> {
    serve_by(case, case.hrun(["pool", "serve"]).args(options))
}

/// The same, with a command line of the caller's.
pub(crate) fn serve_by(case: &Case, daemon: Invocation) -> Result<Running> {
    // As long as the longest test with it.
    let mut daemon = daemon.timeout(Duration::from_secs(3600)).spawn()?;
    let answers = || {
        let ended = daemon.has_ended().unwrap_or(true);
        let answers = ended || UnixStream::connect(case.state().join("pool.sock")).is_ok();
        answers.then_some(ended)
    };
    if eventually("the daemon to answer", Duration::from_secs(30), answers)? {
        let outcome = daemon.wait()?;
        anyhow::bail!("the daemon has ended: {}", outcome.describe());
    }
    Ok(daemon)
}

fn status(case: &Case) -> Result<Value> {
    let outcome = case
        .hrun(["pool", "status", "--format", "json"])
        .run()?
        .exits(0)?;
    serde_json::from_str(&outcome.text()).with_context(|| outcome.describe())
}

/// A number of the class that `hrun run` asks for by default.
fn count(case: &Case, name: &str) -> Result<u64> {
    count_of(case, (1, 256), name)
}

/// A number of the class of so many CPUs and MiB of memory.
fn count_of(case: &Case, (cpus, mib): (u64, u64), name: &str) -> Result<u64> {
    let status = status(case)?;
    status["classes"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|kept| kept["class"]["cpus"] == cpus && kept["class"]["memory"] == mib << 20)
        .and_then(|kept| kept[name].as_u64())
        .with_context(|| format!("no {name} in {status}"))
}

/// Waits until so many VMs wait. The first of them has a template made.
pub(crate) fn wait_ready(case: &Case, wanted: u64) -> Result<()> {
    eventually("VMs to be ready", Duration::from_secs(200), || {
        (count(case, "ready").ok()? == wanted).then_some(())
    })
    .with_context(|| format!("{:?}", status(case)))
}

pub(crate) fn end(daemon: Running) -> Result<()> {
    daemon.signal(Signal::TERM)?;
    daemon.wait()?.exits(0)?;
    Ok(())
}

/// A container that takes its VM from this case's own pool or fails.
fn from_pool(case: &Case, words: &[&str]) -> tests::Invocation {
    of_own_pool(case.run(words.iter().copied()))
}

/// The same, with a command line of the caller's.
pub(crate) fn of_own_pool(container: Invocation) -> Invocation {
    container.env("HRUN_START", "pool").env("HRUN_POOL", "")
}

/// A container that takes its VM from this case's own pool if it has one.
fn with_pool(case: &Case, words: &[&str]) -> tests::Invocation {
    case.run(words.iter().copied())
        .env("HRUN_START", "auto")
        .env("HRUN_POOL", "")
}

fn without_a_daemon_there_is_no_pool(case: &Case) -> Result<()> {
    for command in ["status", "drain"] {
        let outcome = case.hrun(["pool", command]).run()?.exits(1)?;
        ensure!(
            outcome.stderr.contains("pool.sock") && outcome.stderr.contains("hint: "),
            "{}",
            outcome.describe()
        );
    }
    Ok(())
}

fn there_is_one_daemon_and_the_second_hears_which(case: &Case) -> Result<()> {
    let daemon = serve(case, &["--size", "0"])?;
    let outcome = case.hrun(["pool", "serve"]).run()?.exits(1)?;
    ensure!(
        outcome
            .stderr
            .contains(&format!("process {}", daemon.pid())),
        "{}",
        outcome.describe()
    );
    status(case).context("the first is there as before")?;
    end(daemon)
}

fn a_daemon_that_is_told_to_end_leaves_nothing(case: &Case) -> Result<()> {
    for signal in [Signal::TERM, Signal::INT] {
        let daemon = serve(case, &["--size", "0"])?;
        let socket = case.state().join("pool.sock");
        let mode = fs::metadata(&socket)?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{mode:o}");
        daemon.signal(signal)?;
        daemon.wait()?.exits(0)?;
        let litter = case.litter();
        ensure!(litter.is_empty(), "{litter:?}");
    }
    Ok(())
}

fn a_new_daemon_takes_over_from_a_killed_one(case: &Case) -> Result<()> {
    for _ in 0..3 {
        let daemon = serve(case, &["--size", "0"])?;
        daemon.signal(Signal::KILL)?;
        daemon.wait()?.dies_of(Signal::KILL)?;
        ensure!(case.state().join("pool.sock").exists());
        case.hrun(["pool", "status"]).run()?.exits(1)?;
    }
    let daemon = serve(case, &["--size", "0"])?;
    ensure!(status(case)?["pid"] == daemon.pid());
    end(daemon)
}

fn sizes_that_cannot_be_are_refused(case: &Case) -> Result<()> {
    let daemon = serve(case, &["--size", "0"])?;
    for (command, code) in [
        (&["resize", "1000000"][..], 1),
        (&["resize", "-1"], 2),
        (&["resize", "--class", "2", "1"], 2),
        (&["serve", "--class", "0x256m"], 2),
        (&["serve", "--memory-limit", "much"], 2),
    ] {
        case.hrun(["pool"])
            .args(command.iter().copied())
            .run()?
            .exits(code)?;
    }
    end(daemon)
}

fn vms_that_know_an_image_are_for_its_containers(case: &Case) -> Result<()> {
    case.hrun(["pool", "serve", "--image", "no-such-image"])
        .run()?
        .is_refused_saying(&["no-such-image"])?;
    let daemon = serve(case, &["--size", "1", "--image", "busybox"])?;
    wait_ready(case, 1)?;
    let outcome = from_pool(
        case,
        &["--timeline=json", "busybox", "cat", "/etc/hostname"],
    )
    .run()?
    .exits(0)?;
    ensure!(
        outcome.stderr.contains("one ready for the image"),
        "{}",
        outcome.describe()
    );
    ensure!(outcome.text().trim().len() == 12, "{}", outcome.describe());
    wait_ready(case, 1)?;
    let known = status(case)?["classes"][0]["class"]["image"].clone();
    ensure!(known.as_str().is_some_and(|id| id.len() == 64), "{known}");
    case.hrun(["pool", "resize", "--image", "busybox", "0"])
        .run()?
        .exits(0)?;
    wait_ready(case, 0)?;
    end(daemon)
}

fn a_container_starts_in_a_vm_of_the_pool(case: &Case) -> Result<()> {
    let daemon = serve(case, &["--size", "2"])?;
    wait_ready(case, 2)?;
    let waiting = case.vmms();
    let running = from_pool(case, &["busybox", "sh", "-c", crate::PATIENT]).spawn()?;
    running.wait_for("ready")?;
    ensure!(count(case, "claimed")? == 1 && count(case, "running")? == 1);
    wait_ready(case, 2)?;
    // Two that wait and one that runs, which was there before the container.
    let now = case.vmms();
    ensure!(now.len() == 3, "{now:?}");
    let before = now.iter().filter(|vmm| waiting.contains(vmm)).count();
    ensure!(before == 2, "{waiting:?} became {now:?}");
    crate::end(running)?;

    let outcome = from_pool(case, &["--timeline", "busybox", "echo", "hi"])
        .run()?
        .prints("hi\n")?;
    ensure!(outcome.stderr.contains("pool"), "{}", outcome.describe());
    eventually(
        "it is not counted any more",
        Duration::from_secs(20),
        || (count(case, "running").ok()? == 0).then_some(()),
    )?;
    end(daemon)?;
    case.no_processes()
}

fn a_container_of_another_kernel_gets_none(case: &Case) -> Result<()> {
    let daemon = serve(case, &["--size", "1"])?;
    wait_ready(case, 1)?;
    let kernel = case.path("vmlinux");
    fs::copy(case.built().kernel(), &kernel)?;
    // Another kernel by what it says, not only by its name.
    let mut bytes = fs::read(&kernel)?;
    bytes.push(0);
    fs::write(&kernel, bytes)?;
    let outcome = from_pool(case, &["busybox", "true"])
        .env("HRUN_KERNEL", &kernel)
        .run()?
        .exits(125)?;
    ensure!(
        outcome.stderr.contains("template"),
        "{}",
        outcome.describe()
    );
    ensure!(count(case, "missed")? == 1 && count(case, "ready")? == 1);
    end(daemon)
}

fn killing_the_daemon_ends_the_vms_that_wait_and_no_others(case: &Case) -> Result<()> {
    let size = if crate::full() { 20 } else { 3 };
    let daemon = serve(case, &["--size", &size.to_string()])?;
    wait_ready(case, size)?;
    let mut containers = Vec::new();
    for _ in 0..size {
        let running = from_pool(case, &["busybox", "sh", "-c", crate::PATIENT]).spawn()?;
        running.wait_for("ready")?;
        containers.push(running);
    }
    wait_ready(case, size)?;
    daemon.signal(Signal::KILL)?;
    daemon.wait()?.dies_of(Signal::KILL)?;
    eventually("those that waited to end", Duration::from_secs(20), || {
        (case.vmms().len() == containers.len()).then_some(())
    })?;

    let daemon = serve(case, &["--size", "1"])?;
    wait_ready(case, 1)?;
    from_pool(case, &["busybox", "echo", "next"])
        .run()?
        .prints("next\n")?;
    for running in containers {
        crate::end(running)?;
    }
    end(daemon)?;
    case.no_processes()
}

fn a_vm_that_dies_while_it_waits_is_replaced(case: &Case) -> Result<()> {
    let daemon = serve(case, &["--size", "1"])?;
    wait_ready(case, 1)?;
    let first = case.vmm()?;
    first.signal(Signal::KILL);
    eventually("another one to wait", Duration::from_secs(60), || {
        let other = case.vmms().into_iter().any(|vmm| vmm != first);
        (other && count(case, "ready").ok()? == 1).then_some(())
    })?;
    from_pool(case, &["busybox", "echo", "well"])
        .run()?
        .prints("well\n")?;
    end(daemon)
}

fn an_operator_drains_and_resizes(case: &Case) -> Result<()> {
    let daemon = serve(case, &["--class", CLASS, "--size", "2"])?;
    wait_ready(case, 2)?;
    case.hrun(["pool", "drain"]).run()?.exits(0)?;
    ensure!(case.vmms().is_empty(), "{:?}", case.vmms());
    from_pool(case, &["busybox", "true"]).run()?.exits(125)?;
    // Without the pool it goes as well.
    case.run(["busybox", "echo", "on"]).run()?.prints("on\n")?;

    case.hrun(["pool", "resize", "--class", CLASS, "1"])
        .run()?
        .exits(0)?;
    wait_ready(case, 1)?;
    let table = case.hrun(["pool", "status"]).run()?.exits(0)?;
    ensure!(
        table.text().contains("1 CPU, 256 MiB"),
        "{}",
        table.describe()
    );
    end(daemon)?;
    case.no_processes()
}

fn what_is_asked_for_is_kept_from_then_on(case: &Case) -> Result<()> {
    let daemon = serve(case, &["--size", "1"])?;
    let large = ["--cpus", "2", "--memory", "1g"];
    let run = |start: &str| {
        let script = "nproc; awk '/MemTotal/ { print $2 }' /proc/meminfo";
        case.run(["--timeline", "--start", start])
            .args(large)
            .args(["busybox", "sh", "-c", script])
            .env("HRUN_POOL", "")
            .run()?
            .prints("2\n1048576\n")
    };
    let first = run("auto")?;
    // Out of a smaller template, unless another test has had one made of this class.
    let learned = "; the pool keeps one of this class from now on)";
    let line = first.stderr.lines().find(|line| line.ends_with(learned));
    let ways = ["VM by grow (from ", "VM by template (there is one"];
    ensure!(
        line.is_some_and(|line| ways.iter().any(|way| line.starts_with(way))),
        "{}",
        first.describe()
    );
    eventually("one to be kept", Duration::from_secs(60), || {
        (count_of(case, (2, 1024), "ready").ok()? == 1).then_some(())
    })?;
    let second = run("pool")?;
    ensure!(
        second.stderr.contains("VM by pool"),
        "{}",
        second.describe()
    );
    end(daemon)
}

/// A control group beside ours, removed in the end.
struct Group(PathBuf);

impl Group {
    fn new(case: &Case) -> Result<Self> {
        let unified = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .map(PathBuf::from)
            .into_iter()
            .find(|path| path.join("cgroup.procs").exists())
            .context("there are no control groups of version 2")?;
        let name = case.store().display().to_string().replace('/', "-");
        let group = unified.join(format!("hrun{name}"));
        fs::create_dir(&group)?;
        Ok(Self(group))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Whoever was in it has ended by now.
        let _ = eventually("the group to be empty", Duration::from_secs(10), || {
            fs::remove_dir(&self.0).ok()
        });
    }
}

fn a_claimed_vm_is_in_the_claimers_cgroups(case: &Case) -> Result<()> {
    let group = Group::new(case)?;
    let daemon = serve(case, &["--size", "1"])?;
    fs::write(group.0.join("cgroup.procs"), daemon.pid().to_string())?;
    let groups = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup"));
    let own = groups(i32::try_from(std::process::id())?)?;
    // One that was loaded before the daemon was moved is of no use.
    for size in ["0", "1"] {
        case.hrun(["pool", "resize", "--class", CLASS, size])
            .run()?
            .exits(0)?;
    }
    wait_ready(case, 1)?;
    let waiting = case.vmm()?;
    ensure!(groups(waiting.pid)? != own, "it waits in our groups");
    let running = from_pool(case, &["busybox", "sh", "-c", crate::PATIENT]).spawn()?;
    running.wait_for("ready")?;
    ensure!(groups(waiting.pid)? == own, "{}", groups(waiting.pid)?);
    crate::end(running)?;
    end(daemon)
}

fn many_starts_leave_the_daemon_as_it_was(case: &Case) -> Result<()> {
    let rounds = if crate::full() { 1000 } else { 20 };
    let daemon = serve(case, &["--size", "2"])?;
    let memory = || -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kib.context("the daemon has no memory")?.parse()?)
    };
    let files = || -> Result<usize> {
        wait_ready(case, 2)?;
        eventually("every container to end", Duration::from_secs(20), || {
            (count(case, "running").ok()? == 0).then_some(())
        })?;
        Ok(fs::read_dir(format!("/proc/{}/fd", daemon.pid()))?.count())
    };
    with_pool(case, &["busybox", "true"]).run()?.exits(0)?;
    let before = files()?;
    let memory_before = memory()?;
    for _ in 0..rounds {
        with_pool(case, &["busybox", "true"]).run()?.exits(0)?;
    }
    let after = files()?;
    ensure!(after <= before, "{before} open files became {after}");
    // An allocator may keep some pages more; what each start leaked would be far more than these.
    let grown = memory()?.saturating_sub(memory_before);
    ensure!(grown <= 512, "{grown} KiB more than {memory_before}");
    let children = tests::processes::descendants(daemon.pid());
    ensure!(children.len() == 2, "{children:?}");
    end(daemon)?;
    case.no_processes()
}
