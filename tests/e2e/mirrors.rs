//! `HRUN_MIRRORS`: who is asked before a registry, and what is told to whom.

use std::fs;

use anyhow::{Context, Result, ensure};
use tests::{Case, Fault, Invocation, Login, Outcome, Proxy, Registry, Request, Store, Test};

/// A registry that nobody can reach.
const NAME: &str = "registry.invalid/busybox:test";

pub(crate) fn tests() -> Vec<Test> {
    let without_vm = crate::tests![
        a_mirror_has_what_the_registry_has,
        the_next_one_is_asked_and_the_registry_last,
        a_mirror_hears_its_own_credentials_and_no_others,
        what_a_mirror_replaced_is_refused,
        mirrors_that_are_none_are_refused,
    ];
    without_vm
        .into_iter()
        .map(Test::without_vm)
        .map(|test| test.on(Store::Empty))
        .collect()
}

fn registry(case: &Case, directory: &str, name: &str, login: Login) -> Result<Registry> {
    let registry = Registry::start(case, directory, login)?;
    let source = case.built().skopeo_source("busybox/busybox");
    registry.push(case, &source, name, &[])?;
    Ok(registry)
}

fn pull(case: &Case, name: &str, mirrors: &str) -> Result<Outcome> {
    with(case, name, mirrors).run()
}

fn with(case: &Case, name: &str, mirrors: &str) -> Invocation {
    case.hrun(["pull", name]).env("HRUN_MIRRORS", mirrors)
}

fn clear(case: &Case, name: &str) -> Result<()> {
    case.hrun(["image", "rm", name]).run()?.exits(0)?;
    Ok(())
}

fn a_mirror_has_what_the_registry_has(case: &Case) -> Result<()> {
    let mirror = registry(case, "mirror", "cache/busybox:test", Login::None)?;
    let address = mirror.name("cache");
    for mirrors in [
        format!("registry.invalid={address}"),
        format!("quay.io=nobody.invalid,registry.invalid=http://{address}/"),
    ] {
        let digest = mirror.digest(case, "cache/busybox:test")?;
        pull(case, NAME, &mirrors)?.prints(&format!("Pulled {NAME} ({digest})\n"))?;
        // The name is the registry's, whoever had it.
        let again = with(case, NAME, &mirrors).run()?.exits(0)?;
        ensure!(again.text().contains("up to date"), "{}", again.describe());
        let run = case
            .hrun(["run", "--pull", "always", "--rm", NAME, "true"])
            .env("HRUN_MIRRORS", "registry.invalid=localhost:1")
            .run()?;
        run.fails_saying(&["No mirror of registry.invalid had it either", "localhost:1"])?;
        clear(case, NAME)?;
    }
    Ok(())
}

fn the_next_one_is_asked_and_the_registry_last(case: &Case) -> Result<()> {
    let registry = registry(case, "registry", "busybox:test", Login::None)?;
    let target = Proxy::start(registry.port(), |_| None)?;
    let name = target.name("busybox:test");
    let host = target.name("");
    let host = host.trim_end_matches('/');
    let empty = Registry::start(case, "empty", Login::None)?;
    let lame = Proxy::start(registry.port(), |_| Some(Fault::Status(503, "")))?;
    let first = Proxy::start(empty.port(), |_| None)?;
    let mirrors = [
        format!("{host}=localhost:1"),
        format!("{host}={}", first.name("")),
        format!("{host}={}", lame.name("")),
    ];
    let outcome = pull(case, &name, &mirrors.join(","))?.exits(0)?;
    for mirror in ["localhost:1", "has no manifest busybox:test", "503"] {
        ensure!(outcome.stderr.contains(mirror), "{}", outcome.describe());
    }
    ensure!(outcome.text().contains(&format!("Pulled {name}")));
    for proxy in [&first, &lame, &target] {
        ensure!(!proxy.take_requests().is_empty(), "somebody was left out");
    }
    clear(case, &name)?;

    let good = Proxy::start(registry.port(), |_| None)?;
    pull(case, &name, &format!("{host}={}", good.name("")))?.exits(0)?;
    ensure!(good.take_requests().iter().any(Request::is_blob));
    ensure!(target.take_requests().is_empty(), "the registry was asked");
    clear(case, &name)
}

fn a_mirror_hears_its_own_credentials_and_no_others(case: &Case) -> Result<()> {
    let mirror = registry(case, "mirror", "busybox:test", Login::Basic)?;
    let host = mirror.name("");
    let host = host.trim_end_matches('/');
    let auth = |host: &str| {
        // `me:secret`
        let auth = format!(r#"{{"auths": {{"{host}": {{"auth": "bWU6c2VjcmV0"}}}}}}"#);
        let file = case.path("auth.json");
        fs::write(&file, auth).context("Failed to write credentials")?;
        anyhow::Ok(file)
    };
    let mirrors = format!("registry.invalid={host}");
    let pull = |file| {
        with(case, NAME, &mirrors)
            .env("REGISTRY_AUTH_FILE", file)
            .run()
    };
    // They would do, but are the registry's.
    pull(auth("registry.invalid")?)?.is_refused_saying(&["hrun login", host])?;
    pull(auth(host)?)?.exits(0)?;
    clear(case, NAME)
}

fn what_a_mirror_replaced_is_refused(case: &Case) -> Result<()> {
    let registry = registry(case, "registry", "busybox:test", Login::None)?;
    let target = Proxy::start(registry.port(), |_| None)?;
    let host = target.name("");
    let evil = Proxy::start(registry.port(), |request| {
        request.is_blob().then_some(Fault::Flip(100))
    })?;
    let mirrors = format!("{}={}", host.trim_end_matches('/'), evil.name(""));
    pull(case, &target.name("busybox:test"), &mirrors)?
        .is_refused_saying(&["damaged or replaced", evil.name("").trim_end_matches('/')])?;
    ensure!(
        target.take_requests().is_empty(),
        "it was taken for an accident"
    );
    Ok(())
}

fn mirrors_that_are_none_are_refused(case: &Case) -> Result<()> {
    for (mirrors, words) in [
        ("docker.io", "no ="),
        ("docker.io=https://me:word@m.example", "hrun login"),
        ("docker.io=ftp://m.example", "http://"),
    ] {
        let outcome = pull(case, NAME, mirrors)?.is_refused_saying(&["HRUN_MIRRORS", words])?;
        ensure!(!outcome.stderr.contains("word@"), "{}", outcome.describe());
    }
    // Not in plain text, as nobody said so.
    let refused = pull(case, NAME, "registry.invalid=mirror.invalid")?;
    refused.is_refused_saying(&["mirror.invalid", "Failed to reach"])?;
    Ok(())
}
