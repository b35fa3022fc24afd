//! From a guest to the host.

use std::collections::VecDeque;
use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::local::{self, Dir};
use super::{PERMISSIONS, check_depth};
use crate::agent::files::{Handle, Lease};
use crate::agent::protocol::files::{MAX_CHUNK, Request, Stat};
use crate::fs::FileType;
use crate::fs::bulk;
use crate::fs::dir::{Entry, open_dir};
use crate::fs::error::Context;
use crate::fs::guest::{Guest, number, os, read_head};

const O_NOFOLLOW: i32 = 0o400_000;
/// Not to wait for the other end of a pipe that has taken a file's place.
const O_NONBLOCK: i32 = 0o4000;
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;
const ENXIO: i32 = 6;
/// What is asked of each file of a directory at first.
const FIRST: usize = 64 * 1024;
/// Files of a directory that are under way.
const BATCH: usize = 32;
/// Chunks of a large file that are under way.
const WINDOW: usize = 4;

pub(in crate::fs) fn copy_out(guest: &Arc<Guest>, from: &Path, to: &Path) -> io::Result<u64> {
    let mut receiver = Receiver { guest, lease: guest.files.lease()?, buffer: Vec::new(), copied: 0 };
    let metadata = guest.stat(from, true)?;
    if metadata.is_dir() {
        let target = Dir::create(to).at("copy to", to)?;
        receiver.tree(from, &target, 0)?;
        let modified = (metadata.mtime(), metadata.mtime_nsec() as u32);
        target.finish(metadata.mode() & PERMISSIONS, modified).at("copy to", to)?;
        return Ok(receiver.copied);
    }
    let (parent, name) = local_parent(to)?;
    let path = guest.path(from).at("copy", from)?;
    receiver.lease.send(&Request::ReadFile(&path, 0, MAX_CHUNK as u32)).at("copy", from)?;
    if let Some(rest) = receiver.first(from, &parent, &name)? {
        receiver.rest(rest)?;
    }
    Ok(receiver.copied)
}

fn local_parent(to: &Path) -> io::Result<(Dir, OsString)> {
    Dir::parent(to).at("copy to", to)
}

struct Receiver<'g> {
    guest: &'g Arc<Guest>,
    lease: Lease<'g>,
    buffer: Vec<u8>,
    copied: u64,
}

/// A file that goes on.
struct Rest {
    path: PathBuf,
    handle: Handle,
    stat: Stat,
    target: local::Target,
    at: u64,
}

impl Receiver<'_> {
    fn tree(&mut self, from: &Path, to: &Dir, depth: usize) -> io::Result<()> {
        check_depth(depth).at("copy", from)?;
        let name = self.guest.path(from).at("copy", from)?;
        let (fd, mut listing) = open_dir(&mut self.lease, &name).at("read directory", from)?;
        let handle = fd.map(|fd| Handle::adopt(&self.guest.files, &self.lease, fd));
        let (mut directories, mut batch) = (Vec::new(), Vec::new());
        loop {
            for entry in listing.by_ref() {
                let Ok(entry) = entry else { return Err(self.lease.malformed()).at("read directory", from) };
                let kind = match entry.file_type() {
                    Some(kind) => kind,
                    None => self.guest.stat(&from.join(&entry.name), false)?.file_type(),
                };
                if kind.is_dir() {
                    directories.push(entry.name);
                    continue;
                }
                batch.push((entry, kind));
                if batch.len() >= BATCH {
                    self.batch(from, to, std::mem::take(&mut batch))?;
                }
            }
            let Some(handle) = &handle else { break };
            let bytes = self.lease.call(&Request::Entries(handle.fd())).at("read directory", from)?;
            if bytes.is_empty() {
                break;
            }
            listing = crate::fs::dir::Listing::new(bytes);
        }
        drop(handle);
        self.batch(from, to, batch)?;
        for name in directories {
            let (path, target) = (from.join(&name), to.enter(&name));
            let target = target.at("copy", &path)?;
            let metadata = self.guest.stat(&path, false)?;
            if !metadata.is_dir() {
                continue;
            }
            self.tree(&path, &target, depth + 1)?;
            let modified = (metadata.mtime(), metadata.mtime_nsec() as u32);
            target.finish(metadata.mode() & PERMISSIONS, modified).at("copy", &path)?;
        }
        Ok(())
    }

    /// Copies some files and links of one directory.
    fn batch(&mut self, from: &Path, to: &Dir, entries: Vec<(Entry, FileType)>) -> io::Result<()> {
        let mut asked = VecDeque::new();
        for (entry, kind) in entries {
            let path = from.join(&entry.name);
            let name: CString = self.guest.path(&path).at("copy", &path)?;
            let request = if kind.is_symlink() {
                Request::ReadLink(&name)
            } else if kind.is_file() {
                Request::ReadFile(&name, O_NOFOLLOW | O_NONBLOCK, FIRST as u32)
            } else {
                continue;
            };
            self.lease.send(&request).at("copy", &path)?;
            asked.push_back((path, entry.name, kind));
        }
        let mut large = Vec::new();
        for (path, name, kind) in asked {
            if kind.is_symlink() {
                let leads = self.lease.answer().at("read link", &path)?;
                to.symlink(Path::new(os(&leads)), &name).at("copy", &path)?;
            } else if let Some(rest) = self.first(&path, to, &name)? {
                large.push(rest);
            }
        }
        large.into_iter().try_for_each(|rest| self.rest(rest))
    }

    /// Takes the answer with the head of a file; gives the file if there is more.
    fn first(&mut self, path: &Path, to: &Dir, name: &OsStr) -> io::Result<Option<Rest>> {
        self.buffer.clear();
        self.lease.answer_onto(&mut self.buffer).at("copy", path)?;
        let (stat, fd) = read_head(&mut self.lease, &self.buffer).at("copy", path)?;
        let handle = fd.map(|fd| Handle::adopt(&self.guest.files, &self.lease, fd));
        let mut target = to.file(name).at("copy", path)?;
        let head = self.buffer.get(Stat::SIZE + 4..).unwrap_or_default();
        // The head of a sparse file may be a hole as well.
        let sparse = handle.is_some() && is_sparse(&stat);
        if !sparse {
            target.file().write_all(head).at("copy", path)?;
        }
        let at = if sparse { 0 } else { head.len() as u64 };
        self.copied += at;
        match handle {
            Some(handle) => Ok(Some(Rest { path: path.to_owned(), handle, stat, target, at })),
            None => {
                target.finish(stat.mode & PERMISSIONS, stat.mtime).at("copy", path)?;
                Ok(None)
            }
        }
    }

    fn rest(&mut self, mut rest: Rest) -> io::Result<()> {
        let done =
            if is_sparse(&rest.stat) { self.islands(&mut rest) } else { self.stream(&mut rest, u64::MAX) };
        done.and_then(|()| rest.target.finish(rest.stat.mode & PERMISSIONS, rest.stat.mtime))
            .at("copy", &rest.path)
    }

    /// Copies from where the file stands to its end, or until `until`.
    fn stream(&mut self, rest: &mut Rest, until: u64) -> io::Result<()> {
        // As far as the file went when it was opened; what it has grown by since comes after.
        let known = rest.stat.size.min(until);
        if rest.stat.mode & S_IFMT == S_IFREG && known.saturating_sub(rest.at) > MAX_CHUNK as u64 {
            let target = rest.target.file();
            let at = bulk::take(
                &self.guest.files,
                &mut self.lease,
                rest.handle.fd(),
                rest.at,
                known,
                |bytes, at| target.write_all_at(bytes, at),
            )?;
            self.copied += at - rest.at;
            rest.at = at;
        }
        let (mut asked, mut ended) = (rest.at, false);
        self.buffer.resize(MAX_CHUNK, 0);
        loop {
            while !ended && asked < until && self.lease.owed() < WINDOW {
                let len = (until - asked).min(MAX_CHUNK as u64);
                self.lease.send(&Request::Read(rest.handle.fd(), Some(asked), len as u32))?;
                asked += len;
            }
            if self.lease.owed() == 0 {
                return Ok(());
            }
            let n = self.lease.answer_into(&mut self.buffer)?;
            // A short read is the end as of then; what was asked for behind it is not wanted.
            if !ended {
                let wanted = (until - rest.at).min(MAX_CHUNK as u64);
                if n as u64 > wanted {
                    return Err(self.lease.malformed());
                }
                rest.target.file().write_all_at(&self.buffer[..n], rest.at)?;
                rest.at += n as u64;
                self.copied += n as u64;
                ended = (n as u64) < wanted;
            }
        }
    }

    /// Copies what is not a hole.
    fn islands(&mut self, rest: &mut Rest) -> io::Result<()> {
        let size = rest.stat.size;
        rest.target.file().set_len(size)?;
        while rest.at < size {
            let from = match self.seek(rest, SEEK_DATA) {
                Err(e) if e.raw_os_error() == Some(ENXIO) => break,
                found => found?,
            };
            let from = from.clamp(rest.at, size);
            self.copied += from - rest.at;
            rest.at = from;
            let until = self.seek(rest, SEEK_HOLE)?.min(size);
            let start = rest.at;
            self.stream(rest, until)?;
            if rest.at == start {
                break;
            }
        }
        self.copied += size.saturating_sub(rest.at);
        Ok(())
    }

    fn seek(&mut self, rest: &Rest, whence: u32) -> io::Result<u64> {
        let answer = self.lease.call(&Request::Seek(rest.handle.fd(), rest.at as i64, whence))?;
        number(&mut self.lease, &answer)
    }
}

/// Whether a regular file has holes.
fn is_sparse(stat: &Stat) -> bool {
    stat.mode & S_IFMT == S_IFREG && stat.blocks.saturating_mul(512) < stat.size
}
