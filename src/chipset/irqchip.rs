//! The interrupt controllers of a machine, joined: PIC, IOAPIC and a local APIC per vCPU.
//!
//! Global system interrupts 0 to 15 drive the PIC's input and the IOAPIC's pin of the same number,
//! except that GSI 0, the ISA timer, is pin 2 (the MADT's interrupt source override), so that GSI 2,
//! the PIC's cascade, is nobody's. GSIs 16 to 23 drive the IOAPIC only; above that they are ignored.
//!
//! Where the backend has local APICs of its own ([`IrqChip::use_sink`]), those here rest: messages go to
//! the backend's, and their ends come back through [`IrqChip::end_of_interrupt`].

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::bus::{BusDevice, BusError, SystemBus};
use super::ioapic::{self, IoApic, IoApicState, IoApicWindow};
use super::irq::IrqSink;
use super::lapic::{BROADCAST, DeliveryMode, Destination, Fabric, Lapic, LapicState, Message};
use super::pic::{self, Pic};
use super::timers::Timers;
use crate::hypervisor::{LocalApic, MessageSink, MsiMessage, VcpuSignal};
use crate::state as saved;

/// Most vCPUs: xAPIC ids are 8 bits and 0xff is everybody.
pub const MAX_VCPUS: u32 = 255;

/// IOAPIC pin of the ISA timer.
pub const TIMER_PIN: u32 = 2;

/// Registers of all interrupt controllers of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IrqChipState {
    /// Both 8259s.
    pub pic: Pic,
    /// The IOAPIC.
    pub ioapic: IoApicState,
    /// The local APICs by vCPU.
    pub lapics: Vec<LapicState>,
}

/// The interrupt controllers of one machine.
pub struct IrqChip {
    pic: Mutex<Pic>,
    ioapic: IoApic,
    lapics: Box<[Arc<Lapic>]>,
    /// Who was last chosen for a lowest-priority interrupt.
    last_chosen: AtomicUsize,
    /// The way to the backend's local APICs, where it has its own.
    sink: OnceLock<Arc<dyn MessageSink>>,
    /// The boot processor, whom the PIC interrupts.
    boot: OnceLock<Arc<dyn VcpuSignal>>,
}

impl std::fmt::Debug for IrqChip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IrqChip({} vCPUs)", self.lapics.len())
    }
}

impl IrqChip {
    /// The controllers for `vcpus` processors (1..=[`MAX_VCPUS`], other numbers are brought into
    /// that range). vCPU 0 is the boot processor.
    pub fn new(timers: &Timers, vcpus: u32) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            pic: Mutex::default(),
            ioapic: IoApic::default(),
            lapics: (0..vcpus.clamp(1, MAX_VCPUS))
                .map(|id| Lapic::new(id, id == 0, timers, me.clone()))
                .collect(),
            last_chosen: AtomicUsize::new(0),
            sink: OnceLock::new(),
            boot: OnceLock::new(),
        })
    }

    /// The local APIC of vCPU `id`.
    pub fn lapic(&self, id: u32) -> Option<Arc<dyn LocalApic>> {
        self.lapics.get(id as usize).map(|lapic| lapic.clone() as Arc<dyn LocalApic>)
    }

    /// Sends all messages to the backend's local APICs from now on. To be called before anything runs.
    pub fn use_sink(&self, sink: Arc<dyn MessageSink>) {
        let _ = self.sink.set(sink);
        self.watch();
        // Tells the backend the PIC's level.
        self.with_pic(|_| ());
    }

    /// The registers of vCPU `id`'s local APIC, for the backend's own, which takes its place: this one is left as after
    /// power-on.
    pub fn lay_to_rest(&self, id: u32) -> Option<saved::Lapic> {
        let lapic = self.lapics.get(id as usize)?;
        let state = saved::Lapic::from(&lapic.state());
        lapic.reset();
        Some(state)
    }

    /// Tells the backend which messages' ends concern the IOAPIC.
    pub(crate) fn watch(&self) {
        if let Some(sink) = self.sink.get() {
            sink.watch(&self.ioapic.level_messages().iter().map(msi).collect::<Vec<_>>());
        }
    }

    /// The backend's local APIC has ended a level-triggered interrupt.
    pub fn end_of_interrupt(&self, vector: u8) {
        Fabric::end_of_interrupt(self, vector);
    }

    /// The PIC's interrupt-acknowledge cycle, for the backend's local APIC.
    pub fn acknowledge_pic(&self) -> Option<u8> {
        Fabric::acknowledge_pic(self)
    }

    /// Tells vCPU `id`'s local APIC whom to signal. To be called before the vCPU first runs. Its
    /// `attention` is called with locks of the chipset held and must not call back into it.
    pub fn connect(&self, id: u32, signal: Arc<dyn VcpuSignal>) {
        if id == 0 {
            let _ = self.boot.set(signal.clone());
        }
        if let Some(lapic) = self.lapics.get(id as usize) {
            lapic.connect(signal);
        }
    }

    /// vCPU `id` runs now, started by other means than a start-up IPI: its local APIC takes interrupts.
    pub fn started(&self, id: u32) {
        if let Some(lapic) = self.lapics.get(id as usize) {
            lapic.started();
        }
    }

    /// Sends vCPU `id` an NMI.
    pub fn inject_nmi(&self, id: u32) {
        if let Some(lapic) = self.lapics.get(id as usize) {
            lapic.accept(DeliveryMode::Nmi, 0, false);
        }
    }

    /// Puts PIC and IOAPIC on the bus. The local APICs' pages are answered by the vCPUs.
    pub fn attach(self: &Arc<Self>, bus: &SystemBus) -> Result<(), BusError> {
        for (block, base) in [
            (PicPorts::Chip(0), pic::PRIMARY_PORT),
            (PicPorts::Chip(1), pic::SECONDARY_PORT),
            (PicPorts::Elcr, pic::ELCR_PORT),
        ] {
            bus.ports.insert(base, 2, Arc::new(PicWindow { chip: self.clone(), block }))?;
        }
        bus.mmio.insert(ioapic::DEFAULT_BASE, ioapic::LEN, Arc::new(IoApicWindow(self.clone())))
    }

    /// A copy of all registers, to be taken while vCPUs and clock stand still.
    pub fn state(&self) -> IrqChipState {
        IrqChipState {
            pic: self.pic().clone(),
            ioapic: self.ioapic.state(),
            lapics: self.lapics.iter().map(|lapic| lapic.state()).collect(),
        }
    }

    /// Replaces all registers, to be done while vCPUs and clock stand still. Local APICs beyond
    /// those in `state` keep theirs; there should be none.
    pub fn set_state(&self, state: IrqChipState) {
        *self.pic() = state.pic;
        self.ioapic.set_state(state.ioapic);
        self.watch();
        let known = |vector: u8| {
            let (word, bit) = (usize::from(vector >> 5), 1 << (vector & 31));
            state.lapics.iter().any(|lapic| (lapic.irr[word] | lapic.isr[word]) & bit != 0)
        };
        let ended: Vec<u8> = self.ioapic.awaited().into_iter().filter(|&vector| !known(vector)).collect();
        for (lapic, state) in self.lapics.iter().zip(state.lapics) {
            lapic.set_state(state);
        }
        // No local APIC has it any more, but the IOAPIC waits for its end: a backend with local APICs of its own was
        // stopped before it could tell.
        for vector in ended {
            self.end_of_interrupt(vector);
        }
        // The level of LINT0 is the PIC's to say, whatever the local APIC's state has for it.
        self.with_pic(|_| ());
    }

    /// Back to power-on, for a machine reset. All input lines fall: the devices are reset too.
    pub fn reset(&self) {
        *self.pic() = Pic::default();
        self.ioapic.set_state(IoApicState::default());
        self.lapics.iter().for_each(|lapic| lapic.reset());
    }

    pub(crate) fn ioapic(&self) -> &IoApic {
        &self.ioapic
    }

    /// Routes a message to the local APICs it is for. Returns whether any accepted.
    pub(crate) fn deliver(&self, from: Option<u32>, message: &Message) -> bool {
        if let Some(sink) = self.sink.get() {
            return sink.deliver(&msi(message));
        }
        let chosen = |lapic: &Lapic, id: usize| {
            let own = from == Some(id as u32);
            match message.destination {
                Destination::Myself => own,
                Destination::All => true,
                Destination::Others => !own,
                destination => lapic.matches(destination),
            }
        };
        let targets = self.lapics.iter().enumerate().filter(|(id, lapic)| chosen(lapic, *id));
        if message.mode == DeliveryMode::LowestPriority {
            // Among equals the next after the last one, so that all get their share.
            let start = self.last_chosen.load(Ordering::Relaxed) + 1;
            let count = self.lapics.len();
            let best = targets
                .filter_map(|(id, lapic)| {
                    Some((lapic.arbitration_priority()?, (id + count - start % count) % count, id))
                })
                .min();
            let Some((_, _, id)) = best else { return false };
            self.last_chosen.store(id, Ordering::Relaxed);
            return self.lapics[id].accept(message.mode, message.vector, message.level);
        }
        targets
            .fold(false, |any, (_, lapic)| lapic.accept(message.mode, message.vector, message.level) || any)
    }

    fn pic(&self) -> std::sync::MutexGuard<'_, Pic> {
        self.pic.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Does `f` to the PIC and drives LINT0 as it says afterwards, in one go so that two threads
    /// cannot leave the older level.
    fn with_pic<T>(&self, f: impl FnOnce(&mut Pic) -> T) -> T {
        let mut pic = self.pic();
        let result = f(&mut pic);
        if let Some(boot) = self.lapics.first() {
            boot.set_lint0(pic.output());
        }
        if let (Some(_), Some(boot)) = (self.sink.get(), self.boot.get()) {
            boot.set_lint0(pic.output());
        }
        result
    }
}

impl IrqSink for IrqChip {
    fn set_irq(&self, gsi: u32, level: bool) {
        if gsi < 16 && gsi != TIMER_PIN {
            self.with_pic(|pic| pic.set_irq(gsi as u8, level));
        }
        let pin = match gsi {
            0 => TIMER_PIN,
            TIMER_PIN => return,
            gsi => gsi,
        };
        self.ioapic.set_line(pin as usize, level, &|message| self.deliver(None, message));
    }
}

impl Fabric for IrqChip {
    fn send(&self, from: u32, message: &Message) {
        self.deliver(Some(from), message);
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.ioapic.end_of_interrupt(vector, &|message| self.deliver(None, message));
    }

    fn acknowledge_pic(&self) -> Option<u8> {
        self.with_pic(Pic::acknowledge)
    }
}

/// A message as a device would write it.
fn msi(message: &Message) -> MsiMessage {
    /// Where local APICs listen.
    const BASE: u32 = 0xfee0_0000;
    const LOGICAL: u32 = 1 << 2;
    /// To one of several: the redirection hint.
    const HINT: u32 = 1 << 3;
    const ASSERT: u32 = 1 << 14;
    const LEVEL: u32 = 1 << 15;
    let (destination, logical) = match message.destination {
        Destination::Physical(id) => (id, 0),
        Destination::Logical(id) => (id, LOGICAL),
        // None of the IOAPIC's; an IPI never comes here.
        Destination::Myself | Destination::All | Destination::Others => (BROADCAST, 0),
    };
    let mode = match message.mode {
        DeliveryMode::Fixed => 0,
        DeliveryMode::LowestPriority => 1,
        DeliveryMode::Smi => 2,
        DeliveryMode::Reserved => 3,
        DeliveryMode::Nmi => 4,
        DeliveryMode::Init => 5,
        DeliveryMode::Startup => 6,
        DeliveryMode::ExtInt => 7,
    };
    let hint = if message.mode == DeliveryMode::LowestPriority { HINT } else { 0 };
    MsiMessage {
        address: BASE | (destination & 0xff) << 12 | logical | hint,
        data: u32::from(message.vector) | mode << 8 | ASSERT | if message.level { LEVEL } else { 0 },
    }
}

#[derive(Clone, Copy)]
enum PicPorts {
    Chip(usize),
    Elcr,
}

/// A pair of the PIC's ports.
struct PicWindow {
    chip: Arc<IrqChip>,
    block: PicPorts,
}

impl BusDevice for PicWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.chip.with_pic(|pic| match self.block {
                PicPorts::Chip(chip) => pic.read(chip, at),
                PicPorts::Elcr => pic.read_elcr(at as usize),
            });
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            self.chip.with_pic(|pic| match self.block {
                PicPorts::Chip(chip) => pic.write(chip, at, *byte),
                PicPorts::Elcr => pic.write_elcr(at as usize, *byte),
            });
        }
    }
}

#[cfg(test)]
mod tests;
