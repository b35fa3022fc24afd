//! Starting a process: pipes, then a child that borrows our memory until it has called `exec`, so that
//! nothing of the agent is copied.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::cell::{Cell, UnsafeCell};
use core::ffi::CStr;
use core::ptr;

use crate::protocol::{Mode, Obstacle, Spawn};
use crate::pty::Terminal;
use crate::sys::{self, Errno, Fd, Result};
use crate::users;

/// Where programs are looked up when the command's environment has no `PATH`.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process that has been started, and our ends of its pipes.
pub(crate) struct Started {
    pub(crate) pid: i32,
    /// Its process group.
    pub(crate) group: i32,
    /// When it was started.
    pub(crate) at: u64,
    /// With a terminal, our end of it: for input if the host has any, and always for output.
    pub(crate) pipes: [Option<Fd>; 3],
    pub(crate) terminal: Option<Terminal>,
}

/// Why a command has not been started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failure(pub(crate) Errno, pub(crate) Obstacle);

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Failure(errno, Obstacle::Program)
    }
}

/// Longest `/etc/passwd` or `/etc/group` that is read.
const MAX_DATABASE: usize = 8 * 1024 * 1024;

const STACK: usize = 64 * 1024;

#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; STACK]>);

// SAFETY: only the one child between vfork and exec uses it, while the only thread stands still.
unsafe impl Sync for Stack {}

static CHILD_STACK: Stack = Stack(UnsafeCell::new([0; STACK]));

/// All that the child needs, made before it exists: it must not allocate.
struct Plan<'a> {
    spawn: &'a Spawn<'a>,
    argv: Vec<*const i8>,
    env: Vec<*const i8>,
    stdio: [i32; 3],
    own_limits: bool,
    who: Who,
    failure: Cell<(i32, Obstacle)>,
}

/// Whom the command becomes, where it is not whom the agent is.
struct Who {
    uid: Option<u32>,
    gid: Option<u32>,
    groups: Option<Vec<u32>>,
    /// `HOME=` of the command's environment, if that is ours to say.
    home: Option<CString>,
}

impl Who {
    fn of(spawn: &Spawn<'_>) -> core::result::Result<Self, Failure> {
        let mut who = Who { uid: spawn.uid, gid: spawn.gid, groups: spawn.groups.clone(), home: None };
        let Some(user) = spawn.user else { return Ok(who) };
        let read = |path| match sys::read_regular(path, MAX_DATABASE) {
            Err(sys::ENOENT | sys::ENOTDIR) => Ok(Vec::new()),
            other => other,
        };
        let passwd = read(c"/etc/passwd").map_err(|e| Failure(e, Obstacle::User))?;
        let group = read(c"/etc/group").map_err(|e| Failure(e, Obstacle::Group))?;
        let user = users::resolve(user.to_bytes(), &passwd, &group).map_err(|e| match e {
            users::Error::NoUser => Failure(sys::ENOENT, Obstacle::User),
            users::Error::NoGroup => Failure(sys::ENOENT, Obstacle::Group),
            users::Error::UserOutOfRange => Failure(sys::ERANGE, Obstacle::User),
            users::Error::GroupOutOfRange => Failure(sys::ERANGE, Obstacle::Group),
        })?;
        who.uid = who.uid.or(user.uid);
        who.gid = who.gid.or(Some(user.gid));
        who.groups.get_or_insert(user.groups);
        if spawn.set_home {
            who.home = CString::new([b"HOME=", user.home].concat()).ok();
        }
        Ok(who)
    }
}

/// Starts `spawn`. `null` is an open `/dev/null`; `own_limits` gives it the usual limit of open files
/// in place of ours. The error is exactly what kept it from running.
pub(crate) fn start(
    spawn: &Spawn<'_>,
    null: &Fd,
    own_limits: bool,
) -> core::result::Result<Started, Failure> {
    let who = Who::of(spawn)?;
    let mut pipes = [None, None, None];
    let mut theirs = [None, None, None];
    let terminal = match spawn.terminal {
        Some((rows, cols)) => {
            let mut open = || -> Result<_> {
                let terminal = Terminal::open(rows, cols, who.uid)?;
                if spawn.stdio[0] == Mode::Piped {
                    pipes[0] = Some(terminal.duplicate()?);
                }
                pipes[1] = Some(terminal.duplicate()?);
                Ok(terminal)
            };
            Some(open().map_err(|e| Failure(e, Obstacle::Terminal))?)
        }
        None => None,
    };
    for (n, mode) in spawn.stdio.iter().enumerate() {
        if *mode == Mode::Piped && terminal.is_none() {
            let (read, write) = sys::pipe()?;
            let (our, their) = if n == 0 { (write, read) } else { (read, write) };
            our.set_nonblocking()?;
            if let Some(uid) = who.uid {
                // Else it could not open /dev/stdout. As a process we may have no right to.
                let _ = sys::chown(&their, uid);
            }
            (pipes[n], theirs[n]) = (Some(our), Some(their));
        }
    }
    let at = sys::now();
    let plan = Plan {
        spawn,
        argv: pointers(&spawn.argv),
        env: spawn
            .env
            .iter()
            .copied()
            .filter(|e| who.home.is_none() || !e.to_bytes().starts_with(b"HOME="))
            .chain(who.home.as_deref())
            .map(CStr::as_ptr)
            .chain([ptr::null()])
            .collect(),
        stdio: [0, 1, 2].map(|n: usize| match &terminal {
            Some(terminal) => terminal.slave().raw(),
            None => theirs[n].as_ref().unwrap_or(null).raw(),
        }),
        own_limits,
        who,
        failure: Cell::new((0, Obstacle::Program)),
    };
    // SAFETY: one past the end of the stack's memory, which is 16-aligned as its size is.
    let top = unsafe { CHILD_STACK.0.get().cast::<u8>().add(STACK) };
    // SAFETY: `child` never returns, allocates nothing and changes only `failure`.
    let pid = unsafe { sys::vfork_on(top, spawn.init, child, (&raw const plan).cast_mut().cast()) }?;
    // SAFETY: `plan` is alive; volatile since the child wrote it behind the compiler's back.
    match unsafe { plan.failure.as_ptr().read_volatile() } {
        (0, _) => {}
        (errno, obstacle) => return Err(Failure(Errno(errno), obstacle)),
    }
    let group = match spawn.process_group {
        group if group > 0 && !spawn.new_session && terminal.is_none() => group,
        _ => pid,
    };
    Ok(Started { pid, group, at, pipes, terminal })
}

fn pointers(list: &[&CStr]) -> Vec<*const i8> {
    list.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

extern "C" fn child(arg: *mut u8) -> ! {
    // SAFETY: `start` passes a plan that outlives this call.
    let plan = unsafe { &*arg.cast::<Plan<'_>>() };
    let Err(Failure(errno, obstacle)) = become_command(plan);
    // SAFETY: as above; volatile since the parent reads it from another process.
    unsafe { plan.failure.as_ptr().write_volatile((errno.0, obstacle)) };
    sys::exit(127)
}

fn become_command(plan: &Plan<'_>) -> core::result::Result<core::convert::Infallible, Failure> {
    let spawn = plan.spawn;
    if spawn.terminal.is_some() {
        sys::setsid()?;
        sys::control_terminal(plan.stdio[0]).map_err(|e| Failure(e, Obstacle::Terminal))?;
    } else if spawn.new_session {
        sys::setsid()?;
    } else {
        sys::setpgid(0, spawn.process_group)?;
    }
    if spawn.init {
        // Its own world of processes, and so its own /proc; nobody else sees that.
        sys::make_mounts_private()?;
        sys::mount(c"proc", c"/proc", 0, c"")?;
    }
    for (n, fd) in plan.stdio.iter().enumerate() {
        sys::dup_to(*fd, n as i32)?;
    }
    if plan.own_limits {
        sys::set_limit(sys::RLIMIT_NOFILE, 1024, 524_288)?;
    }
    for limit in &spawn.limits {
        sys::set_limit(limit.resource, limit.soft, limit.hard).map_err(|e| Failure(e, Obstacle::Limit))?;
    }
    let who = &plan.who;
    match (&who.groups, who.uid) {
        (Some(groups), _) => sys::setgroups(groups)?,
        // As std: a user who is not told its groups has none of the agent's.
        (None, Some(_)) if sys::is_root() => sys::setgroups(&[])?,
        _ => {}
    }
    if let Some(gid) = who.gid {
        sys::setgid(gid)?;
    }
    if let Some(uid) = who.uid {
        sys::setuid(uid)?;
    }
    sys::chdir(spawn.cwd.unwrap_or(c"/")).map_err(|e| Failure(e, Obstacle::Directory))?;
    sys::set_signal_mask(0);
    // SAFETY: both lists were made by `pointers` from strings that are still there.
    let exec = |path: &CStr| unsafe { sys::exec(path, plan.argv.as_ptr(), plan.env.as_ptr()) };
    let program = spawn.program.to_bytes();
    if program.is_empty() || program.contains(&b'/') {
        return Err(exec(spawn.program).into());
    }
    Ok(search(spawn, program, exec)?)
}

const MAX_NAME: usize = 255;
const MAX_DIR: usize = 4096;

/// Tries `program` in all directories of the command's `PATH`, as `execvp` does.
fn search(
    spawn: &Spawn<'_>,
    program: &[u8],
    exec: impl Fn(&CStr) -> Errno,
) -> Result<core::convert::Infallible> {
    if program.len() > MAX_NAME {
        return Err(sys::ENAMETOOLONG);
    }
    let path = spawn.env.iter().find_map(|e| e.to_bytes().strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
    let mut error = sys::ENOENT;
    let mut candidate = [0; MAX_DIR + MAX_NAME + 2];
    for dir in path.split(|b| *b == b':') {
        let dir = if dir.is_empty() { b"." } else { dir };
        if dir.len() > MAX_DIR {
            continue;
        }
        let mut len = 0;
        for part in [dir, b"/", program, b"\0"] {
            candidate[len..len + part.len()].copy_from_slice(part);
            len += part.len();
        }
        let Ok(file) = CStr::from_bytes_until_nul(&candidate) else { continue };
        // Most candidates are not there, and a failed exec costs the kernel a whole address space.
        if sys::is_missing(file) {
            continue;
        }
        match exec(file) {
            sys::EACCES => error = sys::EACCES,
            sys::ENOENT | sys::ENOTDIR => {}
            other => return Err(other),
        }
    }
    Err(error)
}
