//! What one client holds of a file system: lookup counts and open handles.
//!
//! File systems count too, but only here is it known what to give back when the client goes without a word: it
//! unmounts with nodes in its cache, or its machine resets the device.

use std::collections::HashMap;

use crate::vfs::{FileSystem, Handle, NodeId};

/// What the client has and has not given back.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    nodes: HashMap<NodeId, u64>,
    files: HashMap<u64, Held>,
    dirs: HashMap<u64, Held>,
}

/// File systems without state per handle give the same number many times.
#[derive(Debug)]
struct Held {
    node: NodeId,
    count: u64,
}

impl Ledger {
    /// One more lookup of `node`.
    pub(super) fn took(&mut self, node: NodeId) {
        if node != NodeId::ROOT {
            *self.nodes.entry(node).or_default() += 1;
        }
    }

    /// The client forgets `count` lookups of `node`; gives how many of them it had.
    pub(super) fn gave(&mut self, node: NodeId, count: u64) -> u64 {
        let Some(have) = self.nodes.get_mut(&node) else { return 0 };
        let given = count.min(*have);
        *have -= given;
        if *have == 0 {
            self.nodes.remove(&node);
        }
        given
    }

    pub(super) fn opened(&mut self, node: NodeId, handle: Handle, dir: bool) {
        let table = if dir { &mut self.dirs } else { &mut self.files };
        table.entry(handle.0).or_insert(Held { node, count: 0 }).count += 1;
    }

    /// The client closes `handle`; false if it has no such handle.
    pub(super) fn closed(&mut self, handle: Handle, dir: bool) -> bool {
        let table = if dir { &mut self.dirs } else { &mut self.files };
        let Some(held) = table.get_mut(&handle.0) else { return false };
        held.count -= 1;
        if held.count == 0 {
            table.remove(&handle.0);
        }
        true
    }

    /// Gives everything back to `fs`.
    pub(super) fn clear(&mut self, fs: &dyn FileSystem) {
        for (handle, held) in self.files.drain() {
            (0..held.count).for_each(|_| fs.release(held.node, Handle(handle)));
        }
        for (handle, held) in self.dirs.drain() {
            (0..held.count).for_each(|_| fs.releasedir(held.node, Handle(handle)));
        }
        for (node, count) in self.nodes.drain() {
            fs.forget(node, count);
        }
    }

    /// Nodes and handles held.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        (self.nodes.len(), self.files.len() + self.dirs.len())
    }
}
