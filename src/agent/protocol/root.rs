//! What a guest's root is to be.

extern crate alloc;

use alloc::vec::Vec;
use core::ffi::CStr;

use super::{Error, Reader, put_str};

/// Most files that are put over a root's own.
const MAX_FILES: usize = 64;
/// Most file systems mounted in a root.
const MAX_MOUNTS: usize = 64;

/// A root for the guest, in which everything runs from then on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root<'a> {
    /// Tag of the virtio-fs device that has it.
    pub tag: &'a CStr,
    /// Whether it is mounted read-only.
    pub read_only: bool,
    /// Host name.
    pub hostname: &'a CStr,
    /// A directory to make if it is not there: where commands start.
    pub directory: Option<&'a CStr>,
    /// Files that are seen instead of the root's own.
    pub files: Vec<File<'a>>,
    /// What is mounted in it, in order.
    pub mounts: Vec<Mount<'a>>,
}

/// A file that is seen instead of the root's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File<'a> {
    /// Absolute path.
    pub path: &'a CStr,
    /// What is in it.
    pub contents: &'a [u8],
    /// Whether it is left out where the root has none.
    pub only_over: bool,
}

/// A file system to mount in the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mount<'a> {
    /// Tag of the virtio-fs device.
    pub tag: &'a CStr,
    /// Absolute path, made if it is not there.
    pub target: &'a CStr,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

impl<'a> Root<'a> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.read_only) | u8::from(self.directory.is_some()) << 1);
        put_str(self.tag, out);
        put_str(self.hostname, out);
        if let Some(directory) = self.directory {
            put_str(directory, out);
        }
        out.extend_from_slice(&(self.files.len() as u32).to_le_bytes());
        for file in &self.files {
            out.push(u8::from(file.only_over));
            put_str(file.path, out);
            out.extend_from_slice(&(file.contents.len() as u32).to_le_bytes());
            out.extend_from_slice(file.contents);
        }
        out.extend_from_slice(&(self.mounts.len() as u32).to_le_bytes());
        for mount in &self.mounts {
            out.push(u8::from(mount.read_only));
            put_str(mount.tag, out);
            put_str(mount.target, out);
        }
    }

    pub(super) fn decode(r: &mut Reader<'a>) -> Result<Self, Error> {
        let flags = r.u8()?;
        if flags & !3 != 0 {
            return Err(Error::Malformed);
        }
        let (tag, hostname) = (r.string()?, r.string()?);
        let directory = if flags & 2 != 0 { Some(r.string()?) } else { None };
        let flag = |r: &mut Reader<'a>| match r.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Error::Malformed),
        };
        let files = r.list(10, |r| {
            let (only_over, path) = (flag(r)?, r.string()?);
            let len = r.u32()? as usize;
            Ok(File { path, contents: r.bytes(len)?, only_over })
        })?;
        let mounts =
            r.list(11, |r| Ok(Mount { read_only: flag(r)?, tag: r.string()?, target: r.string()? }))?;
        if files.len() > MAX_FILES || mounts.len() > MAX_MOUNTS {
            return Err(Error::TooLong);
        }
        Ok(Root { tag, read_only: flags & 1 != 0, hostname, directory, files, mounts })
    }
}
