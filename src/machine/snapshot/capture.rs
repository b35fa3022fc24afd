//! Writing a machine that stands still.

use super::store::Draft;
use super::{SnapshotError, memory};
use crate::machine::{Frozen, Machine, MachineError};
use crate::memory::{GuestRam, SavedRam};
use crate::state;
use crate::state::container::Writer;
use crate::sys::clock::wall_clock_ns;

/// Writes `machine` into `draft`. The machine stands still meanwhile and runs on as before, paused or not.
///
/// # Errors
/// [`SnapshotError::NotReady`] for a machine that has ended, [`SnapshotError::Io`] from the host's disk.
pub fn capture(machine: &Machine, draft: &Draft) -> Result<(), SnapshotError> {
    let frozen = machine.freeze().ok_or(SnapshotError::NotReady("it has ended"))?;
    let file = draft.create("memory")?;
    let mut out = state_of(machine, &frozen)?;
    let map = memory::write(machine.board().ram(), &file).map_err(SnapshotError::io("write the memory"))?;
    out.put(0, &map)?;
    drop(frozen);
    draft.write("state", &out.finish())
}

/// Keeps `machine`, which stands still, in this process: its memory, and all else as `state` has it.
///
/// # Errors
/// As [`capture`].
pub fn copy(machine: &Machine, frozen: &Frozen<'_>) -> Result<(Vec<u8>, SavedRam), SnapshotError> {
    let out = state_of(machine, frozen)?;
    let ram = machine.board().ram().save().map_err(SnapshotError::io("copy the memory"))?;
    Ok((out.finish(), ram))
}

/// Writes what [`copy`] gave into `draft`; where memory has what goes to `out`.
///
/// # Errors
/// As [`capture`].
pub fn keep(state: &[u8], ram: &SavedRam, draft: &Draft, out: &mut Writer) -> Result<(), SnapshotError> {
    let ram = GuestRam::start_from(ram).map_err(MachineError::from)?;
    let map = memory::write(&ram, &draft.create("memory")?).map_err(SnapshotError::io("write the memory"))?;
    out.put(0, &map)?;
    draft.write("state", state)
}

fn state_of(machine: &Machine, frozen: &Frozen<'_>) -> Result<Writer, SnapshotError> {
    let board = machine.board();
    let vcpus = frozen.vcpus().ok_or(SnapshotError::NotReady("a processor has no state"))?;
    let mut out = Writer::new();
    out.put(
        0,
        &state::Machine {
            memory: board.ram().size(),
            cpus: board.cpus(),
            machine_time_ns: board.clock.now(),
            wall_clock_ns: wall_clock_ns(),
            cpu_model: machine.platform().options.model.name().to_owned(),
            devices: board.device_names(),
        },
    )?;
    // Those that the guest has not started have none.
    for (n, vcpu) in (0..).zip(vcpus) {
        if let Some(vcpu) = vcpu {
            out.put(n, &state::Vcpu::from(&vcpu.state))?;
        }
    }
    let irqchip = board.irqchip.state();
    out.put(0, &state::Pic::from(&irqchip.pic))?;
    out.put(0, &state::IoApic::from(&irqchip.ioapic))?;
    for ((n, lapic), vcpu) in (0..).zip(&irqchip.lapics).zip(vcpus) {
        // The backend's, where it has its own.
        let own = vcpu.as_ref().and_then(|vcpu| vcpu.lapic.clone());
        out.put(n, &own.unwrap_or_else(|| state::Lapic::from(lapic)))?;
    }
    out.put(0, &state::Pit::from(&board.pit.state()))?;
    out.put(0, &state::Rtc::from(&board.rtc.state()))?;
    out.put(0, &state::Uart::from(&board.serial.state()))?;
    if let Some(mailbox) = &board.wakeup {
        out.put(0, &state::Wakeup::from(&mailbox.state()))?;
    }
    for (n, transport) in (0..).zip(&board.virtio) {
        out.put(n, &state::VirtioTransport::from(&transport.state()))?;
    }
    Ok(out)
}
