//! Layers with a writable upper; without layers, a memory file system.
//!
//! The upper is a tree of nodes in memory. A directory that is made of layers' directories is never copied: it knows
//! them, and the names in it that changed. A file that is changed keeps showing the layer's bytes where it was not
//! written. Nodes of layers appear when they are looked up and go when they are forgotten unchanged, with the same
//! inode number each time, so neither opening an overlay nor listing a directory costs anything per file.
//!
//! One lock guards the tree; reading takes it shared. No host path is ever made from a name of a layer or a caller.
//! When a cap is reached, what needs more fails with `ENOSPC`; removing always works and makes room.

mod acl;
mod data;
mod lower;
mod node;
mod ops;
mod store;
#[cfg(test)]
mod tests;
mod tree;

pub use store::Limits;

use std::sync::RwLock;

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
}

/// An overlay file system. See the module's description in [`vfs`](super).
#[derive(Debug)]
pub struct Overlay {
    lowers: Lowers,
    store: Store,
    tree: RwLock<Tree>,
}

impl Overlay {
    /// Puts `layers` (lowest first) under an empty upper.
    ///
    /// # Errors
    /// [`OverlayError`] where a layer needs something of lower layers that is not there.
    pub fn new(layers: Vec<Layer>, limits: Limits) -> Result<Overlay, OverlayError> {
        let lowers = Lowers::new(layers)?;
        let store = Store::new(limits);
        let tree = RwLock::new(Tree::new(&lowers));
        Ok(Overlay { lowers, store, tree })
    }

    /// An empty file system in memory.
    pub fn memory(limits: Limits) -> Overlay {
        let lowers = Lowers::default();
        let tree = RwLock::new(Tree::new(&lowers));
        Overlay { lowers, store: Store::new(limits), tree }
    }
}
