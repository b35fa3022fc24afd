//! Nodes of the overlay: what has been looked at, and what has been changed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::below::LowerDir;
use super::data::Data;
use super::directory::HostNode;
use super::lower::LowerId;
use crate::vfs::{FileType, Time};

/// Most names of one file, as ext4 has it.
pub(super) const MAX_NLINK: u32 = 65_000;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: u32,
    pub(super) nlink: u32,
    pub(super) atime: Time,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
    pub(super) lookups: AtomicU64,
    /// Differs from the layers, or is of no layer: never dropped while it has a name, and counted as an inode.
    pub(super) dirty: bool,
    pub(super) xattrs: Xattrs,
    /// The file of a host directory that this is.
    pub(super) host: Option<Arc<HostNode>>,
    pub(super) body: Body,
}

/// Positions of entries end here: what comes after are the cookies of a host directory.
pub(super) const END_OF_POSITIONS: u64 = u32::MAX as u64 - 15;

/// Extended attributes by name.
pub(super) type XattrMap = BTreeMap<Box<[u8]>, Box<[u8]>>;

#[derive(Debug)]
pub(super) enum Xattrs {
    Lower(LowerId),
    /// Those of the host's file, [`Node::host`].
    Host,
    Own(XattrMap),
}

#[derive(Debug)]
pub(super) enum Body {
    Dir(Box<Dir>),
    File(Data),
    Symlink(Box<[u8]>),
    Special,
}

/// A directory: what it is made of below the upper, and the changes to that.
#[derive(Debug)]
pub(super) struct Dir {
    pub(super) parent: u64,
    /// Directories in the table that have this one as parent: the way up from them must not get lost.
    pub(super) children: u32,
    pub(super) lower: LowerDir,
    pub(super) lower_positions: u64,
    pub(super) subdirs: u32,
    names: HashMap<Arc<[u8]>, Change>,
    order: BTreeMap<u64, Arc<[u8]>>,
    next: u64,
}

/// What a name of a directory has become.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// Hidden.
    Whiteout,
    /// This node.
    Node { ino: u64, kind: FileType, position: u64 },
}

impl Dir {
    pub(super) fn new(parent: u64, lower: LowerDir, lower_positions: u64, subdirs: u32) -> Dir {
        Dir {
            parent,
            children: 0,
            lower,
            lower_positions,
            subdirs,
            names: HashMap::new(),
            order: BTreeMap::new(),
            next: lower_positions,
        }
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<Change> {
        self.names.get(name).copied()
    }

    /// The names that differ from below.
    pub(super) fn changes(&self) -> impl Iterator<Item = (&[u8], Change)> {
        self.names.iter().map(|(name, &change)| (&**name, change))
    }

    /// Whether any name leads to a node of the upper.
    pub(super) fn has_nodes(&self) -> bool {
        !self.order.is_empty()
    }

    pub(super) fn put(&mut self, name: &[u8], ino: u64, kind: FileType) {
        let name: Arc<[u8]> =
            self.names.get_key_value(name).map_or_else(|| name.into(), |(key, _)| key.clone());
        if self.next >= END_OF_POSITIONS {
            self.renumber();
        }
        let position = self.next;
        self.next += 1;
        self.order.insert(position, name.clone());
        let old = self.names.insert(name, Change::Node { ino, kind, position });
        if let Some(Change::Node { position, .. }) = old {
            self.order.remove(&position);
        }
    }

    #[cfg(test)]
    pub(super) fn start_at(&mut self, position: u64) {
        self.next = position;
    }

    /// Starts numbering again. A listing that goes on now may repeat or miss entries of the upper; this takes more
    /// than four thousand million new names in one directory.
    fn renumber(&mut self) {
        self.next = self.lower_positions;
        for (_, name) in std::mem::take(&mut self.order) {
            if let Some(Change::Node { position, .. }) = self.names.get_mut(&name) {
                *position = self.next;
                self.order.insert(self.next, name);
                self.next += 1;
            }
        }
    }

    /// Takes a name away; `whiteout` where a layer has it.
    pub(super) fn remove(&mut self, name: &[u8], whiteout: bool) {
        let old = if whiteout {
            let name: Arc<[u8]> =
                self.names.get_key_value(name).map_or_else(|| name.into(), |(key, _)| key.clone());
            self.names.insert(name, Change::Whiteout)
        } else {
            self.names.remove(name)
        };
        if let Some(Change::Node { position, .. }) = old {
            self.order.remove(&position);
        }
    }

    /// Entries of the upper from a position on.
    pub(super) fn upper(&self, from: u64) -> impl Iterator<Item = (u64, &[u8], u64, FileType)> {
        self.order.range(from..).filter_map(|(&position, name)| match self.names.get(name) {
            Some(&Change::Node { ino, kind, .. }) => Some((position, &**name, ino, kind)),
            _ => None,
        })
    }

    /// Bytes of metadata that the names take.
    pub(super) fn charged(&self) -> u64 {
        self.names.keys().map(|name| charge(name)).sum()
    }
}

/// What a name costs, with its bookkeeping.
pub(super) fn charge(name: &[u8]) -> u64 {
    name.len() as u64 + 128
}
