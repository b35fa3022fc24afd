//! What a machine's file system starts from.

use std::path::PathBuf;
use std::sync::Arc;

use super::Error;
use super::progress::Sink;
use crate::machine::boot::provider::Provider;

/// What a machine's file system starts from. Cheap to clone; one source can start any number of
/// machines.
#[derive(Clone)]
pub struct Source {
    pub(super) kind: Kind,
}

#[derive(Clone)]
pub(super) enum Kind {
    /// The bytes of a static busybox.
    Busybox(Arc<[u8]>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.kind {
            Kind::Busybox(bytes) => write!(f, "Source::busybox ({} bytes)", bytes.len()),
        }
    }
}

impl Source {
    /// The built-in userland: a distribution's static busybox with all its applets, in RAM.
    ///
    /// It comes from the cache, the system's package manager or a distribution's CDN, in this
    /// order; `CC_BUSYBOX` names a file to use instead. The first time this downloads some hundred
    /// kilobytes; a bar shows on standard error if that is a terminal (`CC_PROGRESS=never` hides it).
    ///
    /// # Errors
    /// [`Error::Boot`] with every way that was tried.
    pub fn busybox() -> Result<Self, Error> {
        Self::busybox_from(Provider::new())
    }

    /// [`Source::busybox`] with a cache directory of the caller's, see
    /// [`InstanceBuilder::cache_dir`](super::InstanceBuilder::cache_dir).
    pub fn busybox_in(cache_dir: impl Into<PathBuf>) -> Result<Self, Error> {
        Self::busybox_from(Provider::new().with_cache_dir(cache_dir))
    }

    fn busybox_from(provider: Provider) -> Result<Self, Error> {
        let bytes = Sink::Terminal.during(|report| provider.busybox(report))?;
        Ok(Self { kind: Kind::Busybox(bytes.into()) })
    }
}
