//! What UDP and Unix datagram sockets have in common.

use std::io;

use super::options::{Options, Way};
use crate::agent::{Datagrams, Name, Place, guest_error};

#[derive(Debug)]
pub(super) struct GuestDatagrams {
    pub(super) socket: Datagrams,
    pub(super) options: Options,
}

impl GuestDatagrams {
    pub(super) fn new(socket: Datagrams) -> Self {
        GuestDatagrams { socket, options: Options::default() }
    }

    pub(super) fn receive(&self, bytes: &mut [u8]) -> io::Result<(usize, Name)> {
        self.socket.receive(bytes, self.options.until(Way::Read))
    }

    pub(super) fn peek(&self, bytes: &mut [u8]) -> io::Result<(usize, Name)> {
        self.socket.peek(bytes, self.options.until(Way::Read))
    }

    pub(super) fn send(&self, bytes: &[u8], to: Option<&Place>) -> io::Result<usize> {
        self.socket.send(bytes, to, self.options.until(Way::Write))
    }

    pub(super) fn take_error(&self) -> io::Result<Option<io::Error>> {
        Ok(self.socket.take_error()?.map(guest_error))
    }
}

/// What every kind of datagram socket has.
macro_rules! datagram_methods {
    ($name:ident, $host:ty) => {
        impl $name {
            /// A new handle of the same socket, with the same timeouts.
            pub fn try_clone(&self) -> io::Result<Self> {
                Ok($name(match &self.0 {
                    Inner::Host(socket) => Inner::Host(socket.try_clone()?),
                    Inner::Guest(socket) => Inner::Guest(socket.clone()),
                }))
            }

            /// Sends a datagram to whom the socket is connected. Gives the number of bytes.
            pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
                match &self.0 {
                    Inner::Host(socket) => socket.send(bytes),
                    Inner::Guest(socket) => socket.send(bytes, None),
                }
            }

            /// Takes the next datagram; what does not fit of it is lost. Gives the number of bytes.
            pub fn recv(&self, bytes: &mut [u8]) -> io::Result<usize> {
                match &self.0 {
                    Inner::Host(socket) => socket.recv(bytes),
                    Inner::Guest(socket) => socket.receive(bytes).map(|(n, _)| n),
                }
            }

            /// Limits how long receiving waits; it fails with [`WouldBlock`](io::ErrorKind::WouldBlock)
            /// then. `None`, as at first, is for ever.
            ///
            /// # Errors
            /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a time of zero.
            pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
                match &self.0 {
                    Inner::Host(socket) => socket.set_read_timeout(timeout),
                    Inner::Guest(socket) => socket.options.set_timeout(Way::Read, timeout),
                }
            }

            /// Limits how long sending waits, as [`set_read_timeout`](Self::set_read_timeout) does
            /// receiving.
            pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
                match &self.0 {
                    Inner::Host(socket) => socket.set_write_timeout(timeout),
                    Inner::Guest(socket) => socket.options.set_timeout(Way::Write, timeout),
                }
            }

            /// How long receiving waits.
            pub fn read_timeout(&self) -> io::Result<Option<Duration>> {
                match &self.0 {
                    Inner::Host(socket) => socket.read_timeout(),
                    Inner::Guest(socket) => Ok(socket.options.timeout(Way::Read)),
                }
            }

            /// How long sending waits.
            pub fn write_timeout(&self) -> io::Result<Option<Duration>> {
                match &self.0 {
                    Inner::Host(socket) => socket.write_timeout(),
                    Inner::Guest(socket) => Ok(socket.options.timeout(Way::Write)),
                }
            }

            /// Has receiving fail with [`WouldBlock`](io::ErrorKind::WouldBlock) instead of waiting. In
            /// a guest, sending still waits for the guest's answer.
            pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
                match &self.0 {
                    Inner::Host(socket) => socket.set_nonblocking(nonblocking),
                    Inner::Guest(socket) => {
                        socket.options.set_nonblocking(nonblocking);
                        Ok(())
                    }
                }
            }

            /// The error that the socket has met with and not told yet, which is none then.
            pub fn take_error(&self) -> io::Result<Option<io::Error>> {
                match &self.0 {
                    Inner::Host(socket) => socket.take_error(),
                    Inner::Guest(socket) => socket.take_error(),
                }
            }

            pub(super) fn from_guest(socket: Datagrams) -> Self {
                $name(Inner::Guest(Arc::new(GuestDatagrams::new(socket))))
            }
        }

        impl From<$host> for $name {
            fn from(socket: $host) -> Self {
                $name(Inner::Host(socket))
            }
        }
    };
}

pub(super) use datagram_methods;
