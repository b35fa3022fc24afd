//! Snapshots of a machine's file system, without what runs in it.
//!
//! The guest's processes stand still while its kernel writes out what it holds of changed files and the root is forked,
//! which takes milliseconds; what is written to the store afterwards is the fork.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use globset::{Candidate, GlobBuilder, GlobSet, GlobSetBuilder};

use super::source::Kind;
use super::{Error, Instance, Source};
use crate::oci::{Base, Changes, FileSystemSnapshot};
use crate::vfs::{Overlay, Ownership};

/// What a machine's root started from, and where to keep snapshots of it.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    base: Base,
    /// The directory for caches, if there is one.
    cache: Option<PathBuf>,
}

impl Origin {
    /// `None` for a source that brings its own.
    pub(super) fn new(source: &Source, cache: Option<PathBuf>) -> Option<Self> {
        let base = match &source.kind {
            Kind::Busybox(layer) => Base::Userland(layer.clone()),
            Kind::Image(image) => Base::Image(image.clone()),
            Kind::Directory(path, ownership) => Base::Directory {
                path: path.clone(),
                user_as_root: matches!(ownership, Ownership::UserAsRoot),
            },
            Kind::FileSystem(snapshot) => Base::Snapshot(snapshot.clone()),
            Kind::Snapshot(_) => return None,
        };
        Some(Self { base, cache })
    }

    /// The directory for caches where a snapshot goes that is not told where. `None`: to where the base is.
    fn place(&self) -> Option<&Path> {
        match self.base {
            Base::Image(_) | Base::Snapshot(_) => None,
            _ => self.cache.as_deref(),
        }
    }
}

/// Options of a file system's snapshot, see [`Instance::snapshot_filesystem_with`].
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use cc::{FileSystemSnapshotOptions, Instance, Source};
/// let instance = Instance::new(Source::busybox()?)?;
/// instance.command("sh").args(["-c", "echo built > /srv/result; echo > /srv/log.tmp"]).status()?;
/// let options = FileSystemSnapshotOptions::new().exclude("/var/cache/**").exclude("*.tmp");
/// let snapshot = instance.snapshot_filesystem_with(&options)?;
/// let again = Instance::new(snapshot)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct FileSystemSnapshotOptions {
    exclude: Vec<String>,
    cache_dir: Option<PathBuf>,
}

impl FileSystemSnapshotOptions {
    /// Nothing left out, and the store that the machine's image or snapshot is in, or else that of its builder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Leaves out changes to paths that match `pattern`, and to all that is below them. The snapshot has there what
    /// its parent has; a removal that is left out shows the file again.
    ///
    /// A pattern with a slash in it, other than at its end, is matched with the path from `/` on, one without with the
    /// last name of every path: `/var/cache`, `var/cache` and `var/cache/` are the same, `*.tmp` is any file of such a
    /// name. `*` and `?` stand for any bytes and any character but a slash, `[ab]`, `[a-z]` and `[!a]` for
    /// one of a class, `{a,b}` for either; `**/` for any number of directories, `/**` at the end for all that is
    /// below, without the directory itself. `\` takes the meaning from what follows.
    pub fn exclude(mut self, pattern: impl Into<String>) -> Self {
        self.exclude.push(pattern.into());
        self
    }

    /// Keeps the snapshot, and the layers that it is made of, in the store below this directory:
    /// [`ClientBuilder::cache_dir`](crate::oci::ClientBuilder::cache_dir) of those who open it.
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(dir.into());
        self
    }

    fn excluded(&self) -> Result<GlobSet, Error> {
        let mut set = GlobSetBuilder::new();
        for pattern in &self.exclude {
            let bad = |reason: String| Error::Exclude { pattern: pattern.clone(), reason };
            let trimmed = pattern.strip_suffix('/').unwrap_or(pattern);
            let whole = match trimmed.strip_prefix('/') {
                Some(from_root) => from_root.to_owned(),
                None if trimmed.contains('/') => trimmed.to_owned(),
                None => format!("**/{trimmed}"),
            };
            if trimmed.is_empty() || whole.is_empty() {
                return Err(bad("it is empty".to_owned()));
            }
            let glob = GlobBuilder::new(&whole).literal_separator(true).backslash_escape(true).build();
            set.add(glob.map_err(|e| bad(e.kind().to_string()))?);
        }
        set.build().map_err(|e| Error::Exclude { pattern: self.exclude.join(" "), reason: e.to_string() })
    }
}

impl Instance {
    /// Takes a snapshot of the machine's root as it is at this moment: its changes become a layer in the image store,
    /// on top of what the machine started from. As a [`Source`] it starts machines with these files, in this process
    /// or, by its [key](FileSystemSnapshot::key) and [`Client::snapshot`](crate::oci::Client::snapshot), in a later
    /// one; they start as any other, from the snapshot of an earlier boot.
    ///
    /// Not in it are mounts, the file systems in memory that are on `/tmp` and `/run` where the image has nothing there,
    /// what runs, sockets, and times of access and of change. What was written before the call is in it, also what programs have only written to mapped files
    /// or not yet synchronised. Programs stand still while that is brought to the host, not while the layer is
    /// written.
    ///
    /// # Errors
    /// [`Error::NotRunning`]; [`Error::FileSystemSnapshot`] when the store cannot be written, or the changes not be
    /// held by a layer; [`Error::Host`] when the guest cannot be made to stand still, or for a machine from an
    /// [opened](super::Snapshot::open) snapshot, which does not tell what its root started from.
    pub fn snapshot_filesystem(&self) -> Result<FileSystemSnapshot, Error> {
        self.snapshot_filesystem_with(&FileSystemSnapshotOptions::new())
    }

    /// [`Instance::snapshot_filesystem`] with options.
    ///
    /// # Errors
    /// As there, and [`Error::Exclude`].
    pub fn snapshot_filesystem_with(
        &self,
        options: &FileSystemSnapshotOptions,
    ) -> Result<FileSystemSnapshot, Error> {
        self.running()?;
        let excluded = options.excluded()?;
        let unknown = || Error::Host {
            what: "telling what the machine's root started from",
            source: std::io::ErrorKind::Unsupported.into(),
        };
        let origin = self.origin.as_ref().ok_or_else(unknown)?;
        let root = self.machine.board().file_systems().first().and_then(|root| root.file_system());
        let root = root.ok_or_else(unknown)?;
        let overlay = (&*root as &dyn Any).downcast_ref::<Overlay>().ok_or_else(unknown)?;
        let fork = self.still(|| overlay.duplicate())?;
        let leave_out = |path: &[u8]| excluded.is_match_candidate(&Candidate::from_bytes(path));
        let changes = Changes { overlay: &fork, leave_out: &leave_out };
        let place = options.cache_dir.as_deref().or(origin.place());
        FileSystemSnapshot::take(&origin.base, &changes, place).map_err(Error::FileSystemSnapshot)
    }

    /// Does something while the guest's processes stand still and its kernel has written out what it had.
    fn still<T>(&self, act: impl FnOnce() -> T) -> Result<T, Error> {
        let _alone = self.freezing.lock().unwrap_or_else(PoisonError::into_inner);
        // The agent has to run for this.
        let paused = self.machine.is_paused();
        if paused {
            self.machine.resume();
        }
        let frozen = self.client.freeze().and_then(|()| self.client.sync());
        let done = frozen.map(|()| act());
        let thawed = self.client.thaw();
        if paused {
            self.machine.pause();
        }
        let failed = |source| {
            self.running().err().unwrap_or(Error::Host { what: "stopping the guest's processes", source })
        };
        let done = done.map_err(failed)?;
        thawed.map_err(failed)?;
        Ok(done)
    }
}

impl From<FileSystemSnapshot> for Source {
    fn from(snapshot: FileSystemSnapshot) -> Self {
        Self { kind: Kind::FileSystem(snapshot) }
    }
}

impl From<&FileSystemSnapshot> for Source {
    fn from(snapshot: &FileSystemSnapshot) -> Self {
        snapshot.clone().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left_out(patterns: &[&str], path: &[u8]) -> bool {
        let options = patterns.iter().fold(FileSystemSnapshotOptions::new(), |o, p| o.exclude(*p));
        options.excluded().unwrap().is_match_candidate(&Candidate::from_bytes(path))
    }

    #[test]
    fn patterns_mean_what_their_description_says() {
        let cases: [(&str, &[&str], &[&str]); 9] = [
            ("*.tmp", &["a.tmp", "x/y/a.tmp", ".tmp"], &["a.tmp2", "a.tmp/b"]),
            (
                "var/cache/**",
                &["var/cache/a", "var/cache/a/b"],
                &["var/cache", "x/var/cache/a", "var/cachea"],
            ),
            ("/var/cache", &["var/cache"], &["srv/var/cache", "var/cache/a"]),
            ("var/cache/", &["var/cache"], &["srv/var/cache"]),
            ("/only", &["only"], &["x/only"]),
            ("node_modules", &["node_modules", "a/b/node_modules"], &["node_modules2"]),
            ("a/*/c", &["a/b/c"], &["a/c", "a/b/b/c"]),
            ("a/**/c", &["a/c", "a/b/c", "a/b/b/c"], &["c", "a/b"]),
            (
                "srv/{one,tw?}/[!x-z]\\*",
                &["srv/one/a*", "srv/two/b*"],
                &["srv/one/x*", "srv/one/ab", "srv/tw/a*"],
            ),
        ];
        for (pattern, yes, no) in cases {
            yes.iter().for_each(|path| assert!(left_out(&[pattern], path.as_bytes()), "{pattern} {path}"));
            no.iter().for_each(|path| assert!(!left_out(&[pattern], path.as_bytes()), "{pattern} {path}"));
        }
        assert!(left_out(&["\u{e4}*", "b"], b"x/b") && left_out(&["*.tmp"], b"\xff\n.tmp"));
        assert!(!left_out(&[], b"x"));
    }

    #[test]
    fn patterns_that_are_none_are_refused() {
        for bad in ["", "/", "[", "{a", "a[z-a]"] {
            let error = FileSystemSnapshotOptions::new().exclude(bad).excluded().unwrap_err();
            assert!(matches!(&error, Error::Exclude { pattern, .. } if pattern == bad), "{bad}: {error}");
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        }
    }
}
