//! The conformance suite of this module against the agent as a process of the host, and what happens around the end of
//! workers and machines.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::agent::files::Files;
use crate::agent::testing::HostAgent;

#[path = "../../tests/conformance/fs/mod.rs"]
mod conformance;

use conformance::{Kind, Place};

fn files(agent: &HostAgent) -> FileSystem {
    FileSystem::of_guest(Arc::new(Files::new(agent.client.clone(), agent.ports())), None)
}

fn sh(dir: &Path, script: &str) -> String {
    let out = std::process::Command::new("sh").args(["-c", script]).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{script}: {out:?}");
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// A test of the suite, which also proves that the agent is alive afterwards and ends well.
macro_rules! suite {
    ($($topic:ident: $($name:ident)*;)*) => {
        $(mod $topic {
            $(#[test]
            fn $name() {
                super::with_agent(|fs| {
                    let place = super::Place::new(fs, &std::env::temp_dir(), &super::sh, super::Kind::Process);
                    super::conformance::$topic::$name(&place);
                });
            })*
        })*
    };
}
conformance::all!(suite);

fn with_agent(test: impl FnOnce(&FileSystem)) {
    let mut agent = HostAgent::start();
    test(&files(&agent));
    agent.client.ping(Duration::from_secs(30)).unwrap();
    assert_eq!(agent.stop(), Some(0));
}

/// Children of a process.
fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Kills all workers of a holder, and waits until it has closed their connections.
fn kill_workers(holder: u32) {
    let (open, workers) = (descriptors(holder), children(holder));
    workers.iter().for_each(|pid| kill(*pid));
    wait_until("workers end", || descriptors(holder) == open - workers.len());
}

/// Until the kernel has done what nobody can be asked about.
fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn fifo(dir: &tempfile::TempDir) -> std::path::PathBuf {
    sh(dir.path(), "mkfifo fifo");
    dir.path().join("fifo")
}

#[test]
fn the_end_of_the_machine_ends_all_that_waits() {
    let mut agent = HostAgent::start();
    let (fs, dir) = (files(&agent), tempfile::tempdir().unwrap());
    let fifo = fifo(&dir);
    let other = dir.path().join("other");
    sh(dir.path(), "mkfifo other");
    let one = fs.create(dir.path().join("f")).unwrap();
    let two = Fs::open(&fs, dir.path().join("f")).unwrap();
    one.lock().unwrap();
    let errors = std::thread::scope(|scope| {
        let threads = [
            scope.spawn(|| fs.read(&fifo).unwrap_err()),
            scope.spawn(|| fs.write(&other, b"x").unwrap_err()),
            scope.spawn(|| two.lock().unwrap_err()),
        ];
        std::thread::sleep(Duration::from_millis(300));
        assert!(threads.iter().all(|thread| !thread.is_finished()));
        agent.client.set_cause(ErrorKind::NotConnected, "machine is not running: it was unplugged");
        agent.socket.shutdown(Shutdown::Both).unwrap();
        threads.map(|thread| thread.join().unwrap())
    });
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
        assert!(error.to_string().contains("it was unplugged"), "{error}");
    }
    for error in [
        fs.read("/etc/passwd").unwrap_err(),
        (&one).write(b"x").unwrap_err(),
        one.metadata().unwrap_err(),
        Fs::read_dir(&fs, "/").unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
    }
    drop((one, two));
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn a_killed_worker_fails_only_what_it_did() {
    let agent = HostAgent::start();
    let (fs, dir) = (files(&agent), tempfile::tempdir().unwrap());
    let fifo = fifo(&dir);
    fs.write(dir.path().join("f"), b"content").unwrap();
    let mut file = Fs::open(&fs, dir.path().join("f")).unwrap();
    let holder = children(agent.pid())[0];
    let first = children(holder);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| fs.read(&fifo).unwrap_err());
        // One of two waits at the pipe while the other does this.
        wait_until("two workers", || {
            Fs::metadata(&fs, dir.path()).unwrap();
            children(holder).len() > first.len()
        });
        kill_workers(holder);
        let error = reader.join().unwrap();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
    });
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "content", "what one opened others read");
    // One that is idle is not asked.
    kill_workers(holder);
    file.rewind_and_read();
    fs.write(dir.path().join("f"), b"more").unwrap();
    assert_eq!(children(agent.pid()), [holder], "all that time it was one holder");
}

trait RewindAndRead {
    fn rewind_and_read(&mut self);
}

impl RewindAndRead for File {
    fn rewind_and_read(&mut self) {
        std::io::Seek::rewind(self).unwrap();
        self.read_exact(&mut [0; 3]).unwrap();
    }
}

#[test]
fn a_killed_holder_loses_open_files_and_nothing_else() {
    let mut agent = HostAgent::start();
    let (fs, dir) = (files(&agent), tempfile::tempdir().unwrap());
    let file = fs.create(dir.path().join("f")).unwrap();
    let holder = children(agent.pid())[0];
    let workers = children(holder);
    kill(holder);
    wait_until("workers end with it", || {
        workers.iter().all(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
        })
    });
    let error = (&file).write(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
    fs.write(dir.path().join("g"), b"again").unwrap();
    let again = fs.create(dir.path().join("h")).unwrap();
    assert!((&file).write(b"x").is_err(), "its number may be another file's by now");
    drop(file);
    again.set_len(5).unwrap();
    agent.client.ping(Duration::from_secs(30)).unwrap();
    assert_eq!(agent.stop(), Some(0));
}

/// R3.7.
#[test]
fn r3_7_nothing_is_left_open() {
    let agent = HostAgent::start();
    let (fs, dir) = (files(&agent), tempfile::tempdir().unwrap());
    fs.write(dir.path().join("f"), b"").unwrap();
    let holder = children(agent.pid())[0];
    let open = || descriptors(holder);
    let before = open();
    for n in 0..50_000 {
        let file = fs.create(dir.path().join("g")).unwrap();
        if n % 100 == 0 {
            let clone = file.try_clone().unwrap();
            assert_eq!(open(), before + 2);
            drop(clone);
            let _ = (Fs::open(&fs, "/absent"), fs.read(dir.path()), fs.read_dir(dir.path()).unwrap().next());
            assert!(fs.copy(&dir.path().join("f"), dir.path()).is_err());
        }
    }
    assert_eq!(open(), before);
    let many: Vec<File> = (0..2000).map(|_| Fs::open(&fs, dir.path().join("f")).unwrap()).collect();
    assert_eq!(open(), before + 2000);
    drop(many);
    assert_eq!(open(), before);
    drop(fs);
    wait_until("the holder ends with the last who uses it", || children(agent.pid()).is_empty());
}

#[test]
fn workers_are_started_as_needed_and_not_kept() {
    let agent = HostAgent::start();
    let guest = Arc::new(Files::new(agent.client.clone(), agent.ports()));
    let fs = FileSystem::of_guest(guest.clone(), None);
    let dir = tempfile::tempdir().unwrap();
    let fifo = fifo(&dir);
    assert_eq!(guest.workers(), 0);
    std::thread::scope(|scope| {
        // More wait than there may be workers, and those that are left over wait for one.
        let readers: Vec<_> = (0..80).map(|_| scope.spawn(|| Fs::open(&fs, &fifo).unwrap())).collect();
        wait_until("all workers wait", || guest.workers() >= 64);
        let writer = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
        let open: Vec<File> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        assert_eq!(guest.workers().max(64), 64);
        drop((open, writer));
    });
    fs.metadata("/").unwrap();
    assert!((1..=16).contains(&guest.workers()), "{}", guest.workers());
}

/// Where an image's commands begin, files do.
#[test]
fn relative_paths_begin_where_commands_do() {
    let agent = HostAgent::start();
    let dir = tempfile::tempdir().unwrap();
    let files = Arc::new(Files::new(agent.client.clone(), agent.ports()));
    let fs = FileSystem::of_guest(files, Some(dir.path().as_os_str().to_owned()));
    fs.write("f", b"here").unwrap();
    assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), b"here");
    assert_eq!(Fs::canonicalize(&fs, ".").unwrap(), dir.path().canonicalize().unwrap());
    assert_eq!(Fs::read_dir(&fs, "").unwrap_err().kind(), ErrorKind::NotFound);
    let error = fs.read("absent").unwrap_err();
    assert_eq!(error.to_string(), "read \"absent\": No such file or directory (os error 2)");
}

#[test]
fn both_are_alike_behind_a_reference() {
    let agent = HostAgent::start();
    let fs = files(&agent);
    let (host, guest): (&dyn Fs, Arc<dyn Fs + Send + Sync>) = (&crate::host::Host, Arc::new(fs));
    for place in [host.file_system(), guest.file_system(), Fs::file_system(&&guest)] {
        assert!(place.read_to_string("/etc/passwd").unwrap().contains("root"));
    }
    fn shared<T: Send + Sync>() {}
    shared::<File>();
    shared::<FileSystem>();
    shared::<Metadata>();
    fn sent<T: Send>() {}
    sent::<ReadDir>();
    sent::<DirEntry>();
}

/// Every number that Linux has, as the answer to every operation.
#[test]
fn every_errno_of_every_operation_has_the_kind_of_std() {
    use std::io;
    use std::sync::atomic::{AtomicI32, Ordering};

    use crate::agent::protocol::files::{Request, answer_header};

    let errno = Arc::new(AtomicI32::new(0));
    let say = errno.clone();
    let files = crate::agent::testing::files_of(move |_, mut socket| {
        let mut bytes = Vec::new();
        let mut more = [0; 4096];
        while let Ok(n @ 1..) = socket.read(&mut more) {
            bytes.extend_from_slice(&more[..n]);
            while let Some((id, request, len)) = Request::decode(&bytes).unwrap() {
                let (errno, open) = (say.load(Ordering::SeqCst), matches!(request, Request::Open(..)));
                let payload: &[u8] = if errno == 0 && open { &[7, 0, 0, 0, 0, 0x80, 0, 0] } else { b"" };
                let answer = [&answer_header(payload.len(), id, errno)[..], payload].concat();
                let _ = socket.write_all(&answer);
                bytes.drain(..len);
            }
        }
    });
    let fs = FileSystem::of_guest(files, None);
    let file = Fs::open(&fs, "/open").unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let (local, gone) = (scratch.path().join("local"), scratch.path().join("gone"));
    std::fs::write(&local, b"x").unwrap();
    type Operation<'a> = (&'a str, Box<dyn Fn() -> io::Result<()> + 'a>);
    macro_rules! operations {
        ($($path:literal: $call:expr;)*) => { vec![$(($path, Box::new(|| $call.map(drop)))),*] };
    }
    let mode = || Permissions::from_mode(0o600);
    let operations: Vec<Operation<'_>> = operations! {
        "/a": Fs::open(&fs, "/a");
        "/a": Fs::create(&fs, "/a");
        "/a": Fs::create_new(&fs, "/a");
        "/a": fs.read("/a");
        "/a": Fs::read_to_string(&fs, "/a");
        "/a": fs.write("/a", b"x");
        "/a": fs.write("/a", vec![0; 400_000]);
        "/a": fs.metadata("/a");
        "/a": Fs::symlink_metadata(&fs, "/a");
        "/a": Fs::create_dir(&fs, "/a");
        "/a": Fs::create_dir_all(&fs, "/a");
        "/a": Fs::read_dir(&fs, "/a");
        "/a": Fs::remove_file(&fs, "/a");
        "/a": Fs::remove_dir(&fs, "/a");
        "/a": Fs::remove_dir_all(&fs, "/a");
        "/a": Fs::rename(&fs, "/a", "/b");
        "/a": Fs::copy(&fs, "/a", "/b");
        "/a": Fs::hard_link(&fs, "/a", "/b");
        "/b": Fs::symlink(&fs, "/a", "/b");
        "/a": Fs::read_link(&fs, "/a");
        "/a": Fs::canonicalize(&fs, "/a");
        "/a": Fs::set_permissions(&fs, "/a", mode());
        "/a": Fs::set_times(&fs, "/a", FileTimes::new().set_modified(std::time::UNIX_EPOCH));
        "/a": Fs::chown(&fs, "/a", Some(1), None);
        "/a": Fs::lchown(&fs, "/a", Some(1), None);
        "/a": Fs::copy_in(&fs, &local, "/a");
        "/a": Fs::copy_out(&fs, "/a", &gone);
        "/open": (&file).read(&mut [0; 4]);
        "/open": (&file).write(b"x");
        "/open": (&file).write_all(&[0; 400_000]);
        "/open": std::io::Seek::seek(&mut &file, std::io::SeekFrom::End(0));
        "/open": (&file).read_to_end(&mut Vec::new());
        "/open": file.read_at(&mut [0; 4], 1);
        "/open": file.write_at(b"x", 1);
        "/open": file.metadata();
        "/open": file.sync_all();
        "/open": file.sync_data();
        "/open": file.set_len(1);
        "/open": file.set_permissions(mode());
        "/open": file.set_modified(std::time::UNIX_EPOCH);
        "/open": file.chown(Some(1), None);
        "/open": file.try_clone();
        "/open": file.lock();
        "/open": file.lock_shared();
        "/open": file.unlock();
    };
    const EINTR: i32 = 4;
    for number in 1..=133 {
        errno.store(number, Ordering::SeqCst);
        for (n, (path, operation)) in operations.iter().enumerate() {
            // `write_all` and `read_to_end` would try again for ever, as std's do.
            if number == EINTR && operations[n].0 == "/open" {
                continue;
            }
            let what = format!("operation {n} of {path}, errno {number}");
            let error = operation().expect_err(&what);
            assert_eq!(error.kind(), io::Error::from_raw_os_error(number).kind(), "{what}: {error}");
            assert_eq!(raw_os_error(&error), Some(number), "{what}: {error}");
            assert!(error.to_string().contains(&format!("{path:?}")), "{what}: {error}");
        }
        let tried = file.try_lock().unwrap_err();
        match tried {
            std::fs::TryLockError::WouldBlock => assert_eq!(number, 11),
            std::fs::TryLockError::Error(error) => assert_eq!(raw_os_error(&error), Some(number)),
        }
    }
}
