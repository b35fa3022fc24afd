//! What only a machine shows: its end, its clones, programs inside that talk to programs outside.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use cc::Instance;
use cc::net::{UnixSocketAddr, raw_os_error};
use cc::process::{Child, Stdio};

use crate::support::{alone, sh, shared, small, wait_until};

/// Starts a server in the machine and waits until it listens.
fn serve(instance: &Instance, port: u16, arguments: &[&str]) -> Child {
    let child = instance.command("busybox").args(arguments).stdin(Stdio::null()).spawn().unwrap();
    wait_until("the server listens", || {
        let hex = format!(":{port:04X} ");
        // Asking it would be a connection.
        sh(instance, "cat /proc/net/tcp /proc/net/tcp6")
            .lines()
            .any(|l| l.contains(&hex) && l.contains(" 0A "))
    });
    child
}

#[test]
fn programs_of_the_machine_are_reached() {
    let instance = shared();
    sh(instance, "mkdir -p /srv/www; echo from the guest > /srv/www/page");
    let mut server = serve(instance, 8001, &["httpd", "-f", "-p", "127.0.0.1:8001", "-h", "/srv/www"]);
    let ask = |mut stream: Box<dyn ReadWrite>| {
        stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.") && answer.ends_with("from the guest\n"), "{answer}");
    };
    ask(Box::new(instance.connect_tcp("localhost:8001").unwrap()));
    // And by who knows nothing of machines.
    let exposed = instance.expose(0, "127.0.0.1:8001").unwrap();
    assert!(exposed.local_addr().ip().is_loopback());
    ask(Box::new(TcpStream::connect(exposed.local_addr()).unwrap()));
    server.kill().unwrap();
    server.wait().unwrap();
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

#[test]
fn programs_of_the_machine_reach_the_host() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // An address that no other test uses: the port stays free when it is closed.
    let forward = shared().forward("127.9.9.9:0", listener.local_addr().unwrap()).unwrap();
    let at = forward.local_addr();
    let port = at.port();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = [0; 6];
            stream.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"hello\n");
            stream.write_all(b"from the host\n").unwrap();
        });
        let said = sh(shared(), &format!("echo hello | busybox nc 127.9.9.9 {port}"));
        assert_eq!(said, "from the host");
    });
    // R4.3: who is refused on the host is reset in the guest.
    drop(listener);
    let mut stream = shared().connect_tcp(at).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    drop(forward);
    let error = shared().connect_tcp(at).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

/// R4.10: without a network device there is the loopback and nothing else.
#[test]
fn r4_10_there_is_no_way_out() {
    let error = shared().connect_tcp("192.0.2.1:80").unwrap_err();
    assert_eq!((error.kind(), raw_os_error(&error)), (ErrorKind::NetworkUnreachable, Some(101)));
    let socket = shared().bind_udp("0.0.0.0:0").unwrap();
    let error = socket.send_to(b"x", "192.0.2.1:80").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NetworkUnreachable);
    // Nobody answers at the loopback's port 53; the kernel says so at once.
    let error = shared().lookup_host("example.com:80").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("Temporary failure in name resolution"), "{error}");
}

#[test]
fn everything_ends_with_the_machine() {
    let instance = small().start().unwrap();
    let listener = instance.listen_tcp("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let ours = instance.connect_tcp(at).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    let stuck = instance.connect_tcp(at).unwrap();
    let _unread = listener.accept().unwrap();
    let udp = instance.bind_udp("127.0.0.1:0").unwrap();
    let unix = instance.listen_unix("/tmp/socket").unwrap();
    let datagrams = instance.bind_unix_datagram("/tmp/datagrams").unwrap();
    (&theirs).write_all(b"left").unwrap();
    ours.peek(&mut [0]).unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let exposed = instance.expose("127.9.9.9:0", at).unwrap();
    let forward = instance.forward(0, server.local_addr().unwrap()).unwrap();
    let mut outside = TcpStream::connect(exposed.local_addr()).unwrap();
    wait_until("it is carried", || exposed.connections() == 1);

    type Work<'a> = Box<dyn FnOnce() -> std::io::Error + Send + 'a>;
    let works: [(&str, Work<'_>); 7] = [
        ("read", Box::new(|| (&theirs).read(&mut [0]).unwrap_err())),
        ("peek", Box::new(|| theirs.peek(&mut [0]).unwrap_err())),
        ("write", Box::new(|| (&stuck).write_all(&vec![0; 64 << 20]).unwrap_err())),
        ("recv", Box::new(|| udp.recv(&mut [0]).unwrap_err())),
        ("accept", Box::new(|| unix.accept().unwrap_err())),
        ("receive", Box::new(|| datagrams.recv(&mut [0]).unwrap_err())),
        // The relay's connection comes first.
        ("accept TCP", Box::new(|| listener.accept().and_then(|_| listener.accept()).unwrap_err())),
    ];
    thread::scope(|scope| {
        let waiting = works.map(|(what, work)| {
            scope.spawn(move || {
                let error = work();
                assert_eq!(error.kind(), ErrorKind::NotConnected, "{what}: {error}");
                assert!(error.to_string().contains("machine"), "{what}: {error}");
            })
        });
        // All of them wait by now, or will be told at once.
        sh(&instance, "true");
        let start = Instant::now();
        instance.close().unwrap();
        for thread in waiting {
            thread.join().unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(20));
    });
    // What had come is still here.
    let mut left = [0; 4];
    (&ours).read_exact(&mut left).unwrap();
    assert_eq!(&left, b"left");
    for error in [
        (&ours).read(&mut [0]).unwrap_err(),
        (&ours).write(&[0]).unwrap_err(),
        ours.shutdown(Shutdown::Both).unwrap_err(),
        ours.nodelay().unwrap_err(),
        udp.send_to(b"x", at).unwrap_err(),
        instance.connect_tcp(at).unwrap_err(),
        instance.listen_tcp("127.0.0.1:0").unwrap_err(),
        instance.bind_udp("127.0.0.1:0").unwrap_err(),
        instance.lookup_host("localhost:1").unwrap_err(),
        instance.connect_unix("/tmp/socket").unwrap_err(),
        instance.expose(0, at).map(drop).and_then(|()| instance.forward(0, at).map(drop)).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
        assert!(error.to_string().contains("machine"), "{error}");
    }
    // Its ports are gone, and who used them has been told.
    assert!(outside.read(&mut [0]).map_or(true, |n| n == 0));
    let error = TcpStream::connect(exposed.local_addr()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    drop(forward);
}

/// In a clone nobody holds what the parent's program held; the parent's handles stay the parent's.
#[test]
fn clones_close_what_was_the_parent_s() {
    let parent = small().start().unwrap();
    let mut server = serve(&parent, 7, &["nc", "-ll", "-p", "7", "-e", "cat"]);
    let mut conn = parent.connect_tcp("127.0.0.1:7").unwrap();
    let listener = parent.listen_tcp("127.0.0.1:4000").unwrap();
    let name = UnixSocketAddr::from_abstract_name("parent").unwrap();
    let _unix = cc::net::Net::unix_listener(&parent, &name).unwrap();
    let echo = |conn: &mut cc::net::TcpStream| {
        conn.write_all(b"echo").unwrap();
        let mut four = [0; 4];
        conn.read_exact(&mut four).unwrap();
        assert_eq!(&four, b"echo");
    };
    echo(&mut conn);
    for clone in parent.fork(2).unwrap() {
        // The clone's agent has closed them: the port is free, and the server's child has ended.
        drop(clone.listen_tcp("127.0.0.1:4000").unwrap());
        drop(cc::net::Net::unix_listener(&clone, &name).unwrap());
        wait_until("the server's child ends", || sh(&clone, "pidof cat || true").is_empty());
        // What ran before runs on.
        echo(&mut clone.connect_tcp("127.0.0.1:7").unwrap());
    }
    echo(&mut conn);
    let ours = parent.connect_tcp("127.0.0.1:4000").unwrap();
    assert_eq!(listener.accept().unwrap().1, ours.local_addr().unwrap());
    server.kill().unwrap();
}

fn held() -> (usize, usize) {
    let count = |dir| std::fs::read_dir(dir).unwrap().count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

/// R7.1: whichever goes first, machine or handles, no descriptor and no thread is left.
#[test]
fn r7_1_nothing_is_left() {
    alone("machine::r7_1_nothing_is_left", || {
        drop(small().start().unwrap());
        let before = held();
        for machine_first in [true, false] {
            let instance = small().start().unwrap();
            let idle = sh(&instance, "ls /proc/1/fd | wc -l");
            let listener = instance.listen_tcp("127.0.0.1:0").unwrap();
            let at = listener.local_addr().unwrap();
            let conn = instance.connect_tcp(at).unwrap();
            let udp = instance.bind_udp("127.0.0.1:0").unwrap();
            let server = TcpListener::bind("127.0.0.1:0").unwrap();
            let exposed = instance.expose(0, at).unwrap();
            let forward = instance.forward(0, server.local_addr().unwrap()).unwrap();
            let outside: Vec<_> = (0..5).map(|_| TcpStream::connect(exposed.local_addr()).unwrap()).collect();
            let inside: Vec<_> =
                (0..5).map(|_| instance.connect_tcp(forward.local_addr()).unwrap()).collect();
            wait_until("all are carried", || exposed.connections() == 5 && forward.connections() == 5);
            if machine_first {
                drop(instance);
                drop((server, outside));
                // The relays have ended with the machine; what is left is the caller's own.
                assert_eq!(held().1, before.1);
                drop((exposed, forward, inside, listener, conn, udp));
            } else {
                drop((exposed, forward, inside, listener, conn, udp, server, outside));
                // The guest does not hold them either.
                wait_until("all are closed", || sh(&instance, "ls /proc/1/fd | wc -l") == idle);
                drop(instance);
            }
            assert_eq!(held(), before, "machine first: {machine_first}");
        }
    });
}
