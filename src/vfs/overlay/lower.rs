//! Merging the layers: which entries of which layers a name of a directory means.
//!
//! Nothing is stored per file. A merged directory is the list of the layers' directories it is made of, topmost
//! first, and every question is answered from the indexes.

use std::collections::{HashMap, HashSet};

use super::OverlayError;
use crate::vfs::layer::{DirName, Inode, Layer};
use crate::vfs::{FileType, NodeId};

const MAX_LINKS: u32 = 40;
/// Bytes of link targets that all layers together may make us walk through when they are put together.
const MAX_STEPS: u64 = 64 << 20;

/// An inode of a layer; layers count from the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LowerId {
    pub(super) layer: u32,
    pub(super) inode: u32,
}

/// What a name means.
#[derive(Clone, Debug)]
pub(super) struct Merged {
    /// The inode that gives number and attributes.
    pub(super) id: LowerId,
    pub(super) kind: FileType,
    /// For a directory: what it is made of, topmost first.
    pub(super) dirs: Vec<LowerId>,
}

#[derive(Debug, Default)]
pub(super) struct Lowers {
    pub(super) layers: Vec<Layer>,
    /// Inode number of inode 0 of each layer.
    bases: Vec<u64>,
    /// Directories without an entry of their own, where lower layers have a symbolic link to a directory: their
    /// content belongs there. The key is the topmost directory at the link's target.
    grafts: HashMap<LowerId, Vec<LowerId>>,
    grafted: HashSet<LowerId>,
    /// Hard links into lower layers.
    links: HashMap<LowerId, LowerId>,
    /// Names that higher layers give to an inode by hard links.
    extra_names: HashMap<LowerId, u32>,
}

impl Lowers {
    pub(super) fn new(layers: Vec<Layer>) -> Result<Lowers, OverlayError> {
        let mut lowers = Lowers::default();
        let mut base = NodeId::ROOT.0 + 1;
        let mut steps = 0;
        for layer in layers {
            lowers.bases.push(base);
            base += u64::from(layer.index().inodes());
            lowers.layers.push(layer);
            lowers.join_last(&mut steps)?;
        }
        Ok(lowers)
    }

    /// The first inode number that is no layer's.
    pub(super) fn end(&self) -> u64 {
        match (self.bases.last(), self.layers.last()) {
            (Some(base), Some(layer)) => base + u64::from(layer.index().inodes()),
            _ => NodeId::ROOT.0 + 1,
        }
    }

    /// Resolves what the topmost layer says about paths of the layers below it.
    fn join_last(&mut self, steps: &mut u64) -> Result<(), OverlayError> {
        let top = self.layers.len() - 1;
        let Some(layer) = self.layers.last().cloned() else { return Ok(()) };
        for (inode, path) in layer.index().special_paths() {
            let id = LowerId { layer: top as u32, inode };
            let node = layer.index().inode(inode);
            let path: Vec<&[u8]> = path.split(|&b| b == b'/').collect();
            if *steps > MAX_STEPS {
                return Err(OverlayError::Links { layer: top });
            }
            if node.lower_link() {
                match self.resolve(&path, top, false, steps) {
                    Some(found) if found.kind != FileType::Dir => {
                        self.links.insert(id, found.id);
                        let names = self.extra_names.entry(found.id).or_default();
                        *names = names.saturating_add(node.nlink);
                    }
                    _ => {
                        return Err(OverlayError::HardLink {
                            layer: top,
                            target: String::from_utf8_lossy(&path.join(&b'/')).into_owned(),
                        });
                    }
                }
            } else if let Some(link) = self.resolve(&path, top, false, steps) {
                if link.kind != FileType::Symlink {
                    continue;
                }
                if let Some(found) = self.resolve(&path, top, true, steps)
                    && let Some(&host) = found.dirs.first()
                {
                    self.grafts.entry(host).or_default().push(id);
                    self.grafted.insert(id);
                }
            }
        }
        Ok(())
    }

    /// Follows a path in the layers below `top`.
    fn resolve(&self, path: &[&[u8]], top: usize, follow_last: bool, steps: &mut u64) -> Option<Merged> {
        let mut stack =
            vec![Merged { id: LowerId { layer: 0, inode: 0 }, kind: FileType::Dir, dirs: self.root(top) }];
        let mut todo: Vec<Vec<u8>> = path.iter().rev().map(|p| p.to_vec()).collect();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match &part[..] {
                b"" | b"." => continue,
                b".." => {
                    if stack.len() > 1 {
                        stack.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let found = self.child_below(&stack.last()?.dirs, &part, top)?;
            if found.kind == FileType::Symlink && (follow_last || !todo.is_empty()) {
                links += 1;
                if links > MAX_LINKS || todo.len() > 4096 {
                    return None;
                }
                let layer = self.layers.get(found.id.layer as usize)?;
                let target = layer.index().target(&layer.index().inode(found.id.inode)).to_vec();
                *steps += target.len() as u64;
                if target.starts_with(b"/") {
                    stack.truncate(1);
                }
                todo.extend(target.split(|&b| b == b'/').rev().map(<[u8]>::to_vec));
                continue;
            }
            stack.push(found);
        }
        stack.pop()
    }

    fn root(&self, top: usize) -> Vec<LowerId> {
        let mut dirs = Vec::new();
        for layer in (0..top).rev() {
            let id = LowerId { layer: layer as u32, inode: 0 };
            dirs.push(id);
            if self.inode(id).opaque() {
                break;
            }
        }
        dirs
    }

    /// What the root is made of.
    pub(super) fn root_dirs(&self) -> Vec<LowerId> {
        self.root(self.layers.len())
    }

    /// The root that says what attributes it has, of the highest layer that does. An opaque root below hides names,
    /// not attributes.
    pub(super) fn described_root(&self) -> Option<LowerId> {
        let mut roots = (0..self.layers.len()).rev().map(|layer| LowerId { layer: layer as u32, inode: 0 });
        roots.find(|&id| !self.inode(id).implicit())
    }

    pub(super) fn layer(&self, id: LowerId) -> Option<&Layer> {
        self.layers.get(id.layer as usize)
    }

    /// The record of an inode, hard links into lower layers resolved by the caller.
    pub(super) fn inode(&self, id: LowerId) -> Inode {
        match self.layers.get(id.layer as usize) {
            Some(layer) => layer.index().inode(id.inode),
            // Ids come from `child`; a file without permissions is what the index says for a bad one, too.
            None => Inode {
                mode: 0,
                uid: 0,
                gid: 0,
                nlink: 0,
                rdev: 0,
                flags: 0,
                mtime: Default::default(),
                xattrs: u32::MAX,
                size: 0,
                data: 0,
                extra: 0,
                extents: 0,
            },
        }
    }

    /// Number of names of a file. It may count names that a higher layer hides, but never too few: a file whose
    /// count falls to 0 is gone.
    pub(super) fn nlink(&self, id: LowerId) -> u32 {
        let extra = self.extra_names.get(&id).copied().unwrap_or(0);
        self.inode(id).nlink.max(1).saturating_add(extra)
    }

    pub(super) fn ino(&self, id: LowerId) -> u64 {
        self.bases.get(id.layer as usize).map_or(0, |base| base + u64::from(id.inode))
    }

    /// An entry of one layer's directory; directories grafted elsewhere are not here.
    fn entry(&self, dir: LowerId, name: &[u8]) -> Option<DirName<'_>> {
        let found = self.layer(dir)?.index().find(dir.inode, name)?;
        self.visible(dir.layer, found)
    }

    fn visible<'a>(&self, layer: u32, found: DirName<'a>) -> Option<DirName<'a>> {
        match found.inode {
            Some(inode) if !self.grafted.is_empty() && self.grafted.contains(&LowerId { layer, inode }) => {
                None
            }
            _ => Some(found),
        }
    }

    /// What `name` means in a merged directory.
    pub(super) fn child(&self, dirs: &[LowerId], name: &[u8]) -> Option<Merged> {
        self.child_below(dirs, name, self.layers.len())
    }

    fn child_below(&self, dirs: &[LowerId], name: &[u8], top: usize) -> Option<Merged> {
        let mut merged: Vec<LowerId> = Vec::new();
        let mut hidden = false;
        // The one of a hidden directory that says what attributes it has.
        let mut described = None;
        for &dir in dirs {
            let Some(found) = self.entry(dir, name) else { continue };
            let Some(inode) = found.inode else { break };
            let mut id = LowerId { layer: dir.layer, inode };
            let node = self.inode(id);
            if !node.is_dir() {
                if !merged.is_empty() {
                    break;
                }
                if node.lower_link() {
                    id = *self.links.get(&id)?;
                }
                return Some(Merged { id, kind: self.inode(id).kind(), dirs: Vec::new() });
            }
            if hidden {
                if !node.implicit() {
                    described = Some(id);
                    break;
                }
                continue;
            }
            merged.push(id);
            if let Some(guests) = self.grafts.get(&id) {
                merged.extend(guests.iter().filter(|g| (g.layer as usize) < top));
            }
            if node.opaque() {
                if !node.implicit() {
                    break;
                }
                hidden = true;
            }
        }
        merged.sort_by_key(|id| std::cmp::Reverse(id.layer));
        // A directory that is only implied has the attributes of the one below it, also where it hides what is in that.
        let own = merged.iter().copied().find(|&id| !self.inode(id).implicit());
        let id = own.or(described).or(merged.first().copied())?;
        Some(Merged { id, kind: FileType::Dir, dirs: merged })
    }

    /// How many positions a listing of a merged directory has.
    pub(super) fn positions(&self, dirs: &[LowerId]) -> u64 {
        dirs.iter().filter_map(|&d| self.layer(d).map(|l| u64::from(l.index().len(d.inode)))).sum()
    }

    /// Lists a merged directory from a position on; `each` gives `false` to stop. Positions are stable.
    pub(super) fn list(
        &self,
        dirs: &[LowerId],
        from: u64,
        each: &mut dyn FnMut(u64, &[u8], &Merged) -> bool,
    ) {
        let mut base = 0;
        for (at, &dir) in dirs.iter().enumerate() {
            let Some(layer) = self.layer(dir) else { continue };
            let len = layer.index().len(dir.inode);
            let skip = from.saturating_sub(base).min(len.into());
            for position in skip as u32..len {
                let Some(entry) = layer.index().at(dir.inode, position) else { continue };
                if entry.inode.is_none() || self.visible(dir.layer, entry).is_none() {
                    continue;
                }
                // Named by a layer above: listed, or hidden, there.
                if dirs[..at].iter().any(|&above| self.entry(above, entry.name).is_some()) {
                    continue;
                }
                let Some(found) = self.child(&dirs[at..], entry.name) else { continue };
                if !each(base + u64::from(position), entry.name, &found) {
                    return;
                }
            }
            base += u64::from(len);
        }
    }

    /// Number of subdirectories of a merged directory.
    pub(super) fn subdirs(&self, dirs: &[LowerId]) -> u32 {
        match dirs {
            [] => 0,
            [one] if self.grafted.is_empty() => self.layer(*one).map_or(0, |l| l.index().subdirs(one.inode)),
            _ => {
                let mut count = 0;
                self.list(dirs, 0, &mut |_, _, found| {
                    count += u32::from(found.kind == FileType::Dir);
                    true
                });
                count
            }
        }
    }
}
