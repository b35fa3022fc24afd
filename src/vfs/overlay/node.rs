//! Nodes of the overlay: what has been looked at, and what has been changed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::below::LowerDir;
use super::data::Data;
use super::directory::HostNode;
use super::lower::LowerId;
use super::shared::SharedMap;
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

impl Clone for Node {
    fn clone(&self) -> Node {
        Node {
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            nlink: self.nlink,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            lookups: AtomicU64::new(self.lookups.load(Ordering::Relaxed)),
            dirty: self.dirty,
            xattrs: self.xattrs.clone(),
            host: self.host.clone(),
            body: self.body.clone(),
        }
    }
}

impl Node {
    /// Whether nobody looks at the node, nothing below needs it, and it is as below or without a name.
    pub(super) fn unused(&self) -> bool {
        let needed = matches!(&self.body, Body::Dir(dir) if dir.children > 0);
        !needed && self.lookups.load(Ordering::Relaxed) == 0 && (!self.dirty || self.nlink == 0)
    }
}

/// Positions of entries end here: what comes after are the cookies of a host directory.
pub(super) const END_OF_POSITIONS: u64 = u32::MAX as u64 - 15;

/// Extended attributes by name.
pub(super) type XattrMap = BTreeMap<Box<[u8]>, Box<[u8]>>;

#[derive(Clone, Debug)]
pub(super) enum Xattrs {
    Lower(LowerId),
    /// Those of the host's file, [`Node::host`].
    Host,
    Own(SharedMap<Box<[u8]>, Box<[u8]>>),
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    Dir(Box<Dir>),
    File(Data),
    Symlink(Arc<[u8]>),
    Special,
}

/// A directory: what it is made of below the upper, and the changes to that.
#[derive(Clone, Debug)]
pub(super) struct Dir {
    pub(super) parent: u64,
    /// Directories in the table that have this one as parent: the way up from them must not get lost.
    pub(super) children: u32,
    pub(super) lower: LowerDir,
    pub(super) lower_positions: u64,
    pub(super) subdirs: u32,
    /// Shared with forks until one of them changes a name here.
    names: Arc<Names>,
    next: u64,
}

#[derive(Clone, Debug, Default)]
struct Names {
    all: HashMap<Arc<[u8]>, Change>,
    /// Those of nodes, by position.
    order: BTreeMap<u64, Arc<[u8]>>,
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
            names: Arc::default(),
            next: lower_positions,
        }
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<Change> {
        self.names.all.get(name).copied()
    }

    /// The names that differ from below.
    pub(super) fn changes(&self) -> impl Iterator<Item = (&[u8], Change)> {
        self.names.all.iter().map(|(name, &change)| (&**name, change))
    }

    /// Whether any name leads to a node of the upper.
    pub(super) fn has_nodes(&self) -> bool {
        !self.names.order.is_empty()
    }

    pub(super) fn put(&mut self, name: &[u8], ino: u64, kind: FileType) {
        if self.next >= END_OF_POSITIONS {
            self.renumber();
        }
        let names = Arc::make_mut(&mut self.names);
        let name = names.key(name);
        let position = self.next;
        self.next += 1;
        names.order.insert(position, name.clone());
        let old = names.all.insert(name, Change::Node { ino, kind, position });
        if let Some(Change::Node { position, .. }) = old {
            names.order.remove(&position);
        }
    }

    /// The position of the next new name.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Takes saved names over; false if one is there twice.
    pub(super) fn load(&mut self, saved: Vec<(Vec<u8>, Change)>, next: u64) -> bool {
        let mut names = Names::default();
        for (name, change) in saved {
            let name: Arc<[u8]> = name.into();
            if let Change::Node { position, .. } = change {
                names.order.insert(position, name.clone());
            }
            if names.all.insert(name, change).is_some() {
                return false;
            }
        }
        self.names = Arc::new(names);
        self.next = next;
        true
    }

    #[cfg(test)]
    pub(super) fn start_at(&mut self, position: u64) {
        self.next = position;
    }

    /// Starts numbering again. A listing that goes on now may repeat or miss entries of the upper; this takes more
    /// than four thousand million new names in one directory.
    fn renumber(&mut self) {
        self.next = self.lower_positions;
        let names = Arc::make_mut(&mut self.names);
        for (_, name) in std::mem::take(&mut names.order) {
            if let Some(Change::Node { position, .. }) = names.all.get_mut(&name) {
                *position = self.next;
                names.order.insert(self.next, name);
                self.next += 1;
            }
        }
    }

    /// Takes a name away; `whiteout` where a layer has it.
    pub(super) fn remove(&mut self, name: &[u8], whiteout: bool) {
        let names = Arc::make_mut(&mut self.names);
        let old = if whiteout {
            let name = names.key(name);
            names.all.insert(name, Change::Whiteout)
        } else {
            names.all.remove(name)
        };
        if let Some(Change::Node { position, .. }) = old {
            names.order.remove(&position);
        }
    }

    /// Entries of the upper from a position on.
    pub(super) fn upper(&self, from: u64) -> impl Iterator<Item = (u64, &[u8], u64, FileType)> {
        self.names.order.range(from..).filter_map(|(&position, name)| match self.names.all.get(name) {
            Some(&Change::Node { ino, kind, .. }) => Some((position, &**name, ino, kind)),
            _ => None,
        })
    }

    /// Bytes of metadata that the names take.
    pub(super) fn charged(&self) -> u64 {
        self.names.all.keys().map(|name| charge(name)).sum()
    }
}

impl Names {
    /// A name as it is kept already, or a new one.
    fn key(&self, name: &[u8]) -> Arc<[u8]> {
        self.all.get_key_value(name).map_or_else(|| name.into(), |(key, _)| key.clone())
    }
}

/// What a name costs, with its bookkeeping.
pub(super) fn charge(name: &[u8]) -> u64 {
    name.len() as u64 + 128
}
