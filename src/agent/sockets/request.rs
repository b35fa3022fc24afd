//! Requests about sockets: streams with one answer.

use std::io;
use std::sync::{Arc, Condvar, Mutex};

use super::{Failure, Name, Place, Until, opened, timed_out};
use crate::agent::Client;
use crate::agent::client::{Receiver, Shared, lock};
use crate::agent::protocol::net::{Action, Event, Request};
use crate::agent::protocol::{Error, Message};

#[derive(Debug)]
pub(super) enum Answer {
    Value(u32),
    Names(Vec<Name>),
    Opened(Name, Name),
}

#[derive(Debug, Default)]
struct State {
    lost: bool,
    answer: Option<Result<Answer, Failure>>,
}

#[derive(Debug, Default)]
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
        let answer = match event {
            Event::Value(value) => Ok(Answer::Value(value)),
            Event::Addresses(list) => Ok(Answer::Names(list.iter().map(Name::new).collect())),
            Event::Opened(local, peer) => {
                let (local, peer) = opened(&local, &peer)?;
                Ok(Answer::Opened(local, peer))
            }
            Event::Failed(reason, errno) => Err(Failure { reason, errno }),
            _ => return Err(Error::Unexpected),
        };
        lock(&self.state).answer = Some(answer);
        self.changed.notify_all();
        Ok(true)
    }
}

/// Asks and waits for the answer.
fn ask(shared: &Arc<Shared>, request: Request<'_>, until: Until) -> io::Result<Answer> {
    let slot = Arc::new(Slot::default());
    let id = shared.enter(slot.clone())?;
    shared.send(id, &Message::Socket(request))?;
    let deadline = until.deadline();
    let mut state = lock(&slot.state);
    loop {
        if let Some(answer) = state.answer.take() {
            return Ok(answer?);
        }
        if state.lost {
            return Err(shared.ended_error());
        }
        let left = deadline.map(|at| at.saturating_duration_since(std::time::Instant::now()));
        match left {
            None => state = slot.changed.wait(state).unwrap_or_else(|e| e.into_inner()),
            Some(left) if left.is_zero() => {
                drop(state);
                shared.forget(id);
                // What has not been done yet is not to be done any more.
                let _ = shared.send(id, &Message::Socket(Request::Close(false)));
                return Err(timed_out());
            }
            Some(left) => {
                state = slot.changed.wait_timeout(state, left).unwrap_or_else(|e| e.into_inner()).0;
            }
        }
    }
}

/// Does something to the open socket of stream `id`.
pub(super) fn act(shared: &Arc<Shared>, id: u32, action: Action<'_>, until: Until) -> io::Result<Answer> {
    ask(shared, Request::Do(id, action), until)
}

/// As [`act`], for what is answered by a number.
pub(super) fn value(shared: &Arc<Shared>, id: u32, action: Action<'_>, until: Until) -> io::Result<u32> {
    match act(shared, id, action, until)? {
        Answer::Value(value) => Ok(value),
        other => Err(unfit(&other)),
    }
}

/// An answer to another question than ours.
pub(super) fn unfit(answer: &Answer) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the guest agent answers with {answer:?}"))
}

/// The addresses that the guest knows for a place, in the order in which they are to be tried.
pub fn look_up(client: &Client, place: &Place) -> io::Result<Vec<Name>> {
    match ask(client.shared(), Request::Lookup(place.target()?), Until::Done)? {
        Answer::Names(names) => Ok(names),
        other => Err(unfit(&other)),
    }
}
