//! What a machine's file system starts from.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::progress::Sink;
use super::{Error, Snapshot};
use crate::machine::boot::provider::Provider;
use crate::machine::boot::userland;
use crate::machine::snapshot::SnapshotError;
use crate::oci::{FileSystemSnapshot, Image, ImageConfig};
use crate::vfs::layer::Layer;
use crate::vfs::{FileSystem, HostDirOptions, Limits, Overlay, OverlayError, Ownership};

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
    Image(Image),
    Directory(Arc<Path>, Ownership),
    Snapshot(Snapshot),
    FileSystem(FileSystemSnapshot),
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

    /// A root file system in a directory of the host, such as an unpacked image. The directory is never changed and
    /// never left; it should stand still while machines run from it. Owners are as on the host if this process is root
    /// there; else its own user's files look like root's.
    ///
    /// # Errors
    /// [`Error::Root`] when it is no directory that can be read.
    pub fn directory(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let failed =
            |e| Error::Root { what: format!("the directory {}", path.display()), source: Box::new(e) };
        // A relative path must mean the same when a machine starts.
        let path = std::path::absolute(path).map_err(failed)?;
        std::fs::read_dir(&path).map_err(failed)?;
        let ownership = match crate::sys::is_privileged() {
            true => Ownership::AsIs,
            false => Ownership::UserAsRoot,
        };
        Ok(Self { kind: Kind::Directory(path.into(), ownership) })
    }

    /// The image this is, if it is one.
    pub fn image(&self) -> Option<&Image> {
        match &self.kind {
            Kind::Image(image) => Some(image),
            _ => None,
        }
    }

    pub(super) fn config(&self) -> Option<&ImageConfig> {
        match &self.kind {
            Kind::Image(image) => Some(image.config()),
            Kind::FileSystem(snapshot) => snapshot.config(),
            _ => None,
        }
    }

    /// A writable file system that starts as this source is, for one machine.
    pub(super) fn root(&self, limits: Limits) -> Result<Arc<dyn FileSystem>, Error> {
        let (overlay, what) = match &self.kind {
            Kind::Busybox(layer) => {
                (Overlay::new(vec![layer.clone()], limits), "the built-in userland".to_owned())
            }
            Kind::Image(image) => {
                let name = image.reference().map_or_else(|| image.digest().to_string(), str::to_owned);
                (Overlay::new(image.layers().to_vec(), limits), format!("the image {name}"))
            }
            Kind::Directory(path, ownership) => {
                (over_directory(path, *ownership, limits), format!("the directory {}", path.display()))
            }
            Kind::FileSystem(snapshot) => {
                let what = format!("the snapshot {}", snapshot.key());
                match snapshot.directory() {
                    None => (Overlay::new(snapshot.layers().to_vec(), limits), what),
                    Some(path) => return changed_directory(snapshot, path, limits, what),
                }
            }
            // It brings its own.
            Kind::Snapshot(_) => return Err(Error::Snapshot(SnapshotError::NotReady("it has a root"))),
        };
        match overlay {
            Ok(overlay) => Ok(Arc::new(overlay)),
            Err(e) => Err(Error::Root { what, source: Box::new(e) }),
        }
    }
}

fn over_directory(path: &Path, ownership: Ownership, limits: Limits) -> Result<Overlay, OverlayError> {
    // It stands still, so what was seen of it stays true.
    let cache = Duration::from_secs(1 << 30);
    let options = HostDirOptions { ownership, cache, ..HostDirOptions::default() };
    Overlay::over_directory(path, options, limits)
}

/// The root of a snapshot with a directory at the beginning of its chain: layers cannot lie over that, so their changes
/// are made once more.
fn changed_directory(
    snapshot: &FileSystemSnapshot,
    path: &Path,
    limits: Limits,
    what: String,
) -> Result<Arc<dyn FileSystem>, Error> {
    let ownership = if snapshot.user_as_root() { Ownership::UserAsRoot } else { Ownership::AsIs };
    let failed = |source| Error::Root { what: what.clone(), source };
    let overlay = over_directory(path, ownership, limits).map_err(|e| failed(Box::new(e)))?;
    for layer in snapshot.layers() {
        crate::vfs::apply(&overlay, layer)
            .map_err(|e| failed(Box::new(std::io::Error::from_raw_os_error(e.raw()))))?;
    }
    Ok(Arc::new(overlay))
}

impl From<Image> for Source {
    fn from(image: Image) -> Self {
        Self { kind: Kind::Image(image) }
    }
}

impl From<Snapshot> for Source {
    fn from(snapshot: Snapshot) -> Self {
        Self { kind: Kind::Snapshot(snapshot) }
    }
}

impl From<&Snapshot> for Source {
    fn from(snapshot: &Snapshot) -> Self {
        snapshot.clone().into()
    }
}

impl From<&Image> for Source {
    fn from(image: &Image) -> Self {
        image.clone().into()
    }
}

impl From<&Source> for Source {
    fn from(source: &Source) -> Self {
        source.clone()
    }
}
