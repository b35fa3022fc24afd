//! What the processor may remember of page tables, and what makes it forget.

use iced_x86::code_asm::*;

use crate::arch::x86_64::{cr4, gpr, vector};

use super::support::*;
use super::{CODE, Machine};

/// Reads `at`, replaces the entry at `slot` by `entry`, does `forget`, reads again: both values.
fn remap(
    m: &mut Machine,
    at: u64,
    slot: u64,
    entry: u64,
    forget: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> (u64, u64) {
    let code = asm(|a| {
        a.mov(rdi, at)?;
        a.mov(rsi, qword_ptr(rdi))?;
        a.mov(rax, slot)?;
        a.mov(rbx, entry)?;
        a.mov(qword_ptr(rax), rbx)?;
        forget(a)?;
        a.mov(rbx, qword_ptr(rdi))?;
        a.hlt()
    });
    let s = m.run(&code);
    assert_eq!(s.rip, CODE + code.len() as u64);
    (s.gpr[gpr::RSI], s.gpr[gpr::RBX])
}

fn two_frames() -> Machine {
    let m = Machine::with_pages();
    m.put(FRAMES, 1);
    m.put(FRAMES + 0x1000, 2);
    m
}

fn reload_cr3(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    a.mov(rcx, cr3)?;
    a.mov(cr3, rcx)
}

#[test]
fn invlpg_forgets_a_page() {
    let mut m = two_frames();
    let new = (FRAMES + 0x1000) | 7;
    assert_eq!(remap(&mut m, PAGES, PT, new, |a| a.invlpg(byte_ptr(rdi + 0xabc))), (1, 2));
}

#[test]
fn invlpg_anywhere_in_a_large_page_forgets_all_of_it() {
    for (slot, size) in [(PD, 1u64 << 21), (PDPT, 1 << 30)] {
        let mut m = two_frames();
        let table = m.read_u64(slot);
        m.put(slot, 7 | pte::PS);
        m.put(FRAMES + 0x5000, 5);
        let before = m.read_u64(0x5000);
        let seen = remap(&mut m, PAGES + 0x5000, slot, table, |a| {
            a.mov(rcx, PAGES + size - 1)?;
            a.invlpg(byte_ptr(rcx))
        });
        assert_eq!(seen, (before, 5), "{size:#x}");
    }
}

#[test]
fn a_cr3_write_forgets_all_but_global_pages() {
    let new = (FRAMES + 0x1000) | 7;
    let mut m = two_frames();
    assert_eq!(remap(&mut m, PAGES, PT, new, reload_cr3), (1, 2));
    let mut m = two_frames();
    m.state.cr4 |= cr4::PGE;
    m.page(0, FRAMES | 7 | pte::G);
    assert_eq!(remap(&mut m, PAGES, PT, new | pte::G, reload_cr3), (1, 1), "global");
    let mut m = two_frames();
    m.page(0, FRAMES | 7 | pte::G);
    assert_eq!(remap(&mut m, PAGES, PT, new | pte::G, reload_cr3), (1, 2), "G without PGE is nothing");
}

#[test]
fn global_pages_do_not_survive_a_change_of_pge_or_invlpg() {
    let new = (FRAMES + 0x1000) | 7 | pte::G;
    let global = || {
        let mut m = two_frames();
        m.state.cr4 |= cr4::PGE;
        m.page(0, FRAMES | 7 | pte::G);
        m
    };
    let toggled = remap(&mut global(), PAGES, PT, new, |a| {
        a.mov(rcx, cr4)?;
        a.mov(rdx, rcx)?;
        a.and(rcx, !(cr4::PGE as i32))?;
        a.mov(cr4, rcx)?;
        a.mov(cr4, rdx)
    });
    assert_eq!(toggled, (1, 2));
    assert_eq!(remap(&mut global(), PAGES, PT, new, |a| a.invlpg(byte_ptr(rdi))), (1, 2));
}

#[test]
fn invpcid_forgets_what_its_type_says() {
    let invpcid = |kind: u64, at: u64| {
        move |a: &mut CodeAssembler| {
            a.sub(rsp, 16)?;
            a.mov(rcx, at)?;
            a.mov(qword_ptr(rsp), 0)?;
            a.mov(qword_ptr(rsp + 8), rcx)?;
            a.mov(rdx, kind)?;
            a.invpcid(rdx, xmmword_ptr(rsp))
        }
    };
    let new = (FRAMES + 0x1000) | 7;
    for kind in 0..4 {
        assert_eq!(remap(&mut two_frames(), PAGES, PT, new, invpcid(kind, PAGES)), (1, 2), "type {kind}");
    }
    for (kind, expect) in [(1, 1), (2, 2), (3, 1)] {
        let mut m = two_frames();
        m.state.cr4 |= cr4::PGE;
        m.page(0, FRAMES | 7 | pte::G);
        let seen = remap(&mut m, PAGES, PT, new | pte::G, invpcid(kind, PAGES));
        assert_eq!(seen, (1, expect), "global, type {kind}");
    }
}

#[test]
fn invpcid_refuses_bad_descriptors() {
    let mut m = Machine::new();
    let mut run = |pcide: bool, kind: u64, pcid: u64, at: u64| {
        m.state.cr4 = m.state.cr4 & !cr4::PCIDE | if pcide { cr4::PCIDE } else { 0 };
        let code = asm(|a| {
            a.mov(rcx, pcid)?;
            a.mov(rdx, at)?;
            a.mov(qword_ptr(rsp - 16), rcx)?;
            a.mov(qword_ptr(rsp - 8), rdx)?;
            a.mov(eax, kind as u32)?;
            a.invpcid(rax, xmmword_ptr(rsp - 16))?;
            a.ud2()
        });
        m.fault(&code).vector
    };
    assert_eq!(run(true, 0, 0xfff, 0), vector::UD);
    assert_eq!(run(true, 4, 0, 0), vector::GP, "type");
    assert_eq!(run(true, 3, 0x1000, 0), vector::GP, "reserved bits");
    assert_eq!(run(true, 0, 0, 1 << 47), vector::GP, "non-canonical");
    assert_eq!(run(true, 1, 0, 1 << 47), vector::UD, "no address in type 1");
    assert_eq!(run(false, 0, 1, 0), vector::GP, "a PCID without PCIDs");
    assert_eq!(run(false, 2, 1, 0), vector::UD);
}

#[test]
fn cr3_takes_bit_63_only_with_pcids_and_reads_it_as_zero() {
    let mut m = Machine::new();
    let code = asm(|a| {
        a.mov(rax, 0x8000_0000_0000_1005u64)?;
        a.mov(cr3, rax)?;
        a.mov(rbx, cr3)?;
        a.hlt()
    });
    assert_eq!(m.fault(&code).what(), (vector::GP, Some(0)));
    m.state.cr4 |= cr4::PCIDE;
    assert_eq!(m.run(&code).gpr[gpr::RBX], 0x1005);
    let enable = asm(|a| {
        a.mov(rax, cr4)?;
        a.or(rax, cr4::PCIDE as i32)?;
        a.mov(cr4, rax)?;
        a.hlt()
    });
    m.state.cr4 &= !cr4::PCIDE;
    assert_eq!(m.run(&enable).cr4 & cr4::PCIDE, cr4::PCIDE);
    m.state.cr3 = 0x1008;
    assert_eq!(m.fault(&enable).what(), (vector::GP, Some(0)), "only from PCID zero");
    m.state.cr3 = 0x1000;
    let address = asm(|a| {
        a.mov(rax, 1u64 << 46)?;
        a.mov(cr3, rax)
    });
    assert_eq!(m.fault(&address).what(), (vector::GP, Some(0)));
}

#[test]
fn user_code_cannot_jump_to_what_the_kernel_just_ran() {
    let mut m = Machine::with_pages();
    m.supervisor();
    // The kernel runs its page 1 many times, then returns to user code, which jumps to it.
    m.page(1, (FRAMES + 0x1000) | pte::P | pte::W);
    m.write(FRAMES + 0x1000, &[0xc3]);
    m.write(
        FRAMES,
        &asm_at(PAGES, |a| {
            a.mov(rax, PAGES + 0x1000)?;
            a.call(rax)?;
            a.ud2()
        }),
    );
    let code = asm(|a| {
        let mut again = a.create_label();
        a.mov(rax, PAGES + 0x1000)?;
        a.mov(ecx, 100)?;
        a.set_label(&mut again)?;
        a.call(rax)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.push(0x1b)?;
        a.mov(rbx, PAGES + 0x3000)?;
        a.push(rbx)?;
        a.push(2)?;
        a.push(0x23)?;
        a.mov(rbx, PAGES)?;
        a.push(rbx)?;
        a.iretq()
    });
    let f = m.fault(&code);
    assert_eq!((f.vector, f.error, f.rip), (vector::PF, Some(0x15), PAGES + 0x1000));
}

#[test]
fn the_kernel_cannot_jump_to_what_user_code_just_ran() {
    let mut m = Machine::with_pages();
    m.supervisor();
    m.state.cr4 |= cr4::SMEP;
    // User code at PAGES raises #UD; its handler jumps to it.
    m.write(FRAMES, &[0x90, 0x0f, 0x0b]);
    m.write(
        super::HANDLERS + 16 * 6,
        &asm_at(super::HANDLERS + 16 * 6, |a| {
            a.mov(rax, PAGES)?;
            a.jmp(rax)
        }),
    );
    m.user();
    m.state.rip = PAGES;
    let f = m.fault_here();
    assert_eq!((f.vector, f.error, f.cs), (vector::PF, Some(0x11), 8));
}

#[test]
fn the_same_bytes_are_decoded_anew_in_another_code_size() {
    let mut m = Machine::new();
    m.put(super::GDT + 0x30, 0x00cf_9b00_0000_ffff);
    let target = CODE + 0x100;
    m.write(target, &[0x40, 0xcb]);
    let code = asm(|a| {
        a.xor(eax, eax)?;
        a.sub(rsp, 64)?;
        // Once as 64-bit code by a far call: REX RETF.
        a.mov(dword_ptr(rsp + 16), target as u32)?;
        a.mov(dword_ptr(rsp + 20), 8)?;
        a.call(fword_ptr(rsp + 16))?;
        a.mov(ebx, eax)?;
        // And as 32-bit code: INC EAX, RETF.
        a.mov(dword_ptr(rsp + 20), 0x30)?;
        a.call(fword_ptr(rsp + 16))?;
        a.hlt()
    });
    m.state.gdt.limit = 0x3f;
    let s = m.run(&code);
    assert_eq!((s.gpr[gpr::RBX], s.gpr[gpr::RAX]), (0, 1));
    assert_eq!(s.rip, CODE + code.len() as u64);
}
