//! A flat 64-bit world for programs without a kernel: the first vCPU starts at privilege 0 in long mode,
//! memory is mapped to itself, and each exception has a handler.
//!
//! | guest-physical | what |
//! |---|---|
//! | 0x1000–0x7000 | page tables: the first 4 GiB mapped to themselves in 2 MiB pages |
//! | 0x7000 | GDT: 0x08 code, 0x10 data, 0x1b user data, 0x23 user code, 0x28 TSS |
//! | 0x7800 | TSS, its stack for exceptions from privilege 3 below 0x1f000 |
//! | 0x8000 | IDT: vector v leads to 0x9000 + 16 × v |
//! | 0x9000–0xa000 | handlers |
//! | below [`STACK`] | stack |
//! | [`CODE`] | the program |

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::arch::x86_64::{DescriptorTable, Segment, VcpuState, cr0, cr4, efer, gpr, rflags, seg};
use crate::memory::GuestRam;

/// Where the program is.
pub(crate) const CODE: u64 = 0x10_0000;
/// Top of the stack.
pub(crate) const STACK: u64 = 0x2_0000;
/// Handler of vector `v`: `HANDLERS + 16 * v`.
const HANDLERS: u64 = 0x9000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORIES: u64 = 0x3000;
const GDT: u64 = 0x7000;
const TSS: u64 = 0x7800;
const IDT: u64 = 0x8000;
const EXCEPTION_STACK: u64 = 0x1_f000;

/// Writes the tables. `handler` gives the 16 bytes of code of each vector.
pub(crate) fn lay_out(ram: &GuestRam, handler: impl Fn(u8) -> [u8; 16]) -> Result<(), GuestMemoryError> {
    let memory = ram.memory();
    let put = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at));
    // Present, writable, for programs too; the last in 2 MiB pages.
    put(PML4, PDPT | 7)?;
    for gib in 0..4 {
        put(PDPT + 8 * gib, (DIRECTORIES + 0x1000 * gib) | 7)?;
        for page in 0..512 {
            put(DIRECTORIES + 0x1000 * gib + 8 * page, gib << 30 | page << 21 | 0x87)?;
        }
    }
    put(GDT, 0)?;
    put(GDT + 0x08, 0x00af_9b00_0000_ffff)?;
    put(GDT + 0x10, 0x00cf_9300_0000_ffff)?;
    put(GDT + 0x18, 0x00cf_f300_0000_ffff)?;
    put(GDT + 0x20, 0x00af_fb00_0000_ffff)?;
    put(GDT + 0x28, 0x0000_8b00_0000_0067 | TSS << 16)?;
    put(GDT + 0x30, 0)?;
    for at in (0..0x68).step_by(8) {
        put(TSS + at, 0)?;
    }
    put(TSS + 4, EXCEPTION_STACK)?;
    for vector in 0..=255_u8 {
        let (gate, code) = (IDT + 16 * u64::from(vector), HANDLERS + 16 * u64::from(vector));
        put(gate, code & 0xffff | 0x08 << 16 | 0x8e00 << 32)?;
        put(gate + 8, 0)?;
        memory.write_slice(&handler(vector), GuestAddress(code))?;
    }
    Ok(())
}

/// The first vCPU's state, at [`CODE`] with interrupts off.
pub(crate) fn entry() -> VcpuState {
    let ordinary =
        |selector: u16, attributes: u16| Segment { selector, base: 0, limit: u32::MAX, attributes };
    let mut state = VcpuState {
        rip: CODE,
        rflags: rflags::FIXED,
        cr0: cr0::PE | cr0::PG | cr0::ET | cr0::NE | cr0::WP,
        cr3: PML4,
        cr4: cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT,
        xcr0: 1,
        efer: efer::LME | efer::LMA | efer::NXE | efer::SCE,
        dr: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
        gdt: DescriptorTable { base: GDT, limit: 0x37 },
        idt: DescriptorTable { base: IDT, limit: 0xfff },
        ..VcpuState::default()
    };
    for s in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        state.seg[s] = ordinary(0x10, 0xc093);
    }
    state.seg[seg::CS] = ordinary(0x08, 0xa09b);
    state.tr = Segment { selector: 0x28, base: TSS, limit: 0x67, attributes: 0x8b };
    state.msrs.pat = 0x0007_0406_0007_0406;
    state.gpr[gpr::RSP] = STACK;
    state
}
