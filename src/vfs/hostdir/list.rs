//! Listings of a host directory.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::fs::{self, AtFlags, Mode, OFlags, RawDir, SeekFrom};

use super::ops::check_offset;
use super::{HostDir, errno, lock, stat};
use crate::vfs::{
    Caller, DirEntry, DirSink, Errno, FileSystem, FileType, Handle, Name, NodeId, Result, mode,
};

impl HostDir {
    pub(super) fn list(
        &self,
        node: NodeId,
        handle: Handle,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> Result<bool>,
    ) -> Result<()> {
        self.list_dir(node, &*self.file(handle)?, cookie, each)
    }

    /// For an overlay above: lists a directory without a handle.
    pub(in crate::vfs) fn list_node(
        &self,
        node: NodeId,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> Result<bool>,
    ) -> Result<()> {
        self.list_dir(node, &*self.fd(node)?, cookie, each)
    }

    fn list_dir(
        &self,
        node: NodeId,
        dir: impl AsFd,
        cookie: u64,
        each: &mut dyn FnMut(DirEntry<'_>) -> Result<bool>,
    ) -> Result<()> {
        check_offset(cookie)?;
        let status = stat(&dir)?;
        if u32::from(status.stx_mode) & mode::FMT != mode::DIR {
            return Err(Errno::ENOTDIR);
        }
        let dev = super::device(status.stx_dev_major, status.stx_dev_minor);
        // Each call has its own position: two calls on one handle must not disturb each other.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let own = self.quietly(flags, |flags| fs::openat(&dir, ".", flags, Mode::empty()))?;
        fs::seek(&own, SeekFrom::Start(cookie)).map_err(errno)?;
        // Clients ask for a page or so at a time; what is read beyond it is read again.
        let mut buffer = [MaybeUninit::<u8>::uninit(); 8 << 10];
        let mut entries = RawDir::new(&own, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(errno)?;
            let name = entry.file_name().to_bytes();
            let (mut ino, mut kind) = (self.ino(dev, entry.ino()), entry.file_type());
            match name {
                b"." => ino = self.ino(dev, status.stx_ino),
                // What is above the root is nobody's business.
                b".." => {
                    let above = lock(&self.nodes).parent(node.0)?;
                    ino = match self.fd(NodeId(above)).and_then(|fd| stat(&*fd)) {
                        Ok(s) => self.ino(super::device(s.stx_dev_major, s.stx_dev_minor), s.stx_ino),
                        Err(_) => self.ino(dev, status.stx_ino),
                    };
                }
                _ if kind == fs::FileType::Unknown => {
                    match fs::statat(&own, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                        Ok(status) => kind = fs::FileType::from_raw_mode(status.st_mode),
                        Err(rustix::io::Errno::NOENT) => continue,
                        Err(e) => return Err(errno(e)),
                    }
                }
                _ => {}
            }
            let kind = match kind {
                fs::FileType::Directory => FileType::Dir,
                fs::FileType::Symlink => FileType::Symlink,
                fs::FileType::Fifo => FileType::Fifo,
                fs::FileType::Socket => FileType::Socket,
                fs::FileType::CharacterDevice => FileType::Char,
                fs::FileType::BlockDevice => FileType::Block,
                _ => FileType::File,
            };
            if !each(DirEntry { ino, cookie: entry.next_entry_cookie(), kind, name })? {
                break;
            }
        }
        Ok(())
    }
    pub(super) fn list_with_nodes(
        &self,
        caller: &Caller,
        node: NodeId,
        handle: Handle,
        cookie: u64,
        sink: &mut dyn DirSink,
    ) -> Result<()> {
        self.list(node, handle, cookie, &mut |entry| {
            let Ok(name) = Name::new(entry.name) else { return Ok(sink.entry(entry, None)) };
            match self.lookup(caller, node, name) {
                Ok(found) => {
                    let entry = DirEntry { ino: found.attr.ino, kind: found.attr.file_type(), ..entry };
                    let taken = sink.entry(entry, Some(&found));
                    if !taken {
                        self.forget(found.node, 1);
                    }
                    Ok(taken)
                }
                Err(Errno::ENOENT) => Ok(true),
                // The name is there all the same: no error may make it vanish.
                Err(_) => Ok(sink.entry(entry, None)),
            }
        })
    }
}
