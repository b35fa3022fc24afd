//! The sockets of the host: what its program connects, binds and listens to, as if it were in here.
//!
//! An [`Entry`] is one stream of the host. All descriptors are non-blocking members of the one epoll;
//! nothing here waits. When the connection to the host ends, all sockets close: they were the host's.
//!
//! - [`connection`], [`datagram`]: the two kinds of sockets that carry bytes
//! - [`resolve`]: names, with [`hosts`] and [`dns`] for the text and the messages

mod connection;
mod datagram;
mod dns;
mod hosts;
mod resolve;

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use connection::{Connection, Opening};
use datagram::{Datagrams, answer};
use resolve::{Progress, Resolver};

use crate::protocol::net::{Action, Address, Event, Halves, Opt, Reason, Request, Target};
use crate::protocol::{Channel, Error, Message};
use crate::stream::Context;
use crate::sys::net::{self as sockets, SockAddr};
use crate::sys::{self, EPOLLIN, Errno, Fd};

/// Most streams of sockets at once.
const MAX_STREAMS: usize = 8192;
/// As std asks for.
const BACKLOG: usize = 128;
/// After how long what the kernel does not tell about is tried again.
const RETRY: u64 = 2_000_000;
/// The part of an epoll token that says that it is a socket's.
pub(crate) const TOKEN: u64 = 3;

struct Listener {
    fd: Fd,
    /// Streams that are to become its connections.
    waiting: VecDeque<u64>,
    watched: u32,
}

/// What is done with the addresses of a name.
enum Purpose {
    Connect(Connection),
    Listen,
    Bind,
    Tell,
    /// Connects another stream's datagram socket.
    ConnectDatagrams(u64),
    Send(u64, Vec<u8>),
}

enum Entry {
    Lookup(Resolver, u16, Purpose),
    /// With the listener that is to give it, if it is one of that.
    Connection(Connection, Option<u64>),
    Listener(Listener),
    Datagrams(Datagrams),
}

#[derive(Default)]
pub(crate) struct Net {
    entries: BTreeMap<u64, Entry>,
    /// When something is to be done for which stream.
    timers: BTreeSet<(u64, u64)>,
    scratch: Vec<u8>,
}

fn token(key: u64) -> u64 {
    key << 2 | TOKEN
}

fn failed(key: u64, reason: Reason, errno: Errno, cx: &mut Context<'_>) {
    Message::SocketEvent(Event::Failed(reason, errno.0)).encode(key as u32, cx.outgoing);
}

impl Net {
    /// Closes everything.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.timers.clear();
    }

    /// Whether `key` is a stream of ours.
    pub(crate) fn contains(&self, key: u64) -> bool {
        self.entries.contains_key(&key)
    }

    /// When [`Net::on_time`] is to be called.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    pub(crate) fn on_time(&mut self, now: u64, cx: &mut Context<'_>) {
        while let Some((_, key)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.pop_first();
            match self.entries.remove(&key) {
                Some(Entry::Lookup(mut resolver, port, purpose)) => {
                    let progress = resolver.on_deadline(cx.epoll, token(key));
                    self.after_lookup(key, resolver, port, purpose, progress, cx);
                }
                Some(Entry::Connection(mut connection, _)) => {
                    connection.due = None;
                    // One that is closed has lingered long enough.
                    if connection.is_opening() {
                        let opening = connection.connect_next(cx);
                        self.keep(key, connection, opening, cx);
                    }
                }
                Some(Entry::Datagrams(mut socket)) => {
                    if socket.send_waiting(cx) {
                        self.timers.insert((now + RETRY, key));
                    }
                    self.entries.insert(key, Entry::Datagrams(socket));
                }
                Some(other) => drop(self.entries.insert(key, other)),
                None => {}
            }
        }
    }

    fn unset_timer(&mut self, key: u64, due: Option<u64>) {
        if let Some(at) = due {
            self.timers.remove(&(at, key));
        }
    }

    /// Watches again what was left unread for lack of room.
    pub(crate) fn rewatch(&mut self, cx: &mut Context<'_>) {
        for entry in self.entries.values_mut() {
            match entry {
                Entry::Connection(connection, _) => connection.watch(cx),
                Entry::Datagrams(socket) => socket.watch(cx),
                _ => {}
            }
        }
    }

    pub(crate) fn on_request(
        &mut self,
        key: u64,
        request: Request<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), Error> {
        if let Request::Close(reset) = request {
            self.close(key, reset, cx);
            return Ok(());
        }
        if key as u32 == 0 || self.entries.contains_key(&key) {
            return Err(Error::Unexpected);
        }
        if self.entries.len() >= MAX_STREAMS {
            failed(key, Reason::System, sockets::ENOBUFS, cx);
            return Ok(());
        }
        match request {
            Request::Connect(target) => {
                let connection = Connection::new(key as u32, token(key));
                self.look_up(key, target, Purpose::Connect(connection), cx);
            }
            Request::Listen(target) => self.look_up(key, target, Purpose::Listen, cx),
            Request::Bind(target) => self.look_up(key, target, Purpose::Bind, cx),
            Request::Lookup(target) => self.look_up(key, target, Purpose::Tell, cx),
            Request::Accept(listener) => self.accept(key, key & !0xffff_ffff | u64::from(listener), cx),
            Request::Do(socket, action) => {
                self.act(key, key & !0xffff_ffff | u64::from(socket), action, cx);
            }
            Request::Close(_) => {}
        }
        Ok(())
    }

    /// Messages of a stream of ours.
    pub(crate) fn on_stream(
        &mut self,
        key: u64,
        message: Message<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(), Error> {
        let connection = match self.entries.get_mut(&key) {
            Some(Entry::Connection(connection, _) | Entry::Lookup(_, _, Purpose::Connect(connection))) => {
                connection
            }
            Some(Entry::Datagrams(socket)) => {
                let Message::Credit(Channel::Stdout, bytes) = message else { return Err(Error::Unexpected) };
                socket.on_credit(bytes, cx);
                return Ok(());
            }
            Some(_) => return Err(Error::Unexpected),
            None => return Ok(()),
        };
        match message {
            Message::Data(Channel::Stdin, bytes) => connection.on_data(bytes, cx),
            Message::Eof(Channel::Stdin) => {
                connection.on_eof(cx);
                Ok(())
            }
            Message::Credit(Channel::Stdout, bytes) => {
                connection.on_credit(bytes, cx);
                Ok(())
            }
            _ => Err(Error::Unexpected),
        }
    }

    /// A descriptor of the stream has something to tell.
    pub(crate) fn on_event(&mut self, key: u64, events: u32, cx: &mut Context<'_>) {
        match self.entries.get_mut(&key) {
            Some(Entry::Connection(connection, _)) => match connection.on_event(events, cx) {
                Opening::Underway if !connection.is_over() => {}
                opening => {
                    if let Some(Entry::Connection(connection, _)) = self.entries.remove(&key) {
                        self.unset_timer(key, connection.due);
                        if !connection.is_over() {
                            self.keep(key, connection, opening, cx);
                        }
                    }
                }
            },
            Some(Entry::Datagrams(socket)) => socket.pump(&mut self.scratch, cx),
            Some(Entry::Listener(_)) => self.serve(key, cx),
            Some(Entry::Lookup(..)) => {
                if let Some(Entry::Lookup(mut resolver, port, purpose)) = self.entries.remove(&key) {
                    self.unset_timer(key, Some(resolver.deadline));
                    let progress = resolver.on_event(cx.epoll, token(key));
                    self.after_lookup(key, resolver, port, purpose, progress, cx);
                }
            }
            None => {}
        }
    }

    /// Keeps a connection, unless it cannot be made.
    fn keep(&mut self, key: u64, mut connection: Connection, opening: Opening, cx: &mut Context<'_>) {
        match opening {
            Opening::Failed(errno) => return failed(key, Reason::System, errno, cx),
            Opening::Later => {
                let at = sys::now() + RETRY;
                connection.due = Some(at);
                self.timers.insert((at, key));
            }
            Opening::Underway => {}
        }
        self.entries.insert(key, Entry::Connection(connection, None));
    }

    fn look_up(&mut self, key: u64, target: Target<'_>, purpose: Purpose, cx: &mut Context<'_>) {
        match target {
            Target::Addresses(addresses) => {
                let targets = addresses.iter().map(SockAddr::from).collect();
                self.go_on(key, targets, purpose, cx);
            }
            Target::Name(name, port) => match resolve::known(name) {
                Some(found) => {
                    let targets = found.into_iter().map(|ip| resolve::at(ip, port)).collect();
                    self.go_on(key, targets, purpose, cx);
                }
                None => {
                    let mut resolver = Resolver::new(name);
                    let progress = resolver.begin(cx.epoll, token(key));
                    self.after_lookup(key, resolver, port, purpose, progress, cx);
                }
            },
        }
    }

    fn after_lookup(
        &mut self,
        key: u64,
        resolver: Resolver,
        port: u16,
        purpose: Purpose,
        progress: Progress,
        cx: &mut Context<'_>,
    ) {
        match progress {
            Progress::Waiting => {
                self.timers.insert((resolver.deadline, key));
                self.entries.insert(key, Entry::Lookup(resolver, port, purpose));
            }
            Progress::Found(found) => {
                let targets = found.into_iter().map(|ip| resolve::at(ip, port)).collect();
                self.go_on(key, targets, purpose, cx);
            }
            Progress::Failed(reason, errno) => failed(key, reason, errno, cx),
        }
    }

    /// Does what the addresses were wanted for.
    fn go_on(&mut self, key: u64, targets: Vec<SockAddr>, purpose: Purpose, cx: &mut Context<'_>) {
        let result = match purpose {
            Purpose::Connect(mut connection) => {
                let opening = connection.connect(targets, cx);
                return self.keep(key, connection, opening, cx);
            }
            Purpose::Listen => self.listen(key, &targets, cx),
            Purpose::Bind => self.bind(key, &targets, cx),
            Purpose::Tell => {
                let addresses = targets.iter().map(SockAddr::address).collect();
                Message::SocketEvent(Event::Addresses(addresses)).encode(key as u32, cx.outgoing);
                Ok(())
            }
            Purpose::ConnectDatagrams(socket) => self.connect_datagrams(key, socket, &targets, cx),
            Purpose::Send(socket, bytes) => self.send(key, socket, targets.first(), &bytes, cx),
        };
        if let Err(errno) = result {
            failed(key, Reason::System, errno, cx);
        }
    }

    fn listen(&mut self, key: u64, targets: &[SockAddr], cx: &mut Context<'_>) -> sys::Result<()> {
        let fd = first(targets, |target| {
            let fd = sockets::socket(target, sockets::STREAM)?;
            if !target.is_unix() {
                sockets::reuse_address(&fd)?;
            }
            sockets::bind(&fd, target)?;
            sockets::listen(&fd, BACKLOG)?;
            Ok(fd)
        })?;
        opened(key, sockets::local(&fd)?, None, cx);
        let listener = Listener { fd, waiting: VecDeque::new(), watched: 0 };
        self.entries.insert(key, Entry::Listener(listener));
        Ok(())
    }

    fn bind(&mut self, key: u64, targets: &[SockAddr], cx: &mut Context<'_>) -> sys::Result<()> {
        let fd = first(targets, |target| {
            let fd = sockets::socket(target, sockets::DATAGRAM)?;
            // A Unix socket without a name needs none: the kernel would give it one.
            if !matches!(target.address(), Address::Unix(&[])) {
                sockets::bind(&fd, target)?;
            }
            Ok(fd)
        })?;
        opened(key, sockets::local(&fd)?, None, cx);
        let socket = Datagrams::new(key as u32, token(key), fd, cx);
        self.entries.insert(key, Entry::Datagrams(socket));
        Ok(())
    }

    fn connect_datagrams(
        &mut self,
        key: u64,
        socket: u64,
        targets: &[SockAddr],
        cx: &mut Context<'_>,
    ) -> sys::Result<()> {
        let Some(Entry::Datagrams(socket)) = self.entries.get(&socket) else { return Err(sockets::EBADF) };
        first(targets, |target| sockets::connect(socket.fd(), target))?;
        let peer = sockets::peer(socket.fd())?;
        opened(key, sockets::local(socket.fd())?, Some(peer), cx);
        Ok(())
    }

    fn send(
        &mut self,
        key: u64,
        socket: u64,
        to: Option<&SockAddr>,
        bytes: &[u8],
        cx: &mut Context<'_>,
    ) -> sys::Result<()> {
        let Some(Entry::Datagrams(datagrams)) = self.entries.get_mut(&socket) else {
            return Err(sockets::EBADF);
        };
        if datagrams.send(key as u32, to.copied(), bytes, cx) {
            self.timers.insert((sys::now() + RETRY, socket));
        }
        Ok(())
    }

    fn act(&mut self, key: u64, socket: u64, action: Action<'_>, cx: &mut Context<'_>) {
        match action {
            Action::Connect(target) => self.look_up(key, target, Purpose::ConnectDatagrams(socket), cx),
            Action::Send(Some(target @ Target::Name(..)), bytes) => {
                self.look_up(key, target, Purpose::Send(socket, bytes.to_vec()), cx);
            }
            Action::Send(to, bytes) => {
                let to = match &to {
                    Some(Target::Addresses(addresses)) => addresses.first().map(SockAddr::from),
                    _ => None,
                };
                if let Err(errno) = self.send(key, socket, to.as_ref(), bytes, cx) {
                    failed(key, Reason::System, errno, cx);
                }
            }
            other => {
                let result = self.set_or_tell(socket, &other, cx);
                answer(key as u32, result, cx);
            }
        }
    }

    fn set_or_tell(&mut self, socket: u64, action: &Action<'_>, cx: &mut Context<'_>) -> sys::Result<u32> {
        let entry = self.entries.get_mut(&socket).ok_or(sockets::EBADF)?;
        if let (Entry::Datagrams(socket), Action::Shutdown(halves)) = (&mut *entry, action) {
            return socket.shutdown(*halves, cx).map(|()| 0);
        }
        if let (Entry::Connection(connection, _), Action::Get(Opt::Linger) | Action::Set(Opt::Linger, _)) =
            (&mut *entry, action)
        {
            if let Action::Set(_, seconds) = action {
                connection.linger = *seconds;
            }
            return Ok(connection.linger);
        }
        let fd = match entry {
            Entry::Connection(connection, _) => connection.fd().ok_or(sockets::ENOTCONN)?,
            Entry::Listener(listener) => &listener.fd,
            Entry::Datagrams(socket) => socket.fd(),
            Entry::Lookup(..) => return Err(sockets::ENOTCONN),
        };
        match action {
            Action::Get(Opt::Error) => Ok(sys::socket_error(fd).err().map_or(0, |e| e.0 as u32)),
            Action::Get(opt) => sockets::option(fd, *opt),
            Action::Set(opt, value) => sockets::set_option(fd, *opt, *value).map(|()| 0),
            // The other half ends behind the bytes that are to be sent first.
            Action::Shutdown(Halves::Read) => sockets::shutdown(fd, Halves::Read).map(|()| 0),
            Action::Membership(join, group, interface) => {
                sockets::membership(fd, *join, group, *interface).map(|()| 0)
            }
            _ => Err(sys::EINVAL),
        }
    }

    fn accept(&mut self, key: u64, listener: u64, cx: &mut Context<'_>) {
        let Some(Entry::Listener(its)) = self.entries.get_mut(&listener) else {
            return failed(key, Reason::System, sockets::EBADF, cx);
        };
        its.waiting.push_back(key);
        let connection = Connection::new(key as u32, token(key));
        self.entries.insert(key, Entry::Connection(connection, Some(listener)));
        self.serve(listener, cx);
    }

    /// Gives a listener's connections to the streams that wait for them.
    fn serve(&mut self, key: u64, cx: &mut Context<'_>) {
        let Some(Entry::Listener(mut listener)) = self.entries.remove(&key) else { return };
        while let Some(waiting) = listener.waiting.front().copied() {
            match sockets::accept(&listener.fd) {
                Ok((fd, _)) => {
                    listener.waiting.pop_front();
                    if let Some(Entry::Connection(connection, of)) = self.entries.get_mut(&waiting) {
                        *of = None;
                        connection.adopt(fd, cx);
                    }
                }
                Err(sys::EAGAIN) => break,
                // One that is gone again before it was taken.
                Err(Errno(103)) => {}
                Err(errno) => {
                    listener.waiting.pop_front();
                    self.entries.remove(&waiting);
                    failed(waiting, Reason::System, errno, cx);
                }
            }
        }
        let want = if listener.waiting.is_empty() { 0 } else { EPOLLIN };
        if cx.epoll.watch(&listener.fd, listener.watched, want, token(key)).is_ok() {
            listener.watched = want;
        }
        self.entries.insert(key, Entry::Listener(listener));
    }

    /// The host wants no more of a stream.
    fn close(&mut self, key: u64, reset: bool, cx: &mut Context<'_>) {
        match self.entries.remove(&key) {
            Some(Entry::Connection(mut connection, of)) => {
                if let Some(Entry::Listener(listener)) = of.and_then(|of| self.entries.get_mut(&of)) {
                    listener.waiting.retain(|waiting| *waiting != key);
                }
                self.unset_timer(key, connection.due.take());
                if connection.close(reset, cx) {
                    let at = sys::now() + connection.lingers();
                    connection.due = Some(at);
                    self.timers.insert((at, key));
                    self.entries.insert(key, Entry::Connection(connection, None));
                }
            }
            Some(Entry::Listener(listener)) => {
                for waiting in listener.waiting {
                    self.entries.remove(&waiting);
                    failed(waiting, Reason::System, sockets::ECANCELED, cx);
                }
            }
            Some(Entry::Lookup(resolver, ..)) => self.unset_timer(key, Some(resolver.deadline)),
            Some(Entry::Datagrams(_)) => {}
            None => {
                for entry in self.entries.values_mut() {
                    if let Entry::Datagrams(socket) = entry {
                        socket.cancel(key as u32);
                    }
                }
            }
        }
    }
}

/// What `attempt` gives for the first target for which it does, or why it fails for the last.
fn first<T>(targets: &[SockAddr], mut attempt: impl FnMut(&SockAddr) -> sys::Result<T>) -> sys::Result<T> {
    let mut last = sys::EINVAL;
    for target in targets {
        match attempt(target) {
            Ok(done) => return Ok(done),
            Err(errno) => last = errno,
        }
    }
    Err(last)
}

fn opened(key: u64, local: SockAddr, peer: Option<SockAddr>, cx: &mut Context<'_>) {
    let peer = peer.as_ref().map_or(Address::Unix(&[]), SockAddr::address);
    Message::SocketEvent(Event::Opened(local.address(), peer)).encode(key as u32, cx.outgoing);
}
