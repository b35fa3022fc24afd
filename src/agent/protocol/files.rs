//! The language of host and file workers, each on a connection of its own.
//!
//! A request is `len: u32, id: u32, op: u8, payload: [u8; len]`, an answer
//! `len: u32, id: u32, errno: i32, payload: [u8; len]`, all little-endian. A worker answers every request, in order and
//! with its number, so that many may be under way. An answer with an errno has no payload; what the others have is said
//! at each [`Request`].

extern crate alloc;

use alloc::vec::Vec;
use core::ffi::CStr;

use super::{Error, Reader, put_str};

/// Most bytes of a file in one request or answer.
pub const MAX_CHUNK: usize = 256 * 1024;
/// Bytes of a request before its payload.
pub const REQUEST_HEADER: usize = 9;
/// Bytes of an answer before its payload.
pub const ANSWER_HEADER: usize = 12;
/// Most payload bytes of a request: a chunk with two paths and some numbers.
pub const MAX_REQUEST: usize = MAX_CHUNK + 16 * 1024;
/// Most payload bytes of an answer: a chunk with what is said of its file.
pub const MAX_ANSWER: usize = MAX_CHUNK + 512;
/// Bytes of directory entries in one answer, at most.
pub const MAX_ENTRIES: usize = 32 * 1024;

/// What an operation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// What a path names, at the end of symbolic links.
    Path(&'a CStr),
    /// What a path names; that may be a symbolic link.
    Link(&'a CStr),
    /// An open file.
    File(i32),
}

/// A time to set: `utimensat(2)`'s, with its special nanoseconds for now and for leaving it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time {
    /// Seconds since the Unix epoch.
    pub secs: i64,
    /// Nanoseconds, or [`Time::OMIT`]'s.
    pub nanos: i64,
}

impl Time {
    /// Leaves the time as it is.
    pub const OMIT: Time = Time { secs: 0, nanos: 0x3fff_fffe };
}

/// What is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Anything but a directory.
    File = 0,
    /// An empty directory.
    Directory = 1,
    /// A directory with all below it, or a symbolic link.
    Tree = 2,
}

/// All requests. Descriptors are those of earlier answers, by whichever worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// `open(2)`. Answer: descriptor `i32`, mode of the file `u32`.
    Open(&'a CStr, i32, u32),
    /// `close(2)`.
    Close(i32),
    /// One `read(2)` of at most so many bytes, at an offset if there is one. Answer: the bytes.
    Read(i32, Option<u64>, u32),
    /// One `write(2)`, at an offset if there is one. Answer: how many bytes, `u32`.
    Write(i32, Option<u64>, &'a [u8]),
    /// Writes all, at an offset if there is one. When one fails, those right behind it are cancelled.
    WriteAll(i32, Option<u64>, &'a [u8]),
    /// `lseek(2)`: offset, whence. Answer: `u64`.
    Seek(i32, i64, u32),
    /// Answer: a [`Stat`].
    Stat(Target<'a>),
    /// Sets the length.
    Truncate(i32, u64),
    /// Writes out; data only.
    Sync(i32, bool),
    /// `flock(2)`.
    Lock(i32, i32),
    /// Another descriptor for the same file. Answer: `i32`.
    Duplicate(i32),
    /// Sets the mode.
    Chmod(Target<'a>, u32),
    /// Sets user and group; all ones for neither.
    Chown(Target<'a>, u32, u32),
    /// Sets the times of last access and change.
    Times(Target<'a>, Time, Time),
    /// Opens with these flags besides and reads at most so many bytes. Answer: [`Stat`], a descriptor `i32` when the
    /// file goes on, else -1, and the bytes.
    ReadFile(&'a CStr, i32, u32),
    /// Opens with these flags and mode and writes all. With [`KEEP_MODE`] in the mode it is set exactly, whatever
    /// the umask. Then the time of last change, or [`Time::OMIT`].
    WriteFile(&'a CStr, i32, u32, Time, &'a [u8]),
    /// Makes a directory with this mode, and those above it if so.
    MakeDir(&'a CStr, u32, bool),
    /// Removes.
    Remove(&'a CStr, Removal),
    /// Opens a directory. Answer: a descriptor `i32`, or -1 when that is all, and entries as `getdents64(2)` has them.
    OpenDir(&'a CStr),
    /// Answer: more entries; none at the end.
    Entries(i32),
    /// From, to.
    Rename(&'a CStr, &'a CStr),
    /// Existing, new.
    Link(&'a CStr, &'a CStr),
    /// Target, new.
    Symlink(&'a CStr, &'a CStr),
    /// Answer: the bytes of its target.
    ReadLink(&'a CStr),
    /// Answer: the bytes of the absolute path without symbolic links.
    Resolve(&'a CStr),
    /// Copies a regular file and its mode: from, to. Answer: bytes copied, `u64`.
    Copy(&'a CStr, &'a CStr),
    /// Copies so many bytes from the head of a file that the host gives, by its path, to an offset. Answer: bytes
    /// copied, `u64`.
    Take(&'a CStr, i32, u64, u64),
    /// Copies so many bytes to the head of a file that the host gives, by its path, from an offset. Answer: bytes
    /// copied, `u64`.
    Give(&'a CStr, i32, u64, u64),
}

/// Flag in a mode of [`Request::WriteFile`].
pub const KEEP_MODE: u32 = 1 << 31;

/// What is known of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // stat(2)'s own
pub struct Stat {
    pub dev: u64,
    pub ino: u64,
    pub mode: u32,
    pub nlink: u64,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size: u64,
    pub blksize: u64,
    pub blocks: u64,
    /// Seconds and nanoseconds.
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    /// Where the file system knows.
    pub btime: Option<(i64, u32)>,
}

impl Stat {
    /// Bytes of one in an answer.
    pub const SIZE: usize = 68 + 12 * 4 + 1;

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for v in [self.dev, self.ino, self.nlink, self.rdev, self.size, self.blksize, self.blocks] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        for v in [self.mode, self.uid, self.gid] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        for (secs, nanos) in [self.atime, self.mtime, self.ctime, self.btime.unwrap_or_default()] {
            out.extend_from_slice(&secs.to_le_bytes());
            out.extend_from_slice(&nanos.to_le_bytes());
        }
        out.push(self.btime.is_some().into());
    }

    /// Reads one from the head of `bytes`; gives the rest too. Nanoseconds are less than a second.
    pub fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), Error> {
        let mut r = Reader { rest: bytes };
        let [dev, ino, nlink, rdev, size, blksize, blocks] =
            [r.u64()?, r.u64()?, r.u64()?, r.u64()?, r.u64()?, r.u64()?, r.u64()?];
        let [mode, uid, gid] = [r.u32()?, r.u32()?, r.u32()?];
        let mut time = || -> Result<(i64, u32), Error> {
            match (r.u64()? as i64, r.u32()?) {
                (secs, nanos @ 0..1_000_000_000) => Ok((secs, nanos)),
                _ => Err(Error::Malformed),
            }
        };
        let [atime, mtime, ctime, btime] = [time()?, time()?, time()?, time()?];
        let btime = (r.u8()? != 0).then_some(btime);
        let stat =
            Stat { dev, ino, mode, nlink, uid, gid, rdev, size, blksize, blocks, atime, mtime, ctime, btime };
        Ok((stat, r.rest))
    }
}

mod op {
    pub(super) const OPEN: u8 = 1;
    pub(super) const CLOSE: u8 = 2;
    pub(super) const READ: u8 = 3;
    pub(super) const WRITE: u8 = 4;
    pub(super) const WRITE_ALL: u8 = 5;
    pub(super) const SEEK: u8 = 6;
    pub(super) const STAT: u8 = 7;
    pub(super) const TRUNCATE: u8 = 8;
    pub(super) const SYNC: u8 = 9;
    pub(super) const LOCK: u8 = 10;
    pub(super) const DUPLICATE: u8 = 11;
    pub(super) const CHMOD: u8 = 12;
    pub(super) const CHOWN: u8 = 13;
    pub(super) const TIMES: u8 = 14;
    pub(super) const READ_FILE: u8 = 15;
    pub(super) const WRITE_FILE: u8 = 16;
    pub(super) const MAKE_DIR: u8 = 17;
    pub(super) const REMOVE: u8 = 18;
    pub(super) const OPEN_DIR: u8 = 19;
    pub(super) const ENTRIES: u8 = 20;
    pub(super) const RENAME: u8 = 21;
    pub(super) const LINK: u8 = 22;
    pub(super) const SYMLINK: u8 = 23;
    pub(super) const READ_LINK: u8 = 24;
    pub(super) const RESOLVE: u8 = 25;
    pub(super) const COPY: u8 = 26;
    pub(super) const TAKE: u8 = 27;
    pub(super) const GIVE: u8 = 28;
}

impl<'a> Request<'a> {
    /// Appends this request without the bytes to write, which [`Request::data`] says: they go right behind.
    pub fn encode_head(&self, id: u32, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&id.to_le_bytes());
        out.push(self.op());
        match *self {
            Request::Open(path, flags, mode) => {
                put_str(path, out);
                out.extend_from_slice(&flags.to_le_bytes());
                out.extend_from_slice(&mode.to_le_bytes());
            }
            Request::Close(fd) | Request::Duplicate(fd) | Request::Entries(fd) => put_fd(fd, out),
            Request::Read(fd, at, len) => {
                put_fd(fd, out);
                put_offset(at, out);
                out.extend_from_slice(&len.to_le_bytes());
            }
            Request::Write(fd, at, _) | Request::WriteAll(fd, at, _) => {
                put_fd(fd, out);
                put_offset(at, out);
            }
            Request::Seek(fd, offset, whence) => {
                put_fd(fd, out);
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(&whence.to_le_bytes());
            }
            Request::Stat(target) => put_target(target, out),
            Request::Truncate(fd, len) => {
                put_fd(fd, out);
                out.extend_from_slice(&len.to_le_bytes());
            }
            Request::Sync(fd, data) => {
                put_fd(fd, out);
                out.push(data.into());
            }
            Request::Lock(fd, how) => {
                put_fd(fd, out);
                out.extend_from_slice(&how.to_le_bytes());
            }
            Request::Take(path, fd, at, len) | Request::Give(path, fd, at, len) => {
                put_str(path, out);
                put_fd(fd, out);
                out.extend_from_slice(&at.to_le_bytes());
                out.extend_from_slice(&len.to_le_bytes());
            }
            Request::Chmod(target, mode) => {
                put_target(target, out);
                out.extend_from_slice(&mode.to_le_bytes());
            }
            Request::Chown(target, uid, gid) => {
                put_target(target, out);
                out.extend_from_slice(&uid.to_le_bytes());
                out.extend_from_slice(&gid.to_le_bytes());
            }
            Request::Times(target, atime, mtime) => {
                put_target(target, out);
                put_time(atime, out);
                put_time(mtime, out);
            }
            Request::ReadFile(path, flags, len) => {
                put_str(path, out);
                out.extend_from_slice(&flags.to_le_bytes());
                out.extend_from_slice(&len.to_le_bytes());
            }
            Request::WriteFile(path, flags, mode, mtime, _) => {
                put_str(path, out);
                out.extend_from_slice(&flags.to_le_bytes());
                out.extend_from_slice(&mode.to_le_bytes());
                put_time(mtime, out);
            }
            Request::MakeDir(path, mode, parents) => {
                put_str(path, out);
                out.extend_from_slice(&mode.to_le_bytes());
                out.push(parents.into());
            }
            Request::Remove(path, what) => {
                put_str(path, out);
                out.push(what as u8);
            }
            Request::OpenDir(path) | Request::ReadLink(path) | Request::Resolve(path) => put_str(path, out),
            Request::Rename(a, b) | Request::Link(a, b) | Request::Symlink(a, b) | Request::Copy(a, b) => {
                put_str(a, out);
                put_str(b, out);
            }
        }
        let len = (out.len() - start - REQUEST_HEADER + self.data().len()) as u32;
        out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    }

    /// Bytes to write.
    pub fn data(&self) -> &'a [u8] {
        match *self {
            Request::Write(.., data) | Request::WriteAll(.., data) | Request::WriteFile(.., data) => data,
            _ => &[],
        }
    }

    fn op(&self) -> u8 {
        match self {
            Request::Open(..) => op::OPEN,
            Request::Close(_) => op::CLOSE,
            Request::Read(..) => op::READ,
            Request::Write(..) => op::WRITE,
            Request::WriteAll(..) => op::WRITE_ALL,
            Request::Seek(..) => op::SEEK,
            Request::Stat(_) => op::STAT,
            Request::Truncate(..) => op::TRUNCATE,
            Request::Sync(..) => op::SYNC,
            Request::Lock(..) => op::LOCK,
            Request::Duplicate(_) => op::DUPLICATE,
            Request::Chmod(..) => op::CHMOD,
            Request::Chown(..) => op::CHOWN,
            Request::Times(..) => op::TIMES,
            Request::ReadFile(..) => op::READ_FILE,
            Request::WriteFile(..) => op::WRITE_FILE,
            Request::MakeDir(..) => op::MAKE_DIR,
            Request::Remove(..) => op::REMOVE,
            Request::OpenDir(_) => op::OPEN_DIR,
            Request::Entries(_) => op::ENTRIES,
            Request::Rename(..) => op::RENAME,
            Request::Link(..) => op::LINK,
            Request::Symlink(..) => op::SYMLINK,
            Request::ReadLink(_) => op::READ_LINK,
            Request::Resolve(_) => op::RESOLVE,
            Request::Copy(..) => op::COPY,
            Request::Take(..) => op::TAKE,
            Request::Give(..) => op::GIVE,
        }
    }

    /// Reads the request that `bytes` begin with: its number, itself, and how long it is. `None` when it is not all
    /// there.
    pub fn decode(bytes: &'a [u8]) -> Result<Option<(u32, Self, usize)>, Error> {
        let Some(wanted) = frame_length(bytes)? else { return Ok(None) };
        let Some(frame) = bytes.get(..wanted) else { return Ok(None) };
        let mut r = Reader { rest: frame };
        let _ = r.u32()?;
        let (id, kind) = (r.u32()?, r.u8()?);
        let request = match kind {
            op::OPEN => Request::Open(r.string()?, r.i32()?, r.u32()?),
            op::CLOSE => Request::Close(r.i32()?),
            op::READ => Request::Read(r.i32()?, r.offset()?, r.chunk()?),
            op::WRITE => Request::Write(r.i32()?, r.offset()?, r.all()),
            op::WRITE_ALL => Request::WriteAll(r.i32()?, r.offset()?, r.all()),
            op::SEEK => Request::Seek(r.i32()?, r.u64()? as i64, r.u32()?),
            op::STAT => Request::Stat(r.target()?),
            op::TRUNCATE => Request::Truncate(r.i32()?, r.u64()?),
            op::SYNC => Request::Sync(r.i32()?, r.u8()? != 0),
            op::LOCK => Request::Lock(r.i32()?, r.i32()?),
            op::DUPLICATE => Request::Duplicate(r.i32()?),
            op::CHMOD => Request::Chmod(r.target()?, r.u32()?),
            op::CHOWN => Request::Chown(r.target()?, r.u32()?, r.u32()?),
            op::TIMES => Request::Times(r.target()?, r.time()?, r.time()?),
            op::READ_FILE => Request::ReadFile(r.string()?, r.i32()?, r.chunk()?),
            op::WRITE_FILE => Request::WriteFile(r.string()?, r.i32()?, r.u32()?, r.time()?, r.all()),
            op::MAKE_DIR => Request::MakeDir(r.string()?, r.u32()?, r.u8()? != 0),
            op::REMOVE => {
                let path = r.string()?;
                let what = match r.u8()? {
                    0 => Removal::File,
                    1 => Removal::Directory,
                    2 => Removal::Tree,
                    _ => return Err(Error::Malformed),
                };
                Request::Remove(path, what)
            }
            op::OPEN_DIR => Request::OpenDir(r.string()?),
            op::ENTRIES => Request::Entries(r.i32()?),
            op::RENAME => Request::Rename(r.string()?, r.string()?),
            op::LINK => Request::Link(r.string()?, r.string()?),
            op::SYMLINK => Request::Symlink(r.string()?, r.string()?),
            op::READ_LINK => Request::ReadLink(r.string()?),
            op::RESOLVE => Request::Resolve(r.string()?),
            op::COPY => Request::Copy(r.string()?, r.string()?),
            op::GIVE => Request::Give(r.string()?, r.i32()?, r.u64()?, r.u64()?),
            op::TAKE => Request::Take(r.string()?, r.i32()?, r.u64()?, r.u64()?),
            other => return Err(Error::UnknownKind(other)),
        };
        if r.rest.is_empty() { Ok(Some((id, request, wanted))) } else { Err(Error::Malformed) }
    }
}

/// How long the request is that `bytes` begin with; `None` when they do not say yet.
pub fn frame_length(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let Some((&[a, b, c, d], _)) = bytes.split_first_chunk() else { return Ok(None) };
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    if len > MAX_REQUEST {
        return Err(Error::TooLong);
    }
    Ok(Some(REQUEST_HEADER + len))
}

/// What goes before the payload of an answer.
pub fn answer_header(len: usize, id: u32, errno: i32) -> [u8; ANSWER_HEADER] {
    let mut header = [0; ANSWER_HEADER];
    header[..4].copy_from_slice(&(len as u32).to_le_bytes());
    header[4..8].copy_from_slice(&id.to_le_bytes());
    header[8..].copy_from_slice(&errno.to_le_bytes());
    header
}

/// Length, number and errno of an answer. Nothing of it has been checked.
pub fn parse_answer(header: [u8; ANSWER_HEADER]) -> (u32, u32, i32) {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = header;
    let (len, id) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    (len, id, i32::from_le_bytes([i, j, k, l]))
}

fn put_fd(fd: i32, out: &mut Vec<u8>) {
    out.extend_from_slice(&fd.to_le_bytes());
}

/// All ones are no offset: none so large can be used.
fn put_offset(offset: Option<u64>, out: &mut Vec<u8>) {
    out.extend_from_slice(&offset.unwrap_or(u64::MAX).to_le_bytes());
}

fn put_time(time: Time, out: &mut Vec<u8>) {
    out.extend_from_slice(&time.secs.to_le_bytes());
    out.extend_from_slice(&time.nanos.to_le_bytes());
}

fn put_target(target: Target<'_>, out: &mut Vec<u8>) {
    match target {
        Target::Path(path) => {
            out.push(0);
            put_str(path, out);
        }
        Target::Link(path) => {
            out.push(1);
            put_str(path, out);
        }
        Target::File(fd) => {
            out.push(2);
            put_fd(fd, out);
        }
    }
}

impl<'a> Reader<'a> {
    fn offset(&mut self) -> Result<Option<u64>, Error> {
        self.u64().map(|at| (at != u64::MAX).then_some(at))
    }

    fn chunk(&mut self) -> Result<u32, Error> {
        self.u32().and_then(|n| if n as usize <= MAX_CHUNK { Ok(n) } else { Err(Error::TooLong) })
    }

    fn time(&mut self) -> Result<Time, Error> {
        Ok(Time { secs: self.u64()? as i64, nanos: self.u64()? as i64 })
    }

    fn target(&mut self) -> Result<Target<'a>, Error> {
        match self.u8()? {
            0 => Ok(Target::Path(self.string()?)),
            1 => Ok(Target::Link(self.string()?)),
            2 => Ok(Target::File(self.i32()?)),
            _ => Err(Error::Malformed),
        }
    }
}
