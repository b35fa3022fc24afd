//! The operations of the overlay.

use std::io;
use std::sync::{Arc, PoisonError, RwLockReadGuard, RwLockWriteGuard};

use super::below::LowerDir;
use super::data::{Data, MAX_SIZE, PAGE};
use super::node::{Body, Dir, MAX_NLINK, Node, Xattrs};
use super::tree::Tree;
use super::{Overlay, acl};
use crate::state::files::FileSystem as Saved;
use crate::vfs::saved::Saver;
use crate::vfs::{
    Attr, Caller, DirSink, Entry, Errno, FileSystem, FileType, Handle, NAME_MAX, Name, NodeId, Opened,
    ReadSink, Result, Seek, SetAttr, SetTime, StatFs, Time, WriteSource, falloc, mode, open,
};

const MAX_TARGET: usize = 4095;
const CAPABILITY: &[u8] = b"security.capability";
const OPENED: Opened = Opened { handle: Handle(0), keep_cache: true };
/// Bytes that one `copy_file_range` moves at most, so that the lock is free again soon.
const MAX_COPY: u64 = 4 << 20;

fn set_time(time: SetTime) -> Time {
    match time {
        SetTime::Now => Time::now(),
        SetTime::At(time) => Time { nanos: time.nanos.min(999_999_999), ..time },
    }
}

fn check_offset(offset: u64) -> Result<()> {
    if offset > i64::MAX as u64 { Err(Errno::EINVAL) } else { Ok(()) }
}

impl Overlay {
    pub(super) fn shared(&self) -> RwLockReadGuard<'_, Tree> {
        self.tree.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn exclusive(&self) -> RwLockWriteGuard<'_, Tree> {
        self.tree.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn file<'a>(&self, tree: &'a Tree, node: NodeId) -> Result<&'a Data> {
        match &tree.get(node.0)?.body {
            Body::File(data) => Ok(data),
            Body::Dir(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    fn drop_capability(&self, node: &mut Node) -> Result<()> {
        // Asking the host at each write would cost more than taking its answers over once.
        if matches!(node.xattrs, Xattrs::Host) || node.xattr(&self.below, CAPABILITY)?.is_some() {
            let own = node.own_xattrs(&self.below, &self.store)?;
            if let Some(value) = own.remove(CAPABILITY) {
                self.store.give_metadata((CAPABILITY.len() + value.len()) as u64);
            }
        }
        Ok(())
    }

    /// Changes the content of a file under its rules; `change` gives how many bytes or nothing.
    fn change<T>(
        &self,
        node: NodeId,
        kill_suidgid: bool,
        change: impl FnOnce(&mut Data) -> Result<T>,
    ) -> Result<T> {
        let mut tree = self.exclusive();
        self.file(&tree, node)?;
        let node = tree.dirty(&self.store, node.0, false)?;
        // Before the content: a change that cannot drop the capability must not happen.
        self.drop_capability(node)?;
        let Body::File(data) = &mut node.body else { return Err(Errno::EINVAL) };
        let result = change(data)?;
        content_changed(node, kill_suidgid);
        Ok(result)
    }
}

/// What a change of content does besides.
fn content_changed(node: &mut Node, kill_suidgid: bool) {
    let now = Time::now();
    node.mtime = now;
    node.ctime = now;
    if kill_suidgid {
        kill_set_id(node);
    }
}

fn kill_set_id(node: &mut Node) {
    if node.kind() == FileType::Dir {
        return;
    }
    node.mode &= !mode::SUID;
    // Without group execution, set-gid means mandatory locking.
    if node.mode & mode::XGRP != 0 {
        node.mode &= !mode::SGID;
    }
}

impl FileSystem for Overlay {
    fn lookup(&self, _: &Caller, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        {
            let tree = self.shared();
            let child = tree.child(&self.below, parent.0, &name)?.ok_or(Errno::ENOENT)?;
            if tree.is_loaded(&child) {
                return tree.entry(child.ino);
            }
        }
        let mut tree = self.exclusive();
        let child = tree.child(&self.below, parent.0, &name)?.ok_or(Errno::ENOENT)?;
        tree.load(&self.below, parent.0, &child)?;
        tree.entry(child.ino)
    }

    fn forget(&self, node: NodeId, count: u64) {
        if self.shared().give_back(node.0, count) {
            self.exclusive().drop_unused(&self.store, node.0);
        }
    }

    fn getattr(&self, node: NodeId, _: Option<Handle>) -> Result<Attr> {
        let fresh = {
            let tree = self.shared();
            let known = tree.get(node.0)?;
            // A file that is gone from the host is as it was.
            match known.host.as_ref().filter(|_| !known.dirty).and_then(|host| host.attr().ok()) {
                Some(attr) if known.is_stale(&attr) => attr,
                _ => return Ok(known.attr(node.0)),
            }
        };
        let mut tree = self.exclusive();
        let known = tree.get_mut(node.0)?;
        known.refresh(&fresh);
        Ok(known.attr(node.0))
    }

    fn setattr(&self, _: &Caller, id: NodeId, _: Option<Handle>, set: &SetAttr) -> Result<Attr> {
        let mut tree = self.exclusive();
        if let Some(size) = set.size {
            self.file(&tree, id)?;
            if size > MAX_SIZE {
                return Err(Errno::EFBIG);
            }
        }
        let node = tree.dirty(&self.store, id.0, false)?;
        let new_acl = match set.mode {
            Some(mode) => node.xattr(&self.below, acl::ACCESS)?.map(|list| acl::with_mode(&list, mode)),
            None => None,
        };
        if new_acl.is_some() || set.size.is_some() || set.uid.is_some() || set.gid.is_some() {
            // What can fail comes first, so that all or nothing changes.
            node.own_xattrs(&self.below, &self.store)?;
        }
        if let (Some(size), Body::File(data)) = (set.size, &mut node.body) {
            data.truncate(size, &self.store)?;
            content_changed(node, set.kill_suidgid);
            self.drop_capability(node)?;
        }
        if set.uid.is_some() || set.gid.is_some() {
            node.uid = set.uid.unwrap_or(node.uid);
            node.gid = set.gid.unwrap_or(node.gid);
            kill_set_id(node);
            self.drop_capability(node)?;
        }
        if let Some(mode) = set.mode {
            node.mode = node.mode & mode::FMT | mode & mode::PERM;
            if let Some(list) = new_acl {
                node.own_xattrs(&self.below, &self.store)?.insert(acl::ACCESS.into(), list.into());
            }
        }
        if let Some(time) = set.atime {
            node.atime = set_time(time);
        }
        if let Some(time) = set.mtime {
            node.mtime = set_time(time);
        }
        node.ctime = set.ctime.unwrap_or_else(Time::now);
        Ok(node.attr(id.0))
    }

    fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        match &self.shared().get(node.0)?.body {
            Body::Symlink(target) => Ok(target.to_vec()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn mknod(&self, caller: &Caller, parent: NodeId, name: Name<'_>, mode: u32, rdev: u32) -> Result<Entry> {
        let kind = if mode & mode::FMT == 0 { Some(FileType::File) } else { FileType::from_mode(mode) };
        let kind = kind.filter(|k| !matches!(k, FileType::Dir | FileType::Symlink)).ok_or(Errno::EINVAL)?;
        let rdev = if matches!(kind, FileType::Char | FileType::Block) { rdev } else { 0 };
        let mode = kind.mode() | mode & mode::PERM;
        self.make(caller, parent, name, mode, rdev, || match kind {
            FileType::File => Body::File(Data::default()),
            _ => Body::Special,
        })
    }

    fn mkdir(&self, caller: &Caller, parent: NodeId, name: Name<'_>, mode: u32) -> Result<Entry> {
        let mode = mode::DIR | mode & mode::PERM;
        self.make(caller, parent, name, mode, 0, || Body::Dir(Box::new(Dir::new(0, LowerDir::none(), 0, 0))))
    }

    fn symlink(&self, caller: &Caller, parent: NodeId, name: Name<'_>, target: &[u8]) -> Result<Entry> {
        if target.is_empty() {
            return Err(Errno::ENOENT);
        }
        if target.len() > MAX_TARGET {
            return Err(Errno::ENAMETOOLONG);
        }
        if target.contains(&0) {
            return Err(Errno::EINVAL);
        }
        self.make(caller, parent, name, mode::SYMLINK | 0o777, 0, || Body::Symlink(target.into()))
    }

    fn link(&self, _: &Caller, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        let mut tree = self.exclusive();
        tree.live_dir(parent.0)?;
        if tree.child(&self.below, parent.0, &name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        let source = tree.get(node.0)?;
        let kind = source.kind();
        if kind == FileType::Dir {
            return Err(Errno::EPERM);
        }
        if source.nlink == 0 {
            return Err(Errno::ENOENT);
        }
        if source.nlink >= MAX_NLINK {
            return Err(Errno::EMLINK);
        }
        tree.dirty(&self.store, node.0, false)?;
        tree.put_name(&self.store, parent.0, &name, node.0, kind)?;
        let source = tree.get_mut(node.0)?;
        source.nlink += 1;
        source.ctime = Time::now();
        tree.entry(node.0)
    }

    fn unlink(&self, _: &Caller, parent: NodeId, name: Name<'_>) -> Result<()> {
        let mut tree = self.exclusive();
        let child = tree.child(&self.below, parent.0, &name)?.ok_or(Errno::ENOENT)?;
        if child.kind == FileType::Dir {
            return Err(Errno::EISDIR);
        }
        tree.load(&self.below, parent.0, &child)?;
        tree.remove_name(&self.below, &self.store, parent.0, &name)?;
        tree.unlinked(&self.store, child.ino)
    }

    fn rmdir(&self, _: &Caller, parent: NodeId, name: Name<'_>) -> Result<()> {
        let mut tree = self.exclusive();
        let child = tree.child(&self.below, parent.0, &name)?.ok_or(Errno::ENOENT)?;
        if child.kind != FileType::Dir {
            return Err(Errno::ENOTDIR);
        }
        tree.load(&self.below, parent.0, &child)?;
        if !tree.is_empty(&self.below, child.ino)? {
            return Err(Errno::ENOTEMPTY);
        }
        tree.remove_name(&self.below, &self.store, parent.0, &name)?;
        tree.add_subdir(parent.0, -1)?;
        tree.unlinked(&self.store, child.ino)
    }

    fn rename(
        &self,
        _: &Caller,
        parent: NodeId,
        name: Name<'_>,
        new_parent: NodeId,
        new_name: Name<'_>,
        flags: u32,
    ) -> Result<()> {
        self.rename_entry(parent, name, new_parent, new_name, flags)
    }

    fn open(&self, _: &Caller, node: NodeId, flags: u32, kill_suidgid: bool) -> Result<Opened> {
        let keep_cache = {
            let tree = self.shared();
            let known = tree.get(node.0)?;
            match known.body {
                Body::File(_) => {}
                Body::Dir(_) => return Err(Errno::EISDIR),
                Body::Symlink(_) => return Err(Errno::ELOOP),
                Body::Special => return Err(Errno::ENXIO),
            }
            known.dirty || known.host.is_none() || !tree.ttl().is_zero()
        };
        if flags & open::TRUNC != 0 {
            self.change(node, kill_suidgid, |data| data.truncate(0, &self.store))?;
        }
        Ok(Opened { keep_cache, ..OPENED })
    }

    fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        let mode = mode::FILE | mode & mode::PERM;
        // Somebody may remove between the two; then the next turn makes it.
        for _ in 0..16 {
            match self.make(caller, parent, name, mode, 0, || Body::File(Data::default())) {
                Ok(entry) => return Ok((entry, OPENED)),
                Err(Errno::EEXIST) if flags & open::EXCL == 0 => {}
                Err(e) => return Err(e),
            }
            match self.lookup(caller, parent, name) {
                Ok(mut entry) => match self.open(caller, entry.node, flags, caller.uid != 0) {
                    Ok(opened) => {
                        entry.attr = self.getattr(entry.node, None)?;
                        return Ok((entry, opened));
                    }
                    Err(e) => {
                        self.forget(entry.node, 1);
                        return Err(e);
                    }
                },
                Err(Errno::ENOENT) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Errno::EAGAIN)
    }

    fn read(
        &self,
        node: NodeId,
        _: Handle,
        offset: u64,
        size: u32,
        sink: &mut dyn ReadSink,
    ) -> Result<usize> {
        check_offset(offset)?;
        let tree = self.shared();
        let n = self.file(&tree, node)?.read(offset, size.into(), sink, &self.store)?;
        usize::try_from(n).map_err(|_| Errno::EIO)
    }

    fn write(
        &self,
        node: NodeId,
        _: Handle,
        offset: u64,
        size: u32,
        source: &mut dyn WriteSource,
        kill_suidgid: bool,
    ) -> Result<usize> {
        check_offset(offset)?;
        if size == 0 {
            self.file(&self.shared(), node)?;
            return Ok(0);
        }
        let n =
            self.change(node, kill_suidgid, |data| data.write(offset, size.into(), source, &self.store))?;
        usize::try_from(n).map_err(|_| Errno::EIO)
    }

    fn fork(&self) -> Result<Arc<dyn FileSystem>> {
        Ok(Arc::new(self.duplicate()))
    }

    fn save(&self, to: &mut Saver) -> io::Result<Saved> {
        self.save_to(to).map(Saved::Overlay)
    }

    fn fsync(&self, node: NodeId, _: Handle, _: bool) -> Result<()> {
        // The upper lives as long as this process: there is no medium to reach.
        self.shared().get(node.0).map(drop)
    }

    fn fsyncdir(&self, node: NodeId, _: Handle, _: bool) -> Result<()> {
        self.shared().dir(node.0).map(drop)
    }

    fn release(&self, _: NodeId, _: Handle) {}

    fn opendir(&self, _: &Caller, node: NodeId) -> Result<Opened> {
        self.shared().dir(node.0).map(|_| OPENED)
    }

    fn readdir(&self, node: NodeId, _: Handle, cookie: u64, sink: &mut dyn DirSink) -> Result<()> {
        self.list(node, cookie, &mut |entry| sink.entry(entry, None))
    }

    fn readdirplus(
        &self,
        caller: &Caller,
        node: NodeId,
        _: Handle,
        cookie: u64,
        sink: &mut dyn DirSink,
    ) -> Result<()> {
        self.list_with_nodes(caller, node, cookie, sink)
    }

    fn releasedir(&self, _: NodeId, _: Handle) {}

    fn statfs(&self, _: NodeId) -> Result<StatFs> {
        let limits = &self.store.limits;
        let blocks = limits.bytes / PAGE;
        let free = blocks.saturating_sub(self.store.pages());
        Ok(StatFs {
            block_size: PAGE as u32,
            blocks,
            blocks_free: free,
            blocks_available: free,
            files: limits.inodes,
            files_free: limits.inodes.saturating_sub(self.store.inodes()),
            name_max: NAME_MAX as u32,
        })
    }

    fn setxattr(&self, _: &Caller, id: NodeId, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        self.set_xattr(id, name, value, flags)
    }

    fn getxattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        self.get_xattr(node, name)
    }

    fn listxattr(&self, node: NodeId) -> Result<Vec<u8>> {
        self.list_xattrs(node)
    }

    fn removexattr(&self, _: &Caller, id: NodeId, name: &[u8]) -> Result<()> {
        self.remove_xattr(id, name)
    }

    fn fallocate(&self, node: NodeId, _: Handle, offset: u64, length: u64, flags: u32) -> Result<()> {
        check_offset(offset)?;
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        let end = offset.checked_add(length).filter(|&end| end <= MAX_SIZE).ok_or(Errno::EFBIG)?;
        let keep = flags & falloc::KEEP_SIZE != 0;
        match flags & !falloc::KEEP_SIZE {
            0 => self.change(node, false, |data| {
                data.allocate(offset, length, &self.store)?;
                if !keep {
                    data.grow(end);
                }
                Ok(())
            }),
            falloc::PUNCH_HOLE if keep => {
                self.change(node, false, |data| data.punch(offset, length, &self.store))
            }
            falloc::ZERO_RANGE => self.change(node, false, |data| {
                data.punch(offset, length, &self.store)?;
                if !keep {
                    data.grow(end);
                }
                Ok(())
            }),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    fn lseek(&self, node: NodeId, _: Handle, seek: Seek) -> Result<u64> {
        let tree = self.shared();
        let data = self.file(&tree, node)?;
        let (Seek::Data(offset) | Seek::Hole(offset)) = seek;
        if offset >= data.size() {
            return Err(Errno::ENXIO);
        }
        match seek {
            Seek::Data(offset) => data.next_data(offset).ok_or(Errno::ENXIO),
            Seek::Hole(offset) => Ok(data.next_hole(offset)),
        }
    }

    fn copy_file_range(
        &self,
        node: NodeId,
        _: Handle,
        offset: u64,
        to: NodeId,
        _: Handle,
        to_offset: u64,
        length: u64,
    ) -> Result<u64> {
        check_offset(offset)?;
        check_offset(to_offset)?;
        let mut bytes = Vec::new();
        let length = length.min(MAX_COPY);
        {
            let tree = self.shared();
            self.file(&tree, to)?;
            let data = self.file(&tree, node)?;
            let (end, to_end) = (offset.saturating_add(length), to_offset.saturating_add(length));
            if node == to && offset < to_end && to_offset < end {
                return Err(Errno::EINVAL);
            }
            data.read(offset, length, &mut bytes, &self.store)?;
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut source = &bytes[..];
        self.change(to, true, |data| data.write(to_offset, bytes.len() as u64, &mut source, &self.store))
    }
}
