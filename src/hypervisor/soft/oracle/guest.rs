//! Runs cases in ring 3 of a vCPU, the software CPU's or KVM's, with the addresses [`super::native`] has.
//!
//! Page tables map the code and data areas where the host has them; everything else that ring 0
//! needs (descriptor tables, a stack, a few bytes of handler for each vector) lies in the upper half. A
//! snippet ends in an exception, that of the HLT at [`EXIT`] where it reaches its end; the vector's handler
//! writes to a port and nothing else, which ends `run` with the snippet's registers still in place and RIP, RSP and RFLAGS
//! in the frame it pushed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{
    ARENA, ARENA_LEN, CODE, CODE_LEN, Case, CpuImage, EXIT, Fault, GS_BASE, Outcome, READ_ONLY, Side,
    USER_CS, USER_CS32, USER_SS, native,
};
use crate::arch::x86_64::{DescriptorTable, Segment, VcpuState, cr0, cr4, efer, rflags, seg, vector};
use crate::hypervisor::{Exit, ExitIo, Vcpu, VcpuSignal};
use crate::memory::GuestRam;

/// Stands for a vector where the code went on until the watchdog stopped it.
pub(super) const HUNG: u8 = 255;
/// Stands for a vector where the machine ended in a way that no snippet may bring about.
const LOST: u8 = 254;
const RAM: u64 = 0x10_0000;
const PML4: u64 = 0x1000;
const LOW_PDPT: u64 = 0x2000;
const LOW_PD: u64 = 0x3000;
const LOW_PT: u64 = 0x4000;
const HIGH_PDPT: u64 = 0x5000;
const HIGH_PD: u64 = 0x6000;
const HIGH_PT: u64 = 0x7000;
/// First of the pages that are mapped at [`KERNEL`].
const GDT: u64 = 0x8000;
const TSS: u64 = 0x8800;
const IDT: u64 = 0x9000;
const STUBS: u64 = 0xa000;
const STACK_TOP: u64 = 0xc000;
const CODE_PAGES: u64 = 0x2_0000;
const ARENA_PAGES: u64 = 0x3_0000;

/// Virtual address of physical address 0x8000.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const KERNEL_CS: u16 = 0x10;
/// Ends a snippet: #GP(0) at privilege 3. Not INT, whose exit some KVMs cannot do (see docs/testing.md).
const HLT: u8 = 0xf4;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const NO_EXECUTE: u64 = 1 << 63;

fn kernel(physical: u64) -> u64 {
    KERNEL + physical - GDT
}

/// Port whose write ends a run.
pub(super) const END: u16 = 0xf4;
/// `out END, al`, and a HLT that nothing reaches.
pub(super) const HANDLER: [u8; 3] = [0xe6, END as u8, 0xf4];
/// Where RIP is when a handler has ended the run.
pub(super) const HANDLER_END: u64 = 2;

/// The one device: a port that ends the run.
pub(super) struct End {
    signal: Arc<dyn VcpuSignal>,
    reached: AtomicBool,
}

impl End {
    pub(super) fn new(vcpu: &dyn Vcpu) -> Self {
        Self { signal: vcpu.signal(), reached: AtomicBool::new(false) }
    }

    /// Whether the run that is over ended at the port.
    pub(super) fn take(&self) -> bool {
        self.reached.swap(false, Ordering::SeqCst)
    }
}

impl ExitIo for End {
    /// Reads of ports give their number.
    fn port_read(&self, port: u16, data: &mut [u8]) {
        data.iter_mut().zip(port.to_le_bytes().into_iter().cycle()).for_each(|(d, b)| *d = b);
    }
    fn port_write(&self, port: u16, _data: &[u8]) {
        if port == END {
            self.reached.store(true, Ordering::SeqCst);
            self.signal.kick();
        }
    }
    fn mmio_read(&self, _addr: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _addr: u64, _data: &[u8]) {}
}

/// Kicks a vCPU that does not come back.
pub(super) struct Watchdog {
    pub(super) beat: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watchdog {
    pub(super) fn new(vcpu: &dyn Vcpu) -> Self {
        let (beat, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (b, s, signal) = (beat.clone(), stop.clone(), vcpu.signal());
        let thread = std::thread::spawn(move || {
            let (mut last, mut same) = (0, 0);
            while !s.load(Ordering::SeqCst) {
                std::thread::park_timeout(Duration::from_secs(1));
                let now = b.load(Ordering::SeqCst);
                // Odd while a case runs.
                same = if now == last && now % 2 == 1 { same + 1 } else { 0 };
                last = now;
                if same >= 10 {
                    signal.kick();
                    same = 0;
                }
            }
        });
        Self { beat, stop, thread: Some(thread) }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// A vCPU as a place to run cases on.
pub(super) struct Guest {
    ram: Arc<GuestRam>,
    vcpu: Box<dyn Vcpu>,
    base: VcpuState,
    arena: *mut u8,
    end: End,
    watchdog: Watchdog,
}

impl Guest {
    /// `make` gives the vCPU for this RAM. `read_only` is what the read-only data page holds.
    pub(super) fn new(read_only: &[u8; 4096], make: impl FnOnce(&Arc<GuestRam>) -> Box<dyn Vcpu>) -> Self {
        let ram = GuestRam::new(RAM).unwrap();
        let memory = ram.memory();
        let word = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at)).unwrap();
        let table = PRESENT | WRITABLE | USER;
        let index = |va: u64, level: u32| (va >> (12 + 9 * level) & 511) * 8;

        word(PML4 + index(CODE, 3), LOW_PDPT | table);
        word(LOW_PDPT + index(CODE, 2), LOW_PD | table);
        word(LOW_PD + index(CODE, 1), LOW_PT | table);
        assert_eq!(CODE >> 21, (READ_ONLY + 0x1000) >> 21, "one page table holds both areas");
        for page in (0..CODE_LEN as u64).step_by(0x1000) {
            word(LOW_PT + index(CODE + page, 0), (CODE_PAGES + page) | PRESENT | USER);
        }
        for page in (0..ARENA_LEN as u64).step_by(0x1000) {
            word(LOW_PT + index(ARENA + page, 0), (ARENA_PAGES + page) | table | NO_EXECUTE);
        }
        word(LOW_PT + index(READ_ONLY, 0), (ARENA_PAGES + ARENA_LEN as u64) | PRESENT | USER | NO_EXECUTE);
        word(PML4 + index(KERNEL, 3), HIGH_PDPT | PRESENT | WRITABLE);
        word(HIGH_PDPT + index(KERNEL, 2), HIGH_PD | PRESENT | WRITABLE);
        word(HIGH_PD + index(KERNEL, 1), HIGH_PT | PRESENT | WRITABLE);
        for physical in (GDT..STACK_TOP).step_by(0x1000) {
            word(HIGH_PT + index(kernel(physical), 0), physical | PRESENT | WRITABLE);
        }

        // Where Linux has them: LAR and far transfers can see it.
        word(GDT + 0x08, 0x00cf_9b00_0000_ffff);
        word(GDT + u64::from(KERNEL_CS), 0x00af_9b00_0000_ffff);
        word(GDT + 0x18, 0x00cf_9300_0000_ffff);
        word(GDT + u64::from(USER_SS & !7), 0x00cf_f300_0000_ffff);
        word(GDT + u64::from(USER_CS32 & !7), 0x00cf_fb00_0000_ffff);
        word(GDT + u64::from(USER_CS & !7), 0x00af_fb00_0000_ffff);
        // RSP0 and IST1.
        word(TSS + 4, kernel(STACK_TOP));
        word(TSS + 0x24, kernel(STACK_TOP));
        // No I/O permission bitmap within the limit.
        memory.write_obj(0x68_u16, GuestAddress(TSS + 0x66)).unwrap();
        for v in 0..64 {
            let stub = kernel(STUBS) + 16 * v;
            let dpl: u64 = if matches!(v as u8, vector::BP | vector::OF) { 3 } else { 0 };
            let attributes = 0x8e00 | dpl << 13 | 1;
            word(
                IDT + 16 * v,
                stub & 0xffff | u64::from(KERNEL_CS) << 16 | attributes << 32 | (stub >> 16 & 0xffff) << 48,
            );
            word(IDT + 16 * v + 8, stub >> 32);
            memory.write_slice(&HANDLER, GuestAddress(STUBS + 16 * v)).unwrap();
        }
        let exit = CODE_PAGES + (EXIT - CODE);
        memory.write_slice(&[HLT], GuestAddress(exit)).unwrap();
        word(exit + 8, EXIT);
        memory.write_slice(read_only, GuestAddress(ARENA_PAGES + ARENA_LEN as u64)).unwrap();

        let flat = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
        let mut base = VcpuState {
            tr: Segment { selector: 0x40, base: kernel(TSS), limit: 0x67, attributes: 0x8b },
            ldtr: Segment { selector: 0, base: 0, limit: 0, attributes: 0x82 },
            gdt: DescriptorTable { base: kernel(GDT), limit: 0x7f },
            idt: DescriptorTable { base: kernel(IDT), limit: 64 * 16 - 1 },
            cr0: cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG,
            cr3: PML4,
            cr4: cr4::PAE | cr4::PGE | cr4::OSFXSR | cr4::OSXMMEXCPT,
            xcr0: 1,
            efer: efer::SCE | efer::LME | efer::LMA | efer::NXE,
            dr: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
            ..VcpuState::default()
        };
        base.seg[seg::SS] = flat(USER_SS, 0xc0f3);
        base.seg[seg::GS].base = GS_BASE;
        let arena = memory.get_host_address(GuestAddress(ARENA_PAGES)).unwrap();
        let vcpu = make(&ram);
        let watchdog = Watchdog::new(&*vcpu);
        let end = End::new(&*vcpu);
        Self { ram, vcpu, base, arena, end, watchdog }
    }
}

impl Side for Guest {
    fn arena(&mut self) -> &mut [u8; ARENA_LEN] {
        // SAFETY: RAM that self keeps mapped; the vCPU, the only other user, does not run now.
        unsafe { &mut *self.arena.cast() }
    }

    /// Runs `case` on memory that holds `template` with the case's patches. An outcome without a
    /// faithful end (the CPU hung, or the machine reset) is a fault with vector [`HUNG`] or [`LOST`].
    fn run(&mut self, case: &Case, template: &[u8; ARENA_LEN]) -> Outcome {
        native::fill(self.arena(), template, &case.patches);
        let at = CODE_PAGES + (case.entry - CODE);
        self.ram.memory().write_slice(&case.program(), GuestAddress(at)).unwrap();
        self.base.gpr = case.cpu.gpr;
        self.base.rip = case.cpu.rip;
        self.base.rflags = case.cpu.rflags;
        self.base.fpu = case.cpu.fpu;
        let flat = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
        let (code, data) = match case.bits {
            64 => (flat(USER_CS, 0xa0fb), Segment::default()),
            _ => (flat(USER_CS32, 0xc0fb), flat(USER_SS, 0xc0f3)),
        };
        self.base.seg[seg::CS] = code;
        self.base.seg[seg::DS] = data;
        self.base.seg[seg::ES] = data;
        self.vcpu.set_state(&self.base).unwrap();
        self.watchdog.beat.fetch_add(1, Ordering::SeqCst);
        let exit = self.vcpu.run(&self.end).unwrap();
        self.watchdog.beat.fetch_add(1, Ordering::SeqCst);
        let state = self.vcpu.state().unwrap();
        let mut cpu = CpuImage { gpr: state.gpr, rip: state.rip, rflags: state.rflags, fpu: state.fpu };
        let stub = state.rip.wrapping_sub(HANDLER_END).wrapping_sub(kernel(STUBS));
        let ended = self.end.take();
        if !ended || stub >= 64 * 16 || !stub.is_multiple_of(16) {
            let vector = if exit == Exit::Kicked && !ended { HUNG } else { LOST };
            return Outcome { cpu, fault: Some(Fault { vector, error: 0, cr2: state.cr2 }) };
        }
        let vector = (stub / 16) as u8;
        let pushed = kernel(STACK_TOP).wrapping_sub(state.gpr[4]);
        let frame = |n: u64| self.ram.memory().read_obj::<u64>(GuestAddress(STACK_TOP - 40 + 8 * n)).unwrap();
        let error =
            if pushed == 48 { self.ram.memory().read_obj(GuestAddress(STACK_TOP - 48)).unwrap() } else { 0 };
        cpu.rip = frame(0);
        cpu.rflags = frame(2);
        cpu.gpr[4] = frame(3);
        let reached_end = vector == vector::GP && error == 0 && cpu.rip == EXIT;
        let fault = (!reached_end).then_some(Fault { vector, error, cr2: state.cr2 });
        if reached_end {
            cpu.rip = 0;
            // The HLT's, not the snippet's.
            cpu.rflags &= !rflags::RF;
        }
        Outcome { cpu, fault }
    }
}
