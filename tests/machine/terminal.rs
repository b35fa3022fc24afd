//! `cc run -it` on a terminal: the caller's is raw meanwhile and as before afterwards, and the guest's has its size.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, OutputModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::support::wait_until;
use crate::world::{cc, program, small};

/// `cc` in the foreground of a terminal that the test holds the other end of.
struct Session {
    terminal: File,
    child: Child,
    screen: Arc<Mutex<Vec<u8>>>,
    before: String,
    /// Ends when the last program has closed the terminal.
    reader: std::thread::JoinHandle<()>,
}

fn size(rows: u16, cols: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Session {
    /// `cc run -it` of `script` in the small image.
    fn start(options: &[&str], script: &str) -> Session {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let controller = openpt(flags).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        tcsetwinsize(&controller, size(30, 101)).unwrap();
        let terminal: OwnedFd = ioctl_tiocgptpeer(&controller, flags).unwrap();
        let before = modes(&terminal);
        let end = || terminal.try_clone().unwrap();
        // A session of its own, so that keys and sizes of this terminal reach it.
        let mut setsid = program("setsid");
        let whole = cc(options);
        setsid.arg("--ctty").arg(whole.get_program()).args(["run", "-it"]).args(options);
        setsid.args([small(), "--", "sh", "-c", script]).env("CC_PROGRESS", "never");
        let child = setsid.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let terminal = File::from(controller);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, into) = (terminal.try_clone().unwrap(), screen.clone());
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 1024];
            while let Ok(n @ 1..) = reader.read(&mut bytes) {
                into.lock().unwrap().extend_from_slice(&bytes[..n]);
            }
        });
        Session { terminal, child, screen, before, reader }
    }

    fn sees(&self, text: &str) {
        let seen = || String::from_utf8_lossy(&self.screen.lock().unwrap()).contains(text);
        wait_until(&format!("{text:?} is on the screen"), seen);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    fn types(&mut self, keys: &str) {
        self.terminal.write_all(keys.as_bytes()).unwrap();
    }

    fn is_raw(&self) -> bool {
        let now: Termios = tcgetattr(&self.terminal).unwrap();
        !now.local_modes.contains(LocalModes::ICANON) && !now.output_modes.contains(OutputModes::OPOST)
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for the end; the terminal is then as it was.
    fn ends(mut self) -> (ExitStatus, String) {
        let mut status = None;
        wait_until("cc ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(modes(&self.terminal), self.before, "the terminal is as before");
        // What it wrote last may not have been read yet.
        wait_until("all output is read", || self.reader.is_finished());
        (status.expect("it has ended"), self.text())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All that is set of a terminal.
fn modes(terminal: impl std::os::fd::AsFd) -> String {
    format!("{:?}", tcgetattr(terminal).unwrap())
}

#[test]
fn r2_8_raw_while_it_runs_and_restored_after() {
    // A signal may end a read.
    let script = "trap 'stty size; echo seen' WINCH; stty size; echo ready; \
        while :; do read line && echo got $line; test \"$line\" = end && exit 0; done";
    let mut session = Session::start(&[], script);
    session.sees("30 101\r\nready");
    assert!(session.is_raw());
    assert_ne!(modes(&session.terminal), session.before);
    // Another size while a read is pending.
    tcsetwinsize(&session.terminal, size(33, 77)).unwrap();
    session.types("hello\r");
    session.sees("33 77\r\nseen");
    session.sees("got hello");
    session.types("end\r");
    let (status, text) = session.ends();
    assert_eq!(status.code(), Some(0), "{text}");
}

#[test]
fn r2_8_restored_after_signals() {
    // The command is told, and its end is the program's.
    let session = Session::start(&[], "echo ready; exec sleep 1000");
    session.sees("ready");
    assert!(session.is_raw());
    session.signal(rustix::process::Signal::TERM);
    let (status, text) = session.ends();
    assert_eq!(status.code(), Some(143), "{text}");

    // A key is the guest's matter.
    let mut session =
        Session::start(&[], "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 1; done");
    session.sees("ready");
    session.types("\x03");
    let (status, text) = session.ends();
    assert_eq!(status.code(), Some(9), "{text}");
    assert!(text.contains("interrupted"), "{text}");

    // One that does not care is asked twice; then it is over.
    let session = Session::start(&[], "trap 'echo no' TERM; echo ready; while :; do sleep 1; done");
    session.sees("ready");
    for asked in 1..=3 {
        session.signal(rustix::process::Signal::TERM);
        if asked < 3 {
            let refusals = || session.text().matches("no\r\n").count() >= asked;
            wait_until("it refuses", refusals);
        }
    }
    let (status, text) = session.ends();
    assert_eq!(status.code(), Some(143), "{text}");
}

#[test]
fn r2_8_restored_when_the_machine_ends() {
    let mut session = Session::start(&[], "echo ready; read line; echo c >/proc/sysrq-trigger");
    session.sees("ready");
    assert!(session.is_raw());
    session.types("\r");
    let (status, text) = session.ends();
    assert_eq!(status.code(), Some(70), "{text}");
    assert!(text.contains("the guest kernel panicked"), "{text}");
}
