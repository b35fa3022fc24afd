//! The x86-64 Linux system calls the agent makes, as thin as they go: results are the value or the
//! errno. Nothing here allocates, so all of it may be used between `vfork` and `exec`.

pub(crate) mod files;
pub(crate) mod net;
pub(crate) mod paths;
pub(crate) mod workers;

use alloc::vec::Vec;
use core::arch::asm;
use core::ffi::CStr;

/// A positive errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

pub(crate) type Result<T> = core::result::Result<T, Errno>;

pub(crate) const EPERM: Errno = Errno(1);
pub(crate) const ENOENT: Errno = Errno(2);
pub(crate) const EINTR: Errno = Errno(4);
pub(crate) const EAGAIN: Errno = Errno(11);
pub(crate) const EACCES: Errno = Errno(13);
pub(crate) const EEXIST: Errno = Errno(17);
pub(crate) const ENOTDIR: Errno = Errno(20);
pub(crate) const EINVAL: Errno = Errno(22);
pub(crate) const ESHUTDOWN: Errno = Errno(108);
pub(crate) const EBUSY: Errno = Errno(16);
pub(crate) const EALREADY: Errno = Errno(114);
pub(crate) const ERANGE: Errno = Errno(34);
const EFBIG: Errno = Errno(27);
pub(crate) const ENAMETOOLONG: Errno = Errno(36);
pub(crate) const EINPROGRESS: Errno = Errno(115);
pub(crate) const ECHILD: Errno = Errno(10);

pub(crate) const O_RDONLY: i32 = 0;
pub(crate) const O_WRONLY: i32 = 1;
pub(crate) const O_RDWR: i32 = 2;
pub(crate) const O_NOCTTY: i32 = 0o400;
pub(crate) const O_NONBLOCK: i32 = 0o4000;
pub(crate) const O_CLOEXEC: i32 = 0o2000000;

pub(crate) const SIGKILL: i32 = 9;
pub(crate) const SIGTERM: i32 = 15;
pub(crate) const SIGCHLD: i32 = 17;

pub(crate) const EPOLLIN: u32 = 1;
pub(crate) const EPOLLOUT: u32 = 4;
pub(crate) const EPOLLERR: u32 = 8;
pub(crate) const EPOLLHUP: u32 = 0x10;

mod nr {
    pub(super) const READ: usize = 0;
    pub(super) const WRITE: usize = 1;
    pub(super) const CLOSE: usize = 3;
    pub(super) const POLL: usize = 7;
    pub(super) const FSTAT: usize = 5;
    pub(super) const MMAP: usize = 9;
    pub(super) const MUNMAP: usize = 11;
    pub(super) const RT_SIGACTION: usize = 13;
    pub(super) const RT_SIGPROCMASK: usize = 14;
    pub(super) const IOCTL: usize = 16;
    pub(super) const ACCESS: usize = 21;
    pub(super) const MREMAP: usize = 25;
    pub(super) const GETPID: usize = 39;
    pub(super) const SOCKET: usize = 41;
    pub(super) const CONNECT: usize = 42;
    pub(super) const SENDTO: usize = 44;
    pub(super) const RECVFROM: usize = 45;
    pub(super) const SHUTDOWN: usize = 48;
    pub(super) const BIND: usize = 49;
    pub(super) const LISTEN: usize = 50;
    pub(super) const GETSOCKNAME: usize = 51;
    pub(super) const GETPEERNAME: usize = 52;
    pub(super) const SETSOCKOPT: usize = 54;
    pub(super) const GETSOCKOPT: usize = 55;
    pub(super) const CLONE: usize = 56;
    pub(super) const EXECVE: usize = 59;
    pub(super) const WAIT4: usize = 61;
    pub(super) const KILL: usize = 62;
    pub(super) const FCNTL: usize = 72;
    pub(super) const CHDIR: usize = 80;
    pub(super) const MKDIR: usize = 83;
    pub(super) const UNLINK: usize = 87;
    pub(super) const SYMLINK: usize = 88;
    pub(super) const CHMOD: usize = 90;
    pub(super) const FCHOWN: usize = 93;
    pub(super) const UMASK: usize = 95;
    pub(super) const GETUID: usize = 102;
    pub(super) const SETUID: usize = 105;
    pub(super) const SETGID: usize = 106;
    pub(super) const SETPGID: usize = 109;
    pub(super) const SETSID: usize = 112;
    pub(super) const SETGROUPS: usize = 116;
    pub(super) const GETPGID: usize = 121;
    pub(super) const SCHED_SETSCHEDULER: usize = 144;
    pub(super) const PRCTL: usize = 157;
    pub(super) const CHROOT: usize = 161;
    pub(super) const SYNC: usize = 162;
    pub(super) const MOUNT: usize = 165;
    pub(super) const UMOUNT2: usize = 166;
    pub(super) const REBOOT: usize = 169;
    pub(super) const SETHOSTNAME: usize = 170;
    pub(super) const GETDENTS64: usize = 217;
    pub(super) const CLOCK_SETTIME: usize = 227;
    pub(super) const CLOCK_GETTIME: usize = 228;
    pub(super) const EXIT_GROUP: usize = 231;
    pub(super) const EPOLL_CTL: usize = 233;
    pub(super) const OPENAT: usize = 257;
    pub(super) const NEWFSTATAT: usize = 262;
    pub(super) const EPOLL_PWAIT: usize = 281;
    pub(super) const ACCEPT4: usize = 288;
    pub(super) const SIGNALFD4: usize = 289;
    pub(super) const EPOLL_CREATE1: usize = 291;
    pub(super) const DUP3: usize = 292;
    pub(super) const PIPE2: usize = 293;
    pub(super) const PRLIMIT64: usize = 302;
    pub(super) const FINIT_MODULE: usize = 313;
    pub(super) const GETRANDOM: usize = 318;
    pub(super) const CLOSE_RANGE: usize = 436;
}

/// One system call.
///
/// # Safety
/// The arguments must be what system call `n` wants, pointers valid for what it reads and writes.
#[inline]
unsafe fn call6(n: usize, a: [usize; 6]) -> Result<usize> {
    let ret: isize;
    // SAFETY: the kernel preserves all registers but rax, rcx and r11; the rest is on the caller.
    unsafe {
        asm!("syscall", inlateout("rax") n as isize => ret, in("rdi") a[0], in("rsi") a[1],
             in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    if (-4095..0).contains(&ret) { Err(Errno(-ret as i32)) } else { Ok(ret as usize) }
}

/// # Safety
/// As [`call6`].
unsafe fn call3(n: usize, a: usize, b: usize, c: usize) -> Result<usize> {
    // SAFETY: on the caller.
    unsafe { call6(n, [a, b, c, 0, 0, 0]) }
}

/// # Safety
/// As [`call6`].
unsafe fn call4(n: usize, a: usize, b: usize, c: usize, d: usize) -> Result<usize> {
    // SAFETY: on the caller.
    unsafe { call6(n, [a, b, c, d, 0, 0]) }
}

/// An owned file descriptor, closed on drop.
#[derive(Debug)]
pub(crate) struct Fd(i32);

impl Fd {
    /// Takes over a descriptor that nothing else owns.
    pub(crate) fn adopt(raw: i32) -> Self {
        Fd(raw)
    }

    pub(crate) fn raw(&self) -> i32 {
        self.0
    }

    pub(crate) fn read(&self, buf: &mut [u8]) -> Result<usize> {
        // SAFETY: the kernel writes at most buf.len() bytes into buf.
        retry(|| unsafe { call3(nr::READ, self.0 as usize, buf.as_mut_ptr() as usize, buf.len()) })
    }

    /// Reads at most `max` bytes onto the end of `buf`.
    pub(crate) fn read_onto(&self, buf: &mut Vec<u8>, max: usize) -> Result<usize> {
        buf.reserve(max);
        let at = buf.spare_capacity_mut().as_mut_ptr() as usize;
        // SAFETY: the kernel writes at most max bytes into the reserved space.
        let n = retry(|| unsafe { call3(nr::READ, self.0 as usize, at, max) })?;
        // SAFETY: the kernel has initialised n <= max bytes behind the old end.
        unsafe { buf.set_len(buf.len() + n.min(max)) };
        Ok(n)
    }

    pub(crate) fn write(&self, buf: &[u8]) -> Result<usize> {
        // SAFETY: the kernel reads at most buf.len() bytes of buf.
        retry(|| unsafe { call3(nr::WRITE, self.0 as usize, buf.as_ptr() as usize, buf.len()) })
    }

    pub(crate) fn set_nonblocking(&self) -> Result<()> {
        const F_SETFL: usize = 4;
        // SAFETY: no pointers.
        unsafe { call3(nr::FCNTL, self.0 as usize, F_SETFL, O_NONBLOCK as usize) }.map(drop)
    }

    /// Bytes waiting in a pipe.
    pub(crate) fn readable_bytes(&self) -> Result<u32> {
        const FIONREAD: usize = 0x541b;
        let mut n = 0i32;
        // SAFETY: FIONREAD writes one int.
        unsafe { call3(nr::IOCTL, self.0 as usize, FIONREAD, &raw mut n as usize)? };
        Ok(n.max(0) as u32)
    }

    /// Lets a pipe hold this much before its writer has to wait.
    pub(crate) fn grow_pipe(&self, bytes: usize) -> Result<()> {
        const F_SETPIPE_SZ: usize = 1031;
        // SAFETY: no pointers.
        unsafe { call3(nr::FCNTL, self.0 as usize, F_SETPIPE_SZ, bytes) }.map(drop)
    }

    /// Whether a pipe's other end is gone, without waiting.
    pub(crate) fn other_end_closed(&self) -> bool {
        #[repr(C)]
        struct PollFd {
            fd: i32,
            events: i16,
            revents: i16,
        }
        let mut p = PollFd { fd: self.0, events: 0, revents: 0 };
        // SAFETY: poll reads and writes the one entry.
        let n = unsafe { call3(nr::POLL, &raw mut p as usize, 1, 0) };
        n.is_ok() && p.revents as u32 & (EPOLLERR | EPOLLHUP) != 0
    }

    /// Another descriptor for the same file, above the standard three and closed on exec.
    pub(crate) fn duplicate(&self) -> Result<Fd> {
        const F_DUPFD_CLOEXEC: usize = 1030;
        // SAFETY: no pointers.
        unsafe { call3(nr::FCNTL, self.0 as usize, F_DUPFD_CLOEXEC, 3) }.map(|fd| Fd(fd as i32))
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours and not used afterwards.
        let _ = unsafe { call3(nr::CLOSE, self.0 as usize, 0, 0) };
    }
}

fn retry(mut f: impl FnMut() -> Result<usize>) -> Result<usize> {
    loop {
        match f() {
            Err(EINTR) => {}
            other => return other,
        }
    }
}

pub(crate) fn exit(code: i32) -> ! {
    loop {
        // SAFETY: ends the process.
        let _ = unsafe { call3(nr::EXIT_GROUP, code as usize, 0, 0) };
    }
}

/// Anonymous zeroed memory of whole pages.
pub(crate) fn map(len: usize) -> Result<*mut u8> {
    const READ_WRITE: usize = 3;
    const PRIVATE_ANONYMOUS: usize = 0x22;
    // SAFETY: a fresh mapping at a place of the kernel's choice touches nothing that exists.
    unsafe { call6(nr::MMAP, [0, len, READ_WRITE, PRIVATE_ANONYMOUS, usize::MAX, 0]) }.map(|p| p as *mut u8)
}

/// # Safety
/// `ptr` and `len` are those of a live mapping of [`map`] that nothing uses any more.
pub(crate) unsafe fn unmap(ptr: *mut u8, len: usize) {
    // SAFETY: on the caller.
    let _ = unsafe { call3(nr::MUNMAP, ptr as usize, len, 0) };
}

/// # Safety
/// As [`unmap`]; the mapping may move and nothing may use the old place.
pub(crate) unsafe fn remap(ptr: *mut u8, old: usize, new: usize) -> Result<*mut u8> {
    const MAY_MOVE: usize = 1;
    // SAFETY: on the caller.
    unsafe { call4(nr::MREMAP, ptr as usize, old, new, MAY_MOVE) }.map(|p| p as *mut u8)
}

pub(crate) fn open(path: &CStr, flags: i32) -> Result<Fd> {
    const AT_FDCWD: isize = -100;
    // SAFETY: the path ends with a NUL.
    unsafe { call4(nr::OPENAT, AT_FDCWD as usize, path.as_ptr() as usize, (flags | O_CLOEXEC) as usize, 0) }
        .map(|fd| Fd(fd as i32))
}

/// All of a regular file of at most `max` bytes. Whatever else has this name, a pipe or a device, is
/// not waited for: it is `EINVAL`.
pub(crate) fn read_regular(path: &CStr, max: usize) -> Result<Vec<u8>> {
    let file = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY)?;
    let mut stat = [0u64; 18];
    // SAFETY: struct stat is 144 bytes on x86-64.
    unsafe { call3(nr::FSTAT, file.0 as usize, stat.as_mut_ptr() as usize, 0)? };
    // The mode follows device, inode and number of links.
    if stat[3] & 0o170_000 != 0o100_000 {
        return Err(EINVAL);
    }
    let mut bytes = Vec::new();
    while file.read_onto(&mut bytes, 16 * 1024)? > 0 {
        if bytes.len() > max {
            return Err(EFBIG);
        }
    }
    Ok(bytes)
}

/// Gives a file to a user; its group stays.
pub(crate) fn chown(fd: &Fd, uid: u32) -> Result<()> {
    // SAFETY: no pointers.
    unsafe { call3(nr::FCHOWN, fd.0 as usize, uid as usize, u32::MAX as usize) }.map(drop)
}

/// What a terminal does with what passes it: the head of the kernel's `struct termios`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Attributes {
    pub(crate) input: u32,
    output: u32,
    hardware: u32,
    pub(crate) local: u32,
    discipline: u8,
    pub(crate) control: [u8; 19],
}

/// The other end of a pseudo-terminal, of which `master` is ours.
pub(crate) fn open_terminal_peer(master: &Fd) -> Result<Fd> {
    const TIOCSPTLCK: usize = 0x4004_5431;
    const TIOCGPTPEER: usize = 0x5441;
    let lock = 0i32;
    // SAFETY: the kernel reads one int.
    unsafe { call3(nr::IOCTL, master.0 as usize, TIOCSPTLCK, &raw const lock as usize)? };
    let flags = O_RDWR | O_NOCTTY | O_CLOEXEC;
    // SAFETY: no pointers.
    unsafe { call3(nr::IOCTL, master.0 as usize, TIOCGPTPEER, flags as usize) }.map(|fd| Fd(fd as i32))
}

/// The attributes of a terminal, asked at either end.
pub(crate) fn terminal_attributes(fd: &Fd) -> Result<Attributes> {
    const TCGETS: usize = 0x5401;
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes its struct termios, the 36 bytes of ours.
    unsafe { call3(nr::IOCTL, fd.0 as usize, TCGETS, &raw mut attributes as usize)? };
    Ok(attributes)
}

pub(crate) fn set_terminal_attributes(fd: &Fd, attributes: &Attributes) -> Result<()> {
    const TCSETS: usize = 0x5402;
    // SAFETY: the kernel reads its struct termios, the 36 bytes of ours.
    unsafe { call3(nr::IOCTL, fd.0 as usize, TCSETS, &raw const *attributes as usize) }.map(drop)
}

pub(crate) fn set_terminal_size(fd: &Fd, rows: u16, cols: u16) -> Result<()> {
    const TIOCSWINSZ: usize = 0x5414;
    // Pixels, which nobody knows, follow.
    let size = [rows, cols, 0, 0];
    // SAFETY: the kernel reads four u16.
    unsafe { call3(nr::IOCTL, fd.0 as usize, TIOCSWINSZ, size.as_ptr() as usize) }.map(drop)
}

/// The foreground process group of the terminal whose master this is.
pub(crate) fn terminal_foreground(master: &Fd) -> Result<i32> {
    const TIOCGPGRP: usize = 0x540f;
    let mut group = 0i32;
    // SAFETY: the kernel writes one int.
    unsafe { call3(nr::IOCTL, master.0 as usize, TIOCGPGRP, &raw mut group as usize)? };
    Ok(group)
}

/// Makes a terminal that of our session, which has none.
pub(crate) fn control_terminal(slave: i32) -> Result<()> {
    const TIOCSCTTY: usize = 0x540e;
    // SAFETY: no pointers.
    unsafe { call3(nr::IOCTL, slave as usize, TIOCSCTTY, 0) }.map(drop)
}

/// Has every descriptor from `first` up closed on exec. Kernels before 5.11 cannot.
pub(crate) fn close_on_exec_from(first: i32) -> Result<()> {
    const CLOSE_RANGE_CLOEXEC: usize = 4;
    // SAFETY: no pointers.
    unsafe { call3(nr::CLOSE_RANGE, first as usize, u32::MAX as usize, CLOSE_RANGE_CLOEXEC) }.map(drop)
}

/// A pipe: (read end, write end), both closed on exec.
pub(crate) fn pipe() -> Result<(Fd, Fd)> {
    let mut fds = [0i32; 2];
    // SAFETY: pipe2 writes two ints.
    unsafe { call3(nr::PIPE2, fds.as_mut_ptr() as usize, O_CLOEXEC as usize, 0)? };
    Ok((Fd(fds[0]), Fd(fds[1])))
}

pub(crate) fn dup_to(from: i32, to: i32) -> Result<()> {
    // SAFETY: no pointers.
    unsafe { call3(nr::DUP3, from as usize, to as usize, 0) }.map(drop)
}

pub(crate) fn getpid() -> i32 {
    // SAFETY: no arguments.
    unsafe { call3(nr::GETPID, 0, 0, 0) }.map_or(0, |p| p as i32)
}

pub(crate) fn getpgid(pid: i32) -> Result<i32> {
    // SAFETY: no pointers.
    unsafe { call3(nr::GETPGID, pid as usize, 0, 0) }.map(|p| p as i32)
}

pub(crate) fn setpgid(pid: i32, group: i32) -> Result<()> {
    // SAFETY: no pointers.
    unsafe { call3(nr::SETPGID, pid as usize, group as usize, 0) }.map(drop)
}

pub(crate) fn setsid() -> Result<()> {
    // SAFETY: no arguments.
    unsafe { call3(nr::SETSID, 0, 0, 0) }.map(drop)
}

pub(crate) fn setuid(uid: u32) -> Result<()> {
    // SAFETY: no pointers.
    unsafe { call3(nr::SETUID, uid as usize, 0, 0) }.map(drop)
}

pub(crate) fn setgid(gid: u32) -> Result<()> {
    // SAFETY: no pointers.
    unsafe { call3(nr::SETGID, gid as usize, 0, 0) }.map(drop)
}

pub(crate) fn setgroups(groups: &[u32]) -> Result<()> {
    // SAFETY: the kernel reads groups.len() ids.
    unsafe { call3(nr::SETGROUPS, groups.len(), groups.as_ptr() as usize, 0) }.map(drop)
}

pub(crate) fn is_root() -> bool {
    // SAFETY: no arguments.
    let uid = unsafe { call3(nr::GETUID, 0, 0, 0) };
    uid == Ok(0)
}

pub(crate) fn umask(mask: u32) {
    // SAFETY: no pointers.
    let _ = unsafe { call3(nr::UMASK, mask as usize, 0, 0) };
}

pub(crate) fn chdir(path: &CStr) -> Result<()> {
    // SAFETY: the path ends with a NUL.
    unsafe { call3(nr::CHDIR, path.as_ptr() as usize, 0, 0) }.map(drop)
}

pub(crate) fn mkdir(path: &CStr, mode: u32) -> Result<()> {
    // SAFETY: the path ends with a NUL.
    unsafe { call3(nr::MKDIR, path.as_ptr() as usize, mode as usize, 0) }.map(drop)
}

pub(crate) fn symlink(target: &CStr, path: &CStr) -> Result<()> {
    // SAFETY: both paths end with a NUL.
    unsafe { call3(nr::SYMLINK, target.as_ptr() as usize, path.as_ptr() as usize, 0) }.map(drop)
}

/// The number of the device that holds `path`.
pub(crate) fn device_of(path: &CStr) -> Result<u64> {
    const AT_FDCWD: isize = -100;
    let mut stat = [0u64; 18];
    // SAFETY: struct stat is 144 bytes on x86-64.
    unsafe {
        call4(nr::NEWFSTATAT, AT_FDCWD as usize, path.as_ptr() as usize, stat.as_mut_ptr() as usize, 0)?
    };
    Ok(stat[0])
}

pub(crate) fn mount(kind: &CStr, at: &CStr, flags: usize, options: &CStr) -> Result<()> {
    let (kind, at, options) = (kind.as_ptr() as usize, at.as_ptr() as usize, options.as_ptr() as usize);
    // SAFETY: all strings end with a NUL.
    unsafe { call6(nr::MOUNT, [kind, at, kind, flags, options, 0]) }.map(drop)
}

/// Keeps what is mounted from now on in this process's own view of mounts.
pub(crate) fn make_mounts_private() -> Result<()> {
    const MS_REC: usize = 0x4000;
    const MS_PRIVATE: usize = 0x4_0000;
    // SAFETY: all strings end with a NUL.
    unsafe { call6(nr::MOUNT, [0, c"/".as_ptr() as usize, 0, MS_REC | MS_PRIVATE, 0, 0]) }.map(drop)
}

pub(crate) fn load_module(file: &Fd) -> Result<()> {
    // SAFETY: the parameters are an empty string.
    unsafe { call3(nr::FINIT_MODULE, file.0 as usize, c"".as_ptr() as usize, 0) }.map(drop)
}

pub(crate) fn sethostname(name: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads name.len() bytes.
    unsafe { call3(nr::SETHOSTNAME, name.as_ptr() as usize, name.len(), 0) }.map(drop)
}

pub(crate) fn sync() {
    // SAFETY: no arguments.
    let _ = unsafe { call3(nr::SYNC, 0, 0, 0) };
}

pub(crate) fn reboot(command: u32) {
    const MAGIC1: usize = 0xfee1_dead;
    const MAGIC2: usize = 0x2812_1969;
    // SAFETY: no pointers for the commands in use.
    let _ = unsafe { call4(nr::REBOOT, MAGIC1, MAGIC2, command as usize, 0) };
}

/// Sends `signal` to process `pid`, to group `-pid`, or with -1 to everything.
pub(crate) fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: no pointers.
    unsafe { call3(nr::KILL, pid as isize as usize, signal as usize, 0) }.map(drop)
}

/// Makes orphans below this process its children.
pub(crate) fn become_subreaper() -> Result<()> {
    const PR_SET_CHILD_SUBREAPER: usize = 36;
    // SAFETY: no pointers.
    unsafe { call3(nr::PRCTL, PR_SET_CHILD_SUBREAPER, 1, 0) }.map(drop)
}

/// Has this process, but none that it starts, not interrupt others when it wakes up.
pub(crate) fn schedule_politely() -> Result<()> {
    const SCHED_BATCH: usize = 3;
    const SCHED_RESET_ON_FORK: usize = 0x4000_0000;
    let priority = 0i32;
    let policy = SCHED_BATCH | SCHED_RESET_ON_FORK;
    // SAFETY: the kernel reads one int.
    unsafe { call3(nr::SCHED_SETSCHEDULER, 0, policy, &raw const priority as usize) }.map(drop)
}

pub(crate) const RLIMIT_NOFILE: u8 = 7;

/// Sets a soft and a hard limit of ours.
pub(crate) fn set_limit(resource: u8, soft: u64, hard: u64) -> Result<()> {
    let limit = [soft, hard];
    // SAFETY: the kernel reads two words and writes none.
    unsafe { call4(nr::PRLIMIT64, 0, resource.into(), limit.as_ptr() as usize, 0) }.map(drop)
}

/// Blocks exactly the signals of `mask`, bit n-1 for signal n.
pub(crate) fn set_signal_mask(mask: u64) {
    const SIG_SETMASK: usize = 2;
    // SAFETY: the kernel reads eight bytes.
    let _ = unsafe { call4(nr::RT_SIGPROCMASK, SIG_SETMASK, &raw const mask as usize, 0, 8) };
}

/// Gives `signal` its default action, if it can have another.
pub(crate) fn default_action(signal: i32) {
    let action = [0usize; 4];
    // SAFETY: the kernel reads a struct sigaction of four words; zeros are SIG_DFL.
    let _ = unsafe { call4(nr::RT_SIGACTION, signal as usize, action.as_ptr() as usize, 0, 8) };
}

/// A descriptor that is readable while a signal of `mask` is pending.
pub(crate) fn signal_fd(mask: u64) -> Result<Fd> {
    let flags = (O_CLOEXEC | O_NONBLOCK) as usize;
    // SAFETY: the kernel reads eight bytes.
    unsafe { call4(nr::SIGNALFD4, usize::MAX, &raw const mask as usize, 8, flags) }.map(|fd| Fd(fd as i32))
}

/// Resources a child used, the head of the kernel's `struct rusage`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Usage {
    pub(crate) user: [i64; 2],
    pub(crate) system: [i64; 2],
    pub(crate) max_rss_kib: i64,
    rest: [i64; 13],
}

/// Reaps one ended child: (pid, status, usage). `None` when none has ended, ECHILD when there is none.
pub(crate) fn reap() -> Result<Option<(i32, i32, Usage)>> {
    const WNOHANG: usize = 1;
    let mut status = 0i32;
    let mut usage = Usage::default();
    // SAFETY: the kernel writes an int and a struct rusage, which Usage is as large as.
    let pid = retry(|| unsafe {
        call4(nr::WAIT4, usize::MAX, &raw mut status as usize, WNOHANG, &raw mut usage as usize)
    })?;
    Ok(if pid == 0 { None } else { Some((pid as i32, status, usage)) })
}

/// Nanoseconds of the monotonic clock.
pub(crate) fn now() -> u64 {
    const CLOCK_MONOTONIC: usize = 1;
    let mut time = [0u64; 2];
    // SAFETY: the kernel writes a timespec.
    let _ = unsafe { call3(nr::CLOCK_GETTIME, CLOCK_MONOTONIC, time.as_mut_ptr() as usize, 0) };
    time[0] * 1_000_000_000 + time[1]
}

/// Sets the wall clock, in nanoseconds since the Unix epoch.
pub(crate) fn set_wall_clock(ns: u64) -> Result<()> {
    let time = [ns / 1_000_000_000, ns % 1_000_000_000];
    // SAFETY: the kernel reads a timespec.
    unsafe { call3(nr::CLOCK_SETTIME, 0, time.as_ptr() as usize, 0) }.map(drop)
}

#[repr(C, packed)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Event {
    pub(crate) events: u32,
    pub(crate) token: u64,
}

pub(crate) struct Epoll(Fd);

impl Epoll {
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: no pointers.
        unsafe { call3(nr::EPOLL_CREATE1, O_CLOEXEC as usize, 0, 0) }.map(|fd| Epoll(Fd(fd as i32)))
    }

    fn control(&self, op: usize, fd: &Fd, events: u32, token: u64) -> Result<()> {
        let event = Event { events, token };
        // SAFETY: the kernel reads one event.
        unsafe { call4(nr::EPOLL_CTL, self.0.0 as usize, op, fd.0 as usize, &raw const event as usize) }
            .map(drop)
    }

    /// Goes from being told of `old` events of `fd` to `new`; 0 is not to be watched at all.
    pub(crate) fn watch(&self, fd: &Fd, old: u32, new: u32, token: u64) -> Result<()> {
        match (old, new) {
            (a, b) if a == b => Ok(()),
            (0, _) => self.control(1, fd, new, token),
            (_, 0) => self.control(2, fd, 0, 0),
            _ => self.control(3, fd, new, token),
        }
    }

    /// Waits for events; a negative timeout, in milliseconds, is for ever.
    pub(crate) fn wait<'e>(&self, events: &'e mut [Event], timeout_ms: i32) -> &'e [Event] {
        let (at, max, timeout) = (events.as_mut_ptr() as usize, events.len(), timeout_ms as isize as usize);
        // SAFETY: the kernel writes at most events.len() events; no signal mask is given.
        let n = unsafe { call6(nr::EPOLL_PWAIT, [self.0.0 as usize, at, max, timeout, 0, 8]) };
        events.get(..n.unwrap_or(0)).unwrap_or(&[])
    }
}

/// Begins to connect to a vsock port of the host; the socket is writable when that has come to an end.
pub(crate) fn connect_vsock(port: u32) -> Result<Fd> {
    const AF_VSOCK: u16 = 40;
    const HOST: u32 = 2;
    #[repr(C)]
    struct Address {
        family: u16,
        reserved: u16,
        port: u32,
        cid: u32,
        zero: [u8; 4],
    }
    let address = Address { family: AF_VSOCK, reserved: 0, port, cid: HOST, zero: [0; 4] };
    // SAFETY: the address is of this family and this long.
    unsafe { connect(AF_VSOCK, &raw const address as usize, size_of::<Address>()) }
}

/// As [`connect_vsock`], to a Unix socket.
pub(crate) fn connect_unix(path: &CStr) -> Result<Fd> {
    const AF_UNIX: u16 = 1;
    #[repr(C)]
    struct Address {
        family: u16,
        path: [u8; 108],
    }
    let mut address = Address { family: AF_UNIX, path: [0; 108] };
    let bytes = path.to_bytes();
    address.path.get_mut(..bytes.len()).ok_or(EINVAL)?.copy_from_slice(bytes);
    // SAFETY: the address is of this family and this long.
    unsafe { connect(AF_UNIX, &raw const address as usize, size_of::<Address>()) }
}

/// # Safety
/// `address` is that of `len` bytes of a socket address.
unsafe fn connect(family: u16, address: usize, len: usize) -> Result<Fd> {
    const STREAM: i32 = 1;
    let kind = (STREAM | O_CLOEXEC | O_NONBLOCK) as usize;
    // SAFETY: no pointers.
    let fd = unsafe { call3(nr::SOCKET, family.into(), kind, 0)? };
    let fd = Fd(fd as i32);
    // SAFETY: on the caller.
    match unsafe { call3(nr::CONNECT, fd.0 as usize, address, len) } {
        Ok(_) | Err(EINPROGRESS) => Ok(fd),
        Err(e) => Err(e),
    }
}

/// The error a socket holds.
pub(crate) fn socket_error(fd: &Fd) -> Result<()> {
    const SOL_SOCKET: usize = 1;
    const SO_ERROR: usize = 4;
    let (mut error, mut len) = (0i32, 4u32);
    let at = [&raw mut error as usize, &raw mut len as usize];
    // SAFETY: the kernel writes an int and its length.
    unsafe { call6(nr::GETSOCKOPT, [fd.0 as usize, SOL_SOCKET, SO_ERROR, at[0], at[1], 0])? };
    if error == 0 { Ok(()) } else { Err(Errno(error)) }
}

/// Switches the loopback interface on.
pub(crate) fn loopback_up() -> Result<()> {
    const AF_INET: usize = 2;
    const DATAGRAM: usize = 2;
    const SIOCSIFFLAGS: usize = 0x8914;
    const IFF_UP: u16 = 1;
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }
    // SAFETY: no pointers.
    let fd = unsafe { call3(nr::SOCKET, AF_INET, DATAGRAM | O_CLOEXEC as usize, 0)? };
    let fd = Fd(fd as i32);
    let mut request = Request { name: [0; 16], flags: IFF_UP, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: the kernel reads and writes one struct ifreq, 40 bytes.
    unsafe { call3(nr::IOCTL, fd.0 as usize, SIOCSIFFLAGS, &raw mut request as usize) }.map(drop)
}

/// Mixes `bytes` into the kernel's random generator, counts them as entropy and reseeds it.
pub(crate) fn reseed(bytes: &[u8]) -> Result<()> {
    const RNDADDENTROPY: usize = 0x4008_5203;
    const RNDRESEEDCRNG: usize = 0x5207;
    #[repr(C)]
    struct Pool {
        bits: i32,
        size: i32,
        bytes: [u8; 256],
    }
    let random = open(c"/dev/urandom", O_WRONLY)?;
    for chunk in bytes.chunks(256) {
        let mut pool = Pool { bits: chunk.len() as i32 * 8, size: chunk.len() as i32, bytes: [0; 256] };
        pool.bytes[..chunk.len()].copy_from_slice(chunk);
        // SAFETY: the kernel reads two ints and `size` bytes, which are there.
        unsafe { call3(nr::IOCTL, random.0 as usize, RNDADDENTROPY, &raw const pool as usize)? };
    }
    // SAFETY: no pointers.
    unsafe { call3(nr::IOCTL, random.0 as usize, RNDRESEEDCRNG, 0) }.map(drop)
}

/// Whether nothing has this name: only then is there no use in executing it.
pub(crate) fn is_missing(path: &CStr) -> bool {
    const F_OK: usize = 0;
    // SAFETY: a NUL-terminated string, which the kernel only reads.
    let result = unsafe { call3(nr::ACCESS, path.as_ptr() as usize, F_OK, 0) };
    matches!(result, Err(ENOENT | ENOTDIR))
}

/// Replaces the program. Returns only on failure.
///
/// # Safety
/// `argv` and `env` point to lists of NUL-terminated strings that end with a null pointer.
pub(crate) unsafe fn exec(path: &CStr, argv: *const *const i8, env: *const *const i8) -> Errno {
    // SAFETY: on the caller.
    match unsafe { call3(nr::EXECVE, path.as_ptr() as usize, argv as usize, env as usize) } {
        Ok(_) => EINVAL,
        Err(e) => e,
    }
}

/// `vfork` with a stack of its own: runs `child(arg)` in a new process that shares our memory, while
/// we stand still until it has called `exec` or `exit`. Returns its pid.
///
/// # Safety
/// `stack_top` is the 16-aligned end of memory that nothing else uses. `child` must not return nor
/// unwind, and must leave our memory as we can go on with: no allocation, nothing half-done.
pub(crate) unsafe fn vfork_on(
    stack_top: *mut u8,
    own_processes: bool,
    child: extern "C" fn(*mut u8) -> !,
    arg: *mut u8,
) -> Result<i32> {
    const CLONE_VM: usize = 0x100;
    const CLONE_VFORK: usize = 0x4000;
    const CLONE_NEWNS: usize = 0x2_0000;
    const CLONE_NEWPID: usize = 0x2000_0000;
    let own = if own_processes { CLONE_NEWNS | CLONE_NEWPID } else { 0 };
    let flags = CLONE_VM | CLONE_VFORK | own | SIGCHLD as usize;
    let ret: isize;
    // SAFETY: the child starts behind `syscall` with the new stack and all other registers kept, and
    // goes straight into `child`; the parent comes back when that is done with our memory.
    unsafe {
        asm!("syscall",
             "test rax, rax",
             "jnz 2f",
             "xor ebp, ebp",
             "mov rdi, r12",
             "call r13",
             "ud2",
             "2:",
             inlateout("rax") nr::CLONE as isize => ret,
             in("rdi") flags, in("rsi") stack_top, in("rdx") 0, in("r10") 0, in("r8") 0,
             in("r12") arg, in("r13") child,
             lateout("rcx") _, lateout("r11") _);
    }
    if ret < 0 { Err(Errno(-ret as i32)) } else { Ok(ret as i32) }
}
