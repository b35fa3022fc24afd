//! The operations of the overlay.

use std::sync::{PoisonError, RwLockReadGuard, RwLockWriteGuard};

use super::below::LowerDir;
use super::data::{Data, MAX_SIZE, PAGE};
use super::node::{Body, Dir, END_OF_POSITIONS, MAX_NLINK, Node, Xattrs};
use super::tree::{Tree, new_node};
use super::{Overlay, acl};
use crate::vfs::{
    Attr, Caller, DirEntry, DirSink, Entry, Errno, FileSystem, FileType, Handle, NAME_MAX, Name, NodeId,
    Opened, ReadSink, Result, Seek, SetAttr, SetTime, StatFs, Time, WriteSource, falloc, mode, open, rename,
    xattr,
};

const MAX_TARGET: usize = 4095;
const MAX_XATTR: usize = 64 << 10;
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

    fn make(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: Name<'_>,
        mut mode: u32,
        rdev: u32,
        body: impl FnOnce() -> Body,
    ) -> Result<Entry> {
        let mut tree = self.exclusive();
        tree.live_dir(parent.0)?;
        if tree.child(&self.below, parent.0, &name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        let kind = FileType::from_mode(mode).ok_or(Errno::EINVAL)?;
        let is_dir = kind == FileType::Dir;
        if let Xattrs::Host = tree.get(parent.0)?.xattrs {
            tree.get_mut(parent.0)?.own_xattrs(&self.below, &self.store)?;
        }
        let above = tree.get(parent.0)?;
        let mut gid = caller.gid;
        if above.mode & mode::SGID != 0 {
            gid = above.gid;
            mode |= if is_dir { mode::SGID } else { 0 };
        }
        let default =
            if kind == FileType::Symlink { None } else { above.xattr(&self.below, acl::DEFAULT)? };
        let mut acls = Vec::new();
        if let Some(default) = default {
            mode &= !0o777 | acl::mode_of(&default);
            if !acl::minimal(&default) {
                acls.push((acl::ACCESS, acl::with_mode(&default, mode)));
            }
            if is_dir {
                acls.push((acl::DEFAULT, default.into_vec()));
            }
        }
        let mut node = new_node(mode, caller.uid, gid, if is_dir { 2 } else { 1 }, body());
        node.rdev = rdev;
        if let Body::Dir(dir) = &mut node.body {
            dir.parent = parent.0;
        }
        let ino = tree.add(&self.store, node)?;
        let bytes = acls.iter().map(|(n, v)| (n.len() + v.len()) as u64).sum();
        let named = self.store.take_metadata(bytes).and_then(|()| {
            if let Xattrs::Own(own) = &mut tree.get_mut(ino)?.xattrs {
                own.extend(acls.into_iter().map(|(n, v)| (n.into(), v.into())));
            }
            tree.put_name(&self.store, parent.0, &name, ino, kind)
        });
        if let Err(e) = named {
            tree.unlinked(&self.store, ino)?;
            return Err(e);
        }
        if is_dir {
            tree.add_subdir(parent.0, 1)?;
        }
        tree.entry(ino)
    }

    fn list(&self, node: NodeId, cookie: u64, each: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let tree = self.shared();
        let dir = tree.dir(node.0)?;
        let shown = |ino| tree.get(ino).map_or(ino, |node| node.shown(ino));
        for (at, (ino, name)) in [(node.0, &b"."[..]), (dir.parent, b"..")].into_iter().enumerate() {
            let entry = DirEntry { ino: shown(ino), cookie: at as u64 + 1, kind: FileType::Dir, name };
            if cookie <= at as u64 && !each(entry) {
                return Ok(());
            }
        }
        if tree.get(node.0)?.nlink == 0 {
            return Ok(());
        }
        let from = cookie.saturating_sub(2);
        let mut room = true;
        let over_host = matches!(dir.lower, LowerDir::Directory(_));
        if !over_host && from < dir.lower_positions {
            self.below.list(&dir.lower, from, &mut |position, name, ino, kind| {
                room = dir.get(name).is_some() || each(DirEntry { ino, cookie: position + 3, kind, name });
                room
            })?;
        }
        if room && from <= END_OF_POSITIONS {
            for (position, name, ino, kind) in dir.upper(from) {
                room = each(DirEntry { ino: shown(ino), cookie: position + 3, kind, name });
                if !room {
                    break;
                }
            }
        }
        if room && over_host {
            self.below.list(&dir.lower, to_host(cookie), &mut |next, name, ino, kind| {
                dir.get(name).is_some() || each(DirEntry { ino, cookie: from_host(next), kind, name })
            })?;
        }
        Ok(())
    }
}

/// Cookies of a host directory come after all positions of the upper. Hosts use numbers up to 2^63 - 1, which is the
/// end of a directory, but none in a stretch of 2^32 before it.
const HOST_COOKIES: u64 = 1 << 32;

fn from_host(cookie: u64) -> u64 {
    cookie.saturating_add(HOST_COOKIES).min(i64::MAX as u64)
}

fn to_host(cookie: u64) -> u64 {
    if cookie >= i64::MAX as u64 { i64::MAX as u64 } else { cookie.saturating_sub(HOST_COOKIES) }
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
        let exchange = flags == rename::EXCHANGE;
        if !matches!(flags, 0 | rename::NOREPLACE | rename::EXCHANGE) {
            return Err(Errno::EINVAL);
        }
        let mut tree = self.exclusive();
        tree.live_dir(parent.0)?;
        tree.live_dir(new_parent.0)?;
        let source = tree.child(&self.below, parent.0, &name)?.ok_or(Errno::ENOENT)?;
        let target = tree.child(&self.below, new_parent.0, &new_name)?;
        if flags == rename::NOREPLACE && target.is_some() {
            return Err(Errno::EEXIST);
        }
        if exchange && target.is_none() {
            return Err(Errno::ENOENT);
        }
        tree.load(&self.below, parent.0, &source)?;
        let source_dir = source.kind == FileType::Dir;
        if source_dir && tree.is_below(new_parent.0, source.ino)? {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = &target {
            if target.ino == source.ino {
                return Ok(());
            }
            tree.load(&self.below, new_parent.0, target)?;
            let target_dir = target.kind == FileType::Dir;
            if target_dir && tree.is_below(parent.0, target.ino)? {
                return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
            }
            if !exchange {
                match (source_dir, target_dir) {
                    (true, false) => return Err(Errno::ENOTDIR),
                    (false, true) => return Err(Errno::EISDIR),
                    (true, true) if !tree.is_empty(&self.below, target.ino)? => {
                        return Err(Errno::ENOTEMPTY);
                    }
                    _ => {}
                }
            }
        }
        let (old, new) = (parent.0, new_parent.0);
        let now = Time::now();
        // Everything that can fail for want of room comes before the first change that shows.
        tree.dirty(&self.store, source.ino, false)?;
        tree.dirty(&self.store, old, false)?;
        if let (true, Some(target)) = (exchange, &target) {
            tree.dirty(&self.store, target.ino, false)?;
            tree.put_name(&self.store, new, &new_name, source.ino, source.kind)?;
            if let Err(e) = tree.put_name(&self.store, old, &name, target.ino, target.kind) {
                tree.put_name(&self.store, new, &new_name, target.ino, target.kind)?;
                return Err(e);
            }
            if target.kind == FileType::Dir {
                tree.set_parent(&self.store, target.ino, old)?;
                tree.add_subdir(new, -1)?;
                tree.add_subdir(old, 1)?;
            }
            tree.get_mut(target.ino)?.ctime = now;
        } else {
            tree.put_name(&self.store, new, &new_name, source.ino, source.kind)?;
            tree.remove_name(&self.below, &self.store, old, &name)?;
            if let Some(target) = &target {
                if target.kind == FileType::Dir {
                    tree.add_subdir(new, -1)?;
                }
                tree.unlinked(&self.store, target.ino)?;
            }
        }
        if source_dir {
            tree.set_parent(&self.store, source.ino, new)?;
            tree.add_subdir(old, -1)?;
            tree.add_subdir(new, 1)?;
        }
        tree.get_mut(source.ino)?.ctime = now;
        Ok(())
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
        // Names are gathered under the shared lock, a few at a time, and looked up after.
        // More each time: how many the sink takes shows only then.
        const MOST: usize = 1024;
        let mut size = 32;
        let mut cookie = cookie;
        loop {
            let mut batch: Vec<(u64, u64, FileType, Vec<u8>)> = Vec::with_capacity(size);
            self.list(node, cookie, &mut |e| {
                batch.push((e.ino, e.cookie, e.kind, e.name.to_vec()));
                batch.len() < size
            })?;
            for (ino, next, kind, name) in &batch {
                let entry = DirEntry { ino: *ino, cookie: *next, kind: *kind, name };
                cookie = *next;
                let Ok(valid) = Name::new(name) else {
                    if !sink.entry(entry, None) {
                        return Ok(());
                    }
                    continue;
                };
                match self.lookup(caller, node, valid) {
                    Ok(found) => {
                        let entry = DirEntry { ino: found.attr.ino, kind: found.attr.file_type(), ..entry };
                        if !sink.entry(entry, Some(&found)) {
                            self.forget(found.node, 1);
                            return Ok(());
                        }
                    }
                    Err(Errno::ENOENT) => {}
                    Err(e) => return Err(e),
                }
            }
            if batch.len() < size {
                return Ok(());
            }
            size = (size * 2).min(MOST);
        }
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
        if name.is_empty() || name.len() > NAME_MAX || name.contains(&0) {
            return Err(Errno::ERANGE);
        }
        if value.len() > MAX_XATTR {
            return Err(Errno::E2BIG);
        }
        if !matches!(flags, 0 | xattr::CREATE | xattr::REPLACE) {
            return Err(Errno::EINVAL);
        }
        let mut tree = self.exclusive();
        let kind = tree.get(id.0)?.kind();
        let is_acl = name == acl::ACCESS || name == acl::DEFAULT;
        if name.starts_with(b"user.") {
            if !matches!(kind, FileType::File | FileType::Dir) {
                return Err(Errno::EPERM);
            }
        } else if is_acl {
            acl::check(value)?;
            if kind == FileType::Symlink {
                return Err(Errno::EOPNOTSUPP);
            }
            if name == acl::DEFAULT && kind != FileType::Dir {
                return Err(Errno::EACCES);
            }
        } else if !name.starts_with(b"trusted.") && !name.starts_with(b"security.") {
            return Err(Errno::EOPNOTSUPP);
        }
        let exists = tree.get(id.0)?.xattr(&self.below, name)?.is_some();
        match flags {
            xattr::CREATE if exists => return Err(Errno::EEXIST),
            xattr::REPLACE if !exists => return Err(Errno::ENODATA),
            _ => {}
        }
        let node = tree.dirty(&self.store, id.0, false)?;
        let own = node.own_xattrs(&self.below, &self.store)?;
        let names: usize = own.keys().map(|n| n.len() + 1).sum();
        if !exists && names + name.len() >= MAX_XATTR {
            return Err(Errno::ENOSPC);
        }
        self.store.take_metadata((name.len() + value.len()) as u64)?;
        if let Some(old) = own.insert(name.into(), value.into()) {
            self.store.give_metadata((name.len() + old.len()) as u64);
        }
        if name == acl::ACCESS {
            node.mode = node.mode & !0o777 | acl::mode_of(value);
        }
        node.ctime = Time::now();
        Ok(())
    }

    fn getxattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        let tree = self.shared();
        tree.get(node.0)?.xattr(&self.below, name)?.map(|v| v.into_vec()).ok_or(Errno::ENODATA)
    }

    fn listxattr(&self, node: NodeId) -> Result<Vec<u8>> {
        let tree = self.shared();
        let mut list = Vec::new();
        let mut add = |name: &[u8]| {
            list.extend_from_slice(name);
            list.push(0);
        };
        let node = tree.get(node.0)?;
        match &node.xattrs {
            Xattrs::Own(own) => own.keys().for_each(|name| add(name)),
            Xattrs::Host => {
                if let Some(host) = &node.host {
                    host.xattr_names()?.iter().for_each(|name| add(name));
                }
            }
            Xattrs::Lower(id) => {
                if let Some(layer) = self.below.lowers().and_then(|lowers| lowers.layer(*id)) {
                    layer.index().xattrs(&layer.index().inode(id.inode)).for_each(|(name, _)| add(name));
                }
            }
        }
        Ok(list)
    }

    fn removexattr(&self, _: &Caller, id: NodeId, name: &[u8]) -> Result<()> {
        let mut tree = self.exclusive();
        tree.get(id.0)?.xattr(&self.below, name)?.ok_or(Errno::ENODATA)?;
        let node = tree.dirty(&self.store, id.0, false)?;
        if let Some(old) = node.own_xattrs(&self.below, &self.store)?.remove(name) {
            self.store.give_metadata((name.len() + old.len()) as u64);
        }
        node.ctime = Time::now();
        Ok(())
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

#[cfg(test)]
impl Overlay {
    /// Pages, inodes and nodes looked up: what must be back to the start when all is removed and forgotten.
    pub(super) fn usage(&self) -> (u64, u64) {
        (self.store.pages(), self.store.inodes())
    }
}
