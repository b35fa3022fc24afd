//! The connection to the host and the event loop.
//!
//! A connection is *down* (waiting to try again), *connecting*, or *up*. When it goes down, what runs
//! is detached and goes on; a new connection is a new generation, in which the host counts its
//! streams anew. Nothing here waits but [`Epoll::wait`].

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;

use crate::protocol::{self, Channel, Decoder, Ending, Error, Exited, Message, Mode, Renewal, Spawn};
use crate::spawn::Failure;
use crate::stream::{Context, SEND_HIGH, Stream};
use crate::sys::{self, EPOLLIN, EPOLLOUT, Epoll, Errno, Fd};
use crate::{files, freeze, log, net, root, spawn};

const MAX_STREAMS: usize = 1024;
/// With more than this much unsent, nothing more is read from the host.
const SEND_STOP: usize = 1024 * 1024;

const MS: u64 = 1_000_000;
const BACKOFF: (u64, u64) = (MS, 1000 * MS);
/// A connection attempt that a snapshot froze gets no answer.
const CONNECT_TIMEOUT: u64 = 500 * MS;
/// How long killed processes may take to go.
const KILL_GRACE: u64 = 2000 * MS;
/// How long the last bytes to the host may take.
const FLUSH_GRACE: u64 = 500 * MS;

const LINK: u64 = u64::MAX;
const CHILDREN: u64 = u64::MAX - 1;

/// Where the host is, and with it what this is.
pub(crate) enum Link {
    /// PID 1 of a machine, whose host is at its vsock port.
    Machine,
    /// A process, whose host is at this Unix socket.
    Unix(&'static CStr),
    /// A process that lives as long as this connection.
    Inherited(Fd),
}

/// Where to connect to when there is no connection.
#[derive(Clone, Copy)]
enum Host {
    Vsock,
    Unix(&'static CStr),
    /// It does not come again.
    Gone,
}

enum Connection {
    Down { retry_at: u64 },
    Connecting { fd: Fd, until: u64 },
    Up { fd: Fd, watched: u32, greeted: bool },
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Terminating,
    Killing,
    Telling,
}

struct Shutdown {
    request: u32,
    ending: Ending,
    stage: Stage,
    until: u64,
}

/// The command that the machine ends with.
struct Init {
    pid: i32,
    key: u64,
    ended: bool,
}

pub(crate) struct Server {
    epoll: Epoll,
    children: Fd,
    null: Fd,
    /// Whether this is PID 1 of a machine that is ours.
    machine: bool,
    /// Whether it has been given a root.
    rooted: bool,
    /// What lies over files of the root, by path.
    files: Vec<(CString, Fd)>,
    frozen: freeze::Frozen,
    /// The process that works on files for the host.
    holder: Option<i32>,
    host: Host,
    connection: Connection,
    backoff: u64,
    /// Whether the console has been told that the host cannot be reached.
    told: bool,
    generation: u64,
    decoder: Decoder,
    outgoing: Vec<u8>,
    starved: bool,
    streams: BTreeMap<u64, Stream>,
    /// When the time of which stream is over, for those that run.
    deadlines: BTreeSet<(u64, u64)>,
    net: net::Net,
    shutdown: Option<Shutdown>,
    init: Option<Init>,
}

impl Server {
    pub(crate) fn new(link: Link) -> sys::Result<Self> {
        // All signals are blocked: children come by descriptor, and EPIPE says what SIGPIPE would.
        sys::set_signal_mask(u64::MAX);
        // What is ignored here would be ignored by every command.
        (1..=64).for_each(sys::default_action);
        let epoll = Epoll::new()?;
        let children = sys::signal_fd(1 << (sys::SIGCHLD - 1))?;
        epoll.watch(&children, 0, EPOLLIN, CHILDREN)?;
        let mut server = Server {
            epoll,
            children,
            null: sys::open(c"/dev/null", sys::O_RDWR)?,
            machine: matches!(link, Link::Machine),
            rooted: false,
            files: Vec::new(),
            frozen: freeze::Frozen::default(),
            holder: None,
            host: match link {
                Link::Machine => Host::Vsock,
                Link::Unix(path) => Host::Unix(path),
                Link::Inherited(_) => Host::Gone,
            },
            connection: Connection::Down { retry_at: 0 },
            backoff: BACKOFF.0,
            told: false,
            generation: 0,
            decoder: Decoder::new(),
            outgoing: Vec::new(),
            starved: false,
            streams: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            net: net::Net::default(),
            shutdown: None,
            init: None,
        };
        if let Link::Inherited(fd) = link {
            server.go_up(fd, 0)?;
        }
        Ok(server)
    }

    pub(crate) fn run(&mut self) -> ! {
        let mut events = [sys::Event::default(); 64];
        loop {
            let mut timeout = self.on_time();
            self.flush();
            if matches!(self.connection, Connection::Down { .. }) {
                // It may have gone down just now, and then there is something to do at once.
                timeout = self.on_time();
            }
            let events = self.epoll.wait(&mut events, timeout);
            for event in events {
                let (mask, token) = (event.events, event.token);
                match token {
                    LINK => self.on_link(mask),
                    CHILDREN => drop(self.on_children()),
                    _ if token & 3 == net::TOKEN => {
                        let (net, mut cx) = self.net();
                        net.on_event(token >> 2, mask, &mut cx);
                    }
                    _ => self.on_pipe(token),
                }
            }
        }
    }

    /// Does what is due and says how many milliseconds there are until something is; -1 for never.
    fn on_time(&mut self) -> i32 {
        // What it wrote is all with the host once its stream is over.
        if let Some(init) = &self.init
            && init.ended
            && !self.streams.contains_key(&init.key)
            && self.shutdown.is_none()
        {
            let _ = self.begin_shutdown(0, Ending::PowerOff, 0);
        }
        if let (Connection::Up { .. }, None, true, None) =
            (&self.connection, &self.shutdown, self.deadlines.is_empty(), self.net.deadline())
        {
            return -1;
        }
        let now = sys::now();
        while let Some((_, key)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.pop_first();
            if let Some(stream) = self.streams.get_mut(&key) {
                stream.on_deadline();
            }
        }
        let (net, mut cx) = self.net();
        net.on_time(now, &mut cx);
        match &self.connection {
            Connection::Down { retry_at } if *retry_at <= now => self.connect(now),
            Connection::Connecting { until, .. } if *until <= now => self.go_down(),
            _ => {}
        }
        if self.shutdown.is_some() {
            self.go_on_shutting_down(now);
        }
        let next = match &self.connection {
            Connection::Down { retry_at } => *retry_at,
            Connection::Connecting { until, .. } => *until,
            Connection::Up { .. } => u64::MAX,
        };
        let next = next.min(self.shutdown.as_ref().map_or(u64::MAX, |s| s.until));
        let next = next.min(self.deadlines.first().map_or(u64::MAX, |(at, _)| *at));
        let next = next.min(self.net.deadline().unwrap_or(u64::MAX));
        if next == u64::MAX { -1 } else { (next.saturating_sub(now) / MS + 1).min(60_000) as i32 }
    }

    fn connect(&mut self, now: u64) {
        let begun = match self.host {
            Host::Vsock => sys::connect_vsock(protocol::PORT),
            Host::Unix(path) => sys::connect_unix(path),
            Host::Gone => Err(sys::EINVAL),
        };
        let connecting = begun.and_then(|fd| {
            self.epoll.watch(&fd, 0, EPOLLOUT, LINK)?;
            Ok(fd)
        });
        match connecting {
            Ok(fd) => self.connection = Connection::Connecting { fd, until: now + CONNECT_TIMEOUT },
            Err(Errno(errno)) => {
                if !core::mem::replace(&mut self.told, true) {
                    log(format_args!("cannot reach the host yet: errno {errno}"));
                }
                self.go_down();
            }
        }
    }

    fn go_up(&mut self, fd: Fd, watched: u32) -> sys::Result<()> {
        self.epoll.watch(&fd, watched, EPOLLIN, LINK)?;
        self.generation += 1;
        self.decoder = Decoder::new();
        self.outgoing.clear();
        Message::Hello(protocol::VERSION).encode(0, &mut self.outgoing);
        self.connection = Connection::Up { fd, watched: EPOLLIN, greeted: false };
        Ok(())
    }

    /// Ends the connection. Closing its descriptor takes it out of epoll.
    fn go_down(&mut self) {
        if matches!(self.host, Host::Gone) {
            self.signal_all(sys::SIGKILL);
            sys::exit(0);
        }
        let greeted = matches!(self.connection, Connection::Up { greeted: true, .. });
        self.backoff = if greeted { BACKOFF.0 } else { (self.backoff * 2).min(BACKOFF.1) };
        let wait = if greeted { 0 } else { self.backoff };
        self.connection = Connection::Down { retry_at: sys::now() + wait };
        self.outgoing = Vec::new();
        self.net.clear();
        for stream in self.streams.values_mut() {
            let mut cx =
                Context { epoll: &self.epoll, outgoing: &mut self.outgoing, starved: &mut self.starved };
            stream.detach(&mut cx);
        }
        self.outgoing.clear();
        self.streams.retain(|_, stream| !stream.is_over());
    }

    fn on_link(&mut self, events: u32) {
        match &mut self.connection {
            Connection::Down { .. } => {}
            Connection::Connecting { fd, .. } => {
                if sys::socket_error(fd).is_err() {
                    return self.go_down();
                }
                let now = sys::now();
                let down = Connection::Down { retry_at: now + self.backoff };
                if let Connection::Connecting { fd, .. } = core::mem::replace(&mut self.connection, down)
                    && self.go_up(fd, EPOLLOUT).is_err()
                {
                    self.go_down();
                }
            }
            Connection::Up { fd, .. } => {
                if events & !EPOLLOUT == 0 {
                    return;
                }
                let received = match self.decoder.spare() {
                    Ok(spare) => match fd.read(spare) {
                        Err(sys::EAGAIN) => return,
                        other => other,
                    },
                    Err(_) => Err(sys::EINVAL),
                };
                match received {
                    Ok(n) if n > 0 => {
                        self.decoder.advance(n);
                        if let Err(e) = self.take_messages() {
                            log(format_args!("dropping the host: {e}"));
                            self.go_down();
                        }
                    }
                    _ => self.go_down(),
                }
            }
        }
    }

    fn take_messages(&mut self) -> Result<(), Error> {
        let mut decoder = core::mem::take(&mut self.decoder);
        while let Some(frame) = decoder.next()? {
            self.on_message(frame.stream, Message::decode(&frame)?)?;
        }
        self.decoder = decoder;
        Ok(())
    }

    fn on_message(&mut self, id: u32, message: Message<'_>) -> Result<(), Error> {
        if let Connection::Up { greeted, .. } = &mut self.connection {
            match message {
                Message::Hello(protocol::VERSION) if !*greeted && id == 0 => {
                    *greeted = true;
                    return Ok(());
                }
                Message::Hello(version) if !*greeted => return Err(Error::Version(version)),
                _ if !*greeted => return Err(Error::NotAgent),
                _ => {}
            }
        }
        let reply = match message {
            Message::Socket(request) => {
                let key = self.key(id);
                if self.streams.contains_key(&key) {
                    return Err(Error::Unexpected);
                }
                let (net, mut cx) = self.net();
                return net.on_request(key, request, &mut cx);
            }
            Message::Spawn(spawn) => return self.on_spawn(id, &spawn),
            // It has the reply, then: nothing more is to be said.
            Message::Ping(_) if self.shutdown.as_ref().is_some_and(|s| s.stage == Stage::Telling) => {
                return Ok(());
            }
            Message::Ping(n) if id == 0 => {
                Message::Pong(n).encode(0, &mut self.outgoing);
                return Ok(());
            }
            Message::Shutdown(ending, grace_ms) => match self.begin_shutdown(id, ending, grace_ms) {
                Ok(()) => return Ok(()),
                Err(e) => Err(e),
            },
            // As a guest of nobody's machine the agent must not touch it.
            Message::Renew(_)
            | Message::Root(_)
            | Message::Freeze
            | Message::Thaw
            | Message::Sync
                if !self.machine =>
            {
                Err(sys::EPERM)
            }
            Message::Files(port) => self.serve_files(port),
            Message::Freeze => freeze::freeze(&mut self.frozen),
            Message::Thaw => {
                freeze::thaw(&mut self.frozen);
                Ok(())
            }
            Message::Sync => {
                sys::sync();
                Ok(())
            }
            Message::Root(_) if self.rooted => Err(sys::EALREADY),
            Message::Root(root) => {
                self.rooted = true;
                root::enter(&root).map(|files| self.files = files)
            }
            Message::Renew(renewal) => self.renew(&renewal),
            other => return self.on_stream(id, other),
        };
        Message::Reply(reply.err().map_or(0, |e| e.0)).encode(id, &mut self.outgoing);
        Ok(())
    }

    /// Has files served at `port`, and no longer by who did so far.
    fn serve_files(&mut self, port: u32) -> sys::Result<()> {
        if self.shutdown.is_some() {
            return Err(sys::ESHUTDOWN);
        }
        if let Some(pid) = self.holder.take() {
            let _ = sys::kill(pid, sys::SIGKILL);
        }
        self.holder = Some(files::start(port, self.machine)?);
        Ok(())
    }

    fn renew(&mut self, renewal: &Renewal<'_>) -> sys::Result<()> {
        sys::reseed(renewal.seed)?;
        sys::set_wall_clock(renewal.time_ns)?;
        if let Some(name) = renewal.hostname {
            sys::sethostname(name.to_bytes())?;
        }
        for (path, contents) in &renewal.files {
            if let Some((_, file)) = self.files.iter().find(|(known, _)| **known == **path) {
                root::rewrite(file, contents)?;
            }
        }
        if renewal.thaw {
            freeze::thaw(&mut self.frozen);
        }
        Ok(())
    }

    fn key(&self, id: u32) -> u64 {
        // 2^28 connections, of which each costs a round trip, before numbers come round again.
        (self.generation & 0xfff_ffff) << 32 | u64::from(id)
    }

    fn on_spawn(&mut self, id: u32, spawn: &Spawn<'_>) -> Result<(), Error> {
        let key = self.key(id);
        if id == 0 || self.streams.contains_key(&key) || self.net.contains(key) {
            return Err(Error::Unexpected);
        }
        let started = if self.shutdown.is_some() {
            Err(sys::ESHUTDOWN.into())
        } else if self.streams.len() >= MAX_STREAMS {
            Err(sys::EAGAIN.into())
        } else if spawn.init && !self.machine {
            Err(sys::EPERM.into())
        } else if spawn.init && self.init.is_some() {
            Err(sys::EBUSY.into())
        } else {
            spawn::start(spawn, &self.null, self.machine)
        };
        match started {
            Ok(started) => {
                Message::Spawned(started.pid as u32).encode(id, &mut self.outgoing);
                let mut cx =
                    Context { epoll: &self.epoll, outgoing: &mut self.outgoing, starved: &mut self.starved };
                let mute = spawn.terminal.is_some() && spawn.stdio[1] == Mode::Null;
                if spawn.init {
                    self.init = Some(Init { pid: started.pid, key, ended: false });
                }
                let mut stream = Stream::new(key, id, started, mute, &mut cx);
                if spawn.timeout_ns > 0 {
                    let at = sys::now().saturating_add(spawn.timeout_ns);
                    self.deadlines.insert((at, key));
                    stream.deadline = Some(at);
                }
                self.streams.insert(key, stream);
            }
            Err(Failure(Errno(errno), obstacle)) => {
                Message::SpawnFailed(errno, obstacle).encode(id, &mut self.outgoing)
            }
        }
        Ok(())
    }

    /// Messages of a running command. Its stream may be over already, which the host cannot know.
    fn on_stream(&mut self, id: u32, message: Message<'_>) -> Result<(), Error> {
        let key = self.key(id);
        let Some(stream) = self.streams.get_mut(&key) else {
            let (net, mut cx) = self.net();
            return net.on_stream(key, message, &mut cx);
        };
        let mut cx = Context { epoll: &self.epoll, outgoing: &mut self.outgoing, starved: &mut self.starved };
        match message {
            Message::Data(Channel::Stdin, bytes) => stream.on_data(bytes, &mut cx)?,
            Message::Eof(Channel::Stdin) => stream.on_eof(&mut cx),
            Message::Credit(channel, bytes) => stream.on_credit(channel, bytes, &mut cx),
            Message::Close(channel) => stream.on_close(channel, false, &mut cx),
            Message::Discard(channel) => stream.on_close(channel, true, &mut cx),
            Message::Signal(signal) => stream.signal(signal),
            Message::Resize(rows, cols) => stream.resize(rows, cols),
            _ => return Err(Error::Unexpected),
        }
        if stream.is_over() {
            self.streams.remove(&key);
        }
        Ok(())
    }

    fn on_pipe(&mut self, token: u64) {
        let key = token >> 2;
        let Some(stream) = self.streams.get_mut(&key) else { return };
        let mut cx = Context { epoll: &self.epoll, outgoing: &mut self.outgoing, starved: &mut self.starved };
        match token & 3 {
            0 => stream.on_writable(&mut cx),
            1 => stream.on_readable(Channel::Stdout, &mut cx),
            _ => stream.on_readable(Channel::Stderr, &mut cx),
        }
        if stream.is_over() {
            self.streams.remove(&key);
        }
    }

    /// Takes in all children that have ended. Says whether no child is left.
    fn on_children(&mut self) -> bool {
        let mut scratch = [0; 512];
        // One of a signal can be pending at most: one read takes all there is.
        let _ = self.children.read(&mut scratch);
        let mut reaped = sys::reap();
        while let Ok(Some((pid, status, usage))) = reaped {
            reaped = sys::reap();
            self.holder = self.holder.filter(|holder| *holder != pid);
            let Some(stream) = self.streams.values_mut().find(|s| s.pid == pid && !s.ended) else { continue };
            let micros = |[s, us]: [i64; 2]| (s.max(0) as u64) * 1_000_000 + us.max(0) as u64;
            let exited = Exited {
                status,
                user_us: micros(usage.user),
                system_us: micros(usage.system),
                max_rss_kib: usage.max_rss_kib.max(0) as u64,
                wall_us: sys::now().saturating_sub(stream.started) / 1000,
                timed_out: false,
            };
            if let Some(at) = stream.deadline {
                self.deadlines.remove(&(at, stream.key));
            }
            let mut cx =
                Context { epoll: &self.epoll, outgoing: &mut self.outgoing, starved: &mut self.starved };
            stream.on_exit(exited, &mut cx);
            if let Some(init) = self.init.as_mut().filter(|init| init.pid == pid) {
                init.ended = true;
            }
        }
        self.streams.retain(|_, stream| !stream.is_over());
        matches!(reaped, Err(sys::ECHILD))
    }

    fn flush(&mut self) {
        let Connection::Up { fd, watched, .. } = &mut self.connection else { return };
        let mut sent = 0;
        let mut broken = false;
        while sent < self.outgoing.len() {
            match fd.write(&self.outgoing[sent..]) {
                Ok(n) if n > 0 => sent += n,
                Err(sys::EAGAIN) => break,
                _ => {
                    broken = true;
                    break;
                }
            }
        }
        if broken {
            return self.go_down();
        }
        self.outgoing.drain(..sent);
        let reading = if self.outgoing.len() < SEND_STOP { EPOLLIN } else { 0 };
        let writing = if self.outgoing.is_empty() { 0 } else { EPOLLOUT };
        if self.epoll.watch(fd, *watched, reading | writing, LINK).is_ok() {
            *watched = reading | writing;
        }
        if self.starved && self.outgoing.len() < SEND_HIGH / 2 {
            self.starved = false;
            for stream in self.streams.values_mut() {
                let mut cx =
                    Context { epoll: &self.epoll, outgoing: &mut self.outgoing, starved: &mut self.starved };
                stream.rewatch(&mut cx);
            }
            let (net, mut cx) = self.net();
            net.rewatch(&mut cx);
        }
    }

    /// The sockets, and what they work with.
    fn net(&mut self) -> (&mut net::Net, Context<'_>) {
        let cx = Context { epoll: &self.epoll, outgoing: &mut self.outgoing, starved: &mut self.starved };
        (&mut self.net, cx)
    }

    /// Signals every process of the machine; where it is not ours, every command's group.
    fn signal_all(&self, signal: i32) {
        if self.machine {
            let _ = sys::kill(-1, signal);
        } else {
            self.streams.values().for_each(|stream| stream.signal(signal));
        }
    }

    fn begin_shutdown(&mut self, request: u32, ending: Ending, grace_ms: u32) -> sys::Result<()> {
        if self.shutdown.is_some() {
            return Err(sys::EALREADY);
        }
        if self.machine {
            sys::sync();
        }
        self.signal_all(sys::SIGTERM);
        let until = sys::now() + u64::from(grace_ms) * MS;
        self.shutdown = Some(Shutdown { request, ending, stage: Stage::Terminating, until });
        Ok(())
    }

    fn go_on_shutting_down(&mut self, now: u64) {
        let childless = self.on_children();
        let Some(shutdown) = &mut self.shutdown else { return };
        let due = shutdown.until <= now;
        match shutdown.stage {
            Stage::Terminating | Stage::Killing if childless => self.tell_the_end(now),
            Stage::Terminating if due => {
                (shutdown.stage, shutdown.until) = (Stage::Killing, now + KILL_GRACE);
                self.signal_all(sys::SIGKILL);
            }
            Stage::Killing if due => self.tell_the_end(now),
            Stage::Telling if due || self.outgoing.is_empty() => {
                let ending = shutdown.ending;
                self.end(ending)
            }
            _ => {}
        }
    }

    fn tell_the_end(&mut self, now: u64) {
        if self.machine {
            sys::sync();
        }
        let Some(shutdown) = &mut self.shutdown else { return };
        (shutdown.stage, shutdown.until) = (Stage::Telling, now + FLUSH_GRACE);
        Message::Reply(0).encode(shutdown.request, &mut self.outgoing);
        self.flush();
    }

    fn end(&self, ending: Ending) -> ! {
        if !self.machine {
            sys::exit(0);
        }
        loop {
            sys::reboot(match ending {
                Ending::PowerOff => 0x4321_fedc,
                Ending::Restart => 0x0123_4567,
            });
        }
    }
}
