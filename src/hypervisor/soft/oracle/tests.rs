//! The comparison itself, and proofs that it would notice.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

use iced_x86::{Decoder, DecoderOptions, FastFormatter, Instruction, InstructionInfoFactory, Register};

use super::compare::differences;
use super::generate::Generator;
use super::guest::{Guest, HUNG};
use super::native::Native;
use super::quirks::Quirks;
use super::{ARENA, ARENA_LEN, Case, Outcome, Reference, Side};
use crate::arch::x86_64::{rflags, vector};
use crate::hypervisor::soft::SoftVm;
use crate::hypervisor::{CpuModel, Vcpu, Vm, VmOptions, kvm};
use crate::memory::GuestRam;
use crate::sys::clock::Clock;

/// Cases in an ordinary `cargo test`: a few seconds.
const SAMPLE: u64 = 100_000;
/// The same under KVM, where a case costs a few dozen system calls.
const KVM_SAMPLE: u64 = 20_000;
const READ_ONLY: [u8; 4096] = [0x3f; 4096];

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name}={v} is no number")))
}

#[test]
fn host_and_soft_agree() {
    agree(64, Reference::Process, &mut Native::new(&READ_ONLY).unwrap(), SAMPLE);
}

#[test]
fn host_and_soft_agree_on_32_bit_code() {
    agree(32, Reference::Process, &mut Native::new(&READ_ONLY).unwrap(), SAMPLE);
}

#[test]
fn kvm_and_soft_agree() {
    if let Some((mut kvm, quirks)) = on_kvm() {
        agree(64, Reference::Kvm(quirks), &mut kvm, KVM_SAMPLE);
    }
}

#[test]
fn kvm_and_soft_agree_on_32_bit_code() {
    let Some((mut kvm, quirks)) = on_kvm() else { return };
    if quirks.no_32_bit_code {
        println!("NOT RUN on KVM: this one emulates 32-bit code, and knows little of it (PXOR is #UD)");
        return;
    }
    agree(32, Reference::Kvm(quirks), &mut kvm, KVM_SAMPLE);
}

/// Runs the cases that the environment asks for, or `sample` of them, on the software CPU and `host`.
fn agree(bits: u32, reference: Reference, host: &mut dyn Side, sample: u64) {
    let seed = variable("ORACLE_SEED").unwrap_or(1);
    let first = variable("ORACLE_FIRST").unwrap_or(0);
    let count = variable("ORACLE_CASES").unwrap_or(sample);
    let shown = variable("ORACLE_SHOW").unwrap_or(3);
    let only = std::env::var("ORACLE_ONLY").ok();
    let generator = Generator::new(bits, seed, only.as_deref());
    let mut soft = soft();
    let start = Instant::now();
    let mut covered: BTreeMap<usize, u64> = BTreeMap::new();
    let mut unknown: BTreeMap<String, u64> = BTreeMap::new();
    let mut wrong: BTreeMap<String, u64> = BTreeMap::new();
    let mut instructions = 0;
    let (mut endless, mut once, mut forbidden) = (Vec::new(), Vec::new(), 0);
    for index in first..first + count {
        let case = generator.case(index);
        instructions += case.units.len() as u64;
        for unit in &case.units {
            *covered.entry(unit.code as usize).or_default() += 1;
        }
        match one(&generator, reference, host, &mut soft, &case) {
            Compared::Alike => continue,
            Compared::Endless => {
                endless.push(index);
                continue;
            }
            Compared::Forbidden => {
                forbidden += 1;
                continue;
            }
            Compared::Different(found) => {
                let again = one(&generator, reference, host, &mut soft, &case);
                if matches!(reference, Reference::Kvm(_)) && matches!(again, Compared::Alike) {
                    eprintln!(
                        "case {index} differed once only:\n{}{}",
                        describe(&case, generator.memory()),
                        found.text
                    );
                    once.push(index);
                    continue;
                }
            }
        }
        // The shortest beginning that shows a difference ends with the culprit.
        let (short, found) = (1..=case.units.len())
            .find_map(|units| {
                let case = case.truncated(units);
                match one(&generator, reference, host, &mut soft, &case) {
                    Compared::Different(found) => Some((case, found)),
                    _ => None,
                }
            })
            .expect("a case that differed does not differ again");
        let culprit = short.units.last().unwrap().code;
        if found.unknown {
            *unknown.entry(format!("{culprit:?}")).or_default() += 1;
            continue;
        }
        let times = wrong.entry(format!("{:?}", culprit.mnemonic())).or_default();
        *times += 1;
        if *times <= shown {
            eprintln!(
                "{culprit:?} differs in {bits}-bit code from {reference:?}; repeat with ORACLE_SEED={seed} ORACLE_FIRST={index} ORACLE_CASES=1{}\n{}{}",
                only.as_ref().map(|o| format!(" ORACLE_ONLY={o}")).unwrap_or_default(),
                describe(&short, generator.memory()),
                found.text
            );
        }
    }
    let idle: Vec<String> = generator
        .codes
        .iter()
        .filter(|(code, _)| !covered.contains_key(&(*code as usize)))
        .map(|(code, _)| format!("{code:?}"))
        .collect();
    eprintln!(
        "{bits}-bit code, {reference:?}: {count} cases of {instructions} instructions, {} of {} opcodes, in {:.1?}; opcodes not reached: {idle:?}; \
         cases that differ, by mnemonic: {wrong:?}; cases without an end: {endless:?}; cases left out: {forbidden}; cases that differed once only: {once:?}; {} opcodes unknown to soft, among them {:?}",
        covered.len(),
        generator.codes.len(),
        start.elapsed(),
        unknown.len(),
        unknown.keys().take(40).collect::<Vec<_>>(),
    );
    assert!(wrong.is_empty(), "{} of {count} cases differ", wrong.values().sum::<u64>());
    // A jump through random memory hits the code before it about once in ten million cases.
    assert!(endless.len() as u64 <= 2 + count / 1_000_000, "{} cases hang", endless.len());
    assert!(unknown.is_empty(), "{} opcodes are not implemented", unknown.len());
    assert!(idle.is_empty() || count < sample, "{} opcodes were never generated", idle.len());
}

struct Found {
    text: String,
    /// #UD where the host has the instruction.
    unknown: bool,
}

enum Compared {
    Alike,
    Different(Found),
    /// The KVM at hand does not run such code as the processor does.
    Forbidden,
    /// The code loops. The host, which nobody would stop, has not been asked.
    Endless,
}

/// Runs a case on both sides.
fn one(
    generator: &Generator,
    reference: Reference,
    native: &mut dyn Side,
    soft: &mut Guest,
    case: &Case,
) -> Compared {
    let ours = soft.run(case, generator.memory());
    if ours.fault.is_some_and(|f| f.vector == HUNG) {
        return Compared::Endless;
    }
    if matches!(reference, Reference::Kvm(quirks) if quirks.forbids(case, &ours)) {
        return Compared::Forbidden;
    }
    let host = native.run(case, generator.memory());
    let text = differences(reference, case, &host, &ours, native.arena(), soft.arena());
    let undefined = |o: &Outcome| o.fault.is_some_and(|f| f.vector == vector::UD);
    match text.is_empty() {
        true => Compared::Alike,
        false => Compared::Different(Found { text, unknown: undefined(&ours) && !undefined(&host) }),
    }
}

/// The code and the parts of the initial state that its last instructions use.
fn describe(case: &Case, template: &[u8; ARENA_LEN]) -> String {
    let mut out = String::new();
    let mut format = FastFormatter::new();
    let mut info = InstructionInfoFactory::new();
    let mut memory = vec![0; ARENA_LEN];
    super::native::fill(&mut memory, template, &case.patches);
    let (mut xmm, mut x87) = (false, false);
    let mut instruction = Instruction::default();
    let mut decoder = Decoder::with_ip(case.bits, &case.bytes, case.entry, DecoderOptions::NONE);
    let mut operands = String::new();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        let at = (instruction.ip() - case.entry) as usize;
        let mut text = String::new();
        format.format(&instruction, &mut text);
        let bytes = &case.bytes[at..at + instruction.len()];
        let _ = writeln!(out, "  {:x}: {text}    ; {bytes:02x?}", instruction.ip());
        let info = info.info(&instruction);
        xmm |= info.used_registers().iter().any(|r| r.register().is_xmm());
        x87 |= instruction.op_kinds().count() == 0 && at + instruction.len() == case.bytes.len()
            || info.used_registers().iter().any(|r| r.register().is_st() || r.register().is_mm());
        for used in info.used_memory() {
            let address = used.virtual_address(0, |register, _, _| {
                let full = register.full_register();
                match register {
                    Register::GS => Some(super::GS_BASE),
                    _ if register.is_segment_register() => Some(0),
                    _ if register.is_gpr32() => Some(case.cpu.gpr[full.number()] & 0xffff_ffff),
                    _ if register.is_gpr8() => Some(case.cpu.gpr[full.number()] & 0xff),
                    _ if full.is_gpr64() => Some(case.cpu.gpr[full.number()]),
                    _ => None,
                }
            });
            if let Some(offset) = address.and_then(|a| a.checked_sub(ARENA))
                && let Some(bytes) = memory.get(offset as usize..offset as usize + 16)
            {
                let _ = writeln!(operands, "  [{:x}] = {bytes:02x?}", ARENA + offset);
            }
        }
    }
    out += &operands;
    let cpu = &case.cpu;
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15",
    ];
    for (i, (name, value)) in NAMES.iter().zip(cpu.gpr).enumerate() {
        let _ = write!(out, "  {name}={value:x}{}", if i % 8 == 7 { "\n" } else { "" });
    }
    let fpu = &cpu.fpu;
    let _ = writeln!(
        out,
        "  rflags={:x} mxcsr={:x} fcw={:x} fsw={:x} ftw={:x}",
        cpu.rflags, fpu.mxcsr, fpu.control, fpu.status, fpu.tag
    );
    if xmm {
        for (i, value) in fpu.xmm.iter().enumerate() {
            let _ = write!(out, "  xmm{i}={value:032x}{}", if i % 4 == 3 { "\n" } else { "" });
        }
    }
    if x87 {
        let top = usize::from(fpu.status >> 11 & 7);
        for i in 0..8 {
            let (significand, exponent) = fpu.st[(top + i) & 7];
            let _ = write!(
                out,
                "  st{i}={exponent:04x}:{significand:016x}{}",
                if i % 4 == 3 { "\n" } else { "" }
            );
        }
    }
    out
}

/// A vCPU of the software CPU's.
pub(super) fn soft_vcpu(ram: &Arc<GuestRam>) -> Box<dyn Vcpu> {
    let clock = Arc::new(Clock::new());
    clock.resume();
    SoftVm::new(ram.clone(), clock, 1, CpuModel::Baseline).create_vcpu(0, None).unwrap()
}

/// One of KVM's; says why there is none.
pub(super) fn kvm_vcpu(ram: &Arc<GuestRam>) -> Option<Box<dyn Vcpu>> {
    let system = kvm::System::open().map_err(|e| println!("NOT RUN on KVM: {e}")).ok()?;
    let clock = Arc::new(Clock::new());
    let options = VmOptions { model: CpuModel::Minimal, ..VmOptions::default() };
    let vm = kvm::KvmVm::new(system, ram.clone(), clock.clone(), 1, options).unwrap();
    let vcpu = vm.create_vcpu(0, None).unwrap();
    clock.resume();
    vm.time_resumed();
    Some(vcpu)
}

fn soft() -> Guest {
    Guest::new(&READ_ONLY, soft_vcpu)
}

/// A place for cases on KVM, and what is wrong with that KVM; says why there is none.
pub(super) fn on_kvm() -> Option<(Guest, Quirks)> {
    kvm_vcpu(&GuestRam::new(1 << 20).unwrap())?;
    let mut guest = Guest::new(&READ_ONLY, |ram| kvm_vcpu(ram).unwrap());
    let quirks = Quirks::find(&mut guest);
    println!("{quirks:?}");
    Some((guest, quirks))
}

/// The same case twice on the host gives the same result, so differences are soft's.
#[test]
fn the_host_repeats_itself() {
    let generator = Generator::new(64, 2, None);
    let mut native = Native::new(&READ_ONLY).unwrap();
    let mut faults = [0_u32; 32];
    let mut ends = 0;
    for index in 0..20_000 {
        let case = generator.case(index);
        let once = native.run(&case, generator.memory());
        let memory = *native.arena();
        let twice = native.run(&case, generator.memory());
        let text = differences(Reference::Process, &case, &once, &twice, &memory, native.arena());
        assert!(text.is_empty(), "case {index}\n{}{text}", describe(&case, generator.memory()));
        match once.fault {
            None => ends += 1,
            Some(fault) => faults[usize::from(fault.vector)] += 1,
        }
    }
    assert!(ends > 12_000, "most snippets should reach their end: {ends}");
    for expected in [
        vector::DE,
        vector::DB,
        vector::BP,
        vector::UD,
        vector::SS,
        vector::GP,
        vector::PF,
        vector::MF,
        vector::XM,
    ] {
        assert!(faults[usize::from(expected)] != 0, "no snippet raised vector {expected}");
    }
}

#[test]
fn differences_are_noticed() {
    noticed(Reference::Process, &mut Native::new(&READ_ONLY).unwrap());
}

#[test]
fn differences_from_kvm_are_noticed() {
    let Some((mut kvm, quirks)) = on_kvm() else { return };
    noticed(Reference::Kvm(quirks), &mut kvm);
    // What is excused is excused there only, and nothing like it.
    let fault = |vector, error, cr2| Some(super::Fault { vector, error, cr2 });
    let (ud, gp) = (fault(vector::UD, 0, 0), fault(vector::GP, 0, 0));
    let faulty = Quirks { emulates_gp: true, ..Quirks::default() };
    assert!(faulty.made(ud, gp));
    assert!(!Quirks::default().made(ud, gp));
    for (kvm, soft) in [
        (None, gp),
        (ud, None),
        (gp, ud),
        (ud, fault(vector::PF, 4, 0)),
        (ud, fault(vector::GP, 0x28, 0)),
        (ud, fault(vector::SS, 0, 0)),
        (fault(vector::PF, 4, 0x1000), gp),
        (fault(vector::PF, 5, 0x7fff_ffff_fffc), gp),
    ] {
        assert!(!faulty.made(kvm, soft), "{kvm:?} for {soft:?}");
    }
}

/// A wrong bit anywhere is reported, unless the manual leaves it open.
fn noticed(reference: Reference, native: &mut dyn Side) {
    let generator = Generator::new(64, 3, Some("add,imul,paddd,fadd"));
    let (case, right) = (0..)
        .map(|index| generator.case(index))
        .map(|case| (native.run(&case, generator.memory()), case))
        .find(|(out, case)| {
            out.fault.is_none()
                && case.units.len() == 1
                && format!("{:?}", case.units[0].code).starts_with("Imul_r64_rm64")
        })
        .map(|(out, case)| (case, out))
        .unwrap();
    native.run(&case, generator.memory());
    let memory = *native.arena();
    let check =
        |out: &Outcome, mem: &[u8; ARENA_LEN]| differences(reference, &case, &right, out, &memory, mem);
    assert_eq!(check(&right, &memory), "");

    type Change = fn(&mut Outcome);
    let changes: [(&str, Change); 14] = [
        ("rax", |o| o.cpu.gpr[0] ^= 1),
        ("r15", |o| o.cpu.gpr[15] ^= 1 << 63),
        ("CF", |o| o.cpu.rflags ^= rflags::CF),
        ("DF", |o| o.cpu.rflags ^= rflags::DF),
        ("xmm0", |o| o.cpu.fpu.xmm[0] ^= 1),
        ("xmm15", |o| o.cpu.fpu.xmm[15] ^= 1 << 127),
        ("st", |o| o.cpu.fpu.st[3].0 ^= 1),
        ("st", |o| o.cpu.fpu.st[7].1 ^= 0x8000),
        ("fsw", |o| o.cpu.fpu.status ^= 1 << 9),
        ("fcw", |o| o.cpu.fpu.control ^= 1 << 10),
        ("ftw", |o| o.cpu.fpu.tag ^= 1),
        ("mxcsr", |o| o.cpu.fpu.mxcsr ^= 1),
        ("fault", |o| o.fault = Some(super::Fault { vector: 13, error: 0, cr2: 0 })),
        ("fip", |o| o.cpu.fpu.ip ^= 1),
    ];
    for (name, change) in changes {
        let mut out = right.clone();
        change(&mut out);
        let text = check(&out, &memory);
        assert!(text.contains(name), "a changed {name} gave {text:?}");
        assert_eq!(text.lines().count(), 1, "a changed {name} gave {text:?}");
    }
    for flag in [rflags::RF, rflags::IF, rflags::IOPL] {
        let mut out = right.clone();
        out.cpu.rflags ^= flag;
        // They belong to the kernel of a process.
        assert_eq!(check(&out, &memory).is_empty(), reference == Reference::Process);
    }
    let mut other = memory;
    other[ARENA_LEN - 1] ^= 0x80;
    assert!(check(&right, &other).contains(&format!("{:x}", ARENA + ARENA_LEN as u64 - 8)));
    // IMUL leaves ZF open.
    let mut out = right.clone();
    out.cpu.rflags ^= rflags::ZF;
    assert_eq!(check(&out, &memory), "");
}
