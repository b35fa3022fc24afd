//! How a command ended and what it used.

use std::fmt;
use std::time::Duration;

use crate::agent::protocol::Exited;

/// How a process of the guest ended.
///
/// This corresponds to [`std::process::ExitStatus`]. It is a type of its own because a guest's signal
/// has no place in that of a host without signals; [`signal`](ExitStatus::signal) and
/// [`core_dumped`](ExitStatus::core_dumped) are here on every host. It is always the end of a process:
/// a machine that fails is an [`std::io::Error`].
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct ExitStatus(i32);

impl ExitStatus {
    /// The status that `wait(2)` encodes as `raw` on Linux. This corresponds to
    /// [`std::os::unix::process::ExitStatusExt::from_raw`].
    pub fn from_raw(raw: i32) -> Self {
        ExitStatus(raw)
    }

    /// The status as `wait(2)` encodes it on Linux.
    pub fn into_raw(self) -> i32 {
        self.0
    }

    /// Whether the process exited with code 0.
    pub fn success(&self) -> bool {
        self.0 == 0
    }

    /// The exit code, 0 to 255; `None` when a signal ended the process.
    pub fn code(&self) -> Option<i32> {
        (self.0 & 0x7f == 0).then_some((self.0 >> 8) & 0xff)
    }

    /// The signal that ended the process, as Linux numbers them.
    pub fn signal(&self) -> Option<i32> {
        let signal = self.0 & 0x7f;
        (signal != 0 && signal != 0x7f).then_some(signal)
    }

    /// Whether the signal left a core dump.
    pub fn core_dumped(&self) -> bool {
        self.signal().is_some() && self.0 & 0x80 != 0
    }

    /// The signal that stopped the process, in a status that says so: never in that of a process that
    /// has ended.
    pub fn stopped_signal(&self) -> Option<i32> {
        (self.0 & 0xff == 0x7f).then_some((self.0 >> 8) & 0xff)
    }

    /// Whether the status says that a stopped process goes on: never that of one that has ended.
    pub fn continued(&self) -> bool {
        self.0 == 0xffff
    }
}

impl fmt::Debug for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ExitStatus").field(&self.0).finish()
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(code) = self.code() {
            return write!(f, "exit status: {code}");
        }
        let Some(signal) = self.signal() else {
            return write!(f, "unrecognised wait status: {:#x}", self.0);
        };
        write!(f, "signal: {signal}")?;
        let name = usize::try_from(signal - 1).ok().and_then(|n| SIGNALS.get(n));
        if let Some(name) = name {
            write!(f, " ({name})")?;
        }
        if self.core_dumped() { f.write_str(" (core dumped)") } else { Ok(()) }
    }
}

/// Linux signals from 1 up.
const SIGNALS: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

/// How a command ended and everything it wrote.
///
/// This corresponds to [`std::process::Output`].
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output; empty when that was not piped.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error; empty when that was not piped.
    pub stderr: Vec<u8>,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("status", &self.status)
            .field("stdout", &String::from_utf8_lossy(&self.stdout))
            .field("stderr", &String::from_utf8_lossy(&self.stderr))
            .finish()
    }
}

/// What an ended command and the children it waited for used. Has no twin in std.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ResourceUsage {
    /// Time from its start to its end, by the guest's clock.
    pub wall_time: Duration,
    /// CPU time in user mode.
    pub user_time: Duration,
    /// CPU time in the guest's kernel.
    pub system_time: Duration,
    /// Peak resident memory, in bytes.
    pub max_rss: u64,
}

impl From<Exited> for ResourceUsage {
    fn from(e: Exited) -> Self {
        ResourceUsage {
            wall_time: Duration::from_micros(e.wall_us),
            user_time: Duration::from_micros(e.user_us),
            system_time: Duration::from_micros(e.system_us),
            max_rss: e.max_rss_kib.saturating_mul(1024),
        }
    }
}
