//! Clones of a small template that are made bigger: exactly as large as was asked for, usable to the
//! last page, and a template of their own or a boot where that cannot be.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use tests::{Case, Outcome, Test};

use crate::template::{own_templates, remove_templates, way};

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        a_class_without_a_template_grows_out_of_the_default_one,
        what_was_added_can_be_used,
        cpus_come_without_memory_and_memory_without_cpus,
        who_knows_the_image_grows_as_well,
        what_cannot_grow_is_refused_or_gets_a_template,
        a_guest_that_does_not_grow_makes_room_for_another,
    ]
    .into()
}

/// What the guest says of its size, as a script.
const SIZE: &str =
    "nproc; sed -n 's/^MemTotal: *//p' /proc/meminfo; cat /sys/devices/system/cpu/online";

/// Takes the shared templates away but for the default one.
fn with_default_template(case: &Case) -> Result<std::path::PathBuf> {
    let templates = own_templates(case)?;
    case.hrun(["template", "create"]).run()?.exits(0)?;
    Ok(templates)
}

fn count(templates: &Path) -> Result<usize> {
    let names = fs::read_dir(templates)?.map(|entry| Ok(entry?.file_name()));
    let names = names.collect::<Result<Vec<_>>>()?;
    Ok(names.iter().filter(|name| *name != ".lock").count())
}

fn grow(case: &Case, options: &[&str], script: &str) -> Result<Outcome> {
    case.run(["--start", "grow"])
        // The long form fills hundreds of MiB.
        .timeout(Duration::from_secs(3600))
        .args(options)
        .args(["busybox", "sh", "-c", script])
        .run()
}

fn a_class_without_a_template_grows_out_of_the_default_one(case: &Case) -> Result<()> {
    let templates = with_default_template(case)?;
    let outcome = case
        .run(["--timeline=json", "--cpus", "2", "--memory", "1g"])
        .args(["busybox", "sh", "-c", SIZE])
        .env("HRUN_POOL", "")
        .env("HRUN_START", "auto")
        .run()?
        .prints("2\n1048576 kB\n0-1\n")?;
    let way = way(&outcome)?;
    ensure!(way == "grow", "it went by {way}: {}", outcome.describe());
    for told in ["from 1 CPU, 256 MiB", "No pool", "VM made bigger"] {
        ensure!(outcome.stderr.contains(told), "{}", outcome.describe());
    }
    ensure!(count(&templates)? == 1, "a template was made");
    remove_templates(case)
}

fn what_was_added_can_be_used(case: &Case) -> Result<()> {
    let templates = with_default_template(case)?;
    // The kernel prefers what was added. In the long form it is nearly all of it, far more than the
    // template had: where the kernel is interpreted a page takes milliseconds.
    let mib = if crate::full() { 350 } else { 8 };
    let script = format!(
        "mkdir /full && mount -t tmpfs -o size=800m tmpfs /full
        for name in a b; do dd if=/dev/zero of=/full/$name bs=1M count={mib} 2>/dev/null & done
        wait
        cmp /full/a /full/b && wc -c < /full/a
        awk '/^cpu[01] / && $2 + $4 > 0' /proc/stat | wc -l"
    );
    let options = ["--cpus", "2", "--memory", "1g", "--privileged"];
    let seen = format!("{}\n2\n", mib << 20);
    grow(case, &options, &script)?.prints(&seen)?;
    ensure!(count(&templates)? == 1, "a template was made");
    remove_templates(case)
}

fn cpus_come_without_memory_and_memory_without_cpus(case: &Case) -> Result<()> {
    with_default_template(case)?;
    for (options, size) in [
        (&["--cpus", "4"][..], "4\n262144 kB\n0-3\n"),
        (&["--memory", "257m"], "1\n263168 kB\n0\n"),
        (&["--memory", "4g"], "1\n4194304 kB\n0\n"),
    ] {
        grow(case, options, SIZE)?.prints(size)?;
    }
    remove_templates(case)
}

fn who_knows_the_image_grows_as_well(case: &Case) -> Result<()> {
    own_templates(case)?;
    case.hrun(["template", "create", "--image", "busybox"])
        .run()?
        .exits(0)?;
    let outcome = grow(case, &["--cpus", "2", "--memory", "512m"], SIZE)?;
    outcome.prints("2\n524288 kB\n0-1\n")?;
    remove_templates(case)
}

fn what_cannot_grow_is_refused_or_gets_a_template(case: &Case) -> Result<()> {
    let templates = with_default_template(case)?;
    for options in [&["--memory", "128m"][..], &["--cpus", "5"], &[]] {
        grow(case, options, "true")?.fails_saying(&["no template that can be made bigger to"])?;
    }
    let outcome = case
        .run(["--timeline=json", "--cpus", "5", "busybox", "nproc"])
        .env("HRUN_POOL", "")
        .env("HRUN_START", "auto")
        .run()?
        .prints("5\n")?;
    ensure!(way(&outcome)? == "template", "{}", outcome.describe());
    ensure!(count(&templates)? == 2, "no template was made");
    remove_templates(case)
}

/// An agent that looks for the kernel's file in the wrong place stands for a guest that fails.
fn a_guest_that_does_not_grow_makes_room_for_another(case: &Case) -> Result<()> {
    own_templates(case)?;
    let (right, wrong) = (b"kernel/grow", b"kernel/none");
    let mut initramfs = fs::read(case.built().initramfs())?;
    let found = initramfs.windows(right.len()).position(|at| at == right);
    let found = found.context("the agent names no file of the kernel")?;
    initramfs[found..found + wrong.len()].copy_from_slice(wrong);
    let path = case.path("initramfs.cpio");
    fs::write(&path, initramfs)?;
    let path = path.display().to_string();

    let create = case.hrun(["template", "create"]);
    create.env("HRUN_INITRAMFS", &path).run()?.exits(0)?;
    let outcome = case
        .run(["--timeline=json", "--cpus", "2", "busybox", "nproc"])
        .env("HRUN_INITRAMFS", &path)
        .env("HRUN_POOL", "")
        .env("HRUN_START", "auto")
        .run()?
        .prints("2\n")?;
    let told = "failed to make a VM of 1 CPU, 256 MiB bigger";
    ensure!(outcome.stderr.contains(told), "{}", outcome.describe());
    ensure!(way(&outcome)? == "template", "{}", outcome.describe());
    remove_templates(case)
}
