//! The first root file system, written in memory as an uncompressed `newc` cpio archive.
//!
//! Uncompressed, because unpacking costs the guest more than copying costs the host. It has what the agent needs until
//! it is given the real root, see `guest/root.rs`:
//!
//! | path | what |
//! |---|---|
//! | `/init` | the agent |
//! | `/cc/modules` | modules to load, one absolute path a line, in order |
//! | `/lib/modules/<release>/…` | those modules |
//! | `/dev/console`, `/dev/null` | for the time before devtmpfs is mounted |

use std::collections::HashSet;

use super::BootError;
use super::modules::Module;

/// An initramfs is not larger, in bytes.
const MAX_SIZE: usize = 1 << 30;

const DIRECTORY: u32 = 0o040000;
const REGULAR: u32 = 0o100000;
const CHARACTER: u32 = 0o020000;

/// What goes into the initramfs of a machine.
#[derive(Debug, Clone, Copy)]
pub struct Contents<'a> {
    /// The program that runs as PID 1: a static x86-64 ELF file.
    pub agent: &'a [u8],
    /// The kernel's release name.
    pub release: &'a str,
    /// Modules in loading order.
    pub modules: &'a [Module],
}

/// Writes the initramfs described in the module's text.
pub fn build(contents: &Contents<'_>) -> Result<Vec<u8>, BootError> {
    let mut cpio = Cpio::new();
    for dir in ["cc", "dev", "proc", "run", "sys", "tmp"] {
        cpio.directory(dir, 0o755)?;
    }
    cpio.device("dev/console", 0o600, 5, 1)?;
    cpio.device("dev/null", 0o666, 1, 3)?;
    let mut list = String::new();
    for module in contents.modules {
        let path = format!("lib/modules/{}/{}", contents.release, module.path);
        cpio.file(&path, 0o644, &module.bytes)?;
        list.push_str(&format!("/{path}\n"));
    }
    cpio.file("cc/modules", 0o644, list.as_bytes())?;
    cpio.file("init", 0o755, contents.agent)?;
    cpio.finish()
}

/// A writer of `newc` archives. Paths have no leading slash; missing parents are made.
#[derive(Debug, Default)]
pub struct Cpio {
    out: Vec<u8>,
    entries: u32,
    known: HashSet<String>,
}

impl Cpio {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// A directory with permission bits `mode`.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<(), BootError> {
        self.entry(path, DIRECTORY | mode, (0, 0), b"")
    }

    /// A regular file with permission bits `mode`.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> Result<(), BootError> {
        self.entry(path, REGULAR | mode, (0, 0), data)
    }

    /// A character device.
    pub fn device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> Result<(), BootError> {
        self.entry(path, CHARACTER | mode, (major, minor), b"")
    }

    /// The archive's bytes.
    pub fn finish(mut self) -> Result<Vec<u8>, BootError> {
        self.header("TRAILER!!!", 0, (0, 0), 0);
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) -> Result<(), BootError> {
        let refuse = |reason| BootError::Initramfs { path: path.to_owned(), reason };
        let bad = |part: &str| part.is_empty() || part == "." || part == "..";
        if path.len() > 1024 || path.contains('\0') || path.split('/').any(bad) {
            return Err(refuse("not a plain relative path"));
        }
        if let Some((parent, _)) = path.rsplit_once('/')
            && !self.known.contains(parent)
        {
            self.directory(parent, 0o755)?;
        }
        if !self.known.insert(path.to_owned()) {
            return Err(refuse("it is there already"));
        }
        if data.len() > MAX_SIZE || self.out.len() + data.len() > MAX_SIZE {
            return Err(refuse("more than 1 GiB"));
        }
        self.header(path, mode, device, data.len() as u32);
        self.out.extend_from_slice(data);
        self.align();
        Ok(())
    }

    fn header(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), size: u32) {
        self.entries += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, device, special device, name size, checksum
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, major, minor, name.len() as u32 + 1, 0];
        self.out.extend_from_slice(b"070701");
        for value in fields {
            self.out.extend_from_slice(format!("{value:08x}").as_bytes());
        }
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(0);
        self.align();
    }

    fn align(&mut self) {
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
#[path = "initramfs_tests.rs"]
mod tests;
