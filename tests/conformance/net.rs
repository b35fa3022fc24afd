//! Sockets, by std's topics. Each test is written once for whatever is a [`Net`], and names what is
//! different where something is. `dir` is a directory for Unix sockets, in that place.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Net, TcpListener, TcpStream, ToSocketAddrs, UdpSocket, UnixSocketAddr, raw_os_error};

/// Longer than anything takes that does not hang.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(30);

/// Both ends of a connection: who connected, and who accepted.
fn pair(on: &impl Net) -> (TcpStream, TcpStream) {
    let listener = on.listen_tcp("127.0.0.1:0").unwrap();
    let ours = on.connect_tcp(listener.local_addr().unwrap()).unwrap();
    (ours, listener.accept().unwrap().0)
}

fn two_udp(on: &impl Net) -> (UdpSocket, UdpSocket) {
    let socket = || {
        let socket = on.bind_udp((own_ip(), 0)).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        socket
    };
    (socket(), socket())
}

/// Bytes in which every place is told from every other.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 + n / 251 + n / 65_521) as u8).collect()
}

/// A name that no other test has.
fn unique(what: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("cc-{what}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// An address of the loopback that no other test uses: a port that is free there stays so.
fn own_ip() -> Ipv4Addr {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let (pid, n) = (std::process::id() as usize, COUNT.fetch_add(1, Ordering::Relaxed));
    Ipv4Addr::new(127, 100 + (pid % 100) as u8, (n / 250) as u8, (n % 250) as u8 + 1)
}

/// An address at which nobody listens.
fn closed_port(on: &impl Net) -> SocketAddr {
    on.listen_tcp((own_ip(), 0)).unwrap().local_addr().unwrap()
}

/// Does what would block until it does not.
fn poll<T>(mut attempt: impl FnMut() -> io::Result<T>) -> T {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                assert!(start.elapsed() < LONG, "it never becomes ready");
                thread::yield_now();
            }
            other => return other.unwrap(),
        }
    }
}

pub(crate) fn tcp_carries_bytes_both_ways(on: &impl Net, _: &str) {
    let listener = on.listen_tcp("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    assert_eq!(at.ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
    assert_ne!(at.port(), 0);
    let mut ours = on.connect_tcp(at).unwrap();
    let (mut theirs, from) = listener.accept().unwrap();
    assert_eq!(ours.peer_addr().unwrap(), at);
    assert_eq!(theirs.local_addr().unwrap(), at);
    assert_eq!(ours.local_addr().unwrap(), from);
    assert_eq!(theirs.peer_addr().unwrap(), from);

    ours.write_all(b"ping").unwrap();
    let mut four = [0; 4];
    theirs.read_exact(&mut four).unwrap();
    assert_eq!(&four, b"ping");
    theirs.write_all(b"pong").unwrap();
    ours.read_exact(&mut four).unwrap();
    assert_eq!(&four, b"pong");
    assert_eq!(ours.write(&[]).unwrap(), 0);
    ours.flush().unwrap();
    drop(ours);
    assert_eq!(theirs.read(&mut four).unwrap(), 0);
    assert_eq!(theirs.read(&mut four).unwrap(), 0);
}

pub(crate) fn tcp_over_ipv6(on: &impl Net, _: &str) {
    let listener = on.listen_tcp((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let mut ours = on.connect_tcp(listener.local_addr().unwrap()).unwrap();
    let (mut theirs, from) = listener.accept().unwrap();
    assert!(from.is_ipv6() && ours.peer_addr().unwrap().is_ipv6());
    theirs.write_all(b"six").unwrap();
    drop(theirs);
    let mut all = String::new();
    ours.read_to_string(&mut all).unwrap();
    assert_eq!(all, "six");
    // A socket of all addresses takes both families.
    let listener = on.listen_tcp((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let ours = on.connect_tcp((ip, port)).unwrap();
        assert_eq!(listener.accept().unwrap().1.port(), ours.local_addr().unwrap().port());
    }
}

/// Larger than all buffers, both ways at once, through one handle on each side.
pub(crate) fn tcp_is_byte_exact(on: &impl Net, len: usize) {
    let (ours, theirs) = pair(on);
    let bytes = pattern(len);
    thread::scope(|scope| {
        for stream in [&ours, &theirs] {
            scope.spawn(|| {
                (&*stream).write_all(&bytes).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(|| {
                let mut all = Vec::new();
                (&*stream).read_to_end(&mut all).unwrap();
                assert!(all == bytes, "{} of {} bytes, or others", all.len(), bytes.len());
            });
        }
    });
}

pub(crate) fn tcp_halves_end_one_by_one(on: &impl Net, _: &str) {
    let (mut ours, mut theirs) = pair(on);
    ours.write_all(b"question").unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    let mut all = String::new();
    theirs.read_to_string(&mut all).unwrap();
    assert_eq!(all, "question");
    assert_eq!(ours.write(b"more").unwrap_err().kind(), ErrorKind::BrokenPipe);
    // The other way is still open, and for as much as one likes.
    let answer = pattern(300_000);
    let mut read = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            theirs.write_all(&answer).unwrap();
            theirs.shutdown(Shutdown::Write).unwrap();
        });
        ours.read_to_end(&mut read).unwrap();
    });
    assert!(read == answer);
}

pub(crate) fn tcp_shutdown_of_reading(on: &impl Net, _: &str) {
    let (mut ours, mut theirs) = pair(on);
    ours.shutdown(Shutdown::Read).unwrap();
    assert_eq!(ours.read(&mut [0; 9]).unwrap(), 0);
    // A clone sees the same, and it can be said twice.
    let mut clone = ours.try_clone().unwrap();
    assert_eq!(clone.read(&mut [0; 9]).unwrap(), 0);
    clone.shutdown(Shutdown::Read).unwrap();
    ours.write_all(b"still").unwrap();
    let mut five = [0; 5];
    theirs.read_exact(&mut five).unwrap();
    assert_eq!(&five, b"still");

    // Who reads in another thread is woken.
    let (ours, _theirs) = pair(on);
    thread::scope(|scope| {
        let reader = scope.spawn(|| (&ours).read(&mut [0; 9]).unwrap());
        ours.shutdown(Shutdown::Both).unwrap();
        assert_eq!(reader.join().unwrap(), 0);
    });
}

pub(crate) fn tcp_refused(on: &impl Net, _: &str) {
    let addr = closed_port(on);
    let error = on.connect_tcp(addr).unwrap_err();
    assert_eq!((error.kind(), raw_os_error(&error)), (ErrorKind::ConnectionRefused, Some(111)));
    assert_eq!(error.to_string(), format!("connect to {addr}: Connection refused (os error 111)"));
    let error = on.connect_tcp_timeout(&addr, LONG).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);

    // Of several addresses the one that can be connected to counts; of none, the last.
    let listener = on.listen_tcp("127.0.0.1:0").unwrap();
    let good = listener.local_addr().unwrap();
    let stream = on.connect_tcp(&[addr, good][..]).unwrap();
    assert_eq!(stream.peer_addr().unwrap(), good);
    assert_eq!(on.connect_tcp(&[addr, addr][..]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let none: &[SocketAddr] = &[];
    assert_eq!(on.connect_tcp(none).unwrap_err().kind(), ErrorKind::InvalidInput);
}

pub(crate) fn tcp_binding_fails(on: &impl Net, _: &str) {
    let listener = on.listen_tcp((own_ip(), 0)).unwrap();
    let at = listener.local_addr().unwrap();
    let error = on.listen_tcp(at).unwrap_err();
    assert_eq!((error.kind(), raw_os_error(&error)), (ErrorKind::AddrInUse, Some(98)));
    assert_eq!(error.to_string(), format!("listen at {at}: Address already in use (os error 98)"));
    // TEST-NET-1, nobody's.
    for error in [on.listen_tcp("192.0.2.1:0").unwrap_err(), on.bind_udp("192.0.2.1:0").unwrap_err()] {
        assert_eq!((error.kind(), raw_os_error(&error)), (ErrorKind::AddrNotAvailable, Some(99)));
    }
    // Once closed it is free at once, though a connection of it has just ended.
    let ours = on.connect_tcp(at).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    drop((theirs, ours, listener));
    on.listen_tcp(at).unwrap();
}

pub(crate) fn tcp_connecting_takes_no_longer(on: &impl Net, _: &str) {
    let listener = on.listen_tcp("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let error = on.connect_tcp_timeout(&at, Duration::ZERO).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    // Nobody accepts: when its queue is full the kernel does not answer any more.
    let mut held = Vec::new();
    let error = loop {
        match on.connect_tcp_timeout(&at, Duration::from_millis(300)) {
            Ok(stream) => held.push(stream),
            Err(e) => break e,
        }
        assert!(held.len() < 1000);
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(held.len() > 100, "{}", held.len());
    // All who got in can be accepted.
    for _ in 0..held.len() {
        listener.accept().unwrap();
    }
}

pub(crate) fn tcp_timeouts(on: &impl Net, _: &str) {
    let (ours, mut theirs) = pair(on);
    assert_eq!((ours.read_timeout().unwrap(), ours.write_timeout().unwrap()), (None, None));
    for zero in [ours.set_read_timeout(Some(Duration::ZERO)), ours.set_write_timeout(Some(Duration::ZERO))] {
        assert_eq!(zero.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    ours.set_read_timeout(Some(SHORT)).unwrap();
    let start = Instant::now();
    let error = (&ours).read(&mut [0; 9]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert!(start.elapsed() >= SHORT);
    assert_eq!(ours.peek(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
    // It has not been harmed, and clones have the same.
    let mut clone = ours.try_clone().unwrap();
    // A kernel counts in ticks.
    let (set, tick) = (clone.read_timeout().unwrap().unwrap(), Duration::from_millis(10));
    assert!(set >= SHORT && set <= SHORT + tick, "{set:?}");
    clone.set_read_timeout(None).unwrap();
    assert_eq!(ours.read_timeout().unwrap(), None);
    theirs.write_all(b"late").unwrap();
    clone.read_exact(&mut [0; 4]).unwrap();

    // Nobody reads: writing fails in the end, and what was written is what arrives.
    ours.set_write_timeout(Some(SHORT)).unwrap();
    let piece = pattern(100_000);
    let mut sent = Vec::new();
    let error = loop {
        match (&ours).write(&piece) {
            Ok(n) => sent.extend_from_slice(&piece[..n]),
            Err(e) => break e,
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    drop((ours, clone));
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).unwrap();
    assert!(all == sent, "{} of {}", all.len(), sent.len());
}

pub(crate) fn tcp_peek_and_options(on: &impl Net, _: &str) {
    let (mut ours, mut theirs) = pair(on);
    theirs.write_all(b"look").unwrap();
    let mut seen = [0; 2];
    assert_eq!(ours.peek(&mut seen).unwrap(), 2);
    assert_eq!(&seen, b"lo");
    let mut all = [0; 4];
    ours.read_exact(&mut all).unwrap();
    assert_eq!(&all, b"look");

    assert!(!ours.nodelay().unwrap());
    ours.set_nodelay(true).unwrap();
    assert!(ours.try_clone().unwrap().nodelay().unwrap());
    assert_eq!(ours.ttl().unwrap(), 64);
    ours.set_ttl(7).unwrap();
    assert_eq!((ours.ttl().unwrap(), theirs.ttl().unwrap()), (7, 64));
    assert_eq!(ours.set_ttl(0).unwrap_err().kind(), ErrorKind::InvalidInput);
    ours.set_quickack(true).unwrap();
    assert!(ours.quickack().unwrap());
    ours.set_quickack(false).unwrap();
    assert!(!ours.quickack().unwrap());
    assert!(ours.take_error().unwrap().is_none());
    let listener = on.listen_tcp("127.0.0.1:0").unwrap();
    listener.set_ttl(9).unwrap();
    assert_eq!(listener.ttl().unwrap(), 9);
    assert!(listener.take_error().unwrap().is_none());
}

pub(crate) fn tcp_without_waiting(on: &impl Net, _: &str) {
    let listener = on.listen_tcp("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    for _ in 0..3 {
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    let mut ours = on.connect_tcp(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = poll(|| listener.accept());
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);

    // Linux gives an accepted socket none of the listener's flags.
    theirs.set_nonblocking(true).unwrap();
    assert_eq!((&theirs).read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
    ours.write_all(b"now").unwrap();
    let mut three = [0; 3];
    assert_eq!(poll(|| theirs.peek(&mut three)), 3);
    assert_eq!(poll(|| (&theirs).read(&mut three)), 3);
    assert_eq!(&three, b"now");
    let piece = pattern(50_000);
    let mut sent = 0;
    let error = loop {
        match (&theirs).write(&piece) {
            Ok(n) => sent += n,
            Err(e) => break e,
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    theirs.set_nonblocking(false).unwrap();
    drop(theirs);
    let mut all = Vec::new();
    ours.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), sent);

    // A listener that waits again gets the connection whose acceptance was begun before.
    listener.set_nonblocking(false).unwrap();
    let ours = on.connect_tcp(listener.local_addr().unwrap()).unwrap();
    assert_eq!(listener.accept().unwrap().1, ours.local_addr().unwrap());
}

pub(crate) fn tcp_resets(on: &impl Net, _: &str) {
    // Closed with bytes that nobody has read.
    let (ours, mut theirs) = pair(on);
    theirs.write_all(b"unread").unwrap();
    ours.peek(&mut [0; 1]).unwrap();
    drop(ours);
    let error = theirs.read(&mut [0; 9]).unwrap_err();
    assert_eq!((error.kind(), raw_os_error(&error)), (ErrorKind::ConnectionReset, Some(104)));
    // The error is told once.
    assert_eq!(theirs.read(&mut [0; 9]).unwrap(), 0);
    assert_eq!(theirs.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);

    // Writing to who is gone fails as soon as the kernel knows.
    let (ours, mut theirs) = pair(on);
    drop(ours);
    let start = Instant::now();
    let error = loop {
        if let Err(e) = theirs.write(b"anybody?") {
            break e;
        }
        assert!(start.elapsed() < LONG, "writes go nowhere for ever");
    };
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
}

pub(crate) fn tcp_lingering(on: &impl Net, _: &str) {
    let (ours, mut theirs) = pair(on);
    assert_eq!(ours.linger().unwrap(), None);
    ours.set_linger(Some(Duration::from_millis(3900))).unwrap();
    assert_eq!(ours.try_clone().unwrap().linger().unwrap(), Some(Duration::from_secs(3)));
    ours.set_linger(None).unwrap();
    assert_eq!(ours.linger().unwrap(), None);
    // What was written goes out while it lingers.
    ours.set_linger(Some(Duration::from_secs(60))).unwrap();
    (&ours).write_all(b"last").unwrap();
    drop(ours);
    let mut last = String::new();
    theirs.read_to_string(&mut last).unwrap();
    assert_eq!(last, "last");

    // With no time at all it is a reset, though nothing was left unread.
    let (ours, mut theirs) = pair(on);
    ours.set_linger(Some(Duration::ZERO)).unwrap();
    assert_eq!(ours.linger().unwrap(), Some(Duration::ZERO));
    drop(ours);
    let error = theirs.read(&mut [0; 9]).unwrap_err();
    assert_eq!((error.kind(), raw_os_error(&error)), (ErrorKind::ConnectionReset, Some(104)));
}

pub(crate) fn tcp_listeners_are_shared(on: &impl Net, _: &str) {
    let listener = on.listen_tcp((own_ip(), 0)).unwrap();
    let at = listener.local_addr().unwrap();
    let clone = listener.try_clone().unwrap();
    thread::scope(|scope| {
        let serve = |listener: TcpListener| {
            move || {
                for stream in listener.incoming().take(10) {
                    let mut stream = stream.unwrap();
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    stream.write_all(&byte).unwrap();
                }
            }
        };
        scope.spawn(serve(listener));
        scope.spawn(serve(clone));
        for n in 0..20 {
            let mut stream = on.connect_tcp(at).unwrap();
            stream.write_all(&[n]).unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            assert_eq!(all, [n]);
        }
    });
    assert_eq!(on.connect_tcp(at).unwrap_err().kind(), ErrorKind::ConnectionRefused);

    // With the listener in it, connections come without end.
    let listener = on.listen_tcp("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let mut incoming = listener.into_incoming();
    for _ in 0..2 {
        let ours = on.connect_tcp(at).unwrap();
        assert_eq!(incoming.next().unwrap().unwrap().peer_addr().unwrap(), ours.local_addr().unwrap());
    }
}

/// Many at once, none of which disturbs another; one that nobody reads is among them.
pub(crate) fn tcp_many_at_once(on: &(impl Net + Sync), count: usize) {
    let listener = on.listen_tcp("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let (stuck, _unread) = pair(on);
    stuck.set_write_timeout(Some(SHORT)).unwrap();
    while (&stuck).write(&[0; 65_536]).is_ok() {}
    thread::scope(|scope| {
        for n in 0..count {
            let listener = &listener;
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                bytes.reverse();
                stream.write_all(&bytes).unwrap();
            });
            scope.spawn(move || {
                let bytes = pattern(20_000 + n);
                let mut stream = on.connect_tcp(at).unwrap();
                stream.write_all(&bytes).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                all.reverse();
                assert!(all == bytes);
            });
        }
    });
}

pub(crate) fn r4_1_connections_in_turn(on: &impl Net, count: usize) {
    let listener = on.listen_tcp("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    for n in 0..count {
        let mut ours = on.connect_tcp(at).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        ours.write_all(&n.to_le_bytes()).unwrap();
        // Who ends first takes turns.
        if n % 2 == 0 {
            drop(ours);
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).unwrap();
            assert_eq!(all, n.to_le_bytes());
        } else {
            theirs.read_exact(&mut [0; 8]).unwrap();
            drop(theirs);
            assert_eq!(ours.read(&mut [0; 8]).unwrap(), 0);
        }
    }
}

pub(crate) fn udp_carries_datagrams(on: &impl Net, _: &str) {
    let (a, b) = two_udp(on);
    let (to_a, to_b) = (a.local_addr().unwrap(), b.local_addr().unwrap());
    assert_eq!(a.peer_addr().unwrap_err().kind(), ErrorKind::NotConnected);
    assert_eq!(a.send_to(b"one", to_b).unwrap(), 3);
    assert_eq!(a.send_to(b"", to_b).unwrap(), 0);
    assert_eq!(a.send_to(b"three", (to_b.ip().to_string(), to_b.port())).unwrap(), 5);
    let mut bytes = [0; 100];
    for _ in 0..2 {
        assert_eq!(b.peek_from(&mut bytes).unwrap(), (3, to_a));
    }
    assert_eq!(b.peek(&mut bytes[..2]).unwrap(), 2);
    assert_eq!(b.recv_from(&mut bytes).unwrap(), (3, to_a));
    assert_eq!(&bytes[..3], b"one");
    assert_eq!(b.recv_from(&mut bytes).unwrap(), (0, to_a));
    // What does not fit is lost.
    assert_eq!(b.recv_from(&mut bytes[..2]).unwrap(), (2, to_a));
    assert_eq!(&bytes[..2], b"th");
    b.set_read_timeout(Some(SHORT)).unwrap();
    assert_eq!(b.recv_from(&mut bytes).unwrap_err().kind(), ErrorKind::WouldBlock);
}

pub(crate) fn udp_sizes(on: &impl Net, _: &str) {
    let (a, b) = two_udp(on);
    let to = b.local_addr().unwrap();
    let bytes = pattern(65_507);
    let mut read = vec![0; 70_000];
    for len in [1, 1472, 1473, 9000, 65_507] {
        assert_eq!(a.send_to(&bytes[..len], to).unwrap(), len);
        assert_eq!(b.recv_from(&mut read).unwrap().0, len);
        assert!(read[..len] == bytes[..len]);
    }
    for len in [65_508, 65_536, 65_537, 1 << 20] {
        let error = a.send_to(&vec![0; len], to).unwrap_err();
        assert_eq!(raw_os_error(&error), Some(90), "{len}: EMSGSIZE and not {error}");
    }
}

pub(crate) fn udp_connected(on: &impl Net, _: &str) {
    let (a, b) = two_udp(on);
    let other = on.bind_udp("127.0.0.1:0").unwrap();
    assert_eq!(raw_os_error(&a.send(b"to whom?").unwrap_err()), Some(89), "EDESTADDRREQ");
    a.connect(b.local_addr().unwrap()).unwrap();
    assert_eq!(a.peer_addr().unwrap(), b.local_addr().unwrap());
    other.send_to(b"from elsewhere", a.local_addr().unwrap()).unwrap();
    b.connect(("localhost", 1)).unwrap();
    b.connect(a.local_addr().unwrap()).unwrap();
    b.send(b"from b").unwrap();
    let mut bytes = [0; 100];
    assert_eq!(a.recv(&mut bytes).unwrap(), 6);
    assert_eq!(&bytes[..6], b"from b");
    assert_eq!(a.send(b"back").unwrap(), 4);
    assert_eq!(b.recv(&mut bytes).unwrap(), 4);
    // Nobody is there: said to whoever is next.
    let gone = b.local_addr().unwrap();
    drop(b);
    a.connect(gone).unwrap();
    a.send(b"anybody?").unwrap();
    let error = a.recv(&mut bytes).unwrap_err();
    assert_eq!((error.kind(), raw_os_error(&error)), (ErrorKind::ConnectionRefused, Some(111)));
    a.set_read_timeout(Some(SHORT)).unwrap();
    assert_eq!(a.recv(&mut bytes).unwrap_err().kind(), ErrorKind::WouldBlock);
}

pub(crate) fn udp_options(on: &impl Net, _: &str) {
    let (a, b) = two_udp(on);
    assert!(!a.broadcast().unwrap());
    let to = SocketAddr::from(([255, 255, 255, 255], 9));
    // Without a network device there is no way there either.
    let error = a.send_to(b"all", to).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::NetworkUnreachable), "{error}");
    a.set_broadcast(true).unwrap();
    assert!(a.broadcast().unwrap());
    a.set_ttl(3).unwrap();
    assert_eq!(a.ttl().unwrap(), 3);
    assert!(a.multicast_loop_v4().unwrap());
    a.set_multicast_loop_v4(false).unwrap();
    assert!(!a.multicast_loop_v4().unwrap());
    a.set_multicast_ttl_v4(5).unwrap();
    assert_eq!(a.multicast_ttl_v4().unwrap(), 5);
    let six = on.bind_udp("[::1]:0").unwrap();
    assert!(six.multicast_loop_v6().unwrap());
    six.set_multicast_loop_v6(false).unwrap();
    assert!(!six.multicast_loop_v6().unwrap());
    assert!(a.take_error().unwrap().is_none());

    let (group, interface) = (Ipv4Addr::new(224, 0, 0, 113), Ipv4Addr::LOCALHOST);
    b.join_multicast_v4(&group, &interface).unwrap();
    assert_eq!(b.join_multicast_v4(&group, &interface).unwrap_err().kind(), ErrorKind::AddrInUse);
    b.leave_multicast_v4(&group, &interface).unwrap();
    let error = b.leave_multicast_v4(&group, &interface).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    let clone = a.try_clone().unwrap();
    clone.set_nonblocking(true).unwrap();
    assert_eq!(a.recv(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
    b.send_to(b"x", a.local_addr().unwrap()).unwrap();
    assert_eq!(poll(|| a.recv(&mut [0; 9])), 1);
}

/// Who does not receive loses datagrams and stops nobody; those that wait are the oldest, in order.
pub(crate) fn udp_floods_are_dropped(on: &impl Net, count: u32) {
    let (a, b) = two_udp(on);
    let to = b.local_addr().unwrap();
    let mut datagram = pattern(1000);
    for n in 0..count {
        datagram[..4].copy_from_slice(&n.to_le_bytes());
        a.send_to(&datagram, to).unwrap();
    }
    let (mut ours, mut theirs) = pair(on);
    ours.write_all(b"through").unwrap();
    theirs.read_exact(&mut [0; 7]).unwrap();

    b.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut got = Vec::new();
    let mut bytes = [0; 2000];
    while let Ok((n, _)) = b.recv_from(&mut bytes) {
        assert_eq!(n, 1000);
        got.push(u32::from_le_bytes(bytes[..4].try_into().unwrap()));
    }
    assert!(got.len() >= 50 && got.len() < count as usize, "{} of {count}", got.len());
    assert!(got.is_sorted() && got.iter().collect::<BTreeSet<_>>().len() == got.len());
    assert_eq!(got[..50], *(0..50).collect::<Vec<_>>());
    // It receives again.
    b.set_read_timeout(Some(LONG)).unwrap();
    a.send_to(b"again", to).unwrap();
    assert_eq!(b.recv(&mut bytes).unwrap(), 5);
}

pub(crate) fn unix_streams(on: &impl Net, dir: &str) {
    let path = format!("{dir}/{}", unique("stream"));
    let name = UnixSocketAddr::from_abstract_name(unique("stream")).unwrap();
    for addr in [UnixSocketAddr::from_pathname(&path).unwrap(), name] {
        let listener = on.unix_listener(&addr).unwrap();
        assert_eq!(listener.local_addr().unwrap(), addr);
        let mut ours = on.unix_connection(&addr).unwrap();
        assert_eq!(ours.peer_addr().unwrap(), addr);
        assert!(ours.local_addr().unwrap().is_unnamed());
        let (mut theirs, from) = listener.accept().unwrap();
        assert!(from.is_unnamed());
        let bytes = pattern(1_000_000);
        thread::scope(|scope| {
            scope.spawn(|| {
                ours.write_all(&bytes).unwrap();
                ours.shutdown(Shutdown::Write).unwrap();
            });
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).unwrap();
            assert!(all == bytes);
        });
        theirs.write_all(b"bye").unwrap();
        drop(theirs);
        let mut all = String::new();
        ours.read_to_string(&mut all).unwrap();
        assert_eq!(all, "bye");
        ours.set_read_timeout(Some(SHORT)).unwrap();
        assert_eq!(ours.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        let error = on.unix_listener(&addr).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }
    let listener = on.listen_unix(format!("{dir}/{}", unique("stream"))).unwrap();
    let at = listener.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for stream in listener.incoming().take(3) {
                stream.unwrap().write_all(b"hi").unwrap();
            }
        });
        for _ in 0..3 {
            let mut all = String::new();
            on.connect_unix(at.as_pathname().unwrap()).unwrap().read_to_string(&mut all).unwrap();
            assert_eq!(all, "hi");
        }
    });
    let clone = listener.try_clone().unwrap();
    clone.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

pub(crate) fn unix_failures(on: &impl Net, dir: &str) {
    let missing = format!("{dir}/{}", unique("missing"));
    let error = on.connect_unix(&missing).unwrap_err();
    assert_eq!((error.kind(), raw_os_error(&error)), (ErrorKind::NotFound, Some(2)));
    assert!(error.to_string().contains(&missing), "{error}");
    // A name that nobody listens at any more.
    let path = format!("{dir}/{}", unique("stale"));
    drop(on.listen_unix(&path).unwrap());
    assert_eq!(on.connect_unix(&path).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(on.connect_unix(format!("{path}/x")).unwrap_err().kind(), ErrorKind::NotADirectory);
    let error = on.listen_unix(format!("{missing}/x")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    for bad in ["x".repeat(108), "with\0nul".into()] {
        assert_eq!(on.connect_unix(&bad).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(on.listen_unix(&bad).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    // The longest name there is.
    let name = unique("long");
    let long = UnixSocketAddr::from_abstract_name(name.clone() + &"x".repeat(107 - name.len())).unwrap();
    assert_eq!(on.unix_listener(&long).unwrap().local_addr().unwrap(), long);
    // A datagram socket takes no connections.
    let path = format!("{dir}/{}", unique("datagram"));
    let _socket = on.bind_unix_datagram(&path).unwrap();
    assert_eq!(raw_os_error(&on.connect_unix(&path).unwrap_err()), Some(91), "EPROTOTYPE");
}

pub(crate) fn unix_datagrams(on: &impl Net, dir: &str) {
    let (path_a, path_b) = (format!("{dir}/{}", unique("a")), format!("{dir}/{}", unique("b")));
    let (a, b) = (on.bind_unix_datagram(&path_a).unwrap(), on.bind_unix_datagram(&path_b).unwrap());
    for socket in [&a, &b] {
        socket.set_read_timeout(Some(LONG)).unwrap();
    }
    assert_eq!(a.send_to(b"hello", &path_b).unwrap(), 5);
    let mut bytes = [0; 100];
    let (n, from) = b.recv_from(&mut bytes).unwrap();
    assert_eq!((n, from), (5, a.local_addr().unwrap()));
    let nobody = on.unbound_unix_datagram().unwrap();
    assert!(nobody.local_addr().unwrap().is_unnamed());
    assert_eq!(nobody.peer_addr().unwrap_err().kind(), ErrorKind::NotConnected);
    nobody.connect(&path_b).unwrap();
    assert_eq!(nobody.send(b"who?").unwrap(), 4);
    let (n, from) = b.recv_from(&mut bytes).unwrap();
    assert!(n == 4 && from.is_unnamed());
    let name = UnixSocketAddr::from_abstract_name(unique("datagram")).unwrap();
    let c = on.unix_datagram(&name).unwrap();
    a.send_to_addr(b"to c", &name).unwrap();
    assert_eq!(c.recv(&mut bytes).unwrap(), 4);
    a.connect_addr(&name).unwrap();
    assert_eq!(a.peer_addr().unwrap(), name);
    assert_eq!(a.send_to(b"x", format!("{dir}/none")).unwrap_err().kind(), ErrorKind::NotFound);
    c.shutdown(Shutdown::Read).unwrap();
    assert_eq!(c.recv(&mut bytes).unwrap(), 0);

    // None is lost: who sends more than fits waits.
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..500u32 {
                nobody.send(&[&n.to_le_bytes()[..], &[7; 4000]].concat()).unwrap();
            }
        });
        let mut datagram = vec![0; 5000];
        for n in 0..500u32 {
            assert_eq!(b.recv(&mut datagram).unwrap(), 4004);
            assert_eq!(datagram[..4], n.to_le_bytes());
        }
    });
}

pub(crate) fn names(on: &impl Net, _: &str) {
    let found = on.lookup_host("localhost:80").unwrap();
    assert!(!found.is_empty());
    assert!(found.iter().all(|addr| addr.ip().is_loopback() && addr.port() == 80), "{found:?}");
    assert_eq!(on.lookup_host("192.0.2.7:9").unwrap(), ["192.0.2.7:9".parse::<SocketAddr>().unwrap()]);
    assert_eq!(on.lookup_host(("::1", 9)).unwrap(), ["[::1]:9".parse::<SocketAddr>().unwrap()]);
    let listener = on.listen_tcp("localhost:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let ours = on.connect_tcp(("localhost", port)).unwrap();
    assert_eq!(listener.accept().unwrap().1, ours.local_addr().unwrap());
    for bad in ["no-port", "localhost:", "localhost:http", "localhost:65536", "", ":"] {
        assert_eq!(on.lookup_host(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad}");
        assert!(bad.to_socket_addrs().is_err());
    }
    // Of no kind on the host that has a name; what is asked for is never there (RFC 6761).
    assert!(on.lookup_host("a\0b:1").is_err());
    assert!(on.lookup_host((format!("{}.example", "x".repeat(64)).as_str(), 1)).is_err());
    assert!(on.lookup_host(("x.".repeat(200).as_str(), 1)).is_err());
}

pub(crate) fn relays(on: &(impl Net + Sync), from: &(impl Net + Sync)) {
    // A server that answers with what it got, backwards, when its client has said everything.
    let listener = on.listen_tcp((own_ip(), 0)).unwrap();
    let at = listener.local_addr().unwrap();
    assert_eq!(on.expose(0, at).unwrap().local_addr().ip(), Ipv4Addr::LOCALHOST);
    let exposed = on.expose((own_ip(), 0), at).unwrap();
    let port = exposed.local_addr();
    let ask = |addr, bytes: &[u8]| {
        let mut stream = from.connect_tcp(addr).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).map(|_| all)
    };
    const CLIENTS: usize = 20;
    thread::scope(|scope| {
        scope.spawn(|| {
            for stream in listener.incoming().take(CLIENTS + 1) {
                let mut stream = stream.unwrap();
                scope.spawn(move || {
                    let mut all = Vec::new();
                    stream.read_to_end(&mut all).unwrap();
                    all.reverse();
                    stream.write_all(&all).unwrap();
                });
            }
        });
        for n in 0..CLIENTS {
            scope.spawn(move || {
                let bytes = pattern(n * 40_000);
                let mut all = ask(port, &bytes).unwrap();
                all.reverse();
                assert!(all == bytes, "{} of {}", all.len(), bytes.len());
            });
        }
        scope.spawn(move || {
            let bytes = pattern(3_000_000);
            let mut stream = from.connect_tcp(port).unwrap();
            thread::scope(|scope| {
                scope.spawn(|| {
                    (&stream).write_all(&bytes).unwrap();
                    stream.shutdown(Shutdown::Write).unwrap();
                });
                let mut all = Vec::new();
                (&stream).read_to_end(&mut all).unwrap();
                assert_eq!(all.len(), bytes.len());
            });
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        });
    });
    // Half-closed the other way: the server is done first.
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"first").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            assert_eq!(all, b"then");
        });
        let mut stream = from.connect_tcp(port).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"first");
        stream.write_all(b"then").unwrap();
    });
    // Nobody listens any more: a reset, at once.
    drop(listener);
    let mut stream = from.connect_tcp(port).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    // Nor does the port, in the end.
    drop(exposed);
    assert_eq!(from.connect_tcp(port).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
