//! Lays kernel, initramfs, command line and tables into guest RAM and gives the state in which the
//! first vCPU enters the kernel: Linux's 64-bit boot protocol, with the ELF kernel at the address it
//! was linked for.
//!
//! | guest-physical | what |
//! |---|---|
//! | 0x500 | GDT: null, null, flat 64-bit code (0x10), flat data (0x18) |
//! | 0x7000 | `boot_params`, the zero page |
//! | 0x8ff0 | top of the first stack |
//! | 0x9000–0xf000 | page tables: the first 4 GiB mapped to themselves in 2 MiB pages |
//! | 0x20000 | command line |
//! | 0xe0000 | ACPI tables, RSDP first |
//! | 0xf0000 | page tables and GDT that the other processors start with; reserved |
//! | where linked, mostly 16 MiB | kernel |
//! | top of RAM below the hole | initramfs |
//!
//! RAM must be fresh: the parts between are left as they are.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::PathBuf;
use std::sync::Arc;

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress};

use super::image::Elf;
use super::{BootError, acpi, cmdline};
use crate::arch::x86_64::{DescriptorTable, Segment, VcpuState, cr0, cr4, efer, gpr, rflags, seg};
use crate::memory::{GuestRam, MMIO_HOLE_END, MMIO_HOLE_START, PAGE_SIZE};

/// First guest-physical address above the PC's low memory.
pub const HIGH_MEMORY: u64 = 0x10_0000;

const GDT: u64 = 0x500;
const ZERO_PAGE: u64 = 0x7000;
const STACK: u64 = 0x8ff0;
const PML4: u64 = 0x9000;
const COMMAND_LINE: u64 = 0x2_0000;
/// End of what the kernel may use as low RAM; a PC has its extended BIOS data from here.
const LOW_MEMORY_END: u64 = 0x9_fc00;
const ACPI: u64 = 0xe_0000;
/// What processors that the guest starts begin with: it must stay, while the kernel reuses what the first one has.
const SECONDARY: u64 = 0xf_0000;
const SECONDARY_GDT: u64 = SECONDARY + 6 * PAGE_SIZE;
const SECONDARY_END: u64 = SECONDARY_GDT + PAGE_SIZE;

/// RAM that Linux needs beside its image and initramfs to come up, in bytes.
const WORKING_SET: u64 = 32 << 20;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const E820_ACPI: u32 = 3;

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub enum Vmlinux {
    /// An ELF file on disk, which stays as it is.
    File(PathBuf),
    /// The bytes of one.
    Bytes(Arc<[u8]>),
}

impl Vmlinux {
    fn headers(&self) -> Result<Elf, BootError> {
        /// The program headers of a kernel lie right after the ELF header.
        const HEADERS: u64 = 64 << 10;
        match self {
            Self::Bytes(bytes) => Elf::parse(bytes),
            Self::File(path) => {
                let read = || -> std::io::Result<(Vec<u8>, u64)> {
                    let file = File::open(path)?;
                    let len = file.metadata()?.len();
                    let mut head = Vec::new();
                    file.take(HEADERS).read_to_end(&mut head)?;
                    Ok((head, len))
                };
                let (head, len) = read().map_err(|source| BootError::Read { path: path.clone(), source })?;
                Elf::check(&head, len).map_err(|e| e.in_file(path))
            }
        }
    }
}

/// What to boot.
#[derive(Debug, Clone)]
pub struct Boot<'a> {
    /// The kernel.
    pub kernel: &'a Vmlinux,
    /// The initramfs.
    pub initramfs: &'a [u8],
    /// The command line, see [`cmdline`].
    pub command_line: &'a str,
    /// The machine's devices.
    pub machine: &'a acpi::Description,
}

/// Fills `ram`, which must be fresh, and gives the state of the vCPU that starts the machine.
pub fn load(ram: &GuestRam, boot: &Boot<'_>) -> Result<VcpuState, BootError> {
    let memory = ram.memory();
    let failed = |e: vm_memory::GuestMemoryError| BootError::Load { reason: e.to_string() };
    let low_end = ram.size().min(MMIO_HOLE_START);

    let elf = boot.kernel.headers()?;
    let initramfs_len = boot.initramfs.len() as u64;
    let need = elf.end.next_multiple_of(PAGE_SIZE) + initramfs_len.next_multiple_of(PAGE_SIZE) + WORKING_SET;
    if need > low_end {
        return Err(BootError::MemoryTooSmall { have: ram.size() >> 20, need: need.div_ceil(1 << 20) });
    }
    let tables = acpi::tables(boot.machine, ACPI as u32);
    let tables_end = ACPI + (tables.len() as u64).next_multiple_of(PAGE_SIZE);
    if tables_end > SECONDARY {
        return Err(BootError::Load { reason: "too many devices for the ACPI tables' place".into() });
    }

    load_elf(ram, boot.kernel, &elf)?;
    let initramfs_at = (low_end - initramfs_len) & !(PAGE_SIZE - 1);
    memory.write_slice(boot.initramfs, GuestAddress(initramfs_at)).map_err(failed)?;
    memory.write_slice(&tables, GuestAddress(ACPI)).map_err(failed)?;

    let line = boot.command_line.as_bytes();
    if line.len() >= cmdline::MAX_LEN || line.contains(&0) {
        return Err(BootError::CommandLine { reason: "too long, or with a NUL in it".into() });
    }
    memory.write_slice(line, GuestAddress(COMMAND_LINE)).map_err(failed)?;
    memory.write_slice(&[0], GuestAddress(COMMAND_LINE + line.len() as u64)).map_err(failed)?;

    let mut params = boot_params::default();
    params.hdr.type_of_loader = 0xff;
    params.hdr.boot_flag = 0xaa55;
    params.hdr.header = u32::from_le_bytes(*b"HdrS");
    params.hdr.version = 0x20f;
    params.hdr.loadflags = 1;
    params.hdr.kernel_alignment = 0x20_0000;
    params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    params.hdr.cmdline_size = line.len() as u32;
    if initramfs_len > 0 {
        params.hdr.ramdisk_image = initramfs_at as u32;
        params.hdr.ramdisk_size = initramfs_len as u32;
    }
    params.acpi_rsdp_addr = ACPI;
    let map = e820(ram.size(), tables_end, boot.machine.cpus > 1);
    for (slot, &(addr, size, kind)) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry { addr, size, r#type: kind };
    }
    params.e820_entries = map.len() as u8;
    LinuxBootConfigurator::write_bootparams(
        &BootParams::new::<boot_params>(&params, GuestAddress(ZERO_PAGE)),
        memory,
    )
    .map_err(|e| BootError::Load { reason: e.to_string() })?;

    write_page_tables(ram, PML4).map_err(failed)?;
    write_gdt(ram, GDT).map_err(failed)?;
    if boot.machine.cpus > 1 {
        lay_out_secondary(ram).map_err(failed)?;
    }
    Ok(entry_state(elf.entry))
}

/// (address, size, type) of the memory map the kernel is given.
fn e820(ram: u64, acpi_end: u64, secondary: bool) -> Vec<(u64, u64, u32)> {
    let mut map = vec![(0, LOW_MEMORY_END, E820_RAM), (ACPI, acpi_end - ACPI, E820_ACPI)];
    if secondary {
        map.push((SECONDARY, SECONDARY_END - SECONDARY, E820_RESERVED));
    }
    for (start, _, len) in crate::memory::layout(ram) {
        let from = start.max(HIGH_MEMORY);
        if start + len > from {
            map.push((from, start + len - from, E820_RAM));
        }
    }
    map
}

fn load_elf(ram: &GuestRam, kernel: &Vmlinux, elf: &Elf) -> Result<(), BootError> {
    let failed = |e: linux_loader::loader::Error| BootError::Load { reason: e.to_string() };
    let lowest = Some(GuestAddress(HIGH_MEMORY));
    let loaded = match kernel {
        Vmlinux::Bytes(bytes) => {
            linux_loader::loader::Elf::load(ram.memory(), None, &mut Cursor::new(bytes), lowest)
        }
        Vmlinux::File(path) => {
            let mut file =
                File::open(path).map_err(|source| BootError::Read { path: path.clone(), source })?;
            linux_loader::loader::Elf::load(ram.memory(), None, &mut file, lowest)
        }
    }
    .map_err(failed)?;
    if loaded.kernel_load.0 != elf.entry || loaded.kernel_end > elf.end {
        return Err(BootError::Load { reason: "the kernel file changed while it was read".into() });
    }
    Ok(())
}

/// What processors that the guest starts begin with.
pub(in crate::machine) fn lay_out_secondary(ram: &GuestRam) -> Result<(), vm_memory::GuestMemoryError> {
    write_page_tables(ram, SECONDARY)?;
    write_gdt(ram, SECONDARY_GDT)
}

/// Lays a program that is no kernel into RAM. Returns its entry.
pub(in crate::machine) fn load_program(ram: &GuestRam, program: &Vmlinux) -> Result<u64, BootError> {
    let elf = program.headers()?;
    load_elf(ram, program, &elf)?;
    Ok(elf.entry)
}

/// Six pages from `pml4` on.
fn write_page_tables(ram: &GuestRam, pml4: u64) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let memory = ram.memory();
    let (pdpt, page_directories) = (pml4 + PAGE_SIZE, pml4 + 2 * PAGE_SIZE);
    memory.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4))?;
    for gib in 0..MMIO_HOLE_END >> 30 {
        let directory = page_directories + gib * PAGE_SIZE;
        memory.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pdpt + gib * 8))?;
        let entries: Vec<u8> = (0..512u64)
            .flat_map(|index| (gib << 30 | index << 21 | PRESENT_WRITABLE | LARGE).to_le_bytes())
            .collect();
        memory.write_slice(&entries, GuestAddress(directory))?;
    }
    Ok(())
}

fn write_gdt(ram: &GuestRam, at: u64) -> Result<(), vm_memory::GuestMemoryError> {
    let entries = [0, 0, descriptor(&code_segment()), descriptor(&data_segment(0x18))];
    for (address, entry) in (at..).step_by(8).zip(entries) {
        ram.memory().write_obj(entry, GuestAddress(address))?;
    }
    Ok(())
}

fn code_segment() -> Segment {
    // Execute/read, accessed, present, long mode, 4 KiB granularity.
    Segment { selector: 0x10, base: 0, limit: u32::MAX, attributes: 0xa09b }
}

fn data_segment(selector: u16) -> Segment {
    // Read/write, accessed, present, 32-bit, 4 KiB granularity.
    Segment { selector, base: 0, limit: u32::MAX, attributes: 0xc093 }
}

/// The GDT entry of a flat segment.
fn descriptor(segment: &Segment) -> u64 {
    u64::from(segment.attributes) << 40 | 0xf << 48 | 0xffff
}

/// The state of a processor that the guest starts at `vector`: 64-bit mode, memory mapped to itself, interrupts off.
pub fn secondary_state(vector: u64) -> VcpuState {
    let mut state = reset_state(vector);
    state.cr3 = SECONDARY;
    state.gdt.base = SECONDARY_GDT;
    // From 6.11 on Linux goes on to its own page tables, which have no-execute bits, before it sets EFER.
    state.efer |= efer::NXE;
    state
}

fn entry_state(entry: u64) -> VcpuState {
    let mut state = reset_state(entry);
    state.gpr[gpr::RSI] = ZERO_PAGE;
    state.gpr[gpr::RSP] = STACK;
    state.gpr[gpr::RBP] = STACK;
    state
}

fn reset_state(entry: u64) -> VcpuState {
    let mut state = VcpuState {
        rip: entry,
        rflags: rflags::FIXED,
        cr0: cr0::PE | cr0::ET | cr0::NE | cr0::PG,
        cr3: PML4,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA,
        xcr0: 1,
        gdt: DescriptorTable { base: GDT, limit: 4 * 8 - 1 },
        // Busy 64-bit TSS; nothing uses it before the kernel loads its own.
        tr: Segment { selector: 0, base: 0, limit: 0xffff, attributes: 0x008b },
        ldtr: Segment { selector: 0, base: 0, limit: 0xffff, attributes: 0x0082 },
        dr: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
        ..VcpuState::default()
    };
    state.seg = [data_segment(0x18); 6];
    state.seg[seg::CS] = code_segment();
    // As after power-on: write-back by default through the MTRRs, PAT in its reset state, fast strings.
    state.msrs.pat = 0x0007_0406_0007_0406;
    state.msrs.mtrr_def_type = 1 << 11 | 6;
    state.msrs.misc_enable = 1;
    state
}

#[cfg(test)]
#[path = "loader_tests.rs"]
mod tests;
