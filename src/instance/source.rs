//! What a machine's file system starts from.

use std::path::PathBuf;
use std::sync::Arc;

use super::Error;
use super::progress::Sink;
use crate::machine::boot::provider::Provider;
use crate::machine::boot::userland;
use crate::vfs::layer::Layer;
use crate::vfs::{FileSystem, Limits, Overlay};

/// What a machine's file system starts from. Cheap to clone; one source can start any number of
/// machines.
///
/// No machine ever changes its source: what it writes goes to a layer of its own, which ends with it.
#[derive(Clone, Debug)]
pub struct Source {
    pub(super) kind: Kind,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// The layer around a static busybox.
    Busybox(Layer),
}

impl Source {
    /// The built-in userland: a distribution's static busybox with all its applets.
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
        let layer = userland::layer(&bytes)
            .map_err(|source| Error::Host { what: "writing the built-in userland", source })?;
        Ok(Self { kind: Kind::Busybox(layer) })
    }

    /// A writable file system that starts as this source is, for one machine.
    pub(super) fn root(&self, limits: Limits) -> Result<Arc<dyn FileSystem>, Error> {
        match &self.kind {
            Kind::Busybox(layer) => {
                let overlay = Overlay::new(vec![layer.clone()], limits)
                    .map_err(|e| Error::Root { what: "the built-in userland".into(), source: Box::new(e) })?;
                Ok(Arc::new(overlay))
            }
        }
    }
}
