//! The host as a place that has sockets: what it does is std's.

use std::io;
use std::net::{self, SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::SocketAddrs;
use super::addr::Repr;
use super::place::{End, Net};
use crate::host::Host;

impl Net for Host {
    fn end(&self) -> End {
        End::host()
    }
}

/// The addresses that the host knows.
pub(super) fn resolve(addrs: &SocketAddrs) -> io::Result<Vec<SocketAddr>> {
    match &addrs.0 {
        Repr::Literal(list) => Ok(list.clone()),
        Repr::Host(name, port) => Ok((name.as_str(), *port).to_socket_addrs()?.collect()),
    }
}

/// Connects to the first address that takes a connection, all of it within `timeout`.
pub(super) fn connect_timeout(to: &SocketAddrs, timeout: Duration) -> io::Result<net::TcpStream> {
    let start = Instant::now();
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "could not resolve to any addresses");
    for addr in resolve(to)? {
        let Some(left) = timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) else {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "connection timed out"));
        };
        match net::TcpStream::connect_timeout(&addr, left) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}
