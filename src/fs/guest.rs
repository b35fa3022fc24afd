//! Operations on a guest's files as requests to its workers, one round trip each wherever that can be.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bulk;
use super::error::Context;
use super::file::{GuestFile, write_chunks};
use super::{File, FileTimes, Metadata, OpenOptions, Permissions};
use crate::agent::files::{Files, Handle, Lease};
use crate::agent::guest_error;
use crate::agent::protocol::files::{MAX_CHUNK, Removal, Request, Stat, Target, Time};

/// Longest path that Linux takes.
const MAX_PATH: usize = 4095;
const ENAMETOOLONG: i32 = 36;
/// Flags of `open(2)` for a whole file that is written.
pub(super) const O_CREAT_TRUNC: i32 = 0o1100;
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const NOBODY: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Guest {
    pub(super) files: Arc<Files>,
    /// Where relative paths begin: where commands do.
    directory: OsString,
}

impl Guest {
    pub(super) fn new(files: Arc<Files>, directory: Option<OsString>) -> Self {
        Guest { files, directory: directory.unwrap_or_else(|| "/".into()) }
    }

    /// A path as the guest's kernel wants it.
    pub(super) fn path(&self, path: &Path) -> io::Result<CString> {
        let bytes = path.as_os_str().as_bytes();
        let mut whole = Vec::with_capacity(bytes.len() + 1);
        if !bytes.is_empty() && bytes[0] != b'/' {
            whole.extend_from_slice(self.directory.as_bytes());
            whole.push(b'/');
        }
        whole.extend_from_slice(bytes);
        if bytes.len().max(whole.len()) > MAX_PATH {
            return Err(guest_error(ENAMETOOLONG));
        }
        text(whole)
    }

    /// Makes one request about one path.
    fn call(
        &self,
        operation: &'static str,
        path: &Path,
        request: impl FnOnce(&std::ffi::CStr) -> Request<'_>,
    ) -> io::Result<Vec<u8>> {
        let call = || self.files.lease()?.call(&request(&self.path(path)?));
        call().at(operation, path)
    }

    /// Makes one request about two paths.
    fn call_between(
        &self,
        operation: &'static str,
        from: &Path,
        to: &Path,
        request: impl for<'a> FnOnce(&'a std::ffi::CStr, &'a std::ffi::CStr) -> Request<'a>,
    ) -> io::Result<Vec<u8>> {
        let call = || self.files.lease()?.call(&request(&self.path(from)?, &self.path(to)?));
        call().between(operation, from, to)
    }

    pub(super) fn open(&self, path: &Path, options: &OpenOptions) -> io::Result<File> {
        let open = || {
            let (flags, name) = (options.flags()?, self.path(path)?);
            let mut lease = self.files.lease()?;
            let answer = lease.call(&Request::Open(&name, flags, options.mode))?;
            let (fd, mode) = opened(&mut lease, &answer)?;
            let handle = Handle::adopt(&self.files, &lease, fd);
            Ok(GuestFile::new(handle, path, mode & S_IFMT == S_IFREG))
        };
        open().at("open", path).map(File::of_guest)
    }

    pub(super) fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        let read = || {
            let name = self.path(path)?;
            let mut lease = self.files.lease()?;
            lease.send(&Request::ReadFile(&name, 0, MAX_CHUNK as u32))?;
            let mut bytes = Vec::new();
            lease.answer_onto(&mut bytes)?;
            let (stat, fd) = read_head(&mut lease, &bytes)?;
            bytes.drain(..Stat::SIZE + 4);
            if let Some(fd) = fd {
                let handle = Handle::adopt(&self.files, &lease, fd);
                drop(lease);
                let more = stat.size.saturating_sub(bytes.len() as u64).min(64 << 20);
                let _ = bytes.try_reserve(more as usize);
                GuestFile::new(handle, path, stat.mode & S_IFMT == S_IFREG).read_to_end(&mut bytes)?;
            }
            Ok(bytes)
        };
        read().at("read", path)
    }

    pub(super) fn read_text(&self, path: &Path) -> io::Result<String> {
        let bytes = self.read_file(path)?;
        let invalid = |_| io::Error::new(io::ErrorKind::InvalidData, "stream did not contain valid UTF-8");
        String::from_utf8(bytes).map_err(invalid).at("read", path)
    }

    pub(super) fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let write = || {
            let name = self.path(path)?;
            let mut lease = self.files.lease()?;
            if bytes.len() <= MAX_CHUNK {
                lease.call(&Request::WriteFile(&name, O_CREAT_TRUNC, 0o666, Time::OMIT, bytes))?;
                return Ok(());
            }
            let answer = lease.call(&Request::Open(&name, O_CREAT_TRUNC | 1, 0o666))?;
            let (fd, mode) = opened(&mut lease, &answer)?;
            let handle = Handle::adopt(&self.files, &lease, fd);
            let mut done = 0;
            if mode & S_IFMT == S_IFREG {
                done = bulk::give(&self.files, &mut lease, fd, 0, |buffer, at| {
                    let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
                    let len = rest.len().min(buffer.len());
                    buffer.clear();
                    buffer.extend_from_slice(&rest[..len]);
                    Ok(())
                })?;
            }
            let rest = usize::try_from(done).ok().and_then(|done| bytes.get(done..)).unwrap_or_default();
            // A pipe has no offsets.
            let at = (mode & S_IFMT == S_IFREG).then_some(done);
            let written = write_chunks(&mut lease, handle.fd(), rest, at);
            drop(lease);
            written
        };
        write().at("write", path)
    }

    pub(super) fn stat(&self, path: &Path, follow: bool) -> io::Result<Metadata> {
        let stat = || {
            let name = self.path(path)?;
            let mut lease = self.files.lease()?;
            let target = if follow { Target::Path(&name) } else { Target::Link(&name) };
            let answer = lease.call(&Request::Stat(target))?;
            stat_of(&mut lease, &answer)
        };
        stat().at("read metadata of", path)
    }

    pub(super) fn make_dir(&self, path: &Path, mode: u32, recursive: bool) -> io::Result<()> {
        // As std: there is nothing to make.
        if recursive && path.as_os_str().is_empty() {
            return Ok(());
        }
        self.call("create directory", path, |path| Request::MakeDir(path, mode, recursive)).map(drop)
    }

    pub(super) fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.call("remove", path, |path| Request::Remove(path, Removal::File)).map(drop)
    }

    pub(super) fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.call("remove directory", path, |path| Request::Remove(path, Removal::Directory)).map(drop)
    }

    pub(super) fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.call("remove tree", path, |path| Request::Remove(path, Removal::Tree)).map(drop)
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call_between("rename", from, to, |from, to| Request::Rename(from, to)).map(drop)
    }

    pub(super) fn hard_link(&self, original: &Path, link: &Path) -> io::Result<()> {
        self.call_between("link", original, link, |original, link| Request::Link(original, link)).map(drop)
    }

    pub(super) fn symlink(&self, original: &Path, link: &Path) -> io::Result<()> {
        let call = || {
            let target = original.as_os_str().as_bytes();
            if target.len() > MAX_PATH {
                return Err(guest_error(ENAMETOOLONG));
            }
            let (target, link) = (text(target.to_vec())?, self.path(link)?);
            self.files.lease()?.call(&Request::Symlink(&target, &link))
        };
        call().between("link symbolically", original, link).map(drop)
    }

    pub(super) fn copy(&self, from: &Path, to: &Path) -> io::Result<u64> {
        let copy = || {
            let (from, to) = (self.path(from)?, self.path(to)?);
            let mut lease = self.files.lease()?;
            let answer = lease.call(&Request::Copy(&from, &to))?;
            number(&mut lease, &answer)
        };
        copy().between("copy", from, to)
    }

    pub(super) fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        let target = self.call("read link", path, |path| Request::ReadLink(path))?;
        Ok(OsString::from_vec(target).into())
    }

    pub(super) fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        let whole = self.call("canonicalize", path, |path| Request::Resolve(path))?;
        Ok(OsString::from_vec(whole).into())
    }

    pub(super) fn set_permissions(&self, path: &Path, permissions: Permissions) -> io::Result<()> {
        let mode = permissions.mode() & 0o7777;
        self.call("set permissions of", path, |path| Request::Chmod(Target::Path(path), mode)).map(drop)
    }

    pub(super) fn set_times(&self, path: &Path, times: FileTimes) -> io::Result<()> {
        let [accessed, modified] = times.raw();
        self.call("set times of", path, |path| Request::Times(Target::Path(path), accessed, modified))
            .map(drop)
    }

    pub(super) fn chown(
        &self,
        path: &Path,
        uid: Option<u32>,
        gid: Option<u32>,
        follow: bool,
    ) -> io::Result<()> {
        let (uid, gid) = (uid.unwrap_or(NOBODY), gid.unwrap_or(NOBODY));
        self.call("set owner of", path, |path| {
            let target = if follow { Target::Path(path) } else { Target::Link(path) };
            Request::Chown(target, uid, gid)
        })
        .map(drop)
    }
}

/// Bytes that must have no NUL.
fn text(bytes: Vec<u8>) -> io::Result<CString> {
    let invalid =
        |_| io::Error::new(io::ErrorKind::InvalidInput, "file name contained an unexpected NUL byte");
    CString::new(bytes).map_err(invalid)
}

/// A name of an answer, as it is on this host.
pub(super) fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

// What answers say. Each is taken apart with a check, and one that does not fit ends its worker.

fn fields<const N: usize>(lease: &mut Lease<'_>, answer: &[u8]) -> io::Result<[u8; N]> {
    answer.try_into().map_err(|_| lease.malformed())
}

pub(super) fn number(lease: &mut Lease<'_>, answer: &[u8]) -> io::Result<u64> {
    fields(lease, answer).map(u64::from_le_bytes)
}

pub(super) fn count(lease: &mut Lease<'_>, answer: &[u8]) -> io::Result<u32> {
    fields(lease, answer).map(u32::from_le_bytes)
}

/// A descriptor and the mode of its file.
pub(super) fn opened(lease: &mut Lease<'_>, answer: &[u8]) -> io::Result<(i32, u32)> {
    let [a, b, c, d, e, f, g, h] = fields(lease, answer)?;
    let (fd, mode) = (i32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    if fd < 0 {
        return Err(lease.malformed());
    }
    Ok((fd, mode))
}

pub(super) fn stat_of(lease: &mut Lease<'_>, answer: &[u8]) -> io::Result<Metadata> {
    match Stat::decode(answer) {
        Ok((stat, [])) => Ok(Metadata::new(stat)),
        _ => Err(lease.malformed()),
    }
}

/// What goes before the bytes of [`Request::ReadFile`]'s answer: what is known of the file, and a descriptor if it
/// goes on.
pub(super) fn read_head(lease: &mut Lease<'_>, answer: &[u8]) -> io::Result<(Stat, Option<i32>)> {
    let parsed = Stat::decode(answer).ok().and_then(|(stat, rest)| Some((stat, rest.first_chunk()?)));
    match parsed {
        Some((stat, fd)) => {
            let fd = i32::from_le_bytes(*fd);
            Ok((stat, (fd >= 0).then_some(fd)))
        }
        None => Err(lease.malformed()),
    }
}
