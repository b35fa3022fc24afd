//! The client: what callers ask for images.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::credentials::Credentials;
use super::fs_snapshot::{FileSystemSnapshot, FileSystemSnapshotEntry};
use super::load::load;
use super::options::{Options, Progress, PullPolicy};
use super::pull::pull;
use super::store::{Freed, Record, Store};
use super::{Digest, Error, Image, Platform, Reference};
use crate::sys::cache_dir;

/// Pulls images from registries and keeps them in a store that all processes of a user share.
///
/// Calls block; they need no runtime in the caller and may be made inside one. What a call starts ends with it.
///
/// ```no_run
/// # fn main() -> Result<(), cc::oci::Error> {
/// let image = cc::oci::Client::new()?.pull("alpine:latest")?;
/// println!("{} is {} bytes, runs {:?}", image.digest(), image.size(), image.config().cmd);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    options: Arc<Options>,
    store: Store,
}

/// Options for a [`Client`].
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    cache_dir: Option<PathBuf>,
    options: Options,
}

/// One image in the store, see [`Client::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The full reference; `None` for an image that was loaded without a name.
    pub reference: Option<String>,
    /// The digest of its manifest.
    pub digest: Digest,
    /// What it is for.
    pub platform: Platform,
    /// Bytes of its compressed layers.
    pub download_size: u64,
}

impl Client {
    /// A client with defaults: the user's store (below `CC_CACHE_DIR` if that is set), `linux/amd64`, the credentials
    /// of `docker login`.
    ///
    /// # Errors
    /// [`Error::NoCacheDirectory`] for a user without a home.
    pub fn new() -> Result<Client, Error> {
        Client::builder().build()
    }

    /// Options before the client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder { cache_dir: None, options: Options::new(PathBuf::new()) }
    }

    /// Gives an image, from the store or from its registry as the policy says.
    ///
    /// # Errors
    /// Everything in [`Error`]. After one, the store is as good as before, and what was downloaded of a layer serves
    /// the next pull.
    pub fn pull(&self, reference: &str) -> Result<Image, Error> {
        let reference: Reference = reference.parse()?;
        // What a digest names does not change.
        let fixed = reference.digest().is_some();
        if self.options.policy != PullPolicy::Always || fixed {
            if let Some(image) = self.local(&reference)? {
                return Ok(image);
            }
            if self.options.policy == PullPolicy::Never {
                let store = self.store.dir().to_owned();
                return Err(Error::NotLocal { image: reference.to_string(), store });
            }
        }
        self.store.prepare()?;
        let (options, store) = (self.options.clone(), self.store.clone());
        let (record, layers) = run(|| pull(options, store, reference))?;
        Ok(Image::new(record, layers, self.store.clone()))
    }

    /// The image as it is in the store, if all of it is.
    fn local(&self, reference: &Reference) -> Result<Option<Image>, Error> {
        match self.store.find(&reference.to_string(), &self.options.platform)? {
            Some(record) => self.open(record),
            None => Ok(None),
        }
    }

    fn open(&self, record: Record) -> Result<Option<Image>, Error> {
        let mut layers = Vec::with_capacity(record.layers.len());
        for info in &record.layers {
            match self.store.open_layer(&info.diff)? {
                Some(layer) => layers.push(layer),
                None => return Ok(None),
            }
        }
        Ok(Some(Image::new(record, layers, self.store.clone())))
    }

    /// Loads images from a file or directory: an OCI layout (directory or tar) or what `docker save` writes. Gives
    /// those for the client's platform, under the names they have there.
    ///
    /// # Errors
    /// [`Error::Malformed`], [`Error::Platform`] and others of [`Error`].
    pub fn load(&self, path: impl AsRef<Path>) -> Result<Vec<Image>, Error> {
        load(&self.options, &self.store, path.as_ref())
    }

    /// The images in the store, by reference.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let mut entries: Vec<Entry> = self
            .store
            .records()?
            .into_iter()
            .map(|(_, record)| Entry {
                download_size: record.layers.iter().map(|layer| layer.size).sum(),
                reference: record.reference,
                digest: record.digest,
                platform: record.config.platform,
            })
            .collect();
        entries.sort_by(|a, b| (&a.reference, &a.digest).cmp(&(&b.reference, &b.digest)));
        Ok(entries)
    }

    /// Removes an image, by reference or by its manifest's digest, for every platform; and those of its layers that
    /// no other image has and nobody uses. One that is in use goes with a later [`Client::prune`].
    ///
    /// # Errors
    /// [`Error::NotLocal`] when there is none; [`Error::Store`].
    pub fn remove(&self, reference: &str) -> Result<Freed, Error> {
        let digest = reference.parse::<Digest>().ok();
        let name = match digest {
            Some(_) => reference.to_owned(),
            None => reference.parse::<Reference>()?.to_string(),
        };
        let wanted = |record: &Record| match &digest {
            Some(digest) => record.digest == *digest,
            None => record.reference.as_deref() == Some(&name),
        };
        let (images, candidates) = self.store.remove_records(wanted)?;
        if images.is_empty() {
            return Err(Error::NotLocal { image: name, store: self.store.dir().to_owned() });
        }
        let layers = self.store.remove_layers(&candidates)?;
        Ok(Freed { images, layers, unfinished: 0 })
    }

    /// The snapshots of file systems in the store, by key.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn snapshots(&self) -> Result<Vec<FileSystemSnapshotEntry>, Error> {
        Ok(self.store.snapshot_records()?.iter().map(FileSystemSnapshotEntry::from).collect())
    }

    /// Opens the snapshot of a file system with this key.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`] when there is none that is whole; [`Error::Store`].
    pub fn snapshot(&self, key: &Digest) -> Result<FileSystemSnapshot, Error> {
        FileSystemSnapshot::open(&self.store, key)?.ok_or_else(|| self.no_snapshot(key))
    }

    /// Removes a snapshot of a file system, and those of its layers that no image and no other snapshot has and nobody
    /// uses. Snapshots that it is the parent of stay whole.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`] when there is none; [`Error::Store`].
    pub fn remove_snapshot(&self, key: &Digest) -> Result<Freed, Error> {
        self.store.remove_snapshot(key)?.ok_or_else(|| self.no_snapshot(key))
    }

    fn no_snapshot(&self, key: &Digest) -> Error {
        Error::NoSnapshot { key: key.to_string(), store: self.store.dir().to_owned() }
    }

    /// Removes what no image and no snapshot in the store needs and nobody uses: layers, and unfinished downloads.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub fn prune(&self) -> Result<Freed, Error> {
        self.store.prune()
    }
}

impl ClientBuilder {
    /// Keeps images below this directory. By default `CC_CACHE_DIR`, else the user's cache directory.
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(dir.into());
        self
    }

    /// For which platform images are. By default `linux/amd64`, which is what the machines of this crate are.
    pub fn platform(mut self, platform: Platform) -> Self {
        self.options.platform = platform;
        self
    }

    /// When registries are asked.
    pub fn policy(mut self, policy: PullPolicy) -> Self {
        self.options.policy = policy;
        self
    }

    /// User and password for the registry, instead of what `docker login` left. Mirrors do not get them.
    pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.options.credentials =
            Some(Credentials::Password { user: user.into(), password: password.into() });
        self
    }

    /// The directory with Docker's `config.json`. By default `DOCKER_CONFIG`, else `~/.docker`; `None` for no stored
    /// credentials.
    pub fn docker_config(mut self, dir: Option<PathBuf>) -> Self {
        self.options.docker_config = dir;
        self
    }

    /// Talks to this registry (`host[:port]`, as in references) without encryption. On the loopback it is so anyway.
    pub fn plain_http(mut self, registry: impl Into<String>) -> Self {
        self.options.plain_http.push(registry.into());
        self
    }

    /// Asks `mirror` (`host[:port]`, or a URL, with a path perhaps) before `registry` for its images; several in the
    /// order in which they are given.
    pub fn mirror(mut self, registry: impl Into<String>, mirror: impl Into<String>) -> Self {
        self.options.mirrors.entry(registry.into()).or_default().push(mirror.into());
        self
    }

    /// Is told of progress, from any thread, several at once too.
    pub fn on_progress(mut self, progress: impl Fn(Progress<'_>) + Send + Sync + 'static) -> Self {
        self.options.progress = Some(Arc::new(progress));
        self
    }

    /// How long a server may send next to nothing before the connection counts as dead; 30 s by default.
    pub fn no_progress_timeout(mut self, timeout: Duration) -> Self {
        self.options.no_progress = timeout;
        self
    }

    /// How often something is tried again without progress; 5 times by default.
    pub fn retries(mut self, retries: u32) -> Self {
        self.options.retries = retries;
        self
    }

    /// The longest that a server may ask us to wait (`Retry-After`); two minutes by default.
    pub fn max_retry_after(mut self, wait: Duration) -> Self {
        self.options.max_wait = wait;
        self
    }

    /// How many layers are fetched at once; 3 by default.
    pub fn parallel_downloads(mut self, layers: usize) -> Self {
        self.options.parallel = layers;
        self
    }

    /// Most bytes that one layer may unpack to; 64 GiB by default.
    pub fn max_layer_size(mut self, bytes: u64) -> Self {
        self.options.max_layer = bytes;
        self
    }

    /// The client.
    ///
    /// # Errors
    /// [`Error::NoCacheDirectory`], [`Error::Option`].
    pub fn build(self) -> Result<Client, Error> {
        let ClientBuilder { cache_dir, mut options } = self;
        if options.no_progress.is_zero() {
            return Err(Error::Option { option: "no_progress_timeout", reason: "it is zero".into() });
        }
        let cache = cache_dir.or_else(cache_dir::from_environment).or_else(cache_dir::of_user);
        options.store = cache.ok_or(Error::NoCacheDirectory)?.join("oci");
        let store = Store::at(&options.store);
        Ok(Client { options: Arc::new(options), store })
    }
}

/// Runs a future to its end on a runtime and threads of its own, so that it does not matter where the caller is.
fn run<T: Send, F: Future<Output = Result<T, Error>>>(make: impl FnOnce() -> F + Send) -> Result<T, Error> {
    let failed = |e: std::io::Error| Error::Host { what: "start the threads of a pull", source: e.into() };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("cc-pull".into()).spawn_scoped(scope, || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .thread_name("cc-pull")
                .enable_all()
                .build()
                .map_err(failed)?;
            runtime.block_on(make())
        });
        match thread.map_err(failed)?.join() {
            Ok(result) => result,
            // A callback of the caller's.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
