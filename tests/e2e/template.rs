//! Templates: made once, whole or not at all, and clones of them that differ where they must.

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::PathBuf,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tests::{Case, Outcome, Test};

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        the_ways_to_a_vm_are_told_and_can_be_chosen,
        clocks_of_clones_are_right,
        two_who_need_a_template_make_one,
        a_template_that_is_half_made_is_none,
        a_damaged_template_is_named_and_made_anew,
        templates_are_listed_verified_and_removed,
    ]
    .into()
}

/// Takes away the templates that all cases share: this one is going to maltreat its own.
pub(crate) fn own_templates(case: &Case) -> Result<PathBuf> {
    let dir = case.store().join("templates");
    fs::remove_file(&dir).context("Failed to take the shared templates away")?;
    Ok(dir)
}

/// The only template in a directory.
fn only(dir: &std::path::Path) -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    found.retain(|path| path.file_name().is_some_and(|name| name != ".lock"));
    ensure!(found.len() == 1, "templates: {found:?}");
    found.pop().context("there is one")
}

/// Files of a case's own templates are meant to stay: they go before the harness looks for litter.
pub(crate) fn remove_templates(case: &Case) -> Result<()> {
    let dir = case.store().join("templates");
    fs::remove_dir_all(&dir)?;
    // As it was at the beginning, though it leads nowhere.
    let shared = case.store().join("../../store-templates/templates");
    std::os::unix::fs::symlink(shared.canonicalize()?, dir)?;
    Ok(())
}

pub(crate) fn way(outcome: &Outcome) -> Result<String> {
    let line = outcome.stderr.lines().last().context("no timeline")?;
    let timeline: serde_json::Value = serde_json::from_str(line)?;
    let name = timeline["way"]["name"].as_str();
    Ok(name.with_context(|| outcome.describe())?.to_owned())
}

fn the_ways_to_a_vm_are_told_and_can_be_chosen(case: &Case) -> Result<()> {
    let run = |args: &[&str]| {
        let timeline = ["--timeline=json"].iter().chain(args);
        case.run(timeline).args(["busybox", "true"]).run()?.exits(0)
    };
    for (args, expected) in [
        (&["--start", "boot"][..], "boot"),
        (&["--start", "template"], "template"),
        (&["--start", "auto"], "template"),
    ] {
        let way = way(&run(args)?)?;
        ensure!(way == expected, "{args:?} went by {way}");
    }
    case.run(["--start", "pool", "busybox", "true"])
        .run()?
        .fails_saying(&["pool"])?;
    Ok(())
}

fn clocks_of_clones_are_right(case: &Case) -> Result<()> {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH);
    let before = now()?.as_secs();
    let script = "date +%s; cut -d' ' -f1 /proc/uptime; sleep 1; cut -d' ' -f1 /proc/uptime";
    let outcome = case
        .run(["--start", "template", "busybox", "sh", "-c", script])
        .run()?
        .exits(0)?;
    let after = now()?.as_secs();
    let lines = outcome.lines();
    let seconds: u64 = lines[0].parse()?;
    ensure!(
        (before..=after).contains(&seconds),
        "{seconds} is not in {before}..={after}"
    );
    let uptime = |index: usize| lines[index].parse::<f64>();
    // Time goes on at the guest's own pace, and a timer ends when it should.
    let slept = uptime(2)? - uptime(1)?;
    ensure!((0.9..30.0).contains(&slept), "{}", outcome.describe());
    Ok(())
}

fn two_who_need_a_template_make_one(case: &Case) -> Result<()> {
    let templates = own_templates(case)?;
    let run = || case.run(["--start", "template", "busybox", "echo", "hi"]);
    let running = [run().spawn()?, run().spawn()?];
    for running in running {
        running.wait()?.prints("hi\n")?;
    }
    only(&templates)?;
    remove_templates(case)
}

fn a_template_that_is_half_made_is_none(case: &Case) -> Result<()> {
    let templates = own_templates(case)?;
    for moment in [10, 1500] {
        let making = case.hrun(["template", "create"]).spawn()?;
        thread::sleep(Duration::from_millis(moment));
        making.signal(Signal::KILL)?;
        drop(making);
        case.no_processes()?;
    }
    case.run(["--start", "template", "busybox", "echo", "hi"])
        .run()?
        .prints("hi\n")?;
    only(&templates)?;
    remove_templates(case)
}

fn a_damaged_template_is_named_and_made_anew(case: &Case) -> Result<()> {
    let templates = own_templates(case)?;
    let run = || {
        case.run(["--start", "template", "busybox", "echo", "hi"])
            .run()?
            .prints("hi\n")
    };
    run()?;
    type Damage = fn(&fs::File) -> std::io::Result<()>;
    let flip: Damage = |file| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, 4711)?;
        file.write_all_at(&[byte[0] ^ 4], 4711)
    };
    let truncate: Damage = |file| file.set_len(8192);
    for (name, damage) in [
        ("state", flip),
        ("memory", flip),
        ("state", truncate),
        ("memory", truncate),
    ] {
        let path = only(&templates)?.join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        damage(&fs::OpenOptions::new().read(true).write(true).open(&path)?)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400))?;
        let outcome = run()?;
        let named = outcome.stderr.contains(&path.display().to_string());
        ensure!(named, "{name}: {}", outcome.describe());
        // What is there now is good.
        let outcome = run()?;
        ensure!(outcome.stderr.is_empty(), "{}", outcome.describe());
    }
    remove_templates(case)
}

fn templates_are_listed_verified_and_removed(case: &Case) -> Result<()> {
    let templates = own_templates(case)?;
    let name = case
        .hrun(["template", "create", "-m", "64m"])
        .run()?
        .exits(0)?;
    let name = name.text().trim().to_owned();
    let listed = case
        .hrun(["template", "ls", "--format", "json"])
        .run()?
        .exits(0)?;
    let listed: serde_json::Value = serde_json::from_str(&listed.text())?;
    ensure!(listed[0]["name"] == name.as_str(), "{listed}");
    ensure!(listed[0]["memory"] == 64 << 20, "{listed}");
    case.hrun(["template", "verify"])
        .run()?
        .prints(&format!("{name}: intact\n"))?;
    case.hrun(["template", "rm", &name[..8]]).run()?.exits(0)?;
    case.hrun(["template", "rm", &name])
        .run()?
        .is_refused_saying(&["No such template"])?;
    ensure!(!templates.join(&name).exists(), "{name} is still there");
    remove_templates(case)
}
