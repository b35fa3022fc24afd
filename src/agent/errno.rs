//! Error numbers of the guest's kernel as errors of the host.

use std::error::Error;
use std::ffi::CStr;
use std::fmt;
use std::io::{self, ErrorKind};

use super::protocol::Obstacle;

/// The error for a Linux errno that came from the guest. On Linux hosts that is the same number;
/// elsewhere an error of the right kind that names the guest's number.
pub fn guest_error(errno: i32) -> io::Error {
    if cfg!(target_os = "linux") {
        return io::Error::from_raw_os_error(errno);
    }
    io::Error::new(kind(errno), format!("guest error {errno}"))
}

/// The kind of a Linux errno, as std has it on Linux; `Other` where that has no name.
pub(super) fn kind(errno: i32) -> ErrorKind {
    match errno {
        1 | 13 => ErrorKind::PermissionDenied,
        2 => ErrorKind::NotFound,
        4 => ErrorKind::Interrupted,
        7 => ErrorKind::ArgumentListTooLong,
        11 => ErrorKind::WouldBlock,
        12 => ErrorKind::OutOfMemory,
        16 => ErrorKind::ResourceBusy,
        17 => ErrorKind::AlreadyExists,
        18 => ErrorKind::CrossesDevices,
        20 => ErrorKind::NotADirectory,
        21 => ErrorKind::IsADirectory,
        22 => ErrorKind::InvalidInput,
        26 => ErrorKind::ExecutableFileBusy,
        27 => ErrorKind::FileTooLarge,
        28 => ErrorKind::StorageFull,
        29 => ErrorKind::NotSeekable,
        30 => ErrorKind::ReadOnlyFilesystem,
        31 => ErrorKind::TooManyLinks,
        32 => ErrorKind::BrokenPipe,
        35 => ErrorKind::Deadlock,
        36 => ErrorKind::InvalidFilename,
        38 | 95 => ErrorKind::Unsupported,
        39 => ErrorKind::DirectoryNotEmpty,
        98 => ErrorKind::AddrInUse,
        99 => ErrorKind::AddrNotAvailable,
        100 => ErrorKind::NetworkDown,
        101 => ErrorKind::NetworkUnreachable,
        103 => ErrorKind::ConnectionAborted,
        104 => ErrorKind::ConnectionReset,
        107 => ErrorKind::NotConnected,
        110 => ErrorKind::TimedOut,
        111 => ErrorKind::ConnectionRefused,
        113 => ErrorKind::HostUnreachable,
        116 => ErrorKind::StaleNetworkFileHandle,
        122 => ErrorKind::QuotaExceeded,
        _ => ErrorKind::Other,
    }
}

/// What failed, on what, and how. The message says all of it, so there is no source.
#[derive(Debug)]
struct Named {
    what: String,
    source: io::Error,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.source)
    }
}

impl Error for Named {}

/// Has an error say what was being done. Its kind stays, and [`raw_os_error`] finds its number.
pub fn named(what: impl fmt::Display, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), Named { what: what.to_string(), source })
}

/// The error number of the system that an operation failed on: the guest's, or the host's own.
///
/// An error of a guest's file, command or socket may also say what failed, and std has no room for that
/// beside the number: [`io::Error::raw_os_error`] is `None` then, and this finds it. `None` for errors
/// without a number, such as that the machine has ended.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let instance = cc::Instance::new(cc::Source::busybox()?)?;
/// const EXDEV: i32 = 18;
/// match instance.rename("/tmp/a", "/a") {
///     Err(e) if cc::raw_os_error(&e) == Some(EXDEV) => println!("on another file system"),
///     _ => {}
/// }
/// let refused = instance.connect_tcp("127.0.0.1:1").unwrap_err();
/// assert_eq!(cc::raw_os_error(&refused), Some(111));
/// # Ok(()) }
/// ```
pub fn raw_os_error(error: &io::Error) -> Option<i32> {
    if let Some(number) = error.raw_os_error() {
        return Some(number);
    }
    let mut next: Option<&(dyn Error + 'static)> = error.get_ref().map(|e| e as &(dyn Error + 'static));
    while let Some(error) = next {
        let inner = error.downcast_ref::<Named>().map(|named| &named.source);
        if let Some(number) = inner.or(error.downcast_ref::<io::Error>()).and_then(raw_os_error) {
            return Some(number);
        }
        next = error.source();
    }
    None
}

/// An error that says more than its number; the number's own error is its source.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
struct Explained {
    what: String,
    source: io::Error,
}

/// The error for a command that could not be started. What is wrong with the program is `exec`'s own
/// error; what is wrong with `user` or `cwd` names it.
pub(super) fn spawn_error(errno: i32, at: Obstacle, user: Option<&CStr>, cwd: Option<&CStr>) -> io::Error {
    const ENOENT: i32 = 2;
    const EACCES: i32 = 13;
    const ENOTDIR: i32 = 20;
    const ERANGE: i32 = 34;
    let source = guest_error(errno);
    let (subject, what) = match (at, errno) {
        (Obstacle::Program, _) => return source,
        (Obstacle::Terminal, _) => {
            let what = "the guest has no terminal to give".into();
            return io::Error::new(source.kind(), Explained { what, source });
        }
        (Obstacle::Limit, _) => {
            let what = "the guest refuses a resource limit".into();
            return io::Error::new(source.kind(), Explained { what, source });
        }
        (Obstacle::User, ENOENT) => (user, "there is no such user in the guest"),
        (Obstacle::Group, ENOENT) => (user, "there is no such group in the guest"),
        (Obstacle::User, ERANGE) => (user, "the user's number is out of range"),
        (Obstacle::Group, ERANGE) => (user, "the group's number is out of range"),
        (Obstacle::User, _) => (user, "the guest's /etc/passwd cannot be read"),
        (Obstacle::Group, _) => (user, "the guest's /etc/group cannot be read"),
        (Obstacle::Directory, ENOENT) => (cwd, "there is no such working directory in the guest"),
        (Obstacle::Directory, ENOTDIR) => (cwd, "the working directory is no directory"),
        (Obstacle::Directory, EACCES) => (cwd, "the working directory may not be entered"),
        (Obstacle::Directory, _) => (cwd, "the working directory cannot be entered"),
    };
    let kind = if errno == ERANGE { ErrorKind::InvalidInput } else { source.kind() };
    let subject = subject.unwrap_or(c"/").to_string_lossy().into_owned();
    io::Error::new(kind, Explained { what: format!("{what}: {subject:?}"), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What hosts of other systems make of a guest's errno is what Linux's own std makes of it.
    #[cfg(target_os = "linux")]
    #[test]
    fn every_errno_has_the_kind_of_std() {
        for errno in 1..=133 {
            let std = io::Error::from_raw_os_error(errno).kind();
            // Those that stable Rust cannot name.
            let unnamed =
                ["Uncategorized", "FilesystemLoop", "InProgress"].contains(&format!("{std:?}").as_str());
            let expected = if unnamed { ErrorKind::Other } else { std };
            assert_eq!(kind(errno), expected, "errno {errno}");
            assert_eq!(guest_error(errno).raw_os_error(), Some(errno));
        }
    }
}
