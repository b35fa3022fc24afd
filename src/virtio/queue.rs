//! Virtqueues as devices use them.
//!
//! Ring indices, notification suppression and the used ring are virtio-queue's; the walk along a
//! descriptor chain is ours, because a chain that breaks a rule must break the queue and not end
//! silently. Everything in the rings is the guest's choice at any moment, so a [`Chain`] is read
//! once, checked against RAM and kept on the host.
//!
//! Any error leaves the queue unusable: the device calls [`super::interrupt::Interrupt::fail`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory as _, Permissions};

use crate::memory::GuestRam;

/// The largest queue any device may have.
pub const MAX_QUEUE_SIZE: u16 = 1024;
/// Descriptors in one chain, when they are in an indirect table.
const MAX_INDIRECT: u32 = 4096;
/// Chains a device takes in one go. Far beyond what any driver has in flight: only a guest that
/// makes the device itself feed the ring gets here.
const MAX_BATCH: u32 = 1 << 16;

/// What a driver did wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// Size, alignment or place of the rings.
    #[error("queue set up wrongly: {0}")]
    Setup(&'static str),
    /// The available index is further ahead than the queue is long.
    #[error("available index jumped")]
    AvailIndex,
    /// A descriptor index beyond its table.
    #[error("descriptor index {0} beyond its table")]
    DescriptorIndex(u16),
    /// More descriptors in a chain than its table has.
    #[error("descriptor chain loops")]
    Loop,
    /// A buffer that is not wholly in RAM.
    #[error("buffer of {len} bytes at {addr:#x} is not in RAM")]
    Buffer {
        /// Guest-physical start.
        addr: u64,
        /// Bytes.
        len: u32,
    },
    /// A chain of more than 4 GiB.
    #[error("descriptor chain longer than 4 GiB")]
    TooLong,
    /// A table within a table, of a wrong length, or outside RAM.
    #[error("indirect descriptor table is wrong")]
    Indirect,
    /// A buffer to read from after one to write to.
    #[error("readable descriptor after a writable one")]
    Order,
    /// A chain without the room that its queue demands.
    #[error("buffer too small for the device to answer")]
    TooSmall,
    /// The device feeds its own queue.
    #[error("endless queue")]
    Endless,
    /// The rings themselves could not be accessed.
    #[error("ring access failed: {0}")]
    Ring(String),
}

impl From<virtio_queue::Error> for QueueError {
    fn from(error: virtio_queue::Error) -> Self {
        match error {
            virtio_queue::Error::InvalidAvailRingIndex => Self::AvailIndex,
            other => Self::Ring(other.to_string()),
        }
    }
}

/// The registers and positions of one queue, as they are saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueRegs {
    /// Entries, as the driver chose.
    pub size: u16,
    /// Whether the driver has set the queue up.
    pub ready: bool,
    /// Guest-physical address of the descriptor table.
    pub desc_table: u64,
    /// Guest-physical address of the available ring.
    pub avail_ring: u64,
    /// Guest-physical address of the used ring.
    pub used_ring: u64,
    /// The next entry of the available ring that the device takes.
    pub next_avail: u16,
    /// The next entry of the used ring that the device writes.
    pub next_used: u16,
}

/// One queue between driver and device.
#[derive(Debug)]
pub struct Virtqueue {
    queue: Queue,
    ram: Arc<GuestRam>,
    batch: u32,
}

impl Virtqueue {
    /// The queue that `regs` describe, in `ram`. A queue that is not ready is always empty.
    ///
    /// # Errors
    /// When size, alignment, place in RAM or positions are not such as a driver may choose.
    pub fn new(ram: Arc<GuestRam>, max: u16, regs: &QueueRegs, event_idx: bool) -> Result<Self, QueueError> {
        if !regs.ready {
            let queue = Queue::new(max)?;
            return Ok(Self { queue, ram, batch: 0 });
        }
        let queue = Queue::try_from(QueueState {
            max_size: max,
            next_avail: regs.next_avail,
            next_used: regs.next_used,
            event_idx_enabled: event_idx,
            size: regs.size,
            ready: true,
            desc_table: regs.desc_table,
            avail_ring: regs.avail_ring,
            used_ring: regs.used_ring,
        })?;
        if !queue.is_valid(ram.memory()) {
            return Err(QueueError::Setup("rings are not in RAM"));
        }
        if regs.avail_ring == 0 {
            return Err(QueueError::Setup("available ring at address 0"));
        }
        let size = u64::from(regs.size);
        let mut parts =
            [(regs.desc_table, 16 * size), (regs.avail_ring, 6 + 2 * size), (regs.used_ring, 6 + 8 * size)];
        parts.sort_unstable();
        if parts.windows(2).any(|w| matches!(w, [a, b] if a.0 + a.1 > b.0)) {
            return Err(QueueError::Setup("rings overlap"));
        }
        Ok(Self { queue, ram, batch: 0 })
    }

    /// Whether the driver has set this queue up.
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    /// Guest memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// To be called when the device begins to work off a notification: there is a limit to the
    /// chains in one go.
    pub fn start_batch(&mut self) {
        self.batch = MAX_BATCH;
    }

    /// Takes the next chain that the driver has made available.
    ///
    /// # Errors
    /// When ring or chain break a rule.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        if !self.queue.ready() {
            return Ok(None);
        }
        let ram = self.ram.clone();
        let Some(head) = self.queue.iter(ram.memory())?.next().map(|chain| chain.head_index()) else {
            return Ok(None);
        };
        self.batch = self.batch.checked_sub(1).ok_or(QueueError::Endless)?;
        self.walk(head).map(Some)
    }

    /// Gives the chain `head` back with `len` bytes written into its writable part.
    ///
    /// # Errors
    /// When the ring cannot be written.
    pub fn push_used(&mut self, head: u16, len: u32) -> Result<(), QueueError> {
        Ok(self.queue.add_used(self.ram.memory(), head, len)?)
    }

    /// Asks to be notified of the next buffer. Returns true if there is one already, for which no
    /// notification will come.
    ///
    /// # Errors
    /// When the ring cannot be written.
    pub fn arm(&mut self) -> Result<bool, QueueError> {
        if !self.queue.ready() {
            return Ok(false);
        }
        Ok(self.queue.enable_notification(self.ram.memory())?)
    }

    /// Asks not to be notified, as long as the device looks by itself.
    ///
    /// # Errors
    /// When the ring cannot be written.
    pub fn disarm(&mut self) -> Result<(), QueueError> {
        if !self.queue.ready() {
            return Ok(());
        }
        Ok(self.queue.disable_notification(self.ram.memory())?)
    }

    /// Whether the driver wants an interrupt for what was put into the used ring since the last
    /// call. Only to be asked after something was.
    ///
    /// # Errors
    /// When the ring cannot be read.
    pub fn wants_interrupt(&mut self) -> Result<bool, QueueError> {
        let memory = self.ram.memory();
        let wants = self.queue.needs_notification(memory)?;
        if self.queue.event_idx_enabled() {
            return Ok(wants);
        }
        let flags: u16 = memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(|e| QueueError::Ring(e.to_string()))?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// The registers and positions, for saving.
    pub fn regs(&self) -> QueueRegs {
        let state = self.queue.state();
        QueueRegs {
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
            next_avail: state.next_avail,
            next_used: state.next_used,
        }
    }

    fn walk(&self, head: u16) -> Result<Chain, QueueError> {
        let memory = self.ram.memory();
        let mut table = GuestAddress(self.queue.desc_table());
        let mut entries = u32::from(self.queue.size());
        let mut left = entries;
        let mut index = head;
        let mut indirect = false;
        let mut chain = Chain { head, buffers: Vec::new(), readable: 0, read_len: 0, write_len: 0 };
        loop {
            if u32::from(index) >= entries {
                return Err(QueueError::DescriptorIndex(index));
            }
            left = left.checked_sub(1).ok_or(QueueError::Loop)?;
            let at = table.checked_add(16 * u64::from(index)).ok_or(QueueError::Indirect)?;
            let desc: Descriptor = memory.read_obj(at).map_err(|_| QueueError::Indirect)?;
            if desc.refers_to_indirect_table() {
                let bytes = desc.len();
                if indirect
                    || desc.has_next()
                    || bytes == 0
                    || !bytes.is_multiple_of(16)
                    || bytes / 16 > MAX_INDIRECT
                {
                    return Err(QueueError::Indirect);
                }
                (table, entries, left, index, indirect) = (desc.addr(), bytes / 16, bytes / 16, 0, true);
                continue;
            }
            chain.push(memory, &desc)?;
            if !desc.has_next() {
                return Ok(chain);
            }
            index = desc.next();
        }
    }
}

/// One descriptor chain, checked and copied out of the guest's reach. Its buffers are wholly in
/// RAM; what is in them is still the guest's to change.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    /// Address and length, the readable ones first.
    buffers: Vec<(GuestAddress, u32)>,
    readable: usize,
    read_len: usize,
    write_len: usize,
}

impl Chain {
    /// What to hand to [`Virtqueue::push_used`].
    pub fn head(&self) -> u16 {
        self.head
    }
    /// Start and length of the buffers that the device may read.
    pub(crate) fn readable(&self) -> &[(GuestAddress, u32)] {
        self.buffers.split_at(self.readable.min(self.buffers.len())).0
    }
    /// Start and length of the buffers that the device may write.
    pub(crate) fn writable(&self) -> &[(GuestAddress, u32)] {
        self.buffers.split_at(self.readable.min(self.buffers.len())).1
    }
    /// Bytes that the device may read.
    pub fn read_len(&self) -> usize {
        self.read_len
    }
    /// Bytes that the device may write.
    pub fn write_len(&self) -> usize {
        self.write_len
    }

    /// Reads up to `data.len()` bytes from `offset` in the readable part. Returns how many there
    /// were.
    ///
    /// # Errors
    /// When guest memory cannot be accessed.
    pub fn read(&self, ram: &GuestRam, offset: usize, data: &mut [u8]) -> Result<usize, QueueError> {
        let mut rest = &mut data[..];
        let wanted = rest.len();
        each_part(self.readable(), offset, wanted, |addr, len| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(len);
            rest = later;
            ram.memory().read_slice(now, addr).map_err(|e| QueueError::Ring(e.to_string()))
        })
    }

    /// Writes `data` at `offset` of the writable part, as far as there is room. Returns how much.
    ///
    /// # Errors
    /// When guest memory cannot be accessed.
    pub fn write(&self, ram: &GuestRam, offset: usize, data: &[u8]) -> Result<usize, QueueError> {
        let mut rest = data;
        each_part(self.writable(), offset, data.len(), |addr, len| {
            let (now, later) = rest.split_at(len);
            rest = later;
            ram.memory().write_slice(now, addr).map_err(|e| QueueError::Ring(e.to_string()))
        })
    }

    fn push(&mut self, memory: &crate::memory::GuestMemory, desc: &Descriptor) -> Result<(), QueueError> {
        let (addr, len) = (desc.addr(), desc.len());
        let writable = desc.is_write_only();
        if !writable && self.buffers.len() > self.readable {
            return Err(QueueError::Order);
        }
        let access = if writable { Permissions::Write } else { Permissions::Read };
        if !memory.check_range(addr, len as usize, access)
            || (len == 0 && !memory.check_range(addr, 1, access))
        {
            return Err(QueueError::Buffer { addr: addr.raw_value(), len });
        }
        if self.read_len as u64 + self.write_len as u64 + u64::from(len) > u64::from(u32::MAX) {
            return Err(QueueError::TooLong);
        }
        self.buffers.push((addr, len));
        if writable {
            self.write_len += len as usize;
        } else {
            self.readable += 1;
            self.read_len += len as usize;
        }
        Ok(())
    }
}

/// Calls `access` for each contiguous part of `buffers` between `offset` and `offset + wanted`.
/// Returns the bytes covered.
fn each_part(
    buffers: &[(GuestAddress, u32)],
    offset: usize,
    wanted: usize,
    mut access: impl FnMut(GuestAddress, usize) -> Result<(), QueueError>,
) -> Result<usize, QueueError> {
    let (mut skip, mut done) = (offset, 0);
    for &(addr, len) in buffers {
        let len = len as usize;
        if skip >= len {
            skip -= len;
            continue;
        }
        let part = (len - skip).min(wanted - done);
        if part == 0 {
            break;
        }
        let addr = addr.checked_add(skip as u64).ok_or(QueueError::TooLong)?;
        access(addr, part)?;
        (skip, done) = (0, done + part);
    }
    Ok(done)
}
