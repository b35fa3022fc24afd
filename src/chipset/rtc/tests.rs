use super::*;
use crate::chipset::irq::IrqSink;
use crate::chipset::timers::testing::Simulation;
use crate::hypervisor::ExitIo;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// 2024-02-29 23:59:50 UTC, a Thursday.
const START: u64 = 1_709_251_190;

#[derive(Default)]
struct Line(AtomicBool);

impl IrqSink for Line {
    fn set_irq(&self, gsi: u32, level: bool) {
        assert_eq!(gsi, GSI);
        self.0.store(level, Ordering::SeqCst);
    }
}

struct Board {
    sim: Simulation,
    wall: Arc<AtomicU64>,
    line: Arc<Line>,
    rtc: Arc<Rtc>,
    bus: SystemBus,
}

impl Board {
    fn new() -> Self {
        let sim = Simulation::new();
        let wall = Arc::new(AtomicU64::new(START * SECOND_NS));
        let line = Arc::new(Line::default());
        let shared = wall.clone();
        let rtc = Rtc::with_wall_clock(
            &sim.timers,
            IrqLine::new(line.clone(), GSI),
            Box::new(move || shared.load(Ordering::SeqCst)),
        );
        let bus = SystemBus::new();
        rtc.attach(&bus).unwrap();
        Self { sim, wall, line, rtc, bus }
    }

    fn read(&self, index: u8) -> u8 {
        self.bus.port_write(0x70, &[index]);
        let mut data = [0];
        self.bus.port_read(0x71, &mut data);
        data[0]
    }

    fn write(&self, index: u8, value: u8) {
        self.bus.port_write(0x70, &[index]);
        self.bus.port_write(0x71, &[value]);
    }

    /// Wall clock first, so that what fires sees it.
    fn advance(&self, ns: u64) {
        self.wall.fetch_add(ns, Ordering::SeqCst);
        self.sim.advance(ns);
    }

    fn line(&self) -> bool {
        self.line.0.load(Ordering::SeqCst)
    }

    fn time(&self) -> [u8; 8] {
        TIME_REGISTERS.map(|register| self.read(register))
    }
}

#[test]
fn reads_the_wall_clock_in_each_format() {
    let board = Board::new();
    assert_eq!(board.time(), [0x50, 0x59, 0x23, 5, 0x29, 0x02, 0x24, 0x20]);
    board.write(0x0b, B_BINARY | B_24_HOURS);
    assert_eq!(board.time(), [50, 59, 23, 5, 29, 2, 24, 20]);
    board.write(0x0b, 0);
    assert_eq!(board.read(4), 0x91);
    board.write(0x0b, B_24_HOURS);
    board.advance(10 * SECOND_NS);
    assert_eq!(board.time(), [0, 0, 0, 6, 0x01, 0x03, 0x24, 0x20]);
    assert_eq!(board.read(0x0d), 0x80);
    let mut index = [0];
    board.bus.port_read(0x70, &mut index);
    assert_eq!(index, [0xff]);
}

#[test]
fn update_in_progress_is_short() {
    let board = Board::new();
    assert_eq!(board.read(0x0a), 0x26);
    board.advance(SECOND_NS - UPDATE_NS - 1);
    assert_eq!(board.read(0x0a), 0x26);
    board.advance(1);
    assert_eq!(board.read(0x0a), 0xa6);
    assert_eq!(board.read(0), 0x50);
    board.advance(UPDATE_NS);
    assert_eq!(board.read(0x0a), 0x26);
    assert_eq!(board.read(0), 0x51);
}

#[test]
fn the_guest_sets_the_clock() {
    let board = Board::new();
    board.advance(300_000_000);
    board.write(0x0b, B_SET | B_24_HOURS);
    for (register, value) in TIME_REGISTERS.iter().zip([0x58, 0x59, 0x23, 1, 0x31, 0x12, 0x99, 0x19]) {
        board.write(*register, value);
    }
    board.advance(5 * SECOND_NS);
    assert_eq!(board.read(0), 0x58, "held");
    board.write(0x0b, B_24_HOURS);
    assert_eq!(board.time(), [0x58, 0x59, 0x23, 6, 0x31, 0x12, 0x99, 0x19]);
    board.advance(2 * SECOND_NS);
    assert_eq!(board.time(), [0, 0, 0, 7, 0x01, 0x01, 0, 0x20]);
    // Without SET, one register at a time.
    board.write(2, 0x30);
    assert_eq!(board.time(), [0, 0x30, 0, 7, 0x01, 0x01, 0, 0x20]);
    board.write(8, 0x19);
    assert_eq!(board.read(8), 0x01, "no such month");
    board.write(0x0b, B_SET | B_24_HOURS);
    board.write(7, 0x32);
    board.write(0x0b, B_24_HOURS);
    assert_eq!(board.time(), [0, 0x30, 0, 7, 0x01, 0x01, 0, 0x20], "no such day");
}

#[test]
fn ram_keeps_what_is_written() {
    let board = Board::new();
    board.write(0x40, 0xa5);
    board.write(0x7f, 0x5a);
    assert_eq!((board.read(0x40), board.read(0xc0), board.read(0x7f)), (0xa5, 0xa5, 0x5a));
}

#[test]
fn update_interrupt_once_a_second_until_c_is_read() {
    let board = Board::new();
    board.advance(400_000_000);
    board.write(0x0b, B_UPDATE | B_24_HOURS);
    board.advance(599_999_999);
    assert!(!board.line());
    board.advance(1);
    assert!(board.line());
    board.advance(3 * SECOND_NS);
    assert!(board.line());
    assert_eq!(board.read(0x0c), C_REQUEST | B_UPDATE | B_PERIODIC);
    assert!(!board.line());
    board.advance(SECOND_NS);
    assert!(board.line());
    board.write(0x0b, B_24_HOURS);
    assert!(!board.line());
}

#[test]
fn alarm_with_and_without_wildcards() {
    let board = Board::new();
    for (register, value) in [(1, 0x00), (3, 0x00), (5, 0x00)] {
        board.write(register, value);
    }
    board.write(0x0b, B_ALARM | B_24_HOURS);
    board.advance(9 * SECOND_NS);
    assert!(!board.line());
    board.advance(SECOND_NS);
    assert!(board.line());
    assert_eq!(board.read(0x0c) & B_ALARM, B_ALARM);
    // Every minute at second 5.
    for (register, value) in [(1, 0x05), (3, 0xff), (5, 0xc0)] {
        board.write(register, value);
    }
    board.advance(5 * SECOND_NS);
    assert!(board.line());
    board.read(0x0c);
    board.advance(59 * SECOND_NS);
    assert!(!board.line());
    // A host that slept over the alarm still gives it.
    board.advance(86_400 * SECOND_NS);
    assert!(board.line());
}

#[test]
fn periodic_interrupt_at_its_rate() {
    let board = Board::new();
    board.write(0x0a, 0x26);
    board.read(0x0c);
    board.write(0x0b, B_PERIODIC | B_24_HOURS);
    let mut count = 0;
    for _ in 0..1000 {
        board.advance(1_000_000);
        if board.line() {
            count += 1;
            assert_eq!(board.read(0x0c) & (C_REQUEST | B_PERIODIC), C_REQUEST | B_PERIODIC);
        }
    }
    assert!((990..=1000).contains(&count), "{count}");
    let rates = [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)];
    for (rate, hz) in rates {
        let mut state = RtcState::power_on();
        state.ram[REG_A] = rate;
        assert_eq!(state.period(), Some(SECOND_NS / hz));
    }
}

#[test]
fn polled_flags_need_no_interrupt() {
    let board = Board::new();
    board.read(0x0c);
    assert_eq!(board.read(0x0c), 0);
    board.advance(SECOND_NS);
    assert_eq!(board.read(0x0c) & (C_REQUEST | B_UPDATE), B_UPDATE);
    assert!(!board.line());
}

#[test]
fn state_moves_without_late_interrupts() {
    let board = Board::new();
    board.write(0x0b, B_UPDATE | B_24_HOURS);
    board.write(0x50, 9);
    let saved = board.rtc.state();
    let other = Board::new();
    other.advance(7200 * SECOND_NS + 5);
    other.rtc.set_state(saved);
    assert!(!other.line());
    assert_eq!(other.read(0x50), 9);
    assert_eq!(other.read(4), 0x01, "the time is the host's");
    other.advance(SECOND_NS);
    assert!(other.line());
    other.rtc.reset();
    assert!(!other.line());
    other.advance(5 * SECOND_NS);
    assert!(!other.line());
}
