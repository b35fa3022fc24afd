//! Forks of an overlay.

use std::sync::RwLock;

use super::Overlay;

impl Overlay {
    /// An overlay that is as this one is at this moment: the same nodes with their numbers and lookup counts, the same
    /// positions in directories, the same use of the same limits. Later changes of either do not show in the other.
    ///
    /// It takes time and memory for every node known or changed, none for file data, names of directories, extended
    /// attributes and what is below: those are shared until one side changes them, chunk by chunk of 64 KiB, directory
    /// by directory. What has spilled stays in the one unlinked file; a slot of it is copied to a slot of its own when
    /// one side writes there, and goes back to the host with the last that shows it. A write to what is shared may
    /// therefore fail with `ENOSPC` where the host's disk is full, also where no new room is asked for.
    pub fn duplicate(&self) -> Overlay {
        // Exclusive, since lookup counts change under the shared lock.
        let here = self.exclusive();
        let (mut tree, store) = (here.clone(), self.store.fork());
        drop(here);
        // A `forget` of another thread may be between taking the count and dropping the node.
        tree.sweep(&store);
        Overlay { below: self.below.clone(), store, tree: RwLock::new(tree) }
    }
}
