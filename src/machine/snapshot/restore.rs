//! A machine from a snapshot.

use std::fs::File;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::store::Place;
use super::{SnapshotError, memory};
use crate::chipset::irqchip::IrqChipState;
use crate::hypervisor::CpuModel;
use crate::machine::{Board, MAX_CPUS, MachineError, Processor};
use crate::memory::{GuestRam, SavedRam};
use crate::state::container::Reader;
use crate::state::{self, StateError, kind};

/// A snapshot that is intact, and RAM made of it.
#[derive(Debug)]
pub struct Restored {
    /// RAM: what the machine had, shared with the file until the guest writes.
    pub ram: Arc<GuestRam>,
    parts: Parts,
}

#[derive(Debug)]
struct Parts {
    machine: state::Machine,
    model: CpuModel,
    vcpus: Vec<Option<Processor>>,
    irqchip: IrqChipState,
    pit: crate::chipset::pit::PitState,
    rtc: crate::chipset::rtc::RtcState,
    uart: crate::chipset::uart::UartState,
    wakeup: Option<crate::chipset::wakeup::WakeupState>,
    virtio: Vec<crate::virtio::mmio::TransportState>,
}

/// Opens the snapshot in `place`, which must be of a machine with `memory` bytes of RAM and `cpus` processors.
///
/// # Errors
/// [`SnapshotError`] for whatever is not as it was written.
pub fn restore(place: &Place, memory: u64, cpus: u32) -> Result<Restored, SnapshotError> {
    let bytes = place.read("state")?;
    let mut reader = Reader::parse(&bytes)?;
    let map: memory::Memory = reader.take(0)?;
    let ram = saved_ram(place.open("memory")?, memory)?;
    let restored = open(reader, &ram, cpus..=cpus)?;
    memory::verify(ram.base(), &map, memory)?;
    Ok(restored)
}

/// As [`restore`], of what this process wrote with [`super::copy`] or has checked with [`check`].
///
/// # Errors
/// As [`restore`].
pub fn reopen(state: &[u8], ram: &SavedRam) -> Result<Restored, SnapshotError> {
    open(Reader::parse(state)?, ram, 1..=MAX_CPUS)
}

/// Opens what [`super::keep`] wrote in `place`, with the map of memory in `map`: the state and the memory. All bytes
/// of the memory are checked, the state when it is used.
///
/// # Errors
/// As [`restore`].
pub fn check(place: &Place, map: &mut Reader<'_>) -> Result<(Vec<u8>, SavedRam), SnapshotError> {
    let state = place.read("state")?;
    let machine: state::Machine = Reader::parse(&state)?.take(0)?;
    let ram = saved_ram(place.open("memory")?, machine.memory)?;
    memory::verify(ram.base(), &map.take(0)?, machine.memory)?;
    Ok((state, ram))
}

fn saved_ram(file: File, memory: u64) -> Result<SavedRam, SnapshotError> {
    SavedRam::of_file(file, memory).map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidData => SnapshotError::Memory("it has another size"),
        _ => SnapshotError::Io { action: "read the saved memory", source: e },
    })
}

fn open(
    mut reader: Reader<'_>,
    ram: &SavedRam,
    cpus: RangeInclusive<u32>,
) -> Result<Restored, SnapshotError> {
    let memory = ram.size();
    let machine: state::Machine = reader.take(0)?;
    let found = || format!("{} bytes, {} × {}", machine.memory, machine.cpus, machine.cpu_model);
    let model = CpuModel::from_name(&machine.cpu_model).ok_or_else(|| SnapshotError::Other(found()))?;
    if machine.memory != memory || !cpus.contains(&machine.cpus) {
        return Err(SnapshotError::Other(found()));
    }
    let pic = reader.take::<state::Pic>(0)?.try_into()?;
    let ioapic = reader.take::<state::IoApic>(0)?.try_into()?;
    let (mut lapics, mut vcpus) = (Vec::new(), Vec::new());
    // The range was checked.
    for n in 0..machine.cpus as u16 {
        let saved = reader.take::<state::Lapic>(n)?;
        let lapic: crate::chipset::lapic::LapicState = saved.clone().try_into()?;
        if lapic.id != u32::from(n) {
            return Err(StateError::Invalid { what: "local APIC of another processor" }.into());
        }
        lapics.push(lapic);
        // The guest may not have started the others.
        let started = n == 0 || reader.has(kind::VCPU, n);
        vcpus.push(match started {
            true => {
                let state = reader.take::<state::Vcpu>(n)?.try_into()?;
                Some(Processor { state, lapic: Some(saved) })
            }
            false => None,
        });
    }
    let wakeup = match machine.cpus {
        1 => None,
        _ => Some((&reader.take::<state::Wakeup>(0)?).into()),
    };
    let virtio: Result<Vec<_>, StateError> = (0..machine.devices.len())
        .map(|n| {
            u16::try_from(n)
                .map_err(|_| StateError::TooLarge)
                .and_then(|n| reader.take::<state::VirtioTransport>(n)?.try_into())
        })
        .collect();
    let parts = Parts {
        model,
        vcpus,
        wakeup,
        irqchip: IrqChipState { pic, ioapic, lapics },
        pit: reader.take::<state::Pit>(0)?.try_into()?,
        rtc: reader.take::<state::Rtc>(0)?.try_into()?,
        uart: reader.take::<state::Uart>(0)?.try_into()?,
        virtio: virtio?,
        machine,
    };
    reader.finish()?;
    let ram = GuestRam::start_from(ram).map_err(MachineError::from)?;
    Ok(Restored { ram, parts })
}

impl Restored {
    /// The processors' states, none for those that the guest has not started.
    pub fn vcpus(&self) -> &[Option<Processor>] {
        &self.parts.vcpus
    }

    /// What the processors are.
    pub fn model(&self) -> CpuModel {
        self.parts.model
    }

    /// Number of processors.
    pub fn cpus(&self) -> u32 {
        self.parts.machine.cpus
    }

    /// Puts chipset, devices and time of `board`, whose RAM is this one's, into the saved state. The processor's
    /// signals must be connected, nothing may run.
    ///
    /// # Errors
    /// When the board is another, or a device refuses its state; the board is of no use then.
    pub fn apply(self, board: &Board) -> Result<(), SnapshotError> {
        let Parts { machine, irqchip, pit, rtc, uart, wakeup, virtio, .. } = self.parts;
        if machine.devices != board.device_names() || virtio.len() != board.virtio.len() {
            return Err(SnapshotError::Other(format!("devices {:?}", machine.devices)));
        }
        if machine.cpus != board.cpus() {
            return Err(SnapshotError::Other(format!("{} processors", machine.cpus)));
        }
        board.clock.set(machine.machine_time_ns);
        board.irqchip.set_state(irqchip);
        board.pit.set_state(pit);
        board.rtc.set_state(rtc);
        let invalid = |what: &'static str| SnapshotError::State(StateError::Invalid { what });
        if let (Some(mailbox), Some(state)) = (&board.wakeup, wakeup) {
            mailbox.set_state(state);
        }
        board.serial.set_state(uart).map_err(|_| invalid("serial port"))?;
        for (transport, state) in board.virtio.iter().zip(&virtio) {
            transport.set_state(state).map_err(|_| invalid("virtio device"))?;
        }
        Ok(())
    }
}
