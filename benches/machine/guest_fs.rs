//! How fast files are inside a machine: on its root, which this process serves, and on the guest's
//! own file system in memory, in turns.
//!
//! All is done and timed by a program of ours inside the guest, in one process for each kind of
//! operation, so that neither a shell's loop nor the start of a program is in the figure. (A static
//! busybox has `dd`, but that does not say how long it took.)

use iced_x86::code_asm::{self as asm, CodeAssembler};

use cc::{Instance, Source};

use crate::{Report, Result, counted, host, median, program, put};

/// Rounds; the figures are medians, those against tmpfs of the ratios.
const ROUNDS: usize = 5;
/// Files of each round, at most 4096.
const FILES: u32 = 2000;
/// MiB of the large file.
const LARGE: u32 = 64;
const PROGRAM: &str = "/tmp/cc-bench-files";

/// A figure's name, its unit, and whether it is compared with tmpfs: what needs no request cannot
/// differ from it.
const FIGURES: [(&str, &str, bool); 8] = [
    ("write_mb_s", "MB/s", true),
    ("read_mb_s", "MB/s", true),
    ("read_cached_mb_s", "MB/s", false),
    ("create_per_s", "/s", true),
    ("stat_per_s", "/s", true),
    ("stat_cached_per_s", "/s", false),
    ("list_per_s", "/s", true),
    ("unlink_per_s", "/s", true),
];

/// What the program does with each file.
#[derive(Clone, Copy)]
enum Work {
    /// Makes its name only: what the other kinds do besides.
    Nothing = b'n' as isize,
    Create = b'c' as isize,
    Stat = b's' as isize,
    Unlink = b'u' as isize,
    /// Not each, but the directory with all of them.
    List = b'l' as isize,
    /// The large file, 1 MiB a call, as `dd bs=1M` does.
    Write = b'w' as isize,
    Read = b'r' as isize,
    /// A file of 4 KiB a call.
    WriteSmall = b'p' as isize,
}

impl Work {
    /// How often it is done.
    fn times(self) -> u64 {
        match self {
            // And `.` and `..`.
            Work::List => u64::from(FILES) + 2,
            Work::Write | Work::Read => u64::from(LARGE),
            _ => u64::from(FILES),
        }
    }
}

/// Measures, and says how many guest instructions the small operations take.
pub(crate) fn measure(report: &mut Report) -> Result<()> {
    let instance = Instance::builder(Source::busybox()?).memory_mb(512).start()?;
    put(&instance, PROGRAM, &files_program()?)?;
    for dir in ["/bench", "/tmp/bench"] {
        shell(&instance, &format!("mkdir {dir}"))?;
    }
    let mounts = shell(&instance, "grep -e ' / ' -e ' /tmp ' /proc/mounts")?;
    if !mounts.contains("cc-root / virtiofs") || !mounts.contains(" /tmp tmpfs") {
        return Err(format!("the guest's file systems are others than expected:\n{mounts}").into());
    }
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push((round(&instance, "/bench")?, round(&instance, "/tmp/bench")?));
    }
    for (n, (name, unit, compared)) in FIGURES.into_iter().enumerate() {
        let name = format!("fs.guest.{name}");
        report.add(&name, median(rounds.iter().map(|(root, _)| root[n]).collect()), unit);
        if compared {
            let ratios = rounds.iter().map(|(root, tmpfs)| root[n] / tmpfs[n]).collect();
            report.add(&versus(&name), median(ratios), "×");
        }
    }
    price(report, &instance)?;
    instance.close()?;
    Ok(())
}

/// All names of figures.
pub(crate) fn names() -> Vec<String> {
    let full = FIGURES.iter().map(|(name, _, compared)| (format!("fs.guest.{name}"), *compared));
    full.flat_map(|(name, compared)| [Some(name.clone()), compared.then(|| versus(&name))])
        .flatten()
        .collect()
}

fn versus(name: &str) -> String {
    let stem = name.trim_end_matches("_mb_s").trim_end_matches("_per_s");
    format!("{stem}_vs_tmpfs")
}

/// One value for each of [`FIGURES`].
fn round(instance: &Instance, dir: &str) -> Result<[f64; 8]> {
    let megabytes = f64::from(LARGE) * f64::from(1 << 20) / 1e6;
    let write = megabytes / seconds(instance, dir, Work::Write)?;
    forget(instance)?;
    let read = megabytes / seconds(instance, dir, Work::Read)?;
    let cached = megabytes / seconds(instance, dir, Work::Read)?;
    shell(instance, &format!("rm {dir}/large"))?;

    let files = f64::from(FILES);
    let create = files / seconds(instance, dir, Work::Create)?;
    forget(instance)?;
    let stat = files / seconds(instance, dir, Work::Stat)?;
    let stat_cached = files / seconds(instance, dir, Work::Stat)?;
    forget(instance)?;
    let list = files / seconds(instance, dir, Work::List)?;
    let unlink = files / seconds(instance, dir, Work::Unlink)?;
    Ok([write, read, cached, create, stat, stat_cached, list, unlink])
}

/// Says what one operation on the root costs in guest instructions, nearly all of them the guest
/// kernel's, and in processor time of this process: other work on the host changes neither much.
fn price(report: &Report, instance: &Instance) -> Result<()> {
    let of = |work| -> Result<(u64, f64)> {
        let cpu = host::cpu_time()?;
        let (_, count) = counted(instance, || seconds(instance, "/bench", work))?;
        Ok((count, host::cpu_time()?.saturating_sub(cpu).as_secs_f64()))
    };
    let base = of(Work::Nothing)?;
    let mut text = Vec::new();
    for (what, work, cold) in [
        ("MiB written", Work::Write, false),
        ("MiB read", Work::Read, true),
        ("MiB read again", Work::Read, false),
        ("4 KiB written", Work::WriteSmall, false),
        ("create", Work::Create, false),
        ("stat", Work::Stat, true),
        ("listed entry", Work::List, true),
        ("unlink", Work::Unlink, false),
    ] {
        if cold {
            forget(instance)?;
        }
        let (count, cpu) = of(work)?;
        if matches!(work, Work::WriteSmall) {
            // A listing is to find the small files only.
            shell(instance, "rm /bench/large")?;
        }
        let times = work.times() as f64;
        let instructions = count.saturating_sub(base.0) as f64 / times;
        text.push(format!("{what} {instructions:.0} ({:.1} µs)", (cpu - base.1) * 1e6 / times));
    }
    report.note(&format!("guest instructions (and processor time) on the root: {}", text.join(", ")));
    Ok(())
}

/// Has the guest's kernel drop pages, names and inodes.
fn forget(instance: &Instance) -> Result<()> {
    shell(instance, "sync; echo 3 > /proc/sys/vm/drop_caches").map(drop)
}

fn shell(instance: &Instance, script: &str) -> Result<String> {
    let out = instance.command("sh").args(["-c", script]).output()?;
    if !out.status.success() {
        return Err(format!("{script}: {:?} {}", out.status, String::from_utf8_lossy(&out.stderr)).into());
    }
    Ok(String::from_utf8(out.stdout)?)
}

/// The seconds that the program took in the guest for `work` on all files in `dir`.
fn seconds(instance: &Instance, dir: &str, work: Work) -> Result<f64> {
    let letter = char::from(work as u8).to_string();
    let out = instance.command(PROGRAM).args([dir, &letter]).output()?;
    let number =
        |at: usize| out.stdout.get(at..at + 8).map(|b| u64::from_le_bytes(b.try_into().unwrap_or_default()));
    let (Some(nanoseconds), Some(count), true) = (number(0), number(8), out.status.success()) else {
        return Err(format!("the program for files ended with {:?}", out.status).into());
    };
    let wanted = work.times();
    if count != wanted {
        return Err(format!("the program for files did {count} of {wanted} ({letter} in {dir})").into());
    }
    Ok(nanoseconds as f64 / 1e9)
}

const SYS_READ: u32 = 0;
const SYS_WRITE: u32 = 1;
const SYS_OPEN: u32 = 2;
const SYS_CLOSE: u32 = 3;
const SYS_STAT: u32 = 4;
const SYS_EXIT: u32 = 60;
const SYS_CHDIR: u32 = 80;
const SYS_UNLINK: u32 = 87;
const SYS_GETDENTS64: u32 = 217;
const SYS_CLOCK_GETTIME: u32 = 228;
const CLOCK_MONOTONIC: u32 = 1;
const O_WRONLY_CREAT_EXCL: u32 = 0o301;
const O_WRONLY_CREAT_TRUNC: u32 = 0o1101;
const O_DIRECTORY: u32 = 0o200_000;

/// The program: `PROGRAM DIRECTORY LETTER`. Writes the nanoseconds that the work took and how many
/// times it was done, as two words.
///
/// RBX counts files, R12 points to the program's memory, R13 is the kind of work, R14 counts what
/// was done, R15 holds a file descriptor. Memory: a name at 0, a time at 16, results at 32, a buffer
/// at 64; how a large file is written, at 48.
fn files_program() -> Result<Vec<u8>> {
    use asm::*;
    const BUFFER: i32 = 1 << 20;
    let mut a = CodeAssembler::new(64)?;
    let mut label = || a.create_label();
    let (mut each, mut create, mut stat, mut unlink, mut counted) =
        (label(), label(), label(), label(), label());
    let (mut next, mut list, mut more, mut entry, mut done) = (label(), label(), label(), label(), label());
    let (mut now, mut fail, mut large) = (label(), label(), label());
    let (mut read, mut opened, mut piece, mut whole) = (label(), label(), label(), label());

    a.mov(rdi, ptr(rsp + 16))?;
    a.mov(rax, ptr(rsp + 24))?;
    a.movzx(r13d, byte_ptr(rax))?;
    a.sub(rsp, BUFFER + 64)?;
    a.mov(r12, rsp)?;
    call(&mut a, SYS_CHDIR)?;
    a.test(eax, eax)?;
    a.jnz(fail)?;
    // Pages of its own in the buffer.
    a.lea(rdi, ptr(r12 + 64))?;
    a.mov(ecx, BUFFER)?;
    a.mov(eax, 7)?;
    a.rep().stosb()?;
    a.xor(ebx, ebx)?;
    a.xor(r14d, r14d)?;
    a.call(now)?;
    a.mov(ptr(r12 + 32), rax)?;
    for (work, target) in
        [(Work::List, list), (Work::Write, large), (Work::Read, large), (Work::WriteSmall, large)]
    {
        a.cmp(r13d, work as u32)?;
        a.je(target)?;
    }

    a.set_label(&mut each)?;
    // The name: three letters that stand for 4 bits each.
    for (at, shift) in [(0, 8u32), (1, 4), (2, 0)] {
        a.mov(eax, ebx)?;
        a.shr(eax, shift)?;
        a.and(eax, 15)?;
        a.add(eax, u32::from(b'a'))?;
        a.mov(byte_ptr(r12 + at), al)?;
    }
    a.mov(byte_ptr(r12 + 3), 0)?;
    a.mov(rdi, r12)?;
    for (work, target) in [(Work::Create, create), (Work::Stat, stat), (Work::Unlink, unlink)] {
        a.cmp(r13d, work as u32)?;
        a.je(target)?;
    }
    a.xor(eax, eax)?;
    a.jmp(counted)?;

    a.set_label(&mut create)?;
    a.mov(esi, O_WRONLY_CREAT_EXCL)?;
    a.mov(edx, 0o644)?;
    call(&mut a, SYS_OPEN)?;
    a.test(eax, eax)?;
    a.js(next)?;
    a.mov(edi, eax)?;
    call(&mut a, SYS_CLOSE)?;
    a.jmp(counted)?;

    a.set_label(&mut stat)?;
    a.lea(rsi, ptr(r12 + 64))?;
    call(&mut a, SYS_STAT)?;
    a.jmp(counted)?;

    a.set_label(&mut unlink)?;
    call(&mut a, SYS_UNLINK)?;

    a.set_label(&mut counted)?;
    a.test(eax, eax)?;
    a.jnz(next)?;
    a.inc(r14)?;
    a.set_label(&mut next)?;
    a.inc(ebx)?;
    a.cmp(ebx, FILES)?;
    a.jb(each)?;
    a.jmp(done)?;

    a.set_label(&mut list)?;
    a.mov(word_ptr(r12), u32::from(b'.'))?;
    a.mov(rdi, r12)?;
    a.mov(esi, O_DIRECTORY)?;
    call(&mut a, SYS_OPEN)?;
    a.test(eax, eax)?;
    a.js(fail)?;
    a.mov(r15d, eax)?;
    a.set_label(&mut more)?;
    a.mov(edi, r15d)?;
    a.lea(rsi, ptr(r12 + 64))?;
    a.mov(edx, 0x8000)?;
    call(&mut a, SYS_GETDENTS64)?;
    a.test(eax, eax)?;
    a.jle(done)?;
    a.lea(rdx, ptr(r12 + 64))?;
    a.lea(rcx, ptr(rdx + rax))?;
    a.set_label(&mut entry)?;
    a.inc(r14)?;
    a.movzx(eax, word_ptr(rdx + 16))?;
    a.add(rdx, rax)?;
    a.cmp(rdx, rcx)?;
    a.jb(entry)?;
    a.jmp(more)?;

    // The size of a piece is at 48 and their number at 56; RBP is the call: write for writing, read for reading.
    a.set_label(&mut large)?;
    a.mov(dword_ptr(r12 + 48), BUFFER)?;
    a.mov(dword_ptr(r12 + 56), LARGE)?;
    a.mov(rax, u64::from_le_bytes(*b"large\0\0\0"))?;
    a.mov(ptr(r12), rax)?;
    a.mov(rdi, r12)?;
    a.mov(edx, 0o644)?;
    a.cmp(r13d, Work::Read as u32)?;
    a.je(read)?;
    a.mov(ebp, SYS_WRITE)?;
    a.cmp(r13d, Work::Write as u32)?;
    a.je(whole)?;
    a.mov(dword_ptr(r12 + 48), 4096)?;
    a.mov(dword_ptr(r12 + 56), FILES)?;
    a.set_label(&mut whole)?;
    a.mov(esi, O_WRONLY_CREAT_TRUNC)?;
    a.jmp(opened)?;
    a.set_label(&mut read)?;
    a.mov(ebp, SYS_READ)?;
    a.xor(esi, esi)?;
    a.set_label(&mut opened)?;
    call(&mut a, SYS_OPEN)?;
    a.test(eax, eax)?;
    a.js(fail)?;
    a.mov(r15d, eax)?;
    a.set_label(&mut piece)?;
    a.mov(edi, r15d)?;
    a.lea(rsi, ptr(r12 + 64))?;
    a.mov(edx, dword_ptr(r12 + 48))?;
    a.mov(eax, ebp)?;
    a.syscall()?;
    a.cmp(eax, dword_ptr(r12 + 48))?;
    a.jne(done)?;
    a.inc(r14)?;
    a.cmp(r14d, dword_ptr(r12 + 56))?;
    a.jb(piece)?;
    a.mov(edi, r15d)?;
    call(&mut a, SYS_CLOSE)?;

    a.set_label(&mut done)?;
    a.call(now)?;
    a.sub(rax, ptr(r12 + 32))?;
    a.mov(ptr(r12 + 32), rax)?;
    a.mov(ptr(r12 + 40), r14)?;
    a.mov(edi, 1)?;
    a.lea(rsi, ptr(r12 + 32))?;
    a.mov(edx, 16)?;
    call(&mut a, SYS_WRITE)?;
    a.xor(edi, edi)?;
    call(&mut a, SYS_EXIT)?;

    a.set_label(&mut fail)?;
    a.mov(edi, 1)?;
    call(&mut a, SYS_EXIT)?;

    a.set_label(&mut now)?;
    a.mov(edi, CLOCK_MONOTONIC)?;
    a.lea(rsi, ptr(r12 + 16))?;
    call(&mut a, SYS_CLOCK_GETTIME)?;
    a.imul_3(rax, ptr(r12 + 16), 1_000_000_000)?;
    a.add(rax, ptr(r12 + 24))?;
    a.ret()?;
    Ok(program::executable(&a.assemble(program::ENTRY)?))
}

/// A system call.
fn call(a: &mut CodeAssembler, number: u32) -> Result<()> {
    a.mov(asm::eax, number)?;
    a.syscall()?;
    Ok(())
}
