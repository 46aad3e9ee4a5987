//! Links in the place of devices.

use super::*;

pub(super) fn tests() -> Vec<Test> {
    crate::tests![
        cve_2025_31133_what_is_masked_is_masked_whatever_the_image_has_for_dev_null,
        cve_2025_52565_the_console_is_mounted_on_nothing_else,
    ]
    .into()
}

/// A directory of the host, to be mounted on `/dev`, with links in the place of devices.
fn false_devices(case: &Case) -> Result<PathBuf> {
    let dev = case.path("dev");
    if !dev.exists() {
        link(&dev, "null", CORE_PATTERN)?;
        link(&dev, "console", CORE_PATTERN)?;
        link(&dev, "pts/0", "/evil")?;
    }
    Ok(dev)
}

fn cve_2025_31133_what_is_masked_is_masked_whatever_the_image_has_for_dev_null(
    case: &Case,
) -> Result<()> {
    let host = Host::of(case)?;
    let script = "cat /secret /proc/timer_list; ls /hidden
        echo '|/evil' >/secret; cat /secret
        busybox stat -c '%F %t:%T' /secret /proc/timer_list
        cat /proc/sys/kernel/core_pattern; grep -c ' /proc/sys' /proc/self/mountinfo; true";
    for over in [false, true] {
        for target in [CORE_PATTERN, "/evil", "/none"] {
            let outcome = run(case, script, |root, config| {
                link(root, "dev/null", target)?;
                fs::write(root.join("evil"), "evil\n")?;
                fs::write(root.join("secret"), "secret\n")?;
                fs::create_dir(root.join("hidden"))?;
                fs::write(root.join("hidden/file"), "")?;
                let mut mounts = vec![mount("/proc", "proc", Path::new("proc"))];
                if over {
                    mounts.push(mount("/dev", "bind", &false_devices(case)?));
                }
                config["mounts"] = mounts.into();
                config["linux"]["maskedPaths"] = json!(["/secret", "/hidden", "/proc/timer_list"]);
                Ok(())
            })?;
            let masked = "character special file 1:3\n";
            outcome.prints(&format!("{masked}{masked}core\n0\n"))?;
        }
    }
    host.is_unchanged()
}

fn cve_2025_52565_the_console_is_mounted_on_nothing_else(case: &Case) -> Result<()> {
    let host = Host::of(case)?;
    let script = "{ tty; cat /proc/sys/kernel/core_pattern
        grep -c -e ' /proc/sys' -e ' /evil ' /proc/self/mountinfo; } >/result; true";
    // Gives what the container saw, if it was started at all.
    let start = |over: Option<&Path>| -> Result<Option<String>> {
        let bundle = hostile(case, script, |root, config| {
            link(root, "dev/console", CORE_PATTERN)?;
            link(root, "dev/pts/0", "/evil")?;
            fs::write(root.join("evil"), "evil\n")?;
            config["process"]["terminal"] = json!(true);
            let mounts = config["mounts"].as_array_mut().context("mounts")?;
            mounts.extend(over.map(|dev| mount("/dev", "bind", dev)));
            Ok(())
        })?;
        let socket = bundle.path.join("console");
        let listener = UnixListener::bind(&socket)?;
        let socket = socket.display().to_string();
        bundle.create(&["--console-socket", &socket])?.exits(0)?;
        let _terminal = receive_terminal(&listener)?;
        let started = bundle.hrun(&["start", "box"]).run()?;
        bundle.ends()?;
        bundle.delete()?.exits(0)?;
        bundle.is_gone()?;
        let result = fs::read_to_string(bundle.path.join("rootfs/result"));
        ensure!(
            started.status.success() == result.is_ok(),
            "{}",
            started.describe()
        );
        Ok(result.ok())
    };
    ensure!(start(None)? == Some("/dev/pts/0\ncore\n0\n".into()));
    let dev = false_devices(case)?;
    ensure!(start(Some(&dev))?.is_none(), "a link is no console");
    // With somebody who changes what it is while the container starts.
    let makings: [&Making; 2] = [&|path| fs::write(path, ""), &|path| {
        symlink(CORE_PATTERN, path)
    }];
    for _ in 0..4 {
        let seen = flip(&dev.join("console"), makings, || start(Some(&dev)))?;
        ensure!(
            seen.as_ref().is_none_or(|seen| seen.ends_with("core\n0\n")),
            "{seen:?}"
        );
    }
    host.is_unchanged()
}
