//! Tar archives as streams.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use tar::{Archive, Builder, EntryType, Header};

use super::check_depth;
use crate::fs::{FileSystem, FileTimes, Fs, Metadata, Permissions};

pub(in crate::fs) fn write_archive(fs: &FileSystem, from: &Path, to: impl Write) -> io::Result<()> {
    let mut builder = Builder::new(to);
    let metadata = Fs::metadata(fs, from)?;
    if !metadata.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "only directories are archived"));
    }
    add_dir(fs, &mut builder, from, Path::new(""), 0)?;
    builder.into_inner()?.flush()
}

fn add_dir(
    fs: &FileSystem,
    builder: &mut Builder<impl Write>,
    dir: &Path,
    name: &Path,
    depth: usize,
) -> io::Result<()> {
    check_depth(depth)?;
    let mut entries = Fs::read_dir(fs, dir)?.collect::<io::Result<Vec<_>>>()?;
    // The same tree makes the same archive.
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let (path, name) = (entry.path(), name.join(entry.file_name()));
        let metadata = entry.metadata()?;
        let mut header = header(&metadata);
        if metadata.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            builder.append_link(&mut header, &name, Fs::read_link(fs, &path)?)?;
        } else if metadata.is_dir() {
            header.set_entry_type(EntryType::Directory);
            builder.append_data(&mut header, &name, io::empty())?;
            add_dir(fs, builder, &path, &name, depth + 1)?;
        } else if metadata.is_file() {
            let file = Fs::open(fs, &path)?;
            // The length as it is now; what is appended meanwhile is left out, and what is cut off is zeros.
            let length = file.metadata()?.len();
            header.set_size(length);
            let content = io::BufReader::with_capacity(256 * 1024, file).chain(io::repeat(0)).take(length);
            builder.append_data(&mut header, &name, content)?;
        }
    }
    Ok(())
}

fn header(metadata: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    // The format has no times before its epoch.
    header.set_mtime(metadata.mtime().max(0) as u64);
    header.set_size(0);
    header
}

pub(in crate::fs) fn read_archive(fs: &FileSystem, from: impl Read, to: &Path) -> io::Result<()> {
    Fs::create_dir_all(fs, to)?;
    let mut archive = Archive::new(from);
    let mut unpacker = Unpacker { fs, to, directories: HashSet::new(), pending: Vec::new() };
    for entry in archive.entries()? {
        unpacker.add(&mut entry.map_err(malformed)?)?;
    }
    // When all is in them: else their times would not stay.
    for (path, mode, mtime) in unpacker.pending.into_iter().rev() {
        Fs::set_permissions(fs, &path, Permissions::from_mode(mode))?;
        Fs::set_times(fs, &path, times(mtime))?;
    }
    Ok(())
}

struct Unpacker<'a> {
    fs: &'a FileSystem,
    to: &'a Path,
    /// Known to be directories, and no symbolic links to any.
    directories: HashSet<PathBuf>,
    /// Modes and times of directories.
    pending: Vec<(PathBuf, u32, u64)>,
}

impl Unpacker<'_> {
    fn add(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> io::Result<()> {
        let kind = entry.header().entry_type();
        let header = entry.header();
        let said = || Ok((header.mode()? & 0o7777, header.mtime()?, (header.uid()?, header.gid()?)));
        let (mode, mtime, owner) = said().map_err(malformed)?;
        let path = self.place(&entry.path().map_err(malformed)?)?;
        if path == self.to {
            return Ok(());
        }
        match kind {
            EntryType::Directory => {
                self.directory(&path)?;
                self.pending.push((path.clone(), mode, mtime));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.make_way(&path)?;
                let mut file = self.fs.open_options().write(true).create_new(true).mode(0o600).open(&path)?;
                let mut buffer = vec![0; 256 * 1024];
                loop {
                    let n = match entry.read(&mut buffer) {
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                        read => read?,
                    };
                    if n == 0 {
                        break;
                    }
                    file.write_all(&buffer[..n])?;
                }
                // The owner first: giving a file away takes the set-id bits from it.
                self.own(&path, owner)?;
                file.set_permissions(Permissions::from_mode(mode))?;
                return file.set_times(times(mtime));
            }
            EntryType::Symlink => {
                let leads = entry.link_name()?.ok_or_else(|| refuse(&path, "has no target"))?.into_owned();
                self.make_way(&path)?;
                Fs::symlink(self.fs, leads, &path)?;
            }
            EntryType::Link => {
                let original = entry.link_name()?.ok_or_else(|| refuse(&path, "has no target"))?;
                let original = self.place(&original)?;
                self.make_way(&path)?;
                return Fs::hard_link(self.fs, original, &path);
            }
            EntryType::XGlobalHeader => return Ok(()),
            _ => return Err(refuse(&path, "is no file, directory or link")),
        }
        self.own(&path, owner)
    }

    /// Where a name of the archive is here. All above it are directories then.
    fn place(&mut self, name: &Path) -> io::Result<PathBuf> {
        let mut path = self.to.to_owned();
        let mut parts = Vec::new();
        for part in name.components() {
            match part {
                Component::Normal(part) => parts.push(part),
                Component::CurDir | Component::RootDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(refuse(name, "leads out of the archive"));
                }
            }
        }
        let last = parts.pop();
        for part in parts {
            path.push(part);
            self.directory(&path)?;
        }
        path.extend(last);
        Ok(path)
    }

    /// Has a directory there that is no symbolic link.
    fn directory(&mut self, path: &Path) -> io::Result<()> {
        if self.directories.contains(path) {
            return Ok(());
        }
        match Fs::symlink_metadata(self.fs, path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(refuse(path, "is in the way of a directory")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Fs::create_dir(self.fs, path)?,
            Err(e) => return Err(e),
        }
        self.directories.insert(path.to_owned());
        Ok(())
    }

    /// Removes a file or link of that name.
    fn make_way(&self, path: &Path) -> io::Result<()> {
        match Fs::remove_file(self.fs, path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// As root one gives files to whom they belong; others keep them.
    fn own(&self, path: &Path, (uid, gid): (u64, u64)) -> io::Result<()> {
        let (uid, gid) = (u32::try_from(uid).ok(), u32::try_from(gid).ok());
        match Fs::lchown(self.fs, path, uid, gid) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            owned => owned,
        }
    }
}

/// What is wrong with an archive itself has no kind of its own in the library that reads it.
fn malformed(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::Other => io::Error::new(io::ErrorKind::InvalidData, error),
        _ => error,
    }
}

fn refuse(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{path:?} {why}"))
}

fn times(mtime: u64) -> FileTimes {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(mtime)).unwrap_or(UNIX_EPOCH);
    FileTimes::new().set_modified(time)
}
