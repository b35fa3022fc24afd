//! From the host into a guest.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::SeekFrom;

use super::check_depth;
use crate::agent::files::{Handle, Lease};
use crate::agent::protocol::files::{KEEP_MODE, MAX_CHUNK, Removal, Request, Target, Time};
use crate::fs::bulk;
use crate::fs::error::Context;
use crate::fs::guest::{Guest, O_CREAT_TRUNC, opened};

const O_WRONLY: i32 = 1;
const O_NOFOLLOW: i32 = 0o400_000;
/// Files up to this go whole in one request.
const SMALL: u64 = 64 * 1024;
/// Requests and bytes that are under way.
const WINDOW: usize = 64;
const WINDOW_BYTES: usize = 1024 * 1024;

pub(in crate::fs) fn copy_in(guest: &Arc<Guest>, from: &Path, to: &Path) -> io::Result<u64> {
    let metadata = std::fs::metadata(from).at("read", from)?;
    let mut sender = Sender {
        guest,
        lease: guest.files.lease()?,
        under_way: VecDeque::new(),
        bytes_under_way: 0,
        buffer: Vec::new(),
        copied: 0,
    };
    if metadata.is_dir() {
        sender.tree(from, &metadata, to, 0)?;
    } else {
        sender.file(from, &metadata, to, false)?;
    }
    sender.settle(0, 0)?;
    Ok(sender.copied)
}

/// Whether an error of a request counts.
#[derive(Clone, Copy, PartialEq)]
enum Failing {
    Counts,
    /// It only makes room for what comes next, which will say.
    Allowed,
}

struct Sender<'g> {
    guest: &'g Arc<Guest>,
    lease: Lease<'g>,
    /// What the answers will be about.
    under_way: VecDeque<(PathBuf, usize, Failing)>,
    bytes_under_way: usize,
    buffer: Vec<u8>,
    copied: u64,
}

impl Sender<'_> {
    fn send(&mut self, request: &Request<'_>, path: &Path, failing: Failing) -> io::Result<()> {
        let bytes = request.data().len();
        self.lease.send(request).at("copy to", path)?;
        self.under_way.push_back((path.to_owned(), bytes, failing));
        self.bytes_under_way += bytes;
        self.settle(WINDOW, WINDOW_BYTES)
    }

    /// Takes answers until no more than this is under way.
    fn settle(&mut self, requests: usize, bytes: usize) -> io::Result<()> {
        while self.under_way.len() > requests || (self.bytes_under_way > bytes && !self.under_way.is_empty())
        {
            let Some((path, bytes, failing)) = self.under_way.pop_front() else { break };
            self.bytes_under_way -= bytes;
            let answer = self.lease.answer();
            if failing == Failing::Counts {
                answer.at("copy to", &path)?;
            }
        }
        Ok(())
    }

    fn tree(&mut self, from: &Path, metadata: &std::fs::Metadata, to: &Path, depth: usize) -> io::Result<()> {
        check_depth(depth).at("copy", from)?;
        let name = self.guest.path(to).at("copy to", to)?;
        if depth > 0 {
            // What is in the way, unless that is a directory.
            self.send(&Request::Remove(&name, Removal::File), to, Failing::Allowed)?;
        }
        self.send(&Request::MakeDir(&name, 0o700, false), to, Failing::Allowed)?;
        for entry in std::fs::read_dir(from).at("read", from)? {
            let entry = entry.at("read", from)?;
            let (path, target) = (entry.path(), to.join(entry.file_name()));
            let metadata = entry.metadata().at("read", &path)?;
            if metadata.is_symlink() {
                self.link(&path, &target)?;
            } else if metadata.is_dir() {
                self.tree(&path, &metadata, &target, depth + 1)?;
            } else if metadata.is_file() {
                self.file(&path, &metadata, &target, true)?;
            }
        }
        // When all is in it: else its time would not stay, nor might we write there.
        let target = Target::Path(&name);
        self.send(&Request::Chmod(target, metadata.mode() & 0o7777), to, Failing::Counts)?;
        self.send(&Request::Times(target, Time::OMIT, modified(metadata)), to, Failing::Counts)
    }

    fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let leads = std::fs::read_link(from).at("read link", from)?;
        let name = self.guest.path(to).at("copy to", to)?;
        let leads = CString::new(leads.into_os_string().into_encoded_bytes()).map_err(io::Error::other)?;
        self.send(&Request::Remove(&name, Removal::File), to, Failing::Allowed)?;
        self.send(&Request::Symlink(&leads, &name), to, Failing::Counts)
    }

    /// In a tree, what is in the way is replaced and no symbolic link is followed.
    fn file(
        &mut self,
        from: &Path,
        metadata: &std::fs::Metadata,
        to: &Path,
        in_tree: bool,
    ) -> io::Result<()> {
        let file = File::open(from).at("read", from)?;
        let name = self.guest.path(to).at("copy to", to)?;
        let mode = metadata.mode() & 0o7777 | KEEP_MODE;
        let flags = O_CREAT_TRUNC | if in_tree { O_NOFOLLOW } else { 0 };
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(MAX_CHUNK, 0);
        let length = metadata.len();
        if length <= SMALL {
            // One byte more tells that it has grown since.
            let n = read_full(&file, &mut buffer[..SMALL as usize + 1], 0).at("read", from)?;
            if n as u64 <= SMALL {
                if in_tree {
                    self.send(&Request::Remove(&name, Removal::File), to, Failing::Allowed)?;
                }
                let request = Request::WriteFile(&name, flags, mode, modified(metadata), &buffer[..n]);
                self.send(&request, to, Failing::Counts)?;
                self.copied += n as u64;
                self.buffer = buffer;
                return Ok(());
            }
        }
        self.settle(0, 0)?;
        if in_tree {
            self.send(&Request::Remove(&name, Removal::File), to, Failing::Allowed)?;
            self.settle(0, 0)?;
        }
        let open = Request::Open(&name, flags | O_WRONLY, mode & 0o7777);
        let opened =
            self.lease.call(&open).and_then(|answer| opened(&mut self.lease, &answer)).at("copy to", to)?;
        let handle = Handle::adopt(&self.guest.files, &self.lease, opened.0);
        self.contents(&file, from, metadata, &handle, to, &mut buffer)?;
        let target = Target::File(handle.fd());
        self.send(&Request::Chmod(target, mode & 0o7777), to, Failing::Counts)?;
        self.send(&Request::Times(target, Time::OMIT, modified(metadata)), to, Failing::Counts)?;
        self.settle(0, 0)?;
        self.buffer = buffer;
        Ok(())
    }

    /// Sends what a file has, without its holes.
    fn contents(
        &mut self,
        file: &File,
        from: &Path,
        metadata: &std::fs::Metadata,
        handle: &Handle,
        to: &Path,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        let sparse = super::is_sparse(metadata);
        let (mut at, mut whole) = (0, true);
        loop {
            let mut until = u64::MAX;
            if sparse {
                match rustix::fs::seek(file, SeekFrom::Data(at)) {
                    Ok(data) => {
                        self.copied += data - at;
                        at = data;
                        let hole = rustix::fs::seek(file, SeekFrom::Hole(at));
                        until = hole.map_err(io::Error::from).at("read", from)?;
                    }
                    // Nothing but a hole is left.
                    Err(rustix::io::Errno::NXIO) => break,
                    Err(e) => return Err(e.into()).at("read", from),
                }
            }
            if whole && metadata.is_file() && until.min(metadata.len()).saturating_sub(at) > SMALL {
                self.settle(0, 0)?;
                let start = at;
                at = bulk::give(&self.guest.files, &mut self.lease, handle.fd(), at, |buffer, at| {
                    buffer.truncate(usize::try_from(until - at).unwrap_or(usize::MAX));
                    let n = read_full(file, buffer, at).at("read", from)?;
                    buffer.truncate(n);
                    Ok(())
                })?;
                self.copied += at - start;
                // Where it cannot be it is the same for all pieces.
                whole = at > start;
            }
            while at < until {
                let room = buffer.len().min(usize::try_from(until - at).unwrap_or(usize::MAX));
                let n = read_full(file, &mut buffer[..room], at).at("read", from)?;
                if n > 0 {
                    self.send(&Request::WriteAll(handle.fd(), Some(at), &buffer[..n]), to, Failing::Counts)?;
                }
                at += n as u64;
                self.copied += n as u64;
                if n < room {
                    until = at;
                }
            }
            if !sparse {
                return Ok(());
            }
        }
        let end = metadata.len().max(at);
        self.copied += end - at;
        self.send(&Request::Truncate(handle.fd(), end), to, Failing::Counts)
    }
}

/// Reads until the buffer is full or the file ends.
fn read_full(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

fn modified(metadata: &std::fs::Metadata) -> Time {
    Time { secs: metadata.mtime(), nanos: metadata.mtime_nsec() }
}
