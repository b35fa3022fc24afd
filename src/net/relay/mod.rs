//! Ports of one side that lead to a server of the other.
//!
//! A relay is one thread. It waits for descriptors of the host in one `poll`, and for sockets of a guest,
//! which have none, by a [`Bell`] in it that their wakers ring. Each connection is a [`Pair`]; only those
//! that something happened to are looked at. The thread ends when the [`Exposed`] is dropped, or with the
//! machine, and takes all its connections along.

mod endpoint;
mod pair;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::mem;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::place::{End, EndKind};
use super::tcp::ip;
use super::{SocketAddrs, host};
use crate::agent::{self, Connection, Helper, Until, Waker, Watch, named};
use crate::sys::sockets::{Bell, Interest, wait};

use endpoint::Endpoint;
use pair::{Pair, Progress};

/// How long a listener rests that has no descriptor to give.
const REST: Duration = Duration::from_millis(50);

/// A port that leads to a server elsewhere, for as long as this lives.
///
/// [`Net::expose`](super::Net::expose) and [`Net::forward`](super::Net::forward) make it. Dropping it
/// closes the port and resets its connections; no thread and no descriptor is left then. So does the end
/// of the machine.
pub struct Exposed {
    local: SocketAddr,
    shared: Arc<Shared>,
    thread: Thread,
}

enum Thread {
    Helper(Arc<Helper>),
    Own(Option<JoinHandle<()>>),
}

impl fmt::Debug for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exposed").field("local_addr", &self.local).finish_non_exhaustive()
    }
}

impl Exposed {
    /// Most connections that are carried at once.
    pub const MAX_CONNECTIONS: usize = 1024;

    /// The address that can be connected to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// How many connections are carried now.
    pub fn connections(&self) -> usize {
        lock(&self.shared.state).connections
    }
}

impl Drop for Exposed {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.bell.ring();
        match &mut self.thread {
            Thread::Helper(helper) => helper.join(),
            Thread::Own(thread) => {
                if let Some(thread) = thread.take() {
                    let _ = thread.join();
                }
            }
        }
    }
}

/// What the thread has in common with wakers and the handle.
pub(super) struct Shared {
    bell: Bell,
    stop: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Pairs whose guest's end has something to tell.
    ready: BTreeSet<u64>,
    connections: usize,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|e| e.into_inner())
}

impl Shared {
    /// What rings for a pair.
    fn waker(self: &Arc<Self>, key: u64) -> Waker {
        let shared = self.clone();
        Arc::new(move || {
            lock(&shared.state).ready.insert(key);
            shared.bell.ring();
        })
    }
}

enum Listener {
    Host(TcpListener),
    /// With the connection that is to be the next.
    Guest(agent::Listener, Option<Connection>),
}

/// Whom accepted connections are connected to.
enum Dial {
    Host(Vec<SocketAddr>),
    Guest(Arc<agent::Client>, agent::Place),
}

/// Relays from a listener at `at` of `from` to `target` of `to`.
pub(super) fn relay(from: End, at: &SocketAddrs, to: End, target: SocketAddrs) -> io::Result<Exposed> {
    let shared =
        Arc::new(Shared { bell: Bell::new()?, stop: AtomicBool::new(false), state: Mutex::default() });
    let listen = || -> io::Result<(Listener, SocketAddr)> {
        match &from.0 {
            EndKind::Host => {
                let listener = TcpListener::bind(&*host::resolve(at)?)?;
                listener.set_nonblocking(true)?;
                let local = listener.local_addr()?;
                Ok((Listener::Host(listener), local))
            }
            EndKind::Guest(client) => {
                let listener = agent::Listener::listen(client, &at.place())?;
                let local = ip(listener.local());
                Ok((Listener::Guest(listener, None), local))
            }
        }
    };
    let dial = match &to.0 {
        EndKind::Host => {
            Dial::Host(host::resolve(&target).map_err(|e| named(format_args!("look up {target}"), e))?)
        }
        EndKind::Guest(client) => Dial::Guest(client.clone(), target.place()),
    };
    let (listener, local) = listen().map_err(|e| named(format_args!("listen at {at}"), e))?;
    let client = [&from, &to].into_iter().find_map(|end| match &end.0 {
        EndKind::Guest(client) => Some(client.clone()),
        EndKind::Host => None,
    });
    let watch = client.as_ref().map(|client| {
        let shared = shared.clone();
        client.watch(Arc::new(move || {
            shared.stop.store(true, Ordering::SeqCst);
            shared.bell.ring();
        }))
    });
    let relay = Relay {
        shared: shared.clone(),
        listener,
        dial,
        pairs: BTreeMap::new(),
        next: LISTENER + 1,
        rest_until: None,
        _watch: watch.transpose()?,
    };
    let name = "cc-relay";
    let thread = match &client {
        Some(client) => Thread::Helper(client.help(name, move || relay.run())?),
        None => {
            let builder = std::thread::Builder::new().name(name.into());
            Thread::Own(Some(builder.spawn(move || relay.run())?))
        }
    };
    Ok(Exposed { local, shared, thread })
}

/// The key under which the listener is ready.
const LISTENER: u64 = 0;

struct Relay {
    shared: Arc<Shared>,
    listener: Listener,
    dial: Dial,
    pairs: BTreeMap<u64, Pair>,
    next: u64,
    /// Until when no connection is accepted, for lack of descriptors.
    rest_until: Option<Instant>,
    _watch: Option<Watch>,
}

impl Relay {
    fn run(mut self) {
        self.accept();
        while !self.shared.stop.load(Ordering::SeqCst) {
            let Ok(ready) = self.wait() else { break };
            if self.shared.stop.load(Ordering::SeqCst) {
                break;
            }
            for key in ready {
                if key == LISTENER {
                    self.accept();
                } else {
                    self.carry(key);
                }
            }
        }
        for pair in mem::take(&mut self.pairs).into_values() {
            pair.reset();
        }
        lock(&self.shared.state).connections = 0;
    }

    /// Waits until something is to be done, and says for what.
    fn wait(&mut self) -> io::Result<BTreeSet<u64>> {
        let timeout = self.rest_until.map(|at| at.saturating_duration_since(Instant::now()));
        let mut entries: Vec<(BorrowedFd<'_>, Interest)> =
            vec![(self.shared.bell.fd(), Interest { read: true, write: false })];
        let mut keys = Vec::new();
        if let Listener::Host(listener) = &self.listener
            && self.rest_until.is_none()
            && self.pairs.len() < Exposed::MAX_CONNECTIONS
        {
            entries.push((listener.as_fd(), Interest { read: true, write: false }));
            keys.push(LISTENER);
        }
        for (key, pair) in &self.pairs {
            for (fd, interest) in pair.interests() {
                entries.push((fd, interest));
                keys.push(*key);
            }
        }
        let found = wait(&entries, timeout)?;
        if found.first() == Some(&true) {
            self.shared.bell.clear();
        }
        let mut ready = mem::take(&mut lock(&self.shared.state).ready);
        ready.extend(found.iter().skip(1).zip(&keys).filter(|(ready, _)| **ready).map(|(_, key)| *key));
        if self.rest_until.is_some_and(|at| at <= Instant::now()) {
            self.rest_until = None;
            ready.insert(LISTENER);
        }
        Ok(ready)
    }

    /// Accepts what there is, as far as there may be more.
    fn accept(&mut self) {
        while self.pairs.len() < Exposed::MAX_CONNECTIONS && self.rest_until.is_none() {
            let accepted = match &mut self.listener {
                Listener::Host(listener) => match listener.accept() {
                    Ok((stream, _)) => stream.set_nonblocking(true).map(|()| Some(Endpoint::host(stream))),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
                    Err(e) => Err(e),
                },
                Listener::Guest(listener, begun) => take(listener, begun, &self.shared),
            };
            match accepted {
                Ok(Some(endpoint)) => self.connect(endpoint),
                Ok(None) => break,
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => self.rest_until = Some(Instant::now() + REST),
            }
        }
    }

    /// Connects what has been accepted.
    fn connect(&mut self, accepted: Endpoint) {
        let key = self.next;
        self.next += 1;
        let dialled = match &self.dial {
            Dial::Host(addrs) => Endpoint::dial_host(addrs),
            Dial::Guest(client, place) => Connection::connecting(client, place).map(Endpoint::guest),
        };
        match dialled {
            Ok(dialled) => {
                accepted.set_waker(self.shared.waker(key));
                dialled.set_waker(self.shared.waker(key));
                self.pairs.insert(key, Pair::new(accepted, dialled));
                lock(&self.shared.state).connections = self.pairs.len();
                self.carry(key);
            }
            // As a server that does not listen.
            Err(_) => accepted.reset(),
        }
    }

    /// Moves what a pair has to be moved.
    fn carry(&mut self, key: u64) {
        let Some(pair) = self.pairs.get_mut(&key) else { return };
        let over = match pair.carry() {
            Ok(Progress::Waits) => return,
            // Others have their turn first.
            Ok(Progress::More) => {
                lock(&self.shared.state).ready.insert(key);
                self.shared.bell.ring();
                return;
            }
            Ok(Progress::Over) => true,
            Err(_) => false,
        };
        let full = self.pairs.len() >= Exposed::MAX_CONNECTIONS;
        if let Some(pair) = self.pairs.remove(&key)
            && !over
        {
            pair.reset();
        }
        lock(&self.shared.state).connections = self.pairs.len();
        if full {
            self.accept();
        }
    }
}

/// The next connection of a guest's listener, if it is there.
fn take(
    listener: &agent::Listener,
    begun: &mut Option<Connection>,
    shared: &Arc<Shared>,
) -> io::Result<Option<Endpoint>> {
    let connection = match begun.take() {
        Some(connection) => connection,
        None => {
            let connection = listener.accepting()?;
            connection.set_waker(Some(shared.waker(LISTENER)));
            connection
        }
    };
    match connection.opened(Until::Now) {
        Ok(()) => Ok(Some(Endpoint::guest(connection))),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            *begun = Some(connection);
            Ok(None)
        }
        Err(e) => Err(e),
    }
}
