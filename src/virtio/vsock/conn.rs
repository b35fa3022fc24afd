//! One stream connection: its buffers, its credit in both directions, and what it has to say next.

use std::io;
use std::sync::{Arc, Condvar};
use std::time::Duration;

use super::buffer::ByteQueue;
use super::packet::*;

/// Bytes the guest may send ahead before anybody on the host has accepted the connection.
pub(super) const UNACCEPTED_BUF: usize = 64 * 1024;
/// Bytes the guest may send ahead on an accepted connection.
pub(super) const RECEIVE_BUF: usize = 1024 * 1024;
/// Bytes the host may write ahead of the guest's credit.
pub(super) const SEND_BUF: usize = 512 * 1024;

/// The pair that names a connection, as long as it is known to both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// We want it; REQUEST has not gone out.
    Wanted,
    /// REQUEST is out.
    Requested,
    /// They want it; RESPONSE has not gone out.
    Accepting,
    /// Both sides may send.
    Established,
    /// The other side knows it no more. Received bytes may still be read.
    Dead,
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) ports: Ports,
    pub(super) phase: Phase,
    /// Somebody on the host has it or may accept it. Otherwise it only exists to end politely.
    pub(super) held: bool,
    /// In the list of connections with something to send.
    pub(super) queued: bool,
    pub(super) error: Option<io::ErrorKind>,
    pub(super) rx: ByteQueue,
    pub(super) tx: ByteQueue,
    /// Bytes the guest may have outstanding.
    pub(super) buf_alloc: u32,
    /// Bytes taken out of `rx`; what the guest was last told of this and of `buf_alloc`.
    fwd_cnt: u32,
    told_fwd_cnt: u32,
    told_buf_alloc: u32,
    /// The guest's side of the same, and what was sent to it.
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    tx_cnt: u32,
    credit_owed: bool,
    credit_asked: bool,
    /// SHUTDOWN flags: wanted here, said to the guest, heard from the guest.
    pub(super) shut_here: u32,
    shut_said: u32,
    pub(super) shut_there: u32,
    pub(super) read_timeout: Option<Duration>,
    pub(super) write_timeout: Option<Duration>,
    pub(super) readable: Arc<Condvar>,
    pub(super) writable: Arc<Condvar>,
    /// Threads that wait on the two: waking nobody costs a system call too.
    pub(super) readers: u32,
    pub(super) writers: u32,
}

impl Conn {
    pub(super) fn new(ports: Ports, phase: Phase, buf_alloc: usize) -> Self {
        Self {
            ports,
            phase,
            held: true,
            queued: false,
            error: None,
            rx: ByteQueue::default(),
            tx: ByteQueue::default(),
            buf_alloc: buf_alloc as u32,
            fwd_cnt: 0,
            told_fwd_cnt: 0,
            told_buf_alloc: buf_alloc as u32,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            tx_cnt: 0,
            credit_owed: false,
            credit_asked: false,
            shut_here: 0,
            shut_said: 0,
            shut_there: 0,
            read_timeout: None,
            write_timeout: None,
            readable: Arc::default(),
            writable: Arc::default(),
            readers: 0,
            writers: 0,
        }
    }

    /// Takes the credit information that every packet carries.
    pub(super) fn hear_credit(&mut self, header: &Header) {
        if (self.peer_buf_alloc, self.peer_fwd_cnt) != (header.buf_alloc, header.fwd_cnt) {
            (self.peer_buf_alloc, self.peer_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
            self.credit_asked = false;
        }
    }

    /// Bytes the guest has room for. A guest that claims to have taken more than was sent, or that
    /// shrank its buffer, has none.
    pub(super) fn credit(&self) -> usize {
        let outstanding = self.tx_cnt.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(outstanding) as usize
    }

    /// Accounts for `count` bytes sent.
    pub(super) fn sent(&mut self, count: usize) {
        self.tx_cnt = self.tx_cnt.wrapping_add(count as u32);
    }

    /// Accounts for `count` received bytes that need no more room. The guest is told once a
    /// quarter of its allowance is at stake.
    pub(super) fn forwarded(&mut self, count: usize) {
        self.fwd_cnt = self.fwd_cnt.wrapping_add(count as u32);
        if self.fwd_cnt.wrapping_sub(self.told_fwd_cnt) >= self.told_buf_alloc / 4 {
            self.credit_owed = true;
        }
    }

    pub(super) fn owe_credit(&mut self) {
        self.credit_owed = true;
    }

    /// Drops what was received and will be.
    pub(super) fn discard_received(&mut self) {
        let unread = self.rx.len();
        self.rx.clear();
        self.forwarded(unread);
    }

    /// Whether bytes may go out at this moment.
    pub(super) fn may_send(&self) -> bool {
        self.phase == Phase::Established && self.shut_there & SHUTDOWN_RECEIVE == 0 && self.credit() > 0
    }

    /// The next packet to send: operation and flags. For RW the bytes are in `tx`.
    pub(super) fn next_packet(&self) -> Option<(u16, u32)> {
        match self.phase {
            Phase::Wanted => return Some((OP_REQUEST, 0)),
            Phase::Accepting => return Some((OP_RESPONSE, 0)),
            Phase::Requested | Phase::Dead => return None,
            Phase::Established => {}
        }
        if !self.tx.is_empty() && self.may_send() {
            return Some((OP_RW, 0));
        }
        let mut shut = self.shut_here & !self.shut_said;
        if !self.tx.is_empty() {
            shut &= !SHUTDOWN_SEND;
        }
        if shut != 0 {
            return Some((OP_SHUTDOWN, shut | self.shut_said));
        }
        if self.credit_owed {
            return Some((OP_CREDIT_UPDATE, 0));
        }
        (!self.tx.is_empty() && !self.credit_asked).then_some((OP_CREDIT_REQUEST, 0))
    }

    /// The header of a packet about to go out, which is accounted for as sent.
    pub(super) fn header(&mut self, guest_cid: u64, op: u16, flags: u32, len: usize) -> Header {
        match op {
            OP_REQUEST => self.phase = Phase::Requested,
            OP_RESPONSE => self.phase = Phase::Established,
            OP_SHUTDOWN => self.shut_said |= flags,
            OP_CREDIT_REQUEST => self.credit_asked = true,
            _ => {}
        }
        (self.told_fwd_cnt, self.told_buf_alloc) = (self.fwd_cnt, self.buf_alloc);
        self.credit_owed = false;
        self.sent(len);
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len: len as u32,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        }
    }

    /// Wakes everybody who waits for this connection.
    pub(super) fn wake_all(&self) {
        self.wake_readers();
        self.wake_writers();
    }
    pub(super) fn wake_readers(&self) {
        if self.readers > 0 {
            self.readable.notify_all();
        }
    }
    pub(super) fn wake_writers(&self) {
        if self.writers > 0 {
            self.writable.notify_all();
        }
    }

    /// Whether a read would not wait.
    pub(super) fn is_readable(&self) -> bool {
        let over = self.shut_here & SHUTDOWN_RECEIVE != 0 || self.shut_there & SHUTDOWN_SEND != 0;
        !self.rx.is_empty() || over || self.error.is_some() || self.phase == Phase::Dead
    }

    /// What a read has to report now; `None` if it has to wait.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> Option<io::Result<usize>> {
        if !self.rx.is_empty() {
            let (a, b) = self.rx.front(buf.len());
            let (first, second) = buf.split_at_mut(a.len());
            first.copy_from_slice(a);
            let mut count = a.len();
            if let Some(room) = second.get_mut(..b.len()) {
                room.copy_from_slice(b);
                count += b.len();
            }
            self.rx.consume(count);
            self.forwarded(count);
            return Some(Ok(count));
        }
        if self.shut_here & SHUTDOWN_RECEIVE != 0 || self.shut_there & SHUTDOWN_SEND != 0 {
            return Some(Ok(0));
        }
        match (self.error, self.phase) {
            (Some(kind), _) => Some(Err(kind.into())),
            (None, Phase::Dead) => Some(Ok(0)),
            _ => None,
        }
    }

    /// Why nothing can be written any more, if so.
    pub(super) fn write_error(&self) -> Option<io::Error> {
        if self.shut_here & SHUTDOWN_SEND != 0 || self.shut_there & SHUTDOWN_RECEIVE != 0 {
            return Some(io::ErrorKind::BrokenPipe.into());
        }
        match (self.error, self.phase) {
            (Some(kind), _) => Some(kind.into()),
            (None, Phase::Dead) => Some(io::ErrorKind::BrokenPipe.into()),
            _ => None,
        }
    }
}
