//! A directory of the host as a file system, confined to it.
//!
//! Every path is walked from the directory's own descriptor by names that were checked, with `openat2` and
//! `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS` (or, on kernels without it, one component at a time with `O_NOFOLLOW`), so
//! no symbolic link of the host is ever followed. A node knows its parent and name and what inode it is; a
//! descriptor is held only for open files, for removed files that a client still knows, and in a small cache. A name
//! that has come to mean another inode is answered with `ESTALE`, never with the other file.
//!
//! `read_only` is enforced here. Device nodes cannot be made, and of the extended attributes only `user.` and POSIX
//! ACLs are served. Needs `/proc` for what has no call by descriptor.

mod list;
mod nodes;
mod ops;
mod owner;
mod saved;
#[cfg(test)]
mod tests;
mod xattrs;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{self, AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags};

use self::nodes::{Key, Nodes};
use super::{Attr, Entry, Errno, FileType, Handle, NodeId, Result, Time, makedev};

/// How owners of files look, and what changing them does.
///
/// With anything but `AsIs`, files get no set-id bits: on the host they would lend the rights of an owner that the
/// client never sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// As on the host. New files get the caller's owner where the host allows it.
    AsIs,
    /// Every file has this owner; changing it to another is `EPERM`.
    Fixed {
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// As `Fixed` until changed. A changed owner is kept beside the file, in the extended attribute
    /// `user.cc.owner` (`uid:gid`), which clients do not see; where the host has no such attributes, as on symbolic
    /// links, it is kept in memory. Needs no privilege on the host.
    Recorded {
        /// Owner of files without a record.
        uid: u32,
        /// Group of files without a record.
        gid: u32,
    },
    /// What belongs to the user or the group of this process is shown as 0, and 0 is kept as that; other owners are
    /// as on the host. So a tree that its user has unpacked looks as if root had.
    UserAsRoot,
}

/// How to serve a host directory.
#[derive(Clone, Copy, Debug)]
pub struct HostDirOptions {
    /// Refuse every change with `EROFS`.
    pub read_only: bool,
    /// Owners.
    pub ownership: Ownership,
    /// How long clients may cache names and attributes. With 0, changes on the host show at once.
    pub cache: Duration,
    /// Most files and directories open at once; beyond it, `ENFILE`.
    pub max_open: usize,
    /// Descriptors cached besides.
    pub cached_fds: usize,
}

impl Default for HostDirOptions {
    /// Writable, owners as on the host, no caching, 4096 open files, 128 cached descriptors.
    fn default() -> Self {
        HostDirOptions {
            read_only: false,
            ownership: Ownership::AsIs,
            cache: Duration::ZERO,
            max_open: 4096,
            cached_fds: 128,
        }
    }
}

/// A host directory as a file system. See the module's description in [`vfs`](super).
#[derive(Debug)]
pub struct HostDir {
    /// Where it is, for copies of the client in other processes.
    path: PathBuf,
    root: Arc<OwnedFd>,
    root_dev: u64,
    options: HostDirOptions,
    nodes: Mutex<Nodes>,
    open: Mutex<Open>,
    /// Shared with forks, as the records beside files are.
    owners: Arc<Mutex<HashMap<Key, (u32, u32)>>>,
    openat2: AtomicBool,
}

#[derive(Clone, Debug, Default)]
struct Open {
    handles: HashMap<u64, Arc<File>>,
    next: u64,
}

const BASIC: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);
const PATH_FLAGS: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn errno(e: rustix::io::Errno) -> Errno {
    Errno::from_raw(e.raw_os_error())
}

/// The path by which calls without a descriptor form reach what `fd` refers to.
fn proc_path(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn stat(fd: impl AsFd) -> Result<Statx> {
    fs::statx(fd, "", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, BASIC).map_err(errno)
}

fn device(major: u32, minor: u32) -> u64 {
    u64::from(major) << 32 | u64::from(minor)
}

impl HostDir {
    /// Serves `path`, which may itself be reached through symbolic links.
    ///
    /// # Errors
    /// The host's error from opening it; `NotADirectory`.
    pub fn new(path: &Path, options: HostDirOptions) -> io::Result<HostDir> {
        let root = fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let status = fs::statx(&root, "", AtFlags::EMPTY_PATH, BASIC)?;
        Ok(HostDir {
            path: std::path::absolute(path)?,
            root: Arc::new(root),
            root_dev: device(status.stx_dev_major, status.stx_dev_minor),
            options,
            nodes: Mutex::new(Nodes::new(Key::of(&status), options.cached_fds)),
            open: Mutex::default(),
            owners: Arc::default(),
            openat2: AtomicBool::new(true),
        })
    }

    /// Serves the same directory to a copy of the client: with the same nodes, and with the same files open. Needs no
    /// descriptor of its own. Changes of the directory show in both.
    pub fn duplicate(&self) -> HostDir {
        // Nobody else takes the second lock while holding the first.
        let nodes = lock(&self.nodes);
        let open = lock(&self.open).clone();
        HostDir {
            path: self.path.clone(),
            root: self.root.clone(),
            root_dev: self.root_dev,
            options: self.options,
            nodes: Mutex::new(nodes.clone()),
            open: Mutex::new(open),
            owners: self.owners.clone(),
            openat2: AtomicBool::new(self.openat2.load(Ordering::Relaxed)),
        }
    }

    fn writable(&self) -> Result<()> {
        if self.options.read_only { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// Runs `call`; when descriptors have run out, once more without our cache.
    fn with_room<T>(&self, mut call: impl FnMut() -> rustix::io::Result<T>) -> Result<T> {
        match call() {
            Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
                let dropped = lock(&self.nodes).drop_cache();
                drop(dropped);
                call().map_err(|e| match errno(e) {
                    // To a client, it is not its own table that is full.
                    Errno::EMFILE => Errno::ENFILE,
                    other => other,
                })
            }
            other => other.map_err(errno),
        }
    }

    /// Opens `path`, one or more checked names joined by `/`, without ever following a link.
    fn open_beneath(&self, dir: &OwnedFd, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        if self.openat2.load(Ordering::Relaxed) {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            for _ in 0..8 {
                match self.with_room(|| fs::openat2(dir, path, flags, mode, resolve)) {
                    // The kernel could not be sure because of a rename at the same time.
                    Err(Errno::EAGAIN) => {}
                    Err(Errno::ENOSYS | Errno::EPERM) => {
                        self.openat2.store(false, Ordering::Relaxed);
                        break;
                    }
                    other => return other,
                }
            }
        }
        self.open_stepwise(dir, path, flags, mode)
    }

    fn open_stepwise(&self, dir: &OwnedFd, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        let mut here: Option<OwnedFd> = None;
        let mut parts = path.split(|&b| b == b'/').peekable();
        while let Some(part) = parts.next() {
            let from = here.as_ref().unwrap_or(dir);
            if parts.peek().is_none() {
                return self.with_room(|| fs::openat(from, part, flags | OFlags::NOFOLLOW, mode));
            }
            let flags = PATH_FLAGS | OFlags::DIRECTORY;
            let next = self.with_room(|| fs::openat(from, part, flags, Mode::empty()))?;
            here = Some(next);
        }
        Err(Errno::ENOENT)
    }

    /// A descriptor (`O_PATH`) of a node.
    fn fd(&self, node: NodeId) -> Result<Arc<OwnedFd>> {
        if node == NodeId::ROOT {
            return Ok(self.root.clone());
        }
        let (key, base, path) = {
            let mut nodes = lock(&self.nodes);
            if let Some(fd) = nodes.ready(node.0)? {
                return Ok(fd);
            }
            nodes.path(node.0)?
        };
        let base = base.unwrap_or_else(|| self.root.clone());
        let fd = self.open_beneath(&base, &path, PATH_FLAGS, Mode::empty()).map_err(|e| match e {
            // The name is gone or leads elsewhere now; the client has to look again.
            Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV => Errno::ESTALE,
            other => other,
        })?;
        if Key::of(&stat(&fd)?) != key {
            return Err(Errno::ESTALE);
        }
        let fd = Arc::new(fd);
        let dropped = lock(&self.nodes).remember(node.0, &fd);
        drop(dropped);
        Ok(fd)
    }

    fn child(&self, parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
        self.open_beneath(parent, name, PATH_FLAGS, Mode::empty())
    }

    /// Opens again what an `O_PATH` descriptor refers to.
    fn reopen(&self, fd: &impl AsRawFd, flags: OFlags) -> Result<File> {
        let path = proc_path(fd);
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        self.quietly(flags, |flags| fs::open(path.as_str(), flags, Mode::empty())).map(File::from)
    }

    /// Opens with `open`; of what is read-only, not even the time of the last access changes, where the host lets us.
    fn quietly(
        &self,
        flags: OFlags,
        open: impl Fn(OFlags) -> rustix::io::Result<OwnedFd>,
    ) -> Result<OwnedFd> {
        if self.options.read_only {
            // Only the owner may ask for it.
            match self.with_room(|| open(flags | OFlags::NOATIME)) {
                Err(Errno::EPERM) => {}
                other => return other,
            }
        }
        self.with_room(|| open(flags))
    }

    /// For an overlay above: how long clients may cache.
    pub(in crate::vfs) fn cache(&self) -> Duration {
        self.options.cache
    }

    /// For an overlay above: whether any lookup of the node is left.
    pub(in crate::vfs) fn knows(&self, node: NodeId) -> bool {
        lock(&self.nodes).key(node.0).is_some()
    }

    /// For an overlay above: a descriptor to read a node's content from.
    pub(in crate::vfs) fn open_to_read(&self, node: NodeId) -> Result<File> {
        let fd = self.fd(node)?;
        match FileType::from_mode(u32::from(stat(&*fd)?.stx_mode)) {
            Some(FileType::File) => self.reopen(&*fd, OFlags::RDONLY),
            _ => Err(Errno::EINVAL),
        }
    }

    fn add_handle(&self, file: File) -> Result<Handle> {
        let mut open = lock(&self.open);
        if open.handles.len() >= self.options.max_open {
            return Err(Errno::ENFILE);
        }
        open.next += 1;
        let handle = open.next;
        open.handles.insert(handle, Arc::new(file));
        Ok(Handle(handle))
    }

    fn handle(&self, handle: Handle) -> Result<Arc<File>> {
        lock(&self.open).handles.get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    fn close(&self, handle: Handle) {
        let file = lock(&self.open).handles.remove(&handle.0);
        drop(file);
    }

    /// The inode number shown: the host's, made unlikely to collide for files of mounts below the directory.
    fn ino(&self, dev: u64, ino: u64) -> u64 {
        let shown = if dev == self.root_dev { ino } else { ino ^ (dev ^ self.root_dev).rotate_left(40) };
        shown.max(1)
    }

    fn attr(&self, status: &Statx, fd: &impl AsRawFd) -> Attr {
        let time = |t: rustix::fs::StatxTimestamp| Time { secs: t.tv_sec, nanos: t.tv_nsec };
        let (uid, gid) = self.owner(status, fd);
        Attr {
            ino: self.ino(device(status.stx_dev_major, status.stx_dev_minor), status.stx_ino),
            size: status.stx_size,
            blocks: status.stx_blocks,
            atime: time(status.stx_atime),
            mtime: time(status.stx_mtime),
            ctime: time(status.stx_ctime),
            mode: status.stx_mode.into(),
            nlink: status.stx_nlink,
            uid,
            gid,
            rdev: makedev(status.stx_rdev_major, status.stx_rdev_minor).unwrap_or(0),
            blksize: status.stx_blksize,
        }
    }

    /// Makes an entry of what was found under a name.
    fn entry(&self, parent: NodeId, name: &[u8], fd: OwnedFd) -> Result<Entry> {
        let status = stat(&fd)?;
        let attr = self.attr(&status, &fd);
        let (id, dropped) = lock(&self.nodes).found(parent.0, name, Key::of(&status), fd);
        drop(dropped);
        Ok(Entry {
            node: NodeId(id),
            generation: 0,
            attr,
            attr_ttl: self.options.cache,
            entry_ttl: self.options.cache,
        })
    }

    /// Before a name goes: a node that a client knows keeps a descriptor, so that it works on without the name.
    fn keep(&self, parent: &OwnedFd, name: &[u8]) -> Result<()> {
        let fd = match self.child(parent, name) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(()),
            Err(e) => return Err(e),
        };
        let key = Key::of(&stat(&fd)?);
        lock(&self.nodes).pin(key, fd);
        Ok(())
    }
}
