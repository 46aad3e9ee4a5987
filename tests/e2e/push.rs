//! `hrun push`: to a real registry, and back.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Case, Login, Outcome, Registry, Store, Test, platforms};

pub(crate) fn tests() -> Vec<Test> {
    crate::tests![
        what_is_pushed_is_what_others_pull,
        a_second_push_sends_nothing,
        who_is_not_logged_in_pushes_nothing,
        an_index_is_pushed_with_the_images_that_are_here,
    ]
    .into_iter()
    .map(Test::without_vm)
    .map(|test| test.on(Store::Layered))
    .collect()
}

fn push(case: &Case, name: &str, destination: &str) -> Result<Outcome> {
    case.hrun(["push", name, destination]).run()
}

fn remove(case: &Case, name: &str) -> Result<()> {
    case.hrun(["image", "rm", name]).run()?.exits(0)?;
    Ok(())
}

fn inspect(case: &Case, name: &str) -> Result<Value> {
    let outcome = case.hrun(["image", "inspect", name]).run()?.exits(0)?;
    let mut images: Vec<Value> = serde_json::from_str(&outcome.text())?;
    images.pop().context("one image was asked for")
}

fn what_is_pushed_is_what_others_pull(case: &Case) -> Result<()> {
    let registry = Registry::start(case, "registry", Login::None)?;
    let name = registry.name("team/app:1");
    push(case, "layered", &name)?.exits(0)?;
    let image = inspect(case, "layered")?;
    ensure!(image["manifest_digest"] == registry.digest(case, "team/app:1")?);

    // skopeo reads the same as inspect says.
    let address = format!("docker://{name}");
    let outcome = case
        .with("skopeo", ["inspect", "--tls-verify=false", &address])
        .run()?
        .exits(0)?;
    let seen: Value = serde_json::from_str(&outcome.text())?;
    let layers = image["manifest"]["layers"].as_array().context("layers")?;
    let digests: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
    let theirs = seen["Layers"].as_array().context("layers")?;
    ensure!(theirs.iter().collect::<Vec<_>>() == digests, "{seen}");
    for (ours, theirs) in [("architecture", "Architecture"), ("os", "Os")] {
        ensure!(image["config"][ours] == seen[theirs], "{seen}");
    }
    ensure!(image["created"] == seen["Created"], "{seen}");
    ensure!(image["config"]["config"]["Env"] == seen["Env"], "{seen}");

    // And so does a store that has nothing.
    let store = case.path("other");
    let other = store.to_str().context("a plain path")?;
    let pulled = case
        .hrun(["pull", "-q", &name])
        .env("HRUN_STORE", other)
        .run()?
        .exits(0)?;
    ensure!(image["id"] == pulled.text().trim(), "{}", pulled.describe());
    Ok(())
}

fn a_second_push_sends_nothing(case: &Case) -> Result<()> {
    let registry = Registry::start(case, "registry", Login::None)?;
    let name = registry.name("app:1");
    let first = push(case, "layered", &name)?.exits(0)?;
    ensure!(first.text().contains("sent"), "{}", first.describe());
    let second = push(case, "layered", &name)?.exits(0)?;
    ensure!(
        second.text().contains("all there already"),
        "{}",
        second.describe()
    );
    // Another repository takes the layers over, once a name says where they are.
    case.hrun(["image", "tag", "layered", &name])
        .run()?
        .exits(0)?;
    let third = push(case, &name, &registry.name("other/app:1"))?.exits(0)?;
    ensure!(
        third.text().contains("taken over") && third.text().contains("1 blob sent"),
        "{}",
        third.describe()
    );
    ensure!(registry.digest(case, "app:1")? == registry.digest(case, "other/app:1")?);
    case.hrun(["push", &name]).run()?.exits(0)?;
    remove(case, &name)
}

fn who_is_not_logged_in_pushes_nothing(case: &Case) -> Result<()> {
    let registry = Registry::start(case, "registry", Login::Basic)?;
    let (name, host) = (registry.name("app:1"), registry.name(""));
    let auth = case.path("auth.json");
    let auth = auth.to_str().context("a plain path")?;
    let logged = |args: &[&str]| case.hrun(args).env("REGISTRY_AUTH_FILE", auth);
    logged(&["push", "layered", &name])
        .run()?
        .is_refused_saying(&["everybody", "hrun login"])?;
    let host = host.trim_end_matches('/');
    logged(&["login", "-u", Registry::USER, "--password-stdin", host])
        .stdin(Registry::PASSWORD)
        .run()?
        .exits(0)?;
    logged(&["push", "layered", &name]).run()?.exits(0)?;
    case.hrun(["push", "nothing", &name])
        .run()?
        .is_refused_saying(&["nothing"])?;
    Ok(())
}

fn an_index_is_pushed_with_the_images_that_are_here(case: &Case) -> Result<()> {
    let registry = Registry::start(case, "registry", Login::None)?;
    let layout = case.path("platforms");
    let listed = ["linux/arm64", "linux/amd64"];
    platforms::layout(&case.built().image("busybox/busybox"), &layout, &listed)?;
    let source = format!("oci:{}:latest", layout.display());
    registry.push(case, &source, "from:1", &["--all"])?;
    let digest = registry.digest(case, "from:1")?;
    let (name, destination) = (registry.name("from:1"), registry.name("to:1"));
    let push = |options: &[&str]| {
        let args = ["push"].iter().chain(options);
        case.hrun(args.chain([&&*name, &&*destination]).copied())
            .run()
    };
    let pull = |platform: &str| {
        let args = ["pull", "--platform", platform, &name];
        case.hrun(args).run()?.exits(0)
    };
    push(&["--all-platforms"])?.is_refused_saying(&["No image"])?;
    pull("linux/amd64")?;
    // docker-registry takes no index of what it does not have.
    push(&["--all-platforms"])?.is_refused_saying(&[
        "linux/arm64 (",
        "hrun pull --platform",
        "blob unknown",
    ])?;
    pull("linux/arm64")?;
    let all = push(&["--all-platforms"])?.exits(0)?;
    let expected = format!("Pushed {destination} ({digest}): 2 of 2 images, ");
    ensure!(all.text().starts_with(&expected), "{}", all.describe());
    ensure!(all.stderr.is_empty(), "{}", all.describe());
    ensure!(registry.digest(case, "to:1")? == digest);
    // Now it has what this store does not have any more.
    case.hrun(["image", "rm", &name]).run()?.exits(0)?;
    pull("linux/amd64")?;
    let again = push(&["--all"])?.exits(0)?;
    ensure!(
        again
            .stderr
            .contains("not in the store, the registry has it: linux/arm64 ("),
        "{}",
        again.describe()
    );
    ensure!(
        again.text().contains("all there already"),
        "{}",
        again.describe()
    );
    // What others find there is whole.
    let copy = format!("oci:{}:copy", case.path("copy").display());
    case.with(
        "skopeo",
        ["copy", "--quiet", "--all", "--src-tls-verify=false"],
    )
    .args([format!("docker://{destination}"), copy])
    .run()?
    .exits(0)?;

    push(&[])?.exits(0)?;
    ensure!(registry.digest(case, "to:1")? != digest, "one image alone");
    case.hrun(["push", "--all", "layered", &destination])
        .run()?
        .is_refused_saying(&["did not come from an index"])?;
    case.hrun(["image", "rm", &name]).run()?.exits(0)?;
    Ok(())
}
