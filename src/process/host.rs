//! Commands of the host: std's own, behind the types that commands of a guest have.
//!
//! A child is *running* until somebody has waited for it, then it has *ended* with a status that stays. A command with
//! a timeout has a thread that kills its process group when the time is over; it ends with the child. What std has no
//! safe way to (terminals, limits, sessions, users by name) is [`io::ErrorKind::Unsupported`] when the command starts.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::command::Command;
use super::status::{ExitStatus, ResourceUsage};
use super::stdio::Kind;
use crate::sys::child;

/// How long those that an ended command left behind may keep its caller waiting for their output.
const GRACE: Duration = Duration::from_millis(500);
/// Bytes that are read at once.
const PIECE: usize = 64 << 10;

/// A process of the host. Clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct HostChild {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pid: u32,
    /// Its process group; none when it joined another's.
    group: Option<Pid>,
    handle: OwnedFd,
    started: Instant,
    state: Mutex<State>,
    timed_out: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// Kept for what it has open; never waited for by itself.
    _child: std::process::Child,
    ended: Option<(ExitStatus, ResourceUsage)>,
}

/// A child and the caller's ends of its streams.
pub(super) struct Started {
    pub(super) child: HostChild,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
}

fn unsupported(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("commands of the host cannot have {what}"))
}

fn stdio(kind: Kind) -> io::Result<std::process::Stdio> {
    Ok(match kind {
        Kind::Null => std::process::Stdio::null(),
        Kind::Piped => std::process::Stdio::piped(),
        Kind::Inherit => std::process::Stdio::inherit(),
        Kind::File(file) => file.into(),
        Kind::Stdin(stdin) => stdin.into_host()?.into(),
        Kind::Stdout(stdout) => stdout.into_host()?.into(),
        Kind::Stderr(stderr) => stderr.into_host()?.into(),
    })
}

/// Starts `command` with these streams.
pub(super) fn start(command: &Command, streams: [Kind; 3]) -> io::Result<Started> {
    let mut std = std::process::Command::new(&command.program);
    std.args(&command.args);
    if let Some(arg0) = &command.arg0 {
        std.arg0(arg0);
    }
    if command.env_clear {
        std.env_clear();
    }
    for (name, value) in &command.env {
        match value {
            Some(value) => std.env(name, value),
            None => std.env_remove(name),
        };
    }
    if let Some(dir) = &command.current_dir {
        std.current_dir(dir);
    }
    let lacking = [
        (command.pty.is_some(), "a terminal"),
        (command.user.is_some(), "a user by name"),
        (command.groups.is_some(), "supplementary groups"),
        (command.setsid, "a session of their own"),
        (!command.limits.is_empty(), "limits"),
    ];
    if let Some((_, what)) = lacking.into_iter().find(|(asked, _)| *asked) {
        return Err(unsupported(what));
    }
    if let Some(uid) = command.uid {
        std.uid(uid);
    }
    if let Some(gid) = command.gid {
        std.gid(gid);
    }
    std.process_group(command.process_group);
    let [stdin, stdout, stderr] = streams;
    std.stdin(stdio(stdin)?).stdout(stdio(stdout)?).stderr(stdio(stderr)?);

    let mut child = std.spawn()?;
    let started = Instant::now();
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let pid = child.id();
    let handle = match Pid::from_raw(pid.cast_signed()) {
        Some(pid) => rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from),
        None => Err(io::ErrorKind::InvalidData.into()),
    };
    let handle = handle.inspect_err(|_| {
        // Nobody could wait for it: it must not run on without its caller.
        let _ = child.kill();
        let _ = child.wait();
    })?;
    let group = if command.process_group == 0 { Pid::from_raw(pid.cast_signed()) } else { None };
    let state = Mutex::new(State { _child: child, ended: None });
    let inner = Inner { pid, group, handle, started, state, timed_out: AtomicBool::new(false) };
    let child = HostChild { inner: Arc::new(inner) };
    if let Some(timeout) = command.timeout {
        let guarded = child.clone();
        let until = started.checked_add(timeout);
        let guard = move || guarded.kill_at(until);
        let thread = std::thread::Builder::new().name("cc-timeout".into()).spawn(guard);
        thread.inspect_err(|_| drop(child.signal(Signal::KILL.as_raw())))?;
    }
    Ok(Started {
        child,
        stdin: stdin.map(OwnedFd::from),
        stdout: stdout.map(OwnedFd::from),
        stderr: stderr.map(OwnedFd::from),
    })
}

impl HostChild {
    pub(super) fn id(&self) -> u32 {
        self.inner.pid
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Whether its time was over.
    pub(super) fn timed_out(&self) -> bool {
        self.inner.timed_out.load(Ordering::SeqCst)
    }

    pub(super) fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        let mut state = self.state();
        if state.ended.is_none()
            && let Some(ended) = child::try_wait(self.inner.pid)?
        {
            let usage = ResourceUsage {
                wall_time: self.inner.started.elapsed(),
                user_time: ended.user,
                system_time: ended.system,
                max_rss: ended.max_rss,
            };
            state.ended = Some((ExitStatus::from_raw(ended.status), usage));
        }
        Ok(state.ended.map(|(status, _)| status))
    }

    /// What it used, once it has ended.
    pub(super) fn usage(&self) -> Option<ResourceUsage> {
        self.try_wait().ok()?;
        self.state().ended.map(|(_, usage)| usage)
    }

    /// Waits until `until`, or for ever; `None` when it still runs then.
    pub(super) fn wait(&self, until: Option<Instant>) -> io::Result<Option<ExitStatus>> {
        loop {
            // Never while the lock is held: others want to know, and to send signals.
            if let Some(status) = self.try_wait()? {
                return Ok(Some(status));
            }
            if !self.poll(until)? {
                return self.try_wait();
            }
        }
    }

    /// Whether it has ended before `until`.
    fn poll(&self, until: Option<Instant>) -> io::Result<bool> {
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let left = left.map(timespec);
            let mut fds = [PollFd::from_borrowed_fd(self.inner.handle.as_fd(), PollFlags::IN)];
            match rustix::event::poll(&mut fds, left.as_ref()) {
                Ok(n) => return Ok(n > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn kill_at(&self, until: Option<Instant>) {
        if matches!(self.poll(until), Ok(false)) {
            self.inner.timed_out.store(true, Ordering::SeqCst);
            let _ = self.signal(Signal::KILL.as_raw());
            // Nobody else may ever ask.
            let _ = self.wait(None);
        }
    }

    /// Sends a signal to its process group while it has not been waited for, so that its number is its own.
    pub(super) fn signal(&self, signal: i32) -> io::Result<()> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let signal = Signal::from_named_raw(signal).ok_or_else(invalid)?;
        let state = self.state();
        if state.ended.is_some() {
            return Ok(());
        }
        let sent = match self.inner.group {
            Some(group) => rustix::process::kill_process_group(group, signal),
            None => rustix::process::pidfd_send_signal(&self.inner.handle, signal),
        };
        match sent {
            // It has ended, and nobody of its group is left.
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Reads both streams to their ends; but once the process has ended, only what was in them then and what else
    /// comes within half a second, since those it left behind may hold them open.
    pub(super) fn collect(&self, streams: [Option<File>; 2]) -> io::Result<[Vec<u8>; 2]> {
        let mut read = [Vec::new(), Vec::new()];
        let mut streams = streams;
        let mut until = None;
        // Bytes that were in each when the process ended: they are read however long that takes.
        let mut owed = [0u64; 2];
        while streams.iter().any(Option::is_some) {
            let left = until.map(|until: Instant| until.saturating_duration_since(Instant::now()));
            let all_here = streams.iter().zip(owed).all(|(stream, owed)| stream.is_none() || owed == 0);
            if left.is_some_and(|left| left.is_zero()) && all_here {
                break;
            }
            let left = left.map(timespec);
            let mut fds: Vec<PollFd<'_>> =
                streams.iter().flatten().map(|s| PollFd::new(s, PollFlags::IN)).collect();
            if until.is_none() {
                fds.push(PollFd::from_borrowed_fd(self.inner.handle.as_fd(), PollFlags::IN));
            }
            match rustix::event::poll(&mut fds, left.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            let mut ready = fds.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>().into_iter();
            for ((stream, bytes), owed) in streams.iter_mut().zip(&mut read).zip(&mut owed) {
                let Some(file) = stream else { continue };
                if ready.next() == Some(true) {
                    match read_some(file, bytes)? {
                        0 => *stream = None,
                        n => *owed = owed.saturating_sub(n as u64),
                    }
                }
            }
            if ready.next() == Some(true) {
                until = Some(Instant::now() + GRACE);
                for (stream, owed) in streams.iter().zip(&mut owed) {
                    *owed = stream.as_ref().map_or(Ok(0), rustix::io::ioctl_fionread)?;
                }
            }
        }
        Ok(read)
    }
}

/// Appends what is there and gives how much that was; 0 at the end.
fn read_some(file: &mut File, bytes: &mut Vec<u8>) -> io::Result<usize> {
    let start = bytes.len();
    bytes.resize(start + PIECE, 0);
    let n = loop {
        match file.read(bytes.get_mut(start..).unwrap_or_default()) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => break other,
        }
    };
    bytes.truncate(start + *n.as_ref().unwrap_or(&0));
    n
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}
