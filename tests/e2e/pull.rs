//! `hrun pull`: from a real registry, with everything in between that goes wrong.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tests::{
    Case, Fault, Invocation, Login, Mounted, Outcome, Proxy, Registry, Request, Store, Test,
};

/// Where the layer of busybox, of somewhat less than a MiB, is cut.
const MIDDLE: u64 = 400_000;

pub(crate) fn tests() -> Vec<Test> {
    let without_vm = crate::tests![
        what_is_pulled_is_what_was_pushed,
        an_image_is_pulled_by_its_digest,
        logins_of_hrun_docker_and_podman_are_used,
        what_breaks_on_the_way_is_mended,
        what_was_replaced_on_the_way_is_refused,
        a_killed_pull_goes_on_where_it_was,
        overlapping_pulls_at_once_succeed,
        a_full_disk_is_reported_when_an_image_is_pulled,
        certificates_are_checked_unless_told_otherwise,
        proxies_of_the_environment_are_used,
        proxies_are_passed_through_but_for_those_who_need_none,
        run_pulls_as_it_is_told,
    ];
    let with_vm = crate::tests![run_pulls_what_is_missing_and_nothing_twice];
    without_vm
        .into_iter()
        .map(Test::without_vm)
        .chain(with_vm)
        .map(|test| test.on(Store::Empty))
        .collect()
}

/// A registry that has `busybox:test`.
fn registry(case: &Case) -> Result<Registry> {
    let registry = Registry::start(case, "registry", Login::None)?;
    push(case, &registry, "busybox:test", &[])?;
    Ok(registry)
}

fn push(case: &Case, registry: &Registry, name: &str, options: &[&str]) -> Result<()> {
    let source = case.built().skopeo_source("busybox/busybox");
    registry.push(case, &source, name, options)
}

fn pull(case: &Case, name: &str) -> Result<Outcome> {
    case.hrun(["pull", name]).run()
}

fn images(case: &Case) -> Result<Vec<Value>> {
    let outcome = case
        .hrun(["image", "ls", "--format", "json"])
        .run()?
        .exits(0)?;
    serde_json::from_str(&outcome.text()).with_context(|| outcome.describe())
}

/// Removes all images, so that the store is as it was.
fn clear(case: &Case) -> Result<()> {
    for image in images(case)? {
        let names = image["names"].as_array().context("an image has names")?;
        for name in names {
            let name = name.as_str().context("a name is text")?;
            case.hrun(["image", "rm", name]).run()?.exits(0)?;
        }
    }
    Ok(())
}

fn downloads(case: &Case) -> PathBuf {
    case.store().join("images/downloads")
}

/// Every file that an image has, with its digest.
fn contents(case: &Case, name: &str) -> Result<String> {
    let outcome = case.hrun(["image", "inspect", name]).run()?.exits(0)?;
    let inspected: Value = serde_json::from_str(&outcome.text())?;
    let layers = inspected[0]["layers"].as_array().context("layers")?;
    let mut text = String::new();
    for layer in layers {
        let layer = layer.as_str().context("a path")?;
        let script = "cd \"$0\" && find . -printf '%p %m %U:%G %l\\n' | sort && \
                      find . -type f -print0 | sort -z | xargs -0 sha256sum";
        let outcome = case.with("sh", ["-c", script, layer]).run()?.exits(0)?;
        text.push_str(&outcome.text());
    }
    Ok(text)
}

fn what_is_pulled_is_what_was_pushed(case: &Case) -> Result<()> {
    let registry = registry(case)?;
    push(case, &registry, "docker:test", &["--format", "v2s2"])?;
    let zstd = ["--dest-compress-format", "zstd", "--format", "oci"];
    push(case, &registry, "zstd:test", &zstd)?;
    case.hrun(["image", "load"])
        .args([case.built().image("busybox/busybox")])
        .run()?
        .exits(0)?;
    let expected = contents(case, "busybox")?;
    clear(case)?;
    for name in ["busybox:test", "docker:test", "zstd:test"] {
        let digest = registry.digest(case, name)?;
        let name = registry.name(name);
        pull(case, &name)?.prints(&format!("Pulled {name} ({digest})\n"))?;
        ensure!(
            contents(case, &name)? == expected,
            "{name} is another image"
        );
        pull(case, &name)?.prints(&format!("Image {name} is up to date ({digest})\n"))?;
        clear(case)?;
    }
    for (name, words) in [
        ("none:test", "has no manifest none:test"),
        ("busybox:none", "has no manifest busybox:none"),
    ] {
        pull(case, &registry.name(name))?.is_refused_saying(&[words])?;
    }
    let bad = case.hrun(["pull", "Not A Name"]).run()?.exits(2)?;
    ensure!(
        bad.stderr.contains("not an image name"),
        "{}",
        bad.describe()
    );
    Ok(())
}

fn an_image_is_pulled_by_its_digest(case: &Case) -> Result<()> {
    let registry = registry(case)?;
    let digest = registry.digest(case, "busybox:test")?;
    let name = registry.name(&format!("busybox@{digest}"));
    pull(case, &name)?.exits(0)?;
    case.hrun(["image", "inspect", &name]).run()?.exits(0)?;
    ensure!(images(case)?.len() == 1);
    clear(case)
}

fn logins_of_hrun_docker_and_podman_are_used(case: &Case) -> Result<()> {
    let registry = Registry::start(case, "registry", Login::Basic)?;
    push(case, &registry, "busybox:test", &[])?;
    let (name, host) = (registry.name("busybox:test"), registry.name(""));
    let host = host.trim_end_matches('/');
    let home = case.path("home");
    fs::create_dir(&home)?;
    // Nothing of whoever runs the tests.
    let hrun = |args: &[&str]| {
        case.hrun(args.iter().copied())
            .env("HOME", &home)
            .env("XDG_RUNTIME_DIR", &home)
            .env("XDG_CONFIG_HOME", &home)
            .env("DOCKER_CONFIG", home.join("docker"))
    };
    let login = |password: &str| {
        let args = ["login", "-u", Registry::USER, "--password-stdin", host];
        hrun(&args).stdin(format!("{password}\n")).run()
    };
    let pull = |with: &dyn Fn(Invocation) -> Invocation| with(hrun(&["pull", &name])).run();
    let plain = |invocation| invocation;

    pull(&plain)?.is_refused_saying(&["hrun login"])?;
    login("wrong")?.is_refused_saying(&["refuses", "me"])?;
    pull(&plain)?.is_refused_saying(&["hrun login"])?;
    login(Registry::PASSWORD)?.exits(0)?;
    pull(&plain)?.exits(0)?;
    let config = home.join("docker/config.json");
    let mode = fs::metadata(&config)?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");
    hrun(&["logout", host]).run()?.exits(0)?;
    pull(&plain)?.is_refused_saying(&["hrun login"])?;

    // As podman writes it.
    let file = case.path("auth.json");
    let file_name = file.to_str().context("a plain path")?;
    case.with("skopeo", ["login", "--tls-verify=false", "--authfile"])
        .args([
            file_name,
            "-u",
            Registry::USER,
            "-p",
            Registry::PASSWORD,
            host,
        ])
        .run()?
        .exits(0)?;
    pull(&|invocation| invocation.env("REGISTRY_AUTH_FILE", &file))?.exits(0)?;

    // As docker's helpers hand it out.
    let bin = case.path("bin");
    fs::create_dir(&bin)?;
    let helper = bin.join("docker-credential-test");
    let script = "#!/bin/sh\n[ \"$1\" = get ] || exit 1\nread -r server || true\n\
                  printf '{\"ServerURL\":\"%s\",\"Username\":\"me\",\"Secret\":\"secret\"}' \"$server\"\n";
    fs::write(&helper, script)?;
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755))?;
    fs::write(
        &config,
        format!(r#"{{"credHelpers": {{"{host}": "test"}}}}"#),
    )?;
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", bin.display());
    pull(&|invocation| invocation.env("PATH", &path))?.exits(0)?;
    pull(&plain)?.is_refused_saying(&["docker-credential-test", "installed"])?;
    clear(case)
}

fn what_breaks_on_the_way_is_mended(case: &Case) -> Result<()> {
    let registry = registry(case)?;
    type Plan = fn(&Request) -> Option<Fault>;
    let plans: [(&str, Plan); 6] = [
        ("cut", |request| {
            (request.is_blob() && request.earlier == 0).then_some(Fault::Cut(MIDDLE))
        }),
        ("cut, and no ranges", |request| match request.earlier {
            0 if request.is_blob() => Some(Fault::Cut(MIDDLE)),
            _ => Some(Fault::NoRanges),
        }),
        ("cut before the first byte", |request| {
            (request.earlier == 0 && !request.path.ends_with("/v2/")).then_some(Fault::Cut(0))
        }),
        ("too many requests", |request| {
            (request.earlier == 0).then_some(Fault::Status(429, "Retry-After: 1\r\n"))
        }),
        ("out of order", |request| {
            (request.earlier < 2).then_some(Fault::Status(500, ""))
        }),
        ("slow", |request| {
            request
                .is_blob()
                .then_some(Fault::Slow(Duration::from_millis(20)))
        }),
    ];
    for (what, plan) in plans {
        let proxy = Proxy::start(registry.port(), plan)?;
        pull(case, &proxy.name("busybox:test"))?
            .exits(0)
            .with_context(|| what.to_owned())?;
        if what == "cut" {
            let resumed = proxy
                .take_requests()
                .iter()
                .any(|request| request.range == Some(MIDDLE));
            ensure!(resumed, "it was not continued");
        }
        clear(case)?;
    }
    Ok(())
}

fn what_was_replaced_on_the_way_is_refused(case: &Case) -> Result<()> {
    let registry = registry(case)?;
    type Plan = fn(&Request) -> Option<Fault>;
    let plans: [(Plan, &str); 3] = [
        (
            |request| request.is_blob().then_some(Fault::Flip(100)),
            "it was damaged or replaced",
        ),
        (
            |request| (!request.is_blob()).then_some(Fault::Flip(100)),
            "it was damaged or replaced",
        ),
        (
            |request| request.is_blob().then_some(Fault::Status(401, "")),
            "authentication",
        ),
    ];
    for (plan, words) in plans {
        let proxy = Proxy::start(registry.port(), plan)?;
        pull(case, &proxy.name("busybox:test"))?.is_refused_saying(&[words])?;
        ensure!(images(case)?.is_empty());
        ensure!(fs::read_dir(downloads(case))?.count() == 0);
    }
    Ok(())
}

fn a_killed_pull_goes_on_where_it_was(case: &Case) -> Result<()> {
    let registry = registry(case)?;
    for signal in [Signal::KILL, Signal::INT] {
        let proxy = Proxy::start(registry.port(), |request| {
            (request.is_blob() && request.earlier == 0).then_some(Fault::Stall(MIDDLE))
        })?;
        let name = proxy.name("busybox:test");
        let running = case.hrun(["pull", &name]).spawn()?;
        let partial = tests::eventually("a download", Duration::from_secs(60), || {
            let entry = fs::read_dir(downloads(case)).ok()?.next()?.ok()?;
            (entry.metadata().ok()?.len() == MIDDLE).then(|| entry.path())
        })?;
        running.signal(signal)?;
        running.wait()?.dies_of(signal)?;
        ensure!(images(case)?.is_empty(), "something unfinished is visible");
        ensure!(fs::metadata(&partial)?.len() == MIDDLE);
        let proxy = Proxy::start(registry.port(), |_| None)?;
        pull(case, &proxy.name("busybox:test"))?.exits(0)?;
        let ranges: Vec<_> = proxy
            .take_requests()
            .into_iter()
            .filter_map(|request| request.range)
            .collect();
        ensure!(ranges == [MIDDLE], "{ranges:?}");
        ensure!(!partial.exists());
        clear(case)?;
    }
    Ok(())
}

fn overlapping_pulls_at_once_succeed(case: &Case) -> Result<()> {
    let registry = registry(case)?;
    let layered = case.built().skopeo_source("variants/layered");
    registry.push(case, &layered, "layered:test", &[])?;
    let proxy = Proxy::start(registry.port(), |_| None)?;
    thread::scope(|scope| {
        let pulls: Vec<_> = (0..8)
            .map(|n| ["busybox:test", "layered:test"][n % 2])
            .map(|name| scope.spawn(|| pull(case, &proxy.name(name))?.exits(0)))
            .collect();
        for pull in pulls {
            pull.join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        anyhow::Ok(())
    })?;
    ensure!(images(case)?.len() == 2);
    let blobs = proxy.take_requests();
    let twice = blobs
        .iter()
        .filter(|request| request.is_blob() && request.earlier > 0)
        // Configurations are small, and always asked for.
        .filter(|request| !is_config(case, &request.path))
        .count();
    ensure!(twice == 0, "layers were downloaded twice: {blobs:?}");
    clear(case)
}

/// Whether a path is that of an image's configuration.
fn is_config(case: &Case, path: &str) -> bool {
    images(case).is_ok_and(|images| {
        images
            .iter()
            .any(|image| image["id"].as_str().is_some_and(|id| path.ends_with(id)))
    })
}

fn a_full_disk_is_reported_when_an_image_is_pulled(case: &Case) -> Result<()> {
    let registry = registry(case)?;
    // Too small for the download, and for what it unpacks to.
    for size in [300 << 10, 1 << 20, 2 << 20] {
        let small = Mounted::tmpfs(&case.path("small"), size)?;
        let hrun = |args: &[&str]| {
            case.hrun(args.iter().copied())
                .env("HRUN_STORE", small.path())
                .run()
        };
        hrun(&["pull", &registry.name("busybox:test")])?.is_refused_saying(&["full"])?;
        ensure!(
            hrun(&["image", "ls", "--quiet"])?
                .exits(0)?
                .stdout
                .is_empty()
        );
        for directory in ["downloads", "tmp", "layers", "blobs/sha256"] {
            let path = small.path().join("images").join(directory);
            let left = fs::read_dir(&path)?.count();
            ensure!(left == 0, "{left} files are left in {}", path.display());
        }
    }
    Ok(())
}

/// A key, and a certificate for localhost that it signed itself.
fn certificate(case: &Case) -> Result<(PathBuf, PathBuf)> {
    let (certificate, key) = (case.path("cert.pem"), case.path("key.pem"));
    let path = |path: &Path| path.to_str().map(str::to_owned).context("a plain path");
    case.with("openssl", ["req", "-x509", "-nodes", "-days", "2"])
        .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
        .args([
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost,DNS:registry.invalid",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", &path(&key)?, "-out", &path(&certificate)?])
        .run()?
        .exits(0)?;
    Ok((certificate, key))
}

fn certificates_are_checked_unless_told_otherwise(case: &Case) -> Result<()> {
    let (certificate, key) = certificate(case)?;
    let registry = Registry::start_tls(case, "registry", &certificate, &key)?;
    push(case, &registry, "busybox:test", &[])?;
    let name = registry.name("busybox:test");
    pull(case, &name)?.is_refused_saying(&["certificate"])?;
    case.hrun(["pull", &name])
        .env("SSL_CERT_FILE", &certificate)
        .run()?
        .exits(0)?;
    clear(case)?;
    case.hrun(["pull", "--insecure", &name]).run()?.exits(0)?;
    clear(case)
}

fn proxies_of_the_environment_are_used(case: &Case) -> Result<()> {
    let registry = registry(case)?;
    // It passes all on to the registry, whatever host was asked for.
    let proxy = Proxy::start(registry.port(), |_| None)?;
    let address = format!("http://{}", proxy.name(""));
    let name = "registry.invalid/busybox:test";
    let pull = |options: &[&str]| {
        let args = ["pull"].iter().chain(options).chain([&name]);
        ["HTTP_PROXY", "HTTPS_PROXY"]
            .into_iter()
            .fold(case.hrun(args), |invocation, variable| {
                invocation.env(variable, &address)
            })
            .run()
    };
    pull(&[])?.is_refused_saying(&["registry.invalid"])?;
    let asked = proxy.take_requests();
    ensure!(
        asked
            .iter()
            .all(|request| request.path == "registry.invalid:443"),
        "something was asked in plain text: {asked:?}"
    );
    pull(&["--insecure"])?.exits(0)?;
    clear(case)
}

fn proxies_are_passed_through_but_for_those_who_need_none(case: &Case) -> Result<()> {
    let (certificate, key) = certificate(case)?;
    let registry = Registry::start_tls(case, "registry", &certificate, &key)?;
    push(case, &registry, "busybox:test", &[])?;
    let proxy = Proxy::start(registry.port(), |_| None)?;
    let name = "registry.invalid/busybox:test";
    let pull = |variables: &[(&str, &str)]| {
        let invocation = case.hrun(["pull", name]).env("SSL_CERT_FILE", &certificate);
        variables
            .iter()
            .fold(invocation, |invocation, (variable, value)| {
                invocation.env(*variable, *value)
            })
            .run()
    };
    let address = format!("http://{}", proxy.name(""));
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
        pull(&[(variable, &address)])?.exits(0)?;
        let asked = proxy.take_requests();
        ensure!(!asked.is_empty(), "{variable} was not heard of");
        ensure!(
            asked
                .iter()
                .all(|request| request.path == "registry.invalid:443"),
            "the proxy could read it: {asked:?}"
        );
        clear(case)?;
    }
    pull(&[("HTTPS_PROXY", &address), ("NO_PROXY", ".invalid")])?
        .is_refused_saying(&["Failed to reach", "registry.invalid"])?;
    pull(&[("HTTP_PROXY", &address)])?
        .is_refused_saying(&["Failed to reach", "registry.invalid"])?;
    ensure!(proxy.take_requests().is_empty(), "somebody asked the proxy");
    pull(&[("HTTPS_PROXY", "http://localhost:1")])?.is_refused_saying(&["tunnel"])?;
    Ok(())
}

fn run_pulls_as_it_is_told(case: &Case) -> Result<()> {
    let nobody = "localhost:1/busybox:test";
    for (args, words) in [
        (["--pull", "never", nobody], "No image"),
        (
            ["--pull", "missing", nobody],
            "Failed to reach the registry",
        ),
        (["--pull", "always", nobody], "Failed to reach the registry"),
    ] {
        case.run(args).run()?.fails_saying(&[words])?;
    }
    // A mere word may be a typing error.
    case.hrun(["bsuybox", "true"])
        .env("HRUN_PULL", "missing")
        .run()?
        .fails_saying(&["bsuybox", "hrun run"])?;
    case.hrun([nobody, "true"])
        .env("HRUN_PULL", "missing")
        .run()?
        .fails_saying(&["Failed to reach the registry"])?;
    Ok(())
}

fn run_pulls_what_is_missing_and_nothing_twice(case: &Case) -> Result<()> {
    let registry = registry(case)?;
    let proxy = Proxy::start(registry.port(), |_| None)?;
    let name = proxy.name("busybox:test");
    let run = |options: &[&str]| {
        let args = options.iter().copied().chain([&*name, "echo", "hi"]);
        case.run(args).env("HRUN_PULL", "missing").run()
    };
    let first = run(&[])?.prints("hi\n")?;
    ensure!(first.stderr.is_empty(), "{}", first.describe());
    ensure!(proxy.take_requests().iter().any(Request::is_blob));
    run(&[])?.prints("hi\n")?;
    let requests = proxy.take_requests();
    ensure!(requests.is_empty(), "{requests:?}");
    run(&["--pull", "always"])?.prints("hi\n")?;
    let requests = proxy.take_requests();
    ensure!(!requests.is_empty(), "nobody was asked");
    clear(case)
}
