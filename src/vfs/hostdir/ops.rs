//! The operations of a host directory.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{self, AtFlags, FallocateFlags, Mode, OFlags, RenameFlags, SeekFrom, Timespec, Timestamps};
use rustix::process::getegid;

use super::nodes::Key;
use super::{HostDir, Ownership, errno, lock, proc_path, stat};
use crate::state::files::FileSystem as Saved;
use crate::vfs::saved::Saver;
use crate::vfs::{
    Attr, Caller, DirSink, Entry, Errno, FileSystem, Handle, NAME_MAX, Name, NodeId, Opened, ReadSink,
    Result, Seek, SetAttr, SetTime, StatFs, WriteSource, falloc, mode, open, rename,
};

const MAX_COPY: u64 = 64 << 20;
/// `UTIME_NOW` and `UTIME_OMIT` of `utimensat(2)`.
const UTIME_NOW: i64 = 0x3fff_ffff;
const UTIME_OMIT: i64 = 0x3fff_fffe;

fn timespec(time: Option<SetTime>) -> Timespec {
    let (tv_sec, tv_nsec) = match time {
        None => (0, UTIME_OMIT),
        Some(SetTime::Now) => (0, UTIME_NOW),
        Some(SetTime::At(time)) => (time.secs, time.nanos.min(999_999_999).into()),
    };
    Timespec { tv_sec, tv_nsec: tv_nsec as _ }
}

pub(super) fn check_offset(offset: u64) -> Result<()> {
    if offset > i64::MAX as u64 { Err(Errno::EINVAL) } else { Ok(()) }
}

fn perm(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & mode::PERM)
}

impl HostDir {
    /// The permission bits to set on the host. Where the host's owner is not the one the client sees, set-id bits
    /// would lend the wrong one's rights on the host, so files do not get them.
    fn host_perm(&self, mode: u32, is_dir: bool) -> Mode {
        let foreign = self.options.ownership != Ownership::AsIs && !is_dir;
        perm(if foreign { mode & !(mode::SUID | mode::SGID) } else { mode })
    }

    /// With what permissions to make a file, open to ourselves. A group that is not the final one gets none.
    fn first_perm(&self, caller: &Caller, mode: u32) -> Mode {
        let final_group = self.options.ownership != Ownership::AsIs || caller.gid == getegid().as_raw();
        perm(if final_group { mode & 0o777 | 0o600 } else { 0o600 })
    }

    /// The open file of a handle, which must be of the node.
    pub(super) fn file(&self, handle: Handle) -> Result<Arc<File>> {
        self.handle(handle)
    }

    /// After an entry was made: the mode in spite of our umask, and the owner.
    fn finish(&self, fd: &OwnedFd, caller: &Caller, parent: &OwnedFd, wanted: u32) -> Result<()> {
        let status = stat(fd)?;
        let above = stat(parent)?;
        let inherits = u32::from(above.stx_mode) & mode::SGID != 0;
        let owner = self.owner(&status, fd);
        let owned = owner.0 == caller.uid && (inherits || owner.1 == caller.gid);
        if !owned {
            self.own(fd, caller, inherits)?;
        }
        if u32::from(status.stx_mode) & mode::FMT == mode::SYMLINK {
            return Ok(());
        }
        // Changing the owner drops set-id bits, so the mode comes after.
        let kept = u32::from(status.stx_mode) & mode::SGID & if inherits { mode::SGID } else { 0 };
        let is_dir = u32::from(status.stx_mode) & mode::FMT == mode::DIR;
        let wanted = wanted & mode::PERM | if is_dir { kept } else { 0 };
        let wanted = self.host_perm(wanted, is_dir);
        if owned && u32::from(status.stx_mode) & mode::PERM == wanted.as_raw_mode() {
            return Ok(());
        }
        fs::chmod(proc_path(fd), wanted).map_err(errno)
    }

    /// Makes an entry with `make`, then gives it mode and owner; takes it away again if that fails.
    fn make(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: Name<'_>,
        wanted: u32,
        make: impl Fn(&OwnedFd) -> rustix::io::Result<()>,
    ) -> Result<Entry> {
        self.writable()?;
        let dir = self.fd(parent)?;
        self.with_room(|| make(&dir))?;
        let fd = self.child(&dir, &name)?;
        if let Err(e) = self.finish(&fd, caller, &dir, wanted) {
            let flags = if wanted & mode::FMT == mode::DIR { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            let _ = fs::unlinkat(&*dir, name.as_bytes(), flags);
            return Err(e);
        }
        self.entry(parent, &name, fd)
    }

    fn remove(&self, parent: NodeId, name: Name<'_>, flags: AtFlags) -> Result<()> {
        self.writable()?;
        let dir = self.fd(parent)?;
        self.keep(&dir, &name)?;
        fs::unlinkat(&*dir, name.as_bytes(), flags).map_err(errno)
    }

    fn kill_set_id(&self, file: impl AsFd) -> Result<()> {
        let status = stat(file.as_fd())?;
        let mode = u32::from(status.stx_mode);
        let mut new = mode & !mode::SUID;
        if mode & mode::XGRP != 0 {
            new &= !mode::SGID;
        }
        if new != mode { fs::fchmod(file, perm(new)).map_err(errno) } else { Ok(()) }
    }

    fn resize(&self, file: &File, size: u64, kill_suidgid: bool) -> Result<()> {
        check_offset(size).map_err(|_| Errno::EFBIG)?;
        fs::ftruncate(file, size).map_err(errno)?;
        if kill_suidgid { self.kill_set_id(file) } else { Ok(()) }
    }
}

impl FileSystem for HostDir {
    fn lookup(&self, _: &Caller, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        let dir = self.fd(parent)?;
        let fd = self.child(&dir, &name)?;
        self.entry(parent, &name, fd)
    }

    fn forget(&self, node: NodeId, count: u64) {
        let (gone, dropped) = lock(&self.nodes).forget(node.0, count);
        // An owner kept in memory goes with the file, not with the node.
        if let Some(key) = gone.filter(|_| !lock(&self.owners).is_empty()) {
            let removed = dropped.iter().any(|fd| stat(&**fd).is_ok_and(|s| s.stx_nlink == 0));
            // A fork that knows the removed file still has its descriptor.
            if removed && dropped.iter().all(|fd| Arc::strong_count(fd) == 1) {
                lock(&self.owners).remove(&key);
            }
        }
        drop(dropped);
    }

    fn getattr(&self, node: NodeId, handle: Option<Handle>) -> Result<Attr> {
        if let Some(file) = handle.and_then(|h| self.handle(h).ok()) {
            let status = stat(&*file)?;
            if lock(&self.nodes).key(node.0) == Some(Key::of(&status)) {
                return Ok(self.attr(&status, &*file));
            }
        }
        let fd = self.fd(node)?;
        Ok(self.attr(&stat(&*fd)?, &*fd))
    }

    fn setattr(&self, _: &Caller, node: NodeId, handle: Option<Handle>, set: &SetAttr) -> Result<Attr> {
        self.writable()?;
        let fd = self.fd(node)?;
        let status = stat(&*fd)?;
        let kind = u32::from(status.stx_mode) & mode::FMT;
        if let Some(size) = set.size {
            match kind {
                mode::FILE => {}
                mode::DIR => return Err(Errno::EISDIR),
                _ => return Err(Errno::EINVAL),
            }
            // A file that may not be opened for writing any more may still be cut by who has it open.
            let opened = handle.and_then(|h| self.handle(h).ok());
            match opened.map(|file| self.resize(&file, size, set.kill_suidgid)) {
                Some(Ok(())) => {}
                _ => self.resize(&self.reopen(&*fd, OFlags::WRONLY)?, size, set.kill_suidgid)?,
            }
        }
        if set.uid.is_some() || set.gid.is_some() {
            self.chown(&fd, set.uid, set.gid)?;
            let mode = u32::from(stat(&*fd)?.stx_mode);
            let kept = if mode & mode::XGRP != 0 { !(mode::SUID | mode::SGID) } else { !mode::SUID };
            if kind == mode::FILE && mode & kept != mode {
                fs::chmod(proc_path(&*fd), perm(mode & kept)).map_err(errno)?;
            }
        }
        if let Some(mode) = set.mode {
            if kind == mode::SYMLINK {
                return Err(Errno::EOPNOTSUPP);
            }
            fs::chmod(proc_path(&*fd), self.host_perm(mode, kind == mode::DIR)).map_err(errno)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let times =
                Timestamps { last_access: timespec(set.atime), last_modification: timespec(set.mtime) };
            fs::utimensat(fs::CWD, proc_path(&*fd), &times, AtFlags::empty()).map_err(errno)?;
        }
        Ok(self.attr(&stat(&*fd)?, &*fd))
    }

    fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        let fd = self.fd(node)?;
        if u32::from(stat(&*fd)?.stx_mode) & mode::FMT != mode::SYMLINK {
            return Err(Errno::EINVAL);
        }
        fs::readlinkat(&*fd, "", Vec::new()).map(|target| target.into_bytes()).map_err(errno)
    }

    fn mknod(&self, caller: &Caller, parent: NodeId, name: Name<'_>, mode: u32, _: u32) -> Result<Entry> {
        let kind = match mode & mode::FMT {
            0 | mode::FILE => fs::FileType::RegularFile,
            mode::FIFO => fs::FileType::Fifo,
            mode::SOCKET => fs::FileType::Socket,
            // The host must not get device nodes that a guest has chosen.
            mode::CHAR | mode::BLOCK => return Err(Errno::EPERM),
            _ => return Err(Errno::EINVAL),
        };
        self.make(caller, parent, name, mode & mode::PERM, |dir| {
            fs::mknodat(dir, name.as_bytes(), kind, perm(mode & 0o600), 0)
        })
    }

    fn mkdir(&self, caller: &Caller, parent: NodeId, name: Name<'_>, mode: u32) -> Result<Entry> {
        self.make(caller, parent, name, mode::DIR | mode & mode::PERM, |dir| {
            fs::mkdirat(dir, name.as_bytes(), perm(mode & 0o777 | 0o700))
        })
    }

    fn symlink(&self, caller: &Caller, parent: NodeId, name: Name<'_>, target: &[u8]) -> Result<Entry> {
        if target.is_empty() {
            return Err(Errno::ENOENT);
        }
        if target.len() > 4095 {
            return Err(Errno::ENAMETOOLONG);
        }
        if target.contains(&0) {
            return Err(Errno::EINVAL);
        }
        self.make(caller, parent, name, mode::SYMLINK, |dir| fs::symlinkat(target, dir, name.as_bytes()))
    }

    fn link(&self, _: &Caller, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        self.writable()?;
        let fd = self.fd(node)?;
        let dir = self.fd(parent)?;
        // Through /proc, since a link from a bare descriptor needs a privilege.
        fs::linkat(fs::CWD, proc_path(&*fd), &*dir, name.as_bytes(), AtFlags::SYMLINK_FOLLOW)
            .map_err(errno)?;
        let new = self.child(&dir, &name)?;
        self.entry(parent, &name, new)
    }

    fn unlink(&self, _: &Caller, parent: NodeId, name: Name<'_>) -> Result<()> {
        self.remove(parent, name, AtFlags::empty())
    }

    fn rmdir(&self, _: &Caller, parent: NodeId, name: Name<'_>) -> Result<()> {
        self.remove(parent, name, AtFlags::REMOVEDIR)
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
        self.writable()?;
        let host = match flags {
            0 => RenameFlags::empty(),
            rename::NOREPLACE => RenameFlags::NOREPLACE,
            rename::EXCHANGE => RenameFlags::EXCHANGE,
            _ => return Err(Errno::EINVAL),
        };
        let dir = self.fd(parent)?;
        let new_dir = self.fd(new_parent)?;
        let source = self.child(&dir, &name)?;
        let source_key = Key::of(&stat(&source)?);
        let target = match self.child(&new_dir, &new_name) {
            Ok(fd) => Some((Key::of(&stat(&fd)?), fd)),
            Err(Errno::ENOENT) => None,
            Err(e) => return Err(e),
        };
        fs::renameat_with(&*dir, name.as_bytes(), &*new_dir, new_name.as_bytes(), host).map_err(errno)?;
        let mut nodes = lock(&self.nodes);
        let mut dropped = Vec::new();
        match target {
            // Both names are of one file: nothing has happened.
            Some((key, _)) if key == source_key => return Ok(()),
            Some((key, _)) if flags == rename::EXCHANGE => {
                dropped.extend(nodes.renamed(key, parent.0, &name))
            }
            Some((key, fd)) => nodes.pin(key, fd),
            None => {}
        }
        dropped.extend(nodes.renamed(source_key, new_parent.0, &new_name));
        drop(nodes);
        drop(dropped);
        Ok(())
    }

    fn open(&self, _: &Caller, node: NodeId, flags: u32, kill_suidgid: bool) -> Result<Opened> {
        let access = flags & open::ACCMODE;
        if access != open::RDONLY || flags & open::TRUNC != 0 {
            self.writable()?;
        }
        let fd = self.fd(node)?;
        match u32::from(stat(&*fd)?.stx_mode) & mode::FMT {
            mode::FILE => {}
            mode::DIR => return Err(Errno::EISDIR),
            mode::SYMLINK => return Err(Errno::ELOOP),
            _ => return Err(Errno::ENXIO),
        }
        let access = match access {
            open::RDONLY => OFlags::RDONLY,
            open::WRONLY => OFlags::WRONLY,
            open::RDWR => OFlags::RDWR,
            _ => return Err(Errno::EINVAL),
        };
        if lock(&self.open).handles.len() >= self.options.max_open {
            return Err(Errno::ENFILE);
        }
        let append = if flags & open::APPEND != 0 { OFlags::APPEND } else { OFlags::empty() };
        let file = self.reopen(&*fd, access | append)?;
        if flags & open::TRUNC != 0 {
            if access == OFlags::RDONLY {
                self.resize(&self.reopen(&*fd, OFlags::WRONLY)?, 0, kill_suidgid)?;
            } else {
                self.resize(&file, 0, kill_suidgid)?;
            }
        }
        Ok(Opened { handle: self.add_handle(file)?, keep_cache: false })
    }

    fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        self.writable()?;
        let dir = self.fd(parent)?;
        // The owner of a record is not the one the host checks: the file is made open to us, and cut to size after.
        let make = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..16 {
            if lock(&self.open).handles.len() >= self.options.max_open {
                return Err(Errno::ENFILE);
            }
            match self.open_beneath(&dir, &name, make, self.first_perm(caller, mode)) {
                Ok(fd) => {
                    let made = self.finish(&fd, caller, &dir, mode).and_then(|()| {
                        let path = self.child(&dir, &name)?;
                        let entry = self.entry(parent, &name, path)?;
                        match self.add_handle(File::from(fd)) {
                            Ok(handle) => Ok((entry, Opened { handle, keep_cache: false })),
                            Err(e) => {
                                self.forget(entry.node, 1);
                                Err(e)
                            }
                        }
                    });
                    if made.is_err() {
                        let _ = fs::unlinkat(&*dir, name.as_bytes(), AtFlags::empty());
                    }
                    return made;
                }
                Err(Errno::EEXIST) if flags & open::EXCL == 0 => {}
                Err(e) => return Err(e),
            }
            match self.lookup(caller, parent, name) {
                Ok(entry) => {
                    return match self.open(caller, entry.node, flags, caller.uid != 0) {
                        Ok(opened) => Ok((Entry { attr: self.getattr(entry.node, None)?, ..entry }, opened)),
                        Err(e) => {
                            self.forget(entry.node, 1);
                            Err(e)
                        }
                    };
                }
                // Removed meanwhile.
                Err(Errno::ENOENT) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Errno::EAGAIN)
    }

    fn read(
        &self,
        _: NodeId,
        handle: Handle,
        offset: u64,
        size: u32,
        sink: &mut dyn ReadSink,
    ) -> Result<usize> {
        check_offset(offset)?;
        let file = self.file(handle)?;
        sink.file(&file, offset, size as usize)
    }

    fn write(
        &self,
        _: NodeId,
        handle: Handle,
        offset: u64,
        size: u32,
        source: &mut dyn WriteSource,
        kill_suidgid: bool,
    ) -> Result<usize> {
        self.writable()?;
        check_offset(offset)?;
        check_offset(offset + u64::from(size)).map_err(|_| Errno::EFBIG)?;
        let mut file = self.file(handle)?;
        if fs::fcntl_getfl(&*file).map_err(errno)?.contains(OFlags::APPEND) {
            file = Arc::new(self.reopen(&*file, OFlags::WRONLY)?);
        }
        let n = source.file(&file, offset, size as usize)?;
        if kill_suidgid {
            self.kill_set_id(&*file)?;
        }
        Ok(n)
    }

    fn append(
        &self,
        _: NodeId,
        handle: Handle,
        _: u64,
        size: u32,
        source: &mut dyn WriteSource,
        kill_suidgid: bool,
    ) -> Result<usize> {
        self.writable()?;
        let file = self.file(handle)?;
        let flags = fs::fcntl_getfl(&*file).map_err(errno)?;
        if !flags.contains(OFlags::APPEND) {
            // It was made by this handle, or its client has turned appending on since.
            fs::fcntl_setfl(&*file, flags | OFlags::APPEND).map_err(errno)?;
        }
        // The host's kernel finds the end, so nothing that others append meanwhile is overwritten.
        let n = source.file(&file, 0, size as usize)?;
        if kill_suidgid {
            self.kill_set_id(&*file)?;
        }
        Ok(n)
    }

    fn fork(&self) -> Result<Arc<dyn FileSystem>> {
        Ok(Arc::new(self.duplicate()))
    }

    fn save(&self, _: &mut Saver) -> std::io::Result<Saved> {
        Ok(Saved::Directory(self.saved()))
    }

    fn fsync(&self, node: NodeId, handle: Handle, datasync: bool) -> Result<()> {
        let _ = node;
        let file = self.file(handle)?;
        if datasync { fs::fdatasync(&*file) } else { fs::fsync(&*file) }.map_err(errno)
    }

    fn fsyncdir(&self, node: NodeId, handle: Handle, datasync: bool) -> Result<()> {
        self.fsync(node, handle, datasync)
    }

    fn release(&self, _: NodeId, handle: Handle) {
        self.close(handle);
    }

    fn opendir(&self, _: &Caller, node: NodeId) -> Result<Opened> {
        let fd = self.fd(node)?;
        if u32::from(stat(&*fd)?.stx_mode) & mode::FMT != mode::DIR {
            return Err(Errno::ENOTDIR);
        }
        let dir = self.reopen(&*fd, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(Opened { handle: self.add_handle(dir)?, keep_cache: false })
    }

    fn readdir(&self, node: NodeId, handle: Handle, cookie: u64, sink: &mut dyn DirSink) -> Result<()> {
        self.list(node, handle, cookie, &mut |entry| Ok(sink.entry(entry, None)))
    }

    fn readdirplus(
        &self,
        caller: &Caller,
        node: NodeId,
        handle: Handle,
        cookie: u64,
        sink: &mut dyn DirSink,
    ) -> Result<()> {
        self.list_with_nodes(caller, node, handle, cookie, sink)
    }

    fn releasedir(&self, _: NodeId, handle: Handle) {
        self.close(handle);
    }

    fn statfs(&self, node: NodeId) -> Result<StatFs> {
        let fd = self.fd(node)?;
        let numbers = fs::fstatvfs(&*fd).map_err(errno)?;
        Ok(StatFs {
            block_size: u32::try_from(numbers.f_frsize).unwrap_or(4096),
            blocks: numbers.f_blocks,
            blocks_free: numbers.f_bfree,
            blocks_available: numbers.f_bavail,
            files: numbers.f_files,
            files_free: numbers.f_ffree,
            name_max: NAME_MAX as u32,
        })
    }

    fn setxattr(&self, _: &Caller, node: NodeId, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        self.set_xattr(node, name, value, flags)
    }

    fn getxattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        self.get_xattr(node, name)
    }

    fn listxattr(&self, node: NodeId) -> Result<Vec<u8>> {
        self.list_xattrs(node)
    }

    fn removexattr(&self, _: &Caller, node: NodeId, name: &[u8]) -> Result<()> {
        self.remove_xattr(node, name)
    }

    fn fallocate(&self, _: NodeId, handle: Handle, offset: u64, length: u64, flags: u32) -> Result<()> {
        self.writable()?;
        check_offset(offset)?;
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        offset.checked_add(length).filter(|&end| end <= i64::MAX as u64).ok_or(Errno::EFBIG)?;
        if flags & !(falloc::KEEP_SIZE | falloc::PUNCH_HOLE | falloc::ZERO_RANGE) != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let file = self.file(handle)?;
        fs::fallocate(&*file, FallocateFlags::from_bits_retain(flags), offset, length).map_err(errno)
    }

    fn lseek(&self, _: NodeId, handle: Handle, seek: Seek) -> Result<u64> {
        let file = self.file(handle)?;
        let (Seek::Data(offset) | Seek::Hole(offset)) = seek;
        check_offset(offset).map_err(|_| Errno::ENXIO)?;
        let position = match seek {
            Seek::Data(offset) => SeekFrom::Data(offset),
            Seek::Hole(offset) => SeekFrom::Hole(offset),
        };
        // The position that this moves is used by nobody.
        fs::seek(&*file, position).map_err(errno)
    }

    fn copy_file_range(
        &self,
        _: NodeId,
        handle: Handle,
        mut offset: u64,
        _: NodeId,
        to_handle: Handle,
        mut to_offset: u64,
        length: u64,
    ) -> Result<u64> {
        self.writable()?;
        check_offset(offset)?;
        check_offset(to_offset)?;
        let (from, to) = (self.file(handle)?, self.file(to_handle)?);
        let length = usize::try_from(length.min(MAX_COPY)).map_err(|_| Errno::EINVAL)?;
        let n = fs::copy_file_range(&*from, Some(&mut offset), &*to, Some(&mut to_offset), length)
            .map_err(errno)?;
        Ok(n as u64)
    }
}
