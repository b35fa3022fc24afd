//! System calls for files and mounts.

use alloc::ffi::CString;
use alloc::format;
use core::ffi::CStr;

use super::{Fd, O_CLOEXEC, Result, call3, call4, call6, nr};

pub(crate) const MS_RDONLY: usize = 1;
pub(crate) const MS_BIND: usize = 4096;
pub(crate) const MS_MOVE: usize = 8192;

pub(crate) const O_CREAT: i32 = 0o100;
pub(crate) const O_EXCL: i32 = 0o200;
pub(crate) const O_TRUNC: i32 = 0o1000;
pub(crate) const O_DIRECTORY: i32 = 0o200_000;
pub(crate) const O_NOFOLLOW: i32 = 0o400_000;
pub(crate) const O_PATH: i32 = 0o10_000_000;

const AT_FDCWD: isize = -100;

/// Mounts `kind` from `source` at `at`.
pub(crate) fn mount_from(source: &CStr, kind: &CStr, at: &CStr, flags: usize) -> Result<()> {
    let (source, kind, at) = (source.as_ptr() as usize, kind.as_ptr() as usize, at.as_ptr() as usize);
    // SAFETY: all strings end with a NUL.
    unsafe { call6(nr::MOUNT, [source, at, kind, flags, 0, 0]) }.map(drop)
}

/// Takes away what is mounted at `at`.
pub(crate) fn unmount(at: &CStr) -> Result<()> {
    // SAFETY: the path ends with a NUL.
    unsafe { call3(nr::UMOUNT2, at.as_ptr() as usize, 0, 0) }.map(drop)
}

pub(crate) fn chroot(path: &CStr) -> Result<()> {
    // SAFETY: the path ends with a NUL.
    unsafe { call3(nr::CHROOT, path.as_ptr() as usize, 0, 0) }.map(drop)
}

pub(crate) fn unlink(path: &CStr) -> Result<()> {
    // SAFETY: the path ends with a NUL.
    unsafe { call3(nr::UNLINK, path.as_ptr() as usize, 0, 0) }.map(drop)
}

pub(crate) fn chmod(path: &CStr, mode: u32) -> Result<()> {
    // SAFETY: the path ends with a NUL.
    unsafe { call3(nr::CHMOD, path.as_ptr() as usize, mode as usize, 0) }.map(drop)
}

/// Makes and opens a file.
pub(crate) fn create(path: &CStr, flags: i32, mode: u32) -> Result<Fd> {
    let flags = (flags | O_CREAT | O_CLOEXEC) as usize;
    // SAFETY: the path ends with a NUL.
    unsafe { call4(nr::OPENAT, AT_FDCWD as usize, path.as_ptr() as usize, flags, mode as usize) }
        .map(|fd| Fd(fd as i32))
}

/// Calls `f` with the name of every entry of the open directory, `.` and `..` too.
pub(crate) fn each_name(dir: &Fd, mut f: impl FnMut(&[u8])) -> Result<()> {
    let mut entries = [0u8; 2048];
    loop {
        // SAFETY: the kernel writes at most the given number of bytes.
        let n = unsafe {
            call3(nr::GETDENTS64, dir.0 as usize, entries.as_mut_ptr() as usize, entries.len())?
        };
        let mut rest = entries.get(..n).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        // Inode, offset, length of the entry, type, name with NUL and padding.
        while let Some(&[low, high]) = rest.get(16..18).and_then(|len| len.first_chunk()) {
            let len = usize::from(u16::from_le_bytes([low, high])).max(1);
            let name = rest.get(19..len).unwrap_or_default();
            f(name.split(|&b| b == 0).next().unwrap_or_default());
            rest = rest.get(len..).unwrap_or_default();
        }
    }
}

/// Whether the open directory has no entries.
pub(crate) fn is_empty(dir: &Fd) -> Result<bool> {
    let mut names = 0;
    each_name(dir, |_| names += 1)?;
    Ok(names <= 2)
}

/// The name by which calls that want a path reach what `fd` refers to, wherever it is.
pub(crate) fn path_of(fd: &Fd) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.raw())).unwrap_or_default()
}
