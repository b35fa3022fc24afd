//! What can go wrong with images, in words that say what to do next.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::vfs::layer::TarError;

/// An error that lies below one of this module's.
pub(super) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// An error of pulling, loading or keeping images. Never shows a password or token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A reference cannot be understood.
    #[error(
        "{reference:?} is no image reference: {reason}; write it like alpine, alpine:3.20, \
         registry.example.com/team/app:1 or alpine@sha256:<64 hexadecimal digits>"
    )]
    Reference {
        /// What was given.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The registry wants a login, or refuses the one it got (401).
    #[error(
        "{server} does not let us read {image}: {reason}; log in with `docker login {server}` or give credentials \
         to the client's builder"
    )]
    Unauthorized {
        /// The server.
        server: String,
        /// The image.
        image: String,
        /// What was tried.
        reason: String,
    },
    /// The registry knows who asks and refuses (403).
    #[error("{server} forbids reading {image}{message}; the account in use needs the right to pull it")]
    Forbidden {
        /// The server.
        server: String,
        /// The image.
        image: String,
        /// What the server said.
        message: String,
    },
    /// There is no such image, tag or blob (404).
    #[error("{server} has no {image}{message}; check the name and tag, and log in if the image is private")]
    NotFound {
        /// The server.
        server: String,
        /// The image.
        image: String,
        /// What the server said.
        message: String,
    },
    /// The image is not in the store, and the policy forbids asking a registry.
    #[error("{image} is not in the store at {}; pull it with another policy first", store.display())]
    NotLocal {
        /// The image.
        image: String,
        /// The store.
        store: PathBuf,
    },
    /// There is no snapshot of a file system with this key in the store, or not all of it.
    #[error("there is no snapshot {key} in the store at {}", store.display())]
    NoSnapshot {
        /// The key.
        key: String,
        /// The store.
        store: PathBuf,
    },
    /// The changes of a file system cannot be written as a layer: a name that begins with `.wh.`, which means something
    /// else there, a path that is too long for a layer, or data that cannot be read.
    #[error("the changes of the file system cannot be a layer")]
    Changes {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image exists, but not for the platform.
    #[error("{image} is not there for {wanted}; it is for {}", list(available))]
    Platform {
        /// The image.
        image: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        available: Vec<String>,
    },
    /// Something answered that is no registry, such as a proxy's login page.
    #[error(
        "{server} answered with {what} instead of an image's description; is it a registry, and does no proxy or \
         captive portal stand before it?"
    )]
    NotARegistry {
        /// The server.
        server: String,
        /// What it answered.
        what: String,
    },
    /// The registry wants us to wait longer than we are willing to (429, 503).
    #[error("{server} limits how often it is asked{}; wait, or log in for a higher limit", wait(*retry_after))]
    RateLimited {
        /// The server.
        server: String,
        /// For how long it asked us to wait.
        retry_after: Option<Duration>,
    },
    /// The registry answered with a failure, and again when it was asked again.
    #[error("{server} answered {status}{message}; try again later")]
    Status {
        /// The server.
        server: String,
        /// The HTTP status.
        status: u16,
        /// What the server said.
        message: String,
    },
    /// The server cannot be reached, or the connection breaks each time.
    #[error("talking to {server} failed; check the network and the registry's name")]
    Network {
        /// The server.
        server: String,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The server sent nothing, or next to nothing, for the no-progress timeout.
    #[error("{server} sent nothing for {} s; check the network or try again", timeout.as_secs_f32())]
    Stalled {
        /// The server.
        server: String,
        /// The timeout.
        timeout: Duration,
    },
    /// A redirect that must not be followed.
    #[error("{server} redirects to where we do not follow: {reason}")]
    Redirect {
        /// The server.
        server: String,
        /// Why not.
        reason: String,
    },
    /// Content is not what its digest says.
    #[error("{what} from {server} is {found} instead of {expected}; nothing of it was kept")]
    Digest {
        /// What was read.
        what: String,
        /// Where it is from.
        server: String,
        /// The digest it should have.
        expected: String,
        /// The digest it has, or what else tells it apart.
        found: String,
    },
    /// A manifest, index, configuration or archive is malformed.
    #[error("{what} is malformed: {reason}")]
    Malformed {
        /// What was read.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something well-formed that this crate does not support.
    #[error("{what} is not supported")]
    Unsupported {
        /// What it is.
        what: String,
    },
    /// Something is larger than the limit for it.
    #[error("{what} is larger than the limit of {limit} bytes{hint}")]
    TooLarge {
        /// What it is.
        what: String,
        /// The limit in bytes.
        limit: u64,
        /// Which option raises it, if one does.
        hint: &'static str,
    },
    /// A layer is no proper tar.
    #[error("{layer} cannot be used")]
    Layer {
        /// The layer.
        layer: String,
        /// Why.
        #[source]
        source: TarError,
    },
    /// The store cannot be read or written.
    #[error("cannot {action} {}{}", path.display(), full(source))]
    Store {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// Another process holds what is needed and makes no progress.
    #[error("another process has {what} locked and makes no progress; end it or try again")]
    Busy {
        /// What is locked.
        what: String,
    },
    /// There is no directory to keep images in.
    #[error(
        "there is no cache directory: this user has no home; set CC_CACHE_DIR or give one to the client's builder"
    )]
    NoCacheDirectory,
    /// An option of the builder is wrong.
    #[error("the option {option} is wrong: {reason}")]
    Option {
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The stored credentials for a registry cannot be had.
    #[error(
        "the credentials for {registry} cannot be had: {reason}; run `docker login {registry}` again or give them to the client's builder"
    )]
    Credentials {
        /// The registry.
        registry: String,
        /// Why.
        reason: String,
    },
    /// The host refused what pulling needs.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        #[source]
        source: Cause,
    },
}

fn list(platforms: &[String]) -> String {
    if platforms.is_empty() { "no platform at all".into() } else { platforms.join(", ") }
}

fn wait(after: Option<Duration>) -> String {
    after.map_or_else(String::new, |after| format!(" and wants us to wait {} s", after.as_secs()))
}

fn full(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": the disk is full; make room, for example by pruning images"
        }
        _ => "",
    }
}

impl Error {
    /// The [`io::ErrorKind`] closest to this error.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Unauthorized { .. } | Self::Forbidden { .. } => io::ErrorKind::PermissionDenied,
            Self::NotFound { .. }
            | Self::NotLocal { .. }
            | Self::NoSnapshot { .. }
            | Self::Platform { .. }
            | Self::NoCacheDirectory => io::ErrorKind::NotFound,
            Self::Reference { .. } | Self::Option { .. } => io::ErrorKind::InvalidInput,
            Self::Unsupported { .. } => io::ErrorKind::Unsupported,
            Self::Stalled { .. } => io::ErrorKind::TimedOut,
            Self::RateLimited { .. } | Self::Busy { .. } => io::ErrorKind::ResourceBusy,
            Self::Network { .. } => io::ErrorKind::ConnectionAborted,
            Self::NotARegistry { .. }
            | Self::Digest { .. }
            | Self::Malformed { .. }
            | Self::TooLarge { .. }
            | Self::Layer { .. } => io::ErrorKind::InvalidData,
            Self::Store { source, .. } | Self::Changes { source } => source.kind(),
            _ => io::ErrorKind::Other,
        }
    }

    pub(super) fn store(action: &'static str, path: &std::path::Path) -> impl Fn(io::Error) -> Error + use<> {
        let path = path.to_owned();
        move |source| Error::Store { action, path: path.clone(), source }
    }

    pub(super) fn malformed(what: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Malformed { what: what.into(), reason: reason.into() }
    }
}

impl From<Error> for io::Error {
    fn from(e: Error) -> Self {
        io::Error::new(e.kind(), e)
    }
}

/// What a server said, made fit for one line of a message.
pub(super) fn quoted(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    let text = text.trim();
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}
