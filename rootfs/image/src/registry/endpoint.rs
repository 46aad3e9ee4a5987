//! One host that is asked: by which addresses, and with how much patience.

use std::net::Ipv4Addr;
use std::time::Duration;

use reqwest::Url;

use super::backoff::Patience;
use super::{Access, RegistryError};

/// Docker Hub's interface is not where its name leads.
const HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Silence after which a connection is given up.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What an address of the web begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// A registry, or a mirror of one.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// The name that images and credentials have for it.
    pub(super) name: String,
    /// Only if somebody said so.
    pub(super) scheme: Option<Scheme>,
    pub(super) insecure: bool,
    pub(super) patience: Patience,
    pub(super) connect_timeout: Duration,
    pub(super) silence_max: Duration,
}

impl Endpoint {
    pub(crate) fn registry(name: &str, access: &Access) -> Self {
        Self {
            name: name.to_owned(),
            scheme: None,
            insecure: access.insecure,
            patience: Patience::ALONE,
            connect_timeout: CONNECT_TIMEOUT,
            silence_max: SILENCE_MAX,
        }
    }

    /// A host beside which there are others to ask.
    pub(super) fn mirror(name: &str, scheme: Option<Scheme>) -> Self {
        Self {
            name: name.to_owned(),
            scheme,
            insecure: false,
            patience: Patience::AMONG_OTHERS,
            connect_timeout: CONNECT_TIMEOUT / 6,
            silence_max: SILENCE_MAX / 3,
        }
    }

    /// The address of its interface.
    pub(super) fn address(&self, scheme: Scheme) -> Result<Url, RegistryError> {
        let host = if self.name == HUB.0 {
            HUB.1
        } else {
            &self.name
        };
        let text = format!("{}://{host}/v2/", scheme.name());
        Url::parse(&text).map_err(|_| RegistryError::Address(text))
    }

    pub(super) fn rule(&self) -> Result<Rule, RegistryError> {
        let address = self.address(Scheme::Https)?;
        let plain = self.scheme == Some(Scheme::Http);
        Ok(Rule {
            insecure: self.insecure,
            local: is_loopback(&address),
            plain: address.host_str().filter(|_| plain).map(str::to_owned),
        })
    }
}

/// Which addresses may be asked.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    insecure: bool,
    /// The host is this machine, and may send us elsewhere on it.
    pub(super) local: bool,
    /// A host that somebody wants to be asked in plain text.
    plain: Option<String>,
}

impl Rule {
    pub(super) fn permits(&self, url: &Url) -> bool {
        match url.scheme() {
            "https" => true,
            "http" => {
                self.insecure
                    || (self.local && is_loopback(url))
                    || (self.plain.is_some() && url.host_str() == self.plain.as_deref())
            }
            _ => false,
        }
    }
}

/// Whether an address is on this machine by its name.
fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost" | "[::1]") => true,
        Some(host) => host
            .parse::<Ipv4Addr>()
            .is_ok_and(|host| host.is_loopback()),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(endpoint: &Endpoint) -> impl Fn(&str) -> bool + use<> {
        let rule = endpoint.rule().unwrap();
        move |url| rule.permits(&Url::parse(url).unwrap())
    }

    fn registry(name: &str, insecure: bool) -> impl Fn(&str) -> bool {
        permits(&Endpoint::registry(name, &Access { insecure }))
    }

    #[test]
    fn plain_text_is_for_this_machine_or_for_those_who_ask_for_it() {
        let remote = registry("r.example", false);
        assert!(remote("https://r.example/v2/"));
        for url in [
            "http://r.example/",
            "http://localhost/",
            "ftp://r.example/",
            "file:///etc",
        ] {
            assert!(!remote(url), "{url}");
        }
        let local = registry("localhost:5000", false);
        for url in [
            "http://localhost:5000/",
            "http://127.0.0.1/",
            "http://127.1.2.3/",
            "http://[::1]:1/",
        ] {
            assert!(local(url), "{url}");
        }
        for url in [
            "http://r.example/",
            "http://localhost.example/",
            "http://127.0.0.1.example/",
            "http://10.0.0.1/",
        ] {
            assert!(!local(url), "{url}");
        }
        assert!(registry("r.example", true)("http://r.example/"));
        assert!(!registry("[::1]", true)("file:///etc/passwd"));
    }

    #[test]
    fn a_mirror_in_plain_text_may_lead_to_none_but_itself() {
        let plain = permits(&Endpoint::mirror("m.example:5000", Some(Scheme::Http)));
        assert!(plain("http://m.example:5000/v2/"));
        assert!(plain("http://m.example/token"));
        for url in [
            "http://r.example/",
            "http://localhost/",
            "http://m.example.org/",
        ] {
            assert!(!plain(url), "{url}");
        }
        let unsaid = permits(&Endpoint::mirror("m.example", None));
        assert!(!unsaid("http://m.example/"));
    }

    #[test]
    fn docker_hub_is_asked_where_its_interface_is() {
        let hub = Endpoint::registry("docker.io", &Access::default());
        let address = hub.address(Scheme::Https).unwrap();
        assert_eq!(address.as_str(), "https://registry-1.docker.io/v2/");
    }
}
