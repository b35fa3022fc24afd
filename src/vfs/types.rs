//! What the operations of a file system carry: attributes, callers, flags.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An inode of one file system, its inode number at the same time. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root directory; it is always there and needs no lookup.
    pub const ROOT: NodeId = NodeId(1);
}

/// An open file or directory of one file system. File systems without state per open file give 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(pub u64);

/// A point in time: seconds since the epoch, possibly negative, and nanoseconds below 1 000 000 000 after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds since 1970-01-01T00:00:00Z.
    pub secs: i64,
    /// Nanoseconds after `secs`.
    pub nanos: u32,
}

impl Time {
    /// The time of the host's clock.
    pub fn now() -> Time {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(d) => Time { secs: i64::try_from(d.as_secs()).unwrap_or(i64::MAX), nanos: d.subsec_nanos() },
            Err(_) => Time::default(),
        }
    }
}

/// What kind of file an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileType {
    /// A FIFO.
    Fifo,
    /// A character device.
    Char,
    /// A directory.
    Dir,
    /// A block device.
    Block,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A socket.
    Socket,
}

impl FileType {
    /// From the `S_IFMT` bits of a mode; `None` where they name no type.
    pub fn from_mode(mode: u32) -> Option<FileType> {
        Some(match mode & mode::FMT {
            mode::FIFO => FileType::Fifo,
            mode::CHAR => FileType::Char,
            mode::DIR => FileType::Dir,
            mode::BLOCK => FileType::Block,
            mode::FILE => FileType::File,
            mode::SYMLINK => FileType::Symlink,
            mode::SOCKET => FileType::Socket,
            _ => return None,
        })
    }

    /// The `S_IFMT` bits.
    pub fn mode(self) -> u32 {
        match self {
            FileType::Fifo => mode::FIFO,
            FileType::Char => mode::CHAR,
            FileType::Dir => mode::DIR,
            FileType::Block => mode::BLOCK,
            FileType::File => mode::FILE,
            FileType::Symlink => mode::SYMLINK,
            FileType::Socket => mode::SOCKET,
        }
    }

    /// The `DT_*` number of `getdents` and FUSE.
    pub fn dirent(self) -> u32 {
        self.mode() >> 12
    }
}

/// Bits of a file mode, with Linux's numbers.
pub mod mode {
    /// Mask of the file type.
    pub const FMT: u32 = 0o170_000;
    /// FIFO.
    pub const FIFO: u32 = 0o010_000;
    /// Character device.
    pub const CHAR: u32 = 0o020_000;
    /// Directory.
    pub const DIR: u32 = 0o040_000;
    /// Block device.
    pub const BLOCK: u32 = 0o060_000;
    /// Regular file.
    pub const FILE: u32 = 0o100_000;
    /// Symbolic link.
    pub const SYMLINK: u32 = 0o120_000;
    /// Socket.
    pub const SOCKET: u32 = 0o140_000;
    /// Set user id on execution.
    pub const SUID: u32 = 0o4000;
    /// Set group id on execution; on directories, new entries take the group.
    pub const SGID: u32 = 0o2000;
    /// Execution by the group.
    pub const XGRP: u32 = 0o010;
    /// All permission bits with set-id and sticky.
    pub const PERM: u32 = 0o7777;
}

/// Flags of `open`, with Linux's numbers on x86-64 and arm64.
pub mod open {
    /// Mask of the access mode.
    pub const ACCMODE: u32 = 0o3;
    /// Read only.
    pub const RDONLY: u32 = 0;
    /// Write only.
    pub const WRONLY: u32 = 1;
    /// Read and write.
    pub const RDWR: u32 = 2;
    /// Create.
    pub const CREAT: u32 = 0o100;
    /// Fail when it exists.
    pub const EXCL: u32 = 0o200;
    /// Cut to length 0.
    pub const TRUNC: u32 = 0o1000;
    /// Write at the end.
    pub const APPEND: u32 = 0o2000;
}

/// Flags of `rename`.
pub mod rename {
    /// Fail with `EEXIST` when the target exists.
    pub const NOREPLACE: u32 = 1;
    /// Swap both names; both must exist.
    pub const EXCHANGE: u32 = 2;
}

/// Flags of `fallocate`, with Linux's numbers.
pub mod falloc {
    /// Leave the size as it is.
    pub const KEEP_SIZE: u32 = 0x01;
    /// Make a hole; needs `KEEP_SIZE`.
    pub const PUNCH_HOLE: u32 = 0x02;
    /// Make the range read as zeros.
    pub const ZERO_RANGE: u32 = 0x10;
}

/// Flags of `setxattr`.
pub mod xattr {
    /// Fail with `EEXIST` when the attribute exists.
    pub const CREATE: u32 = 1;
    /// Fail with `ENODATA` when the attribute does not exist.
    pub const REPLACE: u32 = 2;
}

/// The attributes of an inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Length in bytes; of a symbolic link, its target's length.
    pub size: u64,
    /// Space taken, in units of 512 bytes; holes take none.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the attributes.
    pub ctime: Time,
    /// File type and permissions, as `st_mode`.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, in Linux's 32-bit encoding (`makedev(3)`, low 32 bits).
    pub rdev: u32,
    /// Size of one efficient transfer, in bytes.
    pub blksize: u32,
}

impl Attr {
    /// The file type in `mode`; `File` where the bits name none.
    pub fn file_type(&self) -> FileType {
        FileType::from_mode(self.mode).unwrap_or(FileType::File)
    }
}

/// Linux's 32-bit encoding of a device number; `None` where major > 4095 or minor > 1 048 575.
pub fn makedev(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// Who asks. Permissions are *not* checked by the file systems here: the client's kernel does
/// (`default_permissions`). The identity is for the ownership of what is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id in the client's name space; 0 where unknown.
    pub pid: u32,
}

/// A node that `lookup` or a creating operation gave, with one lookup count taken.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The node.
    pub node: NodeId,
    /// Tells apart inodes that had the same number at different times.
    pub generation: u64,
    /// Its attributes.
    pub attr: Attr,
    /// How long a client may trust `attr` without asking.
    pub attr_ttl: Duration,
    /// How long a client may trust that the name leads to this node.
    pub entry_ttl: Duration,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the host's clock.
    Now,
    /// This time.
    At(Time),
}

/// What `setattr` changes; `None` leaves as is.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits; the file type bits are ignored.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of content.
    pub mtime: Option<SetTime>,
    /// Last change of attributes (clients with a write-back cache send it).
    pub ctime: Option<Time>,
    /// With `size`: also drop set-id bits, because the caller is not privileged.
    pub kill_suidgid: bool,
}

/// An opened file.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// To be given to the operations on it and to `release`.
    pub handle: Handle,
    /// Pages that the client cached before stay valid.
    pub keep_cache: bool,
}

/// Numbers of a whole file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Size of a block in bytes; the unit of the next three.
    pub block_size: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks for callers without privilege.
    pub blocks_available: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Longest name in bytes.
    pub name_max: u32,
}

/// Where `lseek` looks from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that is not in a hole.
    Data(u64),
    /// The next hole; the end of the file counts as one.
    Hole(u64),
}
