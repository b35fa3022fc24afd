//! Names, as a guest's programs look them up. The test is the name server: it holds the sockets of port
//! 53 in the machine.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use cc::net::{TcpListener, UdpSocket};

use crate::support::{sh, small};

/// What a question asks for: its bytes without number and flags, the name, and the type.
fn parse(message: &[u8]) -> (Vec<u8>, String, u16) {
    let mut labels = Vec::new();
    let mut at = 12;
    while message[at] > 0 {
        let len = usize::from(message[at]);
        labels.push(String::from_utf8(message[at + 1..at + 1 + len].to_vec()).unwrap());
        at += 1 + len;
    }
    (message[12..at + 5].to_vec(), labels.join("."), u16::from_be_bytes([message[at + 1], message[at + 2]]))
}

const A: u16 = 1;
const AAAA: u16 = 28;

fn record(owner: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u16).to_be_bytes();
    [owner, &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 60], &len, data].concat()
}

fn message(question: &[u8], asked: &[u8], flags: u16, records: &[Vec<u8>]) -> Vec<u8> {
    let count = (records.len() as u16).to_be_bytes();
    let header = [&question[..2], &flags.to_be_bytes(), &[0, 1], &count, &[0; 4]].concat();
    [header, asked.to_vec(), records.concat()].concat()
}

/// The answers to a question, in the order in which they are sent.
fn answers(question: &[u8], tcp: bool) -> Vec<Vec<u8>> {
    const OK: u16 = 0x8180;
    const ASKED: &[u8] = &[0xc0, 12];
    let (asked, name, kind) = parse(question);
    let only_a = |records: Vec<Vec<u8>>| if kind == A { records } else { Vec::new() };
    let all = |flags, records: &[Vec<u8>]| vec![message(question, &asked, flags, records)];
    match name.as_str() {
        "both.test" if kind == AAAA => {
            all(OK, &[record(ASKED, AAAA, &"::1".parse::<std::net::Ipv6Addr>().unwrap().octets())])
        }
        "both.test" => all(OK, &[record(ASKED, A, &[127, 0, 0, 1])]),
        "alias.test" => {
            let target = b"\x04both\x04test\0";
            all(OK, &only_a(vec![record(target, A, &[127, 0, 0, 9]), record(ASKED, 5, target)]))
        }
        "circle.test" => all(OK, &[record(ASKED, 5, ASKED)]),
        "big.test" if !tcp => all(OK | 0x200, &[]),
        "big.test" => all(OK, &only_a((0..20).map(|n| record(ASKED, A, &[127, 1, 0, n])).collect())),
        "refused.test" => all(0x8185, &[]),
        "garbage.test" => {
            vec![vec![0xff; 300], question.to_vec(), message(question, &asked, OK, &[])[..13].to_vec()]
        }
        "forged.test" => {
            let mut other = question.to_vec();
            other[0] ^= 0x55;
            let evil = record(ASKED, A, &[6, 6, 6, 6]);
            let good = only_a(vec![record(ASKED, A, &[127, 0, 0, 7])]);
            let elsewhere = record(b"\x04evil\x04test\0", A, &[6, 6, 6, 7]);
            vec![
                message(&other, &asked, OK, std::slice::from_ref(&evil)),
                message(
                    question,
                    &[&b"\x04evil\x04test\0"[..], &kind.to_be_bytes(), &[0, 1]].concat(),
                    OK,
                    &[evil],
                ),
                message(question, &asked, OK, &[good, vec![elsewhere]].concat()),
            ]
        }
        "silent.test" => Vec::new(),
        _ => all(OK | 3, &[]),
    }
}

fn serve_udp(socket: &UdpSocket, asked: &Mutex<Vec<String>>) {
    let mut bytes = [0; 600];
    while let Ok((n, from)) = socket.recv_from(&mut bytes) {
        asked.lock().unwrap().push(parse(&bytes[..n]).1);
        for answer in answers(&bytes[..n], false) {
            let _ = socket.send_to(&answer, from);
        }
    }
}

fn serve_tcp(listener: &TcpListener) {
    while let Ok((mut stream, _)) = listener.accept() {
        // Both questions come on one connection.
        let mut len = [0; 2];
        while stream.read_exact(&mut len).is_ok() {
            let mut question = vec![0; usize::from(u16::from_be_bytes(len))];
            stream.read_exact(&mut question).unwrap();
            for answer in answers(&question, true) {
                let _ = stream.write_all(&[&(answer.len() as u16).to_be_bytes()[..], &answer].concat());
            }
        }
    }
}

#[test]
fn r4_6_names_are_looked_up_in_the_guest() {
    let instance = small().start().unwrap();
    sh(
        &instance,
        "printf 'nameserver 127.0.0.1\\nsearch corp test\\noptions timeout:1 attempts:2\\n' >/etc/resolv.conf",
    );
    sh(&instance, "echo '127.0.0.5 here' >>/etc/hosts");
    let udp = instance.bind_udp("127.0.0.1:53").unwrap();
    let tcp = instance.listen_tcp("127.0.0.1:53").unwrap();
    let asked = Mutex::new(Vec::new());
    thread::scope(|scope| {
        scope.spawn(|| serve_udp(&udp, &asked));
        scope.spawn(|| serve_tcp(&tcp));
        let look_up = |name: &str| -> Result<Vec<String>, (ErrorKind, String)> {
            match instance.lookup_host((name, 80)) {
                Ok(found) => Ok(found.iter().map(|addr: &SocketAddr| addr.ip().to_string()).collect()),
                Err(e) => Err((e.kind(), e.to_string())),
            }
        };
        let found = |name: &str, ips: &[&str]| {
            assert_eq!(
                look_up(name).as_deref(),
                Ok(&ips.iter().map(|s| s.to_string()).collect::<Vec<_>>()[..]),
                "{name}"
            )
        };
        found("both.test", &["::1", "127.0.0.1"]);
        found("BOTH.Test", &["::1", "127.0.0.1"]);
        found("alias.test", &["127.0.0.9"]);
        found("forged.test", &["127.0.0.7"]);
        let many: Vec<String> = (0..20).map(|n| format!("127.1.0.{n}")).collect();
        assert_eq!(look_up("big.test").unwrap(), many);
        // Files come first, and nobody is asked for what is nobody's to tell.
        asked.lock().unwrap().clear();
        found("here", &["127.0.0.5"]);
        found("localhost", &["::1", "127.0.0.1"]);
        found("any.localhost", &["::1", "127.0.0.1"]);
        assert!(asked.lock().unwrap().is_empty());
        // A short name is looked for below each domain first, a full one only as it is.
        found("both", &["::1", "127.0.0.1"]);
        assert_eq!(*asked.lock().unwrap(), ["both.corp", "both.corp", "both.test", "both.test"]);
        let (kind, text) = look_up("none.test").unwrap_err();
        assert_eq!(kind, ErrorKind::NotFound);
        assert!(text.contains("none.test:80") && text.contains("Name or service not known"), "{text}");
        for name in ["refused.test", "circle.test", "garbage.test", "silent.test"] {
            let (kind, text) = look_up(name).unwrap_err();
            assert_eq!(kind, ErrorKind::TimedOut, "{name}");
            assert!(text.contains("Temporary failure in name resolution"), "{text}");
        }
        // Connecting goes to the first address that takes it.
        let listener = instance.listen_tcp("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let conn = instance.connect_tcp(("both.test", port)).unwrap();
        assert_eq!(conn.peer_addr().unwrap().ip(), "127.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(
            instance.listen_tcp("alias.test:0").unwrap().local_addr().unwrap().ip().to_string(),
            "127.0.0.9"
        );
        // Lookups at the same time do not wait for each other.
        thread::scope(|scope| {
            let slow = scope.spawn(|| look_up("silent.test"));
            while !asked.lock().unwrap().iter().any(|name| name == "silent.test") {
                thread::yield_now();
            }
            for _ in 0..10 {
                found("both.test", &["::1", "127.0.0.1"]);
            }
            assert!(!slow.is_finished());
            assert!(slow.join().unwrap().is_err());
        });
        assert!(instance.connect_tcp(("none.test", 1)).is_err());
        udp.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        instance.close().unwrap();
    });
}
