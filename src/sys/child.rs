//! Children of this process: how they ended, and what they used.

use std::io;
use std::time::Duration;

/// How a child ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// As `wait(2)` encodes it.
    pub(crate) status: i32,
    /// CPU time in user mode, with that of the children it waited for.
    pub(crate) user: Duration,
    /// CPU time in the kernel, likewise.
    pub(crate) system: Duration,
    /// Peak resident memory, in bytes.
    pub(crate) max_rss: u64,
}

/// Takes the child `pid` in if it has ended. Afterwards its number may be another process's.
///
/// # Errors
/// The host's: `ECHILD` for what is no child of this process, or was taken in before.
#[allow(unsafe_code)]
pub(crate) fn try_wait(pid: u32) -> io::Result<Option<Ended>> {
    let mut status = 0;
    // SAFETY: all fields are numbers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to values of ours that live until the call returns.
        match unsafe { libc::wait4(pid.cast_signed(), &raw mut status, libc::WNOHANG, &raw mut usage) } {
            0 => return Ok(None),
            -1 => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
            _ => break,
        }
    }
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec.max(0).unsigned_abs())
            + Duration::from_micros(t.tv_usec.max(0).unsigned_abs())
    };
    Ok(Some(Ended {
        status,
        user: time(usage.ru_utime),
        system: time(usage.ru_stime),
        max_rss: usage.ru_maxrss.max(0).unsigned_abs() * 1024,
    }))
}
