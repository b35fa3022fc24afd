//! A FUSE server for one client: requests in, answers out.
//!
//! A session is *fresh* until INIT and after DESTROY, then *mounted*. A fresh session answers nothing but INIT. What
//! the client holds when it goes is given back to the file system.
//!
//! Every request ends in an answer or an errno, at once: nothing is put off, so nothing waits for ever. Locks of files
//! are not asked for here; the client's kernel keeps them, because it is the only one that sees this file system.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::buffers::{self, Source};
use super::listing::Listing;
use super::offers::{self, Offers, Sink};
use super::spec::*;
use super::wire::{Args, Body, Header};
use crate::memory::GuestRam;
use crate::vfs::{
    Entry, Errno, FileSystem, Handle, NodeId, Opened, ReadSink, Result, Seek, SetAttr, SetTime, Time, open,
};
use crate::virtio::fs::ledger::Ledger;
use crate::virtio::queue::Chain;

/// Most bytes of data in one READ or WRITE.
const MAX_IO: u32 = 1 << 20;
/// Most bytes that are copied from an offer in one request.
const MAX_COPY: usize = 2 << 20;
/// Most bytes of a request without file data: two names, or a value of an extended attribute.
pub(super) const MAX_ARGS: usize = (64 << 10) + 8192;
/// Nodes in one BATCH_FORGET; the client's kernel sends far fewer.
const MAX_FORGETS: u32 = 1 << 16;
const EPROTO: i32 = 71;

/// What a client may keep of a file system without asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// Everything: nobody else changes the file system.
    Private,
    /// Attributes as the file system says, and data until it changes: others change it too.
    Shared,
}

/// How long a private file system's attributes and absent names stay true.
const FOREVER: Duration = Duration::from_secs(1 << 30);

/// A file system and what the client holds of it.
pub(super) struct Session {
    pub(super) fs: Arc<dyn FileSystem>,
    pub(super) caching: Caching,
    /// The minor version agreed on; 0 while fresh.
    pub(super) minor: AtomicU32,
    pub(super) ledger: Mutex<Ledger>,
    /// What the host gives the client besides.
    pub(super) offers: Arc<Offers>,
}

/// What to answer.
pub(super) enum Answer {
    /// Nothing: FORGET.
    None,
    /// This body.
    Body(Body),
    /// So many bytes, which are in the client's buffer already.
    Written(usize),
}

/// One request with its buffers.
pub(super) struct Request<'a> {
    pub(super) header: Header,
    /// What follows the header; of WRITE only its fixed part.
    pub(super) args: Args<'a>,
    pub(super) ram: &'a GuestRam,
    pub(super) chain: &'a Chain,
    /// Bytes that the answer's body may have.
    pub(super) room: usize,
}

fn ok() -> Result<Answer> {
    Ok(Answer::Body(Body::default()))
}

fn body(fill: impl FnOnce(&mut Body)) -> Result<Answer> {
    let mut body = Body::default();
    fill(&mut body);
    Ok(Answer::Body(body))
}

impl Session {
    pub(super) fn new(fs: Arc<dyn FileSystem>, caching: Caching) -> Self {
        Self { fs, caching, minor: AtomicU32::new(0), ledger: Mutex::default(), offers: Arc::default() }
    }

    pub(super) fn file_system(&self) -> &Arc<dyn FileSystem> {
        &self.fs
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A session for a clone of the client, which goes on from here by itself.
    pub(super) fn fork(&self) -> Result<Self> {
        // The ledger last: what the client takes meanwhile it does not have in the clone. It stands still anyway.
        let fs = self.fs.fork()?;
        let minor = AtomicU32::new(self.minor.load(Ordering::SeqCst));
        let ledger = Mutex::new(self.ledger().clone());
        Ok(Self { fs, caching: self.caching, minor, ledger, offers: Arc::default() })
    }

    /// The client is gone: takes back all it held.
    pub(super) fn end(&self) {
        self.minor.store(0, Ordering::SeqCst);
        let mut held = std::mem::take(&mut *self.ledger());
        held.clear(&*self.fs);
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        self.ledger().len()
    }

    /// Carries a request out.
    pub(super) fn handle(&self, r: &Request<'_>) -> Result<Answer> {
        if r.header.opcode == op::INIT {
            return self.init(r.args);
        }
        if self.minor.load(Ordering::SeqCst) == 0 {
            return Err(Errno::EIO);
        }
        let (fs, caller, node, mut a) = (&*self.fs, &r.header.caller, r.header.node, r.args);
        if let Some(answer) = self.offered(r) {
            return answer;
        }
        match r.header.opcode {
            op::LOOKUP => match fs.lookup(caller, node, a.name()?) {
                Err(Errno::ENOENT) if self.caching == Caching::Private => body(|b| _ = b.no_entry(FOREVER)),
                found => self.entry(found?),
            },
            op::FORGET => {
                let count = a.u64()?;
                self.forget(node, count);
                Ok(Answer::None)
            }
            op::BATCH_FORGET => {
                let (count, _) = (a.u32()?, a.u32()?);
                for _ in 0..count.min(MAX_FORGETS) {
                    let (Ok(node), Ok(count)) = (a.u64(), a.u64()) else { break };
                    self.forget(NodeId(node), count);
                }
                Ok(Answer::None)
            }
            op::GETATTR => {
                let (flags, _, handle) = (a.u32()?, a.u32()?, a.u64()?);
                let handle = (flags & GETATTR_FH != 0).then_some(Handle(handle));
                let attr = fs.getattr(node, handle)?;
                body(|b| _ = b.attr_out(&attr, self.attr_ttl()))
            }
            op::SETATTR => {
                let (handle, set) = set_attr(a)?;
                let attr = fs.setattr(caller, node, handle, &set)?;
                body(|b| _ = b.attr_out(&attr, self.attr_ttl()))
            }
            op::READLINK => {
                let target = fs.readlink(node)?;
                body(|b| b.0 = target)
            }
            op::SYMLINK => {
                let (name, target) = (a.name()?, a.string()?);
                self.entry(fs.symlink(caller, node, name, target)?)
            }
            op::MKNOD => {
                let (mode, rdev, _umask, _) = (a.u32()?, a.u32()?, a.u32()?, a.u32()?);
                self.entry(fs.mknod(caller, node, a.name()?, mode, rdev)?)
            }
            op::MKDIR => {
                let (mode, _umask) = (a.u32()?, a.u32()?);
                self.entry(fs.mkdir(caller, node, a.name()?, mode)?)
            }
            op::UNLINK => fs.unlink(caller, node, a.name()?).and_then(|()| ok()),
            op::RMDIR => fs.rmdir(caller, node, a.name()?).and_then(|()| ok()),
            op::RENAME => {
                let (to, from, name) = (a.u64()?, a.name()?, a.name()?);
                fs.rename(caller, node, from, NodeId(to), name, 0).and_then(|()| ok())
            }
            op::RENAME2 => {
                let (to, flags, _) = (a.u64()?, a.u32()?, a.u32()?);
                let (from, name) = (a.name()?, a.name()?);
                fs.rename(caller, node, from, NodeId(to), name, flags).and_then(|()| ok())
            }
            op::LINK => {
                let old = NodeId(a.u64()?);
                self.entry(fs.link(caller, old, node, a.name()?)?)
            }
            op::OPEN => {
                let (flags, more) = (a.u32()?, a.u32()?);
                let opened = fs.open(caller, node, flags, more & OPEN_KILL_SUIDGID != 0)?;
                self.ledger().opened(node, opened.handle, false);
                body(|b| self.open_out(b, &opened, false))
            }
            op::CREATE => {
                let (flags, mode, _umask, _) = (a.u32()?, a.u32()?, a.u32()?, a.u32()?);
                let (entry, opened) = fs.create(caller, node, a.name()?, mode, flags)?;
                let mut ledger = self.ledger();
                ledger.took(entry.node);
                ledger.opened(entry.node, opened.handle, false);
                body(|b| self.open_out(b.entry(&entry), &opened, false))
            }
            op::READ => self.read(r),
            op::WRITE => self.write(r),
            op::STATFS => {
                let numbers = fs.statfs(node)?;
                body(|b| _ = b.statfs(&numbers))
            }
            op::RELEASE => self.close(node, Handle(a.u64()?), false),
            op::RELEASEDIR => self.close(node, Handle(a.u64()?), true),
            op::FLUSH => fs.flush(node, self.file(node, a.u64()?)?).and_then(|()| ok()),
            op::FSYNC | op::FSYNCDIR => {
                let (handle, flags) = (a.u64()?, a.u32()?);
                let handle = self.handle_of(node, handle, r.header.opcode == op::FSYNCDIR)?;
                let data = flags & FSYNC_FDATASYNC != 0;
                match r.header.opcode {
                    op::FSYNC => fs.fsync(node, handle, data)?,
                    _ => fs.fsyncdir(node, handle, data)?,
                }
                ok()
            }
            op::SETXATTR => {
                let (size, flags) = (a.u32()?, a.u32()?);
                let name = a.string()?;
                let value = a.bytes(size as usize)?;
                fs.setxattr(caller, node, name, value, flags).and_then(|()| ok())
            }
            op::GETXATTR => {
                let (size, _) = (a.u32()?, a.u32()?);
                sized(size, fs.getxattr(node, a.string()?)?)
            }
            op::LISTXATTR => sized(a.u32()?, fs.listxattr(node)?),
            op::REMOVEXATTR => fs.removexattr(caller, node, a.string()?).and_then(|()| ok()),
            op::OPENDIR => {
                let opened = fs.opendir(caller, node)?;
                self.ledger().opened(node, opened.handle, true);
                body(|b| self.open_out(b, &opened, true))
            }
            op::READDIR | op::READDIRPLUS => self.list(r),
            op::FALLOCATE => {
                let (handle, offset, length, mode) =
                    (self.file(node, a.u64()?)?, a.u64()?, a.u64()?, a.u32()?);
                fs.fallocate(node, handle, offset, length, mode).and_then(|()| ok())
            }
            op::LSEEK => {
                let (handle, offset, whence) = (self.file(node, a.u64()?)?, a.u64()?, a.u32()?);
                let seek = match whence {
                    SEEK_DATA => Seek::Data(offset),
                    SEEK_HOLE => Seek::Hole(offset),
                    _ => return Err(Errno::EINVAL),
                };
                let found = fs.lseek(node, handle, seek)?;
                body(|b| _ = b.u64(found))
            }
            op::COPY_FILE_RANGE => {
                let (handle, offset) = (self.file(node, a.u64()?)?, a.u64()?);
                let to = NodeId(a.u64()?);
                let (to_handle, to_offset) = (self.file(to, a.u64()?)?, a.u64()?);
                // The answer has 32 bits for the length.
                let length = a.u64()?.min(1 << 30);
                let n = fs.copy_file_range(node, handle, offset, to, to_handle, to_offset, length)?;
                body(|b| _ = b.u32(n as u32).u32(0))
            }
            op::SYNCFS => ok(),
            op::DESTROY => {
                self.end();
                ok()
            }
            // The request it means has been answered by now.
            op::INTERRUPT => Ok(Answer::None),
            other => {
                tracing::trace!(opcode = other, "file server: request not known");
                Err(Errno::ENOSYS)
            }
        }
    }

    /// The answer to what is about an offer: it is found, opened, copied from or to, or read, and nothing else.
    fn offered(&self, r: &Request<'_>) -> Option<Result<Answer>> {
        let (node, mut a) = (r.header.node, r.args);
        match r.header.opcode {
            op::LOOKUP => {
                let entry = self.offers.lookup(node, a.string().ok()?)?;
                Some(body(|b| _ = b.entry(&entry)))
            }
            op::GETATTR => {
                let attr = self.offers.attr(node)?;
                Some(body(|b| _ = b.attr_out(&attr, Duration::ZERO)))
            }
            op::OPEN => {
                self.offers.attr(node)?;
                Some(body(|b| _ = b.u64(0).u32(FOPEN_DIRECT_IO | FOPEN_NOFLUSH).u32(0)))
            }
            op::READ => Some(self.offers.source(node).map(|bytes| give(r, &bytes))?),
            op::COPY_FILE_RANGE => {
                let to = NodeId(Args(a.0.get(16..)?).u64().ok()?);
                let copied = match (self.offers.source(node), self.offers.sink(to)) {
                    (Some(bytes), None) => self.copy_from(&bytes, a),
                    (None, Some(sink)) => self.copy_to(node, &sink, a),
                    (None, None) => return None,
                    (Some(_), Some(_)) => Err(Errno::EINVAL),
                };
                Some(copied.and_then(|n| body(|b| _ = b.u32(n as u32).u32(0))))
            }
            _ => None,
        }
    }

    fn copy_from(&self, bytes: &[u8], mut a: Args<'_>) -> Result<usize> {
        let (_, offset, to) = (a.u64()?, a.u64()?, NodeId(a.u64()?));
        let (handle, to_offset, length) = (self.file(to, a.u64()?)?, a.u64()?, a.u64()?);
        let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
        // Not all at once: the client's processor stands still meanwhile.
        let length = rest.len().min(usize::try_from(length).unwrap_or(usize::MAX)).min(MAX_COPY);
        let mut done = 0;
        for part in rest.get(..length).unwrap_or_default().chunks(MAX_IO as usize) {
            let at = to_offset.checked_add(done as u64).ok_or(Errno::EFBIG)?;
            match self.fs.write(to, handle, at, part.len() as u32, &mut &*part, false) {
                Ok(n) => done += n.min(part.len()),
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// What is copied to an offer goes behind what it has, and not beyond what it takes.
    fn copy_to(&self, node: NodeId, sink: &Mutex<Sink>, mut a: Args<'_>) -> Result<usize> {
        let (handle, offset) = (self.file(node, a.u64()?)?, a.u64()?);
        let (_, _, to_offset, length) = (a.u64()?, a.u64()?, a.u64()?, a.u64()?);
        let mut sink = offers::lock(sink);
        let start = sink.bytes.len();
        if to_offset != start as u64 {
            return Err(Errno::EINVAL);
        }
        let room = sink.most.saturating_sub(start).min(MAX_COPY);
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(room);
        let mut done = 0;
        while done < length {
            let part = (length - done).min(MAX_IO as usize);
            let at = offset.checked_add(done as u64).ok_or(Errno::EINVAL)?;
            match self.fs.read(node, handle, at, part as u32, &mut sink.bytes) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if done == 0 => return Err(e),
                Err(_) => break,
            }
            // Whatever a file system says, this is what there is.
            let read = sink.bytes.len().saturating_sub(start).min(length);
            if std::mem::replace(&mut done, read) == read {
                break;
            }
        }
        sink.bytes.truncate(start + done);
        Ok(done)
    }

    fn init(&self, mut a: Args<'_>) -> Result<Answer> {
        let (major, minor, readahead, low) = (a.u32()?, a.u32()?, a.u32()?, a.u32()?);
        if major > MAJOR {
            // A newer client tries again with our version.
            return body(|b| _ = b.u32(MAJOR).u32(MINOR).zeros(56));
        }
        if major < MAJOR || minor < OLDEST_MINOR {
            tracing::warn!(major, minor, "file server: the client's FUSE version is too old");
            return Err(Errno::from_raw(EPROTO));
        }
        self.end();
        let mut offered = u64::from(low);
        if offered & init::INIT_EXT != 0 {
            offered |= u64::from(a.u32()?) << 32;
        }
        let mut wanted = init::ASYNC_READ
            | init::ATOMIC_O_TRUNC
            | init::BIG_WRITES
            | init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::ASYNC_DIO
            | init::PARALLEL_DIROPS
            | init::POSIX_ACL
            | init::MAX_PAGES
            | init::HANDLE_KILLPRIV_V2
            | init::INIT_EXT;
        wanted |= match self.caching {
            Caching::Private => init::CACHE_SYMLINKS,
            Caching::Shared => init::AUTO_INVAL_DATA,
        };
        let flags = wanted & offered;
        tracing::debug!(minor, flags = format_args!("{flags:#x}"), "file server: mounted");
        self.minor.store(minor.min(MINOR), Ordering::SeqCst);
        body(|b| {
            b.u32(MAJOR).u32(MINOR).u32(readahead).u32(flags as u32);
            // Requests under way in the background, and the number from which the client holds back.
            b.u16(64).u16(48).u32(MAX_IO).u32(1).u16((MAX_IO / 4096) as u16).u16(0);
            b.u32((flags >> 32) as u32).zeros(28);
        })
    }

    /// The handle, if the client has `node` open as that.
    fn handle_of(&self, node: NodeId, handle: u64, dir: bool) -> Result<Handle> {
        match self.ledger().has(node, Handle(handle), dir) {
            true => Ok(Handle(handle)),
            false => Err(Errno::EBADF),
        }
    }

    fn file(&self, node: NodeId, handle: u64) -> Result<Handle> {
        self.handle_of(node, handle, false)
    }

    fn attr_ttl(&self) -> Duration {
        match self.caching {
            Caching::Private => FOREVER,
            Caching::Shared => Duration::ZERO,
        }
    }

    fn entry(&self, entry: Entry) -> Result<Answer> {
        self.ledger().took(entry.node);
        body(|b| _ = b.entry(&entry))
    }

    fn forget(&self, node: NodeId, count: u64) {
        let count = self.ledger().gave(node, count);
        if count > 0 {
            self.fs.forget(node, count);
        }
    }

    fn open_out(&self, b: &mut Body, opened: &Opened, dir: bool) {
        let keep = opened.keep_cache || self.caching == Caching::Private;
        let mut flags = if keep { FOPEN_KEEP_CACHE } else { 0 };
        flags |= match (dir, self.caching) {
            (true, Caching::Private) => FOPEN_CACHE_DIR,
            (false, Caching::Private) => FOPEN_NOFLUSH,
            _ => 0,
        };
        b.u64(opened.handle.0).u32(flags).u32(0);
    }

    fn close(&self, node: NodeId, handle: Handle, dir: bool) -> Result<Answer> {
        // What the client does not have, it cannot close for others.
        if self.ledger().closed(node, handle, dir) {
            if dir { self.fs.releasedir(node, handle) } else { self.fs.release(node, handle) }
        }
        ok()
    }

    fn read(&self, r: &Request<'_>) -> Result<Answer> {
        let mut a = r.args;
        let (handle, offset, size) = (self.file(r.header.node, a.u64()?)?, a.u64()?, a.u32()?);
        let size = size.min(MAX_IO).min(u32::try_from(r.room).unwrap_or(u32::MAX));
        let mut sink =
            buffers::Sink { ram: r.ram, chain: r.chain, at: OUT_HEADER, end: OUT_HEADER + size as usize };
        let n = self.fs.read(r.header.node, handle, offset, size, &mut sink)?;
        Ok(Answer::Written(n.min(size as usize)))
    }

    fn write(&self, r: &Request<'_>) -> Result<Answer> {
        let mut a = r.args;
        let (handle, offset, size, flags) =
            (self.file(r.header.node, a.u64()?)?, a.u64()?, a.u32()?, a.u32()?);
        let at = IN_HEADER + WRITE_IN;
        if size > MAX_IO || (size as usize) > r.header.len.saturating_sub(at) {
            return Err(Errno::EINVAL);
        }
        let mut source = Source { ram: r.ram, chain: r.chain, at, end: at + size as usize };
        let kill = flags & WRITE_KILL_SUIDGID != 0;
        let (_lock_owner, opened) = (a.u64()?, a.u32()?);
        // Pages that were mapped and changed go back to where they are, whatever handle they come by.
        let append = opened & open::APPEND != 0 && flags & WRITE_CACHE == 0;
        let write = if append { FileSystem::append } else { FileSystem::write };
        let n = write(&*self.fs, r.header.node, handle, offset, size, &mut source, kill)?;
        body(|b| _ = b.u32(n as u32).u32(0))
    }

    fn list(&self, r: &Request<'_>) -> Result<Answer> {
        let mut a = r.args;
        let (handle, cookie, size) = (self.handle_of(r.header.node, a.u64()?, true)?, a.u64()?, a.u32()?);
        let size = (size.min(MAX_IO) as usize).min(r.room);
        let plus = r.header.opcode == op::READDIRPLUS;
        let mut listing = Listing::new(size, plus);
        let (fs, node) = (&*self.fs, r.header.node);
        let result = if plus {
            fs.readdirplus(&r.header.caller, node, handle, cookie, &mut listing)
        } else {
            fs.readdir(node, handle, cookie, &mut listing)
        };
        {
            let mut ledger = self.ledger();
            listing.taken.iter().for_each(|&node| ledger.took(node));
        }
        // Entries that were taken must reach the client, or their counts would never come back.
        if listing.body.0.is_empty() {
            result?;
        }
        Ok(Answer::Body(listing.body))
    }
}

/// Bytes of `fuse_write_in`.
pub(super) const WRITE_IN: usize = 40;

/// Answers a READ of an offer.
fn give(r: &Request<'_>, bytes: &[u8]) -> Result<Answer> {
    let mut a = r.args;
    let (_, offset, size) = (a.u64()?, a.u64()?, a.u32()?);
    let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
    let bytes = rest.get(..rest.len().min(size.min(MAX_IO) as usize).min(r.room)).unwrap_or_default();
    let end = OUT_HEADER + bytes.len();
    buffers::Sink { ram: r.ram, chain: r.chain, at: OUT_HEADER, end }.data(bytes)?;
    Ok(Answer::Written(bytes.len()))
}

/// An attribute's value, or its length if `size` is 0.
fn sized(size: u32, value: Vec<u8>) -> Result<Answer> {
    match size as usize {
        0 => body(|b| _ = b.u32(value.len() as u32).u32(0)),
        room if value.len() > room => Err(Errno::ERANGE),
        _ => body(|b| b.0 = value),
    }
}

fn set_attr(mut a: Args<'_>) -> Result<(Option<Handle>, SetAttr)> {
    let (valid, _, handle, size, _lock_owner) = (a.u32()?, a.u32()?, a.u64()?, a.u64()?, a.u64()?);
    let (atime, mtime, ctime) = (a.u64()?, a.u64()?, a.u64()?);
    let (atime_ns, mtime_ns, ctime_ns) = (a.u32()?, a.u32()?, a.u32()?);
    let (mode, _, uid, gid) = (a.u32()?, a.u32()?, a.u32()?, a.u32()?);
    let has = |bit| valid & bit != 0;
    let time = |set, now, secs, nanos| -> Result<Option<SetTime>> {
        Ok(match (has(set), has(now)) {
            (false, _) => None,
            (true, true) => Some(SetTime::Now),
            (true, false) => Some(SetTime::At(Args::time(secs, nanos)?)),
        })
    };
    let set = SetAttr {
        mode: has(fattr::MODE).then_some(mode),
        uid: has(fattr::UID).then_some(uid),
        gid: has(fattr::GID).then_some(gid),
        size: has(fattr::SIZE).then_some(size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, atime, atime_ns)?,
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, mtime, mtime_ns)?,
        ctime: if has(fattr::CTIME) { Some(Args::time(ctime, ctime_ns)?) } else { None::<Time> },
        kill_suidgid: has(fattr::KILL_SUIDGID),
    };
    Ok((has(fattr::FH).then_some(Handle(handle)), set))
}
