//! Templates for an image: their clones know the image's files, and nothing of each other.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use tests::{Case, Outcome, Store, Test};

use crate::template::{own_templates, remove_templates, way};

pub(crate) fn tests() -> Vec<Test> {
    let busybox = crate::tests![
        containers_of_an_image_template_are_like_any_other,
        an_image_that_is_another_now_is_found_out,
        a_command_that_writes_makes_no_template,
        an_image_template_is_made_on_demand_and_listed,
    ];
    let debian = crate::tests![
        a_program_with_libraries_can_be_rehearsed,
        the_wall_clock_is_right_however_a_vm_starts,
    ];
    busybox
        .into_iter()
        .chain(debian.into_iter().map(|test| test.on(Store::Debian)))
        .collect()
}

fn create(case: &Case, args: &[&str]) -> Result<Outcome> {
    let create = case.hrun(["template", "create", "--image"]);
    create.args(args.iter().copied()).run()
}

/// Runs a shell script in busybox; says by which way its VM came and what it printed.
fn run(case: &Case, args: &[&str], script: &str) -> Result<(String, Outcome)> {
    let outcome = case
        .run(["--timeline=json"].iter().chain(args))
        .args(["busybox", "sh", "-c", script])
        .env("HRUN_START", "auto")
        .run()?
        .exits(0)?;
    Ok((way(&outcome)?, outcome))
}

fn containers_of_an_image_template_are_like_any_other(case: &Case) -> Result<()> {
    create(case, &["busybox"])?.exits(0)?;
    let script = "hostname; cat /etc/hostname /etc/machine-id; ls /; cat /left 2>&1
        echo mine > /left; echo changed > /bin/cat; rm /bin/ls; mkdir /new; cat /left";
    let mut names = Vec::new();
    for round in 0..2 {
        let hostname = format!("box{round}");
        let (way, outcome) = run(case, &["--hostname", &hostname], script)?;
        ensure!(way == "template", "it went by {way}");
        ensure!(
            outcome.stderr.contains("for the image"),
            "{}",
            outcome.describe()
        );
        let lines = outcome.lines();
        ensure!(
            lines[0] == hostname && lines[1] == hostname,
            "{}",
            outcome.describe()
        );
        ensure!(
            outcome.text().contains("can't open '/left'"),
            "what another container wrote is seen: {}",
            outcome.describe()
        );
        names.push(lines[2].clone());
    }
    ensure!(names[0] != names[1], "the machine-id is the same");
    // With volumes, a user and a read-only root, as without the template.
    let volume = case.path("volume");
    fs::create_dir(&volume)?;
    let volume = format!("{}:/data", volume.display());
    let args = ["-v", &volume, "-u", "7:8", "--read-only", "-w", "/tmp"];
    let script = "id -u; pwd; touch /x 2>/dev/null || echo closed; ls -d /data";
    let (_, outcome) = run(case, &args, script)?;
    outcome.prints("7\n/tmp\nclosed\n/data\n")?;
    Ok(())
}

/// The file of busybox in the case's own store.
fn busybox(case: &Case) -> Result<PathBuf> {
    let found = case
        .with("find", [case.store().to_str().context("a plain path")?])
        .args(["-path", "*/bin/busybox", "-type", "f"])
        .run()?
        .exits(0)?;
    Ok(found.text().trim().into())
}

fn an_image_that_is_another_now_is_found_out(case: &Case) -> Result<()> {
    create(case, &["busybox"])?.exits(0)?;
    let busybox = busybox(case)?;
    let before = fs::metadata(&busybox)?.modified()?;
    let file = fs::File::options().append(true).open(&busybox)?;
    let touch = |time| file.set_modified(time);
    touch(before - Duration::from_secs(1))?;
    let (way, outcome) = run(case, &[], "echo hi")?;
    touch(before)?;
    ensure!(way == "template", "it went by {way}");
    ensure!(
        outcome
            .stderr
            .contains("busybox\" is not what the guest knows")
            && outcome.stderr.contains("removed the template"),
        "{}",
        outcome.describe()
    );
    outcome.prints("hi\n")?;
    let (_, outcome) = run(case, &[], "echo hi")?;
    ensure!(
        !outcome.stderr.contains("for the image"),
        "{}",
        outcome.describe()
    );
    Ok(())
}

fn a_command_that_writes_makes_no_template(case: &Case) -> Result<()> {
    let outcome = create(case, &["busybox", "touch", "/file"])?.exits(1)?;
    for word in ["more than reading", "a command that ends"] {
        ensure!(outcome.stderr.contains(word), "{}", outcome.describe());
    }
    create(case, &["no-such-image"])?.is_refused_saying(&["no-such-image"])?;
    // There is no such program, and yet a root file system to be known.
    create(case, &["busybox", "no-such-program"])?.exits(0)?;
    let (_, outcome) = run(case, &[], "echo hi")?;
    outcome.prints("hi\n")?;
    Ok(())
}

fn an_image_template_is_made_on_demand_and_listed(case: &Case) -> Result<()> {
    own_templates(case)?;
    for expected in ["made, as there was none", "there is one"] {
        let (_, outcome) = run(case, &["--start", "image"], "echo hi")?;
        ensure!(outcome.stderr.contains(expected), "{}", outcome.describe());
        outcome.prints("hi\n")?;
    }
    let listed = case
        .hrun(["template", "ls", "--format", "json"])
        .run()?
        .exits(0)?;
    let listed: serde_json::Value = serde_json::from_str(&listed.text())?;
    let images: Vec<_> = listed
        .as_array()
        .context("templates are listed")?
        .iter()
        .map(|template| template["image"].as_str())
        .collect();
    ensure!(
        images.len() == 2 && images.contains(&None) && images.contains(&Some("busybox")),
        "{listed}"
    );
    case.hrun(["template", "verify"]).run()?.exits(0)?;
    remove_templates(case)
}

fn a_program_with_libraries_can_be_rehearsed(case: &Case) -> Result<()> {
    let python = ["python3", "-B", "-c", "print(6 * 7)"];
    create(case, &["debian"])?.exits(0)?;
    let outcome = case
        .run(["--timeline=json", "debian"])
        .args(python)
        .env("HRUN_START", "auto")
        .run()?
        .exits(0)?;
    ensure!(
        outcome.stderr.contains("for the image"),
        "{}",
        outcome.describe()
    );
    outcome.prints("42\n")?;
    Ok(())
}

/// What the guest's wall clock is ahead of the host's, in seconds, and how far off that may be: of
/// several answers to "what time is it", the one that took least.
fn ahead(case: &Case, way: &str) -> Result<(f64, f64)> {
    let now = || -> Result<f64> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        Ok(now.as_secs_f64())
    };
    let script = "import sys, time\nprint('ready', flush=True)\n\
        for line in sys.stdin: print('time', time.time(), 'end', flush=True)";
    let mut running = case
        .run(["-i", "--start", way, "debian", "python3", "-c", script])
        .stdin_open()
        .spawn()?;
    running.wait_for("ready")?;
    let mut best = (f64::MAX, f64::MAX);
    for count in 1..=10 {
        let asked = now()?;
        let stdin = running.stdin.as_mut().context("its input is open")?;
        stdin.write_all(b"\n")?;
        let answers = loop {
            let printed = running.printed();
            let answers: Vec<f64> = printed
                .lines()
                .filter_map(|line| {
                    line.strip_prefix("time ")?
                        .strip_suffix(" end")?
                        .parse()
                        .ok()
                })
                .collect();
            if answers.len() == count || running.has_ended()? {
                break answers;
            }
            thread::sleep(Duration::from_millis(1));
        };
        let answered = now()?;
        let said = answers.last().context("the guest says no time")?;
        let uncertain = (answered - asked) / 2.0;
        if uncertain < best.1 {
            best = (said - (asked + answered) / 2.0, uncertain);
        }
    }
    running.wait()?.exits(0)?;
    Ok(best)
}

fn the_wall_clock_is_right_however_a_vm_starts(case: &Case) -> Result<()> {
    for way in ["boot", "template", "image"] {
        let (ahead, uncertain) = ahead(case, way)?;
        println!("{way}: the guest is {ahead:.3} s ahead, give or take {uncertain:.3}");
        ensure!(
            ahead.abs() <= 0.1 + uncertain,
            "by {way} the guest is {ahead} s ahead, give or take {uncertain}"
        );
    }
    Ok(())
}
