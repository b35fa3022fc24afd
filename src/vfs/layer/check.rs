//! Checks a whole index before any of it is believed.

use super::index::{IMPLICIT, Index, IndexError, NONE, OPAQUE, PATH, SPARSE, u16_at, u32_at};
use crate::vfs::{FileType, Name, mode};

impl Index {
    /// Whether everything is as [`Index::build`] makes it.
    pub(super) fn check(&self) -> Result<(), IndexError> {
        let bad = |what| Err(IndexError::Invalid(what));
        let root = self.inode(0);
        if self.inodes == 0 || !root.is_dir() || root.range().0 != 0 {
            return bad("no root");
        }
        for i in 0..self.inodes {
            self.check_inode(i)?;
        }
        // Each directory's names follow those of the directory before it: so every name has one parent, and no
        // directory is below itself.
        let mut next = root.range().1;
        let mut last_dir = 0;
        let mut starts = vec![(0, next)];
        for at in 0..self.names {
            if at >= next {
                return bad("names without a directory");
            }
            let Some(name) = self.name(at) else { return bad("name") };
            if Name::new(name.name).is_err() {
                return bad("name");
            }
            let Some(inode) = name.inode else { continue };
            if inode == 0 || inode >= self.inodes {
                return bad("inode of a name");
            }
            let node = self.inode(inode);
            if node.is_dir() {
                let (first, count) = node.range();
                if inode <= last_dir || first != next {
                    return bad("order of directories");
                }
                last_dir = inode;
                let Some(end) = next.checked_add(count) else { return bad("directory range") };
                starts.push((first, count));
                next = end;
            }
        }
        if next != self.names {
            return bad("directory range");
        }
        for (first, count) in starts {
            for at in first + 1..first.saturating_add(count) {
                match (self.name(at - 1), self.name(at)) {
                    (Some(a), Some(b)) if a.name < b.name => {}
                    _ => return bad("order of names"),
                }
            }
        }
        for i in 0..self.paths as usize {
            let at = self.paths_at() + i * PATH;
            let inode = u32_at(&self.bytes, at);
            let node = self.inode(inode);
            if inode >= self.inodes || !(node.implicit() || node.lower_link()) {
                return bad("path");
            }
        }
        if self.special_paths().count() != self.paths as usize {
            return bad("path");
        }
        Ok(())
    }

    fn check_inode(&self, i: u32) -> Result<(), IndexError> {
        let bad = |what| Err(IndexError::Invalid(what));
        let node = self.inode(i);
        let Some(kind) = FileType::from_mode(node.mode) else { return bad("file type") };
        if node.mode & !(mode::FMT | mode::PERM) != 0 || node.mtime.nanos >= 1_000_000_000 {
            return bad("mode or time");
        }
        let on_dir = node.flags & (IMPLICIT | OPAQUE) != 0;
        if on_dir && kind != FileType::Dir || node.flags & SPARSE != 0 && kind != FileType::File {
            return bad("flags");
        }
        if node.lower_link() && kind != FileType::File {
            return bad("flags");
        }
        if kind == FileType::Symlink || node.lower_link() {
            if self.blob(node.data, node.size).is_none() {
                return bad("link target");
            }
        } else if kind == FileType::File {
            if node.size > i64::MAX as u64 {
                return bad("size");
            }
            if node.flags & SPARSE != 0 {
                let mut last = 0;
                for e in 0..node.extents {
                    let Some(e) = self.extent(&node, e) else { return bad("sparse map") };
                    let end = e.offset.checked_add(e.len);
                    let inside = e.tar.checked_add(e.len).is_some_and(|end| end <= self.tar_len);
                    match end {
                        Some(end) if e.len > 0 && e.offset >= last && end <= node.size && inside => {
                            last = end
                        }
                        _ => return bad("sparse map"),
                    }
                }
            } else if node.data.checked_add(node.size).is_none_or(|end| end > self.tar_len) {
                return bad("data range");
            }
        }
        if node.xattrs != NONE {
            let mut rest = self.xattrs(&node);
            for _ in 0..u16_at(self.blob_from(node.xattrs), 0) {
                if rest.next().is_none() {
                    return bad("extended attributes");
                }
            }
        }
        Ok(())
    }
}
