//! Standing still for a snapshot: every process but this one is stopped, and goes on when the host says so.
//!
//! In a clone nothing of the guest's may run before it has random numbers of its own and the right time. So processes
//! are stopped before the snapshot, which then holds them stopped. What was stopped before stays so.

use alloc::ffi::CString;
use alloc::format;
use alloc::vec::Vec;

use crate::sys::{self, Errno, O_RDONLY};

const SIGSTOP: i32 = 19;
const SIGCONT: i32 = 18;
/// A process can start others while it is looked for; after so many rounds it is one that does nothing else.
const ROUNDS: usize = 100;

/// The processes that were stopped here.
#[derive(Default)]
pub(crate) struct Frozen(Vec<i32>);

/// Stops all processes of the machine but this one.
pub(crate) fn freeze(frozen: &mut Frozen) -> Result<(), Errno> {
    for _ in 0..ROUNDS {
        let mut found = false;
        for pid in processes()? {
            // Kernel threads have no command line to speak of, and take no signals.
            if pid == 1 || frozen.0.contains(&pid) || !runs(pid) {
                continue;
            }
            if sys::kill(pid, SIGSTOP).is_ok() {
                frozen.0.push(pid);
                found = true;
            }
        }
        if !found {
            return Ok(());
        }
    }
    thaw(frozen);
    Err(sys::EAGAIN)
}

/// Lets them go on.
pub(crate) fn thaw(frozen: &mut Frozen) {
    for pid in frozen.0.drain(..) {
        let _ = sys::kill(pid, SIGCONT);
    }
}

fn processes() -> Result<Vec<i32>, Errno> {
    let dir = sys::open(c"/proc", O_RDONLY | sys::files::O_DIRECTORY)?;
    let mut pids = Vec::new();
    sys::files::each_name(&dir, |name| {
        if let Some(pid) = core::str::from_utf8(name).ok().and_then(|n| n.parse().ok()) {
            pids.push(pid);
        }
    })?;
    Ok(pids)
}

/// Whether the process is one of user space that is neither stopped nor ended.
fn runs(pid: i32) -> bool {
    let read = || -> Result<Vec<u8>, Errno> {
        let path = CString::new(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut bytes = Vec::new();
        sys::open(&path, O_RDONLY)?.read_onto(&mut bytes, 1024)?;
        Ok(bytes)
    };
    let Ok(stat) = read() else { return false };
    // "pid (name) state ppid pgrp session tty tpgid flags …", and the name may have anything in it.
    let Some(end) = stat.iter().rposition(|&b| b == b')') else { return false };
    let mut fields = stat.get(end + 2..).unwrap_or_default().split(|&b| b == b' ');
    let state = fields.next().unwrap_or_default();
    let flags = fields.nth(5).and_then(|f| core::str::from_utf8(f).ok()).and_then(|f| f.parse::<u64>().ok());
    const PF_KTHREAD: u64 = 0x0020_0000;
    !matches!(state, b"T" | b"t" | b"Z" | b"X") && flags.is_some_and(|f| f & PF_KTHREAD == 0)
}
