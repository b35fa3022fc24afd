//! One command as the host's stream: its process and our ends of its pipes, or of its terminal.
//!
//! Pipes to the host are read only while the host has given credit and the connection's buffer has
//! room; standard input is queued only up to the window. So a command that floods, or does not read,
//! blocks nothing but itself.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::protocol::{self, Channel, Error, Exited, MAX_DATA, Message, WINDOW};
use crate::pty::{self, Terminal};
use crate::spawn::Started;
use crate::sys::{self, EPOLLIN, EPOLLOUT, Epoll, Fd};

/// With more than this much unsent, no more output is read from commands.
pub(crate) const SEND_HIGH: usize = 256 * 1024;
/// What a pipe may hold once it has been full. The more it holds, the less often command and agent take
/// turns, which costs more than the copying.
const LARGE_PIPE: usize = 1024 * 1024;
/// Reads from one pipe in a row, for fairness.
const ROUNDS: usize = 8;

/// What a stream works with: the event queue, and the bytes to be sent to the host.
pub(crate) struct Context<'a> {
    pub(crate) epoll: &'a Epoll,
    pub(crate) outgoing: &'a mut Vec<u8>,
    /// Set when a pipe was left unread for lack of room in `outgoing`.
    pub(crate) starved: &'a mut bool,
}

impl Context<'_> {
    fn send(&mut self, stream: u32, message: Message<'_>) {
        message.encode(stream, self.outgoing);
    }
}

/// The epoll token of a stream's channel. Keys are below 2^62.
pub(crate) fn token(key: u64, channel: Channel) -> u64 {
    key << 2 | channel as u64
}

struct Input {
    fd: Fd,
    queue: VecDeque<u8>,
    /// Bytes the host may still send.
    allowed: u32,
    /// Bytes written to the pipe and not yet given back as credit.
    written: u32,
    ending: bool,
    /// Whether a terminal has been told of the end.
    told: bool,
    /// Whether it still has its first size, which only pipes ever change.
    small: bool,
    /// The last byte the host sent.
    last: Option<u8>,
    watched: u32,
}

impl Input {
    /// Writes what is queued, until that is all or `EAGAIN`.
    fn flush(&mut self) -> sys::Result<()> {
        while let (front @ [_, ..], _) = self.queue.as_slices() {
            let n = match self.fd.write(front)? {
                0 => return Err(sys::EAGAIN),
                n => n,
            };
            self.written += n as u32;
            self.queue.drain(..n);
        }
        Ok(())
    }
}

struct Output {
    fd: Fd,
    credit: u32,
    discard: bool,
    /// Whether it is a terminal's.
    terminal: bool,
    /// Whether it still has its first size, which only pipes ever change.
    small: bool,
    /// After the command's end: bytes that were in the pipe then and have not been sent; of a terminal
    /// the most that there can be.
    remaining: Option<u32>,
    watched: u32,
}

pub(crate) struct Stream {
    pub(crate) key: u64,
    id: u32,
    pub(crate) pid: i32,
    group: i32,
    pub(crate) ended: bool,
    /// When it was started.
    pub(crate) started: u64,
    /// When its time is over, and whether that has come.
    pub(crate) deadline: Option<u64>,
    timed_out: bool,
    attached: bool,
    input: Option<Input>,
    outputs: [Option<Output>; 2],
    terminal: Option<Terminal>,
}

impl Stream {
    /// The stream of a command that has been started. Of a terminal with `mute` nothing is sent.
    pub(crate) fn new(key: u64, id: u32, started: Started, mute: bool, cx: &mut Context<'_>) -> Self {
        let terminal = started.terminal;
        let [stdin, stdout, stderr] = started.pipes;
        let input = stdin.map(|fd| Input {
            fd,
            queue: VecDeque::new(),
            allowed: WINDOW,
            written: 0,
            ending: false,
            told: false,
            small: terminal.is_none(),
            last: None,
            watched: 0,
        });
        if let Some(terminal) = terminal.as_ref().filter(|_| input.is_none()) {
            terminal.type_end_of_input();
        }
        let outputs = [stdout, stderr].map(|fd| {
            fd.map(|fd| Output {
                fd,
                credit: WINDOW,
                discard: mute,
                terminal: terminal.is_some(),
                small: terminal.is_none(),
                remaining: None,
                watched: 0,
            })
        });
        let (pid, group) = (started.pid, started.group);
        let mut stream = Stream {
            key,
            id,
            pid,
            group,
            ended: false,
            deadline: None,
            started: started.at,
            timed_out: false,
            attached: true,
            input,
            outputs,
            terminal,
        };
        stream.rewatch(cx);
        stream
    }

    /// Whether nothing of this stream is left.
    pub(crate) fn is_over(&self) -> bool {
        self.ended && self.input.is_none() && self.outputs.iter().all(Option::is_none)
    }

    /// Sends `signal` to the command's process group, or to the command alone where it has joined a
    /// group of others. Nothing after its end: the number may be another's by then.
    pub(crate) fn signal(&self, signal: i32) {
        if self.ended || !(1..=64).contains(&signal) {
            return;
        }
        // A shell gives each of its jobs a group; the kernel would only hang up on the one in front. The
        // terminal forgets which that is as soon as its session ends.
        let terminal = self.terminal.as_ref().filter(|_| signal == sys::SIGKILL);
        let foreground = terminal.and_then(Terminal::foreground);
        if self.group == self.pid {
            let _ = sys::kill(-self.group, signal);
        }
        if let Some(group) = foreground {
            let _ = sys::kill(-group, signal);
        }
        if self.group != self.pid || sys::getpgid(self.pid) != Ok(self.group) {
            let _ = sys::kill(self.pid, signal);
        }
    }

    /// Its time is over.
    pub(crate) fn on_deadline(&mut self) {
        self.timed_out = true;
        self.signal(sys::SIGKILL);
    }

    /// Changes the size of the command's terminal, if it has one still.
    pub(crate) fn resize(&self, rows: u16, cols: u16) {
        if let Some(terminal) = &self.terminal {
            let _ = terminal.resize(rows, cols);
        }
    }

    /// Watches again what may be read and written now.
    pub(crate) fn rewatch(&mut self, cx: &mut Context<'_>) {
        for channel in [Channel::Stdout, Channel::Stderr] {
            let key = self.key;
            if let Some(output) = self.output(channel) {
                output.watch(token(key, channel), cx);
            }
        }
    }

    fn output(&mut self, channel: Channel) -> Option<&mut Output> {
        self.slot(channel)?.as_mut()
    }

    fn slot(&mut self, channel: Channel) -> Option<&mut Option<Output>> {
        match channel {
            Channel::Stdin => None,
            Channel::Stdout => self.outputs.first_mut(),
            Channel::Stderr => self.outputs.last_mut(),
        }
    }

    /// The host's bytes for standard input.
    pub(crate) fn on_data(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Result<(), Error> {
        // What comes after the pipe was closed had been under way: nobody wants it.
        let Some(input) = &mut self.input else { return Ok(()) };
        if input.ending {
            return Err(Error::Unexpected);
        }
        let len = bytes.len() as u32;
        input.allowed = input.allowed.checked_sub(len).ok_or(Error::Overrun)?;
        let mut rest = bytes;
        if input.queue.is_empty() {
            match input.fd.write(bytes) {
                Ok(n) => {
                    input.written += n as u32;
                    rest = bytes.get(n..).unwrap_or(&[]);
                }
                Err(sys::EAGAIN) => {}
                Err(_) => {
                    self.close_input(cx);
                    return Ok(());
                }
            }
        }
        input.last = bytes.last().copied().or(input.last);
        if !rest.is_empty() {
            if core::mem::take(&mut input.small) {
                let _ = input.fd.grow_pipe(LARGE_PIPE);
            }
            input.queue.try_reserve(rest.len()).map_err(|_| Error::NoMemory)?;
            input.queue.extend(rest);
        }
        self.after_writing(cx);
        Ok(())
    }

    pub(crate) fn on_eof(&mut self, cx: &mut Context<'_>) {
        if let Some(input) = &mut self.input {
            input.ending = true;
        }
        self.after_writing(cx);
    }

    /// The pipe to standard input can take bytes, or its reader is gone.
    pub(crate) fn on_writable(&mut self, cx: &mut Context<'_>) {
        let Some(input) = &mut self.input else { return };
        match input.flush() {
            Ok(()) | Err(sys::EAGAIN) => self.after_writing(cx),
            Err(_) => self.close_input(cx),
        }
    }

    fn after_writing(&mut self, cx: &mut Context<'_>) {
        let Some(input) = &mut self.input else { return };
        if input.queue.is_empty() {
            input.queue = VecDeque::new();
            if let Some(terminal) = self.terminal.as_ref().filter(|_| input.ending && !input.told) {
                input.told = true;
                let (eof, times) = terminal.end_of_input(input.last);
                input.queue.extend(core::iter::repeat_n(eof, times));
                return self.on_writable(cx);
            }
            if input.ending {
                let _ = cx.epoll.watch(&input.fd, input.watched, 0, 0);
                self.input = None;
                return;
            }
        }
        if input.written >= WINDOW / 2 && !input.ending {
            input.allowed += input.written;
            let credit = core::mem::take(&mut input.written);
            cx.send(self.id, Message::Credit(Channel::Stdin, credit));
        }
        let want = if input.queue.is_empty() { 0 } else { EPOLLOUT };
        if cx.epoll.watch(&input.fd, input.watched, want, token(self.key, Channel::Stdin)).is_ok() {
            input.watched = want;
        }
    }

    /// Nobody reads standard input any more.
    fn close_input(&mut self, cx: &mut Context<'_>) {
        let Some(input) = self.input.take() else { return };
        let _ = cx.epoll.watch(&input.fd, input.watched, 0, 0);
        if self.attached {
            cx.send(self.id, Message::Close(Channel::Stdin));
        }
    }

    pub(crate) fn on_credit(&mut self, channel: Channel, bytes: u32, cx: &mut Context<'_>) {
        if let Some(output) = self.output(channel) {
            output.credit = output.credit.saturating_add(bytes);
        }
        self.on_readable(channel, cx);
    }

    /// The host reads a channel no more: its writers get `EPIPE`, or with `discard` go on unheard. A
    /// terminal that nobody reads has hung up.
    pub(crate) fn on_close(&mut self, channel: Channel, discard: bool, cx: &mut Context<'_>) {
        let key = self.key;
        let Some(slot) = self.slot(channel) else { return };
        let Some(output) = slot else { return };
        if discard {
            output.discard = true;
            output.watch(token(key, channel), cx);
        } else {
            let _ = cx.epoll.watch(&output.fd, output.watched, 0, 0);
            *slot = None;
            if self.terminal.take().is_some() {
                self.close_input(cx);
            }
        }
    }

    /// Moves what a pipe holds to the host, as far as credit and room allow.
    pub(crate) fn on_readable(&mut self, channel: Channel, cx: &mut Context<'_>) {
        let (id, key) = (self.id, self.key);
        let Some(slot) = self.slot(channel) else { return };
        let Some(output) = slot else { return };
        match output.pump(id, channel, cx) {
            Pumped::Open => output.watch(token(key, channel), cx),
            Pumped::Ended { tell } => {
                let _ = cx.epoll.watch(&output.fd, output.watched, 0, 0);
                *slot = None;
                if tell {
                    cx.send(id, Message::Eof(channel));
                }
            }
        }
    }

    /// The command has ended: sends what its pipes hold, then how it ended.
    pub(crate) fn on_exit(&mut self, mut exited: Exited, cx: &mut Context<'_>) {
        self.ended = true;
        exited.timed_out = self.timed_out && exited.status & 0x7f == sys::SIGKILL;
        // What others that have the terminal open read from it is not ours to wait for.
        if self.terminal.take().is_some() {
            self.close_input(cx);
        }
        for channel in [Channel::Stdout, Channel::Stderr] {
            if let Some(output) = self.output(channel).filter(|o| o.terminal && !o.discard) {
                output.remaining = Some(pty::BACKLOG);
            }
            self.on_readable(channel, cx);
            let id = self.id;
            if let Some(output) = self.output(channel).filter(|o| !o.terminal && !o.discard) {
                match output.fd.readable_bytes() {
                    Ok(n) if n > 0 => output.remaining = Some(n),
                    _ => cx.send(id, Message::Drained(channel)),
                }
            }
        }
        if self.attached {
            cx.send(self.id, Message::Exited(exited));
        }
        // A pipe that is not being written to would not tell us that its reader is gone.
        if self.input.as_ref().is_some_and(|input| input.fd.other_end_closed()) {
            self.close_input(cx);
        }
    }

    /// The host is gone: the command goes on, without input, its output thrown away.
    pub(crate) fn detach(&mut self, cx: &mut Context<'_>) {
        self.attached = false;
        self.close_input(cx);
        for channel in [Channel::Stdout, Channel::Stderr] {
            self.on_close(channel, true, cx);
        }
    }
}

enum Pumped {
    Open,
    Ended { tell: bool },
}

impl Output {
    fn watch(&mut self, token: u64, cx: &mut Context<'_>) {
        let room = cx.outgoing.len() < SEND_HIGH;
        if !room && !self.discard && self.credit > 0 {
            *cx.starved = true;
        }
        let want = if self.discard || (self.credit > 0 && room) { EPOLLIN } else { 0 };
        if cx.epoll.watch(&self.fd, self.watched, want, token).is_ok() {
            self.watched = want;
        }
    }

    fn pump(&mut self, id: u32, channel: Channel, cx: &mut Context<'_>) -> Pumped {
        for _ in 0..ROUNDS {
            if self.discard {
                let mut scratch = [0; 16 * 1024];
                match self.fd.read(&mut scratch) {
                    Ok(n) if n > 0 => continue,
                    Err(sys::EAGAIN) => return Pumped::Open,
                    _ => return Pumped::Ended { tell: false },
                }
            }
            if self.credit == 0 || cx.outgoing.len() >= SEND_HIGH {
                return Pumped::Open;
            }
            let max = MAX_DATA.min(self.credit as usize);
            let start = cx.outgoing.len();
            cx.outgoing.extend_from_slice(&protocol::data_header(id, channel, 0));
            let data = cx.outgoing.len();
            let mut read = self.fd.read_onto(cx.outgoing, max);
            // A terminal gives a page at a time.
            while self.terminal && matches!(read, Ok(1..)) && cx.outgoing.len() - data < max {
                read = self.fd.read_onto(cx.outgoing, max - (cx.outgoing.len() - data));
            }
            let n = cx.outgoing.len() - data;
            if n == MAX_DATA && core::mem::take(&mut self.small) {
                let _ = self.fd.grow_pipe(LARGE_PIPE);
            }
            if n == 0 {
                cx.outgoing.truncate(start);
                if read != Err(sys::EAGAIN) {
                    return Pumped::Ended { tell: true };
                }
                if self.terminal && self.remaining.take().is_some() {
                    cx.send(id, Message::Drained(channel));
                }
                return Pumped::Open;
            }
            cx.outgoing[start..data].copy_from_slice(&protocol::data_header(id, channel, n));
            self.credit -= n as u32;
            if let Some(remaining) = self.remaining {
                self.remaining = remaining.checked_sub(n as u32).filter(|left| *left > 0);
                if self.remaining.is_none() {
                    cx.send(id, Message::Drained(channel));
                }
            }
        }
        Pumped::Open
    }
}
