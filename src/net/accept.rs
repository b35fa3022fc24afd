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
