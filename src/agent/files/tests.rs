//! Workers that lie, and a host that does.

use std::ffi::CString;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::agent::protocol::files::*;
use crate::agent::testing::{HostAgent, files_of};

/// Takes one request and gives its number.
fn take_request(socket: &mut UnixStream) -> Option<u32> {
    let mut bytes = Vec::new();
    loop {
        if let Some((id, ..)) = Request::decode(&bytes).expect("a request") {
            return Some(id);
        }
        let mut more = [0; 4096];
        match socket.read(&mut more) {
            Ok(n @ 1..) => bytes.extend_from_slice(&more[..n]),
            _ => return None,
        }
    }
}

fn answer(id: u32, errno: i32, payload: &[u8]) -> Vec<u8> {
    [&answer_header(payload.len(), id, errno)[..], payload].concat()
}

fn ask(files: &Files) -> Answer {
    files.lease()?.call(&Request::Stat(Target::Path(c"/")))
}

#[test]
fn a_worker_that_lies_is_not_believed_nor_asked_again() {
    let header = |len: u32, id, errno| {
        let mut header = answer_header(0, id, errno);
        header[..4].copy_from_slice(&len.to_le_bytes());
        header.to_vec()
    };
    type Lie = Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>;
    let lies: Vec<Lie> = vec![
        Box::new(|id| answer(id + 1, 0, b"")),
        Box::new(|id| answer(id.wrapping_sub(1), 2, b"")),
        Box::new(move |id| header(u32::MAX, id, 0)),
        Box::new(move |id| header(MAX_ANSWER as u32 + 1, id, 0)),
        Box::new(|id| answer(id, 4096, b"")),
        Box::new(|id| answer(id, -1, b"")),
        Box::new(|id| answer(id, 2, b"with a payload")),
        Box::new(|_| vec![0xff; 5000]),
        Box::new(|id| answer(id, 0, b"cut off")[..15].to_vec()),
        Box::new(|_| b"short".to_vec()),
        Box::new(|_| Vec::new()),
    ];
    for (n, lie) in lies.into_iter().enumerate() {
        let files = files_of(move |connection, mut socket| {
            while let Some(id) = take_request(&mut socket) {
                if connection == 0 {
                    let _ = socket.write_all(&lie(id));
                    return;
                }
                let _ = socket.write_all(&answer(id, 0, b"true"));
            }
        });
        let error = ask(&files).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe, "lie {n}: {error}");
        for _ in 0..3 {
            assert_eq!(ask(&files).unwrap(), b"true");
        }
        assert_eq!(files.workers(), 1);
    }
}

#[test]
fn one_that_says_nothing_holds_up_nobody() {
    let files = files_of(|connection, mut socket| {
        while let Some(id) = take_request(&mut socket) {
            if connection != 0 {
                let _ = socket.write_all(&answer(id, 2, b""));
            }
        }
    });
    let mut silent = files.lease().unwrap();
    silent.send(&Request::Close(7)).unwrap();
    for _ in 0..10 {
        assert_eq!(ask(&files).unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert_eq!((silent.owed(), files.workers()), (1, 2));
    // Who gives up does not leave its answer to the next.
    drop(silent);
    assert_eq!(files.workers(), 1);
    assert_eq!(ask(&files).unwrap_err().kind(), ErrorKind::NotFound);
}

fn path() -> impl Strategy<Value = CString> {
    vec(1u8..=255, 0..60).prop_map(|bytes| CString::new(bytes).unwrap())
}

proptest! {
    #[test]
    fn requests_round_trip(
        (a, b) in (path(), path()), fd in any::<i32>(), (n, m) in (any::<u64>(), any::<u32>()),
        at in proptest::option::of(0..u64::MAX), data in vec(any::<u8>(), 0..3000), flag in any::<bool>(), id in any::<u32>(),
    ) {
        let (a, b) = (&*a, &*b);
        let time = Time { secs: n as i64, nanos: !n as i64 };
        let target = [Target::Path(a), Target::Link(b), Target::File(fd)][m as usize % 3];
        let removal = [Removal::File, Removal::Directory, Removal::Tree][m as usize % 3];
        let len = m % (MAX_CHUNK as u32 + 1);
        let requests = [
            Request::Open(a, fd, m), Request::Close(fd), Request::Read(fd, at, len), Request::Write(fd, at, &data),
            Request::WriteAll(fd, at, &data), Request::Seek(fd, n as i64, m), Request::Stat(target),
            Request::Truncate(fd, n), Request::Sync(fd, flag), Request::Lock(fd, m as i32), Request::Duplicate(fd),
            Request::Chmod(target, m), Request::Chown(target, m, !m), Request::Times(target, time, Time::OMIT),
            Request::ReadFile(a, fd, len), Request::WriteFile(a, fd, m, time, &data), Request::MakeDir(a, m, flag),
            Request::Remove(a, removal), Request::OpenDir(a), Request::Entries(fd), Request::Rename(a, b),
            Request::Link(a, b), Request::Symlink(a, b), Request::ReadLink(a), Request::Resolve(a), Request::Copy(a, b),
            Request::Take(a, fd, n, !n),
            Request::Give(a, fd, n, !n),
        ];
        for request in requests {
            let mut bytes = Vec::new();
            request.encode_head(id, &mut bytes);
            bytes.extend_from_slice(request.data());
            let whole = bytes.len();
            for cut in [0, 3, 8, whole - 1] {
                prop_assert_eq!(Request::decode(&bytes[..cut.min(whole - 1)]), Ok(None));
            }
            bytes.extend_from_slice(b"what comes next");
            prop_assert_eq!(Request::decode(&bytes), Ok(Some((id, request, whole))));
        }
    }

    #[test]
    fn stats_round_trip(n in any::<[u64; 7]>(), m in any::<[u32; 3]>(), t in any::<[(i64, u32); 4]>(), born in any::<bool>()) {
        let [atime, mtime, ctime, btime] = t.map(|(secs, nanos)| (secs, nanos % 1_000_000_000));
        let stat = Stat {
            dev: n[0], ino: n[1], mode: m[0], nlink: n[2], uid: m[1], gid: m[2], rdev: n[3], size: n[4], blksize: n[5],
            blocks: n[6], atime, mtime, ctime, btime: born.then_some(btime),
        };
        let mut bytes = Vec::new();
        stat.encode(&mut bytes);
        prop_assert_eq!(bytes.len(), Stat::SIZE);
        bytes.extend_from_slice(b"rest");
        prop_assert_eq!(Stat::decode(&bytes), Ok((stat, &b"rest"[..])));
        prop_assert!(Stat::decode(&bytes[..Stat::SIZE - 1]).is_err());
    }

    #[test]
    fn any_request_decodes_or_fails(kind in 0u8..32, payload in vec(prop_oneof![Just(0), 0u8..6, any::<u8>()], 0..300)) {
        let mut bytes = (payload.len() as u32).to_le_bytes().to_vec();
        bytes.extend([1, 0, 0, 0, kind]);
        bytes.extend(payload);
        let _ = Request::decode(&bytes);
        let _ = Stat::decode(&bytes);
    }

    #[test]
    fn the_host_survives_any_answer(bytes in vec(prop_oneof![Just(0), 0u8..6, any::<u8>()], 0..600)) {
        let files = files_of(move |_, mut socket| {
            take_request(&mut socket);
            let _ = socket.write_all(&bytes);
            let _ = socket.shutdown(Shutdown::Write);
            let _ = socket.read_to_end(&mut Vec::new());
        });
        let _ = ask(&files);
        let mut buffer = [0; 100];
        if let Ok(mut lease) = files.lease() && lease.send(&Request::Read(5, None, 100)).is_ok() {
            let _ = lease.answer_into(&mut buffer);
        }
    }
}

fn real() -> (HostAgent, Arc<Files>) {
    let agent = HostAgent::start();
    let files = Arc::new(Files::new(agent.client.clone(), agent.ports()));
    (agent, files)
}

#[test]
fn a_worker_drops_a_host_that_makes_no_sense() {
    let (mut agent, files) = real();
    ask(&files).unwrap();
    let port = lock(&files.pool).live.as_ref().unwrap().port;
    let say = |bytes: &[u8]| {
        let socket = agent.ports().connect(port).unwrap();
        let _ = (&socket).write_all(bytes);
        let _ = socket.shutdown(Shutdown::Write);
        let mut said = Vec::new();
        let _ = (&socket).read_to_end(&mut said);
        said
    };
    let frame =
        |len: u32, op: u8, payload: &[u8]| [&len.to_le_bytes()[..], &[9, 0, 0, 0, op], payload].concat();
    assert!(say(b"GET / HTTP/1.0\r\n\r\n").is_empty());
    assert!(say(&frame(MAX_REQUEST as u32 + 1, 5, b"")).is_empty());
    assert!(say(&frame(u32::MAX, 5, b"")).is_empty());
    for op in [0, 29, 200, 255] {
        assert!(say(&frame(0, op, b"")).is_empty(), "operation {op}");
    }
    // A path without its NUL, one with two, a number too few, a byte too many, a read of too much.
    assert!(say(&frame(5, 19, &[1, 0, 0, 0, b'/'])).is_empty());
    assert!(say(&frame(7, 19, &[3, 0, 0, 0, b'/', 0, 0])).is_empty());
    assert!(say(&frame(3, 2, &[1, 0, 0])).is_empty());
    assert!(say(&frame(5, 2, &[9, 0, 0, 0, 0])).is_empty());
    assert!(say(&frame(16, 3, &[9, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0, 4, 0])).is_empty());
    // And one that does is answered on the same port.
    assert_eq!(say(&frame(4, 2, &[0, 0, 0, 0])), answer(9, 9, b""));
    ask(&files).unwrap();
    agent.client.ping(Duration::from_secs(30)).unwrap();
    drop(files);
    assert_eq!(agent.stop(), Some(0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Operations on descriptors only: paths of no sense would be looked for on this host.
    #[test]
    fn a_worker_survives_any_frames(
        frames in vec((prop_oneof![2u8..=11, 20u8..=20, 27u8..40], vec(prop_oneof![Just(0), 0u8..6, any::<u8>()], 0..40)), 0..30),
        junk in vec(any::<u8>(), 0..100),
    ) {
        // Without those that have targets, which may be paths.
        let frames = frames.iter().filter(|f| f.0 != 7).flat_map(|(op, payload)| {
            [&(payload.len() as u32).to_le_bytes()[..], &[1, 2, 3, 4, *op], payload].concat()
        });
        let bytes: Vec<u8> = frames.chain([0xff; 4]).chain(junk).collect();
        let (mut agent, files) = real();
        ask(&files).unwrap();
        let port = lock(&files.pool).live.as_ref().unwrap().port;
        let socket = agent.ports().connect(port).unwrap();
        let _ = (&socket).write_all(&bytes);
        let _ = socket.shutdown(Shutdown::Write);
        let _ = (&socket).read_to_end(&mut Vec::new());
        prop_assert!(ask(&files).is_ok());
        prop_assert_eq!(agent.stop(), Some(0));
    }
}

#[test]
fn workers_own_descriptors_are_out_of_reach() {
    let (_agent, files) = real();
    let mut lease = files.lease().unwrap();
    const EBADF: Option<i32> = Some(9);
    for fd in (-3..40).chain(30_000..34_000).chain([1 << 20, i32::MAX, i32::MIN]) {
        let closed = lease.call(&Request::Close(fd)).unwrap_err();
        assert_eq!(closed.raw_os_error(), EBADF, "descriptor {fd}");
        assert_eq!(lease.call(&Request::Duplicate(fd)).unwrap_err().raw_os_error(), EBADF);
        assert_eq!(lease.call(&Request::Stat(Target::File(fd))).unwrap_err().raw_os_error(), EBADF);
    }
    drop(lease);
    ask(&files).unwrap();
}

#[test]
fn writes_behind_one_that_failed_are_cancelled() {
    let (_agent, files) = real();
    let mut lease = files.lease().unwrap();
    let open = |lease: &mut Lease<'_>, path, flags| {
        let answer = lease.call(&Request::Open(path, flags, 0o600)).unwrap();
        Handle::adopt(&files, lease, i32::from_le_bytes(*answer.first_chunk().unwrap()))
    };
    let dir = tempfile::tempdir().unwrap();
    let path = CString::new(dir.path().join("f").into_os_string().into_encoded_bytes()).unwrap();
    let (full, file) = (open(&mut lease, c"/dev/full", 1), open(&mut lease, &path, 0o101));
    for fd in [full.fd(), file.fd(), file.fd()] {
        lease.send(&Request::WriteAll(fd, None, b"x")).unwrap();
    }
    lease.send(&Request::Sync(file.fd(), true)).unwrap();
    lease.send(&Request::WriteAll(file.fd(), None, b"y")).unwrap();
    let errnos: Vec<_> = (0..5).map(|_| lease.answer().err().and_then(|e| e.raw_os_error())).collect();
    assert_eq!(errnos, [Some(28), Some(125), Some(125), None, None]);
    assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), b"y");
}
