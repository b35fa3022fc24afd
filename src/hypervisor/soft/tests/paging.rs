//! The page walk: permissions, error codes, accessed and dirty bits, reserved bits, page sizes.

use iced_x86::code_asm::*;

use crate::arch::x86_64::{cr0, cr4, efer, gpr, rflags, vector};
use crate::hypervisor::{Exit, Vcpu};

use super::support::*;
use super::{CODE, Machine, NoIo};

/// Error code of the #PF that `code` ends in, and CR2; `None` if it halts by itself.
fn page_fault(m: &mut Machine, code: &[u8]) -> Option<(u64, u64)> {
    let s = m.run(code);
    if s.rip == CODE + code.len() as u64 {
        return None;
    }
    let f = m.frame(&s);
    assert_eq!(f.vector, vector::PF);
    f.error.map(|e| (e, s.cr2))
}

fn read(at: u64) -> Vec<u8> {
    asm(|a| {
        a.mov(rax, at)?;
        a.mov(ecx, dword_ptr(rax))?;
        a.hlt()
    })
}

fn write(at: u64) -> Vec<u8> {
    asm(|a| {
        a.mov(rax, at)?;
        a.mov(dword_ptr(rax), ecx)?;
        a.hlt()
    })
}

fn jump(at: u64) -> Vec<u8> {
    asm(|a| {
        a.mov(rax, at)?;
        a.jmp(rax)
    })
}

#[test]
fn write_protection_holds_for_the_supervisor_only_under_wp() {
    let mut m = Machine::with_pages();
    m.page(0, FRAMES | pte::P | pte::U);
    assert_eq!(page_fault(&mut m, &write(PAGES + 8)), Some((3, PAGES + 8)));
    assert_eq!(page_fault(&mut m, &read(PAGES)), None);
    m.state.cr0 &= !cr0::WP;
    assert_eq!(page_fault(&mut m, &write(PAGES)), None);
    m.user();
    assert_eq!(m.fault(&write(PAGES)).error, Some(7), "user code is always held");
}

#[test]
fn any_level_can_take_write_user_and_execute_away() {
    for (slot, entry) in [(0x1008, PDPT), (PDPT, PD), (PD, PT), (PT, FRAMES)] {
        let mut m = Machine::with_pages();
        m.put(slot, entry | pte::P | pte::U);
        assert_eq!(page_fault(&mut m, &write(PAGES)), Some((3, PAGES)), "read-only at {slot:#x}");
        m.put(slot, entry | 7 | pte::NX);
        assert_eq!(page_fault(&mut m, &jump(PAGES)), Some((0x11, PAGES)), "NX at {slot:#x}");
        m.put(slot, entry | pte::P | pte::W);
        m.user();
        assert_eq!(m.fault(&read(PAGES)).error, Some(5), "supervisor at {slot:#x}");
        m.put(slot, entry & !1 | 6);
        assert_eq!(m.fault(&read(PAGES)).error, Some(4), "absent at {slot:#x}");
    }
}

#[test]
fn nx_is_a_reserved_bit_without_nxe() {
    let mut m = Machine::with_pages();
    m.page(0, FRAMES | 7 | pte::NX);
    assert_eq!(page_fault(&mut m, &read(PAGES)), None);
    m.state.efer &= !efer::NXE;
    assert_eq!(page_fault(&mut m, &read(PAGES)), Some((9, PAGES)));
    assert_eq!(page_fault(&mut m, &write(PAGES)), Some((11, PAGES)));
    assert_eq!(page_fault(&mut m, &jump(PAGES)), Some((9, PAGES)), "no I bit without NXE and SMEP");
    m.page(0, 0);
    assert_eq!(page_fault(&mut m, &jump(PAGES)), Some((0, PAGES)));
    m.state.efer |= efer::NXE;
    assert_eq!(page_fault(&mut m, &jump(PAGES)), Some((0x10, PAGES)));
}

#[test]
fn reserved_bits_fault_at_every_level() {
    let cases = [
        (0x1008, PDPT | 7 | 1 << 46, "address bits"),
        (0x1008, PDPT | 7 | pte::PS, "no large page at level 4"),
        (PDPT, PD | 7 | 1 << 51, "address bits"),
        (PDPT, 7 | pte::PS | 1 << 29, "1 GiB frame"),
        (PDPT, 7 | pte::PS | 1 << 13, "1 GiB frame"),
        (PD, 7 | pte::PS | 1 << 20, "2 MiB frame"),
        (PD, PT | 7 | 1 << 47, "address bits"),
        (PT, FRAMES | 7 | 1 << 48, "address bits"),
    ];
    for (slot, entry, what) in cases {
        let mut m = Machine::with_pages();
        m.put(slot, entry);
        assert_eq!(page_fault(&mut m, &read(PAGES)), Some((9, PAGES)), "{what} {slot:#x} {entry:#x}");
    }
}

#[test]
fn all_page_sizes_translate() {
    let mut m = Machine::with_pages();
    m.put(0xa0_1234, 0x1111);
    m.put(PD + 8, 0xa0_0000 | 7 | pte::PS | 1 << 12);
    assert_eq!(m.run(&read(PAGES + 0x20_1234)).gpr[gpr::RCX], 0x1111, "2 MiB, PAT bit set");
    m.put(PDPT + 8, 7 | pte::PS);
    assert_eq!(m.run(&read(PAGES + (1 << 30) + 0xa0_1234)).gpr[gpr::RCX], 0x1111, "1 GiB");
    m.page(3, 0xa0_1000 | 7 | pte::PS);
    assert_eq!(m.run(&read(PAGES + 0x3234)).gpr[gpr::RCX], 0x1111, "4 KiB, PAT bit set");
}

#[test]
fn accessed_is_set_at_every_level_and_dirty_by_writes_only() {
    let mut m = Machine::with_pages();
    let slots = [0x1008, PDPT, PD, PT];
    let bits = |m: &Machine| slots.map(|s| m.read_u64(s) & (pte::A | pte::D));
    assert_eq!(bits(&m), [0; 4]);
    m.run(&read(PAGES));
    assert_eq!(bits(&m), [pte::A; 4]);
    m.run(&write(PAGES));
    assert_eq!(bits(&m), [pte::A, pte::A, pte::A, pte::A | pte::D]);
}

#[test]
fn a_read_that_is_cached_does_not_hide_the_first_write() {
    let mut m = Machine::with_pages();
    let s = m.run(&asm(|a| {
        a.mov(rax, PAGES)?;
        a.mov(rbx, PT)?;
        a.mov(ecx, dword_ptr(rax))?;
        a.mov(rsi, qword_ptr(rbx))?;
        a.mov(dword_ptr(rax), ecx)?;
        a.mov(rdi, qword_ptr(rbx))?;
        a.hlt()
    }));
    assert_eq!(s.gpr[gpr::RSI] & (pte::A | pte::D), pte::A);
    assert_eq!(s.gpr[gpr::RDI] & (pte::A | pte::D), pte::A | pte::D);
}

#[test]
fn a_refused_access_sets_nothing() {
    let mut m = Machine::with_pages();
    m.page(0, FRAMES | pte::P | pte::U);
    m.run(&write(PAGES));
    assert_eq!(m.read_u64(PT), FRAMES | pte::P | pte::U);
}

#[test]
fn an_access_across_pages_faults_on_the_second_and_writes_nothing() {
    let mut m = Machine::with_pages();
    m.page(1, 0);
    m.put(FRAMES + 0xff8, 0x1122_3344_5566_7788);
    assert_eq!(page_fault(&mut m, &write(PAGES + 0xffe)), Some((2, PAGES + 0x1000)));
    assert_eq!(m.read_u64(FRAMES + 0xff8), 0x1122_3344_5566_7788);
    assert_eq!(page_fault(&mut m, &read(PAGES + 0xffd)), Some((0, PAGES + 0x1000)));
    let locked = asm(|a| {
        a.mov(rax, PAGES + 0xffe)?;
        a.lock().add(dword_ptr(rax), ecx)
    });
    assert_eq!(page_fault(&mut m, &locked), Some((2, PAGES + 0x1000)));
    let sse = asm(|a| {
        a.mov(rax, PAGES + 0xff8)?;
        a.movups(xmmword_ptr(rax), xmm0)
    });
    assert_eq!(page_fault(&mut m, &sse), Some((2, PAGES + 0x1000)));
    assert_eq!(m.read_u64(FRAMES + 0xff8), 0x1122_3344_5566_7788);
}

#[test]
fn an_instruction_that_reaches_into_a_bad_page_faults_there() {
    for (entry, error) in [(0, 0x10), ((FRAMES + 0x1000) | 7 | pte::NX, 0x11)] {
        let mut m = Machine::with_pages();
        m.page(1, entry);
        // mov eax, imm32, of which two bytes are in the next page.
        m.write(FRAMES + 0xffc, &[0x90, 0xb8, 1, 2]);
        m.state.rip = PAGES + 0xffc;
        let f = m.fault_here();
        assert_eq!((f.vector, f.error, f.rip), (vector::PF, Some(error), PAGES + 0xffd));
        assert_eq!(m.vcpu.cpu.cr2, PAGES + 0x1000);
    }
}

#[test]
fn smep_keeps_the_supervisor_from_user_code() {
    let mut m = Machine::with_pages();
    m.supervisor();
    m.write(FRAMES, &[0xf4]);
    let s = m.run(&jump(PAGES));
    assert_eq!(s.rip, PAGES + 1, "without SMEP it runs");
    m.state.cr4 |= cr4::SMEP;
    assert_eq!(page_fault(&mut m, &jump(PAGES)), Some((0x11, PAGES)));
    m.state.efer &= !efer::NXE;
    assert_eq!(page_fault(&mut m, &jump(PAGES)), Some((0x11, PAGES)), "SMEP alone gives the I bit too");
}

#[test]
fn smap_opens_user_pages_by_ac_only() {
    let mut m = Machine::with_pages();
    m.supervisor();
    m.state.cr4 |= cr4::SMAP;
    assert_eq!(page_fault(&mut m, &read(PAGES)), Some((1, PAGES)));
    assert_eq!(page_fault(&mut m, &write(PAGES)), Some((3, PAGES)));
    // Opened by STAC, closed by CLAC, in one block.
    let code = asm(|a| {
        a.mov(rax, PAGES)?;
        a.stac()?;
        a.mov(dword_ptr(rax), 7)?;
        a.mov(ebx, dword_ptr(rax))?;
        a.clac()?;
        a.mov(ecx, dword_ptr(rax))
    });
    let s = m.run(&code);
    assert_eq!((s.gpr[gpr::RBX], s.cr2, m.frame(&s).error), (7, PAGES, Some(1)));
    m.state.rflags |= rflags::AC;
    assert_eq!(page_fault(&mut m, &read(PAGES)), None);
    m.state.rflags &= !rflags::AC;
    m.state.cr0 &= !cr0::WP;
    assert_eq!(page_fault(&mut m, &write(PAGES)), Some((3, PAGES)), "WP has no say in SMAP");
}

#[test]
fn the_processor_reads_tables_with_supervisor_rights_and_against_smap() {
    let mut m = Machine::with_pages();
    m.supervisor();
    m.state.cr4 |= cr4::SMAP;
    m.state.rflags |= rflags::AC;
    // A user program loads a segment: the GDT is a supervisor page, and may be read all the same.
    let load = asm_at(PAGES, |a| {
        a.mov(eax, 0x1b)?;
        a.mov(ds, eax)?;
        a.ud2()
    });
    m.write(FRAMES, &load);
    m.user();
    m.state.rip = PAGES;
    assert_eq!(m.fault_here().vector, vector::UD);
    // With the GDT in a user page, SMAP refuses whatever the program's AC.
    m.write(FRAMES + 0x1000, &[0; 8]);
    m.put(FRAMES + 0x1018, 0x00cf_f300_0000_ffff);
    m.put(FRAMES + 0x1008, 0x00af_9b00_0000_ffff);
    m.state.gdt.base = PAGES + 0x1000;
    m.vcpu.set_state(&m.state).unwrap();
    assert_eq!(m.vcpu.run(&NoIo).unwrap(), Exit::TripleFault, "not even a handler can be entered");
    assert_eq!(m.vcpu.cpu.cr2, PAGES + 0x1008);
}

#[test]
fn addresses_that_no_page_can_have_are_gp_or_ss() {
    let mut m = Machine::new();
    let bad = 0x8000_0000_0000;
    assert_eq!(m.fault(&read(bad)).what(), (vector::GP, Some(0)));
    assert_eq!(m.fault(&jump(bad)).what(), (vector::GP, Some(0)));
    let stack = |write: fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>| {
        asm(|a| {
            a.mov(rbp, bad)?;
            a.mov(rbx, rsp)?;
            a.mov(rsp, bad)?;
            write(a)
        })
    };
    // Delivery needs a good stack.
    m.put(super::IDT + 16 * 12, (super::HANDLERS + 16 * 12) | (0x08 << 16) | 0x8e01 << 32);
    m.put(super::TSS + 0x24, super::STACK - 0x2000);
    for code in [
        stack(|a| a.mov(eax, dword_ptr(rbp))),
        stack(|a| a.pop(rax)),
        stack(|a| a.ret()),
        stack(|a| a.iretq()),
        stack(|a| a.db(&[0x48, 0xcb])),
        stack(|a| a.leave()),
        stack(|a| a.popfq()),
        stack(|a| a.pop(fs)),
        stack(|a| {
            a.lea(rsp, ptr(rsp + 8))?;
            a.push(rax)
        }),
    ] {
        let f = m.fault(&code);
        assert_eq!(f.what(), (vector::SS, Some(0)), "{code:02x?}");
    }
}
