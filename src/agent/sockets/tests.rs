//! Sockets in the protocol: messages, an agent that breaks its rules, a host that does, and what the
//! resolver makes of bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::agent::Client;
use crate::agent::errno;
use crate::agent::protocol::net::*;
use crate::agent::protocol::{
    Channel, Decoder, Error as Broken, MAX_DATA, MAX_PAYLOAD, Message, VERSION, WINDOW,
};
use crate::agent::testing::{HostAgent, start_process};

#[path = "../../../guest/net/dns.rs"]
mod dns;
#[path = "../../../guest/net/hosts.rs"]
mod hosts;

const LONG: Duration = Duration::from_secs(30);

fn frame(message: &Message<'_>, stream: u32) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(stream, &mut out);
    out
}

fn request(request: Request<'_>, stream: u32) -> Vec<u8> {
    frame(&Message::Socket(request), stream)
}

fn raw(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_le_bytes()[..], &stream.to_le_bytes(), &[kind], payload].concat()
}

const SOCKET: u8 = 48;
const EVENT: u8 = 49;

fn hello() -> Vec<u8> {
    frame(&Message::Hello(VERSION), 0)
}

/// Decodes one frame and gives the message to `each`.
fn decode(bytes: &[u8], each: impl FnOnce(Message<'_>)) -> Result<(), Broken> {
    let mut decoder = Decoder::new();
    for piece in bytes.chunks(32 * 1024) {
        decoder.spare()?[..piece.len()].copy_from_slice(piece);
        decoder.advance(piece.len());
        if let Some(frame) = decoder.next()? {
            each(Message::decode(&frame)?);
            return Ok(());
        }
    }
    Ok(())
}

/// What a generated message borrows.
#[derive(Debug, Clone)]
struct Parts {
    unix: Vec<u8>,
    abstraction: bool,
    ip: ([u8; 4], [u8; 16]),
    n: u32,
    host: Vec<u8>,
    bytes: Vec<u8>,
}

impl Parts {
    fn name(&self) -> Vec<u8> {
        if self.abstraction { [&[0], &self.unix[..]].concat() } else { self.unix.clone() }
    }
}

fn parts() -> impl Strategy<Value = Parts> {
    let unix = vec(1u8..=255, 0..=MAX_UNIX_NAME);
    let host = vec(any::<u8>(), 0..=MAX_NAME);
    (unix, any::<bool>(), any::<([u8; 4], [u8; 16])>(), any::<u32>(), host, vec(any::<u8>(), 0..2000))
        .prop_map(|(unix, abstraction, ip, n, host, bytes)| Parts { unix, abstraction, ip, n, host, bytes })
}

proptest! {
    #[test]
    fn messages_round_trip(p in parts(), stream in any::<u32>()) {
        let name = p.name();
        let port = p.n as u16;
        let addresses = vec![
            Address::V4(p.ip.0, port),
            Address::V6(p.ip.1, port, p.n, !p.n),
            Address::Unix(&name),
            Address::Unix(&[]),
        ];
        let targets = [
            Target::Addresses(addresses.clone()),
            Target::Addresses(Vec::new()),
            Target::Name(&p.host, port),
        ];
        let mut messages = Vec::new();
        for target in targets {
            messages.extend([
                Message::Socket(Request::Connect(target.clone())),
                Message::Socket(Request::Listen(target.clone())),
                Message::Socket(Request::Bind(target.clone())),
                Message::Socket(Request::Lookup(target.clone())),
                Message::Socket(Request::Do(p.n, Action::Connect(target.clone()))),
                Message::Socket(Request::Do(p.n, Action::Send(Some(target), &p.bytes))),
            ]);
        }
        for opt in [Opt::NoDelay, Opt::Ttl, Opt::Broadcast, Opt::MulticastLoopV4, Opt::MulticastTtlV4,
            Opt::MulticastLoopV6, Opt::Error, Opt::OnlyV6, Opt::Linger, Opt::QuickAck] {
            messages.push(Message::Socket(Request::Do(p.n, Action::Get(opt))));
            messages.push(Message::Socket(Request::Do(p.n, Action::Set(opt, !p.n))));
        }
        for halves in [Halves::Read, Halves::Write, Halves::Both] {
            messages.push(Message::Socket(Request::Do(p.n, Action::Shutdown(halves))));
        }
        messages.extend([
            Message::Socket(Request::Accept(p.n)),
            Message::Socket(Request::Close(p.abstraction)),
            Message::Socket(Request::Do(p.n, Action::Send(None, &p.bytes))),
            Message::Socket(Request::Do(1, Action::Membership(p.abstraction, addresses[1], p.ip.0))),
            Message::SocketEvent(Event::Opened(addresses[0], addresses[1])),
            Message::SocketEvent(Event::Failed(Reason::NoName, p.n as i32)),
            Message::SocketEvent(Event::Value(p.n)),
            Message::SocketEvent(Event::Addresses(addresses.clone())),
            Message::SocketEvent(Event::ReadFailed(p.n as i32)),
            Message::SocketEvent(Event::WriteFailed(p.n as i32)),
            Message::SocketEvent(Event::Datagram(addresses[2], &p.bytes)),
            Message::SocketEvent(Event::DatagramFailed(p.n as i32)),
        ]);
        for message in &messages {
            let mut seen = false;
            decode(&frame(message, stream), |got| { assert_eq!(&got, message); seen = true; }).unwrap();
            prop_assert!(seen);
        }
    }

    #[test]
    fn any_payload_decodes_or_fails(
        kind in SOCKET..=EVENT,
        payload in vec(prop_oneof![Just(0), 0u8..8, any::<u8>()], 0..300),
    ) {
        let _ = decode(&raw(kind, 7, &payload), |message| {
            if let Message::SocketEvent(Event::Addresses(list)) = message {
                assert!(list.capacity() * 2 <= payload.len());
            }
        });
    }
}

#[test]
fn lists_names_and_lengths_are_bounded() {
    let fails = |kind, payload: &[u8]| decode(&raw(kind, 1, payload), |_| {}).unwrap_err();
    // A list of 2^32 - 1 addresses in eight bytes.
    assert_eq!(fails(EVENT, &[3, 0xff, 0xff, 0xff, 0xff, 4, 0, 0]), Broken::Malformed);
    let many = Event::Addresses(vec![Address::V4([0; 4], 0); MAX_ADDRESSES + 1]);
    assert_eq!(decode(&frame(&Message::SocketEvent(many), 1), |_| {}), Err(Broken::TooLong));
    let long = vec![b'x'; MAX_NAME + 1];
    let long = Request::Connect(Target::Name(&long, 1));
    assert_eq!(decode(&request(long, 1), |_| {}), Err(Broken::TooLong));
    for name in [&[b'x'; MAX_UNIX_NAME + 1][..], b"a\0b", &[0; MAX_UNIX_NAME + 2]] {
        let connect = Request::Connect(Target::Addresses(vec![Address::Unix(name)]));
        assert_eq!(decode(&request(connect, 1), |_| {}), Err(Broken::Malformed), "{name:?}");
    }
    // The longest datagram from the longest name fits, and nothing longer is a frame.
    let longest = [0; MAX_UNIX_NAME + 1];
    let whole = vec![1; MAX_DATA];
    let datagram = Message::SocketEvent(Event::Datagram(Address::Unix(&longest), &whole));
    decode(&frame(&datagram, 1), |got| assert_eq!(got, datagram)).unwrap();
    assert_eq!(decode(&raw(EVENT, 1, &vec![6; MAX_PAYLOAD + 1])[..9], |_| {}), Err(Broken::TooLong));
}

/// Every errno that Linux has, from the agent to the caller.
#[test]
fn every_errno_keeps_its_number_and_kind() {
    for number in 1..=133 {
        let failure = Failure { reason: Reason::System, errno: number };
        let error = io::Error::from(failure);
        let std = io::Error::from_raw_os_error(number);
        assert_eq!((error.raw_os_error(), error.kind()), (Some(number), std.kind()));
        // Where there is no std for Linux, there is a table; it calls other what std has no name for.
        let named = !format!("{:?}", std.kind()).starts_with("Uncategorized");
        let expected = if named { std.kind() } else { ErrorKind::Other };
        // The kinds of ELOOP and EINPROGRESS have no stable names.
        if ![40, 115].contains(&number) {
            assert_eq!(errno::kind(number), expected, "{number}");
        }
    }
    for (reason, kind) in [(Reason::NoName, ErrorKind::NotFound), (Reason::NoAnswer, ErrorKind::TimedOut)] {
        let error = io::Error::from(Failure { reason, errno: 2 });
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().starts_with("failed to lookup address information"), "{error}");
    }
}

/// A client whose agent says what `talk` writes after the first `skip` requests that the host makes.
fn client_of(talk: impl FnOnce(&mut UnixStream) + Send + 'static) -> Arc<Client> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        theirs.write_all(&hello()).unwrap();
        talk(&mut theirs);
        let _ = theirs.read_to_end(&mut Vec::new());
    });
    Client::connect(ours.try_clone().unwrap(), ours, LONG).unwrap()
}

fn somewhere() -> Place {
    Place::Names(vec![Name::Ip("127.0.0.1:9".parse().unwrap())])
}

fn target<'a>() -> Target<'a> {
    Target::Addresses(vec![Address::V4([127, 0, 0, 1], 9)])
}

const HERE: Address<'_> = Address::V4([127, 0, 0, 1], 1000);
const THERE: Address<'_> = Address::V4([127, 0, 0, 1], 9);

fn opened_frame() -> Vec<u8> {
    frame(&Message::SocketEvent(Event::Opened(HERE, THERE)), 1)
}

/// Takes the host's greeting and its first request, as stream 1, and says what follows.
fn after(first: Request<'static>, then: Vec<Vec<u8>>) -> Arc<Client> {
    client_of(move |socket| {
        let want = hello().len() + request(first, 1).len();
        socket.read_exact(&mut vec![0; want]).unwrap();
        for bytes in then {
            // It may hang up in between.
            let _ = socket.write_all(&bytes);
        }
    })
}

fn connection_after(then: Vec<Vec<u8>>) -> Connection {
    let client = after(Request::Connect(target()), [vec![opened_frame()], then].concat());
    Connection::connect(&client, &somewhere(), Until::Done).unwrap()
}

fn broke(error: &io::Error) {
    assert_eq!(error.kind(), ErrorKind::NotConnected);
    assert!(error.to_string().contains("broke its protocol"), "{error}");
}

#[test]
fn an_agent_that_overruns_a_window_is_dropped() {
    let flood =
        vec![frame(&Message::Data(Channel::Stdout, &[7; MAX_DATA]), 1); WINDOW as usize / MAX_DATA + 1];
    let connection = connection_after(flood);
    let mut all = Vec::new();
    let error = loop {
        let mut bytes = vec![0; 1 << 20];
        // Nothing is read until all of it has come.
        match connection.write(&[1], Until::Done) {
            Ok(_) => std::thread::yield_now(),
            Err(e) => break e,
        }
        assert!(connection.buffered() <= WINDOW as usize);
        if all.is_empty() && connection.buffered() == WINDOW as usize {
            let n = connection.peek(&mut bytes, Until::Done).unwrap();
            all.extend_from_slice(&bytes[..n]);
        }
    };
    broke(&error);
    // What had come can be read.
    let mut bytes = vec![0; 1 << 20];
    assert_eq!(connection.read(&mut bytes, Until::Done).unwrap(), WINDOW as usize);
    broke(&connection.read(&mut bytes, Until::Done).unwrap_err());

    let datagram = frame(&Message::SocketEvent(Event::Datagram(THERE, &[])), 1);
    let bound = frame(&Message::SocketEvent(Event::Opened(HERE, Address::Unix(&[]))), 1);
    let flood = vec![datagram; (WINDOW / DATAGRAM_COST) as usize + 1];
    let client = after(Request::Bind(target()), [vec![bound], flood].concat());
    let socket = Datagrams::bind(&client, &somewhere()).unwrap();
    client.join();
    let mut received = 0;
    let error = loop {
        match socket.receive(&mut [], Until::Done) {
            Ok(_) => received += 1,
            Err(e) => break e,
        }
    };
    broke(&error);
    assert_eq!(received, WINDOW / DATAGRAM_COST);
}

#[test]
fn an_agent_that_makes_no_sense_is_dropped() {
    let event = |event| frame(&Message::SocketEvent(event), 1);
    let senseless = [
        opened_frame(),
        event(Event::Failed(Reason::System, 1)),
        event(Event::Value(1)),
        event(Event::Addresses(Vec::new())),
        event(Event::Datagram(THERE, b"x")),
        event(Event::DatagramFailed(1)),
        frame(&Message::Data(Channel::Stdin, b"x"), 1),
        frame(&Message::Data(Channel::Stderr, b"x"), 1),
        frame(&Message::Eof(Channel::Stdin), 1),
        frame(&Message::Credit(Channel::Stdin, u32::MAX), 1),
        frame(&Message::Credit(Channel::Stdin, WINDOW + 1), 1),
        frame(&Message::Credit(Channel::Stdout, 1), 1),
        frame(&Message::Close(Channel::Stdin), 1),
        frame(&Message::Reply(0), 1),
        frame(&Message::Spawned(1), 1),
        request(Request::Accept(1), 1),
        [frame(&Message::Eof(Channel::Stdout), 1), frame(&Message::Data(Channel::Stdout, b"x"), 1)].concat(),
        [frame(&Message::Eof(Channel::Stdout), 1), frame(&Message::Eof(Channel::Stdout), 1)].concat(),
        raw(EVENT, 1, &[0xff; 64]),
        vec![0xff; 64],
    ];
    for bytes in senseless {
        let connection = connection_after(vec![bytes.clone()]);
        let error = loop {
            match connection.read(&mut [0; 64], Until::Done) {
                Ok(0) => std::thread::yield_now(),
                Ok(n) => panic!("{n} bytes after {bytes:?}"),
                Err(e) => break e,
            }
            if let Err(e) = connection.write(&[1], Until::Done) {
                break e;
            }
        };
        broke(&error);
    }
    // Before it is open, and to who asked for something else.
    let connecting = |bytes| {
        let client = after(Request::Connect(target()), vec![bytes]);
        Connection::connect(&client, &somewhere(), Until::Done).unwrap_err()
    };
    broke(&connecting(frame(&Message::Data(Channel::Stdout, b"x"), 1)));
    broke(&connecting(event(Event::ReadFailed(1))));
    broke(&connecting(event(Event::Opened(Address::Unix(b"x"), THERE))));
    broke(&connecting(event(Event::Opened(THERE, Address::Unix(b"x")))));
    let listener = frame(&Message::Data(Channel::Stdout, b"x"), 1);
    let client = after(Request::Listen(target()), vec![opened_frame(), listener]);
    let listener = Listener::listen(&client, &somewhere()).unwrap();
    client.join();
    broke(&listener.accepting().unwrap_err());
    // An answer to another question ends nothing but this one.
    let client = after(Request::Lookup(target()), vec![event(Event::Value(7))]);
    assert_eq!(look_up(&client, &somewhere()).unwrap_err().kind(), ErrorKind::InvalidData);
    assert!(!client.is_ended());
}

#[test]
fn streams_that_nobody_has_are_no_matter() {
    let strange = [
        frame(&Message::Data(Channel::Stdout, &[1; 100]), 77),
        frame(&Message::SocketEvent(Event::Value(1)), u32::MAX),
        frame(&Message::SocketEvent(Event::Datagram(THERE, b"x")), 4),
        frame(&Message::Data(Channel::Stdout, b"ours"), 1),
    ];
    let connection = connection_after(strange.to_vec());
    let mut bytes = [0; 9];
    assert_eq!(connection.read(&mut bytes, Until::Done).unwrap(), 4);
}

#[test]
fn silence_is_as_long_as_the_caller_likes() {
    let at = || Until::Time(Instant::now() + Duration::from_millis(40));
    let client = after(Request::Connect(target()), Vec::new());
    let error = Connection::connect(&client, &somewhere(), at()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!(client.operations(), 0, "it is not waited for any more");
    let connection = connection_after(Vec::new());
    assert_eq!(connection.read(&mut [0], at()).unwrap_err().kind(), ErrorKind::WouldBlock);
    // As much as fits into the window, no more.
    let mut sent = 0;
    let error = loop {
        match connection.write(&[0; 100_000], at()) {
            Ok(n) => sent += n,
            Err(e) => break e,
        }
    };
    assert_eq!((error.kind(), sent), (ErrorKind::WouldBlock, WINDOW as usize));
}

/// Gives an agent `bytes` and says how it ended. A panic is 101.
fn agent_given(bytes: &[u8]) -> Option<i32> {
    let (mut process, mut socket) = start_process(Stdio::null());
    socket.set_write_timeout(Some(LONG)).unwrap();
    let mut reader = socket.try_clone().unwrap();
    // An agent that cannot send stops reading.
    let drain = std::thread::spawn(move || reader.read_to_end(&mut Vec::new()));
    // It may have closed the connection before it has all.
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(Shutdown::Write);
    drain.join().unwrap().unwrap();
    process.wait().unwrap().code()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_agent_survives_any_requests(
        frames in vec((
            prop_oneof![Just(SOCKET), Just(SOCKET), Just(SOCKET), 5u8..9],
            0u32..8,
            vec(prop_oneof![Just(0), 0u8..8, any::<u8>()], 0..40),
        ), 0..40)
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let to = |port| Target::Addresses(vec![Address::V4([127, 0, 0, 1], port)]);
        let opening = [
            request(Request::Connect(to(port)), 1),
            request(Request::Connect(to(1)), 2),
            request(Request::Listen(to(0)), 3),
            request(Request::Accept(3), 4),
            request(Request::Bind(to(0)), 5),
            request(Request::Bind(Target::Addresses(vec![Address::Unix(&[])])), 6),
            request(Request::Do(5, Action::Send(Some(Target::Name(b"localhost", port)), b"x")), 7),
        ];
        let frames = frames.iter().flat_map(|(k, s, p)| raw(*k, *s, p));
        let all: Vec<u8> = [&[hello()], &opening[..]].concat().concat().into_iter().chain(frames).collect();
        prop_assert_eq!(agent_given(&all), Some(0));
    }
}

#[test]
fn the_agent_drops_a_host_that_overruns_a_window() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connect = Request::Connect(Target::Addresses(vec![Address::V4([127, 0, 0, 1], port)]));
    let mut all = [hello(), request(connect, 1)].concat();
    // Far more than the kernel's buffers hold of a connection that nobody reads.
    for _ in 0..400 {
        all.extend(frame(&Message::Data(Channel::Stdin, &[0; MAX_DATA]), 1));
    }
    let (mut process, mut socket) = start_process(Stdio::null());
    let sent = socket.write_all(&all);
    let _ = socket.read_to_end(&mut Vec::new());
    assert_eq!(process.wait().unwrap().code(), Some(0));
    assert!(sent.is_err(), "26 MB were taken for a connection that nobody reads");
}

#[test]
fn the_agent_has_limits() {
    let agent = HostAgent::start();
    // More streams than there may be: each says so, and none harms the others.
    let connection = {
        let listener =
            Listener::listen(&agent.client, &Place::Names(vec![Name::Ip("127.0.0.1:0".parse().unwrap())]))
                .unwrap();
        let pending: Vec<Connection> = (0..8200).map(|_| listener.accepting().unwrap()).collect();
        agent.client.ping(LONG).unwrap();
        let refused = pending
            .iter()
            .filter(|c| matches!(c.opened(Until::Now), Err(e) if e.raw_os_error() == Some(105)))
            .count();
        assert_eq!(refused, 8200 - 8191, "the listener is one of 8192");
        let Name::Ip(at) = listener.local() else { panic!("no address") };
        let _client = std::net::TcpStream::connect(at).unwrap();
        pending[0].opened(Until::Done).unwrap();
        pending.into_iter().next().unwrap()
    };
    drop(connection);
    agent.client.ping(LONG).unwrap();
    assert_eq!(agent.client.operations(), 0);
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn hosts_files_are_read() {
    const TEXT: &[u8] =
        b"127.0.0.1\tlocalhost me # not this\n::1 localhost\n# 9.9.9.9 me\nbad me\n10.0.0.1 Me\r\n\
        10.0.0.1 me\n1.2.3.4\n";
    assert_eq!(hosts::lookup(TEXT, b"me"), [ip("127.0.0.1"), ip("10.0.0.1")]);
    assert_eq!(hosts::lookup(TEXT, b"LOCALHOST."), [ip("127.0.0.1"), ip("::1")]);
    for none in [&b"not"[..], b"this", b"1.2.3.4", b"", b"#"] {
        assert_eq!(hosts::lookup(TEXT, none), [] as [IpAddr; 0]);
    }
    assert_eq!(hosts::address(b"::1"), Some(ip("::1")));
    assert_eq!(hosts::address(b"1.2.3.4.5"), None);
    assert!(hosts::local(b"x.localhost.").is_some() && hosts::local(b"localhost.x").is_none());
    let many: String = (0..100).map(|n| format!("10.0.0.{n} many\n")).collect();
    assert_eq!(hosts::lookup(many.as_bytes(), b"many").len(), 32);
}

#[test]
fn resolver_configurations_are_read() {
    let config = hosts::config(b"");
    assert_eq!(
        (config.servers, config.dots, config.timeout, config.attempts),
        (vec![ip("127.0.0.1")], 1, 5, 2)
    );
    let config = hosts::config(
        b"domain old\nnameserver 10.0.0.1\nnameserver x\n;nameserver 9.9.9.9\nsearch a.test. b # c\n\
          nameserver ::1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\noptions ndots:2 timeout:0 attempts:99 rotate\n",
    );
    assert_eq!(config.servers, [ip("10.0.0.1"), ip("::1"), ip("10.0.0.2")]);
    assert_eq!(config.search, [b"a.test".to_vec(), b"b".to_vec()]);
    assert_eq!((config.dots, config.timeout, config.attempts), (2, 1, 5));
    let names = |name: &[u8]| -> Vec<String> {
        config.candidates(name).into_iter().map(|name| String::from_utf8(name).unwrap()).collect()
    };
    assert_eq!(names(b"x"), ["x.a.test", "x.b", "x"]);
    assert_eq!(names(b"x.y"), ["x.y.a.test", "x.y.b", "x.y"]);
    assert_eq!(names(b"x.y.z"), ["x.y.z", "x.y.z.a.test", "x.y.z.b"]);
    assert_eq!(names(b"x."), ["x"]);
}

/// A record: owner, kind, data.
fn record(owner: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u16).to_be_bytes();
    [owner, &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 60], &len, data].concat()
}

/// An answer to a question for the addresses of `a.test`, whose name is at byte 12.
fn reply(flags: u16, records: &[Vec<u8>]) -> Vec<u8> {
    let mut message = dns::question(7, b"a.test", dns::Kind::A).unwrap();
    message[2..4].copy_from_slice(&flags.to_be_bytes());
    message[6..8].copy_from_slice(&(records.len() as u16).to_be_bytes());
    message.extend(records.concat());
    message
}

#[test]
fn answers_count_for_the_name_that_was_asked_for() {
    use dns::Answer::*;
    const OK: u16 = 0x8180;
    let asked: &[u8] = &[0xc0, 12];
    let other = b"\x01b\x04test\0";
    let a = |n| [192, 0, 2, n];
    let found = |list: &[u8]| Some(Addresses(list.iter().map(|n| ip(&format!("192.0.2.{n}"))).collect()));
    let answer = |message: &[u8]| dns::answer(message, 7, b"A.Test", dns::Kind::A);
    assert_eq!(answer(&reply(OK, &[record(asked, 1, &a(1)), record(asked, 1, &a(2))])), found(&[1, 2]));
    // Whose owner is another is not ours.
    assert_eq!(answer(&reply(OK, &[record(other, 1, &a(1))])), found(&[]));
    // Unless it is an alias's end, in whatever order.
    let alias = record(asked, 5, other);
    assert_eq!(answer(&reply(OK, &[record(other, 1, &a(3)), alias.clone()])), found(&[3]));
    let back = record(other, 5, asked);
    assert_eq!(answer(&reply(OK, &[alias, back])), Some(Failure), "an alias of itself");
    assert_eq!(answer(&reply(OK | 3, &[])), Some(NoName));
    assert_eq!(answer(&reply(OK | 2, &[])), Some(Failure));
    assert_eq!(answer(&reply(OK | 0x200, &[record(asked, 1, &a(1))])), Some(Truncated));
    // A record of another length, or cut off, or a name that leads to itself.
    for bad in [record(asked, 1, &[1, 2, 3]), record(asked, 1, &a(1))[..14].to_vec()] {
        assert_eq!(answer(&reply(OK, &[bad])), Some(Failure));
    }
    let at = reply(OK, &[]).len() as u16;
    let circle = (0xc000 | at).to_be_bytes();
    assert_eq!(answer(&reply(OK, &[record(&circle, 1, &a(1))])), Some(Failure));
    // Not an answer to this: another number, no answer, another question.
    let good = reply(OK, &[record(asked, 1, &a(1))]);
    assert_eq!(dns::answer(&good, 8, b"a.test", dns::Kind::A), None);
    assert_eq!(dns::answer(&good, 7, b"b.test", dns::Kind::A), None);
    assert_eq!(dns::answer(&good, 7, b"a.test", dns::Kind::Aaaa), None);
    assert_eq!(answer(&reply(0x0100, &[])), None);
    assert_eq!(answer(&good[..11]), None);
    let most: Vec<_> = (0..100).map(|n| record(asked, 1, &a(n))).collect();
    assert!(matches!(answer(&reply(OK, &most)), Some(Addresses(list)) if list.len() == dns::MAX_ADDRESSES));
    // Names that cannot be asked for.
    for name in [&b""[..], b".", b"a..b", &[b'x'; 64], &b"x.".repeat(200)] {
        assert_eq!(dns::question(1, name, dns::Kind::A), None);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_answer_or_none(
        tail in vec(prop_oneof![Just(0), Just(0xc0), Just(12), Just(1), any::<u8>()], 0..300),
        records in any::<u16>(),
        garbage in vec(any::<u8>(), 0..100),
    ) {
        let mut message = reply(0x8180, &[]);
        message[6..8].copy_from_slice(&records.to_be_bytes());
        message.extend(tail);
        if let Some(dns::Answer::Addresses(list)) = dns::answer(&message, 7, b"a.test", dns::Kind::A) {
            prop_assert!(list.len() <= dns::MAX_ADDRESSES);
        }
        let _ = dns::answer(&garbage, 7, b"a.test", dns::Kind::Aaaa);
        let _ = (hosts::lookup(&garbage, b"a"), hosts::config(&garbage));
    }
}
