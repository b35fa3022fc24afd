//! The machine that system programs run in: descriptors of every type, gates of every kind, pages with every
//! protection.
//!
//! Page tables are written once: a KVM that shadows them does not see what the host writes there later.
//! Everything else is written anew before each program.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};

use super::super::guest::{End, HANDLER, HANDLER_END, Watchdog};
use super::super::{ARENA, ARENA_LEN, CODE, CODE_LEN, GS_BASE, USER_CS, USER_CS32, USER_SS};
use super::{Program, Seen, Setup};
use crate::arch::x86_64::{DescriptorTable, Segment, VcpuState, cr0, cr4, efer, rflags, seg};
use crate::hypervisor::{Exit, Vcpu};
use crate::memory::GuestRam;

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
const IDT: u64 = 0x9000;
const STUBS: u64 = 0xa000;
const STACK_TOP: u64 = 0xc000;
const TSS: u64 = 0xc000;
const LDT: u64 = 0xd000;
const KERNEL_END: u64 = 0xe000;
const CODE_PAGES: u64 = 0x2_0000;
const ARENA_PAGES: u64 = 0x3_0000;
const PLACE_PAGES: u64 = 0x4_0000;

/// Virtual address of [`GDT`].
pub(super) const KERNEL: u64 = 0xffff_8000_0000_0000;
pub(super) const KERNEL_CS: u16 = 0x10;
/// Limit of the TSS: its I/O permission bitmap covers ports 0 to 0x3ff, all refused but those a program opens.
pub(super) const IO_MAP: u64 = 0x68;
const TSS_LIMIT: u64 = IO_MAP + 0x80;
/// Vectors that have a gate.
const VECTORS: u64 = 64;
/// CR2 before a program.
const CR2: u64 = 0x1111_2222_3000;

/// Where programs begin, and where their stack does.
pub(super) const START: u64 = CODE + 0x100;
const STACK: u64 = ARENA + 0x3000;
/// The first word that a program pushes, in [`Seen::memory`].
pub(super) const STACK_WORD: std::ops::Range<usize> = 0x2ff8..0x3000;

/// Pages with protections of all kinds, one after the other from here.
const PLACES: u64 = 0x1012_0000;
const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const NO_EXECUTE: u64 = 1 << 63;
/// Reserved on every processor with fewer than 52 physical address bits.
const RESERVED: u64 = 1 << 51;

/// Entries of the [`PLACES`].
const ENTRIES: [u64; 11] = [
    0,
    PRESENT | WRITABLE,
    PRESENT | USER | NO_EXECUTE,
    PRESENT | WRITABLE | USER | NO_EXECUTE,
    PRESENT | WRITABLE | USER | RESERVED,
    PRESENT,
    PRESENT | WRITABLE | USER,
    0,
    PRESENT | WRITABLE | USER | NO_EXECUTE,
    PRESENT | USER | NO_EXECUTE,
    WRITABLE | USER | RESERVED,
];

/// Linear addresses of the pages.
pub(super) mod place {
    use super::PLACES;
    pub(crate) const ABSENT: u64 = PLACES;
    pub(crate) const SUPERVISOR: u64 = PLACES + 0x1000;
    pub(crate) const READ_ONLY: u64 = PLACES + 0x2000;
    /// Data, before [`RESERVED`].
    pub(crate) const DATA: u64 = PLACES + 0x3000;
    pub(crate) const RESERVED: u64 = PLACES + 0x4000;
    pub(crate) const SUPERVISOR_READ_ONLY: u64 = PLACES + 0x5000;
    /// Anything goes; the page behind it is absent.
    pub(crate) const CODE: u64 = PLACES + 0x6000;
    /// Data, before a read-only page.
    pub(crate) const BEFORE_READ_ONLY: u64 = PLACES + 0x8000;
    /// Absent, whatever the rest of its entry says.
    pub(crate) const ABSENT_ENTRY: u64 = PLACES + 0xa000;
    /// No table there at all.
    pub(crate) const NO_TABLE: u64 = 0x80_0000_0000;
}

/// Selectors of the descriptors that programs play with, with RPL 0.
pub(super) mod sel {
    pub(crate) const KERNEL_DATA: u16 = 0x18;
    pub(crate) const TSS: u16 = 0x40;
    pub(crate) const LDT: u16 = 0x50;
    pub(crate) const READ_ONLY: u16 = 0x60;
    pub(crate) const ABSENT_DATA: u16 = 0x68;
    pub(crate) const EXECUTE_ONLY: u16 = 0x70;
    pub(crate) const CONFORMING_0: u16 = 0x78;
    pub(crate) const CONFORMING_3: u16 = 0x80;
    pub(crate) const ABSENT_CODE: u16 = 0x88;
    pub(crate) const LONG_AND_BIG: u16 = 0x90;
    pub(crate) const DATA_1: u16 = 0x98;
    pub(crate) const EXPAND_DOWN: u16 = 0xa0;
    pub(crate) const GATE: u16 = 0xb0;
    pub(crate) const GATE_DPL_0: u16 = 0xc0;
    pub(crate) const GATE_ABSENT: u16 = 0xd0;
    pub(crate) const GATE_TO_USER: u16 = 0xe0;
    pub(crate) const GATE_TO_32: u16 = 0xf0;
    pub(crate) const TSS_3: u16 = 0x100;
    pub(crate) const INTERRUPT_GATE: u16 = 0x110;
    pub(crate) const FRESH_DATA: u16 = 0x118;
    pub(crate) const FRESH_CODE: u16 = 0x120;
    pub(crate) const BASED: u16 = 0x128;
    pub(crate) const EMPTY: u16 = 0x130;
    pub(crate) const BEYOND: u16 = 0x138;
    /// Everything above, in the GDT's order.
    pub(crate) const ALL: [u16; 27] = [
        0,
        0x08,
        0x10,
        KERNEL_DATA,
        0x20,
        0x28,
        0x30,
        TSS,
        LDT,
        READ_ONLY,
        ABSENT_DATA,
        EXECUTE_ONLY,
        CONFORMING_0,
        CONFORMING_3,
        ABSENT_CODE,
        LONG_AND_BIG,
        DATA_1,
        EXPAND_DOWN,
        GATE,
        GATE_DPL_0,
        GATE_ABSENT,
        TSS_3,
        INTERRUPT_GATE,
        FRESH_DATA,
        FRESH_CODE,
        BASED,
        EMPTY,
    ];
    /// Selectors into the LDT: user data, 64-bit user code, an absent segment, the kernel's data, none.
    pub(crate) const LOCAL: [u16; 5] = [0x04, 0x0c, 0x14, 0x1c, 0x24];
}
/// Where call gates into ring 0 lead: the stub of a vector that has no gate of its own.
const GATE_STUB: u64 = 0x3f;
/// Where the call gate that stays in ring 3 leads.
pub(super) const GATE_USER: u64 = CODE + 0x800;

/// Vectors with gates that are not like the others.
pub(super) mod gate {
    /// Open to programs.
    pub(crate) const OPEN: u8 = 0x30;
    pub(crate) const CLOSED: u8 = 0x31;
    pub(crate) const ABSENT: u8 = 0x32;
    pub(crate) const ABSENT_CLOSED: u8 = 0x33;
    /// Of a type that is no gate.
    pub(crate) const BAD_TYPE: u8 = 0x34;
    pub(crate) const NULL_CS: u8 = 0x35;
    pub(crate) const DATA_CS: u8 = 0x36;
    pub(crate) const CS_32: u8 = 0x37;
    /// Leaves IF alone.
    pub(crate) const TRAP: u8 = 0x38;
    pub(crate) const NON_CANONICAL: u8 = 0x39;
    pub(crate) const BEYOND: u8 = 0x40;
}

pub(super) fn kernel(physical: u64) -> u64 {
    KERNEL + physical - GDT
}

/// A vCPU to run programs on.
pub(super) struct World {
    ram: Arc<GuestRam>,
    vcpu: Box<dyn Vcpu>,
    end: End,
    watchdog: Watchdog,
}

impl World {
    pub(super) fn new(make: impl FnOnce(&Arc<GuestRam>) -> Box<dyn Vcpu>) -> Self {
        let ram = GuestRam::new(RAM).unwrap();
        let memory = ram.memory();
        let word = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at)).unwrap();
        let table = PRESENT | WRITABLE | USER;
        let index = |va: u64, level: u32| (va >> (12 + 9 * level) & 511) * 8;
        word(PML4 + index(CODE, 3), LOW_PDPT | table);
        word(LOW_PDPT + index(CODE, 2), LOW_PD | table);
        word(LOW_PD + index(CODE, 1), LOW_PT | table);
        for page in (0..CODE_LEN as u64).step_by(0x1000) {
            word(LOW_PT + index(CODE + page, 0), (CODE_PAGES + page) | PRESENT | USER);
        }
        for page in (0..ARENA_LEN as u64).step_by(0x1000) {
            word(LOW_PT + index(ARENA + page, 0), (ARENA_PAGES + page) | table | NO_EXECUTE);
        }
        for (page, entry) in (0..).map(|n| 0x1000 * n).zip(ENTRIES) {
            word(LOW_PT + index(PLACES + page, 0), (PLACE_PAGES + page) | entry);
        }
        word(PML4 + index(KERNEL, 3), HIGH_PDPT | PRESENT | WRITABLE);
        word(HIGH_PDPT + index(KERNEL, 2), HIGH_PD | PRESENT | WRITABLE);
        word(HIGH_PD + index(KERNEL, 1), HIGH_PT | PRESENT | WRITABLE);
        for physical in (GDT..KERNEL_END).step_by(0x1000) {
            word(HIGH_PT + index(kernel(physical), 0), physical | PRESENT | WRITABLE);
        }
        let vcpu = make(&ram);
        let (end, watchdog) = (End::new(&*vcpu), Watchdog::new(&*vcpu));
        Self { ram, vcpu, end, watchdog }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn word(&self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    /// Descriptor tables, gates, handlers, and data that is the same for each program.
    fn lay_out(&self) {
        for at in (GDT..KERNEL_END).step_by(0x1000).filter(|at| *at != STACK_TOP - 0x1000) {
            self.write(at, &[0; 0x1000]);
        }
        self.write(STACK_TOP - 0x100, &[0; 0x100]);
        let segment = |selector: u16, descriptor: u64| self.word(GDT + u64::from(selector & !7), descriptor);
        segment(0x08, 0x00cf_9b00_0000_ffff);
        segment(KERNEL_CS, 0x00af_9b00_0000_ffff);
        segment(sel::KERNEL_DATA, 0x00cf_9300_0000_ffff);
        segment(USER_CS32, 0x00cf_fb00_0000_ffff);
        segment(USER_SS, 0x00cf_f300_0000_ffff);
        segment(USER_CS, 0x00af_fb00_0000_ffff);
        let system = |selector: u16, kind: u64, base: u64, limit: u64| {
            let low = limit | (base & 0xff_ffff) << 16 | kind << 40 | (base >> 24 & 0xff) << 56;
            segment(selector, low);
            segment(selector + 8, base >> 32);
        };
        system(sel::TSS, 0x8b, kernel(TSS), TSS_LIMIT);
        system(sel::LDT, 0x82, kernel(LDT), 0x1f);
        system(sel::TSS_3, 0xe9, kernel(TSS), TSS_LIMIT);
        segment(sel::READ_ONLY, 0x00cf_f100_0000_ffff);
        segment(sel::ABSENT_DATA, 0x00cf_7300_0000_ffff);
        segment(sel::EXECUTE_ONLY, 0x00cf_f900_0000_ffff);
        segment(sel::CONFORMING_0, 0x00cf_9f00_0000_ffff);
        segment(sel::CONFORMING_3, 0x00af_ff00_0000_ffff);
        segment(sel::ABSENT_CODE, 0x00af_7b00_0000_ffff);
        segment(sel::LONG_AND_BIG, 0x00ef_fb00_0000_ffff);
        segment(sel::DATA_1, 0x00cf_b300_0000_ffff);
        segment(sel::EXPAND_DOWN, 0x00cf_f700_0000_0000);
        segment(sel::INTERRUPT_GATE, 0x0000_ee00_0010_0000);
        segment(sel::FRESH_DATA, 0x00cf_f200_0000_ffff);
        segment(sel::FRESH_CODE, 0x00af_fa00_0000_ffff);
        segment(sel::BASED, 0x0040_f312_3456_0fff);
        let gate = |selector: u16, target: u16, attributes: u64, to: u64| {
            let low = to & 0xffff | u64::from(target) << 16 | attributes << 40 | (to >> 16 & 0xffff) << 48;
            segment(selector, low);
            segment(selector + 8, to >> 32);
        };
        let inner = kernel(STUBS) + 16 * GATE_STUB;
        gate(sel::GATE, KERNEL_CS, 0xec, inner);
        gate(sel::GATE_DPL_0, KERNEL_CS, 0x8c, inner);
        gate(sel::GATE_ABSENT, KERNEL_CS, 0x6c, inner);
        gate(sel::GATE_TO_USER, USER_CS, 0xec, GATE_USER);
        gate(sel::GATE_TO_32, USER_CS32, 0xec, GATE_USER);
        self.word(LDT, 0x00cf_f300_0000_ffff);
        self.word(LDT + 0x08, 0x00af_fb00_0000_ffff);
        self.word(LDT + 0x10, 0x00cf_7300_0000_ffff);
        self.word(LDT + 0x18, 0x00cf_9300_0000_ffff);
        self.word(TSS + 4, kernel(STACK_TOP));
        self.write(TSS + 0x66, &(IO_MAP as u16).to_le_bytes());
        self.write(TSS + IO_MAP, &[0xff; (TSS_LIMIT - IO_MAP) as usize + 1]);
        for vector in 0..VECTORS {
            self.write(STUBS + 16 * vector, &HANDLER);
            self.gate(vector as u8, KERNEL_CS, 0x8e, kernel(STUBS) + 16 * vector);
        }
        let open = |vector: u8, cs: u16, kind: u64| {
            self.gate(vector, cs, kind, kernel(STUBS) + 16 * u64::from(vector));
        };
        open(3, KERNEL_CS, 0xee);
        open(4, KERNEL_CS, 0xee);
        open(gate::OPEN, KERNEL_CS, 0xee);
        open(gate::ABSENT, KERNEL_CS, 0x6e);
        open(gate::ABSENT_CLOSED, KERNEL_CS, 0x0e);
        open(gate::BAD_TYPE, KERNEL_CS, 0xe5);
        open(gate::NULL_CS, 0, 0xee);
        open(gate::DATA_CS, sel::KERNEL_DATA, 0xee);
        open(gate::CS_32, 0x08, 0xee);
        open(gate::TRAP, KERNEL_CS, 0xef);
        self.gate(gate::NON_CANONICAL, KERNEL_CS, 0xee, 1 << 63);
        self.write(CODE_PAGES, &[0xf4; CODE_LEN]);
        let data: Vec<u8> = (0..ARENA_LEN).map(|n| (n / 8) as u8 ^ ((n % 8) as u8 * 17)).collect();
        self.write(ARENA_PAGES, &data);
        self.write(PLACE_PAGES, &[0xf4; ENTRIES.len() * 0x1000]);
    }

    /// Closes the gate of `vector` to programs.
    fn gate(&self, vector: u8, cs: u16, kind: u64, to: u64) {
        let at = IDT + 16 * u64::from(vector);
        self.word(at, to & 0xffff | u64::from(cs) << 16 | kind << 40 | (to >> 16 & 0xffff) << 48);
        self.word(at + 8, to >> 32);
    }

    /// Where linear `address` of a program lies.
    fn physical(address: u64) -> u64 {
        match address {
            PLACES.. => address - PLACES + PLACE_PAGES,
            ARENA.. => address - ARENA + ARENA_PAGES,
            _ => address - CODE + CODE_PAGES,
        }
    }

    /// Runs `program`.
    pub(super) fn run(&mut self, program: &Program) -> Seen {
        self.lay_out();
        let mut setup = Setup { state: start(program.bits), memory: Vec::new(), tss: Vec::new() };
        program.changes.iter().for_each(|change| change(&mut setup));
        let mut code = program.code.clone();
        code.push(0xf4);
        self.write(Self::physical(setup.state.rip), &code);
        for (at, bytes) in &setup.memory {
            self.write(Self::physical(*at), bytes);
        }
        for (at, bytes) in &setup.tss {
            self.write(TSS + at, bytes);
        }
        if setup.state.idt.limit == 0 {
            // A gate for INT3 that is closed to programs.
            setup.state.idt.limit = (VECTORS * 16 - 1) as u16;
            self.gate(3, KERNEL_CS, 0x8e, kernel(STUBS) + 16 * 3);
        }
        let end = setup.state.rip + program.code.len() as u64;
        self.vcpu.set_state(&setup.state).unwrap();
        self.watchdog.beat.fetch_add(1, Ordering::SeqCst);
        let exit = self.vcpu.run(&self.end);
        self.watchdog.beat.fetch_add(1, Ordering::SeqCst);
        let state = self.vcpu.state().unwrap();
        let stub = state.rip.wrapping_sub(HANDLER_END).wrapping_sub(kernel(STUBS));
        if !self.end.take() || stub >= VECTORS * 16 || !stub.is_multiple_of(16) {
            let hung = matches!(exit, Ok(Exit::Kicked));
            return Seen::lost(&state, if hung { "does not end".into() } else { format!("{exit:?}") });
        }
        let pushed = kernel(STACK_TOP).wrapping_sub(state.gpr[4]).min(0x100);
        let mut stack = vec![0; pushed as usize];
        self.ram.memory().read_slice(&mut stack, GuestAddress(STACK_TOP - pushed)).unwrap();
        let frame = stack.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect();
        let mut memory = vec![0; ARENA_LEN + 3 * 0x1000 + ENTRIES.len() * 0x1000];
        let (arena, rest) = memory.split_at_mut(ARENA_LEN);
        let (tables, places) = rest.split_at_mut(3 * 0x1000);
        let read = |at: u64, out: &mut [u8]| self.ram.memory().read_slice(out, GuestAddress(at)).unwrap();
        read(ARENA_PAGES, arena);
        read(GDT, &mut tables[..0x1000]);
        read(TSS, &mut tables[0x1000..]);
        read(PLACE_PAGES, places);
        Seen::new((stub / 16) as u8, frame, &state, memory, program, end)
    }
}

/// What programs start from, unless they change it.
fn start(bits: u32) -> VcpuState {
    let flat = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
    let mut state = VcpuState {
        rip: START,
        rflags: rflags::FIXED | rflags::IF,
        tr: Segment { selector: sel::TSS, base: kernel(TSS), limit: TSS_LIMIT as u32, attributes: 0x8b },
        ldtr: Segment { selector: sel::LDT, base: kernel(LDT), limit: 0x1f, attributes: 0x82 },
        gdt: DescriptorTable { base: kernel(GDT), limit: sel::BEYOND - 1 },
        idt: DescriptorTable { base: kernel(IDT), limit: (VECTORS * 16 - 1) as u16 },
        cr0: cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG,
        cr2: CR2,
        cr3: PML4,
        cr4: cr4::PAE | cr4::PGE | cr4::OSFXSR | cr4::OSXMMEXCPT,
        xcr0: 1,
        efer: efer::SCE | efer::LME | efer::LMA | efer::NXE,
        dr: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
        gpr: std::array::from_fn(|n| 0x1111_1111 * n as u64),
        ..VcpuState::default()
    };
    state.gpr[3] = ARENA + 0x400;
    state.gpr[4] = STACK;
    state.gpr[6] = ARENA + 0x800;
    state.gpr[7] = ARENA + 0xc00;
    state.seg[seg::CS] = if bits == 64 { flat(USER_CS, 0xa0fb) } else { flat(USER_CS32, 0xc0fb) };
    for which in [seg::SS, seg::DS, seg::ES, seg::FS, seg::GS] {
        state.seg[which] = flat(USER_SS, 0xc0f3);
    }
    state.seg[seg::GS].base = GS_BASE;
    state
}
