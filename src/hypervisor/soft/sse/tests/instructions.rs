//! Every legacy-encoded opcode this module takes, found by decoding all of them, run on the silicon
//! and by its handler from the same state: registers, flags, MXCSR, x87 state and memory must agree.

#![allow(unsafe_code)]

use std::arch::asm;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};

use crate::arch::x86_64::{cr0, cr4, seg, vector};
use crate::memory::GuestRam;
use crate::sys::clock::Clock;

use super::super::super::cpu::Cpu;
use super::super::super::decode::undefined;
use super::super::super::op::{Op, SEG_FLAT, SLOT_ZERO};
use super::Random;

/// The FXSAVE image.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Fxsave([u8; 512]);

/// What an instruction can see and change: RAX, RCX, RDX, RDI; RFLAGS; vector and x87 registers;
/// 64 bytes at RDI.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct State {
    fx: Fxsave,
    memory: [u8; 64],
    gpr: [u64; 4],
    flags: u64,
    /// Length of the instruction.
    len: u64,
    /// It raised #XM (or #MF), and was skipped.
    trapped: bool,
}

const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;

/// Notes SIGFPE in the [`State`] that R8 points to and skips the instruction.
extern "C" fn skip(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel's context of this signal; only [`Page::run`] provokes one, with R8 set.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let state = context.uc_mcontext.gregs[libc::REG_R8 as usize] as *mut State;
        (*state).trapped = true;
        context.uc_mcontext.gregs[libc::REG_RIP as usize] += (*state).len as i64;
    }
}

/// An executable page.
struct Page(*mut u8);

impl Page {
    fn new() -> Self {
        // SAFETY: a fresh anonymous mapping.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(p, libc::MAP_FAILED);
        Self(p.cast())
    }

    /// Runs `code`, which may touch what [`State`] holds and nothing else.
    fn run(&self, code: &[u8], state: &mut State) {
        // SAFETY: the page has room for one instruction and RET. What the instruction may change is
        // loaded from and saved to `state`, and declared; RDI points to its memory.
        state.len = code.len() as u64;
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.0, code.len());
            self.0.add(code.len()).write(0xc3);
            asm!(
                "fxrstor64 [r8]",
                "mov rax, [r8 + 576]", "mov rcx, [r8 + 584]", "mov rdx, [r8 + 592]", "mov rdi, [r8 + 600]",
                "push qword ptr [r8 + 608]", "popfq",
                "call r9",
                "pushfq", "pop qword ptr [r8 + 608]",
                "mov [r8 + 576], rax", "mov [r8 + 584], rcx", "mov [r8 + 592], rdx", "mov [r8 + 600], rdi",
                "fxsave64 [r8]",
                "fninit", "mov dword ptr [rsp - 8], 0x1f80", "ldmxcsr [rsp - 8]",
                in("r8") state as *mut State, in("r9") self.0, out("rdi") _,
                clobber_abi("sysv64"),
            );
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`.
        unsafe { libc::munmap(self.0.cast(), 4096) };
    }
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().unwrap())
}

/// Guest address of the operand's memory.
pub(super) const AT: u64 = 0x3000;

pub(super) struct Machine {
    pub(super) cpu: Cpu,
    page: Page,
}

impl Machine {
    pub(super) fn new() -> Self {
        let ram = GuestRam::new(16 << 20).unwrap();
        let mut cpu =
            Cpu::new(crate::hypervisor::soft::cpu::Setup::alone(ram, std::sync::Arc::new(Clock::new())))
                .unwrap();
        // No paging: linear addresses are physical ones.
        cpu.cr0 = cr0::PE | cr0::NE;
        cpu.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT;
        cpu.seg[seg::CS].attributes = 0xa09b;
        cpu.refresh();
        Self { cpu, page: Page::new() }
    }

    fn load(&mut self, s: &State) {
        let fx = &s.fx.0;
        let top = usize::from(u16_at(fx, 2) >> 11 & 7);
        self.cpu.fpu.control = u16_at(fx, 0);
        self.cpu.fpu.status = u16_at(fx, 2);
        self.cpu.fpu.tag = fx[4];
        self.cpu.fpu.mxcsr = u64_at(fx, MXCSR) as u32;
        for i in 0..8 {
            self.cpu.fpu.st[(top + i) & 7] = (u64_at(fx, ST + 16 * i), u16_at(fx, ST + 16 * i + 8));
        }
        for i in 0..16 {
            self.cpu.fpu.xmm[i] = u128::from_le_bytes(fx[XMM + 16 * i..][..16].try_into().unwrap());
        }
        for (i, r) in [0, 1, 2].into_iter().enumerate() {
            self.cpu.regs[r] = s.gpr[i];
        }
        self.cpu.regs[7] = AT;
        self.cpu.set_rflags(s.flags);
        self.cpu.write_bytes(AT, &s.memory).unwrap();
    }

    /// The state, with RDI as it was.
    fn store(&mut self, s: &mut State) {
        let fpu = &self.cpu.fpu;
        let fx = &mut s.fx.0;
        let top = usize::from(fpu.status >> 11 & 7);
        fx[2..4].copy_from_slice(&fpu.status.to_le_bytes());
        fx[4] = fpu.tag;
        fx[MXCSR..][..4].copy_from_slice(&fpu.mxcsr.to_le_bytes());
        for i in 0..8 {
            let (significand, exponent) = fpu.st[(top + i) & 7];
            fx[ST + 16 * i..][..8].copy_from_slice(&significand.to_le_bytes());
            fx[ST + 16 * i + 8..][..2].copy_from_slice(&exponent.to_le_bytes());
        }
        for i in 0..16 {
            fx[XMM + 16 * i..][..16].copy_from_slice(&fpu.xmm[i].to_le_bytes());
        }
        s.gpr[..3].copy_from_slice(&self.cpu.regs[..3]);
        s.flags = self.cpu.rflags();
        self.cpu.read_bytes(AT, &mut s.memory).unwrap();
    }
}

pub(super) fn decode(code: &[u8]) -> Option<(Instruction, Op)> {
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    let ins = decoder.decode();
    if ins.is_invalid() || ins.len() != code.len() {
        return None;
    }
    let mut op = Op {
        run: undefined,
        imm: 0,
        disp: 0,
        base: SLOT_ZERO,
        index: SLOT_ZERO,
        scale: 0,
        seg: SEG_FLAT,
        dst: 0,
        src: 0,
        len: code.len() as u8,
        flags: 0,
        off: 0,
        extra: 0,
    };
    if (0..ins.op_count()).any(|i| ins.op_kind(i) == OpKind::Memory) {
        op.base = 7;
    }
    op.run = super::super::lower(&ins, &mut op)?;
    Some((ins, op))
}

/// Whether the silicon may run it here.
fn runnable(ins: &Instruction) -> bool {
    !matches!(ins.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Prefetchwt1)
        && ins.cpuid_features().iter().all(|f| match format!("{f:?}").as_str() {
            "MMX" | "SSE" | "SSE2" | "CLFSH" | "INTEL386" | "PREFETCHW" | "D3NOW" => true,
            "SSE3" => std::is_x86_feature_detected!("sse3"),
            "SSSE3" => std::is_x86_feature_detected!("ssse3"),
            "SSE4_1" => std::is_x86_feature_detected!("sse4.1"),
            "SSE4_2" => std::is_x86_feature_detected!("sse4.2"),
            "AES" => std::is_x86_feature_detected!("aes"),
            "PCLMULQDQ" => std::is_x86_feature_detected!("pclmulqdq"),
            _ => false,
        })
}

/// A float that is often special, in both formats' terms.
fn float_operand(random: &mut Random) -> u128 {
    const SINGLES: [u32; 14] = [
        0,
        0x8000_0000,
        1,
        0x807f_ffff,
        0x0080_0000,
        0x7f7f_ffff,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_1234,
        0xff81_2345,
        0x3f80_0000,
        0xbf00_0000,
        0x4f00_0000,
        0xcb00_0001,
    ];
    const DOUBLES: [u64; 14] = [
        0,
        1 << 63,
        1,
        0x800f_ffff_ffff_ffff,
        0x0010_0000_0000_0000,
        0x7fef_ffff_ffff_ffff,
        0x7ff0_0000_0000_0000,
        0xfff0_0000_0000_0000,
        0x7ff8_0000_1234_5678,
        0xfff0_1234_5678_9abc,
        0x3ff0_0000_0000_0000,
        0xbfe0_0000_0000_0000,
        0x41e0_0000_0000_0000,
        0xc330_0000_0000_0001,
    ];
    let mut single = |random: &mut Random| {
        let r = random.next();
        u64::from(match r & 7 {
            0..3 => SINGLES[(r >> 8) as usize % SINGLES.len()],
            3 => ((r >> 8) as i8 as f32 / 4.0).to_bits(),
            // Exponents near each other, so that sums round and cancel.
            4..7 => (r >> 32) as u32 & 0x87ff_ffff | 0x3c00_0000,
            _ => (r >> 32) as u32,
        })
    };
    let half = |random: &mut Random, single: &mut dyn FnMut(&mut Random) -> u64, doubles: bool| {
        if !doubles {
            return single(random) | single(random) << 32;
        }
        let r = random.next();
        match r & 7 {
            0..3 => DOUBLES[(r >> 8) as usize % DOUBLES.len()],
            3 => ((r >> 8) as i16 as f64 / 8.0).to_bits(),
            4..7 => random.next() & 0x80ff_ffff_ffff_ffff | 0x3f00_0000_0000_0000,
            _ => random.next(),
        }
    };
    let doubles = random.next() & 1 != 0;
    let low = half(random, &mut single, doubles);
    u128::from(half(random, &mut single, doubles)) << 64 | u128::from(low)
}

fn random_state(random: &mut Random, unmask: bool) -> State {
    let mut s =
        State { fx: Fxsave([0; 512]), memory: [0; 64], gpr: [0; 4], flags: 0x202, len: 0, trapped: false };
    let fx = &mut s.fx.0;
    fx[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
    fx[2..4].copy_from_slice(&((random.next() & 7) as u16 * 0x800).to_le_bytes());
    fx[4] = random.next() as u8;
    // Any rounding, flags, DAZ and FTZ; often the default.
    let mxcsr = if random.next() & 1 == 0 { 0 } else { random.next() as u32 & 0xe07f };
    let masks = if unmask { random.next() as u32 & 0x1f80 } else { 0x1f80 };
    fx[MXCSR..][..4].copy_from_slice(&(masks | mxcsr).to_le_bytes());
    let float = random.next() & 1 != 0;
    let mut value = || if float { float_operand(random) } else { random.operand() };
    for i in 0..8 {
        fx[ST + 16 * i..][..10].copy_from_slice(&value().to_le_bytes()[..10]);
    }
    for i in 0..16 {
        fx[XMM + 16 * i..][..16].copy_from_slice(&value().to_le_bytes());
    }
    for chunk in s.memory.chunks_exact_mut(16) {
        chunk.copy_from_slice(&value().to_le_bytes());
    }
    for r in &mut s.gpr {
        *r = random.operand() as u64;
        if random.next() & 1 != 0 {
            // Lengths for the string comparisons.
            *r = (*r as i64 % 20) as u64;
        }
    }
    s.flags |= random.next() & 0x8d5;
    s
}

fn compare(
    machine: &mut Machine,
    random: &mut Random,
    unmask: bool,
    code: &[u8],
    ins: &Instruction,
    op: &Op,
) -> Result<(), String> {
    let start = random_state(random, unmask);
    let mut expected = start;
    expected.gpr[3] = expected.memory.as_ptr() as u64;
    machine.page.run(code, &mut expected);
    machine.load(&start);
    let answer = (op.run)(&mut machine.cpu, op);
    let trapped = answer.is_err() && machine.cpu.fault.vector == vector::XM;
    if answer.is_err() && !trapped {
        return Err(format!(
            "{:?} {code:02x?}: stopped with {answer:?}, {:?}",
            ins.code(),
            machine.cpu.fault
        ));
    }
    let mut got = start;
    machine.store(&mut got);
    let fail = |what: String| {
        let x = |i: usize| u128::from_le_bytes(start.fx.0[XMM + 16 * i..][..16].try_into().unwrap());
        Err(format!(
            "{:?} {code:02x?}: {what}; before: xmm0 {:#034x} xmm1 {:#034x} xmm2 {:#034x} mm1 {:#018x} mm2 {:#018x} \
             memory {:#034x} mxcsr {:#x} rdx {:#x}",
            ins.code(),
            x(0),
            x(1),
            x(2),
            machine.cpu.fpu.st[1].0,
            machine.cpu.fpu.st[2].0,
            u128::from_le_bytes(start.memory[..16].try_into().unwrap()),
            u64_at(&start.fx.0, MXCSR) as u32,
            start.gpr[2],
        ))
    };
    if trapped != expected.trapped {
        return fail(format!("trapped {trapped}, silicon {}", expected.trapped));
    }
    for i in 0..16 {
        let (a, b) = (&got.fx.0[XMM + 16 * i..][..16], &expected.fx.0[XMM + 16 * i..][..16]);
        if a != b {
            let v = |b: &[u8]| u128::from_le_bytes(b.try_into().unwrap());
            return fail(format!("xmm{i} is {:#034x}, silicon {:#034x}", v(a), v(b)));
        }
    }
    for i in 0..8 {
        let (a, b) = (&got.fx.0[ST + 16 * i..][..10], &expected.fx.0[ST + 16 * i..][..10]);
        if a != b {
            return fail(format!("st{i} is {a:02x?}, silicon {b:02x?}"));
        }
    }
    let mxcsr = |s: &State| u64_at(&s.fx.0, MXCSR) as u32;
    if mxcsr(&got) != mxcsr(&expected) {
        return fail(format!("mxcsr is {:#x}, silicon {:#x}", mxcsr(&got), mxcsr(&expected)));
    }
    if got.fx.0[2..5] != expected.fx.0[2..5] {
        return fail(format!("status, tag {:02x?}, silicon {:02x?}", &got.fx.0[2..5], &expected.fx.0[2..5]));
    }
    if got.gpr[..3] != expected.gpr[..3] {
        return fail(format!("rax, rcx, rdx {:x?}, silicon {:x?}", &got.gpr[..3], &expected.gpr[..3]));
    }
    if (got.flags ^ expected.flags) & 0x8d5 != 0 {
        return fail(format!("flags {:#x}, silicon {:#x}", got.flags, expected.flags));
    }
    if got.memory != expected.memory {
        return fail(format!("memory {:02x?}, silicon {:02x?}", got.memory, expected.memory));
    }
    Ok(())
}

/// Every encoding: prefix, map, opcode; with and without REX.W; register form (1, 2) and memory
/// form [RDI]; `imm` after map 0F3A and where 0F takes one.
fn encodings(mut each: impl FnMut(&[u8], bool)) {
    let maps: [&[u8]; 3] = [&[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    for map in maps {
        for opcode in 0..=255u8 {
            if map.len() == 1 && matches!(opcode, 0x38 | 0x3a) {
                continue;
            }
            for prefix in [None, Some(0x66u8), Some(0xf2), Some(0xf3)] {
                for rex in [None, Some(0x48u8)] {
                    // Opcodes whose ModRM names an operation are tried with all of them; the others
                    // must not get at RSP or RBX.
                    let forms: &[u8] = match opcode {
                        0x71..=0x73 | 0xae if map.len() == 1 => &[0xd2, 0xda, 0xe2, 0xea, 0xf2, 0xfa, 0x1f],
                        0x0d | 0x18 if map.len() == 1 => &[0x07, 0x0f, 0x17, 0x1f],
                        _ => &[0xca, 0x0f],
                    };
                    for &modrm in forms {
                        let mut code: Vec<u8> = prefix.into_iter().chain(rex).collect();
                        code.extend(map);
                        code.extend([opcode, modrm]);
                        each(&code, false);
                        code.push(0);
                        each(&code, true);
                    }
                }
            }
        }
    }
}

/// Compares every encoding `rounds` times.
fn sweep(unmask: bool, rounds: usize) {
    let mut machine = Machine::new();
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut failures = Vec::new();
    let mut codes = std::collections::BTreeSet::new();
    encodings(|code, has_imm| {
        let Some((ins, _)) = decode(code) else { return };
        if !runnable(&ins) {
            return;
        }
        codes.insert(format!("{:?}", ins.code()));
        let mut code = code.to_vec();
        for _ in 0..rounds {
            if has_imm && let Some(last) = code.last_mut() {
                *last = random.next() as u8;
            }
            let Some((ins, op)) = decode(&code) else { return };
            if let Err(e) = compare(&mut machine, &mut random, unmask, &code, &ins, &op) {
                failures.push(e);
                return;
            }
        }
    });
    assert!(failures.is_empty(), "{} of them differ:\n{}", failures.len(), failures.join("\n"));
    if std::is_x86_feature_detected!("sse4.2") {
        assert!(codes.len() > 380, "only {} forms: {codes:?}", codes.len());
    }
}

/// Rounds per encoding; more by `CC_SSE_ROUNDS`.
fn rounds() -> usize {
    std::env::var("CC_SSE_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(100)
}

#[test]
fn every_instruction_agrees_with_silicon() {
    sweep(false, rounds());
}

#[test]
fn unmasked_exceptions_agree_with_silicon() {
    crate::hypervisor::soft::oracle::with_sigfpe(skip, || sweep(true, rounds()));
}
