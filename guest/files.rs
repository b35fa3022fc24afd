//! Processes that work on files for the host, so that PID 1 never waits for one.
//!
//! On request PID 1 starts a *holder*. It listens, and for each connection of the host starts a *worker*, which does
//! what comes on that connection, one thing after the other, and may wait as long as it likes: for a pipe's other end,
//! a lock, a slow disk. Holder and workers are processes with memory of their own but one table of descriptors, so what
//! one worker opens any other can use.
//!
//! The holder's first connection carries nothing. When it ends (the host is done, or this machine was cloned and its
//! connections were reset) holder and workers end, and with them all descriptors. The end of one worker ends its
//! connection and nothing else. Descriptors of holder and workers themselves are above [`State::own`], where no request
//! reaches them.

mod ops;
mod tree;
mod worker;

use alloc::collections::BTreeMap;

use crate::sys::{self, EPOLLIN, Epoll, Fd, paths, workers};

/// Most files open at once.
const MAX_FILES: u64 = 32 * 1024;
/// Descriptors that holder and workers need themselves.
const OWN: u64 = 256;
const MAX_WORKERS: usize = 160;

const LISTENER: u64 = 0;
const CONTROL: u64 = 1;
const CHILDREN: u64 = 2;

struct State {
    listener: Fd,
    /// Where descriptors begin that are not files of the host's.
    own: i32,
    pid: i32,
    /// Connections of the workers, by process id. Only the holder closes them.
    workers: BTreeMap<i32, Fd>,
}

/// Starts a holder that serves connections to `port`; its process id. Only a machine has vsock.
pub(crate) fn start(port: u32, machine: bool) -> sys::Result<i32> {
    let parent = sys::getpid();
    let listener =
        if machine { workers::listen_vsock(port)? } else { workers::listen_local(parent, port)? };
    match workers::fork(false)? {
        0 => {
            let _ = hold(listener, parent);
            sys::exit(70)
        }
        pid => Ok(pid),
    }
}

fn hold(listener: Fd, parent: i32) -> sys::Result<()> {
    const FIRST: i32 = 3;
    workers::end_with(parent)?;
    if listener.raw() != FIRST {
        sys::dup_to(listener.raw(), FIRST)?;
    }
    core::mem::forget(listener);
    workers::close_from(FIRST + 1)?;
    // A shutdown asks with SIGTERM. All else stays blocked: children come by descriptor, and errors say the rest.
    sys::set_signal_mask(!(1 << (sys::SIGTERM - 1)));
    let [soft, hard] = workers::limit(sys::RLIMIT_NOFILE)?;
    let soft = soft.min(MAX_FILES + OWN);
    sys::set_limit(sys::RLIMIT_NOFILE, soft, hard)?;
    let own = soft.saturating_sub(OWN) as i32;
    // Else the kernel might take the host's file service for the least of a full machine's losses.
    if let Ok(file) = sys::open(c"/proc/self/oom_score_adj", sys::O_WRONLY) {
        let _ = file.write(b"-900");
    }
    let listener = move_up(Fd::adopt(FIRST), own)?;
    let mut state = State { listener, own, pid: sys::getpid(), workers: BTreeMap::new() };
    let control = loop {
        match workers::accept(&state.listener) {
            Ok(fd) => break move_up(fd, own)?,
            Err(sys::EPERM) => {}
            Err(e) => return Err(e),
        }
    };
    state.run(&control)
}

fn move_up(fd: Fd, own: i32) -> sys::Result<Fd> {
    paths::duplicate_from(fd.raw(), own)
}

impl State {
    /// Serves until `control` ends.
    fn run(&mut self, control: &Fd) -> sys::Result<()> {
        let children = move_up(sys::signal_fd(1 << (sys::SIGCHLD - 1))?, self.own)?;
        let epoll = Epoll::new()?.move_up(self.own)?;
        epoll.watch(&self.listener, 0, EPOLLIN, LISTENER)?;
        epoll.watch(control, 0, EPOLLIN, CONTROL)?;
        epoll.watch(&children, 0, EPOLLIN, CHILDREN)?;
        let mut events = [sys::Event::default(); 4];
        loop {
            for event in epoll.wait(&mut events, -1) {
                match event.token {
                    LISTENER => self.on_connection(),
                    CONTROL => {
                        for pid in self.workers.keys() {
                            let _ = sys::kill(*pid, sys::SIGKILL);
                        }
                        sys::exit(0)
                    }
                    _ => {
                        // One of a signal can be pending at most: one read takes all there is.
                        let _ = children.read(&mut [0; 512]);
                        while let Ok(Some((pid, ..))) = sys::reap() {
                            self.workers.remove(&pid);
                        }
                    }
                }
            }
        }
    }

    /// Starts a worker. When that fails the host's connection ends, which says so.
    fn on_connection(&mut self) {
        let Ok(socket) = workers::accept(&self.listener).and_then(|fd| move_up(fd, self.own)) else { return };
        if self.workers.len() >= MAX_WORKERS {
            return;
        }
        match workers::fork(true) {
            Ok(0) => {
                if workers::end_with(self.pid).is_ok() {
                    worker::serve(&socket, self.own);
                }
                // The connection is the holder's to close.
                sys::exit(0)
            }
            Ok(pid) => drop(self.workers.insert(pid, socket)),
            Err(e) => crate::log(format_args!("cannot start a file worker: errno {}", e.0)),
        }
    }
}
