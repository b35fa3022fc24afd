//! Directories of the host in a machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Error;
use crate::vfs::{FileSystem, HostDir, HostDirOptions, Limits, Overlay, Ownership};
use crate::virtio::fs::Caching;

/// A file system that a machine has besides its root: a directory of the host, or one that starts empty and ends with
/// the machine.
///
/// ```no_run
/// # fn main() -> Result<(), cc::Error> {
/// use cc::{Instance, Mount, Source};
/// let instance = Instance::builder(Source::busybox()?)
///     .mount(Mount::directory("src", "./src").at("/work/src"))
///     .mount(Mount::empty("scratch"))
///     .start()?;
/// # Ok(()) }
/// ```
///
/// A directory is read-only unless [`Mount::writable`] says otherwise, which is enforced on the host. It is never left:
/// neither `..` nor a symbolic link leads out of it.
#[derive(Debug, Clone)]
pub struct Mount {
    pub(super) tag: String,
    path: Option<PathBuf>,
    pub(super) target: String,
    pub(super) writable: bool,
    ownership: Ownership,
}

impl Mount {
    /// The host's directory `path`, read-only, at `/mnt/<tag>`. `tag` is 1 to 36 bytes and names it to the guest.
    pub fn directory(tag: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self::new(tag.into(), Some(path.into()), false)
    }

    /// An empty directory in the memory of this process, writable, at `/mnt/<tag>`.
    pub fn empty(tag: impl Into<String>) -> Self {
        Self::new(tag.into(), None, true)
    }

    fn new(tag: String, path: Option<PathBuf>, writable: bool) -> Self {
        // Who may give files away on the host keeps the owners that they have there.
        let ownership = match crate::sys::is_privileged() {
            true => Ownership::AsIs,
            false => Ownership::Recorded { uid: 0, gid: 0 },
        };
        Self { target: format!("/mnt/{tag}"), tag, path, writable, ownership }
    }

    /// Mounts it at this absolute path instead, which is made if it is not there.
    pub fn at(mut self, target: impl Into<String>) -> Self {
        self.target = target.into();
        self
    }

    /// Whether the guest may change it.
    pub fn writable(mut self, on: bool) -> Self {
        self.writable = on;
        self
    }

    /// How owners of a directory's files look in the guest. Unless said otherwise as on the host if this process is
    /// root there, else as root's until changed, and changes are [recorded](Ownership::Recorded).
    pub fn ownership(mut self, ownership: Ownership) -> Self {
        self.ownership = ownership;
        self
    }

    /// What the guest is served.
    pub(super) fn file_system(&self, limits: Limits) -> Result<(Arc<dyn FileSystem>, Caching), Error> {
        if !self.target.starts_with('/') || self.target.contains('\0') {
            return Err(self.error("the place in the guest must be an absolute path"));
        }
        let Some(path) = &self.path else {
            return Ok((Arc::new(Overlay::memory(limits)), Caching::Private));
        };
        let options = HostDirOptions {
            read_only: !self.writable,
            ownership: self.ownership,
            ..HostDirOptions::default()
        };
        let dir = HostDir::new(path, options).map_err(|source| self.failed(path, source))?;
        Ok((Arc::new(dir), Caching::Shared))
    }

    fn failed(&self, path: &Path, source: std::io::Error) -> Error {
        Error::Root { what: format!("the directory {}", path.display()), source: Box::new(source) }
    }

    fn error(&self, reason: &str) -> Error {
        Error::Mount { tag: self.tag.clone(), reason: reason.to_owned() }
    }
}
