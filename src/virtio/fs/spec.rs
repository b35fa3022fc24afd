//! Names and numbers of the FUSE protocol (`fuse_kernel.h`, version 7.38) and of the virtio-fs device.

/// Device ID of the file-system device.
pub(super) const ID_FS: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_FS;
/// Bytes of the tag in the configuration space.
pub(super) const TAG_LEN: usize = 36;

pub(super) const MAJOR: u32 = 7;
pub(super) const MINOR: u32 = 38;
/// The oldest minor version whose layouts are those used here.
pub(super) const OLDEST_MINOR: u32 = 31;

/// Bytes of the header of a request.
pub(super) const IN_HEADER: usize = 40;
/// Bytes of the header of an answer.
pub(super) const OUT_HEADER: usize = 16;

pub(super) mod op {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
    pub(crate) const SYNCFS: u32 = 50;
}

/// Flags of INIT.
pub(super) mod init {
    pub(crate) const ASYNC_READ: u64 = 1 << 0;
    pub(crate) const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const POSIX_ACL: u64 = 1 << 20;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(crate) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    /// The second word of flags is there.
    pub(crate) const INIT_EXT: u64 = 1 << 30;
}

/// Bits of SETATTR's `valid`.
pub(super) mod fattr {
    pub(crate) const MODE: u32 = 1 << 0;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const FH: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
    pub(crate) const CTIME: u32 = 1 << 10;
    pub(crate) const KILL_SUIDGID: u32 = 1 << 11;
}

/// GETATTR: the handle is valid.
pub(super) const GETATTR_FH: u32 = 1;
/// OPEN and CREATE: drop set-id bits with `O_TRUNC`.
pub(super) const OPEN_KILL_SUIDGID: u32 = 1;
/// WRITE: drop set-id bits.
pub(super) const WRITE_CACHE: u32 = 1;
pub(super) const WRITE_KILL_SUIDGID: u32 = 4;
/// FSYNC: data only.
pub(super) const FSYNC_FDATASYNC: u32 = 1;
/// LSEEK: `SEEK_DATA`.
pub(super) const SEEK_DATA: u32 = 3;
/// LSEEK: `SEEK_HOLE`.
pub(super) const SEEK_HOLE: u32 = 4;

/// Answer to OPEN: reads and writes come as programs make them, and nothing is cached.
pub(super) const FOPEN_DIRECT_IO: u32 = 1;
/// Answer to OPEN: cached pages stay.
pub(super) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// Answer to OPENDIR: listings may be cached.
pub(super) const FOPEN_CACHE_DIR: u32 = 1 << 3;
/// Answer to OPEN: closing needs no FLUSH.
pub(super) const FOPEN_NOFLUSH: u32 = 1 << 5;
