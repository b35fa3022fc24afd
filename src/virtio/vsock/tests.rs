//! The socket device under a guest that behaves, and one that does not.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::packet::*;
use super::*;
use crate::virtio::driver::{Driver, Slot};
use crate::virtio::spec::F_EVENT_IDX;

const CID: u32 = 7;
pub(super) const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(20);

/// A guest kernel's end: rings with buffers, packets in and out.
pub(crate) struct Guest {
    pub(crate) driver: Driver,
    rx_len: u32,
    rx_at: HashMap<u16, u64>,
    tx_at: Vec<u64>,
    tx_busy: HashMap<u16, u64>,
    pub(crate) buf_alloc: u32,
}

impl Guest {
    /// A guest with `buffers` receive buffers of `rx_len` bytes.
    pub(super) fn new(slot: Arc<Slot>, buffers: usize, rx_len: u32, without: u64) -> Self {
        let mut driver = Driver::new(slot, without);
        let tx_at = (0..32).map(|_| driver.alloc(66 << 10)).collect();
        let mut guest = Self {
            driver,
            rx_len,
            rx_at: HashMap::new(),
            tx_at,
            tx_busy: HashMap::new(),
            buf_alloc: 256 << 10,
        };
        for _ in 0..8 {
            let at = guest.driver.alloc(4096);
            guest.driver.queues[EVENT].add(&[(at, 4, true)]).unwrap();
        }
        guest.driver.queues[EVENT].kick();
        for _ in 0..buffers {
            let at = guest.driver.alloc(rx_len.into());
            guest.give(at);
        }
        guest.driver.queues[RX].kick();
        guest
    }

    pub(super) fn give(&mut self, at: u64) {
        let head = self.driver.queues[RX].add(&[(at, self.rx_len, true)]).unwrap();
        self.rx_at.insert(head, at);
    }

    /// Takes one packet, and gives its buffer back.
    pub(crate) fn take(&mut self) -> Option<(Header, Vec<u8>)> {
        let (head, len) = self.driver.queues[RX].used()?;
        let at = self.rx_at.remove(&head).unwrap();
        let memory = self.driver.slot.ram.memory();
        let mut bytes = [0; HEADER_LEN];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        let header = Header::from_bytes(&bytes);
        assert_eq!(len, HEADER_LEN as u32 + header.len);
        assert_eq!((header.src_cid, header.dst_cid), (2, CID.into()));
        let mut data = vec![0; header.len as usize];
        memory.read_slice(&mut data, GuestAddress(at + HEADER_LEN as u64)).unwrap();
        self.give(at);
        self.driver.queues[RX].kick();
        Some((header, data))
    }

    /// Takes a packet that must be there, and be `op`.
    pub(super) fn expect(&mut self, op: u16) -> (Header, Vec<u8>) {
        let packet = self.take().expect("a packet");
        assert_eq!(packet.0.op, op, "{packet:?}");
        packet
    }

    pub(crate) fn header(&self, guest: u32, host: u32, op: u16) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: 2,
            src_port: guest,
            dst_port: host,
            kind: 1,
            op,
            buf_alloc: self.buf_alloc,
            ..Header::default()
        }
    }

    /// Sends a packet as it stands. False if there is no room.
    pub(crate) fn put(&mut self, header: &Header, data: &[u8]) -> bool {
        while let Some((head, _)) = self.driver.queues[TX as usize].used() {
            self.tx_at.push(self.tx_busy.remove(&head).unwrap());
        }
        let Some(at) = self.tx_at.pop() else { return false };
        let memory = self.driver.slot.ram.memory();
        memory.write_slice(&header.to_bytes(), GuestAddress(at)).unwrap();
        memory.write_slice(data, GuestAddress(at + HEADER_LEN as u64)).unwrap();
        // One descriptor for short packets, several for long ones: both are to be understood.
        let mut buffers = vec![(at, HEADER_LEN as u32, false)];
        match data.len() as u32 {
            0 => {}
            n @ ..1000 => buffers[0].1 += n,
            n => buffers.extend([
                (at + HEADER_LEN as u64, 1000, false),
                (at + HEADER_LEN as u64 + 1000, n - 1000, false),
            ]),
        }
        let head = self.driver.queues[TX as usize].add(&buffers).unwrap();
        self.tx_busy.insert(head, at);
        self.driver.queues[TX as usize].kick();
        true
    }

    pub(super) fn send(&mut self, guest: u32, host: u32, op: u16) {
        let header = self.header(guest, host, op);
        assert!(self.put(&header, &[]));
    }

    pub(super) fn send_data(&mut self, guest: u32, host: u32, data: &[u8]) {
        let header = Header { len: data.len() as u32, ..self.header(guest, host, OP_RW) };
        assert!(self.put(&header, data));
    }

    pub(super) fn shut(&mut self, guest: u32, host: u32, flags: u32) {
        let header = Header { flags, ..self.header(guest, host, OP_SHUTDOWN) };
        assert!(self.put(&header, &[]));
    }

    /// Connects from `guest` to `host`, where somebody listens.
    pub(super) fn connect(&mut self, guest: u32, host: u32) -> Header {
        self.send(guest, host, OP_REQUEST);
        self.expect(OP_RESPONSE).0
    }
}

pub(super) fn device() -> (VsockHost, Arc<Slot>) {
    let device = Vsock::new(CID);
    (device.host(), Slot::new(Arc::new(device)))
}

pub(super) fn guest() -> (VsockHost, Guest) {
    let (host, slot) = device();
    (host, Guest::new(slot, 64, 4096, 0))
}

/// An accepted connection from guest port 1000 to host port 5.
pub(super) fn connected() -> (VsockHost, Guest, VsockStream) {
    let (host, mut guest) = guest();
    let listener = host.listen(5).unwrap();
    guest.connect(1000, 5);
    let stream = listener.accept(Some(SECOND)).unwrap();
    stream.set_read_timeout(Some(SECOND)).unwrap();
    stream.set_write_timeout(Some(SECOND)).unwrap();
    (host, guest, stream)
}

#[test]
fn the_configuration_has_the_cid() {
    let (_host, slot) = device();
    assert_eq!(slot.config::<8>(0), u64::from(CID).to_le_bytes());
    assert_eq!(slot.config::<4>(0), CID.to_le_bytes());
}

#[test]
fn the_guest_connects_and_both_talk() {
    for without in [0, F_EVENT_IDX] {
        let (host, slot) = device();
        let mut guest = Guest::new(slot, 64, 4096, without);
        let listener = host.listen(5).unwrap();
        let response = guest.connect(1000, 5);
        assert_eq!((response.src_port, response.dst_port, response.kind), (5, 1000, 1));
        let mut stream = listener.accept(Some(SECOND)).unwrap();
        guest.send_data(1000, 5, b"ping");
        let mut buf = [0; 10];
        assert_eq!(stream.read(&mut buf).unwrap(), 4);
        assert_eq!(&buf[..4], b"ping");
        assert_eq!((&stream).write(b"pong").unwrap(), 4);
        assert_ne!(guest.driver.handle_irq(), 0);
        let (header, data) = guest.expect(OP_RW);
        assert_eq!(data, b"pong");
        assert_eq!(header.fwd_cnt, 4, "every packet carries the credit");
        assert!(guest.take().is_none(), "no packet too many");
    }
}

#[test]
fn the_host_connects() {
    let (host, mut guest) = guest();
    let thread = std::thread::spawn(move || {
        let mut stream = host.connect(99, Some(LONG)).unwrap();
        stream.write_all(b"hello").unwrap();
        stream
    });
    assert!(guest.driver.slot.irq.wait(LONG));
    guest.driver.handle_irq();
    let request = guest.expect(OP_REQUEST).0;
    assert_eq!(request.dst_port, 99);
    guest.send(99, request.src_port, OP_RESPONSE);
    let stream = thread.join().unwrap();
    assert_eq!(guest.expect(OP_RW).1, b"hello");
    drop(stream);
    assert_eq!(guest.expect(OP_SHUTDOWN).0.flags, SHUTDOWN_BOTH);
}

#[test]
fn a_connect_waits_for_the_driver() {
    let (host, slot) = device();
    let thread = std::thread::spawn(move || host.connect(99, Some(LONG)));
    std::thread::sleep(Duration::from_millis(20));
    let mut guest = Guest::new(slot, 4, 4096, 0);
    let request = loop {
        match guest.take() {
            Some((header, _)) => break header,
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    guest.send(99, request.src_port, OP_RESPONSE);
    assert!(thread.join().unwrap().is_ok());
}

#[test]
fn a_refused_connect_says_so() {
    let (host, mut guest) = guest();
    let thread = std::thread::spawn(move || host.connect(99, Some(LONG)).map(drop));
    assert!(guest.driver.slot.irq.wait(LONG));
    let request = guest.expect(OP_REQUEST).0;
    guest.send(99, request.src_port, OP_RST);
    assert_eq!(thread.join().unwrap().unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_connect_times_out_and_leaves_nothing() {
    let (host, mut guest) = guest();
    let start = Instant::now();
    let error = host.connect(99, Some(Duration::from_millis(30))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(start.elapsed() < SECOND);
    assert_eq!(host.connections(), 0);
    guest.expect(OP_REQUEST);
    guest.expect(OP_RST);
    // An answer that comes too late.
    guest.send(99, 0x4000_0000, OP_RESPONSE);
    guest.expect(OP_RST);
    // Without a driver nothing is left either.
    let (host, _slot) = device();
    assert_eq!(host.connect(1, Some(Duration::from_millis(5))).unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(host.connections(), 0);
}

#[test]
fn accept_times_out() {
    let (host, _guest) = guest();
    let listener = host.listen(5).unwrap();
    assert_eq!(listener.accept(Some(Duration::ZERO)).unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(listener.accept(Some(Duration::from_millis(10))).unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(host.listen(5).unwrap_err().kind(), ErrorKind::AddrInUse);
    drop(listener);
    host.listen(5).unwrap();
}

#[test]
fn an_unknown_port_is_reset() {
    let (_host, mut guest) = guest();
    guest.send(1000, 6, OP_REQUEST);
    let rst = guest.expect(OP_RST).0;
    assert_eq!((rst.src_port, rst.dst_port), (6, 1000));
    guest.send_data(1000, 6, b"data for nobody");
    guest.expect(OP_RST);
    guest.send(1000, 6, OP_RST);
    assert!(guest.take().is_none(), "a reset is not answered");
}

#[test]
fn a_dropped_listener_resets_what_waits() {
    let (host, mut guest) = guest();
    let listener = host.listen(5).unwrap();
    guest.connect(1000, 5);
    drop(listener);
    guest.expect(OP_RST);
    assert_eq!(host.connections(), 0);
}

#[test]
fn the_guest_closes() {
    let (host, mut guest, mut stream) = connected();
    guest.send_data(1000, 5, b"last words");
    guest.shut(1000, 5, SHUTDOWN_BOTH);
    guest.expect(OP_RST);
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"last words");
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(stream.shutdown(Shutdown::Write).unwrap_err().kind(), ErrorKind::NotConnected);
    drop(stream);
    assert_eq!(host.connections(), 0);
}

#[test]
fn the_guest_half_closes() {
    let (_host, mut guest, mut stream) = connected();
    guest.send_data(1000, 5, b"question");
    guest.shut(1000, 5, SHUTDOWN_SEND);
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert_eq!(all, "question");
    stream.write_all(b"answer").unwrap();
    assert_eq!(guest.expect(OP_RW).1, b"answer");
    guest.shut(1000, 5, SHUTDOWN_RECEIVE);
    guest.expect(OP_RST);
    assert_eq!(stream.write(b"more").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn the_host_half_closes() {
    let (_host, mut guest, mut stream) = connected();
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(OP_RW).1, b"question");
    assert_eq!(guest.expect(OP_SHUTDOWN).0.flags, SHUTDOWN_SEND);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.send_data(1000, 5, b"answer");
    guest.shut(1000, 5, SHUTDOWN_BOTH);
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert_eq!(all, "answer");
}

#[test]
fn a_shutdown_waits_for_the_data_before_it() {
    let (_host, mut guest, mut stream) = connected();
    guest.buf_alloc = 10;
    guest.send(1000, 5, OP_CREDIT_UPDATE);
    stream.write_all(b"0123456789abcde").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    drop(stream);
    assert_eq!(guest.expect(OP_RW).1, b"0123456789");
    guest.expect(OP_CREDIT_REQUEST);
    assert_eq!(guest.expect(OP_SHUTDOWN).0.flags, SHUTDOWN_RECEIVE, "the drop is told at once");
    assert!(guest.take().is_none());
    let header = Header { fwd_cnt: 10, ..guest.header(1000, 5, OP_CREDIT_UPDATE) };
    guest.put(&header, &[]);
    assert_eq!(guest.expect(OP_RW).1, b"abcde");
    assert_eq!(guest.expect(OP_SHUTDOWN).0.flags, SHUTDOWN_BOTH);
}

#[test]
fn a_guest_reset_ends_the_stream() {
    let (host, mut guest, mut stream) = connected();
    guest.send_data(1000, 5, b"abc");
    guest.send(1000, 5, OP_RST);
    let mut buf = [0; 10];
    assert_eq!(stream.read(&mut buf).unwrap(), 3);
    assert_eq!(stream.read(&mut buf).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(stream.write(&buf).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(guest.take().is_none());
    drop(stream);
    assert_eq!(host.connections(), 0);
}

#[test]
fn a_closed_stream_goes_away() {
    let (host, mut guest, stream) = connected();
    let other = stream.try_clone().unwrap();
    drop(stream);
    assert!(guest.take().is_none(), "a clone keeps it open");
    drop(other);
    assert_eq!(guest.expect(OP_SHUTDOWN).0.flags, SHUTDOWN_BOTH);
    // Data that was under way does no harm.
    guest.send_data(1000, 5, b"late");
    assert!(guest.take().is_none());
    guest.send(1000, 5, OP_RST);
    assert_eq!(host.connections(), 0);
}

#[test]
fn timeouts_hold() {
    let (_host, mut guest, mut stream) = connected();
    assert_eq!(stream.set_read_timeout(Some(Duration::ZERO)).unwrap_err().kind(), ErrorKind::InvalidInput);
    stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    assert_eq!(stream.read(&mut [0; 4]).unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(stream.read(&mut []).unwrap(), 0);
    guest.buf_alloc = 0;
    guest.send(1000, 5, OP_CREDIT_UPDATE);
    stream.set_write_timeout(Some(Duration::from_millis(10))).unwrap();
    let written = std::iter::repeat_with(|| stream.write(&[0; 10_000]))
        .take_while(|r| match r {
            Ok(_) => true,
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::TimedOut);
                false
            }
        })
        .map(Result::unwrap)
        .sum::<usize>();
    assert_eq!(written, super::conn::SEND_BUF, "what waits is bounded");
}

#[test]
fn a_drop_of_the_device_ends_everything() {
    let device = Vsock::new(CID);
    let host = device.host();
    let slot = Slot::new(Arc::new(device));
    let mut guest = Guest::new(slot.clone(), 16, 4096, 0);
    let listener = host.listen(5).unwrap();
    guest.connect(1000, 5);
    let mut stream = listener.accept(Some(SECOND)).unwrap();
    let reader = std::thread::spawn(move || (stream.read(&mut [0; 4]).unwrap_err().kind(), stream));
    let acceptor = std::thread::spawn(move || listener.accept(None).unwrap_err().kind());
    let connector = std::thread::spawn({
        let host = host.clone();
        move || host.connect(44, None).unwrap_err().kind()
    });
    while host.connections() < 2 {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(20));
    drop((guest, slot));
    let (kind, mut stream) = reader.join().unwrap();
    assert_eq!(kind, ErrorKind::ConnectionReset);
    assert_eq!(acceptor.join().unwrap(), ErrorKind::NotConnected);
    assert_eq!(connector.join().unwrap(), ErrorKind::ConnectionReset);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(host.connect(1, None).unwrap_err().kind(), ErrorKind::NotConnected);
    assert_eq!(host.listen(1).unwrap_err().kind(), ErrorKind::NotConnected);
}

#[test]
fn close_all_resets_streams_and_keeps_listeners() {
    let (host, mut guest) = guest();
    let listener = host.listen(5).unwrap();
    guest.connect(1000, 5);
    let mut stream = listener.accept(Some(SECOND)).unwrap();
    host.close_all();
    assert_eq!(stream.read(&mut [0; 4]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    guest.expect(OP_RST);
    guest.connect(1001, 5);
    listener.accept(Some(SECOND)).unwrap();
}

#[test]
fn a_driver_reset_ends_streams() {
    let (host, guest, mut stream) = connected();
    guest.driver.slot.w(0x70, 0);
    assert_eq!(stream.read(&mut [0; 4]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    drop(stream);
    assert_eq!(host.connections(), 0);
}

#[test]
fn a_restored_guest_is_told_first() {
    let (_host, mut guest, _stream) = connected();
    let state = guest.driver.slot.mmio.state();
    // The same machine, again.
    let device = Vsock::new(CID);
    let host = device.host();
    let slot = Slot::in_ram(Arc::new(device), guest.driver.slot.ram.clone());
    slot.mmio.set_state(&state).unwrap();
    assert!(slot.irq.wait(SECOND));
    let connector = std::thread::spawn({
        let host = host.clone();
        move || host.connect(44, Some(LONG))
    });
    while host.connections() == 0 {
        std::thread::yield_now();
    }
    assert!(guest.take().is_none(), "nothing before the event was dealt with");
    let used = guest.driver.queues[EVENT].used().expect("the event");
    assert_eq!(used.1, 4);
    assert_eq!(slot.mmio.state().queues[EVENT].next_avail, 1, "buffers only held are not saved as taken");
    // The guest puts the buffer back, and the ring's rule says that the device hears of it.
    guest.driver.rebind(slot);
    guest.driver.queues[EVENT].add(&[(0x10_0000, 4, true)]).unwrap();
    let kicks = guest.driver.queues[EVENT].kicks;
    guest.driver.queues[EVENT].kick();
    assert_eq!(guest.driver.queues[EVENT].kicks, kicks + 1);
    let request = guest.expect(OP_REQUEST).0;
    assert_eq!(request.dst_port, 44);
    host.close();
    assert!(connector.join().unwrap().is_err());
}

// Credit

#[test]
fn the_host_keeps_to_the_guests_credit() {
    let (_host, mut guest, mut stream) = connected();
    guest.buf_alloc = 100;
    guest.send(1000, 5, OP_CREDIT_UPDATE);
    stream.write_all(&[7; 250]).unwrap();
    assert_eq!(guest.expect(OP_RW).1.len(), 100);
    guest.expect(OP_CREDIT_REQUEST);
    assert!(guest.take().is_none());
    // The same answer again earns nothing.
    guest.send(1000, 5, OP_CREDIT_UPDATE);
    assert!(guest.take().is_none());
    for (fwd_cnt, gets) in [(60, 60), (100, 40), (200, 50)] {
        let header = Header { fwd_cnt, ..guest.header(1000, 5, OP_CREDIT_UPDATE) };
        guest.put(&header, &[]);
        assert_eq!(guest.expect(OP_RW).1.len(), gets);
        while let Some((header, _)) = guest.take() {
            assert_eq!(header.op, OP_CREDIT_REQUEST);
        }
    }
}

#[test]
fn the_guest_gets_its_credit_back() {
    let (_host, mut guest, mut stream) = connected();
    let mut buf = vec![0; 64 << 10];
    let mut fwd_seen = 0;
    let mut updates = 0;
    for round in 0..64u32 {
        guest.send_data(1000, 5, &vec![round as u8; 32 << 10]);
        stream.read_exact(&mut buf[..32 << 10]).unwrap();
        assert!(buf[..32 << 10].iter().all(|&b| b == round as u8));
        while let Some((header, _)) = guest.take() {
            assert_eq!(header.op, OP_CREDIT_UPDATE);
            fwd_seen = header.fwd_cnt;
            updates += 1;
        }
    }
    let left = (64 * (32 << 10)) - fwd_seen;
    assert!((left as usize) < super::conn::RECEIVE_BUF / 4 + (32 << 10), "{left} unreported");
    assert!(updates <= 64 / 2, "{updates} updates are too many");
}

#[test]
fn a_credit_request_is_answered() {
    let (_host, mut guest, _stream) = connected();
    guest.send(1000, 5, OP_CREDIT_REQUEST);
    let header = guest.expect(OP_CREDIT_UPDATE).0;
    assert_eq!(header.buf_alloc as usize, super::conn::RECEIVE_BUF);
    assert!(guest.take().is_none());
}

#[test]
fn without_buffers_the_host_waits_and_loses_nothing() {
    let (host, slot) = device();
    let mut guest = Guest::new(slot, 2, 200, 0);
    let listener = host.listen(5).unwrap();
    guest.connect(1000, 5);
    let mut stream = listener.accept(Some(SECOND)).unwrap();
    let data: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
    stream.write_all(&data).unwrap();
    let mut got = Vec::new();
    while let Some((header, part)) = guest.take() {
        assert_eq!(header.op, OP_RW);
        assert!(part.len() <= 156);
        got.extend(part);
    }
    assert_eq!(got, data);
}

/// Tells the guest's thread to stop, also when the host's side of a test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Megabytes per second that a guest takes or sends.
fn bulk(total: usize, rx_len: u32, to_guest: bool) -> f64 {
    let (host, slot) = device();
    let mut guest = Guest::new(slot, 128, rx_len, 0);
    let listener = host.listen(5).unwrap();
    guest.connect(1000, 5);
    let mut stream = listener.accept(Some(SECOND)).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_write_timeout(Some(LONG)).unwrap();
    let start = Instant::now();
    let pattern: Vec<u8> = (0..1 << 16).map(|i: u32| (i.wrapping_mul(2654435761) >> 13) as u8).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (pattern, done) = (&pattern, &done);
        let _stop = Stop(done);
        scope.spawn(move || {
            let (mut sent, mut received, mut peer_fwd, mut told) = (0u32, 0u32, 0u32, 0u32);
            let mut peer_alloc = super::conn::UNACCEPTED_BUF;
            while !done.load(Ordering::SeqCst) {
                while let Some((header, data)) = guest.take() {
                    (peer_fwd, peer_alloc) = (header.fwd_cnt, header.buf_alloc as usize);
                    for (i, chunk) in data.chunks(1 << 12).enumerate().take(1) {
                        let at = (received as usize + (i << 12)) % pattern.len();
                        let n = chunk.len().min(pattern.len() - at);
                        assert_eq!(chunk[..n], pattern[at..at + n], "at {received}");
                    }
                    received = received.wrapping_add(data.len() as u32);
                    if received.wrapping_sub(told) >= guest.buf_alloc / 4 {
                        told = received;
                        let header = Header { fwd_cnt: received, ..guest.header(1000, 5, OP_CREDIT_UPDATE) };
                        assert!(guest.put(&header, &[]));
                    }
                }
                let room = peer_alloc - sent.wrapping_sub(peer_fwd) as usize;
                if !to_guest && room > 0 {
                    let at = sent as usize % pattern.len();
                    let n = room.min(pattern.len() - at);
                    let header = Header { len: n as u32, ..guest.header(1000, 5, OP_RW) };
                    if guest.put(&header, &pattern[at..at + n]) {
                        sent = sent.wrapping_add(n as u32);
                    }
                } else {
                    guest.driver.slot.irq.wait(Duration::from_millis(1));
                }
                guest.driver.handle_irq();
            }
        });
        let mut left = total;
        let mut buf = vec![0; 1 << 16];
        while left > 0 {
            let at = (total - left) % pattern.len();
            let n = (pattern.len() - at).min(left);
            let n = if to_guest {
                stream.write(&pattern[at..at + n]).unwrap()
            } else {
                let n = stream.read(&mut buf[..n]).unwrap();
                assert_eq!(buf[..n], pattern[at..at + n]);
                n
            };
            left -= n;
        }
    });
    total as f64 / start.elapsed().as_secs_f64() / 1e6
}

#[test]
fn bulk_data_arrives_whole_both_ways() {
    let total = 64 << 20;
    for (name, rx_len, to_guest) in [
        ("to guest, 4 KiB buffers", 4096, true),
        ("to guest, 64 KiB buffers", 64 << 10, true),
        ("to host", 4096, false),
    ] {
        let rate = bulk(total, rx_len, to_guest);
        println!("vsock {name}: {rate:.0} MB/s");
        assert!(rate > 20.0, "{name}: {rate:.0} MB/s");
    }
}

/// A guest that sends everything back, many connections at once, with few receive buffers.
fn echo(guest: &mut Guest, done: &AtomicBool) {
    #[derive(Default)]
    struct Peer {
        back: std::collections::VecDeque<u8>,
        received: u32,
        sent: u32,
        alloc: u32,
        fwd: u32,
        told: u32,
    }
    let mut peers: HashMap<(u32, u32), Peer> = HashMap::new();
    while !done.load(Ordering::SeqCst) {
        let mut idle = true;
        while let Some((header, data)) = guest.take() {
            idle = false;
            let key = (header.dst_port, header.src_port);
            if header.op == OP_REQUEST {
                peers.insert(key, Peer::default());
                guest.send(key.0, key.1, OP_RESPONSE);
            }
            let Some(peer) = peers.get_mut(&key) else { continue };
            (peer.alloc, peer.fwd) = (header.buf_alloc, header.fwd_cnt);
            peer.received = peer.received.wrapping_add(data.len() as u32);
            peer.back.extend(data);
            let unread = peer.back.len() as u32;
            assert!(unread <= guest.buf_alloc, "the host keeps to the credit");
            if header.op == OP_CREDIT_REQUEST {
                peer.told = u32::MAX;
            }
        }
        for (&(port, host), peer) in &mut peers {
            let room = peer.alloc.saturating_sub(peer.sent.wrapping_sub(peer.fwd));
            let count = (room as usize).min(peer.back.len()).min(64 << 10);
            let fwd_cnt = peer.received.wrapping_sub(peer.back.len() as u32 - count as u32);
            let header = Header { fwd_cnt, ..guest.header(port, host, OP_RW) };
            if count > 0 {
                let data: Vec<u8> = peer.back.range(..count).copied().collect();
                if guest.put(&Header { len: count as u32, ..header }, &data) {
                    peer.back.drain(..count);
                    peer.sent = peer.sent.wrapping_add(count as u32);
                    (peer.told, idle) = (fwd_cnt, false);
                }
            } else if fwd_cnt != peer.told && guest.put(&Header { op: OP_CREDIT_UPDATE, ..header }, &[]) {
                peer.told = fwd_cnt;
            }
        }
        if idle {
            guest.driver.slot.irq.wait(Duration::from_millis(50));
        }
        guest.driver.handle_irq();
    }
}

#[test]
fn many_streams_echo_at_once() {
    const TOTAL: usize = 1 << 20;
    for without in [0, F_EVENT_IDX] {
        let (host, slot) = device();
        let mut guest = Guest::new(slot, 6, 4096, without);
        guest.buf_alloc = 48 << 10;
        let done = AtomicBool::new(false);
        let start = Instant::now();
        std::thread::scope(|scope| {
            let done = &done;
            let stop = Stop(done);
            let echo = scope.spawn(move || echo(&mut guest, done));
            let streams: Vec<_> = (0..6u32)
                .map(|n| {
                    let stream = host.connect(n, Some(LONG)).unwrap();
                    stream.set_read_timeout(Some(LONG)).unwrap();
                    stream.set_write_timeout(Some(LONG)).unwrap();
                    stream
                })
                .collect();
            let byte = |n: usize, i: usize| (i * 31 + n * 7 + (i >> 9)) as u8;
            let threads: Vec<_> = streams
                .into_iter()
                .enumerate()
                .flat_map(|(n, stream)| {
                    let mut writing = stream.try_clone().unwrap();
                    let writer = scope.spawn(move || {
                        let data: Vec<u8> = (0..TOTAL).map(|i| byte(n, i)).collect();
                        for chunk in data.chunks(1 + 7919 * (n + 1)) {
                            writing.write_all(chunk).unwrap();
                        }
                    });
                    let reader = scope.spawn(move || {
                        let mut stream = stream;
                        let (mut at, mut buf) = (0, vec![0; 10_000 * (n + 1)]);
                        while at < TOTAL {
                            let count = stream.read(&mut buf).unwrap();
                            assert!(buf[..count].iter().enumerate().all(|(i, &b)| b == byte(n, at + i)));
                            at += count;
                        }
                    });
                    [writer, reader]
                })
                .collect();
            let results: Vec<_> = threads.into_iter().map(|t| t.join()).collect();
            drop(stop);
            echo.join().unwrap();
            assert!(results.iter().all(Result::is_ok));
        });
        // Had a wake-up been lost, the 50 ms of the guest's wait would add up.
        println!("echo of 6 x 1 MiB: {:?}", start.elapsed());
        assert!(start.elapsed() < LONG);
    }
}

#[test]
fn a_paused_device_leaves_guest_memory_alone() {
    let (host, mut guest, mut stream) = connected();
    let device = guest.driver.slot.mmio.device().clone();
    device.pause();
    let before = guest.driver.slot.mmio.state();
    assert_eq!(stream.write(b"waits").unwrap(), 5);
    let _listener = host.listen(9).unwrap();
    assert!(host.connect(3, Some(Duration::from_millis(1))).is_err());
    assert_eq!(guest.driver.slot.mmio.state(), before);
    assert!(guest.take().is_none());
    device.resume();
    assert_eq!(guest.expect(OP_RW).1, b"waits");
    assert!(guest.take().is_none());
}
