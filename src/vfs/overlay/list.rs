//! Listings of the overlay's directories.

use super::Overlay;
use super::below::LowerDir;
use super::node::END_OF_POSITIONS;
use crate::vfs::{Caller, DirEntry, DirSink, Errno, FileSystem, FileType, Name, NodeId, Result};

/// Cookies of a host directory come after all positions of the upper. Hosts use numbers up to 2^63 - 1, which is the
/// end of a directory, but none in a stretch of 2^32 before it.
const HOST_COOKIES: u64 = 1 << 32;

fn from_host(cookie: u64) -> u64 {
    cookie.saturating_add(HOST_COOKIES).min(i64::MAX as u64)
}

fn to_host(cookie: u64) -> u64 {
    if cookie >= i64::MAX as u64 { i64::MAX as u64 } else { cookie.saturating_sub(HOST_COOKIES) }
}

impl Overlay {
    pub(super) fn list(
        &self,
        node: NodeId,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let tree = self.shared();
        let dir = tree.dir(node.0)?;
        let shown = |ino| tree.get(ino).map_or(ino, |node| node.shown(ino));
        for (at, (ino, name)) in [(node.0, &b"."[..]), (dir.parent, b"..")].into_iter().enumerate() {
            let entry = DirEntry { ino: shown(ino), cookie: at as u64 + 1, kind: FileType::Dir, name };
            if cookie <= at as u64 && !each(entry) {
                return Ok(());
            }
        }
        if tree.get(node.0)?.nlink == 0 {
            return Ok(());
        }
        let from = cookie.saturating_sub(2);
        let mut room = true;
        let over_host = matches!(dir.lower, LowerDir::Directory(_));
        if !over_host && from < dir.lower_positions {
            self.below.list(&dir.lower, from, &mut |position, name, ino, kind| {
                room = dir.get(name).is_some() || each(DirEntry { ino, cookie: position + 3, kind, name });
                room
            })?;
        }
        if room && from <= END_OF_POSITIONS {
            for (position, name, ino, kind) in dir.upper(from) {
                room = each(DirEntry { ino: shown(ino), cookie: position + 3, kind, name });
                if !room {
                    break;
                }
            }
        }
        if room && over_host {
            self.below.list(&dir.lower, to_host(cookie), &mut |next, name, ino, kind| {
                dir.get(name).is_some() || each(DirEntry { ino, cookie: from_host(next), kind, name })
            })?;
        }
        Ok(())
    }

    pub(super) fn list_with_nodes(
        &self,
        caller: &Caller,
        node: NodeId,
        cookie: u64,
        sink: &mut dyn DirSink,
    ) -> Result<()> {
        // Names are gathered under the shared lock, a few at a time, and looked up after.
        // More each time: how many the sink takes shows only then.
        const MOST: usize = 1024;
        let mut size = 32;
        let mut cookie = cookie;
        loop {
            let mut batch: Vec<(u64, u64, FileType, Vec<u8>)> = Vec::with_capacity(size);
            self.list(node, cookie, &mut |e| {
                batch.push((e.ino, e.cookie, e.kind, e.name.to_vec()));
                batch.len() < size
            })?;
            for (ino, next, kind, name) in &batch {
                let entry = DirEntry { ino: *ino, cookie: *next, kind: *kind, name };
                cookie = *next;
                let Ok(valid) = Name::new(name) else {
                    if !sink.entry(entry, None) {
                        return Ok(());
                    }
                    continue;
                };
                match self.lookup(caller, node, valid) {
                    Ok(found) => {
                        let entry = DirEntry { ino: found.attr.ino, kind: found.attr.file_type(), ..entry };
                        if !sink.entry(entry, Some(&found)) {
                            self.forget(found.node, 1);
                            return Ok(());
                        }
                    }
                    Err(Errno::ENOENT) => {}
                    Err(e) => return Err(e),
                }
            }
            if batch.len() < size {
                return Ok(());
            }
            size = (size * 2).min(MOST);
        }
    }
}
