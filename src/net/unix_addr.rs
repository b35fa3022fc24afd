//! Addresses of Unix sockets.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::agent::protocol::net::MAX_UNIX_NAME;
use crate::agent::{Name, Place};

/// The address of a Unix socket: a path, an abstract name, or none.
///
/// This corresponds to [`std::os::unix::net::SocketAddr`].
#[derive(Clone, PartialEq, Eq)]
pub struct UnixSocketAddr {
    /// As the kernel has it: an abstract name stands behind a NUL.
    name: Vec<u8>,
}

impl UnixSocketAddr {
    /// That of a path in the file system.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a path with a NUL in it or of more than 107 bytes.
    pub fn from_pathname(path: impl AsRef<Path>) -> io::Result<Self> {
        let name = path.as_ref().as_os_str().as_bytes().to_vec();
        if name.contains(&0) {
            let what = "paths must not contain interior null bytes";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        Self::checked(name)
    }

    /// That of a name which is in no file system. This corresponds to
    /// [`SocketAddrExt`](std::os::linux::net::SocketAddrExt)'s.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a name of more than 107 bytes.
    pub fn from_abstract_name(name: impl AsRef<[u8]>) -> io::Result<Self> {
        Self::checked([&[0], name.as_ref()].concat())
    }

    fn checked(name: Vec<u8>) -> io::Result<Self> {
        if name.len() > MAX_UNIX_NAME + usize::from(name.first() == Some(&0)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "path must be shorter than SUN_LEN"));
        }
        Ok(UnixSocketAddr { name })
    }

    /// The path, if it is one.
    pub fn as_pathname(&self) -> Option<&Path> {
        let path = !matches!(self.name.first(), None | Some(0));
        path.then(|| Path::new(OsStr::from_bytes(&self.name)))
    }

    /// The abstract name, if it is one.
    pub fn as_abstract_name(&self) -> Option<&[u8]> {
        self.name.strip_prefix(&[0])
    }

    /// Whether it is no address at all.
    pub fn is_unnamed(&self) -> bool {
        self.name.is_empty()
    }

    pub(super) fn unnamed() -> Self {
        UnixSocketAddr { name: Vec::new() }
    }

    pub(super) fn from_guest(name: Name) -> Self {
        match name {
            Name::Unix(name) => UnixSocketAddr { name },
            Name::Ip(_) => Self::unnamed(),
        }
    }

    pub(super) fn from_host(addr: &std::os::unix::net::SocketAddr) -> Self {
        use std::os::linux::net::SocketAddrExt;
        let name = match (addr.as_pathname(), addr.as_abstract_name()) {
            (Some(path), _) => path.as_os_str().as_bytes().to_vec(),
            (_, Some(name)) => [&[0], name].concat(),
            _ => Vec::new(),
        };
        UnixSocketAddr { name }
    }

    pub(super) fn to_host(&self) -> io::Result<std::os::unix::net::SocketAddr> {
        use std::os::linux::net::SocketAddrExt;
        match self.as_abstract_name() {
            Some(name) => std::os::unix::net::SocketAddr::from_abstract_name(name),
            None => std::os::unix::net::SocketAddr::from_pathname(OsStr::from_bytes(&self.name)),
        }
    }

    pub(super) fn place(&self) -> Place {
        Place::Names(vec![Name::Unix(self.name.clone())])
    }
}

impl fmt::Debug for UnixSocketAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.as_pathname(), self.as_abstract_name()) {
            (Some(path), _) => write!(f, "{path:?} (pathname)"),
            (_, Some(name)) => write!(f, "\"{}\" (abstract)", name.escape_ascii()),
            _ => f.write_str("(unnamed)"),
        }
    }
}
