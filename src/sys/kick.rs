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

/// Has the signal come to one thread from time to time, for as long as it is kept.
#[derive(Debug)]
pub(crate) struct Reminder {
    timer: libc::timer_t,
    thread: libc::pid_t,
}

// SAFETY: the timer's name is good in all threads.
unsafe impl Send for Reminder {}

impl Reminder {
    /// For the calling thread, once a second, which [`unblock`] lets it through to. `None` if the host has no more
    /// timers.
    pub(crate) fn new() -> Option<Self> {
        // SAFETY: always possible.
        let thread = unsafe { libc::gettid() };
        // SAFETY: zeroed is a valid value, and what is needed is set.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = kick_signal();
        event.sigev_notify_thread_id = thread;
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: both are ours.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) } != 0 {
            return None;
        }
        let reminder = Self { timer, thread };
        let second = libc::timespec { tv_sec: 1, tv_nsec: 0 };
        let every = libc::itimerspec { it_interval: second, it_value: second };
        // SAFETY: the timer has just been made.
        let set = unsafe { libc::timer_settime(timer, 0, &every, std::ptr::null_mut()) };
        (set == 0).then_some(reminder)
    }

    /// Whether it is for the calling thread.
    pub(crate) fn is_here(&self) -> bool {
        // SAFETY: always possible.
        self.thread == unsafe { libc::gettid() }
    }
}

impl Drop for Reminder {
    fn drop(&mut self) {
        // SAFETY: it was made, and is not used again.
        unsafe { libc::timer_delete(self.timer) };
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
