//! UDP sockets.

use std::io;
use std::net::{self, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::addr::Repr;
use super::datagram::{GuestDatagrams, datagram_methods};
use super::options::Way;
use super::tcp::ip;
use super::{SocketAddrs, ToSocketAddrs, host};
use crate::agent::protocol::net::Opt;
use crate::agent::{Datagrams, Name};

/// A UDP socket, of a guest or of the host.
///
/// This corresponds to [`std::net::UdpSocket`]; [`Net::bind_udp`](super::Net::bind_udp) makes it. In a
/// guest, datagrams come to the host as they arrive and up to 512 KiB of them (each counts 256 bytes
/// more than it has) wait here; then the guest's own buffer fills, and further ones are lost. An error
/// that an earlier datagram met with is told by whichever operation is next, as std does.
#[derive(Debug)]
pub struct UdpSocket(Inner);

#[derive(Debug)]
enum Inner {
    Host(net::UdpSocket),
    Guest(Arc<GuestDatagrams>),
}

datagram_methods!(UdpSocket, net::UdpSocket);

/// A pair of methods for an option of both kinds of sockets.
macro_rules! options {
    ($($(#[$get_doc:meta])* $get:ident, $(#[$set_doc:meta])* $set:ident: $kind:ty = $opt:expr, $from:expr;)*) => {
        impl UdpSocket {
            $(
                $(#[$get_doc])*
                pub fn $get(&self) -> io::Result<$kind> {
                    match &self.0 {
                        Inner::Host(socket) => socket.$get(),
                        Inner::Guest(socket) => socket.socket.get($opt).map($from),
                    }
                }

                $(#[$set_doc])*
                pub fn $set(&self, value: $kind) -> io::Result<()> {
                    match &self.0 {
                        Inner::Host(socket) => socket.$set(value),
                        Inner::Guest(socket) => socket.socket.set($opt, value.into()),
                    }
                }
            )*
        }
    };
}

options! {
    /// Whether it may send to broadcast addresses.
    broadcast,
    /// Lets it send to broadcast addresses.
    set_broadcast: bool = Opt::Broadcast, |value| value != 0;
    /// How many hops packets live.
    ttl,
    /// Sets how many hops packets live. Of an IPv6 socket, too.
    set_ttl: u32 = Opt::Ttl, |value| value;
    /// Whether it hears what it sends to IPv4 groups.
    multicast_loop_v4,
    /// Sets whether it hears what it sends to IPv4 groups.
    set_multicast_loop_v4: bool = Opt::MulticastLoopV4, |value| value != 0;
    /// How many hops packets to IPv4 groups live.
    multicast_ttl_v4,
    /// Sets how many hops packets to IPv4 groups live.
    set_multicast_ttl_v4: u32 = Opt::MulticastTtlV4, |value| value;
    /// Whether it hears what it sends to IPv6 groups.
    multicast_loop_v6,
    /// Sets whether it hears what it sends to IPv6 groups.
    set_multicast_loop_v6: bool = Opt::MulticastLoopV6, |value| value != 0;
}

impl UdpSocket {
    /// The address it is bound to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Inner::Host(socket) => socket.local_addr(),
            Inner::Guest(socket) => Ok(ip(socket.socket.local())),
        }
    }

    /// The address it is connected to.
    ///
    /// # Errors
    /// [`NotConnected`](io::ErrorKind::NotConnected).
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Inner::Host(socket) => socket.peer_addr(),
            Inner::Guest(socket) => {
                socket.socket.peer().map(ip).ok_or_else(|| io::ErrorKind::NotConnected.into())
            }
        }
    }

    /// Sends to and receives from one address only. A name is looked up where the socket is.
    pub fn connect(&self, addr: impl ToSocketAddrs) -> io::Result<()> {
        let addrs = addr.to_socket_addrs()?;
        match &self.0 {
            Inner::Host(socket) => socket.connect(&*host::resolve(&addrs)?),
            Inner::Guest(socket) => socket.socket.connect(&addrs.place()),
        }
    }

    /// Sends a datagram to the first of the addresses. Gives the number of bytes.
    pub fn send_to(&self, bytes: &[u8], addr: impl ToSocketAddrs) -> io::Result<usize> {
        let addrs = addr.to_socket_addrs()?;
        match &self.0 {
            Inner::Host(socket) => socket.send_to(bytes, &*host::resolve(&addrs)?),
            Inner::Guest(socket) => socket.send(bytes, Some(&first(addrs).place())),
        }
    }

    /// Takes the next datagram; what does not fit of it is lost. Gives the number of bytes and the
    /// sender.
    pub fn recv_from(&self, bytes: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        match &self.0 {
            Inner::Host(socket) => socket.recv_from(bytes),
            Inner::Guest(socket) => socket.receive(bytes).map(|(n, from)| (n, ip(from))),
        }
    }

    /// As [`recv_from`](Self::recv_from), but the datagram stays.
    pub fn peek_from(&self, bytes: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        match &self.0 {
            Inner::Host(socket) => socket.peek_from(bytes),
            Inner::Guest(socket) => socket.peek(bytes).map(|(n, from)| (n, ip(from))),
        }
    }

    /// As [`recv`](Self::recv), but the datagram stays.
    pub fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match &self.0 {
            Inner::Host(socket) => socket.peek(bytes),
            Inner::Guest(socket) => socket.peek(bytes).map(|(n, _)| n),
        }
    }

    /// Joins an IPv4 group on the interface that has the address.
    pub fn join_multicast_v4(&self, group: &Ipv4Addr, interface: &Ipv4Addr) -> io::Result<()> {
        match &self.0 {
            Inner::Host(socket) => socket.join_multicast_v4(group, interface),
            Inner::Guest(socket) => {
                socket.socket.membership(true, &Name::Ip((*group, 0).into()), interface.octets())
            }
        }
    }

    /// Leaves an IPv4 group.
    pub fn leave_multicast_v4(&self, group: &Ipv4Addr, interface: &Ipv4Addr) -> io::Result<()> {
        match &self.0 {
            Inner::Host(socket) => socket.leave_multicast_v4(group, interface),
            Inner::Guest(socket) => {
                socket.socket.membership(false, &Name::Ip((*group, 0).into()), interface.octets())
            }
        }
    }

    /// Joins an IPv6 group on the interface of this number.
    pub fn join_multicast_v6(&self, group: &Ipv6Addr, interface: u32) -> io::Result<()> {
        match &self.0 {
            Inner::Host(socket) => socket.join_multicast_v6(group, interface),
            Inner::Guest(socket) => {
                socket.socket.membership(true, &Name::Ip((*group, 0).into()), interface.to_le_bytes())
            }
        }
    }

    /// Leaves an IPv6 group.
    pub fn leave_multicast_v6(&self, group: &Ipv6Addr, interface: u32) -> io::Result<()> {
        match &self.0 {
            Inner::Host(socket) => socket.leave_multicast_v6(group, interface),
            Inner::Guest(socket) => {
                socket.socket.membership(false, &Name::Ip((*group, 0).into()), interface.to_le_bytes())
            }
        }
    }
}

/// The first address of several; a name as it is, of which the guest takes the first.
fn first(addrs: SocketAddrs) -> SocketAddrs {
    match addrs.0 {
        Repr::Literal(mut list) => {
            list.truncate(1);
            SocketAddrs(Repr::Literal(list))
        }
        name @ Repr::Host(..) => SocketAddrs(name),
    }
}
