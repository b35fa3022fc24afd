//! All connections of one device and their way through the queues.
//!
//! Nothing here waits. Packets to the guest are not queued as packets: a connection knows what it
//! has to say, and says it when there is a buffer; only resets for connections that do not exist
//! are kept, a bounded number, beyond which the guest's packets are left in their queue until
//! there is room again. So a guest that offers no buffers stalls nobody but itself.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar};

use super::conn::{Conn, Phase, Ports, SEND_BUF, UNACCEPTED_BUF};
use super::packet::*;
use crate::virtio::device::fail_on_error;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Chain, QueueError, QueueRegs, Virtqueue};

/// Connections at once, including those that are about to end.
pub(super) const MAX_CONNECTIONS: usize = 1024;
/// Connections of one listener that nobody has accepted yet.
pub(super) const MAX_BACKLOG: usize = 128;
/// Resets that wait for a buffer.
pub(super) const MAX_RESETS: usize = 256;
/// Where the ports of outgoing connections begin.
const FIRST_EPHEMERAL: u32 = 0x4000_0000;

/// The queues while the device is active.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) rx: Virtqueue,
    pub(super) tx: Virtqueue,
    pub(super) event: Virtqueue,
    /// Buffers taken from the event queue and not used yet, in order. While an event is on its way
    /// all are taken, because only then the driver's next one comes with a notification.
    pub(super) event_buffers: VecDeque<Chain>,
    pub(super) interrupt: Arc<Interrupt>,
}

impl Active {
    /// The queues for saving; buffers that are only held count as not taken.
    pub(super) fn regs(&self) -> [QueueRegs; 3] {
        let mut event = self.event.regs();
        event.next_avail = event.next_avail.wrapping_sub(self.event_buffers.len() as u16);
        [self.rx.regs(), self.tx.regs(), event]
    }
}

#[derive(Debug, Default)]
pub(super) struct Listener {
    pub(super) backlog: VecDeque<u64>,
    pub(super) arrived: Arc<Condvar>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) guest_cid: u64,
    pub(super) active: Option<Active>,
    pub(super) conns: HashMap<u64, Conn>,
    pub(super) listeners: HashMap<u32, Listener>,
    /// No more: the device is gone.
    pub(super) closed: bool,
    /// Hands off the queues.
    pub(super) paused: bool,
    by_ports: HashMap<Ports, u64>,
    /// Connections with something to send, in the order of their turns.
    ready: VecDeque<u64>,
    resets: VecDeque<(Ports, u16)>,
    /// Packets of the guest were left in their queue because of [`MAX_RESETS`].
    tx_stalled: bool,
    /// The guest has to be told that its connections are gone.
    event_due: bool,
    /// It was told and has not answered: a connection made now might still be taken for an old one.
    event_sent: bool,
    next_id: u64,
    next_port: u32,
}

impl State {
    pub(super) fn new(guest_cid: u64) -> Self {
        Self {
            guest_cid,
            active: None,
            conns: HashMap::new(),
            listeners: HashMap::new(),
            closed: false,
            paused: false,
            by_ports: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            tx_stalled: false,
            event_due: false,
            event_sent: false,
            next_id: 0,
            next_port: FIRST_EPHEMERAL,
        }
    }

    // Connections

    /// A new connection to the guest's `port`.
    pub(super) fn open(&mut self, port: u32, buf_alloc: usize) -> io::Result<u64> {
        if !self.make_room() {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many vsock connections"));
        }
        let ports = loop {
            let ports = Ports { host: self.next_port, guest: port };
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_EPHEMERAL);
            if !self.by_ports.contains_key(&ports) {
                break ports;
            }
        };
        let id = self.insert(Conn::new(ports, Phase::Wanted, buf_alloc));
        self.mark_ready(id);
        Ok(id)
    }

    /// The last handle of a connection is gone.
    pub(super) fn release(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.held = false;
        match conn.phase {
            Phase::Dead => {
                self.conns.remove(&id);
            }
            Phase::Wanted => self.detach(id, None),
            Phase::Requested => self.abort(id, None),
            Phase::Accepting | Phase::Established => {
                conn.discard_received();
                conn.shut_here = SHUTDOWN_BOTH;
                self.mark_ready(id);
            }
        }
    }

    /// Ends every connection with `error`, and tells the guest.
    pub(super) fn abort_all(&mut self, error: io::ErrorKind) {
        for id in self.conns.keys().copied().collect::<Vec<_>>() {
            self.abort(id, Some(error));
        }
    }

    /// Ends the connections that the guest's driver has forgotten. One that it has not heard of
    /// yet stays: it may be waiting for the driver to come up.
    pub(super) fn driver_gone(&mut self) {
        self.resets.clear();
        (self.tx_stalled, self.event_due, self.event_sent) = (false, false, false);
        for id in self.conns.keys().copied().collect::<Vec<_>>() {
            if self.conns.get(&id).is_some_and(|c| c.phase != Phase::Wanted) {
                self.detach(id, Some(io::ErrorKind::ConnectionReset));
            }
        }
    }

    /// Has the guest told that its connections are gone.
    pub(super) fn announce_reset(&mut self) {
        self.driver_gone();
        self.event_due = true;
    }

    pub(super) fn mark_ready(&mut self, id: u64) {
        if let Some(conn) = self.conns.get_mut(&id)
            && !conn.queued
            && conn.next_packet().is_some()
        {
            conn.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Ends a connection that the guest still knows, by a reset.
    pub(super) fn abort(&mut self, id: u64, error: Option<io::ErrorKind>) {
        let Some(conn) = self.conns.get(&id) else { return };
        if !matches!(conn.phase, Phase::Dead | Phase::Wanted) {
            self.resets.push_back((conn.ports, TYPE_STREAM));
        }
        self.detach(id, error);
    }

    /// Makes a connection unknown to the guest. It stays readable as long as it is held.
    fn detach(&mut self, id: u64, error: Option<io::ErrorKind>) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.phase != Phase::Dead {
            self.by_ports.remove(&conn.ports);
            conn.phase = Phase::Dead;
            conn.error = error;
            conn.tx.clear();
            conn.wake_all();
        }
        if !conn.held {
            self.conns.remove(&id);
        }
    }

    fn insert(&mut self, conn: Conn) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.by_ports.insert(conn.ports, id);
        self.conns.insert(id, conn);
        id
    }

    /// Whether one more connection fits, if need be at the cost of one that only waits for its end.
    fn make_room(&mut self) -> bool {
        if self.conns.len() < MAX_CONNECTIONS {
            return true;
        }
        let Some(id) = self.conns.iter().find(|(_, c)| !c.held).map(|(&id, _)| id) else { return false };
        self.abort(id, None);
        true
    }

    // Queues

    /// Does what there is to do on an active device; looks for the guest's packets if `look`.
    pub(super) fn work(&mut self, look: bool) {
        let Some(mut active) = self.take_active() else { return };
        active.rx.start_batch();
        active.tx.start_batch();
        active.event.start_batch();
        let result = self.work_queues(&mut active, look);
        self.put_back(active, result);
    }

    /// Sends as much of `data` as can go out at once without a copy; the rest is kept as far as
    /// there is room. Returns how much was taken.
    pub(super) fn send(&mut self, id: u64, data: &[u8]) -> usize {
        let mut taken = 0;
        if let Some(mut active) = self.take_active() {
            active.rx.start_batch();
            let result = self.send_now(&mut active, id, data, &mut taken);
            self.put_back(active, result);
        }
        let rest = data.get(taken..).unwrap_or_default();
        let Some(conn) = self.conns.get_mut(&id).filter(|c| c.phase != Phase::Dead) else { return taken };
        let kept = rest.len().min(SEND_BUF.saturating_sub(conn.tx.len()));
        if kept > 0 {
            let Ok(()) = conn.tx.append(kept, |at, part| {
                if let Some(from) = rest.get(at..at + part.len()) {
                    part.copy_from_slice(from);
                }
                Ok::<_, std::convert::Infallible>(())
            });
            self.mark_ready(id);
            self.work(false);
        }
        taken + kept
    }

    fn take_active(&mut self) -> Option<Active> {
        if self.paused { None } else { self.active.take() }
    }

    fn put_back(&mut self, active: Active, result: Result<(), QueueError>) {
        if fail_on_error(&active.interrupt, result) {
            self.driver_gone();
        } else {
            self.active = Some(active);
        }
    }

    fn work_queues(&mut self, active: &mut Active, look: bool) -> Result<(), QueueError> {
        if look || self.tx_stalled {
            self.take_packets(active)?;
        }
        loop {
            self.send_event(active)?;
            self.send_packets(active)?;
            if !self.tx_stalled || self.resets.len() >= MAX_RESETS {
                return Ok(());
            }
            self.take_packets(active)?;
        }
    }

    /// Guest to host.
    fn take_packets(&mut self, active: &mut Active) -> Result<(), QueueError> {
        self.tx_stalled = false;
        let mut used = false;
        loop {
            if self.resets.len() >= MAX_RESETS {
                self.tx_stalled = true;
                break;
            }
            match active.tx.pop()? {
                Some(chain) => {
                    self.take_packet(active, &chain)?;
                    active.tx.push_used(chain.head(), 0)?;
                    used = true;
                }
                None if active.tx.arm()? => {}
                None => break,
            }
        }
        if used && active.tx.wants_interrupt()? {
            active.interrupt.signal_used();
        }
        Ok(())
    }

    fn take_packet(&mut self, active: &Active, chain: &Chain) -> Result<(), QueueError> {
        let mut bytes = [0; HEADER_LEN];
        if chain.read(active.tx.ram(), 0, &mut bytes)? < HEADER_LEN {
            return Err(QueueError::TooSmall);
        }
        let header = Header::from_bytes(&bytes);
        if header.dst_cid != HOST_CID || header.src_cid != self.guest_cid {
            return Ok(());
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let known = self.by_ports.get(&ports).copied();
        match (header.kind, known, header.op) {
            (TYPE_STREAM, Some(id), _) => self.take_known(active, chain, id, &header),
            (_, _, OP_RST) => Ok(()),
            (TYPE_STREAM, None, OP_REQUEST) => {
                self.take_request(ports, &header);
                Ok(())
            }
            (kind, ..) => {
                self.resets.push_back((ports, kind));
                Ok(())
            }
        }
    }

    fn take_request(&mut self, ports: Ports, header: &Header) {
        let room = self.listeners.get(&ports.host).is_some_and(|l| l.backlog.len() < MAX_BACKLOG);
        if !room || !self.make_room() {
            self.resets.push_back((ports, TYPE_STREAM));
            return;
        }
        let mut conn = Conn::new(ports, Phase::Accepting, UNACCEPTED_BUF);
        conn.hear_credit(header);
        let id = self.insert(conn);
        self.mark_ready(id);
        if let Some(listener) = self.listeners.get_mut(&ports.host) {
            listener.backlog.push_back(id);
            listener.arrived.notify_one();
        }
    }

    fn take_known(
        &mut self,
        active: &Active,
        chain: &Chain,
        id: u64,
        header: &Header,
    ) -> Result<(), QueueError> {
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        conn.hear_credit(header);
        match (header.op, conn.phase) {
            (OP_RST, Phase::Requested) => self.detach(id, Some(io::ErrorKind::ConnectionRefused)),
            (OP_RST, _) => {
                let ended = conn.shut_there & SHUTDOWN_SEND != 0 || conn.shut_here == SHUTDOWN_BOTH;
                self.detach(id, (!ended).then_some(io::ErrorKind::ConnectionReset));
            }
            (OP_RESPONSE, Phase::Requested) => {
                conn.phase = Phase::Established;
                conn.wake_all();
            }
            (OP_RW, Phase::Established | Phase::Accepting) => {
                let len = header.len as usize;
                let lies = len > chain.read_len() - HEADER_LEN;
                let over = conn.rx.len() + len > conn.buf_alloc as usize;
                if lies || over || conn.shut_there & SHUTDOWN_SEND != 0 {
                    self.abort(id, Some(io::ErrorKind::ConnectionReset));
                } else if conn.shut_here & SHUTDOWN_RECEIVE != 0 {
                    conn.forwarded(len);
                } else {
                    let ram = active.tx.ram();
                    conn.rx.append(len, |at, part| chain.read(ram, HEADER_LEN + at, part).map(|_| ()))?;
                    conn.wake_readers();
                }
            }
            (OP_SHUTDOWN, Phase::Established | Phase::Accepting) => {
                conn.shut_there |= header.flags & SHUTDOWN_BOTH;
                if conn.shut_there & SHUTDOWN_RECEIVE != 0 {
                    conn.tx.clear();
                }
                conn.wake_all();
                if conn.shut_there == SHUTDOWN_BOTH {
                    // The guest waits for this before it frees its socket.
                    self.abort(id, None);
                }
            }
            (OP_CREDIT_UPDATE, Phase::Established | Phase::Accepting) => {}
            (OP_CREDIT_REQUEST, Phase::Established | Phase::Accepting) => conn.owe_credit(),
            _ => self.abort(id, Some(io::ErrorKind::ConnectionReset)),
        }
        self.mark_ready(id);
        Ok(())
    }

    /// Tells the guest that its connections are gone, and hears that it has understood: then it
    /// puts the event's buffer back.
    fn send_event(&mut self, active: &mut Active) -> Result<(), QueueError> {
        if !self.event_due && !self.event_sent {
            return Ok(());
        }
        loop {
            match active.event.pop()? {
                Some(chain) => {
                    active.event_buffers.push_back(chain);
                    self.event_sent = false;
                }
                None if active.event.arm()? => {}
                None => break,
            }
        }
        if self.event_due
            && let Some(chain) = active.event_buffers.pop_front()
        {
            // VIRTIO_VSOCK_EVENT_TRANSPORT_RESET
            if chain.write(active.event.ram(), 0, &0u32.to_le_bytes())? < 4 {
                return Err(QueueError::TooSmall);
            }
            active.event.push_used(chain.head(), 4)?;
            (self.event_due, self.event_sent) = (false, true);
            if active.event.wants_interrupt()? {
                active.interrupt.signal_used();
            }
        }
        Ok(())
    }

    /// Host to guest: whatever the connections have to say, a packet each in turn.
    fn send_packets(&mut self, active: &mut Active) -> Result<(), QueueError> {
        let mut used = false;
        while self.has_packet() {
            let Some(chain) = next_buffer(&mut active.rx)? else { break };
            self.send_packet(active, &chain)?;
            used = true;
        }
        if used && active.rx.wants_interrupt()? {
            active.interrupt.signal_used();
        }
        Ok(())
    }

    fn has_packet(&mut self) -> bool {
        if self.event_due || self.event_sent {
            return false;
        }
        while let Some(id) = self.ready.front() {
            match self.conns.get_mut(id) {
                Some(conn) if conn.next_packet().is_some() => return true,
                Some(conn) => conn.queued = false,
                None => {}
            }
            self.ready.pop_front();
        }
        !self.resets.is_empty()
    }

    fn send_packet(&mut self, active: &mut Active, chain: &Chain) -> Result<(), QueueError> {
        if let Some((ports, kind)) = self.resets.pop_front() {
            let header = Header {
                src_cid: HOST_CID,
                dst_cid: self.guest_cid,
                src_port: ports.host,
                dst_port: ports.guest,
                kind,
                op: OP_RST,
                ..Header::default()
            };
            return put_packet(&mut active.rx, chain, &header, &[], &[]);
        }
        let Some(id) = self.ready.pop_front() else { return Ok(()) };
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        conn.queued = false;
        let Some((op, flags)) = conn.next_packet() else { return Ok(()) };
        let mut len = 0;
        if op == OP_RW {
            len = conn.tx.len().min(conn.credit()).min(chain.write_len() - HEADER_LEN);
        }
        let header = conn.header(self.guest_cid, op, flags, len);
        let (a, b) = conn.tx.front(len);
        put_packet(&mut active.rx, chain, &header, a, b)?;
        if len > 0 {
            conn.tx.consume(len);
            conn.wake_writers();
        }
        self.mark_ready(id);
        Ok(())
    }

    /// Sends from `data` directly, if the connection has nothing else to say first.
    fn send_now(
        &mut self,
        active: &mut Active,
        id: u64,
        data: &[u8],
        taken: &mut usize,
    ) -> Result<(), QueueError> {
        let Some(conn) = self.conns.get_mut(&id) else { return Ok(()) };
        if self.event_due || self.event_sent || !conn.tx.is_empty() {
            return Ok(());
        }
        let mut used = false;
        let mut rest = data;
        while !rest.is_empty() && conn.may_send() {
            let Some(chain) = next_buffer(&mut active.rx)? else { break };
            let len = rest.len().min(conn.credit()).min(chain.write_len() - HEADER_LEN);
            let (now, later) = rest.split_at(len);
            let header = conn.header(self.guest_cid, OP_RW, 0, len);
            put_packet(&mut active.rx, &chain, &header, now, &[])?;
            (rest, used) = (later, true);
            *taken += len;
        }
        if used && active.rx.wants_interrupt()? {
            active.interrupt.signal_used();
        }
        Ok(())
    }
}

/// The next buffer for the guest. If there is none, a notification will come for the next.
fn next_buffer(rx: &mut Virtqueue) -> Result<Option<Chain>, QueueError> {
    loop {
        match rx.pop()? {
            Some(chain) if chain.write_len() > HEADER_LEN => return Ok(Some(chain)),
            Some(_) => return Err(QueueError::TooSmall),
            None if rx.arm()? => {}
            None => return Ok(None),
        }
    }
}

fn put_packet(
    rx: &mut Virtqueue,
    chain: &Chain,
    header: &Header,
    a: &[u8],
    b: &[u8],
) -> Result<(), QueueError> {
    let mut at = chain.write(rx.ram(), 0, &header.to_bytes())?;
    for part in [a, b] {
        at += chain.write(rx.ram(), at, part)?;
    }
    rx.push_used(chain.head(), at as u32)
}
