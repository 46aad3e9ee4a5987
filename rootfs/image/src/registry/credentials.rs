//! Names and passwords for registries, from the files and helpers of docker and podman.
//!
//! Read are, in this order, until one knows the registry: `REGISTRY_AUTH_FILE`, or, if that is not
//! set, podman's `${XDG_RUNTIME_DIR}/containers/auth.json` and
//! `${XDG_CONFIG_HOME:-~/.config}/containers/auth.json`, then docker's
//! `${DOCKER_CONFIG:-~/.docker}/config.json`. Written is the first if it is set, else docker's.

mod helper;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use crate::Reference;
pub use helper::HelperError;

/// What docker's files and helpers call Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";
const HUB: &str = "docker.io";
/// Other names that files have for it.
const HUB_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];
/// The user name with which a helper hands out an identity token.
const TOKEN_USER: &str = "<token>";

/// Who we are to a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Empty if the secret says it all.
    pub username: String,
    pub(crate) secret: Secret,
    /// Where they came from, for messages.
    pub origin: String,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Secret {
    Password(String),
    /// Is exchanged for access tokens.
    IdentityToken(String),
    /// Is an access token.
    RegistryToken(String),
}

impl Credentials {
    /// A name and a password that the user typed.
    pub fn typed(username: String, password: String) -> Self {
        Self {
            username,
            secret: Secret::Password(password),
            origin: "what was typed".to_owned(),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Secrets end up in no log.
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("origin", &self.origin)
            .finish_non_exhaustive()
    }
}

/// Why credentials could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file, or what is needed to write it.
    #[error("Failed to {action} {}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is not what docker or podman write.
    #[error("{} is not a valid file of credentials: correct or remove it", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// An entry that makes no sense.
    #[error(
        "The entry for {registry} in {} is damaged: log in again with `hrun login {registry}`",
        path.display()
    )]
    Entry {
        /// The file.
        path: PathBuf,
        /// The registry.
        registry: String,
    },
    /// A credential helper failed.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// There is no home directory to keep them in.
    #[error("There is no place for credentials: set HOME, DOCKER_CONFIG or REGISTRY_AUTH_FILE")]
    NoPlace,
}

/// The files in which credentials may be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthFiles {
    read: Vec<PathBuf>,
    write: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
    #[serde(default, rename = "registrytoken")]
    registry_token: String,
}

impl AuthFiles {
    /// As the environment says.
    pub fn from_env() -> Self {
        Self::from(|name| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        })
    }

    /// One file, to be read and written.
    pub fn of(file: PathBuf) -> Self {
        Self {
            read: vec![file.clone()],
            write: Some(file),
        }
    }

    fn from(variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        if let Some(file) = variable("REGISTRY_AUTH_FILE") {
            return Self::of(file);
        }
        let home = variable("HOME");
        let runtime = variable("XDG_RUNTIME_DIR").unwrap_or_else(|| {
            let user = rustix::process::geteuid().as_raw();
            format!("/run/containers/{user}").into()
        });
        let config = variable("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
        let docker = variable("DOCKER_CONFIG")
            .or_else(|| Some(home.as_ref()?.join(".docker")))
            .map(|directory| directory.join("config.json"));
        // Without XDG_RUNTIME_DIR podman adds no "containers" of its own.
        let runtime = if variable("XDG_RUNTIME_DIR").is_some() {
            runtime.join("containers/auth.json")
        } else {
            runtime.join("auth.json")
        };
        let mut read = vec![runtime];
        read.extend(config.map(|directory| directory.join("containers/auth.json")));
        read.extend(docker.clone());
        Self {
            read,
            write: docker,
        }
    }

    /// The credentials for the repository of `reference`, if any file or helper has some.
    pub fn find(&self, reference: &Reference) -> Result<Option<Credentials>, CredentialsError> {
        for path in &self.read {
            if let Some(file) = read(path)?
                && let Some(found) =
                    file.find(path, reference.registry(), Some(reference.repository()))?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Keeps credentials for `registry`; says where.
    pub fn store(
        &self,
        registry: &str,
        username: &str,
        password: &str,
    ) -> Result<String, CredentialsError> {
        let path = self.write.as_ref().ok_or(CredentialsError::NoPlace)?;
        let parsed = read(path)?.unwrap_or_default();
        if let Some(name) = parsed.helper(registry) {
            helper::store(name, key_of(registry), username, password)?;
            return Ok(format!("the credential helper {name}"));
        }
        edit(path, |auths| {
            auths.retain(|key, _| host_of(key) != registry || has_path(key));
            let auth = STANDARD.encode(format!("{username}:{password}"));
            auths.insert(
                key_of(registry).to_owned(),
                serde_json::json!({ "auth": auth }),
            );
            true
        })?;
        Ok(path.display().to_string())
    }

    /// Forgets the credentials for `registry` in all files and helpers; says where there were some.
    pub fn erase(&self, registry: &str) -> Result<Vec<String>, CredentialsError> {
        let mut erased = Vec::new();
        for path in &self.read {
            let Some(parsed) = read(path)? else { continue };
            if let Some(name) = parsed.helper(registry)
                && helper::get(name, key_of(registry))?.is_some()
            {
                helper::erase(name, key_of(registry))?;
                erased.push(format!("the credential helper {name}"));
            }
            let is_registrys = |key: &str| host_of(key) == registry && !has_path(key);
            if parsed.auths.keys().any(|key| is_registrys(key)) {
                edit(path, |auths| {
                    let before = auths.len();
                    auths.retain(|key, _| !is_registrys(key));
                    auths.len() < before
                })?;
                erased.push(path.display().to_string());
            }
        }
        Ok(erased)
    }
}

impl AuthFile {
    fn helper(&self, registry: &str) -> Option<&str> {
        self.helpers
            .iter()
            .find(|(key, _)| host_of(key) == registry)
            .map(|(_, name)| name)
            .or(self.store.as_ref())
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }

    fn find(
        &self,
        path: &Path,
        registry: &str,
        repository: Option<&str>,
    ) -> Result<Option<Credentials>, CredentialsError> {
        if let Some(name) = self.helper(registry)
            && let Some(found) = helper::get(name, key_of(registry))?
        {
            return Ok(Some(found));
        }
        let best = self
            .auths
            .iter()
            .filter(|(_, entry)| !entry.is_empty())
            .filter_map(|(key, entry)| Some((specificity(key, registry, repository)?, entry)))
            .max_by_key(|(specificity, _)| *specificity);
        let Some((_, entry)) = best else {
            return Ok(None);
        };
        let damaged = || CredentialsError::Entry {
            path: path.to_owned(),
            registry: registry.to_owned(),
        };
        entry
            .credentials(path.display().to_string())
            .ok_or_else(damaged)
            .map(Some)
    }
}

impl Entry {
    /// docker leaves entries without contents beside a helper.
    fn is_empty(&self) -> bool {
        [
            &self.auth,
            &self.username,
            &self.identity_token,
            &self.registry_token,
        ]
        .into_iter()
        .all(String::is_empty)
    }

    fn credentials(&self, origin: String) -> Option<Credentials> {
        let (username, password) = if self.auth.is_empty() {
            (self.username.clone(), self.password.clone())
        } else {
            let text = String::from_utf8(STANDARD.decode(self.auth.trim()).ok()?).ok()?;
            // Old versions of docker filled up with zeros.
            let (username, password) = text.trim_end_matches('\0').split_once(':')?;
            (username.to_owned(), password.to_owned())
        };
        let secret = if !self.identity_token.is_empty() {
            Secret::IdentityToken(self.identity_token.clone())
        } else if !self.registry_token.is_empty() {
            Secret::RegistryToken(self.registry_token.clone())
        } else {
            Secret::Password(password)
        };
        Some(Credentials {
            username,
            secret,
            origin,
        })
    }
}

fn read(path: &Path) -> Result<Option<AuthFile>, CredentialsError> {
    match fs::read(path) {
        Ok(bytes) if bytes.trim_ascii().is_empty() => Ok(None),
        Ok(bytes) => {
            serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| CredentialsError::Syntax {
                    path: path.to_owned(),
                    source,
                })
        }
        Err(err)
            if matches!(
                err.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(source) => Err(CredentialsError::File {
            action: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Changes the entries of a file and nothing else in it; replaces it atomically, for the owner
/// only.
fn edit(
    path: &Path,
    change: impl FnOnce(&mut serde_json::Map<String, Value>) -> bool,
) -> Result<(), CredentialsError> {
    let failed = |action| {
        move |source| CredentialsError::File {
            action,
            path: path.to_owned(),
            source,
        }
    };
    let syntax = |source| CredentialsError::Syntax {
        path: path.to_owned(),
        source,
    };
    let mut document: serde_json::Map<String, Value> = match fs::read(path) {
        Ok(bytes) if !bytes.trim_ascii().is_empty() => {
            serde_json::from_slice(&bytes).map_err(syntax)?
        }
        Ok(_) => serde_json::Map::new(),
        Err(err) if err.kind() == io::ErrorKind::NotFound => serde_json::Map::new(),
        Err(err) => return Err(failed("read")(err)),
    };
    let auths = document
        .entry("auths")
        .or_insert_with(|| Value::Object(serde_json::Map::new()));
    let Value::Object(auths) = auths else {
        return Err(syntax(serde::de::Error::custom("auths is no object")));
    };
    if !change(auths) {
        return Ok(());
    }
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed("make the directory of"))?;
    // A link stays one: what it leads to is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut new = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(target.parent().unwrap_or(directory))
        .map_err(failed("write"))?;
    let mut text = serde_json::to_vec_pretty(&document).map_err(syntax)?;
    text.push(b'\n');
    new.write_all(&text)
        .and_then(|()| new.as_file().sync_all())
        .map_err(failed("write"))?;
    new.persist(&target)
        .map_err(|err| failed("replace")(err.error))?;
    Ok(())
}

/// Under which name files and helpers have a registry.
fn key_of(registry: &str) -> &str {
    if registry == HUB { HUB_KEY } else { registry }
}

/// The key without its scheme.
fn bare(key: &str) -> &str {
    key.strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key)
        .trim_end_matches('/')
}

/// The registry that a key is for, as [`Reference::registry`] spells it.
fn host_of(key: &str) -> &str {
    let bare = bare(key);
    let host = bare.split_once('/').map_or(bare, |(host, _)| host);
    if HUB_ALIASES.contains(&host) {
        HUB
    } else {
        host
    }
}

/// Whether a key is for a part of a registry only: podman has such. The paths `v1` and `v2` are
/// docker's way to write the address of a registry's interface.
fn has_path(key: &str) -> bool {
    path_of(key).is_some()
}

fn path_of(key: &str) -> Option<&str> {
    let (_, path) = bare(key).split_once('/')?;
    (!matches!(path, "v1" | "v2")).then_some(path)
}

/// How exactly a key means a repository; none if it does not.
fn specificity(key: &str, registry: &str, repository: Option<&str>) -> Option<usize> {
    if host_of(key) != registry {
        return None;
    }
    let Some(path) = path_of(key) else {
        return Some(0);
    };
    let rest = repository?.strip_prefix(path)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(path.len())
}

#[cfg(test)]
mod tests;
