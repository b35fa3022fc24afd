//! Every kind of input with every kind of end, on pipes and on a terminal: what the command wrote is here to
//! the byte, how it ended is told exactly, and nothing hangs.

use std::io::{Read, Write};
use std::time::Duration;

use super::{Child, ExitStatus, Factory, LONG, PtySize, Stdio, pattern, sh, wait_until};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Input {
    Open,
    Closed,
    Slow,
    Large,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    AtOnce,
    DoubleFork,
    Stopped,
    Killed,
    OutOfMemory,
}

/// What a program comes to that wants all memory there is, and more.
pub(crate) struct Memory<'a> {
    /// Goes before it in the script.
    pub(crate) limit: &'a str,
    pub(crate) status: ExitStatus,
}

pub(crate) const GLUTTON: &str =
    "exec awk 'BEGIN { s = \"0123456789abcdef\"; while (1) s = s s }' 2>/dev/null";

/// More than pipes, windows and buffers on the way hold together.
const LARGE: usize = 4 * 1024 * 1024;
const SLOW: usize = 5;
const PIECE: usize = 1 << 20;
/// More output than this is of a file, again and again.
const FILE: usize = 8 << 20;

/// Unless `all`, what takes seconds on the software CPU is done once for pipes and once for a terminal.
pub(crate) fn r2_every_input_with_every_end(
    command: Factory<'_>,
    sizes: &[usize],
    all: bool,
    memory: &Memory<'_>,
) {
    for terminal in [false, true] {
        for &len in sizes {
            for input in [Input::Open, Input::Closed, Input::Slow, Input::Large] {
                for end in [End::AtOnce, End::DoubleFork, End::Stopped, End::Killed, End::OutOfMemory] {
                    let dear = (input == Input::Large) as u8 + (end == End::OutOfMemory) as u8;
                    if !all && (dear == 2 || dear == 1 && len != sizes[0]) {
                        continue;
                    }
                    if !all && end == End::OutOfMemory && input != Input::Open {
                        continue;
                    }
                    let what = format!("terminal {terminal}, {len} bytes, input {input:?}, end {end:?}");
                    one(command, terminal, len, input, end, memory, &what);
                }
            }
        }
    }
}

/// So much output, once by pipes and once by a terminal.
pub(crate) fn r2_so_much_output_once(command: Factory<'_>, len: usize) {
    let memory = Memory { limit: "", status: ExitStatus::default() };
    for terminal in [false, true] {
        one(command, terminal, len, Input::Open, End::AtOnce, &memory, &format!("terminal {terminal}"));
    }
}

fn one(
    command: Factory<'_>,
    terminal: bool,
    len: usize,
    input: Input,
    end: End,
    memory: &Memory<'_>,
    what: &str,
) {
    let take = match input {
        Input::Open | Input::Closed => 0,
        Input::Slow => SLOW,
        Input::Large => LARGE,
    };
    let lines = "yes 0123456789abcde | head -c";
    let write = if len > FILE && len.is_multiple_of(FILE) {
        // Those two programs would take most of the time.
        let times = len / FILE;
        format!("f=$(mktemp); {lines} {FILE} >$f; for n in $(seq {times}); do cat $f; done; rm $f")
    } else {
        // Programs write line by line to a terminal, but this one.
        format!("{lines} {len}{}", if terminal { " | cat" } else { "" })
    };
    let script = format!(
        "{} printf r; n=$(head -c {take} | wc -c); test $n -eq {take} || exit 99
        {write}; {}",
        if terminal { "stty raw -echo;" } else { "" },
        match end {
            End::AtOnce => "exit 3".to_owned(),
            End::DoubleFork => "(sleep 2 &); exit 3".to_owned(),
            End::Stopped => "kill -STOP $$; exit 3".to_owned(),
            End::Killed => "sleep 1000".to_owned(),
            End::OutOfMemory => format!("{} {GLUTTON}", memory.limit),
        }
    );
    let mut sh = sh(command, &script);
    if terminal {
        sh.pty(PtySize::default());
    }
    let mut child = sh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take(), child.stdout.take().unwrap());
    if input == Input::Closed {
        drop(stdin.take());
    }
    let mut ready = [0];
    stdout.read_exact(&mut ready).expect(what);
    assert_eq!(&ready, b"r", "{what}");
    let stdin = std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let bytes: Vec<u8> = (0..take).map(|n| (n ^ (n >> 8)) as u8).collect();
            for piece in bytes.chunks(if input == Input::Slow { 1 } else { LARGE }) {
                stdin.as_mut().expect("it is open").write_all(piece).expect(what);
                if input == Input::Slow {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            stdin
        });
        // Whole lines of the pattern, so that each piece begins as the first.
        let mut got = vec![0; len.min(PIECE)];
        for start in (0..len).step_by(PIECE) {
            let got = &mut got[..PIECE.min(len - start)];
            stdout.read_exact(got).expect(what);
            assert!(got.iter().copied().eq(pattern(got.len())), "{what}: behind {start} bytes");
        }
        writer.join().expect(what)
    });
    finish(&mut child, end, memory.status, what);
    if end != End::DoubleFork {
        let mut rest = Vec::new();
        stdout.read_to_end(&mut rest).expect(what);
        assert!(rest.is_empty(), "{what}: {} bytes too many", rest.len());
    }
    drop(stdin);
}

fn finish(child: &mut Child, end: End, out_of_memory: ExitStatus, what: &str) {
    if end == End::Stopped {
        // It may not have stopped yet, and what goes on already does not stop at that.
        wait_until(what, || {
            child.signal(18).expect(what);
            child.wait_timeout(Duration::from_millis(20)).expect(what).is_some()
        });
    }
    if end == End::Killed {
        child.kill().expect(what);
    }
    let status = child.wait_timeout(LONG).expect(what).unwrap_or_else(|| panic!("{what}: it hangs"));
    match end {
        End::Killed => assert_eq!(status.signal(), Some(9), "{what}"),
        End::OutOfMemory => assert_eq!(status, out_of_memory, "{what}"),
        _ => assert_eq!(status.code(), Some(3), "{what}"),
    }
}
