//! System calls on files, by path and by descriptor.

use core::ffi::CStr;

use super::{Errno, Fd, O_CLOEXEC, Result, call3, call4, call6, retry};
use crate::protocol::files::{Stat, Target, Time};

pub(crate) const O_TRUNC: i32 = 0o1000;

pub(crate) const EISDIR: Errno = Errno(21);
pub(crate) const ELOOP: Errno = Errno(40);
pub(crate) const EBADF: Errno = Errno(9);
pub(crate) const EMFILE: Errno = Errno(24);
pub(crate) const ENOSYS: Errno = Errno(38);
pub(crate) const EXDEV: Errno = Errno(18);
pub(crate) const EOPNOTSUPP: Errno = Errno(95);
pub(crate) const ECANCELED: Errno = Errno(125);

pub(crate) const S_IFMT: u32 = 0o170_000;
pub(crate) const S_IFREG: u32 = 0o100_000;
pub(crate) const S_IFDIR: u32 = 0o040_000;
pub(crate) const S_IFLNK: u32 = 0o120_000;

/// The descriptor that stands for the working directory.
pub(crate) const HERE: i32 = -100;
const AT_SYMLINK_NOFOLLOW: usize = 0x100;
const AT_REMOVEDIR: usize = 0x200;
const AT_EMPTY_PATH: usize = 0x1000;

mod nr {
    pub(super) const LSEEK: usize = 8;
    pub(super) const PREAD64: usize = 17;
    pub(super) const PWRITE64: usize = 18;
    pub(super) const FLOCK: usize = 73;
    pub(super) const FSYNC: usize = 74;
    pub(super) const FDATASYNC: usize = 75;
    pub(super) const FTRUNCATE: usize = 77;
    pub(super) const FCHMOD: usize = 91;
    pub(super) const FCHOWN: usize = 93;
    pub(super) const GETDENTS64: usize = 217;
    pub(super) const OPENAT: usize = 257;
    pub(super) const MKDIRAT: usize = 258;
    pub(super) const FCHOWNAT: usize = 260;
    pub(super) const UNLINKAT: usize = 263;
    pub(super) const RENAMEAT: usize = 264;
    pub(super) const LINKAT: usize = 265;
    pub(super) const SYMLINKAT: usize = 266;
    pub(super) const READLINKAT: usize = 267;
    pub(super) const FCHMODAT: usize = 268;
    pub(super) const UTIMENSAT: usize = 280;
    pub(super) const COPY_FILE_RANGE: usize = 326;
    pub(super) const STATX: usize = 332;
}

/// A descriptor as an argument.
fn arg(fd: i32) -> usize {
    fd as isize as usize
}

fn at(path: &CStr) -> usize {
    path.as_ptr() as usize
}

pub(crate) fn open_at(dir: i32, path: &CStr, flags: i32, mode: u32) -> Result<Fd> {
    let flags = (flags | O_CLOEXEC) as usize;
    // SAFETY: the path ends with a NUL.
    retry(|| unsafe { call4(nr::OPENAT, arg(dir), at(path), flags, mode as usize) }).map(|fd| Fd(fd as i32))
}

/// Reads at most `len` bytes at an offset into the memory at `buf`.
///
/// # Safety
/// `len` bytes at `buf` may be written.
pub(crate) unsafe fn read_at(fd: i32, buf: *mut u8, len: usize, offset: Option<u64>) -> Result<usize> {
    // SAFETY: on the caller.
    retry(|| unsafe {
        match offset {
            None => call3(super::nr::READ, arg(fd), buf as usize, len),
            Some(offset) => call4(nr::PREAD64, arg(fd), buf as usize, len, offset as usize),
        }
    })
}

pub(crate) fn write_at(fd: i32, bytes: &[u8], offset: Option<u64>) -> Result<usize> {
    // SAFETY: the kernel reads at most bytes.len() bytes of them.
    retry(|| unsafe {
        match offset {
            None => call3(super::nr::WRITE, arg(fd), bytes.as_ptr() as usize, bytes.len()),
            Some(offset) => {
                call4(nr::PWRITE64, arg(fd), bytes.as_ptr() as usize, bytes.len(), offset as usize)
            }
        }
    })
}

pub(crate) fn seek(fd: i32, offset: i64, whence: u32) -> Result<u64> {
    // SAFETY: no pointers.
    unsafe { call3(nr::LSEEK, arg(fd), offset as usize, whence as usize) }.map(|at| at as u64)
}

pub(crate) fn truncate(fd: i32, len: u64) -> Result<()> {
    // SAFETY: no pointers.
    retry(|| unsafe { call3(nr::FTRUNCATE, arg(fd), len as usize, 0) }).map(drop)
}

pub(crate) fn sync_file(fd: i32, data: bool) -> Result<()> {
    let nr = if data { nr::FDATASYNC } else { nr::FSYNC };
    // SAFETY: no pointers.
    retry(|| unsafe { call3(nr, arg(fd), 0, 0) }).map(drop)
}

pub(crate) fn lock(fd: i32, how: i32) -> Result<()> {
    // SAFETY: no pointers.
    retry(|| unsafe { call3(nr::FLOCK, arg(fd), how as usize, 0) }).map(drop)
}

pub(crate) fn close(fd: i32) -> Result<()> {
    // SAFETY: no pointers. The caller says that nothing else uses this descriptor.
    unsafe { call3(super::nr::CLOSE, arg(fd), 0, 0) }.map(drop)
}

/// Another descriptor for the same file, not below `least`.
pub(crate) fn duplicate_from(fd: i32, least: i32) -> Result<Fd> {
    const F_DUPFD_CLOEXEC: usize = 1030;
    // SAFETY: no pointers.
    unsafe { call3(super::nr::FCNTL, arg(fd), F_DUPFD_CLOEXEC, least as usize) }.map(|fd| Fd(fd as i32))
}

/// Fills `buf` with entries of an open directory.
pub(crate) fn entries(fd: i32, buf: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most buf.len() bytes.
    retry(|| unsafe { call3(nr::GETDENTS64, arg(fd), buf.as_mut_ptr() as usize, buf.len()) })
}

#[repr(C)]
#[derive(Default)]
struct Timestamp {
    secs: i64,
    nanos: u32,
    padding: i32,
}

/// The kernel's `struct statx`, 256 bytes.
#[repr(C)]
#[derive(Default)]
struct Statx {
    mask: u32,
    blksize: u32,
    attributes: u64,
    nlink: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    padding: u16,
    ino: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    atime: Timestamp,
    btime: Timestamp,
    ctime: Timestamp,
    mtime: Timestamp,
    rdev: [u32; 2],
    dev: [u32; 2],
    rest: [u64; 14],
}

pub(crate) fn stat(target: Target<'_>) -> Result<Stat> {
    match target {
        Target::Path(path) => stat_at(HERE, path, 0),
        Target::Link(path) => stat_at(HERE, path, AT_SYMLINK_NOFOLLOW),
        Target::File(fd) => stat_at(fd, c"", AT_EMPTY_PATH),
    }
}

fn stat_at(dir: i32, path: &CStr, flags: usize) -> Result<Stat> {
    const BASIC_AND_BIRTH: usize = 0xfff;
    const BIRTH: u32 = 0x800;
    let mut x = Statx::default();
    // SAFETY: the path ends with a NUL; the kernel writes the 256 bytes of its struct statx.
    unsafe { call6(nr::STATX, [arg(dir), at(path), flags, BASIC_AND_BIRTH, &raw mut x as usize, 0])? };
    let time = |t: &Timestamp| (t.secs, t.nanos);
    let device = |[major, minor]: [u32; 2]| {
        let (major, minor) = (u64::from(major), u64::from(minor));
        (major & 0xffff_f000) << 32 | (major & 0xfff) << 8 | (minor & 0xffff_ff00) << 12 | minor & 0xff
    };
    Ok(Stat {
        dev: device(x.dev),
        ino: x.ino,
        mode: x.mode.into(),
        nlink: x.nlink.into(),
        uid: x.uid,
        gid: x.gid,
        rdev: device(x.rdev),
        size: x.size,
        blksize: x.blksize.into(),
        blocks: x.blocks,
        atime: time(&x.atime),
        mtime: time(&x.mtime),
        ctime: time(&x.ctime),
        btime: (x.mask & BIRTH != 0).then_some(time(&x.btime)),
    })
}

pub(crate) fn set_mode(target: Target<'_>, mode: u32) -> Result<()> {
    let mode = mode as usize;
    // SAFETY: paths end with a NUL.
    unsafe {
        match target {
            Target::Path(path) => call3(nr::FCHMODAT, arg(HERE), at(path), mode),
            // Linux has no modes of symbolic links.
            Target::Link(_) => Err(EOPNOTSUPP),
            Target::File(fd) => call3(nr::FCHMOD, arg(fd), mode, 0),
        }
    }
    .map(drop)
}

pub(crate) fn set_owner(target: Target<'_>, uid: u32, gid: u32) -> Result<()> {
    let (uid, gid) = (uid as usize, gid as usize);
    // SAFETY: paths end with a NUL.
    unsafe {
        match target {
            Target::Path(path) => call6(nr::FCHOWNAT, [arg(HERE), at(path), uid, gid, 0, 0]),
            Target::Link(path) => {
                call6(nr::FCHOWNAT, [arg(HERE), at(path), uid, gid, AT_SYMLINK_NOFOLLOW, 0])
            }
            Target::File(fd) => call3(nr::FCHOWN, arg(fd), uid, gid),
        }
    }
    .map(drop)
}

pub(crate) fn set_times(target: Target<'_>, atime: Time, mtime: Time) -> Result<()> {
    let times = [atime.secs, atime.nanos, mtime.secs, mtime.nanos];
    let (dir, path, flags) = match target {
        Target::Path(path) => (HERE, at(path), 0),
        Target::Link(path) => (HERE, at(path), AT_SYMLINK_NOFOLLOW),
        Target::File(fd) => (fd, 0, 0),
    };
    // SAFETY: the path, if any, ends with a NUL; the kernel reads two timespecs.
    unsafe { call4(nr::UTIMENSAT, arg(dir), path, times.as_ptr() as usize, flags) }.map(drop)
}

pub(crate) fn make_dir(path: &CStr, mode: u32) -> Result<()> {
    // SAFETY: the path ends with a NUL.
    unsafe { call3(nr::MKDIRAT, arg(HERE), at(path), mode as usize) }.map(drop)
}

/// Removes a name from a directory.
pub(crate) fn unlink_at(dir: i32, name: &CStr) -> Result<()> {
    // SAFETY: the name ends with a NUL.
    unsafe { call3(nr::UNLINKAT, arg(dir), at(name), 0) }.map(drop)
}

/// Removes an empty directory.
pub(crate) fn remove_dir_at(dir: i32, name: &CStr) -> Result<()> {
    // SAFETY: the name ends with a NUL.
    unsafe { call3(nr::UNLINKAT, arg(dir), at(name), AT_REMOVEDIR) }.map(drop)
}

pub(crate) fn rename(from: &CStr, to: &CStr) -> Result<()> {
    // SAFETY: both paths end with a NUL.
    unsafe { call4(nr::RENAMEAT, arg(HERE), at(from), arg(HERE), at(to)) }.map(drop)
}

pub(crate) fn link(existing: &CStr, new: &CStr) -> Result<()> {
    // SAFETY: both paths end with a NUL.
    unsafe { call6(nr::LINKAT, [arg(HERE), at(existing), arg(HERE), at(new), 0, 0]) }.map(drop)
}

pub(crate) fn symlink(target: &CStr, new: &CStr) -> Result<()> {
    // SAFETY: both strings end with a NUL.
    unsafe { call3(nr::SYMLINKAT, at(target), arg(HERE), at(new)) }.map(drop)
}

pub(crate) fn read_link(path: &CStr, buf: &mut [u8]) -> Result<usize> {
    // SAFETY: the path ends with a NUL; the kernel writes at most buf.len() bytes.
    unsafe { call4(nr::READLINKAT, arg(HERE), at(path), buf.as_mut_ptr() as usize, buf.len()) }
}

/// Copies at most `len` bytes within the kernel, from and to where both files are read and written.
pub(crate) fn copy_range(from: &Fd, to: &Fd, len: usize) -> Result<usize> {
    // SAFETY: no offsets are given, so no pointers.
    retry(|| unsafe { call6(nr::COPY_FILE_RANGE, [arg(from.0), 0, arg(to.0), 0, len, 0]) })
}

/// Copies at most `len` bytes within the kernel, between these offsets.
pub(crate) fn copy_range_at(from: i32, mut at: u64, to: i32, mut to_at: u64, len: usize) -> Result<usize> {
    // SAFETY: the kernel reads and writes two offsets.
    retry(|| unsafe {
        let (at, to_at) = (&raw mut at as usize, &raw mut to_at as usize);
        call6(nr::COPY_FILE_RANGE, [arg(from), at, arg(to), to_at, len, 0])
    })
}
