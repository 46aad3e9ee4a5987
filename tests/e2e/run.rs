//! `hrun run`: what a command in a container sees of its options, and how it ends.

use anyhow::{Context, Result, ensure};
use tests::{Case, Test};

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        the_kernel_inside_is_ours_and_the_exit_status_the_apps,
        the_short_form_runs_an_image,
        every_exit_status_arrives,
        a_missing_program_is_127,
        a_program_that_cannot_be_executed_is_126,
        a_signal_that_ends_the_app_is_128_more,
        arguments_arrive_as_they_are,
        a_named_container_has_its_name_to_itself,
        two_containers_run_side_by_side,
        an_entrypoint_can_be_replaced,
        processes_that_are_left_end_with_the_app,
        changes_stay_in_the_container,
        a_read_only_root_cannot_be_written,
        the_timeline_says_where_the_time_went,
    ]
    .into()
}

fn the_kernel_inside_is_ours_and_the_exit_status_the_apps(case: &Case) -> Result<()> {
    let outcome = case
        .shell("uname -r; id -u; cat /proc/cmdline; exit 7")
        .run()?
        .exits(7)?;
    let lines = outcome.lines();
    ensure!(lines.len() == 3, "{}", outcome.describe());
    ensure!(lines[0].starts_with("6.12."), "{}", outcome.describe());
    ensure!(lines[1] == "0", "{}", outcome.describe());
    let host = std::fs::read_to_string("/proc/cmdline").context("/proc/cmdline")?;
    ensure!(lines[2] != host.trim(), "{}", outcome.describe());
    Ok(())
}

fn the_short_form_runs_an_image(case: &Case) -> Result<()> {
    case.hrun(["busybox", "echo", "hi"]).run()?.prints("hi\n")?;
    // As with docker, a container that was not to be removed is still there.
    let names = case
        .hrun(["ps", "--all", "--quiet"])
        .run()?
        .exits(0)?
        .lines();
    ensure!(names.len() == 1, "expected one container, found {names:?}");
    case.hrun(["rm", &names[0]]).run()?.exits(0)?;
    Ok(())
}

fn every_exit_status_arrives(case: &Case) -> Result<()> {
    for code in [0, 1, 125, 255] {
        case.shell(&format!("exit {code}")).run()?.exits(code)?;
    }
    Ok(())
}

fn a_missing_program_is_127(case: &Case) -> Result<()> {
    let outcome = case.run(["busybox", "no-such-program"]).run()?.exits(127)?;
    ensure!(
        outcome.stderr.contains("no-such-program"),
        "{}",
        outcome.describe()
    );
    let outcome = case
        .run(["busybox", "/no/such/program"])
        .run()?
        .exits(127)?;
    ensure!(
        outcome.stderr.contains("/no/such/program"),
        "{}",
        outcome.describe()
    );
    Ok(())
}

fn a_program_that_cannot_be_executed_is_126(case: &Case) -> Result<()> {
    for program in ["/etc/passwd", "/etc"] {
        let outcome = case.run(["busybox", program]).run()?.exits(126)?;
        ensure!(outcome.stderr.contains(program), "{}", outcome.describe());
    }
    Ok(())
}

fn a_signal_that_ends_the_app_is_128_more(case: &Case) -> Result<()> {
    // The kernel's own signal: the first process of a container is deaf to most others.
    case.run([
        "--ulimit",
        "cpu=1",
        "busybox",
        "sh",
        "-c",
        "while :; do :; done",
    ])
    .run()?
    .exits(128 + 9)?;
    Ok(())
}

fn arguments_arrive_as_they_are(case: &Case) -> Result<()> {
    let many: Vec<String> = (0..500).map(|index| format!("argument-{index}")).collect();
    let odd = [
        "",
        " ",
        "two words",
        "'\"$HOME`",
        "line\nbreak",
        "größe",
        "-i",
        "--rm",
        "--",
    ];
    let args = [
        "busybox",
        "sh",
        "-c",
        r#"for a; do printf '<%s>' "$a"; done"#,
        "sh",
    ]
    .into_iter()
    .chain(odd)
    .chain(many.iter().map(String::as_str));
    let expected: String = odd
        .into_iter()
        .chain(many.iter().map(String::as_str))
        .map(|arg| format!("<{arg}>"))
        .collect();
    case.run(args).run()?.prints(&expected)?;
    Ok(())
}

fn a_named_container_has_its_name_to_itself(case: &Case) -> Result<()> {
    let first = case
        .run(["--name", "taken", "busybox", "sh", "-c", crate::PATIENT])
        .spawn()?;
    first.wait_for("ready")?;
    case.run(["--name", "taken", "busybox", "true"])
        .run()?
        .fails_saying(&["taken", "in use"])?;
    crate::end(first)?;
    // Free again.
    case.run(["--name", "taken", "busybox", "true"])
        .run()?
        .exits(0)?;
    Ok(())
}

fn two_containers_run_side_by_side(case: &Case) -> Result<()> {
    let script = "echo data > /file; echo ready; read -r line; cat /file; hostname";
    let start = |host: &str| {
        case.run(["-i", "--hostname", host, "busybox", "sh", "-c", script])
            .stdin_open()
            .spawn()
    };
    let (first, second) = (start("first")?, start("second")?);
    first.wait_for("ready")?;
    second.wait_for("ready")?;
    ensure!(
        case.vmms().len() == 2,
        "expected two VMMs: {:?}",
        case.vmms()
    );
    // Waiting closes standard input: read returns.
    first.wait()?.prints("ready\ndata\nfirst\n")?;
    second.wait()?.prints("ready\ndata\nsecond\n")?;
    Ok(())
}

fn an_entrypoint_can_be_replaced(case: &Case) -> Result<()> {
    case.run(["--entrypoint", "echo", "busybox", "one", "two"])
        .run()?
        .prints("one two\n")?;
    Ok(())
}

fn processes_that_are_left_end_with_the_app(case: &Case) -> Result<()> {
    let outcome = case.shell("sleep 1000 & exit 3").run()?.exits(3)?;
    // Well before the sleeper would have let go of its output.
    ensure!(outcome.took.as_secs() < 120, "{}", outcome.describe());
    Ok(())
}

fn changes_stay_in_the_container(case: &Case) -> Result<()> {
    let script =
        "echo changed > /etc/passwd; rm /bin/ls; mkdir /new; echo x > /new/file; ls /bin/ls";
    let outcome = case.shell(script).run()?;
    ensure!(outcome.status.code() != Some(0), "{}", outcome.describe());
    let outcome = case
        .shell("grep -c root:x:0 /etc/passwd; [ -e /bin/ls ] && [ ! -e /new ] && echo fresh")
        .run()?;
    outcome.prints("1\nfresh\n")?;
    Ok(())
}

fn a_read_only_root_cannot_be_written(case: &Case) -> Result<()> {
    let script = "touch /file 2>&1; mount -o remount,rw / 2>/dev/null; touch /file && echo wrote; \
                  echo x > /dev/shm/file && cat /dev/shm/file";
    let outcome = case
        .run(["--read-only", "busybox", "sh", "-c", script])
        .run()?
        .exits(0)?;
    let text = outcome.text();
    ensure!(
        text.contains("Read-only file system"),
        "{}",
        outcome.describe()
    );
    ensure!(
        !text.contains("wrote") && text.ends_with("x\n"),
        "{}",
        outcome.describe()
    );
    Ok(())
}

fn the_timeline_says_where_the_time_went(case: &Case) -> Result<()> {
    let outcome = case
        .run(["--timeline", "--start", "boot", "busybox", "echo", "hi"])
        .run()?
        .prints("hi\n")?;
    for word in ["kernel", "agent", "ms"] {
        ensure!(
            outcome.stderr.contains(word),
            "no {word:?} in {}",
            outcome.describe()
        );
    }
    let outcome = case
        .run(["--timeline=json", "busybox", "echo", "hi"])
        .run()?
        .prints("hi\n")?;
    serde_json::from_str::<serde_json::Value>(&outcome.stderr)
        .with_context(|| format!("no JSON on stderr: {}", outcome.describe()))?;
    Ok(())
}
