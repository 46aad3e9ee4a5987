//! What a container finds around it: environment, user, file systems, devices, clock, randomness.

use std::{
    collections::BTreeSet,
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use tests::{Case, Test};

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        the_environment_is_the_images_and_the_options,
        the_working_directory_is_made,
        a_user_by_name_has_groups_and_home,
        a_user_may_be_numbers,
        an_unknown_user_is_named,
        the_host_name_is_set,
        limits_are_set,
        rights_are_given_and_taken,
        the_usual_file_systems_are_mounted,
        the_usual_devices_work,
        the_clock_is_right,
        every_vm_has_its_own_randomness,
    ]
    .into()
}

fn the_environment_is_the_images_and_the_options(case: &Case) -> Result<()> {
    let file = case.path("env");
    fs::write(&file, "# comment\nFROM_FILE=a b\nBOTH=file\nFROM_HOST\n").context("env file")?;
    let file = file.to_str().context("a plain path")?;
    let outcome = case
        .run([
            "-e",
            "BOTH=option",
            "-e",
            "HOST_TOO",
            "-e",
            "EMPTY=",
            "--env-file",
            file,
        ])
        .args(["busybox", "env"])
        .env("FROM_HOST", "from host")
        .env("HOST_TOO", "too")
        .env("NOT_ASKED_FOR", "secret")
        .run()?
        .exits(0)?;
    let got: BTreeSet<String> = outcome.lines().into_iter().collect();
    for expected in [
        "FROM_FILE=a b",
        "BOTH=option",
        "FROM_HOST=from host",
        "HOST_TOO=too",
        "EMPTY=",
        "HOME=/root",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ] {
        ensure!(
            got.contains(expected),
            "no {expected:?} in {}",
            outcome.describe()
        );
    }
    ensure!(!outcome.text().contains("secret"), "{}", outcome.describe());
    Ok(())
}

fn the_working_directory_is_made(case: &Case) -> Result<()> {
    case.shell("pwd").run()?.prints("/\n")?;
    case.run(["-w", "/made/for/this", "busybox", "pwd"])
        .run()?
        .prints("/made/for/this\n")?;
    Ok(())
}

fn a_user_by_name_has_groups_and_home(case: &Case) -> Result<()> {
    let script = "id -u; id -g; id -G; echo $HOME; touch /etc/passwd 2>/dev/null || echo refused";
    case.run(["-u", "app", "busybox", "sh", "-c", script])
        .run()?
        .prints("1000\n1000\n1000 29 50\n/home/app\nrefused\n")?;
    Ok(())
}

fn a_user_may_be_numbers(case: &Case) -> Result<()> {
    let script = "id -u; id -g; id -G";
    for (user, expected) in [
        ("4321:8765", "4321\n8765\n8765\n"),
        ("4321", "4321\n0\n0\n"),
        ("app:staff", "1000\n50\n50\n"),
    ] {
        case.run(["-u", user, "busybox", "sh", "-c", script])
            .run()?
            .prints(expected)
            .with_context(|| format!("user {user}"))?;
    }
    Ok(())
}

fn an_unknown_user_is_named(case: &Case) -> Result<()> {
    case.run(["-u", "stranger", "busybox", "true"])
        .run()?
        .fails_saying(&["stranger"])?;
    Ok(())
}

fn the_host_name_is_set(case: &Case) -> Result<()> {
    let outcome = case
        .run([
            "--hostname",
            "box.example",
            "busybox",
            "sh",
            "-c",
            "hostname; cat /etc/hostname /etc/hosts",
        ])
        .run()?
        .exits(0)?;
    let text = outcome.text();
    ensure!(
        text.starts_with("box.example\nbox.example\n"),
        "{}",
        outcome.describe()
    );
    ensure!(text.contains("localhost"), "{}", outcome.describe());
    Ok(())
}

fn limits_are_set(case: &Case) -> Result<()> {
    case.run([
        "--ulimit",
        "nofile=123:456",
        "busybox",
        "sh",
        "-c",
        "ulimit -Sn; ulimit -Hn",
    ])
    .run()?
    .prints("123\n456\n")?;
    Ok(())
}

fn the_usual_file_systems_are_mounted(case: &Case) -> Result<()> {
    let outcome = case
        .run(["busybox", "cat", "/proc/mounts"])
        .run()?
        .exits(0)?;
    let mounts: BTreeSet<(String, String)> = outcome
        .lines()
        .iter()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
        })
        .collect();
    for (target, kind) in [
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/sys/fs/cgroup", "cgroup2"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/dev/mqueue", "mqueue"),
    ] {
        ensure!(
            mounts.contains(&(target.into(), kind.into())),
            "no {kind} on {target} in {}",
            outcome.describe()
        );
    }
    Ok(())
}

fn the_usual_devices_work(case: &Case) -> Result<()> {
    let script = r#"
        set -e
        for device in null zero full random urandom tty ptmx; do [ -c /dev/$device ]; done
        echo gone > /dev/null
        head -c 4 /dev/zero | od -An -tx1
        ! echo x 2>/dev/null > /dev/full
        [ "$(head -c 8 /dev/urandom | wc -c)" = 8 ]
        stat -c %a /dev/null /dev/shm
        echo through | cat /dev/stdin
        echo standard > /dev/stdout
        echo shared > /dev/shm/file && cat /dev/shm/file
        echo fd | cat /dev/fd/0
    "#;
    case.shell(script)
        .run()?
        .prints(" 00 00 00 00\n666\n1777\nthrough\nstandard\nshared\nfd\n")?;
    Ok(())
}

fn the_clock_is_right(case: &Case) -> Result<()> {
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map(|time| time.as_secs())
    };
    let before = now()?;
    let outcome = case.run(["busybox", "date", "+%s"]).run()?.exits(0)?;
    let after = now()?;
    let inside: u64 = outcome
        .text()
        .trim()
        .parse()
        .context("date prints a number")?;
    ensure!(
        (before..=after).contains(&inside),
        "the guest says {inside}, the host {before} before and {after} after"
    );
    Ok(())
}

fn every_vm_has_its_own_randomness(case: &Case) -> Result<()> {
    let mut seen = BTreeSet::new();
    for _ in 0..2 {
        let script = "cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; \
                      head -c 16 /dev/urandom | od -An -tx1";
        let lines = case.shell(script).run()?.exits(0)?.lines();
        ensure!(lines.len() == 3, "expected three lines, got {lines:?}");
        seen.extend(lines);
    }
    ensure!(seen.len() == 6, "something repeats: {seen:?}");
    Ok(())
}

fn rights_are_given_and_taken(case: &Case) -> Result<()> {
    let profile = case.path("profile.json");
    let no_mkdir = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 18}]}"#;
    std::fs::write(&profile, no_mkdir)?;
    let seccomp = format!("seccomp={}", profile.display());
    case.run(["--security-opt", &seccomp])
        .args(["--security-opt", "no-new-privileges"])
        .args(["--cap-add", "NET_ADMIN", "--cap-drop", "KILL"])
        .args(["--sysctl", "net.core.somaxconn=77", "--oom-score-adj", "-7"])
        .args([
            "--group-add",
            "24",
            "--domainname",
            "lan",
            "busybox",
            "sh",
            "-c",
        ])
        .args([
            "grep -o 'CapEff.*\\|NoNewPrivs.*' /proc/self/status | tr -d '\t'
            cat /proc/sys/net/core/somaxconn /proc/self/oom_score_adj; id -G; mkdir /new 2>&1
            cat /proc/sys/kernel/domainname",
        ])
        .run()?
        .prints(
            "CapEff:00000000a80435db\nNoNewPrivs:1\n77\n-7\n0 24\n\
             mkdir: can't create directory '/new': Invalid cross-device link\nlan\n",
        )?;
    for (option, value) in [
        ("--cap-add", "FLY"),
        ("--security-opt", "apparmor=mine"),
        ("--security-opt", "seccomp=/no/such/file"),
        ("--sysctl", "kernel.msgmax"),
    ] {
        case.run([option, value, "busybox", "true"])
            .run()?
            .fails_saying(&[value.trim_start_matches("seccomp=")])?;
    }
    Ok(())
}
