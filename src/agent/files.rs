//! The host's end of file workers: processes in the guest that work on its files, see
//! [`protocol::files`](super::protocol::files).
//!
//! [`Files`] has a *session* while the guest has workers: a control connection, and a pool of connections with one
//! worker each. Whoever has something to do takes an idle one ([`Files::lease`]), or one more is started. So a worker
//! that waits, for a lock or a pipe's other end, holds up nobody. A session begins with the first lease. It ends when
//! its control connection does, which only a guest's own doing brings about: open files are lost then, and the next
//! lease begins another.
//!
//! Everything fails with [`io::ErrorKind::NotConnected`] once the machine has ended. When only a worker ended, what it
//! was doing fails with [`io::ErrorKind::BrokenPipe`].

mod connection;
#[cfg(test)]
mod tests;

use std::ffi::CStr;
use std::io;
use std::sync::{Arc, Condvar, Mutex};

use super::client::{Client, lock};
use super::protocol::files::Request;
use connection::Worker;
pub use connection::{Answer, Lease};

/// Workers at once, beyond which callers wait.
const MAX_WORKERS: usize = 64;
/// More that only close files: one that is closed may be what all others wait for.
const MAX_CLOSERS: usize = 32;
/// Workers that are kept though nobody needs them.
const KEEP: usize = 16;
/// The guest's ports for workers: those that only its root may listen on.
const PORTS: std::ops::Range<u32> = 512..1024;
const EADDRINUSE: i32 = 98;

/// A stream of bytes to a worker.
pub trait Connection: Send + Sync + std::fmt::Debug {
    /// Reads what is there, and waits for something if need be; 0 is the end.
    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize>;
    /// Writes all.
    fn send(&self, bytes: &[u8]) -> io::Result<()>;
    /// Whether it has not ended, as far as is known without waiting.
    fn is_open(&self) -> bool;
    /// Waits until [`receive`](Connection::receive) would not wait; false when the guest stands still before that.
    fn wait(&self) -> bool {
        true
    }
}

/// How a guest's ports are connected to.
pub trait Dial: Send + Sync + std::fmt::Debug {
    /// Connects to a port of the guest.
    fn dial(&self, port: u32) -> io::Result<Box<dyn Connection>>;

    /// Whether the guest stands still, so that it answers nothing for now.
    fn stands_still(&self) -> bool {
        false
    }

    /// Has the guest's root, and each mount from the host, hold a file with these bytes. `None` where that cannot be.
    fn offer(&self, bytes: Arc<Vec<u8>>) -> Option<Box<dyn Offer>> {
        let _ = bytes;
        None
    }

    /// Has them hold a file that takes so many bytes, likewise.
    fn accept(&self, most: usize) -> Option<Box<dyn Offer>> {
        let _ = most;
        None
    }
}

/// A file in the roots of the guest's file systems that the guest can copy from or to and nobody sees, for as long as
/// this lives.
pub trait Offer: Send + std::fmt::Debug {
    /// Its absolute path in the guest's root; it has the same in the root of each mount.
    fn path(&self) -> &CStr;
    /// Takes out what was copied to it.
    fn take(&self) -> Vec<u8>;
}

/// All operations on a guest's files. Many threads may use one.
#[derive(Debug)]
pub struct Files {
    client: Arc<Client>,
    dial: Box<dyn Dial>,
    pool: Mutex<Pool>,
    /// A worker is idle, or another may be started.
    freed: Condvar,
}

#[derive(Debug)]
struct Pool {
    live: Option<Live>,
    next_session: u64,
    next_port: u32,
}

/// A session as long as it goes on.
#[derive(Debug)]
struct Live {
    id: u64,
    port: u32,
    control: Box<dyn Connection>,
    idle: Vec<Worker>,
    /// Workers that were told to close files while the guest stood still, and have not answered.
    closing: Vec<Worker>,
    /// Those of [`closing`](Live::closing) whose answers somebody takes now.
    settling: usize,
    /// Files to be closed for which there was no worker.
    unclosed: Vec<i32>,
    /// All workers, idle or not.
    count: usize,
}

/// Closes that one worker may owe.
const MAX_CLOSES: usize = 4096;

impl Files {
    /// Nothing is said to the guest before the first lease.
    pub fn new(client: Arc<Client>, dial: impl Dial + 'static) -> Self {
        let pool = Pool { live: None, next_session: 0, next_port: PORTS.start };
        Files { client, dial: Box::new(dial), pool: Mutex::new(pool), freed: Condvar::new() }
    }

    /// A worker for whatever does not need an open file.
    pub fn lease(&self) -> io::Result<Lease<'_>> {
        self.lease_of(None, MAX_WORKERS)
    }

    /// As [`Dial::offer`].
    pub fn offer(&self, bytes: Arc<Vec<u8>>) -> Option<Box<dyn Offer>> {
        self.dial.offer(bytes)
    }

    /// As [`Dial::accept`].
    pub fn accept(&self, most: usize) -> Option<Box<dyn Offer>> {
        self.dial.accept(most)
    }

    /// Workers now, idle or not.
    pub fn workers(&self) -> usize {
        lock(&self.pool).live.as_ref().map_or(0, |live| live.count)
    }

    fn lease_of(&self, session: Option<u64>, most: usize) -> io::Result<Lease<'_>> {
        self.settle();
        let (mut lease, unclosed) = self.lease_now(session, most)?;
        for fd in unclosed {
            lease.send(&Request::Close(fd))?;
        }
        lease.drain();
        Ok(lease)
    }

    /// What was closed while the guest stood still is closed before anything else is done.
    fn settle(&self) {
        let mut pool = lock(&self.pool);
        while let Some(live) = &mut pool.live {
            let Some(worker) = live.closing.pop() else {
                if live.settling == 0 {
                    return;
                }
                pool = self.freed.wait(pool).unwrap_or_else(|e| e.into_inner());
                continue;
            };
            live.settling += 1;
            let id = live.id;
            drop(pool);
            let mut lease = Lease::new(self, id, worker);
            lease.drain();
            drop(lease);
            pool = lock(&self.pool);
            if let Some(live) = pool.live.as_mut().filter(|live| live.id == id) {
                live.settling -= 1;
            }
            self.freed.notify_all();
        }
    }

    /// Has a file closed as soon as the guest goes on, and does not wait for that.
    fn close_later(&self, session: u64, fd: i32) {
        let mut pool = lock(&self.pool);
        let Some(live) = pool.live.as_mut().filter(|live| live.id == session) else { return };
        let roomy = live.closing.last().is_some_and(|worker| worker.owed() < MAX_CLOSES);
        let worker = if roomy { live.closing.pop() } else { live.idle.pop() };
        match worker {
            None => live.unclosed.push(fd),
            Some(mut worker) => match worker.send(&Request::Close(fd)) {
                Ok(()) => live.closing.push(worker),
                Err(_) => live.count -= 1,
            },
        }
    }

    /// A worker, and what it has to close first.
    fn lease_now(&self, session: Option<u64>, most: usize) -> io::Result<(Lease<'_>, Vec<i32>)> {
        let mut pool = lock(&self.pool);
        loop {
            if pool.live.as_ref().is_some_and(|live| !live.control.is_open()) {
                pool.live = None;
                self.freed.notify_all();
            }
            if session.is_some_and(|id| pool.live.as_ref().is_none_or(|live| live.id != id)) {
                drop(pool);
                return Err(self.broken("the guest has lost its open files"));
            }
            let live = match &mut pool.live {
                Some(live) => live,
                // Others wait for the lock meanwhile; they could do nothing without a session.
                None => {
                    let live = self.begin(&mut pool)?;
                    pool.live.insert(live)
                }
            };
            while let Some(worker) = live.idle.pop() {
                if worker.is_open() {
                    let unclosed = std::mem::take(&mut live.unclosed);
                    return Ok((Lease::new(self, live.id, worker), unclosed));
                }
                live.count -= 1;
            }
            if live.count < most {
                live.count += 1;
                let (id, port) = (live.id, live.port);
                drop(pool);
                return match self.dial.dial(port) {
                    Ok(connection) => Ok((Lease::new(self, id, Worker::new(connection)), Vec::new())),
                    Err(_) => {
                        self.lose(id);
                        Err(self.broken("the guest's file service has ended"))
                    }
                };
            }
            pool = self.freed.wait(pool).unwrap_or_else(|e| e.into_inner());
        }
    }

    fn begin(&self, pool: &mut Pool) -> io::Result<Live> {
        for _ in PORTS {
            let port = pool.next_port;
            pool.next_port = if port + 1 < PORTS.end { port + 1 } else { PORTS.start };
            match self.client.serve_files(port) {
                Err(e) if e.raw_os_error() == Some(EADDRINUSE) => continue,
                served => served?,
            }
            let control = self.dial.dial(port).map_err(|e| self.client.ending().unwrap_or(e))?;
            pool.next_session += 1;
            return Ok(Live {
                id: pool.next_session,
                port,
                control,
                idle: Vec::new(),
                closing: Vec::new(),
                settling: 0,
                unclosed: Vec::new(),
                count: 0,
            });
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "the guest has no port for its files"))
    }

    /// A worker is idle again.
    fn release(&self, session: u64, mut worker: Worker) {
        let mut pool = lock(&self.pool);
        if let Some(live) = pool.live.as_mut().filter(|live| live.id == session) {
            // Not more than it takes without waiting.
            let due = live.unclosed.len().min(MAX_CLOSES);
            if due > 0 {
                let sent = live.unclosed.drain(..due).try_for_each(|fd| worker.send(&Request::Close(fd)));
                match sent {
                    Ok(()) => live.closing.push(worker),
                    Err(_) => live.count -= 1,
                }
            } else if live.idle.len() < KEEP {
                live.idle.push(worker);
            } else {
                live.count -= 1;
            }
        }
        drop(pool);
        self.freed.notify_all();
    }

    /// A worker has answers to give that nobody waits for now.
    fn leave(&self, session: u64, worker: Worker) {
        if let Some(live) = lock(&self.pool).live.as_mut().filter(|live| live.id == session) {
            live.closing.push(worker);
        }
    }

    /// A worker is no more.
    fn lose(&self, session: u64) {
        let mut pool = lock(&self.pool);
        if let Some(live) = pool.live.as_mut().filter(|live| live.id == session) {
            live.count -= 1;
        }
        drop(pool);
        self.freed.notify_all();
    }

    /// The error of an operation whose worker or file is gone.
    fn broken(&self, what: &str) -> io::Error {
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, what);
        self.client.ending().unwrap_or_else(gone)
    }
}

/// An open file of the guest, closed on drop.
#[derive(Debug)]
pub struct Handle {
    files: Arc<Files>,
    session: u64,
    fd: i32,
}

impl Handle {
    /// Takes over a descriptor that a worker of `lease` has just given.
    pub fn adopt(files: &Arc<Files>, lease: &Lease<'_>, fd: i32) -> Self {
        Handle { files: files.clone(), session: lease.session(), fd }
    }

    /// Its number, for requests of leases of [`Handle::lease`].
    pub fn fd(&self) -> i32 {
        self.fd
    }

    /// Where it is from.
    pub fn files(&self) -> &Arc<Files> {
        &self.files
    }

    /// A worker that has this file.
    pub fn lease(&self) -> io::Result<Lease<'_>> {
        self.files.lease_of(Some(self.session), MAX_WORKERS)
    }
}

impl Drop for Handle {
    /// Waits until it is closed: what comes next may count on that (a program that was written is started, a lock is
    /// free). While the guest stands still nothing comes next, and this does not wait.
    fn drop(&mut self) {
        if self.files.dial.stands_still() {
            return self.files.close_later(self.session, self.fd);
        }
        if let Ok(mut lease) = self.files.lease_of(Some(self.session), MAX_WORKERS + MAX_CLOSERS)
            && lease.send(&Request::Close(self.fd)).is_ok()
        {
            if lease.wait() {
                let _ = lease.answer();
            } else {
                lease.leave();
            }
        }
    }
}
