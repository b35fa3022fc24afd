//! An image that is in the store, pinned.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::export::export;
use super::store::{Record, Store};
use super::{Digest, Error, ImageConfig};
use crate::vfs::layer::Layer;

/// An image whose layers are in the store and stay there while this value, or a machine that runs from it, lives.
/// Cheap to clone.
#[derive(Clone)]
pub struct Image {
    inner: Arc<Inner>,
}

struct Inner {
    record: Record,
    layers: Vec<Layer>,
    store: Store,
}

impl Image {
    pub(super) fn new(record: Record, layers: Vec<Layer>, store: Store) -> Image {
        Image { inner: Arc::new(Inner { record, layers, store }) }
    }

    /// The full reference it was pulled or loaded by; `None` for one that was loaded without a name.
    pub fn reference(&self) -> Option<&str> {
        self.inner.record.reference.as_deref()
    }

    /// The digest of its manifest: what it is, whatever it is called.
    pub fn digest(&self) -> &Digest {
        &self.inner.record.digest
    }

    /// What it says about how its programs are run.
    pub fn config(&self) -> &ImageConfig {
        &self.inner.record.config
    }

    /// Its layers, lowest first: none for an image whose root is empty.
    pub fn layers(&self) -> &[Layer] {
        &self.inner.layers
    }

    /// Bytes of its unpacked layers.
    pub fn size(&self) -> u64 {
        self.inner.layers.iter().map(|layer| layer.index().tar_len()).sum()
    }

    /// Writes it as an OCI layout into a directory, which must be empty or not exist. Layers are uncompressed, so its
    /// manifest there has another digest, which is returned.
    ///
    /// # Errors
    /// [`Error::Option`] for a directory that is not empty; [`Error::Store`]. What was written stays.
    pub fn export(&self, dir: impl AsRef<Path>) -> Result<Digest, Error> {
        export(self, dir.as_ref())
    }

    pub(super) fn store(&self) -> &Store {
        &self.inner.store
    }

    pub(super) fn record(&self) -> &Record {
        &self.inner.record
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("reference", &self.reference())
            .field("digest", self.digest())
            .field("layers", &self.layers().len())
            .finish_non_exhaustive()
    }
}
