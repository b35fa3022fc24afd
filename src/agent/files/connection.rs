//! One worker's connection, and its use by one caller at a time.

use std::io;

use super::{Connection, Files};
use crate::agent::errno::guest_error;
use crate::agent::protocol::files::{ANSWER_HEADER, MAX_ANSWER, Request, parse_answer};

/// Bytes to write that are sent together with their request; more go by themselves, uncopied.
const TOGETHER: usize = 4096;

#[derive(Debug)]
pub(super) struct Worker {
    connection: Box<dyn Connection>,
    /// The numbers of the next request and of the next answer.
    sent: u32,
    answered: u32,
    frame: Vec<u8>,
    /// Received and not yet looked at.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Worker {
    pub(super) fn new(connection: Box<dyn Connection>) -> Self {
        Worker { connection, sent: 0, answered: 0, frame: Vec::new(), buffer: Vec::new(), start: 0, end: 0 }
    }

    pub(super) fn is_open(&self) -> bool {
        self.connection.is_open()
    }

    /// Requests whose answers have not been taken.
    pub(super) fn owed(&self) -> usize {
        self.sent.wrapping_sub(self.answered) as usize
    }

    pub(super) fn send(&mut self, request: &Request<'_>) -> io::Result<()> {
        self.frame.clear();
        request.encode_head(self.sent, &mut self.frame);
        let data = request.data();
        if data.len() <= TOGETHER {
            self.frame.extend_from_slice(data);
        }
        self.connection.send(&self.frame)?;
        if data.len() > TOGETHER {
            self.connection.send(data)?;
        }
        self.sent = self.sent.wrapping_add(1);
        Ok(())
    }

    /// Takes exactly the next bytes, large ones straight into `bytes`.
    fn take(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let rest = &mut bytes[done..];
            if self.start == self.end {
                if rest.len() >= TOGETHER {
                    match self.connection.receive(rest)? {
                        0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                        n => done += n.min(rest.len()),
                    }
                    continue;
                }
                self.buffer.resize(TOGETHER, 0);
                (self.start, self.end) = (0, 0);
                match self.connection.receive(&mut self.buffer)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    n => self.end = n.min(TOGETHER),
                }
            }
            let have = &self.buffer[self.start..self.end];
            let n = have.len().min(rest.len());
            rest[..n].copy_from_slice(&have[..n]);
            self.start += n;
            done += n;
        }
        Ok(())
    }

    /// The head of the next answer: its errno and how much follows.
    fn head(&mut self) -> io::Result<(i32, usize)> {
        let mut header = [0; ANSWER_HEADER];
        self.take(&mut header)?;
        let (len, id, errno) = parse_answer(header);
        let fits = len as usize <= MAX_ANSWER && id == self.answered && (0..4096).contains(&errno);
        if !fits || (errno != 0 && len != 0) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the guest agent broke its protocol"));
        }
        self.answered = self.answered.wrapping_add(1);
        Ok((errno, len as usize))
    }
}

/// The use of a worker by one caller. Requests may be sent ahead of their answers.
///
/// A worker that owes no answer is idle again when this is dropped. Otherwise it ends, and so it does after any error
/// but a guest's errno: what it has not done by then it may never do.
#[derive(Debug)]
pub struct Lease<'f> {
    files: &'f Files,
    session: u64,
    worker: Option<Worker>,
    failed: bool,
    /// The pool has been told what became of the worker.
    left: bool,
}

/// What a request came to: the errno's error, or the payload.
pub type Answer = io::Result<Vec<u8>>;

impl<'f> Lease<'f> {
    pub(super) fn new(files: &'f Files, session: u64, worker: Worker) -> Self {
        Lease { files, session, worker: Some(worker), failed: false, left: false }
    }

    pub(super) fn session(&self) -> u64 {
        self.session
    }

    /// Sends a request and waits for its answer.
    pub fn call(&mut self, request: &Request<'_>) -> Answer {
        self.send(request)?;
        self.answer()
    }

    /// Sends a request.
    pub fn send(&mut self, request: &Request<'_>) -> io::Result<()> {
        self.with(|worker| worker.send(request))
    }

    /// Requests whose answers have not been taken.
    pub fn owed(&self) -> usize {
        self.worker.as_ref().map_or(0, Worker::owed)
    }

    /// Waits until the next answer begins; false when the guest stands still before that.
    pub(super) fn wait(&self) -> bool {
        self.worker.as_ref().is_none_or(|worker| worker.start < worker.end || worker.connection.wait())
    }

    /// Leaves the answers that are owed to whoever comes next.
    pub(super) fn leave(mut self) {
        match self.worker.take().filter(|_| !self.failed) {
            Some(worker) => self.files.leave(self.session, worker),
            None => self.files.lose(self.session),
        }
        self.left = true;
    }

    /// Takes the next answer.
    pub fn answer(&mut self) -> Answer {
        let (errno, len) = self.with(Worker::head)?;
        if errno != 0 {
            return Err(guest_error(errno));
        }
        let mut payload = vec![0; len];
        self.with(|worker| worker.take(&mut payload))?;
        Ok(payload)
    }

    /// Takes the next answer's payload to the head of `bytes`, and says how long it is. One that does not fit breaks
    /// the protocol.
    pub fn answer_into(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let (errno, len) = self.with(Worker::head)?;
        if errno != 0 {
            return Err(guest_error(errno));
        }
        match bytes.get_mut(..len) {
            Some(bytes) => self.with(|worker| worker.take(bytes)).map(|()| len),
            None => Err(self.malformed()),
        }
    }

    /// Appends the next answer's payload, and says how long it is.
    pub fn answer_onto(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        let (errno, len) = self.with(Worker::head)?;
        if errno != 0 {
            return Err(guest_error(errno));
        }
        let start = bytes.len();
        bytes.resize(start + len, 0);
        self.with(|worker| worker.take(&mut bytes[start..])).inspect_err(|_| bytes.truncate(start))?;
        Ok(len)
    }

    /// Takes all answers that are owed and looks at none.
    pub fn drain(&mut self) {
        let mut payload = Vec::new();
        while self.owed() > 0 && !self.failed {
            payload.clear();
            let _ = self.answer_onto(&mut payload);
        }
    }

    /// The error for an answer that does not follow its layout; the worker is not used any more.
    pub fn malformed(&mut self) -> io::Error {
        self.failed = true;
        self.files.broken("the guest agent broke its protocol")
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Worker) -> io::Result<T>) -> io::Result<T> {
        let done = match &mut self.worker {
            Some(worker) if !self.failed => act(worker),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        };
        done.map_err(|e| {
            self.failed = true;
            let what = match e.kind() {
                io::ErrorKind::InvalidData => "the guest agent broke its protocol",
                _ => "the guest's process that did this has ended",
            };
            self.files.broken(what)
        })
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        let idle = !self.failed && self.owed() == 0;
        match self.worker.take().filter(|_| idle) {
            Some(worker) => self.files.release(self.session, worker),
            None => self.files.lose(self.session),
        }
    }
}
