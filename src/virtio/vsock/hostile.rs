//! Guests that break the rules of the socket protocol, and floods.

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::conn::{RECEIVE_BUF, UNACCEPTED_BUF};
use super::packet::*;
use super::state::{MAX_BACKLOG, MAX_CONNECTIONS, MAX_RESETS};
use super::tests::{Guest, SECOND, connected, device, guest};
use super::*;
use crate::virtio::driver::Driver;

#[test]
fn r8_packet_header_lengths_lying() {
    for claimed in [5, 4096, 1 << 20, u32::MAX] {
        let (_host, mut guest, mut stream) = connected();
        let header = Header { len: claimed, ..guest.header(1000, 5, OP_RW) };
        guest.put(&header, b"four");
        guest.expect(OP_RST);
        assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(!guest.driver.slot.broken(), "only this connection suffers");
    }
    // Less than there is: the claim counts.
    let (_host, mut guest, mut stream) = connected();
    let header = Header { len: 2, ..guest.header(1000, 5, OP_RW) };
    guest.put(&header, b"four");
    let mut buf = [0; 8];
    assert_eq!(stream.read(&mut buf).unwrap(), 2);
    assert_eq!(&buf[..2], b"fo");
}

#[test]
fn r8_truncated_packets_break_the_queue() {
    for len in [0, 1, 43] {
        let (_host, mut guest, mut stream) = connected();
        let at = guest.driver.alloc(4096);
        guest.driver.queues[TX as usize].add(&[(at, len, false)]).unwrap();
        guest.driver.queues[TX as usize].kick();
        assert!(guest.driver.slot.broken());
        assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

#[test]
fn r8_receive_buffers_too_small() {
    for len in [0, 1, 43, 44] {
        let (host, slot) = device();
        let mut guest = Guest::new(slot, 1, len, 0);
        let listener = host.listen(5).unwrap();
        guest.send(1000, 5, OP_REQUEST);
        assert!(guest.driver.slot.broken());
        let mut stream = listener.accept(Some(SECOND)).unwrap();
        assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

#[test]
fn r8_credit_overflow() {
    // Not accepted: the small allowance counts.
    let (host, mut guest) = guest();
    let listener = host.listen(5).unwrap();
    let response = guest.connect(1000, 5);
    assert_eq!(response.buf_alloc as usize, UNACCEPTED_BUF);
    guest.send_data(1000, 5, &vec![1; UNACCEPTED_BUF]);
    assert!(guest.take().is_none());
    guest.send_data(1000, 5, &[2]);
    guest.expect(OP_RST);
    let mut stream = listener.accept(Some(SECOND)).unwrap();
    let mut all = vec![0; UNACCEPTED_BUF];
    stream.read_exact(&mut all).unwrap();
    assert_eq!(stream.read(&mut all).unwrap_err().kind(), ErrorKind::ConnectionReset);
    // Accepted: the large one.
    let (_host, mut guest, _stream) = connected();
    for _ in 0..RECEIVE_BUF / (32 << 10) {
        guest.send_data(1000, 5, &[0; 32 << 10]);
        assert!(guest.take().is_none());
    }
    guest.send_data(1000, 5, &[0]);
    guest.expect(OP_RST);
}

#[test]
fn r8_credit_claims_out_of_range() {
    for (buf_alloc, fwd_cnt) in [(100, 1), (100, u32::MAX), (u32::MAX, 1 << 31), (0, 0), (100, 101)] {
        let (_host, mut guest, mut stream) = connected();
        stream.set_write_timeout(Some(Duration::from_millis(1))).unwrap();
        let header = Header { buf_alloc, fwd_cnt, ..guest.header(1000, 5, OP_CREDIT_UPDATE) };
        guest.put(&header, &[]);
        for _ in 0..100 {
            if stream.write(&[0; 10_000]).is_err() {
                break;
            }
        }
        let sent: usize = std::iter::from_fn(|| guest.take()).map(|(_, data)| data.len()).sum();
        let fair = u64::from(buf_alloc) + u64::from(fwd_cnt);
        assert!(sent as u64 <= fair, "{sent} sent for {buf_alloc} and {fwd_cnt}");
    }
}

#[test]
fn r8_operations_garbage() {
    for op in (8..64).chain([0, OP_REQUEST, OP_RESPONSE, 0x7fff, 0xffff]) {
        let (_host, mut guest, mut stream) = connected();
        guest.send(1000, 5, op);
        guest.expect(OP_RST);
        assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset, "op {op}");
        guest.send(1001, 5, op);
        match op {
            OP_REQUEST => assert!(guest.take().is_some()),
            _ => drop(guest.expect(OP_RST)),
        }
    }
    // Data after its end.
    let (_host, mut guest, _stream) = connected();
    guest.shut(1000, 5, SHUTDOWN_SEND);
    guest.send_data(1000, 5, b"more");
    guest.expect(OP_RST);
    // Flags that mean nothing.
    let (_host, mut guest, mut stream) = connected();
    guest.shut(1000, 5, !SHUTDOWN_BOTH);
    guest.send_data(1000, 5, b"more");
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 4);
}

#[test]
fn r8_foreign_addresses_are_ignored() {
    let (host, mut guest) = guest();
    let _listener = host.listen(5).unwrap();
    for (src_cid, dst_cid) in [(8, 2), (2, 2), (7, 7), (7, 3), (0, 0), (u64::MAX, 2), (7 | 1 << 32, 2)] {
        let header = Header { src_cid, dst_cid, ..guest.header(1000, 5, OP_REQUEST) };
        guest.put(&header, &[]);
    }
    assert!(guest.take().is_none());
    assert_eq!(host.connections(), 0);
    // Another socket type is reset as what it is.
    let header = Header { kind: 2, ..guest.header(1000, 5, OP_REQUEST) };
    guest.put(&header, &[]);
    assert_eq!(guest.expect(OP_RST).0.kind, 2);
}

#[test]
fn r8_connection_flood() {
    let (host, mut guest) = guest();
    let listeners: Vec<_> = (0..20).map(|port| host.listen(port).unwrap()).collect();
    let mut accepted = 0;
    for i in 0..20_000u32 {
        guest.send(i, i % 20, OP_REQUEST);
        match guest.take().unwrap().0.op {
            OP_RESPONSE => accepted += 1,
            OP_RST => {}
            other => panic!("op {other}"),
        }
        assert!(host.connections() <= MAX_CONNECTIONS);
    }
    assert_eq!(accepted, MAX_CONNECTIONS);
    assert_eq!(host.connect(1, Some(SECOND)).unwrap_err().kind(), ErrorKind::QuotaExceeded);
    // One listener alone does not take it all.
    drop(listeners);
    while guest.take().is_some() {}
    assert_eq!(host.connections(), 0);
    let _listener = host.listen(5).unwrap();
    for i in 0..500 {
        guest.send(i, 5, OP_REQUEST);
        while guest.take().is_some() {}
    }
    assert_eq!(host.connections(), MAX_BACKLOG);
}

#[test]
fn r8_connections_the_guest_never_ends() {
    // The host closes, the guest does not answer: what lingers makes room for what comes.
    let (host, mut guest) = guest();
    let listener = host.listen(5).unwrap();
    for i in 0..3 * MAX_CONNECTIONS as u32 {
        guest.send(i, 5, OP_REQUEST);
        drop(listener.accept(Some(SECOND)).unwrap());
        while guest.take().is_some() {}
        assert!(host.connections() <= MAX_CONNECTIONS);
    }
}

#[test]
fn r8_ring_full_freeze() {
    // Hundreds of resets are due and the guest offers four buffers: its packets wait, and all are
    // answered as soon as it takes the answers.
    let (_host, slot) = device();
    let mut guest = Guest::new(slot, 4, 4096, 0);
    let mut sent = 0;
    while sent < 2000 && guest.put(&guest.header(sent, 99, OP_REQUEST), &[]) {
        sent += 1;
    }
    assert!((sent as usize) < MAX_RESETS + 100, "{sent} taken without an answer");
    let mut answered = 0;
    let start = Instant::now();
    while answered < 2000 {
        assert!(start.elapsed() < Duration::from_secs(10), "frozen after {answered} of {sent}");
        if guest.take().is_some() {
            answered += 1;
        }
        if sent < 2000 && guest.put(&guest.header(sent, 99, OP_REQUEST), &[]) {
            sent += 1;
        }
    }
    assert!(!guest.driver.slot.broken());
}

#[test]
fn r8_ring_full_freeze_when_buffers_come_at_once() {
    // Every reset that waits fits, so the device never runs short again and hears of no buffer;
    // it has to think of the packets left behind by itself.
    let (_host, slot) = device();
    let mut guest = Guest::new(slot, 0, 128, 0);
    let mut sent = 0;
    while guest.put(&guest.header(sent, 99, OP_REQUEST), &[]) {
        sent += 1;
    }
    assert!(sent as usize > MAX_RESETS);
    for _ in 0..MAX_RESETS {
        let at = guest.driver.alloc(128);
        guest.give(at);
    }
    guest.driver.queues[RX].kick();
    assert_eq!(std::iter::from_fn(|| guest.take()).count(), sent as usize);
}

#[test]
fn r8_writers_wake_when_the_queue_breaks() {
    let (_host, mut guest, mut stream) = connected();
    stream.set_write_timeout(None).unwrap();
    stream.set_read_timeout(None).unwrap();
    guest.buf_alloc = 0;
    guest.send(1000, 5, OP_CREDIT_UPDATE);
    let reader = stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        loop {
            if let Err(error) = stream.write(&[0; 65536]) {
                break error.kind();
            }
        }
    });
    let reader = std::thread::spawn(move || (&reader).read(&mut [0; 8]).unwrap_err().kind());
    std::thread::sleep(Duration::from_millis(30));
    guest.driver.queues[TX as usize].publish(0xffff);
    guest.driver.queues[TX as usize].notify();
    assert!(guest.driver.slot.broken());
    assert_eq!(writer.join().unwrap(), ErrorKind::ConnectionReset);
    assert_eq!(reader.join().unwrap(), ErrorKind::ConnectionReset);
}

#[test]
fn r8_host_calls_on_a_ring_that_broke_meanwhile() {
    let (host, guest, mut stream) = connected();
    // The receive ring's index jumps; the host is the first to notice, in a write.
    guest.driver.queues[RX].set_avail_idx(0x7000);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(guest.driver.slot.broken());
    drop(stream);
    assert_eq!(host.connections(), 0);
}

#[derive(Debug, Clone)]
enum Step {
    Packet(Header, usize),
    Take(usize),
    Accept,
    Connect,
    Read,
    Write(usize),
    Shut(u8),
    Drop,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let packet = (
        (0u32..4, prop_oneof![8 => 4u32..7, 1 => Just(0x4000_0000), 1 => any::<u32>()]),
        prop_oneof![8 => 0u16..9, 1 => any::<u16>()],
        prop_oneof![4 => Just(None), 1 => any::<u32>().prop_map(Some)],
        prop_oneof![4 => 0u32..4, 1 => any::<u32>()],
        prop_oneof![2 => Just(65536u32), 1 => 0u32..300, 1 => any::<u32>()],
        prop_oneof![2 => Just(0u32), 1 => 0u32..3000, 1 => any::<u32>()],
        prop_oneof![2 => Just(0usize), 2 => 0usize..200, 1 => 0usize..40_000],
    )
        .prop_map(|((src_port, dst_port), op, len, flags, buf_alloc, fwd_cnt, bytes)| {
            let len = len.unwrap_or(bytes as u32);
            let (src_cid, dst_cid, kind) = (7, 2, 1);
            let header =
                Header { src_cid, dst_cid, src_port, dst_port, len, kind, op, flags, buf_alloc, fwd_cnt };
            Step::Packet(header, bytes)
        });
    let step = prop_oneof![
        10 => packet,
        4 => (0usize..20).prop_map(Step::Take),
        2 => Just(Step::Accept),
        1 => Just(Step::Connect),
        2 => Just(Step::Read),
        2 => (0usize..100_000).prop_map(Step::Write),
        1 => (0u8..3).prop_map(Step::Shut),
        1 => Just(Step::Drop),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_packets_and_host_calls(steps in steps()) {
        let (host, slot) = device();
        let mut guest = Guest::new(slot, 8, 4096, 0);
        let listener = host.listen(5).unwrap();
        let mut streams: Vec<VsockStream> = Vec::new();
        let start = Instant::now();
        for step in steps {
            match step {
                Step::Packet(header, bytes) => drop(guest.put(&header, &vec![0x5a; bytes])),
                Step::Take(count) => drop((0..count).map_while(|_| guest.take()).count()),
                Step::Accept => streams.extend(listener.accept(Some(Duration::ZERO))),
                Step::Connect => drop(host.connect(1, Some(Duration::ZERO))),
                Step::Read => {
                    if let Some(mut stream) = streams.last() {
                        stream.set_read_timeout(Some(Duration::from_nanos(1))).unwrap();
                        let _ = stream.read(&mut [0; 5000]);
                    }
                }
                Step::Write(len) => {
                    if let Some(mut stream) = streams.last() {
                        stream.set_write_timeout(Some(Duration::from_nanos(1))).unwrap();
                        let _ = stream.write(&vec![1; len]);
                    }
                }
                Step::Shut(how) => {
                    if let Some(stream) = streams.last() {
                        use std::net::Shutdown::{Both, Read, Write};
                        let _ = stream.shutdown([Read, Write, Both][usize::from(how)]);
                    }
                }
                Step::Drop => drop(streams.pop()),
            }
            prop_assert!(host.connections() <= MAX_CONNECTIONS);
            prop_assert!(!guest.driver.slot.broken());
        }
        prop_assert!(start.elapsed() < Duration::from_secs(10));
        // After all that a newcomer is served, once the guest takes its packets.
        while guest.take().is_some() {}
        while listener.accept(Some(Duration::ZERO)).is_ok() {}
        while guest.take().is_some() {}
        guest.send(77_777, 5, OP_REQUEST);
        prop_assert_eq!(guest.take().map(|(h, _)| (h.op, h.dst_port)), Some((OP_RESPONSE, 77_777)));
        // And a reset leaves nothing of the old ones.
        drop((streams, listener));
        let slot = guest.driver.slot.clone();
        Driver::new(slot, 0);
        prop_assert_eq!(host.connections(), 0);
    }
}

#[test]
fn an_idle_device_takes_host_calls() {
    let device = Arc::new(Vsock::new(7));
    let host = device.host();
    device.transport_reset();
    host.close_all();
    device.queue_notify(0);
    assert!(host.connect(1, Some(Duration::from_millis(1))).is_err());
    drop(host.listen(1).unwrap());
    assert_eq!(host.connections(), 0);
}
