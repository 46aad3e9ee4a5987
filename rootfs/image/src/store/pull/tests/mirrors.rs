//! Who is asked in what order, and who hears which credentials.

use super::*;

/// Mirrors, in their order, of the registry `of`.
fn mirrors(of: &Registry, mirrors: &[String]) -> Mirrors {
    let entry = |mirror: &String| format!("{}={mirror}", of.name());
    let entries: Vec<_> = mirrors.iter().map(entry).collect();
    entries.join(",").parse().unwrap()
}

/// A name under which nobody listens.
fn nobody() -> String {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().to_string()
}

#[test]
fn a_mirror_is_asked_instead_of_the_registry() {
    let (layout, _) = two_layers();
    let mirror = Registry::serve(&layout, honest);
    let registry = Registry::start(|_| Reply::new(404, "{}"));
    for address in [mirror.name(), format!("http://{}/", mirror.name())] {
        let mut bench = Bench::new();
        bench.options.mirrors = mirrors(&registry, &[nobody(), address]);
        let pulled = bench.pull(&registry).unwrap();
        assert_eq!(pulled.image.names[0].registry(), registry.name());
        assert!(registry.requests().is_empty());
        let notes = bench.notes.lock().unwrap().join("\n");
        assert!(notes.contains("It went on without the mirror 127.0.0.1:"));
    }
}

#[test]
fn an_image_of_another_registry_is_not_asked_of_a_mirror() {
    let (layout, _) = two_layers();
    let registry = Registry::serve(&layout, honest);
    let mirror = Registry::serve(&layout, honest);
    let mut bench = Bench::new();
    let other = Registry::start(|_| Reply::new(404, "{}"));
    bench.options.mirrors = mirrors(&other, &[mirror.name()]);
    bench.pull(&registry).unwrap();
    assert!(mirror.requests().is_empty());
}

#[test]
fn a_mirror_has_the_repository_below_its_prefix() {
    let (layout, _) = two_layers();
    let mirror = Registry::serve(&layout, honest);
    // It serves `app`, which is `cache/app` to it.
    let registry = Registry::start(|_| Reply::new(404, "{}"));
    let mut bench = Bench::new();
    bench.options.mirrors = mirrors(&registry, &[format!("{}/cache", mirror.name())]);
    let err = bench.refused(&registry);
    assert!(err.contains("cache/app:test"), "{err}");
    let asked = mirror.requests();
    let path = "/v2/cache/app/manifests/test";
    assert!(asked.iter().any(|request| request.path == path));
}

#[test]
fn what_a_mirror_does_not_have_the_registry_has() {
    let (layout, last) = two_layers();
    let digits = last.digest().to_owned();
    type Change = Box<dyn Fn(&Request, Reply) -> Reply + Send + Sync>;
    let lame: [(&str, Change); 6] = [
        ("404", Box::new(|_, _| Reply::new(404, "{}"))),
        ("500", Box::new(|_, _| Reply::new(500, "{}"))),
        (
            "login",
            Box::new(|_, _| Reply::new(401, "{}").with("WWW-Authenticate", "Basic realm=\"m\"")),
        ),
        (
            "later",
            Box::new(|_, _| Reply::new(429, "{}").with("Retry-After", "60")),
        ),
        (
            "another page",
            Box::new(|_, _| Reply::new(200, "<html>").with("Content-Type", "text/html")),
        ),
        (
            "a layer",
            Box::new(
                move |request, reply| match request.path.ends_with(&digits) {
                    true => Reply::new(404, "{}"),
                    false => reply,
                },
            ),
        ),
    ];
    for (what, change) in lame {
        let registry = Registry::serve(&layout, honest);
        let mirror = Registry::serve(&layout, change);
        let mut bench = Bench::new();
        bench.options.mirrors = mirrors(&registry, &[mirror.name()]);
        let pulled = bench.pull(&registry);
        assert!(pulled.is_ok(), "{what}: {:?}", pulled.err());
        assert!(!mirror.requests().is_empty(), "{what}");
        // The other layer may have been complete.
        let blobs = registry.take_blob_requests().len();
        assert!(blobs == 3 || (blobs == 2 && what == "a layer"), "{what}");
    }
}

#[test]
fn a_mirror_that_breaks_off_leaves_its_bytes_to_the_next() {
    let (layout, last) = two_layers();
    let digits = last.digest().to_owned();
    let mirror = Registry::serve(&layout, move |request, mut reply| {
        if request.path.ends_with(&digits) {
            match request.range() {
                None => reply.cut = Some(1000),
                Some(_) => return Reply::new(404, "{}"),
            }
        }
        reply
    });
    let registry = Registry::serve(&layout, honest);
    let mut bench = Bench::new();
    bench.options.mirrors = mirrors(&registry, &[mirror.name()]);
    bench.pull(&registry).unwrap();
    let ranges: Vec<_> = registry
        .take_blob_requests()
        .iter()
        .filter_map(Request::range)
        .collect();
    assert_eq!(ranges, [1000]);
}

#[test]
fn what_a_mirror_replaced_ends_the_pull() {
    let (layout, last) = two_layers();
    let digits = last.digest().to_owned();
    let mirror = Registry::serve(&layout, move |request, mut reply| {
        if request.path.ends_with(&digits) {
            reply.body[7] ^= 1;
        }
        reply
    });
    let registry = Registry::serve(&layout, honest);
    let mut bench = Bench::new();
    bench.options.mirrors = mirrors(&registry, &[mirror.name()]);
    let err = bench.refused(&registry);
    assert!(err.contains(&mirror.name()), "{err}");
    assert!(err.contains("damaged or replaced"), "{err}");
    assert!(registry.requests().is_empty());
}

#[test]
fn each_mirror_s_trouble_is_told_if_the_registry_has_some() {
    let registry = Registry::start(|_| Reply::new(404, "{}"));
    let first = Registry::start(|_| Reply::new(403, "{}"));
    let second = nobody();
    let mut bench = Bench::new();
    bench.options.mirrors = mirrors(&registry, &[first.name(), second.clone()]);
    let err = bench.refused(&registry);
    for words in [
        &format!("No mirror of {} had it either", registry.name()),
        &format!("{}: The registry", first.name()),
        &format!("{second}: Failed to reach"),
        &format!("The registry {} has no manifest app:test", registry.name()),
    ] {
        assert!(err.contains(words.as_str()), "{err}");
    }
}

#[test]
fn credentials_go_to_those_whose_they_are() {
    let (layout, _) = two_layers();
    let wants_login = |request: &Request, reply: Reply| match request.header("authorization") {
        "" => Reply::new(401, "{}").with("WWW-Authenticate", "Basic realm=\"r\""),
        _ => reply,
    };
    let registry = Registry::serve(&layout, wants_login);
    let strange = Registry::serve(&layout, wants_login);
    let known = Registry::serve(&layout, wants_login);
    let mut bench = Bench::new();
    let files = AuthFiles::of(bench.dir.path().join("auth.json"));
    files.store(&registry.name(), "me", "secret").unwrap();
    bench.options.credentials = files.clone();
    bench.options.mirrors = mirrors(&registry, &[strange.name(), known.name()]);
    bench.pull(&registry).unwrap();
    let told = |registry: &Registry| {
        let mut told: Vec<_> = registry
            .requests()
            .iter()
            .map(|request| request.header("authorization").to_owned())
            .filter(|value| !value.is_empty())
            .collect();
        told.dedup();
        told
    };
    assert!(told(&strange).is_empty() && told(&known).is_empty());
    assert_eq!(told(&registry), ["Basic bWU6c2VjcmV0"]);

    files.store(&known.name(), "other", "word").unwrap();
    bench.pull(&registry).unwrap();
    assert!(told(&strange).is_empty());
    assert_eq!(told(&known), ["Basic b3RoZXI6d29yZA=="]);
}
