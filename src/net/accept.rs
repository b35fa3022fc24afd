//! Listening sockets of a guest, of either kind.

use std::io;
use std::sync::Mutex;

use super::options::{Options, Way};
use crate::agent::protocol::net::Opt;
use crate::agent::{Connection, Listener, guest_error};

#[derive(Debug)]
pub(super) struct GuestListener {
    pub(super) listener: Listener,
    pub(super) options: Options,
    /// An attempt that was not waited for.
    begun: Mutex<Option<Connection>>,
}

impl GuestListener {
    pub(super) fn new(listener: Listener) -> Self {
        GuestListener { listener, options: Options::default(), begun: Mutex::new(None) }
    }

    pub(super) fn accept(&self) -> io::Result<Connection> {
        let begun = self.begun.lock().unwrap_or_else(|e| e.into_inner()).take();
        let connection = match begun {
            Some(connection) => connection,
            None => self.listener.accepting()?,
        };
        match connection.opened(self.options.until(Way::Read)) {
            Ok(()) => Ok(connection),
            Err(e) => {
                if e.kind() == io::ErrorKind::WouldBlock {
                    let mut begun = self.begun.lock().unwrap_or_else(|e| e.into_inner());
                    // Of several attempts at once the others are given up, with what they may get.
                    begun.get_or_insert(connection);
                }
                Err(e)
            }
        }
    }

    pub(super) fn take_error(&self) -> io::Result<Option<io::Error>> {
        let errno = self.listener.get(Opt::Error)?;
        Ok((errno != 0).then(|| guest_error(errno as i32)))
    }
}

/// What every kind of listener has. `$host` is std's type.
macro_rules! listener_methods {
    ($name:ident, $host:ty) => {
        impl $name {
            pub(super) fn from_guest(listener: Listener) -> Self {
                $name(ListenerInner::Guest(Arc::new(GuestListener::new(listener))))
            }

            /// A new handle of the same socket.
            pub fn try_clone(&self) -> io::Result<Self> {
                Ok($name(match &self.0 {
                    ListenerInner::Host(listener) => ListenerInner::Host(listener.try_clone()?),
                    ListenerInner::Guest(listener) => ListenerInner::Guest(listener.clone()),
                }))
            }

            /// Has [`accept`](Self::accept) fail with [`WouldBlock`](io::ErrorKind::WouldBlock) instead of
            /// waiting. In a guest one attempt stays under way then, and its connection is that of a later call.
            pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
                match &self.0 {
                    ListenerInner::Host(listener) => listener.set_nonblocking(nonblocking),
                    ListenerInner::Guest(listener) => {
                        listener.options.set_nonblocking(nonblocking);
                        Ok(())
                    }
                }
            }

            /// The error that the socket has met with and not told yet.
            pub fn take_error(&self) -> io::Result<Option<io::Error>> {
                match &self.0 {
                    ListenerInner::Host(listener) => listener.take_error(),
                    ListenerInner::Guest(listener) => listener.take_error(),
                }
            }
        }

        impl From<$host> for $name {
            fn from(listener: $host) -> Self {
                $name(ListenerInner::Host(listener))
            }
        }
    };
}

pub(super) use listener_methods;
