//! Saved forms of a vCPU: there and back, run from, and what no vCPU can be.

use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::arch::x86_64::gpr;
use crate::hypervisor::soft::SoftVm;
use crate::hypervisor::{CpuModel, Exit, ExitIo, Vm};
use crate::memory::GuestRam;
use crate::state::container::{Reader, Writer};
use crate::state::samples;
use crate::sys::clock::Clock;

/// `value` through the vCPU's own type and a container.
fn there_and_back(value: &saved::Vcpu) -> Result<VcpuState, StateError> {
    let mut writer = Writer::new();
    writer.put(3, value)?;
    let bytes = writer.finish();
    let mut reader = Reader::parse(&bytes)?;
    let state = VcpuState::try_from(reader.take::<saved::Vcpu>(3)?)?;
    reader.finish()?;
    assert_eq!(saved::Vcpu::from(&state), *value);
    Ok(state)
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>().prop_map(|address| (address as i64) << 16 >> 16).prop_map(|address| address as u64),
        0..0x40_0000u64,
        Just(0x7fff_ffff_ffff),
        Just(0xffff_8000_0000_0000),
        Just(u64::MAX),
    ]
}

/// A segment register; `forced` are attributes that are always there, `free` those that may be.
fn segment(forced: u16, free: u16) -> impl Strategy<Value = saved::Segment> {
    (any::<u16>(), address(), any::<u32>(), any::<u16>()).prop_map(
        move |(selector, base, limit, attributes)| {
            let attributes = forced | attributes & free;
            let limit = if attributes & attribute::GRANULAR != 0 { limit | 0xfff } else { limit >> 12 };
            saved::Segment { selector, base, limit, attributes }
        },
    )
}

fn table() -> impl Strategy<Value = saved::DescriptorTable> {
    (address(), any::<u16>()).prop_map(|(base, limit)| saved::DescriptorTable { base, limit })
}

fn fpu() -> impl Strategy<Value = saved::Fpu> {
    let x87 = (any::<[u64; 8]>(), any::<[u16; 8]>(), any::<[u16; 3]>(), any::<u8>());
    (x87, any::<[u64; 2]>(), any::<[[u64; 2]; 16]>(), any::<u16>()).prop_map(|(x87, [ip, dp], xmm, mxcsr)| {
        let (significands, exponents, [control, status, opcode], tag) = x87;
        saved::Fpu {
            significands,
            exponents,
            control: control & FPU_CONTROL_KNOWN,
            status,
            tag,
            opcode: opcode & FPU_OPCODE_KNOWN,
            ip,
            dp,
            xmm,
            mxcsr: mxcsr.into(),
        }
    })
}

fn msrs() -> impl Strategy<Value = saved::Msrs> {
    let addresses = [address(), address(), address(), address(), address()];
    let types = proptest::array::uniform8(prop_oneof![0..2u8, 4..8u8]);
    (any::<[u64; 7]>(), addresses, any::<[u32; 2]>(), types, 0..8u64).prop_map(
        |(words, addresses, [sfmask, tsc_aux], types, spec_ctrl)| {
            let [star, sysenter_cs, misc_enable, mtrr_def_type, system_time, wall_clock, tsc_offset] = words;
            let [lstar, cstar, kernel_gs_base, sysenter_esp, sysenter_eip] = addresses;
            saved::Msrs {
                star,
                lstar,
                cstar,
                sfmask: sfmask.into(),
                kernel_gs_base,
                sysenter_cs,
                sysenter_esp,
                sysenter_eip,
                tsc_aux: tsc_aux.into(),
                pat: u64::from_le_bytes(types),
                misc_enable,
                spec_ctrl,
                mtrr_def_type,
                kvm_system_time: system_time,
                kvm_wall_clock: wall_clock,
                tsc_offset,
            }
        },
    )
}

/// Any state of long mode.
fn vcpu() -> impl Strategy<Value = saved::Vcpu> {
    let data = || prop_oneof![segment(0x90, 0xf06f), segment(0, 0xf07f)];
    let code = (any::<bool>(), segment(0x98, 0x9067)).prop_map(|(long, mut code)| {
        code.attributes |= if long { 1 << 13 } else { 1 << 14 };
        code
    });
    let segments = (code, [data(), data(), data(), data(), data()]);
    let system =
        (segment(0x83, 0x9068), prop_oneof![segment(0x82, 0x9060), segment(0, 0xf07f)], table(), table());
    let control = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), 0..4u64);
    let rest = (any::<[u64; 16]>(), address(), any::<[u64; 6]>(), any::<[bool; 4]>());
    (segments, system, control, rest, fpu(), msrs()).prop_map(
        |(segments, system, control, rest, fpu, msrs)| {
            let (code, [es, ss, ds, fs, gs]) = segments;
            let (tr, ldtr, gdt, idt) = system;
            let (cr0, cr3, cr4, efer, rflags, xcr0) = control;
            let (gpr, rip, mut dr, [halted, interrupt_shadow, nmi_blocked, nmi_pending]) = rest;
            dr[4] &= 0xffff_ffff;
            dr[5] &= 0xffff_ffff;
            let cr0 = cr0 & CR0_KNOWN & !cr0::NW | cr0::PE | cr0::PG;
            saved::Vcpu {
                gpr,
                rip: if code.attributes & 1 << 13 != 0 { rip } else { rip & 0xffff_ffff },
                rflags: rflags & RFLAGS_KNOWN & !rflags::VM | rflags::FIXED,
                seg: [es, code, ss, ds, fs, gs],
                tr,
                ldtr,
                gdt,
                idt,
                cr0,
                cr2: cr3,
                cr3: cr3 >> 12,
                cr4: cr4 & CR4_KNOWN | cr4::PAE,
                xcr0,
                efer: efer & EFER_KNOWN | efer::LME | efer::LMA,
                dr,
                fpu,
                msrs,
                tsc_khz: 1_000_000,
                halted,
                interrupt_shadow,
                nmi_blocked,
                nmi_pending,
            }
        },
    )
}

struct NoIo;

impl ExitIo for NoIo {
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, _: u16, _: &[u8]) {}
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
}

const CODE: u64 = 0x10_0000;
const IDT: u64 = 0x5000;
const GDT: u64 = 0x6000;
const HANDLER: u64 = 0x8000;
/// Looks at much of the state, and ends: x87, SSE and MMX arithmetic, FXSAVE to 0x30_0000, a push and
/// a pop, the clock, a debug register, a system call, #UD.
const PROGRAM: &[u8] = &[
    0xd9, 0xe8, // fld1
    0xde, 0xc1, // faddp
    0xd9, 0xfe, // fsin
    0x0f, 0x58, 0xc1, // addps xmm0, xmm1
    0x0f, 0x6f, 0xca, // movq mm1, mm2
    0x0f, 0xae, 0x04, 0x25, 0, 0, 0x30, 0, // fxsave
    0x9c, 0x58, // pushf, pop rax
    0x0f, 0x31, // rdtsc
    0x0f, 0x21, 0xc0, // mov rax, dr0
    0x0f, 0x05, // syscall
    0x0f, 0x0b, // ud2
];

/// RAM with the first GiB mapped one to one, a flat code segment 8, an interrupt table whose every
/// handler halts, and [`PROGRAM`] at [`CODE`].
fn ram() -> Arc<GuestRam> {
    let ram = GuestRam::new(8 << 20).unwrap();
    let put = |at: u64, value: u64| ram.memory().write_obj(value, GuestAddress(at)).unwrap();
    put(0x1000, 0x2000 | 7);
    put(0x2000, 0x3000 | 7);
    for i in 0..512u64 {
        put(0x3000 + i * 8, i << 21 | 0x87);
    }
    put(GDT + 8, 0x00af_9b00_0000_ffff);
    for vector in 0..256 {
        put(IDT + 16 * vector, HANDLER & 0xffff | 0x08 << 16 | 0x8e00 << 32);
    }
    // Interrupts are off in a handler: HLT ends the run.
    put(HANDLER, 0xf4);
    ram.memory().write_slice(PROGRAM, GuestAddress(CODE)).unwrap();
    ram
}

/// Runs what was restored until it ends. Whatever is wrong with it is the guest's to know: an
/// exception, or a triple fault.
fn run(state: &VcpuState) -> Option<Exit> {
    let clock = Arc::new(Clock::new());
    clock.resume();
    let mut vcpu = SoftVm::new(ram(), clock, 1, CpuModel::Baseline).create_vcpu(0, None).unwrap();
    vcpu.set_state(state).ok()?;
    assert_eq!(vcpu.state().unwrap(), *state);
    let exit = vcpu.run(&NoIo).unwrap();
    let after = vcpu.state().unwrap();
    assert_eq!(VcpuState::try_from(saved::Vcpu::from(&after)), Ok(after.clone()), "{after:#x?}");
    Some(exit)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn whatever_is_accepted_can_be_run(value in vcpu(), ours in any::<[bool; 4]>()) {
        let state = there_and_back(&value);
        prop_assert!(state.is_ok(), "{:?}", state);
        let mut state = state.unwrap();
        // Without interrupts every HLT ends the run.
        state.halted = false;
        state.rflags &= !rflags::IF;
        // Features that the software CPU lacks.
        state.cr4 &= !(cr4::UMIP | cr4::OSXSAVE);
        // The further the guest gets the better: nothing of what these replace is there to be found.
        let [paging, tables, code, stack] = ours;
        if paging {
            state.cr3 = 0x1000;
            // Its pages are everybody's.
            state.cr4 &= !(cr4::SMEP | cr4::SMAP);
        }
        if tables {
            state.gdt = DescriptorTable { base: GDT, limit: 0xf };
            state.idt = DescriptorTable { base: IDT, limit: 0xfff };
        }
        if code {
            state.rip = CODE;
            state.seg[seg::CS].base = 0;
            state.cr0 &= !(cr0::EM | cr0::TS);
            state.cr4 |= cr4::OSFXSR;
            state.rflags &= !rflags::TF;
            state.nmi_pending = false;
        }
        if stack {
            state.gpr[gpr::RSP] = 0x20_0000;
            state.seg[seg::SS].base = 0;
        }
        prop_assert!(matches!(run(&state), Some(Exit::Halted | Exit::TripleFault)));
    }
}

#[test]
fn the_sample_is_accepted() {
    let state = there_and_back(&samples::vcpu()).unwrap();
    assert_eq!(state.fpu.st[1], (0x8000_0000_0000_0001, 0x4000));
    assert_eq!(state.fpu.xmm[2], 0xbbbb_0000_0000_0002_0000_0000_aaaa_0002);
    assert!(state.halted && !state.interrupt_shadow);
}

#[test]
fn the_program_of_these_tests_runs_to_its_end() {
    let mut state = VcpuState::try_from(samples::vcpu()).unwrap();
    state.halted = false;
    state.nmi_pending = false;
    state.cr0 &= !cr0::TS;
    state.cr3 = 0x1000;
    state.cr4 &= !(cr4::SMEP | cr4::SMAP);
    state.gdt = DescriptorTable { base: GDT, limit: 0xf };
    state.idt = DescriptorTable { base: IDT, limit: 0xfff };
    state.rip = CODE;
    state.gpr = [0x20_0000; 16];
    state.fpu = FpuState::default();
    // The system call leads to #UD.
    state.msrs.lstar = CODE + PROGRAM.len() as u64 - 2;
    state.rflags = rflags::FIXED;
    assert_eq!(run(&state), Some(Exit::Halted));
}

#[test]
fn vcpus_that_cannot_be_are_refused() {
    type Spoil = fn(&mut saved::Vcpu);
    let bad: [(Spoil, &str); 58] = [
        (|s| s.cr0 |= 1 << 6, "reserved bits of CR0"),
        (|s| s.cr0 |= 1 << 32, "reserved bits of CR0"),
        (|s| s.cr4 |= 1 << 12, "reserved bits of CR4"),
        (|s| s.cr4 |= 1 << 63, "reserved bits of CR4"),
        (|s| s.efer |= 1 << 12, "reserved bits of EFER"),
        (|s| s.efer |= 1 << 9, "reserved bits of EFER"),
        (|s| s.rflags |= 1 << 3, "reserved bits of RFLAGS"),
        (|s| s.rflags |= 1 << 15, "reserved bits of RFLAGS"),
        (|s| s.rflags |= 1 << 22, "reserved bits of RFLAGS"),
        (|s| s.rflags &= !rflags::FIXED, "RFLAGS without bit 1"),
        (|s| s.cr3 |= 1 << 52, "page table address in CR3"),
        (|s| s.cr3 |= 1 << 63, "page table address in CR3"),
        (|s| s.cr0 &= !cr0::PE, "paging without protection"),
        (|s| s.cr0 |= cr0::NW, "CR0.NW without CR0.CD"),
        (|s| s.efer &= !efer::LME, "EFER.LMA against EFER.LME and CR0.PG"),
        (|s| s.efer &= !efer::LMA, "EFER.LMA against EFER.LME and CR0.PG"),
        (|s| s.cr0 &= !cr0::PG, "EFER.LMA against EFER.LME and CR0.PG"),
        (|s| s.cr4 &= !cr4::PAE, "long mode without CR4.PAE"),
        (|s| (s.cr0, s.efer, s.cr4) = (cr0::PE, 0, cr4::PAE | cr4::PCIDE), "CR4.PCIDE outside long mode"),
        (|s| s.rflags |= rflags::VM, "virtual-8086 mode in long mode"),
        (|s| s.seg[seg::ES].attributes |= 1 << 8, "a segment register"),
        (|s| s.seg[seg::GS].attributes |= 1 << 11, "a segment register"),
        (|s| s.seg[seg::SS].limit = 0, "a segment register"),
        (|s| s.seg[seg::DS].attributes &= !attribute::GRANULAR, "a segment register"),
        (|s| s.seg[seg::ES].attributes &= !attribute::ORDINARY, "a segment register"),
        (|s| s.seg[seg::FS].base = 1 << 47, "a segment register"),
        (|s| s.seg[seg::GS].base = 0xffff_7fff_ffff_ffff, "a segment register"),
        (|s| s.tr.base = 1 << 63, "the task register"),
        (|s| s.tr.attributes |= attribute::ORDINARY, "the task register"),
        (|s| s.tr.limit = 1 << 20, "the task register"),
        (|s| s.tr.attributes |= 1 << 9, "the task register"),
        (|s| s.ldtr.base = 1 << 48, "the local descriptor table register"),
        (|s| s.ldtr.attributes |= attribute::ORDINARY, "the local descriptor table register"),
        (|s| s.gdt.base = 1 << 47, "address of the GDT"),
        (|s| s.idt.base = 1 << 47, "address of the IDT"),
        (|s| s.seg[seg::CS].attributes &= !attribute::PRESENT, "CS is no code segment"),
        (|s| s.seg[seg::CS].attributes &= !attribute::CODE, "CS is no code segment"),
        (|s| s.seg[seg::CS] = saved::Segment::default(), "CS is no code segment"),
        (|s| s.seg[seg::CS].attributes |= 1 << 14, "CS is both 64-bit and 32-bit"),
        (|s| s.rip = 0x0000_8000_0000_0000, "instruction pointer"),
        (|s| s.rip = 0x7fff_ffff_ffff_ffff, "instruction pointer"),
        // Compatibility mode has 32 bits.
        (|s| s.seg[seg::CS].attributes ^= 3 << 13, "instruction pointer"),
        (|s| s.xcr0 = 7, "reserved bits of XCR0"),
        (|s| s.dr[4] |= 1 << 32, "reserved bits of DR6 or DR7"),
        (|s| s.dr[5] |= 1 << 63, "reserved bits of DR6 or DR7"),
        (|s| s.fpu.control |= 1 << 7, "reserved bits of the x87 control word"),
        (|s| s.fpu.opcode |= 1 << 11, "x87 opcode"),
        (|s| s.fpu.mxcsr |= 1 << 16, "reserved bits of MXCSR"),
        (|s| s.msrs.lstar = 1 << 47, "an MSR that holds an address"),
        (|s| s.msrs.cstar = 1 << 47, "an MSR that holds an address"),
        (|s| s.msrs.kernel_gs_base = 1 << 47, "an MSR that holds an address"),
        (|s| s.msrs.sysenter_esp = 1 << 47, "an MSR that holds an address"),
        (|s| s.msrs.sysenter_eip = 1 << 47, "an MSR that holds an address"),
        (|s| s.msrs.sfmask = 1 << 32, "an MSR of 32 bits"),
        (|s| s.msrs.tsc_aux = 1 << 32, "an MSR of 32 bits"),
        (|s| s.msrs.spec_ctrl = 8, "reserved bits of SPEC_CTRL"),
        (|s| s.msrs.pat = 2, "memory types in the PAT"),
        (|s| s.msrs.pat = 8 << 56, "memory types in the PAT"),
    ];
    assert!(there_and_back(&samples::vcpu()).is_ok());
    for (at, (spoil, why)) in bad.into_iter().enumerate() {
        let mut state = samples::vcpu();
        spoil(&mut state);
        let refused = there_and_back(&state);
        assert_eq!(refused, Err(StateError::Invalid { what: why }), "case {at}");
    }
}
