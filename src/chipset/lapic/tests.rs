use super::*;
use crate::chipset::irqchip::IrqChip;
use crate::chipset::timers::testing::Simulation;
use std::sync::atomic::AtomicUsize;

#[derive(Default)]
struct Signal(AtomicUsize);

impl VcpuSignal for Signal {
    fn attention(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn kick(&self) {}
}

struct Board {
    sim: Simulation,
    chip: Arc<IrqChip>,
    apics: Vec<Arc<dyn LocalApic>>,
}

impl Board {
    /// All APICs software-enabled and every processor started.
    fn new(vcpus: u32) -> Self {
        let sim = Simulation::new();
        let chip = IrqChip::new(&sim.timers, vcpus);
        let mut state = chip.state();
        state.lapics.iter_mut().for_each(|lapic| lapic.wait_for_startup = false);
        chip.set_state(state);
        let apics: Vec<_> = (0..vcpus).map(|id| chip.lapic(id).unwrap()).collect();
        apics.iter().for_each(|apic| apic.mmio_write(SVR, 0x1ff));
        Self { sim, chip, apics }
    }

    fn x2apic(vcpus: u32) -> Self {
        let board = Self::new(vcpus);
        for apic in &board.apics {
            let base = apic.msr_read(MSR_APIC_BASE).unwrap();
            apic.msr_write(MSR_APIC_BASE, base | BASE_X2APIC).unwrap();
        }
        board
    }

    fn icr(&self, from: usize, destination: u32, low: u32) {
        self.apics[from].mmio_write(ICR_HIGH, destination << 24);
        self.apics[from].mmio_write(ICR_LOW, low);
    }

    /// What each processor takes now.
    fn taken(&self) -> Vec<Option<LocalEvent>> {
        self.apics.iter().map(|apic| apic.take_event(true)).collect()
    }
}

fn int(vector: u8) -> Option<LocalEvent> {
    Some(LocalEvent::Interrupt(vector))
}

const X2: u32 = MSR_X2APIC_FIRST;

#[test]
fn interrupts_nest_by_class_and_eoi_ends_the_highest() {
    let board = Board::new(1);
    let apic = &board.apics[0];
    for vector in [0x31, 0x35, 0x52] {
        board.icr(0, 0, 0x4_0000 | vector);
    }
    assert!(apic.has_event(true) && !apic.has_event(false));
    assert_eq!(apic.take_event(false), None);
    assert_eq!(apic.take_event(true), int(0x52));
    assert!(!apic.has_event(true), "class 3 is below class 5 in service");
    assert_eq!(apic.mmio_read(PPR), 0x50);
    board.icr(0, 0, 0x4_0061);
    assert_eq!(apic.take_event(true), int(0x61));
    assert_eq!(apic.mmio_read(ISR + 0x20), 1 << 18);
    apic.mmio_write(EOI, 0);
    assert_eq!(apic.take_event(true), None);
    apic.mmio_write(EOI, 0);
    assert_eq!(apic.take_event(true), int(0x35));
    assert_eq!(apic.take_event(true), None, "same class does not nest");
    apic.mmio_write(EOI, 0);
    assert_eq!(apic.take_event(true), int(0x31));
    apic.mmio_write(EOI, 0);
    apic.mmio_write(EOI, 0);
    let state = &board.chip.state().lapics[0];
    assert_eq!((state.irr, state.isr), ([0; 8], [0; 8]));
}

#[test]
fn task_priority_holds_back_its_class_and_below() {
    let board = Board::new(1);
    let apic = &board.apics[0];
    apic.set_cr8(5);
    assert_eq!(apic.mmio_read(TPR), 0x50);
    board.icr(0, 0, 0x4_005f);
    assert!(!apic.has_event(true));
    apic.mmio_write(TPR, 0x4f);
    assert_eq!(apic.cr8(), 4);
    assert_eq!(apic.mmio_read(PPR), 0x4f);
    assert_eq!(apic.take_event(true), int(0x5f));
}

#[test]
fn software_disable_masks_the_lvt_and_refuses_fixed() {
    let board = Board::new(1);
    let apic = &board.apics[0];
    apic.mmio_write(LVT_ERROR, 0xfe);
    apic.mmio_write(SVR, 0xff);
    assert_eq!(apic.mmio_read(LVT_ERROR), 0x1_00fe);
    apic.mmio_write(LVT_ERROR, 0xfd);
    assert_eq!(apic.mmio_read(LVT_ERROR), 0x1_00fd);
    board.icr(0, 0, 0x4_0040);
    assert!(!apic.has_event(true));
    board.chip.inject_nmi(0);
    assert!(apic.has_event(false));
    assert_eq!(apic.take_event(false), Some(LocalEvent::Nmi));
    assert!(!apic.has_event(true));
}

#[test]
fn shorthands_choose_self_all_and_others() {
    let board = Board::new(3);
    board.icr(1, 0, 1 << 18 | 0x41);
    assert_eq!(board.taken(), [None, int(0x41), None]);
    board.icr(1, 0, 2 << 18 | 0x51);
    assert_eq!(board.taken(), [int(0x51); 3]);
    board.icr(1, 0, 3 << 18 | 0x61);
    assert_eq!(board.taken(), [int(0x61), None, int(0x61)]);
}

#[test]
fn physical_and_flat_and_cluster_destinations() {
    let board = Board::new(3);
    board.icr(0, 2, 0x41);
    assert_eq!(board.taken(), [None, None, int(0x41)]);
    board.icr(0, 7, 0x51);
    assert_eq!(board.taken(), [None; 3]);
    board.icr(0, 0xff, 0x51);
    assert_eq!(board.taken(), [int(0x51); 3]);
    for (id, apic) in board.apics.iter().enumerate() {
        apic.mmio_write(LDR, 1 << (24 + id));
    }
    board.icr(0, 0b110, 0x861);
    assert_eq!(board.taken(), [None, int(0x61), int(0x61)]);
    // Clusters 1, 1, 2; members 1, 2, 1.
    for (apic, ldr) in board.apics.iter().zip([0x11u32, 0x12, 0x21]) {
        apic.mmio_write(DFR, 0);
        assert_eq!(apic.mmio_read(DFR), 0x0fff_ffff);
        apic.mmio_write(LDR, ldr << 24);
    }
    board.icr(0, 0x13, 0x871);
    assert_eq!(board.taken(), [int(0x71), int(0x71), None]);
    board.icr(0, 0xff, 0x881);
    assert_eq!(board.taken(), [int(0x81); 3]);
}

#[test]
fn lowest_priority_goes_to_one_idle_processor_in_turn() {
    let board = Board::new(3);
    board.apics[0].set_cr8(8);
    let mut counts = [0; 3];
    for _ in 0..4 {
        board.icr(0, 0xff, 0x141);
        for (n, (event, apic)) in board.taken().iter().zip(&board.apics).enumerate() {
            if event.is_some() {
                counts[n] += 1;
                apic.mmio_write(EOI, 0);
            }
        }
    }
    assert_eq!(counts, [0, 2, 2]);
}

#[test]
fn init_and_startup_bring_a_processor_up() {
    let sim = Simulation::new();
    let chip = IrqChip::new(&sim.timers, 2);
    let signal = Arc::new(Signal::default());
    chip.connect(1, signal.clone());
    let (bsp, ap) = (chip.lapic(0).unwrap(), chip.lapic(1).unwrap());
    let send = |low: u32| {
        bsp.mmio_write(ICR_HIGH, 1 << 24);
        bsp.mmio_write(ICR_LOW, low);
    };
    let before = signal.0.load(Ordering::SeqCst);
    send(0xc500);
    send(0x8500);
    send(0x0699);
    assert!(signal.0.load(Ordering::SeqCst) > before);
    assert!(ap.has_event(false));
    assert_eq!(ap.take_event(false), Some(LocalEvent::Init));
    assert_eq!(ap.take_event(false), Some(LocalEvent::Startup(0x99)));
    send(0x0699);
    assert!(!ap.has_event(true), "a second start-up IPI finds it running");
    ap.mmio_write(SVR, 0x1ff);
    ap.mmio_write(LVT_TIMER, 0x2_0040);
    send(0xc500);
    assert_eq!(ap.take_event(true), Some(LocalEvent::Init));
    assert_eq!(ap.mmio_read(SVR), 0xff);
    assert_eq!(ap.mmio_read(LVT_TIMER), LVT_MASKED);
    assert_eq!(ap.mmio_read(ID), 1 << 24);
    send(0x0400);
    ap.mmio_write(SVR, 0x1ff);
    send(0x0040);
    assert!(!ap.has_event(true), "an NMI waits for start-up");
    assert_eq!(ap.take_event(true), None);
    send(0x0610);
    assert_eq!(ap.take_event(false), Some(LocalEvent::Startup(0x10)));
    assert_eq!(ap.take_event(false), Some(LocalEvent::Nmi));
    assert_eq!(ap.take_event(true), int(0x40));
}

#[test]
fn one_shot_timer_counts_down_and_fires_once() {
    let board = Board::new(1);
    let apic = &board.apics[0];
    apic.mmio_write(LVT_TIMER, 0x40);
    apic.mmio_write(TIMER_DIVIDE, 0b1010); // by 128
    apic.mmio_write(TIMER_INITIAL, 1000);
    assert_eq!(apic.mmio_read(TIMER_CURRENT), 1000);
    board.sim.advance(64_000);
    assert_eq!(apic.mmio_read(TIMER_CURRENT), 500);
    apic.mmio_write(TIMER_DIVIDE, 0b1011); // by 1
    assert_eq!(apic.mmio_read(TIMER_CURRENT), 500);
    board.sim.advance(499);
    assert!(!apic.has_event(true));
    assert_eq!(apic.mmio_read(TIMER_CURRENT), 1);
    board.sim.advance(1);
    assert_eq!(apic.take_event(true), int(0x40));
    apic.mmio_write(EOI, 0);
    assert_eq!(apic.mmio_read(TIMER_CURRENT), 0);
    board.sim.advance(1_000_000_000);
    assert!(!apic.has_event(true));
}

#[test]
fn divide_configurations() {
    for (bits, by) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
        let mut state = LapicState::power_on(0, true);
        state.timer_divide = bits;
        assert_eq!(state.divisor(), by);
    }
}

#[test]
fn periodic_timer_repeats_keeps_step_and_skips_what_it_missed() {
    let board = Board::new(1);
    let apic = &board.apics[0];
    apic.mmio_write(TIMER_DIVIDE, 0b1011);
    apic.mmio_write(LVT_TIMER, 0x2_0040);
    apic.mmio_write(TIMER_INITIAL, 1_000_000);
    for _ in 0..3 {
        board.sim.advance(999_999);
        assert!(!apic.has_event(true));
        board.sim.advance(1);
        assert_eq!(apic.take_event(true), int(0x40));
        apic.mmio_write(EOI, 0);
    }
    board.sim.stall(5_300_000);
    board.sim.advance(0);
    assert_eq!(apic.take_event(true), int(0x40));
    apic.mmio_write(EOI, 0);
    assert_eq!(apic.mmio_read(TIMER_CURRENT), 700_000);
    // A period of a nanosecond must not turn into a billion callbacks a second.
    apic.mmio_write(TIMER_INITIAL, 1);
    board.sim.advance(1);
    let next = board.chip.state().lapics[0].deadline.unwrap();
    assert!(next >= board.sim.now() + MIN_PERIOD_NS - 1);
    apic.mmio_write(TIMER_INITIAL, 0);
    assert_eq!(board.chip.state().lapics[0].deadline, None);
}

#[test]
fn tsc_deadline_arms_fires_once_and_disarms() {
    let board = Board::new(1);
    let apic = &board.apics[0];
    apic.msr_write(MSR_TSC_DEADLINE, 500).unwrap();
    assert_eq!(apic.msr_read(MSR_TSC_DEADLINE), Some(0), "ignored in one-shot mode");
    apic.mmio_write(LVT_TIMER, 0x4_00ec);
    apic.mmio_write(TIMER_INITIAL, 100);
    assert_eq!(apic.mmio_read(TIMER_INITIAL), 0, "ignored in TSC-deadline mode");
    apic.msr_write(MSR_TSC_DEADLINE, 500).unwrap();
    assert_eq!(apic.msr_read(MSR_TSC_DEADLINE), Some(500));
    assert_eq!(apic.mmio_read(TIMER_CURRENT), 0);
    board.sim.advance(499);
    assert!(!apic.has_event(true));
    board.sim.advance(1);
    assert_eq!(apic.take_event(true), int(0xec));
    apic.mmio_write(EOI, 0);
    assert_eq!(apic.msr_read(MSR_TSC_DEADLINE), Some(0));
    // Disarmed by zero, by a change of mode, and never late for a deadline in the past.
    apic.msr_write(MSR_TSC_DEADLINE, 1000).unwrap();
    apic.msr_write(MSR_TSC_DEADLINE, 0).unwrap();
    board.sim.advance(1000);
    assert!(!apic.has_event(true));
    apic.msr_write(MSR_TSC_DEADLINE, 2000).unwrap();
    apic.mmio_write(LVT_TIMER, 0xec);
    board.sim.advance(1000);
    assert!(!apic.has_event(true));
    apic.mmio_write(LVT_TIMER, 0x4_00ec);
    apic.msr_write(MSR_TSC_DEADLINE, 3).unwrap();
    assert_eq!(apic.take_event(true), int(0xec));
}

#[test]
fn a_deadline_moved_back_is_not_fired_by_the_old_one() {
    let board = Board::new(1);
    let apic = &board.apics[0];
    apic.mmio_write(LVT_TIMER, 0x4_00ec);
    apic.msr_write(MSR_TSC_DEADLINE, 100).unwrap();
    apic.msr_write(MSR_TSC_DEADLINE, 10_000).unwrap();
    board.sim.advance(5000);
    assert!(!apic.has_event(true));
    // The callback of the first deadline may already have been under way.
    let chip = board.chip.state();
    assert_eq!(chip.lapics[0].deadline, Some(10_000));
    board.sim.advance(5000);
    assert_eq!(apic.take_event(true), int(0xec));
}

#[test]
fn a_masked_timer_runs_silently() {
    let board = Board::new(1);
    let apic = &board.apics[0];
    apic.mmio_write(LVT_TIMER, 0x5_00ec);
    apic.msr_write(MSR_TSC_DEADLINE, 100).unwrap();
    board.sim.advance(200);
    assert!(!apic.has_event(true));
    assert_eq!(apic.msr_read(MSR_TSC_DEADLINE), Some(0));
}

#[test]
fn apic_base_transitions() {
    let board = Board::new(2);
    let apic = &board.apics[0];
    let base = apic.msr_read(MSR_APIC_BASE).unwrap();
    assert_eq!(base, 0xfee0_0900);
    assert_eq!(board.apics[1].msr_read(MSR_APIC_BASE), Some(0xfee0_0800));
    assert_eq!(apic.mmio_base(), Some(0xfee0_0000));
    let off = base & !BASE_ENABLED;
    let x2 = base | BASE_X2APIC;
    assert_eq!(apic.msr_read(X2 + 2), None, "no MSRs in xAPIC mode");
    assert_eq!(apic.msr_write(MSR_APIC_BASE, off | BASE_X2APIC), None);
    assert_eq!(apic.msr_write(MSR_APIC_BASE, base | 1), None, "reserved bit");
    assert_eq!(apic.msr_write(MSR_APIC_BASE, base | 1 << 60), None);
    apic.msr_write(MSR_APIC_BASE, base + 0x1000).unwrap();
    assert_eq!(apic.mmio_base(), Some(0xfee0_1000));
    apic.msr_write(MSR_APIC_BASE, x2).unwrap();
    assert_eq!(apic.mmio_base(), None);
    assert_eq!(apic.msr_write(MSR_APIC_BASE, base), None, "x2APIC to xAPIC goes through disabled");
    apic.msr_write(MSR_APIC_BASE, off).unwrap();
    assert_eq!(apic.msr_write(MSR_APIC_BASE, x2), None, "disabled to x2APIC goes through xAPIC");
    apic.msr_write(MSR_APIC_BASE, base).unwrap();
    assert_eq!(apic.mmio_read(SVR), 0xff, "lost by disabling");
}

#[test]
fn x2apic_registers_and_their_faults() {
    let board = Board::x2apic(2);
    let apic = &board.apics[1];
    assert_eq!(apic.msr_read(X2 + 0x02), Some(1));
    assert_eq!(apic.msr_read(X2 + 0x03), Some(0x0005_0014));
    assert_eq!(apic.msr_read(X2 + 0x0d), Some(2));
    assert_eq!(apic.mmio_read(VERSION), 0, "no page in x2APIC mode");
    for unreadable in [0x0e, 0x0b, 0x31, 0x3f, 0x09, 0x2f, 0x38 + 2, 0xff] {
        assert_eq!(apic.msr_read(X2 + unreadable), None, "{unreadable:#x}");
    }
    for (unwritable, value) in [
        (0x02, 0),
        (0x03, 0),
        (0x0a, 0),
        (0x0d, 0),
        (0x0e, 0),
        (0x10, 0),
        (0x31, 0),
        (0x39, 0),
        (0x0b, 1),
        (0x28, 1),
        (0x08, 0x100),
        (0x3f, 0x100),
        (0x32, 1 << 32),
        (0x30, 1 << 13),
        (0x30, 1 << 20),
    ] {
        assert_eq!(apic.msr_write(X2 + unwritable, value), None, "{unwritable:#x}");
    }
    apic.msr_write(X2 + 0x3f, 0x77).unwrap();
    assert_eq!(apic.take_event(true), int(0x77));
    apic.msr_write(X2 + 0x0b, 0).unwrap();
    assert_eq!(apic.msr_read(0x9ff), None);
}

#[test]
fn x2apic_ipis_reach_physical_and_logical_ids() {
    let board = Board::x2apic(18);
    let send = |value: u64| board.apics[0].msr_write(X2 + 0x30, value).unwrap();
    let who = || {
        let taken = board.taken();
        board.apics.iter().for_each(|apic| apic.msr_write(X2 + 0x0b, 0).unwrap());
        (0..18).filter(|n| taken[*n].is_some()).collect::<Vec<_>>()
    };
    send(17 << 32 | 0x41);
    assert_eq!(who(), [17]);
    assert_eq!(board.apics[0].msr_read(X2 + 0x30), Some(17 << 32 | 0x41));
    send(0x0001_0003 << 32 | 0x841);
    assert_eq!(who(), [16, 17]);
    send(0x0000_8001 << 32 | 0x841);
    assert_eq!(who(), [0, 15]);
    send(0xffff_ffff << 32 | 0x41);
    assert_eq!(who().len(), 18);
    send(3 << 18 | 0x41);
    assert_eq!(who().len(), 17);
    send(0xff << 32 | 0x41);
    assert_eq!(who(), [0; 0], "0xff is an id like any other");
}

#[test]
fn errors_are_latched_and_interrupt() {
    let board = Board::new(2);
    let apic = &board.apics[0];
    apic.mmio_write(LVT_ERROR, 0xfe);
    board.icr(0, 1, 0x05);
    assert_eq!(apic.take_event(true), int(0xfe));
    assert_eq!(apic.mmio_read(ESR), 0, "latched by a write only");
    apic.mmio_write(ESR, 0);
    assert_eq!(apic.mmio_read(ESR), ESR_SEND_ILLEGAL_VECTOR);
    apic.mmio_write(ESR, 0);
    assert_eq!(apic.mmio_read(ESR), 0);
    apic.mmio_read(0x40);
    apic.mmio_write(ESR, 0);
    assert_eq!(apic.mmio_read(ESR), ESR_ILLEGAL_REGISTER);
    board.apics[1].mmio_write(LVT_TIMER, 0x08);
    board.apics[1].mmio_write(TIMER_INITIAL, 1);
    board.sim.advance(10);
    board.apics[1].mmio_write(ESR, 0);
    assert_eq!(board.apics[1].mmio_read(ESR), ESR_RECEIVED_ILLEGAL_VECTOR);
}

#[test]
fn state_moves_to_another_machine_with_its_timer() {
    let board = Board::x2apic(2);
    board.apics[1].msr_write(X2 + 0x32, 0x4_0055).unwrap();
    board.apics[1].msr_write(MSR_TSC_DEADLINE, 9000).unwrap();
    board.apics[0].msr_write(X2 + 0x3f, 0x66).unwrap();
    let saved = board.chip.state();
    let other = Board::new(2);
    other.chip.set_state(saved.clone());
    assert_eq!(other.chip.state(), saved);
    assert_eq!(other.apics[0].take_event(true), int(0x66));
    assert_eq!(other.apics[0].mmio_base(), None);
    other.sim.advance(9000);
    assert_eq!(other.apics[1].take_event(true), int(0x55));
    other.chip.reset();
    assert_eq!(other.apics[1].mmio_base(), Some(DEFAULT_BASE));
    assert!(!other.apics[1].has_event(true));
}
