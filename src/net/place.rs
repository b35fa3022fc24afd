//! Places that have sockets.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::relay::Exposed;
use super::{
    SocketAddr, SocketAddrs, TcpListener, TcpStream, ToSocketAddrs, UdpSocket, UnixDatagram, UnixListener,
    UnixSocketAddr, UnixStream,
};
use crate::agent::{Client, named};

/// Where sockets are made, for what works with them from several threads.
#[derive(Debug, Clone)]
pub struct End(pub(super) EndKind);

#[derive(Debug, Clone)]
pub(super) enum EndKind {
    Host,
    Guest(Arc<Client>),
}

impl End {
    pub(crate) fn guest(client: &Arc<Client>) -> Self {
        End(EndKind::Guest(client.clone()))
    }

    pub(super) fn host() -> Self {
        End(EndKind::Host)
    }
}

/// A place that has sockets: a machine, or the host.
///
/// Only [`end`](Net::end) has to be given. The methods with generic arguments have the names callers use;
/// they are std's constructors, with the place in front. The others do the same for addresses that are
/// ready, also on `dyn Net`.
///
/// Errors, of all of them: what the place's kernel says, as std has it;
/// [`NotFound`](io::ErrorKind::NotFound) for a host name that nobody knows and
/// [`TimedOut`](io::ErrorKind::TimedOut) where no name server answers (both are of no kind that can be
/// named on the host); [`NotConnected`](io::ErrorKind::NotConnected) once the machine has ended.
pub trait Net {
    /// Where this is.
    fn end(&self) -> End;

    /// As [`connect_tcp`](Net::connect_tcp), or as [`connect_tcp_timeout`](Net::connect_tcp_timeout).
    fn tcp_connection(&self, to: &SocketAddrs, timeout: Option<Duration>) -> io::Result<TcpStream> {
        self.end().tcp_connection(to, timeout).map_err(|e| named(format_args!("connect to {to}"), e))
    }

    /// As [`listen_tcp`](Net::listen_tcp).
    fn tcp_listener(&self, at: &SocketAddrs) -> io::Result<TcpListener> {
        self.end().tcp_listener(at).map_err(|e| named(format_args!("listen at {at}"), e))
    }

    /// As [`bind_udp`](Net::bind_udp).
    fn udp_socket(&self, at: &SocketAddrs) -> io::Result<UdpSocket> {
        self.end().udp_socket(at).map_err(|e| named(format_args!("bind a socket to {at}"), e))
    }

    /// As [`lookup_host`](Net::lookup_host).
    fn addresses(&self, of: &SocketAddrs) -> io::Result<Vec<SocketAddr>> {
        self.end().addresses(of).map_err(|e| named(format_args!("look up {of}"), e))
    }

    /// As [`connect_unix`](Net::connect_unix), for any kind of address.
    fn unix_connection(&self, to: &UnixSocketAddr) -> io::Result<UnixStream> {
        self.end().unix_connection(to).map_err(|e| named(format_args!("connect to {to:?}"), e))
    }

    /// As [`listen_unix`](Net::listen_unix), for any kind of address.
    fn unix_listener(&self, at: &UnixSocketAddr) -> io::Result<UnixListener> {
        self.end().unix_listener(at).map_err(|e| named(format_args!("listen at {at:?}"), e))
    }

    /// As [`bind_unix_datagram`](Net::bind_unix_datagram), for any kind of address.
    fn unix_datagram(&self, at: &UnixSocketAddr) -> io::Result<UnixDatagram> {
        self.end().unix_datagram(Some(at)).map_err(|e| named(format_args!("bind a socket to {at:?}"), e))
    }

    /// A Unix datagram socket without an address. This corresponds to
    /// [`std::os::unix::net::UnixDatagram::unbound`].
    fn unbound_unix_datagram(&self) -> io::Result<UnixDatagram> {
        self.end().unix_datagram(None)
    }

    /// Connects to the first of the addresses that takes a connection. This corresponds to
    /// [`std::net::TcpStream::connect`].
    fn connect_tcp(&self, addr: impl ToSocketAddrs) -> io::Result<TcpStream>
    where
        Self: Sized,
    {
        self.tcp_connection(&addr.to_socket_addrs()?, None)
    }

    /// As [`connect_tcp`](Net::connect_tcp), for at most this long; then it is
    /// [`TimedOut`](io::ErrorKind::TimedOut). This corresponds to
    /// [`std::net::TcpStream::connect_timeout`].
    fn connect_tcp_timeout(&self, addr: &SocketAddr, timeout: Duration) -> io::Result<TcpStream>
    where
        Self: Sized,
    {
        self.tcp_connection(&(*addr).into(), Some(timeout))
    }

    /// Listens at the first of the addresses that can be had; port 0 gives a free one. This corresponds
    /// to [`std::net::TcpListener::bind`].
    fn listen_tcp(&self, addr: impl ToSocketAddrs) -> io::Result<TcpListener>
    where
        Self: Sized,
    {
        self.tcp_listener(&addr.to_socket_addrs()?)
    }

    /// A UDP socket at the first of the addresses that can be had; port 0 gives a free one. This
    /// corresponds to [`std::net::UdpSocket::bind`].
    fn bind_udp(&self, addr: impl ToSocketAddrs) -> io::Result<UdpSocket>
    where
        Self: Sized,
    {
        self.udp_socket(&addr.to_socket_addrs()?)
    }

    /// The addresses of a name with a port, in the order in which they are to be tried. This corresponds
    /// to [`std::net::ToSocketAddrs::to_socket_addrs`].
    fn lookup_host(&self, host: impl ToSocketAddrs) -> io::Result<Vec<SocketAddr>>
    where
        Self: Sized,
    {
        self.addresses(&host.to_socket_addrs()?)
    }

    /// Connects to the Unix socket at a path. This corresponds to
    /// [`std::os::unix::net::UnixStream::connect`].
    fn connect_unix(&self, path: impl AsRef<Path>) -> io::Result<UnixStream>
    where
        Self: Sized,
    {
        self.unix_connection(&UnixSocketAddr::from_pathname(path)?)
    }

    /// Makes a Unix socket at a path and listens there. This corresponds to
    /// [`std::os::unix::net::UnixListener::bind`].
    fn listen_unix(&self, path: impl AsRef<Path>) -> io::Result<UnixListener>
    where
        Self: Sized,
    {
        self.unix_listener(&UnixSocketAddr::from_pathname(path)?)
    }

    /// Makes a Unix datagram socket at a path. This corresponds to
    /// [`std::os::unix::net::UnixDatagram::bind`].
    fn bind_unix_datagram(&self, path: impl AsRef<Path>) -> io::Result<UnixDatagram>
    where
        Self: Sized,
    {
        self.unix_datagram(&UnixSocketAddr::from_pathname(path)?)
    }

    /// Lets programs of the host reach a server of this place: whoever connects to `host` is connected to
    /// `addr` here, for as long as what is returned lives. Port 0 gives a free one, see
    /// [`Exposed::local_addr`]. Has no twin in std.
    ///
    /// Each half of a connection ends when its other side ends it. Who connects while the server does not
    /// listen sees the connection reset. Up to [`Exposed::MAX_CONNECTIONS`] are carried at once, more
    /// wait. All of it is done by one thread.
    ///
    /// Give a port alone to be reached from this host only (`127.0.0.1`); any other address of the host
    /// has to be asked for by name.
    ///
    /// ```no_run
    /// use cc::net::Net;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let instance = cc::Instance::new(cc::Source::busybox()?)?;
    /// let server = instance.expose(0, "127.0.0.1:80")?;
    /// println!("http://{}/", server.local_addr());
    /// # Ok(()) }
    /// ```
    fn expose(&self, host: impl LocalAddr, addr: impl ToSocketAddrs) -> io::Result<Exposed>
    where
        Self: Sized,
    {
        let (host, addr) = (host.to_local_addrs()?, addr.to_socket_addrs()?);
        super::relay::relay(End::host(), &host, self.end(), addr)
    }

    /// Lets programs of this place reach a server of the host: who connects to `addr` here, on the
    /// loopback where it is a port alone, is connected to `host`. Has no twin in std. As
    /// [`expose`](Net::expose), the other way round; names in `host` are looked up on the host, once.
    fn forward(&self, addr: impl LocalAddr, host: impl ToSocketAddrs) -> io::Result<Exposed>
    where
        Self: Sized,
    {
        let (addr, host) = (addr.to_local_addrs()?, host.to_socket_addrs()?);
        super::relay::relay(self.end(), &addr, End::host(), host)
    }
}

/// Where to listen: what can be bound to, or a port alone, which is that of `127.0.0.1`.
pub trait LocalAddr {
    /// The addresses.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for text that is none.
    fn to_local_addrs(&self) -> io::Result<SocketAddrs>;
}

impl LocalAddr for u16 {
    fn to_local_addrs(&self) -> io::Result<SocketAddrs> {
        (super::Ipv4Addr::LOCALHOST, *self).to_socket_addrs()
    }
}

macro_rules! local_addrs {
    ($($kind:ty),*) => {
        $(impl LocalAddr for $kind {
            fn to_local_addrs(&self) -> io::Result<SocketAddrs> {
                self.to_socket_addrs()
            }
        })*
    };
}

local_addrs!(
    &str,
    String,
    SocketAddr,
    SocketAddrs,
    (&str, u16),
    (super::IpAddr, u16),
    (super::Ipv4Addr, u16)
);

impl<N: Net + ?Sized> Net for &N {
    fn end(&self) -> End {
        (**self).end()
    }
}

impl<N: Net + ?Sized> Net for Arc<N> {
    fn end(&self) -> End {
        (**self).end()
    }
}

impl<N: Net + ?Sized> Net for Box<N> {
    fn end(&self) -> End {
        (**self).end()
    }
}
