//! A connection as the host's stream.
//!
//! It is *opening* (its address is looked up, it is being made, or a listener is to give it), *open*, or
//! *lingering*: closed by the host while bytes are still to be sent. It is read only while the host has
//! given credit and the connection to the host has room; what the host sends is queued only up to the
//! window. Reading and writing end independently of each other.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::protocol::net::{Event, Halves, NO_LINGER};
use crate::protocol::{self, Channel, Error, MAX_DATA, Message, WINDOW};
use crate::stream::{Context, SEND_HIGH};
use crate::sys::net::{self as sockets, SockAddr};
use crate::sys::{self, EPOLLIN, EPOLLOUT, Errno, Fd};

/// Reads from one connection in a row, for fairness.
const ROUNDS: usize = 8;

/// Seconds a closed connection has to send what it was given, where nothing else was said.
const LINGER: u32 = 30;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Opening,
    Open,
    Lingering,
}

/// How an attempt to open stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// It is open, or the socket tells when there is more to know.
    Underway,
    /// To be tried again in a little while.
    Later,
    Failed(Errno),
}

pub(crate) struct Connection {
    id: u32,
    token: u64,
    state: State,
    fd: Option<Fd>,
    /// Addresses still to be tried, in reverse order, and why the last one failed.
    targets: Vec<SockAddr>,
    last: Errno,
    /// Bytes of the host that have not been sent.
    queue: VecDeque<u8>,
    /// Bytes the host may still send.
    allowed: u32,
    /// Bytes sent and not yet given back as credit.
    written: u32,
    /// The host sends no more.
    ending: bool,
    /// Nothing more can be sent.
    write_done: bool,
    /// Bytes the host takes.
    credit: u32,
    read_done: bool,
    watched: u32,
    /// When to try again to connect, or to linger no longer.
    pub(crate) due: Option<u64>,
    /// Seconds to linger, or [`NO_LINGER`].
    pub(crate) linger: u32,
}

impl Connection {
    pub(crate) fn new(id: u32, token: u64) -> Self {
        Connection {
            id,
            token,
            state: State::Opening,
            fd: None,
            targets: Vec::new(),
            last: sys::EINVAL,
            queue: VecDeque::new(),
            allowed: WINDOW,
            written: 0,
            ending: false,
            write_done: false,
            credit: WINDOW,
            read_done: false,
            watched: 0,
            due: None,
            linger: NO_LINGER,
        }
    }

    pub(crate) fn fd(&self) -> Option<&Fd> {
        self.fd.as_ref().filter(|_| self.state == State::Open)
    }

    pub(crate) fn is_opening(&self) -> bool {
        self.state == State::Opening
    }

    /// Connects to one of `targets`.
    pub(crate) fn connect(&mut self, mut targets: Vec<SockAddr>, cx: &mut Context<'_>) -> Opening {
        targets.reverse();
        self.targets = targets;
        self.connect_next(cx)
    }

    /// Tries the addresses that are left.
    pub(crate) fn connect_next(&mut self, cx: &mut Context<'_>) -> Opening {
        while let Some(target) = self.targets.pop() {
            // Closing the last one took it out of epoll.
            (self.fd, self.watched) = (None, 0);
            let begun = sockets::socket(&target, sockets::STREAM).and_then(|fd| {
                let result = sockets::connect(&fd, &target);
                if matches!(result, Ok(()) | Err(sys::EINPROGRESS)) {
                    self.fd = Some(fd);
                }
                result
            });
            match begun {
                Ok(()) => {
                    self.open(cx);
                    return Opening::Underway;
                }
                Err(sys::EINPROGRESS) => {
                    self.watch(cx);
                    return Opening::Underway;
                }
                // A Unix listener whose queue is full.
                Err(sys::EAGAIN) if target.is_unix() => {
                    self.targets.push(target);
                    return Opening::Later;
                }
                Err(e) => self.last = e,
            }
        }
        Opening::Failed(self.last)
    }

    /// The attempt to connect has come to an end.
    fn connected(&mut self, cx: &mut Context<'_>) -> Opening {
        match self.fd.as_ref().map(sys::socket_error) {
            Some(Ok(())) => {
                self.open(cx);
                Opening::Underway
            }
            Some(Err(e)) => {
                self.last = e;
                self.connect_next(cx)
            }
            None => Opening::Underway,
        }
    }

    /// A listener's connection.
    pub(crate) fn adopt(&mut self, fd: Fd, cx: &mut Context<'_>) {
        self.fd = Some(fd);
        self.open(cx);
    }

    fn open(&mut self, cx: &mut Context<'_>) {
        let Some(fd) = &self.fd else { return };
        self.state = State::Open;
        self.targets = Vec::new();
        let unnamed = SockAddr::from(&protocol::net::Address::Unix(&[]));
        // A connection that is gone already has no peer any more.
        let (local, peer) = (sockets::local(fd).unwrap_or(unnamed), sockets::peer(fd).unwrap_or(unnamed));
        let opened = Event::Opened(local.address(), peer.address());
        Message::SocketEvent(opened).encode(self.id, cx.outgoing);
        self.flush(cx);
    }

    /// The host's bytes.
    pub(crate) fn on_data(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Result<(), Error> {
        let len = bytes.len() as u32;
        self.allowed = self.allowed.checked_sub(len).ok_or(Error::Overrun)?;
        // Another thread of the host may have ended it meanwhile.
        if self.write_done || self.ending {
            return Ok(());
        }
        let mut rest = bytes;
        if let Some(fd) = self.fd.as_ref().filter(|_| self.state == State::Open && self.queue.is_empty()) {
            match fd.write(bytes) {
                Ok(n) => {
                    self.written += n as u32;
                    rest = bytes.get(n..).unwrap_or_default();
                }
                Err(sys::EAGAIN) => {}
                Err(e) => {
                    self.write_failed(e, cx);
                    return Ok(());
                }
            }
        }
        if !rest.is_empty() {
            if self.queue.try_reserve(rest.len()).is_err() {
                self.write_failed(sockets::ENOBUFS, cx);
                return Ok(());
            }
            self.queue.extend(rest);
        }
        self.after_writing(cx);
        Ok(())
    }

    /// The host sends no more.
    pub(crate) fn on_eof(&mut self, cx: &mut Context<'_>) {
        self.ending = true;
        self.after_writing(cx);
    }

    fn write_failed(&mut self, errno: Errno, cx: &mut Context<'_>) {
        self.write_done = true;
        self.queue = VecDeque::new();
        if self.state == State::Open {
            Message::SocketEvent(Event::WriteFailed(errno.0)).encode(self.id, cx.outgoing);
        }
        self.watch(cx);
    }

    /// Sends what is queued.
    fn flush(&mut self, cx: &mut Context<'_>) {
        let Some(fd) = &self.fd else { return };
        while let (front @ [_, ..], _) = self.queue.as_slices() {
            match fd.write(front) {
                Ok(0) | Err(sys::EAGAIN) => break,
                Ok(n) => {
                    self.written += n as u32;
                    self.queue.drain(..n);
                }
                Err(e) => return self.write_failed(e, cx),
            }
        }
        self.after_writing(cx);
    }

    fn after_writing(&mut self, cx: &mut Context<'_>) {
        if self.state == State::Opening {
            return;
        }
        if self.queue.is_empty() && !self.write_done {
            self.queue = VecDeque::new();
            if self.ending {
                self.write_done = true;
                if let Some(fd) = &self.fd {
                    let _ = sockets::shutdown(fd, Halves::Write);
                }
            }
        }
        if self.written >= WINDOW / 2 && !self.ending && self.state == State::Open {
            self.allowed += self.written;
            let credit = core::mem::take(&mut self.written);
            Message::Credit(Channel::Stdin, credit).encode(self.id, cx.outgoing);
        }
        self.watch(cx);
    }

    pub(crate) fn on_credit(&mut self, bytes: u32, cx: &mut Context<'_>) {
        self.credit = self.credit.saturating_add(bytes);
        self.pump(cx);
    }

    pub(crate) fn on_event(&mut self, events: u32, cx: &mut Context<'_>) -> Opening {
        if self.state == State::Opening {
            return self.connected(cx);
        }
        if events & !EPOLLIN != 0 && !self.queue.is_empty() {
            self.flush(cx);
        }
        if events & !EPOLLOUT != 0 {
            self.pump(cx);
        }
        Opening::Underway
    }

    /// Moves what has come to the host, as far as credit and room allow.
    pub(crate) fn pump(&mut self, cx: &mut Context<'_>) {
        let Some(fd) = self.fd.as_ref().filter(|_| self.state == State::Open && !self.read_done) else {
            return;
        };
        for _ in 0..ROUNDS {
            if self.credit == 0 || cx.outgoing.len() >= SEND_HIGH {
                break;
            }
            let max = MAX_DATA.min(self.credit as usize);
            let start = cx.outgoing.len();
            cx.outgoing.extend_from_slice(&protocol::data_header(self.id, Channel::Stdout, 0));
            let data = cx.outgoing.len();
            let read = fd.read_onto(cx.outgoing, max);
            let n = cx.outgoing.len() - data;
            if let (Ok(_), 1..) = (read, n) {
                let header = protocol::data_header(self.id, Channel::Stdout, n);
                if let Some(at) = cx.outgoing.get_mut(start..data) {
                    at.copy_from_slice(&header);
                }
                self.credit -= n as u32;
                // Less than was asked for is all there is.
                if n < max {
                    break;
                }
                continue;
            }
            cx.outgoing.truncate(start);
            match read {
                Err(sys::EAGAIN) => break,
                Ok(_) => Message::Eof(Channel::Stdout).encode(self.id, cx.outgoing),
                Err(e) => Message::SocketEvent(Event::ReadFailed(e.0)).encode(self.id, cx.outgoing),
            }
            self.read_done = true;
            break;
        }
        self.watch(cx);
    }

    /// Watches what may be read and written now.
    pub(crate) fn watch(&mut self, cx: &mut Context<'_>) {
        let Some(fd) = &self.fd else { return };
        let reads = self.state == State::Open && !self.read_done && self.credit > 0;
        let room = cx.outgoing.len() < SEND_HIGH;
        if reads && !room {
            *cx.starved = true;
        }
        let writes = self.state == State::Opening || !self.queue.is_empty();
        let want = if reads && room { EPOLLIN } else { 0 } | if writes { EPOLLOUT } else { 0 };
        if cx.epoll.watch(fd, self.watched, want, self.token).is_ok() {
            self.watched = want;
        }
    }

    /// The host wants no more of it. Says whether it is to be kept until what is queued has been sent.
    pub(crate) fn close(&mut self, reset: bool, cx: &mut Context<'_>) -> bool {
        let reset = reset || self.linger == 0;
        if let Some(fd) = self.fd.as_ref().filter(|_| reset) {
            sockets::reset_on_close(fd);
        }
        if reset || self.state != State::Open || self.queue.is_empty() {
            return false;
        }
        self.state = State::Lingering;
        self.ending = true;
        self.flush(cx);
        !self.is_over()
    }

    /// How long what is queued may take to be sent once it is closed, in nanoseconds.
    pub(crate) fn lingers(&self) -> u64 {
        let seconds = if self.linger == NO_LINGER { LINGER } else { self.linger };
        u64::from(seconds) * 1_000_000_000
    }

    /// Whether nothing more is to be done.
    pub(crate) fn is_over(&self) -> bool {
        self.state == State::Lingering && self.queue.is_empty()
    }
}
