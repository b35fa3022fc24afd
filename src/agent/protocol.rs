//! The language of host and guest agent: frames on one byte stream, shared by both programs.
//!
//! A frame is `len: u32, stream: u32, kind: u8, payload: [u8; len]`, all little-endian. Stream 0 is
//! the connection itself; every other stream is one operation that the host began with a number
//! of its choice: a command, or a request that ends with [`Message::Reply`]. Both sides send
//! [`Message::Hello`] first and drop the connection when the other's does not fit.
//!
//! Flow control is by credit and per channel. A side may send [`WINDOW`] bytes of [`Message::Data`]
//! on a channel, then only what [`Message::Credit`] allows, so memory on both sides is bounded and
//! an unread channel never blocks another.
//!
//! Bytes are hostile until decoded: a bad frame is an [`Error`] and ends the connection. Nothing is
//! allocated beyond a small multiple of the bytes that really arrived.

extern crate alloc;

use alloc::vec::Vec;
use core::ffi::CStr;
use core::fmt;

#[path = "protocol/files.rs"]
pub mod files;
#[path = "protocol/net.rs"]
pub mod net;
#[path = "protocol/renew.rs"]
mod renew;
#[path = "protocol/root.rs"]
mod root;

pub use renew::Renewal;
pub use root::{File, Mount, Root};

/// Version of this protocol. Both sides must have the same: the library carries its own agent.
pub const VERSION: u16 = 5;
/// The vsock port on the host (CID 2) that the agent connects to.
pub const PORT: u32 = 1024;
/// Bytes of a frame before its payload.
pub const HEADER: usize = 9;
/// Most bytes in one [`Message::Data`].
pub const MAX_DATA: usize = 64 * 1024;
/// Most payload bytes of any frame but [`Message::Spawn`] and [`Message::Root`].
pub const MAX_PAYLOAD: usize = MAX_DATA + 256;
/// Most payload bytes of [`Message::Spawn`] and [`Message::Root`]: above what a kernel takes as arguments and environment.
pub const MAX_SPAWN: usize = 4 * 1024 * 1024;
/// Bytes that may be under way on a channel without credit, in either direction.
pub const WINDOW: u32 = 512 * 1024;

const MAGIC: [u8; 4] = *b"ccag";
/// A [`Decoder`] holds at least this much, so that one read takes a whole data frame.
const BUFFER: usize = HEADER + MAX_PAYLOAD;

/// What can be wrong with received bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A frame announces more bytes than its kind may have.
    TooLong,
    /// No message has this kind.
    UnknownKind(u8),
    /// The payload does not follow the layout of its kind.
    Malformed,
    /// The first message is not that of this protocol.
    NotAgent,
    /// The other side speaks this version and not [`VERSION`].
    Version(u16),
    /// More data than the window allows.
    Overrun,
    /// A message that has no place here: wrong direction, or a stream number twice.
    Unexpected,
    /// No memory for what is announced.
    NoMemory,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::TooLong => f.write_str("frame too long"),
            Error::UnknownKind(kind) => write!(f, "unknown message kind {kind}"),
            Error::Malformed => f.write_str("malformed message"),
            Error::NotAgent => f.write_str("not the agent protocol"),
            Error::Version(v) => write!(f, "protocol version {v}, expected {VERSION}"),
            Error::Overrun => f.write_str("more data than the window allows"),
            Error::Unexpected => f.write_str("unexpected message"),
            Error::NoMemory => f.write_str("out of memory"),
        }
    }
}

impl core::error::Error for Error {}

/// One of a command's three standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Host to guest.
    Stdin = 0,
    /// Guest to host.
    Stdout = 1,
    /// Guest to host.
    Stderr = 2,
}

impl Channel {
    fn parse(byte: u8) -> Result<Self, Error> {
        match byte {
            0 => Ok(Channel::Stdin),
            1 => Ok(Channel::Stdout),
            2 => Ok(Channel::Stderr),
            _ => Err(Error::Malformed),
        }
    }
}

/// What kept a command from being started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// The program, or something that every command needs.
    Program = 0,
    /// [`Spawn::user`].
    User = 1,
    /// The group in [`Spawn::user`].
    Group = 2,
    /// [`Spawn::cwd`].
    Directory = 3,
    /// [`Spawn::terminal`].
    Terminal = 4,
    /// [`Spawn::limits`].
    Limit = 5,
}

impl Obstacle {
    fn parse(byte: u8) -> Result<Self, Error> {
        match byte {
            0 => Ok(Obstacle::Program),
            1 => Ok(Obstacle::User),
            2 => Ok(Obstacle::Group),
            3 => Ok(Obstacle::Directory),
            4 => Ok(Obstacle::Terminal),
            5 => Ok(Obstacle::Limit),
            _ => Err(Error::Malformed),
        }
    }
}

/// What a new command finds at one of its standard descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// `/dev/null`.
    #[default]
    Null = 0,
    /// A pipe, carried as a channel.
    Piped = 1,
}

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Power off.
    PowerOff = 0,
    /// Reset.
    Restart = 1,
}

/// A limit of a process, as `setrlimit(2)` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Which, by Linux's number.
    pub resource: u8,
    /// Where it begins to be felt; all ones for nowhere.
    pub soft: u64,
    /// How far the process itself may raise it, likewise.
    pub hard: u64,
}

/// A command to start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spawn<'a> {
    /// Path, or a name without `/` that is looked up in the `PATH` of `env`.
    pub program: &'a CStr,
    /// All arguments, `argv[0]` included.
    pub argv: Vec<&'a CStr>,
    /// `NAME=value`, complete: nothing is inherited.
    pub env: Vec<&'a CStr>,
    /// Working directory, `/` by default.
    pub cwd: Option<&'a CStr>,
    /// Standard input, output and error.
    pub stdio: [Mode; 3],
    /// A terminal of these rows and columns in place of pipes, in a session of its own. What it says
    /// is standard output; input and output that are null are at their end and thrown away.
    pub terminal: Option<(u16, u16)>,
    /// User to become as `user`, `user:group` or `:group`, names or numbers of the guest's root.
    pub user: Option<&'a CStr>,
    /// Whether to set `HOME` to that user's home directory.
    pub set_home: bool,
    /// User to become, whatever [`Spawn::user`] says.
    pub uid: Option<u32>,
    /// Group to become, likewise.
    pub gid: Option<u32>,
    /// Supplementary groups, likewise.
    pub groups: Option<Vec<u32>>,
    /// Process group to join; 0 is a new one of its own.
    pub process_group: i32,
    /// Whether to begin a session instead (its own process group too).
    pub new_session: bool,
    /// Set in this order before it becomes its user.
    pub limits: Vec<Limit>,
    /// Nanoseconds after which its process group is killed, 0 for never.
    pub timeout_ns: u64,
    /// Whether it is process 1 of a world of processes of its own, with whose end the machine ends.
    pub init: bool,
}

/// How a command ended and what it used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exited {
    /// The status as `wait(2)` encodes it.
    pub status: i32,
    /// CPU time in user mode, microseconds, with that of the children it waited for.
    pub user_us: u64,
    /// CPU time in the kernel, microseconds, likewise.
    pub system_us: u64,
    /// Peak resident memory in KiB.
    pub max_rss_kib: u64,
    /// Microseconds from its start to its end.
    pub wall_us: u64,
    /// Whether it was [`Spawn::timeout_ns`] that ended it.
    pub timed_out: bool,
}

/// All messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// Both ways, first of all, on stream 0: the speaker's version.
    Hello(u16),
    /// Host: start a command as this stream.
    Spawn(Spawn<'a>),
    /// Agent: it runs, with this process id.
    Spawned(u32),
    /// Agent: it does not, for this errno about this. The stream is over.
    SpawnFailed(i32, Obstacle),
    /// Both ways: bytes of a channel.
    Data(Channel, &'a [u8]),
    /// Both ways: no more bytes will come on the channel.
    Eof(Channel),
    /// Both ways, to the channel's sender: so many bytes more may be sent.
    Credit(Channel, u32),
    /// To the channel's sender: nobody reads it any more; its writer shall get `EPIPE`.
    Close(Channel),
    /// Host: throw away what else comes on this channel, but let its writers live.
    Discard(Channel),
    /// Agent, when a command has ended and others hold the channel open: everything that was in
    /// the pipe at its end has been sent.
    Drained(Channel),
    /// Host: send this signal to the command's process group.
    Signal(i32),
    /// Host: give the command's terminal these rows and columns.
    Resize(u16, u16),
    /// Agent: the command ended.
    Exited(Exited),
    /// Both ways, on stream 0: answer with the same number.
    Ping(u64),
    /// The answer to a ping.
    Pong(u64),
    /// Host, a request: SIGTERM to everything, after so many milliseconds SIGKILL, write file systems
    /// out, then end the machine. The reply comes just before the end.
    Shutdown(Ending, u32),
    /// Host, a request: become a machine of one's own.
    Renew(Renewal<'a>),
    /// Agent: the request of this stream is done; 0 or an errno. The stream is over.
    Reply(i32),
    /// Host, a request, once: mount a root and live in it.
    Root(Root<'a>),
    /// Host, a request: stop every process but the agent, for a snapshot.
    Freeze,
    /// Host, a request: let them go on.
    Thaw,
    /// Host, a request: have connections to this port served by file workers, see [`files`]. The first connection only
    /// says by its end when to stop. Those of an earlier request end.
    Files(u32),
    /// Host: something about a socket of the guest.
    Socket(net::Request<'a>),
    /// Agent: something about a socket.
    SocketEvent(net::Event<'a>),
    /// Host, a request: write out what the kernel has of changed files.
    Sync,
}

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const SPAWN: u8 = 2;
    pub(super) const SPAWNED: u8 = 3;
    pub(super) const SPAWN_FAILED: u8 = 4;
    pub(super) const DATA: u8 = 5;
    pub(super) const EOF: u8 = 6;
    pub(super) const CREDIT: u8 = 7;
    pub(super) const CLOSE: u8 = 8;
    pub(super) const DISCARD: u8 = 9;
    pub(super) const DRAINED: u8 = 10;
    pub(super) const SIGNAL: u8 = 11;
    pub(super) const EXITED: u8 = 12;
    pub(super) const PING: u8 = 13;
    pub(super) const PONG: u8 = 14;
    pub(super) const SHUTDOWN: u8 = 15;
    pub(super) const RENEW: u8 = 16;
    pub(super) const REPLY: u8 = 19;
    pub(super) const ROOT: u8 = 20;
    pub(super) const FREEZE: u8 = 21;
    pub(super) const THAW: u8 = 22;
    pub(super) const RESIZE: u8 = 24;
    pub(super) const FILES: u8 = 32;
    pub(super) const SOCKET: u8 = 48;
    pub(super) const SOCKET_EVENT: u8 = 49;
    pub(super) const SYNC: u8 = 40;
}

impl<'a> Message<'a> {
    /// Appends this message as one frame. The caller keeps data within [`MAX_DATA`].
    pub fn encode(&self, stream: u32, out: &mut Vec<u8>) {
        let start = out.len();
        begin_frame(stream, self.kind(), out);
        match self {
            Message::Hello(version) => {
                out.extend_from_slice(&MAGIC);
                out.extend_from_slice(&version.to_le_bytes());
            }
            Message::Spawn(spawn) => spawn.encode(out),
            Message::Root(root) => root.encode(out),
            Message::Socket(request) => request.encode(out),
            Message::SocketEvent(event) => event.encode(out),
            Message::Freeze | Message::Thaw | Message::Sync => {}
            Message::Spawned(v) | Message::Files(v) => out.extend_from_slice(&v.to_le_bytes()),
            Message::SpawnFailed(errno, obstacle) => {
                out.extend_from_slice(&errno.to_le_bytes());
                out.push(*obstacle as u8);
            }
            Message::Signal(v) | Message::Reply(v) => out.extend_from_slice(&v.to_le_bytes()),
            Message::Data(channel, bytes) => {
                out.push(*channel as u8);
                out.extend_from_slice(bytes);
            }
            Message::Eof(channel)
            | Message::Close(channel)
            | Message::Discard(channel)
            | Message::Drained(channel) => out.push(*channel as u8),
            Message::Credit(channel, bytes) => {
                out.push(*channel as u8);
                out.extend_from_slice(&bytes.to_le_bytes());
            }
            Message::Resize(rows, cols) => {
                out.extend_from_slice(&rows.to_le_bytes());
                out.extend_from_slice(&cols.to_le_bytes());
            }
            Message::Exited(e) => {
                out.extend_from_slice(&e.status.to_le_bytes());
                for v in [e.user_us, e.system_us, e.max_rss_kib, e.wall_us] {
                    out.extend_from_slice(&v.to_le_bytes());
                }
                out.push(e.timed_out.into());
            }
            Message::Ping(v) | Message::Pong(v) => {
                out.extend_from_slice(&v.to_le_bytes());
            }
            Message::Shutdown(ending, grace_ms) => {
                out.push(*ending as u8);
                out.extend_from_slice(&grace_ms.to_le_bytes());
            }
            Message::Renew(renewal) => renewal.encode(out),
        }
        end_frame(start, out);
    }

    fn kind(&self) -> u8 {
        match self {
            Message::Hello(_) => kind::HELLO,
            Message::Spawn(_) => kind::SPAWN,
            Message::Spawned(_) => kind::SPAWNED,
            Message::SpawnFailed(..) => kind::SPAWN_FAILED,
            Message::Data(..) => kind::DATA,
            Message::Eof(_) => kind::EOF,
            Message::Credit(..) => kind::CREDIT,
            Message::Close(_) => kind::CLOSE,
            Message::Discard(_) => kind::DISCARD,
            Message::Drained(_) => kind::DRAINED,
            Message::Signal(_) => kind::SIGNAL,
            Message::Resize(..) => kind::RESIZE,
            Message::Exited(_) => kind::EXITED,
            Message::Ping(_) => kind::PING,
            Message::Pong(_) => kind::PONG,
            Message::Shutdown(..) => kind::SHUTDOWN,
            Message::Renew(_) => kind::RENEW,
            Message::Reply(_) => kind::REPLY,
            Message::Root(_) => kind::ROOT,
            Message::Freeze => kind::FREEZE,
            Message::Thaw => kind::THAW,
            Message::Files(_) => kind::FILES,
            Message::Socket(_) => kind::SOCKET,
            Message::SocketEvent(_) => kind::SOCKET_EVENT,
            Message::Sync => kind::SYNC,
        }
    }

    /// Reads the message of a frame.
    pub fn decode(frame: &Frame<'a>) -> Result<Self, Error> {
        let mut r = Reader { rest: frame.payload };
        let message = match frame.kind {
            kind::HELLO => {
                if r.array::<4>() != Ok(MAGIC) {
                    return Err(Error::NotAgent);
                }
                Message::Hello(r.u16()?)
            }
            kind::SPAWN => Message::Spawn(Spawn::decode(&mut r)?),
            kind::SPAWNED => Message::Spawned(r.u32()?),
            kind::SPAWN_FAILED => Message::SpawnFailed(r.i32()?, Obstacle::parse(r.u8()?)?),
            kind::DATA => Message::Data(r.channel()?, r.all()),
            kind::EOF => Message::Eof(r.channel()?),
            kind::CREDIT => Message::Credit(r.channel()?, r.u32()?),
            kind::CLOSE => Message::Close(r.channel()?),
            kind::DISCARD => Message::Discard(r.channel()?),
            kind::DRAINED => Message::Drained(r.channel()?),
            kind::SIGNAL => Message::Signal(r.i32()?),
            kind::RESIZE => Message::Resize(r.u16()?, r.u16()?),
            kind::EXITED => Message::Exited(Exited {
                status: r.i32()?,
                user_us: r.u64()?,
                system_us: r.u64()?,
                max_rss_kib: r.u64()?,
                wall_us: r.u64()?,
                timed_out: r.u8()? != 0,
            }),
            kind::PING => Message::Ping(r.u64()?),
            kind::PONG => Message::Pong(r.u64()?),
            kind::SHUTDOWN => {
                let ending = match r.u8()? {
                    0 => Ending::PowerOff,
                    1 => Ending::Restart,
                    _ => return Err(Error::Malformed),
                };
                Message::Shutdown(ending, r.u32()?)
            }
            kind::RENEW => Message::Renew(Renewal::decode(&mut r)?),
            kind::REPLY => Message::Reply(r.i32()?),
            kind::ROOT => Message::Root(Root::decode(&mut r)?),
            kind::FREEZE => Message::Freeze,
            kind::THAW => Message::Thaw,
            kind::FILES => Message::Files(r.u32()?),
            kind::SOCKET => Message::Socket(net::Request::decode(&mut r)?),
            kind::SOCKET_EVENT => Message::SocketEvent(net::Event::decode(&mut r)?),
            kind::SYNC => Message::Sync,
            other => return Err(Error::UnknownKind(other)),
        };
        if r.rest.is_empty() { Ok(message) } else { Err(Error::Malformed) }
    }
}

impl<'a> Spawn<'a> {
    fn encode(&self, out: &mut Vec<u8>) {
        let flags = u8::from(self.cwd.is_some())
            | u8::from(self.uid.is_some()) << 1
            | u8::from(self.gid.is_some()) << 2
            | u8::from(self.groups.is_some()) << 3
            | u8::from(self.new_session) << 4
            | u8::from(self.user.is_some()) << 5
            | u8::from(self.set_home) << 6
            | u8::from(self.terminal.is_some()) << 7;
        out.push(flags);
        out.push(self.init.into());
        out.extend(self.stdio.map(|m| m as u8));
        out.extend_from_slice(&self.process_group.to_le_bytes());
        out.extend_from_slice(&self.timeout_ns.to_le_bytes());
        out.extend_from_slice(&(self.limits.len() as u32).to_le_bytes());
        for limit in &self.limits {
            out.push(limit.resource);
            out.extend_from_slice(&limit.soft.to_le_bytes());
            out.extend_from_slice(&limit.hard.to_le_bytes());
        }
        if let Some((rows, cols)) = self.terminal {
            out.extend_from_slice(&rows.to_le_bytes());
            out.extend_from_slice(&cols.to_le_bytes());
        }
        for id in [self.uid, self.gid].into_iter().flatten() {
            out.extend_from_slice(&id.to_le_bytes());
        }
        if let Some(groups) = &self.groups {
            out.extend_from_slice(&(groups.len() as u32).to_le_bytes());
            for id in groups {
                out.extend_from_slice(&id.to_le_bytes());
            }
        }
        put_str(self.program, out);
        for s in [self.cwd, self.user].into_iter().flatten() {
            put_str(s, out);
        }
        for list in [&self.argv, &self.env] {
            out.extend_from_slice(&(list.len() as u32).to_le_bytes());
            for s in list {
                put_str(s, out);
            }
        }
    }

    fn decode(r: &mut Reader<'a>) -> Result<Self, Error> {
        let flags = r.u8()?;
        let init = match r.u8()? {
            0 => false,
            1 => true,
            _ => return Err(Error::Malformed),
        };
        let mut stdio = [Mode::Null; 3];
        for mode in &mut stdio {
            *mode = match r.u8()? {
                0 => Mode::Null,
                1 => Mode::Piped,
                _ => return Err(Error::Malformed),
            };
        }
        let (process_group, timeout_ns) = (r.i32()?, r.u64()?);
        let limits = r.list(17, |r| Ok(Limit { resource: r.u8()?, soft: r.u64()?, hard: r.u64()? }))?;
        let terminal = if flags & 128 != 0 { Some((r.u16()?, r.u16()?)) } else { None };
        let uid = if flags & 2 != 0 { Some(r.u32()?) } else { None };
        let gid = if flags & 4 != 0 { Some(r.u32()?) } else { None };
        let groups = if flags & 8 != 0 { Some(r.list(4, Reader::u32)?) } else { None };
        let program = r.string()?;
        let cwd = if flags & 1 != 0 { Some(r.string()?) } else { None };
        let user = if flags & 32 != 0 { Some(r.string()?) } else { None };
        // A string is at least its length and its NUL.
        let argv = r.list(5, Reader::string)?;
        let env = r.list(5, Reader::string)?;
        let (new_session, set_home) = (flags & 16 != 0, flags & 64 != 0);
        Ok(Spawn {
            program,
            argv,
            env,
            cwd,
            stdio,
            terminal,
            user,
            set_home,
            uid,
            gid,
            groups,
            process_group,
            new_session,
            limits,
            timeout_ns,
            init,
        })
    }
}

/// Strings travel with their NUL, so that the guest passes them on to its kernel as they lie.
fn put_str(s: &CStr, out: &mut Vec<u8>) {
    let bytes = s.to_bytes_with_nul();
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Appends a frame header whose length [`end_frame`] fills in.
fn begin_frame(stream: u32, kind: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&stream.to_le_bytes());
    out.push(kind);
}

fn end_frame(start: usize, out: &mut [u8]) {
    let len = (out.len() - start - HEADER) as u32;
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
}

/// The bytes that go before `len` bytes of [`Message::Data`], for a sender that has them elsewhere.
pub fn data_header(stream: u32, channel: Channel, len: usize) -> [u8; HEADER + 1] {
    let mut header = [0; HEADER + 1];
    header[..4].copy_from_slice(&(len as u32 + 1).to_le_bytes());
    header[4..8].copy_from_slice(&stream.to_le_bytes());
    header[8] = kind::DATA;
    header[9] = channel as u8;
    header
}

/// A complete frame, its payload not yet looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Number of the operation, 0 for the connection.
    pub stream: u32,
    kind: u8,
    payload: &'a [u8],
}

/// Cuts a byte stream into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: Vec<u8>,
    start: usize,
    end: usize,
}

impl Decoder {
    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where to put the next received bytes, never empty. Call after [`Decoder::next`] said `None`.
    pub fn spare(&mut self) -> Result<&mut [u8], Error> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buf.len() > 4 * BUFFER {
                self.buf = Vec::new();
            }
        }
        if self.start > 0 && self.buf.len() - self.end < BUFFER {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buf.len() - self.end < BUFFER {
            // Doubling keeps the copying linear; it follows what has arrived, not what was announced.
            let len = self.end + BUFFER.max(self.end);
            self.buf.try_reserve_exact(len - self.buf.len()).map_err(|_| Error::NoMemory)?;
            self.buf.resize(len, 0);
        }
        Ok(&mut self.buf[self.end..])
    }

    /// Takes in the first `n` bytes of [`Decoder::spare`].
    pub fn advance(&mut self, n: usize) {
        self.end = (self.end + n).min(self.buf.len());
    }

    /// The next complete frame, `None` when more bytes are needed.
    #[allow(clippy::should_implement_trait)] // lends from itself, which an iterator cannot
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, Error> {
        let have = &self.buf[self.start..self.end];
        let Some((header, rest)) = have.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind] = *header;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let cap = if matches!(kind, kind::SPAWN | kind::ROOT) { MAX_SPAWN } else { MAX_PAYLOAD };
        if len > cap {
            return Err(Error::TooLong);
        }
        let Some(payload) = rest.get(..len) else { return Ok(None) };
        self.start += HEADER + len;
        Ok(Some(Frame { stream: u32::from_le_bytes([s0, s1, s2, s3]), kind, payload }))
    }
}

/// A checked view of a payload.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> Result<&'a [u8], Error> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(Error::Malformed)?;
        self.rest = rest;
        Ok(head)
    }

    fn all(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.rest)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Error::Malformed)?;
        self.rest = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, Error> {
        self.array::<1>().map(|[b]| b)
    }

    fn u16(&mut self) -> Result<u16, Error> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_le_bytes)
    }

    fn i32(&mut self) -> Result<i32, Error> {
        self.array().map(i32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_le_bytes)
    }

    fn channel(&mut self) -> Result<Channel, Error> {
        Channel::parse(self.u8()?)
    }

    fn string(&mut self) -> Result<&'a CStr, Error> {
        let len = self.u32()? as usize;
        CStr::from_bytes_with_nul(self.bytes(len)?).map_err(|_| Error::Malformed)
    }

    /// A counted list whose items take at least `min` bytes each.
    fn list<T>(
        &mut self,
        min: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let count = self.u32()? as usize;
        if count > self.rest.len() / min {
            return Err(Error::Malformed);
        }
        let mut list = Vec::new();
        list.try_reserve_exact(count).map_err(|_| Error::NoMemory)?;
        for _ in 0..count {
            list.push(item(self)?);
        }
        Ok(list)
    }
}
