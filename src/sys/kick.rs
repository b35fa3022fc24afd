//! The signal that brings a thread out of a system call: vCPU threads in the guest, where nothing else
//! reaches them.
//!
//! One real-time signal of the process, the first above `SIGRTMIN + 8` that nobody has a handler for when
//! the first machine starts, or the one of `CC_KICK_SIGNAL`. Its handler does nothing, and other system
//! calls go on as if it had not come (`SA_RESTART`). It is sent to single threads of ours only.

#![allow(unsafe_code)]

use std::io;
use std::sync::OnceLock;

/// How far above `SIGRTMIN` the search begins: the lowest ones are the C library's and debuggers'.
const FIRST: i32 = 8;

static SIGNAL: OnceLock<Result<i32, i32>> = OnceLock::new();

extern "C" fn nothing(_: libc::c_int) {}

/// Has the signal ready. The error says that the process uses all of them, or the one it was told to take.
pub(crate) fn install() -> io::Result<()> {
    let chosen = *SIGNAL.get_or_init(|| {
        let (first, last) = (libc::SIGRTMIN() + FIRST, libc::SIGRTMAX());
        let wish = std::env::var("CC_KICK_SIGNAL").ok().and_then(|s| s.parse().ok());
        let mut range = wish.map_or(first..=last, |signal: i32| signal..=signal);
        range.find(|&signal| take(signal)).ok_or(libc::EBUSY)
    });
    chosen.map(drop).map_err(|errno| {
        io::Error::new(
            io::Error::from_raw_os_error(errno).kind(),
            "this process has handlers for all real-time signals: name one that machines may use in CC_KICK_SIGNAL",
        )
    })
}

/// The signal, once [`install`] has succeeded.
pub(crate) fn kick_signal() -> i32 {
    SIGNAL.get().copied().and_then(Result::ok).unwrap_or(0)
}

/// Lets the signal through to this thread.
pub(crate) fn unblock() {
    // SAFETY: the set lives here, and is made before it is used.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, kick_signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
}

/// Makes `signal` ours, unless somebody has a handler for it.
fn take(signal: i32) -> bool {
    // SAFETY: both structures live here and are zeroed, which is a valid value; the handler is
    // async-signal-safe, since it does nothing.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(signal, std::ptr::null(), &mut old) != 0 || old.sa_sigaction != libc::SIG_DFL {
            return false;
        }
        let mut new: libc::sigaction = std::mem::zeroed();
        new.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        new.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &new, std::ptr::null_mut()) == 0
    }
}
