use super::*;
use crate::chipset::irq::IrqSink;
use crate::chipset::timers::testing::Simulation;
use crate::hypervisor::ExitIo;

/// Counts rising edges of GSI 0 and keeps its level.
#[derive(Default)]
struct Line(Mutex<(usize, bool)>);

impl IrqSink for Line {
    fn set_irq(&self, gsi: u32, level: bool) {
        assert_eq!(gsi, 0);
        let mut line = self.0.lock().unwrap();
        line.0 += usize::from(level && !line.1);
        line.1 = level;
    }
}

struct Board {
    sim: Simulation,
    pit: Arc<Pit>,
    line: Arc<Line>,
    bus: SystemBus,
}

impl Board {
    fn new() -> Self {
        let sim = Simulation::new();
        let line = Arc::new(Line::default());
        let pit = Pit::new(&sim.timers, IrqLine::new(line.clone(), 0));
        let bus = SystemBus::new();
        pit.attach(&bus).unwrap();
        Self { sim, pit, line, bus }
    }

    fn outb(&self, port: u16, value: u8) {
        self.bus.port_write(port, &[value]);
    }

    fn inb(&self, port: u16) -> u8 {
        let mut data = [0];
        self.bus.port_read(port, &mut data);
        data[0]
    }

    fn read16(&self, port: u16) -> u16 {
        u16::from_le_bytes([self.inb(port), self.inb(port)])
    }

    fn load(&self, channel: u8, mode: u8, count: u16) {
        self.outb(0x43, channel << 6 | 0x30 | mode << 1);
        for byte in count.to_le_bytes() {
            self.outb(0x40 + u16::from(channel), byte);
        }
    }

    fn edges(&self) -> usize {
        self.line.0.lock().unwrap().0
    }

    /// Lets exactly `ticks` more pass, whatever was passed before in whole ticks.
    fn tick(&self, ticks: u64) {
        let target = to_ticks(self.sim.now()) + ticks;
        self.sim.advance(to_ns(target) - self.sim.now());
    }
}

#[test]
fn mode_0_interrupts_once_and_stays_high() {
    let board = Board::new();
    board.load(0, 0, 1000);
    assert_eq!(board.edges(), 0);
    board.tick(999);
    assert_eq!((board.edges(), board.read16(0x40)), (0, 1));
    board.tick(1);
    assert_eq!(*board.line.0.lock().unwrap(), (1, true));
    assert_eq!(board.read16(0x40), 0);
    board.tick(1);
    assert_eq!(board.read16(0x40), 0xffff, "counts on");
    board.tick(200_000);
    assert_eq!(board.edges(), 1);
    board.load(0, 0, 10);
    assert!(!board.line.0.lock().unwrap().1);
    board.tick(10);
    assert_eq!(board.edges(), 2);
}

#[test]
fn modes_2_and_3_interrupt_every_period() {
    for mode in [2, 3, 6, 7] {
        let board = Board::new();
        board.load(0, mode, 11932);
        board.sim.advance(1_000_000_000);
        assert_eq!(board.edges(), 99, "mode {mode}: 1193182 / 11932 = 99.99");
        board.sim.advance(1_000_000);
        assert_eq!(board.edges(), 100);
        board.load(0, mode, 0);
        board.tick(65_535);
        assert_eq!(board.edges(), 100);
        board.tick(1);
        assert_eq!(board.edges(), 101);
    }
}

#[test]
fn missed_and_absurdly_short_periods_are_left_out() {
    let board = Board::new();
    board.load(0, 2, 1193);
    board.sim.stall(50_000_000);
    board.sim.advance(0);
    assert_eq!(board.edges(), 1);
    board.sim.advance(1_000_000);
    assert_eq!(board.edges(), 2);
    board.load(0, 2, 1);
    let before = board.edges();
    board.sim.advance(10_000_000);
    assert!(board.edges() - before <= 101, "{}", board.edges() - before);
    assert!(board.edges() - before >= 50);
}

#[test]
fn mode_2_counts_down_and_reloads() {
    let board = Board::new();
    board.load(1, 2, 100);
    for (ticks, value) in [(0, 100), (1, 99), (98, 1), (1, 100), (50, 50)] {
        board.tick(ticks);
        assert_eq!(board.read16(0x41), value);
    }
}

#[test]
fn mode_3_counts_by_two_and_halves_its_output() {
    let board = Board::new();
    board.outb(0x61, 1);
    board.load(2, 3, 100);
    board.tick(10);
    assert_eq!(board.read16(0x42), 80);
    assert_eq!(board.inb(0x61) & 0x20, 0x20);
    board.tick(40);
    assert_eq!(board.inb(0x61) & 0x20, 0);
    assert_eq!(board.read16(0x42), 100);
    board.outb(0x61, 0);
    assert_eq!(board.inb(0x61) & 0x20, 0x20, "a low gate forces the output high");
}

#[test]
fn channel_2_times_a_delay_as_kernels_calibrate_with_it() {
    let board = Board::new();
    board.outb(0x61, board.inb(0x61) & !2 | 1);
    board.outb(0x43, 0xb0);
    board.outb(0x42, 0xff);
    board.outb(0x42, 0x2e);
    assert_eq!(board.inb(0x61) & 0x23, 1);
    board.tick(0x2efe);
    assert_eq!(board.inb(0x61) & 0x20, 0);
    board.tick(1);
    assert_eq!(board.inb(0x61) & 0x20, 0x20);
}

#[test]
fn the_gate_holds_and_triggers() {
    let board = Board::new();
    board.outb(0x61, 1);
    board.load(2, 0, 1000);
    board.tick(100);
    board.outb(0x61, 0);
    board.tick(5000);
    assert_eq!(board.read16(0x42), 900);
    board.outb(0x61, 1);
    board.tick(100);
    assert_eq!(board.read16(0x42), 800);
    // Mode 1: a rising gate starts, also anew.
    board.load(2, 1, 1000);
    assert_eq!(board.inb(0x61) & 0x20, 0x20);
    board.tick(50);
    board.outb(0x61, 0);
    board.outb(0x61, 1);
    assert_eq!(board.inb(0x61) & 0x20, 0);
    board.tick(999);
    assert_eq!(board.inb(0x61) & 0x20, 0);
    board.tick(1);
    assert_eq!(board.inb(0x61) & 0x20, 0x20);
    board.outb(0x61, 0);
    board.outb(0x61, 1);
    assert_eq!(board.inb(0x61) & 0x20, 0);
    // Modes 4 and 5: a strobe of one tick.
    board.load(2, 4, 10);
    board.tick(10);
    assert_eq!(board.inb(0x61) & 0x20, 0);
    board.tick(1);
    assert_eq!(board.inb(0x61) & 0x20, 0x20);
    board.load(2, 5, 10);
    board.outb(0x61, 0);
    board.outb(0x61, 1);
    board.tick(10);
    assert_eq!(board.inb(0x61) & 0x20, 0);
}

#[test]
fn latched_counts_stand_still_until_read() {
    let board = Board::new();
    board.load(0, 2, 0x1234);
    board.outb(0x43, 0);
    board.tick(5);
    board.outb(0x43, 0);
    assert_eq!(board.read16(0x40), 0x1234);
    assert_eq!(board.read16(0x40), 0x122f);
}

#[test]
fn read_back_latches_status_and_count_of_several() {
    let board = Board::new();
    board.outb(0x43, 0x34);
    assert_eq!(
        {
            board.outb(0x43, 0xe2);
            board.inb(0x40)
        },
        0xf4,
        "null count, output high"
    );
    board.load(0, 2, 0x1000);
    board.outb(0x43, 0x50 | 2 << 1 | 1);
    board.outb(0x41, 0x42);
    board.tick(1);
    board.outb(0x43, 0xc0 | 0b0110);
    board.tick(7);
    assert_eq!(board.inb(0x40), 0x80 | 0x30 | 4);
    assert_eq!(board.read16(0x40), 0x0fff);
    assert_eq!(board.inb(0x41), 0x80 | 0x10 | 4 | 1);
    assert_eq!(board.inb(0x41), 0x41);
    assert_eq!(board.inb(0x43), 0xff);
}

#[test]
fn bcd_and_single_byte_access() {
    let board = Board::new();
    board.outb(0x43, 0x31);
    board.outb(0x40, 0x50);
    board.outb(0x40, 0x10);
    board.tick(51);
    assert_eq!(board.read16(0x40), 0x0999);
    board.outb(0x43, 0x31);
    board.outb(0x40, 0);
    board.outb(0x40, 0);
    board.tick(1);
    assert_eq!(board.read16(0x40), 0x9999);
    board.outb(0x43, 0x24);
    board.outb(0x40, 0x20);
    board.tick(1);
    assert_eq!(board.inb(0x40), 0x1f);
    assert_eq!(board.inb(0x40), 0x1f);
}

#[test]
fn refresh_toggles() {
    let board = Board::new();
    let first = board.inb(0x61) & 0x10;
    board.sim.advance(REFRESH_NS);
    assert_ne!(board.inb(0x61) & 0x10, first);
}

#[test]
fn state_moves_with_its_deadline() {
    let board = Board::new();
    board.load(0, 2, 11932);
    board.outb(0x61, 3);
    board.outb(0x40, 7);
    let saved = board.pit.state();
    let other = Board::new();
    other.pit.set_state(saved.clone());
    assert_eq!(other.pit.state(), saved);
    other.sim.advance(10_001_000);
    assert_eq!(other.edges(), 1);
    other.pit.reset();
    other.sim.advance(1_000_000_000);
    assert_eq!(other.edges(), 1);
    let mut bad = saved;
    bad.channels[1].count = Some(0);
    bad.channels[1].counted = u64::MAX;
    other.pit.set_state(bad);
    assert_eq!(other.pit.state().channels[1].count, None);
}
