//! Connections, and the listeners they come from.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::{Failure, Name, Opened, Place, Until, Waker, opened, request, wait_for};
use crate::agent::Client;
use crate::agent::client::{Receiver, Shared, lock};
use crate::agent::errno::guest_error;
use crate::agent::protocol::net::{Action, Event, Halves, Opt, Request};
use crate::agent::protocol::{Channel, Error, MAX_DATA, Message, WINDOW};

const EPIPE: i32 = 32;
const ENOTCONN: i32 = 107;

#[derive(Default)]
struct State {
    /// The connection to the agent has ended; nothing more will come.
    lost: bool,
    /// Whether it carries bytes; a listener does not.
    carries: bool,
    opened: Option<Opened>,
    buffer: VecDeque<u8>,
    /// Bytes the guest may still send.
    allowed: u32,
    /// Bytes taken out and not yet given back as credit.
    taken: u32,
    /// Nothing more comes.
    eof: bool,
    /// We have ended the half that receives.
    read_shut: bool,
    /// What the next operation fails with.
    error: Option<i32>,
    /// Bytes we may send.
    credit: u32,
    /// We have ended the half that sends, or it has failed.
    write_done: bool,
    /// To be reset when it is closed.
    reset: bool,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

impl Slot {
    fn new(carries: bool) -> Arc<Self> {
        let state = State { carries, allowed: WINDOW, credit: WINDOW, ..State::default() };
        Arc::new(Slot { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Tells all who wait, and the waker.
    fn notify(&self, state: MutexGuard<'_, State>) {
        let waker = state.waker.clone();
        drop(state);
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker();
        }
    }
}

impl Receiver for Slot {
    fn lose(&self) {
        let mut state = lock(&self.state);
        state.lost = true;
        self.notify(state);
    }

    fn take_message(&self, message: Message<'_>) -> Result<bool, Error> {
        let mut state = lock(&self.state);
        let is_open = matches!(state.opened, Some(Ok(_)));
        let mut over = false;
        match message {
            Message::SocketEvent(Event::Opened(local, peer)) if state.opened.is_none() => {
                state.opened = Some(Ok(opened(&local, &peer)?));
            }
            Message::SocketEvent(Event::Failed(reason, errno)) if state.opened.is_none() => {
                state.opened = Some(Err(Failure { reason, errno }));
                over = true;
            }
            _ if !is_open || !state.carries => return Err(Error::Unexpected),
            Message::Data(Channel::Stdout, bytes) if !state.eof => {
                state.allowed = state.allowed.checked_sub(bytes.len() as u32).ok_or(Error::Overrun)?;
                if !state.read_shut {
                    state.buffer.extend(bytes);
                }
            }
            Message::Eof(Channel::Stdout) if !state.eof => state.eof = true,
            Message::Credit(Channel::Stdin, bytes) => {
                let credit = state.credit.checked_add(bytes).filter(|credit| *credit <= WINDOW);
                state.credit = credit.ok_or(Error::Overrun)?;
            }
            Message::SocketEvent(Event::ReadFailed(errno)) if !state.eof => {
                // What has failed to read is no connection any more.
                (state.eof, state.write_done) = (true, true);
                state.error = Some(errno);
            }
            Message::SocketEvent(Event::WriteFailed(errno)) => {
                state.write_done = true;
                if errno != EPIPE {
                    state.error.get_or_insert(errno);
                }
            }
            _ => return Err(Error::Unexpected),
        }
        self.notify(state);
        Ok(over)
    }
}

/// A stream of the agent that is ended with this.
struct Owned {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    id: u32,
}

impl Owned {
    fn new(shared: &Arc<Shared>, carries: bool, request: Request<'_>) -> io::Result<Self> {
        let slot = Slot::new(carries);
        let id = shared.enter(slot.clone())?;
        let owned = Owned { shared: shared.clone(), slot, id };
        shared.send(id, &Message::Socket(request))?;
        Ok(owned)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.slot.state)
    }

    /// Waits until `done` gives something. `EAGAIN` when the time is over first, an error when the
    /// connection ends first.
    fn wait_for<T>(
        &self,
        until: Until,
        mut done: impl FnMut(&mut State) -> Option<io::Result<T>>,
    ) -> io::Result<T> {
        let changed = &self.slot.changed;
        wait_for(&self.shared, self.state(), changed, until, |state| (done(state), state.lost))
    }

    fn opened(&self, until: Until) -> io::Result<()> {
        self.wait_for(until, |state| {
            state.opened.as_ref().map(|opened| match opened {
                Ok(_) => Ok(()),
                Err(failure) => Err((*failure).into()),
            })
        })
    }

    fn name(&self, which: impl Fn(&(Name, Name)) -> &Name) -> Name {
        match &self.state().opened {
            Some(Ok(names)) => which(names).clone(),
            _ => Name::Unix(Vec::new()),
        }
    }

    fn get(&self, opt: Opt) -> io::Result<u32> {
        request::value(&self.shared, self.id, Action::Get(opt), Until::Done)
    }

    fn set(&self, opt: Opt, value: u32) -> io::Result<()> {
        request::value(&self.shared, self.id, Action::Set(opt, value), Until::Done).map(drop)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.shared.forget(self.id);
        let mut state = self.state();
        let over = state.lost || matches!(state.opened, Some(Err(_)));
        // As a kernel does when bytes were received that nobody has read.
        let reset = state.reset || !state.buffer.is_empty();
        state.waker = None;
        drop(state);
        if !over {
            let _ = self.shared.send(self.id, &Message::Socket(Request::Close(reset)));
        }
    }
}

macro_rules! debug_with_names {
    ($name:ident) => {
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).field("stream", &self.0.id).finish_non_exhaustive()
            }
        }
    };
}

/// A connection of the guest. Closed when dropped.
pub struct Connection(Owned);

debug_with_names!(Connection);

impl Connection {
    /// Begins to connect to a place.
    pub fn connecting(client: &Client, to: &Place) -> io::Result<Self> {
        Owned::new(client.shared(), true, Request::Connect(to.target()?)).map(Connection)
    }

    /// Connects to a place, for at most as long as `until` says.
    pub fn connect(client: &Client, to: &Place, until: Until) -> io::Result<Self> {
        let connection = Self::connecting(client, to)?;
        connection.opened(until)?;
        Ok(connection)
    }

    /// Waits until it is open.
    pub fn opened(&self, until: Until) -> io::Result<()> {
        self.0.opened(until)
    }

    /// Our address.
    pub fn local(&self) -> Name {
        self.0.name(|names| &names.0)
    }

    /// The other end's address, an empty one if it has none.
    pub fn peer(&self) -> Name {
        self.0.name(|names| &names.1)
    }

    /// Has `waker` called whenever something has changed.
    pub fn set_waker(&self, waker: Option<Waker>) {
        self.0.state().waker = waker;
    }

    /// Waits for bytes: `Some(false)` where there are none any more.
    fn readable(state: &mut State) -> Option<io::Result<bool>> {
        if !state.buffer.is_empty() {
            return Some(Ok(true));
        }
        match state.error.take() {
            Some(errno) => Some(Err(guest_error(errno))),
            None => (state.eof || state.read_shut).then_some(Ok(false)),
        }
    }

    /// Reads what has come, into as much of `bytes` as that fills; 0 is the end.
    pub fn read(&self, bytes: &mut [u8], until: Until) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut credit = 0;
        let n = self.0.wait_for(until, |state| {
            Some(Self::readable(state)?.and_then(|any| {
                let n = if any { io::Read::read(&mut state.buffer, bytes)? } else { 0 };
                state.taken += n as u32;
                if state.taken >= WINDOW / 4 && !state.eof {
                    state.allowed += state.taken;
                    credit = std::mem::take(&mut state.taken);
                }
                Ok(n)
            }))
        })?;
        if credit > 0 {
            // When this fails the connection has ended, which the next read says.
            let _ = self.0.shared.send(self.0.id, &Message::Credit(Channel::Stdout, credit));
        }
        Ok(n)
    }

    /// As [`Connection::read`], and leaves the bytes where they are.
    pub fn peek(&self, bytes: &mut [u8], until: Until) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.0.wait_for(until, |state| {
            Some(Self::readable(state)?.map(|_| {
                let mut copied = 0;
                for part in [state.buffer.as_slices().0, state.buffer.as_slices().1] {
                    let n = part.len().min(bytes.len() - copied);
                    bytes[copied..copied + n].copy_from_slice(&part[..n]);
                    copied += n;
                }
                copied
            }))
        })
    }

    /// Sends the head of `bytes` as soon as the guest has room.
    pub fn write(&self, bytes: &[u8], until: Until) -> io::Result<usize> {
        let n = self.0.wait_for(until, |state| {
            if let Some(errno) = state.error.take() {
                return Some(Err(guest_error(errno)));
            }
            if state.write_done {
                return Some(Err(guest_error(EPIPE)));
            }
            if bytes.is_empty() {
                return Some(Ok(0));
            }
            let room = bytes.len().min(state.credit as usize).min(MAX_DATA);
            state.credit -= room as u32;
            (room > 0).then_some(Ok(room))
        })?;
        if n > 0 {
            self.0.shared.send(self.0.id, &Message::Data(Channel::Stdin, &bytes[..n]))?;
        }
        Ok(n)
    }

    /// How many bytes [`Connection::write`] would take at once; `None` when it would fail.
    pub fn writable(&self) -> Option<usize> {
        let state = self.0.state();
        let failed = state.lost || state.error.is_some() || state.write_done;
        (!failed).then_some((state.credit as usize).min(MAX_DATA))
    }

    /// Ends halves of the connection.
    pub fn shutdown(&self, halves: Halves) -> io::Result<()> {
        let mut state = self.0.state();
        if state.lost {
            drop(state);
            return Err(self.0.shared.ended_error());
        }
        if state.eof
            && state.write_done
            && !state.read_shut
            && state.error.is_none()
            && halves == Halves::Both
        {
            return Err(guest_error(ENOTCONN));
        }
        let read = halves != Halves::Write && !std::mem::replace(&mut state.read_shut, true);
        let write = halves != Halves::Read && !std::mem::replace(&mut state.write_done, true);
        self.0.slot.notify(state);
        if write {
            self.0.shared.send(self.0.id, &Message::Eof(Channel::Stdin))?;
        }
        if read {
            let action = Action::Shutdown(Halves::Read);
            match request::value(&self.0.shared, self.0.id, action, Until::Done) {
                // It has ended by itself, with everything it had to tell.
                Err(e) if e.raw_os_error() != Some(ENOTCONN) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Has the connection reset when it is dropped, as if it had never been taken.
    pub fn reset(self) {
        self.0.state().reset = true;
    }

    /// The error that the next operation would fail with, which it then does not.
    pub fn take_error(&self) -> io::Result<Option<i32>> {
        let state = self.0.state().error.take();
        match state {
            Some(errno) => Ok(Some(errno)),
            None => self.0.get(Opt::Error).map(|errno| (errno != 0).then_some(errno as i32)),
        }
    }

    /// A property.
    pub fn get(&self, opt: Opt) -> io::Result<u32> {
        self.0.get(opt)
    }

    /// Sets a property.
    pub fn set(&self, opt: Opt, value: u32) -> io::Result<()> {
        self.0.set(opt, value)
    }

    /// Bytes held here and not yet taken.
    #[cfg(test)]
    pub(crate) fn buffered(&self) -> usize {
        self.0.state().buffer.len()
    }
}

/// A listening socket of the guest. Closed when dropped.
pub struct Listener(Owned);

debug_with_names!(Listener);

impl Listener {
    /// Listens at a place.
    pub fn listen(client: &Client, at: &Place) -> io::Result<Self> {
        let listener = Owned::new(client.shared(), false, Request::Listen(at.target()?))?;
        listener.opened(Until::Done)?;
        Ok(Listener(listener))
    }

    /// Its address.
    pub fn local(&self) -> Name {
        self.0.name(|names| &names.0)
    }

    /// What becomes the next connection: opening until somebody connects.
    pub fn accepting(&self) -> io::Result<Connection> {
        Owned::new(&self.0.shared, true, Request::Accept(self.0.id)).map(Connection)
    }

    /// A property.
    pub fn get(&self, opt: Opt) -> io::Result<u32> {
        self.0.get(opt)
    }

    /// Sets a property.
    pub fn set(&self, opt: Opt, value: u32) -> io::Result<()> {
        self.0.set(opt, value)
    }
}
