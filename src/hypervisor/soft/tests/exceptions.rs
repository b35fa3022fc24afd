//! Delivery through the IDT: gates, stacks, error codes, double and triple faults, restarts.

use iced_x86::code_asm::*;

use crate::arch::x86_64::{cr0, cr4, gpr, rflags, vector};
use crate::hypervisor::{Exit, Vcpu};

use super::support::*;
use super::{CODE, HANDLERS, IDT, Machine, NoIo, STACK, TSS};

const UD2: [u8; 2] = [0x0f, 0x0b];

/// A present 64-bit interrupt gate for `vector`, with more bits.
fn gate(m: &Machine, vector: u8, more: u64) {
    let handler = HANDLERS + 16 * vector as u64;
    m.put(IDT + 16 * vector as u64, handler & 0xffff | 0x08 << 16 | 0x8e00 << 32 | more);
}

#[test]
fn the_frame_is_aligned_to_16_and_has_the_interrupted_state() {
    let mut m = Machine::new();
    m.state.rflags |= rflags::IF | rflags::CF | rflags::DF;
    for odd in 0..16 {
        m.state.gpr[gpr::RSP] = STACK - odd;
        let s = m.run(&UD2);
        assert_eq!(s.gpr[gpr::RSP], ((STACK - odd) & !15) - 40);
        let f = m.frame(&s);
        assert_eq!((f.rip, f.cs, f.rsp, f.ss), (CODE, 8, STACK - odd, 0x10));
        assert_eq!(f.flags, m.state.rflags | rflags::RF);
        assert_eq!(s.rflags & (rflags::IF | rflags::RF), 0);
    }
}

#[test]
fn rsp0_and_the_ist_give_the_stack() {
    let mut m = Machine::new();
    m.put(TSS + 0x24 + 8 * 2, STACK - 0x2008);
    m.user();
    let s = m.run(&UD2);
    assert_eq!(s.gpr[gpr::RSP], STACK - 0x1000 - 40);
    assert_eq!((s.seg[1].selector, s.seg[2].selector), (8, 0), "SS is null, with the new privilege");
    assert_eq!((m.frame(&s).cs, m.frame(&s).ss), (0x23, 0x1b));
    gate(&m, vector::UD, 3 << 32);
    for user in [true, false] {
        if !user {
            m = Machine { state: Machine::new().state, ..m };
        }
        let s = m.run(&UD2);
        assert_eq!(s.gpr[gpr::RSP], STACK - 0x2010 - 40, "user {user}");
    }
}

#[test]
fn interrupt_gates_clear_if_and_trap_gates_keep_it() {
    let mut m = Machine::new();
    m.state.rflags |= rflags::IF | rflags::NT | rflags::AC;
    // The handlers copy the flags away and stop with interrupts off.
    let handler = asm_at(HANDLERS + 16 * 6, |a| {
        a.pushfq()?;
        a.pop(rbx)?;
        a.cli()?;
        a.hlt()
    });
    m.write(HANDLERS + 16 * 6, &handler);
    for (kind, expect) in [(0, 0), (0x100, rflags::IF)] {
        gate(&m, vector::UD, kind << 32);
        let s = m.run(&UD2);
        assert_eq!(s.gpr[gpr::RBX] & (rflags::IF | rflags::NT | rflags::AC), expect | rflags::AC);
    }
}

#[test]
fn faults_point_at_the_instruction_and_traps_behind_it() {
    let div = asm(|a| {
        a.xor(ecx, ecx)?;
        a.mov(eax, 5)?;
        a.div(ecx)
    });
    let cases: [(&[u8], u8, u64, bool); 5] = [
        (&[0x90, 0x0f, 0x0b], vector::UD, 1, true),
        (&[0x90, 0xcc], vector::BP, 2, false),
        (&[0x90, 0xcd, 0x80], 0x80, 3, false),
        (&[0x90, 0xf1], vector::DB, 2, false),
        (&div, vector::DE, 7, true),
    ];
    for (code, vector, at, resume) in cases {
        let mut m = Machine::new();
        let f = m.fault(code);
        assert_eq!((f.vector, f.rip), (vector, CODE + at), "{code:02x?}");
        assert_eq!(f.flags & rflags::RF != 0, resume, "RF of {code:02x?}");
    }
    let mut m = Machine::new();
    assert_eq!(m.run(&div).gpr[gpr::RAX], 5, "a failed division changes nothing");
}

#[test]
fn compatibility_code_has_into_bound_and_pusha() {
    let mut m = Machine::new();
    m.state.seg[1].attributes = 0xc09b;
    let bound = asm32(CODE, |a| {
        a.mov(eax, 11)?;
        a.mov(dword_ptr(0x30_0000), 1)?;
        a.mov(dword_ptr(0x30_0004), 10)?;
        a.bound(eax, qword_ptr(0x30_0000))
    });
    let f = m.fault(&bound);
    assert_eq!((f.vector, f.rip + 6), (vector::BR, CODE + bound.len() as u64));
    m.state.rflags |= rflags::OF;
    let f = m.fault(&[0xce]);
    assert_eq!((f.vector, f.rip), (vector::OF, CODE + 1));
    // Into an absent page in the middle: ESP stays.
    m.put(0x3008, 0);
    m.state.gpr[gpr::RSP] = 0x40_0010;
    m.put(IDT + 16 * 14, (HANDLERS + 16 * 14) | (0x08 << 16) | 0x8e01 << 32);
    m.put(TSS + 0x24, STACK - 0x2000);
    m.put(0x3008, 1 << 21 | 0x81);
    for code in [asm32(CODE, |a| a.pushad()), asm32(CODE, |a| a.enter(8, 4))] {
        m.state.gpr[gpr::RBP] = 0x50_0000;
        let f = m.fault(&code);
        assert_eq!((f.what(), f.rsp), ((vector::PF, Some(3)), 0x40_0010));
        assert_eq!(m.vcpu.cpu.cr2, 0x3f_fffc);
        assert_eq!(m.vcpu.cpu.regs[5], 0x50_0000);
    }
}

#[test]
fn a_call_that_cannot_push_changes_nothing() {
    let mut m = Machine::with_pages();
    m.page(0, 0);
    gate(&m, vector::PF, 1 << 32);
    m.put(TSS + 0x24, STACK - 0x2000);
    m.state.gpr[gpr::RSP] = PAGES + 0x1000;
    for code in [asm(|a| a.call(CODE + 0x100)), asm(|a| a.push(1)), asm(|a| a.enter(16, 3))] {
        let f = m.fault(&code);
        assert_eq!((f.what(), f.rip, f.rsp), ((vector::PF, Some(2)), CODE, PAGES + 0x1000));
    }
}

#[test]
fn software_interrupts_obey_the_gates_privilege_and_others_do_not() {
    let mut m = Machine::new();
    m.user();
    assert_eq!(m.fault(&[0xcd, 0x80]).what(), (vector::GP, Some(0x80 << 3 | 2)));
    assert_eq!(m.fault(&[0xcc]).what(), (vector::GP, Some(3 << 3 | 2)));
    assert_eq!(m.fault(&[0xf1]).vector, vector::DB, "INT1 is a debug trap");
    gate(&m, 0x80, 0x6000 << 32);
    gate(&m, vector::BP, 0x6000 << 32);
    assert_eq!(m.fault(&[0xcd, 0x80]).vector, 0x80);
    assert_eq!(m.fault(&[0xcc]).vector, vector::BP);
}

#[test]
fn bad_gates_are_reported_with_the_right_error_code() {
    let handler = |v: u64| HANDLERS + 16 * v;
    let int: &[u8] = &[0xcd, 0x80];
    // Gate, the fault of INT 80h, and the handler's own descriptor.
    let cases: [(&str, u64, u64, u8, u64); 8] = [
        ("absent", handler(0x80) & 0xffff | 8 << 16 | 0x0e00 << 32, 0, vector::NP, 0x402),
        ("task gate", 8 << 16 | 0x8500 << 32, 0, vector::GP, 0x402),
        ("call gate", 8 << 16 | 0x8c00 << 32, 0, vector::GP, 0x402),
        ("null selector", 0x8e00 << 32, 0, vector::GP, 0),
        ("outside the GDT", 0x100 << 16 | 0x8e00 << 32, 0, vector::GP, 0x100),
        ("data segment", 0x10 << 16 | 0x8e00 << 32, 0, vector::GP, 0x10),
        ("outer code segment", 0x20 << 16 | 0x8e00 << 32, 0, vector::GP, 0x20),
        ("non-canonical handler", 8 << 16 | 0x8e00 << 32, 0x8000, vector::GP, 0),
    ];
    for (what, low, high, vector, error) in cases {
        let mut m = Machine::new();
        m.put(IDT + 16 * 0x80, low);
        m.put(IDT + 16 * 0x80 + 8, high);
        assert_eq!(m.fault(int).what(), (vector, Some(error)), "{what}");
    }
    // The same from a fault of the processor's own has EXT set.
    let mut m = Machine::new();
    m.put(IDT + 16 * 6, handler(6) | 8 << 16 | 0x0e00 << 32);
    assert_eq!(m.fault(&UD2).what(), (vector::NP, Some(6 << 3 | 3)));
    m.put(IDT + 16 * 6, 0x30 << 16 | 0x8e00 << 32);
    m.put(super::GDT + 0x30, 0x00af_1b00_0000_ffff);
    assert_eq!(m.fault(&UD2).what(), (vector::NP, Some(0x31)), "absent code segment");
    m.put(super::GDT + 0x30, 0x00cf_9b00_0000_ffff);
    assert_eq!(m.fault(&UD2).what(), (vector::GP, Some(0x31)), "32-bit code segment");
    m.put(IDT + 16 * 6, 0x100 << 16 | 0x8e00 << 32);
    assert_eq!(m.fault(&UD2).what(), (vector::GP, Some(0x101)), "outside the GDT");
    gate(&m, vector::UD, 0);
    m.state.idt.limit = 0x7ff;
    assert_eq!(m.fault(int).what(), (vector::GP, Some(0x402)), "outside the IDT");
}

#[test]
fn a_stack_that_cannot_be_had_is_reported() {
    let mut m = Machine::new();
    gate(&m, vector::UD, 1 << 32);
    m.put(TSS + 0x24, 0x8000_0000_1000);
    assert_eq!(m.fault(&UD2).what(), (vector::SS, Some(1)), "non-canonical");
    m.state.tr.limit = 0x2a;
    assert_eq!(m.fault(&UD2).what(), (vector::TS, Some(0x29)), "outside the TSS");
}

#[test]
fn two_contributory_faults_make_a_double_fault() {
    // First, second as broken gates, and what comes of it.
    let mut m = Machine::new();
    m.put(IDT + 16 * 13, 0);
    m.put(IDT + 16 * 11, 0);
    let gp = asm(|a| {
        a.mov(eax, 0x1000)?;
        a.mov(ds, eax)
    });
    let f = m.fault(&gp);
    assert_eq!((f.what(), f.rip), ((vector::DF, Some(0)), CODE + 5));
    // A benign first fault gives way to the second.
    let mut m = Machine::new();
    m.put(IDT + 16 * 6, 0);
    assert_eq!(m.fault(&UD2).what(), (vector::GP, Some(6 << 3 | 3)));
    // #PF, then #GP: double. #GP, then #PF: the #PF.
    let mut m = Machine::new();
    m.put(IDT + 16 * 14, 0);
    let pf = asm(|a| {
        a.mov(rax, 0x40_0000_0000u64)?;
        a.mov(eax, dword_ptr(rax))
    });
    assert_eq!(m.fault(&pf).what(), (vector::DF, Some(0)));
    assert_eq!(m.vcpu.cpu.cr2, 0x40_0000_0000);
    let mut m = Machine::new();
    gate(&m, vector::GP, 1 << 32);
    m.put(TSS + 0x24, 0x40_0000_1000);
    let f = m.fault(&gp);
    assert_eq!(f.what(), (vector::PF, Some(2)));
}

#[test]
fn a_stack_overflow_is_a_double_fault_with_the_last_address() {
    let mut m = Machine::with_pages();
    m.page(0, 0);
    gate(&m, vector::DF, 1 << 32);
    m.put(TSS + 0x24, STACK - 0x2000);
    m.state.gpr[gpr::RSP] = PAGES + 0xf00;
    let f = m.fault(&asm(|a| a.push(rax)));
    assert_eq!((f.what(), f.rip, f.rsp), ((vector::DF, Some(0)), CODE, PAGES + 0xf00));
    // Error code frame: 48 bytes below the aligned stack.
    assert_eq!(m.vcpu.cpu.cr2, PAGES + 0xf00 - 48);
}

#[test]
fn a_fault_on_the_way_to_the_double_fault_is_a_triple_fault() {
    let mut m = Machine::new();
    m.put(IDT + 16 * 13, 0);
    m.put(IDT + 16 * 8, 0);
    m.write(CODE, &[0xcd, 0x80]);
    m.put(IDT + 16 * 0x80, 0);
    m.vcpu.set_state(&m.state).unwrap();
    assert_eq!(m.vcpu.run(&NoIo).unwrap(), Exit::TripleFault);
}

#[test]
fn task_switched_and_emulated_units_raise_nm_or_ud() {
    let x87: &[u8] = &[0xd9, 0xe8];
    let wait: &[u8] = &[0x9b];
    let mmx: &[u8] = &[0x0f, 0x77];
    let sse: &[u8] = &[0x0f, 0x58, 0xc1];
    let mut m = Machine::new();
    let mut run = |more: u64, code: &[u8]| {
        m.state.cr0 = m.state.cr0 & !(cr0::TS | cr0::EM | cr0::MP) | more;
        m.write(CODE + code.len() as u64, &[0xf4]);
        m.write(CODE, code);
        let s = m.go(&NoIo);
        (s.rip < HANDLERS + 0x1000).then(|| Machine::vector(&s) as u8)
    };
    let (nm, ud) = (Some(vector::NM), Some(vector::UD));
    for (bits, expect) in [
        (0, [None, None, None, None]),
        (cr0::TS, [nm, None, nm, nm]),
        (cr0::TS | cr0::MP, [nm, nm, nm, nm]),
        (cr0::MP, [None, None, None, None]),
        (cr0::EM, [nm, None, ud, ud]),
        (cr0::EM | cr0::TS, [nm, None, ud, ud]),
    ] {
        let seen = [x87, wait, mmx, sse].map(|code| run(bits, code));
        assert_eq!(seen, expect, "CR0 bits {bits:#x}");
    }
    m.state.cr0 &= !(cr0::EM | cr0::TS);
    m.state.cr4 &= !cr4::OSFXSR;
    assert_eq!(m.fault(sse).vector, vector::UD);
}

#[test]
fn a_string_operation_stops_at_the_faulting_element() {
    let mut m = Machine::with_pages();
    m.page(2, 0);
    let rep = |which: u8| {
        asm(|a| {
            a.mov(rsi, PAGES + 0x100)?;
            a.mov(rdi, PAGES + 0x10ff)?;
            a.mov(ecx, 0x2000)?;
            match which {
                0 => a.rep().movsb(),
                1 => a.rep().stosb(),
                2 => a.rep().movsq(),
                _ => a.rep().stosq(),
            }
        })
    };
    for (which, size) in [(0, 1), (1, 1), (2, 8), (3, 8)] {
        let code = rep(which);
        let s = m.run(&code);
        let f = m.frame(&s);
        let done = 0xf01 / size;
        assert_eq!((f.what(), s.cr2), ((vector::PF, Some(2)), PAGES + 0x2000));
        assert_eq!(f.rip, CODE + code.len() as u64 - if size == 8 { 3 } else { 2 });
        assert_eq!(s.gpr[gpr::RCX], 0x2000 - done, "{which}");
        assert_eq!(s.gpr[gpr::RDI], PAGES + 0x10ff + done * size);
        if which & 1 == 0 {
            assert_eq!(s.gpr[gpr::RSI], PAGES + 0x100 + done * size);
        }
    }
}

#[test]
fn more_than_15_bytes_are_a_general_protection_fault() {
    let mut m = Machine::new();
    let mut code = vec![0x66; 14];
    code.push(0x90);
    code.push(0xf4);
    assert_eq!(m.run(&code).rip, CODE + 16);
    let mut code = vec![0x66; 15];
    code.push(0x90);
    assert_eq!(m.fault(&code).what(), (vector::GP, Some(0)));
}
