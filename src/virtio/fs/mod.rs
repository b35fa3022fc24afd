//! virtio-fs: a file system of the host, served to the guest as FUSE over virtqueues.
//!
//! * `spec`, `wire`: numbers and layouts of the protocol
//! * `session`: what each request does, with `ledger` of what the client holds
//! * `offers`: bytes that host and guest give each other by way of a file
//! * `buffers`, `listing`: answers that go straight into guest memory, and directory entries
//!
//! Queue 0 is for what must not wait behind other requests (FORGET), the rest carry requests. A request is carried out
//! on the thread that notifies, into the guest's own buffers; no request waits for another. Requests are answered with
//! an errno when they make no sense. Only a broken *ring* breaks the device.
//!
//! There is always a device but not always a file system behind it: a machine may start before it is known what its
//! root is. Without one, every request is answered with `ENODEV`, and a mount fails with that.
//!
//! Locks: a queue's, then the session's ledger, then whatever the file system has.

mod buffers;
mod ledger;
mod listing;
mod offers;
mod saved;
mod session;
mod spec;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use self::session::{Answer, MAX_ARGS, Request, Session, WRITE_IN};
use self::spec::{ID_FS, IN_HEADER, OUT_HEADER, TAG_LEN, op};
use self::wire::{Args, Body, Header};
use super::device::{Activation, VirtioDevice, copy_config, fail_on_error};
use super::interrupt::Interrupt;
use super::queue::{Chain, QueueError, QueueRegs, Virtqueue};
use crate::vfs::{Errno, FileSystem};

pub use self::offers::Offer;
pub use self::session::Caching;

/// Entries of each queue: a transfer of 1 MiB in scattered pages, and then some.
const QUEUE_SIZE: u16 = 1024;
/// Most request queues.
pub const MAX_REQUEST_QUEUES: u32 = 16;

/// A tag that cannot be.
#[derive(Debug, thiserror::Error)]
#[error("a tag of a file system is 1 to 36 bytes without NUL, not {0:?}")]
pub struct BadTag(pub String);

/// The file-system device.
pub struct VirtioFs {
    config: [u8; TAG_LEN + 4],
    sizes: Vec<u16>,
    queues: Mutex<Vec<Arc<Mutex<Active>>>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    session: RwLock<Option<Arc<Session>>>,
}

impl Shared {
    fn session(&self) -> Option<Arc<Session>> {
        self.session.read().unwrap_or_else(|e| e.into_inner()).clone()
    }
}

/// The host's side of a [`VirtioFs`].
#[derive(Clone)]
pub struct FsHost {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for FsHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FsHost").field("served", &self.shared.session().is_some()).finish()
    }
}

impl FsHost {
    /// The file system behind the device; `None` if there is none.
    pub fn file_system(&self) -> Option<Arc<dyn FileSystem>> {
        self.shared.session().map(|session| session.file_system().clone())
    }

    /// A copy of the file system behind the device and of what the guest holds of it; the guest must stand still. `None`
    /// if there is none.
    ///
    /// # Errors
    /// Those of [`FileSystem::fork`].
    pub fn fork(&self) -> Result<Option<Forked>, Errno> {
        self.shared.session().map(|session| Ok(Forked(Arc::new(session.fork()?)))).transpose()
    }

    /// Puts a copy of `forked` behind the device of a clone, before it runs.
    ///
    /// # Errors
    /// Those of [`FileSystem::fork`].
    pub fn serve_fork(&self, forked: &Forked) -> Result<(), Errno> {
        let session = Arc::new(forked.0.fork()?);
        *self.shared.session.write().unwrap_or_else(|e| e.into_inner()) = Some(session);
        Ok(())
    }

    /// Has the guest find a file with these bytes in the root, to copy from, for as long as the [`Offer`] lives. `None`
    /// if there is no file system, or there are too many offers.
    pub fn offer(&self, bytes: Arc<Vec<u8>>) -> Option<Offer> {
        Offer::source(&self.shared.session()?.offers, bytes)
    }

    /// Has the guest find a file in the root to copy at most `most` bytes to, likewise.
    pub fn accept(&self, most: usize) -> Option<Offer> {
        Offer::sink(&self.shared.session()?.offers, most)
    }

    /// Has the guest find another file system's offer in the root of this one too, by the same name. False if there is
    /// no file system, or there are too many offers.
    pub fn share(&self, offer: &mut Offer) -> bool {
        self.shared.session().is_some_and(|session| offer.put_into(&session.offers))
    }

    /// Puts `fs` behind the device, before the guest mounts it. What was there before is let go.
    pub fn serve(&self, fs: Arc<dyn FileSystem>, caching: Caching) {
        let session = Arc::new(Session::new(fs, caching));
        let old = self.shared.session.write().unwrap_or_else(|e| e.into_inner()).replace(session);
        if let Some(old) = old {
            old.end();
        }
    }
}

/// A file system with what a client held of it, for clones of that client. They share nothing but this starting point.
pub struct Forked(Arc<Session>);

impl std::fmt::Debug for Forked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Forked")
    }
}

struct Active {
    queue: Virtqueue,
    interrupt: Arc<Interrupt>,
    broken: bool,
    /// The fixed part of the request under way; kept for its memory.
    request: Vec<u8>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl VirtioFs {
    /// A device whose guest finds it by `tag`, with `request_queues` (1 to [`MAX_REQUEST_QUEUES`]) for requests.
    ///
    /// # Errors
    /// When the tag is empty, longer than 36 bytes, or has a NUL.
    pub fn new(tag: &str, request_queues: u32) -> Result<Self, BadTag> {
        if tag.is_empty() || tag.len() > TAG_LEN || tag.contains('\0') {
            return Err(BadTag(tag.to_owned()));
        }
        let request_queues = request_queues.clamp(1, MAX_REQUEST_QUEUES);
        let mut config = [0; TAG_LEN + 4];
        let count = request_queues.to_le_bytes();
        for (to, from) in config.iter_mut().zip(tag.bytes()) {
            *to = from;
        }
        for (to, from) in config.iter_mut().skip(TAG_LEN).zip(count) {
            *to = from;
        }
        let sizes = vec![QUEUE_SIZE; 1 + request_queues as usize];
        Ok(Self { config, sizes, queues: Mutex::default(), shared: Arc::default() })
    }

    /// The host's side.
    pub fn host(&self) -> FsHost {
        FsHost { shared: self.shared.clone() }
    }
}

impl Active {
    fn work(&mut self, session: Option<&Session>) -> Result<(), QueueError> {
        let mut used = false;
        self.queue.start_batch();
        loop {
            while let Some(chain) = self.queue.pop()? {
                let len = self.request(session, &chain)?;
                self.queue.push_used(chain.head(), len)?;
                used = true;
            }
            if !self.queue.arm()? {
                break;
            }
        }
        if used && self.queue.wants_interrupt()? {
            self.interrupt.signal_used();
        }
        Ok(())
    }

    /// Carries out one request. Gives how many bytes were written into the guest's buffers.
    fn request(&mut self, session: Option<&Session>, chain: &Chain) -> Result<u32, QueueError> {
        let ram = self.queue.ram();
        let mut head = [0; IN_HEADER];
        chain.read(ram, 0, &mut head)?;
        let header = Header::parse(&head).filter(|h| (IN_HEADER..=chain.read_len()).contains(&h.len));
        let Some(header) = header else {
            // Without a header there is nobody to answer.
            tracing::debug!("file server: request without a header");
            return Ok(0);
        };
        let fixed = if header.opcode == op::WRITE { WRITE_IN } else { MAX_ARGS };
        let len = header.len - IN_HEADER;
        let room = chain.write_len().saturating_sub(OUT_HEADER);
        let result = match session {
            _ if len > fixed && header.opcode != op::WRITE => Err(Errno::E2BIG),
            None => Err(Errno::ENODEV),
            Some(session) => {
                self.request.clear();
                self.request.resize(len.min(fixed), 0);
                chain.read(ram, IN_HEADER, &mut self.request)?;
                session.handle(&Request { header, args: Args(&self.request), ram, chain, room })
            }
        };
        let (error, body, len) = match result {
            Ok(Answer::None) => return Ok(0),
            Ok(Answer::Body(body)) if body.0.len() > room => {
                tracing::debug!(opcode = header.opcode, room, "file server: no room for the answer");
                (Errno::EIO.raw(), Body::default(), 0)
            }
            Ok(Answer::Body(body)) => {
                let len = body.0.len();
                (0, body, len)
            }
            Ok(Answer::Written(len)) => (0, Body::default(), len),
            Err(_) if matches!(header.opcode, op::FORGET | op::BATCH_FORGET) => return Ok(0),
            Err(errno) => (errno.raw(), Body::default(), 0),
        };
        if chain.write_len() < OUT_HEADER {
            return Ok(0);
        }
        let total = (OUT_HEADER + len) as u32;
        let mut out = Body::default();
        out.u32(total).u32((-error) as u32).u64(header.unique);
        out.0.extend_from_slice(&body.0);
        chain.write(ram, 0, &out.0)?;
        Ok(total)
    }
}

impl VirtioDevice for VirtioFs {
    fn id(&self) -> u32 {
        ID_FS
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }
    fn activate(&self, activation: Activation) {
        let Activation { queues, interrupt, .. } = activation;
        *lock(&self.queues) = queues
            .into_iter()
            .map(|queue| {
                let interrupt = interrupt.clone();
                Arc::new(Mutex::new(Active { queue, interrupt, broken: false, request: Vec::new() }))
            })
            .collect();
    }
    fn reset(&self) {
        let queues = std::mem::take(&mut *lock(&self.queues));
        for queue in queues {
            // Waits for the request under way; the queue may not be touched after that.
            lock(&queue).broken = true;
        }
        if let Some(session) = self.shared.session() {
            session.end();
        }
    }
    fn queue_notify(&self, index: u16) {
        let Some(queue) = lock(&self.queues).get(usize::from(index)).cloned() else { return };
        let session = self.shared.session();
        let mut active = lock(&queue);
        if !active.broken {
            let result = active.work(session.as_deref());
            active.broken = fail_on_error(&active.interrupt, result);
        }
    }
    fn queue_regs(&self) -> Vec<QueueRegs> {
        let queues = lock(&self.queues);
        queues.iter().map(|q| lock(q).queue.regs()).collect()
    }
}
