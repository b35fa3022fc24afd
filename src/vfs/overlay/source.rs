//! What a node takes from below: how it is made of a layer's file or a host's, and its attributes until they are its own.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::below::{Below, Found, LowerDir, Source};
use super::data::{Data, Lower, LowerFile};
use super::directory::HostNode;
use super::lower::{Lowers, Merged};
use super::node::{Body, Dir, Node, XattrMap, Xattrs};
use super::shared::SharedMap;
use super::store::Store;
use crate::vfs::{Attr, Errno, FileType, Result, Time};

impl Node {
    pub(super) fn attr(&self, ino: u64) -> Attr {
        let (size, blocks) = match &self.body {
            Body::Dir(_) => (4096, 8),
            Body::File(data) => (data.size(), data.blocks()),
            Body::Symlink(target) => (target.len() as u64, 0),
            Body::Special => (0, 0),
        };
        Attr {
            ino: self.shown(ino),
            size,
            blocks,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            blksize: 4096,
        }
    }

    /// The inode number to show for the node `ino`.
    pub(super) fn shown(&self, ino: u64) -> u64 {
        self.host.as_ref().map_or(ino, |host| host.shown())
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_mode(self.mode).unwrap_or(FileType::File)
    }

    /// The attributes as our own map, copied from the layer where they are still there.
    pub(super) fn own_xattrs(&mut self, below: &Below, store: &Store) -> Result<&mut XattrMap> {
        if !matches!(self.xattrs, Xattrs::Own(_)) {
            let own = self.all_xattrs(below)?.into_owned();
            store.take_metadata(own.iter().map(|(n, v)| (n.len() + v.len()) as u64).sum())?;
            self.xattrs = Xattrs::Own(own.into());
        }
        match &mut self.xattrs {
            Xattrs::Own(own) => Ok(own.edit()),
            _ => Err(Errno::EIO),
        }
    }

    /// All attributes by name.
    pub(super) fn all_xattrs(&self, below: &Below) -> Result<Cow<'_, XattrMap>> {
        Ok(match (&self.xattrs, &self.host) {
            (Xattrs::Own(own), _) => Cow::Borrowed(own),
            (Xattrs::Host, Some(host)) => Cow::Owned(host.xattrs()?),
            (Xattrs::Host, None) => Cow::default(),
            (&Xattrs::Lower(id), _) => {
                let mut all = XattrMap::new();
                if let Some(layer) = below.lowers().and_then(|lowers| lowers.layer(id)) {
                    for (name, value) in layer.index().xattrs(&layer.index().inode(id.inode)) {
                        all.insert(name.into(), value.into());
                    }
                }
                Cow::Owned(all)
            }
        })
    }

    pub(super) fn xattr(&self, below: &Below, name: &[u8]) -> Result<Option<Box<[u8]>>> {
        Ok(match (&self.xattrs, &self.host) {
            (Xattrs::Own(own), _) => own.get(name).cloned(),
            (Xattrs::Host, Some(host)) => host.xattr(name)?.map(Into::into),
            (Xattrs::Host, None) => None,
            (Xattrs::Lower(id), _) => below.lowers().and_then(|lowers| {
                let index = lowers.layer(*id)?.index();
                index.xattrs(&index.inode(id.inode)).find(|&(n, _)| n == name).map(|(_, value)| value.into())
            }),
        })
    }

    /// Whether the host's file has changed since the node was made of it.
    pub(super) fn is_stale(&self, attr: &Attr) -> bool {
        let size = match &self.body {
            Body::File(data) => data.size(),
            _ => attr.size,
        };
        let known = (self.mode, self.uid, self.gid, self.mtime, self.ctime, size);
        !self.dirty && known != (attr.mode, attr.uid, attr.gid, attr.mtime, attr.ctime, attr.size)
    }

    /// Takes over what the host says now, unless the node has changes of its own.
    pub(super) fn refresh(&mut self, attr: &Attr) {
        if !self.is_stale(attr) {
            return;
        }
        (self.mode, self.uid, self.gid, self.nlink) = (attr.mode, attr.uid, attr.gid, attr.nlink);
        (self.atime, self.mtime, self.ctime) = (attr.atime, attr.mtime, attr.ctime);
        if let (Body::File(data), Some(host)) = (&mut self.body, &self.host) {
            *data = Data::over(Lower {
                file: LowerFile::Host(host.clone()),
                len: attr.size,
                blocks: attr.blocks,
            });
        }
    }
}

pub(super) fn new_node(mode: u32, uid: u32, gid: u32, nlink: u32, body: Body) -> Node {
    let now = Time::now();
    Node {
        mode,
        uid,
        gid,
        rdev: 0,
        nlink,
        atime: now,
        mtime: now,
        ctime: now,
        lookups: AtomicU64::new(0),
        dirty: true,
        xattrs: Xattrs::Own(SharedMap::default()),
        host: None,
        body,
    }
}

/// A node of what is below, as it is there.
pub(super) fn make_node(below: &Below, parent: u64, found: &Found) -> Result<Node> {
    match (&found.source, below.lowers()) {
        (Source::Layers(merged), Some(lowers)) => Ok(from_layers(lowers, parent, merged)),
        (Source::Directory(host, attr), _) => from_host(parent, host, attr),
        _ => Err(Errno::EIO),
    }
}

pub(super) fn from_host(parent: u64, host: &Arc<HostNode>, attr: &Attr) -> Result<Node> {
    let body = match attr.file_type() {
        FileType::Dir => {
            let subdirs = attr.nlink.saturating_sub(2);
            Body::Dir(Box::new(Dir::new(parent, LowerDir::Directory(host.clone()), 0, subdirs)))
        }
        FileType::File => Body::File(Data::over(Lower {
            file: LowerFile::Host(host.clone()),
            len: attr.size,
            blocks: attr.blocks,
        })),
        FileType::Symlink => Body::Symlink(host.readlink()?.into()),
        _ => Body::Special,
    };
    Ok(Node {
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        nlink: attr.nlink.max(1),
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        lookups: AtomicU64::new(0),
        dirty: false,
        xattrs: Xattrs::Host,
        host: Some(host.clone()),
        body,
    })
}

pub(super) fn from_layers(lowers: &Lowers, parent: u64, found: &Merged) -> Node {
    let record = lowers.inode(found.id);
    let (mut nlink, mut body) = (lowers.nlink(found.id), Body::Special);
    if let Some(layer) = lowers.layer(found.id) {
        match found.kind {
            FileType::Dir => {
                let subdirs = lowers.subdirs(&found.dirs);
                nlink = subdirs.saturating_add(2);
                let positions = lowers.positions(&found.dirs);
                body = Body::Dir(Box::new(Dir::new(
                    parent,
                    LowerDir::Layers(found.dirs.clone()),
                    positions,
                    subdirs,
                )));
            }
            FileType::File => {
                let blocks = layer.index().blocks(&record);
                let file = LowerFile::Layer(layer.clone(), found.id.inode);
                let lower = Lower { file, len: record.size, blocks };
                body = Body::File(Data::over(lower));
            }
            FileType::Symlink => body = Body::Symlink(layer.index().target(&record).into()),
            _ => {}
        }
    }
    Node {
        mode: record.mode,
        uid: record.uid,
        gid: record.gid,
        rdev: record.rdev,
        nlink,
        atime: record.mtime,
        mtime: record.mtime,
        ctime: record.mtime,
        lookups: AtomicU64::new(0),
        dirty: false,
        xattrs: Xattrs::Lower(found.id),
        host: None,
        body,
    }
}
