//! The answer to READDIR and READDIRPLUS.

use std::time::Duration;

use super::wire::{Body, DIRENT, ENTRY_OUT};
use crate::vfs::{DirEntry, DirSink, Entry, NodeId};

/// Directory entries up to a size.
pub(super) struct Listing {
    pub(super) body: Body,
    /// Nodes whose lookup count was taken.
    pub(super) taken: Vec<NodeId>,
    size: usize,
    plus: bool,
}

impl Listing {
    /// Room for `size` bytes.
    pub(super) fn new(size: usize, plus: bool) -> Self {
        Self { body: Body::default(), taken: Vec::new(), size, plus }
    }
}

impl DirSink for Listing {
    fn entry(&mut self, entry: DirEntry<'_>, node: Option<&Entry>) -> bool {
        let head = if self.plus { ENTRY_OUT + DIRENT } else { DIRENT };
        let len = (head + entry.name.len()).next_multiple_of(8);
        if self.body.0.len() + len > self.size {
            return false;
        }
        if self.plus {
            match node {
                Some(node) => {
                    self.body.entry(node);
                    self.taken.push(node.node);
                }
                None => _ = self.body.no_entry(Duration::ZERO),
            }
        }
        let b = &mut self.body;
        b.u64(entry.ino).u64(entry.cookie).u32(entry.name.len() as u32).u32(entry.kind.dirent());
        b.0.extend_from_slice(entry.name);
        b.zeros(len - head - entry.name.len());
        true
    }
}
