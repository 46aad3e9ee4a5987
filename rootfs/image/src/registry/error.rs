//! Why a registry gave or took nothing.

use std::io;
use std::time::Duration;

use reqwest::StatusCode;

use super::credentials::CredentialsError;
use super::token::TokenError;
use crate::manifest::ManifestError;

/// Why a registry gave or took nothing.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The HTTP client cannot be made, as with a proxy variable that is no address.
    #[error("Failed to set up HTTP: is a proxy variable such as HTTPS_PROXY wrong?")]
    Client(#[source] reqwest::Error),
    /// The system gives us nothing to wait with.
    #[error("Failed to prepare for connections: are there too many open files?")]
    Runtime(#[source] io::Error),
    /// A registry or a token server whose name makes no address.
    #[error("{0:?} is not an address of the web")]
    Address(String),
    /// No answer.
    #[error("Failed to reach the registry {registry} for {what}: check its name and the network")]
    Unreachable {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The connection broke again and again.
    #[error(
        "The registry {registry} breaks off before {what} is complete: try again, it continues"
    )]
    Broken {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// The last error, if it was more than an early end.
        source: Option<reqwest::Error>,
    },
    /// An answer that is none of those below.
    #[error("The registry {registry} answers {status} to the request for {what}{said}")]
    Status {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Its answer.
        status: StatusCode,
        /// What it says about it, with a colon in front; may be empty.
        said: String,
    },
    /// There is no such thing.
    #[error("The registry {registry} has no {what}: check the name, the tag and the spelling")]
    NotFound {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// The registry wants to be left alone for a while.
    #[error(
        "The registry {registry} wants no requests for {} seconds: try again then, or log in with \
         `hrun login {registry}` for a higher limit",
        wait.as_secs()
    )]
    RateLimited {
        /// The registry.
        registry: String,
        /// For how long.
        wait: Duration,
    },
    /// Nobody said who we are.
    #[error(
        "The registry {registry} does not let everybody read {what}, or does not have it: check \
         the name, or log in with `hrun login {registry}`"
    )]
    LoginNeeded {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// Who we are does not help.
    #[error(
        "The registry {registry} refuses {what} to {user} (from {origin}): check the name, or log \
         in again with `hrun login {registry}`"
    )]
    Refused {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Whom it refused.
        user: String,
        /// Where the credentials came from.
        origin: String,
    },
    /// Whoever we are, we may not write there.
    #[error(
        "The registry {registry} refuses {what} to {who}: check the name, or log in with \
         `hrun login {registry}`"
    )]
    WriteRefused {
        /// The registry.
        registry: String,
        /// What was to be written.
        what: String,
        /// Whom it refused.
        who: String,
    },
    /// It was sent, and the registry has something else.
    #[error("The registry {registry} states the digest {found} for {what}, which is {expected}")]
    Stated {
        /// The registry.
        registry: String,
        /// What.
        what: String,
        /// What was sent.
        expected: String,
        /// What the registry says.
        found: String,
    },
    /// A way to authenticate that we do not know.
    #[error("The registry {registry} wants {wanted} authentication; hrun knows Basic and Bearer")]
    Scheme {
        /// The registry.
        registry: String,
        /// What it wants.
        wanted: String,
    },
    /// Credentials or content would travel in plain text.
    #[error(
        "The registry {registry} wants {url} to be asked, which is not encrypted: use --insecure \
         only if you trust the network"
    )]
    Plain {
        /// The registry.
        registry: String,
        /// The address.
        url: String,
    },
    /// The token server's answer is of no use.
    #[error("The answer of {server}, which gives tokens for {registry}, cannot be used")]
    Token {
        /// The registry.
        registry: String,
        /// The token server.
        server: String,
        /// Why.
        source: TokenError,
    },
    /// More bytes than the user's limit.
    #[error("{what} from {registry} is larger than {limit} bytes ({setting} allows more)")]
    OverLimit {
        /// The registry.
        registry: String,
        /// What.
        what: String,
        /// How many bytes it may have.
        limit: u64,
        /// The variable that sets the limit.
        setting: &'static str,
    },
    /// More bytes than there may be.
    #[error(
        "{what} from {registry} is larger than {limit} bytes, the most it may have: it is refused"
    )]
    TooLarge {
        /// The registry.
        registry: String,
        /// What.
        what: String,
        /// How many bytes it may have.
        limit: u64,
    },
    /// Another length than the manifest says.
    #[error(
        "{what} from {registry} has {found} bytes where {expected} are declared: it is refused"
    )]
    Size {
        /// The registry.
        registry: String,
        /// What.
        what: String,
        /// By the manifest.
        expected: u64,
        /// What was sent or announced.
        found: u64,
    },
    /// Other content than was asked for.
    #[error(
        "{what} from {registry} has the digest {found}, not {expected}: it was damaged or \
         replaced, and is refused"
    )]
    Digest {
        /// The registry.
        registry: String,
        /// What.
        what: String,
        /// What was asked for.
        expected: String,
        /// What came.
        found: String,
    },
    /// A document makes no sense.
    #[error("{what} from {registry} cannot be used")]
    Document {
        /// The registry.
        registry: String,
        /// Which.
        what: String,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// Something that is neither a manifest nor an index.
    #[error(
        "{what} from {registry} has the media type {media_type:?}, which is no image manifest \
         that hrun knows"
    )]
    MediaType {
        /// The registry.
        registry: String,
        /// What.
        what: String,
        /// Its media type.
        media_type: String,
    },
    /// Images for other machines only.
    #[error("{what} from {registry} is not there for {wanted}, only for {}", found.join(", "))]
    Platform {
        /// The registry.
        registry: String,
        /// What.
        what: String,
        /// What was looked for.
        wanted: String,
        /// What there is.
        found: Vec<String>,
    },
    /// An index that holds nothing that can run.
    #[error("{what} from {registry} lists no image")]
    Empty {
        /// The registry.
        registry: String,
        /// What.
        what: String,
    },
    /// Indexes in indexes, or lists without end.
    #[error("{what} from {registry} is no index as images have them: {reason}")]
    Absurd {
        /// The registry.
        registry: String,
        /// What.
        what: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The files with credentials.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}
