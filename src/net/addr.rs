//! Addresses as callers give them.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::agent::{Name, Place};

/// What can be connected or bound to, with names that are looked up *where the socket is*.
///
/// This corresponds to [`std::net::ToSocketAddrs`], which would look names up on the host: in a guest
/// `"localhost:80"` is the guest itself, and `/etc/hosts` and `/etc/resolv.conf` are the guest's.
///
/// ```
/// use cc::net::ToSocketAddrs;
///
/// assert!("127.0.0.1:80".to_socket_addrs().unwrap().is_literal());
/// assert!(!("example.com", 80).to_socket_addrs().unwrap().is_literal());
/// assert!("no port".to_socket_addrs().is_err());
/// ```
pub trait ToSocketAddrs {
    /// The addresses, or the name that stands for them.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for text that is neither.
    fn to_socket_addrs(&self) -> io::Result<SocketAddrs>;
}

/// Addresses, or a host's name and a port. Has no twin in std.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketAddrs(pub(super) Repr);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Repr {
    Literal(Vec<SocketAddr>),
    Host(String, u16),
}

impl SocketAddrs {
    /// Whether there is no name to be looked up.
    pub fn is_literal(&self) -> bool {
        matches!(self.0, Repr::Literal(_))
    }

    pub(super) fn place(&self) -> Place {
        match &self.0 {
            Repr::Literal(list) => Place::Names(list.iter().map(|addr| Name::Ip(*addr)).collect()),
            Repr::Host(name, port) => Place::Host(name.clone(), *port),
        }
    }

    fn new(host: &str, port: u16) -> Self {
        SocketAddrs(match host.parse::<IpAddr>() {
            Ok(ip) => Repr::Literal(vec![SocketAddr::new(ip, port)]),
            Err(_) => Repr::Host(host.to_owned(), port),
        })
    }
}

impl From<SocketAddr> for SocketAddrs {
    fn from(addr: SocketAddr) -> Self {
        SocketAddrs(Repr::Literal(vec![addr]))
    }
}

impl fmt::Display for SocketAddrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Literal(list) => {
                for (n, addr) in list.iter().enumerate() {
                    write!(f, "{}{addr}", if n > 0 { ", " } else { "" })?;
                }
                Ok(())
            }
            // What a caller gives may hold anything.
            Repr::Host(name, port) => write!(f, "{}:{port}", name.escape_debug()),
        }
    }
}

impl ToSocketAddrs for SocketAddrs {
    fn to_socket_addrs(&self) -> io::Result<SocketAddrs> {
        Ok(self.clone())
    }
}

impl ToSocketAddrs for SocketAddr {
    fn to_socket_addrs(&self) -> io::Result<SocketAddrs> {
        Ok((*self).into())
    }
}

impl ToSocketAddrs for SocketAddrV4 {
    fn to_socket_addrs(&self) -> io::Result<SocketAddrs> {
        Ok(SocketAddr::V4(*self).into())
    }
}

impl ToSocketAddrs for SocketAddrV6 {
    fn to_socket_addrs(&self) -> io::Result<SocketAddrs> {
        Ok(SocketAddr::V6(*self).into())
    }
}

macro_rules! pair_with_port {
    ($($ip:ty),*) => {
        $(impl ToSocketAddrs for ($ip, u16) {
            fn to_socket_addrs(&self) -> io::Result<SocketAddrs> {
                Ok(SocketAddr::from(*self).into())
            }
        })*
    };
}

pair_with_port!(IpAddr, Ipv4Addr, Ipv6Addr);

impl ToSocketAddrs for (&str, u16) {
    fn to_socket_addrs(&self) -> io::Result<SocketAddrs> {
        Ok(SocketAddrs::new(self.0, self.1))
    }
}

impl ToSocketAddrs for (String, u16) {
    fn to_socket_addrs(&self) -> io::Result<SocketAddrs> {
        Ok(SocketAddrs::new(&self.0, self.1))
    }
}

impl ToSocketAddrs for str {
    fn to_socket_addrs(&self) -> io::Result<SocketAddrs> {
        if let Ok(addr) = self.parse::<SocketAddr>() {
            return Ok(addr.into());
        }
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let (host, port) = self.rsplit_once(':').ok_or_else(|| invalid("invalid socket address"))?;
        let port = port.parse().map_err(|_| invalid("invalid port value"))?;
        Ok(SocketAddrs::new(host, port))
    }
}

impl ToSocketAddrs for String {
    fn to_socket_addrs(&self) -> io::Result<SocketAddrs> {
        self.as_str().to_socket_addrs()
    }
}

impl ToSocketAddrs for [SocketAddr] {
    fn to_socket_addrs(&self) -> io::Result<SocketAddrs> {
        Ok(SocketAddrs(Repr::Literal(self.to_vec())))
    }
}

impl<T: ToSocketAddrs + ?Sized> ToSocketAddrs for &T {
    fn to_socket_addrs(&self) -> io::Result<SocketAddrs> {
        (**self).to_socket_addrs()
    }
}
