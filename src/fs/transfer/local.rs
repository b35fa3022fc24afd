//! Directories of the host that copies are written to.
//!
//! A [`Dir`] is an open directory and never a path, and what is made in it has one name. So whatever names come, and
//! whatever is in the directory already, nothing outside of it is touched: a symbolic link that is in the way is
//! replaced and never followed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

pub(super) struct Dir(OwnedFd);

impl Dir {
    /// Opens the caller's own path, which is made if nothing is there.
    pub(super) fn create(path: &Path) -> io::Result<Dir> {
        match std::fs::create_dir(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        Ok(Dir(rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())?))
    }

    /// The directory that the caller's own path is in, and its name there.
    pub(super) fn parent(path: &Path) -> io::Result<(Dir, OsString)> {
        let Some(Component::Normal(name)) = path.components().next_back() else {
            return Err(Errno::ISDIR.into());
        };
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let dir = rustix::fs::openat(CWD, parent, DIRECTORY, Mode::empty())?;
        Ok((Dir(dir), name.to_owned()))
    }

    /// A directory in this one, which is made if there is none; anything else of that name is replaced.
    pub(super) fn enter(&self, name: &OsStr) -> io::Result<Dir> {
        check(name)?;
        let open = || rustix::fs::openat(&self.0, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
        let dir = match open() {
            Ok(dir) => dir,
            Err(e) => {
                if e != Errno::NOENT {
                    rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?;
                }
                rustix::fs::mkdirat(&self.0, name, Mode::RWXU)?;
                open()?
            }
        };
        Ok(Dir(dir))
    }

    /// A new file in this directory, in place of what has its name.
    pub(super) fn file(&self, name: &OsStr) -> io::Result<Target> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || rustix::fs::openat(&self.0, name, flags, Mode::RUSR | Mode::WUSR);
        Ok(Target(self.replacing(name, create)?.into()))
    }

    /// A symbolic link in this directory, in place of what has its name.
    pub(super) fn symlink(&self, target: &Path, name: &OsStr) -> io::Result<()> {
        self.replacing(name, || rustix::fs::symlinkat(target, &self.0, name))
    }

    fn replacing<T>(&self, name: &OsStr, create: impl Fn() -> rustix::io::Result<T>) -> io::Result<T> {
        check(name)?;
        match create() {
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?;
                Ok(create()?)
            }
            made => Ok(made?),
        }
    }

    /// Gives it its mode and time, when all is in it.
    pub(super) fn finish(&self, mode: u32, modified: (i64, u32)) -> io::Result<()> {
        finish(&self.0, mode, modified)
    }
}

/// A file that is being written.
pub(super) struct Target(File);

impl Target {
    pub(super) fn file(&mut self) -> &mut File {
        &mut self.0
    }

    pub(super) fn finish(&self, mode: u32, modified: (i64, u32)) -> io::Result<()> {
        finish(&self.0, mode, modified)
    }
}

fn finish(file: impl rustix::fd::AsFd, mode: u32, (secs, nanos): (i64, u32)) -> io::Result<()> {
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?;
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: secs, tv_nsec: nanos.into() },
    };
    Ok(rustix::fs::futimens(&file, &times)?)
}

/// A name is one step down and nothing else.
fn check(name: &OsStr) -> io::Result<()> {
    let bytes = name.as_bytes();
    if matches!(bytes, b"" | b"." | b"..") || bytes.iter().any(|b| matches!(b, b'/' | 0)) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name:?} is not a file's name")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_is_touched() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("file"), "untouched").unwrap();
        std::os::unix::fs::symlink(outside.path(), inside.path().join("dir")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("file"), inside.path().join("file")).unwrap();
        let dir = Dir::create(inside.path()).unwrap();
        for name in ["", ".", "..", "a/b", "/etc", "a\0b"] {
            assert_eq!(dir.file(OsStr::new(name)).map(drop).unwrap_err().kind(), io::ErrorKind::InvalidData);
            assert!(
                dir.enter(OsStr::new(name)).is_err()
                    && dir.symlink(Path::new("x"), OsStr::new(name)).is_err()
            );
        }
        let below = dir.enter(OsStr::new("dir")).unwrap();
        io::Write::write_all(below.file(OsStr::new("new")).unwrap().file(), b"new").unwrap();
        io::Write::write_all(dir.file(OsStr::new("file")).unwrap().file(), b"new").unwrap();
        let names: Vec<_> =
            std::fs::read_dir(outside.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["file"]);
        assert_eq!(std::fs::read(outside.path().join("file")).unwrap(), b"untouched");
        assert_eq!(std::fs::read(inside.path().join("dir/new")).unwrap(), b"new");
        assert_eq!(std::fs::read(inside.path().join("file")).unwrap(), b"new");
    }
}
