//! Files of an OCI layout or a `docker save` archive: in a directory, or in a tar that is read in place.
//!
//! In a directory only fixed names and checked digests are looked for; names that the archive gives (`docker save` has
//! such) only inside a tar. So no name from an archive becomes a path of the host.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use super::manifest::MAX_DOCUMENT;
use super::{Digest, Error};
use crate::vfs::FileType;
use crate::vfs::layer::{Index, Slot, TarLimits};

/// Links from one member of an archive to another.
const MAX_LINKS: u32 = 8;

pub(super) enum Archive {
    Directory(PathBuf),
    Tar { path: PathBuf, index: Index },
}

/// A member: an open file of its own, at the member's first byte.
pub(super) struct Member {
    pub(super) file: File,
    pub(super) len: u64,
}

impl Archive {
    pub(super) fn open(path: &Path) -> Result<Archive, Error> {
        let failed = Error::store("read", path);
        if fs::metadata(path).map_err(&failed)?.is_dir() {
            return Ok(Archive::Directory(path.to_owned()));
        }
        let mut file = regular(path)?;
        let mut magic = [0; 4];
        let n = file.read(&mut magic).map_err(&failed)?;
        if magic.get(..n.min(2)) == Some(&[0x1f, 0x8b]) || magic == [0x28, 0xb5, 0x2f, 0xfd] {
            let what = format!("{}, which is compressed: decompress it first; as it is it", path.display());
            return Err(Error::Unsupported { what });
        }
        let index = Index::build_from_file(&file, TarLimits::default())
            .map_err(|source| Error::Layer { layer: path.display().to_string(), source })?;
        Ok(Archive::Tar { path: path.to_owned(), index })
    }

    pub(super) fn is_tar(&self) -> bool {
        matches!(self, Archive::Tar { .. })
    }

    /// The archive's name in errors.
    pub(super) fn name(&self) -> String {
        match self {
            Archive::Directory(path) | Archive::Tar { path, .. } => path.display().to_string(),
        }
    }

    pub(super) fn blob(&self, digest: &Digest) -> Result<Member, Error> {
        let name = format!("blobs/{}/{}", digest.algorithm_name(), digest.hex());
        self.member(&name)?.ok_or_else(|| Error::malformed(self.name(), format!("it has no {name}")))
    }

    /// A file by its path; `None` if there is none.
    pub(super) fn member(&self, name: &str) -> Result<Option<Member>, Error> {
        match self {
            Archive::Directory(dir) => {
                let plain = |part| matches!(part, Component::Normal(_));
                if !Path::new(name).components().all(plain) {
                    return Ok(None);
                }
                let path = dir.join(name);
                if fs::symlink_metadata(&path).is_err() {
                    return Ok(None);
                }
                let file = regular(&path)?;
                let len = file.metadata().map_err(Error::store("read", &path))?.len();
                Ok(Some(Member { file, len }))
            }
            Archive::Tar { path, index } => {
                let Some((offset, len)) = locate(index, name) else { return Ok(None) };
                let failed = Error::store("read", path);
                let mut file = File::open(path).map_err(&failed)?;
                file.seek(SeekFrom::Start(offset)).map_err(&failed)?;
                Ok(Some(Member { file, len }))
            }
        }
    }

    /// A small file whole; `None` if there is none.
    pub(super) fn document(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        match self.member(name)? {
            Some(member) => member.read(name).map(Some),
            None => Ok(None),
        }
    }
}

impl Member {
    pub(super) fn read(self, name: &str) -> Result<Vec<u8>, Error> {
        if self.len > MAX_DOCUMENT {
            return Err(Error::TooLarge { what: name.to_owned(), limit: MAX_DOCUMENT, hint: "" });
        }
        let mut bytes = Vec::new();
        self.file.take(self.len).read_to_end(&mut bytes).map_err(Error::store("read", Path::new(name)))?;
        Ok(bytes)
    }
}

/// Opens a file that is one: opening a pipe would wait, and a link may lead anywhere.
fn regular(path: &Path) -> Result<File, Error> {
    let failed = Error::store("read", path);
    if !fs::symlink_metadata(path).map_err(&failed)?.is_file() {
        return Err(Error::malformed(path.display().to_string(), "it is no regular file"));
    }
    File::open(path).map_err(failed)
}

/// Where a regular file lies in a tar, symbolic links followed.
fn locate(index: &Index, name: &str) -> Option<(u64, u64)> {
    let mut path = name.as_bytes().to_vec();
    for _ in 0..MAX_LINKS {
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in path.split(|&b| b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    parts.pop()?;
                }
                part => parts.push(part),
            }
        }
        let mut here = 0;
        for part in &parts {
            here = index.find(here, part)?.inode?;
        }
        let node = index.inode(here);
        match node.kind() {
            FileType::File if node.size == 0 => return Some((0, 0)),
            FileType::File => {
                return match index.slot(&node, 0) {
                    Slot::Data { tar, len } if len == node.size => Some((tar, len)),
                    _ => None,
                };
            }
            FileType::Symlink => {
                parts.pop();
                let mut next = parts.join(&b'/');
                next.push(b'/');
                next.extend_from_slice(index.target(&node));
                path = next;
            }
            _ => return None,
        }
    }
    None
}
