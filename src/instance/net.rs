//! The machine as a place that has sockets. The methods are those of [`Net`], for callers that know
//! their machine and need no trait.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::Instance;
use crate::net::{
    End, Exposed, LocalAddr, Net, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket, UnixDatagram,
    UnixListener, UnixStream,
};

impl Net for Instance {
    fn end(&self) -> End {
        End::guest(&self.client)
    }
}

impl Instance {
    /// Connects to a TCP server as a program in the machine would; see [`Net::connect_tcp`].
    ///
    /// ```no_run
    /// use std::io::Write;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let instance = cc::Instance::new(cc::Source::busybox()?)?;
    /// let mut conn = instance.connect_tcp("127.0.0.1:8000")?;
    /// conn.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    /// # Ok(()) }
    /// ```
    pub fn connect_tcp(&self, addr: impl ToSocketAddrs) -> io::Result<TcpStream> {
        Net::connect_tcp(self, addr)
    }

    /// As [`connect_tcp`](Instance::connect_tcp), for at most this long; see
    /// [`Net::connect_tcp_timeout`].
    pub fn connect_tcp_timeout(&self, addr: &SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        Net::connect_tcp_timeout(self, addr, timeout)
    }

    /// Listens for TCP connections in the machine; see [`Net::listen_tcp`].
    pub fn listen_tcp(&self, addr: impl ToSocketAddrs) -> io::Result<TcpListener> {
        Net::listen_tcp(self, addr)
    }

    /// A UDP socket in the machine; see [`Net::bind_udp`].
    pub fn bind_udp(&self, addr: impl ToSocketAddrs) -> io::Result<UdpSocket> {
        Net::bind_udp(self, addr)
    }

    /// The addresses that the machine knows for a name and a port; see [`Net::lookup_host`].
    pub fn lookup_host(&self, host: impl ToSocketAddrs) -> io::Result<Vec<SocketAddr>> {
        Net::lookup_host(self, host)
    }

    /// Connects to a Unix socket in the machine; see [`Net::connect_unix`].
    pub fn connect_unix(&self, path: impl AsRef<Path>) -> io::Result<UnixStream> {
        Net::connect_unix(self, path)
    }

    /// Makes a Unix socket in the machine and listens there; see [`Net::listen_unix`].
    pub fn listen_unix(&self, path: impl AsRef<Path>) -> io::Result<UnixListener> {
        Net::listen_unix(self, path)
    }

    /// Makes a Unix datagram socket in the machine; see [`Net::bind_unix_datagram`].
    pub fn bind_unix_datagram(&self, path: impl AsRef<Path>) -> io::Result<UnixDatagram> {
        Net::bind_unix_datagram(self, path)
    }

    /// Lets programs of the host reach a server in the machine; see [`Net::expose`].
    pub fn expose(&self, host: impl LocalAddr, addr: impl ToSocketAddrs) -> io::Result<Exposed> {
        Net::expose(self, host, addr)
    }

    /// Lets programs in the machine reach a server of the host; see [`Net::forward`].
    pub fn forward(&self, addr: impl LocalAddr, host: impl ToSocketAddrs) -> io::Result<Exposed> {
        Net::forward(self, addr, host)
    }
}
