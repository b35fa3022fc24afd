//! System calls for processes that share descriptors, and for the sockets they serve.

use alloc::format;

use super::{Epoll, Errno, Fd, O_CLOEXEC, Result, SIGCHLD, SIGKILL, call3, call4, call6, nr, retry};

const EADDRINUSE: Errno = Errno(98);
const ESRCH: Errno = Errno(3);

const BIND: usize = 49;
const LISTEN: usize = 50;
const ACCEPT4: usize = 288;
const GETPPID: usize = 110;

const STREAM: usize = 1;
const BACKLOG: usize = 128;

/// Listens on a vsock port of this machine.
pub(crate) fn listen_vsock(port: u32) -> Result<Fd> {
    const AF_VSOCK: u16 = 40;
    const ANY: u32 = u32::MAX;
    // Family and padding, port, context, padding: a struct sockaddr_vm.
    let address = [u32::from(AF_VSOCK), port, ANY, 0];
    // SAFETY: the address is of this family and this long.
    unsafe { listen(AF_VSOCK, address.as_ptr() as usize, size_of_val(&address)) }
}

/// Listens on a Unix socket without a file, named after a process and a number.
pub(crate) fn listen_local(pid: i32, port: u32) -> Result<Fd> {
    const AF_UNIX: u16 = 1;
    #[repr(C)]
    struct Address {
        family: u16,
        path: [u8; 108],
    }
    let name = format!("\0cc-files-{pid}-{port}");
    let mut address = Address { family: AF_UNIX, path: [0; 108] };
    address.path.get_mut(..name.len()).ok_or(EADDRINUSE)?.copy_from_slice(name.as_bytes());
    // SAFETY: the address is of this family; a name without a file ends with the address.
    unsafe { listen(AF_UNIX, &raw const address as usize, 2 + name.len()) }
}

/// # Safety
/// `address` is that of `len` bytes of a socket address.
unsafe fn listen(family: u16, address: usize, len: usize) -> Result<Fd> {
    // SAFETY: no pointers.
    let fd = unsafe { call3(nr::SOCKET, family.into(), STREAM | O_CLOEXEC as usize, 0)? };
    let fd = Fd(fd as i32);
    // SAFETY: on the caller.
    unsafe { call3(BIND, fd.0 as usize, address, len)? };
    // SAFETY: no pointers.
    unsafe { call3(LISTEN, fd.0 as usize, BACKLOG, 0)? };
    Ok(fd)
}

/// Takes the next connection. One from within this machine is refused with `EPERM`.
pub(crate) fn accept(listener: &Fd) -> Result<Fd> {
    const AF_VSOCK: u32 = 40;
    const HOST: u32 = 2;
    let mut address = [0u32; 32];
    let mut len = size_of_val(&address) as u32;
    let at = [address.as_mut_ptr() as usize, &raw mut len as usize];
    // SAFETY: the kernel writes at most `len` bytes of the address, and how many.
    let fd = retry(|| unsafe { call4(ACCEPT4, listener.0 as usize, at[0], at[1], O_CLOEXEC as usize) })?;
    let fd = Fd(fd as i32);
    if address[0] & 0xffff == AF_VSOCK && address[2] != HOST {
        return Err(super::EPERM);
    }
    Ok(fd)
}

/// Starts a copy of this process; 0 is said in the copy. With `share` the two have one table of descriptors.
pub(crate) fn fork(share: bool) -> Result<i32> {
    const CLONE_FILES: usize = 0x400;
    let flags = SIGCHLD as usize | if share { CLONE_FILES } else { 0 };
    // SAFETY: the copy has its own memory, stack included, and goes on behind this call.
    unsafe { call6(nr::CLONE, [flags, 0, 0, 0, 0, 0]) }.map(|pid| pid as i32)
}

/// Has this process killed when its parent, `parent`, ends.
pub(crate) fn end_with(parent: i32) -> Result<()> {
    const PR_SET_PDEATHSIG: usize = 1;
    // SAFETY: no pointers.
    unsafe { call3(nr::PRCTL, PR_SET_PDEATHSIG, SIGKILL as usize, 0)? };
    // It may have ended before.
    // SAFETY: no arguments.
    let now = unsafe { call3(GETPPID, 0, 0, 0)? } as i32;
    if now == parent { Ok(()) } else { Err(ESRCH) }
}

/// Closes every descriptor from `first` up.
pub(crate) fn close_from(first: i32) -> Result<()> {
    // SAFETY: no pointers. The caller owns none of them any more.
    unsafe { call3(nr::CLOSE_RANGE, first as usize, u32::MAX as usize, 0) }.map(drop)
}

/// The soft and the hard limit of a resource.
pub(crate) fn limit(resource: u8) -> Result<[u64; 2]> {
    let mut old = [0u64; 2];
    // SAFETY: the kernel writes two words and reads none.
    unsafe { call4(nr::PRLIMIT64, 0, resource.into(), 0, old.as_mut_ptr() as usize)? };
    Ok(old)
}

impl Epoll {
    /// The same with a descriptor not below `least`.
    pub(crate) fn move_up(self, least: i32) -> Result<Self> {
        super::paths::duplicate_from(self.0.0, least).map(Epoll)
    }
}
