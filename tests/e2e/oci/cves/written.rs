//! Links in the place of what a runtime writes to.

use super::*;

pub(super) fn tests() -> Vec<Test> {
    crate::tests![
        cve_2025_52881_what_is_written_to_proc_goes_to_proc,
        cve_2025_24965_nothing_is_written_through_links_of_a_bundle,
        cve_2025_24965_nothing_is_written_through_links_of_an_image,
    ]
    .into()
}

fn cve_2025_52881_what_is_written_to_proc_goes_to_proc(case: &Case) -> Result<()> {
    let host = Host::of(case)?;
    let ask = |config: &mut Value| {
        config["linux"]["sysctl"] = json!({"net.ipv4.ping_group_range": "0 5"});
        config["process"]["oomScoreAdj"] = json!(77);
        config["process"]["apparmorProfile"] = json!("confined");
        rights(config, &["CAP_SYS_ADMIN"]);
    };
    // A /proc that nobody prepared says what became of it.
    let script = "mkdir /fresh; mount -t proc proc /fresh
        cat /fresh/sys/net/ipv4/ping_group_range /fresh/1/oom_score_adj
        cat /fresh/sys/kernel/core_pattern; grep -c ' /fresh/.* \\| /proc/' /proc/self/mountinfo";
    let done = "0\t5\n77\ncore\n";
    for target in host.ways("").into_iter().chain(["/false".into()]) {
        let outcome = run(case, script, |root, config| {
            ask(config);
            link(root, "proc", &target)?;
            for file in [PARAMETER, "self/oom_score_adj", "self/attr/exec"] {
                link(root, &format!("false/{file}"), host.canary.join("file"))?;
            }
            Ok(())
        })?;
        ensure!(outcome.text().starts_with(done), "{}", outcome.describe());
    }
    // Nothing is mounted over it, or in it.
    let outcome = run(case, script, |_, config| {
        config["mounts"] = json!([mount("/proc", "bind", &host.canary)]);
        Ok(())
    })?;
    ensure!(
        outcome.status.code() == Some(1) && outcome.stderr.contains("mounts[0].destination"),
        "{}",
        outcome.describe()
    );
    for over in [
        mount("/proc", "tmpfs", Path::new("tmpfs")),
        mount("/way", "bind", &host.canary),
        mount("/way", "tmpfs", Path::new("tmpfs")),
    ] {
        let outcome = run(case, script, |root, config| {
            ask(config);
            link(root, "way", "/proc/sys/net")?;
            config["mounts"] = json!([mount("/proc", "proc", Path::new("proc")), over]);
            Ok(())
        })?;
        ensure!(
            outcome.status.code() == Some(1) && outcome.stderr.contains("nothing can be mounted"),
            "{}",
            outcome.describe()
        );
    }
    // Nor where somebody with the same volume turns a directory into a link meanwhile.
    let shared = case.path("shared");
    fs::create_dir(&shared)?;
    let makings: [&Making; 2] = [&|path| fs::create_dir(path), &|path| {
        symlink("/proc/sys/net", path)
    }];
    for _ in 0..4 {
        let race = || {
            run(case, script, |_, config| {
                ask(config);
                let mounts = config["mounts"].as_array_mut().context("mounts")?;
                mounts.push(mount("/shared", "bind", &shared));
                mounts.push(mount("/shared/at", "bind", &host.canary.join("sys/net")));
                Ok(())
            })
        };
        let outcome = flip(&shared.join("at"), makings, race)?;
        let fine = outcome.text() == format!("{done}0\n");
        ensure!(fine || outcome.text().is_empty(), "{}", outcome.describe());
    }
    host.is_unchanged()
}

/// All that a runtime may have a reason to write, make or mount on, as links out of the image.
const WRITTEN: [(&str, &str); 12] = [
    (".krun_config.json", "file"),
    (".hrun.json", "file"),
    ("etc/hostname", "file"),
    ("etc/hosts", "file"),
    ("etc/machine-id", "new"),
    ("etc/mtab", "file"),
    ("etc/passwd", "passwd"),
    ("etc/resolv.conf", "new"),
    ("dev", "dev"),
    ("sys", "sys"),
    ("work", "dir"),
    ("data", "data"),
];

fn cve_2025_24965_nothing_is_written_through_links_of_a_bundle(case: &Case) -> Result<()> {
    let host = Host::of(case)?;
    let given = case.path("given");
    fs::write(&given, "given\n")?;
    let script = "pwd; echo $HOME; cat /etc/hosts /etc/resolv.conf; echo x >/data/new/file";
    for way in 0..2 {
        for whole in [false, true] {
            let outcome = run(case, script, |root, config| {
                for (at, to) in WRITTEN {
                    if !(whole && at.starts_with("etc/")) {
                        link(root, at, &host.ways(to)[way])?;
                    }
                }
                if whole {
                    link(root, "etc", &host.ways("")[way])?;
                }
                config["process"]["cwd"] = json!("/work/deep/down");
                let mounts = config["mounts"].as_array_mut().context("mounts")?;
                mounts.extend([
                    mount("/etc/hosts", "bind", &given),
                    mount("/etc/resolv.conf", "bind", &given),
                    mount("/data/new", "tmpfs", Path::new("tmpfs")),
                ]);
                config["linux"]["devices"] =
                    json!([{"path": "/work/node", "type": "c", "major": 1, "minor": 3}]);
                Ok(())
            })?;
            ensure!(
                outcome.text().ends_with("/deep/down\n/\ngiven\ngiven\n"),
                "{}",
                outcome.describe()
            );
            host.is_unchanged()?;
        }
    }
    Ok(())
}

fn cve_2025_24965_nothing_is_written_through_links_of_an_image(case: &Case) -> Result<()> {
    let host = Host::of(case)?;
    let given = case.path("given");
    fs::create_dir(&given)?;
    let volume = format!("{}:/data/new", given.display());
    for way in 0..2 {
        let root = case.path(&format!("image{way}"));
        fs::create_dir_all(root.join("bin"))?;
        fs::copy("/bin/busybox", root.join("bin/busybox"))?;
        for name in ["sh", "cat", "pwd", "echo"] {
            symlink("busybox", root.join("bin").join(name))?;
        }
        for (at, to) in WRITTEN {
            link(&root, at, &host.ways(to)[way])?;
        }
        let archive = case.path("root.tar").display().to_string();
        let dir = root.display().to_string();
        case.with(
            "tar",
            ["--create", "--file", &archive, "--directory", &dir, "."],
        )
        .run()?
        .exits(0)?;
        let image = format!("evil:{way}");
        case.hrun(["import", &archive, &image]).run()?.exits(0)?;
        for overlay in ["host", "guest"] {
            let script = "echo $HOME; echo x >/data/new/file; cat /etc/hostname || true";
            let options = [
                "--rootfs-overlay",
                overlay,
                "--hostname",
                "victim",
                "-v",
                &volume,
            ];
            let words = [&options[..], &[&image, "/bin/sh", "-c", script]].concat();
            let outcome = case.run(words).run()?.exits(0)?;
            ensure!(outcome.text().starts_with("/\n"), "{}", outcome.describe());
            host.is_unchanged().context(overlay)?;
            // One to work in is made inside, or refused.
            let words = [
                "--rootfs-overlay",
                overlay,
                "-w",
                "/work/deep",
                &image,
                "/bin/pwd",
            ];
            let outcome = case.run(words).run()?;
            let made = outcome.text().ends_with("/deep\n");
            ensure!(
                made || outcome.stderr.contains("working directory"),
                "{}",
                outcome.describe()
            );
            host.is_unchanged().context(overlay)?;
        }
        case.hrun(["image", "rm", &image]).run()?.exits(0)?;
    }
    Ok(())
}
