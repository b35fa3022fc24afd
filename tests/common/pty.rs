//! What `cc::process` promises of terminals: more of the suite beside it, with its own needs of the
//! place: `stty`, `dd`, and pseudo-terminals.

use std::io::{ErrorKind, Read, Write};
use std::sync::Mutex;
use std::time::Duration;

use super::{Child, Command, Factory, LONG, PtySize, Stdio, alive, pattern, sh, text, wait_until};

const SIZE: PtySize = PtySize { rows: 30, cols: 100 };

fn on_terminal(command: Factory<'_>, script: &str) -> Command {
    let mut sh = sh(command, script);
    sh.pty(SIZE);
    sh
}

/// What a script says on a terminal that nobody types on.
fn said(command: Factory<'_>, script: &str) -> String {
    let out = on_terminal(command, script).output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{script}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

fn piped(mut command: Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// Reads a line, and not a byte more.
fn line(child: &mut Child) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap().trim().to_owned()
}

pub(crate) fn pty_is_the_terminal_of_the_command(command: Factory<'_>) {
    let script =
        "test -t 0 && test -t 1 && test -t 2 && echo all; stty size; echo tty >/dev/tty; echo err >&2";
    assert_eq!(said(command, script), "all\r\n30 100\r\ntty\r\nerr\r\n");
    let script = "read -r pid name state parent group session tty rest </proc/$$/stat
        echo $((pid == group)) $((pid == session)) $((tty != 0))";
    assert_eq!(said(command, script), "1 1 1\r\n");
    assert_eq!(said(command, "ls /proc/self/fd | cat").split_whitespace().collect::<String>(), "0123");
    // Input that is null is at its end.
    assert_eq!(said(command, "cat; echo over"), "over\r\n");
    let mut unheard = on_terminal(command, "yes; exit 0");
    let mut child = unheard.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    assert!(child.stdout.is_none() && child.stderr.is_none());
    assert_eq!(child.wait_timeout(Duration::from_millis(200)).unwrap(), None, "what is unheard is no end");
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));

    assert_eq!(said(command, "echo $TERM"), "xterm-256color\r\n");
    let term = |change: &dyn Fn(&mut Command)| {
        let mut c = on_terminal(command, "echo \"<$(env | grep ^TERM=)>\"");
        change(&mut c);
        String::from_utf8(c.output().unwrap().stdout).unwrap().trim().to_owned()
    };
    assert_eq!(
        term(&|c| {
            c.env("TERM", "dumb");
        }),
        "<TERM=dumb>"
    );
    assert_eq!(
        term(&|c| {
            c.env_remove("TERM");
        }),
        "<>"
    );
    assert_eq!(text(&sh(command, "echo \"<$TERM>\"").env_remove("TERM").output().unwrap()), "<>");

    // Its user may open it by name.
    if text(&command("id").arg("-u").output().unwrap()) == "0" {
        let out = on_terminal(command, "id -u; echo out >/dev/stdout").user("4242").output().unwrap();
        assert_eq!(text(&out), "4242\r\nout");
    }
    let error = command("true").pty(SIZE).user("no-such-user").output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = command("/nonexistent").pty(SIZE).output().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(2));
}

pub(crate) fn pty_takes_what_is_typed(command: Factory<'_>) {
    let mut child = piped(on_terminal(command, "read x; echo got $x; exit 5"));
    child.stdin.as_mut().unwrap().write_all(b"it\n").unwrap();
    assert_eq!((line(&mut child), line(&mut child)), ("it".into(), "got it".into()));
    assert_eq!(child.wait().unwrap().code(), Some(5));

    // Keys that are signals, to whatever is in front.
    let mut sleep = command("sleep");
    sleep.arg("1000").pty(SIZE);
    let mut child = piped(sleep);
    child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    let out = child.wait_timeout(LONG).unwrap();
    assert_eq!(out.and_then(|status| status.signal()), Some(2));

    // The end of input is typed, in the middle of a line twice.
    for (typed, said) in [("", ""), ("abc", "abcabc"), ("abc\n", "abc\r\nabc\r\n"), ("\x04", "")] {
        let mut cat = command("cat");
        cat.pty(SIZE);
        let mut child = piped(cat);
        child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert_eq!((out.status.code(), &*out.stdout), (Some(0), said.as_bytes()), "{typed:?}");
    }

    // Where keys are read there is no key for it, and nothing hangs up.
    let script = "exec 3<&0; trap 'stty size; exit 3' WINCH; stty raw -echo
        (dd bs=1 count=1 <&3 >/dev/null 2>&1; echo READ) & echo ready; wait; wait";
    let mut child = piped(on_terminal(command, script));
    assert_eq!(line(&mut child), "ready");
    drop(child.stdin.take());
    child.resize(33, 44).unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), text(&out)), (Some(3), "33 44"));

    // Nobody types to a command that has ended.
    let mut child = piped(on_terminal(command, "exit 0"));
    let mut stdin = child.stdin.take().unwrap();
    assert!(child.wait().unwrap().success());
    wait_until("typing to nobody fails", || match stdin.write(b"x") {
        Ok(_) => false,
        Err(e) => e.kind() == ErrorKind::BrokenPipe,
    });
}

pub(crate) fn r2_2_pty_output_is_byte_exact(command: Factory<'_>, largest: usize, fast_exits: usize) {
    for len in [0, 1, 4095, 4096, 4097, 65_536, 300_000, largest] {
        let script = format!("stty -opost; yes 0123456789abcde | head -c {len}");
        let out = on_terminal(command, &script).output().unwrap();
        assert!(out.status.success() && out.stderr.is_empty());
        assert_eq!(out.stdout.len(), len);
        assert!(out.stdout.into_iter().eq(pattern(len)), "{len} bytes");
    }
    for n in 0..fast_exits {
        let out = command("echo").arg(n.to_string()).pty(SIZE).output().unwrap();
        assert_eq!(String::from_utf8(out.stdout).unwrap(), format!("{n}\r\n"));
        let out = command("head").args(["-c", "3000", "/dev/zero"]).pty(SIZE).output().unwrap();
        assert!(out.stdout == [0; 3000], "{} bytes", out.stdout.len());
    }
    // A command that has closed its terminal, but not hung up, can open it again.
    let script = "exec </dev/null >/dev/null 2>&1; sleep 0.1; echo again >/dev/tty";
    assert_eq!(said(command, script), "again\r\n");
}

pub(crate) fn r2_3_pty_input_is_byte_exact(command: Factory<'_>, len: usize) {
    let script = format!("stty raw -echo; echo ready; head -c {len}");
    let mut child = piped(on_terminal(command, &script));
    assert_eq!(line(&mut child), "ready");
    let bytes: Vec<u8> = (0..len).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect();
    let mut stdin = child.stdin.take().unwrap();
    let out = std::thread::scope(|scope| {
        scope.spawn(|| stdin.write_all(&bytes).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(out.status.success());
    assert!(out.stdout == bytes, "{} of {len} bytes came back", out.stdout.len());
}

pub(crate) fn r2_5_pty_orphans_and_kill(command: Factory<'_>) {
    // One that is silent, and one that never stops.
    for orphan in ["sleep 1000", "yes"] {
        let script = format!("trap '' HUP; (sleep 0.1; exec {orphan}) & echo $!; sleep 0.3; exit 4");
        let out = on_terminal(command, &script).output().unwrap();
        assert_eq!(out.status.code(), Some(4));
        let said = String::from_utf8(out.stdout).unwrap();
        let pid = said.lines().next().unwrap();
        assert!(alive(command, pid), "the orphan runs on");
        sh(command, &format!("kill -9 {pid}")).output().unwrap();

        let mut child = piped(on_terminal(command, &script));
        let pid = line(&mut child);
        assert_eq!(child.wait_timeout(LONG).unwrap().and_then(|status| status.code()), Some(4));
        assert!(alive(command, &pid));
        drop(child);
        if orphan == "yes" {
            wait_until("the terminal that nobody reads has hung up", || !alive(command, &pid));
        } else {
            sh(command, &format!("kill -9 {pid}")).output().unwrap();
        }
    }

    // Dropping the output hangs up.
    let mut cat = command("cat");
    cat.pty(SIZE);
    let mut child = piped(cat);
    let stdin = child.stdin.take();
    drop(child.stdout.take());
    assert_eq!(child.wait_timeout(LONG).unwrap().and_then(|status| status.signal()), Some(1));
    drop(stdin);

    // A job of a shell has a process group of its own.
    let script = "set -m; sh -c 'trap \"\" HUP; echo $$; exec sleep 1000'; echo not reached";
    let mut child = piped(on_terminal(command, script));
    let job = line(&mut child);
    assert!(alive(command, &job));
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    wait_until("the job in front has gone too", || !alive(command, &job));
    let mut rest = String::new();
    child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

pub(crate) fn r2_7_resize_and_kill_while_reading(command: Factory<'_>) {
    let script = "trap 'stty size' WINCH; echo ready; while :; do sleep 1000 & wait; done";
    let mut child = piped(on_terminal(command, script));
    assert_eq!(line(&mut child), "ready");
    let mut stdout = child.stdout.take().unwrap();
    let seen = Mutex::new(String::new());
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut bytes = [0; 64];
            while let n @ 1.. = stdout.read(&mut bytes).unwrap() {
                seen.lock().unwrap().push_str(std::str::from_utf8(&bytes[..n]).unwrap());
            }
        });
        for (rows, cols) in [(40, 132), (41, 7), (50, 20_000)] {
            child.resize(rows, cols).unwrap();
            let size = format!("{rows} {cols}\r\n");
            wait_until("the new size is said", || seen.lock().unwrap().contains(&size));
        }
        assert!(!reader.is_finished());
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        reader.join().unwrap();
    });
    for _ in 0..1000 {
        child.resize(1, 1).unwrap();
    }
    let mut child = command("true").spawn().unwrap();
    assert_eq!(child.resize(1, 1).unwrap_err().kind(), ErrorKind::InvalidInput, "it has no terminal");
    assert!(child.wait().unwrap().success());
}
