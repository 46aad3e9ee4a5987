//! Files as docker and podman write them.

use std::os::unix::fs::symlink;

use super::*;

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn files(&self) -> AuthFiles {
        let home = self.0.path().to_owned();
        AuthFiles::from(|name| match name {
            "HOME" => Some(home.clone()),
            "XDG_RUNTIME_DIR" => Some(home.join("run")),
            _ => None,
        })
    }

    fn found(&self, image: &str) -> Option<(String, String)> {
        let found = self.files().find(&image.parse().unwrap()).unwrap()?;
        Some((found.username, password(&found.secret)))
    }
}

fn password(secret: &Secret) -> String {
    match secret {
        Secret::Password(text) => text.clone(),
        Secret::IdentityToken(text) => format!("identity {text}"),
        Secret::RegistryToken(text) => format!("registry {text}"),
    }
}

fn pair(username: &str, password: &str) -> Option<(String, String)> {
    Some((username.into(), password.into()))
}

fn auth(text: &str) -> String {
    format!(r#"{{"auth": "{}"}}"#, STANDARD.encode(text))
}

#[test]
fn docker_s_spellings_of_a_registry_are_known() {
    let home = Home::new();
    home.write(
        ".docker/config.json",
        &format!(
            r#"{{"auths": {{"https://index.docker.io/v1/": {}, "https://r.example:5000/v2/": {},
                "empty.example": {{}}}}}}"#,
            auth("hub:a:b"),
            auth("me:pw\0\0")
        ),
    );
    assert_eq!(home.found("busybox"), pair("hub", "a:b"));
    assert_eq!(home.found("r.example:5000/x"), pair("me", "pw"));
    assert_eq!(home.found("r.example/x"), None);
    assert_eq!(home.found("empty.example/x"), None);
}

#[test]
fn podman_s_namespaces_go_before_the_registry() {
    let home = Home::new();
    home.write(
        "run/containers/auth.json",
        &format!(
            r#"{{"auths": {{"quay.io": {}, "quay.io/team": {}, "quay.io/team/app": {}}}}}"#,
            auth("all:1"),
            auth("team:2"),
            auth("app:3")
        ),
    );
    assert_eq!(home.found("quay.io/team/app"), pair("app", "3"));
    assert_eq!(home.found("quay.io/team/other"), pair("team", "2"));
    assert_eq!(home.found("quay.io/teamwork/x"), pair("all", "1"));
}

#[test]
fn the_first_file_that_knows_the_registry_counts() {
    let home = Home::new();
    let file = |who: &str| format!(r#"{{"auths": {{"r.example": {}}}}}"#, auth(who));
    home.write(".docker/config.json", &file("docker:x"));
    assert_eq!(home.found("r.example/x"), pair("docker", "x"));
    home.write(".config/containers/auth.json", &file("config:x"));
    assert_eq!(home.found("r.example/x"), pair("config", "x"));
    home.write("run/containers/auth.json", &file("run:x"));
    assert_eq!(home.found("r.example/x"), pair("run", "x"));
    home.write("other.json", &file("env:x"));
    let env = home.path("other.json");
    let files = AuthFiles::from(|name| (name == "REGISTRY_AUTH_FILE").then(|| env.clone()));
    let found = files.find(&"r.example/x".parse().unwrap()).unwrap();
    assert_eq!(found.unwrap().username, "env");
}

#[test]
fn tokens_take_the_place_of_passwords() {
    let home = Home::new();
    home.write(
        ".docker/config.json",
        r#"{"auths": {"a.example": {"identitytoken": "i"}, "b.example": {"registrytoken": "r"},
            "c.example": {"username": "u", "password": "p"}}}"#,
    );
    assert_eq!(home.found("a.example/x"), pair("", "identity i"));
    assert_eq!(home.found("b.example/x"), pair("", "registry r"));
    assert_eq!(home.found("c.example/x"), pair("u", "p"));
}

#[test]
fn damage_is_named_with_its_file() {
    let home = Home::new();
    for (text, word) in [
        ("{", "not a valid file"),
        (
            r#"{"auths": {"r.example": {"auth": "!"}}}"#,
            "hrun login r.example",
        ),
        (
            r#"{"credsStore": "../evil"}"#,
            "not the name of a credential helper",
        ),
        (r#"{"credsStore": "hrun-test-none"}"#, "is it installed"),
    ] {
        home.write(".docker/config.json", text);
        let err = home
            .files()
            .find(&"r.example/x".parse().unwrap())
            .unwrap_err();
        assert!(err.to_string().contains(word), "{err}");
    }
    home.write(".docker/config.json", " \n");
    assert_eq!(home.found("r.example/x"), None);
}

#[test]
fn logging_in_and_out_leaves_the_rest_of_the_file_alone() {
    let home = Home::new();
    home.write(
        "real.json",
        &format!(
            r#"{{"HttpHeaders": {{"X": "y"}}, "auths": {{"http://r.example": {}, "r.example/ns": {}}}}}"#,
            auth("old:1"),
            auth("ns:2")
        ),
    );
    fs::create_dir(home.path(".docker")).unwrap();
    symlink("../real.json", home.path(".docker/config.json")).unwrap();
    let files = home.files();
    files.store("r.example", "new", "p:w").unwrap();
    assert_eq!(home.found("r.example/x"), pair("new", "p:w"));
    assert_eq!(home.found("r.example/ns/x"), pair("ns", "2"));
    assert!(home.path(".docker/config.json").is_symlink());
    let mode = fs::metadata(home.path("real.json")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);

    assert_eq!(files.erase("r.example").unwrap().len(), 1);
    assert_eq!(home.found("r.example/x"), None);
    assert_eq!(home.found("r.example/ns/x"), pair("ns", "2"));
    assert!(files.erase("r.example").unwrap().is_empty());
    let text = fs::read_to_string(home.path("real.json")).unwrap();
    assert!(text.contains("HttpHeaders"), "{text}");
}

#[test]
fn a_login_makes_the_file_it_needs() {
    let home = Home::new();
    let place = home.files().store("docker.io", "me", "pw").unwrap();
    assert!(place.ends_with(".docker/config.json"), "{place}");
    assert_eq!(home.found("busybox"), pair("me", "pw"));
    let text = fs::read_to_string(home.path(".docker/config.json")).unwrap();
    assert!(text.contains(HUB_KEY), "{text}");
    assert!(matches!(
        AuthFiles::default().store("r.example", "a", "b"),
        Err(CredentialsError::NoPlace)
    ));
}

#[test]
fn secrets_are_not_shown() {
    let shown = format!("{:?}", Credentials::typed("me".into(), "hunter2".into()));
    assert!(
        shown.contains("me") && !shown.contains("hunter2"),
        "{shown}"
    );
}
