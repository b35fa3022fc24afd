//! Sockets as an end makes them: the guest's by its agent, the host's by std.

use std::io;
use std::net;
use std::os::unix::net as unix;
use std::time::{Duration, Instant};

use super::place::{End, EndKind};
use super::tcp::ip;
use super::{
    SocketAddr, SocketAddrs, TcpListener, TcpStream, UdpSocket, UnixDatagram, UnixListener, UnixSocketAddr,
    UnixStream, host,
};
use crate::agent::{Connection, Datagrams, Listener, Name, Place, Until, look_up};

impl End {
    pub(super) fn tcp_connection(
        &self,
        to: &SocketAddrs,
        timeout: Option<Duration>,
    ) -> io::Result<TcpStream> {
        if timeout == Some(Duration::ZERO) {
            let what = "cannot set a 0 duration timeout";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        match (&self.0, timeout) {
            (EndKind::Host, None) => net::TcpStream::connect(&*host::resolve(to)?).map(TcpStream::from),
            (EndKind::Host, Some(timeout)) => host::connect_timeout(to, timeout).map(TcpStream::from),
            (EndKind::Guest(client), timeout) => {
                let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
                let connection = Connection::connecting(client, &to.place())?;
                let until = deadline.map_or(Until::Done, Until::Time);
                connection.opened(until).map_err(|e| match (e.kind(), deadline) {
                    (io::ErrorKind::WouldBlock, Some(at)) if at <= Instant::now() => {
                        io::Error::new(io::ErrorKind::TimedOut, "connection timed out")
                    }
                    _ => e,
                })?;
                Ok(TcpStream::from_guest(connection))
            }
        }
    }

    pub(super) fn tcp_listener(&self, at: &SocketAddrs) -> io::Result<TcpListener> {
        match &self.0 {
            EndKind::Host => net::TcpListener::bind(&*host::resolve(at)?).map(TcpListener::from),
            EndKind::Guest(client) => Listener::listen(client, &at.place()).map(TcpListener::from_guest),
        }
    }

    pub(super) fn udp_socket(&self, at: &SocketAddrs) -> io::Result<UdpSocket> {
        match &self.0 {
            EndKind::Host => net::UdpSocket::bind(&*host::resolve(at)?).map(UdpSocket::from),
            EndKind::Guest(client) => Datagrams::bind(client, &at.place()).map(UdpSocket::from_guest),
        }
    }

    pub(super) fn addresses(&self, of: &SocketAddrs) -> io::Result<Vec<SocketAddr>> {
        match &self.0 {
            EndKind::Host => host::resolve(of),
            EndKind::Guest(client) => Ok(look_up(client, &of.place())?.into_iter().map(ip).collect()),
        }
    }

    pub(super) fn unix_connection(&self, to: &UnixSocketAddr) -> io::Result<UnixStream> {
        match &self.0 {
            EndKind::Host => unix::UnixStream::connect_addr(&to.to_host()?).map(UnixStream::from),
            EndKind::Guest(client) => {
                Connection::connect(client, &to.place(), Until::Done).map(UnixStream::from_guest)
            }
        }
    }

    pub(super) fn unix_listener(&self, at: &UnixSocketAddr) -> io::Result<UnixListener> {
        match &self.0 {
            EndKind::Host => unix::UnixListener::bind_addr(&at.to_host()?).map(UnixListener::from),
            EndKind::Guest(client) => Listener::listen(client, &at.place()).map(UnixListener::from_guest),
        }
    }

    pub(super) fn unix_datagram(&self, at: Option<&UnixSocketAddr>) -> io::Result<UnixDatagram> {
        match (&self.0, at) {
            (EndKind::Host, None) => unix::UnixDatagram::unbound().map(UnixDatagram::from),
            (EndKind::Host, Some(at)) => {
                unix::UnixDatagram::bind_addr(&at.to_host()?).map(UnixDatagram::from)
            }
            (EndKind::Guest(client), at) => {
                let unnamed = Place::Names(vec![Name::Unix(Vec::new())]);
                let place = at.map_or(unnamed, UnixSocketAddr::place);
                Datagrams::bind(client, &place).map(UnixDatagram::from_guest)
            }
        }
    }
}
