//! Open files.

use std::fs::TryLockError;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::error::Context;
use super::guest::{count, number, stat_of};
use super::{FileTimes, Metadata, Permissions, host};
use crate::agent::files::{Answer, Handle, Lease};
use crate::agent::protocol::files::{MAX_CHUNK, Request, Target};

/// Chunks that are under way where much is read or written.
pub(super) const WINDOW: usize = 4;

const LOCK_SH: i32 = 1;
const LOCK_EX: i32 = 2;
const LOCK_NB: i32 = 4;
const LOCK_UN: i32 = 8;

/// An open file, of a guest or of the host. Dropping it closes it.
///
/// This corresponds to [`std::fs::File`] with [`std::os::unix::fs::FileExt`]; it is opened by the methods of
/// [`Fs`](super::Fs) and [`OpenOptions`](super::OpenOptions). Differences for a guest's:
///
/// - It has no descriptor on this host, so it cannot become a command's standard stream.
/// - One call of `read` or `write` moves at most 256 KiB. `read_to_end`, `write_all` and
///   [`std::io::copy`] into a `Vec` keep several under way.
/// - When its machine has ended, or was killed and restored, everything fails with
///   [`NotConnected`](io::ErrorKind::NotConnected). In a clone of the machine it is not open.
/// - Closing waits for the guest, as it does on the host; a paused machine is waited for.
#[derive(Debug)]
pub struct File(Inner);

#[derive(Debug)]
enum Inner {
    Host(std::fs::File),
    Guest(GuestFile),
}

impl File {
    pub(super) fn of_host(file: std::fs::File) -> Self {
        File(Inner::Host(file))
    }

    pub(super) fn of_guest(file: GuestFile) -> Self {
        File(Inner::Guest(file))
    }

    /// What is known of it.
    pub fn metadata(&self) -> io::Result<Metadata> {
        match &self.0 {
            Inner::Host(file) => file.metadata().map(host::metadata),
            Inner::Guest(file) => file.metadata(),
        }
    }

    /// Waits until all of it is on its disk.
    pub fn sync_all(&self) -> io::Result<()> {
        match &self.0 {
            Inner::Host(file) => file.sync_all(),
            Inner::Guest(file) => file.call("sync", &Request::Sync(file.fd(), false)).map(drop),
        }
    }

    /// Waits until its content is on its disk.
    pub fn sync_data(&self) -> io::Result<()> {
        match &self.0 {
            Inner::Host(file) => file.sync_data(),
            Inner::Guest(file) => file.call("sync", &Request::Sync(file.fd(), true)).map(drop),
        }
    }

    /// Cuts it off at `len` bytes, or lets it end there with zeros.
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        match &self.0 {
            Inner::Host(file) => file.set_len(len),
            Inner::Guest(file) => file.call("set length of", &Request::Truncate(file.fd(), len)).map(drop),
        }
    }

    /// Sets who may do what with it.
    pub fn set_permissions(&self, permissions: Permissions) -> io::Result<()> {
        match &self.0 {
            Inner::Host(file) => file.set_permissions(host::permissions(&permissions)),
            Inner::Guest(file) => {
                let request = Request::Chmod(Target::File(file.fd()), permissions.mode() & 0o7777);
                file.call("set permissions of", &request).map(drop)
            }
        }
    }

    /// Sets user and group that own it; `None` leaves one as it is.
    ///
    /// This corresponds to [`std::os::unix::fs::fchown`].
    pub fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        match &self.0 {
            Inner::Host(file) => std::os::unix::fs::fchown(file, uid, gid),
            Inner::Guest(file) => {
                let (uid, gid) = (uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX));
                file.call("set owner of", &Request::Chown(Target::File(file.fd()), uid, gid)).map(drop)
            }
        }
    }

    /// Sets its times.
    pub fn set_times(&self, times: FileTimes) -> io::Result<()> {
        match &self.0 {
            Inner::Host(file) => file.set_times(times.to_std()),
            Inner::Guest(file) => {
                let [accessed, modified] = times.raw();
                let request = Request::Times(Target::File(file.fd()), accessed, modified);
                file.call("set times of", &request).map(drop)
            }
        }
    }

    /// Sets its time of last change.
    pub fn set_modified(&self, time: std::time::SystemTime) -> io::Result<()> {
        self.set_times(FileTimes::new().set_modified(time))
    }

    /// Another handle to the same open file, with the same position.
    pub fn try_clone(&self) -> io::Result<File> {
        match &self.0 {
            Inner::Host(file) => file.try_clone().map(File::of_host),
            Inner::Guest(file) => file.try_clone().map(File::of_guest),
        }
    }

    /// Waits for the lock that nobody else has; one lock a file, for those who ask.
    pub fn lock(&self) -> io::Result<()> {
        match &self.0 {
            Inner::Host(file) => file.lock(),
            Inner::Guest(file) => file.lock(LOCK_EX),
        }
    }

    /// Waits for the lock that several may have.
    pub fn lock_shared(&self) -> io::Result<()> {
        match &self.0 {
            Inner::Host(file) => file.lock_shared(),
            Inner::Guest(file) => file.lock(LOCK_SH),
        }
    }

    /// Takes the lock that nobody else has, if it is free.
    pub fn try_lock(&self) -> Result<(), TryLockError> {
        match &self.0 {
            Inner::Host(file) => file.try_lock(),
            Inner::Guest(file) => file.try_lock(LOCK_EX),
        }
    }

    /// Takes the lock that several may have, if it is free.
    pub fn try_lock_shared(&self) -> Result<(), TryLockError> {
        match &self.0 {
            Inner::Host(file) => file.try_lock_shared(),
            Inner::Guest(file) => file.try_lock(LOCK_SH),
        }
    }

    /// Gives the lock back.
    pub fn unlock(&self) -> io::Result<()> {
        match &self.0 {
            Inner::Host(file) => file.unlock(),
            Inner::Guest(file) => file.lock(LOCK_UN),
        }
    }

    /// Reads at an offset; the position stays. This corresponds to
    /// [`FileExt::read_at`].
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.0 {
            Inner::Host(file) => file.read_at(bytes, offset),
            Inner::Guest(file) => file.read(bytes, Some(offset)),
        }
    }

    /// Writes at an offset; the position stays. This corresponds to
    /// [`FileExt::write_at`].
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        match &self.0 {
            Inner::Host(file) => file.write_at(bytes, offset),
            Inner::Guest(file) => file.write(bytes, Some(offset)),
        }
    }

    /// Reads exactly as much, at an offset. This corresponds to
    /// [`FileExt::read_exact_at`].
    pub fn read_exact_at(&self, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.read_at(bytes, offset) {
                Ok(0) => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "failed to fill whole buffer"));
                }
                Ok(n) => {
                    bytes = &mut bytes[n..];
                    offset += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Writes all, at an offset. This corresponds to [`FileExt::write_all_at`].
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match &self.0 {
            Inner::Host(file) => file.write_all_at(bytes, offset),
            Inner::Guest(file) => file.write_all_at(bytes, Some(offset)),
        }
    }
}

impl Read for &File {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match &self.0 {
            Inner::Host(file) => (&mut &*file).read(bytes),
            Inner::Guest(file) => file.read(bytes, None),
        }
    }

    fn read_to_end(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        match &self.0 {
            Inner::Host(file) => (&mut &*file).read_to_end(bytes),
            Inner::Guest(file) => file.read_to_end(bytes).at("read", &file.path),
        }
    }

    fn read_to_string(&mut self, text: &mut String) -> io::Result<usize> {
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        let invalid = |_| io::Error::new(io::ErrorKind::InvalidData, "stream did not contain valid UTF-8");
        text.push_str(std::str::from_utf8(&bytes).map_err(invalid)?);
        Ok(bytes.len())
    }
}

impl Write for &File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Inner::Host(file) => (&mut &*file).write(bytes),
            Inner::Guest(file) => file.write(bytes, None),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &self.0 {
            Inner::Host(file) => (&mut &*file).write_all(bytes),
            Inner::Guest(file) => file.write_all_at(bytes, None),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for &File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match &self.0 {
            Inner::Host(file) => (&mut &*file).seek(to),
            Inner::Guest(file) => file.seek(to),
        }
    }
}

impl Read for File {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (&mut &*self).read(bytes)
    }

    fn read_to_end(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        (&mut &*self).read_to_end(bytes)
    }

    fn read_to_string(&mut self, text: &mut String) -> io::Result<usize> {
        (&mut &*self).read_to_string(text)
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&mut &*self).write(bytes)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        (&mut &*self).write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        (&mut &*self).seek(to)
    }
}

/// An open file of a guest, and what it was opened as, for errors.
#[derive(Debug)]
pub(super) struct GuestFile {
    handle: Handle,
    path: PathBuf,
    /// What is not may have a reader wait.
    regular: bool,
}

impl GuestFile {
    pub(super) fn new(handle: Handle, path: &Path, regular: bool) -> Self {
        GuestFile { handle, path: path.to_owned(), regular }
    }

    pub(super) fn fd(&self) -> i32 {
        self.handle.fd()
    }

    fn with<T>(
        &self,
        operation: &'static str,
        act: impl FnOnce(&mut Lease<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.handle.lease().and_then(|mut lease| act(&mut lease)).at(operation, &self.path)
    }

    fn call(&self, operation: &'static str, request: &Request<'_>) -> Answer {
        self.with(operation, |lease| lease.call(request))
    }

    fn metadata(&self) -> io::Result<Metadata> {
        self.with("read metadata of", |lease| {
            let answer = lease.call(&Request::Stat(Target::File(self.fd())))?;
            stat_of(lease, &answer)
        })
    }

    fn try_clone(&self) -> io::Result<Self> {
        self.with("clone handle of", |lease| {
            let answer = lease.call(&Request::Duplicate(self.fd()))?;
            let fd = count(lease, &answer)? as i32;
            let handle = Handle::adopt(self.handle.files(), lease, fd);
            Ok(GuestFile { handle, path: self.path.clone(), regular: self.regular })
        })
    }

    fn lock(&self, how: i32) -> io::Result<()> {
        self.call("lock", &Request::Lock(self.fd(), how)).map(drop)
    }

    fn try_lock(&self, how: i32) -> Result<(), TryLockError> {
        self.lock(how | LOCK_NB).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => TryLockError::WouldBlock,
            _ => TryLockError::Error(e),
        })
    }

    fn read(&self, bytes: &mut [u8], at: Option<u64>) -> io::Result<usize> {
        let n = bytes.len().min(MAX_CHUNK);
        self.with("read", |lease| {
            lease.send(&Request::Read(self.fd(), at, n as u32))?;
            lease.answer_into(&mut bytes[..n])
        })
    }

    fn write(&self, bytes: &[u8], at: Option<u64>) -> io::Result<usize> {
        let chunk = &bytes[..bytes.len().min(MAX_CHUNK)];
        self.with("write", |lease| {
            let answer = lease.call(&Request::Write(self.fd(), at, chunk))?;
            let n = count(lease, &answer)? as usize;
            if n > chunk.len() { Err(lease.malformed()) } else { Ok(n) }
        })
    }

    fn write_all_at(&self, bytes: &[u8], at: Option<u64>) -> io::Result<()> {
        self.with("write", |lease| write_chunks(lease, self.fd(), bytes, at))
    }

    /// Reads what is left; errors say nothing of the file.
    pub(super) fn read_to_end(&self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        let mut lease = self.handle.lease()?;
        let start = bytes.len();
        // One first: most files end with it. More only where a read never waits.
        let (mut window, mut ended) = (1, false);
        while !ended || lease.owed() > 0 {
            while !ended && lease.owed() < window {
                lease.send(&Request::Read(self.fd(), None, MAX_CHUNK as u32))?;
            }
            match lease.answer_onto(bytes) {
                Ok(0) => ended = true,
                Ok(n) if n == MAX_CHUNK && self.regular => window = WINDOW,
                Ok(_) => {}
                Err(e) => {
                    lease.drain();
                    return Err(e);
                }
            }
        }
        Ok(bytes.len() - start)
    }

    fn seek(&self, to: SeekFrom) -> io::Result<u64> {
        let (offset, whence) = match to {
            SeekFrom::Start(at) => (at as i64, 0),
            SeekFrom::Current(by) => (by, 1),
            SeekFrom::End(by) => (by, 2),
        };
        self.with("seek in", |lease| {
            let answer = lease.call(&Request::Seek(self.fd(), offset, whence))?;
            number(lease, &answer)
        })
    }
}

/// Writes all with several chunks under way. After an error those behind it are not written.
pub(super) fn write_chunks(
    lease: &mut Lease<'_>,
    fd: i32,
    bytes: &[u8],
    mut at: Option<u64>,
) -> io::Result<()> {
    let mut chunks = bytes.chunks(MAX_CHUNK);
    let mut done = Ok(());
    loop {
        let next = if done.is_ok() { chunks.next() } else { None };
        if let Some(chunk) = next {
            lease.send(&Request::WriteAll(fd, at, chunk))?;
            at = at.map(|at| at.saturating_add(chunk.len() as u64));
        }
        if lease.owed() == 0 {
            return done;
        }
        if next.is_none() || lease.owed() >= WINDOW {
            // The first error is the one.
            let answer = lease.answer();
            done = done.and(answer.map(drop));
        }
    }
}
