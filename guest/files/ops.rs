//! What takes more than one system call.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;

use super::worker::{Answer, Files, put_i32};
use crate::protocol::files::{KEEP_MODE, MAX_CHUNK, MAX_ENTRIES, Target, Time};
use crate::sys::files::{O_CREAT, O_DIRECTORY, O_PATH, path_of};
use crate::sys::paths::{self, EISDIR, ENOSYS, EOPNOTSUPP, EXDEV, HERE, O_TRUNC, S_IFDIR, S_IFMT, S_IFREG};
use crate::sys::{EINVAL, ENAMETOOLONG, ENOENT, EPERM, Fd, O_RDONLY, O_WRONLY, Result};

/// Longest path the kernel takes or gives.
const MAX_PATH: usize = 4096;

/// One read of at most `len` bytes onto the end of `out`.
pub(super) fn read_onto(fd: i32, at: Option<u64>, len: usize, out: &mut Answer) -> Result<usize> {
    out.reserve(len);
    let end = out.spare_capacity_mut().as_mut_ptr().cast();
    // SAFETY: `len` bytes behind the end have just been reserved.
    let n = unsafe { paths::read_at(fd, end, len, at)? };
    // SAFETY: the kernel has initialised n <= len bytes there.
    unsafe { out.set_len(out.len() + n.min(len)) };
    Ok(n)
}

pub(super) fn write_all(fd: i32, mut bytes: &[u8], mut at: Option<u64>) -> Result<()> {
    while !bytes.is_empty() {
        let n = paths::write_at(fd, bytes, at)?;
        bytes = bytes.get(n..).unwrap_or_default();
        at = at.map(|at| at.saturating_add(n as u64));
        if n == 0 {
            return Err(EINVAL);
        }
    }
    Ok(())
}

pub(super) fn read_file(path: &CStr, flags: i32, len: usize, files: Files, out: &mut Answer) -> Result<()> {
    let file = paths::open_at(HERE, path, O_RDONLY | flags, 0)?;
    let stat = paths::stat(Target::File(file.raw()))?;
    stat.encode(out);
    let descriptor = out.len();
    put_i32(-1, out);
    let mut left = len;
    loop {
        if left == 0 {
            let raw = files.give(file)?;
            if let Some(place) = out.get_mut(descriptor..descriptor + 4) {
                place.copy_from_slice(&raw.to_le_bytes());
            }
            return Ok(());
        }
        let n = read_onto(file.raw(), None, left, out)?;
        left -= n;
        // Another read would only say that a regular file has ended where it ends.
        let whole = stat.mode & S_IFMT == S_IFREG && stat.size > 0 && (len - left) as u64 == stat.size;
        if n == 0 || whole {
            return Ok(());
        }
    }
}

pub(super) fn write_file(path: &CStr, flags: i32, mode: u32, mtime: Time, bytes: &[u8]) -> Result<()> {
    let file = paths::open_at(HERE, path, O_WRONLY | flags, mode & 0o7777)?;
    write_all(file.raw(), bytes, None)?;
    if mode & KEEP_MODE != 0 {
        paths::set_mode(Target::File(file.raw()), mode & 0o7777)?;
    }
    if mtime != Time::OMIT {
        paths::set_times(Target::File(file.raw()), Time::OMIT, mtime)?;
    }
    Ok(())
}

pub(super) fn make_dir(path: &CStr, mode: u32, parents: bool) -> Result<()> {
    let is_dir = || paths::stat(Target::Path(path)).is_ok_and(|s| s.mode & S_IFMT == S_IFDIR);
    let first = paths::make_dir(path, mode);
    if !parents {
        return first;
    }
    match first {
        Ok(()) => return Ok(()),
        Err(ENOENT) if !path.is_empty() => {}
        Err(_) if is_dir() => return Ok(()),
        Err(e) => return Err(e),
    }
    let bytes = path.to_bytes();
    let mut prefix = Vec::with_capacity(bytes.len() + 1);
    for (n, byte) in bytes.iter().enumerate() {
        let ends = *byte == b'/' && n > 0 && bytes.get(n - 1) != Some(&b'/');
        if ends {
            let name = CString::new(prefix.clone()).map_err(|_| EINVAL)?;
            // What is there already or cannot be made shows at the next.
            let _ = paths::make_dir(&name, mode);
        }
        prefix.push(*byte);
    }
    match paths::make_dir(path, mode) {
        Err(_) if is_dir() => Ok(()),
        done => done,
    }
}

pub(super) fn entries_onto(fd: i32, out: &mut Answer) -> Result<usize> {
    let start = out.len();
    out.resize(start + MAX_ENTRIES, 0);
    let n = match out.get_mut(start..) {
        Some(space) => paths::entries(fd, space)?,
        None => 0,
    };
    out.truncate(start + n);
    Ok(n)
}

pub(super) fn open_dir(path: &CStr, files: Files, out: &mut Answer) -> Result<()> {
    let dir = paths::open_at(HERE, path, O_RDONLY | O_DIRECTORY, 0)?;
    let descriptor = out.len();
    put_i32(-1, out);
    let n = entries_onto(dir.raw(), out)?;
    // Most directories are at their end with that: the host need not ask.
    let mut end = Vec::new();
    if n == 0 || (n < MAX_ENTRIES / 2 && entries_onto(dir.raw(), &mut end)? == 0) {
        return Ok(());
    }
    out.extend_from_slice(&end);
    let raw = files.give(dir)?;
    if let Some(place) = out.get_mut(descriptor..descriptor + 4) {
        place.copy_from_slice(&raw.to_le_bytes());
    }
    Ok(())
}

pub(super) fn read_link(path: &CStr, out: &mut Answer) -> Result<()> {
    let start = out.len();
    out.resize(start + MAX_PATH, 0);
    let n = match out.get_mut(start..) {
        Some(space) => paths::read_link(path, space)?,
        None => 0,
    };
    out.truncate(start + n);
    Ok(())
}

/// The kernel knows where what it has opened is.
pub(super) fn resolve(path: &CStr, out: &mut Answer) -> Result<()> {
    let file = paths::open_at(HERE, path, O_PATH, 0)?;
    let start = out.len();
    read_link(&path_of(&file), out)?;
    if out.len() - start >= MAX_PATH {
        return Err(ENAMETOOLONG);
    }
    Ok(())
}

pub(super) fn copy(from: &CStr, to: &CStr) -> Result<u64> {
    let source = paths::open_at(HERE, from, O_RDONLY, 0)?;
    let stat = paths::stat(Target::File(source.raw()))?;
    match stat.mode & S_IFMT {
        S_IFREG => {}
        S_IFDIR => return Err(EISDIR),
        _ => return Err(EINVAL),
    }
    let mode = stat.mode & 0o7777;
    let target = paths::open_at(HERE, to, O_WRONLY | O_CREAT | O_TRUNC, mode)?;
    if paths::stat(Target::File(target.raw()))?.mode & S_IFMT == S_IFREG {
        paths::set_mode(Target::File(target.raw()), mode)?;
    }
    copy_bytes(&source, &target)
}

/// The host's file at `path`, opened where it is best for a copy from or to `fd`; and whether that is `fd`'s own file
/// system, within which the host does the copying. The host has it in the root of each file system that it serves.
fn open_offer(path: &CStr, flags: i32, fd: i32) -> Result<(Fd, bool)> {
    let device = paths::stat(Target::File(fd))?.dev;
    let is_there = |offer: &Fd| paths::stat(Target::File(offer.raw())).is_ok_and(|stat| stat.dev == device);
    let in_root = paths::open_at(HERE, path, flags, 0)?;
    if is_there(&in_root) {
        return Ok((in_root, true));
    }
    let mut place = mount_point(fd, device);
    place.extend_from_slice(path.to_bytes());
    let on_mount = CString::new(place).map_err(|_| EINVAL).and_then(|path| paths::open_at(HERE, &path, flags, 0));
    Ok(match on_mount {
        Ok(offer) if is_there(&offer) => (offer, true),
        _ => (in_root, false),
    })
}

/// The highest directory above the open file that lies on the same device; empty if there is none.
fn mount_point(fd: i32, device: u64) -> Vec<u8> {
    let file = core::mem::ManuallyDrop::new(Fd::adopt(fd));
    let (mut path, mut found) = (Vec::new(), 0);
    if read_link(&path_of(&file), &mut path).is_err() {
        path.clear();
    }
    let mut rest = path.as_slice();
    while let Some(end) = rest.iter().rposition(|byte| *byte == b'/').filter(|end| *end > 0) {
        rest = rest.get(..end).unwrap_or_default();
        let Ok(dir) = CString::new(rest) else { break };
        if paths::stat(Target::Path(&dir)).ok().is_none_or(|stat| stat.dev != device) {
            break;
        }
        found = end;
    }
    path.truncate(found);
    path
}

/// Bytes that pass through here at once: in pages, what one request to the host can have.
const PASSING: usize = (1 << 20) - 4096;

/// Copies what the host offers at `path` to a file. Gives how much that was.
pub(super) fn take(path: &CStr, to: i32, at: u64, len: u64) -> Result<u64> {
    let (offer, near) = open_offer(path, O_RDONLY, to)?;
    let offer = offer.raw();
    if near {
        return copy_all(len, |done, left| paths::copy_range_at(offer, done, to, at.saturating_add(done), left));
    }
    let mut bytes = Vec::new();
    copy_all(len, |done, left| {
        bytes.clear();
        let n = read_onto(offer, Some(done), left.min(PASSING), &mut bytes)?;
        write_all(to, &bytes, Some(at.saturating_add(done)))?;
        Ok(n)
    })
}

/// The other way. Nothing is copied from where the host is not asked to do it: the connection costs no more.
pub(super) fn give(path: &CStr, from: i32, at: u64, len: u64) -> Result<u64> {
    match open_offer(path, O_WRONLY, from)? {
        (offer, true) => copy_all(len, |done, left| {
            paths::copy_range_at(from, at.saturating_add(done), offer.raw(), done, left)
        }),
        _ => Err(EXDEV),
    }
}

/// Copies pieces of at most so many bytes until `len` have been copied, or there are no more.
fn copy_all(len: u64, mut copy: impl FnMut(u64, usize) -> Result<usize>) -> Result<u64> {
    let mut done = 0;
    while done < len {
        match copy(done, usize::try_from(len - done).unwrap_or(usize::MAX)) {
            Ok(0) => break,
            Ok(n) => done += n as u64,
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        }
    }
    Ok(done)
}

fn copy_bytes(source: &Fd, target: &Fd) -> Result<u64> {
    const AT_ONCE: usize = 1 << 30;
    let mut copied = 0u64;
    loop {
        match paths::copy_range(source, target, AT_ONCE) {
            // Files of the kernel's making say so at once.
            Ok(0) if copied > 0 => return Ok(copied),
            Ok(n) if n > 0 => copied += n as u64,
            Ok(_) | Err(EXDEV | ENOSYS | EINVAL | EOPNOTSUPP | EPERM) if copied == 0 => break,
            Ok(_) => return Ok(copied),
            Err(e) => return Err(e),
        }
    }
    let mut bytes = Vec::new();
    while read_onto(source.raw(), None, MAX_CHUNK, &mut bytes)? > 0 {
        write_all(target.raw(), &bytes, None)?;
        copied += bytes.len() as u64;
        bytes.clear();
    }
    Ok(copied)
}
