//! The functions of [`std::fs`] as methods: one list, for the trait and for instances.

use std::io;
use std::path::{Path, PathBuf};

use super::{DirBuilder, File, FileSystem, FileTimes, Metadata, OpenOptions, Permissions, ReadDir, TempDir};

/// Hands every operation to the macro `$each`: documentation, name, arguments, result, and a body in which the first
/// name is the [`FileSystem`].
macro_rules! operations {
    ($each:ident) => {
        $each! {
            /// Opens a file to be read. This corresponds to [`std::fs::File::open`].
            fn open(fs, path: impl AsRef<Path>) -> io::Result<File> {
                fs.options().read(true).open(path)
            }

            /// Opens a file to be written: made if there is none, emptied if there is. This corresponds to
            /// [`std::fs::File::create`].
            fn create(fs, path: impl AsRef<Path>) -> io::Result<File> {
                fs.options().write(true).create(true).truncate(true).open(path)
            }

            /// Makes a file that must not be there and opens it to be read and written. This corresponds to
            /// [`std::fs::File::create_new`].
            fn create_new(fs, path: impl AsRef<Path>) -> io::Result<File> {
                fs.options().read(true).write(true).create_new(true).open(path)
            }

            /// Ways to open a file. This corresponds to [`std::fs::OpenOptions::new`].
            fn open_options(fs,) -> OpenOptions {
                fs.options()
            }

            /// Reads a whole file. This corresponds to [`std::fs::read`].
            fn read(fs, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
                fs.read_file(path.as_ref())
            }

            /// Reads a whole file of text. This corresponds to [`std::fs::read_to_string`].
            ///
            /// # Errors
            /// [`InvalidData`](io::ErrorKind::InvalidData) when it is not UTF-8.
            fn read_to_string(fs, path: impl AsRef<Path>) -> io::Result<String> {
                fs.read_text(path.as_ref())
            }

            /// Writes a whole file: made if there is none, replaced if there is. This corresponds to
            /// [`std::fs::write`].
            fn write(fs, path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> io::Result<()> {
                fs.write_file(path.as_ref(), contents.as_ref())
            }

            /// What is known of a file, at the end of symbolic links. This corresponds to [`std::fs::metadata`].
            fn metadata(fs, path: impl AsRef<Path>) -> io::Result<Metadata> {
                fs.stat(path.as_ref(), true)
            }

            /// What is known of a file that may be a symbolic link. This corresponds to
            /// [`std::fs::symlink_metadata`].
            fn symlink_metadata(fs, path: impl AsRef<Path>) -> io::Result<Metadata> {
                fs.stat(path.as_ref(), false)
            }

            /// Whether there is such a file, at the end of symbolic links. This corresponds to [`std::fs::exists`] and
            /// [`Path::try_exists`].
            fn exists(fs, path: impl AsRef<Path>) -> io::Result<bool> {
                match fs.stat(path.as_ref(), true) {
                    Ok(_) => Ok(true),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
                    Err(e) => Err(e),
                }
            }

            /// Removes a file or symbolic link. This corresponds to [`std::fs::remove_file`].
            fn remove_file(fs, path: impl AsRef<Path>) -> io::Result<()> {
                fs.remove_file(path.as_ref())
            }

            /// Removes an empty directory. This corresponds to [`std::fs::remove_dir`].
            fn remove_dir(fs, path: impl AsRef<Path>) -> io::Result<()> {
                fs.remove_dir(path.as_ref())
            }

            /// Removes a directory with all below it; of a symbolic link only the link. Nothing is entered through a
            /// symbolic link, whoever else changes the tree meanwhile. This corresponds to
            /// [`std::fs::remove_dir_all`].
            fn remove_dir_all(fs, path: impl AsRef<Path>) -> io::Result<()> {
                fs.remove_dir_all(path.as_ref())
            }

            /// Makes a directory. This corresponds to [`std::fs::create_dir`].
            fn create_dir(fs, path: impl AsRef<Path>) -> io::Result<()> {
                fs.dir_builder().create(path)
            }

            /// Makes a directory and those above it, as far as they are not there. This corresponds to
            /// [`std::fs::create_dir_all`].
            fn create_dir_all(fs, path: impl AsRef<Path>) -> io::Result<()> {
                fs.dir_builder().recursive(true).create(path)
            }

            /// Ways to make a directory. This corresponds to [`std::fs::DirBuilder::new`].
            fn dir_builder(fs,) -> DirBuilder {
                fs.dir_builder()
            }

            /// What is in a directory. This corresponds to [`std::fs::read_dir`].
            fn read_dir(fs, path: impl AsRef<Path>) -> io::Result<ReadDir> {
                fs.read_dir(path.as_ref())
            }

            /// Gives a file another name, in place of what has that name. This corresponds to [`std::fs::rename`].
            fn rename(fs, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
                fs.rename(from.as_ref(), to.as_ref())
            }

            /// Copies a file's content and mode to another, both here, and says how many bytes. This corresponds to
            /// [`std::fs::copy`].
            fn copy(fs, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<u64> {
                fs.copy(from.as_ref(), to.as_ref())
            }

            /// Makes `link` a symbolic link to `original`. This corresponds to [`std::os::unix::fs::symlink`].
            fn symlink(fs, original: impl AsRef<Path>, link: impl AsRef<Path>) -> io::Result<()> {
                fs.symlink(original.as_ref(), link.as_ref())
            }

            /// Makes `link` another name of the file `original`. This corresponds to [`std::fs::hard_link`].
            fn hard_link(fs, original: impl AsRef<Path>, link: impl AsRef<Path>) -> io::Result<()> {
                fs.hard_link(original.as_ref(), link.as_ref())
            }

            /// Where a symbolic link leads. This corresponds to [`std::fs::read_link`].
            fn read_link(fs, path: impl AsRef<Path>) -> io::Result<PathBuf> {
                fs.read_link(path.as_ref())
            }

            /// The absolute path of a file, without symbolic links. This corresponds to [`std::fs::canonicalize`].
            fn canonicalize(fs, path: impl AsRef<Path>) -> io::Result<PathBuf> {
                fs.canonicalize(path.as_ref())
            }

            /// Sets who may do what with a file, at the end of symbolic links. This corresponds to
            /// [`std::fs::set_permissions`].
            fn set_permissions(fs, path: impl AsRef<Path>, permissions: Permissions) -> io::Result<()> {
                fs.set_permissions(path.as_ref(), permissions)
            }

            /// Sets a file's times, at the end of symbolic links. This corresponds to [`std::fs::File::set_times`] for
            /// a path.
            fn set_times(fs, path: impl AsRef<Path>, times: FileTimes) -> io::Result<()> {
                fs.set_times(path.as_ref(), times)
            }

            /// Sets a file's user and group, at the end of symbolic links. This corresponds to
            /// [`std::os::unix::fs::chown`].
            fn chown(fs, path: impl AsRef<Path>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
                fs.chown(path.as_ref(), uid, gid, true)
            }

            /// Sets the user and group of a file that may be a symbolic link. This corresponds to
            /// [`std::os::unix::fs::lchown`].
            fn lchown(fs, path: impl AsRef<Path>, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
                fs.chown(path.as_ref(), uid, gid, false)
            }

            /// Makes a directory of a new name that is removed with all below it when the result is dropped: in the
            /// guest below `/tmp`, on the host below [`std::env::temp_dir`]. Has no twin in std.
            fn temp_dir(fs,) -> io::Result<TempDir> {
                TempDir::new(fs)
            }

            /// Copies a file or a directory with all below it from this program's host, and says how many bytes of
            /// files. Has no twin in std.
            ///
            /// A directory's content is added to what is in `to`, which is made if need be, but not what is above it;
            /// files there of the same name are replaced. Modes,
            /// times of last change, symbolic links (as links) and holes are kept; users are not: all belongs to
            /// who does this, in a guest to root. Pipes, sockets and devices are left out, and a file with several
            /// names becomes several files. `from` itself may be a symbolic link to what is copied.
            fn copy_in(fs, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<u64> {
                fs.copy_in(from.as_ref(), to.as_ref())
            }

            /// Copies a file or a directory with all below it to this program's host, and says how many bytes of
            /// files. Has no twin in std.
            ///
            /// As [`copy_in`](Fs::copy_in) the other way, and set-user-id, set-group-id and sticky bits are dropped.
            /// Nothing is written but below `to`, whatever a hostile guest answers: what is copied is never followed
            /// through a symbolic link on the host.
            fn copy_out(fs, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<u64> {
                fs.copy_out(from.as_ref(), to.as_ref())
            }

            /// Writes a tar archive of the directory `from` to `to` as it reads: names relative to it, modes, users and
            /// groups by number, times, symbolic links. Pipes, sockets and devices are left out. Has no twin in std.
            fn write_archive(fs, from: impl AsRef<Path>, to: impl io::Write) -> io::Result<()> {
                crate::fs::transfer::write_archive(fs, from.as_ref(), to)
            }

            /// Unpacks a tar archive into the directory `to`, which is made if need be. Has no twin in std.
            ///
            /// # Errors
            /// [`InvalidData`](io::ErrorKind::InvalidData) for a name that leads out of `to`, by `..` or through a
            /// symbolic link, and for entries that are no file, directory or link.
            fn read_archive(fs, from: impl io::Read, to: impl AsRef<Path>) -> io::Result<()> {
                crate::fs::transfer::read_archive(fs, from, to.as_ref())
            }
        }
    };
}
pub(crate) use operations;

macro_rules! in_trait {
    ($($(#[$doc:meta])* fn $name:ident($fs:ident, $($arg:ident: $type:ty),*) -> $result:ty $body:block)*) => {
        /// What can be done with files, wherever they are. This corresponds to the functions of [`std::fs`].
        ///
        /// [`Instance`](crate::Instance) and [`Host`](crate::Host) implement it, references and `Arc`s to them, and
        /// [`FileSystem`]. A program that does not know at compile time which it has uses `&dyn Fs` and
        /// [`Fs::file_system`].
        ///
        /// ```no_run
        /// use cc::fs::Fs;
        ///
        /// fn configure(on: &impl Fs) -> std::io::Result<()> {
        ///     on.create_dir_all("/etc/app")?;
        ///     on.write("/etc/app/config", "port = 80\n")
        /// }
        /// ```
        pub trait Fs {
            /// The file system that is worked on.
            fn file_system(&self) -> FileSystem;

            $($(#[$doc])*
            fn $name(&self $(, $arg: $type)*) -> $result
            where
                Self: Sized,
            {
                let $fs = &self.file_system();
                $body
            })*
        }
    };
}
operations!(in_trait);

impl<T: Fs + ?Sized> Fs for &T {
    fn file_system(&self) -> FileSystem {
        (**self).file_system()
    }
}

impl<T: Fs + ?Sized> Fs for std::sync::Arc<T> {
    fn file_system(&self) -> FileSystem {
        (**self).file_system()
    }
}

impl<T: Fs + ?Sized> Fs for Box<T> {
    fn file_system(&self) -> FileSystem {
        (**self).file_system()
    }
}
