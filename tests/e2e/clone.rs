//! Clones of one template: each differs where it must, and time goes on in all of them.

use std::{collections::HashSet, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use tests::{Case, Outcome, Test};

use crate::template::{own_templates, remove_templates};

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        clones_differ_where_they_must,
        a_timer_of_the_template_fires_in_each_clone,
    ]
    .into()
}

/// Prints what getrandom(2) gives, and the context identifier of the VM.
const SOURCE: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <linux/vm_sockets.h>

int main(void)
{
    unsigned char bytes[32];
    unsigned int cid;

    if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
        return 1;
    for (unsigned int i = 0; i < sizeof bytes; i++)
        printf("%02x", bytes[i]);
    if (ioctl(open("/dev/vsock", O_RDONLY), IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid))
        return 2;
    printf("\n%u\n", cid);
    return 0;
}
"#;

/// Runs a program that makes something for a test.
fn make(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{command:?} does not run"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn clones_differ_where_they_must(case: &Case) -> Result<()> {
    let clones = if crate::full() { 100 } else { 8 };
    let source = case.path("values.c");
    fs::write(&source, SOURCE)?;
    let program = case.path("values");
    let gcc = ["-static", "-Os", "-Wall", "-Werror", "-o"];
    make(Command::new("gcc").args(gcc).args([&program, &source]))?;
    let script = "mknod /dev/vsock c 10 $(awk '$2 == \"vsock\" { print $1 }' /proc/misc); /values
        head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
        cat /etc/machine-id; hostname; cat /proc/sys/kernel/random/boot_id; mktemp -u";
    let volume = format!("{}:/values:ro", program.display());
    let mut seen = HashSet::new();
    for clone in 0..clones {
        let outcome = case
            .run(["--start", "template", "-v", &volume])
            .args(["busybox", "sh", "-c", script])
            .run()?
            .exits(0)?;
        let lines = outcome.lines();
        let lengths: Vec<_> = [0, 2, 3].map(|line| lines[line].len()).into();
        ensure!(lines.len() == 7 && lengths == [64, 64, 32], "{lines:?}");
        for line in lines {
            ensure!(seen.insert(line.clone()), "clone {clone} repeats {line}");
        }
    }
    Ok(())
}

/// Arms a timer before the agent is started, and says when it fired. From a file system of its own: the
/// agent closes the first one for programs and devices.
const INIT: &str = "#!/busybox sh
/busybox mkdir /timer
/busybox mount -t tmpfs timer /timer
/busybox mkdir /timer/proc
/busybox mount -t proc proc /timer/proc
/busybox mknod /timer/kmsg c 1 11
/busybox cp /busybox /timer/busybox
now() { read up idle </timer/proc/uptime; echo $up; }
(armed=$(now); /timer/busybox sleep 5; echo \"timer $armed $(now)\" >/timer/kmsg) &
exec /agent
";

/// The usual initramfs, with an init that arms a timer before it executes the agent.
fn initramfs_with_a_timer(case: &Case) -> Result<PathBuf> {
    let dir = case.path("initramfs");
    fs::create_dir(&dir)?;
    let usual = case.built().initramfs();
    let extract = format!("cpio --quiet -i <'{}' && mv init agent", usual.display());
    make(Command::new("sh").args(["-c", &extract]).current_dir(&dir))?;
    fs::write(dir.join("init"), INIT)?;
    let busybox = case.built().image("busybox");
    ensure!(busybox.exists(), "{} is missing", busybox.display());
    let pack =
        "chmod 755 init && cp /bin/busybox . && find . | cpio --quiet -o -H newc >../timer.cpio";
    make(Command::new("sh").args(["-c", pack]).current_dir(&dir))?;
    Ok(case.path("timer.cpio"))
}

fn a_timer_of_the_template_fires_in_each_clone(case: &Case) -> Result<()> {
    let clones = if crate::full() { 20 } else { 2 };
    own_templates(case)?;
    let initramfs = initramfs_with_a_timer(case)?;
    let created = case
        .hrun(["template", "create"])
        .env("HRUN_INITRAMFS", &initramfs);
    created.run()?.exits(0)?;
    let script = "cut -d' ' -f1 /proc/uptime; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do
        dmesg | grep -o 'timer [0-9. ]*' && break; sleep 1; cut -d' ' -f1 /proc/uptime; done";
    for clone in 0..clones {
        let outcome = case
            .run(["--start", "template", "busybox", "sh", "-c", script])
            .env("HRUN_INITRAMFS", &initramfs)
            .run()?
            .exits(0)?;
        fired_sensibly(&outcome)
            .with_context(|| format!("clone {clone}: {}", outcome.describe()))?;
    }
    remove_templates(case)
}

/// The last line says when the timer was armed and when it fired, those before it what time it was.
fn fired_sensibly(outcome: &Outcome) -> Result<()> {
    let mut lines = outcome.lines();
    let timer = lines.pop().context("nothing was printed")?;
    let [armed, fired] = timer
        .strip_prefix("timer ")
        .context("it did not fire")?
        .split(' ')
        .map(str::parse::<f64>)
        .collect::<Result<Vec<_>, _>>()?[..]
    else {
        anyhow::bail!("two times were expected");
    };
    let times: Vec<f64> = lines
        .iter()
        .map(|line| line.parse())
        .collect::<Result<_, _>>()?;
    let started = times.first().context("no time was printed")?;
    ensure!(armed < *started, "it was armed in the clone");
    ensure!(times.is_sorted(), "the clock went backwards");
    // Not before its time, and not when the clone's time had passed it by long.
    // On a busy machine who waits for it may be late.
    ensure!((5.0..20.0).contains(&(fired - armed)), "{}", fired - armed);
    Ok(())
}
