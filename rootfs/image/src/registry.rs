//! Registries: the OCI distribution protocol over HTTP.
//!
//! [`Client`] talks to one registry about one repository. It decides over transport, authentication
//! and when to try again; everything that it gives has the digest that was asked for. Choosing an
//! image and putting it into the store is the business of [`Store::pull`](crate::Store::pull), and
//! what to send that of [`Store::push`](crate::Store::push).
//!
//! A registry is as hostile as an archive: no answer is read further than it may be long, none
//! makes us talk in plain text to others than this machine, and credentials go to the registry
//! and the token server that it names only, encrypted. A mirror is a registry in all that, with
//! credentials of its own.

mod authorization;
mod backoff;
mod challenge;
mod credentials;
mod download;
mod endpoint;
mod error;
mod mirrors;
mod token;
mod transport;
mod upload;

use std::sync::Once;

use oci_spec::image::MediaType;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

pub use challenge::{Challenge, parse_challenges};
pub use credentials::{AuthFiles, Credentials, CredentialsError, HelperError};
pub use error::RegistryError;
pub use mirrors::{Mirrors, MirrorsError};
pub use token::{TokenError, parse_token};

use crate::manifest::Kind;
use crate::{Digest, Limits, Progress, Reference, digest};
use authorization::{Authorization, Purpose};
use backoff::Backoff;
pub(crate) use download::DownloadError;
pub(crate) use endpoint::Endpoint;
use endpoint::Scheme;
use transport::Transport;
pub(crate) use upload::{UploadError, Uploaded};

/// The documents that we understand, for `Accept`.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";
/// In which registries state the digest of a manifest.
const CONTENT_DIGEST: &str = "docker-content-digest";
/// What a registry may say about an error, in bytes.
const MESSAGE_MAX: u64 = 16 << 10;
/// How much of that is shown.
const SHOWN_MAX: usize = 300;
/// Bytes of a token server's answer.
const TOKEN_ANSWER_MAX: u64 = 256 << 10;
const REDIRECTS_MAX: usize = 10;

/// How a registry is to be talked to.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Allow plain HTTP, and HTTPS with a certificate that nobody vouches for. On this machine
    /// (localhost) plain HTTP is always allowed.
    pub insecure: bool,
}

/// A manifest or an index as a registry gave it; its digest is checked if one was asked for.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) media_type: MediaType,
}

/// One registry, about one repository.
pub(crate) struct Client<'a> {
    transport: Transport<'a>,
    base: Url,
    repository: String,
    authorization: Authorization,
}

impl<'a> Client<'a> {
    /// Prepares to talk to `endpoint` about `reference`, and finds out how that can be reached
    /// where there is a choice.
    pub(crate) async fn connect(
        endpoint: &Endpoint,
        reference: &Reference,
        credentials: Option<Credentials>,
        progress: &'a dyn Progress,
    ) -> Result<Self, RegistryError> {
        let repository = reference.repository().to_owned();
        let scopes = vec![format!("repository:{repository}:pull")];
        let authorization = Authorization::new(credentials, scopes, Purpose::Read);
        Self::new(endpoint, repository, authorization, progress).await
    }

    /// [`Client::connect`] to put something there. `others` are repositories of the registry from
    /// which blobs may be taken over.
    pub(crate) async fn connect_to_write(
        reference: &Reference,
        others: &[String],
        credentials: Option<Credentials>,
        access: &Access,
        progress: &'a dyn Progress,
    ) -> Result<Self, RegistryError> {
        let repository = reference.repository().to_owned();
        let mut scopes = vec![format!("repository:{repository}:pull,push")];
        scopes.extend(
            others
                .iter()
                .map(|other| format!("repository:{other}:pull")),
        );
        let authorization = Authorization::new(credentials, scopes, Purpose::Write);
        let endpoint = Endpoint::registry(reference.registry(), access);
        Self::new(&endpoint, repository, authorization, progress).await
    }

    async fn new(
        endpoint: &Endpoint,
        repository: String,
        authorization: Authorization,
        progress: &'a dyn Progress,
    ) -> Result<Self, RegistryError> {
        let mut client = Self {
            transport: Transport::new(endpoint, progress)?,
            base: endpoint.address(endpoint.scheme.unwrap_or(Scheme::Https))?,
            repository,
            authorization,
        };
        let has_choice = endpoint.insecure || client.transport.is_local();
        if has_choice && endpoint.scheme.is_none() {
            client.find_scheme(endpoint).await?;
        }
        Ok(client)
    }

    /// Finds out whether a registry that may be asked in plain text speaks TLS.
    async fn find_scheme(&mut self, endpoint: &Endpoint) -> Result<(), RegistryError> {
        let what = "its interface";
        let request = || self.transport.http.get(self.base.clone());
        let Err(encrypted) = request().send().await else {
            return Ok(());
        };
        let plain = endpoint.address(Scheme::Http)?;
        let request = || self.transport.http.get(plain.clone());
        let response = self
            .transport
            .exchange(request, what, &mut Backoff::default())
            .await?;
        // What servers answer to a request in plain text where they expect TLS.
        if response.status() == StatusCode::BAD_REQUEST {
            return Err(self.transport.unreachable(what, encrypted));
        }
        self.base = plain;
        Ok(())
    }

    /// Fetches the manifest or index that `reference`, a tag or digest, stands for.
    pub(crate) async fn manifest(
        &self,
        reference: &str,
        limit: u64,
    ) -> Result<Document, RegistryError> {
        let what = if reference.contains(':') {
            format!("manifest {}@{reference}", self.repository)
        } else {
            format!("manifest {}:{reference}", self.repository)
        };
        let url = self.url("manifests", reference)?;
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES))]);
        let mut backoff = Backoff::default();
        let (bytes, content_type, stated) = loop {
            let response = self.get(&url, &headers, &what, &mut backoff).await?;
            self.demand_success(&response, &what)?;
            let header = |name: &str| {
                let value = response.headers().get(name)?.to_str().ok()?;
                Some(value.to_owned())
            };
            let content_type = header("content-type").unwrap_or_default();
            let stated = header(CONTENT_DIGEST).and_then(|text| digest::parse(&text));
            let body = self.transport.body(response, limit, &what).await;
            let body = body.map_err(|err| match err {
                RegistryError::TooLarge {
                    registry,
                    what,
                    limit,
                } => RegistryError::OverLimit {
                    registry,
                    what,
                    limit,
                    setting: Limits::MANIFEST_SIZE,
                },
                err => err,
            })?;
            match body {
                Ok(bytes) => break (bytes, content_type, stated),
                Err(source) => {
                    self.transport
                        .wait(&mut backoff, &what, Some(source))
                        .await?;
                }
            }
        };
        let found = digest::of(&bytes);
        // What is named by its tag has no digest to match but the one that the registry states,
        // if it does: damage on the way shows there.
        if let Some(expected) = digest::parse(reference).or(stated)
            && expected != found
        {
            return Err(RegistryError::Digest {
                registry: self.transport.registry.clone(),
                what,
                expected: expected.to_string(),
                found: found.to_string(),
            });
        }
        Ok(Document {
            media_type: self.media_type(&bytes, &content_type, what)?,
            bytes,
            digest: found,
        })
    }

    /// Fetches a small blob, of a size that the caller has seen to be sensible.
    pub(crate) async fn document(
        &self,
        digest: &Digest,
        size: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let what = format!("blob {digest}");
        let url = self.url("blobs", digest.as_ref())?;
        let registry = || self.transport.registry.clone();
        let mut backoff = Backoff::default();
        let bytes = loop {
            let response = self
                .get(&url, &HeaderMap::new(), &what, &mut backoff)
                .await?;
            self.demand_success(&response, &what)?;
            match self.transport.body(response, size, &what).await? {
                Ok(bytes) => break bytes,
                Err(source) => {
                    self.transport
                        .wait(&mut backoff, &what, Some(source))
                        .await?;
                }
            }
        };
        if bytes.len() as u64 != size {
            return Err(RegistryError::Size {
                registry: registry(),
                what,
                expected: size,
                found: bytes.len() as u64,
            });
        }
        let found = digest::of(&bytes);
        if found != *digest {
            return Err(RegistryError::Digest {
                registry: registry(),
                what,
                expected: digest.to_string(),
                found: found.to_string(),
            });
        }
        Ok(bytes)
    }

    /// What a document is: by its own word, else by that of the registry. The parsers check that
    /// it is what it says.
    fn media_type(
        &self,
        bytes: &[u8],
        content_type: &str,
        what: String,
    ) -> Result<MediaType, RegistryError> {
        #[derive(Deserialize)]
        struct Head {
            #[serde(rename = "mediaType")]
            media_type: Option<String>,
        }
        let own = serde_json::from_slice::<Head>(bytes)
            .ok()
            .and_then(|head| head.media_type);
        let sent = content_type.split(';').next().unwrap_or_default().trim();
        let media_type = MediaType::from(own.as_deref().unwrap_or(sent));
        match Kind::of(&media_type) {
            Kind::Manifest | Kind::Index => Ok(media_type),
            _ => Err(RegistryError::MediaType {
                registry: self.transport.registry.clone(),
                what,
                media_type: media_type.to_string().chars().take(SHOWN_MAX).collect(),
            }),
        }
    }

    /// Sends a GET, authenticated as the registry wants it. Answers are a success, 416, or an
    /// error.
    async fn get(
        &self,
        url: &Url,
        headers: &HeaderMap,
        what: &str,
        backoff: &mut Backoff,
    ) -> Result<Response, RegistryError> {
        let http = &self.transport.http;
        let request = || http.get(url.clone()).headers(headers.clone());
        let response = self.send(request, what, backoff).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Err(RegistryError::NotFound {
                registry: self.transport.registry.clone(),
                what: what.to_owned(),
            }),
            status if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE => {
                Ok(response)
            }
            _ => Err(self.transport.status(response, what).await),
        }
    }

    /// Sends a request, authenticated as the registry wants it, until the answer is neither
    /// "later" nor about who we are.
    async fn send(
        &self,
        request: impl Fn() -> RequestBuilder,
        what: &str,
        backoff: &mut Backoff,
    ) -> Result<Response, RegistryError> {
        let mut refreshed = false;
        loop {
            let authorization = self.authorization.current().await;
            let request = || match &authorization {
                Some(value) => request().header(AUTHORIZATION, value),
                None => request(),
            };
            let response = self.transport.exchange(request, what, backoff).await?;
            match response.status() {
                StatusCode::UNAUTHORIZED if !refreshed => {
                    self.authorization
                        .renew(&self.transport, &response, authorization.as_ref(), what)
                        .await?;
                    refreshed = true;
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(self.authorization.refused(&self.transport, what));
                }
                _ => return Ok(response),
            }
        }
    }

    fn demand_success(&self, response: &Response, what: &str) -> Result<(), RegistryError> {
        if response.status() == StatusCode::OK {
            return Ok(());
        }
        Err(RegistryError::Status {
            registry: self.transport.registry.clone(),
            what: what.to_owned(),
            status: response.status(),
            said: String::new(),
        })
    }

    fn url(&self, kind: &str, name: &str) -> Result<Url, RegistryError> {
        // Repository, tag and digest were checked: nothing in them needs to be escaped.
        let path = format!("{}/{kind}/{name}", self.repository);
        self.base
            .join(&path)
            .map_err(|_| RegistryError::Address(path))
    }
}

/// Whether `registry` takes these credentials.
pub fn check_login(
    registry: &str,
    credentials: Credentials,
    access: &Access,
    progress: &dyn Progress,
) -> Result<(), RegistryError> {
    run(async {
        let authorization = Authorization::new(Some(credentials), Vec::new(), Purpose::Read);
        let endpoint = Endpoint::registry(registry, access);
        let client = Client::new(&endpoint, String::new(), authorization, progress).await?;
        let what = "a login";
        let mut backoff = Backoff::default();
        let response = client
            .get(&client.base, &HeaderMap::new(), what, &mut backoff)
            .await?;
        client.demand_success(&response, what)
    })
}

/// Runs requests on this thread.
pub(crate) fn run<T, E: From<RegistryError>>(
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    static TLS: Once = Once::new();
    // Somebody else's choice, made before, is as good.
    TLS.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Names are looked up on others.
        .thread_name("registry-dns")
        .build()
        .map_err(RegistryError::Runtime)?
        .block_on(future)
}
