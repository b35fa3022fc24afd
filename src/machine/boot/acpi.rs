//! The ACPI tables that tell the kernel which processors, interrupt controllers and devices there are.
//!
//! Hardware-reduced ACPI: no SCI, PM timer, SMI or fixed power hardware, so the machine models none
//! of them, and Linux then sets up neither the 8259 nor the 8254: it takes its tick from the local
//! APIC and every interrupt from the IOAPIC. Tables: RSDP, XSDT, FADT, MADT, DSDT, in one block.

use acpi_tables::Aml;
use acpi_tables::aml::{
    self, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use crate::chipset::reset::{POWER_PORT, S5_SLEEP_TYPE, SLEEP_CONTROL, SLEEP_STATUS};
use crate::chipset::wakeup::MAILBOX;

/// Guest-physical address of the local APICs' registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Guest-physical address of the IOAPIC's registers.
pub const IO_APIC: u32 = 0xfec0_0000;

const OEM: [u8; 6] = *b"CCRATE";
const OEM_TABLE: [u8; 8] = *b"CCMACHIN";
const OEM_REVISION: u32 = 1;

/// IA-PC boot architecture flags: devices on the ISA bus; no VGA; no MSI. The i8042 flag is left out:
/// only its reset line exists, and a flag would make the kernel look for keyboards.
const BOOT_ARCH: u16 = 1 << 0 | 1 << 2 | 1 << 3;
/// The i8042's command port and its "pulse the reset line" command.
const RESET_PORT: u64 = 0x64;
const RESET_VALUE: u8 = 0xfe;

/// A virtio-mmio transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Guest-physical address of its registers, below 4 GiB.
    pub base: u32,
    /// Length of its registers in bytes.
    pub size: u32,
    /// The global system interrupt it raises: level-triggered, active high, its own.
    pub gsi: u32,
}

/// What the tables describe.
#[derive(Debug, Clone)]
pub struct Description {
    /// Number of processors, at most 254; their APIC ids count from 0.
    pub cpus: u8,
    /// Interrupt of the 16550 at port 0x3f8, if it is there.
    pub serial_gsi: Option<u32>,
    /// The virtio devices, at most 256.
    pub virtio: Vec<VirtioMmio>,
}

/// The tables as one block of bytes for guest-physical address `at` (below 4 GiB, 16-byte aligned).
/// The RSDP is the first thing in it.
pub fn tables(machine: &Description, at: u32) -> Vec<u8> {
    let mut block = Block { base: u64::from(at), bytes: vec![0; Rsdp::len()] };

    let dsdt = block.add(dsdt(machine).as_slice());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    let byte_port =
        |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    fadt.sleep_control_reg = byte_port(POWER_PORT + SLEEP_CONTROL);
    fadt.sleep_status_reg = byte_port(POWER_PORT + SLEEP_STATUS);
    let fadt = block.add(&bytes(&fadt.finalize()));
    let madt = block.add(madt(machine.cpus).as_slice());

    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = block.add(&bytes(&xsdt));

    let rsdp = bytes(&Rsdp::new(OEM, xsdt));
    block.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    block.bytes
}

struct Block {
    base: u64,
    bytes: Vec<u8>,
}

impl Block {
    /// Appends a table and gives its address.
    fn add(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let at = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        at
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut out = Vec::new();
    table.to_aml_bytes(&mut out);
    out
}

fn madt(cpus: u8) -> Sdt {
    /// PCAT_COMPAT: there is a pair of 8259s too.
    const DUAL_8259: u32 = 1;
    let mut madt = Sdt::new(*b"APIC", 44, 5, OEM, OEM_TABLE, OEM_REVISION);
    madt.write_u32(36, LOCAL_APIC);
    madt.write_u32(40, DUAL_8259);
    for cpu in 0..cpus.min(254) {
        madt.append_slice(&bytes(&ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled)));
    }
    madt.append_slice(&bytes(&IoApic::new(0, IO_APIC, 0)));
    // Interrupt source override: ISA IRQ 0, the 8254, is wired to GSI 2, as in every PC.
    madt.append_slice(&[2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    if cpus > 1 {
        // Multiprocessor wakeup, version 0: the kernel starts the others through the mailbox.
        madt.append_slice(&[0x10, 16, 0, 0, 0, 0, 0, 0]);
        madt.append_slice(&MAILBOX.to_le_bytes());
    }
    madt.update_checksum();
    madt
}

fn dsdt(machine: &Description) -> Sdt {
    let mut body = Vec::new();
    if let Some(gsi) = machine.serial_gsi {
        serial(gsi, &mut body);
    }
    rtc(&mut body);
    for (index, device) in machine.virtio.iter().take(256).enumerate() {
        virtio(index, device, &mut body);
    }
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&Scope::raw(Path::new("_SB_"), body));
    // Without the sleep type for "off" Linux halts where it is told to turn itself off.
    let off = Package::new(vec![&S5_SLEEP_TYPE, &S5_SLEEP_TYPE, &aml::ZERO, &aml::ZERO]);
    dsdt.append_slice(&bytes(&Name::new(Path::new("_S5_"), &off)));
    dsdt.update_checksum();
    dsdt
}

fn serial(gsi: u32, out: &mut Vec<u8>) {
    let io = IO::new(0x3f8, 0x3f8, 0, 8);
    // An ISA interrupt: edge-triggered.
    let irq = Interrupt::new(true, true, false, false, gsi);
    Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&io, &irq])),
        ],
    )
    .to_aml_bytes(out);
}

fn rtc(out: &mut Vec<u8>) {
    let io = IO::new(0x70, 0x70, 0, 2);
    Device::new(
        Path::new("RTC_"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0B00")),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&io])),
        ],
    )
    .to_aml_bytes(out);
}

fn virtio(index: usize, device: &VirtioMmio, out: &mut Vec<u8>) {
    let registers = Memory32Fixed::new(true, device.base, device.size);
    let irq = Interrupt::new(true, false, false, false, device.gsi);
    let uid = index as u32;
    Device::new(
        Path::new(&format!("V{index:03X}")),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &uid),
            &Name::new(Path::new("_CCA"), &aml::ONE),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&registers, &irq])),
        ],
    )
    .to_aml_bytes(out);
}

#[cfg(test)]
#[path = "acpi_tests.rs"]
mod tests;
