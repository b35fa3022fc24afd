//! The host's files: real std behind the types of this module.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::UNIX_EPOCH;

use super::{File, FileSystem, FileTimes, Fs, Metadata, OpenOptions, Permissions};
use crate::agent::protocol::files::Stat;
use crate::host::Host;

impl Fs for Host {
    fn file_system(&self) -> FileSystem {
        FileSystem::of_host()
    }
}

pub(super) fn open(path: &Path, options: &OpenOptions) -> io::Result<File> {
    std::fs::OpenOptions::new()
        .read(options.read)
        .write(options.write)
        .append(options.append)
        .truncate(options.truncate)
        .create(options.create)
        .create_new(options.create_new)
        .mode(options.mode)
        .custom_flags(options.custom_flags)
        .open(path)
        .map(File::of_host)
}

pub(super) fn make_dir(path: &Path, mode: u32, recursive: bool) -> io::Result<()> {
    std::fs::DirBuilder::new().mode(mode).recursive(recursive).create(path)
}

pub(super) fn stat(path: &Path, follow: bool) -> io::Result<Metadata> {
    if follow { std::fs::metadata(path) } else { std::fs::symlink_metadata(path) }.map(metadata)
}

pub(super) fn metadata(m: std::fs::Metadata) -> Metadata {
    let born = m.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Metadata::new(Stat {
        dev: m.dev(),
        ino: m.ino(),
        mode: m.mode(),
        nlink: m.nlink(),
        uid: m.uid(),
        gid: m.gid(),
        rdev: m.rdev(),
        size: m.size(),
        blksize: m.blksize(),
        blocks: m.blocks(),
        atime: (m.atime(), m.atime_nsec() as u32),
        mtime: (m.mtime(), m.mtime_nsec() as u32),
        ctime: (m.ctime(), m.ctime_nsec() as u32),
        btime: born.map(|since| (since.as_secs() as i64, since.subsec_nanos())),
    })
}

pub(super) fn permissions(permissions: &Permissions) -> std::fs::Permissions {
    std::fs::Permissions::from_mode(permissions.mode())
}

pub(super) fn set_permissions(path: &Path, new: Permissions) -> io::Result<()> {
    std::fs::set_permissions(path, permissions(&new))
}

pub(super) fn set_times(path: &Path, times: FileTimes) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let [last_access, last_modification] =
        times.raw().map(|time| Timespec { tv_sec: time.secs, tv_nsec: time.nanos });
    let times = Timestamps { last_access, last_modification };
    Ok(utimensat(CWD, path, &times, AtFlags::empty())?)
}

pub(super) fn chown(path: &Path, uid: Option<u32>, gid: Option<u32>, follow: bool) -> io::Result<()> {
    let chown = if follow { std::os::unix::fs::chown } else { std::os::unix::fs::lchown };
    chown(path, uid, gid)
}
