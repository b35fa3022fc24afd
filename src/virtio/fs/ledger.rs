//! What one client holds of a file system: lookup counts and open handles.
//!
//! File systems count too, but only here is it known what to give back when the client goes without a word: it
//! unmounts with nodes in its cache, or its machine resets the device.

use std::collections::HashMap;

use crate::state::files::FileClient;
use crate::vfs::{FileSystem, Handle, NodeId};

/// What the client has and has not given back.
#[derive(Debug, Default, Clone)]
pub(super) struct Ledger {
    nodes: HashMap<NodeId, u64>,
    /// How often each is open: file systems without state per handle give the same one many times.
    files: HashMap<(NodeId, u64), u64>,
    dirs: HashMap<(NodeId, u64), u64>,
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
        *table.entry((node, handle.0)).or_default() += 1;
    }

    /// Whether the client has `node` open as `handle`.
    pub(super) fn has(&self, node: NodeId, handle: Handle, dir: bool) -> bool {
        let table = if dir { &self.dirs } else { &self.files };
        table.contains_key(&(node, handle.0))
    }

    /// The client closes `handle`; false if it has no such handle.
    pub(super) fn closed(&mut self, node: NodeId, handle: Handle, dir: bool) -> bool {
        let table = if dir { &mut self.dirs } else { &mut self.files };
        let Some(count) = table.get_mut(&(node, handle.0)) else { return false };
        *count -= 1;
        if *count == 0 {
            table.remove(&(node, handle.0));
        }
        true
    }

    /// All of it, for a client that goes on later.
    pub(super) fn save(&self) -> FileClient {
        let open = |table: &HashMap<(NodeId, u64), u64>| {
            let mut open: Vec<_> = table.iter().map(|(&(node, handle), &n)| (node.0, handle, n)).collect();
            open.sort_unstable();
            open
        };
        let mut nodes: Vec<_> = self.nodes.iter().map(|(node, &count)| (node.0, count)).collect();
        nodes.sort_unstable();
        FileClient { nodes, files: open(&self.files), dirs: open(&self.dirs), ..FileClient::default() }
    }

    /// What was saved.
    pub(super) fn load(saved: &FileClient) -> Self {
        let open = |list: &[(u64, u64, u64)]| {
            list.iter().filter(|e| e.2 > 0).map(|&(node, handle, n)| ((NodeId(node), handle), n)).collect()
        };
        Self {
            nodes: saved.nodes.iter().filter(|e| e.1 > 0).map(|&(node, n)| (NodeId(node), n)).collect(),
            files: open(&saved.files),
            dirs: open(&saved.dirs),
        }
    }

    /// Gives everything back to `fs`.
    pub(super) fn clear(&mut self, fs: &dyn FileSystem) {
        for ((node, handle), count) in self.files.drain() {
            (0..count).for_each(|_| fs.release(node, Handle(handle)));
        }
        for ((node, handle), count) in self.dirs.drain() {
            (0..count).for_each(|_| fs.releasedir(node, Handle(handle)));
        }
        for (node, count) in self.nodes.drain() {
            fs.forget(node, count);
        }
    }

    /// Nodes and handles held.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        let open = self.files.values().chain(self.dirs.values()).sum::<u64>();
        (self.nodes.len(), open as usize)
    }
}
