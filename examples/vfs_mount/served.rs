//! A file system of the library behind `/dev/fuse`.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use cc::vfs::{Attr, DirEntry, DirSink, Entry, Errno, FileSystem, NodeId, Seek, SetAttr, SetTime};
use fuser::{
    Config, CopyFileRangeFlags, FileHandle, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};

use super::convert::{attr, caller, dot, errno, from_system, handle, id, kind, name};

/// Mounts `fs` at `mountpoint` and serves it with `threads` threads until the answer is dropped or the mount undone.
pub(crate) fn serve(
    fs: Box<dyn FileSystem>,
    mountpoint: &Path,
    threads: usize,
) -> io::Result<fuser::BackgroundSession> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::DefaultPermissions,
        MountOption::FSName("vfs_mount".into()),
        MountOption::Dev,
        MountOption::Suid,
    ];
    config.acl = fuser::SessionACL::All;
    config.n_threads = Some(threads);
    fuser::spawn_mount(Served(fs), mountpoint, &config)
}

struct Served(Box<dyn FileSystem>);

fn reply_entry(reply: ReplyEntry, result: Result<Entry, Errno>) {
    match result {
        Ok(e) => reply.entry(&e.entry_ttl, &attr(e.node, &e.attr), Generation(e.generation)),
        Err(e) => reply.error(errno(e)),
    }
}

fn reply_empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    }
}

fn reply_attr(reply: ReplyAttr, node: NodeId, result: Result<Attr, Errno>) {
    match result {
        Ok(a) => reply.attr(&Duration::ZERO, &attr(node, &a)),
        Err(e) => reply.error(errno(e)),
    }
}

fn reply_xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>, Errno>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(fuser::Errno::ERANGE),
        Err(e) => reply.error(errno(e)),
    }
}

struct Plain(ReplyDirectory);

impl DirSink for Plain {
    fn entry(&mut self, entry: DirEntry<'_>, _: Option<&Entry>) -> bool {
        !self.0.add(INodeNo(entry.ino), entry.cookie, kind(entry.kind), OsStr::from_bytes(entry.name))
    }
}

struct Plus(ReplyDirectoryPlus);

impl DirSink for Plus {
    fn entry(&mut self, entry: DirEntry<'_>, node: Option<&Entry>) -> bool {
        let name = OsStr::from_bytes(entry.name);
        let (node, ttl, generation) = match node {
            Some(e) => (attr(e.node, &e.attr), e.entry_ttl, e.generation),
            // `.` and `..`: the kernel takes no node from them.
            None => {
                return !self.0.add(
                    INodeNo(0),
                    entry.cookie,
                    name,
                    &Duration::ZERO,
                    &dot(entry.kind),
                    Generation(0),
                );
            }
        };
        !self.0.add(node.ino, entry.cookie, name, &ttl, &node, Generation(generation))
    }
}

impl fuser::Filesystem for Served {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // What an old kernel lacks, it does without.
        let _ = config.add_capabilities(InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO);
        let _ = config.add_capabilities(InitFlags::FUSE_POSIX_ACL);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, n: &OsStr, reply: ReplyEntry) {
        reply_entry(reply, name(n).and_then(|n| self.0.lookup(&caller(req), id(parent), n)));
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.0.forget(id(ino), count);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        reply_attr(reply, id(ino), self.0.getattr(id(ino), fh.map(handle)));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let time = |t: TimeOrNow| match t {
            TimeOrNow::Now => SetTime::Now,
            TimeOrNow::SpecificTime(t) => SetTime::At(from_system(t)),
        };
        let set = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(time),
            mtime: mtime.map(time),
            ctime: ctime.map(from_system),
            kill_suidgid: false,
        };
        reply_attr(reply, id(ino), self.0.setattr(&caller(req), id(ino), fh.map(handle), &set));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.0.readlink(id(ino)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        n: &OsStr,
        mode: u32,
        _: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        reply_entry(reply, name(n).and_then(|n| self.0.mknod(&caller(req), id(parent), n, mode, rdev)));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, n: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        reply_entry(reply, name(n).and_then(|n| self.0.mkdir(&caller(req), id(parent), n, mode)));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, n: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, name(n).and_then(|n| self.0.unlink(&caller(req), id(parent), n)));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, n: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, name(n).and_then(|n| self.0.rmdir(&caller(req), id(parent), n)));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, n: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        reply_entry(reply, name(n).and_then(|n| self.0.symlink(&caller(req), id(parent), n, target)));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        n: &OsStr,
        new_parent: INodeNo,
        new: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let done = name(n).and_then(|n| {
            self.0.rename(&caller(req), id(parent), n, id(new_parent), name(new)?, flags.bits())
        });
        reply_empty(reply, done);
    }

    fn link(&self, req: &Request, ino: INodeNo, parent: INodeNo, n: &OsStr, reply: ReplyEntry) {
        reply_entry(reply, name(n).and_then(|n| self.0.link(&caller(req), id(ino), id(parent), n)));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.0.open(&caller(req), id(ino), flags.0 as u32, false) {
            Ok(o) => {
                let keep = if o.keep_cache { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
                reply.opened(FileHandle(o.handle.0), keep);
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        n: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match name(n).and_then(|n| self.0.create(&caller(req), id(parent), n, mode, flags as u32)) {
            Ok((e, o)) => reply.created(
                &e.entry_ttl,
                &attr(e.node, &e.attr),
                Generation(e.generation),
                FileHandle(o.handle.0),
                FopenFlags::empty(),
            ),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = Vec::with_capacity(size as usize);
        match self.0.read(id(ino), handle(fh), offset, size, &mut bytes) {
            Ok(_) => reply.data(&bytes),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let size = data.len() as u32;
        match self.0.write(id(ino), handle(fh), offset, size, &mut data, false) {
            Ok(n) => reply.written(n as u32),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn flush(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply_empty(reply, self.0.flush(id(ino), handle(fh)));
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.release(id(ino), handle(fh));
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        reply_empty(reply, self.0.fsync(id(ino), handle(fh), datasync));
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.0.opendir(&caller(req), id(ino)) {
            Ok(o) => reply.opened(FileHandle(o.handle.0), FopenFlags::empty()),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let mut sink = Plain(reply);
        match self.0.readdir(id(ino), handle(fh), offset, &mut sink) {
            Ok(()) => sink.0.ok(),
            Err(e) => sink.0.error(errno(e)),
        }
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let mut sink = Plus(reply);
        match self.0.readdirplus(&caller(req), id(ino), handle(fh), offset, &mut sink) {
            Ok(()) => sink.0.ok(),
            Err(e) => sink.0.error(errno(e)),
        }
    }

    fn releasedir(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.0.releasedir(id(ino), handle(fh));
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        reply_empty(reply, self.0.fsyncdir(id(ino), handle(fh), datasync));
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.0.statfs(id(ino)) {
            Ok(s) => reply.statfs(
                s.blocks,
                s.blocks_free,
                s.blocks_available,
                s.files,
                s.files_free,
                s.block_size,
                s.name_max,
                s.block_size,
            ),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        n: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.0.setxattr(&caller(req), id(ino), n.as_bytes(), value, flags as u32));
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, n: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, self.0.getxattr(id(ino), n.as_bytes()));
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, self.0.listxattr(id(ino)));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, n: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.0.removexattr(&caller(req), id(ino), n.as_bytes()));
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.0.fallocate(id(ino), handle(fh), offset, length, mode as u32));
    }

    fn lseek(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        // SEEK_DATA and SEEK_HOLE; the kernel does the others itself.
        let seek = match (u64::try_from(offset), whence) {
            (Ok(offset), 3) => Seek::Data(offset),
            (Ok(offset), 4) => Seek::Hole(offset),
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        match self.0.lseek(id(ino), handle(fh), seek) {
            Ok(at) => reply.offset(at as i64),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn copy_file_range(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        to: INodeNo,
        to_fh: FileHandle,
        to_offset: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        match self.0.copy_file_range(id(ino), handle(fh), offset, id(to), handle(to_fh), to_offset, len) {
            Ok(n) => reply.written(n as u32),
            Err(e) => reply.error(errno(e)),
        }
    }
}
