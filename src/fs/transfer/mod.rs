//! Copies between host and guest, of files and of whole trees, and archives.
//!
//! Many requests are under way at once, so that neither side waits for the other. What the host is given by a guest is
//! hostile: names are checked, and directories of the host are entered by descriptor and never through a symbolic link
//! ([`local`]).

mod archive;
mod incoming;
mod local;
mod outgoing;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

pub(super) use archive::{read_archive, write_archive};
pub(super) use incoming::copy_in;
pub(super) use outgoing::copy_out;

/// A file's bits that may be copied to the host: whom a program runs as is not the guest's to say.
const PERMISSIONS: u32 = 0o777;
/// Directories below directories. Each takes a descriptor while it is copied.
const MAX_DEPTH: usize = 256;

/// Copies within the host, for [`Host`](crate::Host): the same rules, with real std. `special` keeps set-id bits.
pub(super) fn copy_on_host(from: &Path, to: &Path, special: bool) -> io::Result<u64> {
    let mask = if special { 0o7777 } else { PERMISSIONS };
    let metadata = std::fs::metadata(from)?;
    if metadata.is_dir() {
        let target = local::Dir::create(to)?;
        let copied = copy_dir(from, &target, mask, 0)?;
        target.finish(metadata_mode(&metadata) & mask, modified(&metadata))?;
        return Ok(copied);
    }
    let (parent, name) = local::Dir::parent(to)?;
    copy_file(from, &metadata, &parent, &name, mask)
}

fn copy_dir(from: &Path, to: &local::Dir, mask: u32, depth: usize) -> io::Result<u64> {
    check_depth(depth)?;
    let mut copied = 0;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (path, name, metadata) = (entry.path(), entry.file_name(), entry.metadata()?);
        if metadata.is_symlink() {
            to.symlink(&std::fs::read_link(&path)?, &name)?;
        } else if metadata.is_dir() {
            let below = to.enter(&name)?;
            copied += copy_dir(&path, &below, mask, depth + 1)?;
            below.finish(metadata_mode(&metadata) & mask, modified(&metadata))?;
        } else if metadata.is_file() {
            copied += copy_file(&path, &metadata, to, &name, mask)?;
        }
    }
    Ok(copied)
}

fn copy_file(
    from: &Path,
    metadata: &std::fs::Metadata,
    to: &local::Dir,
    name: &std::ffi::OsStr,
    mask: u32,
) -> io::Result<u64> {
    let mut source = std::fs::File::open(from)?;
    let mut target = to.file(name)?;
    let copied = if is_sparse(metadata) {
        copy_islands(&mut source, target.file(), metadata.len())?
    } else {
        io::copy(&mut source, target.file())?
    };
    target.finish(metadata_mode(metadata) & mask, modified(metadata))?;
    Ok(copied)
}

/// Copies what is not a hole.
fn copy_islands(source: &mut std::fs::File, target: &mut std::fs::File, len: u64) -> io::Result<u64> {
    use std::io::{Read, Seek, SeekFrom};
    target.set_len(len)?;
    let mut at = 0;
    while at < len {
        at = match rustix::fs::seek(&*source, rustix::fs::SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => break,
            data => data?,
        };
        let until = rustix::fs::seek(&*source, rustix::fs::SeekFrom::Hole(at))?;
        source.seek(SeekFrom::Start(at))?;
        target.seek(SeekFrom::Start(at))?;
        let copied = io::copy(&mut source.take(until - at), target)?;
        at += copied;
        if copied == 0 {
            break;
        }
    }
    Ok(len.max(at))
}

/// Whether a file has holes.
fn is_sparse(metadata: &std::fs::Metadata) -> bool {
    std::os::unix::fs::MetadataExt::blocks(metadata).saturating_mul(512) < metadata.len()
}

fn metadata_mode(metadata: &std::fs::Metadata) -> u32 {
    std::os::unix::fs::MetadataExt::mode(metadata)
}

/// Time of last change, seconds and nanoseconds.
fn modified(metadata: &std::fs::Metadata) -> (i64, u32) {
    use std::os::unix::fs::MetadataExt;
    (metadata.mtime(), metadata.mtime_nsec() as u32)
}

fn check_depth(depth: usize) -> io::Result<()> {
    if depth >= MAX_DEPTH {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "directories nested too deeply to copy"));
    }
    Ok(())
}
