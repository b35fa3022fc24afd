//! An upper written down, and made again of that.
//!
//! Every node is saved as it is, those that only show what is below too: their client knows them by number. What the
//! store counts, and how many directories know each other, is counted again.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use super::below::{Below, LowerDir};
use super::chunk::{Chunk, Own};
use super::data::{CHUNK, Data, Lower, LowerFile, PAGE};
use super::directory::{Directory, HostNode};
use super::lower::{LowerId, Lowers};
use super::node::{Body, Change, Dir, END_OF_POSITIONS, Node, XattrMap, Xattrs};
use super::store::Store;
use super::tree::Tree;
use super::{Limits, Overlay};
use crate::state::files::{self as state, Upper};
use crate::vfs::layer::Layer;
use crate::vfs::saved::{LoadError, Loader, Saver, invalid};
use crate::vfs::{FileType, Name, NodeId, Time, mode};

/// The caps of lists come from the size of their section; this is that of one text in it.
const MAX_TEXT: usize = 64 << 10;

impl Overlay {
    /// Writes the file system and all its data.
    pub(in crate::vfs) fn save_to(&self, to: &mut Saver) -> io::Result<Upper> {
        // Exclusive, since lookup counts change under the shared lock.
        let tree = self.exclusive();
        let below = match &self.below {
            Below::Layers(lowers) => {
                let numbers: io::Result<Vec<u32>> =
                    lowers.layers.iter().map(|layer| to.layer(layer)).collect();
                state::Below::Layers(numbers?)
            }
            Below::Directory(directory) => state::Below::Directory(directory.save()),
        };
        let layers = match &self.below {
            Below::Layers(lowers) => &lowers.layers[..],
            Below::Directory(_) => &[],
        };
        let mut nodes = Vec::with_capacity(tree.nodes().count());
        for (number, node) in tree.nodes() {
            nodes.push(save_node(number, node, layers, &self.store, to)?);
        }
        nodes.sort_unstable_by_key(|node| node.number);
        let limits = &self.store.limits;
        Ok(Upper {
            below,
            limits: [limits.bytes, limits.inodes, limits.metadata, limits.memory],
            next: tree.next(),
            root_changed: save_time(tree.root_ctime()),
            nodes,
        })
    }

    /// Makes the file system again.
    pub(in crate::vfs) fn load(saved: Upper, from: &Loader) -> Result<Overlay, LoadError> {
        let [bytes, inodes, metadata, memory] = saved.limits;
        let store = Store::new(Limits { bytes, inodes, metadata, memory, spill_dir: None });
        let mut hosts = Hosts::default();
        let (below, ttl) = match &saved.below {
            state::Below::Layers(numbers) => {
                let layers: Result<Vec<Layer>, LoadError> =
                    numbers.iter().map(|&n| from.layer(n).cloned()).collect();
                let lowers =
                    Lowers::new(layers?).map_err(|_| invalid("layers that do not fit each other"))?;
                (Below::Layers(Arc::new(lowers)), None)
            }
            state::Below::Directory(saved) => {
                let directory = Directory::load(saved)?;
                let ttl = directory.ttl();
                hosts.directory = Some(directory.clone());
                (Below::Directory(directory), Some(ttl))
            }
        };
        let mut nodes = HashMap::with_capacity(saved.nodes.len());
        for node in saved.nodes {
            let number = node.number;
            let node = load_node(node, &below, &mut hosts, &store, from)?;
            if number == 0 || number >= saved.next || nodes.insert(number, node).is_some() {
                return Err(invalid("number of a node"));
            }
        }
        link(&mut nodes, &below)?;
        let tree = Tree::of_saved(nodes, saved.next, ttl, load_time(saved.root_changed)?);
        if let Below::Directory(directory) = &below {
            directory.settle();
        }
        Ok(Overlay { below, store, tree: RwLock::new(tree) })
    }
}

/// The nodes of the host directory that are in use, each once.
#[derive(Default)]
struct Hosts {
    directory: Option<Directory>,
    known: HashMap<u64, Arc<HostNode>>,
}

impl Hosts {
    fn get(&mut self, number: u64, shown: u64) -> Result<Arc<HostNode>, LoadError> {
        let directory = self.directory.as_ref().ok_or(invalid("a file of the host without a directory"))?;
        if let Some(node) = self.known.get(&number) {
            return Ok(node.clone());
        }
        let node = directory.node(number, shown).ok_or(invalid("a file of the host nobody knows"))?;
        self.known.insert(number, node.clone());
        Ok(node)
    }
}

fn save_time(time: Time) -> state::Time {
    (time.secs, time.nanos)
}

fn load_time((secs, nanos): state::Time) -> Result<Time, LoadError> {
    if nanos < 1_000_000_000 { Ok(Time { secs, nanos }) } else { Err(invalid("a time")) }
}

fn save_node(
    number: u64,
    node: &Node,
    layers: &[Layer],
    store: &Store,
    to: &mut Saver,
) -> io::Result<state::Node> {
    let body = match &node.body {
        Body::Dir(dir) => state::Body::Directory {
            parent: dir.parent,
            below: match &dir.lower {
                LowerDir::Layers(dirs) => {
                    state::BelowDirectory::Layers(dirs.iter().map(|id| (id.layer, id.inode)).collect())
                }
                LowerDir::Directory(host) => state::BelowDirectory::Host(host.number(), host.shown()),
            },
            positions: dir.lower_positions,
            directories: dir.subdirs,
            next: dir.next(),
            names: save_names(dir),
        },
        Body::File(data) => {
            let below = match data.lower() {
                None => None,
                Some(Lower { file, len, blocks }) => {
                    let file = match file {
                        LowerFile::Layer(layer, inode) => {
                            let n = layers.iter().position(|known| known.is(layer));
                            let n =
                                n.ok_or_else(|| io::Error::other("a file of a layer that is not here"))?;
                            state::BelowData::Layer(n as u32, *inode)
                        }
                        LowerFile::Host(host) => state::BelowData::Host(host.number(), host.shown()),
                    };
                    Some(state::BelowFile { file, len: *len, blocks: *blocks })
                }
            };
            let mut chunks = Vec::new();
            for (index, chunk) in data.chunks() {
                chunks.push(save_chunk(index, chunk, store, to)?);
            }
            state::Body::File { size: data.size(), below, chunks }
        }
        Body::Symlink(target) => state::Body::Symlink(target.to_vec()),
        Body::Special => state::Body::Special,
    };
    Ok(state::Node {
        number,
        mode: node.mode,
        uid: node.uid,
        gid: node.gid,
        rdev: node.rdev,
        links: node.nlink,
        times: [node.atime, node.mtime, node.ctime].map(save_time),
        lookups: node.lookups.load(Ordering::Relaxed),
        changed: node.dirty,
        xattrs: match &node.xattrs {
            Xattrs::Lower(id) => state::Xattrs::Layer(id.layer, id.inode),
            Xattrs::Host => state::Xattrs::Host,
            Xattrs::Own(own) => {
                state::Xattrs::Own(own.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect())
            }
        },
        host: node.host.as_ref().map(|host| (host.number(), host.shown())),
        body,
    })
}

fn save_names(dir: &Dir) -> Vec<state::Name> {
    let mut names: Vec<state::Name> = dir
        .changes()
        .map(|(name, change)| state::Name {
            name: name.to_vec(),
            node: match change {
                Change::Whiteout => None,
                Change::Node { ino, kind, position } => Some((ino, kind.mode(), position)),
            },
        })
        .collect();
    names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    names
}

fn save_chunk(index: u64, chunk: &Chunk, store: &Store, to: &mut Saver) -> io::Result<state::Chunk> {
    let pages = 16 - u64::from(chunk.have.leading_zeros());
    let mut bytes = Vec::with_capacity((pages * PAGE) as usize);
    chunk.read(0, pages * PAGE, &mut bytes, store).map_err(io::Error::other)?;
    let used = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
    bytes.truncate(used);
    let crc = crc32fast::hash(&bytes);
    let offset = to.data(&bytes)?;
    Ok(state::Chunk { index, have: chunk.have, hole: chunk.hole, offset, len: bytes.len() as u32, crc })
}

fn load_node(
    saved: state::Node,
    below: &Below,
    hosts: &mut Hosts,
    store: &Store,
    from: &Loader,
) -> Result<Node, LoadError> {
    let kind = FileType::from_mode(saved.mode).ok_or(invalid("type of a node"))?;
    let id = |layer, inode| {
        let id = LowerId { layer, inode };
        let there = below.lowers().and_then(|l| l.layer(id)).is_some_and(|l| inode < l.index().inodes());
        if there { Ok(id) } else { Err(invalid("inode of a layer")) }
    };
    let [atime, mtime, ctime] = saved.times;
    let host = saved.host.map(|(number, shown)| hosts.get(number, shown)).transpose()?;
    let xattrs = match saved.xattrs {
        state::Xattrs::Layer(layer, inode) => Xattrs::Lower(id(layer, inode)?),
        state::Xattrs::Host => Xattrs::Host,
        state::Xattrs::Own(own) => {
            let mut all = XattrMap::new();
            for (name, value) in own {
                if name.is_empty() || name.len() > MAX_TEXT || value.len() > MAX_TEXT {
                    return Err(invalid("an extended attribute"));
                }
                store.force_metadata((name.len() + value.len()) as u64);
                all.insert(name.into(), value.into());
            }
            Xattrs::Own(all.into())
        }
    };
    let body = match (saved.body, kind) {
        (
            state::Body::Directory { parent, below: lower, positions, directories, next, names },
            FileType::Dir,
        ) => {
            let lower = match lower {
                state::BelowDirectory::Layers(dirs) => LowerDir::Layers(
                    dirs.into_iter().map(|(layer, inode)| id(layer, inode)).collect::<Result<_, _>>()?,
                ),
                state::BelowDirectory::Host(number, shown) => LowerDir::Directory(hosts.get(number, shown)?),
            };
            let mut dir = Dir::new(parent, lower, positions, directories);
            load_names(&mut dir, names, next)?;
            store.force_metadata(dir.charged());
            Body::Dir(Box::new(dir))
        }
        (state::Body::File { size, below: lower, chunks }, FileType::File) => {
            let lower = match lower {
                None => None,
                Some(state::BelowFile { file, len, blocks }) => {
                    let file = match file {
                        state::BelowData::Layer(layer, inode) => {
                            let id = id(layer, inode)?;
                            let layer = below.lowers().and_then(|l| l.layer(id));
                            LowerFile::Layer(layer.ok_or(invalid("number of a layer"))?.clone(), inode)
                        }
                        state::BelowData::Host(number, shown) => LowerFile::Host(hosts.get(number, shown)?),
                    };
                    Some(Lower { file, len, blocks })
                }
            };
            Body::File(load_data(size, lower, chunks, store, from)?)
        }
        (state::Body::Symlink(target), FileType::Symlink) if target.len() < 4096 => {
            if saved.changed {
                store.force_metadata(target.len() as u64);
            }
            Body::Symlink(target.into())
        }
        (state::Body::Special, kind)
            if !matches!(kind, FileType::Dir | FileType::File | FileType::Symlink) =>
        {
            Body::Special
        }
        _ => return Err(invalid("type of a node")),
    };
    // The root is there whatever happens to it.
    if saved.changed && saved.number != NodeId::ROOT.0 {
        store.force_inode();
    }
    Ok(Node {
        mode: saved.mode,
        uid: saved.uid,
        gid: saved.gid,
        rdev: saved.rdev,
        nlink: saved.links,
        atime: load_time(atime)?,
        mtime: load_time(mtime)?,
        ctime: load_time(ctime)?,
        lookups: AtomicU64::new(saved.lookups),
        dirty: saved.changed,
        xattrs,
        host,
        body,
    })
}

fn load_names(dir: &mut Dir, names: Vec<state::Name>, next: u64) -> Result<(), LoadError> {
    let mut positions = HashSet::new();
    let mut all = Vec::with_capacity(names.len());
    for state::Name { name, node } in names {
        if Name::new(&name).is_err() || dir.get(&name).is_some() {
            return Err(invalid("a name"));
        }
        let change = match node {
            None => Change::Whiteout,
            Some((ino, kind, position)) => {
                let kind = FileType::from_mode(kind & mode::FMT).ok_or(invalid("type of a node"))?;
                if position < dir.lower_positions || position >= next || !positions.insert(position) {
                    return Err(invalid("position of a name"));
                }
                Change::Node { ino, kind, position }
            }
        };
        all.push((name, change));
    }
    if next < dir.lower_positions || next > END_OF_POSITIONS {
        return Err(invalid("position of a name"));
    }
    if dir.load(all, next) { Ok(()) } else { Err(invalid("a name that is there twice")) }
}

fn load_data(
    size: u64,
    lower: Option<Lower>,
    chunks: Vec<state::Chunk>,
    store: &Store,
    from: &Loader,
) -> Result<Data, LoadError> {
    let mut loaded = Vec::with_capacity(chunks.len());
    for saved in chunks {
        let len = u64::from(saved.len);
        let pages = u16::BITS - saved.have.leading_zeros();
        let beyond = saved.index.checked_mul(CHUNK).is_none_or(|start| start >= super::data::MAX_SIZE);
        if beyond || len > u64::from(pages) * PAGE {
            return Err(invalid("a part of a file"));
        }
        let mut chunk = Chunk::default();
        (chunk.have, chunk.hole) = (saved.have, saved.hole);
        if saved.have != 0 {
            let mut bytes = vec![0; len as usize];
            from.data(saved.offset, &mut bytes, saved.crc)?;
            store.take_pages(saved.have.count_ones().into()).map_err(LoadError::NoRoom)?;
            // A page that is there has a body, be it all zeros.
            chunk.reserve(len.max(1), store).map_err(LoadError::NoRoom)?;
            match chunk.own(store).map_err(LoadError::NoRoom)? {
                Own::Memory(body) => {
                    if let Some(room) = body.get_mut(..bytes.len()) {
                        room.copy_from_slice(&bytes);
                    }
                }
                Own::Slot(slot) => store.spill.write(slot, 0, &bytes).map_err(LoadError::NoRoom)?,
                Own::None => return Err(invalid("a part of a file")),
            }
        }
        loaded.push((saved.index, chunk));
    }
    Data::load(size, lower, loaded).ok_or(invalid("a part of a file"))
}

/// Checks how nodes refer to each other, and counts it.
fn link(nodes: &mut HashMap<u64, Node>, below: &Below) -> Result<(), LoadError> {
    let is_dir = |number: u64| matches!(nodes.get(&number), Some(Node { body: Body::Dir(_), .. }));
    if !is_dir(NodeId::ROOT.0) {
        return Err(invalid("a file system without a root"));
    }
    let mut children: HashMap<u64, u32> = HashMap::new();
    for (&number, node) in nodes.iter() {
        let Body::Dir(dir) = &node.body else { continue };
        if !is_dir(dir.parent) || (number == NodeId::ROOT.0 && dir.parent != number) {
            return Err(invalid("a directory that is in none"));
        }
        if number != NodeId::ROOT.0 {
            *children.entry(dir.parent).or_default() += 1;
        }
        for (_, change) in dir.changes() {
            if let Change::Node { ino, kind, .. } = change
                && nodes.get(&ino).is_none_or(|node| node.kind() != kind)
            {
                return Err(invalid("a name of nothing"));
            }
        }
        let fits = match (&dir.lower, below) {
            (LowerDir::Directory(_), Below::Layers(_)) => false,
            (LowerDir::Layers(dirs), Below::Directory(_)) => dirs.is_empty(),
            _ => true,
        };
        if !fits {
            return Err(invalid("a directory of something else"));
        }
    }
    for (number, count) in children {
        if let Some(Node { body: Body::Dir(dir), .. }) = nodes.get_mut(&number) {
            dir.children = count;
        }
    }
    Ok(())
}
