//! Programs without a kernel: an ELF or flat image that is alone on a machine, with ports and device memory that the
//! caller answers.
//!
//! The machine is the same as Linux gets: serial port, interrupt controllers, timers, power control, and the mailbox
//! that starts other processors. The first vCPU begins at the image's entry at privilege 0 in 64-bit mode, interrupts
//! off, its stack below 0x20000, the first 4 GiB of addresses mapped to themselves (page tables at 0x1000, GDT at
//! 0x7000: 0x08 code, 0x10 data, 0x1b user data, 0x23 user code, 0x28 TSS), and no IDT: until the program has one, an
//! exception is a triple fault, which ends the machine. So do power off and reset. Processors that the program starts
//! through the mailbox begin likewise, without a stack, with a GDT of their own (0x10 code, 0x18 data).
//!
//! ```no_run
//! use cc::machine::bare::{BareMetal, Image};
//!
//! // mov al, '!'; mov dx, 0x3f8; out dx, al; mov dx, 0xcf9; mov al, 6; out dx, al
//! let program = [0xb0, b'!', 0x66, 0xba, 0xf8, 3, 0xee, 0x66, 0xba, 0xf9, 0xc, 0xb0, 6, 0xee];
//! let machine = BareMetal::new(Image::flat(0x10_0000, program)).start()?;
//! println!("{:?}", machine.wait(None));
//! assert_eq!(machine.console().tail(), "!");
//! # Ok::<(), cc::machine::MachineError>(())
//! ```

use std::io::Write;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::boot::BootError;
use super::boot::loader::{self, Vmlinux};
use super::{Board, BoardConfig, Console, MAX_CPUS, Machine, MachineError, Platform, PowerSwitch, Processor};
use crate::arch::x86_64::DescriptorTable;
use crate::chipset::bus::BusDevice;
use crate::hypervisor::flat;
use crate::memory::GuestRam;

/// Images begin above the tables.
const LOWEST: u64 = 0x2_0000;
/// Context ID of a socket device that nobody uses.
const GUEST_CID: u32 = 3;

/// What runs.
#[derive(Debug, Clone)]
pub struct Image(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Flat { at: u64, bytes: Vec<u8> },
    Elf(Arc<[u8]>),
}

impl Image {
    /// Bytes that are put at guest-physical address `at`, 0x20000 or above, and entered at their beginning.
    pub fn flat(at: u64, bytes: impl Into<Vec<u8>>) -> Self {
        Self(Kind::Flat { at, bytes: bytes.into() })
    }

    /// A 64-bit x86 ELF program, statically linked for physical addresses from 1 MiB on.
    pub fn elf(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self(Kind::Elf(bytes.into()))
    }
}

/// A machine without an operating system, to be started.
pub struct BareMetal {
    image: Image,
    platform: Platform,
    memory: u64,
    cpus: u32,
    lifetime: Option<Duration>,
    serial: Option<Box<dyn Write + Send>>,
    data: Vec<(u64, Vec<u8>)>,
    ports: Vec<(RangeInclusive<u16>, Arc<dyn BusDevice>)>,
    mmio: Vec<(u64, u64, Arc<dyn BusDevice>)>,
}

impl std::fmt::Debug for BareMetal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BareMetal").field("platform", &self.platform).finish_non_exhaustive()
    }
}

impl BareMetal {
    /// `image` on the software CPU, with one vCPU and 16 MiB of RAM.
    pub fn new(image: Image) -> Self {
        Self {
            image,
            platform: Platform::default(),
            memory: 16 << 20,
            cpus: 1,
            lifetime: None,
            serial: None,
            data: Vec::new(),
            ports: Vec::new(),
            mmio: Vec::new(),
        }
    }

    /// Runs on this backend.
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = platform;
        self
    }

    /// RAM in bytes: a multiple of 4096, at least 2 MiB.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// Number of vCPUs, 1 to [`MAX_CPUS`]. The program starts the others through the mailbox
    /// ([`crate::chipset::wakeup`]).
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Ends the machine after so long.
    pub fn timeout(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(lifetime);
        self
    }

    /// Copies the serial port's output here. [`Console::tail`] has its end in any case.
    pub fn serial(mut self, writer: impl Write + Send + 'static) -> Self {
        self.serial = Some(Box::new(writer));
        self
    }

    /// Puts `bytes` at guest-physical address `at` too.
    pub fn data(mut self, at: u64, bytes: impl Into<Vec<u8>>) -> Self {
        self.data.push((at, bytes.into()));
        self
    }

    /// Has `device` answer these ports. It is told offsets from the first.
    pub fn ports(mut self, ports: RangeInclusive<u16>, device: Arc<dyn BusDevice>) -> Self {
        self.ports.push((ports, device));
        self
    }

    /// Has `device` answer `len` bytes of addresses from `at`, where there is no RAM. It is told offsets from `at`.
    pub fn mmio(mut self, at: u64, len: u64, device: Arc<dyn BusDevice>) -> Self {
        self.mmio.push((at, len, device));
        self
    }

    /// Starts the machine. Dropping it ends it.
    ///
    /// # Errors
    /// An image that does not fit, devices whose addresses overlap, a backend that is not there.
    pub fn start(self) -> Result<Machine, MachineError> {
        let refused = |reason: String| MachineError::Boot(BootError::Load { reason });
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(refused(format!("{} processors: 1 to {MAX_CPUS} can be had", self.cpus)));
        }
        if self.memory < 2 << 20 {
            return Err(refused(format!("{} bytes of memory: at least 2 MiB are needed", self.memory)));
        }
        let ram = GuestRam::new(self.memory)?;
        let console = Console::new();
        let power = PowerSwitch::default();
        let board = Board::new(BoardConfig {
            ram: ram.clone(),
            cpus: self.cpus,
            guest_cid: GUEST_CID,
            serial: console.writer(self.serial),
            console: Box::new(std::io::sink()),
            file_systems: Vec::new(),
            power: power.callback(),
        })?;
        for (ports, device) in self.ports {
            let len = u64::from(*ports.end()).saturating_sub(u64::from(*ports.start())) + 1;
            board.bus.ports.insert((*ports.start()).into(), len, device)?;
        }
        for (at, len, device) in self.mmio {
            board.bus.mmio.insert(at, len, device)?;
        }
        flat::lay_out(&ram, |_| [0xf4; 16]).map_err(|e| refused(e.to_string()))?;
        loader::lay_out_secondary(&ram).map_err(|e| refused(e.to_string()))?;
        let mut state = flat::entry();
        state.idt = DescriptorTable::default();
        state.rip = match self.image.0 {
            Kind::Flat { at, bytes } => {
                put(&ram, at, &bytes).map_err(refused)?;
                at
            }
            Kind::Elf(bytes) => loader::load_program(&ram, &Vmlinux::Bytes(bytes))?,
        };
        for (at, bytes) in self.data {
            put(&ram, at, &bytes).map_err(refused)?;
        }
        let vcpus = [Some(Processor { state, lapic: None })];
        Machine::start(board, self.platform, &vcpus, console, &power, self.lifetime, |_| Ok(()))
    }
}

fn put(ram: &GuestRam, at: u64, bytes: &[u8]) -> Result<(), String> {
    if at < LOWEST {
        return Err(format!("{at:#x}: the first {LOWEST:#x} bytes of memory are the tables'"));
    }
    ram.memory()
        .write_slice(bytes, GuestAddress(at))
        .map_err(|_| format!("{} bytes at {at:#x} do not fit into memory", bytes.len()))
}

#[cfg(test)]
mod tests;
