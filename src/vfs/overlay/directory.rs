//! A directory of the host under the upper.
//!
//! It is read through a [`HostDir`] that refuses every change, so nothing of the host is ever altered or followed out
//! of the directory. A [`HostNode`] is one file of it that a node of the overlay shows; it holds one lookup of the
//! `HostDir`, which therefore gives it the same number as long as it lives. Files that are replaced or cut on the
//! host meanwhile read as the host has them, or fail with `ESTALE` or `EIO`.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::below::Each;
use super::node::XattrMap;
use crate::state::files::HostDirectory;
use crate::vfs::io::ReadSink;
use crate::vfs::saved::LoadError;
use crate::vfs::{Attr, Caller, Errno, FileSystem, HostDir, HostDirOptions, Name, NodeId, Result};

/// Descriptors for reading content that are kept open.
const OPEN_FILES: usize = 64;

#[derive(Clone, Debug)]
pub(super) struct Directory {
    host: Arc<Host>,
}

#[derive(Debug)]
struct Host {
    dir: HostDir,
    files: Mutex<Files>,
}

#[derive(Debug, Default)]
struct Files {
    open: HashMap<u64, (Arc<File>, u64)>,
    clock: u64,
}

#[derive(Debug)]
pub(super) struct HostNode {
    host: Arc<Host>,
    id: NodeId,
    shown: u64,
}

impl Directory {
    /// Numbers of the upper's nodes begin here. Host directories number theirs from 2 up.
    pub(super) const END: u64 = 1 << 48;

    pub(super) fn new(path: &Path, options: HostDirOptions) -> io::Result<Directory> {
        let dir = HostDir::new(path, HostDirOptions { read_only: true, ..options })?;
        Ok(Directory { host: Arc::new(Host { dir, files: Mutex::default() }) })
    }

    pub(super) fn root(&self) -> Arc<HostNode> {
        let shown = self.host.dir.getattr(NodeId::ROOT, None).map_or(NodeId::ROOT.0, |attr| show(attr.ino));
        Arc::new(HostNode { host: self.host.clone(), id: NodeId::ROOT, shown })
    }

    pub(super) fn save(&self) -> HostDirectory {
        self.host.dir.saved()
    }

    pub(super) fn load(saved: &HostDirectory) -> std::result::Result<Directory, LoadError> {
        let dir = HostDir::load(saved)?;
        dir.forget_all();
        Ok(Directory { host: Arc::new(Host { dir, files: Mutex::default() }) })
    }

    /// A node of a directory that was loaded, shown with this inode number. Takes one more lookup of it.
    pub(super) fn node(&self, number: u64, shown: u64) -> Option<Arc<HostNode>> {
        let id = NodeId(number);
        self.host.dir.look_up_again(id).then(|| Arc::new(HostNode { host: self.host.clone(), id, shown }))
    }

    /// After loading: gives back the lookups that the saved nodes held.
    pub(super) fn settle(&self) {
        self.host.dir.settle();
    }

    /// How long clients may trust names and attributes.
    pub(super) fn ttl(&self) -> Duration {
        self.host.dir.cache()
    }
}

/// Inode numbers of the host, kept apart from those of the upper.
fn show(ino: u64) -> u64 {
    if ino < Directory::END { ino } else { ino | 1 << 63 }
}

impl Host {
    fn file(&self, id: NodeId) -> Result<Arc<File>> {
        {
            let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            files.clock += 1;
            let now = files.clock;
            if let Some((file, used)) = files.open.get_mut(&id.0) {
                *used = now;
                return Ok(file.clone());
            }
        }
        let opened = match self.dir.open_to_read(id) {
            Err(Errno::EMFILE | Errno::ENFILE) => {
                let dropped =
                    std::mem::take(&mut self.files.lock().unwrap_or_else(PoisonError::into_inner).open);
                drop(dropped);
                self.dir.open_to_read(id)?
            }
            other => other?,
        };
        let file = Arc::new(opened);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let now = files.clock;
        if files.open.len() >= OPEN_FILES {
            let oldest = files.open.iter().min_by_key(|(_, (_, used))| *used).map(|(&id, _)| id);
            oldest.and_then(|id| files.open.remove(&id));
        }
        files.open.insert(id.0, (file.clone(), now));
        Ok(file)
    }
}

impl HostNode {
    pub(super) fn number(&self) -> u64 {
        self.id.0
    }

    /// The inode number to show.
    pub(super) fn shown(&self) -> u64 {
        self.shown
    }

    pub(super) fn attr(&self) -> Result<Attr> {
        Ok(Attr { ino: self.shown, ..self.host.dir.getattr(self.id, None)? })
    }

    pub(super) fn child(&self, name: &[u8]) -> Result<Option<(Arc<HostNode>, Attr)>> {
        match self.host.dir.lookup(&Caller::default(), self.id, Name::new(name)?) {
            Ok(entry) => {
                let shown = show(entry.attr.ino);
                let node = HostNode { host: self.host.clone(), id: entry.node, shown };
                Ok(Some((Arc::new(node), Attr { ino: shown, ..entry.attr })))
            }
            // A directory that has become something else on the host has nothing in it any more.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Lists without `.` and `..`.
    pub(super) fn list(&self, from: u64, each: Each<'_>) -> Result<()> {
        let listed = self.host.dir.list_node(self.id, from, &mut |entry| {
            if matches!(entry.name, b"." | b"..") {
                return Ok(true);
            }
            Ok(each(entry.cookie, entry.name, show(entry.ino), entry.kind))
        });
        match listed {
            Err(Errno::ENOTDIR | Errno::ESTALE) => Ok(()),
            other => other,
        }
    }

    pub(super) fn readlink(&self) -> Result<Vec<u8>> {
        self.host.dir.readlink(self.id)
    }

    pub(super) fn read(&self, offset: u64, len: usize, sink: &mut dyn ReadSink) -> Result<usize> {
        sink.file(&*self.host.file(self.id)?, offset, len)
    }

    /// The next byte that is not in a hole; the byte itself where the host cannot tell.
    pub(super) fn next_data(&self, offset: u64) -> Option<u64> {
        let Ok(file) = self.host.file(self.id) else { return Some(offset) };
        match rustix::fs::seek(&*file, rustix::fs::SeekFrom::Data(offset)) {
            Ok(at) => Some(at),
            Err(rustix::io::Errno::NXIO) => None,
            Err(_) => Some(offset),
        }
    }

    /// The next hole; `None` where the host cannot tell.
    pub(super) fn next_hole(&self, offset: u64) -> Option<u64> {
        let file = self.host.file(self.id).ok()?;
        rustix::fs::seek(&*file, rustix::fs::SeekFrom::Hole(offset)).ok()
    }

    pub(super) fn xattr(&self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.host.dir.lower_xattr(self.id, name)
    }

    pub(super) fn xattr_names(&self) -> Result<Vec<Box<[u8]>>> {
        self.host.dir.lower_xattrs(self.id)
    }

    pub(super) fn xattrs(&self) -> Result<XattrMap> {
        let mut all = XattrMap::new();
        for name in self.xattr_names()? {
            if let Some(value) = self.xattr(&name)? {
                all.insert(name, value.into());
            }
        }
        Ok(all)
    }
}

impl Drop for HostNode {
    fn drop(&mut self) {
        self.host.dir.forget(self.id, 1);
        if !self.host.dir.knows(self.id) {
            let file = self.host.files.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&self.id.0);
            drop(file);
        }
    }
}
