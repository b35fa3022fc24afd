//! System calls for sockets.

use alloc::vec::Vec;

use super::{Errno, Fd, O_CLOEXEC, O_NONBLOCK, Result, call3, call4, call6, nr, retry};
use crate::protocol::net::{Address, Halves, Opt};

pub(crate) const ENOBUFS: Errno = Errno(105);
pub(crate) const ENOTCONN: Errno = Errno(107);
pub(crate) const EAFNOSUPPORT: Errno = Errno(97);
pub(crate) const EBADF: Errno = Errno(9);
pub(crate) const ECANCELED: Errno = Errno(125);

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

pub(crate) const STREAM: usize = 1;
pub(crate) const DATAGRAM: usize = 2;

const SOL_SOCKET: usize = 1;
const IPPROTO_IP: usize = 0;
const IPPROTO_TCP: usize = 6;
const IPPROTO_IPV6: usize = 41;

/// Family and 108 bytes of name: the largest address of all that are in use.
const SIZE: usize = 110;

/// A kernel's socket address.
#[derive(Clone, Copy)]
pub(crate) struct SockAddr {
    bytes: [u8; SIZE],
    len: usize,
}

impl SockAddr {
    fn family(&self) -> u16 {
        u16::from_ne_bytes([self.bytes[0], self.bytes[1]])
    }

    pub(crate) fn is_unix(&self) -> bool {
        self.family() == AF_UNIX
    }

    /// As the protocol has it.
    pub(crate) fn address(&self) -> Address<'_> {
        let b = &self.bytes;
        let port = u16::from_be_bytes([b[2], b[3]]);
        let array = |at: usize| b.get(at..).and_then(|b| b.first_chunk()).copied().unwrap_or_default();
        match self.family() {
            AF_INET if self.len >= 8 => Address::V4(array(4), port),
            AF_INET6 if self.len >= 28 => {
                let ip = b.get(8..).and_then(|b| b.first_chunk()).copied().unwrap_or_default();
                Address::V6(ip, port, u32::from_be_bytes(array(4)), u32::from_ne_bytes(array(24)))
            }
            _ => {
                let name = b.get(2..self.len.min(SIZE)).unwrap_or_default();
                // A path's own NUL is none of its bytes; an abstract name may have any.
                let end = if name.first() == Some(&0) { None } else { name.iter().position(|b| *b == 0) };
                Address::Unix(name.get(..end.unwrap_or(name.len())).unwrap_or_default())
            }
        }
    }
}

impl From<&Address<'_>> for SockAddr {
    fn from(address: &Address<'_>) -> Self {
        let mut s = SockAddr { bytes: [0; SIZE], len: 0 };
        let mut put = |bytes: &[u8]| {
            if let Some(at) = s.bytes.get_mut(s.len..s.len + bytes.len()) {
                at.copy_from_slice(bytes);
                s.len += bytes.len();
            }
        };
        match address {
            Address::V4(ip, port) => {
                put(&AF_INET.to_ne_bytes());
                put(&port.to_be_bytes());
                put(ip);
                put(&[0; 8]);
            }
            Address::V6(ip, port, flow, scope) => {
                put(&AF_INET6.to_ne_bytes());
                put(&port.to_be_bytes());
                put(&flow.to_be_bytes());
                put(ip);
                put(&scope.to_ne_bytes());
            }
            Address::Unix(name) => {
                put(&AF_UNIX.to_ne_bytes());
                put(name);
                if !matches!(name.first(), None | Some(0)) {
                    put(&[0]);
                }
            }
        }
        s
    }
}

/// A socket for addresses of this kind, which waits for nothing.
pub(crate) fn socket(address: &SockAddr, kind: usize) -> Result<Fd> {
    let kind = kind | (O_CLOEXEC | O_NONBLOCK) as usize;
    // SAFETY: no pointers.
    unsafe { call3(nr::SOCKET, address.family().into(), kind, 0) }.map(|fd| Fd(fd as i32))
}

pub(crate) fn connect(fd: &Fd, address: &SockAddr) -> Result<()> {
    // SAFETY: the kernel reads len bytes of the address.
    retry(|| unsafe { call3(nr::CONNECT, fd.0 as usize, address.bytes.as_ptr() as usize, address.len) })
        .map(drop)
}

pub(crate) fn bind(fd: &Fd, address: &SockAddr) -> Result<()> {
    // SAFETY: the kernel reads len bytes of the address.
    unsafe { call3(nr::BIND, fd.0 as usize, address.bytes.as_ptr() as usize, address.len) }.map(drop)
}

pub(crate) fn listen(fd: &Fd, backlog: usize) -> Result<()> {
    // SAFETY: no pointers.
    unsafe { call3(nr::LISTEN, fd.0 as usize, backlog, 0) }.map(drop)
}

/// The next connection and who made it.
pub(crate) fn accept(fd: &Fd) -> Result<(Fd, SockAddr)> {
    let (mut from, mut len) = (SockAddr { bytes: [0; SIZE], len: 0 }, SIZE as u32);
    let flags = (O_CLOEXEC | O_NONBLOCK) as usize;
    // SAFETY: the kernel writes at most SIZE bytes of an address, and its length.
    let new = retry(|| unsafe {
        call4(nr::ACCEPT4, fd.0 as usize, from.bytes.as_mut_ptr() as usize, &raw mut len as usize, flags)
    })?;
    from.len = (len as usize).min(SIZE);
    Ok((Fd(new as i32), from))
}

fn name(call: usize, fd: &Fd) -> Result<SockAddr> {
    let (mut at, mut len) = (SockAddr { bytes: [0; SIZE], len: 0 }, SIZE as u32);
    // SAFETY: the kernel writes at most SIZE bytes of an address, and its length.
    unsafe { call3(call, fd.0 as usize, at.bytes.as_mut_ptr() as usize, &raw mut len as usize)? };
    at.len = (len as usize).min(SIZE);
    Ok(at)
}

/// A socket's own address.
pub(crate) fn local(fd: &Fd) -> Result<SockAddr> {
    name(nr::GETSOCKNAME, fd)
}

/// That of its peer.
pub(crate) fn peer(fd: &Fd) -> Result<SockAddr> {
    name(nr::GETPEERNAME, fd)
}

pub(crate) fn shutdown(fd: &Fd, halves: Halves) -> Result<()> {
    // SAFETY: no pointers.
    unsafe { call3(nr::SHUTDOWN, fd.0 as usize, halves as usize, 0) }.map(drop)
}

pub(crate) fn send_to(fd: &Fd, bytes: &[u8], to: Option<&SockAddr>) -> Result<usize> {
    const MSG_NOSIGNAL: usize = 0x4000;
    let (at, len) = to.map_or((0, 0), |to| (to.bytes.as_ptr() as usize, to.len));
    // SAFETY: the kernel reads the bytes, and len bytes of the address if there is one.
    retry(|| unsafe {
        call6(nr::SENDTO, [fd.0 as usize, bytes.as_ptr() as usize, bytes.len(), MSG_NOSIGNAL, at, len])
    })
}

/// Takes a datagram; what does not fit into `max` bytes of it is lost.
pub(crate) fn receive_from(fd: &Fd, bytes: &mut Vec<u8>, max: usize) -> Result<SockAddr> {
    bytes.clear();
    bytes.reserve(max);
    let at = bytes.spare_capacity_mut().as_mut_ptr() as usize;
    let (mut from, mut len) = (SockAddr { bytes: [0; SIZE], len: 0 }, SIZE as u32);
    // SAFETY: the kernel writes at most max bytes, at most SIZE bytes of an address, and its length.
    let n = retry(|| unsafe {
        let from = from.bytes.as_mut_ptr() as usize;
        call6(nr::RECVFROM, [fd.0 as usize, at, max, 0, from, &raw mut len as usize])
    })?;
    // SAFETY: the kernel has initialised n <= max bytes.
    unsafe { bytes.set_len(n.min(max)) };
    from.len = (len as usize).min(SIZE);
    Ok(from)
}

fn set(fd: &Fd, level: usize, option: usize, value: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads the value.
    unsafe { call6(nr::SETSOCKOPT, [fd.0 as usize, level, option, value.as_ptr() as usize, value.len(), 0]) }
        .map(drop)
}

fn level_and_name(fd: &Fd, opt: Opt) -> Result<(usize, usize)> {
    Ok(match opt {
        Opt::NoDelay => (IPPROTO_TCP, 1),
        Opt::Ttl if local(fd)?.family() == AF_INET6 => (IPPROTO_IPV6, 16),
        Opt::Ttl => (IPPROTO_IP, 2),
        Opt::Broadcast => (SOL_SOCKET, 6),
        Opt::MulticastLoopV4 => (IPPROTO_IP, 34),
        Opt::MulticastTtlV4 => (IPPROTO_IP, 33),
        Opt::MulticastLoopV6 => (IPPROTO_IPV6, 19),
        Opt::Error => (SOL_SOCKET, 4),
        Opt::OnlyV6 => (IPPROTO_IPV6, 26),
        Opt::QuickAck => (IPPROTO_TCP, 12),
        // The agent's own: the kernel would have it wait in close.
        Opt::Linger => return Err(super::EINVAL),
    })
}

pub(crate) fn set_option(fd: &Fd, opt: Opt, value: u32) -> Result<()> {
    let (level, name) = level_and_name(fd, opt)?;
    set(fd, level, name, &value.to_ne_bytes())
}

pub(crate) fn option(fd: &Fd, opt: Opt) -> Result<u32> {
    let (level, name) = level_and_name(fd, opt)?;
    let (mut value, mut len) = (0u32, 4u32);
    let at = [&raw mut value as usize, &raw mut len as usize];
    // SAFETY: the kernel writes at most an int, and its length.
    unsafe { call6(nr::GETSOCKOPT, [fd.0 as usize, level, name, at[0], at[1], 0])? };
    Ok(value)
}

/// Lets an address be bound again that connections of before still have.
pub(crate) fn reuse_address(fd: &Fd) -> Result<()> {
    set(fd, SOL_SOCKET, 2, &1u32.to_ne_bytes())
}

/// Has closing throw away what was not sent and reset the connection.
pub(crate) fn reset_on_close(fd: &Fd) {
    const SO_LINGER: usize = 13;
    let mut linger = [0; 8];
    linger[0] = 1;
    let _ = set(fd, SOL_SOCKET, SO_LINGER, &linger);
}

/// Joins a multicast group, or leaves it, on the interface that has an IPv4 address or an index.
pub(crate) fn membership(fd: &Fd, join: bool, group: &Address<'_>, interface: [u8; 4]) -> Result<()> {
    match group {
        Address::V4(ip, _) => {
            let mut request = [0; 8];
            request[..4].copy_from_slice(ip);
            request[4..].copy_from_slice(&interface);
            set(fd, IPPROTO_IP, if join { 35 } else { 36 }, &request)
        }
        Address::V6(ip, ..) => {
            let mut request = [0; 20];
            request[..16].copy_from_slice(ip);
            request[16..].copy_from_slice(&interface);
            set(fd, IPPROTO_IPV6, if join { 20 } else { 21 }, &request)
        }
        Address::Unix(_) => Err(EAFNOSUPPORT),
    }
}

/// Two bytes that nobody outside can foretell, once the kernel has random numbers at all.
pub(crate) fn random_u16() -> u16 {
    const GRND_NONBLOCK: usize = 1;
    let mut bytes = (super::now() as u16).to_ne_bytes();
    // SAFETY: the kernel writes two bytes.
    let _ = unsafe { call3(nr::GETRANDOM, bytes.as_mut_ptr() as usize, 2, GRND_NONBLOCK) };
    u16::from_ne_bytes(bytes)
}
