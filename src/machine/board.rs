//! The board: where memory and devices are, and which interrupt each raises.
//!
//! | address or port | what | GSI |
//! |---|---|---|
//! | 0x20, 0xa0, 0x4d0 | PIC | |
//! | 0x40, 0x61 | PIT | 0 |
//! | 0x60, 0x64, 0xcf9 | reset | |
//! | 0x70 | RTC | 8 |
//! | 0x80 | delay port | |
//! | 0x3f8 | 16550, the kernel's console | 4 |
//! | 0x600 | power control | |
//! | 0xd000_0000 + 4 KiB × n | virtio-mmio slot n | 5, 6, 7, 9, 10, … (8 is the RTC's) |
//! | 0xfeb0_0000 | mailbox to start processors, where there are several | |
//! | 0xfec0_0000 | IOAPIC | |
//! | 0xfee0_0000 | local APIC | |

use std::io::Write;
use std::sync::Arc;

use crate::chipset::bus::SystemBus;
use crate::chipset::irq::IrqLine;
use crate::chipset::irqchip::IrqChip;
use crate::chipset::pit::Pit;
use crate::chipset::post::DelayPort;
use crate::chipset::reset::{I8042, POWER_PORT, PowerCallback, PowerControl, ResetControl};
use crate::chipset::rtc::Rtc;
use crate::chipset::timers::Timers;
use crate::chipset::uart::Uart;
use crate::chipset::wakeup::WakeupMailbox;
use crate::hypervisor::ExitIo;
use crate::memory::GuestRam;
use crate::sys::clock::Clock;
use crate::virtio::console::Console as VirtioConsole;
use crate::virtio::device::VirtioDevice;
use crate::virtio::fs::{FsHost, VirtioFs};
use crate::virtio::mmio::VirtioMmio;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{Vsock, VsockHost};

use super::MachineError;
use super::boot::acpi;

/// Guest-physical address of the first virtio-mmio slot.
pub const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
/// Size of a virtio-mmio slot in bytes.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// GSI of the first virtio-mmio slot.
pub const VIRTIO_FIRST_GSI: u32 = 5;

/// Most vCPUs of one machine: as many as [`crate::memory::CodePages`] can tell apart. Hosts that carry machines with
/// more than that are served better by several machines.
pub const MAX_CPUS: u32 = 32;

/// Most file systems of one machine: as many as there are interrupts left.
pub const MAX_FILE_SYSTEMS: usize = 15;

const SERIAL_PORT: u64 = 0x3f8;
const SERIAL_GSI: u32 = 4;
const RTC_GSI: u32 = 8;
const PIT_GSI: u32 = 0;
/// Inputs of the IOAPIC.
const GSIS: u32 = 24;

/// What a board is built from.
pub struct BoardConfig {
    /// RAM.
    pub ram: Arc<GuestRam>,
    /// Number of vCPUs, at most [`MAX_CPUS`].
    pub cpus: u32,
    /// Context ID of the guest on its virtual sockets, 3 or more.
    pub guest_cid: u32,
    /// Takes the output of the serial port.
    pub serial: Box<dyn Write + Send>,
    /// Takes the output of the virtio console.
    pub console: Box<dyn Write + Send>,
    /// Tags of the file-system devices, in order; at most [`MAX_FILE_SYSTEMS`].
    pub file_systems: Vec<String>,
    /// Hears of power off and reset.
    pub power: PowerCallback,
}

impl std::fmt::Debug for BoardConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BoardConfig").field("memory", &self.ram.size()).finish_non_exhaustive()
    }
}

/// Memory, chipset and devices of one machine. Fields are in the order in which they are dropped:
/// what signals before what is signalled.
pub struct Board {
    pub(super) bus: Arc<SystemBus>,
    pub(super) serial: Arc<Uart>,
    pub(super) pit: Arc<Pit>,
    pub(super) rtc: Arc<Rtc>,
    /// Where the guest has other processors than the first.
    pub(super) wakeup: Option<Arc<WakeupMailbox>>,
    device_names: Vec<String>,
    file_system_tags: Vec<String>,
    pub(super) virtio: Vec<Arc<VirtioMmio>>,
    vsock: VsockHost,
    file_systems: Vec<FsHost>,
    pub(super) irqchip: Arc<IrqChip>,
    pub(super) timers: Timers,
    pub(super) clock: Arc<Clock>,
    pub(super) ram: Arc<GuestRam>,
    description: acpi::Description,
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board").field("description", &self.description).finish_non_exhaustive()
    }
}

/// The bus, and the interrupt controllers for backends with local APICs of their own.
impl ExitIo for Board {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.bus.port_read(port, data);
    }
    fn port_write(&self, port: u16, data: &[u8]) {
        self.bus.port_write(port, data);
    }
    fn mmio_read(&self, addr: u64, data: &mut [u8]) {
        self.bus.mmio_read(addr, data);
    }
    fn mmio_write(&self, addr: u64, data: &[u8]) {
        self.bus.mmio_write(addr, data);
    }
    fn end_of_interrupt(&self, vector: u8) {
        self.irqchip.end_of_interrupt(vector);
    }
    fn acknowledge_pic(&self) -> Option<u8> {
        self.irqchip.acknowledge_pic()
    }
}

impl Board {
    /// Builds a board. Nothing runs and time stands still.
    pub fn new(config: BoardConfig) -> Result<Self, MachineError> {
        let ram = config.ram;
        let clock = Arc::new(Clock::new());
        let timers = Timers::new(clock.clone())?;
        let irqchip = IrqChip::new(&timers, config.cpus);
        let line = |gsi| IrqLine::new(irqchip.clone(), gsi);
        let bus = SystemBus::new();
        irqchip.attach(&bus)?;
        let pit = Pit::new(&timers, line(PIT_GSI));
        pit.attach(&bus)?;
        let rtc = Rtc::new(&timers, line(RTC_GSI));
        rtc.attach(&bus)?;
        let serial = Arc::new(Uart::new(line(SERIAL_GSI), config.serial)?);
        serial.attach(&bus, SERIAL_PORT)?;
        I8042::new(config.power.clone()).attach(&bus)?;
        ResetControl::new(config.power.clone()).attach(&bus)?;
        PowerControl::new(config.power).attach(&bus, POWER_PORT)?;
        DelayPort::attach(&bus)?;
        let wakeup = (config.cpus > 1).then(Arc::<WakeupMailbox>::default);
        if let Some(mailbox) = &wakeup {
            mailbox.attach(&bus)?;
        }

        let vsock = Vsock::new(config.guest_cid);
        let host = vsock.host();
        let mut device_names: Vec<String> = ["vsock", "rng", "console"].map(str::to_owned).into();
        let mut devices: Vec<Arc<dyn VirtioDevice>> =
            vec![Arc::new(vsock), Arc::new(Rng::new()), Arc::new(VirtioConsole::new(config.console))];
        let mut file_systems = Vec::new();
        for tag in config.file_systems.iter().take(MAX_FILE_SYSTEMS) {
            let device = VirtioFs::new(tag, config.cpus)?;
            file_systems.push(device.host());
            devices.push(Arc::new(device));
            device_names.push(format!("fs {tag}"));
        }
        let mut virtio = Vec::new();
        let mut slots = Vec::new();
        let free = (VIRTIO_FIRST_GSI..GSIS).filter(|&gsi| gsi != RTC_GSI);
        for ((n, device), gsi) in devices.into_iter().enumerate().zip(free) {
            let base = VIRTIO_MMIO_BASE + n as u64 * VIRTIO_MMIO_SIZE;
            let transport = Arc::new(VirtioMmio::new(device, ram.clone(), line(gsi)));
            bus.mmio.insert(base, VIRTIO_MMIO_SIZE, transport.clone())?;
            slots.push(acpi::VirtioMmio { base: base as u32, size: VIRTIO_MMIO_SIZE as u32, gsi });
            virtio.push(transport);
        }
        let description =
            acpi::Description { cpus: config.cpus as u8, serial_gsi: Some(SERIAL_GSI), virtio: slots };
        let bus = Arc::new(bus);
        Ok(Self {
            bus,
            serial,
            pit,
            rtc,
            wakeup,
            device_names,
            file_system_tags: config.file_systems,
            virtio,
            vsock: host,
            file_systems,
            irqchip,
            timers,
            clock,
            ram,
            description,
        })
    }

    /// Number of vCPUs.
    pub fn cpus(&self) -> u32 {
        self.description.cpus.into()
    }

    /// What the ACPI tables are to say.
    pub fn description(&self) -> &acpi::Description {
        &self.description
    }

    /// The virtio devices in the order of their slots, as the guest has found them.
    pub fn device_names(&self) -> Vec<String> {
        self.device_names.clone()
    }

    /// Guest RAM.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// The tags of the file-system devices.
    pub fn file_system_tags(&self) -> &[String] {
        &self.file_system_tags
    }

    /// The host's side of each file-system device, in the order of [`BoardConfig::file_systems`].
    pub fn file_systems(&self) -> &[FsHost] {
        &self.file_systems
    }

    /// The host's side of the guest's sockets.
    pub fn vsock(&self) -> &VsockHost {
        &self.vsock
    }
}
