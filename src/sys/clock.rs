//! Machine time: nanoseconds that run with the host's monotonic clock and stand still while the
//! machine is paused.
//!
//! Every timer and counter of a machine (TSC, LAPIC, PIT, paravirt clock) reads this one clock, so
//! they agree with each other and a pause never shows as a jump in only some of them.

use std::sync::RwLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Frequency of the guest's time-stamp counter, in Hz: one tick is one nanosecond of machine time.
pub const TSC_HZ: u64 = 1_000_000_000;

#[derive(Debug, Clone, Copy)]
enum Phase {
    Running { since: Instant, base: u64 },
    Paused { at: u64 },
}

/// The clock of one machine. Starts paused at zero.
#[derive(Debug)]
pub struct Clock {
    phase: RwLock<Phase>,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    /// A clock that stands at zero until [`Clock::resume`].
    pub fn new() -> Self {
        Self { phase: RwLock::new(Phase::Paused { at: 0 }) }
    }

    /// Machine time in nanoseconds.
    pub fn now(&self) -> u64 {
        match *self.read() {
            Phase::Running { since, base } => base + since.elapsed().as_nanos() as u64,
            Phase::Paused { at } => at,
        }
    }

    /// Lets time run. Does nothing when it runs already.
    pub fn resume(&self) {
        let mut phase = self.phase.write().unwrap_or_else(|e| e.into_inner());
        if let Phase::Paused { at } = *phase {
            *phase = Phase::Running { since: Instant::now(), base: at };
        }
    }

    /// Stops time. Does nothing when it stands already.
    pub fn pause(&self) {
        let mut phase = self.phase.write().unwrap_or_else(|e| e.into_inner());
        if let Phase::Running { since, base } = *phase {
            *phase = Phase::Paused { at: base + since.elapsed().as_nanos() as u64 };
        }
    }

    /// Moves a standing clock to `ns`. Does nothing while it runs.
    pub fn set(&self, ns: u64) {
        let mut phase = self.phase.write().unwrap_or_else(|e| e.into_inner());
        if let Phase::Paused { at } = &mut *phase {
            *at = ns;
        }
    }

    /// How long from now until machine time `deadline` (ns), zero when it has passed, `None` while
    /// the clock is paused.
    pub fn until(&self, deadline: u64) -> Option<Duration> {
        match *self.read() {
            Phase::Running { since, base } => {
                let now = base + since.elapsed().as_nanos() as u64;
                Some(Duration::from_nanos(deadline.saturating_sub(now)))
            }
            Phase::Paused { .. } => None,
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Phase> {
        self.phase.read().unwrap_or_else(|e| e.into_inner())
    }
}

/// The host's wall clock as nanoseconds since the Unix epoch.
pub fn wall_clock_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}
