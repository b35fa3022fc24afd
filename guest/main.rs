//! The guest agent: PID 1 of every guest, and the host's only correspondent in it.
//!
//! `build.rs` compiles this with nothing but `rustc`: no standard library, no libc, no crates. It is
//! one thread around one epoll instance; everything it waits for is non-blocking.
//!
//! - [`boot`]: mounts, kernel modules, loopback (only as PID 1 of a guest)
//! - [`root`]: the root that the host gives, in which everything lives from then on
//! - [`server`]: the connection to the host and the event loop
//! - [`stream`]: one running command: its pipes and their flow control
//! - [`spawn`]: starting a process; [`users`]: whom it becomes, [`pty`]: its terminal
//! - [`net`]: sockets that the host's program holds
//! - [`freeze`]: standing still for a snapshot
//! - [`files`]: processes that work on files for the host
//! - [`sys`], [`heap`], [`mem`]: system calls, allocator, memory functions
//!
//! As PID 1 it connects to vsock port [`protocol::PORT`] of the host and, when that connection ends
//! (a machine restored from a snapshot has its connections reset), connects again. Bytes from the
//! host that make no sense end the connection, never the agent: its death is the kernel's.
//!
//! It can be an ordinary process too, which mounts nothing and changes nothing of the machine: called as
//! `agent --fd N` it serves the host on the inherited socket N and ends with the connection, called as
//! `agent --connect PATH` it connects to a Unix socket, again and again, as it would to vsock.

#![no_std]
#![no_main]

extern crate alloc;

mod boot;
mod files;
mod freeze;
mod heap;
mod mem;
mod net;
#[path = "../src/agent/protocol.rs"]
#[allow(dead_code, unused_imports)]
mod protocol;
mod pty;
mod root;
mod server;
mod spawn;
mod stream;
mod sys;
mod users;

use core::ffi::CStr;
use core::fmt::{self, Write as _};

use sys::Fd;

#[global_allocator]
static HEAP: heap::Heap = heap::Heap::new();

core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {start}",
    "ud2",
    start = sym start,
);

/// # Safety
/// `stack` is the initial stack pointer of the process: argc, argv, NULL, ...
unsafe extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: the kernel puts argc there.
    let argc = unsafe { stack.read() };
    let arg = |n: usize| {
        // SAFETY: argv follows argc and has argc strings.
        (n < argc).then(|| unsafe { CStr::from_ptr::<'static>(stack.add(1 + n).read() as *const _) })
    };
    let number = |n: &CStr| n.to_str().ok().and_then(|n| n.parse::<i32>().ok()).filter(|n| *n >= 0);
    match (arg(1).map(CStr::to_bytes), arg(2)) {
        (Some(b"--fd"), Some(n)) if number(n).is_some() => {
            serve_inherited(Fd::adopt(number(n).unwrap_or_default()))
        }
        (Some(b"--connect"), Some(path)) => {
            if sys::become_subreaper().is_err() {
                sys::exit(65);
            }
            run(server::Link::Unix(path))
        }
        _ if sys::getpid() == 1 => {
            boot::prepare();
            // Else each line that a command writes would cost two changes of the address space.
            let _ = sys::schedule_politely();
            run(server::Link::Machine)
        }
        _ => {
            log(format_args!("only runs as PID 1 of a guest, or with --fd N or --connect PATH"));
            sys::exit(64)
        }
    }
}

fn serve_inherited(fd: Fd) -> ! {
    let Ok(socket) = fd.duplicate() else { sys::exit(65) };
    // The socket must not reach commands; where it was standard input, that becomes /dev/null.
    let raw = fd.raw();
    drop(fd);
    if raw < 3
        && let Ok(null) = sys::open(c"/dev/null", sys::O_RDWR)
    {
        core::mem::forget(null);
    }
    if socket.set_nonblocking().is_err() || sys::become_subreaper().is_err() {
        sys::exit(65);
    }
    run(server::Link::Inherited(socket))
}

fn run(link: server::Link) -> ! {
    let _ = sys::close_on_exec_from(3);
    match server::Server::new(link) {
        Ok(mut server) => server.run(),
        Err(e) => {
            log(format_args!("cannot start: errno {}", e.0));
            sys::exit(66)
        }
    }
}

/// Writes one line to standard error, which is the console in a guest.
pub(crate) fn log(line: fmt::Arguments<'_>) {
    struct Line([u8; 256], usize);
    impl fmt::Write for Line {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            for &b in s.as_bytes() {
                *self.0.get_mut(self.1).ok_or(fmt::Error)? = b;
                self.1 += 1;
            }
            Ok(())
        }
    }
    let mut buf = Line([0; 256], 0);
    let _ = writeln!(buf, "cc-agent: {line}");
    let stderr = core::mem::ManuallyDrop::new(Fd::adopt(2));
    let _ = stderr.write(buf.0.get(..buf.1).unwrap_or(&[]));
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    log(format_args!("{info}"));
    sys::exit(101)
}

/// Named by the precompiled core library; panics abort, so nothing calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As [`rust_eh_personality`].
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    sys::exit(101)
}
