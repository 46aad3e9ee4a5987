//! A registry on loopback: Debian's docker-registry, filled by skopeo.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{Case, command::eventually};

/// How long it may take to listen.
const STARTUP: Duration = Duration::from_secs(60);
/// What it writes to its log when it does, before the port.
const LISTENING: &str = "listening on 127.0.0.1:";

/// Who may use a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Login {
    /// Everybody.
    None,
    /// [`Registry::USER`] alone, by basic authentication.
    Basic,
}

/// A registry with a storage of its own, on a port that was free. Dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    port: u16,
    login: Login,
}

impl Registry {
    /// Who may use a registry with [`Login::Basic`].
    pub const USER: &str = "me";
    /// The password for that.
    pub const PASSWORD: &str = "secret";
    /// The same for the registry: bcrypt with the least of rounds.
    const HTPASSWD: &str = "me:$2b$04$MHb2s9uxaRtke6kiev/WweK6R/n/k3tazL.FBqnv2rDV.Pe1/.Cuu\n";

    /// Starts one in a directory of the case.
    ///
    /// # Errors
    ///
    /// docker-registry is not installed, or does not start.
    pub fn start(case: &Case, name: &str, login: Login) -> Result<Self> {
        Self::start_with(&case.path(name), login, None)
    }

    /// Starts one that speaks TLS, with a certificate and its key in files.
    ///
    /// # Errors
    ///
    /// docker-registry is not installed, or does not start.
    pub fn start_tls(case: &Case, name: &str, certificate: &Path, key: &Path) -> Result<Self> {
        Self::start_with(&case.path(name), Login::None, Some((certificate, key)))
    }

    fn start_with(dir: &Path, login: Login, tls: Option<(&Path, &Path)>) -> Result<Self> {
        fs::create_dir(dir).with_context(|| format!("Failed to make {}", dir.display()))?;
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http:\n  addr: 127.0.0.1:0\n",
            dir.join("storage").display()
        );
        if let Some((certificate, key)) = tls {
            config.push_str(&format!(
                "  tls: {{certificate: {}, key: {}}}\n",
                certificate.display(),
                key.display()
            ));
        }
        if login == Login::Basic {
            let users = dir.join("htpasswd");
            fs::write(&users, Self::HTPASSWD).context("Failed to write the users' file")?;
            let users = users.display();
            config.push_str(&format!(
                "auth: {{htpasswd: {{realm: tests, path: {users}}}}}\n"
            ));
        }
        let config_file = dir.join("config.yml");
        fs::write(&config_file, config).context("Failed to write the registry's configuration")?;
        let log = dir.join("log");
        let output = File::create(&log).context("Failed to make the registry's log")?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config_file)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("Failed to share a file")?)
            .stderr(output)
            .spawn()
            .context("Failed to start docker-registry: is it installed (make deps-test)?")?;
        let mut registry = Self {
            child,
            port: 0,
            login,
        };
        registry.port = eventually("docker-registry to listen", STARTUP, || {
            let text = fs::read_to_string(&log).ok()?;
            let (_, rest) = text.split_once(LISTENING)?;
            let digits = rest.find(|c: char| !c.is_ascii_digit())?;
            rest[..digits].parse().ok()
        })
        .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(registry)
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `NAME` in this registry, as `hrun pull` wants it.
    #[must_use]
    pub fn name(&self, name: &str) -> String {
        format!("localhost:{}/{name}", self.port)
    }

    /// Has skopeo copy an image, such as `oci:DIR:TAG`, to `name`; `options` are skopeo's.
    ///
    /// # Errors
    ///
    /// skopeo fails; the message tells what it said.
    pub fn push(&self, case: &Case, source: &str, name: &str, options: &[&str]) -> Result<()> {
        let destination = format!("docker://{}", self.name(name));
        case.with("skopeo", ["copy", "--quiet"])
            .args(options.iter().copied())
            .args(self.options("--dest-tls-verify=false", "--dest-creds"))
            .args([source, &destination])
            .run()?
            .exits(0)?;
        Ok(())
    }

    /// The digest that skopeo finds for `name`.
    ///
    /// # Errors
    ///
    /// skopeo fails; the message tells what it said.
    pub fn digest(&self, case: &Case, name: &str) -> Result<String> {
        let outcome = case
            .with(
                "skopeo",
                ["inspect", "--no-tags", "--format", "{{.Digest}}"],
            )
            .args(self.options("--tls-verify=false", "--creds"))
            .args([format!("docker://{}", self.name(name))])
            .run()?
            .exits(0)?;
        Ok(outcome.text().trim().to_owned())
    }

    /// The options with which skopeo reaches it.
    fn options(&self, unverified: &str, credentials: &str) -> Vec<String> {
        let mut options = vec![unverified.to_owned()];
        if self.login == Login::Basic {
            options.push(credentials.to_owned());
            options.push(format!("{}:{}", Self::USER, Self::PASSWORD));
        }
        options
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl crate::Built {
    /// An image of `tests/images` as skopeo names it: `oci:DIR:latest`.
    #[must_use]
    pub fn skopeo_source(&self, image: &str) -> String {
        let layout: PathBuf = self.image(image);
        format!("oci:{}:latest", layout.display())
    }
}
