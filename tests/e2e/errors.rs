//! Whatever is wrong is said in one clear sentence, with exit status 125 and nothing left behind.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use tests::{Case, Mounted, Store, Test};

pub(crate) fn tests() -> Vec<Test> {
    let without_vm = crate::tests![
        an_unknown_image_is_named,
        a_missing_kernel_is_named,
        a_kernel_that_is_none_is_refused,
        a_missing_initramfs_is_named,
        missing_parts_are_named,
        no_kvm_is_said_plainly,
        kvm_that_does_not_work_is_said_plainly,
        options_that_cannot_be_are_refused,
        memory_that_is_too_little_is_refused,
    ];
    let disk = crate::tests![a_full_disk_is_reported_when_an_image_is_loaded];
    let full = crate::tests![
        a_full_disk_reaches_the_app,
        a_full_state_directory_is_reported,
    ];
    without_vm
        .into_iter()
        .map(Test::without_vm)
        .chain(
            disk.into_iter()
                .map(|test| test.on(Store::Empty).without_vm()),
        )
        .chain(full)
        .collect()
}

fn an_unknown_image_is_named(case: &Case) -> Result<()> {
    case.run(["no-such-image", "true"])
        .run()?
        .fails_saying(&["no-such-image", "hrun image load"])?;
    // The short form: the first word is no command, so it is an image.
    case.hrun(["no-such-image"])
        .run()?
        .fails_saying(&["no-such-image"])?;
    Ok(())
}

fn a_missing_kernel_is_named(case: &Case) -> Result<()> {
    case.run(["busybox", "true"])
        .env("HRUN_KERNEL", "/nonexistent")
        .run()?
        .fails_saying(&["kernel", "HRUN_KERNEL", "/nonexistent"])?;
    Ok(())
}

fn a_kernel_that_is_none_is_refused(case: &Case) -> Result<()> {
    let kernel = case.path("kernel");
    fs::write(&kernel, "no kernel\n".repeat(1000))?;
    case.run(["busybox", "true"])
        .env("HRUN_KERNEL", &kernel)
        .run()?
        .fails_saying(&["kernel"])?;
    Ok(())
}

fn a_missing_initramfs_is_named(case: &Case) -> Result<()> {
    case.run(["busybox", "true"])
        .env("HRUN_INITRAMFS", "/nonexistent")
        .run()?
        .fails_saying(&["initramfs", "/nonexistent"])?;
    Ok(())
}

fn missing_parts_are_named(case: &Case) -> Result<()> {
    let alone = case.path("hrun");
    fs::copy(case.built().hrun(), &alone)?;
    case.with(&alone, ["run", "--rm", "busybox", "true"])
        .run()?
        .fails_saying(&["hrun-vmm"])?;
    Ok(())
}

/// hrun in a mount namespace in which a script has changed something.
fn in_other_mounts(case: &Case, script: &str) -> Result<tests::Outcome> {
    let hrun = case.built().hrun();
    let script = format!("{script}\nexec \"$0\" run --rm busybox true");
    let hrun = hrun.to_str().context("a plain path")?;
    case.with("unshare", ["--mount", "sh", "-ec", &script, hrun])
        .run()
}

fn no_kvm_is_said_plainly(case: &Case) -> Result<()> {
    let dev = case.path("dev");
    fs::create_dir(&dev)?;
    let script = format!(
        "cd {dev}; mount -t tmpfs dev .
         for device in null zero full random urandom tty; do
             touch $device; mount --bind /dev/$device $device
         done
         mount --rbind . /dev",
        dev = dev.display()
    );
    in_other_mounts(case, &script)?.fails_saying(&["/dev/kvm"])?;
    Ok(())
}

fn kvm_that_does_not_work_is_said_plainly(case: &Case) -> Result<()> {
    in_other_mounts(case, "mount --bind /dev/null /dev/kvm")?.fails_saying(&["KVM"])?;
    Ok(())
}

fn options_that_cannot_be_are_refused(case: &Case) -> Result<()> {
    let long = "x".repeat(300);
    for args in [
        &["--memory", "much", "busybox"][..],
        &["--cpus", "0", "busybox"],
        &["--cpus", "1000", "busybox"],
        &["--cpus", "some", "busybox"],
        &["-v", "relative:target", "busybox"],
        &["-v", "/tmp", "busybox"],
        &["-e", "=value", "busybox"],
        &["--env-file", "/nonexistent", "busybox"],
        &["--name", "a/b", "busybox"],
        &["--hostname", &long, "busybox"],
        &["--no-such-option", "busybox"],
        &[],
    ] {
        let outcome = case.run(args).run()?.exits(125)?;
        ensure!(outcome.stdout.is_empty(), "{}", outcome.describe());
        ensure!(!outcome.stderr.is_empty(), "{}", outcome.describe());
        ensure!(
            !outcome.stderr.contains("panicked"),
            "{}",
            outcome.describe()
        );
    }
    Ok(())
}

fn memory_that_is_too_little_is_refused(case: &Case) -> Result<()> {
    case.run(["--memory", "1m", "busybox", "true"])
        .run()?
        .fails_saying(&["memory"])?;
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<String>> {
    let mut names: Vec<_> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

fn a_full_disk_is_reported_when_an_image_is_loaded(case: &Case) -> Result<()> {
    let small = Mounted::tmpfs(&case.path("small"), 1 << 20)?;
    let load = || {
        case.hrun(["image", "load"])
            .args([case.built().image("busybox/busybox")])
            .env("HRUN_STORE", small.path())
            .run()
    };
    load()?.is_refused_saying(&["full"])?;
    let left = |name: &str| -> Result<u64> {
        let outcome = case.with("du", ["-s", "-k", name]).run()?.exits(0)?;
        let text = outcome.text();
        Ok(text
            .split_ascii_whitespace()
            .next()
            .and_then(|size| size.parse().ok())
            .unwrap_or(0))
    };
    let path = small.path().to_str().context("a plain path")?;
    ensure!(
        left(path)? < 64,
        "a failed load left {} KiB: {:?}",
        left(path)?,
        entries(small.path())?
    );
    let outcome = case
        .hrun(["image", "ls", "--format", "json"])
        .env("HRUN_STORE", small.path())
        .run()?
        .exits(0)?;
    ensure!(outcome.text().trim() == "[]", "{}", outcome.describe());
    Ok(())
}

fn a_full_disk_reaches_the_app(case: &Case) -> Result<()> {
    let small = Mounted::tmpfs(&case.path("small"), 8 << 20)?;
    case.hrun(["image", "load"])
        .args([case.built().image("busybox/busybox")])
        .env("HRUN_STORE", small.path())
        .run()?
        .exits(0)?;
    let script = "dd if=/dev/zero of=/file bs=64k count=200; echo status=$?; rm /file; echo alive";
    let outcome = case
        .shell(script)
        .env("HRUN_STORE", small.path())
        .run()?
        .prints("status=1\nalive\n")?;
    ensure!(
        outcome.stderr.contains("No space left on device"),
        "{}",
        outcome.describe()
    );
    ensure!(
        entries(&small.path().join("containers"))?
            .iter()
            .all(|name| name.ends_with("lock")),
        "{:?}",
        entries(&small.path().join("containers"))?
    );
    Ok(())
}

fn a_full_state_directory_is_reported(case: &Case) -> Result<()> {
    let small = Mounted::tmpfs(&case.path("small"), 64 << 10)?;
    fs::write(small.path().join("full"), vec![0; 64 << 10]).or_else(|error| {
        // Some of it is the file system's own.
        (error.raw_os_error() == Some(28))
            .then_some(())
            .ok_or(error)
    })?;
    // A directory and a socket take no block there: either it works or it is said plainly.
    let outcome = case
        .run(["busybox", "true"])
        .env("HRUN_STATE", small.path())
        .run()?;
    if outcome.status.code() != Some(0) {
        outcome.fails_saying(&["No space left on device"])?;
    }
    Ok(())
}
