//! What is known of files. Types of our own since std's cannot be made outside of it.

use std::fmt;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::agent::protocol::files::{Stat, Time};

const S_IFMT: u32 = 0o170_000;
const S_IFIFO: u32 = 0o010_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFSOCK: u32 = 0o140_000;

/// What is known of a file.
///
/// This corresponds to [`std::fs::Metadata`] with [`std::os::unix::fs::MetadataExt`], whose methods are here without a
/// trait to import.
#[derive(Clone)]
pub struct Metadata(Stat);

impl Metadata {
    pub(super) fn new(stat: Stat) -> Self {
        Metadata(stat)
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.file_type().is_dir()
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.file_type().is_file()
    }

    /// Whether it is a symbolic link, which only [`symlink_metadata`](super::Fs::symlink_metadata) shows.
    pub fn is_symlink(&self) -> bool {
        self.file_type().is_symlink()
    }

    /// What kind of file it is.
    pub fn file_type(&self) -> FileType {
        FileType(self.0.mode)
    }

    /// Bytes it has.
    #[allow(clippy::len_without_is_empty)] // as std's
    pub fn len(&self) -> u64 {
        self.0.size
    }

    /// Who may do what with it.
    pub fn permissions(&self) -> Permissions {
        Permissions(self.0.mode)
    }

    /// When its content changed last.
    ///
    /// # Errors
    /// `InvalidData` for a time beyond what [`SystemTime`] can tell.
    pub fn modified(&self) -> io::Result<SystemTime> {
        system_time(self.0.mtime)
    }

    /// When it was read last, as far as the file system keeps track.
    ///
    /// # Errors
    /// As [`Metadata::modified`].
    pub fn accessed(&self) -> io::Result<SystemTime> {
        system_time(self.0.atime)
    }

    /// When it was made.
    ///
    /// # Errors
    /// `Unsupported` where the file system does not know; as [`Metadata::modified`].
    pub fn created(&self) -> io::Result<SystemTime> {
        let unknown =
            || io::Error::new(io::ErrorKind::Unsupported, "the file system keeps no time of creation");
        system_time(self.0.btime.ok_or_else(unknown)?)
    }

    /// The device that the file system is on.
    pub fn dev(&self) -> u64 {
        self.0.dev
    }
    /// Its number in the file system.
    pub fn ino(&self) -> u64 {
        self.0.ino
    }
    /// Kind and permissions, as `stat(2)` has them.
    pub fn mode(&self) -> u32 {
        self.0.mode
    }
    /// How many names it has.
    pub fn nlink(&self) -> u64 {
        self.0.nlink
    }
    /// Its user.
    pub fn uid(&self) -> u32 {
        self.0.uid
    }
    /// Its group.
    pub fn gid(&self) -> u32 {
        self.0.gid
    }
    /// The device that it stands for.
    pub fn rdev(&self) -> u64 {
        self.0.rdev
    }
    /// Bytes it has.
    pub fn size(&self) -> u64 {
        self.0.size
    }
    /// Seconds of the time of last access since the epoch.
    pub fn atime(&self) -> i64 {
        self.0.atime.0
    }
    /// Nanoseconds that go with [`Metadata::atime`].
    pub fn atime_nsec(&self) -> i64 {
        self.0.atime.1.into()
    }
    /// Seconds of the time of last change of the content since the epoch.
    pub fn mtime(&self) -> i64 {
        self.0.mtime.0
    }
    /// Nanoseconds that go with [`Metadata::mtime`].
    pub fn mtime_nsec(&self) -> i64 {
        self.0.mtime.1.into()
    }
    /// Seconds of the time of last change of any kind since the epoch.
    pub fn ctime(&self) -> i64 {
        self.0.ctime.0
    }
    /// Nanoseconds that go with [`Metadata::ctime`].
    pub fn ctime_nsec(&self) -> i64 {
        self.0.ctime.1.into()
    }
    /// The size in which it is best read and written.
    pub fn blksize(&self) -> u64 {
        self.0.blksize
    }
    /// Blocks of 512 bytes it takes.
    pub fn blocks(&self) -> u64 {
        self.0.blocks
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metadata")
            .field("file_type", &self.file_type())
            .field("permissions", &self.permissions())
            .field("len", &self.len())
            .field("modified", &self.modified().ok())
            .finish_non_exhaustive()
    }
}

fn system_time((secs, nanos): (i64, u32)) -> io::Result<SystemTime> {
    let since = Duration::from_secs(secs.unsigned_abs());
    let whole = if secs < 0 { UNIX_EPOCH.checked_sub(since) } else { UNIX_EPOCH.checked_add(since) };
    whole
        .and_then(|time| time.checked_add(Duration::from_nanos(nanos.into())))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a time beyond what can be told"))
}

/// What kind of file something is.
///
/// This corresponds to [`std::fs::FileType`] with [`std::os::unix::fs::FileTypeExt`].
#[derive(Clone, Copy)]
pub struct FileType(u32);

impl FileType {
    /// From the kind in an entry of a directory; `None` where that does not say.
    pub(super) fn from_entry(kind: u8) -> Option<Self> {
        (kind != 0).then_some(FileType(u32::from(kind) << 12))
    }

    fn is(self, kind: u32) -> bool {
        self.0 & S_IFMT == kind
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.is(S_IFDIR)
    }
    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.is(S_IFREG)
    }
    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.is(S_IFLNK)
    }
    /// Whether it is a block device.
    pub fn is_block_device(&self) -> bool {
        self.is(S_IFBLK)
    }
    /// Whether it is a character device.
    pub fn is_char_device(&self) -> bool {
        self.is(S_IFCHR)
    }
    /// Whether it is a named pipe.
    pub fn is_fifo(&self) -> bool {
        self.is(S_IFIFO)
    }
    /// Whether it is a socket.
    pub fn is_socket(&self) -> bool {
        self.is(S_IFSOCK)
    }
}

impl PartialEq for FileType {
    fn eq(&self, other: &Self) -> bool {
        self.0 & S_IFMT == other.0 & S_IFMT
    }
}
impl Eq for FileType {}

impl std::hash::Hash for FileType {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.0 & S_IFMT).hash(state);
    }
}

impl fmt::Debug for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 & S_IFMT {
            S_IFDIR => "directory",
            S_IFREG => "file",
            S_IFLNK => "symbolic link",
            S_IFBLK => "block device",
            S_IFCHR => "character device",
            S_IFIFO => "pipe",
            S_IFSOCK => "socket",
            _ => "unknown",
        })
    }
}

/// Who may do what with a file.
///
/// This corresponds to [`std::fs::Permissions`] with [`std::os::unix::fs::PermissionsExt`].
#[derive(Clone, PartialEq, Eq)]
pub struct Permissions(u32);

impl Permissions {
    /// Those of a mode.
    pub fn from_mode(mode: u32) -> Self {
        Permissions(mode)
    }
    /// The mode.
    pub fn mode(&self) -> u32 {
        self.0
    }
    /// Sets the mode.
    pub fn set_mode(&mut self, mode: u32) {
        self.0 = mode;
    }
    /// Whether nobody may write; as in std that is not whether this user can.
    pub fn readonly(&self) -> bool {
        self.0 & 0o222 == 0
    }
    /// Takes the right to write from everybody, or gives it to everybody.
    pub fn set_readonly(&mut self, readonly: bool) {
        if readonly {
            self.0 &= !0o222;
        } else {
            self.0 |= 0o222;
        }
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permissions(0o{:o})", self.0)
    }
}

/// Times to set on a file. What is not set stays.
///
/// This corresponds to [`std::fs::FileTimes`].
#[derive(Debug, Clone, Copy, Default)]
pub struct FileTimes {
    accessed: Option<SystemTime>,
    modified: Option<SystemTime>,
}

impl FileTimes {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }
    /// With this time of last access.
    pub fn set_accessed(mut self, time: SystemTime) -> Self {
        self.accessed = Some(time);
        self
    }
    /// With this time of last change.
    pub fn set_modified(mut self, time: SystemTime) -> Self {
        self.modified = Some(time);
        self
    }

    /// Access and change, for the guest.
    pub(super) fn raw(self) -> [Time; 2] {
        [self.accessed, self.modified].map(|time| time.map_or(Time::OMIT, guest_time))
    }

    /// The same of std.
    pub(super) fn to_std(self) -> std::fs::FileTimes {
        let mut times = std::fs::FileTimes::new();
        if let Some(time) = self.accessed {
            times = times.set_accessed(time);
        }
        if let Some(time) = self.modified {
            times = times.set_modified(time);
        }
        times
    }
}

/// Seconds and nanoseconds, the latter never negative.
pub(super) fn guest_time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Time { secs: since.as_secs() as i64, nanos: since.subsec_nanos().into() },
        Err(e) => {
            let before = e.duration();
            let (secs, nanos) = (-(before.as_secs() as i64), i64::from(before.subsec_nanos()));
            if nanos == 0 {
                Time { secs, nanos }
            } else {
                Time { secs: secs - 1, nanos: 1_000_000_000 - nanos }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_go_both_ways() {
        for nanos in [-1_500_000_000i64, -1, 0, 1, 1_999_999_999] {
            let offset = Duration::from_nanos(nanos.unsigned_abs());
            let time = if nanos < 0 { UNIX_EPOCH - offset } else { UNIX_EPOCH + offset };
            let raw = guest_time(time);
            assert!((0..1_000_000_000).contains(&raw.nanos));
            assert_eq!(system_time((raw.secs, raw.nanos as u32)).unwrap(), time);
        }
        // What a guest says may be anything.
        for secs in [i64::MIN, i64::MAX] {
            let _ = system_time((secs, 999_999_999));
        }
    }

    #[test]
    fn permissions_are_those_of_std() {
        let mut permissions = Permissions::from_mode(0o100_644);
        assert!(!permissions.readonly());
        permissions.set_readonly(true);
        assert_eq!((permissions.mode(), permissions.readonly()), (0o100_444, true));
        permissions.set_readonly(false);
        assert_eq!(permissions.mode(), 0o100_666);
    }
}
