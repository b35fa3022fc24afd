//! The trait every file system here implements and every server calls.

use std::any::Any;
use std::sync::Arc;

use super::saved::Saver;
use super::{
    Attr, Caller, Entry, Errno, FileType, Handle, Name, NodeId, Opened, ReadSink, Result, Seek, SetAttr,
    StatFs, WriteSource,
};
use crate::state::files::FileSystem as Saved;

/// One entry of a directory listing.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Inode number, never 0.
    pub ino: u64,
    /// Where a later `readdir` goes on after this entry. Never 0, stable while the directory lives.
    pub cookie: u64,
    /// File type.
    pub kind: FileType,
    /// Name; `.` and `..` come first.
    pub name: &'a [u8],
}

/// Takes the entries of one `readdir`.
pub trait DirSink {
    /// Takes an entry; `false` when there is no room for it, which ends the call. In `readdirplus`, `node` is
    /// what `lookup` would give (`None` for `.` and `..`); its lookup count is taken only if this gives `true`.
    fn entry(&mut self, entry: DirEntry<'_>, node: Option<&Entry>) -> bool;
}

/// A file system as a FUSE server needs it: inodes with lookup counts, and operations on them.
///
/// # Nodes
/// `lookup`, `create`, `mknod`, `mkdir`, `symlink`, `link` and accepted entries of `readdirplus` add one to the
/// node's lookup count and `forget` takes away. A node stays usable while its count is above 0, also after its last
/// name is gone, so open files need no count of their own. [`NodeId::ROOT`] always stays. Any other id, and an id
/// whose count fell to 0, is answered with `ESTALE` (or still works; never is another file meant).
///
/// # Who checks what
/// Permissions are checked by the client's kernel (FUSE's `default_permissions`). Set-id bits and
/// `security.capability` are dropped as FUSE's `HANDLE_KILLPRIV_V2` asks: the capability on each write, truncation
/// and change of owner; set-id bits on a change of owner, and on writes and truncations that say so. `mode` of
/// creating operations is taken as it is: the client has applied the umask. Directories with set-gid pass their
/// group on. POSIX locks and `flock` are not here: a server keeps them in a table by node, since one client's
/// kernel is the only one that sees this file system.
///
/// # Errors common to all
/// `ESTALE` for an unknown node, `ENOTDIR` where a directory is needed, `EBADF` for an unknown handle, `EROFS` for
/// a change of what is read-only, `EIO` or the host's own error when the medium fails. No operation panics or
/// blocks beyond the host's own disk I/O, whatever the arguments.
///
/// Being [`Any`], one behind this trait can be asked for what it is.
pub trait FileSystem: Any + Send + Sync {
    /// Finds `name` in the directory `parent` and takes a lookup count.
    ///
    /// # Errors
    /// `ENOENT`.
    fn lookup(&self, caller: &Caller, parent: NodeId, name: Name<'_>) -> Result<Entry>;

    /// Gives back `count` lookup counts of `node`. Unknown nodes and too large counts are no error.
    fn forget(&self, node: NodeId, count: u64);

    /// The attributes of `node`. With the handle of an open file, they are that file's.
    fn getattr(&self, node: NodeId, handle: Option<Handle>) -> Result<Attr>;

    /// Changes attributes and gives the new ones.
    ///
    /// # Errors
    /// `EISDIR` or `EINVAL` for a size on what is no regular file, `EFBIG`, `ENOSPC`.
    fn setattr(&self, caller: &Caller, node: NodeId, handle: Option<Handle>, set: &SetAttr) -> Result<Attr>;

    /// The target of a symbolic link, at most 4095 bytes.
    ///
    /// # Errors
    /// `EINVAL` for what is no symbolic link.
    fn readlink(&self, node: NodeId) -> Result<Vec<u8>>;

    /// Makes a regular file, FIFO, socket or device node as `mode` says; `rdev` as in [`Attr::rdev`].
    ///
    /// # Errors
    /// `EEXIST`, `ENOSPC`, `EINVAL` for another file type, `EPERM` where devices cannot be.
    fn mknod(&self, caller: &Caller, parent: NodeId, name: Name<'_>, mode: u32, rdev: u32) -> Result<Entry>;

    /// Makes a directory.
    ///
    /// # Errors
    /// `EEXIST`, `ENOSPC`, `EMLINK`.
    fn mkdir(&self, caller: &Caller, parent: NodeId, name: Name<'_>, mode: u32) -> Result<Entry>;

    /// Makes a symbolic link to `target`, 1 to 4095 bytes without NUL.
    ///
    /// # Errors
    /// `EEXIST`, `ENOSPC`, `ENOENT` for an empty, `ENAMETOOLONG` for a long, `EINVAL` for a target with NUL.
    fn symlink(&self, caller: &Caller, parent: NodeId, name: Name<'_>, target: &[u8]) -> Result<Entry>;

    /// Gives `node` one more name.
    ///
    /// # Errors
    /// `EEXIST`, `ENOSPC`, `EMLINK`, `EPERM` for a directory, `ENOENT` for a node without any name left.
    fn link(&self, caller: &Caller, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry>;

    /// Removes the name of what is not a directory.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`.
    fn unlink(&self, caller: &Caller, parent: NodeId, name: Name<'_>) -> Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`.
    fn rmdir(&self, caller: &Caller, parent: NodeId, name: Name<'_>) -> Result<()>;

    /// Renames, replacing what has the new name; `flags` of [`rename`](super::rename).
    ///
    /// # Errors
    /// `ENOENT`, `EEXIST` with `NOREPLACE`, `EISDIR`, `ENOTDIR`, `ENOTEMPTY`, `EINVAL` for a directory into itself or
    /// unknown flags, `ENOSPC`.
    fn rename(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: Name<'_>,
        new_parent: NodeId,
        new_name: Name<'_>,
        flags: u32,
    ) -> Result<()>;

    /// Opens a regular file; `flags` of [`open`](super::open) without `CREAT` and `EXCL`. With `TRUNC`,
    /// `kill_suidgid` drops set-id bits.
    ///
    /// # Errors
    /// `EISDIR`, `ELOOP` for a symbolic link, `ENXIO` for a special file, `ENFILE` beyond the cap on open files.
    fn open(&self, caller: &Caller, node: NodeId, flags: u32, kill_suidgid: bool) -> Result<Opened>;

    /// Makes a regular file and opens it, or opens what is there unless `flags` has `EXCL`.
    ///
    /// # Errors
    /// As `mknod` and `open`.
    fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        flags: u32,
    ) -> Result<(Entry, Opened)>;

    /// Reads up to `size` bytes at `offset` into `sink`; gives how many, fewer only at the end of the file.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL` for offsets beyond 2^63.
    fn read(
        &self,
        node: NodeId,
        handle: Handle,
        offset: u64,
        size: u32,
        sink: &mut dyn ReadSink,
    ) -> Result<usize>;

    /// Writes `size` bytes of `source` at `offset`; gives how many. Handles opened with `APPEND` do not change the
    /// offset: the client's kernel has set it. `kill_suidgid` drops set-id bits.
    ///
    /// # Errors
    /// `EFBIG`, `ENOSPC` when nothing could be written, `EINVAL` for offsets beyond 2^63.
    fn write(
        &self,
        node: NodeId,
        handle: Handle,
        offset: u64,
        size: u32,
        source: &mut dyn WriteSource,
        kill_suidgid: bool,
    ) -> Result<usize>;

    /// Writes at the end of the file, wherever that is now, for a handle opened with `APPEND`; the client takes it to be
    /// at `offset`. To be overridden where others than this client write too.
    ///
    /// # Errors
    /// As `write`.
    fn append(
        &self,
        node: NodeId,
        handle: Handle,
        offset: u64,
        size: u32,
        source: &mut dyn WriteSource,
        kill_suidgid: bool,
    ) -> Result<usize> {
        self.write(node, handle, offset, size, source, kill_suidgid)
    }

    /// A descriptor of the open file was closed; reports errors of earlier writes.
    fn flush(&self, node: NodeId, handle: Handle) -> Result<()> {
        let _ = (node, handle);
        Ok(())
    }

    /// Brings data (and with `!datasync`, attributes) to the medium.
    fn fsync(&self, node: NodeId, handle: Handle, datasync: bool) -> Result<()>;

    /// The same for a directory.
    fn fsyncdir(&self, node: NodeId, handle: Handle, datasync: bool) -> Result<()>;

    /// The last use of the handle. Unknown handles are no error.
    fn release(&self, node: NodeId, handle: Handle);

    /// Opens a directory.
    fn opendir(&self, caller: &Caller, node: NodeId) -> Result<Opened>;

    /// Lists from `cookie` on (0 is the start) until `sink` is full. Memory does not grow with the directory.
    /// Entries that are made or removed meanwhile may or may not be seen; others are seen exactly once.
    fn readdir(&self, node: NodeId, handle: Handle, cookie: u64, sink: &mut dyn DirSink) -> Result<()>;

    /// Lists with nodes and attributes. An entry that vanishes meanwhile is left out.
    fn readdirplus(
        &self,
        caller: &Caller,
        node: NodeId,
        handle: Handle,
        cookie: u64,
        sink: &mut dyn DirSink,
    ) -> Result<()>;

    /// The last use of a directory's handle. Unknown handles are no error.
    fn releasedir(&self, node: NodeId, handle: Handle);

    /// Numbers of the file system.
    fn statfs(&self, node: NodeId) -> Result<StatFs>;

    /// Sets an extended attribute; `flags` of [`xattr`](super::xattr).
    ///
    /// # Errors
    /// `EEXIST`, `ENODATA`, `ERANGE` for a name beyond 255 bytes or empty, `E2BIG` for a value beyond 64 KiB,
    /// `ENOSPC`, `EOPNOTSUPP` for an unknown name space, `EPERM` for `user.` on what is neither file nor directory.
    fn setxattr(&self, caller: &Caller, node: NodeId, name: &[u8], value: &[u8], flags: u32) -> Result<()>;

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `ENODATA`.
    fn getxattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>>;

    /// The names of the extended attributes, each ended by NUL.
    fn listxattr(&self, node: NodeId) -> Result<Vec<u8>>;

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `ENODATA`.
    fn removexattr(&self, caller: &Caller, node: NodeId, name: &[u8]) -> Result<()>;

    /// Allocates, punches a hole or zeroes, as `flags` of [`falloc`](super::falloc) say.
    ///
    /// # Errors
    /// `EINVAL` for `length` 0, `EFBIG`, `ENOSPC`, `EOPNOTSUPP` for other flags.
    fn fallocate(&self, node: NodeId, handle: Handle, offset: u64, length: u64, flags: u32) -> Result<()>;

    /// Finds data or a hole.
    ///
    /// # Errors
    /// `ENXIO` for an offset at or beyond the end, or no data after it.
    fn lseek(&self, node: NodeId, handle: Handle, seek: Seek) -> Result<u64>;

    /// Copies up to `length` bytes between files of this file system; gives how many. Ranges that overlap in one
    /// file are `EINVAL`.
    #[allow(clippy::too_many_arguments)]
    fn copy_file_range(
        &self,
        node: NodeId,
        handle: Handle,
        offset: u64,
        to: NodeId,
        to_handle: Handle,
        to_offset: u64,
        length: u64,
    ) -> Result<u64> {
        let _ = (node, handle, offset, to, to_handle, to_offset, length);
        Err(Errno::EOPNOTSUPP)
    }

    /// A file system for a copy of the client, which goes on with the nodes, handles and cookies it has: the same ids,
    /// generations, lookup counts, open files and inode numbers as here at this moment. From then on the two count
    /// apart, each against the same limits.
    ///
    /// Where the files are this process's own, they are apart as well: no later change of either shows in the other.
    /// A directory of the host stays one directory, changes show in both. An operation that runs at the same time is
    /// wholly in the fork or not at all, but which is open; so a client to be copied stands still meanwhile.
    ///
    /// Takes no longer and no more memory than the number of nodes known or changed asks for, whatever their data.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where there is no such thing.
    fn fork(&self) -> Result<Arc<dyn FileSystem>> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Writes the file system down for a copy of the client that goes on later, as [`FileSystem::fork`] makes one for
    /// now. The client stands still meanwhile.
    ///
    /// # Errors
    /// The host's; `Unsupported` where there is no such thing.
    fn save(&self, to: &mut Saver) -> std::io::Result<Saved> {
        let _ = to;
        Err(std::io::ErrorKind::Unsupported.into())
    }
}
