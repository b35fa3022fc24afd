//! Ways to open files and to make directories.

use std::io;
use std::path::Path;

use super::{File, FileSystem};

const O_WRONLY: i32 = 0o1;
const O_RDWR: i32 = 0o2;
const O_ACCMODE: i32 = 0o3;
const O_CREAT: i32 = 0o100;
const O_EXCL: i32 = 0o200;
const O_TRUNC: i32 = 0o1000;
const O_APPEND: i32 = 0o2000;

/// Ways to open a file.
///
/// This corresponds to [`std::fs::OpenOptions`] with [`std::os::unix::fs::OpenOptionsExt`]. It is made by
/// [`Fs::open_options`](super::Fs::open_options), and knows where files are opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    fs: FileSystem,
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) append: bool,
    pub(super) truncate: bool,
    pub(super) create: bool,
    pub(super) create_new: bool,
    pub(super) mode: u32,
    pub(super) custom_flags: i32,
}

impl OpenOptions {
    pub(super) fn new(fs: &FileSystem) -> Self {
        OpenOptions {
            fs: fs.clone(),
            read: false,
            write: false,
            append: false,
            truncate: false,
            create: false,
            create_new: false,
            mode: 0o666,
            custom_flags: 0,
        }
    }

    /// To read.
    pub fn read(&mut self, read: bool) -> &mut Self {
        self.read = read;
        self
    }

    /// To write, over what is there.
    pub fn write(&mut self, write: bool) -> &mut Self {
        self.write = write;
        self
    }

    /// To write, always at the end.
    pub fn append(&mut self, append: bool) -> &mut Self {
        self.append = append;
        self
    }

    /// Empties it.
    pub fn truncate(&mut self, truncate: bool) -> &mut Self {
        self.truncate = truncate;
        self
    }

    /// Makes it if there is none.
    pub fn create(&mut self, create: bool) -> &mut Self {
        self.create = create;
        self
    }

    /// Makes it, and fails if there is one, be it a symbolic link.
    pub fn create_new(&mut self, create_new: bool) -> &mut Self {
        self.create_new = create_new;
        self
    }

    /// The mode of a file that is made, 0o666 by default, less the umask.
    pub fn mode(&mut self, mode: u32) -> &mut Self {
        self.mode = mode;
        self
    }

    /// Flags of `open(2)` besides, as Linux numbers them on x86-64; those that say whether to read or write are not
    /// looked at.
    pub fn custom_flags(&mut self, flags: i32) -> &mut Self {
        self.custom_flags = flags;
        self
    }

    /// Opens.
    ///
    /// # Errors
    /// As std's: [`InvalidInput`](io::ErrorKind::InvalidInput) for options that contradict each other, and whatever the
    /// system says.
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        self.fs.open(path.as_ref(), self)
    }

    /// The flags of `open(2)`.
    pub(super) fn flags(&self) -> io::Result<i32> {
        let invalid = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        let access = match (self.read, self.write, self.append) {
            (true, false, false) => 0,
            (false, true, false) => O_WRONLY,
            (true, true, false) => O_RDWR,
            (false, _, true) => O_WRONLY | O_APPEND,
            (true, _, true) => O_RDWR | O_APPEND,
            (false, false, false) if self.truncate || self.create || self.create_new => {
                return invalid("a file cannot be created or truncated without write or append access");
            }
            (false, false, false) => return invalid("a file needs at least one of read, write and append"),
        };
        let creates = self.create || self.create_new;
        match (self.write, self.append) {
            (false, false) if self.truncate || creates => {
                return invalid("a file cannot be created or truncated without write or append access");
            }
            (_, true) if self.truncate && !self.create_new => {
                return invalid("a file cannot be truncated and appended to");
            }
            _ => {}
        }
        let creation = match (self.create, self.truncate, self.create_new) {
            (_, _, true) => O_CREAT | O_EXCL,
            (create, truncate, false) => (i32::from(create) * O_CREAT) | (i32::from(truncate) * O_TRUNC),
        };
        Ok(access | creation | self.custom_flags & !O_ACCMODE)
    }
}

/// Ways to make a directory.
///
/// This corresponds to [`std::fs::DirBuilder`] with [`std::os::unix::fs::DirBuilderExt`]. It is made by
/// [`Fs::dir_builder`](super::Fs::dir_builder).
#[derive(Debug, Clone)]
pub struct DirBuilder {
    fs: FileSystem,
    recursive: bool,
    mode: u32,
}

impl DirBuilder {
    pub(super) fn new(fs: &FileSystem) -> Self {
        DirBuilder { fs: fs.clone(), recursive: false, mode: 0o777 }
    }

    /// Makes those above it too, and takes one that is there for its own.
    pub fn recursive(&mut self, recursive: bool) -> &mut Self {
        self.recursive = recursive;
        self
    }

    /// The mode of directories that are made, 0o777 by default, less the umask.
    pub fn mode(&mut self, mode: u32) -> &mut Self {
        self.mode = mode;
        self
    }

    /// Makes the directory.
    ///
    /// # Errors
    /// As std's.
    pub fn create(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.fs.make_dir(path.as_ref(), self.mode, self.recursive)
    }
}
