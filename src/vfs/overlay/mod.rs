//! Layers or a host directory with a writable upper; without anything below, a memory file system.
//!
//! The upper is a tree of nodes in memory. A directory that is made of layers' directories is never copied: it knows
//! them, and the names in it that changed. A file that is changed keeps showing the layer's bytes where it was not
//! written. Nodes of layers appear when they are looked up and go when they are forgotten unchanged, with the same
//! inode number each time, so neither opening an overlay nor listing a directory costs anything per file.
//!
//! Over a host directory it is the same: nothing is read before it is looked up, and nothing of the host is changed.
//! Node numbers are then the overlay's own, stable while a client knows the node, and the inode numbers shown are the
//! host's.
//!
//! A fork has nodes of its own and shares all that is large: file data by chunks, the names of a directory, extended
//! attributes, what is below. Whoever changes such a thing first copies it.
//!
//! One lock guards the tree; reading takes it shared. No host path is ever made from a name of a layer or a caller.
//! When a cap is reached, what needs more fails with `ENOSPC`; removing always works and makes room.

mod acl;
mod below;
mod chunk;
mod data;
#[cfg(target_os = "linux")]
mod directory;
#[cfg(not(target_os = "linux"))]
#[path = "no_directory.rs"]
mod directory;
#[cfg(all(test, target_os = "linux"))]
mod directory_tests;
mod export;
#[cfg(test)]
mod export_tests;
mod fork;
#[cfg(all(test, target_os = "linux"))]
mod fork_tests;
mod list;
mod lower;
mod make;
mod node;
mod ops;
mod rename;
mod saved;
#[cfg(all(test, target_os = "linux"))]
mod saved_tests;
mod shared;
mod source;
mod spill;
mod store;
mod tar_writer;
#[cfg(test)]
mod tests;
mod tree;
mod xattrs;

pub use store::Limits;

use std::sync::{Arc, RwLock};

use below::Below;
use lower::Lowers;
use store::Store;
use tree::Tree;

use super::layer::Layer;

/// Why layers cannot be put together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OverlayError {
    /// A hard link of a layer leads to nothing below it.
    #[error("layer {layer} has a hard link to {target:?}, which no layer below it has")]
    HardLink {
        /// Number of the layer, 0 for the lowest.
        layer: usize,
        /// The link's target.
        target: String,
    },
    /// Symbolic links that paths of a layer lead through take too long to follow.
    #[error("following the symbolic links that paths of layer {layer} lead through takes too long")]
    Links {
        /// Number of the layer, 0 for the lowest.
        layer: usize,
    },
    /// The host directory cannot be opened.
    #[error("the directory {} cannot be opened", path.display())]
    Directory {
        /// The directory.
        path: std::path::PathBuf,
        /// The host's error.
        source: std::io::Error,
    },
    /// The root of what is below cannot be read.
    #[error("the root directory cannot be read")]
    Root(#[source] super::Errno),
}

/// An overlay file system. See the module's description in [`vfs`](super).
#[derive(Debug)]
pub struct Overlay {
    below: Below,
    // Before the tree, so that with the last overlay the spill file is closed and not emptied slot by slot.
    store: Store,
    tree: RwLock<Tree>,
}

impl Overlay {
    /// Puts `layers` (lowest first) under an empty upper.
    ///
    /// # Errors
    /// [`OverlayError`] where a layer needs something of lower layers that is not there.
    pub fn new(layers: Vec<Layer>, limits: Limits) -> Result<Overlay, OverlayError> {
        Overlay::over(Below::Layers(Arc::new(Lowers::new(layers)?)), limits).map_err(OverlayError::Root)
    }

    /// Puts the host's directory `path` under an empty upper. Everything in it is seen as `options` say, `read_only`
    /// aside: the directory is never changed. Opening costs nothing per file.
    ///
    /// The directory should stand still meanwhile. What is changed on the host is seen as far as neither a change
    /// above it nor `options.cache` hides it; nothing outside the directory is ever reached.
    ///
    /// # Errors
    /// [`OverlayError::Directory`] where it cannot be opened.
    #[cfg(target_os = "linux")]
    pub fn over_directory(
        path: &std::path::Path,
        options: super::HostDirOptions,
        limits: Limits,
    ) -> Result<Overlay, OverlayError> {
        let directory = directory::Directory::new(path, options)
            .map_err(|source| OverlayError::Directory { path: path.to_owned(), source })?;
        Overlay::over(Below::Directory(directory), limits).map_err(OverlayError::Root)
    }

    fn over(below: Below, limits: Limits) -> super::Result<Overlay> {
        let tree = RwLock::new(Tree::new(&below)?);
        Ok(Overlay { below, store: Store::new(limits), tree })
    }

    /// An empty file system in memory.
    pub fn memory(limits: Limits) -> Overlay {
        let tree = RwLock::new(Tree::empty());
        Overlay { below: Below::Layers(Arc::default()), store: Store::new(limits), tree }
    }
}

#[cfg(test)]
impl Overlay {
    /// Pages, inodes and nodes looked up: what must be back to the start when all is removed and forgotten.
    pub(super) fn usage(&self) -> (u64, u64) {
        (self.store.pages(), self.store.inodes())
    }
}
