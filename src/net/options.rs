//! What a guest's socket has on the host's side: how long its operations wait.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::agent::Until;

/// All handles of one socket share these, as descriptors of one socket do.
#[derive(Debug, Default)]
pub(super) struct Options {
    /// Nanoseconds, 0 for no limit.
    read: AtomicU64,
    write: AtomicU64,
    nonblocking: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Read,
    Write,
}

impl Options {
    fn cell(&self, way: Way) -> &AtomicU64 {
        match way {
            Way::Read => &self.read,
            Way::Write => &self.write,
        }
    }

    pub(super) fn timeout(&self, way: Way) -> Option<Duration> {
        match self.cell(way).load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    pub(super) fn set_timeout(&self, way: Way, timeout: Option<Duration>) -> io::Result<()> {
        if timeout == Some(Duration::ZERO) {
            let what = "cannot set a 0 duration timeout";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let nanos = timeout.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX));
        self.cell(way).store(nanos, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    /// How long an operation that begins now waits.
    pub(super) fn until(&self, way: Way) -> Until {
        if self.nonblocking.load(Ordering::Relaxed) {
            return Until::Now;
        }
        // What is beyond the clock is for ever.
        let deadline = self.timeout(way).and_then(|timeout| Instant::now().checked_add(timeout));
        deadline.map_or(Until::Done, Until::Time)
    }
}
