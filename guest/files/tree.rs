//! Removing a directory with all below it.
//!
//! Everything is named relative to an open directory and nothing is entered through a symbolic link, so what others do
//! to the tree meanwhile can never lead out of it. No recursion: a tree may be as deep as it likes.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;

use super::ops;
use crate::protocol::files::Target;
use crate::sys::files::{O_DIRECTORY, O_NOFOLLOW};
use crate::sys::paths::{self, EISDIR, ELOOP, HERE, S_IFLNK, S_IFMT};
use crate::sys::{ENOENT, ENOTDIR, EPERM, Fd, O_RDONLY, Result};

const DT_DIR: u8 = 4;

/// A directory that is being emptied.
struct Level {
    dir: Fd,
    /// What it is called in the one above.
    name: CString,
    entries: Vec<u8>,
    at: usize,
}

impl Level {
    /// A name below, and what kind of file it is, zero if the file system does not say. `None` when there is none any more.
    fn next(&mut self) -> Result<Option<(CString, u8)>> {
        loop {
            let rest = self.entries.get(self.at..).unwrap_or_default();
            let Some(&[low, high, kind]) = rest.get(16..19).and_then(|head| head.first_chunk()) else {
                self.entries.clear();
                self.at = 0;
                if ops::entries_onto(self.dir.raw(), &mut self.entries)? == 0 {
                    return Ok(None);
                }
                continue;
            };
            let len = usize::from(u16::from_le_bytes([low, high])).max(1);
            let name = rest.get(19..len).and_then(|name| CStr::from_bytes_until_nul(name).ok());
            self.at += len;
            match name {
                Some(name) if !matches!(name.to_bytes(), b"." | b".." | b"") => {
                    return Ok(Some((name.into(), kind)));
                }
                _ => {}
            }
        }
    }
}

fn enter(above: i32, name: CString) -> Result<Level> {
    let dir = paths::open_at(above, &name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0)?;
    Ok(Level { dir, name, entries: Vec::new(), at: 0 })
}

/// Removes the directory `path` with all below it; of a symbolic link only the link.
pub(super) fn remove(path: &CStr) -> Result<()> {
    if paths::stat(Target::Link(path))?.mode & S_IFMT == S_IFLNK {
        return paths::unlink_at(HERE, path);
    }
    let mut levels = Vec::new();
    levels.push(enter(HERE, path.into())?);
    while let Some(level) = levels.last_mut() {
        let Some((name, kind)) = level.next()? else {
            let Some(done) = levels.pop() else { break };
            let above = levels.last().map_or(HERE, |above: &Level| above.dir.raw());
            gone(paths::remove_dir_at(above, &done.name), levels.is_empty())?;
            continue;
        };
        let above = level.dir.raw();
        if kind != DT_DIR {
            match paths::unlink_at(above, &name) {
                // The file system does not tell kinds, or it became a directory just now.
                Err(EISDIR | EPERM) => {}
                done => {
                    gone(done, false)?;
                    continue;
                }
            }
        }
        match enter(above, name.clone()) {
            Ok(level) => levels.push(level),
            Err(ENOENT) => {}
            Err(ENOTDIR | ELOOP) => gone(paths::unlink_at(above, &name), false)?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Somebody else may have removed what is to go, unless it is what we were told to remove.
fn gone(done: Result<()>, told: bool) -> Result<()> {
    match done {
        Err(ENOENT) if !told => Ok(()),
        done => done,
    }
}
