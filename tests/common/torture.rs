//! Every kind of input with every kind of end, on pipes and on a terminal: what the command wrote is here to
//! the byte, how it ended is told exactly, and nothing hangs.

use std::io::{Read, Write};
use std::time::Duration;

use super::{Child, Factory, LONG, PtySize, Stdio, pattern, sh, wait_until};

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
}

/// More than pipes, windows and buffers on the way hold together.
const LARGE: usize = 4 * 1024 * 1024;
const SLOW: usize = 5;

pub(crate) fn r2_every_input_with_every_end(command: Factory<'_>, largest: usize) {
    for terminal in [false, true] {
        for len in [0, 1, 65_536, largest] {
            for input in [Input::Open, Input::Closed, Input::Slow, Input::Large] {
                for end in [End::AtOnce, End::DoubleFork, End::Stopped, End::Killed] {
                    let what = format!("terminal {terminal}, {len} bytes, input {input:?}, end {end:?}");
                    one(command, terminal, len, input, end, &what);
                }
            }
        }
    }
}

fn one(command: Factory<'_>, terminal: bool, len: usize, input: Input, end: End, what: &str) {
    let take = match input {
        Input::Open | Input::Closed => 0,
        Input::Slow => SLOW,
        Input::Large => LARGE,
    };
    let script = format!(
        "{} printf r; n=$(head -c {take} | wc -c); test $n -eq {take} || exit 99
        yes 0123456789abcde | head -c {len}; {}",
        if terminal { "stty raw -echo;" } else { "" },
        match end {
            End::AtOnce => "exit 3",
            End::DoubleFork => "(sleep 2 &); exit 3",
            End::Stopped => "kill -STOP $$; exit 3",
            End::Killed => "sleep 1000",
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
        let mut got = vec![0; len];
        stdout.read_exact(&mut got).expect(what);
        assert!(got.into_iter().eq(pattern(len)), "{what}");
        writer.join().expect(what)
    });
    finish(&mut child, end, what);
    if end != End::DoubleFork {
        let mut rest = Vec::new();
        stdout.read_to_end(&mut rest).expect(what);
        assert!(rest.is_empty(), "{what}: {} bytes too many", rest.len());
    }
    drop(stdin);
}

fn finish(child: &mut Child, end: End, what: &str) {
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
        _ => assert_eq!(status.code(), Some(3), "{what}"),
    }
}
