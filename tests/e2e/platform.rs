//! Images for several kinds of machines: which is pulled, and which is run.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Case, Login, Proxy, Registry, Store, Test, platforms};

const PLATFORMS: [&str; 3] = ["linux/arm64", "linux/amd64", "linux/amd64/v3"];

pub(crate) fn tests() -> Vec<Test> {
    let without_vm = crate::tests![an_image_that_cannot_run_is_refused];
    let with_vm = crate::tests![run_takes_the_image_for_the_wanted_platform];
    without_vm
        .into_iter()
        .map(Test::without_vm)
        .chain(with_vm)
        .map(|test| test.on(Store::Empty))
        .collect()
}

/// A registry with `busybox:test` for several platforms.
fn registry(case: &Case) -> Result<Registry> {
    let registry = Registry::start(case, "registry", Login::None)?;
    let layout = case.path("platforms");
    platforms::layout(&case.built().image("busybox/busybox"), &layout, &PLATFORMS)?;
    let source = format!("oci:{}:latest", layout.display());
    registry.push(case, &source, "busybox:test", &["--all"])?;
    Ok(registry)
}

fn platform_of(case: &Case, name: &str) -> Result<String> {
    let outcome = case.hrun(["image", "inspect", name]).run()?.exits(0)?;
    let inspected: Value = serde_json::from_str(&outcome.text())?;
    let platform = inspected[0]["platform"].as_str();
    platform.map(str::to_owned).context("a platform is text")
}

/// Removes all images, so that the store is as it was.
fn clear(case: &Case) -> Result<()> {
    let listed = case.hrun(["image", "ls", "-q"]).run()?.exits(0)?;
    for id in listed.text().lines() {
        case.hrun(["image", "rm", id]).run()?.exits(0)?;
    }
    Ok(())
}

fn an_image_that_cannot_run_is_refused(case: &Case) -> Result<()> {
    let registry = registry(case)?;
    let proxy = Proxy::start(registry.port(), |_| None)?;
    let name = proxy.name("busybox:test");
    let wanted = ["--platform", "linux/arm64/v8", &name, "true"];
    case.run(wanted)
        .env("HRUN_PULL", "missing")
        .run()?
        .fails_saying(&[&name, "linux/arm64/v8", "linux/amd64"])?;
    ensure!(
        proxy.take_requests().is_empty(),
        "it was pulled for nothing"
    );
    case.run(["--platform", "windows/amd64", &name])
        .run()?
        .exits(125)?;

    case.hrun(["pull", "--platform", "linux/arm64", &name])
        .run()?
        .exits(0)?;
    case.run([&*name, "true"])
        .env("HRUN_PULL", "missing")
        .run()?
        .fails_saying(&["for linux/arm64", "linux/amd64", "hrun pull"])?;
    // Neither by its name without a registry, nor by its identifier with one.
    case.run(["--platform", "linux/amd64", &name, "true"])
        .run()?
        .fails_saying(&["linux/arm64", "linux/amd64", "hrun pull"])?;
    let listed = case.hrun(["image", "ls", "-q"]).run()?.exits(0)?;
    let _ = proxy.take_requests();
    case.run(["--platform", "linux/amd64", listed.text().trim(), "true"])
        .env("HRUN_PULL", "missing")
        .run()?
        .fails_saying(&["linux/arm64", "linux/amd64"])?;
    ensure!(proxy.take_requests().is_empty(), "an identifier was pulled");
    clear(case)
}

fn run_takes_the_image_for_the_wanted_platform(case: &Case) -> Result<()> {
    let registry = registry(case)?;
    let proxy = Proxy::start(registry.port(), |_| None)?;
    let name = proxy.name("busybox:test");
    let run = |platform: &str| {
        case.run(["--platform", platform, &name, "uname", "-m"])
            .env("HRUN_PULL", "missing")
            .run()?
            .prints("x86_64\n")
    };
    case.hrun(["pull", "--platform", "linux/arm64", &name])
        .run()?
        .exits(0)?;
    for platform in ["linux/amd64", "linux/amd64/v3"] {
        run(platform)?;
        ensure!(platform_of(case, &name)? == platform);
        ensure!(!proxy.take_requests().is_empty());
        // Now it is there.
        run(platform)?;
        let requests = proxy.take_requests();
        ensure!(requests.is_empty(), "{requests:?}");
    }
    clear(case)
}
