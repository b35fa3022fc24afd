//! One worker: takes requests from its connection and answers them, until the connection ends or carries nonsense.

use alloc::vec::Vec;

use super::{ops, tree};
use crate::log;
use crate::protocol::Error;
use crate::protocol::files::{
    ANSWER_HEADER, REQUEST_HEADER, Removal, Request, Target, answer_header, frame_length,
};
use crate::sys::paths::{self, EBADF, ECANCELED, EMFILE};
use crate::sys::{Errno, Fd, Result};

/// What is read at once where no long request is known to come.
const SMALL: usize = 8 * 1024;
/// Answers are sent together up to this.
const FLUSH: usize = 32 * 1024;

/// What a request may append to as its answer's payload.
pub(super) type Answer = Vec<u8>;

/// Serves the connection to its end.
pub(super) fn serve(socket: &Fd, own: i32) {
    let mut worker = Worker { socket, input: Input::default(), out: Vec::new(), files: Files { own }, broken: false };
    if let Err(e) = worker.run() {
        log(format_args!("dropping the host's file requests: {e}"));
    }
}

/// What may be done with numbers of descriptors that the host says.
#[derive(Clone, Copy)]
pub(super) struct Files {
    own: i32,
}

impl Files {
    /// Refuses the standard three and our own.
    pub(super) fn check(self, fd: i32) -> Result<i32> {
        if (3..self.own).contains(&fd) { Ok(fd) } else { Err(EBADF) }
    }

    /// Gives a descriptor to the host.
    pub(super) fn give(self, fd: Fd) -> Result<i32> {
        let raw = self.check(fd.raw()).map_err(|_| EMFILE)?;
        core::mem::forget(fd);
        Ok(raw)
    }
}

struct Worker<'s> {
    socket: &'s Fd,
    input: Input,
    out: Vec<u8>,
    files: Files,
    /// The last request was a [`Request::WriteAll`] that failed, or was cancelled for that.
    broken: bool,
}

impl Worker<'_> {
    fn run(&mut self) -> core::result::Result<(), Error> {
        loop {
            let mut input = core::mem::take(&mut self.input);
            while let Some((id, request, len)) = Request::decode(input.unread())? {
                self.answer(id, &request);
                input.start += len;
                if self.out.len() >= FLUSH && self.flush().is_err() {
                    return Ok(());
                }
            }
            self.input = input;
            if self.flush().is_err() || !self.input.fill(self.socket)? {
                return Ok(());
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        let mut sent = 0;
        while let Some(rest) = self.out.get(sent..).filter(|rest| !rest.is_empty()) {
            sent += self.socket.write(rest)?;
        }
        self.out.clear();
        Ok(())
    }

    fn answer(&mut self, id: u32, request: &Request<'_>) {
        let start = self.out.len();
        self.out.extend_from_slice(&[0; ANSWER_HEADER]);
        let body = start + ANSWER_HEADER;
        let done = match request {
            Request::WriteAll(..) if self.broken => Err(ECANCELED),
            _ => perform(request, self.files, &mut self.out),
        };
        self.broken = done.is_err() && matches!(request, Request::WriteAll(..));
        let errno = match done {
            Ok(()) => 0,
            Err(Errno(errno)) => {
                self.out.truncate(body);
                errno
            }
        };
        let header = answer_header(self.out.len() - body, id, errno);
        if let Some(place) = self.out.get_mut(start..body) {
            place.copy_from_slice(&header);
        }
    }
}

fn perform(request: &Request<'_>, files: Files, out: &mut Answer) -> Result<()> {
    match *request {
        Request::Open(path, flags, mode) => {
            let fd = paths::open_at(paths::HERE, path, flags, mode)?;
            let mode = paths::stat(Target::File(fd.raw()))?.mode;
            put_i32(files.give(fd)?, out);
            out.extend_from_slice(&mode.to_le_bytes());
        }
        Request::Close(fd) => paths::close(files.check(fd)?)?,
        Request::Read(fd, at, len) => drop(ops::read_onto(files.check(fd)?, at, len as usize, out)?),
        Request::Write(fd, at, bytes) => {
            put_u32(paths::write_at(files.check(fd)?, bytes, at)? as u32, out);
        }
        Request::WriteAll(fd, at, bytes) => {
            ops::write_all(files.check(fd)?, bytes, at)?;
            put_u32(bytes.len() as u32, out);
        }
        Request::Seek(fd, offset, whence) => {
            put_u64(paths::seek(files.check(fd)?, offset, whence)?, out);
        }
        Request::Stat(target) => paths::stat(files.target(target)?)?.encode(out),
        Request::Truncate(fd, len) => paths::truncate(files.check(fd)?, len)?,
        Request::Sync(fd, data) => paths::sync_file(files.check(fd)?, data)?,
        Request::Lock(fd, how) => paths::lock(files.check(fd)?, how)?,
        Request::Duplicate(fd) => {
            put_i32(files.give(paths::duplicate_from(files.check(fd)?, 3)?)?, out);
        }
        Request::Chmod(target, mode) => paths::set_mode(files.target(target)?, mode)?,
        Request::Chown(target, uid, gid) => paths::set_owner(files.target(target)?, uid, gid)?,
        Request::Times(target, atime, mtime) => paths::set_times(files.target(target)?, atime, mtime)?,
        Request::ReadFile(path, flags, len) => ops::read_file(path, flags, len as usize, files, out)?,
        Request::WriteFile(path, flags, mode, mtime, bytes) => {
            ops::write_file(path, flags, mode, mtime, bytes)?;
        }
        Request::MakeDir(path, mode, parents) => ops::make_dir(path, mode, parents)?,
        Request::Remove(path, Removal::File) => paths::unlink_at(paths::HERE, path)?,
        Request::Remove(path, Removal::Directory) => paths::remove_dir_at(paths::HERE, path)?,
        Request::Remove(path, Removal::Tree) => tree::remove(path)?,
        Request::OpenDir(path) => ops::open_dir(path, files, out)?,
        Request::Entries(fd) => drop(ops::entries_onto(files.check(fd)?, out)?),
        Request::Rename(from, to) => paths::rename(from, to)?,
        Request::Link(existing, new) => paths::link(existing, new)?,
        Request::Symlink(target, new) => paths::symlink(target, new)?,
        Request::ReadLink(path) => ops::read_link(path, out)?,
        Request::Resolve(path) => ops::resolve(path, out)?,
        Request::Copy(from, to) => put_u64(ops::copy(from, to)?, out),
        Request::Give(path, fd, at, len) => put_u64(ops::give(path, files.check(fd)?, at, len)?, out),
        Request::Take(path, fd, at, len) => put_u64(ops::take(path, files.check(fd)?, at, len)?, out),
    }
    Ok(())
}

impl Files {
    fn target(self, target: Target<'_>) -> Result<Target<'_>> {
        if let Target::File(fd) = target {
            self.check(fd)?;
        }
        Ok(target)
    }
}

pub(super) fn put_i32(n: i32, out: &mut Answer) {
    out.extend_from_slice(&n.to_le_bytes());
}

fn put_u32(n: u32, out: &mut Answer) {
    out.extend_from_slice(&n.to_le_bytes());
}

fn put_u64(n: u64, out: &mut Answer) {
    out.extend_from_slice(&n.to_le_bytes());
}

/// Received bytes. A long request is read to its end and no further, so that its bytes are never moved.
#[derive(Default)]
struct Input {
    buf: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    fn unread(&self) -> &[u8] {
        self.buf.get(self.start..self.end).unwrap_or_default()
    }

    /// Reads more; false at the end of the connection.
    fn fill(&mut self, socket: &Fd) -> core::result::Result<bool, Error> {
        let wanted = frame_length(self.unread())?.unwrap_or(REQUEST_HEADER);
        let have = self.end - self.start;
        let room = wanted.max(SMALL);
        if have == 0 {
            (self.start, self.end) = (0, 0);
        } else if self.start + room > self.buf.len() {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, have);
        }
        if self.start + room > self.buf.len() {
            let more = self.start + room - self.buf.len();
            self.buf.try_reserve_exact(more).map_err(|_| Error::NoMemory)?;
            self.buf.resize(self.start + room, 0);
        }
        let until = self.start + room;
        match self.buf.get_mut(self.end..until).map(|space| socket.read(space)) {
            Some(Ok(n)) if n > 0 => {
                self.end += n;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}
