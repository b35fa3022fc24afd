//! Connections and listeners of Unix sockets.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net;
use std::sync::Arc;
use std::time::Duration;

use super::UnixSocketAddr;
use super::accept::{GuestListener, listener_methods};
use super::options::Way;
use super::stream::{GuestStream, stream_methods};
use crate::agent::{Connection, Listener};

/// A connection to a Unix socket, of a guest or of the host.
///
/// This corresponds to [`std::os::unix::net::UnixStream`];
/// [`Net::connect_unix`](super::Net::connect_unix) and [`UnixListener::accept`] make it. It differs as
/// [`TcpStream`](super::TcpStream) does, and passes neither descriptors nor credentials.
#[derive(Debug)]
pub struct UnixStream(Inner);

#[derive(Debug)]
enum Inner {
    Host(net::UnixStream),
    Guest(Arc<GuestStream>),
}

stream_methods!(UnixStream, net::UnixStream);

impl UnixStream {
    /// The address of the other end.
    pub fn peer_addr(&self) -> io::Result<UnixSocketAddr> {
        match &self.0 {
            Inner::Host(stream) => stream.peer_addr().map(|addr| UnixSocketAddr::from_host(&addr)),
            Inner::Guest(stream) => Ok(UnixSocketAddr::from_guest(stream.connection.peer())),
        }
    }

    /// The address of this end.
    pub fn local_addr(&self) -> io::Result<UnixSocketAddr> {
        match &self.0 {
            Inner::Host(stream) => stream.local_addr().map(|addr| UnixSocketAddr::from_host(&addr)),
            Inner::Guest(stream) => Ok(UnixSocketAddr::from_guest(stream.connection.local())),
        }
    }
}

/// A Unix socket that listens for connections, in a guest or on the host.
///
/// This corresponds to [`std::os::unix::net::UnixListener`];
/// [`Net::listen_unix`](super::Net::listen_unix) makes it. Its path stays when it is closed.
#[derive(Debug)]
pub struct UnixListener(ListenerInner);

#[derive(Debug)]
enum ListenerInner {
    Host(net::UnixListener),
    Guest(Arc<GuestListener>),
}

listener_methods!(UnixListener, net::UnixListener);

impl UnixListener {
    /// Waits for the next connection and gives it and who made it.
    pub fn accept(&self) -> io::Result<(UnixStream, UnixSocketAddr)> {
        match &self.0 {
            ListenerInner::Host(listener) => {
                listener.accept().map(|(stream, from)| (stream.into(), UnixSocketAddr::from_host(&from)))
            }
            ListenerInner::Guest(listener) => {
                let connection = listener.accept()?;
                let from = UnixSocketAddr::from_guest(connection.peer());
                Ok((UnixStream::from_guest(connection), from))
            }
        }
    }

    /// All connections that come.
    pub fn incoming(&self) -> UnixIncoming<'_> {
        UnixIncoming { listener: self }
    }

    /// The address it listens at.
    pub fn local_addr(&self) -> io::Result<UnixSocketAddr> {
        match &self.0 {
            ListenerInner::Host(listener) => {
                listener.local_addr().map(|addr| UnixSocketAddr::from_host(&addr))
            }
            ListenerInner::Guest(listener) => Ok(UnixSocketAddr::from_guest(listener.listener.local())),
        }
    }
}

/// The connections of a [`UnixListener`], without end.
///
/// This corresponds to [`std::os::unix::net::Incoming`].
#[derive(Debug)]
pub struct UnixIncoming<'a> {
    listener: &'a UnixListener,
}

impl Iterator for UnixIncoming<'_> {
    type Item = io::Result<UnixStream>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.listener.accept().map(|(stream, _)| stream))
    }
}

impl<'a> IntoIterator for &'a UnixListener {
    type Item = io::Result<UnixStream>;
    type IntoIter = UnixIncoming<'a>;

    fn into_iter(self) -> UnixIncoming<'a> {
        self.incoming()
    }
}
