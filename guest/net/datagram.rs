//! A datagram socket as the host's stream. What comes is sent to the host as it comes, while there is
//! credit; what then does not fit into the socket's own buffer is lost, as datagrams are. What cannot be
//! sent at once waits here, a bounded number of them.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::protocol::net::{DATAGRAM_COST, Event, Halves, Reason};
use crate::protocol::{MAX_DATA, Message, WINDOW};
use crate::stream::{Context, SEND_HIGH};
use crate::sys::net::{self as sockets, SockAddr};
use crate::sys::{self, EPOLLIN, Errno, Fd};

/// Most datagrams that wait to be sent.
const MAX_WAITING: usize = 64;
/// Datagrams taken from one socket in a row, for fairness.
const ROUNDS: usize = 32;

struct Waiting {
    request: u32,
    to: Option<SockAddr>,
    bytes: Vec<u8>,
}

pub(crate) struct Datagrams {
    id: u32,
    token: u64,
    fd: Fd,
    credit: u32,
    read_done: bool,
    waiting: VecDeque<Waiting>,
    watched: u32,
}

impl Datagrams {
    pub(crate) fn new(id: u32, token: u64, fd: Fd, cx: &mut Context<'_>) -> Self {
        let mut socket = Datagrams {
            id,
            token,
            fd,
            credit: WINDOW,
            read_done: false,
            waiting: VecDeque::new(),
            watched: 0,
        };
        socket.watch(cx);
        socket
    }

    pub(crate) fn fd(&self) -> &Fd {
        &self.fd
    }

    /// Sends a datagram for `request`, which is answered when that is done. Says whether it waits.
    pub(crate) fn send(
        &mut self,
        request: u32,
        to: Option<SockAddr>,
        bytes: &[u8],
        cx: &mut Context<'_>,
    ) -> bool {
        let result = if self.waiting.is_empty() {
            sockets::send_to(&self.fd, bytes, to.as_ref())
        } else {
            Err(sys::EAGAIN)
        };
        match result {
            Err(sys::EAGAIN) if self.waiting.len() < MAX_WAITING => {
                self.waiting.push_back(Waiting { request, to, bytes: bytes.to_vec() });
                true
            }
            Err(sys::EAGAIN) => {
                answer(request, Err(sockets::ENOBUFS), cx);
                false
            }
            result => {
                answer(request, result.map(|n| n as u32), cx);
                false
            }
        }
    }

    /// Tries again to send what waits. Says whether something still does.
    pub(crate) fn send_waiting(&mut self, cx: &mut Context<'_>) -> bool {
        while let Some(next) = self.waiting.front() {
            let result = sockets::send_to(&self.fd, &next.bytes, next.to.as_ref());
            if result == Err(sys::EAGAIN) {
                return true;
            }
            answer(next.request, result.map(|n| n as u32), cx);
            self.waiting.pop_front();
        }
        false
    }

    /// Nobody waits any more for what `request` was to send.
    pub(crate) fn cancel(&mut self, request: u32) {
        self.waiting.retain(|waiting| waiting.request != request);
    }

    pub(crate) fn shutdown(&mut self, halves: Halves, cx: &mut Context<'_>) -> sys::Result<()> {
        sockets::shutdown(&self.fd, halves)?;
        self.read_done |= halves != Halves::Write;
        self.watch(cx);
        Ok(())
    }

    pub(crate) fn on_credit(&mut self, bytes: u32, cx: &mut Context<'_>) {
        self.credit = self.credit.saturating_add(bytes);
        self.watch(cx);
    }

    fn wants(&self) -> bool {
        !self.read_done && self.credit as usize >= MAX_DATA + DATAGRAM_COST as usize
    }

    /// Moves what has come to the host. `scratch` is room for one datagram.
    pub(crate) fn pump(&mut self, scratch: &mut Vec<u8>, cx: &mut Context<'_>) {
        for _ in 0..ROUNDS {
            if !self.wants() || cx.outgoing.len() >= SEND_HIGH {
                break;
            }
            let event = match sockets::receive_from(&self.fd, scratch, MAX_DATA) {
                Err(sys::EAGAIN) => break,
                Ok(from) => {
                    self.credit -= scratch.len() as u32 + DATAGRAM_COST;
                    Message::SocketEvent(Event::Datagram(from.address(), scratch))
                        .encode(self.id, cx.outgoing);
                    continue;
                }
                Err(e) => Event::DatagramFailed(e.0),
            };
            self.credit -= DATAGRAM_COST;
            Message::SocketEvent(event).encode(self.id, cx.outgoing);
        }
        self.watch(cx);
    }

    pub(crate) fn watch(&mut self, cx: &mut Context<'_>) {
        let room = cx.outgoing.len() < SEND_HIGH;
        if self.wants() && !room {
            *cx.starved = true;
        }
        let want = if self.wants() && room { EPOLLIN } else { 0 };
        if cx.epoll.watch(&self.fd, self.watched, want, self.token).is_ok() {
            self.watched = want;
        }
    }
}

/// Answers a request: its value, or why it could not be done.
pub(crate) fn answer(request: u32, result: Result<u32, Errno>, cx: &mut Context<'_>) {
    let event = match result {
        Ok(value) => Event::Value(value),
        Err(Errno(errno)) => Event::Failed(Reason::System, errno),
    };
    Message::SocketEvent(event).encode(request, cx.outgoing);
}
