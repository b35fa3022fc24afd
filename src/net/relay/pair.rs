//! Two ends of a relayed connection and the bytes between them, in two ways that end one by one.

use std::io;
use std::os::fd::BorrowedFd;

use super::endpoint::Endpoint;
use crate::agent::protocol::MAX_DATA;
use crate::sys::sockets::Interest;

/// Pieces that are moved in one way in a row, for fairness.
const ROUNDS: usize = 8;

/// One way from an end to the other.
#[derive(Default)]
struct Way {
    /// Bytes that were read and have not been written.
    held: Vec<u8>,
    /// Nothing more comes.
    ended: bool,
    /// That has been passed on.
    told: bool,
}

pub(super) struct Pair {
    ends: [Endpoint; 2],
    /// From the first to the second, and back.
    ways: [Way; 2],
}

pub(super) enum Progress {
    /// Something has to happen first.
    Waits,
    /// There may be more to move at once.
    More,
    /// Both ways have ended.
    Over,
}

impl Pair {
    /// What was accepted and what it is to be connected to.
    pub(super) fn new(accepted: Endpoint, dialled: Endpoint) -> Self {
        Pair { ends: [accepted, dialled], ways: [Way::default(), Way::default()] }
    }

    /// The host's descriptors and what to wait for. A descriptor of which nothing is wanted is left out:
    /// it would tell of its end again and again.
    pub(super) fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, Interest)> {
        let connecting = self.ends.iter().any(Endpoint::is_connecting);
        self.ends.iter().enumerate().filter_map(move |(n, end)| {
            let (out, into) = (&self.ways[n], &self.ways[1 - n]);
            let interest = if connecting {
                Interest { read: false, write: end.is_connecting() }
            } else {
                let read = !out.ended && out.held.is_empty() && self.ends[1 - n].room() > 0;
                Interest { read, write: !into.held.is_empty() }
            };
            (interest != Interest::default()).then_some((end.fd()?, interest))
        })
    }

    /// Moves what can be moved. An error ends the connection, both ways.
    pub(super) fn carry(&mut self) -> io::Result<Progress> {
        for end in &mut self.ends {
            if !end.connected()? {
                return Ok(Progress::Waits);
            }
        }
        let mut more = false;
        for n in 0..2 {
            let [first, second] = &mut self.ends;
            let (from, to) = if n == 0 { (first, second) } else { (second, first) };
            more |= self.ways[n].carry(from, to)?;
        }
        Ok(match (self.ways.iter().all(|way| way.told), more) {
            (true, _) => Progress::Over,
            (_, true) => Progress::More,
            _ => Progress::Waits,
        })
    }

    pub(super) fn reset(self) {
        self.ends.into_iter().for_each(Endpoint::reset);
    }
}

impl Way {
    /// Says whether there may be more at once.
    fn carry(&mut self, from: &mut Endpoint, to: &mut Endpoint) -> io::Result<bool> {
        for _ in 0..ROUNDS {
            if !self.held.is_empty() {
                match to.write(&self.held) {
                    Ok(n) => drop(self.held.drain(..n)),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
                continue;
            }
            if self.ended {
                if !std::mem::replace(&mut self.told, true) {
                    end(to)?;
                }
                return Ok(false);
            }
            let room = to.room().min(MAX_DATA);
            if room == 0 {
                return Ok(false);
            }
            let mut bytes = std::mem::take(&mut self.held);
            bytes.resize(room, 0);
            let read = from.read(&mut bytes);
            bytes.truncate(*read.as_ref().unwrap_or(&0));
            self.held = bytes;
            match read {
                Ok(0) => self.ended = true,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    // An idle connection holds no memory.
                    self.held = Vec::new();
                    return Ok(false);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}

/// Passes an end on. An end that is gone altogether needs no telling.
fn end(to: &mut Endpoint) -> io::Result<()> {
    match to.end() {
        Err(e) if e.kind() != io::ErrorKind::NotConnected => Err(e),
        _ => Ok(()),
    }
}
