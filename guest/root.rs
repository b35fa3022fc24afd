//! The root that the host gives: mounted, furnished as a container finds it, and entered for good.
//!
//! What the agent started in stays below it, out of sight. `/proc`, `/sys` and `/dev` move along. `/tmp` and `/run`
//! become file systems in memory unless the root has something in them. Files that the host wants seen instead of the
//! root's own (`/etc/hosts` and the like) are mounted over them, so the root itself does not change.
//!
//! Failing to mount what was asked for is an error; so the host hears of it and the machine is of no use. Furniture is
//! best effort: a read-only root without a `/tmp` still runs commands.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;

use crate::log;
use crate::protocol::{self, Root};
use crate::sys::files::{
    self, MS_BIND, MS_MOVE, MS_RDONLY, O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_PATH, O_TRUNC,
};
use crate::sys::{self, Errno, Fd, O_RDWR, O_WRONLY};

const NEW: &CStr = c"/cc/root";
/// Where the contents of files that are mounted over others lie, in the first root.
const FILES: &CStr = c"/cc/files";
const NOSUID: usize = 2;
const NODEV: usize = 4;

/// Mounts `root` and makes it this process's, and so that of all it starts. Gives the files that lie over its own.
pub(crate) fn enter(root: &Root<'_>) -> Result<Vec<(CString, Fd)>, Errno> {
    let mut over = write_files(root);
    let _ = sys::mkdir(NEW, 0o755);
    let flags = if root.read_only { MS_RDONLY } else { 0 };
    files::mount_from(root.tag, c"virtiofs", NEW, flags)?;
    sys::chdir(NEW)?;
    for (from, to) in [(c"/proc", c"proc"), (c"/sys", c"sys"), (c"/dev", c"dev")] {
        let moved = directory(to, 0o755).and_then(|_| files::mount_from(from, c"none", to, MS_MOVE));
        if let Err(e) = moved {
            log(format_args!("cannot move {} into the root: errno {}", name(from), e.0));
            return Err(e);
        }
    }
    in_memory(c"tmp", 0o1777, c"mode=1777");
    in_memory(c"run", 0o755, c"mode=0755");

    // A file system in memory that holds the first root cannot be left by pivoting.
    files::mount_from(c".", c"none", c"/", MS_MOVE)?;
    files::chroot(c".")?;
    sys::chdir(c"/")?;

    over.retain(|(path, contents)| {
        let only = root.files.iter().any(|file| *file.path == **path && file.only_over);
        match put_over(path, contents, only) {
            Ok(()) => true,
            Err(sys::ENOENT) if only => false,
            Err(e) => {
                log(format_args!("cannot put a file over {}: errno {}", name(path), e.0));
                false
            }
        }
    });
    if let Err(e) = sys::sethostname(root.hostname.to_bytes()) {
        log(format_args!("cannot set the host name: errno {}", e.0));
    }
    for mount in &root.mounts {
        parents(mount.target);
        let flags = if mount.read_only { MS_RDONLY } else { 0 };
        let mounted = directory(mount.target, 0o755)
            .and_then(|_| files::mount_from(mount.tag, c"virtiofs", mount.target, flags));
        if let Err(e) = mounted {
            log(format_args!("cannot mount at {}: errno {}", name(mount.target), e.0));
            return Err(e);
        }
    }
    if let Some(path) = root.directory {
        parents(path);
        let _ = sys::mkdir(path, 0o755);
    }
    Ok(over)
}

/// Gives a file that lies over one of the root's other contents.
pub(crate) fn rewrite(file: &Fd, contents: &[u8]) -> Result<(), Errno> {
    // The open file has a position of its own and may only be read by now.
    fill(&sys::open(&files::path_of(file), O_WRONLY | O_TRUNC)?, contents)
}

fn fill(file: &Fd, mut contents: &[u8]) -> Result<(), Errno> {
    while !contents.is_empty() {
        let n = file.write(contents)?;
        contents = contents.get(n.max(1)..).unwrap_or_default();
    }
    Ok(())
}

fn name(path: &CStr) -> &str {
    path.to_str().unwrap_or("?")
}

/// Opens the directory `path`, which is made if nothing has that name. A symbolic link is none.
fn directory(path: &CStr, mode: u32) -> Result<Fd, Errno> {
    let flags = O_PATH | O_DIRECTORY | O_NOFOLLOW;
    match sys::open(path, flags) {
        Err(sys::ENOENT) => {
            sys::mkdir(path, mode)?;
            let _ = files::chmod(path, mode);
            sys::open(path, flags)
        }
        other => other,
    }
}

/// Makes all directories above `path`, as far as they are not there.
fn parents(path: &CStr) {
    let bytes = path.to_bytes();
    for (at, _) in bytes.iter().enumerate().filter(|&(at, &b)| b == b'/' && at > 0) {
        if let Some(parent) = bytes.get(..at).and_then(|p| CString::new(p).ok()) {
            let _ = sys::mkdir(&parent, 0o755);
        }
    }
}

/// Mounts a file system in memory at `path` if that is an empty directory, or nothing yet.
fn in_memory(path: &CStr, mode: u32, options: &CStr) {
    if directory(path, mode).is_err() {
        return;
    }
    let empty = sys::open(path, O_DIRECTORY | O_NOFOLLOW).and_then(|dir| files::is_empty(&dir));
    if empty == Ok(true)
        && let Err(e) = sys::mount(c"tmpfs", path, NOSUID | NODEV, options)
    {
        log(format_args!("cannot mount /{}: errno {}", name(path), e.0));
    }
}

/// Writes the contents of the files to be seen into the first root; gives each path and an open file.
fn write_files(root: &Root<'_>) -> Vec<(CString, Fd)> {
    let _ = sys::mkdir(FILES, 0o755);
    let mut written = Vec::new();
    for (n, protocol::File { path, contents, .. }) in root.files.iter().enumerate() {
        let file = CString::new(alloc::format!("{}/{n}", name(FILES))).unwrap_or_default();
        let write = || {
            let fd = files::create(&file, O_RDWR | O_EXCL, 0o644)?;
            fill(&fd, contents)?;
            Ok(fd)
        };
        match write() {
            Ok(fd) => written.push(((*path).into(), fd)),
            Err(Errno(e)) => log(format_args!("cannot write what is to be {}: errno {e}", name(path))),
        }
    }
    written
}

/// Mounts the open file `contents` over the file `path`, which is made if it is not there, unless `only` over one.
fn put_over(path: &CStr, contents: &Fd, only: bool) -> Result<(), Errno> {
    if !only {
        parents(path);
    }
    let target = match sys::open(path, O_PATH) {
        Err(e) if only => return Err(e),
        // Also where a symbolic link leads nowhere.
        Err(sys::ENOENT) => {
            let _ = files::unlink(path);
            files::create(path, O_RDWR | O_CREAT, 0o644)?
        }
        other => other?,
    };
    files::mount_from(&files::path_of(contents), c"none", &files::path_of(&target), MS_BIND)
}
