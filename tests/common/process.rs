//! What `cc::process` promises, as functions over any place where commands run. The module that
//! includes this file has `cc::process` in scope and gives a factory of commands;
//! the place has `sh`, `cat`, `head`, `yes`, `sleep`, `awk`, `id` and `ls`.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{Child, Command, ExitStatus, Output, PtySize, Resource, Stdio};

mod pty;
mod torture;
pub(crate) use pty::*;
pub(crate) use torture::*;

/// Makes a command for a program by name.
pub(crate) type Factory<'a> = &'a (dyn Fn(&str) -> Command + Sync);

/// Longer than anything takes that does not hang.
const LONG: Duration = Duration::from_secs(120);

fn sh(command: Factory<'_>, script: &str) -> Command {
    let mut sh = command("sh");
    sh.arg("-c").arg(script);
    sh
}

fn text(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap().trim()
}

/// Whether process `pid` of the place exists.
fn alive(command: Factory<'_>, pid: &str) -> bool {
    sh(command, &format!("kill -0 {pid} 2>/dev/null")).output().unwrap().status.success()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn basics(command: Factory<'_>) {
    let out = command("echo").args(["hello", "world"]).output().unwrap();
    assert_eq!((out.stdout.as_slice(), out.stderr.as_slice()), (&b"hello world\n"[..], &b""[..]));
    assert!(out.status.success());

    let out = sh(command, "pwd; echo $A-$B; env | grep -c HOME=")
        .current_dir("/usr")
        .env_clear()
        .env("A", "1")
        .env("B", "2")
        .env("PATH", "/usr/bin:/bin")
        .env_remove("B")
        .output()
        .unwrap();
    assert_eq!(text(&out), "/usr\n1-\n0");

    // Without an environment there is still a place to look programs up in.
    assert!(command("true").env_clear().output().unwrap().status.success());
    // As std: standard input of output() is empty, not the caller's.
    assert_eq!(command("cat").output().unwrap().stdout, b"");
    assert_eq!(sh(command, "echo $0").arg("zero").output().unwrap().stdout, b"zero\n");
    // Some shells are one of the names of a program of many.
    let out = sh(command, "tr '\\0' ' ' </proc/$$/cmdline; :").arg0("/other/sh").output().unwrap();
    assert!(out.stdout.starts_with(b"/other/sh -c "), "{out:?}");

    let mut child = sh(command, "read x; echo got $x; exit 5")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(child.id() > 0);
    assert_eq!(child.try_wait().unwrap(), None);
    child.stdin.as_mut().unwrap().write_all(b"it\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert_eq!(child.wait().unwrap().code(), Some(5), "wait can be called again");
    child.kill().expect("killing what has ended is no error");
    assert!(child.resource_usage().unwrap().max_rss > 0);
    let mut rest = String::new();
    child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "got it\n");
}

/// `entries` is the length of a `PATH` that is searched to its end.
pub(crate) fn failures_of_exec(command: Factory<'_>, entries: usize) {
    let kind = |program: &str| command(program).output().unwrap_err().kind();
    assert_eq!(kind("/nonexistent/program"), ErrorKind::NotFound);
    assert_eq!(kind("no-such-program-anywhere"), ErrorKind::NotFound);
    assert_eq!(kind(""), ErrorKind::NotFound);
    assert_eq!(kind("/"), ErrorKind::PermissionDenied);
    assert_eq!(command("true").current_dir("/nonexistent").output().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(command("a\0b").output().unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(command("echo").arg("a\0b").output().unwrap_err().kind(), ErrorKind::InvalidInput);

    let dir = text(&sh(command, "d=/tmp/exec-$$; mkdir $d; echo $d").output().unwrap()).to_owned();
    let made = sh(command, "cd $0; echo hi >plain; echo garbage >bad; chmod 755 bad").arg(&dir).output();
    assert!(made.unwrap().status.success());
    assert_eq!(kind(&format!("{dir}/plain")), ErrorKind::PermissionDenied);
    assert_eq!(kind(&format!("{dir}/plain/below")), ErrorKind::NotADirectory);
    // No shell steps in for a file that is no program.
    let error = command(&format!("{dir}/bad")).output().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(8), "ENOEXEC: {error}");
    assert_eq!(command(&"x".repeat(300)).output().unwrap_err().raw_os_error(), Some(36), "ENAMETOOLONG");
    let long = format!("{}:{}/bin:/usr/bin:/bin", ":".repeat(entries), "/d".repeat(3000));
    assert!(command("true").env("PATH", long).output().unwrap().status.success());
    // In a PATH, a file that must not be executed counts only when nothing better comes.
    let path = format!("/nonexistent:{dir}:/usr/bin:/bin");
    assert_eq!(command("plain").env("PATH", &path).output().unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert!(command("true").env("PATH", &path).output().unwrap().status.success());
    assert!(sh(command, "rm -r $0").arg(&dir).output().unwrap().status.success());
}

pub(crate) fn r2_1_wait_returns_while_stdin_is_open(command: Factory<'_>) {
    let mut child = sh(command, "exit 3").stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    wait_until("writing to nobody fails", || match stdin.write(b"x") {
        Ok(_) => false,
        Err(e) => e.kind() == ErrorKind::BrokenPipe,
    });

    // A timeout fires while the child reads an input that stays open.
    let mut child = command("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let stdin = child.stdin.take().unwrap();
    assert_eq!(child.wait_timeout(Duration::from_millis(100)).unwrap(), None);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    drop(stdin);
}

/// The endless output of `yes 0123456789abcde` from its start.
fn pattern(len: usize) -> impl Iterator<Item = u8> {
    b"0123456789abcde\n".iter().copied().cycle().take(len)
}

pub(crate) fn r2_2_output_is_byte_exact(command: Factory<'_>, largest: usize) {
    for len in [0, 1, 4096, 65_536, 65_537, 300_000, largest] {
        let script = format!("yes 0123456789abcde | head -c {len}; yes 0123456789abcde | head -c {len} >&2");
        let out = sh(command, &script).output().unwrap();
        assert!(out.status.success());
        for (name, bytes) in [("stdout", out.stdout), ("stderr", out.stderr)] {
            assert_eq!(bytes.len(), len, "{name}");
            assert!(bytes.into_iter().eq(pattern(len)), "{name} of {len} bytes");
        }
    }
}

/// So large that neither side may hold it, from a writer that is no brake: each MiB has its number before it.
pub(crate) fn r2_2_large_output_is_byte_exact(command: Factory<'_>, mib: usize) {
    const MIB: usize = 1 << 20;
    let block: Vec<u8> = pattern(MIB).collect();
    for to_stderr in [false, true] {
        let script = format!(
            "f=/tmp/block-$$; yes 0123456789abcde | head -c {MIB} >$f; {} n=0
            while [ $n -lt {mib} ]; do echo $n; cat $f; n=$((n+1)); done; rm $f; printf end; exit 7",
            if to_stderr { "exec >&2;" } else { "" }
        );
        let mut child = sh(command, &script).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (said, silent): (&mut dyn Read, &mut dyn Read) =
            if to_stderr { (&mut stderr, &mut stdout) } else { (&mut stdout, &mut stderr) };
        let mut got = vec![0; MIB + 16];
        for n in 0..mib {
            let number = format!("{n}\n").into_bytes();
            let got = &mut got[..number.len() + MIB];
            said.read_exact(got).unwrap();
            assert!(got[..number.len()] == number && got[number.len()..] == block, "MiB {n}");
        }
        let mut rest = Vec::new();
        said.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"end");
        assert_eq!(silent.read(&mut got).unwrap(), 0);
        assert_eq!(child.wait().unwrap().code(), Some(7));
    }
}

pub(crate) fn r2_2_fast_exits_lose_nothing(command: Factory<'_>, times: usize) {
    for n in 0..times {
        let out = command("echo").arg(n.to_string()).output().unwrap();
        assert_eq!(text(&out), n.to_string());
    }
}

pub(crate) fn r2_2_unread_stderr_does_not_block_stdout(command: Factory<'_>) {
    const LEN: usize = 1_000_000;
    let script = format!("yes e | head -c {LEN} >&2 & yes o | head -c {LEN}; wait");
    let mut child = sh(command, &script).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for output in [
        &mut child.stdout.take().unwrap() as &mut dyn Read,
        &mut child.stderr.take().unwrap() as &mut dyn Read,
    ] {
        let mut bytes = vec![0; LEN];
        output.read_exact(&mut bytes).unwrap();
    }
    assert!(child.wait().unwrap().success());
}

pub(crate) fn r2_3_large_stdin_arrives(command: Factory<'_>, len: usize) {
    let mut child = command("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let bytes: Vec<u8> = (0..len).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect();
    let mut stdin = child.stdin.take().unwrap();
    let out = std::thread::scope(|scope| {
        scope.spawn(|| {
            stdin.write_all(&bytes).unwrap();
            drop(stdin);
        });
        child.wait_with_output().unwrap()
    });
    assert!(out.status.success());
    assert!(out.stdout == bytes, "{} of {len} bytes came back", out.stdout.len());
}

pub(crate) fn r2_3_stdin_has_back_pressure_and_epipe(command: Factory<'_>) {
    let mut child = command("sleep").arg("1000").stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let written = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            loop {
                match stdin.write(&[7; 1000]) {
                    Ok(n) => written.fetch_add(n, Ordering::Relaxed),
                    Err(e) => return e.kind(),
                };
            }
        });
        let mut last = usize::MAX;
        wait_until("the writer is held up", || {
            std::thread::sleep(Duration::from_millis(300));
            let now = written.load(Ordering::Relaxed);
            now > 0 && std::mem::replace(&mut last, now) == now
        });
        assert!(last < 2 * 1024 * 1024, "{last} bytes are held for a command that reads nothing");
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert_eq!(writer.join().unwrap(), ErrorKind::BrokenPipe);
    });

    // The same while the command still runs: its own end of the pipe is what counts.
    let mut child = sh(command, "exec <&-; sleep 1000").stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    wait_until("EPIPE reaches the writer", || match stdin.write(&[7; 1000]) {
        Ok(_) => false,
        Err(e) => e.kind() == ErrorKind::BrokenPipe,
    });
    child.kill().unwrap();
}

pub(crate) fn r2_4_exit_status_is_exact(command: Factory<'_>, codes: impl Iterator<Item = i32>) {
    for code in codes {
        let status = sh(command, &format!("exit {code}")).output().unwrap().status;
        assert_eq!((status.code(), status.signal()), (Some(code), None));
        assert_eq!(status.success(), code == 0);
    }
    for (name, signal) in [("HUP", 1), ("ABRT", 6), ("KILL", 9), ("SEGV", 11), ("PIPE", 13), ("TERM", 15)] {
        let script = format!("ulimit -c 0; kill -{name} $$; sleep 1000");
        let status = sh(command, &script).output().unwrap().status;
        assert_eq!((status.code(), status.signal()), (None, Some(signal)), "SIG{name}");
        assert!(!status.success());
        assert_eq!(status.to_string(), format!("signal: {signal} (SIG{name})"));
    }
}

pub(crate) fn r2_5_kill_reaches_the_process_group(command: Factory<'_>) {
    let mut child = sh(command, "sleep 1000 & echo $!; (sleep 1000 & echo $!; wait) & echo; wait; wait")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut text = Vec::new();
    while text.iter().filter(|b| **b == b'\n').count() < 3 {
        let mut byte = [0];
        stdout.read_exact(&mut byte).unwrap();
        text.push(byte[0]);
    }
    let text = String::from_utf8(text).unwrap();
    let pids: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(pids.len(), 2);
    assert!(pids.iter().all(|pid| alive(command, pid)));
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    for pid in pids {
        wait_until("all of the group has gone", || !alive(command, pid));
    }
    assert_eq!(stdout.read(&mut [0]).unwrap(), 0, "nobody holds the pipe");

    let mut child = command("sleep").arg("1000").spawn().unwrap();
    child.signal(15).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    assert_eq!(child.signal(0).unwrap_err().kind(), ErrorKind::InvalidInput);
}

pub(crate) fn r2_5_orphans_cannot_hang_completion(command: Factory<'_>) {
    let start = Instant::now();
    let script = "sleep 1000 & echo $!; head -c 200000 /dev/zero; exit 4";
    let out = sh(command, script).output().unwrap();
    assert!(start.elapsed() < LONG);
    assert_eq!(out.status.code(), Some(4));
    let (pid, rest) = out.stdout.split_at(out.stdout.iter().position(|b| *b == b'\n').unwrap());
    assert_eq!(rest.len(), 200_001, "all that was written before the end is here");
    let pid = std::str::from_utf8(pid).unwrap();
    assert!(alive(command, pid), "the orphan runs on");
    sh(command, &format!("kill -9 {pid}")).output().unwrap();

    // One that never stops writing, neither while it is waited for nor later.
    let out = sh(command, "yes & echo $! >&2; sleep 0.2").output().unwrap();
    assert!(out.status.success() && !out.stdout.is_empty());
    let pid = String::from_utf8(out.stderr).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(alive(command, pid.trim()), "what it writes later is thrown away, not refused");
    sh(command, &format!("kill -9 {}", pid.trim())).output().unwrap();

    // The same where its output goes to a file of the host.
    let sink = File::options().write(true).open("/dev/null").unwrap();
    let mut child = sh(command, "yes & echo $! >&2; sleep 0.2; exit 2")
        .stdout(sink)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(child.wait_timeout(LONG).unwrap().and_then(|s| s.code()), Some(2));
    let mut pid = [0; 16];
    let n = child.stderr.take().unwrap().read(&mut pid).unwrap();
    let pid = std::str::from_utf8(&pid[..n]).unwrap().trim();
    sh(command, &format!("kill -9 {pid}")).output().unwrap();

    // What follows soon is still waited for.
    assert_eq!(text(&sh(command, "(sleep 0.1; echo late) & echo soon").output().unwrap()), "soon\nlate");
}

pub(crate) fn r2_6_no_zombies_after_double_forks(command: Factory<'_>, forks: usize) {
    let script = format!("i=0; while [ $i -lt {forks} ]; do (true &); i=$((i+1)); done; echo $PPID");
    let out = sh(command, &script).output().unwrap();
    let agent = text(&out).to_owned();
    let count = format!(
        "cat /proc/[0-9]*/status 2>/dev/null | awk '/^State:/ {{ z = $2 }} /^PPid:/ {{ if (z == \"Z\" && $2 == {agent}) n++ }} END {{ print n + 0 }}'"
    );
    wait_until("no zombie is left", || text(&sh(command, &count).output().unwrap()) == "0");
}

pub(crate) fn r2_10_argv_and_env_are_byte_exact(command: Factory<'_>) {
    let all: Vec<u8> = (1..=255).collect();
    let args: [&[u8]; 8] = [b"", b" ", b"'", b"\"$HOME`x`\\", b"a\nb", b"--", b"\xff\xfe invalid \x80", &all];
    let mut echo = sh(command, r#"printf '%s\0' "$@""#);
    echo.arg("sh").args(args.map(OsStr::from_bytes));
    let out = echo.output().unwrap();
    let expected: Vec<u8> = args.iter().flat_map(|a| [a, &b"\0"[..]].concat()).collect();
    assert!(out.stdout == expected, "{out:?}");

    let out = sh(command, r#"printf %s "$V"; printf %s "$W" >&2"#)
        .env("V", OsStr::from_bytes(&all))
        .env("W", "a=b=c")
        .output()
        .unwrap();
    assert!(out.stdout == all && out.stderr == b"a=b=c", "{out:?}");

    // 1 MiB, in pieces: Linux takes 128 KiB in one string.
    let piece: Vec<u8> = pattern(104_858).map(|b| b | 0x80).collect();
    let piece = std::ffi::OsString::from_vec(piece);
    let out = sh(command, r#"printf %s "$@""#).arg("sh").args([&piece; 10]).output().unwrap();
    assert!(out.stdout == [piece.as_bytes(); 10].concat());
    let out = sh(command, r#"printf %s "$V""#).env("V", &piece).output().unwrap();
    assert!(out.stdout == piece.as_bytes());

    const E2BIG: Option<i32> = Some(7);
    let error = command("echo").arg("x".repeat(200_000)).output().unwrap_err();
    assert_eq!(error.raw_os_error(), E2BIG);
    let error = command("echo").args(vec!["x".repeat(1000); 6000]).output().unwrap_err();
    assert_eq!(error.raw_os_error(), E2BIG);
    assert!(command("true").output().unwrap().status.success(), "the refusals harm nothing");
}

pub(crate) fn stdio_from_files_and_children(command: Factory<'_>) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"from a file\n").unwrap();
    file.rewind().unwrap();
    let out = command("cat").stdin(file).output().unwrap();
    assert_eq!(out.stdout, b"from a file\n");

    let mut file: File = tempfile::tempfile().unwrap();
    let status = sh(command, "yes 0123456789abcde | head -c 1000000")
        .stdout(file.try_clone().unwrap())
        .status()
        .unwrap();
    assert!(status.success());
    file.rewind().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert!(bytes.into_iter().eq(pattern(1_000_000)), "all is written when status() returns");

    let mut first = sh(command, "echo b; echo a; echo c").stdout(Stdio::piped()).spawn().unwrap();
    let out = command("sort").stdin(first.stdout.take().unwrap()).output().unwrap();
    assert_eq!(text(&out), "a\nb\nc");
    assert!(first.wait().unwrap().success());

    // A host file that never has anything to say does not hold completion up.
    let (reader, writer) = std::io::pipe().unwrap();
    let status = command("true").stdin(reader).status().unwrap();
    assert!(status.success());
    drop(writer);

    // Pipes of the host, both ways.
    let ((input, mut feed), (mut drain, output)) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
    let mut cat = command("cat");
    let mut child = cat.stdin(std::os::fd::OwnedFd::from(input)).stdout(output).spawn().unwrap();
    feed.write_all(b"through").unwrap();
    drop((feed, cat));
    let mut through = String::new();
    drain.read_to_string(&mut through).unwrap();
    assert_eq!((&*through, child.wait().unwrap().code()), ("through", Some(0)));

    // A reader that goes away is EPIPE, here SIGPIPE, to the command.
    let mut child = command("yes").stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10]).unwrap();
    drop(stdout);
    assert_eq!(child.wait().unwrap().signal(), Some(13));
}

pub(crate) fn users_and_groups(command: Factory<'_>) {
    let ids = || sh(command, "id -u; id -g; id -G");
    if text(&command("id").arg("-u").output().unwrap()) != "0" {
        assert_eq!(ids().uid(0).output().unwrap_err().kind(), ErrorKind::PermissionDenied);
        return;
    }
    assert_eq!(text(&ids().uid(65534).gid(65533).output().unwrap()), "65534\n65533\n65533");
    let out = ids().uid(65534).gid(65533).groups(&[7, 8]).output().unwrap();
    assert_eq!(text(&out), "65534\n65533\n65533 7 8");
}

/// `terminals`: without one, and where commands can have them with one.
pub(crate) fn r2_1_a_timeout_ends_the_group(command: Factory<'_>, terminals: &[bool]) {
    const TIME: Duration = Duration::from_millis(300);
    let script = "echo $$; (sleep 1000 & echo $!; exec sleep 1000) & wait";
    let told = |error: std::io::Error| {
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "the command was killed after its timeout of 300ms");
    };
    for &terminal in terminals {
        let timed = |script: &str| {
            let mut sh = sh(command, script);
            if terminal {
                sh.pty(PtySize::default());
            }
            sh.timeout(TIME).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
        };
        let mut child = timed(script);
        let stdin = child.stdin.take();
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        told(child.wait().unwrap_err());
        told(child.wait_timeout(LONG).unwrap_err());
        told(child.try_wait().unwrap_err());
        assert!(child.resource_usage().is_some());
        assert_eq!(said.split_whitespace().count(), 2);
        for pid in said.split_whitespace() {
            wait_until("the group is gone", || !alive(command, pid));
        }
        drop(stdin);
        told(timed(script).wait_with_output().unwrap_err());
        // One that is stopped, and one that nobody waits for.
        told(timed("kill -STOP $$").wait().unwrap_err());
        let mut unwatched = timed("echo $$; exec sleep 1000 >/dev/null");
        let mut pid = [0; 16];
        let n = unwatched.stdout.as_mut().unwrap().read(&mut pid).unwrap();
        let pid = std::str::from_utf8(&pid[..n]).unwrap().trim();
        wait_until("it has been killed", || !alive(command, pid));
    }
    let in_time = |script| sh(command, script).timeout(LONG).output().unwrap().status;
    assert_eq!(in_time("exit 3").code(), Some(3));
    assert_eq!(in_time("kill -9 $$").signal(), Some(9), "killed, but not for its time");
    assert_eq!(sh(command, "exit 4").timeout(Duration::MAX).output().unwrap().status.code(), Some(4));
    let error = command("sleep").arg("1000").timeout(Duration::ZERO).status().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

pub(crate) fn limits_sessions_and_groups(command: Factory<'_>) {
    let said = |command: &mut Command| {
        let out = command.output().unwrap();
        assert!(out.status.success(), "{out:?}");
        text(&out).to_owned()
    };
    let mut c = sh(command, "ulimit -n; ulimit -Hn; ulimit -c; ulimit -f");
    c.rlimit(Resource::OpenFiles, 64, 128).rlimit(Resource::CoreSize, 0, 0);
    c.rlimit(Resource::FileSize, 1, 1).rlimit(Resource::FileSize, 512, 1024);
    assert_eq!(said(&mut c), "64\n128\n0\n1");
    let mut c = sh(command, "while :; do :; done");
    let status = c.rlimit(Resource::CpuTime, 1, Resource::UNLIMITED).status().unwrap();
    assert_eq!(status.signal(), Some(24), "SIGXCPU");
    let error = command("true").rlimit(Resource::OpenFiles, 2, 1).status().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("limit"), "{error}");

    // Process id, group, session.
    let ids = "read -r pid name state parent group session rest </proc/$$/stat; echo $pid $group $session";
    let of = |text: &str| -> Vec<u32> { text.split_whitespace().map(|id| id.parse().unwrap()).collect() };
    let plain = of(&said(&mut sh(command, ids)));
    assert!(plain[0] == plain[1] && plain[0] != plain[2], "{plain:?}");
    let leads = of(&said(sh(command, ids).setsid(true)));
    assert!(leads[0] == leads[1] && leads[0] == leads[2], "{leads:?}");

    let mut first = command("sleep").arg("1000").spawn().unwrap();
    let group = first.id() as i32;
    let joins = of(&said(sh(command, ids).process_group(group)));
    assert!(joins[1] == first.id() && joins[2] == plain[2], "{joins:?}");
    // In a group of others only the command itself is reached.
    let mut second = command("sleep").arg("1000").process_group(group).spawn().unwrap();
    second.signal(15).unwrap();
    assert_eq!(second.wait().unwrap().signal(), Some(15));
    assert_eq!(first.try_wait().unwrap(), None);
    // A group's leader reaches all of it, by any signal.
    let mut second = command("sleep").arg("1000").process_group(group).spawn().unwrap();
    first.signal(10).unwrap();
    assert_eq!(first.wait().unwrap().signal(), Some(10));
    assert_eq!(second.wait().unwrap().signal(), Some(10));
    first.signal(9).expect("signalling what has ended is no error");

    let script = "trap 'echo caught' USR2; echo ready; read x; echo $x";
    let mut child = sh(command, script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 6]).unwrap();
    child.signal(12).unwrap();
    let mut caught = [0; 7];
    stdout.read_exact(&mut caught).unwrap();
    assert_eq!(&caught, b"caught\n");
    assert!(child.try_wait().unwrap().is_none_or(|status| status.success()));
    assert_eq!(child.signal(65).unwrap_err().kind(), ErrorKind::InvalidInput);
    child.kill().unwrap();
}

/// The place has an `/etc/passwd` with somebody who is not root.
pub(crate) fn users_by_name(command: Factory<'_>) {
    if text(&command("id").arg("-u").output().unwrap()) != "0" {
        return;
    }
    let passwd = command("cat").arg("/etc/passwd").output().unwrap();
    let passwd = text(&passwd);
    let somebody: Vec<&str> = passwd.lines().rfind(|l| !l.contains(":0:")).unwrap().split(':').collect();
    let [name, _, uid, gid, _, home, ..] = somebody[..] else { panic!("{somebody:?}") };
    let who = |user: &str| {
        let mut who = sh(command, "id -u; id -g; echo $HOME; id -G");
        who.user(user);
        who
    };
    let run = |command: &mut Command| {
        let out = command.output().unwrap();
        assert!(out.status.success(), "{out:?}");
        text(&out).replace('\n', " ")
    };
    let sorted = |ids: &str| {
        let mut ids: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
        ids.sort_unstable();
        ids
    };
    let by_name = run(&mut who(name));
    let (first, groups) = by_name.split_once(&format!("{home} ")).unwrap_or_else(|| panic!("{by_name}"));
    assert_eq!(first, format!("{uid} {gid} "));
    assert_eq!(sorted(groups), sorted(&run(command("id").args(["-G", name]))));
    assert_eq!(run(&mut who(uid)), by_name, "by number the same");
    assert_eq!(run(&mut who("4242")), "4242 0 / 0", "a number without an entry");
    assert_eq!(run(&mut who("4242:4243")), "4242 4243 / 4243");
    assert_eq!(run(&mut who(&format!("{name}:0"))), format!("{uid} 0 {home} 0"));
    assert_eq!(run(&mut who(&format!("{uid}:{gid}"))), format!("{uid} {gid} {home} {gid}"));
    // What else is said comes first.
    assert_eq!(run(who(name).uid(4242).gid(7).groups(&[8]).env("HOME", "/x")), "4242 7 /x 7 8");
    assert_eq!(run(sh(command, "env | grep -c HOME=; :").user(name).env_clear()), "0");
    assert_eq!(run(sh(command, "env | grep -c HOME=; :").user(name).env_remove("HOME")), "0");
    // What a pipe is open to, its names are too.
    let out = sh(command, "echo out >/dev/stdout; echo err >/dev/stderr").user(name).output().unwrap();
    assert_eq!((&*out.stdout, &*out.stderr), (&b"out\n"[..], &b"err\n"[..]));

    let errno = |error: &std::io::Error| {
        let source = std::error::Error::source(error.get_ref().unwrap()).unwrap();
        source.downcast_ref::<std::io::Error>().unwrap().raw_os_error()
    };
    for unknown in ["no-such-user", "0:no-such-group", "", "-1", "+0", "0x0", "0 "] {
        let error = who(unknown).output().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{unknown:?}: {error}");
        assert!(error.to_string().contains(&format!("{unknown:?}")), "{error}");
        assert_eq!(errno(&error), Some(2));
    }
    // CVE-2024-40635: a number too large must not come out as root's.
    for number in ["2147483648", "4294967295", "4294967296", "18446744073709551616"] {
        for user in [number.to_owned(), format!("1:{number}")] {
            let error = who(&user).output().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert!(error.to_string().contains(number), "{error}");
        }
    }
    assert_eq!(who("a\0b").output().unwrap_err().kind(), ErrorKind::InvalidInput);

    for (dir, kind) in [("/nonexistent", ErrorKind::NotFound), ("/etc/passwd", ErrorKind::NotADirectory)] {
        let error = command("true").current_dir(dir).output().unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(
            error.to_string().contains("working directory") && error.to_string().contains(dir),
            "{error}"
        );
        assert!(errno(&error).is_some());
    }
}

pub(crate) fn commands_inherit_no_descriptor(command: Factory<'_>) {
    // 3 is the directory that ls reads.
    assert_eq!(text(&command("ls").arg("/proc/self/fd").output().unwrap()), "0\n1\n2\n3");
}

pub(crate) fn many_threads_share_one_machine(command: Factory<'_>, each: usize) {
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for n in 0..each {
                    let script = format!("echo {thread}.{n}; exit {thread}");
                    let out = sh(command, &script).output().unwrap();
                    assert_eq!((text(&out), out.status.code()), (&*format!("{thread}.{n}"), Some(thread)));
                }
            });
        }
    });
}
