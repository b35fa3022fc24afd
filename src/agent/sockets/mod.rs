//! Sockets of the guest, on the host.
//!
//! A socket is *opening*, *open*, or *failed*; each of its streams has one lock with one condition, as a
//! command's has. What the guest sends is held up to the window and no more. A [`Waker`] is called, with
//! no lock held, whenever something has changed, for who cannot wait.
//!
//! What is asked of an open socket is a stream of its own with one answer.

mod connection;
mod datagrams;
mod request;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::{Arc, Condvar, MutexGuard};
use std::time::Instant;

pub use connection::{Connection, Listener};
pub use datagrams::Datagrams;
pub use request::look_up;

use super::client::Shared;
use super::errno::guest_error;
use super::protocol::Error;
use super::protocol::net::{Address, MAX_NAME, MAX_UNIX_NAME, Reason, Target};

/// Is called when something has changed.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// How long an operation waits.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// Until it is done.
    Done,
    /// Until then; it fails with `EAGAIN` afterwards.
    Time(Instant),
    /// Not at all.
    Now,
}

impl Until {
    fn deadline(self) -> Option<Instant> {
        match self {
            Until::Done => None,
            Until::Time(at) => Some(at),
            Until::Now => Some(Instant::now()),
        }
    }
}

/// Waits until `look` gives something. `EAGAIN` when the time is over first, an error when it says that the connection
/// to the agent has ended.
fn wait_for<S, T>(
    shared: &Shared,
    mut state: MutexGuard<'_, S>,
    changed: &Condvar,
    until: Until,
    mut look: impl FnMut(&mut S) -> (Option<io::Result<T>>, bool),
) -> io::Result<T> {
    let deadline = until.deadline();
    loop {
        match look(&mut state) {
            (Some(result), _) => return result,
            (None, true) => {
                drop(state);
                return Err(shared.ended_error());
            }
            (None, false) => {}
        }
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        state = match left {
            None => changed.wait(state).unwrap_or_else(|e| e.into_inner()),
            Some(left) if left.is_zero() => return Err(timed_out()),
            Some(left) => changed.wait_timeout(state, left).unwrap_or_else(|e| e.into_inner()).0,
        };
    }
}

/// The error of an operation whose time is over.
fn timed_out() -> io::Error {
    const EAGAIN: i32 = 11;
    guest_error(EAGAIN)
}

/// The address of a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// IP address and port.
    Ip(SocketAddr),
    /// A path, an abstract name behind a NUL, or nothing.
    Unix(Vec<u8>),
}

impl Name {
    fn new(address: &Address<'_>) -> Self {
        match *address {
            Address::V4(ip, port) => Name::Ip(SocketAddrV4::new(Ipv4Addr::from(ip), port).into()),
            Address::V6(ip, port, flow, scope) => {
                Name::Ip(SocketAddrV6::new(Ipv6Addr::from(ip), port, flow, scope).into())
            }
            Address::Unix(name) => Name::Unix(name.to_vec()),
        }
    }

    fn address(&self) -> Address<'_> {
        match self {
            Name::Ip(SocketAddr::V4(v4)) => Address::V4(v4.ip().octets(), v4.port()),
            Name::Ip(SocketAddr::V6(v6)) => {
                Address::V6(v6.ip().octets(), v6.port(), v6.flowinfo(), v6.scope_id())
            }
            Name::Unix(name) => Address::Unix(name),
        }
    }
}

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// One of these addresses.
    Names(Vec<Name>),
    /// A host that the guest knows, and a port.
    Host(String, u16),
}

impl Place {
    /// As the protocol has it. Errors: there is no address in it, or what can be none.
    fn target(&self) -> io::Result<Target<'_>> {
        let invalid = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        match self {
            Place::Names(names) if names.is_empty() => invalid("could not resolve to any addresses"),
            Place::Names(names) => {
                let unix = names.iter().filter_map(|name| match name {
                    Name::Unix(name) => Some(name),
                    Name::Ip(_) => None,
                });
                for name in unix {
                    let (path, abstraction) = (!name.starts_with(&[0]), usize::from(name.starts_with(&[0])));
                    if name.len() > MAX_UNIX_NAME + abstraction {
                        return invalid("path must be shorter than SUN_LEN");
                    }
                    if path && name.contains(&0) {
                        return invalid("paths must not contain interior null bytes");
                    }
                }
                let most = super::protocol::net::MAX_ADDRESSES;
                Ok(Target::Addresses(names.iter().take(most).map(Name::address).collect()))
            }
            Place::Host(name, _) if name.len() > MAX_NAME => invalid("host name longer than 255 bytes"),
            Place::Host(name, _) if name.contains('\0') => invalid("nul byte in a host name"),
            Place::Host(name, port) => Ok(Target::Name(name.as_bytes(), *port)),
        }
    }
}

/// What the guest says could not be done.
#[derive(Debug, Clone, Copy)]
pub struct Failure {
    reason: Reason,
    errno: i32,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            Reason::System => guest_error(self.errno).kind().fmt(f),
            Reason::NoName => f.write_str("failed to lookup address information: Name or service not known"),
            Reason::NoAnswer => {
                f.write_str("failed to lookup address information: Temporary failure in name resolution")
            }
        }
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure.reason {
            Reason::System => guest_error(failure.errno),
            Reason::NoName => io::Error::new(io::ErrorKind::NotFound, failure),
            Reason::NoAnswer => io::Error::new(io::ErrorKind::TimedOut, failure),
        }
    }
}

/// The two addresses of a socket that has been opened, or why it has not.
type Opened = Result<(Name, Name), Failure>;

/// A guest's answer to the wish to open a socket, of Unix names or of IP addresses.
fn opened(local: &Address<'_>, peer: &Address<'_>) -> Result<(Name, Name), Error> {
    let (local, peer) = (Name::new(local), Name::new(peer));
    match (&local, &peer) {
        (Name::Ip(_), Name::Unix(name)) if !name.is_empty() => Err(Error::Malformed),
        (Name::Unix(_), Name::Ip(_)) => Err(Error::Malformed),
        _ => Ok((local, peer)),
    }
}
