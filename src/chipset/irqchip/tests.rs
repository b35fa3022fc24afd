use super::*;
use crate::chipset::timers::testing::Simulation;
use crate::hypervisor::{ExitIo, LocalEvent};

const SVR: u32 = 0xf0;
const EOI: u32 = 0xb0;
const LDR: u32 = 0xd0;
const LINT0: u32 = 0x350;

struct Board {
    _sim: Simulation,
    chip: Arc<IrqChip>,
    bus: SystemBus,
    apics: Vec<Arc<dyn LocalApic>>,
}

impl Board {
    fn new(vcpus: u32) -> Self {
        let sim = Simulation::new();
        let chip = IrqChip::new(&sim.timers, vcpus);
        let mut state = chip.state();
        state.lapics.iter_mut().for_each(|lapic| lapic.wait_for_startup = false);
        chip.set_state(state);
        let bus = SystemBus::new();
        chip.attach(&bus).unwrap();
        let apics: Vec<_> = (0..vcpus).map(|id| chip.lapic(id).unwrap()).collect();
        apics.iter().for_each(|apic| apic.mmio_write(SVR, 0x1ff));
        Self { _sim: sim, chip, bus, apics }
    }

    fn ioapic_read(&self, index: u32) -> u32 {
        self.bus.mmio_write(ioapic::DEFAULT_BASE, &index.to_le_bytes());
        let mut data = [0; 4];
        self.bus.mmio_read(ioapic::DEFAULT_BASE + 0x10, &mut data);
        u32::from_le_bytes(data)
    }

    fn ioapic_write(&self, index: u32, value: u32) {
        self.bus.mmio_write(ioapic::DEFAULT_BASE, &[index as u8]);
        self.bus.mmio_write(ioapic::DEFAULT_BASE + 0x10, &value.to_le_bytes());
    }

    /// Low half of pin 5's entry.
    fn pin5(&self) -> u32 {
        self.ioapic_read(0x1a)
    }

    fn outb(&self, port: u16, value: u8) {
        self.bus.port_write(port, &[value]);
    }

    fn init_pic(&self) {
        for (port, base, cascade) in [(0x20, 0x20, 4), (0xa0, 0x28, 2)] {
            self.outb(port, 0x11);
            self.outb(port + 1, base);
            self.outb(port + 1, cascade);
            self.outb(port + 1, 1);
        }
    }

    fn take(&self, id: usize) -> Option<LocalEvent> {
        self.apics[id].take_event(true)
    }

    fn eoi(&self, id: usize) {
        self.apics[id].mmio_write(EOI, 0);
    }
}

fn int(vector: u8) -> Option<LocalEvent> {
    Some(LocalEvent::Interrupt(vector))
}

#[test]
fn ioapic_registers() {
    let board = Board::new(1);
    assert_eq!(board.ioapic_read(1), 0x0017_0011);
    board.ioapic_write(0, 0xffff_ffff);
    assert_eq!(board.ioapic_read(0), 0x0f00_0000);
    assert_eq!(board.ioapic_read(0x10), 0x1_0000);
    board.ioapic_write(0x3f, 0xab00_0000);
    board.ioapic_write(0x3e, 0xffff_ffff);
    assert_eq!(board.ioapic_read(0x3e), 0x1_afff);
    assert_eq!(board.ioapic_read(0x3f), 0xab00_0000);
    assert_eq!(board.ioapic_read(0x40), u32::MAX);
    assert_eq!(board.ioapic_read(0x05), u32::MAX);
    let mut wide = [0; 8];
    board.bus.mmio_read(ioapic::DEFAULT_BASE + 0x1c, &mut wide);
    assert_eq!(wide, [0xff; 8], "straddles the window's end");
}

#[test]
fn edges_deliver_once_each_and_are_lost_while_masked() {
    let board = Board::new(1);
    board.ioapic_write(0x1a, 0x1_0045);
    board.chip.set_irq(5, true);
    assert_eq!(board.take(0), None);
    board.ioapic_write(0x1a, 0x45);
    assert_eq!(board.take(0), None);
    board.chip.set_irq(5, true);
    assert_eq!(board.take(0), None, "no new edge");
    for _ in 0..2 {
        board.chip.set_irq(5, false);
        board.chip.set_irq(5, true);
        assert_eq!(board.take(0), int(0x45));
        board.eoi(0);
        assert_eq!(board.take(0), None);
    }
}

#[test]
fn levels_repeat_after_eoi_and_remote_irr_holds_them() {
    let board = Board::new(1);
    board.ioapic_write(0x1a, 0x8045);
    board.chip.set_irq(5, true);
    assert_eq!(board.pin5(), 0xc045);
    assert_eq!(board.take(0), int(0x45));
    board.chip.set_irq(5, false);
    board.chip.set_irq(5, true);
    assert!(!board.apics[0].has_event(true), "still in service");
    board.eoi(0);
    assert_eq!(board.take(0), int(0x45), "line still high at EOI");
    board.chip.set_irq(5, false);
    board.eoi(0);
    assert_eq!(board.pin5(), 0x8045);
    assert!(!board.apics[0].has_event(true));
}

/// In a state that was taken before the end reached the IOAPIC.
#[test]
fn an_end_that_was_never_told_is_made_up_for() {
    let board = Board::new(1);
    board.ioapic_write(0x1a, 0x8045);
    board.chip.set_irq(5, true);
    let mut state = board.chip.state();
    board.chip.set_state(state.clone());
    assert_eq!(board.pin5(), 0xc045, "a local APIC has it");
    assert_eq!(board.take(0), int(0x45));
    assert_eq!(board.take(0), None);

    state.lapics[0].irr = [0; 8];
    board.chip.set_state(state.clone());
    assert_eq!(board.take(0), int(0x45), "the line is still high");
    assert_eq!(board.pin5(), 0xc045);

    state.ioapic.lines = 0;
    board.chip.set_state(state);
    assert_eq!(board.pin5(), 0x8045);
    assert_eq!(board.take(0), None);
}

#[test]
fn a_level_waits_for_its_mask_and_edge_mode_clears_remote_irr() {
    let board = Board::new(1);
    board.ioapic_write(0x1a, 0x1_8045);
    board.chip.set_irq(5, true);
    assert_eq!(board.take(0), None);
    board.ioapic_write(0x1a, 0x8045);
    assert_eq!(board.take(0), int(0x45));
    // Masked while in service: the EOI clears remote IRR but does not deliver again.
    board.ioapic_write(0x1a, 0x1_8045);
    assert_eq!(board.pin5(), 0x1_c045);
    board.eoi(0);
    assert_eq!(board.pin5(), 0x1_8045);
    assert!(!board.apics[0].has_event(true));
    board.ioapic_write(0x1a, 0x8045);
    assert_eq!(board.take(0), int(0x45));
    // How a guest without EOI register frees a stuck entry.
    board.ioapic_write(0x1a, 0x1_0045);
    board.ioapic_write(0x1a, 0x1_8045);
    assert_eq!(board.pin5(), 0x1_8045);
}

#[test]
fn a_level_nobody_accepts_leaves_remote_irr_clear() {
    let board = Board::new(1);
    board.ioapic_write(0x1b, 9 << 24);
    board.ioapic_write(0x1a, 0x8045);
    board.chip.set_irq(5, true);
    assert_eq!(board.pin5(), 0x8045);
}

#[test]
fn ioapic_destinations() {
    let board = Board::new(3);
    for (id, apic) in board.apics.iter().enumerate() {
        apic.mmio_write(LDR, 1 << (24 + id));
    }
    let who = || {
        board.chip.set_irq(5, true);
        board.chip.set_irq(5, false);
        let ids: Vec<_> = (0..3).filter(|id| board.take(*id) == int(0x45)).collect();
        (0..3).for_each(|id| board.eoi(id));
        ids
    };
    board.ioapic_write(0x1b, 2 << 24);
    board.ioapic_write(0x1a, 0x45);
    assert_eq!(who(), [2]);
    board.ioapic_write(0x1b, 0xff << 24);
    assert_eq!(who(), [0, 1, 2]);
    board.ioapic_write(0x1b, 0b110 << 24);
    board.ioapic_write(0x1a, 0x845);
    assert_eq!(who(), [1, 2]);
    board.ioapic_write(0x1a, 0x945);
    let (first, second) = (who(), who());
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_ne!(first, second, "equals take turns");
}

#[test]
fn isa_timer_is_pin_2_and_high_gsis_are_ioapic_only() {
    let board = Board::new(1);
    board.ioapic_write(0x14, 0x30);
    board.ioapic_write(0x10, 0x31);
    board.chip.set_irq(2, true);
    assert_eq!(board.take(0), None);
    board.chip.set_irq(0, true);
    assert_eq!(board.take(0), int(0x30));
    board.eoi(0);
    board.ioapic_write(0x10 + 2 * 23, 0x32);
    board.chip.set_irq(23, true);
    assert_eq!(board.take(0), int(0x32));
    board.chip.set_irq(24, true);
    board.chip.set_irq(u32::MAX, true);
    assert_eq!(board.chip.state().ioapic.lines, 1 << 2 | 1 << 23);
}

#[test]
fn the_pic_reaches_the_boot_processor_through_lint0() {
    let board = Board::new(2);
    board.init_pic();
    board.chip.set_irq(4, true);
    assert!(board.apics[0].has_event(true) && !board.apics[0].has_event(false));
    assert!(!board.apics[1].has_event(true));
    assert_eq!(board.take(0), int(0x24));
    assert_eq!(board.chip.state().lapics[0].isr, [0; 8], "the LAPIC has no part in it");
    assert!(!board.apics[0].has_event(true));
    board.outb(0x20, 0x20);
    board.chip.set_irq(8, true);
    assert!(board.apics[0].has_event(true));
    board.apics[0].mmio_write(LINT0, 0x1_0700);
    assert!(!board.apics[0].has_event(true), "masked");
    board.apics[0].mmio_write(LINT0, 0x0400);
    assert!(!board.apics[0].has_event(true), "not ExtINT");
    board.apics[0].mmio_write(LINT0, 0x0700);
    assert_eq!(board.take(0), int(0x28));
}

#[test]
fn a_request_withdrawn_before_it_is_taken_is_no_event() {
    let board = Board::new(1);
    board.init_pic();
    board.chip.set_irq(4, true);
    assert!(board.apics[0].has_event(true));
    board.outb(0x21, 0xff);
    assert!(!board.apics[0].has_event(true));
    assert_eq!(board.take(0), None);
}

#[test]
fn with_the_apic_disabled_the_pic_drives_the_processor() {
    let board = Board::new(1);
    board.init_pic();
    board.apics[0].msr_write(0x1b, 0xfee0_0100).unwrap();
    assert_eq!(board.apics[0].mmio_base(), None);
    board.chip.set_irq(1, true);
    assert_eq!(board.take(0), int(0x21));
}

#[test]
fn vcpu_counts_are_brought_into_range() {
    let sim = Simulation::new();
    assert!(IrqChip::new(&sim.timers, 0).lapic(0).is_some());
    let most = IrqChip::new(&sim.timers, u32::MAX);
    assert!(most.lapic(254).is_some() && most.lapic(255).is_none());
}

#[test]
fn processors_devices_and_timers_at_once_do_not_lock_each_other_up() {
    use crate::chipset::irq::IrqLine;
    use crate::chipset::pit::Pit;
    use crate::sys::clock::Clock;
    use std::sync::mpsc;
    use std::time::Duration;

    let clock = Arc::new(Clock::new());
    clock.resume();
    let timers = Timers::new(clock.clone()).unwrap();
    let chip = IrqChip::new(&timers, 2);
    let bus = Arc::new(SystemBus::new());
    chip.attach(&bus).unwrap();
    let pit = Pit::new(&timers, IrqLine::new(chip.clone(), 0));
    pit.attach(&bus).unwrap();
    let (done, all_done) = mpsc::channel();
    let threads = 4;
    for n in 0..threads {
        let (chip, bus, clock, done) = (chip.clone(), bus.clone(), clock.clone(), done.clone());
        std::thread::spawn(move || {
            let apic = chip.lapic(n & 1).unwrap();
            apic.mmio_write(SVR, 0x1ff);
            apic.mmio_write(0x320, 0x4_00ec);
            // Channel 0 at its fastest, pin 5 a level to both, the PIC unmasked.
            bus.port_write(0x43, &[0x14]);
            bus.port_write(0x40, &[100]);
            bus.port_write(0x21, &[0]);
            bus.mmio_write(ioapic::DEFAULT_BASE, &[0x1b]);
            bus.mmio_write(ioapic::DEFAULT_BASE + 0x10, &0xff00_0000u32.to_le_bytes());
            for round in 0..20_000u32 {
                bus.mmio_write(ioapic::DEFAULT_BASE, &[0x1a]);
                bus.mmio_write(ioapic::DEFAULT_BASE + 0x10, &0x8045u32.to_le_bytes());
                chip.set_irq(5, round & 1 == 0);
                chip.set_irq(4, round & 2 == 0);
                apic.mmio_write(0x300, 0xc_0000 | 0x30 | round & 0x7f);
                apic.msr_write(0x6e0, clock.now() + u64::from(round & 0xfff));
                // Not until there are none: a level that nobody lowers meanwhile never ends.
                for _ in 0..4 {
                    apic.take_event(true);
                    apic.mmio_write(EOI, 0);
                    bus.port_write(0x20, &[0x20]);
                }
                apic.mmio_write(EOI, 0);
                let _ = chip.state();
            }
            let _ = done.send(());
        });
    }
    for _ in 0..threads {
        all_done.recv_timeout(Duration::from_secs(120)).expect("locked up");
    }
}
