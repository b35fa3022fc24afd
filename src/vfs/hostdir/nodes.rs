//! The nodes a client knows: parent and name, and which inode that was.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::Statx;

use crate::state::files::HostNode;
use crate::vfs::{Errno, Name, NodeId, Result, mode};

/// What inode a node is. The time of birth tells apart inodes that had one number after each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    dev: (u32, u32),
    ino: u64,
    birth: (i64, u32),
    kind: u32,
}

impl Key {
    pub(super) fn of(status: &Statx) -> Key {
        Key {
            dev: (status.stx_dev_major, status.stx_dev_minor),
            ino: status.stx_ino,
            birth: (status.stx_btime.tv_sec, status.stx_btime.tv_nsec),
            kind: u32::from(status.stx_mode) & mode::FMT,
        }
    }
}

#[derive(Clone, Debug)]
struct Node {
    key: Key,
    parent: u64,
    name: Box<[u8]>,
    lookups: u64,
    /// Known nodes that have this one as parent. The way to them must not get lost, so this one stays.
    children: u64,
    /// Held since the name went.
    pinned: Option<Arc<OwnedFd>>,
}

#[derive(Clone, Debug)]
pub(super) struct Nodes {
    nodes: HashMap<u64, Node>,
    by_key: HashMap<Key, u64>,
    next: u64,
    cache: HashMap<u64, (Arc<OwnedFd>, u64)>,
    cache_size: usize,
    clock: u64,
}

/// Descriptors to be closed after the lock is released.
pub(super) type Dropped = Vec<Arc<OwnedFd>>;

impl Nodes {
    pub(super) fn new(root: Key, cache_size: usize) -> Nodes {
        let node = Node { key: root, parent: 1, name: Box::default(), lookups: 1, children: 0, pinned: None };
        Nodes {
            nodes: HashMap::from([(NodeId::ROOT.0, node)]),
            by_key: HashMap::from([(root, NodeId::ROOT.0)]),
            next: NodeId::ROOT.0 + 1,
            cache: HashMap::new(),
            cache_size,
            clock: 0,
        }
    }

    /// The number of the next node, and every node but the root.
    pub(super) fn saved(&self) -> (u64, Vec<HostNode>) {
        let mut nodes: Vec<HostNode> = self
            .nodes
            .iter()
            .filter(|&(&number, _)| number != NodeId::ROOT.0)
            .map(|(&number, node)| HostNode {
                number,
                parent: node.parent,
                name: node.name.to_vec(),
                inode: (node.key.dev.0, node.key.dev.1, node.key.ino, node.key.birth, node.key.kind),
                lookups: node.lookups,
            })
            .collect();
        nodes.sort_unstable_by_key(|node| node.number);
        (self.next, nodes)
    }

    /// Takes saved nodes over, besides the root; false when they cannot be.
    pub(super) fn load(&mut self, next: u64, saved: &[HostNode]) -> bool {
        for node in saved {
            let (major, minor, ino, birth, kind) = node.inode;
            let key = Key { dev: (major, minor), ino, birth, kind };
            let new = Node {
                key,
                parent: node.parent,
                name: node.name.as_slice().into(),
                lookups: node.lookups,
                children: 0,
                pinned: None,
            };
            let fits = node.number > NodeId::ROOT.0 && node.number < next && Name::new(&node.name).is_ok();
            if !fits || self.nodes.insert(node.number, new).is_some() {
                return false;
            }
            // Two that are one inode now were two nodes then; the later stays reachable by its number alone.
            self.by_key.entry(key).or_insert(node.number);
        }
        for node in saved {
            match self.nodes.get_mut(&node.parent) {
                Some(parent) if node.parent != node.number => parent.children += 1,
                _ => return false,
            }
        }
        self.next = next;
        true
    }

    /// Takes all lookup counts away but keeps the nodes, until [`Nodes::settle`].
    pub(super) fn forget_all(&mut self) {
        self.nodes.iter_mut().filter(|&(&id, _)| id != NodeId::ROOT.0).for_each(|(_, node)| node.lookups = 0);
    }

    /// One more lookup of a node; false if there is none.
    pub(super) fn look_up_again(&mut self, id: u64) -> bool {
        self.nodes.get_mut(&id).map(|node| node.lookups += 1).is_some()
    }

    /// Drops what nobody has looked up again.
    pub(super) fn settle(&mut self) -> Dropped {
        let mut dropped = Vec::new();
        let all: Vec<u64> = self.nodes.keys().copied().collect();
        for id in all {
            if let Some((_, parent)) = self.remove_unused(id, &mut dropped) {
                self.leave(parent, &mut dropped);
            }
        }
        dropped
    }

    /// A descriptor that is at hand.
    pub(super) fn ready(&mut self, id: u64) -> Result<Option<Arc<OwnedFd>>> {
        let node = self.nodes.get(&id).ok_or(Errno::ESTALE)?;
        if let Some(fd) = &node.pinned {
            return Ok(Some(fd.clone()));
        }
        self.clock += 1;
        Ok(self.cache.get_mut(&id).map(|(fd, used)| {
            *used = self.clock;
            fd.clone()
        }))
    }

    /// The way to a node: from the nearest ancestor whose descriptor is at hand (`None`: the root), and the path.
    pub(super) fn path(&self, id: u64) -> Result<(Key, Option<Arc<OwnedFd>>, Vec<u8>)> {
        let key = self.nodes.get(&id).ok_or(Errno::ESTALE)?.key;
        let mut names: Vec<&[u8]> = Vec::new();
        let mut base = None;
        let mut at = id;
        let mut len = 0;
        while at != NodeId::ROOT.0 {
            let node = self.nodes.get(&at).ok_or(Errno::ESTALE)?;
            if at != id {
                let ready = node.pinned.as_ref().or_else(|| self.cache.get(&at).map(|(fd, _)| fd));
                if let Some(fd) = ready {
                    base = Some(fd.clone());
                    break;
                }
            }
            names.push(&node.name);
            len += node.name.len() + 1;
            // Longer than any path the host takes; also the end of a circle, if there were one.
            if len > 1 << 20 {
                return Err(Errno::ESTALE);
            }
            at = node.parent;
        }
        names.reverse();
        Ok((key, base, names.join(&b'/')))
    }

    fn evict(&mut self) -> Dropped {
        let mut dropped = Vec::new();
        if self.cache.len() > self.cache_size {
            // A quarter at once, so that finding the oldest is rarely done.
            let mut ages: Vec<u64> = self.cache.values().map(|&(_, used)| used).collect();
            ages.sort_unstable();
            let limit = ages.get(ages.len() / 4).copied().unwrap_or(u64::MAX);
            self.cache.retain(|_, (fd, used)| {
                let stays = *used > limit;
                if !stays {
                    dropped.push(fd.clone());
                }
                stays
            });
        }
        dropped
    }

    pub(super) fn remember(&mut self, id: u64, fd: &Arc<OwnedFd>) -> Dropped {
        if self.cache_size == 0 || !self.nodes.contains_key(&id) {
            return Vec::new();
        }
        self.clock += 1;
        self.cache.insert(id, (fd.clone(), self.clock));
        self.evict()
    }

    pub(super) fn drop_cache(&mut self) -> Dropped {
        self.cache.drain().map(|(_, (fd, _))| fd).collect()
    }

    /// A lookup found this inode under a name: its node, with one count more.
    pub(super) fn found(&mut self, parent: u64, name: &[u8], key: Key, fd: OwnedFd) -> (u64, Dropped) {
        let fd = Arc::new(fd);
        let id = match self.by_key.get(&key) {
            Some(&id) => id,
            None => {
                let id = self.next;
                self.next += 1;
                self.by_key.insert(key, id);
                id
            }
        };
        let new = Node { key, parent, name: name.into(), lookups: 0, children: 0, pinned: None };
        if let Entry::Vacant(entry) = self.nodes.entry(id) {
            entry.insert(new);
            self.adopt(parent);
        }
        let mut dropped = Vec::new();
        if id != NodeId::ROOT.0 {
            self.place(id, parent, name, &mut dropped);
            dropped.extend(self.remember(id, &fd));
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups += 1;
        }
        dropped.push(fd);
        (id, dropped)
    }

    fn adopt(&mut self, parent: u64) {
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.children += 1;
        }
    }

    /// Writes down where a node is now.
    fn place(&mut self, id: u64, parent: u64, name: &[u8], dropped: &mut Dropped) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        dropped.extend(node.pinned.take());
        if *node.name != *name {
            node.name = name.into();
        }
        let old = std::mem::replace(&mut node.parent, parent);
        if old != parent {
            self.adopt(parent);
            self.leave(old, dropped);
        }
    }

    /// A parent has a child less; it goes when nobody knows it any more, and then its parent has one less.
    fn leave(&mut self, mut id: u64, dropped: &mut Dropped) {
        while let Some(node) = self.nodes.get_mut(&id) {
            node.children = node.children.saturating_sub(1);
            match self.remove_unused(id, dropped) {
                Some((_, parent)) => id = parent,
                None => return,
            }
        }
    }

    /// Removes a node that nobody knows and nothing needs; gives its key and its parent.
    fn remove_unused(&mut self, id: u64, dropped: &mut Dropped) -> Option<(Key, u64)> {
        let node = self.nodes.get(&id)?;
        if id == NodeId::ROOT.0 || node.lookups > 0 || node.children > 0 {
            return None;
        }
        let node = self.nodes.remove(&id)?;
        dropped.extend(self.cache.remove(&id).map(|(fd, _)| fd));
        dropped.extend(node.pinned);
        if self.by_key.get(&node.key) == Some(&id) {
            self.by_key.remove(&node.key);
        }
        Some((node.key, node.parent))
    }

    /// Keeps a descriptor of the node with this key, if a client knows it.
    pub(super) fn pin(&mut self, key: Key, fd: OwnedFd) {
        if let Some(node) = self.by_key.get(&key).and_then(|id| self.nodes.get_mut(id)) {
            node.pinned = Some(Arc::new(fd));
        }
    }

    /// The node with this key has another name now.
    pub(super) fn renamed(&mut self, key: Key, parent: u64, name: &[u8]) -> Dropped {
        let mut dropped = Vec::new();
        if let Some(&id) = self.by_key.get(&key) {
            self.place(id, parent, name, &mut dropped);
        }
        dropped
    }

    /// The node with this key.
    pub(super) fn number(&self, key: Key) -> Option<u64> {
        self.by_key.get(&key).copied()
    }

    pub(super) fn parent(&self, id: u64) -> Result<u64> {
        self.nodes.get(&id).map(|node| node.parent).ok_or(Errno::ESTALE)
    }

    pub(super) fn key(&self, id: u64) -> Option<Key> {
        self.nodes.get(&id).map(|node| node.key)
    }

    /// Gives back counts; the key of a node that is gone with it, and descriptors to close.
    pub(super) fn forget(&mut self, id: u64, count: u64) -> (Option<Key>, Dropped) {
        let mut dropped = Vec::new();
        if id == NodeId::ROOT.0 {
            return (None, dropped);
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups = node.lookups.saturating_sub(count);
        }
        match self.remove_unused(id, &mut dropped) {
            Some((key, parent)) => {
                self.leave(parent, &mut dropped);
                (Some(key), dropped)
            }
            None => (None, dropped),
        }
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        (self.nodes.len(), self.cache.len(), self.nodes.values().filter(|n| n.pinned.is_some()).count())
    }
}
