//! Runs snippets on the host's CPU, in this process.
//!
//! The code area is one memfd mapped twice: executable at the fixed address, writable elsewhere. The
//! way in loads every register and goes through IRET, which also makes the new code visible; the way
//! out is a jump through [`EXIT_SLOT`], or a signal: its handler takes the registers from the signal
//! frame and resumes behind the way out. One [`Native`] exists at a time in a process, since the
//! addresses are fixed; a lock sees to that. The thread's FS base is never touched.

use std::arch::global_asm;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::{
    ARENA, ARENA_LEN, CODE, CODE_LEN, Case, CpuImage, EXIT, EXIT_SLOT, Fault, GS_BASE, Outcome, Patch,
    READ_ONLY, Side, USER_CS, USER_CS32, USER_SS, fpu_from_fxsave, fpu_to_fxsave,
};

/// Page of the registers to load and the registers found, far from everything snippets address.
const CONTEXT: u64 = 0x6000_0000;
const PAGE: usize = 0x1000;
const ALT_STACK: usize = 0x2_0000;
const SIGNALS: [i32; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP];

/// What lies at [`CONTEXT`]; the assembly below knows the offsets.
#[repr(C, align(64))]
struct Context {
    in_fx: [u8; 512],
    in_gpr: [u64; 16],
    /// RIP, CS, RFLAGS, RSP, SS for IRET.
    in_frame: [u64; 5],
    /// DS and ES.
    in_data: u64,
    pad: [u64; 10],
    out_fx: [u8; 512],
    out_gpr: [u64; 16],
    out_rflags: u64,
    out_rip: u64,
    /// Vector, or [`NO_FAULT`].
    out_vector: u64,
    out_error: u64,
    out_cr2: u64,
    host_rsp: u64,
}

const NO_FAULT: u64 = u64::MAX;
const _: () = assert!(std::mem::offset_of!(Context, in_frame) == 0x280);
const _: () = assert!(std::mem::offset_of!(Context, in_data) == 0x2a8);
const _: () = assert!(std::mem::offset_of!(Context, out_fx) == 0x300);
const _: () = assert!(std::mem::offset_of!(Context, out_gpr) == 0x500);
const _: () = assert!(std::mem::offset_of!(Context, out_rflags) == 0x580);
const _: () = assert!(std::mem::offset_of!(Context, host_rsp) == 0x5a8);

global_asm!(
    ".pushsection .text.oracle, \"ax\", @progbits",
    ".globl cc_oracle_enter",
    "cc_oracle_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 8",
    "stmxcsr dword ptr [rsp]",
    "fnstcw word ptr [rsp + 4]",
    "mov qword ptr [{base} + 0x5a8], rsp",
    "mov eax, dword ptr [{base} + 0x2a8]",
    "mov ds, eax",
    "mov es, eax",
    "fxrstor64 [{base}]",
    "mov rsp, {base} + 0x280",
    "mov rax, qword ptr [{base} + 0x200]",
    "mov rcx, qword ptr [{base} + 0x208]",
    "mov rdx, qword ptr [{base} + 0x210]",
    "mov rbx, qword ptr [{base} + 0x218]",
    "mov rbp, qword ptr [{base} + 0x228]",
    "mov rsi, qword ptr [{base} + 0x230]",
    "mov rdi, qword ptr [{base} + 0x238]",
    "mov r8, qword ptr [{base} + 0x240]",
    "mov r9, qword ptr [{base} + 0x248]",
    "mov r10, qword ptr [{base} + 0x250]",
    "mov r11, qword ptr [{base} + 0x258]",
    "mov r12, qword ptr [{base} + 0x260]",
    "mov r13, qword ptr [{base} + 0x268]",
    "mov r14, qword ptr [{base} + 0x270]",
    "mov r15, qword ptr [{base} + 0x278]",
    "iretq",
    ".globl cc_oracle_exit",
    "cc_oracle_exit:",
    "mov qword ptr [{base} + 0x500], rax",
    "mov qword ptr [{base} + 0x508], rcx",
    "mov qword ptr [{base} + 0x510], rdx",
    "mov qword ptr [{base} + 0x518], rbx",
    "mov qword ptr [{base} + 0x520], rsp",
    "mov qword ptr [{base} + 0x528], rbp",
    "mov qword ptr [{base} + 0x530], rsi",
    "mov qword ptr [{base} + 0x538], rdi",
    "mov qword ptr [{base} + 0x540], r8",
    "mov qword ptr [{base} + 0x548], r9",
    "mov qword ptr [{base} + 0x550], r10",
    "mov qword ptr [{base} + 0x558], r11",
    "mov qword ptr [{base} + 0x560], r12",
    "mov qword ptr [{base} + 0x568], r13",
    "mov qword ptr [{base} + 0x570], r14",
    "mov qword ptr [{base} + 0x578], r15",
    "mov rsp, qword ptr [{base} + 0x5a8]",
    "pushfq",
    "pop qword ptr [{base} + 0x580]",
    "fxsave64 [{base} + 0x300]",
    ".globl cc_oracle_resume",
    "cc_oracle_resume:",
    "mov rsp, qword ptr [{base} + 0x5a8]",
    "push 2",
    "popfq",
    "fninit",
    "ldmxcsr dword ptr [rsp]",
    "fldcw word ptr [rsp + 4]",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    // A snippet may have set AC, with which ordinary code cannot run.
    ".globl cc_oracle_signal",
    "cc_oracle_signal:",
    "pushfq",
    "and qword ptr [rsp], -0x40001",
    "popfq",
    "jmp {handler}",
    ".popsection",
    base = const CONTEXT,
    handler = sym on_signal,
);

unsafe extern "C" {
    fn cc_oracle_enter();
    fn cc_oracle_exit();
    fn cc_oracle_resume();
    fn cc_oracle_signal();
}

static LOCK: Mutex<()> = Mutex::new(());

/// A handler as SA_SIGINFO wants it.
pub(in crate::hypervisor::soft) type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// Runs `f` with `handler` for SIGFPE, and puts back what was there. The handler is the process's:
/// those who want one take turns, with each other and with snippets.
pub(in crate::hypervisor::soft) fn with_sigfpe<R>(handler: Handler, f: impl FnOnce() -> R) -> R {
    struct Restore(libc::sigaction);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: puts back an action that the kernel gave.
            unsafe { libc::sigaction(libc::SIGFPE, &self.0, std::ptr::null_mut()) };
        }
    }
    let _lock = LOCK.lock().unwrap_or_else(|e| e.into_inner());
    // SAFETY: zeroed actions are valid, and `handler` has SA_SIGINFO's type.
    let _restore = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        let mut old: libc::sigaction = std::mem::zeroed();
        assert_eq!(libc::sigaction(libc::SIGFPE, &action, &mut old), 0);
        Restore(old)
    };
    f()
}

/// Kernel id of the thread that is in a snippet; 0 for none.
static RUNNING: AtomicU64 = AtomicU64::new(0);
static OLD_ACTIONS: AtomicPtr<[libc::sigaction; 5]> = AtomicPtr::new(std::ptr::null_mut());

fn thread_id() -> u64 {
    // SAFETY: gettid takes nothing and cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) as u64 }
}

/// Called from `cc_oracle_signal` as a signal handler.
extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, frame: *mut libc::c_void) {
    if RUNNING.load(Ordering::SeqCst) != thread_id() {
        // Another thread's fault: what was there before takes it.
        let slot = SIGNALS.iter().position(|&s| s == signal);
        let old = OLD_ACTIONS.load(Ordering::SeqCst);
        let (Some(slot), false) = (slot, old.is_null()) else { return };
        // SAFETY: `old` points to the live array of the Native that installed this handler, and an
        // action with SA_SIGINFO holds a function of this type.
        unsafe {
            let old = &(&*old)[slot];
            if old.sa_flags & libc::SA_SIGINFO != 0 {
                let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(old.sa_sigaction);
                handler(signal, info, frame);
            } else {
                libc::sigaction(signal, old, std::ptr::null_mut());
            }
        }
        return;
    }
    // SAFETY: the kernel passes a valid ucontext to an SA_SIGINFO handler; the context page is mapped
    // while RUNNING is set, and the interrupted code was the snippet, which does not use it.
    unsafe {
        let context = &mut *(CONTEXT as *mut Context);
        let machine = &mut (*frame.cast::<libc::ucontext_t>()).uc_mcontext;
        let regs = &mut machine.gregs;
        const ORDER: [i32; 16] = [
            libc::REG_RAX,
            libc::REG_RCX,
            libc::REG_RDX,
            libc::REG_RBX,
            libc::REG_RSP,
            libc::REG_RBP,
            libc::REG_RSI,
            libc::REG_RDI,
            libc::REG_R8,
            libc::REG_R9,
            libc::REG_R10,
            libc::REG_R11,
            libc::REG_R12,
            libc::REG_R13,
            libc::REG_R14,
            libc::REG_R15,
        ];
        for (out, reg) in context.out_gpr.iter_mut().zip(ORDER) {
            *out = regs[reg as usize] as u64;
        }
        context.out_rflags = regs[libc::REG_EFL as usize] as u64;
        context.out_rip = regs[libc::REG_RIP as usize] as u64;
        context.out_vector = regs[libc::REG_TRAPNO as usize] as u64;
        context.out_error = regs[libc::REG_ERR as usize] as u64;
        context.out_cr2 = regs[libc::REG_CR2 as usize] as u64;
        std::ptr::copy_nonoverlapping(machine.fpregs.cast::<u8>(), context.out_fx.as_mut_ptr(), 512);
        regs[libc::REG_RIP as usize] = cc_oracle_resume as *const () as i64;
        regs[libc::REG_RSP as usize] = context.host_rsp as i64;
        regs[libc::REG_EFL as usize] = 0x202;
        let selectors = &mut regs[libc::REG_CSGSFS as usize];
        *selectors = *selectors & !0xffff | i64::from(USER_CS);
    }
}

/// A fixed mapping that goes away with its owner.
#[derive(Debug)]
struct Mapping {
    at: *mut u8,
    len: usize,
}

impl Mapping {
    /// `at` 0 is anywhere. `file` None is zeroed private memory.
    fn new(at: u64, len: usize, protection: i32, file: Option<&OwnedFd>) -> io::Result<Self> {
        let place = if at == 0 { 0 } else { libc::MAP_FIXED_NOREPLACE };
        let kind = if file.is_some() { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
        let fd = file.map_or(-1, |f| f.as_raw_fd());
        // SAFETY: MAP_FIXED_NOREPLACE never replaces a mapping, so no memory in use is touched.
        let got = unsafe { libc::mmap(at as *mut _, len, protection, kind | place, fd, 0) };
        if got == libc::MAP_FAILED || (at != 0 && got as u64 != at) {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { at: got.cast(), len })
    }

    fn protect(&self, offset: usize, len: usize, protection: i32) -> io::Result<()> {
        assert!(offset + len <= self.len);
        // SAFETY: the range lies in this mapping, checked above.
        match unsafe { libc::mprotect(self.at.add(offset).cast(), len, protection) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// The host's CPU as a place to run cases on. Stays on the thread that made it.
#[derive(Debug)]
pub(super) struct Native {
    code: Mapping,
    _executable: Mapping,
    arena: Mapping,
    context: Mapping,
    _alt_stack: Mapping,
    old_stack: libc::stack_t,
    old_actions: Box<[libc::sigaction; 5]>,
    _lock: MutexGuard<'static, ()>,
}

impl Native {
    /// `read_only` is what the read-only data page holds.
    pub(super) fn new(read_only: &[u8; PAGE]) -> io::Result<Self> {
        let lock = LOCK.lock().unwrap_or_else(|e| e.into_inner());
        // SAFETY: the name is a NUL-terminated literal.
        let fd = unsafe { libc::memfd_create(c"oracle".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fd was just returned by the kernel and nobody else owns it.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain system call on our own descriptor.
        if unsafe { libc::ftruncate(fd, CODE_LEN as i64) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let code = Mapping::new(0, CODE_LEN, rw, Some(&file))?;
        let executable = Mapping::new(CODE, CODE_LEN, libc::PROT_READ | libc::PROT_EXEC, Some(&file))?;
        let arena = Mapping::new(ARENA - PAGE as u64, ARENA_LEN + 3 * PAGE, libc::PROT_NONE, None)?;
        arena.protect(PAGE, ARENA_LEN + PAGE, rw)?;
        let context = Mapping::new(CONTEXT, PAGE, rw, None)?;
        let alt_stack = Mapping::new(0, ALT_STACK, rw, None)?;
        // SAFETY: all of it is mapped writable, and nothing else refers to it.
        unsafe {
            std::ptr::write_bytes(arena.at.add(PAGE), 0, ARENA_LEN);
            std::ptr::copy_nonoverlapping(read_only.as_ptr(), READ_ONLY as *mut u8, PAGE);
            // jmp [rip + 2]
            let way_out: [u8; 8] = [0xff, 0x25, 2, 0, 0, 0, 0x90, 0x90];
            code.at.add((EXIT - CODE) as usize).cast::<[u8; 8]>().write(way_out);
            code.at.add((EXIT_SLOT - CODE) as usize).cast::<u64>().write(cc_oracle_exit as *const () as u64);
        }
        arena.protect(PAGE + ARENA_LEN, PAGE, libc::PROT_READ)?;

        let stack = libc::stack_t { ss_sp: alt_stack.at.cast(), ss_flags: 0, ss_size: ALT_STACK };
        // SAFETY: both structures are valid; the new stack outlives its use (Drop puts the old back).
        let (old_stack, old_actions) = unsafe {
            let mut old_stack = std::mem::zeroed();
            if libc::sigaltstack(&stack, &mut old_stack) != 0 {
                return Err(io::Error::last_os_error());
            }
            let mut old_actions: Box<[libc::sigaction; 5]> = Box::new(std::mem::zeroed());
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = cc_oracle_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            for (signal, old) in SIGNALS.iter().zip(old_actions.iter_mut()) {
                if libc::sigaction(*signal, &action, old) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            OLD_ACTIONS.store(&mut *old_actions, Ordering::SeqCst);
            const ARCH_SET_GS: i64 = 0x1001;
            if libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, GS_BASE) != 0 {
                return Err(io::Error::last_os_error());
            }
            (old_stack, old_actions)
        };
        Ok(Self {
            code,
            _executable: executable,
            arena,
            context,
            _alt_stack: alt_stack,
            old_stack,
            old_actions,
            _lock: lock,
        })
    }
}

impl Side for Native {
    fn arena(&mut self) -> &mut [u8; ARENA_LEN] {
        // SAFETY: mapped writable for the life of self, and borrowed like self.
        unsafe { &mut *self.arena.at.add(PAGE).cast() }
    }

    fn run(&mut self, case: &Case, template: &[u8; ARENA_LEN]) -> Outcome {
        fill(self.arena(), template, &case.patches);
        let program = case.program();
        let at = (case.entry - CODE) as usize;
        assert!(at + program.len() <= CODE_LEN - 16);
        // SAFETY: inside the writable view of the code area, checked above.
        unsafe { std::ptr::copy_nonoverlapping(program.as_ptr(), self.code.at.add(at), program.len()) };
        let context = self.context.at.cast::<Context>();
        // SAFETY: the context page is mapped for the life of self. The snippet keeps to the arena and
        // its own page or faults, and the way back restores all that the calling convention asks for.
        unsafe {
            (*context).in_fx = fpu_to_fxsave(&case.cpu.fpu);
            (*context).in_gpr = case.cpu.gpr;
            let (cs, data) = if case.bits == 64 { (USER_CS, 0) } else { (USER_CS32, USER_SS) };
            (*context).in_data = data.into();
            (*context).in_frame = [case.cpu.rip, cs.into(), case.cpu.rflags, case.cpu.gpr[4], USER_SS.into()];
            (*context).out_vector = NO_FAULT;
            RUNNING.store(thread_id(), Ordering::SeqCst);
            cc_oracle_enter();
            RUNNING.store(0, Ordering::SeqCst);
            let out = &*context;
            let fault = (out.out_vector != NO_FAULT).then_some(Fault {
                vector: out.out_vector as u8,
                error: out.out_error as u32,
                cr2: out.out_cr2,
            });
            let rip = if fault.is_some() { out.out_rip } else { 0 };
            let fpu = fpu_from_fxsave(&out.out_fx);
            Outcome { cpu: CpuImage { gpr: out.out_gpr, rip, rflags: out.out_rflags, fpu }, fault }
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        OLD_ACTIONS.store(std::ptr::null_mut(), Ordering::SeqCst);
        // SAFETY: restores what new() replaced.
        unsafe {
            for (signal, old) in SIGNALS.iter().zip(self.old_actions.iter()) {
                libc::sigaction(*signal, old, std::ptr::null_mut());
            }
            libc::sigaltstack(&self.old_stack, std::ptr::null_mut());
            libc::syscall(libc::SYS_arch_prctl, 0x1001, 0);
        }
    }
}

/// Makes `arena` hold `template` with `patches` over it.
pub(super) fn fill(arena: &mut [u8], template: &[u8; ARENA_LEN], patches: &[Patch]) {
    arena.copy_from_slice(template);
    for patch in patches {
        arena[patch.offset..patch.offset + patch.bytes.len()].copy_from_slice(&patch.bytes);
    }
}
