//! Sockets in the guest, with the names and manners of [`std::net`] and [`std::os::unix::net`].
//!
//! [`Net`] is a place that has sockets: an [`Instance`](crate::Instance), or the [`Host`](crate::Host)
//! itself. Whatever it gives is one type for both, so code that is written for `&impl Net` runs in
//! either. In a machine all happens as if std were called inside: `127.0.0.1` is the guest's own
//! loopback, names are looked up with the guest's files and name servers, and no network device is
//! needed, for the bytes travel with the agent's own connection.
//!
//! ```no_run
//! use std::io::{Read, Write};
//! use cc::net::Net;
//!
//! fn greet(on: &impl Net) -> std::io::Result<String> {
//!     let mut conn = on.connect_tcp("127.0.0.1:8000")?;
//!     conn.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
//!     let mut answer = String::new();
//!     conn.read_to_string(&mut answer)?;
//!     Ok(answer)
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let instance = cc::Instance::new(cc::Source::busybox()?)?;
//! greet(&instance)?;
//! greet(&cc::Host)?;
//! # Ok(()) }
//! ```
//!
//! [`Net::expose`] lets programs of the host reach a server of the guest, [`Net::forward`] programs of
//! the guest a server of the host.
//!
//! What the guest's kernel says comes back as [`std::io::Error`] of the same kind as std's, with the
//! guest's number ([`raw_os_error`]). Once the machine has ended, everything fails with
//! [`NotConnected`](std::io::ErrorKind::NotConnected); what had arrived before can still be read.

mod accept;
mod addr;
mod datagram;
mod end;
mod host;
mod options;
mod place;
mod relay;
mod stream;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;
mod unix;
mod unix_addr;
mod unix_datagram;

pub use std::net::{
    AddrParseError, IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV4, SocketAddrV6,
};

pub use crate::agent::raw_os_error;
pub use addr::{SocketAddrs, ToSocketAddrs};
pub use place::{End, LocalAddr, Net};
pub use relay::Exposed;
pub use tcp::{Incoming, IntoIncoming, TcpListener, TcpStream};
pub use udp::UdpSocket;
pub use unix::{UnixIncoming, UnixListener, UnixStream};
pub use unix_addr::UnixSocketAddr;
pub use unix_datagram::UnixDatagram;
