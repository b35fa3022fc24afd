//! One operation of the protocol on the host: a running command, or a request that waits for its reply.
//!
//! All of a stream's state is under one lock with one condition; the reading thread changes it and
//! callers wait on it. Received output is held up to the window and no more: credit goes back to the
//! guest only as callers take bytes out.

use std::collections::VecDeque;
use std::io::{self, PipeWriter};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::client::{Receiver, Shared, lock};
use super::protocol::{Channel, Error, Exited, MAX_DATA, Message, Obstacle, WINDOW};

/// How long complete output is waited for after a command's end when other processes still hold its
/// pipes open.
const ORPHAN_GRACE: Duration = Duration::from_millis(500);

/// A channel from guest to host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Output {
    fn channel(self) -> Channel {
        match self {
            Output::Stdout => Channel::Stdout,
            Output::Stderr => Channel::Stderr,
        }
    }
}

/// Everything a command wrote, and how it ended.
#[derive(Debug)]
pub struct Collected {
    /// How it ended.
    pub exited: Exited,
    /// Bytes of standard output, as far as that was collected.
    pub stdout: Vec<u8>,
    /// Bytes of standard error, likewise.
    pub stderr: Vec<u8>,
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

/// The process id, or what kept the command from being started.
type Started = Result<u32, (i32, Obstacle)>;

#[derive(Debug, Default)]
struct State {
    /// Whether this is a command; else it is a request.
    command: bool,
    /// The connection has ended; nothing more will come.
    lost: bool,
    started: Option<Started>,
    exited: Option<Exited>,
    reply: Option<i32>,
    input: Inbound,
    outputs: [Outbound; 2],
    /// Held for whoever feeds standard input from a descriptor of the host; dropped to wake it.
    waker: Option<PipeWriter>,
}

/// Standard input.
#[derive(Debug, Default)]
struct Inbound {
    credit: u32,
    /// No more is to come, or nobody reads it: said by us, or by the guest.
    ended: bool,
    closed: bool,
}

/// Standard output or error.
#[derive(Debug, Default)]
struct Outbound {
    buffer: VecDeque<u8>,
    /// Bytes the guest may still send.
    allowed: u32,
    /// Bytes taken out and not yet given back as credit.
    taken: u32,
    eof: bool,
    /// All bytes that have come.
    received: u64,
    /// The command has ended, and this much of it was written by then.
    drained: Option<u64>,
    /// We want no more of it.
    closed: bool,
    /// Goes to a descriptor of the host, where so many bytes have been written.
    copied: Option<u64>,
}

impl State {
    fn output(&mut self, output: Output) -> &mut Outbound {
        &mut self.outputs[output as usize]
    }

    fn is_over(&self) -> bool {
        let outputs = self.outputs.iter().all(|o| o.eof || o.closed);
        self.exited.is_some() && outputs && (self.input.ended || self.input.closed)
    }
}

impl Outbound {
    fn is_complete(&self) -> bool {
        self.eof || self.drained.is_some() || self.closed
    }

    /// Whether what the command itself wrote is where it has to go.
    fn is_copied(&self) -> bool {
        let wanted = if self.eof { Some(self.received) } else { self.drained };
        self.copied.is_none_or(|done| self.closed || wanted.is_some_and(|wanted| done >= wanted))
    }

    /// Credit to send after `n` more bytes have been taken out.
    fn take(&mut self, n: usize) -> u32 {
        self.taken += n as u32;
        if self.taken < WINDOW / 4 || self.eof || self.closed {
            return 0;
        }
        self.allowed += self.taken;
        std::mem::take(&mut self.taken)
    }
}

impl Slot {
    /// The slot of a command whose standard streams are pipes where `piped` says so.
    pub(super) fn with_channels(piped: [bool; 3]) -> Self {
        let [stdin, stdout, stderr] = piped;
        let outputs = [stdout, stderr].map(|piped| Outbound {
            allowed: if piped { WINDOW } else { 0 },
            eof: !piped,
            ..Outbound::default()
        });
        let input = Inbound { credit: WINDOW, ended: !stdin, closed: false };
        let state = State { command: true, input, outputs, ..State::default() };
        Slot { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl Receiver for Slot {
    fn lose(&self) {
        let mut state = lock(&self.state);
        state.lost = true;
        state.waker = None;
        self.changed.notify_all();
    }

    fn take_message(&self, message: Message<'_>) -> Result<bool, Error> {
        let mut state = lock(&self.state);
        // A stream leaves the table only when nobody can wait on it any more, so each message has to
        // be one that this stream can have now.
        let starting = state.command && state.started.is_none();
        let running = matches!(state.started, Some(Ok(_)));
        let over = match message {
            Message::Spawned(pid) if starting => {
                state.started = Some(Ok(pid));
                false
            }
            Message::SpawnFailed(errno, obstacle) if starting => {
                state.started = Some(Err((errno, obstacle)));
                true
            }
            Message::Reply(errno) if !state.command => {
                state.reply.get_or_insert(errno);
                true
            }
            _ if !running => return Err(Error::Unexpected),
            Message::Data(channel, bytes) => {
                let output = output_of(&mut state, channel)?;
                if output.eof {
                    return Err(Error::Unexpected);
                }
                output.allowed = output.allowed.checked_sub(bytes.len() as u32).ok_or(Error::Overrun)?;
                if !output.closed {
                    output.buffer.extend(bytes);
                    output.received += bytes.len() as u64;
                }
                false
            }
            Message::Eof(channel) => {
                output_of(&mut state, channel)?.eof = true;
                state.is_over()
            }
            Message::Drained(channel) => {
                let output = output_of(&mut state, channel)?;
                output.drained.get_or_insert(output.received);
                false
            }
            Message::Credit(Channel::Stdin, bytes) => {
                let credit = state.input.credit.checked_add(bytes).filter(|c| *c <= WINDOW);
                state.input.credit = credit.ok_or(Error::Overrun)?;
                false
            }
            Message::Close(Channel::Stdin) => {
                state.input.closed = true;
                state.waker = None;
                state.is_over()
            }
            Message::Exited(exited) => {
                state.exited.get_or_insert(exited);
                state.waker = None;
                state.is_over()
            }
            _ => return Err(Error::Unexpected),
        };
        self.changed.notify_all();
        Ok(over)
    }
}

fn output_of(state: &mut State, channel: Channel) -> Result<&mut Outbound, Error> {
    match channel {
        Channel::Stdin => Err(Error::Unexpected),
        Channel::Stdout => Ok(state.output(Output::Stdout)),
        Channel::Stderr => Ok(state.output(Output::Stderr)),
    }
}

/// One running command. Clones are the same command.
#[derive(Debug, Clone)]
pub struct Stream {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    id: u32,
}

impl Stream {
    pub(super) fn new(shared: Arc<Shared>, slot: Arc<Slot>, id: u32) -> Self {
        Stream { shared, slot, id }
    }

    /// Takes this stream off the table: what else comes for it is ignored.
    pub(super) fn forget(&self) {
        self.shared.forget(self.id);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.slot.state)
    }

    /// Waits for a change, until `deadline`. Gives the state back either way.
    fn wait_change<'s>(
        &'s self,
        state: MutexGuard<'s, State>,
        deadline: Option<Instant>,
    ) -> MutexGuard<'s, State> {
        match deadline {
            None => self.slot.changed.wait(state).unwrap_or_else(|e| e.into_inner()),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                self.slot.changed.wait_timeout(state, left).unwrap_or_else(|e| e.into_inner()).0
            }
        }
    }

    /// Waits until `done` gives something: `Ok(None)` when `deadline` passes first, an error when the
    /// connection ends first.
    fn wait_for<T>(
        &self,
        deadline: Option<Instant>,
        mut done: impl FnMut(&mut State) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let mut state = self.state();
        loop {
            if let Some(result) = done(&mut state) {
                return Ok(Some(result));
            }
            if state.lost {
                drop(state);
                return Err(self.shared.ended_error());
            }
            if deadline.is_some_and(|d| d <= Instant::now()) {
                return Ok(None);
            }
            state = self.wait_change(state, deadline);
        }
    }

    pub(super) fn reply(&self, deadline: Option<Instant>) -> io::Result<Option<i32>> {
        self.wait_for(deadline, |state| state.reply)
    }

    pub(super) fn started(&self) -> io::Result<Started> {
        self.wait_for(None, |state| state.started)?.ok_or_else(|| self.shared.ended_error())
    }

    /// The command's process id in the guest.
    pub fn pid(&self) -> u32 {
        self.state().started.and_then(Result::ok).unwrap_or(0)
    }

    /// How the command ended, when it has.
    pub fn exited(&self) -> io::Result<Option<Exited>> {
        self.wait_exit(Some(Instant::now()))
    }

    /// Waits for the command's end until `deadline`; `None` when that passes first. Output that is
    /// being copied to descriptors of the host has been copied then, up to the command's end.
    pub fn wait_exit(&self, deadline: Option<Instant>) -> io::Result<Option<Exited>> {
        self.wait_for(deadline, |state| {
            let exited = state.exited?;
            (state.lost || state.outputs.iter().all(Outbound::is_copied)).then_some(exited)
        })
    }

    /// Sends a signal to the command's process group. Does nothing after its end.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        if !(1..=64).contains(&signal) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no such signal"));
        }
        if self.state().exited.is_some() {
            return Ok(());
        }
        self.shared.send(self.id, &Message::Signal(signal))
    }

    /// Gives the command's terminal this size. Does nothing after its end.
    pub fn resize(&self, rows: u16, cols: u16) -> io::Result<()> {
        if self.state().exited.is_some() {
            return Ok(());
        }
        self.shared.send(self.id, &Message::Resize(rows, cols))
    }

    /// Sends the head of `bytes` to standard input as soon as the guest has room. Fails with
    /// `BrokenPipe` when nobody reads it any more, and with `until_exit` once the command has ended.
    pub fn write(&self, bytes: &[u8], until_exit: bool) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let room = self.wait_for(None, |state| {
            if state.input.closed || state.input.ended || (until_exit && state.exited.is_some()) {
                return Some(0);
            }
            let room = bytes.len().min(state.input.credit as usize).min(MAX_DATA);
            state.input.credit -= room as u32;
            (room > 0).then_some(room)
        })?;
        match room {
            Some(n) if n > 0 => {
                self.shared.send(self.id, &Message::Data(Channel::Stdin, &bytes[..n]))?;
                Ok(n)
            }
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Ends standard input.
    pub fn end_input(&self) {
        let mut state = self.state();
        let tell = !state.input.ended && !state.input.closed && !state.lost;
        state.input.ended = true;
        self.settle(state, tell.then_some(Message::Eof(Channel::Stdin)));
    }

    /// Kills the command and wants nothing of it any more.
    pub fn abandon(&self) {
        let _ = self.signal(9);
        self.end_input();
        self.close(Output::Stdout);
        self.close(Output::Stderr);
    }

    /// Has `waker` dropped when standard input is not wanted any more.
    pub fn wake_when_input_ends(&self, waker: PipeWriter) {
        let mut state = self.state();
        if !state.lost && !state.input.closed && state.exited.is_none() {
            state.waker = Some(waker);
        }
    }

    /// Reads output as it comes; 0 is its end.
    pub fn read(&self, output: Output, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut credit = 0;
        let n = self.wait_for(None, |state| {
            let out = state.output(output);
            if out.buffer.is_empty() {
                return (out.eof || out.closed).then_some(0);
            }
            let n = io::Read::read(&mut out.buffer, bytes).unwrap_or(0);
            credit = out.take(n);
            Some(n)
        })?;
        self.give_credit(output, credit);
        Ok(n.unwrap_or(0))
    }

    /// Copies all output to `sink`, to its end, the connection's, or until `sink` fails.
    pub fn copy(&self, output: Output, mut sink: impl io::Write) {
        let mut bytes = vec![0; MAX_DATA];
        loop {
            let mut credit = 0;
            let n = self.wait_for(None, |state| {
                let out = state.output(output);
                if out.buffer.is_empty() {
                    return (out.eof || out.closed).then_some(0);
                }
                let n = io::Read::read(&mut out.buffer, &mut bytes).unwrap_or(0);
                credit = out.take(n);
                Some(n)
            });
            let Ok(Some(n @ 1..)) = n else { break };
            if sink.write_all(&bytes[..n]).and_then(|()| sink.flush()).is_err() {
                break;
            }
            if let Some(copied) = &mut self.state().output(output).copied {
                *copied += n as u64;
            }
            self.slot.changed.notify_all();
            self.give_credit(output, credit);
        }
        self.close(output);
    }

    /// Makes [`Stream::wait_exit`] wait for the [`Stream::copy`] that is about to begin.
    pub fn expect_copy(&self, output: Output) {
        self.state().output(output).copied = Some(0);
    }

    fn give_credit(&self, output: Output, credit: u32) {
        if credit > 0 {
            // When this fails the connection has ended, which the next wait says.
            let _ = self.shared.send(self.id, &Message::Credit(output.channel(), credit));
        }
    }

    /// Bytes of output held here and not yet taken.
    pub fn buffered(&self) -> usize {
        self.state().outputs.iter().map(|o| o.buffer.len()).sum()
    }

    /// Takes no more of this output: the command's writes fail with `EPIPE`.
    pub fn close(&self, output: Output) {
        self.leave(output, Message::Close(output.channel()));
    }

    fn leave(&self, output: Output, message: Message<'_>) {
        let mut state = self.state();
        let lost = state.lost;
        let out = state.output(output);
        let tell = !out.eof && !out.closed && !lost;
        out.closed = true;
        out.buffer = VecDeque::new();
        self.settle(state, tell.then_some(message));
    }

    /// After a change of ours: tells the guest, and takes the stream off the table if it is over.
    fn settle(&self, state: MutexGuard<'_, State>, message: Option<Message<'_>>) {
        let over = state.is_over();
        self.slot.changed.notify_all();
        drop(state);
        if let Some(message) = message {
            let _ = self.shared.send(self.id, &message);
        }
        if over {
            self.forget();
        }
    }

    /// Waits for the command's end and takes all output of the wanted channels meanwhile.
    ///
    /// Output is complete at its end-of-file. When the command has ended and processes it left behind
    /// hold a pipe open, it is what was in the pipe at the command's end and what else comes within
    /// 500 ms; what they write later is thrown away.
    pub fn collect(&self, stdout: bool, stderr: bool) -> io::Result<Collected> {
        let wanted: Vec<Output> = [(stdout, Output::Stdout), (stderr, Output::Stderr)]
            .iter()
            .filter(|w| w.0)
            .map(|w| w.1)
            .collect();
        let mut collected = Collected { exited: Exited::default(), stdout: Vec::new(), stderr: Vec::new() };
        let mut give_up = None;
        loop {
            let mut credits = [0; 2];
            // Some(None) is progress, Some(Some(..)) the end.
            let step = self.wait_for(give_up, |state| {
                let mut progress = false;
                for &output in &wanted {
                    let out = state.output(output);
                    if out.buffer.is_empty() {
                        continue;
                    }
                    let (a, b) = out.buffer.as_slices();
                    let bytes = match output {
                        Output::Stdout => &mut collected.stdout,
                        Output::Stderr => &mut collected.stderr,
                    };
                    bytes.extend_from_slice(a);
                    bytes.extend_from_slice(b);
                    let n = out.buffer.len();
                    out.buffer.clear();
                    credits[output as usize] = out.take(n);
                    progress = true;
                }
                let exited = state.exited.filter(|_| wanted.iter().all(|o| state.output(*o).is_complete()));
                match exited {
                    Some(exited) if state.lost || wanted.iter().all(|o| state.output(*o).eof) => {
                        Some(Some(exited))
                    }
                    Some(_) if give_up.is_none() => Some(None),
                    _ => progress.then_some(None),
                }
            })?;
            for &output in &wanted {
                self.give_credit(output, credits[output as usize]);
            }
            let mut state = self.state();
            let complete = wanted.iter().all(|o| state.output(*o).is_complete());
            let exited = state.exited.filter(|_| complete);
            drop(state);
            match (step, exited) {
                (Some(Some(exited)), _) => {
                    collected.exited = exited;
                    break;
                }
                (_, Some(exited)) => {
                    let now = Instant::now();
                    if *give_up.get_or_insert(now + ORPHAN_GRACE) <= now {
                        collected.exited = exited;
                        break;
                    }
                }
                _ => {}
            }
        }
        for &output in &wanted {
            self.leave(output, Message::Discard(output.channel()));
        }
        Ok(collected)
    }
}
