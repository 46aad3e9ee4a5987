//! What containerd is used for, by its own client.

use std::{fs, thread, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    command::Done,
    engine::{Engine, Feature, IMAGE},
};

pub(crate) fn features() -> Vec<Feature> {
    let feature = |name, check| Feature { name, check };
    vec![
        feature("run: kernel, status", run as fn(&Engine) -> Result<()>),
        feature("run -i: streams apart", streams),
        feature("run -it: terminal", terminal),
        feature("run: no such program", missing),
        feature("exec: in the VM", exec),
        feature("exec -it: terminal", exec_terminal),
        feature("kill", kill),
        feature("pause, unpause", pause),
        feature("top", top),
        feature("stats", stats),
        feature("-v, also :ro", volumes),
        feature("--read-only", read_only),
        feature("--workdir, --env", identity),
        feature("--memory, --cpus", limits),
    ]
}

const PATIENT: &str = "trap 'exit 4' TERM; while :; do sleep 1; done";

impl Engine {
    fn ctr_ready(&self) -> Result<()> {
        let words = ["box", "sh", "-c", PATIENT];
        self.ctr_run(&["--detach", "--env", "A=1"], &words)?
            .exits(0)?;
        Ok(())
    }

    fn ctr_shell(&self, options: &[&str], script: &str) -> Result<Done> {
        let options: Vec<_> = ["--rm"].iter().chain(options).copied().collect();
        self.ctr_run(&options, &["box", "sh", "-c", script])
    }

    fn status(&self) -> Result<String> {
        let listed = self.run(&["tasks", "ls"])?.exits(0)?.stdout;
        let line = listed.lines().find(|line| line.starts_with("box"));
        let word = line.and_then(|line| line.split_whitespace().nth(2));
        Ok(word.unwrap_or_default().to_owned())
    }
}

fn run(engine: &Engine) -> Result<()> {
    let done = engine.ctr_shell(&[], "uname -r; exit 3")?.exits(3)?;
    ensure!(
        done.stdout.contains("-hrun") == engine.is_hrun(),
        "{}",
        done.describe()
    );
    Ok(())
}

fn streams(engine: &Engine) -> Result<()> {
    // ctr does not pass the end of its input on, whatever the runtime.
    let done = engine
        .ctr_shell(&[], "echo out; echo oops >&2")?
        .exits(0)?
        .prints("out\n")?;
    ensure!(done.stderr.contains("oops"), "{}", done.describe());
    Ok(())
}

fn terminal(engine: &Engine) -> Result<()> {
    let program = engine.program();
    let words = [
        "run",
        "--rm",
        "--tty",
        "--runc-binary",
        &program,
        IMAGE,
        "box",
    ];
    let words = [&words[..], &["sh", "-c", "tty; exit 9"]].concat();
    engine
        .run_at_terminal(&words)?
        .exits(9)?
        .says(&["/dev/pts/0\r"])?;
    Ok(())
}

fn missing(engine: &Engine) -> Result<()> {
    let done = engine.ctr_run(&["--rm"], &["box", "no-such-program"])?;
    let told = done.stderr.contains("executable file not found in $PATH");
    ensure!(done.code != 0 && told, "{}", done.describe());
    Ok(())
}

fn exec(engine: &Engine) -> Result<()> {
    engine.ctr_ready()?;
    let words = [
        "tasks",
        "exec",
        "--exec-id",
        "e",
        "box",
        "sh",
        "-c",
        "uname -r; echo $A; exit 6",
    ];
    let done = engine.run(&words)?.exits(6)?.says(&["\n1\n"])?;
    ensure!(
        done.stdout.contains("-hrun") == engine.is_hrun(),
        "{}",
        done.describe()
    );
    Ok(())
}

fn exec_terminal(engine: &Engine) -> Result<()> {
    engine.ctr_ready()?;
    let words = [
        "tasks",
        "exec",
        "--tty",
        "--exec-id",
        "e",
        "box",
        "sh",
        "-c",
        "tty; exit 8",
    ];
    engine
        .run_at_terminal(&words)?
        .exits(8)?
        .says(&["/dev/pts/0\r"])?;
    Ok(())
}

fn kill(engine: &Engine) -> Result<()> {
    engine.ctr_ready()?;
    engine
        .run(&["tasks", "kill", "--signal", "KILL", "box"])?
        .exits(0)?;
    for _ in 0..100 {
        if engine.status()? == "STOPPED" {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(100));
    }
    anyhow::bail!("it is {}", engine.status()?);
}

fn pause(engine: &Engine) -> Result<()> {
    engine.ctr_ready()?;
    engine.run(&["tasks", "pause", "box"])?.exits(0)?;
    ensure!(engine.status()? == "PAUSED");
    engine.run(&["tasks", "resume", "box"])?.exits(0)?;
    ensure!(engine.status()? == "RUNNING");
    Ok(())
}

fn top(engine: &Engine) -> Result<()> {
    engine.ctr_ready()?;
    let done = engine.run(&["tasks", "ps", "box"])?.exits(0)?;
    ensure!(
        (2..10).contains(&done.stdout.lines().count()),
        "{}",
        done.describe()
    );
    Ok(())
}

fn stats(engine: &Engine) -> Result<()> {
    engine.ctr_ready()?;
    engine
        .run(&["tasks", "metrics", "box"])?
        .exits(0)?
        .says(&["memory.usage_in_bytes"])?;
    Ok(())
}

fn volumes(engine: &Engine) -> Result<()> {
    let dir = engine.path("volume");
    fs::create_dir_all(&dir)?;
    let mount = |to: &str, how: &str| {
        format!(
            "type=bind,src={},dst={to},options=rbind:{how}",
            dir.display()
        )
    };
    let (rw, ro) = (mount("/a", "rw"), mount("/b", "ro"));
    let script = "echo x > /a/file && cat /b/file; echo y > /b/other || echo refused";
    let done = engine.ctr_shell(&["--mount", &rw, "--mount", &ro], script)?;
    done.exits(0)?.prints("x\nrefused\n")?;
    Ok(())
}

fn read_only(engine: &Engine) -> Result<()> {
    let script = "echo x > /x || echo refused";
    engine
        .ctr_shell(&["--read-only"], script)?
        .exits(0)?
        .prints("refused\n")?;
    Ok(())
}

fn identity(engine: &Engine) -> Result<()> {
    let options = ["--cwd", "/tmp", "--env", "A=1"];
    let script = "pwd; echo $A";
    engine
        .ctr_shell(&options, script)?
        .exits(0)?
        .prints("/tmp\n1\n")?;
    Ok(())
}

fn limits(engine: &Engine) -> Result<()> {
    let options = ["--memory-limit", "314572800", "--cpus", "2"];
    let done = engine
        .ctr_shell(&options, "nproc; grep MemTotal /proc/meminfo")?
        .exits(0)?;
    let exact = done.stdout.starts_with("2\n") && done.stdout.contains(" 307200 kB");
    ensure!(exact || !engine.is_hrun(), "{}", done.describe());
    Ok(())
}
