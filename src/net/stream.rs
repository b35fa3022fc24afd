//! What TCP and Unix connections of a guest have in common.

use std::io;
use std::net::Shutdown;

use super::options::{Options, Way};
use crate::agent::protocol::net::Halves;
use crate::agent::{Connection, guest_error};

/// One connection of a guest, of which there may be many handles.
#[derive(Debug)]
pub(super) struct GuestStream {
    pub(super) connection: Connection,
    pub(super) options: Options,
}

impl GuestStream {
    pub(super) fn new(connection: Connection) -> Self {
        GuestStream { connection, options: Options::default() }
    }

    pub(super) fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.connection.read(bytes, self.options.until(Way::Read))
    }

    pub(super) fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.connection.peek(bytes, self.options.until(Way::Read))
    }

    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.connection.write(bytes, self.options.until(Way::Write))
    }

    pub(super) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.connection.shutdown(halves(how))
    }

    pub(super) fn take_error(&self) -> io::Result<Option<io::Error>> {
        Ok(self.connection.take_error()?.map(guest_error))
    }
}

pub(super) fn halves(how: Shutdown) -> Halves {
    match how {
        Shutdown::Read => Halves::Read,
        Shutdown::Write => Halves::Write,
        Shutdown::Both => Halves::Both,
    }
}

/// What every kind of connection has: reading, writing, timeouts. `$host` is std's type.
macro_rules! stream_methods {
    ($name:ident, $host:ty) => {
        impl $name {
            /// A new handle of the same connection, with the same timeouts.
            pub fn try_clone(&self) -> io::Result<Self> {
                Ok($name(match &self.0 {
                    Inner::Host(stream) => Inner::Host(stream.try_clone()?),
                    Inner::Guest(stream) => Inner::Guest(stream.clone()),
                }))
            }

            /// Ends the half that receives, the half that sends, or both. What was written before still
            /// goes out.
            pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
                match &self.0 {
                    Inner::Host(stream) => stream.shutdown(how),
                    Inner::Guest(stream) => stream.shutdown(how),
                }
            }

            /// Limits how long reading waits; it fails with [`WouldBlock`](io::ErrorKind::WouldBlock)
            /// then. `None`, as at first, is for ever.
            ///
            /// # Errors
            /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a time of zero.
            pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
                match &self.0 {
                    Inner::Host(stream) => stream.set_read_timeout(timeout),
                    Inner::Guest(stream) => stream.options.set_timeout(Way::Read, timeout),
                }
            }

            /// Limits how long writing waits, as [`set_read_timeout`](Self::set_read_timeout) does
            /// reading.
            pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
                match &self.0 {
                    Inner::Host(stream) => stream.set_write_timeout(timeout),
                    Inner::Guest(stream) => stream.options.set_timeout(Way::Write, timeout),
                }
            }

            /// How long reading waits.
            pub fn read_timeout(&self) -> io::Result<Option<Duration>> {
                match &self.0 {
                    Inner::Host(stream) => stream.read_timeout(),
                    Inner::Guest(stream) => Ok(stream.options.timeout(Way::Read)),
                }
            }

            /// How long writing waits.
            pub fn write_timeout(&self) -> io::Result<Option<Duration>> {
                match &self.0 {
                    Inner::Host(stream) => stream.write_timeout(),
                    Inner::Guest(stream) => Ok(stream.options.timeout(Way::Write)),
                }
            }

            /// Has reading and writing fail with [`WouldBlock`](io::ErrorKind::WouldBlock) instead of
            /// waiting, on all handles of the connection.
            pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
                match &self.0 {
                    Inner::Host(stream) => stream.set_nonblocking(nonblocking),
                    Inner::Guest(stream) => {
                        stream.options.set_nonblocking(nonblocking);
                        Ok(())
                    }
                }
            }

            /// The error that the connection has met with and not told yet, which is none then.
            pub fn take_error(&self) -> io::Result<Option<io::Error>> {
                match &self.0 {
                    Inner::Host(stream) => stream.take_error(),
                    Inner::Guest(stream) => stream.take_error(),
                }
            }

            pub(super) fn from_guest(connection: Connection) -> Self {
                $name(Inner::Guest(Arc::new(GuestStream::new(connection))))
            }
        }

        impl From<$host> for $name {
            fn from(stream: $host) -> Self {
                $name(Inner::Host(stream))
            }
        }

        impl Read for &$name {
            fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
                match &self.0 {
                    Inner::Host(stream) => (&*stream).read(bytes),
                    Inner::Guest(stream) => stream.read(bytes),
                }
            }
        }

        impl Write for &$name {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                match &self.0 {
                    Inner::Host(stream) => (&*stream).write(bytes),
                    Inner::Guest(stream) => stream.write(bytes),
                }
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        impl Read for $name {
            fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
                (&*self).read(bytes)
            }
        }

        impl Write for $name {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                (&*self).write(bytes)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
    };
}

pub(super) use stream_methods;
