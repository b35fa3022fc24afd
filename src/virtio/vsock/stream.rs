//! The host's end of the sockets: listeners and streams with std's shapes.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Condvar, MutexGuard};
use std::time::{Duration, Instant};

use super::Shared;
use super::conn::{Phase, RECEIVE_BUF};
use super::packet::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::state::{Listener, State};

/// The host's side of a socket device: makes connections to the guest and receives its own.
/// Clones are handles to the same device and do not keep it alive.
#[derive(Debug, Clone)]
pub struct VsockHost {
    shared: Arc<Shared>,
}

impl VsockHost {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Accepts the guest's connections to `port` of the host (CID 2) from now on.
    ///
    /// # Errors
    /// `AddrInUse` if somebody listens there, `NotConnected` if the device is gone.
    pub fn listen(&self, port: u32) -> io::Result<VsockListener> {
        let mut state = self.shared.lock();
        if state.closed {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if state.listeners.contains_key(&port) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let listener = Listener::default();
        let arrived = listener.arrived.clone();
        state.listeners.insert(port, listener);
        Ok(VsockListener { shared: self.shared.clone(), port, arrived })
    }

    /// Connects to `port` in the guest. Waits up to `timeout`, also for a driver that is not there
    /// yet; without a timeout until the guest answers or the device is gone.
    ///
    /// # Errors
    /// `ConnectionRefused` if nobody listens, `TimedOut`, `NotConnected` if the device is gone,
    /// `QuotaExceeded` if there are too many connections.
    pub fn connect(&self, port: u32, timeout: Option<Duration>) -> io::Result<VsockStream> {
        let until = deadline(timeout);
        let mut state = self.shared.lock();
        if state.closed {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let id = state.open(port, RECEIVE_BUF)?;
        state.work(false);
        // From here on the stream's drop gives the connection up.
        let stream = match state.conns.get(&id) {
            Some(conn) => VsockStream::new(&self.shared, id, conn.readable.clone(), conn.writable.clone()),
            None => return Err(io::ErrorKind::NotConnected.into()),
        };
        let result = loop {
            let Some(conn) = state.conns.get_mut(&id) else {
                break Err(io::ErrorKind::NotConnected.into());
            };
            match (conn.phase, conn.error) {
                (Phase::Established, _) => break Ok(()),
                (_, Some(kind)) => break Err(kind.into()),
                (Phase::Dead, None) => break Err(io::ErrorKind::ConnectionReset.into()),
                _ => {}
            }
            if expired(until) {
                break Err(io::ErrorKind::TimedOut.into());
            }
            conn.writers += 1;
            state = wait(&stream.handle.writable, state, until);
            if let Some(conn) = state.conns.get_mut(&id) {
                conn.writers -= 1;
            }
        };
        drop(state);
        result.map(|()| stream)
    }

    /// Ends all streams with `ConnectionReset`. Listeners stay.
    pub fn close_all(&self) {
        let mut state = self.shared.lock();
        state.abort_all(io::ErrorKind::ConnectionReset);
        state.work(false);
    }

    /// Ends all streams and listeners for good, as dropping the device does.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Whether the device stands still: nothing is exchanged with the guest until it goes on.
    pub fn is_paused(&self) -> bool {
        self.shared.lock().paused
    }

    /// Connections that take up room now, including those about to end.
    pub fn connections(&self) -> usize {
        self.shared.lock().conns.len()
    }
}

/// Receives the guest's connections to one port. Dropping it refuses those not accepted.
#[derive(Debug)]
pub struct VsockListener {
    shared: Arc<Shared>,
    port: u32,
    arrived: Arc<Condvar>,
}

impl VsockListener {
    /// The port listened on.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Waits for the next connection, up to `timeout` if there is one.
    ///
    /// # Errors
    /// `TimedOut`, or `NotConnected` once the device is gone.
    pub fn accept(&self, timeout: Option<Duration>) -> io::Result<VsockStream> {
        let until = deadline(timeout);
        let mut state = self.shared.lock();
        loop {
            while let Some(id) = state.listeners.get_mut(&self.port).and_then(|l| l.backlog.pop_front()) {
                if let Some(conn) = state.conns.get_mut(&id) {
                    // Now that somebody reads, the guest may send further ahead.
                    conn.buf_alloc = RECEIVE_BUF as u32;
                    let (readable, writable) = (conn.readable.clone(), conn.writable.clone());
                    return Ok(VsockStream::new(&self.shared, id, readable, writable));
                }
            }
            if state.closed {
                return Err(io::ErrorKind::NotConnected.into());
            }
            if expired(until) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            state = wait(&self.arrived, state, until);
        }
    }
}

impl Drop for VsockListener {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let Some(listener) = state.listeners.remove(&self.port) else { return };
        for id in listener.backlog {
            if let Some(conn) = state.conns.get_mut(&id) {
                conn.held = false;
            }
            state.abort(id, None);
        }
        state.work(false);
    }
}

/// A connection to the guest. This corresponds to [`std::net::TcpStream`], without addresses.
/// Clones made by [`VsockStream::try_clone`] are the same connection; it ends with the last.
///
/// A read or write that exceeds its timeout fails with `TimedOut` on every host.
#[derive(Debug)]
pub struct VsockStream {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    id: u64,
    readable: Arc<Condvar>,
    writable: Arc<Condvar>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.release(self.id);
        state.work(false);
    }
}

impl VsockStream {
    fn new(shared: &Arc<Shared>, id: u64, readable: Arc<Condvar>, writable: Arc<Condvar>) -> Self {
        Self { handle: Arc::new(Handle { shared: shared.clone(), id, readable, writable }) }
    }

    /// Another handle to the same connection.
    ///
    /// # Errors
    /// None today; the signature is std's.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { handle: self.handle.clone() })
    }

    /// Whether the other side still takes bytes and may still send some, as far as is known here.
    pub fn is_open(&self) -> bool {
        let state = self.handle.shared.lock();
        state.conns.get(&self.handle.id).is_some_and(|c| c.phase == Phase::Established && c.shut_there == 0)
    }

    /// Waits until a read would not wait; false when the device stands still before that.
    pub fn wait_readable(&self) -> bool {
        let handle = &*self.handle;
        let mut state = handle.shared.lock();
        loop {
            let Some(conn) = state.conns.get_mut(&handle.id).filter(|conn| !conn.is_readable()) else {
                return true;
            };
            conn.readers += 1;
            let paused = state.paused;
            if !paused {
                state = wait(&handle.readable, state, None);
            }
            if let Some(conn) = state.conns.get_mut(&handle.id) {
                conn.readers -= 1;
            }
            if paused {
                return false;
            }
        }
    }

    /// Ends one or both directions. Bytes written before still reach the guest, bytes received
    /// before can still be read.
    ///
    /// # Errors
    /// `NotConnected` if the connection has ended already.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let mut state = self.handle.shared.lock();
        let Some(conn) = state.conns.get_mut(&self.handle.id).filter(|c| c.phase != Phase::Dead) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        conn.shut_here |= match how {
            Shutdown::Read => SHUTDOWN_RECEIVE,
            Shutdown::Write => SHUTDOWN_SEND,
            Shutdown::Both => SHUTDOWN_BOTH,
        };
        conn.wake_all();
        state.mark_ready(self.handle.id);
        state.work(false);
        Ok(())
    }

    /// How long a read waits; `None` for ever. Shared by all clones.
    ///
    /// # Errors
    /// `InvalidInput` for a timeout of zero, as std's.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.set_timeout(timeout, |conn| &mut conn.read_timeout)
    }

    /// How long a write waits; `None` for ever. Shared by all clones.
    ///
    /// # Errors
    /// `InvalidInput` for a timeout of zero, as std's.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.set_timeout(timeout, |conn| &mut conn.write_timeout)
    }

    fn set_timeout(
        &self,
        timeout: Option<Duration>,
        field: impl FnOnce(&mut super::conn::Conn) -> &mut Option<Duration>,
    ) -> io::Result<()> {
        if timeout == Some(Duration::ZERO) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if let Some(conn) = self.handle.shared.lock().conns.get_mut(&self.handle.id) {
            *field(conn) = timeout;
        }
        Ok(())
    }

    fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let handle = &*self.handle;
        let mut state = handle.shared.lock();
        let mut until = None;
        loop {
            let Some(conn) = state.conns.get_mut(&handle.id) else {
                return Err(io::ErrorKind::NotConnected.into());
            };
            if let Some(result) = conn.read(buf) {
                if conn.next_packet().is_some() {
                    state.mark_ready(handle.id);
                    state.work(false);
                }
                return result;
            }
            let until = *until.get_or_insert_with(|| deadline(conn.read_timeout));
            if expired(until) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            conn.readers += 1;
            state = wait(&handle.readable, state, until);
            if let Some(conn) = state.conns.get_mut(&handle.id) {
                conn.readers -= 1;
            }
        }
    }

    fn send(&self, buf: &[u8]) -> io::Result<usize> {
        let handle = &*self.handle;
        let mut state = handle.shared.lock();
        let mut until = None;
        loop {
            let Some(conn) = state.conns.get(&handle.id) else {
                return Err(io::ErrorKind::NotConnected.into());
            };
            if let Some(error) = conn.write_error() {
                return Err(error);
            }
            let until = *until.get_or_insert_with(|| deadline(conn.write_timeout));
            let sent = state.send(handle.id, buf);
            if sent > 0 || buf.is_empty() {
                return Ok(sent);
            }
            // The guest may have broken its queues just now; nobody would wake us then.
            let Some(conn) = state.conns.get_mut(&handle.id) else { continue };
            if conn.phase == Phase::Dead {
                continue;
            }
            if expired(until) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            conn.writers += 1;
            state = wait(&handle.writable, state, until);
            if let Some(conn) = state.conns.get_mut(&handle.id) {
                conn.writers -= 1;
            }
        }
    }
}

impl Read for &VsockStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.receive(buf)
    }
}

impl Read for VsockStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.receive(buf)
    }
}

impl Write for &VsockStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.send(buf)
    }
    /// Nothing to do: bytes are on their way as soon as they are written.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for VsockStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.send(buf)
    }
    /// Nothing to do: bytes are on their way as soon as they are written.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The moment `timeout` from now; `None` is never.
fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|t| Instant::now().checked_add(t))
}

fn expired(until: Option<Instant>) -> bool {
    until.is_some_and(|t| Instant::now() >= t)
}

/// Waits on `condvar` until woken or `until`.
fn wait<'a>(
    condvar: &Condvar,
    state: MutexGuard<'a, State>,
    until: Option<Instant>,
) -> MutexGuard<'a, State> {
    match until {
        None => condvar.wait(state).unwrap_or_else(|e| e.into_inner()),
        Some(t) => {
            let left = t.saturating_duration_since(Instant::now());
            condvar.wait_timeout(state, left).unwrap_or_else(|e| e.into_inner()).0
        }
    }
}
