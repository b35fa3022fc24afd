//! One connection to a guest's agent.
//!
//! A [`Client`] is *open* until its byte stream ends, fails or carries nonsense; then it is *ended* for
//! good, and everything that waits on it, on any thread, fails at once with
//! [`io::ErrorKind::NotConnected`] or what [`Client::set_cause`] said before. What had arrived by then
//! (output, an exit status) can still be had.
//!
//! One thread reads and never writes, so that it cannot wait for the guest while the guest waits for
//! it; callers write on their own threads, frame by frame under one lock. Lock order: a stream's
//! state and the table of streams are never held together, nor is either held while writing.
//!
//! The client cannot end its byte stream by itself. Its owner does, by closing it from the other side
//! (the machine stops, the socket is shut down); the reading thread ends with that and
//! [`Client::join`] waits for it.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::errno::{guest_error, spawn_error};
use super::protocol::{self, Decoder, Ending, Message, Spawn};
use super::sockets::Waker;
use super::stream::{Slot, Stream};

/// The host's end of a connection to an agent. Many threads may use one.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    reader: Mutex<Option<JoinHandle<()>>>,
    helpers: Mutex<Vec<Weak<Helper>>>,
}

/// A thread that works with a connection and ends with it.
#[derive(Debug)]
pub struct Helper(Mutex<Option<JoinHandle<()>>>);

impl Helper {
    /// Waits for its end. Several may.
    pub fn join(&self) {
        // Whoever comes second waits for the lock.
        if let Some(thread) = lock(&self.0).take() {
            let _ = thread.join();
        }
    }
}

/// Has a waker called when the connection ends.
pub struct Watch {
    shared: Arc<Shared>,
    id: u32,
}

struct WatchSlot(Waker);

impl Receiver for WatchSlot {
    fn lose(&self) {
        (self.0)();
    }

    fn take_message(&self, _: Message<'_>) -> Result<bool, protocol::Error> {
        Err(protocol::Error::Unexpected)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.forget(self.id);
    }
}

/// The place of one stream, where the reading thread leaves what comes for it.
pub(super) trait Receiver: Send + Sync {
    /// The connection has ended: nothing more will come.
    fn lose(&self);

    /// Takes in a message of the guest. Says whether the stream is over.
    fn take_message(&self, message: Message<'_>) -> Result<bool, protocol::Error>;
}

/// What streams and the reading thread share.
pub(super) struct Shared {
    writer: Mutex<Box<dyn Write + Send>>,
    /// `None` once the connection has ended.
    streams: Mutex<Option<HashMap<u32, Arc<dyn Receiver>>>>,
    next: AtomicU32,
    cause: OnceLock<(io::ErrorKind, String)>,
    /// Whether [`Client::set_cause`] was called.
    told: Mutex<bool>,
    changed: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("cause", &self.cause).finish_non_exhaustive()
    }
}

/// A panic of another thread leaves nothing half-done under our locks.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// The stream number under which the greeting is waited for.
const GREETING: u32 = 0;

impl Client {
    /// Greets the agent at the other end of a byte stream and waits for its greeting, at most
    /// `timeout`. Errors: the stream ends or fails, the other side is no agent or of another version
    /// ([`io::ErrorKind::NotConnected`]), or says nothing ([`io::ErrorKind::TimedOut`]).
    pub fn connect(
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
        timeout: Duration,
    ) -> io::Result<Arc<Self>> {
        let greeting = Arc::new(Slot::default());
        let shared = Arc::new(Shared {
            writer: Mutex::new(Box::new(writer)),
            streams: Mutex::new(Some(HashMap::from([(GREETING, greeting.clone() as Arc<dyn Receiver>)]))),
            next: AtomicU32::new(1),
            cause: OnceLock::new(),
            told: Mutex::new(false),
            changed: Condvar::new(),
        });
        let thread = {
            let shared = shared.clone();
            std::thread::Builder::new().name("cc-agent".into()).spawn(move || shared.read_all(reader))?
        };
        let client = Arc::new(Client { shared, reader: Mutex::new(Some(thread)), helpers: Mutex::default() });
        client.shared.send(0, &Message::Hello(protocol::VERSION))?;
        let stream = Stream::new(client.shared.clone(), greeting, GREETING);
        match stream.reply(Some(Instant::now() + timeout))? {
            Some(_) => Ok(client),
            None => Err(io::Error::new(io::ErrorKind::TimedOut, "the guest agent does not answer")),
        }
    }

    /// Says why the machine is about to end, for the errors of everything that waits on it. The first
    /// call counts; call it before closing the byte stream.
    pub fn set_cause(&self, kind: io::ErrorKind, message: impl Into<String>) {
        let _ = self.shared.cause.set((kind, message.into()));
        *lock(&self.shared.told) = true;
        self.shared.changed.notify_all();
    }

    /// Waits until the owner has said why the machine ended, at most `timeout`; whether it has.
    pub fn wait_cause(&self, timeout: Duration) -> bool {
        let told = lock(&self.shared.told);
        let waited = self.shared.changed.wait_timeout_while(told, timeout, |told| !*told);
        *waited.unwrap_or_else(|e| e.into_inner()).0
    }

    /// The error that every operation gives once the connection has ended.
    pub fn ended_error(&self) -> io::Error {
        self.shared.ended_error()
    }

    /// Has connections to the guest's `port` served by file workers; fails where something else listens there.
    pub fn serve_files(&self, port: u32) -> io::Result<()> {
        self.request(&Message::Files(port))
    }

    /// The error that every operation gives, once the connection has ended or is known to end.
    pub fn ending(&self) -> Option<io::Error> {
        (self.shared.cause.get().is_some() || self.is_ended()).then(|| self.ended_error())
    }

    /// Whether the connection has ended.
    pub fn is_ended(&self) -> bool {
        lock(&self.shared.streams).is_none()
    }

    /// How many operations are under way: running commands, requests without an answer.
    pub fn operations(&self) -> usize {
        lock(&self.shared.streams).as_ref().map_or(0, HashMap::len)
    }

    /// Waits for the reading thread, which ends with the byte stream, and for all helpers.
    pub fn join(&self) {
        let thread = lock(&self.reader).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        let helpers = std::mem::take(&mut *lock(&self.helpers));
        helpers.iter().filter_map(Weak::upgrade).for_each(|helper| helper.join());
    }

    /// Starts a thread that [`Client::join`] waits for. It must end when the connection does.
    pub fn help(&self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<Arc<Helper>> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(work)?;
        let helper = Arc::new(Helper(Mutex::new(Some(thread))));
        let mut helpers = lock(&self.helpers);
        helpers.retain(|helper| helper.strong_count() > 0);
        helpers.push(Arc::downgrade(&helper));
        Ok(helper)
    }

    /// Has `waker` called when the connection ends.
    pub fn watch(&self, waker: Waker) -> io::Result<Watch> {
        let id = self.shared.enter(Arc::new(WatchSlot(waker)))?;
        Ok(Watch { shared: self.shared.clone(), id })
    }

    /// Starts a command and waits until it runs. An error with an OS error code is what its `exec`
    /// failed with; one without tells of its user or working directory and has that code's error as
    /// its source.
    pub fn spawn(&self, spawn: Spawn<'_>) -> io::Result<Stream> {
        let mut piped = spawn.stdio.map(|mode| mode == protocol::Mode::Piped);
        piped[2] &= spawn.terminal.is_none();
        let mut frame = Vec::new();
        let (user, cwd) = (spawn.user, spawn.cwd);
        let (stream, id) = self.open(Slot::with_channels(piped))?;
        Message::Spawn(spawn).encode(id, &mut frame);
        if frame.len() - protocol::HEADER > protocol::MAX_SPAWN {
            stream.forget();
            const E2BIG: i32 = 7;
            return Err(guest_error(E2BIG));
        }
        self.shared.write(&frame)?;
        match stream.started()? {
            Ok(_) => Ok(stream),
            Err((errno, obstacle)) => Err(spawn_error(errno, obstacle, user, cwd)),
        }
    }

    /// Waits at most `timeout` for an answer of the agent and returns how long it took.
    pub fn ping(&self, timeout: Duration) -> io::Result<Duration> {
        let start = Instant::now();
        let (stream, id) = self.open(Slot::default())?;
        self.shared.send(0, &Message::Ping(id.into()))?;
        let answer = stream.reply(Some(start + timeout));
        stream.forget();
        match answer? {
            Some(_) => Ok(start.elapsed()),
            None => Err(io::Error::new(io::ErrorKind::TimedOut, "the guest agent does not answer")),
        }
    }

    /// Gives a restored guest what is its own: time, random numbers, names.
    pub fn renew(&self, renewal: protocol::Renewal<'_>) -> io::Result<()> {
        self.request(&Message::Renew(renewal))
    }

    /// Mounts a root, in which everything runs from then on. Once for each guest.
    pub fn mount_root(&self, root: protocol::Root<'_>) -> io::Result<()> {
        self.request(&Message::Root(root))
    }

    /// Stops every process of the guest, until [`Client::thaw`].
    pub fn freeze(&self) -> io::Result<()> {
        self.request(&Message::Freeze)
    }

    /// Lets the processes that [`Client::freeze`] stopped go on, in a clone too.
    pub fn thaw(&self) -> io::Result<()> {
        self.request(&Message::Thaw)
    }

    /// Has the guest's kernel write out what it has of changed files. The agent does nothing else meanwhile.
    pub fn sync(&self) -> io::Result<()> {
        self.request(&Message::Sync)
    }

    /// Ends the machine from within: SIGTERM to all processes, SIGKILL after `grace`, file systems
    /// written out. Returns just before the machine ends, or with `Ok` when it ended before the
    /// answer came.
    pub fn shutdown(&self, ending: Ending, grace: Duration) -> io::Result<()> {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        let (stream, id) = self.open(Slot::default())?;
        self.shared.send(id, &Message::Shutdown(ending, grace_ms))?;
        match stream.reply(None) {
            // The agent waits to hear that its last words have arrived, but not for long.
            Ok(Some(0)) => {
                let _ = self.shared.send(0, &Message::Ping(id.into()));
                Ok(())
            }
            Ok(None) | Err(_) => Ok(()),
            Ok(Some(errno)) => Err(guest_error(errno)),
        }
    }

    fn request(&self, message: &Message<'_>) -> io::Result<()> {
        let (stream, id) = self.open(Slot::default())?;
        self.shared.send(id, message)?;
        match stream.reply(None)? {
            Some(0) | None => Ok(()),
            Some(errno) => Err(guest_error(errno)),
        }
    }

    fn open(&self, slot: Slot) -> io::Result<(Stream, u32)> {
        let slot = Arc::new(slot);
        let id = self.shared.enter(slot.clone())?;
        Ok((Stream::new(self.shared.clone(), slot, id), id))
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Shared {
    pub(super) fn ended_error(&self) -> io::Error {
        match self.cause.get() {
            Some((kind, message)) => io::Error::new(*kind, message.as_str()),
            None => io::Error::new(io::ErrorKind::NotConnected, "machine is not running"),
        }
    }

    pub(super) fn send(&self, stream: u32, message: &Message<'_>) -> io::Result<()> {
        let mut frame = Vec::new();
        message.encode(stream, &mut frame);
        self.write(&frame)
    }

    fn write(&self, frame: &[u8]) -> io::Result<()> {
        let mut writer = lock(&self.writer);
        let written = writer.write_all(frame).and_then(|()| writer.flush());
        drop(writer);
        written.map_err(|_| {
            // Part of a frame may be out: nothing after it would make sense.
            self.end();
            self.ended_error()
        })
    }

    /// Gives a stream a number and its place on the table.
    pub(super) fn enter(&self, slot: Arc<dyn Receiver>) -> io::Result<u32> {
        let mut streams = lock(&self.streams);
        let Some(table) = streams.as_mut() else {
            drop(streams);
            return Err(self.ended_error());
        };
        let id = loop {
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            if id != GREETING && !table.contains_key(&id) {
                break id;
            }
        };
        table.insert(id, slot);
        Ok(id)
    }

    pub(super) fn forget(&self, id: u32) {
        if let Some(streams) = lock(&self.streams).as_mut() {
            streams.remove(&id);
        }
    }

    /// Ends the connection for everybody.
    fn end(&self) {
        let streams = lock(&self.streams).take();
        for slot in streams.into_iter().flat_map(HashMap::into_values) {
            slot.lose();
        }
    }

    fn read_all(&self, mut reader: impl Read) {
        if let Err(e) = self.read_until_error(&mut reader)
            && let Some(broken) = e.get_ref().and_then(|e| e.downcast_ref::<protocol::Error>())
        {
            let message = format!("the guest agent broke its protocol: {broken}");
            let _ = self.cause.set((io::ErrorKind::NotConnected, message));
        }
        self.end();
    }

    fn read_until_error(&self, reader: &mut impl Read) -> io::Result<()> {
        let mut decoder = Decoder::new();
        let mut greeted = false;
        loop {
            let n = match reader.read(decoder.spare().map_err(io::Error::other)?) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            decoder.advance(n);
            while let Some(frame) = decoder.next().map_err(io::Error::other)? {
                let message = Message::decode(&frame).map_err(io::Error::other)?;
                self.take_message(frame.stream, message, &mut greeted).map_err(io::Error::other)?;
            }
        }
    }

    fn take_message(&self, id: u32, message: Message<'_>, greeted: &mut bool) -> Result<(), protocol::Error> {
        let (id, message) = match message {
            Message::Hello(protocol::VERSION) if !*greeted && id == GREETING => {
                *greeted = true;
                (GREETING, Message::Reply(0))
            }
            Message::Hello(version) if !*greeted => return Err(protocol::Error::Version(version)),
            _ if !*greeted => return Err(protocol::Error::NotAgent),
            Message::Pong(n) => match u32::try_from(n) {
                Ok(id) if id != GREETING => (id, Message::Reply(0)),
                _ => return Err(protocol::Error::Unexpected),
            },
            other => (id, other),
        };
        // A stream that is over here may have had messages under way.
        let slot = lock(&self.streams).as_ref().and_then(|table| table.get(&id).cloned());
        let Some(slot) = slot else { return Ok(()) };
        if slot.take_message(message)? {
            self.forget(id);
        }
        Ok(())
    }
}
