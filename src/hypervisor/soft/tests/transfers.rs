//! SYSCALL and SYSENTER, IRET and interrupts between privileges and code sizes, far transfers.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::arch::x86_64::{efer, gpr, rflags, seg, vector};

use super::support::*;
use super::{CODE, GDT, HANDLERS, IDT, Machine, STACK, TSS};

const FLAT32_USER: u64 = 0x00cf_fb00_0000_ffff;
const FLAT32: u64 = 0x00cf_9b00_0000_ffff;

/// With a GDT that SYSRET and SYSEXIT like: 0x30 32-bit user code, 0x38 user data, 0x40 user code,
/// 0x48 user data; 0x50 32-bit code, 0x58 and 0x60 for the test.
fn machine() -> Machine {
    let mut m = Machine::new();
    for (at, v) in [
        (0x30, FLAT32_USER),
        (0x38, 0x00cf_f300_0000_ffff),
        (0x40, 0x00af_fb00_0000_ffff),
        (0x48, 0x00cf_f300_0000_ffff),
        (0x50, FLAT32),
        (0x58, 0),
        (0x60, 0),
    ] {
        m.put(GDT + at, v);
    }
    m.state.gdt.limit = 0x67;
    m.state.msrs.star = 8 << 32 | 0x33 << 48;
    m.state.msrs.lstar = CODE + 0x800;
    m.state.msrs.sfmask = rflags::IF | rflags::DF;
    m
}

fn iret_to(
    a: &mut CodeAssembler,
    ss_: i32,
    sp_: u64,
    flags: i32,
    cs_: i32,
    ip: u64,
) -> Result<(), IcedError> {
    a.push(ss_)?;
    a.mov(rax, sp_)?;
    a.push(rax)?;
    a.push(flags)?;
    a.push(cs_)?;
    a.mov(rax, ip)?;
    a.push(rax)?;
    a.iretq()
}

#[test]
fn syscall_enters_the_kernel_and_sysret_returns() {
    let mut m = machine();
    m.write(
        CODE + 0x800,
        &asm_at(CODE + 0x800, |a| {
            a.pushfq()?;
            a.pop(r8)?;
            a.mov(r9d, cs)?;
            a.mov(r10d, ss)?;
            a.sysretq()
        }),
    );
    m.user();
    m.state.rflags |= rflags::IF | rflags::DF | rflags::CF;
    let s = m.run(&asm(|a| {
        a.syscall()?;
        a.ud2()
    }));
    assert_eq!((s.gpr[8], s.gpr[9], s.gpr[10]), (rflags::CF | 2, 8, 0x10));
    let f = m.frame(&s);
    assert_eq!((f.vector, f.rip, f.cs, f.ss, f.rsp), (vector::UD, CODE + 2, 0x43, 0x3b, STACK));
    assert_eq!(f.flags, m.state.rflags | rflags::RF);
    assert_eq!((s.gpr[gpr::RCX], s.gpr[11]), (CODE + 2, m.state.rflags));
}

#[test]
fn sysret_to_32_bit_code_and_syscall_from_it() {
    let mut m = machine();
    let target = CODE + 0x400;
    m.write(target, &[0x40, 0x0f, 0x05]);
    let f = m.fault(&asm(|a| {
        a.mov(ecx, target as u32)?;
        a.mov(r11d, 0x202)?;
        a.sysret()
    }));
    assert_eq!((f.vector, f.rip, f.cs, f.ss), (vector::UD, target + 1, 0x33, 0x3b), "SYSCALL is #UD there");
    assert_eq!(m.vcpu.cpu.regs[0], 1, "INC EAX");
}

#[test]
fn system_calls_are_refused_where_they_must_be() {
    let mut m = machine();
    let sysret = asm(|a| a.sysretq());
    m.state.gpr[gpr::RCX] = 1 << 47;
    let f = m.fault(&sysret);
    assert_eq!((f.what(), f.cs), ((vector::GP, Some(0)), 8), "a non-canonical target, still in the kernel");
    m.state.efer &= !efer::SCE;
    assert_eq!(m.fault(&sysret).vector, vector::UD);
    assert_eq!(m.fault(&[0x0f, 0x05]).vector, vector::UD);
    let mut m = machine();
    m.user();
    assert_eq!(m.fault(&sysret).what(), (vector::GP, Some(0)));
    assert_eq!(m.fault(&[0x0f, 0x34]).what(), (vector::GP, Some(0)), "SYSENTER with CS zero");
    assert_eq!(m.fault(&[0x0f, 0x35]).what(), (vector::GP, Some(0)), "SYSEXIT");
}

#[test]
fn sysenter_and_both_sysexits() {
    let mut m = machine();
    // CS 8, then SS 0x10, 32-bit user 0x18 and 0x20, 64-bit user 0x28 and 0x30.
    for (at, v) in [
        (0x18, FLAT32_USER),
        (0x20, 0x00cf_f300_0000_ffff),
        (0x28, 0x00af_fb00_0000_ffff),
        (0x30, 0x00cf_f300_0000_ffff),
    ] {
        m.put(GDT + at, v);
    }
    m.state.msrs.sysenter_cs = 8;
    m.state.msrs.sysenter_eip = CODE + 0x800;
    m.state.msrs.sysenter_esp = STACK - 0x800;
    m.state.seg[seg::CS] =
        crate::arch::x86_64::Segment { selector: 0x1b, base: 0, limit: u32::MAX, attributes: 0xc0fb };
    m.state.seg[seg::SS].selector = 0x23;
    m.state.rflags |= rflags::IF;
    let f = |m: &mut Machine, long: bool| {
        m.write(
            CODE + 0x800,
            &asm_at(CODE + 0x800, |a| {
                a.mov(r8, rsp)?;
                a.pushfq()?;
                a.pop(r9)?;
                a.mov(edx, (CODE + 0x400) as u32)?;
                a.mov(ecx, 0x30_0000)?;
                if long { a.sysexitq() } else { a.sysexit() }
            }),
        );
        m.write(CODE + 0x400, &[0x0f, 0x0b]);
        m.fault(&[0x0f, 0x34])
    };
    let frame = f(&mut m, false);
    assert_eq!((frame.cs, frame.ss, frame.rsp, frame.rip), (0x1b, 0x23, 0x30_0000, CODE + 0x400));
    assert_eq!((m.vcpu.cpu.regs[8], m.vcpu.cpu.regs[9] & rflags::IF), (STACK - 0x800, 0));
    let frame = f(&mut m, true);
    assert_eq!((frame.cs, frame.ss, frame.rsp, frame.rip), (0x2b, 0x33, 0x30_0000, CODE + 0x400));
    // A target that no code can have.
    let mut m = machine();
    m.state.msrs.sysenter_cs = 8;
    m.state.gpr[gpr::RDX] = 1 << 63;
    assert_eq!(m.fault(&asm(|a| a.sysexitq())).what(), (vector::GP, Some(0)));
}

#[test]
fn iret_to_user_code_of_both_sizes_and_back_by_interrupt() {
    for (cs_, long) in [(0x23, true), (0x33, false)] {
        let mut m = machine();
        m.put(IDT + 16 * 0x80, (HANDLERS + 16 * 0x80) & 0xffff | 8 << 16 | 0xee00 << 32);
        // In 32-bit code 48 is DEC EAX, in 64-bit code REX.W; then INT 80h.
        m.write(CODE + 0x400, &[0x48, 0xcd, 0x80]);
        m.state.rflags |= rflags::NT;
        assert_eq!(m.fault(&[0x48, 0xcf]).what(), (vector::GP, Some(0)), "no nested tasks");
        m.state.rflags &= !rflags::NT;
        let s = m.run(&asm(|a| {
            a.mov(ebx, 0x10)?;
            a.mov(es, ebx)?;
            a.mov(fs, ebx)?;
            a.mov(ebx, 0x1b)?;
            a.mov(ds, ebx)?;
            iret_to(a, 0x1b, 0x30_0000, 0x203, cs_, CODE + 0x400)
        }));
        let f = m.frame(&s);
        assert_eq!(
            (f.vector, f.rip, f.cs, f.ss, f.rsp, f.flags & 0x203),
            (0x80, CODE + 0x403, cs_ as u64, 0x1b, 0x30_0000, 0x203)
        );
        assert_eq!(s.gpr[gpr::RAX] as u32, if long { CODE as u32 + 0x400 } else { CODE as u32 + 0x3ff });
        assert_eq!(s.gpr[gpr::RSP], STACK - 0x1000 - 40);
        let selectors = [seg::ES, seg::FS, seg::DS].map(|i| s.seg[i].selector);
        assert_eq!(selectors, [0, 0, 0x1b], "segments of the kernel's are taken away");
        assert!(s.seg[seg::CS].long());
    }
}

#[test]
fn iret_checks_what_it_returns_to() {
    let mut m = machine();
    m.put(GDT + 0x58, 0x00af_1b00_0000_ffff);
    m.put(GDT + 0x60, 0x00cf_7300_0000_ffff);
    let mut check =
        |ss_: i32, cs_: i32, ip: u64| m.fault(&asm(|a| iret_to(a, ss_, 0x30_0000, 2, cs_, ip))).what();
    let bad = 1 << 47;
    assert_eq!(check(0x1b, 0x23, bad), (vector::GP, Some(0)), "non-canonical");
    assert_eq!(check(0x1b, 0, CODE), (vector::GP, Some(0)), "null CS");
    assert_eq!(check(0x1b, 0x1b, CODE), (vector::GP, Some(0x18)), "data as CS");
    assert_eq!(check(0x1b, 0x20, CODE), (vector::GP, Some(0x20)), "RPL and DPL of CS differ");
    assert_eq!(check(0x10, 0x58, CODE), (vector::NP, Some(0x58)), "absent CS");
    assert_eq!(check(0x1b, 0x1000, CODE), (vector::GP, Some(0x1000)), "outside the GDT");
    assert_eq!(check(0, 0x23, CODE), (vector::GP, Some(0)), "null SS for user code");
    assert_eq!(check(0x10, 0x23, CODE), (vector::GP, Some(0x10)), "the kernel's SS for user code");
    assert_eq!(check(0x63, 0x23, CODE), (vector::SS, Some(0x60)), "absent SS");
    m.user();
    assert_eq!(m.fault(&asm(|a| iret_to(a, 0x10, 0x30_0000, 2, 8, CODE))).what(), (vector::GP, Some(8)));
}

#[test]
fn user_code_cannot_change_iopl_or_if_by_iret_and_popf() {
    let mut m = machine();
    m.user();
    m.write(CODE + 0x400, &[0x0f, 0x0b]);
    let iret = asm(|a| iret_to(a, 0x1b, 0x30_0000, 0x3202, 0x23, CODE + 0x400));
    assert_eq!(m.fault(&iret).flags & 0x3200, 0);
    let popf = asm(|a| {
        a.push(0x3202)?;
        a.popfq()?;
        a.ud2()
    });
    assert_eq!(m.fault(&popf).flags & 0x3200, 0);
    m.state.rflags |= rflags::IOPL;
    assert_eq!(m.fault(&popf).flags & 0x3200, 0x3200, "IOPL 3 lets IF through");
}

/// Runs `code` with a far pointer `selector:offset` at RBX, 16:64 by REX.W.
fn far(selector: u16, offset: u64, write: fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    asm(|a| {
        a.mov(ebx, 0x30_0000)?;
        a.mov(rax, offset)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.mov(word_ptr(rbx + 8), selector as i32)?;
        write(a)
    })
}

fn call64(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.db(&[0x48, 0xff, 0x1b])
}

fn jmp64(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.db(&[0x48, 0xff, 0x2b])
}

#[test]
fn far_calls_and_jumps_at_the_same_privilege() {
    let mut m = machine();
    m.write(CODE + 0x400, &[0x48, 0xcb]);
    let code = far(8, CODE + 0x400, |a| {
        call64(a)?;
        a.mov(ecx, cs)?;
        a.hlt()
    });
    let s = m.run(&code);
    assert_eq!((s.rip, s.gpr[gpr::RCX], s.gpr[gpr::RSP]), (CODE + code.len() as u64, 8, STACK));
    m.write(CODE + 0x400, &[0x0f, 0x0b]);
    assert_eq!(m.fault(&far(8, CODE + 0x400, jmp64)).rip, CODE + 0x400);
    let f = m.fault(&far(0x50, CODE + 0x400, jmp64));
    assert_eq!((f.rip, f.cs), (CODE + 0x400, 0x50), "to 32-bit code");
    let bad = far(8, 1 << 47, jmp64);
    let f = m.fault(&bad);
    assert_eq!((f.what(), f.rip), ((vector::GP, Some(0)), CODE + bad.len() as u64 - 3), "the jump itself");
    let bad = far(8, 1 << 47, call64);
    assert_eq!(m.fault(&bad).rsp, STACK, "the stack pointer stays");
    m.put(GDT + 0x58, 0x00af_1b00_0000_ffff);
    for (selector, expect, what) in [
        (0, (vector::GP, Some(0)), "null"),
        (0x10, (vector::GP, Some(0x10)), "data"),
        (0x20, (vector::GP, Some(0x20)), "outer privilege"),
        (0x28, (vector::GP, Some(0x28)), "a TSS is no way in long mode"),
        (0x58, (vector::NP, Some(0x58)), "absent"),
        (0x0c, (vector::GP, Some(0x0c)), "no LDT"),
    ] {
        assert_eq!(m.fault(&far(selector, CODE, jmp64)).what(), expect, "{what}");
    }
}

/// A 64-bit call gate at 0x58 to `selector:CODE+0x400`.
fn call_gate(m: &Machine, selector: u64, access: u64) {
    let to = CODE + 0x400;
    m.put(GDT + 0x58, to & 0xffff | selector << 16 | access << 40 | to >> 16 << 48);
    m.put(GDT + 0x60, to >> 32);
}

#[test]
fn a_call_gate_leads_inward_and_a_far_return_back() {
    let mut m = machine();
    call_gate(&m, 8, 0xec);
    m.write(
        CODE + 0x400,
        &asm_at(CODE + 0x400, |a| {
            a.mov(r8d, cs)?;
            a.mov(r9d, ss)?;
            a.mov(r10, rsp)?;
            a.db(&[0x48, 0xcb])
        }),
    );
    m.user();
    let code = far(0x5b, 0xdead, |a| {
        call64(a)?;
        a.ud2()
    });
    let s = m.run(&code);
    let f = m.frame(&s);
    assert_eq!((f.vector, f.cs, f.ss, f.rsp), (vector::UD, 0x23, 0x1b, STACK));
    assert_eq!(f.rip, CODE + code.len() as u64 - 2);
    assert_eq!((s.gpr[8], s.gpr[9], s.gpr[10]), (8, 0, STACK - 0x1000 - 32));
    m.put(TSS + 4, (1 << 47) + 0x1000);
    m.put(IDT + 16 * 12, (HANDLERS + 16 * 12) | 8 << 16 | 0x8e01 << 32);
    m.put(TSS + 0x24, STACK - 0x2000);
    assert_eq!(m.fault(&code).what(), (vector::SS, Some(0)), "no stack to enter on");
}

#[test]
fn call_gates_are_checked() {
    let mut m = machine();
    m.user();
    let call = far(0x5b, 0, call64);
    let jump = far(0x5b, 0, jmp64);
    m.write(CODE + 0x400, &[0x0f, 0x0b]);
    call_gate(&m, 8, 0x8c);
    assert_eq!(m.fault(&call).what(), (vector::GP, Some(0x58)), "the gate's privilege");
    call_gate(&m, 8, 0x6c);
    assert_eq!(m.fault(&call).what(), (vector::NP, Some(0x58)), "absent");
    call_gate(&m, 8, 0xec);
    assert_eq!(m.fault(&jump).what(), (vector::GP, Some(8)), "a jump cannot change privilege");
    call_gate(&m, 0x50, 0xec);
    assert_eq!(m.fault(&call).what(), (vector::GP, Some(0x50)), "32-bit code");
    call_gate(&m, 0, 0xec);
    assert_eq!(m.fault(&call).what(), (vector::GP, Some(0)), "null");
    // Conforming code is entered with the caller's privilege and stack.
    m.put(GDT + 0x50, 0x00af_9f00_0000_ffff);
    call_gate(&m, 0x50, 0xec);
    let f = m.fault(&call);
    assert_eq!((f.vector, f.cs, f.rsp, f.rip), (vector::UD, 0x53, STACK - 16, CODE + 0x400));
    call_gate(&m, 8, 0xec);
    m.put(GDT + 0x60, 1 << 40);
    assert_eq!(m.fault(&call).what(), (vector::GP, Some(0x58)), "a type in the upper half");
}
