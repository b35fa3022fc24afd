//! File systems: what a client of one holds, and what the server has of its own.
//!
//! File data is not in these sections but in a file beside them, at the offsets that they say; layers are files of
//! their own.

use serde::{Deserialize, Serialize};

use super::{Saved, StateError, kind};

/// What the client of a virtio-fs device holds; the instance is the device's number among those.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileClient {
    /// The tag of the device.
    pub tag: String,
    /// The minor version of FUSE agreed on; 0 for a device that is not mounted.
    pub minor: u32,
    /// Whether others change the file system too.
    pub shared: bool,
    /// Nodes and their lookup counts.
    pub nodes: Vec<(u64, u64)>,
    /// Open files as node, handle and how often.
    pub files: Vec<(u64, u64, u64)>,
    /// Open directories likewise.
    pub dirs: Vec<(u64, u64, u64)>,
}

/// A file system; the instance is its device's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileSystem {
    /// Layers or a directory with a writable upper.
    Overlay(Upper),
    /// A directory of the host.
    Directory(HostDirectory),
}

/// Seconds since 1970 and nanoseconds.
pub type Time = (i64, u32);

/// The writable upper of an overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upper {
    /// What is under it.
    pub below: Below,
    /// Its bounds: bytes of data, inodes, bytes of metadata, bytes of data in memory.
    pub limits: [u64; 4],
    /// The number of the next new node.
    pub next: u64,
    /// When the root was last changed before anybody could.
    pub root_changed: Time,
    /// All nodes.
    pub nodes: Vec<Node>,
}

/// What is under an upper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Below {
    /// Layers, lowest first, by their numbers among the files beside.
    Layers(Vec<u32>),
    /// A directory of the host.
    Directory(HostDirectory),
}

/// A node of an overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its number.
    pub number: u64,
    /// Type and permissions as `stat` has them.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Number of names.
    pub links: u32,
    /// Last access, change of data, change of attributes.
    pub times: [Time; 3],
    /// Lookup count.
    pub lookups: u64,
    /// Whether it differs from what is below.
    pub changed: bool,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// The node of the host directory that it shows, and the inode number it shows.
    pub host: Option<(u64, u64)>,
    /// What depends on its type.
    pub body: Body,
}

/// Extended attributes of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Xattrs {
    /// Those of a layer's inode.
    Layer(u32, u32),
    /// Those of the host's file.
    Host,
    /// Names and values.
    Own(Vec<(Vec<u8>, Vec<u8>)>),
}

/// What depends on a node's type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// A directory.
    Directory {
        /// The directory it is in.
        parent: u64,
        /// What it is made of below.
        below: BelowDirectory,
        /// Positions of entries that those below take.
        positions: u64,
        /// Directories in it.
        directories: u32,
        /// The position of the next new entry.
        next: u64,
        /// Names that differ from below.
        names: Vec<Name>,
    },
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// What shows through.
        below: Option<BelowFile>,
        /// What has been written.
        chunks: Vec<Chunk>,
    },
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// Anything else.
    Special,
}

/// What a directory is made of below the upper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BelowDirectory {
    /// Layer and inode of each, topmost first.
    Layers(Vec<(u32, u32)>),
    /// A node of the host directory, and the inode number it shows.
    Host(u64, u64),
}

/// The file that shows through where nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BelowFile {
    /// Which.
    pub file: BelowData,
    /// Bytes from here on do not show.
    pub len: u64,
    /// Units of 512 bytes that the whole file takes.
    pub blocks: u64,
}

/// A file below.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BelowData {
    /// Layer and inode.
    Layer(u32, u32),
    /// A node of the host directory, and the inode number it shows.
    Host(u64, u64),
}

/// A name of a directory that differs from below.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// The name.
    pub name: Vec<u8>,
    /// Node, type (the format bits of `mode`) and position; without, nothing has this name.
    pub node: Option<(u64, u32, u64)>,
}

/// Sixteen pages of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Offset in the file in units of 64 KiB.
    pub index: u64,
    /// Which pages are here.
    pub have: u16,
    /// Which pages are holes that hide what is below.
    pub hole: u16,
    /// Where the bytes lie in the file beside.
    pub offset: u64,
    /// How many; pages beyond are zeros.
    pub len: u32,
    /// CRC-32 of the bytes.
    pub crc: u32,
}

/// A directory of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDirectory {
    /// Where it is, absolute.
    pub path: Vec<u8>,
    /// Whether every change is refused.
    pub read_only: bool,
    /// How owners look.
    pub owners: Owners,
    /// How long clients may cache, in ns.
    pub cache_ns: u64,
    /// Most open files, and descriptors kept besides.
    pub open: (u32, u32),
    /// The number of the next node.
    pub next: u64,
    /// Known nodes but the root.
    pub nodes: Vec<HostNode>,
    /// Open files as handle, node and flags of `open`.
    pub handles: Vec<(u64, u64, u32)>,
    /// The last handle given.
    pub last_handle: u64,
}

/// How owners of a host directory's files look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owners {
    /// As on the host.
    AsIs,
    /// All the same: owner and group.
    Fixed(u32, u32),
    /// The same until changed, and changes are written down.
    Recorded(u32, u32),
    /// The user of this process is shown as root.
    UserAsRoot,
}

/// A file of a host directory that a client knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostNode {
    /// Its number.
    pub number: u64,
    /// The node of the directory it is in.
    pub parent: u64,
    /// Its name there.
    pub name: Vec<u8>,
    /// Which inode it is: device, number, time of birth, type.
    pub inode: (u32, u32, u64, Time, u32),
    /// Lookup count.
    pub lookups: u64,
}

impl FileClient {
    /// Most bytes of a tag.
    pub const MAX_TAG: usize = 36;
    /// How often one file may be open as one handle.
    pub const MAX_OPEN: u64 = 1 << 20;
}

impl Saved for FileClient {
    const KIND: u16 = kind::FILE_CLIENT;
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 16 << 20;

    fn check(&self) -> Result<(), StateError> {
        if !(1..=Self::MAX_TAG).contains(&self.tag.len()) {
            return Err(StateError::Invalid { what: "tag of a file system" });
        }
        // Each is closed one by one when the client goes.
        if self.files.iter().chain(&self.dirs).any(|open| open.2 > Self::MAX_OPEN) {
            return Err(StateError::Invalid { what: "how often a file is open" });
        }
        Ok(())
    }
}

impl Saved for FileSystem {
    const KIND: u16 = kind::FILE_SYSTEM;
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 48 << 20;
}

/// What commands of a machine start with, and what it came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Environment variables.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Working directory.
    pub current_dir: Option<Vec<u8>>,
    /// User as `user`, `user:group` or `:group`.
    pub user: Option<Vec<u8>>,
    /// User, group and supplementary groups by number.
    pub ids: (Option<u32>, Option<u32>, Option<Vec<u32>>),
    /// The configuration of the image, as OCI has it.
    pub image_config: Option<String>,
    /// File systems.
    pub file_systems: u32,
    /// Layers beside.
    pub layers: u32,
}

impl Guest {
    /// Most file systems.
    pub const MAX_FILE_SYSTEMS: u32 = 64;
    /// Most layers.
    pub const MAX_LAYERS: u32 = 4096;
}

impl Saved for Guest {
    const KIND: u16 = kind::GUEST;
    const VERSION: u16 = 1;
    const MAX_BYTES: usize = 8 << 20;

    fn check(&self) -> Result<(), StateError> {
        if self.file_systems > Self::MAX_FILE_SYSTEMS {
            return Err(StateError::Invalid { what: "number of file systems" });
        }
        if self.layers > Self::MAX_LAYERS {
            return Err(StateError::Invalid { what: "number of layers" });
        }
        Ok(())
    }
}
