//! What keeps an instruction from running: the enabling bits, alignment, memory, pending exceptions.

use crate::arch::x86_64::{cr0, cr4, vector};

use super::super::super::op::Stop;
use super::instructions::{AT, Machine, decode};

/// The vector that `code` raises, with RDI at `at`.
fn fault(machine: &mut Machine, code: &[u8], at: u64) -> Option<u8> {
    let (_, op) = decode(code).expect("a known instruction");
    machine.cpu.refresh();
    machine.cpu.regs[7] = at;
    match (op.run)(&mut machine.cpu, &op) {
        Ok(()) => None,
        Err(Stop::Fault) => Some(machine.cpu.fault.vector),
        Err(other) => panic!("{other:?}"),
    }
}

const MOVAPS: &[u8] = &[0x0f, 0x28, 0x0f];
const MOVUPS: &[u8] = &[0x0f, 0x10, 0x0f];
const MOVDQA_STORE: &[u8] = &[0x66, 0x0f, 0x7f, 0x0f];
const ADDPS: &[u8] = &[0x0f, 0x58, 0x0f];
const ADDSS: &[u8] = &[0xf3, 0x0f, 0x58, 0x0f];
const PADDB: &[u8] = &[0x66, 0x0f, 0xfc, 0x0f];
const PADDB_MMX: &[u8] = &[0x0f, 0xfc, 0x0f];
const PCMPISTRI: &[u8] = &[0x66, 0x0f, 0x3a, 0x63, 0x0f, 0];
const EMMS: &[u8] = &[0x0f, 0x77];
const LDMXCSR: &[u8] = &[0x0f, 0xae, 0x17];
const DIVSD: &[u8] = &[0xf2, 0x0f, 0x5e, 0xca];

#[test]
fn sixteen_byte_operands_must_be_aligned_where_the_manual_says_so() {
    let mut m = Machine::new();
    for code in [MOVAPS, MOVDQA_STORE, ADDPS, PADDB] {
        assert_eq!(fault(&mut m, code, AT), None);
        assert_eq!(fault(&mut m, code, AT + 8), Some(vector::GP), "{code:x?}");
    }
    for code in [MOVUPS, ADDSS, PADDB_MMX, PCMPISTRI] {
        assert_eq!(fault(&mut m, code, AT + 1), None, "{code:x?}");
    }
}

#[test]
fn control_bits_disable_the_registers() {
    let mut m = Machine::new();
    m.cpu.cr0 |= cr0::TS;
    for code in [MOVAPS, ADDSS, PADDB_MMX, EMMS, LDMXCSR] {
        assert_eq!(fault(&mut m, code, AT), Some(vector::NM), "{code:x?}");
    }
    m.cpu.cr0 |= cr0::EM;
    for code in [MOVAPS, ADDSS, PADDB_MMX, EMMS, LDMXCSR] {
        assert_eq!(fault(&mut m, code, AT), Some(vector::UD), "{code:x?}");
    }
    m.cpu.cr0 &= !(cr0::TS | cr0::EM);
    m.cpu.cr4 &= !cr4::OSFXSR;
    for code in [MOVAPS, ADDSS, LDMXCSR] {
        assert_eq!(fault(&mut m, code, AT), Some(vector::UD), "{code:x?}");
    }
    assert_eq!(fault(&mut m, PADDB_MMX, AT), None);
}

#[test]
fn a_waiting_x87_exception_comes_before_mmx() {
    let mut m = Machine::new();
    m.cpu.fpu.status = 0x8081;
    assert_eq!(fault(&mut m, PADDB_MMX, AT), Some(vector::MF));
    assert_eq!(fault(&mut m, EMMS, AT), Some(vector::MF));
    assert_eq!(fault(&mut m, ADDPS, AT), None);
}

#[test]
fn reserved_mxcsr_bits_are_refused() {
    let mut m = Machine::new();
    m.cpu.write::<u32>(AT, 0x1_1f80).unwrap();
    assert_eq!(fault(&mut m, LDMXCSR, AT), Some(vector::GP));
    assert_eq!(m.cpu.fpu.mxcsr, 0x1f80);
    m.cpu.write::<u32>(AT, 0xffbf).unwrap();
    assert_eq!(fault(&mut m, LDMXCSR, AT), None);
    assert_eq!(m.cpu.fpu.mxcsr, 0xffbf);
}

#[test]
fn an_unmasked_exception_sets_its_flag_and_leaves_the_destination() {
    let mut m = Machine::new();
    m.cpu.fpu.xmm[1] = 1.0f64.to_bits().into();
    m.cpu.fpu.xmm[2] = 0;
    m.cpu.fpu.mxcsr = 0x1f80 & !0x200;
    assert_eq!(fault(&mut m, DIVSD, AT), Some(vector::XM));
    assert_eq!(m.cpu.fpu.xmm[1], 1.0f64.to_bits().into());
    assert_eq!(m.cpu.fpu.mxcsr & 0x3f, 4);
    // Without the operating system's word that it knows #XM, it is #UD. A flag that is already set
    // raises nothing by itself.
    m.cpu.cr4 &= !cr4::OSXMMEXCPT;
    assert_eq!(fault(&mut m, DIVSD, AT), Some(vector::UD));
    m.cpu.fpu.xmm[2] = 2.0f64.to_bits().into();
    assert_eq!(fault(&mut m, DIVSD, AT), None);
    assert_eq!(m.cpu.fpu.xmm[1], 0.5f64.to_bits().into());
}
