//! The two file systems there are, behind one type.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::guest::Guest;
use super::{DirBuilder, File, FileTimes, Fs, Metadata, OpenOptions, Permissions, ReadDir, host, transfer};

/// The files of an instance or of the host. Cheap to clone; has no twin in std.
///
/// It does not keep its machine running: once that has ended everything fails with
/// [`NotConnected`](io::ErrorKind::NotConnected).
#[derive(Debug, Clone)]
pub struct FileSystem(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Host,
    Guest(Arc<Guest>),
}

impl Fs for FileSystem {
    fn file_system(&self) -> FileSystem {
        self.clone()
    }
}

/// Says the same of both: the host's, or the guest's.
macro_rules! either {
    ($self:ident, $host:expr, |$guest:ident| $there:expr) => {
        match &$self.0 {
            Kind::Host => $host,
            Kind::Guest($guest) => $there,
        }
    };
}

// What `Fs` is made of. Errors of the host are std's own.
impl FileSystem {
    pub(crate) fn of_host() -> Self {
        FileSystem(Kind::Host)
    }

    pub(crate) fn of_guest(
        files: Arc<crate::agent::files::Files>,
        directory: Option<std::ffi::OsString>,
    ) -> Self {
        FileSystem(Kind::Guest(Arc::new(Guest::new(files, directory))))
    }

    pub(super) fn options(&self) -> OpenOptions {
        OpenOptions::new(self)
    }

    pub(super) fn dir_builder(&self) -> DirBuilder {
        DirBuilder::new(self)
    }

    pub(super) fn open(&self, path: &Path, options: &OpenOptions) -> io::Result<File> {
        either!(self, host::open(path, options), |guest| guest.open(path, options))
    }

    pub(super) fn make_dir(&self, path: &Path, mode: u32, recursive: bool) -> io::Result<()> {
        either!(self, host::make_dir(path, mode, recursive), |guest| guest.make_dir(path, mode, recursive))
    }

    pub(super) fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        either!(self, std::fs::read(path), |guest| guest.read_file(path))
    }

    pub(super) fn read_text(&self, path: &Path) -> io::Result<String> {
        either!(self, std::fs::read_to_string(path), |guest| guest.read_text(path))
    }

    pub(super) fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        either!(self, std::fs::write(path, bytes), |guest| guest.write_file(path, bytes))
    }

    pub(super) fn stat(&self, path: &Path, follow: bool) -> io::Result<Metadata> {
        either!(self, host::stat(path, follow), |guest| guest.stat(path, follow))
    }

    pub(super) fn remove_file(&self, path: &Path) -> io::Result<()> {
        either!(self, std::fs::remove_file(path), |guest| guest.remove_file(path))
    }

    pub(super) fn remove_dir(&self, path: &Path) -> io::Result<()> {
        either!(self, std::fs::remove_dir(path), |guest| guest.remove_dir(path))
    }

    pub(super) fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        either!(self, std::fs::remove_dir_all(path), |guest| guest.remove_dir_all(path))
    }

    pub(super) fn read_dir(&self, path: &Path) -> io::Result<ReadDir> {
        either!(self, ReadDir::of_host(path), |guest| ReadDir::of_guest(guest, path))
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        either!(self, std::fs::rename(from, to), |guest| guest.rename(from, to))
    }

    pub(super) fn copy(&self, from: &Path, to: &Path) -> io::Result<u64> {
        either!(self, std::fs::copy(from, to), |guest| guest.copy(from, to))
    }

    pub(super) fn symlink(&self, original: &Path, link: &Path) -> io::Result<()> {
        either!(self, std::os::unix::fs::symlink(original, link), |guest| guest.symlink(original, link))
    }

    pub(super) fn hard_link(&self, original: &Path, link: &Path) -> io::Result<()> {
        either!(self, std::fs::hard_link(original, link), |guest| guest.hard_link(original, link))
    }

    pub(super) fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        either!(self, std::fs::read_link(path), |guest| guest.read_link(path))
    }

    pub(super) fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        either!(self, std::fs::canonicalize(path), |guest| guest.canonicalize(path))
    }

    pub(super) fn set_permissions(&self, path: &Path, permissions: Permissions) -> io::Result<()> {
        either!(self, host::set_permissions(path, permissions), |guest| guest
            .set_permissions(path, permissions))
    }

    pub(super) fn set_times(&self, path: &Path, times: FileTimes) -> io::Result<()> {
        either!(self, host::set_times(path, times), |guest| guest.set_times(path, times))
    }

    pub(super) fn chown(
        &self,
        path: &Path,
        uid: Option<u32>,
        gid: Option<u32>,
        follow: bool,
    ) -> io::Result<()> {
        either!(self, host::chown(path, uid, gid, follow), |guest| guest.chown(path, uid, gid, follow))
    }

    pub(super) fn copy_in(&self, from: &Path, to: &Path) -> io::Result<u64> {
        either!(self, transfer::copy_on_host(from, to, true), |guest| transfer::copy_in(guest, from, to))
    }

    pub(super) fn copy_out(&self, from: &Path, to: &Path) -> io::Result<u64> {
        either!(self, transfer::copy_on_host(from, to, false), |guest| transfer::copy_out(guest, from, to))
    }

    /// Where directories of the moment go.
    pub(super) fn temporary(&self) -> PathBuf {
        either!(self, std::env::temp_dir(), |_guest| PathBuf::from("/tmp"))
    }
}
