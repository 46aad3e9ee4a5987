//! Who may pull, and what is told to whom.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

impl Bench {
    /// Credentials for a registry in a file of docker's form.
    fn log_in(&mut self, registry: &Registry, username: &str, password: &str) {
        let path = self.dir.path().join("auth.json");
        self.options.credentials = AuthFiles::of(path);
        self.options
            .credentials
            .store(&registry.name(), username, password)
            .unwrap();
    }
}

/// `me:secret`, as the header has it.
const BASIC: &str = "Basic bWU6c2VjcmV0";

fn unauthorized(challenge: &str) -> Reply {
    Reply::new(401, "{}").with("WWW-Authenticate", challenge)
}

/// A registry whose token server, itself, gives tokens to everybody or to `me`.
fn with_tokens(anonymous: bool, lifetime: usize) -> Registry {
    let (layout, _) = two_layers();
    let given = AtomicUsize::new(0);
    let used = AtomicUsize::new(0);
    Registry::serve(&layout, move |request, reply| {
        let host = request.header("host");
        if let Some(query) = request.path.strip_prefix("/token?") {
            assert_eq!(query, "service=the+registry&scope=repository%3Aapp%3Apull");
            if !anonymous && request.header("authorization") != BASIC {
                return Reply::new(401, "{}");
            }
            used.store(0, Ordering::Relaxed);
            let number = given.fetch_add(1, Ordering::Relaxed) + 1;
            return Reply::new(200, format!(r#"{{"token": "t{number}"}}"#));
        }
        let token = format!("Bearer t{}", given.load(Ordering::Relaxed));
        if request.header("authorization") != token
            || used.fetch_add(1, Ordering::Relaxed) >= lifetime
        {
            let realm = format!("Bearer realm=\"http://{host}/token\",service=\"the registry\"");
            return unauthorized(&realm);
        }
        reply
    })
}

#[test]
fn tokens_are_had_anonymously() {
    let registry = with_tokens(true, usize::MAX);
    Bench::new().pull(&registry).unwrap();
    let asked = registry
        .requests()
        .iter()
        .filter(|request| request.path.starts_with("/token"))
        .count();
    assert_eq!(asked, 1);
}

#[test]
fn a_token_that_expires_is_renewed() {
    let registry = with_tokens(true, 2);
    Bench::new().pull(&registry).unwrap();
}

#[test]
fn tokens_are_had_for_a_password() {
    let registry = with_tokens(false, usize::MAX);
    let mut bench = Bench::new();
    let err = bench.refused(&registry);
    assert!(err.contains("hrun login localhost:"), "{err}");
    bench.log_in(&registry, "me", "wrong");
    let err = bench.refused(&registry);
    assert!(
        err.contains("refuses") && err.contains("me (from "),
        "{err}"
    );
    bench.log_in(&registry, "me", "secret");
    bench.pull(&registry).unwrap();
    for request in registry.requests() {
        let to_token_server = request.path.starts_with("/token");
        assert!(to_token_server || request.header("authorization") != BASIC);
    }
}

#[test]
fn an_identity_token_is_posted_for_an_access_token() {
    let (layout, _) = two_layers();
    let registry = Registry::serve(&layout, |request, reply| {
        if request.path == "/token" {
            assert_eq!(request.method, "POST");
            assert!(request.body.contains("grant_type=refresh_token"));
            assert!(request.body.contains("refresh_token=i%26d"), "{request:?}");
            return Reply::new(200, r#"{"access_token": "ok"}"#);
        }
        if request.header("authorization") == "Bearer ok" {
            return reply;
        }
        let host = request.header("host");
        unauthorized(&format!("Bearer realm=\"http://{host}/token\""))
    });
    let mut bench = Bench::new();
    let path = bench.dir.path().join("auth.json");
    let file = serde_json::json!({"auths": {registry.name(): {"identitytoken": "i&d"}}});
    fs::write(&path, file.to_string()).unwrap();
    bench.options.credentials = AuthFiles::of(path);
    bench.pull(&registry).unwrap();
}

#[test]
fn basic_authentication_works_where_it_is_asked_for() {
    let (layout, _) = two_layers();
    let registry = Registry::serve(&layout, |request, reply| {
        if request.header("authorization") == BASIC {
            reply
        } else {
            unauthorized("Basic realm=\"x\"")
        }
    });
    let mut bench = Bench::new();
    assert!(bench.refused(&registry).contains("hrun login"));
    bench.log_in(&registry, "me", "secret");
    bench.pull(&registry).unwrap();

    let check = |password: &str| {
        let credentials = registry::Credentials::typed("me".into(), password.into());
        let access = Access::default();
        registry::check_login(&registry.name(), credentials, &access, &())
    };
    check("secret").unwrap();
    assert!(check("wrong").is_err());
}

#[test]
fn unknown_schemes_and_useless_token_servers_are_named() {
    let (layout, _) = two_layers();
    let cases = [
        ("Negotiate", "wants negotiate authentication"),
        ("", "wants an unnamed kind of authentication"),
        ("Bearer realm=\"nonsense\"", "not an address"),
        ("Bearer realm=\"http://token.invalid/x\"", "not encrypted"),
        ("Bearer realm=\"ftp://localhost/x\"", "not encrypted"),
    ];
    for (challenge, expected) in cases {
        let registry = Registry::serve(&layout, move |_, _| unauthorized(challenge));
        let err = Bench::new().refused(&registry);
        assert!(err.contains(expected), "{err}");
    }
    for answer in ["", "{}", r#"{"token": "a\r\nb"}"#, "[[[[", "\"\""] {
        let registry = Registry::serve(&layout, move |request, _| {
            let host = request.header("host");
            if request.path.starts_with("/token") {
                return Reply::new(200, answer);
            }
            unauthorized(&format!("Bearer realm=\"http://{host}/token\""))
        });
        let err = Bench::new().refused(&registry);
        assert!(err.contains("localhost, which gives tokens"), "{err}");
    }
}
