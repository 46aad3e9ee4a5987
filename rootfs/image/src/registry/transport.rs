//! HTTP to one registry: which addresses may be asked, how long, and how often.

use std::error::Error as _;
use std::io;
use std::time::{Duration, SystemTime};

use reqwest::header::RETRY_AFTER;
use reqwest::redirect::Policy;
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::backoff::{Backoff, Patience, Verdict, parse_retry_after};
use super::endpoint::{Endpoint, Rule};
use super::{MESSAGE_MAX, REDIRECTS_MAX, RegistryError, SHOWN_MAX};
use crate::Progress;

/// HTTP to one registry.
pub(super) struct Transport<'a> {
    pub(super) http: reqwest::Client,
    /// For what takes long to send: silence is measured otherwise there.
    pub(super) uploads: reqwest::Client,
    pub(super) registry: String,
    progress: &'a dyn Progress,
    rule: Rule,
    patience: Patience,
}

impl<'a> Transport<'a> {
    pub(super) fn new(
        endpoint: &Endpoint,
        progress: &'a dyn Progress,
    ) -> Result<Self, RegistryError> {
        let rule = endpoint.rule()?;
        let client = |silence: Option<Duration>| {
            let mut builder = reqwest::Client::builder()
                .user_agent(concat!("hrun/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(endpoint.connect_timeout)
                .redirect(redirects(rule.clone()))
                // This is where tries are counted.
                .retry(reqwest::retry::never())
                .tls_danger_accept_invalid_certs(endpoint.insecure);
            if let Some(silence) = silence {
                builder = builder.read_timeout(silence);
            }
            if rule.local {
                // No proxy knows the way to what is on this machine.
                builder = builder.no_proxy();
            }
            builder.build().map_err(RegistryError::Client)
        };
        Ok(Self {
            http: client(Some(endpoint.silence_max))?,
            uploads: client(None)?,
            registry: endpoint.name.clone(),
            progress,
            rule,
            patience: endpoint.patience,
        })
    }

    pub(super) fn is_local(&self) -> bool {
        self.rule.local
    }

    pub(super) fn permits(&self, url: &Url) -> bool {
        self.rule.permits(url)
    }

    /// Sends a request until there is an answer that is not "later".
    pub(super) async fn exchange(
        &self,
        request: impl Fn() -> RequestBuilder,
        what: &str,
        backoff: &mut Backoff,
    ) -> Result<Response, RegistryError> {
        let mut unconnected = 0;
        loop {
            match request().send().await {
                Ok(response) if is_temporary(response.status()) => {
                    self.later(response, what, backoff).await?;
                }
                Ok(response) => return Ok(response),
                Err(err) => {
                    unconnected += u32::from(err.is_connect());
                    if is_final(&err) || unconnected >= self.patience.connect_failures_max {
                        return Err(self.unreachable(what, err));
                    }
                    self.wait(backoff, what, Some(err)).await?;
                }
            }
        }
    }

    /// Waits after an answer that is "later", or gives up.
    pub(super) async fn later(
        &self,
        response: Response,
        what: &str,
        backoff: &mut Backoff,
    ) -> Result<(), RegistryError> {
        let wait = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| parse_retry_after(value, SystemTime::now()));
        match backoff.failed(wait, self.patience) {
            Verdict::GiveUp => Err(self.status(response, what).await),
            verdict => {
                let problem = format!("answers {}", response.status());
                self.obey(verdict, &problem).await
            }
        }
    }

    /// Waits after a connection broke, or gives up. `source` is the error, if it was more than an
    /// early end.
    pub(super) async fn wait(
        &self,
        backoff: &mut Backoff,
        what: &str,
        source: Option<reqwest::Error>,
    ) -> Result<(), RegistryError> {
        let verdict = backoff.failed(None, self.patience);
        if verdict == Verdict::GiveUp {
            return Err(RegistryError::Broken {
                registry: self.registry.clone(),
                what: what.to_owned(),
                source: source.map(reqwest::Error::without_url),
            });
        }
        let problem = match source {
            Some(err) if err.is_timeout() => "does not answer in time",
            Some(err) if err.is_connect() => "cannot be reached",
            _ => "broke the connection off",
        };
        self.obey(verdict, problem).await
    }

    async fn obey(&self, verdict: Verdict, problem: &str) -> Result<(), RegistryError> {
        match verdict {
            Verdict::TryAfter(wait) => {
                // The first waits are too short to be told about.
                if wait >= Duration::from_secs(1) {
                    let seconds = wait.as_secs_f32();
                    self.progress.note(&format!(
                        "{} {problem}: trying again in {seconds:.0} s",
                        self.registry
                    ));
                }
                tokio::time::sleep(wait).await;
                Ok(())
            }
            Verdict::TooLong(wait) => Err(RegistryError::RateLimited {
                registry: self.registry.clone(),
                wait,
            }),
            Verdict::GiveUp => unreachable!("whoever gives up has the better error"),
        }
    }

    /// Reads a whole answer that may have `limit` bytes. The inner error is a broken connection.
    pub(super) async fn body(
        &self,
        mut response: Response,
        limit: u64,
        what: &str,
    ) -> Result<Result<Vec<u8>, reqwest::Error>, RegistryError> {
        let mut bytes = Vec::new();
        let mut announced = response.content_length().unwrap_or(0);
        loop {
            if announced.max(bytes.len() as u64) > limit {
                return Err(RegistryError::TooLarge {
                    registry: self.registry.clone(),
                    what: what.to_owned(),
                    limit,
                });
            }
            announced = 0;
            match response.chunk().await {
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => return Ok(Ok(bytes)),
                Err(err) => return Ok(Err(err)),
            }
        }
    }

    pub(super) fn unreachable(&self, what: &str, source: reqwest::Error) -> RegistryError {
        RegistryError::Unreachable {
            registry: self.registry.clone(),
            what: what.to_owned(),
            // Addresses of blobs can hold signatures that let anybody read them.
            source: source.without_url(),
        }
    }

    /// The error for an answer, with what the registry says about it.
    pub(super) async fn status(&self, response: Response, what: &str) -> RegistryError {
        let status = response.status();
        let said = match self.body(response, MESSAGE_MAX, what).await {
            Ok(Ok(bytes)) => message(&bytes),
            _ => None,
        };
        RegistryError::Status {
            registry: self.registry.clone(),
            what: what.to_owned(),
            status,
            said: said.map_or_else(String::new, |said| format!(": {said}")),
        }
    }
}

/// Follows redirects to where `rule` lets us go.
fn redirects(rule: Rule) -> Policy {
    Policy::custom(move |attempt| {
        if attempt.previous().len() > REDIRECTS_MAX {
            attempt.error("too many redirects")
        } else if !rule.permits(attempt.url()) {
            attempt.error("a redirect to an address that is not encrypted")
        } else {
            attempt.follow()
        }
    })
}

/// What to try again: the server's trouble, not ours.
pub(super) fn is_temporary(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// Whether trying again would be no use: nobody listens there, or we were sent where we do not go.
pub(super) fn is_final(err: &reqwest::Error) -> bool {
    if err.is_redirect() || err.is_builder() {
        return true;
    }
    let mut cause = err.source();
    while let Some(err) = cause {
        if let Some(err) = err.downcast_ref::<io::Error>()
            && err.kind() == io::ErrorKind::ConnectionRefused
        {
            return true;
        }
        cause = err.source();
    }
    false
}

/// The first message in a registry's list of errors, in printable characters.
fn message(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Error>,
    }
    #[derive(Deserialize)]
    struct Error {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Errors { errors } = serde_json::from_slice(bytes).ok()?;
    let first = errors.into_iter().next()?;
    let text = if first.message.is_empty() {
        first.code
    } else {
        first.message
    };
    let text: String = text
        .chars()
        .filter(|c| !c.is_control())
        .take(SHOWN_MAX)
        .collect();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_says_is_shown_without_control_characters() {
        let said = |text: &str| message(text.as_bytes());
        let text = r#"{"errors": [{"code": "DENIED", "message": "no\u001b[2J way"}]}"#;
        assert_eq!(said(text).unwrap(), "no[2J way");
        assert_eq!(
            said(r#"{"errors": [{"code": "DENIED"}]}"#).unwrap(),
            "DENIED"
        );
        assert_eq!(said(r#"{"errors": []}"#), None);
        assert_eq!(said("<html>"), None);
        let long = format!(r#"{{"errors": [{{"message": "{}"}}]}}"#, "x".repeat(5000));
        assert_eq!(said(&long).unwrap().len(), SHOWN_MAX);
    }
}
