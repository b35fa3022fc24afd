//! The changes of a layer made to a file system, where the layer cannot lie below: over a directory of the host.

use std::collections::HashMap;

use super::layer::{Inode, Layer};
use super::{
    Caller, DirEntry, DirSink, Entry, Errno, FileSystem, FileType, Handle, Name, NodeId, Result, SetAttr,
    SetTime, open,
};

/// Bytes of a file that are copied at once.
const PIECE: usize = 256 << 10;
/// Names of a directory that are removed at once.
const BATCH: usize = 1024;

/// Makes `fs` what it would be with `layer` above it. All of the layer's data is copied.
///
/// # Errors
/// Those of the file system's operations, `ENOSPC` above all; `EINVAL` for a layer with hard links into lower layers,
/// which [`Overlay::write_layer`](super::Overlay::write_layer) does not make. A part of the changes is there then.
pub(crate) fn apply(fs: &dyn FileSystem, layer: &Layer) -> Result<()> {
    let mut applied = Apply { fs, layer, caller: Caller::default(), linked: HashMap::new() };
    let root = layer.index().inode(0);
    let done = applied.directory(NodeId::ROOT, 0, &root);
    for node in std::mem::take(&mut applied.linked).into_values() {
        fs.forget(node, 1);
    }
    done
}

struct Apply<'a> {
    fs: &'a dyn FileSystem,
    layer: &'a Layer,
    caller: Caller,
    /// Files with several names by their inode in the layer; a lookup count is held of each.
    linked: HashMap<u32, NodeId>,
}

impl Apply<'_> {
    fn directory(&mut self, node: NodeId, dir: u32, record: &Inode) -> Result<()> {
        if record.opaque() {
            self.clear(node)?;
        }
        let index = self.layer.index();
        for position in 0..index.len(dir) {
            let Some(entry) = index.at(dir, position) else { continue };
            let name = Name::new(entry.name)?;
            match entry.inode {
                None => self.remove(node, name)?,
                Some(inode) => self.entry(node, name, inode)?,
            }
        }
        // Last, since what was done in it has changed its time.
        if record.implicit() { Ok(()) } else { self.attributes(node, record) }
    }

    fn entry(&mut self, parent: NodeId, name: Name<'_>, inode: u32) -> Result<()> {
        let record = self.layer.index().inode(inode);
        if record.lower_link() {
            return Err(Errno::EINVAL);
        }
        let there = match self.fs.lookup(&self.caller, parent, name) {
            Ok(found) => Some(found),
            Err(Errno::ENOENT) => None,
            Err(e) => return Err(e),
        };
        if let Some(found) = there {
            if record.is_dir() && found.attr.file_type() == FileType::Dir {
                let done = self.directory(found.node, inode, &record);
                self.fs.forget(found.node, 1);
                return done;
            }
            self.fs.forget(found.node, 1);
            self.remove(parent, name)?;
        }
        if let Some(&node) = self.linked.get(&inode) {
            let linked = self.fs.link(&self.caller, node, parent, name)?;
            self.fs.forget(linked.node, 1);
            return Ok(());
        }
        let made = self.make(parent, name, &record)?.node;
        let done = match record.kind() {
            FileType::Dir => self.directory(made, inode, &record),
            FileType::File => {
                self.content(made, inode, record.size).and_then(|()| self.attributes(made, &record))
            }
            _ => self.attributes(made, &record),
        };
        match record.nlink > 1 && !record.is_dir() {
            true => _ = self.linked.insert(inode, made),
            false => self.fs.forget(made, 1),
        }
        done
    }

    fn make(&self, parent: NodeId, name: Name<'_>, record: &Inode) -> Result<Entry> {
        match record.kind() {
            FileType::Dir => self.fs.mkdir(&self.caller, parent, name, record.mode),
            FileType::Symlink => {
                self.fs.symlink(&self.caller, parent, name, self.layer.index().target(record))
            }
            _ => self.fs.mknod(&self.caller, parent, name, record.mode, record.rdev),
        }
    }

    fn content(&self, node: NodeId, inode: u32, size: u64) -> Result<()> {
        let handle = self.fs.open(&self.caller, node, open::WRONLY, false)?.handle;
        let done = self.copy(node, handle, inode, size);
        self.fs.release(node, handle);
        done
    }

    fn copy(&self, node: NodeId, handle: Handle, inode: u32, size: u64) -> Result<()> {
        let mut at = 0;
        while let Some(start) = self.layer.next_data(inode, at).filter(|&start| start < size) {
            let end = self.layer.next_hole(inode, start).min(size);
            at = start;
            while at < end {
                let mut piece = Vec::new();
                let len = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
                let len = self.layer.read(inode, at, len, &mut piece)?;
                let mut rest = piece.get(..len).unwrap_or_default();
                while !rest.is_empty() {
                    let mut source = rest;
                    match self.fs.write(node, handle, at, rest.len() as u32, &mut source, false)? {
                        0 => return Err(Errno::EIO),
                        n => {
                            at += n as u64;
                            rest = rest.get(n..).unwrap_or_default();
                        }
                    }
                }
                if len == 0 {
                    return Err(Errno::EIO);
                }
            }
        }
        // A hole at the end.
        let length = SetAttr { size: Some(size), ..SetAttr::default() };
        self.fs.setattr(&self.caller, node, Some(handle), &length).map(drop)
    }

    fn attributes(&self, node: NodeId, record: &Inode) -> Result<()> {
        let set = |set: SetAttr| self.fs.setattr(&self.caller, node, None, &set).map(drop);
        // Set-id bits and capabilities go when the owner changes.
        set(SetAttr { uid: Some(record.uid), gid: Some(record.gid), ..SetAttr::default() })?;
        let index = self.layer.index();
        let have = self.fs.listxattr(node)?;
        for name in have.split(|&b| b == 0).filter(|name| !name.is_empty()) {
            if !index.xattrs(record).any(|(wanted, _)| wanted == name) {
                self.fs.removexattr(&self.caller, node, name)?;
            }
        }
        for (name, value) in index.xattrs(record) {
            self.fs.setxattr(&self.caller, node, name, value, 0)?;
        }
        let mode = (record.kind() != FileType::Symlink).then_some(record.mode);
        set(SetAttr { mode, mtime: Some(SetTime::At(record.mtime)), ..SetAttr::default() })
    }

    /// Removes a name and all that is below it; nothing if there is no such name.
    fn remove(&self, parent: NodeId, name: Name<'_>) -> Result<()> {
        let found = match self.fs.lookup(&self.caller, parent, name) {
            Ok(found) => found,
            Err(Errno::ENOENT) => return Ok(()),
            Err(e) => return Err(e),
        };
        let done = match found.attr.file_type() {
            FileType::Dir => self.clear(found.node).and_then(|()| self.fs.rmdir(&self.caller, parent, name)),
            _ => self.fs.unlink(&self.caller, parent, name),
        };
        self.fs.forget(found.node, 1);
        done
    }

    /// Empties a directory.
    fn clear(&self, node: NodeId) -> Result<()> {
        loop {
            let handle = self.fs.opendir(&self.caller, node)?.handle;
            let mut names = Names(Vec::new());
            let listed = self.fs.readdir(node, handle, 0, &mut names);
            self.fs.releasedir(node, handle);
            listed?;
            if names.0.is_empty() {
                return Ok(());
            }
            for name in &names.0 {
                self.remove(node, Name::new(name)?)?;
            }
        }
    }
}

/// The first names of a directory.
struct Names(Vec<Vec<u8>>);

impl DirSink for Names {
    fn entry(&mut self, entry: DirEntry<'_>, _: Option<&Entry>) -> bool {
        if !matches!(entry.name, b"." | b"..") {
            self.0.push(entry.name.to_owned());
        }
        self.0.len() < BATCH
    }
}
