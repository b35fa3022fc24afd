//! Datagram sockets.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::request::{self, Answer};
use super::{Failure, Name, Opened, Place, Until, opened, wait_for};
use crate::agent::Client;
use crate::agent::client::{Receiver, Shared, lock};
use crate::agent::errno::guest_error;
use crate::agent::protocol::net::{Action, Address, DATAGRAM_COST, Event, Halves, Opt, Request};
use crate::agent::protocol::{Channel, Error, MAX_DATA, Message, WINDOW};

const EMSGSIZE: i32 = 90;

/// A datagram and who sent it, or what went wrong with one.
type Arrival = Result<(Name, Vec<u8>), i32>;

#[derive(Default)]
struct State {
    lost: bool,
    opened: Option<Opened>,
    arrivals: VecDeque<Arrival>,
    /// What the guest may still send: bytes and [`DATAGRAM_COST`] for each datagram.
    allowed: u32,
    taken: u32,
    read_shut: bool,
}

#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

impl Receiver for Slot {
    fn lose(&self) {
        lock(&self.state).lost = true;
        self.changed.notify_all();
    }

    fn take_message(&self, message: Message<'_>) -> Result<bool, Error> {
        let Message::SocketEvent(event) = message else { return Err(Error::Unexpected) };
        let mut state = lock(&self.state);
        let mut over = false;
        match event {
            Event::Opened(local, peer) if state.opened.is_none() => {
                state.opened = Some(Ok(opened(&local, &peer)?));
            }
            Event::Failed(reason, errno) if state.opened.is_none() => {
                state.opened = Some(Err(Failure { reason, errno }));
                over = true;
            }
            Event::Datagram(from, bytes) if matches!(state.opened, Some(Ok(_))) => {
                state.arrive(bytes.len(), || Ok((Name::new(&from), bytes.to_vec())))?;
            }
            Event::DatagramFailed(errno) if matches!(state.opened, Some(Ok(_))) => {
                state.arrive(0, || Err(errno))?;
            }
            _ => return Err(Error::Unexpected),
        }
        drop(state);
        self.changed.notify_all();
        Ok(over)
    }
}

impl State {
    fn arrive(&mut self, len: usize, arrival: impl FnOnce() -> Arrival) -> Result<(), Error> {
        let cost = u32::try_from(len).ok().and_then(|len| len.checked_add(DATAGRAM_COST));
        let left = cost.and_then(|cost| self.allowed.checked_sub(cost));
        self.allowed = left.ok_or(Error::Overrun)?;
        if !self.read_shut {
            self.arrivals.push_back(arrival());
        }
        Ok(())
    }

    /// Takes out the first arrival. The second value is credit to be given.
    fn take(&mut self) -> (Option<Arrival>, u32) {
        let arrival = self.arrivals.pop_front();
        if let Some(arrival) = &arrival {
            let len = arrival.as_ref().map_or(0, |(_, bytes)| bytes.len());
            self.taken += len as u32 + DATAGRAM_COST;
        }
        if self.taken < WINDOW / 4 {
            return (arrival, 0);
        }
        self.allowed += self.taken;
        (arrival, std::mem::take(&mut self.taken))
    }
}

/// A datagram socket of the guest. Closed when dropped.
pub struct Datagrams {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    id: u32,
}

impl std::fmt::Debug for Datagrams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datagrams").field("stream", &self.id).finish_non_exhaustive()
    }
}

impl Datagrams {
    /// A socket at a place; an empty Unix name is a socket without one.
    pub fn bind(client: &Client, at: &Place) -> io::Result<Self> {
        let target = at.target()?;
        let shared = client.shared().clone();
        let state = State { allowed: WINDOW, ..State::default() };
        let slot = Arc::new(Slot { state: Mutex::new(state), changed: Condvar::new() });
        let id = shared.enter(slot.clone())?;
        let socket = Datagrams { shared, slot, id };
        socket.shared.send(id, &Message::Socket(Request::Bind(target)))?;
        socket.wait_for(Until::Done, |state| {
            state.opened.as_ref().map(|opened| match opened {
                Ok(_) => Ok(()),
                Err(failure) => Err((*failure).into()),
            })
        })?;
        Ok(socket)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.slot.state)
    }

    fn wait_for<T>(
        &self,
        until: Until,
        mut done: impl FnMut(&mut State) -> Option<io::Result<T>>,
    ) -> io::Result<T> {
        let changed = &self.slot.changed;
        wait_for(&self.shared, self.state(), changed, until, |state| (done(state), state.lost))
    }

    /// Its address.
    pub fn local(&self) -> Name {
        match &self.state().opened {
            Some(Ok((local, _))) => local.clone(),
            _ => Name::Unix(Vec::new()),
        }
    }

    /// Whom it is connected to.
    pub fn peer(&self) -> Option<Name> {
        match &self.state().opened {
            Some(Ok((_, peer))) if *peer != Name::Unix(Vec::new()) => Some(peer.clone()),
            _ => None,
        }
    }

    /// Sends to and receives from one place only.
    pub fn connect(&self, to: &Place) -> io::Result<()> {
        match request::act(&self.shared, self.id, Action::Connect(to.target()?), Until::Done)? {
            Answer::Opened(local, peer) => {
                self.state().opened = Some(Ok((local, peer)));
                Ok(())
            }
            other => Err(request::unfit(&other)),
        }
    }

    /// Sends one datagram, to `to` or to whom the socket is connected.
    pub fn send(&self, bytes: &[u8], to: Option<&Place>, until: Until) -> io::Result<usize> {
        // What an earlier datagram met with is told once, by whatever comes first.
        let pending = {
            let mut state = self.state();
            matches!(state.arrivals.front(), Some(Err(_))).then(|| state.take())
        };
        if let Some((Some(Err(errno)), credit)) = pending {
            self.give(credit);
            return Err(guest_error(errno));
        }
        if bytes.len() > MAX_DATA {
            return Err(guest_error(EMSGSIZE));
        }
        let to = to.map(Place::target).transpose()?;
        // Not to wait is not to wait for others; the guest's answer is none of those.
        let until = if matches!(until, Until::Now) { Until::Done } else { until };
        request::value(&self.shared, self.id, Action::Send(to, bytes), until).map(|n| n as usize)
    }

    fn give(&self, credit: u32) {
        if credit > 0 {
            // When this fails the connection has ended, which the next wait says.
            let _ = self.shared.send(self.id, &Message::Credit(Channel::Stdout, credit));
        }
    }

    /// Takes the next datagram; what does not fit into `bytes` of it is lost.
    pub fn receive(&self, bytes: &mut [u8], until: Until) -> io::Result<(usize, Name)> {
        let mut credit = 0;
        let arrival = self.wait_for(until, |state| {
            if state.arrivals.is_empty() {
                return state.read_shut.then(|| Ok(Ok((Name::Unix(Vec::new()), Vec::new()))));
            }
            let (arrival, more) = state.take();
            credit = more;
            arrival.map(Ok)
        })?;
        self.give(credit);
        let (from, datagram) = arrival.map_err(guest_error)?;
        let n = datagram.len().min(bytes.len());
        bytes[..n].copy_from_slice(&datagram[..n]);
        Ok((n, from))
    }

    /// As [`Datagrams::receive`], and leaves the datagram where it is.
    pub fn peek(&self, bytes: &mut [u8], until: Until) -> io::Result<(usize, Name)> {
        let mut credit = 0;
        let peeked = self.wait_for(until, |state| match state.arrivals.front() {
            Some(Ok((from, datagram))) => {
                let n = datagram.len().min(bytes.len());
                bytes[..n].copy_from_slice(&datagram[..n]);
                Some(Ok((n, from.clone())))
            }
            // An error is taken by being seen.
            Some(Err(errno)) => {
                let error = guest_error(*errno);
                credit = state.take().1;
                Some(Err(error))
            }
            None => state.read_shut.then(|| Ok((0, Name::Unix(Vec::new())))),
        });
        self.give(credit);
        peeked
    }

    /// Ends halves.
    pub fn shutdown(&self, halves: Halves) -> io::Result<()> {
        request::value(&self.shared, self.id, Action::Shutdown(halves), Until::Done)?;
        self.state().read_shut |= halves != Halves::Write;
        self.slot.changed.notify_all();
        Ok(())
    }

    /// Joins the multicast group (`true`) or leaves it, on an interface told by address or by index.
    pub fn membership(&self, join: bool, group: &Name, interface: [u8; 4]) -> io::Result<()> {
        let group: Address<'_> = group.address();
        let action = Action::Membership(join, group, interface);
        request::value(&self.shared, self.id, action, Until::Done).map(drop)
    }

    /// The error that the next operation would fail with, which it then does not.
    pub fn take_error(&self) -> io::Result<Option<i32>> {
        let pending = {
            let mut state = self.state();
            matches!(state.arrivals.front(), Some(Err(_))).then(|| state.take())
        };
        if let Some((Some(Err(errno)), credit)) = pending {
            self.give(credit);
            return Ok(Some(errno));
        }
        self.get(Opt::Error).map(|errno| (errno != 0).then_some(errno as i32))
    }

    /// A property.
    pub fn get(&self, opt: Opt) -> io::Result<u32> {
        request::value(&self.shared, self.id, Action::Get(opt), Until::Done)
    }

    /// Sets a property.
    pub fn set(&self, opt: Opt, value: u32) -> io::Result<()> {
        request::value(&self.shared, self.id, Action::Set(opt, value), Until::Done).map(drop)
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.shared.forget(self.id);
        let state = self.state();
        let over = state.lost || matches!(state.opened, Some(Err(_)));
        drop(state);
        if !over {
            let _ = self.shared.send(self.id, &Message::Socket(Request::Close(false)));
        }
    }
}
