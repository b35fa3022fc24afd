//! The one error type of the module.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// One way of getting a kernel or userland that was tried, and why it gave none.
#[derive(Debug)]
pub struct Attempt {
    /// What was tried, for people.
    pub way: String,
    /// Why it did not help.
    pub reason: String,
}

/// Why a machine cannot be made ready to boot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// Every way of getting a kernel failed.
    #[error(
        "no kernel to be had; tried:{}\ngive one with the builder's `kernel` option or the environment variable \
         CC_KERNEL: a bzImage or vmlinux file, or a directory that holds one and its modules",
        List(.tried)
    )]
    NoKernel {
        /// Each way in the order tried.
        tried: Vec<Attempt>,
    },
    /// Every way of getting the built-in userland failed.
    #[error(
        "no busybox to be had; tried:{}\ngive a statically linked x86-64 one with the environment variable CC_BUSYBOX",
        List(.tried)
    )]
    NoUserland {
        /// Each way in the order tried.
        tried: Vec<Attempt>,
    },
    /// The bytes are no Linux kernel.
    #[error("not a Linux kernel: {reason}")]
    NotAKernel {
        /// What is missing or wrong.
        reason: &'static str,
    },
    /// The kernel image ends before its own header says.
    #[error("truncated kernel image: {part} needs {need} bytes, {have} are there")]
    TruncatedKernel {
        /// The part that is cut.
        part: &'static str,
        /// Bytes it should have.
        need: u64,
        /// Bytes there are.
        have: u64,
    },
    /// A kernel or program for another processor.
    #[error("this is for {found}; an x86-64 one is needed")]
    WrongArchitecture {
        /// What it is for.
        found: String,
    },
    /// Packed data that does not unpack.
    #[error("cannot unpack {format} data")]
    Unpack {
        /// Name of the compression format.
        format: &'static str,
        /// What the decoder says.
        #[source]
        source: io::Error,
    },
    /// Packed data in a format that is not known, or larger than any kernel is.
    #[error("cannot unpack: {reason}")]
    Unpackable {
        /// Why.
        reason: &'static str,
    },
    /// A file of the caller cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// A file was read but is not what it should be.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<BootError>,
    },
    /// A kernel module that is needed and neither there nor built in.
    #[error("kernel {kernel} has no module {module}, and it is not built in")]
    NoModule {
        /// The kernel's release name.
        kernel: String,
        /// The module.
        module: String,
    },
    /// A module file that is malformed, or modules that need each other in a circle.
    #[error("kernel module {module}: {reason}")]
    BadModule {
        /// The module.
        module: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Kernel, initramfs and tables do not fit into the machine's RAM.
    #[error("{have} MiB of memory are too little: this kernel and initramfs need at least {need} MiB")]
    MemoryTooSmall {
        /// RAM of the machine in MiB.
        have: u64,
        /// The least that is enough in MiB.
        need: u64,
    },
    /// The command line is too long or holds a byte it must not.
    #[error("kernel command line: {reason}")]
    CommandLine {
        /// What is wrong.
        reason: String,
    },
    /// The kernel could not be placed in guest RAM.
    #[error("cannot load the kernel: {reason}")]
    Load {
        /// What is wrong.
        reason: String,
    },
    /// A path that cannot be put into an initramfs, or too much for one.
    #[error("initramfs: {reason}: {path}")]
    Initramfs {
        /// The path in the initramfs.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The cache directory cannot be used. Choose another with the builder's cache option or the
    /// environment variable CC_CACHE_DIR.
    #[error("cannot {action} in the cache ({}); another place can be given with CC_CACHE_DIR", path.display())]
    Cache {
        /// What was being done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// No home directory and no CC_CACHE_DIR, so there is no place for the cache.
    #[error("no place for the cache: set CC_CACHE_DIR or HOME")]
    NoCacheDirectory,
    /// A package manager's program failed.
    #[error("{program}: {reason}")]
    Command {
        /// The program.
        program: String,
        /// Its last words.
        reason: String,
    },
    /// A download failed.
    #[error("{url}: {reason}")]
    Download {
        /// What was asked for.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// Downloaded data is not what its publisher signed.
    #[error("{what} fails its integrity check: {reason}")]
    Integrity {
        /// The file.
        what: String,
        /// Which check, and how.
        reason: String,
    },
    /// A package without the files it should have, or malformed.
    #[error("package {package}: {reason}")]
    Package {
        /// The package.
        package: String,
        /// What is wrong.
        reason: String,
    },
}

impl BootError {
    /// Says which file this error is about.
    pub(crate) fn in_file(self, path: impl Into<PathBuf>) -> Self {
        Self::File { path: path.into(), source: Box::new(self) }
    }

    /// This error and its sources in one line, for the lists of [`BootError::NoKernel`].
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        // `File` has its source in its own text.
        let mut next = match self {
            Self::File { source, .. } => std::error::Error::source(source.as_ref()),
            other => std::error::Error::source(other),
        };
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        text
    }
}

struct List<'a>(&'a [Attempt]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(" nothing (all ways are switched off)");
        }
        for attempt in self.0 {
            write!(f, "\n  - {}: {}", attempt.way, attempt.reason)?;
        }
        Ok(())
    }
}
