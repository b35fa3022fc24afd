//! Sockets of the guest: what the host asks for and what the agent tells of them.
//!
//! A socket is a stream that a [`Request`] begins and [`Request::Close`] ends. It is *opening* until
//! [`Event::Opened`] or [`Event::Failed`], and open then. A connection's bytes are
//! [`Message::Data`](super::Message::Data) on the channels of standard input (to the guest) and output
//! (from it), with the same credit; the host may send as soon as it has asked. A datagram socket's
//! arrivals are [`Event::Datagram`], of which each takes its length and [`DATAGRAM_COST`] of the credit.
//! What is asked of an open socket is a stream of its own, over with its answer.

extern crate alloc;

use alloc::vec::Vec;

use super::{Error, Reader};

/// Longest host name.
pub const MAX_NAME: usize = 255;
/// Most addresses in one message.
pub const MAX_ADDRESSES: usize = 64;
/// Longest name of a Unix socket, without a NUL at its end.
pub const MAX_UNIX_NAME: usize = 107;
/// What a datagram takes of the credit besides its bytes.
pub const DATAGRAM_COST: u32 = 256;

/// A socket's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address<'a> {
    /// IPv4 address and port.
    V4([u8; 4], u16),
    /// IPv6 address, port, flow information, scope.
    V6([u8; 16], u16, u32, u32),
    /// A path; or, behind a NUL, an abstract name; or empty, for a socket without a name.
    Unix(&'a [u8]),
}

/// Where to: tried one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target<'a> {
    /// One of these.
    Addresses(Vec<Address<'a>>),
    /// One of those that the guest knows for a name, and this port.
    Name(&'a [u8], u16),
}

/// A whole-number property of a socket. Flags are 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opt {
    /// `TCP_NODELAY`.
    NoDelay = 0,
    /// `IP_TTL`, or `IPV6_UNICAST_HOPS` of an IPv6 socket.
    Ttl = 1,
    /// `SO_BROADCAST`.
    Broadcast = 2,
    /// `IP_MULTICAST_LOOP`.
    MulticastLoopV4 = 3,
    /// `IP_MULTICAST_TTL`.
    MulticastTtlV4 = 4,
    /// `IPV6_MULTICAST_LOOP`.
    MulticastLoopV6 = 5,
    /// `SO_ERROR`, which reading clears.
    Error = 6,
    /// `IPV6_V6ONLY`.
    OnlyV6 = 7,
    /// How many seconds a closed connection goes on sending; [`NO_LINGER`] where nothing is said.
    Linger = 8,
    /// `TCP_QUICKACK`.
    QuickAck = 9,
}

/// [`Opt::Linger`] of a connection of which nothing was said.
pub const NO_LINGER: u32 = u32::MAX;

impl Opt {
    fn parse(byte: u8) -> Result<Self, Error> {
        const ALL: [Opt; 10] = [
            Opt::NoDelay,
            Opt::Ttl,
            Opt::Broadcast,
            Opt::MulticastLoopV4,
            Opt::MulticastTtlV4,
            Opt::MulticastLoopV6,
            Opt::Error,
            Opt::OnlyV6,
            Opt::Linger,
            Opt::QuickAck,
        ];
        ALL.get(usize::from(byte)).copied().ok_or(Error::Malformed)
    }
}

/// Which halves of a connection end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halves {
    /// Nothing more is received.
    Read = 0,
    /// Nothing more is sent.
    Write = 1,
    /// Both.
    Both = 2,
}

/// What is done to an open socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<'a> {
    /// Tell a property: [`Event::Value`].
    Get(Opt),
    /// Set a property.
    Set(Opt, u32),
    /// Send to and receive from one address only: [`Event::Opened`].
    Connect(Target<'a>),
    /// End halves.
    Shutdown(Halves),
    /// Join the multicast group (`true`) or leave it, on the interface of an address or of an index.
    Membership(bool, Address<'a>, [u8; 4]),
    /// Send a datagram: to this target, or to whom the socket is connected.
    Send(Option<Target<'a>>, &'a [u8]),
}

/// What the host asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<'a> {
    /// A connection to the first of the targets that takes one.
    Connect(Target<'a>),
    /// A listener at the first of the targets that can be had.
    Listen(Target<'a>),
    /// The next connection of this stream, a listener.
    Accept(u32),
    /// A datagram socket at the first of the targets that can be had.
    Bind(Target<'a>),
    /// The addresses of a target.
    Lookup(Target<'a>),
    /// Something of another stream's open socket.
    Do(u32, Action<'a>),
    /// No more of this stream. What has been sent still goes out, unless the connection is to be reset.
    Close(bool),
}

/// Why something could not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The errno tells.
    System = 0,
    /// Nobody knows the name.
    NoName = 1,
    /// No name server gave an answer.
    NoAnswer = 2,
}

impl Reason {
    fn parse(byte: u8) -> Result<Self, Error> {
        match byte {
            0 => Ok(Reason::System),
            1 => Ok(Reason::NoName),
            2 => Ok(Reason::NoAnswer),
            _ => Err(Error::Malformed),
        }
    }
}

/// What the agent tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// It is open: its own address and its peer's (a name that is empty where there is none).
    Opened(Address<'a>, Address<'a>),
    /// It cannot be done, for this errno. The stream is over.
    Failed(Reason, i32),
    /// Done; a property's value or 0. The stream is over.
    Value(u32),
    /// The addresses that were looked up. The stream is over.
    Addresses(Vec<Address<'a>>),
    /// Nothing more is received, for this errno.
    ReadFailed(i32),
    /// Nothing more can be sent, for this errno.
    WriteFailed(i32),
    /// A datagram and its sender.
    Datagram(Address<'a>, &'a [u8]),
    /// An error that concerns one datagram; more may come.
    DatagramFailed(i32),
}

impl<'a> Address<'a> {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Address::V4(ip, port) => {
                out.push(4);
                out.extend_from_slice(ip);
                out.extend_from_slice(&port.to_le_bytes());
            }
            Address::V6(ip, port, flow, scope) => {
                out.push(6);
                out.extend_from_slice(ip);
                out.extend_from_slice(&port.to_le_bytes());
                out.extend_from_slice(&flow.to_le_bytes());
                out.extend_from_slice(&scope.to_le_bytes());
            }
            Address::Unix(name) => {
                out.push(1);
                out.push(name.len() as u8);
                out.extend_from_slice(name);
            }
        }
    }

    fn decode(r: &mut Reader<'a>) -> Result<Self, Error> {
        Ok(match r.u8()? {
            4 => Address::V4(r.array()?, r.u16()?),
            6 => Address::V6(r.array()?, r.u16()?, r.u32()?, r.u32()?),
            1 => {
                let len = usize::from(r.u8()?);
                let name = r.bytes(len)?;
                // A path ends at its first NUL: one within it would mean another file.
                let nul = name.iter().skip(1).any(|b| *b == 0) && name.first() != Some(&0);
                if nul || name.len() > MAX_UNIX_NAME + usize::from(name.first() == Some(&0)) {
                    return Err(Error::Malformed);
                }
                Address::Unix(name)
            }
            _ => return Err(Error::Malformed),
        })
    }
}

fn put_addresses(addresses: &[Address<'_>], out: &mut Vec<u8>) {
    out.extend_from_slice(&(addresses.len() as u32).to_le_bytes());
    addresses.iter().for_each(|address| address.encode(out));
}

fn take_addresses<'a>(r: &mut Reader<'a>) -> Result<Vec<Address<'a>>, Error> {
    let addresses = r.list(2, Address::decode)?;
    if addresses.len() > MAX_ADDRESSES { Err(Error::TooLong) } else { Ok(addresses) }
}

impl<'a> Target<'a> {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Target::Addresses(addresses) => {
                out.push(0);
                put_addresses(addresses, out);
            }
            Target::Name(name, port) => {
                out.push(1);
                out.extend_from_slice(&port.to_le_bytes());
                out.extend_from_slice(&(name.len() as u16).to_le_bytes());
                out.extend_from_slice(name);
            }
        }
    }

    fn decode(r: &mut Reader<'a>) -> Result<Self, Error> {
        match r.u8()? {
            0 => Ok(Target::Addresses(take_addresses(r)?)),
            1 => {
                let (port, len) = (r.u16()?, usize::from(r.u16()?));
                if len > MAX_NAME {
                    return Err(Error::TooLong);
                }
                Ok(Target::Name(r.bytes(len)?, port))
            }
            _ => Err(Error::Malformed),
        }
    }
}

impl<'a> Action<'a> {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Action::Get(opt) => out.extend_from_slice(&[0, *opt as u8]),
            Action::Set(opt, value) => {
                out.extend_from_slice(&[1, *opt as u8]);
                out.extend_from_slice(&value.to_le_bytes());
            }
            Action::Connect(target) => {
                out.push(2);
                target.encode(out);
            }
            Action::Shutdown(halves) => out.extend_from_slice(&[3, *halves as u8]),
            Action::Membership(join, group, interface) => {
                out.extend_from_slice(&[4, u8::from(*join)]);
                group.encode(out);
                out.extend_from_slice(interface);
            }
            Action::Send(target, bytes) => {
                out.extend_from_slice(&[5, u8::from(target.is_some())]);
                if let Some(target) = target {
                    target.encode(out);
                }
                out.extend_from_slice(bytes);
            }
        }
    }

    fn decode(r: &mut Reader<'a>) -> Result<Self, Error> {
        Ok(match r.u8()? {
            0 => Action::Get(Opt::parse(r.u8()?)?),
            1 => Action::Set(Opt::parse(r.u8()?)?, r.u32()?),
            2 => Action::Connect(Target::decode(r)?),
            3 => Action::Shutdown(match r.u8()? {
                0 => Halves::Read,
                1 => Halves::Write,
                2 => Halves::Both,
                _ => return Err(Error::Malformed),
            }),
            4 => Action::Membership(flag(r)?, Address::decode(r)?, r.array()?),
            5 => {
                let target = if flag(r)? { Some(Target::decode(r)?) } else { None };
                Action::Send(target, r.all())
            }
            _ => return Err(Error::Malformed),
        })
    }
}

fn flag(r: &mut Reader<'_>) -> Result<bool, Error> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::Malformed),
    }
}

impl<'a> Request<'a> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Request::Connect(target) => {
                out.push(0);
                target.encode(out);
            }
            Request::Listen(target) => {
                out.push(1);
                target.encode(out);
            }
            Request::Accept(listener) => {
                out.push(2);
                out.extend_from_slice(&listener.to_le_bytes());
            }
            Request::Bind(target) => {
                out.push(3);
                target.encode(out);
            }
            Request::Lookup(target) => {
                out.push(4);
                target.encode(out);
            }
            Request::Do(socket, action) => {
                out.push(5);
                out.extend_from_slice(&socket.to_le_bytes());
                action.encode(out);
            }
            Request::Close(reset) => out.extend_from_slice(&[6, u8::from(*reset)]),
        }
    }

    pub(super) fn decode(r: &mut Reader<'a>) -> Result<Self, Error> {
        Ok(match r.u8()? {
            0 => Request::Connect(Target::decode(r)?),
            1 => Request::Listen(Target::decode(r)?),
            2 => Request::Accept(r.u32()?),
            3 => Request::Bind(Target::decode(r)?),
            4 => Request::Lookup(Target::decode(r)?),
            5 => Request::Do(r.u32()?, Action::decode(r)?),
            6 => Request::Close(flag(r)?),
            _ => return Err(Error::Malformed),
        })
    }
}

impl<'a> Event<'a> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Event::Opened(local, peer) => {
                out.push(0);
                local.encode(out);
                peer.encode(out);
            }
            Event::Failed(reason, errno) => {
                out.extend_from_slice(&[1, *reason as u8]);
                out.extend_from_slice(&errno.to_le_bytes());
            }
            Event::Value(value) => {
                out.push(2);
                out.extend_from_slice(&value.to_le_bytes());
            }
            Event::Addresses(addresses) => {
                out.push(3);
                put_addresses(addresses, out);
            }
            Event::ReadFailed(errno) => {
                out.push(4);
                out.extend_from_slice(&errno.to_le_bytes());
            }
            Event::WriteFailed(errno) => {
                out.push(5);
                out.extend_from_slice(&errno.to_le_bytes());
            }
            Event::Datagram(from, bytes) => {
                out.push(6);
                from.encode(out);
                out.extend_from_slice(bytes);
            }
            Event::DatagramFailed(errno) => {
                out.push(7);
                out.extend_from_slice(&errno.to_le_bytes());
            }
        }
    }

    pub(super) fn decode(r: &mut Reader<'a>) -> Result<Self, Error> {
        Ok(match r.u8()? {
            0 => Event::Opened(Address::decode(r)?, Address::decode(r)?),
            1 => Event::Failed(Reason::parse(r.u8()?)?, r.i32()?),
            2 => Event::Value(r.u32()?),
            3 => Event::Addresses(take_addresses(r)?),
            4 => Event::ReadFailed(r.i32()?),
            5 => Event::WriteFailed(r.i32()?),
            6 => Event::Datagram(Address::decode(r)?, r.all()),
            7 => Event::DatagramFailed(r.i32()?),
            _ => return Err(Error::Malformed),
        })
    }
}
