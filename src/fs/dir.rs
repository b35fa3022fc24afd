//! What is in a directory.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Context;
use super::guest::{Guest, os};
use super::{FileType, Metadata, host};
use crate::agent::files::{Handle, Lease};
use crate::agent::protocol::files::Request;

/// Goes over what is in a directory, in no order, as far as it is asked for it.
///
/// This corresponds to [`std::fs::ReadDir`]. The guest is asked for some hundred entries at a time, so memory does not
/// grow with the directory.
pub struct ReadDir(Inner);

enum Inner {
    Host(std::fs::ReadDir),
    Guest(GuestDir),
}

impl ReadDir {
    pub(super) fn of_host(path: &Path) -> io::Result<Self> {
        std::fs::read_dir(path).map(|dir| ReadDir(Inner::Host(dir)))
    }

    pub(super) fn of_guest(guest: &Arc<Guest>, path: &Path) -> io::Result<Self> {
        GuestDir::open(guest, path).at("read directory", path).map(|dir| ReadDir(Inner::Guest(dir)))
    }
}

impl fmt::Debug for ReadDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Host(dir) => dir.fmt(f),
            Inner::Guest(dir) => f.debug_tuple("ReadDir").field(&dir.path).finish(),
        }
    }
}

impl Iterator for ReadDir {
    type Item = io::Result<DirEntry>;

    fn next(&mut self) -> Option<io::Result<DirEntry>> {
        match &mut self.0 {
            Inner::Host(dir) => dir.next().map(|entry| entry.map(|entry| DirEntry(InnerEntry::Host(entry)))),
            Inner::Guest(dir) => {
                let entry = dir.next()?;
                Some(entry.at("read directory", &dir.path))
            }
        }
    }
}

struct GuestDir {
    guest: Arc<Guest>,
    path: Arc<Path>,
    /// `None` when nothing more is to come.
    handle: Option<Handle>,
    listing: Listing,
}

impl GuestDir {
    fn open(guest: &Arc<Guest>, path: &Path) -> io::Result<Self> {
        let name = guest.path(path)?;
        let mut lease = guest.files.lease()?;
        let (fd, listing) = open_dir(&mut lease, &name)?;
        let handle = fd.map(|fd| Handle::adopt(&guest.files, &lease, fd));
        Ok(GuestDir { guest: guest.clone(), path: path.into(), handle, listing })
    }

    fn next(&mut self) -> Option<io::Result<DirEntry>> {
        loop {
            match self.listing.next() {
                Some(Ok(entry)) => {
                    let (guest, path) = (self.guest.clone(), self.path.join(&entry.name));
                    return Some(Ok(DirEntry(InnerEntry::Guest { guest, path, entry })));
                }
                Some(Err(Malformed)) => {
                    self.listing = Listing::default();
                    let handle = self.handle.take();
                    let error = match handle.map(|handle| handle.lease().map(|mut lease| lease.malformed())) {
                        Some(Ok(error) | Err(error)) => error,
                        None => {
                            io::Error::new(io::ErrorKind::BrokenPipe, "the guest agent broke its protocol")
                        }
                    };
                    return Some(Err(error));
                }
                None => {}
            }
            let handle = self.handle.as_ref()?;
            match handle.lease().and_then(|mut lease| lease.call(&Request::Entries(handle.fd()))) {
                Ok(bytes) if bytes.is_empty() => self.handle = None,
                Ok(bytes) => self.listing = Listing::new(bytes),
                Err(e) => {
                    self.handle = None;
                    return Some(Err(e));
                }
            }
        }
    }
}

/// Opens a directory: a descriptor if there is more than the first entries.
pub(super) fn open_dir(lease: &mut Lease<'_>, name: &std::ffi::CStr) -> io::Result<(Option<i32>, Listing)> {
    let mut answer = lease.call(&Request::OpenDir(name))?;
    let Some(&fd) = answer.first_chunk() else { return Err(lease.malformed()) };
    let fd = i32::from_le_bytes(fd);
    answer.drain(..4);
    Ok(((fd >= 0).then_some(fd), Listing::new(answer)))
}

/// What one entry says.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: OsString,
    ino: u64,
    kind: u8,
}

impl Entry {
    pub(super) fn file_type(&self) -> Option<FileType> {
        FileType::from_entry(self.kind)
    }
}

/// An entry that is none.
#[derive(Debug)]
pub(super) struct Malformed;

/// Entries as `getdents64(2)` has them, without `.` and `..`. Those of a guest may be anything: a name that would lead
/// elsewhere is no name.
#[derive(Debug, Default)]
pub(super) struct Listing {
    bytes: Vec<u8>,
    at: usize,
}

impl Listing {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Listing { bytes, at: 0 }
    }

    fn parse(&mut self) -> Option<Option<Entry>> {
        // Inode, offset, length of the entry, kind, name with NUL and padding.
        let rest = self.bytes.get(self.at..)?;
        let (ino, rest_of) = rest.split_first_chunk()?;
        let [low, high] = *rest_of.get(8..10)?.first_chunk()?;
        let kind = *rest_of.get(10)?;
        let len = usize::from(u16::from_le_bytes([low, high]));
        let name = rest.get(19..len)?;
        let name = &name[..name.iter().position(|b| *b == 0)?];
        self.at += len;
        match name {
            b"." | b".." => Some(None),
            b"" => None,
            name if name.contains(&b'/') => None,
            name => Some(Some(Entry { name: os(name).to_owned(), ino: u64::from_le_bytes(*ino), kind })),
        }
    }
}

impl Iterator for Listing {
    type Item = Result<Entry, Malformed>;

    fn next(&mut self) -> Option<Result<Entry, Malformed>> {
        while self.at < self.bytes.len() {
            match self.parse() {
                Some(Some(entry)) => return Some(Ok(entry)),
                Some(None) => {}
                None => {
                    self.at = self.bytes.len();
                    return Some(Err(Malformed));
                }
            }
        }
        None
    }
}

/// One entry of a directory.
///
/// This corresponds to [`std::fs::DirEntry`] with [`std::os::unix::fs::DirEntryExt`].
pub struct DirEntry(InnerEntry);

enum InnerEntry {
    Host(std::fs::DirEntry),
    Guest { guest: Arc<Guest>, path: PathBuf, entry: Entry },
}

impl DirEntry {
    /// The path that was read, with its name.
    pub fn path(&self) -> PathBuf {
        match &self.0 {
            InnerEntry::Host(entry) => entry.path(),
            InnerEntry::Guest { path, .. } => path.clone(),
        }
    }

    /// Its name.
    pub fn file_name(&self) -> OsString {
        match &self.0 {
            InnerEntry::Host(entry) => entry.file_name(),
            InnerEntry::Guest { entry, .. } => entry.name.clone(),
        }
    }

    /// Its name, borrowed where that can be. Has no twin in std.
    pub fn file_name_ref(&self) -> std::borrow::Cow<'_, OsStr> {
        match &self.0 {
            InnerEntry::Host(entry) => entry.file_name().into(),
            InnerEntry::Guest { entry, .. } => entry.name.as_os_str().into(),
        }
    }

    /// What is known of it, be it a symbolic link.
    pub fn metadata(&self) -> io::Result<Metadata> {
        match &self.0 {
            InnerEntry::Host(entry) => entry.metadata().map(host::metadata),
            InnerEntry::Guest { guest, path, .. } => guest.stat(path, false),
        }
    }

    /// What kind of file it is, be it a symbolic link. Most file systems say so with the entry, and the guest is not
    /// asked again.
    pub fn file_type(&self) -> io::Result<FileType> {
        match &self.0 {
            InnerEntry::Host(_) => self.metadata().map(|metadata| metadata.file_type()),
            InnerEntry::Guest { entry, .. } => match entry.file_type() {
                Some(kind) => Ok(kind),
                None => self.metadata().map(|metadata| metadata.file_type()),
            },
        }
    }

    /// Its number in the file system.
    pub fn ino(&self) -> u64 {
        match &self.0 {
            InnerEntry::Host(entry) => entry.ino(),
            InnerEntry::Guest { entry, .. } => entry.ino,
        }
    }
}

impl fmt::Debug for DirEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DirEntry").field(&self.path()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &[u8], len: Option<u16>) -> Vec<u8> {
        let padded = (19 + name.len() + 1).next_multiple_of(8);
        let mut bytes = vec![0; padded];
        bytes[0] = 7;
        bytes[16..18].copy_from_slice(&len.unwrap_or(padded as u16).to_le_bytes());
        bytes[18] = 8;
        bytes[19..19 + name.len()].copy_from_slice(name);
        bytes
    }

    fn names(bytes: Vec<u8>) -> Vec<Result<OsString, ()>> {
        Listing::new(bytes).map(|entry| entry.map(|entry| entry.name).map_err(|Malformed| ())).collect()
    }

    #[test]
    fn entries_are_taken_apart() {
        let bytes =
            [entry(b".", None), entry(b"a", None), entry(b"..", None), entry(b"b\xff", None)].concat();
        assert_eq!(names(bytes), [Ok("a".into()), Ok(os(b"b\xff").to_owned())]);
    }

    #[test]
    fn what_is_no_entry_ends_the_listing() {
        let good = entry(b"good", None);
        for bad in [
            entry(b"../../etc/passwd", None),
            entry(b"a/b", None),
            entry(b"", None),
            entry(b"short", Some(0)),
            entry(b"short", Some(19)),
            entry(b"short", Some(22)),
            entry(b"long", Some(60000)),
            vec![1],
        ] {
            let bytes = [good.clone(), bad.clone(), good.clone()].concat();
            let said = names(bytes);
            // A length that lies may swallow what follows.
            assert_eq!(said[0], Ok("good".into()));
            assert!(said.contains(&Err(())), "{bad:?}: {said:?}");
            assert_eq!(said.len(), 2, "{bad:?}");
        }
    }
}
