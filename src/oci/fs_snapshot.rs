//! Snapshots of file systems: a parent and one layer of changes, kept in the store under a key.
//!
//! The key says what the snapshot is, not when or where it was taken: it is a digest of the parent's key and of the
//! changes. In the changes are names, types, contents, modes, owners, device numbers, link targets, hard links,
//! extended attributes and removals; no times. A layer has times of modification, so of several snapshots with
//! one key the first that was taken is kept, with its times.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::digest::Hasher;
use super::manifest::MAX_LAYERS;
use super::store::{Directory, SnapshotRecord, Store, Work};
use super::{Digest, Error, Image, ImageConfig};
use crate::vfs::Overlay;
use crate::vfs::layer::{Index, Layer, TarLimits};

/// How often it is looked whether another process has finished.
const POLL: Duration = Duration::from_millis(5);
/// How long another process may make no progress.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the changes of a snapshot were made to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Parent {
    /// The built-in userland, by the digest of its layer.
    Userland(Digest),
    /// An image, by the digest of its configuration, which names all its layers.
    Image(Digest),
    /// A directory of the host, which must stay as it was.
    Directory(PathBuf),
    /// Another snapshot, by its key.
    Snapshot(Digest),
}

/// A file system as it was at a moment, in the store and staying there while this value, or a machine that runs from
/// it, lives. As a source it starts any number of machines, in this and in later processes. Cheap to clone.
///
/// It does not need its parent's record or image: it has all layers. Only if a directory of the host is at the
/// beginning of its chain, that must still be there and as it was when the first snapshot was taken; the store does
/// not watch over it.
#[derive(Clone)]
pub struct FileSystemSnapshot {
    inner: Arc<Inner>,
}

struct Inner {
    record: SnapshotRecord,
    layers: Vec<Layer>,
    store: Store,
}

/// One snapshot in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileSystemSnapshotEntry {
    /// What it is opened by.
    pub key: Digest,
    /// What its changes were made to.
    pub parent: Parent,
    /// How many layers it has, its parents' among them.
    pub layers: usize,
}

/// What a file system with changes started from.
#[derive(Clone, Debug)]
pub(crate) enum Base {
    Userland(Layer),
    Image(Image),
    Directory { path: Arc<Path>, user_as_root: bool },
    Snapshot(FileSystemSnapshot),
}

/// The changes of an overlay, less those to paths that are left out.
pub(crate) struct Changes<'a> {
    pub(crate) overlay: &'a Overlay,
    pub(crate) leave_out: &'a dyn Fn(&[u8]) -> bool,
}

/// The key of a snapshot: what is in it must never change its meaning without changing the first line.
pub(super) fn key_of(parent: &Parent, directory: Option<&Directory>, changes: &Digest) -> Digest {
    let mut bytes = b"file system snapshot 1\n".to_vec();
    match parent {
        Parent::Userland(diff) => bytes.extend(format!("userland {diff}").into_bytes()),
        Parent::Image(config) => bytes.extend(format!("image {config}").into_bytes()),
        Parent::Directory(path) => {
            let user_as_root = directory.is_some_and(|directory| directory.user_as_root);
            bytes.extend(format!("directory {user_as_root} ").into_bytes());
            bytes.extend(path.as_os_str().as_encoded_bytes());
        }
        Parent::Snapshot(key) => bytes.extend(format!("snapshot {key}").into_bytes()),
    }
    // A path may have a line feed, a digest not: the last line is the changes, whatever the parent is.
    bytes.extend(format!("\n{changes}").into_bytes());
    Digest::of(&bytes)
}

impl FileSystemSnapshot {
    /// What it is, whenever and wherever it was taken: equal for equal changes to equal parents. Times of files are
    /// not part of that, nor is what was left out.
    pub fn key(&self) -> &Digest {
        &self.inner.record.key
    }

    /// What its changes were made to.
    pub fn parent(&self) -> &Parent {
        &self.inner.record.parent
    }

    /// Its layers, lowest first; the last has its changes, the others are its parents'. A directory of the host at the
    /// beginning of the chain is no layer.
    pub fn layers(&self) -> &[Layer] {
        &self.inner.layers
    }

    /// The directory of the host below all layers, if that is what the chain begins with.
    pub fn directory(&self) -> Option<&Path> {
        self.inner.record.directory.as_ref().map(|directory| &*directory.path)
    }

    /// What the image at the beginning of the chain says about how its programs are run.
    pub fn config(&self) -> Option<&ImageConfig> {
        self.inner.record.config.as_ref().map(|(_, config)| config)
    }

    /// Bytes of the layer with its changes; its parents' are not counted.
    pub fn size(&self) -> u64 {
        self.inner.layers.last().map_or(0, |layer| layer.index().tar_len())
    }

    /// Whether files of the host's user look like root's, in the directory below all layers.
    pub(crate) fn user_as_root(&self) -> bool {
        self.inner.record.directory.as_ref().is_some_and(|directory| directory.user_as_root)
    }

    /// Opens the snapshot with this key; `None` if it is not in the store, or not all of it.
    pub(super) fn open(store: &Store, key: &Digest) -> Result<Option<FileSystemSnapshot>, Error> {
        let Some(record) = store.find_snapshot(key)? else { return Ok(None) };
        let mut layers = Vec::with_capacity(record.layers.len());
        for diff in &record.layers {
            match store.open_layer(diff)? {
                Some(layer) => layers.push(layer),
                None => return Ok(None),
            }
        }
        Ok(Some(FileSystemSnapshot { inner: Arc::new(Inner { record, layers, store: store.clone() }) }))
    }

    /// Takes `changes`, which were made to `base`, into the store: `dir` if it is given, else where the base is.
    pub(crate) fn take(
        base: &Base,
        changes: &Changes<'_>,
        dir: Option<&Path>,
    ) -> Result<FileSystemSnapshot, Error> {
        let store = match (dir, base) {
            (Some(dir), _) => Store::at(&dir.join("oci")),
            (None, Base::Image(image)) => image.store().clone(),
            (None, Base::Snapshot(snapshot)) => snapshot.inner.store.clone(),
            (None, _) => return Err(Error::NoCacheDirectory),
        };
        store.prepare()?;
        let lower = base.layers()?;
        if lower.len() >= MAX_LAYERS {
            return Err(Error::Unsupported {
                what: format!("a file system of more than {MAX_LAYERS} layers"),
            });
        }
        let (parent, directory) = (base.parent(&lower), base.directory());
        let digest = changes.digest()?;
        let key = key_of(&parent, directory.as_ref(), &digest);
        let there = || FileSystemSnapshot::open(&store, &key);
        let work = match wait(&store, &key, there)? {
            Ok(work) => work,
            Err(snapshot) => return Ok(snapshot),
        };
        let mut layers = Vec::with_capacity(lower.len() + 1);
        let mut diffs = Vec::with_capacity(lower.len() + 1);
        for (diff, layer) in lower {
            layers.push(adopt(&store, &diff, layer)?);
            diffs.push(diff);
        }
        let (diff, layer) = match changes.write(&store, &work) {
            Ok(written) => written,
            Err(e) => {
                work.discard();
                return Err(e);
            }
        };
        layers.push(layer);
        diffs.push(diff);
        let record =
            SnapshotRecord { key, parent, changes: digest, layers: diffs, directory, config: base.config() };
        store.write_snapshot(&record)?;
        // Whoever waits for it finds the record.
        drop(work);
        Ok(FileSystemSnapshot { inner: Arc::new(Inner { record, layers, store }) })
    }
}

impl std::fmt::Debug for FileSystemSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileSystemSnapshot")
            .field("key", self.key())
            .field("parent", self.parent())
            .field("layers", &self.layers().len())
            .finish_non_exhaustive()
    }
}

impl From<&SnapshotRecord> for FileSystemSnapshotEntry {
    fn from(record: &SnapshotRecord) -> Self {
        Self { key: record.key.clone(), parent: record.parent.clone(), layers: record.layers.len() }
    }
}

impl Base {
    fn layers(&self) -> Result<Vec<(Digest, Layer)>, Error> {
        Ok(match self {
            Base::Userland(layer) => {
                let mut hasher = Digest::sha256();
                io::copy(&mut layer.read_tar(), &mut Hashed { out: io::sink(), hasher: &mut hasher })
                    .map_err(|source| Error::Changes { source })?;
                vec![(hasher.finish(), layer.clone())]
            }
            Base::Image(image) => {
                let diffs = image.record().layers.iter().map(|info| info.diff.clone());
                diffs.zip(image.layers().iter().cloned()).collect()
            }
            Base::Directory { .. } => Vec::new(),
            Base::Snapshot(snapshot) => {
                let diffs = snapshot.inner.record.layers.iter().cloned();
                diffs.zip(snapshot.layers().iter().cloned()).collect()
            }
        })
    }

    fn parent(&self, layers: &[(Digest, Layer)]) -> Parent {
        match self {
            Base::Userland(_) => {
                let diff = layers.first().map(|(diff, _)| diff.clone());
                Parent::Userland(diff.unwrap_or_else(|| Digest::of(b"")))
            }
            Base::Image(image) => Parent::Image(image.record().config_digest.clone()),
            Base::Directory { path, .. } => Parent::Directory(path.to_path_buf()),
            Base::Snapshot(snapshot) => Parent::Snapshot(snapshot.key().clone()),
        }
    }

    fn directory(&self) -> Option<Directory> {
        match self {
            Base::Directory { path, user_as_root } => {
                Some(Directory { path: path.to_path_buf(), user_as_root: *user_as_root })
            }
            Base::Snapshot(snapshot) => snapshot.inner.record.directory.clone(),
            _ => None,
        }
    }

    fn config(&self) -> Option<(String, ImageConfig)> {
        match self {
            Base::Image(image) => {
                let record = image.record();
                Some((record.config_text.clone(), record.config.clone()))
            }
            Base::Snapshot(snapshot) => snapshot.inner.record.config.clone(),
            _ => None,
        }
    }
}

impl Changes<'_> {
    /// What they are without their times.
    fn digest(&self) -> Result<Digest, Error> {
        let mut hasher = Digest::sha256();
        let out = Hashed { out: io::sink(), hasher: &mut hasher };
        self.overlay
            .write_layer_without_times(out, self.leave_out)
            .map_err(|source| Error::Changes { source })?;
        Ok(hasher.finish())
    }

    /// Makes them a layer of the store.
    fn write(&self, store: &Store, work: &Work) -> Result<(Digest, Layer), Error> {
        let (tar, path) = work.create_tar()?;
        let failed = Error::store("write", &path);
        let mut hasher = Digest::sha256();
        let mut out = BufWriter::with_capacity(1 << 18, Hashed { out: &tar, hasher: &mut hasher });
        self.overlay.write_layer(&mut out, self.leave_out).and_then(|()| out.flush()).map_err(&failed)?;
        drop(out);
        let diff = hasher.finish();
        let index = Index::build_from_file(&tar, TarLimits::default())
            .map_err(|source| Error::Layer { layer: "the layer of changes".into(), source })?;
        let lock = match wait_for(store, &diff, || store.try_lock(&diff), || store.open_layer(&diff))? {
            Ok(lock) => lock,
            Err((_, layer)) => {
                work.clear();
                return Ok((diff, layer));
            }
        };
        let layer = work.publish_as(tar, index, store, &diff)?;
        drop(lock);
        Ok((diff, layer))
    }
}

/// Sees to it that a layer is in the store.
fn adopt(store: &Store, diff: &Digest, layer: Layer) -> Result<Layer, Error> {
    let work = match wait(store, diff, || store.open_layer(diff))? {
        Ok(work) => work,
        Err(layer) => return Ok(layer),
    };
    let copy = || {
        let (tar, path) = work.create_tar()?;
        let mut hasher = diff.hasher();
        io::copy(&mut layer.read_tar(), &mut Hashed { out: &tar, hasher: &mut hasher })
            .map_err(Error::store("write", &path))?;
        let found = hasher.finish();
        if found != *diff {
            let (what, server) = ("a layer".into(), "another store".into());
            return Err(Error::Digest { what, server, expected: diff.to_string(), found: found.to_string() });
        }
        work.publish(tar, layer.index().clone())
    };
    let copied = copy();
    if copied.is_err() {
        work.discard();
    }
    copied
}

/// Waits until what is made under `name` is there, or the right to make it is ours.
fn wait<T>(
    store: &Store,
    name: &Digest,
    there: impl Fn() -> Result<Option<T>, Error>,
) -> Result<Result<Work, T>, Error> {
    Ok(wait_for(store, name, || store.try_work(name), there)?.map_err(|(work, made)| {
        if let Some(work) = work {
            work.discard();
        }
        made
    }))
}

/// The right, or what was made meanwhile, with the right to it where we have got it.
type Waited<R, T> = Result<R, (Option<R>, T)>;

fn wait_for<R, T>(
    store: &Store,
    name: &Digest,
    right: impl Fn() -> Result<Option<R>, Error>,
    there: impl Fn() -> Result<Option<T>, Error>,
) -> Result<Waited<R, T>, Error> {
    let mut seen = (0, Instant::now());
    loop {
        // In this order: whoever makes it lets go of the right only afterwards.
        let right = right()?;
        if let Some(made) = there()? {
            return Ok(Err((right, made)));
        }
        if let Some(right) = right {
            return Ok(Ok(right));
        }
        let size = store.work_size(name);
        if size != seen.0 {
            seen = (size, Instant::now());
        } else if seen.1.elapsed() > PATIENCE {
            return Err(Error::Busy { what: name.to_string() });
        }
        std::thread::sleep(POLL);
    }
}

/// Hashes what goes through.
struct Hashed<'a, W> {
    out: W,
    hasher: &'a mut Hasher,
}

impl<W: Write> Write for Hashed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hasher.update(bytes.get(..n).unwrap_or_default());
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
