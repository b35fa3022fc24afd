//! The addresses of a name, asked for without waiting.
//!
//! A [`Resolver`] is *asking by UDP*, both questions at once from a port of its own, or *by TCP* where an
//! answer did not fit, of one name server at a time; servers and attempts take turns as
//! `/etc/resolv.conf` has it, and so do the names to try. It has one socket and one deadline.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};

use super::dns::{self, Answer, Kind};
use super::hosts::{self, Config};
use crate::protocol::net::{Address, Reason};
use crate::sys::net::{self as sockets, SockAddr};
use crate::sys::{self, EPOLLIN, EPOLLOUT, Epoll, Errno, Fd, Result};

/// Largest of the files that are read.
const MAX_FILE: usize = 1024 * 1024;
const PORT: u16 = 53;
const SECOND: u64 = 1_000_000_000;
/// Longest message that is taken without TCP.
const MAX_UDP: usize = 4096;
/// Messages that are looked at in a row.
const ROUNDS: usize = 16;
const KINDS: [Kind; 2] = [Kind::A, Kind::Aaaa];

pub(crate) enum Progress {
    Waiting,
    Found(Vec<IpAddr>),
    Failed(Reason, Errno),
}

pub(crate) struct Resolver {
    config: Config,
    names: Vec<Vec<u8>>,
    name: usize,
    server: usize,
    attempt: usize,
    ids: [u16; 2],
    answers: [Option<Answer>; 2],
    fd: Option<Fd>,
    tcp: bool,
    /// What has come by TCP.
    received: Vec<u8>,
    watched: u32,
    pub(crate) deadline: u64,
}

/// The socket address of a port at `ip`.
pub(crate) fn at(ip: IpAddr, port: u16) -> SockAddr {
    SockAddr::from(&match ip {
        IpAddr::V4(ip) => Address::V4(ip.octets(), port),
        IpAddr::V6(ip) => Address::V6(ip.octets(), port, 0, 0),
    })
}

/// The addresses that can be told without asking anybody.
pub(crate) fn known(name: &[u8]) -> Option<Vec<IpAddr>> {
    if let Some(ip) = hosts::address(name) {
        return Some(Vec::from([ip]));
    }
    let text = sys::read_regular(c"/etc/hosts", MAX_FILE).unwrap_or_default();
    let found = hosts::lookup(&text, name);
    if !found.is_empty() {
        return Some(in_order(found));
    }
    hosts::local(name).map(|both| in_order(both.to_vec()))
}

/// What there is a way to comes first, of that IPv6: the rules of RFC 6724 that matter for few addresses.
fn in_order(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let reachable = |ip: IpAddr| {
        let to = at(ip, PORT);
        sockets::socket(&to, sockets::DATAGRAM).and_then(|fd| sockets::connect(&fd, &to)).is_ok()
    };
    addresses.sort_by_cached_key(|ip| (!reachable(*ip), ip.is_ipv4()));
    addresses
}

impl Resolver {
    /// Begins to ask for `name`.
    pub(crate) fn new(name: &[u8]) -> Self {
        let text = sys::read_regular(c"/etc/resolv.conf", MAX_FILE).unwrap_or_default();
        let config = hosts::config(&text);
        Resolver {
            names: config.candidates(name),
            config,
            name: 0,
            server: 0,
            attempt: 0,
            ids: [0; 2],
            answers: [None, None],
            fd: None,
            tcp: false,
            received: Vec::new(),
            watched: 0,
            deadline: u64::MAX,
        }
    }

    /// Goes on from the name that is next.
    pub(crate) fn begin(&mut self, epoll: &Epoll, token: u64) -> Progress {
        loop {
            let Some(name) = self.names.get(self.name) else {
                return Progress::Failed(Reason::NoName, sys::ENOENT);
            };
            if dns::question(0, name, Kind::A).is_some() {
                return self.ask(epoll, token);
            }
            self.name += 1;
        }
    }

    /// Asks the server whose turn it is, or the next that can be asked.
    fn ask(&mut self, epoll: &Epoll, token: u64) -> Progress {
        loop {
            if self.try_ask(epoll, token).is_ok() {
                return Progress::Waiting;
            }
            if !self.next_server() {
                return self.give_up();
            }
        }
    }

    fn try_ask(&mut self, epoll: &Epoll, token: u64) -> Result<()> {
        self.close();
        let server = self.config.servers.get(self.server).copied().unwrap_or(Ipv4Addr::LOCALHOST.into());
        let to = at(server, PORT);
        let fd = sockets::socket(&to, if self.tcp { sockets::STREAM } else { sockets::DATAGRAM })?;
        match sockets::connect(&fd, &to) {
            Ok(()) | Err(sys::EINPROGRESS) => {}
            Err(e) => return Err(e),
        }
        self.ids = [sockets::random_u16(), sockets::random_u16()];
        if !self.tcp {
            self.questions(&mut |question| fd.write(question).map(drop))?;
        }
        let events = if self.tcp { EPOLLOUT } else { EPOLLIN };
        epoll.watch(&fd, 0, events, token)?;
        (self.fd, self.watched) = (Some(fd), events);
        self.deadline = sys::now().saturating_add(self.config.timeout * SECOND);
        Ok(())
    }

    /// Gives each question that has no answer yet.
    fn questions(&self, give: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let name = self.names.get(self.name).map(Vec::as_slice).unwrap_or_default();
        for ((kind, id), answer) in KINDS.iter().zip(self.ids).zip(&self.answers) {
            if answer.is_none() {
                give(&dns::question(id, name, *kind).ok_or(sys::EINVAL)?)?;
            }
        }
        Ok(())
    }

    fn close(&mut self) {
        // Closing takes it out of epoll.
        self.fd = None;
        self.watched = 0;
        self.received = Vec::new();
    }

    /// Whether there is another server, or attempt, to ask.
    fn next_server(&mut self) -> bool {
        self.tcp = false;
        self.server += 1;
        if self.server >= self.config.servers.len() {
            self.server = 0;
            self.attempt += 1;
        }
        self.attempt < self.config.attempts
    }

    /// No server told all: what has been told is better than nothing.
    fn give_up(&mut self) -> Progress {
        self.close();
        let found = self.found();
        if found.is_empty() {
            Progress::Failed(Reason::NoAnswer, sys::EAGAIN)
        } else {
            Progress::Found(in_order(found))
        }
    }

    fn found(&self) -> Vec<IpAddr> {
        let lists = self.answers.iter().flatten().map(|answer| match answer {
            Answer::Addresses(list) => list.as_slice(),
            _ => &[],
        });
        lists.flatten().copied().collect()
    }

    /// No answer in time.
    pub(crate) fn on_deadline(&mut self, epoll: &Epoll, token: u64) -> Progress {
        if self.next_server() { self.ask(epoll, token) } else { self.give_up() }
    }

    pub(crate) fn on_event(&mut self, epoll: &Epoll, token: u64) -> Progress {
        let result = if self.tcp { self.on_tcp(epoll, token) } else { self.on_udp() };
        match result {
            Ok(()) if self.answers.iter().all(Option::is_some) => self.conclude(epoll, token),
            Ok(()) => Progress::Waiting,
            Err(_) => self.on_deadline(epoll, token),
        }
    }

    /// Both questions have been answered.
    fn conclude(&mut self, epoll: &Epoll, token: u64) -> Progress {
        let truncated = |answer: &Option<Answer>| *answer == Some(Answer::Truncated);
        if self.answers.iter().any(truncated) {
            self.answers.iter_mut().filter(|a| truncated(a)).for_each(|answer| *answer = None);
            self.tcp = true;
            return self.ask(epoll, token);
        }
        self.close();
        let found = self.found();
        if !found.is_empty() {
            return Progress::Found(in_order(found));
        }
        self.name += 1;
        (self.server, self.attempt, self.tcp) = (0, 0, false);
        self.answers = [None, None];
        self.begin(epoll, token)
    }

    fn on_udp(&mut self) -> Result<()> {
        let mut message = [0; MAX_UDP];
        for _ in 0..ROUNDS {
            let Some(fd) = &self.fd else { return Err(sys::EINVAL) };
            match fd.read(&mut message) {
                Ok(n) => self.take(n, &message)?,
                Err(sys::EAGAIN) => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Takes in a message. What answers none of our questions is somebody else's.
    fn take(&mut self, len: usize, message: &[u8]) -> Result<()> {
        let message = message.get(..len).unwrap_or_default();
        let name = self.names.get(self.name).map(Vec::as_slice).unwrap_or_default();
        for ((kind, id), slot) in KINDS.iter().zip(self.ids).zip(&mut self.answers) {
            let answer = slot.is_none().then(|| dns::answer(message, id, name, *kind)).flatten();
            match answer {
                Some(Answer::Failure) => return Err(sys::EAGAIN),
                // By TCP there is no excuse.
                Some(Answer::Truncated) if self.tcp => return Err(sys::EINVAL),
                Some(answer) => *slot = Some(answer),
                None => {}
            }
        }
        Ok(())
    }

    fn on_tcp(&mut self, epoll: &Epoll, token: u64) -> Result<()> {
        let Some(fd) = &self.fd else { return Err(sys::EINVAL) };
        if self.watched == EPOLLOUT {
            sys::socket_error(fd)?;
            let mut all = Vec::new();
            self.questions(&mut |question| {
                all.extend((question.len() as u16).to_be_bytes());
                all.extend_from_slice(question);
                Ok(())
            })?;
            // A new connection has room for two questions.
            if fd.write(&all)? < all.len() {
                return Err(sys::EINVAL);
            }
            epoll.watch(fd, self.watched, EPOLLIN, token)?;
            self.watched = EPOLLIN;
            return Ok(());
        }
        let mut received = core::mem::take(&mut self.received);
        match fd.read_onto(&mut received, 16 * 1024) {
            Ok(0) => return Err(sys::EINVAL),
            Ok(_) | Err(sys::EAGAIN) => {}
            Err(e) => return Err(e),
        }
        while let Some((&len, rest)) = received.split_first_chunk::<2>() {
            let len = usize::from(u16::from_be_bytes(len));
            if rest.len() < len {
                break;
            }
            self.take(len, rest)?;
            received.drain(..2 + len);
        }
        self.received = received;
        Ok(())
    }
}
