//! One end of a relayed connection, which nothing here waits for.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use crate::agent::protocol::net::Halves;
use crate::agent::{Connection, Until, Waker};
use crate::sys::sockets::{begin_connect, reset_on_close};

pub(super) enum Endpoint {
    Host {
        stream: TcpStream,
        /// Addresses still to be tried when it is being connected, in reverse order.
        connecting: Option<Vec<SocketAddr>>,
    },
    Guest {
        connection: Connection,
        open: bool,
    },
}

impl Endpoint {
    pub(super) fn host(stream: TcpStream) -> Self {
        Endpoint::Host { stream, connecting: None }
    }

    pub(super) fn guest(connection: Connection) -> Self {
        Endpoint::Guest { connection, open: false }
    }

    /// Begins to connect to the first of the addresses that can be.
    pub(super) fn dial_host(addrs: &[SocketAddr]) -> io::Result<Self> {
        let mut left: Vec<SocketAddr> = addrs.iter().rev().copied().collect();
        let stream = dial_next(&mut left)?;
        Ok(Endpoint::Host { stream, connecting: Some(left) })
    }

    pub(super) fn set_waker(&self, waker: Waker) {
        if let Endpoint::Guest { connection, .. } = self {
            connection.set_waker(Some(waker));
        }
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Endpoint::Host { stream, .. } => Some(stream.as_fd()),
            Endpoint::Guest { .. } => None,
        }
    }

    pub(super) fn is_connecting(&self) -> bool {
        match self {
            Endpoint::Host { connecting, .. } => connecting.is_some(),
            Endpoint::Guest { open, .. } => !open,
        }
    }

    /// Whether it is connected. An error when it never will be.
    pub(super) fn connected(&mut self) -> io::Result<bool> {
        match self {
            Endpoint::Host { connecting: None, .. } | Endpoint::Guest { open: true, .. } => Ok(true),
            Endpoint::Guest { connection, open } => match connection.opened(Until::Now) {
                Ok(()) => {
                    *open = true;
                    Ok(true)
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
                Err(e) => Err(e),
            },
            Endpoint::Host { stream, connecting } => {
                if stream.take_error()?.is_some() {
                    if let Some(left) = connecting {
                        *stream = dial_next(left)?;
                    }
                    return Ok(false);
                }
                match stream.peer_addr() {
                    Ok(_) => {
                        *connecting = None;
                        Ok(true)
                    }
                    Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(false),
                    Err(e) => Err(e),
                }
            }
        }
    }

    pub(super) fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Endpoint::Host { stream, .. } => stream.read(bytes),
            Endpoint::Guest { connection, .. } => connection.read(bytes, Until::Now),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Endpoint::Host { stream, .. } => stream.write(bytes),
            Endpoint::Guest { connection, .. } => connection.write(bytes, Until::Now),
        }
    }

    /// How many bytes it is worth to have for it. What fails when it is written to takes some.
    pub(super) fn room(&self) -> usize {
        match self {
            Endpoint::Host { .. } => usize::MAX,
            Endpoint::Guest { connection, .. } => connection.writable().unwrap_or(usize::MAX),
        }
    }

    /// Says that nothing more is sent.
    pub(super) fn end(&mut self) -> io::Result<()> {
        match self {
            Endpoint::Host { stream, .. } => stream.shutdown(Shutdown::Write),
            Endpoint::Guest { connection, .. } => connection.shutdown(Halves::Write),
        }
    }

    /// Closes it as a connection that failed.
    pub(super) fn reset(self) {
        match self {
            Endpoint::Host { stream, .. } => reset_on_close(&stream),
            Endpoint::Guest { connection, .. } => connection.reset(),
        }
    }
}

fn dial_next(left: &mut Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::InvalidInput, "could not resolve to any addresses");
    while let Some(addr) = left.pop() {
        match begin_connect(&addr) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}
