//! The protocol against itself, and each side against bytes that make no sense.

use std::ffi::{CStr, CString};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::protocol::*;
use super::testing::{HostAgent, start_process};
use super::{BINARY, Client};

#[path = "../../guest/users.rs"]
mod users;

fn frame(message: &Message<'_>, stream: u32) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(stream, &mut out);
    out
}

/// Feeds `bytes` in pieces of `piece` and gives each message to `each`.
fn decode_all(bytes: &[u8], piece: usize, mut each: impl FnMut(u32, Message<'_>)) -> Result<(), Error> {
    let mut decoder = Decoder::new();
    for piece in bytes.chunks(piece) {
        let mut rest = piece;
        while !rest.is_empty() {
            let spare = decoder.spare()?;
            let n = rest.len().min(spare.len());
            spare[..n].copy_from_slice(&rest[..n]);
            decoder.advance(n);
            rest = &rest[n..];
            while let Some(frame) = decoder.next()? {
                each(frame.stream, Message::decode(&frame)?);
            }
        }
    }
    Ok(())
}

fn string() -> impl Strategy<Value = CString> {
    vec(1u8..=255, 0..40).prop_map(|bytes| CString::new(bytes).unwrap())
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Null), Just(Mode::Piped)]
}

fn channel() -> impl Strategy<Value = Channel> {
    prop_oneof![Just(Channel::Stdin), Just(Channel::Stdout), Just(Channel::Stderr)]
}

proptest! {
    #[test]
    fn spawn_round_trips(
        program in string(),
        argv in vec(string(), 0..20),
        env in vec(string(), 0..20),
        cwd in proptest::option::of(string()),
        stdio in [mode(), mode(), mode()],
        ids in (any::<Option<u32>>(), any::<Option<u32>>(), proptest::option::of(vec(any::<u32>(), 0..9))),
        group in any::<i32>(),
        new_session in any::<bool>(),
        limits in vec(any::<(u8, u64, u64)>(), 0..4),
        timeout in any::<u64>(),
        user in proptest::option::of(string()),
        set_home in any::<bool>(),
        terminal in any::<Option<(u16, u16)>>(),
        stream in any::<u32>(),
        piece in 1usize..500,
    ) {
        let borrow = |list: &'_ [CString]| -> Vec<CString> { list.to_vec() };
        let (argv, env) = (borrow(&argv), borrow(&env));
        let spawn = Spawn {
            program: &program,
            argv: argv.iter().map(|s| &**s).collect::<Vec<&CStr>>(),
            env: env.iter().map(|s| &**s).collect(),
            cwd: cwd.as_deref(),
            stdio,
            terminal,
            user: user.as_deref(),
            set_home,
            uid: ids.0,
            gid: ids.1,
            groups: ids.2,
            process_group: group,
            new_session,
            limits: limits.into_iter().map(|(resource, soft, hard)| Limit { resource, soft, hard }).collect(),
            timeout_ns: timeout,
            init: timeout % 2 == 1,
        };
        let message = Message::Spawn(spawn);
        let mut seen = 0;
        decode_all(&frame(&message, stream), piece, |id, got| {
            assert_eq!((id, &got), (stream, &message));
            seen += 1;
        }).unwrap();
        prop_assert_eq!(seen, 1);
    }

    #[test]
    fn messages_round_trip(
        n in any::<u64>(),
        channel in channel(),
        bytes in vec(any::<u8>(), 0..2000),
        stream in any::<u32>(),
        piece in 1usize..3000,
    ) {
        let (u, i) = (n as u32, n as i32);
        let exited = Exited { status: i, user_us: n, system_us: !n, max_rss_kib: n / 3, wall_us: n / 5, timed_out: n % 2 == 1 };
        let messages = [
            Message::Hello(n as u16), Message::Spawned(u), Message::SpawnFailed(i, Obstacle::Group),
            Message::Data(channel, &bytes), Message::Eof(channel), Message::Credit(channel, u),
            Message::Close(channel), Message::Discard(channel), Message::Drained(channel),
            Message::Signal(i), Message::Resize(u as u16, n as u16 ^ 3), Message::Exited(exited), Message::Ping(n), Message::Pong(n),
            Message::Shutdown(Ending::Restart, u), Message::Shutdown(Ending::PowerOff, u),
            Message::Renew(Renewal { time_ns: n, seed: &bytes, hostname: Some(c"h"), files: vec![(c"/f", &bytes), (c"", b"")], thaw: n % 2 == 0 }),
            Message::Renew(Renewal::default()), Message::Reply(i),
            Message::Freeze, Message::Thaw, Message::Sync, Message::Files(u),
        ];
        let all: Vec<u8> = messages.iter().flat_map(|m| frame(m, stream)).collect();
        let mut expected = messages.iter();
        decode_all(&all, piece, |id, got| {
            assert_eq!((id, Some(&got)), (stream, expected.next()));
        }).unwrap();
        prop_assert!(expected.next().is_none());
        let mut data = data_header(stream, channel, bytes.len()).to_vec();
        data.extend(&bytes);
        prop_assert_eq!(data, frame(&Message::Data(channel, &bytes), stream));
    }

    #[test]
    fn any_bytes_decode_or_fail(bytes in vec(any::<u8>(), 0..4000), piece in 1usize..4000) {
        let _ = decode_all(&bytes, piece, |_, _| {});
    }

    #[test]
    fn any_payload_decodes_or_fails(kind in 0u8..30, payload in vec(prop_oneof![Just(0), 0u8..6, any::<u8>()], 0..300)) {
        let _ = decode_all(&raw_frame(kind, 7, &payload), 4096, |_, message| {
            if let Message::Spawn(spawn) = message {
                assert!(spawn.argv.capacity() + spawn.env.capacity() <= payload.len());
            }
        });
    }
}

fn raw_frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_le_bytes().to_vec();
    out.extend(stream.to_le_bytes());
    out.push(kind);
    out.extend(payload);
    out
}

#[test]
fn an_announced_length_is_not_an_allocation() {
    let mut decoder = Decoder::new();
    let mut header = vec![0, 0, 0x40, 0, 1, 0, 0, 0, 2];
    header[..4].copy_from_slice(&(MAX_SPAWN as u32).to_le_bytes());
    let spare = decoder.spare().unwrap();
    spare[..9].copy_from_slice(&header);
    decoder.advance(9);
    assert_eq!(decoder.next(), Ok(None));
    assert!(decoder.spare().unwrap().len() < 4 * MAX_DATA);
    let too_long = [&(MAX_SPAWN as u32 + 1).to_le_bytes()[..], &header[4..]].concat();
    assert_eq!(decode_all(&too_long, 9, |_, _| {}), Err(Error::TooLong));
    let too_long = [&(MAX_PAYLOAD as u32 + 1).to_le_bytes()[..], &[1, 0, 0, 0, 5]].concat();
    assert_eq!(decode_all(&too_long, 9, |_, _| {}), Err(Error::TooLong));
}

#[test]
fn the_agent_is_small_and_static() {
    assert!((10_000..256 * 1024).contains(&BINARY.len()), "{} bytes", BINARY.len());
    assert_eq!(&BINARY[..6], b"\x7fELF\x02\x01");
    // Program headers: none asks for an interpreter or is dynamic.
    let at = u64::from_le_bytes(BINARY[32..40].try_into().unwrap()) as usize;
    let count = u16::from_le_bytes(BINARY[56..58].try_into().unwrap()) as usize;
    for n in 0..count {
        let kind = u32::from_le_bytes(BINARY[at + 56 * n..][..4].try_into().unwrap());
        assert!(kind != 2 && kind != 3, "program header of type {kind}");
    }
}

/// Gives an agent `bytes` and says how it ended. A panic is 101.
fn agent_given(bytes: &[u8]) -> Option<i32> {
    let (mut process, mut socket) = start_process(Stdio::null());
    socket.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    // It may have closed the connection before it has all.
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(Shutdown::Write);
    let _ = socket.read_to_end(&mut Vec::new());
    process.wait().unwrap().code()
}

fn hello() -> Vec<u8> {
    frame(&Message::Hello(VERSION), 0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_agent_survives_any_bytes(bytes in vec(any::<u8>(), 0..3000), greeted in any::<bool>()) {
        let all = [if greeted { hello() } else { Vec::new() }, bytes].concat();
        prop_assert_eq!(agent_given(&all), Some(0));
    }

    #[test]
    fn the_agent_survives_any_frames(
        frames in vec((1u8..30, 0u32..3, vec(prop_oneof![Just(0), 0u8..6, any::<u8>()], 0..40)), 0..30)
    ) {
        let spawn = |id| {
            let argv = vec![c"cat"];
            let stdio = [Mode::Piped; 3];
            let spawn = Spawn { program: c"/bin/cat", argv, stdio, ..Spawn::default() };
            let spawn = Spawn { terminal: (id == 2).then_some((24, 80)), ..spawn };
            frame(&Message::Spawn(spawn), id)
        };
        // A shutdown's grace would only make this slow.
        let frames = frames.iter().filter(|f| f.0 != 15).flat_map(|(k, s, p)| raw_frame(*k, *s, p));
        let all: Vec<u8> = [hello(), spawn(1), spawn(2)].concat().into_iter().chain(frames).collect();
        prop_assert_eq!(agent_given(&all), Some(0));
    }

    #[test]
    fn the_client_survives_any_bytes(bytes in vec(any::<u8>(), 0..3000), greeted in any::<bool>()) {
        let all = [if greeted { hello() } else { Vec::new() }, bytes].concat();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&all).unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        let client = Client::connect(ours.try_clone().unwrap(), ours, Duration::from_secs(30));
        if let Ok(client) = client {
            client.join();
            prop_assert!(client.is_ended());
        }
    }
}

#[test]
fn the_agent_drops_a_host_that_overruns_a_window() {
    let argv = vec![c"sleep", c"1000"];
    let stdio = [Mode::Piped, Mode::Null, Mode::Null];
    let spawn = Spawn { program: c"/bin/sleep", argv, stdio, ..Spawn::default() };
    let mut all = [hello(), frame(&Message::Spawn(spawn), 1)].concat();
    for _ in 0..100 {
        all.extend(frame(&Message::Data(Channel::Stdin, &[0; MAX_DATA]), 1));
    }
    let (mut process, mut socket) = start_process(Stdio::null());
    let sent = socket.write_all(&all);
    let _ = socket.read_to_end(&mut Vec::new());
    assert_eq!(process.wait().unwrap().code(), Some(0));
    // It was the agent that hung up: a connection that stays open would have swallowed all.
    assert!(sent.is_err(), "6 MiB were taken for a command that reads nothing");
}

/// A client whose agent says what `talk` writes after the greeting.
fn client_of(talk: impl FnOnce(&mut UnixStream) + Send + 'static) -> std::sync::Arc<Client> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        theirs.write_all(&hello()).unwrap();
        talk(&mut theirs);
    });
    Client::connect(ours.try_clone().unwrap(), ours, Duration::from_secs(30)).unwrap()
}

fn plain_spawn<'a>() -> Spawn<'a> {
    Spawn { program: c"x", stdio: [Mode::Piped; 3], ..Spawn::default() }
}

/// Waits for the host's greeting and spawn, which is stream 1.
fn take_spawn(socket: &mut UnixStream) {
    let want = hello().len() + frame(&Message::Spawn(plain_spawn()), 1).len();
    socket.read_exact(&mut vec![0; want]).unwrap();
    socket.write_all(&frame(&Message::Spawned(9), 1)).unwrap();
}

#[test]
fn the_client_drops_an_agent_that_overruns_a_window() {
    let client = client_of(|socket| {
        take_spawn(socket);
        for _ in 0..=WINDOW as usize / MAX_DATA {
            let _ = socket.write_all(&frame(&Message::Data(Channel::Stdout, &[0; MAX_DATA]), 1));
        }
        let _ = socket.read(&mut [0]);
    });
    let stream = client.spawn(plain_spawn()).unwrap();
    let error = stream.wait_exit(None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected);
    assert!(error.to_string().contains("broke its protocol"), "{error}");
    assert!(stream.buffered() <= WINDOW as usize);
}

#[test]
fn the_client_refuses_senseless_messages() {
    let senseless: [fn() -> Message<'static>; 9] = [
        || Message::Spawned(1),
        || Message::SpawnFailed(1, Obstacle::Program),
        || Message::Reply(0),
        || Message::Data(Channel::Stdin, b"x"),
        || Message::Credit(Channel::Stdin, 1),
        || Message::Credit(Channel::Stdout, 1),
        || Message::Signal(9),
        || Message::Ping(1),
        || Message::Hello(VERSION),
    ];
    for message in senseless {
        let client = client_of(move |socket| {
            take_spawn(socket);
            let _ = socket.write_all(&frame(&message(), 1));
            let _ = socket.read_to_end(&mut Vec::new());
        });
        let stream = client.spawn(plain_spawn()).unwrap();
        let error = stream.wait_exit(None).unwrap_err();
        assert!(error.to_string().contains("broke its protocol"), "{error}");
    }
}

#[test]
fn another_version_and_silence_are_told() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&frame(&Message::Hello(VERSION + 1), 0)).unwrap();
    let error = Client::connect(ours.try_clone().unwrap(), ours, Duration::from_secs(30)).unwrap_err();
    let expected = format!("protocol version {}, expected {VERSION}", VERSION + 1);
    assert!(error.to_string().contains(&expected), "{error}");

    let (ours, theirs) = UnixStream::pair().unwrap();
    let error = Client::connect(ours.try_clone().unwrap(), ours, Duration::from_millis(50)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    drop(theirs);

    // The agent, too, wants to be greeted right.
    assert_eq!(agent_given(&frame(&Message::Hello(VERSION + 1), 0)), Some(0));
    assert_eq!(agent_given(&frame(&Message::Ping(1), 0)), Some(0));
}

#[test]
fn requests_of_a_machine_are_refused_outside_of_one() {
    let agent = HostAgent::start();
    let renewal = Renewal { hostname: Some(c"other"), seed: &[1; 32], ..Renewal::default() };
    for result in [agent.client.renew(renewal), agent.client.freeze(), agent.client.thaw()] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::PermissionDenied);
    }
    agent.client.ping(Duration::from_secs(30)).unwrap();
}

/// What a snapshot does to connections: the host goes away and comes again.
#[test]
fn the_agent_connects_again_and_commands_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host");
    let mut process =
        std::process::Command::new(env!("CC_AGENT")).arg("--connect").arg(&path).spawn().unwrap();
    // Nobody there at first: it tries again.
    std::thread::sleep(Duration::from_millis(50));
    let listener = UnixListener::bind(&path).unwrap();
    let accept = || {
        let (socket, _) = listener.accept().unwrap();
        let (reader, writer) = (socket.try_clone().unwrap(), socket.try_clone().unwrap());
        (Client::connect(reader, writer, Duration::from_secs(30)).unwrap(), socket)
    };
    let script = CString::new(format!(
        "yes & read line; kill $!; sleep 0.3; echo $line $? >{}/out; mv {}/out {}/done",
        dir.path().display(),
        dir.path().display(),
        dir.path().display()
    ))
    .unwrap();
    let spawn =
        |stdio| Spawn { program: c"/bin/sh", argv: vec![c"sh", c"-c", &script], stdio, ..Spawn::default() };
    let (client, socket) = accept();
    let lost = client.spawn(spawn([Mode::Piped; 3])).unwrap();
    // The connection breaks in the middle of a flood, and of a frame.
    lost.read(super::Output::Stdout, &mut [0; 100]).unwrap();
    (&socket).write_all(&[1, 2, 3]).unwrap();
    socket.shutdown(Shutdown::Both).unwrap();
    assert_eq!(lost.wait_exit(None).unwrap_err().kind(), ErrorKind::NotConnected);
    client.join();

    // Its input ended, its output is not wanted, but the command runs to its end.
    let (client, socket) = accept();
    let done = dir.path().join("done");
    let start = std::time::Instant::now();
    while !done.exists() {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(std::fs::read(done).unwrap(), b"0\n");
    // Nonsense makes it connect again too; stream numbers begin anew.
    (&socket).write_all(&[0xff; 64]).unwrap();
    client.join();
    let (client, _socket) = accept();
    let stream = client.spawn(spawn([Mode::Null; 3])).unwrap();
    assert_eq!(stream.wait_exit(None).unwrap().unwrap().status, 0);
    client.shutdown(Ending::PowerOff, Duration::from_secs(1)).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(0));
}

/// That the host is gone may also show when the agent answers it. It does not wait for anything else then.
#[test]
fn an_answer_to_nobody_makes_the_agent_connect_again() {
    use rustix::process::{Pid, Signal, kill_process};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host");
    let listener = UnixListener::bind(&path).unwrap();
    let mut process =
        std::process::Command::new(env!("CC_AGENT")).arg("--connect").arg(&path).spawn().unwrap();
    let pid = Pid::from_child(&process);
    let (mut socket, _) = listener.accept().unwrap();
    let greeting = frame(&Message::Hello(VERSION), 0);
    socket.read_exact(&mut vec![0; greeting.len()]).unwrap();
    // What it is sent and that nobody waits for the answer become true at one moment.
    kill_process(pid, Signal::STOP).unwrap();
    let stopped = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
        stat.rsplit_once(')').unwrap().1.trim_start().starts_with('T')
    };
    while !stopped() {
        std::thread::yield_now();
    }
    socket.write_all(&[greeting, frame(&Message::Ping(7), 0)].concat()).unwrap();
    drop(socket);
    kill_process(pid, Signal::CONT).unwrap();

    listener.set_nonblocking(true).unwrap();
    let start = std::time::Instant::now();
    let again = loop {
        match listener.accept() {
            Err(e) if e.kind() == ErrorKind::WouldBlock && start.elapsed() < Duration::from_secs(20) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => break other,
        }
    };
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(again.is_ok(), "{again:?}");
}

#[test]
fn users_are_looked_up_as_container_runtimes_do() {
    use users::{Error, User, resolve};
    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\n# comment\n\nbob:x:1000:100:Bob:/home/bob:/bin/sh\r\n\
        nohome:x:7:8\nempty:x:9:9::\n17:x:18:18::/name:/bin/sh\ntwice:x:30:1::/a:\ntwice:x:31:2::/b:\n";
    const GROUP: &[u8] = b"root:x:0:\nusers:x:100:\nwheel:x:10:root,bob\naudio:x:29:bob\nagain:x:29:bob\n\
        bobs:x:30:bobby,xbob\n";
    let user = |uid, gid, groups: &[u32], home: &'static str| {
        Ok(User { uid, gid, groups: groups.to_vec(), home: home.as_bytes() })
    };
    for (wanted, expected) in [
        ("root", user(Some(0), 0, &[0, 10], "/root")),
        ("bob", user(Some(1000), 100, &[10, 29, 100], "/home/bob")),
        ("bob:", user(Some(1000), 100, &[10, 29, 100], "/home/bob")),
        ("1000", user(Some(1000), 100, &[10, 29, 100], "/home/bob")),
        ("bob:wheel", user(Some(1000), 10, &[10], "/home/bob")),
        ("bob:5", user(Some(1000), 5, &[5], "/home/bob")),
        (":wheel", user(None, 10, &[10], "/")),
        ("nohome", user(Some(7), 8, &[8], "/")),
        ("empty", user(Some(9), 9, &[9], "/")),
        ("twice", user(Some(30), 1, &[1], "/a")),
        ("4242", user(Some(4242), 0, &[0], "/")),
        ("0004242", user(Some(4242), 0, &[0], "/")),
        ("4242:4243", user(Some(4242), 4243, &[4243], "/")),
        ("2147483647", user(Some(2_147_483_647), 0, &[0], "/")),
        // A word of digits is never a name.
        ("17", user(Some(17), 0, &[0], "/")),
        ("alice", Err(Error::NoUser)),
        ("", Err(Error::NoUser)),
        (":", Err(Error::NoUser)),
        ("-1", Err(Error::NoUser)),
        ("+0", Err(Error::NoUser)),
        (" 0", Err(Error::NoUser)),
        ("0x0", Err(Error::NoUser)),
        ("bob:nobody", Err(Error::NoGroup)),
        ("bob:0:0", Err(Error::NoGroup)),
        ("bob:-1", Err(Error::NoGroup)),
    ] {
        assert_eq!(resolve(wanted.as_bytes(), PASSWD, GROUP), expected, "{wanted:?}");
    }
    // CVE-2024-40635: what does not fit is refused, and never another user.
    for digits in ["2147483648", "4294967295", "4294967296", "18446744073709551616", &"9".repeat(100_000)] {
        assert_eq!(resolve(digits.as_bytes(), PASSWD, GROUP), Err(Error::UserOutOfRange));
        let group = format!("1000:{digits}");
        assert_eq!(resolve(group.as_bytes(), PASSWD, GROUP), Err(Error::GroupOutOfRange));
        let passwd = format!("eve:x:{digits}:1::/:\nmallory:x:1:{digits}::/:\n");
        for name in ["eve", "mallory"] {
            assert_eq!(resolve(name.as_bytes(), passwd.as_bytes(), b""), Err(Error::NoUser));
        }
        let text = format!("big:x:{digits}:bob\n");
        assert_eq!(resolve(b"bob:big", PASSWD, text.as_bytes()), Err(Error::NoGroup));
        assert_eq!(resolve(b"bob", PASSWD, text.as_bytes()), user(Some(1000), 100, &[100], "/home/bob"));
    }
}

proptest! {
    #[test]
    fn any_user_database_gives_a_user_or_an_error(
        wanted in "[a-c0-9:+-]{0,12}",
        passwd in "([a-c0-9:,+# -]{0,20}\n){0,6}",
        group in "([a-c0-9:,+# -]{0,20}\n){0,6}",
    ) {
        if let Ok(user) = users::resolve(wanted.as_bytes(), passwd.as_bytes(), group.as_bytes()) {
            let max = i32::MAX as u32;
            prop_assert!(user.uid.is_none_or(|uid| uid <= max) && user.groups.iter().all(|gid| *gid <= max));
            prop_assert!(user.groups.contains(&user.gid));
            // Root by number only when asked for, by name only when the file says so.
            let root = user.uid == Some(0);
            let zeros = wanted.split(':').next().is_some_and(|w| !w.is_empty() && w.bytes().all(|b| b == b'0'));
            prop_assert!(!root || zeros || passwd.contains(":0"));
        }
    }

    #[test]
    fn any_bytes_are_a_user_database(
        wanted in vec(any::<u8>(), 0..20),
        passwd in vec(any::<u8>(), 0..300),
        group in vec(any::<u8>(), 0..300),
    ) {
        let _ = users::resolve(&wanted, &passwd, &group);
    }
}
