//! Code that changes under the processor, and the cache of decoded blocks at its limit.

use std::sync::Arc;

use iced_x86::code_asm::*;
use vm_memory::{Bytes, GuestAddress};

use crate::arch::x86_64::gpr;
use crate::hypervisor::ExitIo;
use crate::memory::GuestRam;

use super::support::*;
use super::{CODE, Machine, NoIo};

#[test]
fn a_store_to_the_same_block_behind_a_jump_is_seen() {
    let mut m = Machine::new();
    let s = m.run(&asm(|a| {
        let mut patched = a.create_label();
        a.lea(rbx, ptr(patched))?;
        a.mov(byte_ptr(rbx + 1), 7)?;
        a.jmp(patched)?;
        a.ud2()?;
        a.set_label(&mut patched)?;
        a.mov(al, 1)?;
        a.hlt()
    }));
    assert_eq!(s.gpr[gpr::RAX], 7);
}

#[test]
fn a_function_that_is_patched_between_calls_runs_as_patched() {
    // In the same page, and in another.
    for function in [CODE + 0x800, CODE + 0x5000] {
        let mut m = Machine::new();
        // add eax, 1; ret
        m.write(function, &[0x83, 0xc0, 1, 0xc3]);
        let s = m.run(&asm(|a| {
            let mut again = a.create_label();
            a.mov(rdi, function)?;
            a.xor(eax, eax)?;
            a.mov(ecx, 1)?;
            a.set_label(&mut again)?;
            a.mov(byte_ptr(rdi + 2), cl)?;
            a.call(rdi)?;
            a.inc(ecx)?;
            a.cmp(ecx, 101)?;
            a.jne(again)?;
            a.hlt()
        }));
        assert_eq!(s.gpr[gpr::RAX], 5050, "{function:#x}");
    }
}

#[test]
fn a_store_through_another_mapping_is_seen() {
    let mut m = Machine::with_pages();
    let (run, write) = (PAGES, PAGES + 0x1000);
    m.page(1, FRAMES | 7);
    m.write(FRAMES, &[0xb0, 1, 0xc3]);
    let s = m.run(&asm(|a| {
        a.mov(rdi, run)?;
        a.mov(rsi, write)?;
        a.mov(byte_ptr(rsi + 0x800), 1)?;
        a.call(rdi)?;
        a.mov(ebx, eax)?;
        a.mov(byte_ptr(rsi + 1), 2)?;
        a.call(rdi)?;
        a.hlt()
    }));
    assert_eq!((s.gpr[gpr::RBX] as u8, s.gpr[gpr::RAX] as u8), (1, 2));
}

#[test]
fn an_instruction_on_two_pages_follows_both() {
    let mut m = Machine::with_pages();
    // mov eax, imm32 from three bytes before the end; then ret.
    m.write(FRAMES + 0xffd, &[0xb8, 1, 2, 3, 4, 0xc3]);
    m.write(FRAMES + 0x2000, &[5, 6, 0xc3]);
    let s = m.run(&asm(|a| {
        a.mov(rdi, PAGES + 0xffd)?;
        a.call(rdi)?;
        a.mov(r8d, eax)?;
        a.mov(byte_ptr(rdi + 4), 9)?;
        a.call(rdi)?;
        a.mov(r9d, eax)?;
        a.mov(byte_ptr(rdi + 1), 8)?;
        a.call(rdi)?;
        a.mov(r10d, eax)?;
        // Now another frame behind the second page.
        a.mov(rbx, PT + 8)?;
        a.mov(rcx, (FRAMES + 0x2000) | 7)?;
        a.mov(qword_ptr(rbx), rcx)?;
        a.invlpg(byte_ptr(rdi + 3))?;
        a.call(rdi)?;
        a.hlt()
    }));
    let seen = [s.gpr[8], s.gpr[9], s.gpr[10], s.gpr[gpr::RAX]];
    assert_eq!(seen, [0x0403_0201, 0x0903_0201, 0x0903_0208, 0x0605_0208]);
}

#[test]
fn moves_over_decoded_code_are_seen() {
    // The source lies as often in code as the destination: all three kinds of REP.
    let mut m = Machine::new();
    let (function, source) = (CODE + 0x2ff0, CODE + 0x9000);
    m.write(function, &[0xb0, 1, 0xc3]);
    for i in 0..100u8 {
        m.write(source + 0x40 * i as u64, &[0xb0, i, 0xc3]);
    }
    let s = m.run(&asm(|a| {
        let mut again = a.create_label();
        a.xor(edx, edx)?;
        a.xor(ebx, ebx)?;
        a.mov(r8, source)?;
        a.set_label(&mut again)?;
        a.mov(rsi, r8)?;
        a.mov(rdi, function)?;
        a.mov(ecx, 0x40)?;
        a.rep().movsb()?;
        a.mov(rdi, function)?;
        a.xor(eax, eax)?;
        a.call(rdi)?;
        a.add(ebx, eax)?;
        a.add(r8, 0x40)?;
        a.inc(edx)?;
        a.cmp(edx, 100)?;
        a.jne(again)?;
        a.hlt()
    }));
    assert_eq!(s.gpr[gpr::RBX], 4950);
}

#[test]
fn a_page_may_be_code_and_data_in_turns() {
    let mut m = Machine::new();
    let page = CODE + 0x3000;
    let s = m.run(&asm(|a| {
        let mut again = a.create_label();
        a.mov(rdi, page)?;
        a.xor(ebx, ebx)?;
        a.mov(ecx, 1000)?;
        a.set_label(&mut again)?;
        a.mov(byte_ptr(rdi), 0xb8)?;
        a.mov(dword_ptr(rdi + 1), ecx)?;
        a.mov(byte_ptr(rdi + 5), 0xc3)?;
        a.call(rdi)?;
        a.add(ebx, eax)?;
        a.mov(dword_ptr(rdi), ecx)?;
        a.add(ebx, dword_ptr(rdi))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    }));
    assert_eq!(s.gpr[gpr::RBX], 1_001_000);
}

/// A device that writes the function at `CODE + 0x800` when port 0x10 is written.
struct Patcher(Arc<GuestRam>);

impl ExitIo for Patcher {
    fn port_read(&self, _: u16, _: &mut [u8]) {}
    fn port_write(&self, _: u16, data: &[u8]) {
        self.0.memory().write_slice(&[0xb0, data[0], 0xc3], GuestAddress(CODE + 0x800)).unwrap();
    }
    fn mmio_read(&self, _: u64, _: &mut [u8]) {}
    fn mmio_write(&self, _: u64, _: &[u8]) {}
}

#[test]
fn code_that_a_device_writes_while_the_guest_runs_is_seen() {
    let mut m = Machine::new();
    m.write(
        CODE,
        &asm(|a| {
            let mut again = a.create_label();
            a.xor(ebx, ebx)?;
            a.mov(ecx, 100)?;
            a.set_label(&mut again)?;
            a.mov(eax, ecx)?;
            a.out(0x10, al)?;
            a.xor(eax, eax)?;
            a.call(CODE + 0x800)?;
            a.add(ebx, eax)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.hlt()
        }),
    );
    assert_eq!(m.go(&Patcher(m.ram.clone())).gpr[gpr::RBX], 5050);
}

#[test]
fn a_full_block_cache_starts_afresh_and_stays_right() {
    let mut m = Machine::new();
    m.vcpu.cache.limit = 50;
    // 300 functions, each `inc eax; ret`, called in turn, ten rounds.
    let first = CODE + 0x10_0000;
    for i in 0..300u64 {
        m.write(first + 0x100 * i, &[0xff, 0xc0, 0xc3]);
    }
    let s = m.run(&asm(|a| {
        let mut round = a.create_label();
        let mut next = a.create_label();
        a.xor(eax, eax)?;
        a.mov(ebx, 10)?;
        a.set_label(&mut round)?;
        a.mov(rdi, first)?;
        a.mov(ecx, 300)?;
        a.set_label(&mut next)?;
        a.call(rdi)?;
        a.add(rdi, 0x100)?;
        a.dec(ecx)?;
        a.jnz(next)?;
        a.dec(ebx)?;
        a.jnz(round)?;
        a.hlt()
    }));
    assert_eq!(s.gpr[gpr::RAX], 3000);
    assert!(m.vcpu.cache.len() <= 50);
    // And code it forgot is still followed when it changes.
    m.write(first, &[0xb0, 0, 0xc3]);
    let low = m.go(&NoIo).gpr[gpr::RAX];
    // AL is cleared in every round: what remains is the last 299 calls and the carries before.
    let expect = (0..10).fold(0u64, |sum, _| (sum & !0xff) + 299);
    assert_eq!(low, expect);
}
