//! The index of a layer as one flat buffer of little-endian records.
//!
//! ```text
//! header  64 bytes: magic[8] version u32, crc32 u32 (of all that follows), tar length u64, blob length u64,
//!                   inodes u32, names u32, paths u32, zero
//! names   12 bytes each: blob offset u32, inode u32 (all ones: whiteout), length u16, zero u16
//! inodes  64 bytes each
//! paths   12 bytes each: inode u32, blob offset u32, length u32
//! blob    names, link targets, extended attributes, sparse maps, paths
//! ```
//! Names are in breadth-first order, those of one directory together and sorted, so a directory is a range and a
//! lookup is a binary search. Inode 0 is the root. `paths` lists the directories no entry of the tar describes and
//! the hard links to files of lower layers.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Deref;
use std::sync::Arc;

use crate::sys::mapped::MappedFile;
use crate::vfs::{FileType, Time, mode};

pub(super) const MAGIC: &[u8; 8] = b"ccindex\0";
pub(super) const VERSION: u32 = 1;
pub(super) const HEADER: usize = 64;
pub(super) const NAME: usize = 12;
pub(super) const INODE: usize = 64;
pub(super) const PATH: usize = 12;
pub(super) const EXTENT: usize = 24;
pub(super) const NONE: u32 = u32::MAX;
/// No index file beyond this is read into memory.
const MAX_BYTES: u64 = 2 << 30;

/// The directory is only there because something below it is.
pub(super) const IMPLICIT: u32 = 1;
/// The directory hides what lower layers have in it.
pub(super) const OPAQUE: u32 = 2;
/// The file's data is a list of extents.
pub(super) const SPARSE: u32 = 4;
/// A hard link to a path of a lower layer.
pub(super) const LOWER_LINK: u32 = 8;

/// Why an index was refused.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file could not be read.
    #[error("reading the layer index failed")]
    Io(#[from] io::Error),
    /// The file is of another kind or version, or damaged. Building it again from the tar helps.
    #[error("the layer index is damaged or of another version ({0}); build it again")]
    Invalid(&'static str),
}

#[derive(Clone)]
pub(super) enum Bytes {
    Owned(Vec<u8>),
    Mapped(Arc<MappedFile>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Owned(bytes) => bytes,
            Bytes::Mapped(file) => file,
        }
    }
}

/// The index of one layer.
#[derive(Clone)]
pub struct Index {
    pub(super) bytes: Bytes,
    pub(super) tar_len: u64,
    pub(super) names: u32,
    pub(super) inodes: u32,
    pub(super) paths: u32,
}

/// One inode record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inode {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) nlink: u32,
    pub(crate) rdev: u32,
    pub(crate) flags: u32,
    pub(crate) mtime: Time,
    pub(crate) xattrs: u32,
    pub(crate) size: u64,
    /// File: offset in the tar. Symbolic link: offset of the target in the blob. Directory: first name, and the
    /// number of names in the upper half.
    pub(crate) data: u64,
    /// Directory: number of subdirectories. Sparse file: offset of the map in the blob.
    pub(crate) extra: u32,
    /// Sparse file: number of extents.
    pub(crate) extents: u32,
}

impl Inode {
    pub(crate) fn kind(&self) -> FileType {
        FileType::from_mode(self.mode).unwrap_or(FileType::File)
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.mode & mode::FMT == mode::DIR
    }

    pub(crate) fn implicit(&self) -> bool {
        self.flags & IMPLICIT != 0
    }

    pub(crate) fn opaque(&self) -> bool {
        self.flags & OPAQUE != 0
    }

    pub(crate) fn lower_link(&self) -> bool {
        self.flags & LOWER_LINK != 0
    }

    pub(super) fn range(&self) -> (u32, u32) {
        if self.is_dir() { (self.data as u32, (self.data >> 32) as u32) } else { (0, 0) }
    }
}

/// One name of a directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirName<'a> {
    pub(crate) name: &'a [u8],
    /// `None`: a whiteout.
    pub(crate) inode: Option<u32>,
}

/// What lies at an offset of a file.
pub(crate) enum Slot {
    Data { tar: u64, len: u64 },
    Hole { len: u64 },
    End,
}

/// A run of data of a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) tar: u64,
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl Index {
    /// Takes a stored index after checking all of it.
    ///
    /// # Errors
    /// [`IndexError::Invalid`] when anything is not as [`Index::build`] makes it.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Index, IndexError> {
        let index = Index::with_header(Bytes::Owned(bytes))?;
        if u32_at(&index.bytes, 12) != crc32fast::hash(&index.bytes[16..]) {
            return Err(IndexError::Invalid("checksum"));
        }
        index.check()?;
        Ok(index)
    }

    /// Maps an index that this crate has built, checked and stored, in a file that nobody changes. Only its header
    /// is looked at, so this costs the same for every size. A record that has been damaged since gives wrong
    /// attributes or `EIO`, no more.
    ///
    /// # Errors
    /// [`IndexError::Invalid`] for another version or length; the host's errors.
    pub(crate) fn map(file: &File) -> Result<Index, IndexError> {
        if file.metadata()?.len() < HEADER as u64 {
            return Err(IndexError::Invalid("not a layer index"));
        }
        Index::with_header(Bytes::Mapped(Arc::new(MappedFile::new(file)?)))
    }

    fn with_header(bytes: Bytes) -> Result<Index, IndexError> {
        if bytes.len() < HEADER || &bytes[..8] != MAGIC {
            return Err(IndexError::Invalid("not a layer index"));
        }
        if u32_at(&bytes, 8) != VERSION {
            return Err(IndexError::Invalid("another version"));
        }
        let index = Index {
            tar_len: u64_at(&bytes, 16),
            inodes: u32_at(&bytes, 32),
            names: u32_at(&bytes, 36),
            paths: u32_at(&bytes, 40),
            bytes,
        };
        let want = (index.blob_at() as u64).checked_add(u64_at(&index.bytes, 24));
        if want != Some(index.bytes.len() as u64) {
            return Err(IndexError::Invalid("length"));
        }
        Ok(index)
    }

    /// Reads and checks a stored index.
    ///
    /// # Errors
    /// As [`Index::from_bytes`], and the reader's.
    pub fn load(reader: impl Read) -> Result<Index, IndexError> {
        let mut bytes = Vec::new();
        reader.take(MAX_BYTES).read_to_end(&mut bytes)?;
        Index::from_bytes(bytes)
    }

    /// The bytes to store.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Length in bytes of the tar it describes.
    pub fn tar_len(&self) -> u64 {
        self.tar_len
    }

    /// Number of inodes.
    pub fn inodes(&self) -> u32 {
        self.inodes
    }

    /// Number of names, whiteouts included.
    pub fn names(&self) -> u32 {
        self.names
    }

    fn names_at(&self) -> usize {
        HEADER
    }

    fn inodes_at(&self) -> usize {
        self.names_at() + self.names as usize * NAME
    }

    pub(super) fn paths_at(&self) -> usize {
        self.inodes_at() + self.inodes as usize * INODE
    }

    fn blob_at(&self) -> usize {
        self.paths_at() + self.paths as usize * PATH
    }

    pub(super) fn blob(&self, offset: u64, len: u64) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?.checked_add(self.blob_at())?;
        self.bytes.get(start..start.checked_add(usize::try_from(len).ok()?)?)
    }

    /// The record of an inode. An id that is out of range gives an empty file without permissions: ids come from
    /// checked records only.
    pub(crate) fn inode(&self, inode: u32) -> Inode {
        let at = self.inodes_at() + inode as usize * INODE;
        let raw: [u8; INODE] = if inode < self.inodes {
            self.bytes.get(at..at + INODE).and_then(|b| b.try_into().ok()).unwrap_or([0; INODE])
        } else {
            [0; INODE]
        };
        Inode {
            mode: u32_at(&raw, 0),
            uid: u32_at(&raw, 4),
            gid: u32_at(&raw, 8),
            nlink: u32_at(&raw, 12),
            rdev: u32_at(&raw, 16),
            flags: u32_at(&raw, 20),
            mtime: Time { secs: u64_at(&raw, 24) as i64, nanos: u32_at(&raw, 32) },
            xattrs: u32_at(&raw, 36),
            size: u64_at(&raw, 40),
            data: u64_at(&raw, 48),
            extra: u32_at(&raw, 56),
            extents: u32_at(&raw, 60),
        }
    }

    /// Number of names of a directory.
    pub(crate) fn len(&self, dir: u32) -> u32 {
        self.inode(dir).range().1
    }

    /// Number of subdirectories of a directory.
    pub(crate) fn subdirs(&self, dir: u32) -> u32 {
        self.inode(dir).extra
    }

    pub(super) fn name(&self, at: u32) -> Option<DirName<'_>> {
        if at >= self.names {
            return None;
        }
        let record = self.names_at() + at as usize * NAME;
        let inode = u32_at(&self.bytes, record + 4);
        let len = u16_at(&self.bytes, record + 8);
        let name = self.blob(u32_at(&self.bytes, record).into(), len.into())?;
        Some(DirName { name, inode: (inode != NONE).then_some(inode) })
    }

    /// The name at a position of a directory, in sorted order.
    pub(crate) fn at(&self, dir: u32, position: u32) -> Option<DirName<'_>> {
        let (first, count) = self.inode(dir).range();
        if position < count { self.name(first.checked_add(position)?) } else { None }
    }

    /// Finds a name in a directory.
    pub(crate) fn find(&self, dir: u32, name: &[u8]) -> Option<DirName<'_>> {
        let (first, count) = self.inode(dir).range();
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low + (high - low) / 2;
            let found = self.name(first.checked_add(middle)?)?;
            match found.name.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(found),
            }
        }
        None
    }

    /// The target of a symbolic link, or the path of a hard link into a lower layer.
    pub(crate) fn target(&self, node: &Inode) -> &[u8] {
        self.blob(node.data, node.size).unwrap_or_default()
    }

    /// Extended attributes as (name, value).
    pub(crate) fn xattrs(&self, node: &Inode) -> Xattrs<'_> {
        let start = if node.xattrs == NONE { &[][..] } else { self.blob_from(node.xattrs) };
        Xattrs { left: u16_at(start, 0), rest: start.get(2..).unwrap_or_default() }
    }

    pub(super) fn blob_from(&self, offset: u32) -> &[u8] {
        self.bytes.get(self.blob_at().saturating_add(offset as usize)..).unwrap_or_default()
    }

    /// Directories without an entry of their own, and hard links into lower layers, with their paths.
    pub(crate) fn special_paths(&self) -> impl Iterator<Item = (u32, &[u8])> {
        (0..self.paths as usize).filter_map(|i| {
            let at = self.paths_at() + i * PATH;
            let path = self.blob(u32_at(&self.bytes, at + 4).into(), u32_at(&self.bytes, at + 8).into())?;
            Some((u32_at(&self.bytes, at), path))
        })
    }

    pub(super) fn extent(&self, node: &Inode, at: u32) -> Option<Extent> {
        let offset = u64::from(node.extra) + u64::from(at) * EXTENT as u64;
        let raw = self.blob(offset, EXTENT as u64)?;
        Some(Extent { offset: u64_at(raw, 0), len: u64_at(raw, 8), tar: u64_at(raw, 16) })
    }

    /// What lies at `offset` of a regular file.
    pub(crate) fn slot(&self, node: &Inode, offset: u64) -> Slot {
        if offset >= node.size {
            return Slot::End;
        }
        if node.flags & SPARSE == 0 {
            return Slot::Data { tar: node.data.saturating_add(offset), len: node.size - offset };
        }
        let (mut low, mut high) = (0, node.extents);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.extent(node, middle) {
                Some(e) if e.offset.saturating_add(e.len) > offset => high = middle,
                _ => low = middle + 1,
            }
        }
        match self.extent(node, low) {
            Some(e) if low < node.extents && e.offset <= offset => {
                let len = e.offset.saturating_add(e.len).saturating_sub(offset);
                Slot::Data { tar: e.tar.saturating_add(offset - e.offset), len }
            }
            Some(e) if low < node.extents => Slot::Hole { len: e.offset - offset },
            _ => Slot::Hole { len: node.size - offset },
        }
    }

    /// Space the data takes in the tar, in 512-byte blocks.
    pub(crate) fn blocks(&self, node: &Inode) -> u64 {
        if node.kind() != FileType::File {
            return 0;
        }
        if node.flags & SPARSE == 0 {
            return node.size.div_ceil(512);
        }
        (0..node.extents)
            .filter_map(|i| self.extent(node, i))
            .map(|e| e.len.div_ceil(512))
            .fold(0, u64::saturating_add)
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index")
            .field("tar_len", &self.tar_len)
            .field("inodes", &self.inodes)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

/// Walks extended attributes.
pub(crate) struct Xattrs<'a> {
    left: u16,
    rest: &'a [u8],
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let (head, rest) = self.rest.split_at_checked(6)?;
        let (name, rest) = rest.split_at_checked(u16_at(head, 0).into())?;
        let (value, rest) = rest.split_at_checked(u32_at(head, 2) as usize)?;
        self.rest = rest;
        Some((name, value))
    }
}
