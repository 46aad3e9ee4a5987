//! What requests say about who sends them, and how that is had from a registry's challenge.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};
use tokio::sync::Mutex;

use super::backoff::Backoff;
use super::challenge::{Challenge, parse_challenges};
use super::credentials::{Credentials, Secret};
use super::token::parse_token;
use super::transport::Transport;
use super::{RegistryError, TOKEN_ANSWER_MAX};

/// Header values of challenges that are looked at.
const CHALLENGES_MAX: usize = 8;

/// What somebody wants of a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    Write,
}

/// The `Authorization` of requests about one repository.
pub(super) struct Authorization {
    credentials: Option<Credentials>,
    /// What tokens are asked for; nothing for a mere login.
    scopes: Vec<String>,
    /// What is done there, for the message if it is refused.
    pub(super) purpose: Purpose,
    current: Mutex<Option<HeaderValue>>,
}

impl Authorization {
    pub(super) fn new(
        credentials: Option<Credentials>,
        scopes: Vec<String>,
        purpose: Purpose,
    ) -> Self {
        let current = match &credentials {
            Some(Credentials {
                secret: Secret::RegistryToken(token),
                ..
            }) => secret(&format!("Bearer {token}")),
            _ => None,
        };
        Self {
            credentials,
            scopes,
            purpose,
            current: Mutex::new(current),
        }
    }

    pub(super) async fn current(&self) -> Option<HeaderValue> {
        self.current.lock().await.clone()
    }

    /// Gets what the challenges in `response` want, unless another request did so since `used`
    /// was sent.
    pub(super) async fn renew(
        &self,
        transport: &Transport<'_>,
        response: &Response,
        used: Option<&HeaderValue>,
        what: &str,
    ) -> Result<(), RegistryError> {
        let mut current = self.current.lock().await;
        if current.as_ref() != used {
            return Ok(());
        }
        let challenges: Vec<Challenge> = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .take(CHALLENGES_MAX)
            .filter_map(|value| value.to_str().ok())
            .flat_map(parse_challenges)
            .collect();
        let of = |scheme: &str| challenges.iter().find(|c| c.scheme == scheme);
        let value = if let Some(challenge) = of("bearer")
            && let Some(realm) = challenge.parameter("realm")
        {
            let service = challenge.parameter("service");
            let token = self.token(transport, realm, service, what).await?;
            secret(&format!("Bearer {token}"))
        } else if of("basic").is_some() {
            self.basic()
        } else {
            let wanted: Vec<&str> = challenges.iter().map(|c| c.scheme.as_str()).collect();
            return Err(RegistryError::Scheme {
                registry: transport.registry.clone(),
                wanted: match wanted.as_slice() {
                    [] => "an unnamed kind of".to_owned(),
                    some => some.join(" or "),
                },
            });
        };
        let Some(value) = value else {
            return Err(self.refused(transport, what));
        };
        *current = Some(value);
        Ok(())
    }

    /// The error if that did not help.
    pub(super) fn refused(&self, transport: &Transport<'_>, what: &str) -> RegistryError {
        let (registry, what) = (transport.registry.clone(), what.to_owned());
        if self.purpose == Purpose::Write {
            return RegistryError::WriteRefused {
                registry,
                what,
                who: match &self.credentials {
                    None => "everybody".to_owned(),
                    Some(credentials) => {
                        format!("{} (from {})", user(credentials), credentials.origin)
                    }
                },
            };
        }
        match &self.credentials {
            None => RegistryError::LoginNeeded { registry, what },
            Some(credentials) => RegistryError::Refused {
                registry,
                what,
                user: user(credentials),
                origin: credentials.origin.clone(),
            },
        }
    }

    fn basic(&self) -> Option<HeaderValue> {
        let credentials = self.credentials.as_ref()?;
        let Secret::Password(password) = &credentials.secret else {
            return None;
        };
        let pair = format!("{}:{password}", credentials.username);
        secret(&format!("Basic {}", STANDARD.encode(pair)))
    }

    /// Asks the token server `realm`, with our credentials if there are some.
    async fn token(
        &self,
        transport: &Transport<'_>,
        realm: &str,
        service: Option<&str>,
        what: &str,
    ) -> Result<String, RegistryError> {
        let url = Url::parse(realm).map_err(|_| RegistryError::Address(realm.to_owned()))?;
        if !transport.permits(&url) {
            return Err(RegistryError::Plain {
                registry: transport.registry.clone(),
                url: realm.to_owned(),
            });
        }
        let mut parameters: Vec<(&str, &str)> = Vec::new();
        parameters.extend(service.map(|service| ("service", service)));
        let scopes = self.scopes.join(" ");
        let identity = match &self.credentials {
            Some(Credentials {
                secret: Secret::IdentityToken(token),
                ..
            }) => Some(token),
            _ => None,
        };
        let request = || match identity {
            Some(token) => {
                let mut parameters = parameters.clone();
                // One field in a form, one each in a query.
                parameters.extend((!scopes.is_empty()).then_some(("scope", scopes.as_str())));
                parameters.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "hrun"),
                    ("refresh_token", token),
                ]);
                transport
                    .http
                    .post(url.clone())
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form(&parameters))
            }
            None => {
                let mut url = url.clone();
                url.query_pairs_mut()
                    .extend_pairs(&parameters)
                    .extend_pairs(self.scopes.iter().map(|scope| ("scope", scope)));
                let mut request = transport.http.get(url);
                if let Some(basic) = self.basic() {
                    request = request.header(reqwest::header::AUTHORIZATION, basic);
                }
                request
            }
        };
        let mut backoff = Backoff::default();
        loop {
            let asked = "an access token";
            let response = transport.exchange(&request, asked, &mut backoff).await?;
            match response.status() {
                StatusCode::OK => {}
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(self.refused(transport, what));
                }
                _ => return Err(transport.status(response, asked).await),
            }
            match transport.body(response, TOKEN_ANSWER_MAX, asked).await? {
                Ok(answer) => {
                    return parse_token(&answer).map_err(|source| RegistryError::Token {
                        registry: transport.registry.clone(),
                        server: url.host_str().unwrap_or_default().to_owned(),
                        source,
                    });
                }
                Err(err) => transport.wait(&mut backoff, asked, Some(err)).await?,
            }
        }
    }
}

fn user(credentials: &Credentials) -> String {
    match credentials.username.as_str() {
        "" => "the bearer of a token".to_owned(),
        name => name.to_owned(),
    }
}

/// A header value that shows up in no log; none if no header can carry it.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Parameters as a form posts them: which is as queries have them.
fn form(parameters: &[(&str, &str)]) -> String {
    let mut url = Url::parse("http://localhost/").expect("it is an address");
    url.query_pairs_mut().extend_pairs(parameters);
    url.query().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_escaped() {
        assert_eq!(
            form(&[("a", "b c&d"), ("e", "é=")]),
            "a=b+c%26d&e=%C3%A9%3D"
        );
    }

    #[test]
    fn a_secret_that_would_break_the_request_is_none() {
        assert!(secret("Bearer a\r\nHost: b").is_none());
        assert!(secret("Bearer a").unwrap().is_sensitive());
    }
}
