//! Where kernels and the built-in userland come from.
//!
//! Ways, in order: a path the caller gave, or `CC_KERNEL`; our cache; the system's own package
//! manager, which knows its mirrors and checks their signatures; Alpine's CDN, where there is no apt.
//! The first that gives something wins and fills the cache. Nothing that was fetched is ever run on
//! the host. When no way works, the error lists each with its reason.

mod alpine;
mod apt;
mod cache;
mod deb;
mod unpack;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::loader::Vmlinux;
use super::modules::ModuleStore;
use super::{Attempt, BootError, image};
use crate::sys::cache_dir;
use cache::{Cache, Draft};

/// A kernel image in a file is not larger, in bytes.
const MAX_KERNEL_FILE: u64 = 1 << 30;
/// Nor is a busybox.
const MAX_BUSYBOX: u64 = 64 << 20;

/// What is being done, for a progress display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Another process has the cache locked, probably to fetch the same.
    Waiting,
    /// Package indexes are brought up to date.
    Index,
    /// A package is downloaded; counted in bytes.
    Download,
    /// A package is unpacked; counted in bytes of the package.
    Unpack,
}

/// One report of progress.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// What is being done.
    pub phase: Phase,
    /// To what: the name of a package, or of a way to get one.
    pub what: &'a str,
    /// How far.
    pub current: u64,
    /// Out of how much, where that is known.
    pub total: Option<u64>,
}

/// Takes reports of progress. Called often and from the fetching thread: return quickly.
pub type OnProgress<'a> = &'a dyn Fn(Progress<'_>);

/// A kernel, ready to be loaded.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Release name, as `uname -r` shows it.
    pub release: String,
    /// Where it is from, for people.
    pub origin: String,
    /// The unpacked kernel.
    pub vmlinux: Vmlinux,
    /// Its modules.
    pub modules: Arc<ModuleStore>,
}

/// Finds kernels and the built-in userland. See the module's text.
#[derive(Debug, Clone)]
pub struct Provider {
    kernel: Option<PathBuf>,
    busybox: Option<PathBuf>,
    cache_dir: Option<PathBuf>,
    version: Option<String>,
    offline: bool,
    apt: bool,
    apt_sources: Option<PathBuf>,
    alpine: alpine::Options,
}

impl Default for Provider {
    fn default() -> Self {
        Self::new()
    }
}

impl Provider {
    /// All ways open, with what the environment says: `CC_KERNEL`, `CC_BUSYBOX`, `CC_CACHE_DIR`.
    pub fn new() -> Self {
        Self {
            kernel: env_path("CC_KERNEL"),
            busybox: env_path("CC_BUSYBOX"),
            cache_dir: cache_dir::from_environment(),
            ..Self::bare()
        }
    }

    /// All ways open, whatever the environment says.
    fn bare() -> Self {
        Self {
            kernel: None,
            busybox: None,
            cache_dir: None,
            version: None,
            offline: false,
            apt: true,
            apt_sources: None,
            alpine: alpine::Options::default(),
        }
    }

    /// Uses this kernel and no other: a bzImage or vmlinux file, or a directory that holds one and its
    /// modules (`lib/modules/<release>`, `modules`, or itself what is in one of those).
    pub fn with_kernel(mut self, path: impl Into<PathBuf>) -> Self {
        self.kernel = Some(path.into());
        self
    }

    /// Uses this static x86-64 busybox and no other.
    pub fn with_busybox(mut self, path: impl Into<PathBuf>) -> Self {
        self.busybox = Some(path.into());
        self
    }

    /// Where what is fetched is kept, if that was said.
    pub fn cache_dir(&self) -> Option<PathBuf> {
        self.cache_dir.clone()
    }

    /// Keeps what is fetched in this directory.
    pub fn with_cache_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(path.into());
        self
    }

    /// Asks for a kernel version: a prefix of the release name such as `6.12` or `6.1.0-56`. Has no
    /// effect on a kernel given by path.
    pub fn with_version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Only uses what is on this machine already.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Whether the system's package manager is asked. It is unless this says otherwise.
    pub fn use_apt(mut self, apt: bool) -> Self {
        self.apt = apt;
        self
    }

    /// Makes apt use this `sources.list` instead of the system's.
    pub fn with_apt_sources(mut self, path: impl Into<PathBuf>) -> Self {
        self.apt_sources = Some(path.into());
        self
    }

    /// Fetches Alpine packages from this mirror: an URL below which `latest-stable/main/x86_64` lies.
    pub fn with_alpine_mirror(mut self, url: impl Into<String>) -> Self {
        self.alpine.mirror = url.into();
        self
    }

    /// Trusts this key too, as `apk` would from `/etc/apk/keys`: the name of the key file and its
    /// PEM text.
    pub fn with_alpine_key(mut self, name: impl Into<String>, pem: impl Into<String>) -> Self {
        self.alpine.keys.push((name.into(), pem.into()));
        self
    }

    /// Whether Alpine's CDN is asked. It is unless this says otherwise.
    pub fn use_alpine(mut self, alpine: bool) -> Self {
        self.alpine.enabled = alpine;
        self
    }

    /// Finds or fetches a kernel.
    pub fn kernel(&self, progress: OnProgress<'_>) -> Result<Kernel, BootError> {
        if let Some(path) = &self.kernel {
            return from_path(path);
        }
        let wanted = match &self.version {
            Some(version) => format!("kernel-{}", checked_version(version)?),
            None => "kernel".to_owned(),
        };
        let suits = |entry: &cache::Entry| {
            self.version.as_deref().is_none_or(|version| version_matches(&entry.release(), version))
        };
        let entry = self.obtain(
            &[&wanted, "kernel"],
            &suits,
            progress,
            |tried| BootError::NoKernel { tried },
            |way, draft| match way {
                Way::Apt(apt) => apt.kernel(self.version.as_deref(), draft, progress),
                Way::Alpine => alpine::kernel(&self.alpine, self.version.as_deref(), draft, progress),
            },
        )?;
        entry.kernel()
    }

    /// Finds or fetches a static busybox and gives its bytes.
    pub fn busybox(&self, progress: OnProgress<'_>) -> Result<Vec<u8>, BootError> {
        if let Some(path) = &self.busybox {
            let bytes = read_file(path, MAX_BUSYBOX)?;
            unpack::check_program(&bytes).map_err(|e| e.in_file(path))?;
            return Ok(bytes);
        }
        let entry = self.obtain(
            &["busybox"],
            &|_| true,
            progress,
            |tried| BootError::NoUserland { tried },
            |way, draft| match way {
                Way::Apt(apt) => apt.busybox(draft, progress),
                Way::Alpine => alpine::busybox(&self.alpine, draft, progress),
            },
        )?;
        read_file(&entry.file("busybox"), MAX_BUSYBOX)
    }

    /// Gives the first entry of `requests` that is in the cache and suits, or fetches one for the
    /// first request.
    fn obtain(
        &self,
        requests: &[&str],
        suits: &dyn Fn(&cache::Entry) -> bool,
        progress: OnProgress<'_>,
        nothing: impl Fn(Vec<Attempt>) -> BootError,
        fetch: impl Fn(Way<'_>, &mut Draft) -> Result<(), BootError>,
    ) -> Result<cache::Entry, BootError> {
        let cache = Cache::at(match &self.cache_dir {
            Some(dir) => dir.clone(),
            None => cache_dir::of_user().ok_or(BootError::NoCacheDirectory)?,
        });
        let find = || requests.iter().find_map(|request| cache.find(request).filter(suits));
        let wanted = requests[0];
        if let Some(entry) = find() {
            return Ok(entry);
        }
        let mut tried =
            vec![Attempt { way: format!("the cache {}", cache.dir().display()), reason: "not in it".into() }];
        if self.offline {
            tried.push(Attempt { way: "the network".into(), reason: "switched off (offline)".into() });
            return Err(nothing(tried));
        }
        let lock = cache
            .lock(|| progress(Progress { phase: Phase::Waiting, what: wanted, current: 0, total: None }))?;
        // Another process may have fetched it while this one waited.
        if let Some(entry) = find() {
            return Ok(entry);
        }
        for name in ["apt", "alpine"] {
            let (way, label) = match name {
                "apt" if !self.apt => continue,
                "apt" => match apt::Apt::find(&lock, self.apt_sources.as_deref()) {
                    Ok(apt) => (Way::Apt(Box::new(apt)), "the system's package manager (apt)".to_owned()),
                    Err(e @ BootError::Cache { .. }) => return Err(e),
                    Err(e) => {
                        tried.push(Attempt {
                            way: "the system's package manager (apt)".into(),
                            reason: e.chain(),
                        });
                        continue;
                    }
                },
                _ if !self.alpine.enabled => continue,
                _ => (Way::Alpine, format!("Alpine Linux from {}", self.alpine.mirror)),
            };
            let mut draft = lock.draft()?;
            match fetch(way, &mut draft) {
                Ok(()) => return lock.publish(wanted, draft),
                // Without a place to put things, no other way helps.
                Err(e @ BootError::Cache { .. }) => return Err(e),
                Err(e) => {
                    tracing::debug!(way = label, error = e.chain(), "no {wanted} from here");
                    tried.push(Attempt { way: label, reason: e.chain() });
                }
            }
        }
        Err(nothing(tried))
    }
}

enum Way<'a> {
    Apt(Box<apt::Apt<'a>>),
    Alpine,
}

fn env_path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v: &OsString| !v.is_empty()).map(PathBuf::from)
}

/// A version goes into file names and package names, so it must look like one.
fn checked_version(version: &str) -> Result<&str, BootError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"+-._~".contains(&b);
    let digit_first = version.bytes().next().is_some_and(|b| b.is_ascii_digit());
    if digit_first && version.len() <= 64 && version.bytes().all(plain) {
        return Ok(version);
    }
    let tried = vec![Attempt {
        way: format!("version {version:?}"),
        reason: "not a kernel version; it should be like 6.12 or 6.1.0-56".into(),
    }];
    Err(BootError::NoKernel { tried })
}

/// Whether `release` is of the version `wanted`, a prefix that ends where a number ends.
fn version_matches(release: &str, wanted: &str) -> bool {
    release.strip_prefix(wanted).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn read_file(path: &Path, cap: u64) -> Result<Vec<u8>, BootError> {
    use std::io::Read;
    let failed = |source| BootError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(cap + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > cap {
        return Err(failed(std::io::Error::other("larger than any such file is")));
    }
    Ok(bytes)
}

/// The kernel in a file or directory of the caller.
fn from_path(path: &Path) -> Result<Kernel, BootError> {
    let meta = std::fs::metadata(path).map_err(|source| BootError::Read { path: path.to_owned(), source })?;
    let (file, root) = if meta.is_dir() { (kernel_in(path)?, Some(path)) } else { (path.to_owned(), None) };
    let bytes = read_file(&file, MAX_KERNEL_FILE)?;
    let vmlinux = image::vmlinux(&bytes).map_err(|e| e.in_file(&file))?;
    let release =
        image::release(&bytes).or_else(|| image::release(&vmlinux)).unwrap_or_else(|| "unknown".into());
    let modules = match root.and_then(|root| modules_in(root, &release)) {
        Some(dir) => ModuleStore::from_dir(&dir, &release)?,
        None => ModuleStore::empty(&release),
    };
    Ok(Kernel {
        origin: path.display().to_string(),
        vmlinux: Vmlinux::Bytes(vmlinux.into()),
        modules: Arc::new(modules),
        release,
    })
}

/// The kernel image in a directory: the first by name of the usual names, in `.` or `boot`.
fn kernel_in(dir: &Path) -> Result<PathBuf, BootError> {
    let mut found = Vec::new();
    for place in [dir.to_owned(), dir.join("boot")] {
        let Ok(entries) = std::fs::read_dir(&place) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let rank = ["vmlinux", "bzImage", "vmlinuz", "kernel"].iter().position(|p| name.starts_with(p));
            if let Some(rank) = rank.filter(|_| entry.path().is_file()) {
                found.push((rank, name.into_owned(), entry.path()));
            }
        }
    }
    found.sort();
    found.into_iter().next().map(|(_, _, path)| path).ok_or_else(|| {
        let reason = "a directory without a file named vmlinux*, bzImage* or vmlinuz* in it or its boot/";
        BootError::NotAKernel { reason }.in_file(dir)
    })
}

fn modules_in(root: &Path, release: &str) -> Option<PathBuf> {
    let places = [
        root.join("lib/modules").join(release),
        root.join("usr/lib/modules").join(release),
        root.join("modules").join(release),
        root.join("modules"),
    ];
    if let Some(place) = places.into_iter().find(|p| p.is_dir()) {
        return Some(place);
    }
    (root.join("kernel").is_dir() || root.join("modules.builtin").is_file()).then(|| root.to_owned())
}

#[cfg(test)]
mod tests;
