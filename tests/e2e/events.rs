//! `hrun events`: what happens is told, to those who look on and to those who ask afterwards.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::{Case, Store, Test};

use crate::life::{hrun, says};

pub(crate) fn tests() -> Vec<Test> {
    let [images, life] = crate::tests![images_are_told_of, the_life_of_a_container_is_told];
    vec![images.without_vm().on(Store::Empty), life]
}

/// What has happened so far, a line for each event.
fn past(case: &Case, options: &[&str], format: &str) -> Result<Vec<String>> {
    let words = [
        "events", "--since", "1h", "--until", "0s", "--format", format,
    ];
    let outcome = hrun(case, &[&words[..], options].concat())?.exits(0)?;
    Ok(outcome.text().lines().map(Into::into).collect())
}

fn images_are_told_of(case: &Case) -> Result<()> {
    let archive = case.built().image("busybox/busybox");
    let archive = archive.to_str().unwrap_or_default();
    hrun(case, &["load", "-q", archive])?.exits(0)?;
    hrun(case, &["image", "tag", "busybox", "box:1"])?.exits(0)?;
    hrun(case, &["rmi", "box:1"])?.exits(0)?;
    hrun(case, &["rmi", "busybox"])?.exits(0)?;
    let told = past(case, &[], "{{.Type}} {{.Action}} {{.Actor.ID}}")?;
    ensure!(
        told.len() == 5
            && told[0].starts_with("image load ")
            && told[1].starts_with("image tag ")
            && told[2].starts_with("image untag ")
            && told[3].starts_with("image untag ")
            && told[4].starts_with("image delete "),
        "{told:?}"
    );
    ensure!(past(case, &["--filter", "type=container"], "json")?.is_empty());
    Ok(())
}

fn the_life_of_a_container_is_told(case: &Case) -> Result<()> {
    let watching = case
        .hrun([
            "events",
            "--filter",
            "container=box",
            "--format",
            "{{.Action}}",
        ])
        .spawn()?;
    let words = ["run", "-d", "--name", "box", "busybox", "sh", "-c"];
    hrun(case, &[&words[..], &[crate::PATIENT]].concat())?.exits(0)?;
    says(case, "box", "ready")?;
    watching.wait_for("start")?;
    hrun(case, &["pause", "box"])?.exits(0)?;
    hrun(case, &["unpause", "box"])?.exits(0)?;
    hrun(case, &["exec", "box", "sh", "-c", "exit 5"])?.exits(5)?;
    hrun(case, &["rename", "box", "other"])?.exits(0)?;
    hrun(case, &["rename", "other", "box"])?.exits(0)?;
    hrun(case, &["stop", "box"])?.exits(0)?;
    hrun(case, &["rm", "box"])?.exits(0)?;
    watching.wait_for("destroy")?;
    watching.signal(rustix::process::Signal::TERM)?;
    let seen = watching.wait()?;
    let actions = past(case, &[], "{{.Action}}")?;
    let expected = [
        "create",
        "start",
        "pause",
        "unpause",
        "exec_start: sh -c exit 5",
        "exec_die",
        "rename",
        "rename",
        "die",
        "stop",
        "destroy",
    ];
    ensure!(actions == expected, "{actions:?}");
    // Who looked on did not see what happened under the other name.
    let looked: Vec<String> = seen.text().lines().map(Into::into).collect();
    let renames = |lines: &[String]| lines.iter().filter(|line| *line == "rename").count();
    ensure!(
        looked.first().is_some_and(|line| line == "create") && renames(&looked) == 1,
        "{looked:?}"
    );
    let died = past(case, &["--filter", "event=die"], "json")?;
    let died: Value = serde_json::from_str(&died.concat())?;
    let attributes = &died["Actor"]["Attributes"];
    ensure!(
        attributes["exitCode"] == "4" && attributes["name"] == "box",
        "{died}"
    );
    // None of the past is of the last moment.
    let words = ["events", "--since", "0s", "--until", "0s"];
    let outcome = case.hrun(words).timeout(Duration::from_secs(60)).run()?;
    ensure!(outcome.exits(0)?.text().is_empty());
    Ok(())
}
