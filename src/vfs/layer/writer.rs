//! Puts the tables of an index together.

use super::index::{Extent, HEADER, INODE, Index, IndexError, Inode, MAGIC, NAME, NONE, PATH, VERSION};

/// Puts an index together. The caller gives names in the order of the format.
#[derive(Default)]
pub(super) struct Writer {
    names: Vec<u8>,
    inodes: Vec<u8>,
    paths: Vec<u8>,
    blob: Vec<u8>,
}

impl Writer {
    /// Adds bytes to the blob; `None` when it is full (4 GiB less one).
    pub(super) fn blob(&mut self, bytes: &[u8]) -> Option<u32> {
        let at = u32::try_from(self.blob.len()).ok()?;
        u32::try_from(self.blob.len() + bytes.len()).ok().filter(|&end| end != NONE)?;
        self.blob.extend_from_slice(bytes);
        Some(at)
    }

    pub(super) fn name(&mut self, name: &[u8], inode: Option<u32>) -> Option<()> {
        let at = self.blob(name)?;
        self.names.extend_from_slice(&at.to_le_bytes());
        self.names.extend_from_slice(&inode.unwrap_or(NONE).to_le_bytes());
        self.names.extend_from_slice(&u32::from(u16::try_from(name.len()).ok()?).to_le_bytes());
        Some(())
    }

    pub(super) fn xattrs<'a>(
        &mut self,
        xattrs: impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Option<u32> {
        if xattrs.len() == 0 {
            return Some(NONE);
        }
        let at = self.blob(&u16::try_from(xattrs.len()).ok()?.to_le_bytes())?;
        for (name, value) in xattrs {
            self.blob(&u16::try_from(name.len()).ok()?.to_le_bytes())?;
            self.blob(&u32::try_from(value.len()).ok()?.to_le_bytes())?;
            self.blob(name)?;
            self.blob(value)?;
        }
        Some(at)
    }

    pub(super) fn extents(&mut self, extents: &[Extent]) -> Option<u32> {
        let at = self.blob(&[])?;
        for e in extents {
            for value in [e.offset, e.len, e.tar] {
                self.blob(&value.to_le_bytes())?;
            }
        }
        Some(at)
    }

    pub(super) fn inode(&mut self, node: &Inode) {
        let out = &mut self.inodes;
        for value in [node.mode, node.uid, node.gid, node.nlink, node.rdev, node.flags] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(&node.mtime.secs.to_le_bytes());
        out.extend_from_slice(&node.mtime.nanos.to_le_bytes());
        out.extend_from_slice(&node.xattrs.to_le_bytes());
        out.extend_from_slice(&node.size.to_le_bytes());
        out.extend_from_slice(&node.data.to_le_bytes());
        out.extend_from_slice(&node.extra.to_le_bytes());
        out.extend_from_slice(&node.extents.to_le_bytes());
    }

    pub(super) fn path(&mut self, inode: u32, path: &[u8]) -> Option<()> {
        let at = self.blob(path)?;
        for value in [inode, at, u32::try_from(path.len()).ok()?] {
            self.paths.extend_from_slice(&value.to_le_bytes());
        }
        Some(())
    }

    pub(super) fn finish(self, tar_len: u64) -> Result<Index, IndexError> {
        let mut bytes = Vec::with_capacity(
            HEADER + self.names.len() + self.inodes.len() + self.paths.len() + self.blob.len(),
        );
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&tar_len.to_le_bytes());
        bytes.extend_from_slice(&(self.blob.len() as u64).to_le_bytes());
        for (table, record) in [(&self.inodes, INODE), (&self.names, NAME), (&self.paths, PATH)] {
            let count = u32::try_from(table.len() / record).map_err(|_| IndexError::Invalid("too large"))?;
            bytes.extend_from_slice(&count.to_le_bytes());
        }
        bytes.resize(HEADER, 0);
        for table in [&self.names, &self.inodes, &self.paths, &self.blob] {
            bytes.extend_from_slice(table);
        }
        let crc = crc32fast::hash(&bytes[16..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        Index::from_bytes(bytes)
    }
}
