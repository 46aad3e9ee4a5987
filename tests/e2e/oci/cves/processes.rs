//! What starts processes: the binary that does it, and the descriptors it has.

use super::*;

pub(super) fn tests() -> Vec<Test> {
    crate::tests![
        cve_2019_5736_the_binary_that_starts_processes_is_out_of_their_reach,
        cve_2024_21626_no_working_directory_is_behind_a_descriptor,
        cve_2024_21626_no_descriptor_of_the_host_gets_into_a_container,
    ]
    .into()
}

/// The program that sets a container's processes up must neither run as one nor be written by one.
fn cve_2019_5736_the_binary_that_starts_processes_is_out_of_their_reach(case: &Case) -> Result<()> {
    let host = Host::of(case)?;
    let plant = |root: &Path| -> Result<()> {
        // What is looked at on the host is an ordinary program.
        program(&root.join("proc/self/exe"), "#!/bin/sh\n")?;
        program(&root.join("evil"), "#!/proc/self/exe\n")?;
        link(root, "bin/entry", "/proc/self/exe")
    };
    let entries = ["/proc/self/exe", "/evil", "/bin/entry"];
    for entry in entries {
        let outcome = run(case, "", |root, config| {
            config["process"]["args"] = json!([entry]);
            plant(root)
        })?;
        ensure!(
            outcome.stderr.to_lowercase().contains("permission denied"),
            "{entry}: {}",
            outcome.describe()
        );
    }
    // Whoever appears beside it is written to.
    let script = "trap 'exit 4' TERM; echo ready
        while :; do for exe in /proc/[0-9]*/exe; do
            [ $exe -ef /bin/busybox ] && continue
            echo $exe >>/tried; (echo x >>$exe) 2>/dev/null && echo $exe >>/written
        done; done";
    let root = case.path("bundle/rootfs");
    for names in [
        &["CAP_KILL"][..],
        &["CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"],
    ] {
        let bundle = hostile(case, script, |root, config| {
            rights(config, names);
            plant(root)
        })?;
        bundle.ready()?;
        for _ in 0..4 {
            bundle.hrun(&["exec", "box", "true"]).run()?.exits(0)?;
        }
        for entry in entries {
            let outcome = bundle.hrun(&["exec", "box", entry]).run()?;
            ensure!(
                outcome.stderr.to_lowercase().contains("permission denied"),
                "{entry}: {}",
                outcome.describe()
            );
        }
        let written = fs::read_to_string(root.join("written")).unwrap_or_default();
        ensure!(written.is_empty(), "with {names:?} it wrote to {written}");
        bundle.delete()?.exits(0)?;
        bundle.is_gone()?;
    }
    host.is_unchanged()
}

fn cve_2024_21626_no_working_directory_is_behind_a_descriptor(case: &Case) -> Result<()> {
    let host = Host::of(case)?;
    let script = "pwd; ls -a; cat ../../../../../../etc/passwd";
    let refused = |outcome: &Outcome, cwd: &str| -> Result<()> {
        ensure!(
            outcome.status.code().is_some_and(|code| code != 0) && outcome.text().is_empty(),
            "{cwd}: {}",
            outcome.describe()
        );
        Ok(())
    };
    for number in 3..=9 {
        let direct = format!("/proc/self/fd/{number}");
        for cwd in [direct.as_str(), "/way"] {
            let outcome = run(case, script, |root, config| {
                config["process"]["cwd"] = json!(cwd);
                link(root, "way", &direct)
            })?;
            refused(&outcome, cwd)?;
        }
    }
    let bundle = hostile(case, PATIENT, |root, _| {
        link(root, "way", "/proc/self/fd")?;
        link(root, "init", "/proc/1/fd")
    })?;
    bundle.ready()?;
    for number in 0..=20 {
        for way in ["/proc/self/fd", "/way", "/init"] {
            let cwd = format!("{way}/{number}");
            let words = ["exec", "--cwd", &cwd, "box", "sh", "-c", script];
            refused(&bundle.hrun(&words).run()?, &cwd)?;
        }
    }
    bundle.delete()?.exits(0)?;
    bundle.is_gone()?;
    host.is_unchanged()
}

fn cve_2024_21626_no_descriptor_of_the_host_gets_into_a_container(case: &Case) -> Result<()> {
    let host = Host::of(case)?;
    let bundle = hostile(case, "ls /proc/1/fd; true", |_, _| Ok(()))?;
    let path = bundle.path.display().to_string();
    let (out, err) = (bundle.path.join("out"), bundle.path.join("err"));
    // As from an engine that leaks every descriptor it has.
    let leaking = |words: &[&str], streams: &str| -> Result<Outcome> {
        let canary = host.canary.display().to_string();
        let script = format!(
            "d={canary}; exec 3<$d 4<$d/dir 5<$d 6<$d/file 7>>$d/file 8</ 9</etc/passwd {streams}\n\
             exec \"$0\" \"$@\""
        );
        let hrun = case.built().hrun().display().to_string();
        let all = ["-c", &script, &hrun];
        case.with("/bin/sh", all.iter().chain(words)).run()
    };
    leaking(&["run", "--bundle", &path, "box"], "")?
        .exits(0)?
        .prints("0\n1\n2\n")?;

    let script = format!("ls /proc/1/fd; {PATIENT}");
    let bundle = hostile(case, &script, |_, _| Ok(()))?;
    let streams = format!(">{} 2>{}", out.display(), err.display());
    leaking(&["create", "--bundle", &path, "box"], &streams)?.exits(0)?;
    leaking(&["start", "box"], "")?.exits(0)?;
    eventually("the script", Duration::from_secs(60), || {
        bundle.said("out").contains("ready").then_some(())
    })?;
    ensure!(
        bundle.said("out") == "0\n1\n2\nready\n",
        "{}",
        bundle.said("out")
    );
    let words = [
        "exec",
        "box",
        "sh",
        "-c",
        "ls /proc/$$/fd; ls /proc/1/fd; true",
    ];
    leaking(&words, "")?
        .exits(0)?
        .prints("0\n1\n2\n0\n1\n2\n")?;
    // Nor do those of the host keep one that a hole could lead to.
    for pid in [bundle.pid()?, case.vmm()?.pid] {
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let open = fs::read_link(entry?.path()).unwrap_or_default();
            ensure!(
                !open.starts_with(&host.canary) && open != Path::new("/etc/passwd"),
                "process {pid} has {} open",
                open.display()
            );
        }
    }
    bundle.delete()?.exits(0)?;
    bundle.is_gone()?;
    host.is_unchanged()
}
