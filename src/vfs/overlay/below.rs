//! What lies under the upper: layers (also none), or a directory of the host.

use std::sync::Arc;

use super::directory::{Directory, HostNode};
use super::lower::{LowerId, Lowers, Merged};
use crate::vfs::{Attr, FileType, Result};

/// The lower side of an overlay; forks share it.
#[derive(Clone, Debug)]
pub(super) enum Below {
    Layers(Arc<Lowers>),
    Directory(Directory),
}

/// What a directory is made of below the upper.
#[derive(Clone, Debug)]
pub(super) enum LowerDir {
    /// Topmost first; none for a directory of the upper alone.
    Layers(Vec<LowerId>),
    Directory(Arc<HostNode>),
}

/// What a name means below the upper.
#[derive(Debug)]
pub(super) struct Found {
    /// The node's number.
    pub(super) ino: u64,
    pub(super) kind: FileType,
    pub(super) source: Source,
}

#[derive(Debug)]
pub(super) enum Source {
    Layers(Merged),
    Directory(Arc<HostNode>, Attr),
}

/// One entry of a lower directory: position, name, inode number shown, type.
pub(super) type Each<'a> = &'a mut dyn FnMut(u64, &[u8], u64, FileType) -> bool;

impl Below {
    /// The first node number that nothing below has.
    pub(super) fn end(&self) -> u64 {
        match self {
            Below::Layers(lowers) => lowers.end(),
            Below::Directory(_) => Directory::END,
        }
    }

    pub(super) fn lowers(&self) -> Option<&Lowers> {
        match self {
            Below::Layers(lowers) => Some(lowers),
            Below::Directory(_) => None,
        }
    }

    /// What the root is made of.
    pub(super) fn root(&self) -> LowerDir {
        match self {
            Below::Layers(lowers) => LowerDir::Layers(lowers.root_dirs()),
            Below::Directory(directory) => LowerDir::Directory(directory.root()),
        }
    }

    pub(super) fn child(&self, dir: &LowerDir, name: &[u8]) -> Result<Option<Found>> {
        match (self, dir) {
            (Below::Layers(lowers), LowerDir::Layers(dirs)) => Ok(lowers.child(dirs, name).map(|merged| {
                Found { ino: lowers.ino(merged.id), kind: merged.kind, source: Source::Layers(merged) }
            })),
            (_, LowerDir::Layers(_)) => Ok(None),
            (_, LowerDir::Directory(host)) => Ok(host.child(name)?.map(|(node, attr)| Found {
                ino: node.number(),
                kind: attr.file_type(),
                source: Source::Directory(node, attr),
            })),
        }
    }

    /// Whether a name is there. What cannot be told is taken to be there: a whiteout too many harms nobody.
    pub(super) fn has(&self, dir: &LowerDir, name: &[u8]) -> bool {
        !matches!(self.child(dir, name), Ok(None))
    }

    /// Lists from a position on; `each` gives `false` to stop. For layers, an entry's position is its own; for a
    /// directory, it is the one to go on from.
    pub(super) fn list(&self, dir: &LowerDir, from: u64, each: Each<'_>) -> Result<()> {
        match (self, dir) {
            (Below::Layers(lowers), LowerDir::Layers(dirs)) => {
                lowers.list(dirs, from, &mut |position, name, found| {
                    each(position, name, lowers.ino(found.id), found.kind)
                });
                Ok(())
            }
            (_, LowerDir::Layers(_)) => Ok(()),
            (_, LowerDir::Directory(host)) => host.list(from, each),
        }
    }
}

impl LowerDir {
    pub(super) fn none() -> LowerDir {
        LowerDir::Layers(Vec::new())
    }
}
