//! The tree of nodes under the lock: finding, making, dropping.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::below::{Below, Found, LowerDir, Source};
use super::lower::Merged;
use super::node::{Body, Change, Dir, Node, Xattrs, charge};
use super::source::{from_host, from_layers, make_node, new_node};
use super::store::Store;
use crate::vfs::{Entry, Errno, FileType, NodeId, Result, Time, mode};

/// Over layers, nothing changes behind the one client's back.
const TTL: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug)]
pub(super) struct Tree {
    nodes: HashMap<u64, Node>,
    next: u64,
    ttl: Duration,
    /// When the root was last changed before anybody could.
    root_ctime: Time,
}

/// A child of a directory: its number, and for one of the layers what it is made of.
pub(super) struct Child {
    pub(super) ino: u64,
    pub(super) kind: FileType,
    pub(super) found: Option<Found>,
}

impl Tree {
    /// With nothing below.
    pub(super) fn empty() -> Tree {
        let dir = Dir::new(NodeId::ROOT.0, LowerDir::none(), 0, 0);
        let root = new_node(mode::DIR | 0o755, 0, 0, 2, Body::Dir(Box::new(dir)));
        let root_ctime = root.ctime;
        Tree {
            nodes: HashMap::from([(NodeId::ROOT.0, root)]),
            next: NodeId::ROOT.0 + 1,
            ttl: TTL,
            root_ctime,
        }
    }

    pub(super) fn new(below: &Below) -> Result<Tree> {
        let mut tree =
            Tree { nodes: HashMap::new(), next: below.end(), ttl: TTL, root_ctime: Time::default() };
        let mut root = match (below, below.root()) {
            (Below::Layers(lowers), LowerDir::Layers(dirs)) => {
                // A root nobody describes has the attributes of a fresh directory.
                match lowers.described_root() {
                    Some(id) => {
                        let merged = Merged { id, kind: FileType::Dir, dirs };
                        from_layers(lowers, NodeId::ROOT.0, &merged)
                    }
                    None => {
                        let (positions, subdirs) = (lowers.positions(&dirs), lowers.subdirs(&dirs));
                        let dir = Dir::new(1, LowerDir::Layers(dirs), positions, subdirs);
                        new_node(mode::DIR | 0o755, 0, 0, 2, Body::Dir(Box::new(dir)))
                    }
                }
            }
            (Below::Directory(directory), LowerDir::Directory(host)) => {
                tree.ttl = directory.ttl();
                let attr = host.attr()?;
                from_host(NodeId::ROOT.0, &host, &attr)?
            }
            _ => return Err(Errno::EIO),
        };
        root.dirty = true;
        tree.root_ctime = root.ctime;
        if let Body::Dir(dir) = &mut root.body {
            dir.parent = NodeId::ROOT.0;
        }
        tree.nodes.insert(NodeId::ROOT.0, root);
        Ok(tree)
    }

    /// Of nodes that were saved. `ttl` is how long clients may trust what they have seen, where that is not for ever.
    pub(super) fn of_saved(
        nodes: HashMap<u64, Node>,
        next: u64,
        ttl: Option<Duration>,
        root_ctime: Time,
    ) -> Tree {
        Tree { nodes, next, ttl: ttl.unwrap_or(TTL), root_ctime }
    }

    /// The number of the next new node.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// When the root was last changed before anybody could.
    pub(super) fn root_ctime(&self) -> Time {
        self.root_ctime
    }

    /// Every node, with its number.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (u64, &Node)> {
        self.nodes.iter().map(|(&ino, node)| (ino, node))
    }

    /// Whether the root differs from what is below.
    pub(super) fn root_changed(&self) -> bool {
        self.get(NodeId::ROOT.0).is_ok_and(|root| root.ctime != self.root_ctime)
    }

    /// Number of nodes.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// How long clients may trust what they have seen.
    pub(super) fn ttl(&self) -> Duration {
        self.ttl
    }

    pub(super) fn get(&self, ino: u64) -> Result<&Node> {
        self.nodes.get(&ino).ok_or(Errno::ESTALE)
    }

    pub(super) fn get_mut(&mut self, ino: u64) -> Result<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(Errno::ESTALE)
    }

    pub(super) fn dir(&self, ino: u64) -> Result<&Dir> {
        match &self.get(ino)?.body {
            Body::Dir(dir) => Ok(dir),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn dir_mut(&mut self, ino: u64) -> Result<&mut Dir> {
        match &mut self.get_mut(ino)?.body {
            Body::Dir(dir) => Ok(dir),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// A directory that can take entries.
    pub(super) fn live_dir(&self, ino: u64) -> Result<&Dir> {
        let dir = self.dir(ino)?;
        if self.get(ino)?.nlink == 0 { Err(Errno::ENOENT) } else { Ok(dir) }
    }

    pub(super) fn child(&self, below: &Below, parent: u64, name: &[u8]) -> Result<Option<Child>> {
        let dir = self.dir(parent)?;
        Ok(match dir.get(name) {
            Some(Change::Whiteout) => None,
            Some(Change::Node { ino, kind, .. }) => Some(Child { ino, kind, found: None }),
            None => below.child(&dir.lower, name)?.map(|found| Child {
                ino: found.ino,
                kind: found.kind,
                found: Some(found),
            }),
        })
    }

    /// Whether a child's node is there, and as the host has it now.
    pub(super) fn is_loaded(&self, child: &Child) -> bool {
        let fresh = |node: &Node| match &child.found {
            Some(Found { source: Source::Directory(_, attr), .. }) => !node.is_stale(attr),
            _ => true,
        };
        self.nodes.get(&child.ino).is_some_and(fresh)
    }

    /// Makes sure that a child has its node.
    pub(super) fn load(&mut self, below: &Below, parent: u64, child: &Child) -> Result<()> {
        if let Some(node) = self.nodes.get_mut(&child.ino) {
            if let Some(Found { source: Source::Directory(_, attr), .. }) = &child.found {
                node.refresh(attr);
            }
            return Ok(());
        }
        let found = child.found.as_ref().ok_or(Errno::EIO)?;
        self.nodes.insert(child.ino, make_node(below, parent, found)?);
        if child.kind == FileType::Dir {
            self.adopt(parent);
        }
        Ok(())
    }

    fn adopt(&mut self, parent: u64) {
        if let Ok(dir) = self.dir_mut(parent) {
            dir.children += 1;
        }
    }

    fn leave(&mut self, store: &Store, parent: u64) {
        if let Ok(dir) = self.dir_mut(parent) {
            dir.children = dir.children.saturating_sub(1);
        }
        self.drop_unused(store, parent);
    }

    /// Takes a lookup count; the caller may hold the lock shared.
    pub(super) fn entry(&self, ino: u64) -> Result<Entry> {
        let node = self.get(ino)?;
        node.lookups.fetch_add(1, Ordering::Relaxed);
        Ok(Entry {
            node: NodeId(ino),
            generation: 0,
            attr: node.attr(ino),
            attr_ttl: self.ttl,
            entry_ttl: self.ttl,
        })
    }

    /// Gives lookup counts back; whether the node may have to go.
    pub(super) fn give_back(&self, ino: u64, count: u64) -> bool {
        let Some(node) = self.nodes.get(&ino) else { return false };
        let before = node
            .lookups
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_sub(count)));
        before.is_ok_and(|before| before <= count) && (!node.dirty || node.nlink == 0)
    }

    /// Drops all nodes that nobody looks at and nothing needs.
    pub(super) fn sweep(&mut self, store: &Store) {
        let unused: Vec<u64> =
            self.nodes.iter().filter(|(_, node)| node.unused()).map(|(&ino, _)| ino).collect();
        unused.into_iter().for_each(|ino| self.drop_unused(store, ino));
    }

    /// Drops a node that nobody looks at, when it is as in the layer or has no name left.
    pub(super) fn drop_unused(&mut self, store: &Store, ino: u64) {
        // A loop, not a recursion: a directory that goes may have been the last reason to keep its parent.
        let mut next = Some(ino);
        while let Some(ino) = next {
            next = self.drop_one(store, ino);
        }
    }

    /// Gives the parent, which may have to go as well.
    fn drop_one(&mut self, store: &Store, ino: u64) -> Option<u64> {
        if ino == NodeId::ROOT.0 || !self.nodes.get(&ino).is_some_and(Node::unused) {
            return None;
        }
        let mut node = self.nodes.remove(&ino)?;
        if node.dirty {
            store.give_inode();
        }
        match &mut node.body {
            Body::File(data) => data.clear(store),
            Body::Dir(dir) => store.give_metadata(dir.charged()),
            Body::Symlink(target) if node.dirty => store.give_metadata(target.len() as u64),
            _ => {}
        }
        if let Xattrs::Own(all) = &node.xattrs {
            store.give_metadata(all.iter().map(|(n, v)| (n.len() + v.len()) as u64).sum());
        }
        let Body::Dir(dir) = &node.body else { return None };
        if let Ok(parent) = self.dir_mut(dir.parent) {
            parent.children = parent.children.saturating_sub(1);
        }
        Some(dir.parent)
    }

    /// Marks a node as changed. A removal must not fail and uses `force`.
    pub(super) fn dirty(&mut self, store: &Store, ino: u64, force: bool) -> Result<&mut Node> {
        let node = self.get_mut(ino)?;
        if !node.dirty {
            if force {
                store.force_inode();
            } else {
                store.take_inode()?;
            }
            if let Body::Symlink(target) = &node.body {
                store.force_metadata(target.len() as u64);
            }
            node.dirty = true;
        }
        Ok(node)
    }

    /// Adds a node of the upper; it has no name yet.
    pub(super) fn add(&mut self, store: &Store, node: Node) -> Result<u64> {
        store.take_inode()?;
        if let Body::Symlink(target) = &node.body
            && let Err(e) = store.take_metadata(target.len() as u64)
        {
            store.give_inode();
            return Err(e);
        }
        if let Body::Dir(dir) = &node.body {
            self.adopt(dir.parent);
        }
        let ino = self.next;
        self.next += 1;
        self.nodes.insert(ino, node);
        Ok(ino)
    }

    /// Puts a name into a directory, in place of what has it.
    pub(super) fn put_name(
        &mut self,
        store: &Store,
        parent: u64,
        name: &[u8],
        ino: u64,
        kind: FileType,
    ) -> Result<()> {
        if self.dir(parent)?.get(name).is_none() {
            store.take_metadata(charge(name))?;
        }
        if let Err(e) = self.dirty(store, parent, false) {
            if self.dir(parent)?.get(name).is_none() {
                store.give_metadata(charge(name));
            }
            return Err(e);
        }
        self.dir_mut(parent)?.put(name, ino, kind);
        self.changed(parent)
    }

    /// Takes a name out of a directory. Does not fail for want of room.
    pub(super) fn remove_name(
        &mut self,
        below: &Below,
        store: &Store,
        parent: u64,
        name: &[u8],
    ) -> Result<()> {
        self.dirty(store, parent, true)?;
        let dir = self.dir_mut(parent)?;
        let whiteout = below.has(&dir.lower, name);
        match (dir.get(name).is_some(), whiteout) {
            (true, false) => store.give_metadata(charge(name)),
            (false, true) => store.force_metadata(charge(name)),
            _ => {}
        }
        dir.remove(name, whiteout);
        self.changed(parent)
    }

    fn changed(&mut self, dir: u64) -> Result<()> {
        let now = Time::now();
        let node = self.get_mut(dir)?;
        node.mtime = now;
        node.ctime = now;
        Ok(())
    }

    pub(super) fn add_subdir(&mut self, parent: u64, by: i32) -> Result<()> {
        let node = self.get_mut(parent)?;
        if let Body::Dir(dir) = &mut node.body {
            dir.subdirs = dir.subdirs.saturating_add_signed(by);
            // 1 is what file systems say that do not count.
            if node.nlink > 1 {
                node.nlink = dir.subdirs.saturating_add(2);
            }
        }
        Ok(())
    }

    pub(super) fn set_parent(&mut self, store: &Store, ino: u64, parent: u64) -> Result<()> {
        let old = std::mem::replace(&mut self.dir_mut(ino)?.parent, parent);
        self.adopt(parent);
        self.leave(store, old);
        Ok(())
    }

    pub(super) fn is_empty(&self, below: &Below, ino: u64) -> Result<bool> {
        let dir = self.dir(ino)?;
        if dir.has_nodes() {
            return Ok(false);
        }
        let mut empty = true;
        below.list(&dir.lower, 0, &mut |_, name, _, _| {
            empty = dir.get(name).is_some();
            empty
        })?;
        Ok(empty)
    }

    /// Whether `dir` is `ancestor` or below it.
    pub(super) fn is_below(&self, mut dir: u64, ancestor: u64) -> Result<bool> {
        // More steps than nodes would be a circle, which nothing here can make.
        for _ in 0..=self.nodes.len() {
            if dir == ancestor {
                return Ok(true);
            }
            if dir == NodeId::ROOT.0 {
                return Ok(false);
            }
            dir = self.dir(dir)?.parent;
        }
        Err(Errno::ELOOP)
    }

    /// One name of the node is gone.
    pub(super) fn unlinked(&mut self, store: &Store, ino: u64) -> Result<()> {
        let node = self.dirty(store, ino, true)?;
        node.nlink = if matches!(node.body, Body::Dir(_)) { 0 } else { node.nlink.saturating_sub(1) };
        node.ctime = Time::now();
        self.drop_unused(store, ino);
        Ok(())
    }
}
