//! What podman and docker are used for; their command lines are alike.

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::engine::{Engine, Feature, IMAGE, Kind};

pub(crate) fn features(kind: Kind) -> Vec<Feature> {
    let feature = |name, check| Feature { name, check };
    let mut features = vec![
        feature("run: kernel, status", run as fn(&Engine) -> Result<()>),
        feature("run -i: streams apart", streams),
        feature("run -it: terminal", terminal),
        feature("run: no such program", missing),
        feature("run -d, logs -f, wait", background),
        feature("exec: in the VM", exec),
        feature("exec -it: terminal", exec_terminal),
        feature("kill", kill),
        feature("stop: TERM, then KILL", stop),
        feature("restart", restart),
        feature("pause, unpause", pause),
        feature("top", top),
        feature("stats", stats),
        feature("cp, both ways", cp),
        feature("-v, also :ro", volumes),
        feature("--tmpfs", tmpfs),
        feature("--read-only", read_only),
        feature("--user", user),
        feature("--workdir, --env", identity),
        feature("--cap-drop, no-new-privileges", rights),
        feature("--memory, --cpus", limits),
        feature("--init", init),
        feature("--restart on-failure", restart_policy),
        feature("--health-cmd", health),
        feature("build", build),
        feature("network and ipc of another", shared),
    ];
    if kind == Kind::Podman {
        features.push(feature("pod of two", pod));
    }
    features
}

/// A script that says "ready" and ends with 4 at TERM.
const PATIENT: &str = "trap 'exit 4' TERM; echo ready; while :; do sleep 1; done";

impl Engine {
    fn shell(&self, options: &[&str], script: &str) -> Result<crate::command::Done> {
        let mut args = vec!["run", "--net=none"];
        args.extend(options);
        args.extend([IMAGE, "sh", "-c", script]);
        self.run(&args)
    }

    /// A container called "box" in the background, whose script has said that it is ready.
    fn ready(&self, options: &[&str]) -> Result<()> {
        let mut all = vec!["--detach", "--name", "box"];
        all.extend(options);
        self.shell(&all, PATIENT)?.exits(0)?;
        self.until("ready", || Ok(self.run(&["logs", "box"])?.stdout))
    }

    fn until(&self, word: &str, mut look: impl FnMut() -> Result<String>) -> Result<()> {
        let mut seen = String::new();
        for _ in 0..300 {
            seen = look()?;
            if seen.contains(word) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(200));
        }
        anyhow::bail!("no {word:?} in {seen:?}");
    }

    fn inspect(&self, format: &str) -> Result<String> {
        let words = ["inspect", "--format", format, "box"];
        Ok(self.run(&words)?.exits(0)?.stdout.trim().to_owned())
    }

    /// The kernel of a container is its own, or the host's.
    fn has_right_kernel(&self, text: &str) -> Result<()> {
        ensure!(text.contains("-hrun") == self.is_hrun(), "kernel {text:?}");
        Ok(())
    }
}

fn run(engine: &Engine) -> Result<()> {
    let done = engine.shell(&["--rm"], "uname -r; exit 3")?.exits(3)?;
    engine.has_right_kernel(&done.stdout)
}

fn streams(engine: &Engine) -> Result<()> {
    let words = [
        "run",
        "--rm",
        "-i",
        "--net=none",
        IMAGE,
        "sh",
        "-c",
        "cat; echo oops >&2",
    ];
    let done = engine
        .run_with(&words, "from here\n")?
        .exits(0)?
        .prints("from here\n")?;
    ensure!(done.stderr.contains("oops"), "{}", done.describe());
    Ok(())
}

fn terminal(engine: &Engine) -> Result<()> {
    let words = [
        "run",
        "--rm",
        "-it",
        "--net=none",
        IMAGE,
        "sh",
        "-c",
        "tty; exit 9",
    ];
    engine
        .run_at_terminal(&words)?
        .exits(9)?
        .says(&["/dev/pts/0\r"])?;
    Ok(())
}

fn missing(engine: &Engine) -> Result<()> {
    let run = |program| engine.run(&["run", "--rm", "--net=none", IMAGE, program]);
    run("no-such-program")?.exits(127)?;
    run("/etc")?.exits(126)?;
    Ok(())
}

fn background(engine: &Engine) -> Result<()> {
    let options = ["--detach", "--name", "box"];
    engine
        .shell(&options, "echo one; sleep 2; echo two; exit 5")?
        .exits(0)?;
    engine
        .run(&["logs", "--follow", "box"])?
        .exits(0)?
        .prints("one\ntwo\n")?;
    engine.run(&["wait", "box"])?.exits(0)?.prints("5\n")?;
    Ok(())
}

fn exec(engine: &Engine) -> Result<()> {
    engine.ready(&["--env", "A=1"])?;
    let script = "uname -r; echo $A; exit 6";
    let done = engine.run(&["exec", "box", "sh", "-c", script])?.exits(6)?;
    engine.has_right_kernel(&done.stdout)?;
    done.says(&["\n1\n"])?;
    let id = || engine.run(&["exec", "box", "cat", "/proc/sys/kernel/random/boot_id"]);
    let (first, second) = (id()?.exits(0)?.stdout, id()?.exits(0)?.stdout);
    let host = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    ensure!(
        first == second && (first != host) == engine.is_hrun(),
        "{first} {second} {host}"
    );
    Ok(())
}

fn exec_terminal(engine: &Engine) -> Result<()> {
    engine.ready(&[])?;
    let words = ["exec", "-it", "box", "sh", "-c", "tty; exit 8"];
    engine
        .run_at_terminal(&words)?
        .exits(8)?
        .says(&["/dev/pts/0\r"])?;
    Ok(())
}

fn kill(engine: &Engine) -> Result<()> {
    engine.ready(&[])?;
    engine.run(&["kill", "--signal", "TERM", "box"])?.exits(0)?;
    engine.run(&["wait", "box"])?.exits(0)?.prints("4\n")?;
    engine.run(&["rm", "box"])?.exits(0)?;
    engine.ready(&[])?;
    engine.run(&["kill", "box"])?.exits(0)?;
    engine.run(&["wait", "box"])?.exits(0)?.prints("137\n")?;
    Ok(())
}

fn stop(engine: &Engine) -> Result<()> {
    engine.ready(&[])?;
    engine.run(&["stop", "--time", "30", "box"])?.exits(0)?;
    ensure!(engine.inspect("{{.State.ExitCode}}")? == "4");
    engine.run(&["rm", "box"])?.exits(0)?;
    let options = ["--detach", "--name", "box"];
    engine
        .shell(&options, "trap '' TERM; sleep 1000")?
        .exits(0)?;
    engine.run(&["stop", "--time", "1", "box"])?.exits(0)?;
    ensure!(engine.inspect("{{.State.ExitCode}}")? == "137");
    Ok(())
}

fn restart(engine: &Engine) -> Result<()> {
    engine.ready(&[])?;
    engine
        .run(&["exec", "box", "sh", "-c", "echo kept > /kept"])?
        .exits(0)?;
    engine.run(&["restart", "--time", "30", "box"])?.exits(0)?;
    engine
        .run(&["exec", "box", "cat", "/kept"])?
        .exits(0)?
        .prints("kept\n")?;
    Ok(())
}

fn pause(engine: &Engine) -> Result<()> {
    engine.ready(&[])?;
    engine.run(&["pause", "box"])?.exits(0)?;
    ensure!(engine.inspect("{{.State.Status}}")? == "paused");
    engine.run(&["unpause", "box"])?.exits(0)?;
    ensure!(engine.inspect("{{.State.Status}}")? == "running");
    engine.run(&["exec", "box", "true"])?.exits(0)?;
    Ok(())
}

fn top(engine: &Engine) -> Result<()> {
    engine.ready(&[])?;
    let done = engine.run(&["top", "box"])?.exits(0)?;
    let lines = done.stdout.lines().count();
    // Nobody else's processes.
    ensure!((2..10).contains(&lines), "{lines} lines");
    Ok(())
}

fn stats(engine: &Engine) -> Result<()> {
    engine.ready(&[])?;
    engine
        .run(&["stats", "--no-stream", "box"])?
        .exits(0)?
        .says(&["MEM USAGE", "box"])?;
    Ok(())
}

fn cp(engine: &Engine) -> Result<()> {
    engine.ready(&[])?;
    let file = engine.path("copied");
    fs::write(&file, "from the host\n")?;
    let path = file.display().to_string();
    engine.run(&["cp", &path, "box:/copied"])?.exits(0)?;
    engine
        .run(&["exec", "box", "cat", "/copied"])?
        .exits(0)?
        .prints("from the host\n")?;
    engine
        .run(&["exec", "box", "sh", "-c", "echo back > /back"])?
        .exits(0)?;
    engine.run(&["cp", "box:/back", &path])?.exits(0)?;
    ensure!(fs::read_to_string(&file)? == "back\n");
    Ok(())
}

fn volumes(engine: &Engine) -> Result<()> {
    let dir = engine.path("volume");
    fs::create_dir_all(&dir)?;
    let (rw, ro) = (
        format!("{}:/a", dir.display()),
        format!("{}:/b:ro", dir.display()),
    );
    let script = "echo x > /a/file && cat /b/file; echo y > /b/other || echo refused";
    let done = engine.shell(&["--rm", "-v", &rw, "-v", &ro], script)?;
    done.exits(0)?.prints("x\nrefused\n")?;
    ensure!(fs::read_to_string(dir.join("file"))? == "x\n");
    Ok(())
}

fn tmpfs(engine: &Engine) -> Result<()> {
    let script = "grep ' /scratch ' /proc/mounts; echo x > /scratch/x && cat /scratch/x";
    let options = ["--rm", "--tmpfs", "/scratch:size=1m"];
    engine
        .shell(&options, script)?
        .exits(0)?
        .says(&["tmpfs", "size=1024k", "\nx\n"])?;
    Ok(())
}

fn read_only(engine: &Engine) -> Result<()> {
    let script = "echo x > /x || echo refused; echo y > /dev/shm/y && echo fine";
    engine
        .shell(&["--rm", "--read-only"], script)?
        .exits(0)?
        .prints("refused\nfine\n")?;
    Ok(())
}

fn user(engine: &Engine) -> Result<()> {
    let script = "id -u; id -g";
    engine
        .shell(&["--rm", "--user", "7:8"], script)?
        .exits(0)?
        .prints("7\n8\n")?;
    Ok(())
}

fn identity(engine: &Engine) -> Result<()> {
    let options = ["--rm", "--workdir", "/tmp", "--env", "A=1"];
    engine
        .shell(&options, "pwd; echo $A")?
        .exits(0)?
        .prints("/tmp\n1\n")?;
    Ok(())
}

fn rights(engine: &Engine) -> Result<()> {
    let options = [
        "--rm",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
    ];
    let script = "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status";
    let words = ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"];
    engine.shell(&options, script)?.exits(0)?.says(&words)?;
    Ok(())
}

fn limits(engine: &Engine) -> Result<()> {
    let options = ["--rm", "--memory", "300m", "--cpus", "2"];
    let script = "nproc; grep MemTotal /proc/meminfo";
    let done = engine.shell(&options, script)?.exits(0)?;
    let exact = done.stdout.starts_with("2\n") && done.stdout.contains(" 307200 kB");
    ensure!(exact || !engine.is_hrun(), "{}", done.describe());
    Ok(())
}

fn init(engine: &Engine) -> Result<()> {
    let done = engine
        .shell(&["--rm", "--init"], "cat /proc/1/comm; exit 2")?
        .exits(2)?;
    ensure!(!done.stdout.starts_with("sh"), "{}", done.describe());
    Ok(())
}

fn restart_policy(engine: &Engine) -> Result<()> {
    let options = ["--detach", "--name", "box", "--restart", "on-failure:1"];
    engine.shell(&options, "echo once; exit 3")?.exits(0)?;
    engine.until("once\nonce\n", || Ok(engine.run(&["logs", "box"])?.stdout))
}

fn health(engine: &Engine) -> Result<()> {
    // podman needs systemd's timers to look by itself.
    engine.ready(&[
        "--health-cmd",
        "test -e /healthy",
        "--health-interval",
        "1s",
    ])?;
    engine
        .run(&["exec", "box", "touch", "/healthy"])?
        .exits(0)?;
    if engine.kind == Kind::Podman {
        engine.run(&["healthcheck", "run", "box"])?.exits(0)?;
        return Ok(());
    }
    engine.until("healthy", || {
        let health = engine.inspect("{{.State.Health.Status}}")?;
        Ok(health.replace("unhealthy", "ill"))
    })
}

fn build(engine: &Engine) -> Result<()> {
    let dir = engine.path("build");
    fs::create_dir_all(&dir)?;
    let text = format!("FROM {IMAGE}\nRUN uname -r > /kernel\nCMD [\"cat\", \"/kernel\"]\n");
    fs::write(dir.join("Dockerfile"), text)?;
    let dir = dir.display().to_string();
    let mut words = vec!["build", "--network", "none", "--tag", "localhost/built"];
    if engine.kind == Kind::Podman {
        words.extend(["--isolation", "oci"]);
    }
    words.push(&dir);
    engine.run(&words)?.exits(0)?;
    let done = engine
        .run(&["run", "--rm", "--net=none", "localhost/built"])?
        .exits(0)?;
    engine.has_right_kernel(&done.stdout)
}

fn shared(engine: &Engine) -> Result<()> {
    let serve = "echo ready; nc -l -p 7000 -e echo hello; sleep 1000";
    let options = ["--detach", "--name", "box", "--ipc", "shareable"];
    engine.shell(&options, serve)?.exits(0)?;
    engine.until("ready", || Ok(engine.run(&["logs", "box"])?.stdout))?;
    let script = "nc 127.0.0.1 7000 < /dev/null";
    let words = [
        "run",
        "--rm",
        "--net=container:box",
        "--ipc=container:box",
        IMAGE,
        "sh",
        "-c",
        script,
    ];
    engine.run(&words)?.exits(0)?.prints("hello\n")?;
    Ok(())
}

fn pod(engine: &Engine) -> Result<()> {
    let infra = ["pod", "create", "--name", "pod", "--infra-image", IMAGE];
    let infra = [&infra[..], &["--infra-command", "sleep 1000", "--net=none"]].concat();
    engine.run(&infra)?.exits(0)?;
    let run = |script: &str| {
        let words = ["run", "--rm", "--pod", "pod", IMAGE, "sh", "-c", script];
        engine.run(&words)
    };
    let checked = run("uname -r")
        .and_then(|done| done.exits(0))
        .context("in the pod");
    engine.run(&["pod", "rm", "--force", "--time", "0", "pod"])?;
    let kernel = checked?.stdout;
    engine.has_right_kernel(&kernel)
}
