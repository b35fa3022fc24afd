//! TCP connections and listeners.

use std::io::{self, Read, Write};
use std::iter::FusedIterator;
use std::net::{self, Ipv4Addr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;

use super::accept::{GuestListener, listener_methods};
use super::options::Way;
use super::stream::{GuestStream, stream_methods};
use crate::agent::protocol::net::{NO_LINGER, Opt};
use crate::agent::{Connection, Listener, Name};

/// A TCP connection, of a guest or of the host.
///
/// This corresponds to [`std::net::TcpStream`]; [`Net::connect_tcp`](super::Net::connect_tcp) and
/// [`TcpListener::accept`] make it. Closed when its last handle is dropped. Differences, in a guest:
///
/// - Up to 512 KiB in either direction are under way between guest and host besides what the guest's
///   kernel holds, so a write succeeds that much earlier.
/// - Timeouts and [`set_nonblocking`](TcpStream::set_nonblocking) concern reading and writing only.
/// - It fails with [`NotConnected`](io::ErrorKind::NotConnected) once the machine has ended.
#[derive(Debug)]
pub struct TcpStream(Inner);

#[derive(Debug)]
enum Inner {
    Host(net::TcpStream),
    Guest(Arc<GuestStream>),
}

stream_methods!(TcpStream, net::TcpStream);

/// The IP address in a name.
pub(super) fn ip(name: Name) -> SocketAddr {
    match name {
        Name::Ip(addr) => addr,
        // What has no address, or none any more.
        Name::Unix(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
    }
}

impl TcpStream {
    /// The address of the other end.
    ///
    /// # Errors
    /// [`NotConnected`](io::ErrorKind::NotConnected) for a connection that was gone before it was taken.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Inner::Host(stream) => stream.peer_addr(),
            Inner::Guest(stream) => match stream.connection.peer() {
                Name::Ip(addr) => Ok(addr),
                Name::Unix(_) => Err(io::ErrorKind::NotConnected.into()),
            },
        }
    }

    /// The address of this end, where the connection is.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Inner::Host(stream) => stream.local_addr(),
            Inner::Guest(stream) => Ok(ip(stream.connection.local())),
        }
    }

    /// Receives without taking: what is read next is the same.
    pub fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match &self.0 {
            Inner::Host(stream) => stream.peek(bytes),
            Inner::Guest(stream) => stream.peek(bytes),
        }
    }

    /// Sets `TCP_NODELAY`: small pieces are sent at once.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        match &self.0 {
            Inner::Host(stream) => stream.set_nodelay(nodelay),
            Inner::Guest(stream) => stream.connection.set(Opt::NoDelay, nodelay.into()),
        }
    }

    /// Whether `TCP_NODELAY` is set.
    pub fn nodelay(&self) -> io::Result<bool> {
        match &self.0 {
            Inner::Host(stream) => stream.nodelay(),
            Inner::Guest(stream) => stream.connection.get(Opt::NoDelay).map(|value| value != 0),
        }
    }

    /// Sets how long the connection, once closed, goes on sending what was written: `None`, as at first,
    /// leaves that to the system (in a guest to 30 s and then its kernel), zero resets the connection at
    /// once. Whole seconds count. In a guest, closing never waits for that.
    ///
    /// This corresponds to [`std::net::TcpStream::set_linger`].
    pub fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        match &self.0 {
            Inner::Host(stream) => {
                // As std: what is less than a second is none.
                let linger = linger.map(|linger| Duration::from_secs(linger.as_secs()));
                Ok(sockopt::set_socket_linger(stream, linger)?)
            }
            Inner::Guest(stream) => {
                let seconds = linger.map_or(NO_LINGER, |linger| {
                    // The longest that a kernel takes.
                    linger.as_secs().min(i32::MAX as u64) as u32
                });
                stream.connection.set(Opt::Linger, seconds)
            }
        }
    }

    /// How long the connection, once closed, goes on sending what was written.
    ///
    /// This corresponds to [`std::net::TcpStream::linger`].
    pub fn linger(&self) -> io::Result<Option<Duration>> {
        match &self.0 {
            Inner::Host(stream) => Ok(sockopt::socket_linger(stream)?),
            Inner::Guest(stream) => {
                let seconds = stream.connection.get(Opt::Linger)?;
                Ok((seconds != NO_LINGER).then(|| Duration::from_secs(seconds.into())))
            }
        }
    }

    /// Sets `TCP_QUICKACK`: what comes is acknowledged at once. The kernel may unset it later.
    ///
    /// This corresponds to [`std::os::linux::net::TcpStreamExt::set_quickack`].
    pub fn set_quickack(&self, quickack: bool) -> io::Result<()> {
        match &self.0 {
            Inner::Host(stream) => Ok(sockopt::set_tcp_quickack(stream, quickack)?),
            Inner::Guest(stream) => stream.connection.set(Opt::QuickAck, quickack.into()),
        }
    }

    /// Whether `TCP_QUICKACK` is set.
    ///
    /// This corresponds to [`std::os::linux::net::TcpStreamExt::quickack`].
    pub fn quickack(&self) -> io::Result<bool> {
        match &self.0 {
            Inner::Host(stream) => Ok(sockopt::tcp_quickack(stream)?),
            Inner::Guest(stream) => stream.connection.get(Opt::QuickAck).map(|value| value != 0),
        }
    }

    /// Sets how many hops packets live. Of an IPv6 connection, too.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        match &self.0 {
            Inner::Host(stream) => stream.set_ttl(ttl),
            Inner::Guest(stream) => stream.connection.set(Opt::Ttl, ttl),
        }
    }

    /// How many hops packets live.
    pub fn ttl(&self) -> io::Result<u32> {
        match &self.0 {
            Inner::Host(stream) => stream.ttl(),
            Inner::Guest(stream) => stream.connection.get(Opt::Ttl),
        }
    }
}

/// A socket that listens for TCP connections, in a guest or on the host.
///
/// This corresponds to [`std::net::TcpListener`]; [`Net::listen_tcp`](super::Net::listen_tcp) makes it.
#[derive(Debug)]
pub struct TcpListener(ListenerInner);

#[derive(Debug)]
enum ListenerInner {
    Host(net::TcpListener),
    Guest(Arc<GuestListener>),
}

listener_methods!(TcpListener, net::TcpListener);

impl TcpListener {
    /// Waits for the next connection and gives it and who made it.
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match &self.0 {
            ListenerInner::Host(listener) => listener.accept().map(|(stream, from)| (stream.into(), from)),
            ListenerInner::Guest(listener) => {
                let connection = listener.accept()?;
                let from = ip(connection.peer());
                Ok((TcpStream::from_guest(connection), from))
            }
        }
    }

    /// All connections that come.
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming { listener: self }
    }

    /// All connections that come, with the listener in it.
    ///
    /// This corresponds to [`std::net::TcpListener::into_incoming`].
    pub fn into_incoming(self) -> IntoIncoming {
        IntoIncoming { listener: self }
    }

    /// The address it listens at, where it is.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            ListenerInner::Host(listener) => listener.local_addr(),
            ListenerInner::Guest(listener) => Ok(ip(listener.listener.local())),
        }
    }

    /// Sets how many hops packets of its connections live.
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        match &self.0 {
            ListenerInner::Host(listener) => listener.set_ttl(ttl),
            ListenerInner::Guest(listener) => listener.listener.set(Opt::Ttl, ttl),
        }
    }

    /// How many hops packets of its connections live.
    pub fn ttl(&self) -> io::Result<u32> {
        match &self.0 {
            ListenerInner::Host(listener) => listener.ttl(),
            ListenerInner::Guest(listener) => listener.listener.get(Opt::Ttl),
        }
    }
}

/// The connections of a [`TcpListener`], without end.
///
/// This corresponds to [`std::net::Incoming`].
#[derive(Debug)]
pub struct Incoming<'a> {
    listener: &'a TcpListener,
}

impl Iterator for Incoming<'_> {
    type Item = io::Result<TcpStream>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.listener.accept().map(|(stream, _)| stream))
    }
}

impl FusedIterator for Incoming<'_> {}

/// The connections of a [`TcpListener`], without end, and the listener itself.
///
/// This corresponds to [`std::net::IntoIncoming`].
#[derive(Debug)]
pub struct IntoIncoming {
    listener: TcpListener,
}

impl Iterator for IntoIncoming {
    type Item = io::Result<TcpStream>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.listener.accept().map(|(stream, _)| stream))
    }
}

impl FusedIterator for IntoIncoming {}
