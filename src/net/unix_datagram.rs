//! Unix datagram sockets.

use std::io;
use std::net::Shutdown;
use std::os::unix::net;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::UnixSocketAddr;
use super::datagram::{GuestDatagrams, datagram_methods};
use super::options::Way;
use super::stream::halves;
use crate::agent::{Datagrams, Name};

/// A Unix datagram socket, of a guest or of the host.
///
/// This corresponds to [`std::os::unix::net::UnixDatagram`];
/// [`Net::bind_unix_datagram`](super::Net::bind_unix_datagram) and
/// [`Net::unbound_unix_datagram`](super::Net::unbound_unix_datagram) make it. In a guest, up to 512 KiB
/// wait on the host besides what the guest's kernel holds, and a datagram has at most 64 KiB.
#[derive(Debug)]
pub struct UnixDatagram(Inner);

#[derive(Debug)]
enum Inner {
    Host(net::UnixDatagram),
    Guest(Arc<GuestDatagrams>),
}

datagram_methods!(UnixDatagram, net::UnixDatagram);

impl UnixDatagram {
    /// The address it is bound to.
    pub fn local_addr(&self) -> io::Result<UnixSocketAddr> {
        match &self.0 {
            Inner::Host(socket) => socket.local_addr().map(|addr| UnixSocketAddr::from_host(&addr)),
            Inner::Guest(socket) => Ok(UnixSocketAddr::from_guest(socket.socket.local())),
        }
    }

    /// The address it is connected to.
    ///
    /// # Errors
    /// [`NotConnected`](io::ErrorKind::NotConnected).
    pub fn peer_addr(&self) -> io::Result<UnixSocketAddr> {
        match &self.0 {
            Inner::Host(socket) => socket.peer_addr().map(|addr| UnixSocketAddr::from_host(&addr)),
            Inner::Guest(socket) => {
                let peer =
                    socket.socket.peer().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
                Ok(UnixSocketAddr::from_guest(peer))
            }
        }
    }

    /// Sends to and receives from one path only.
    pub fn connect(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.connect_addr(&UnixSocketAddr::from_pathname(path)?)
    }

    /// Sends to and receives from one address only.
    pub fn connect_addr(&self, addr: &UnixSocketAddr) -> io::Result<()> {
        match &self.0 {
            Inner::Host(socket) => socket.connect_addr(&addr.to_host()?),
            Inner::Guest(socket) => socket.socket.connect(&addr.place()),
        }
    }

    /// Sends a datagram to a path. Gives the number of bytes.
    pub fn send_to(&self, bytes: &[u8], path: impl AsRef<Path>) -> io::Result<usize> {
        self.send_to_addr(bytes, &UnixSocketAddr::from_pathname(path)?)
    }

    /// Sends a datagram to an address. Gives the number of bytes.
    pub fn send_to_addr(&self, bytes: &[u8], addr: &UnixSocketAddr) -> io::Result<usize> {
        match &self.0 {
            Inner::Host(socket) => socket.send_to_addr(bytes, &addr.to_host()?),
            Inner::Guest(socket) => socket.send(bytes, Some(&addr.place())),
        }
    }

    /// Takes the next datagram; what does not fit of it is lost. Gives the number of bytes and the
    /// sender.
    pub fn recv_from(&self, bytes: &mut [u8]) -> io::Result<(usize, UnixSocketAddr)> {
        match &self.0 {
            Inner::Host(socket) => {
                socket.recv_from(bytes).map(|(n, from)| (n, UnixSocketAddr::from_host(&from)))
            }
            Inner::Guest(socket) => {
                let (n, from): (usize, Name) = socket.receive(bytes)?;
                Ok((n, UnixSocketAddr::from_guest(from)))
            }
        }
    }

    /// Ends the half that receives, the half that sends, or both.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match &self.0 {
            Inner::Host(socket) => socket.shutdown(how),
            Inner::Guest(socket) => socket.socket.shutdown(halves(how)),
        }
    }
}
