//! `hrun doctor`: what is wrong with this host, and what to do.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Built, Case, Test};

pub(crate) fn tests() -> Vec<Test> {
    let anywhere = crate::tests![
        a_program_can_read_it,
        a_missing_part_is_named_with_what_to_do,
        the_version_is_said,
    ];
    crate::tests![
        a_good_host_is_called_good,
        an_installed_hrun_finds_its_parts
    ]
    .into_iter()
    .chain(anywhere.map(Test::without_vm))
    .collect()
}

fn a_good_host_is_called_good(case: &Case) -> Result<()> {
    let outcome = case.hrun(["doctor"]).run()?.exits(0)?;
    let text = outcome.text();
    for word in [
        "/dev/kvm",
        "vmlinux",
        "initramfs",
        "hrun-vmm",
        "overlay",
        "memory",
        "cgroup",
    ] {
        ensure!(
            text.to_lowercase().contains(word),
            "no {word:?} in {}",
            outcome.describe()
        );
    }
    ensure!(
        text.contains("software") || text.contains("hardware"),
        "the kind of KVM is not said: {}",
        outcome.describe()
    );
    Ok(())
}

fn an_installed_hrun_finds_its_parts(case: &Case) -> Result<()> {
    let repository = Built::sources()
        .parent()
        .context("tests/ is in a directory")?;
    let repository = repository.to_str().context("a plain path")?;
    let root = case.path("root");
    let destdir = format!("DESTDIR={}", root.display());
    // What is to be installed is built already: with `-o build` make believes it.
    let install = [
        "-C",
        repository,
        "-o",
        "build",
        "install",
        "PREFIX=/usr",
        &destdir,
    ];
    case.with("make", install)
        .env("CARGO_TARGET_DIR", &case.built().target)
        .run()?
        .exits(0)?;
    let outcome = case
        .with(root.join("usr/bin/hrun"), ["doctor"])
        .run()?
        .exits(0)?;
    for part in [
        "usr/libexec/hrun/hrun-vmm",
        "usr/share/hrun/vmlinux",
        "usr/share/hrun/initramfs.cpio",
    ] {
        let path = root.join(part).display().to_string();
        ensure!(
            outcome.text().contains(&path),
            "no {path} in {}",
            outcome.describe()
        );
    }
    let units = root.join("usr/lib/systemd/system");
    for (unit, command) in [
        ("hrun-pool.service", "pool serve"),
        ("hrun-restart.service", "start --boot"),
    ] {
        let unit = std::fs::read_to_string(units.join(unit))
            .with_context(|| format!("{unit} is not installed"))?;
        let line = format!("\nExecStart=/usr/bin/hrun {command}");
        ensure!(unit.contains(&line) && !unit.contains('@'), "{unit}");
    }
    Ok(())
}

fn a_program_can_read_it(case: &Case) -> Result<()> {
    let outcome = case.hrun(["doctor", "--format", "json"]).run()?;
    serde_json::from_str::<Value>(&outcome.text()).with_context(|| outcome.describe())?;
    Ok(())
}

fn a_missing_part_is_named_with_what_to_do(case: &Case) -> Result<()> {
    let outcome = case
        .hrun(["doctor"])
        .env("HRUN_KERNEL", "/nonexistent")
        .run()?;
    ensure!(!outcome.status.success(), "{}", outcome.describe());
    ensure!(
        outcome.text().contains("/nonexistent"),
        "{}",
        outcome.describe()
    );
    ensure!(
        outcome.text().contains("HRUN_KERNEL"),
        "{}",
        outcome.describe()
    );
    Ok(())
}

fn the_version_is_said(case: &Case) -> Result<()> {
    let outcome = case.hrun(["--version"]).run()?.exits(0)?;
    ensure!(
        outcome.text().contains(env!("CARGO_PKG_VERSION")),
        "{}",
        outcome.describe()
    );
    Ok(())
}
