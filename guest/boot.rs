//! What PID 1 does before anything else: file systems, kernel modules, loopback, limits.
//!
//! All of it is best effort. What is missing shows where it is used; a guest without, say, IPv4 still
//! runs commands. Failures that matter are written to the console.
//!
//! `/cc/modules` names one uncompressed kernel module a line, in loading order.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;

use crate::log;
use crate::sys::{self, Errno};

const NOSUID: usize = 2;
const NODEV: usize = 4;
const NOEXEC: usize = 8;

/// Largest configuration file that is read.
const MAX_FILE: usize = 1024 * 1024;

pub(crate) fn prepare() {
    sys::umask(0o022);
    mount_if_absent(c"proc", c"/proc", NOSUID | NODEV | NOEXEC, c"");
    mount_if_absent(c"sysfs", c"/sys", NOSUID | NODEV | NOEXEC, c"");
    mount_if_absent(c"devtmpfs", c"/dev", NOSUID, c"mode=0755");
    mount_if_absent(c"devpts", c"/dev/pts", NOSUID | NOEXEC, c"mode=0620,gid=5,ptmxmode=0666");
    mount_if_absent(c"tmpfs", c"/dev/shm", NOSUID | NODEV, c"mode=1777");
    mount_if_absent(c"tmpfs", c"/tmp", NOSUID | NODEV, c"mode=1777");
    mount_if_absent(c"tmpfs", c"/run", NOSUID | NODEV, c"mode=0755");
    for (target, path) in [
        (c"/proc/self/fd", c"/dev/fd"),
        (c"/proc/self/fd/0", c"/dev/stdin"),
        (c"/proc/self/fd/1", c"/dev/stdout"),
        (c"/proc/self/fd/2", c"/dev/stderr"),
    ] {
        let _ = sys::symlink(target, path);
    }
    open_standard_streams();
    let _ = sys::setsid();
    // Three pipe ends a command; commands get limits of their own.
    let _ = sys::set_limit(sys::RLIMIT_NOFILE, 65536, 524_288);
    load_modules();
    let _ = sys::loopback_up();
    let _ = let_whoever_runs_go_on();
}

/// Has a process that wakes up wait for its turn, some milliseconds at most, instead of interrupting the one that runs.
/// A terminal or a pipe wakes somebody with each piece that is written to it, and turning to another address space and
/// back costs more than to write many pieces. Kernels from 6.6 on let nobody be interrupted before its turn is over, and
/// know of no such setting.
fn let_whoever_runs_go_on() -> Result<(), Errno> {
    const AT: &CStr = c"/sys/kernel/debug";
    sys::mount(c"debugfs", AT, NOSUID | NODEV | NOEXEC, c"")?;
    // How long it takes until everybody had a turn is more than who wakes up can be ahead of others.
    let set = read_file(c"/sys/kernel/debug/sched/latency_ns").and_then(|period| {
        sys::open(c"/sys/kernel/debug/sched/wakeup_granularity_ns", sys::O_WRONLY)?.write(&period)
    });
    // Programs find it as it always was.
    sys::files::unmount(AT)?;
    set.map(drop)
}

fn mount_if_absent(kind: &CStr, at: &CStr, flags: usize, options: &CStr) {
    match sys::mkdir(at, 0o755) {
        Ok(()) => {}
        Err(sys::EEXIST) if is_mount_point(at) => return,
        Err(_) => {}
    }
    if let Err(e) = sys::mount(kind, at, flags, options) {
        log(format_args!("cannot mount {}: errno {}", at.to_str().unwrap_or("?"), e.0));
    }
}

fn is_mount_point(at: &CStr) -> bool {
    let path = at.to_bytes();
    let parent = match path.iter().rposition(|b| *b == b'/') {
        None | Some(0) => c"/".into(),
        Some(n) => CString::new(&path[..n]).unwrap_or_default(),
    };
    sys::device_of(at).ok() != sys::device_of(&parent).ok()
}

/// The kernel starts PID 1 without standard streams when the root has no console device.
fn open_standard_streams() {
    loop {
        let fd = sys::open(c"/dev/console", sys::O_RDWR).or_else(|_| sys::open(c"/dev/null", sys::O_RDWR));
        match fd {
            Ok(fd) if fd.raw() < 3 => core::mem::forget(fd),
            _ => return,
        }
    }
}

fn load_modules() {
    let Ok(list) = read_file(c"/cc/modules") else { return };
    for path in list.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let Ok(path) = CString::new(path) else { continue };
        match sys::open(&path, sys::O_RDONLY).and_then(|file| sys::load_module(&file)) {
            // It is in the kernel now; what the file takes is RAM.
            Ok(()) | Err(sys::EEXIST) => drop(sys::files::unlink(&path)),
            Err(e) => log(format_args!("cannot load {}: errno {}", path.to_str().unwrap_or("?"), e.0)),
        }
    }
}

fn read_file(path: &CStr) -> Result<Vec<u8>, Errno> {
    let file = sys::open(path, sys::O_RDONLY)?;
    let mut bytes = Vec::new();
    while bytes.len() < MAX_FILE && file.read_onto(&mut bytes, 4096)? > 0 {}
    Ok(bytes)
}
