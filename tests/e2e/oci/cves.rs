//! Known ways out of other runtimes, tried for real: hostile images and bundles, each test named
//! after the CVE whose pattern it repeats. The host's side is compared before and after: a tree
//! that nothing may touch, and the programs that a container could replace.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tests::{Case, Outcome, Test, eventually};

use super::{Bundle, PATIENT, receive_terminal};

pub(super) fn tests() -> Vec<Test> {
    crate::tests![
        cve_2019_5736_the_binary_that_starts_processes_is_out_of_their_reach,
        cve_2024_21626_no_working_directory_is_behind_a_descriptor,
        cve_2024_21626_no_descriptor_of_the_host_gets_into_a_container,
        cve_2025_31133_what_is_masked_is_masked_whatever_the_image_has_for_dev_null,
        cve_2025_52565_the_console_is_mounted_on_nothing_else,
        cve_2025_52881_what_is_written_to_proc_goes_to_proc,
        cve_2025_24965_nothing_is_written_through_links_of_a_bundle,
        cve_2025_24965_nothing_is_written_through_links_of_an_image,
    ]
    .into()
}

/// A kernel parameter that a container could use to have the kernel run a program of its choice.
const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// A kernel parameter that a bundle may set.
const PARAMETER: &str = "sys/net/ipv4/ping_group_range";

/// What of the host must be the same at the end.
struct Host<'a> {
    case: &'a Case<'a>,
    /// A tree that no container was given.
    canary: PathBuf,
    before: BTreeMap<PathBuf, String>,
}

impl<'a> Host<'a> {
    fn of(case: &'a Case<'a>) -> Result<Self> {
        let canary = case.path("canary");
        for dir in ["data", "dev", "dir", "sys/net/ipv4", "self/attr"] {
            fs::create_dir_all(canary.join(dir))?;
        }
        for (name, content) in [
            ("file", "canary\n"),
            ("dir/inner", "canary\n"),
            ("passwd", "root:x:0:0:root:/home/canary:/bin/sh\n"),
            (PARAMETER, "1\t0\n"),
            ("self/oom_score_adj", "0\n"),
            ("self/attr/exec", ""),
        ] {
            fs::write(canary.join(name), content)?;
        }
        let mut host = Self {
            case,
            canary,
            before: BTreeMap::new(),
        };
        host.before = host.now()?;
        Ok(host)
    }

    fn now(&self) -> Result<BTreeMap<PathBuf, String>> {
        let mut found = BTreeMap::new();
        let built = self.case.built();
        let files = [
            built.hrun(),
            built.vmm(),
            built.kernel(),
            built.initramfs(),
            CORE_PATTERN.into(),
        ];
        let mut todo: Vec<PathBuf> = files.into_iter().chain([self.canary.clone()]).collect();
        while let Some(path) = todo.pop() {
            let meta = fs::symlink_metadata(&path)?;
            let content = if meta.is_dir() {
                for entry in fs::read_dir(&path)? {
                    todo.push(entry?.path());
                }
                String::new()
            } else {
                format!("{:x}", Sha256::digest(fs::read(&path)?))
            };
            let seen = format!(
                "{:o} {}:{} inode {} changed at {} {content}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.ino(),
                meta.mtime_nsec()
            );
            found.insert(path, seen);
        }
        Ok(found)
    }

    fn is_unchanged(&self) -> Result<()> {
        let now = self.now()?;
        // A file of /proc has the time at which it is looked at.
        let differs = |path: &&PathBuf| {
            let [before, now] = [&self.before, &now].map(|tree| tree.get(*path));
            match path.starts_with("/proc") {
                true => before.map(|text| text.rsplit_once(' ')) != now.map(|t| t.rsplit_once(' ')),
                false => before != now,
            }
        };
        let changed: Vec<_> = self
            .before
            .keys()
            .chain(now.keys())
            .filter(differs)
            .collect();
        ensure!(changed.is_empty(), "changed on the host: {changed:?}");
        Ok(())
    }

    /// Where a link must lead to get at something of the canary's: by its path on the host, and by
    /// more steps up than there are directories.
    fn ways(&self, name: &str) -> [PathBuf; 2] {
        let path = self.canary.join(name);
        let up = Path::new("../../../../../../../../../../../..");
        [
            path.clone(),
            up.join(path.strip_prefix("/").unwrap_or(&path)),
        ]
    }
}

/// Makes a link in an image, in the place of whatever is there.
fn link(root: &Path, at: &str, target: impl AsRef<Path>) -> Result<()> {
    let at = root.join(at);
    fs::create_dir_all(at.parent().context("no parent")?)?;
    symlink(target, &at).with_context(|| at.display().to_string())
}

fn program(path: &Path, content: &str) -> Result<()> {
    fs::create_dir_all(path.parent().context("no parent")?)?;
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// A bundle whose image and configuration `edit` makes hostile.
fn hostile<'a>(
    case: &'a Case<'a>,
    script: &str,
    edit: impl FnOnce(&Path, &mut Value) -> Result<()>,
) -> Result<Bundle<'a>> {
    let path = case.path("bundle");
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    let mut edited = Ok(());
    let bundle = Bundle::new(case, script, |config| {
        edited = edit(&path.join("rootfs"), config);
    })?;
    edited?;
    Ok(bundle)
}

/// Runs such a bundle to its end.
fn run(
    case: &Case,
    script: &str,
    edit: impl FnOnce(&Path, &mut Value) -> Result<()>,
) -> Result<Outcome> {
    let bundle = hostile(case, script, edit)?;
    let path = bundle.path.display().to_string();
    let outcome = bundle.hrun(&["run", "--bundle", &path, "box"]).run()?;
    bundle.is_gone()?;
    Ok(outcome)
}

fn mount(destination: &str, kind: &str, source: &Path) -> Value {
    let options: &[&str] = if kind == "bind" {
        &["rbind", "rw"]
    } else {
        &[]
    };
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}

fn rights(config: &mut Value, names: &[&str]) {
    let sets = ["bounding", "effective", "permitted"].map(|set| (set.to_owned(), json!(names)));
    config["process"]["capabilities"] = Value::Object(sets.into_iter().collect());
}

/// One of the things that a path may be made.
type Making = dyn Fn(&Path) -> io::Result<()> + Sync;

/// Changes a path back and forth between two makings of it, as long as it is not dropped.
fn flip<T>(path: &Path, makings: [&Making; 2], while_it: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for make in makings.iter().cycle() {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                // Others hold it busy now and then.
                let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
                let _ = make(path);
                thread::sleep(Duration::from_millis(1));
            }
        });
        let result = while_it();
        done.store(true, Ordering::Relaxed);
        result
    })
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
