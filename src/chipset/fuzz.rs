//! Random accesses to a whole chipset: no address, length, value or order may panic or hang it.

use std::sync::Arc;

use proptest::prelude::*;

use super::bus::SystemBus;
use super::irq::{IrqLine, IrqSink};
use super::irqchip::IrqChip;
use super::pit::Pit;
use super::post::DelayPort;
use super::reset::{I8042, POWER_PORT, PowerCallback, PowerControl, ResetControl};
use super::rtc::{self, Rtc};
use super::timers::testing::Simulation;
use super::uart::{COM1_GSI, COM1_PORT, Uart};
use crate::hypervisor::ExitIo;

#[derive(Debug, Clone)]
pub(super) enum Step {
    Port { port: u16, value: Option<u64>, len: usize },
    Mmio { addr: u64, value: Option<u64>, len: usize },
    Apic { cpu: u32, offset: u32, value: Option<u32> },
    Msr { cpu: u32, msr: u32, value: Option<u64> },
    Take { cpu: u32, enabled: bool },
    Irq { gsi: u32, level: bool },
    Input(Vec<u8>),
    Pass(u64),
}

fn port() -> impl Strategy<Value = u16> {
    let near = |base: u16, len: u16| base.saturating_sub(8)..base + len;
    prop_oneof![
        any::<u16>(),
        near(0x20, 2),
        near(0xa0, 2),
        near(0x4d0, 2),
        near(0x40, 4),
        near(0x61, 16),
        near(0x70, 2),
        near(0x3f8, 8),
        near(0x600, 4),
        near(0xcf8, 8),
    ]
}

fn value() -> impl Strategy<Value = Option<u64>> {
    proptest::option::of(prop_oneof![any::<u64>(), 0..0x100u64, Just(0), Just(u64::MAX)])
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let len = || prop_oneof![Just(1usize), Just(2), Just(4), Just(8)];
    let addr = prop_oneof![any::<u64>(), 0xfebf_fff0..0xfec0_0040u64, Just(0xfec0_0000), Just(0xfec0_0010)];
    let register = prop_oneof![any::<u32>(), (0..0x40u32).prop_map(|n| n << 4)];
    let msr = prop_oneof![any::<u32>(), 0x800..0x840u32, Just(0x1b), Just(0x6e0)];
    let msr_value = prop_oneof![
        any::<u64>(),
        0..0x1_0000u64,
        Just(0),
        Just(0xfee0_0800),
        Just(0xfee0_0c00),
        Just(0xfee0_0000)
    ];
    prop_oneof![
        4 => (port(), value(), len()).prop_map(|(port, value, len)| Step::Port { port, value, len }),
        2 => (addr, value(), len()).prop_map(|(addr, value, len)| Step::Mmio { addr, value, len }),
        4 => (0..3u32, register, proptest::option::of(any::<u32>()))
            .prop_map(|(cpu, offset, value)| Step::Apic { cpu, offset, value }),
        3 => (0..3u32, msr, proptest::option::of(msr_value))
            .prop_map(|(cpu, msr, value)| Step::Msr { cpu, msr, value }),
        2 => (0..3u32, any::<bool>()).prop_map(|(cpu, enabled)| Step::Take { cpu, enabled }),
        2 => (0..30u32, any::<bool>()).prop_map(|(gsi, level)| Step::Irq { gsi, level }),
        1 => proptest::collection::vec(any::<u8>(), 0..100).prop_map(Step::Input),
        1 => (0..50_000_000u64).prop_map(Step::Pass),
    ]
}

pub(super) struct Chipset {
    pub(super) sim: Simulation,
    pub(super) chip: Arc<IrqChip>,
    pub(super) uart: Arc<Uart>,
    pub(super) pit: Arc<Pit>,
    pub(super) rtc: Arc<Rtc>,
    bus: SystemBus,
}

impl Chipset {
    pub(super) fn new() -> Self {
        let sim = Simulation::new();
        let chip = IrqChip::new(&sim.timers, 3);
        let line = |gsi| IrqLine::new(chip.clone() as Arc<dyn IrqSink>, gsi);
        let uart = Arc::new(Uart::new(line(COM1_GSI), Box::new(std::io::sink())).unwrap());
        let pit = Pit::new(&sim.timers, line(0));
        let rtc = Rtc::new(&sim.timers, line(rtc::GSI));
        let ignore: PowerCallback = Arc::new(|_| ());
        let bus = SystemBus::new();
        chip.attach(&bus).unwrap();
        pit.attach(&bus).unwrap();
        rtc.attach(&bus).unwrap();
        uart.attach(&bus, COM1_PORT).unwrap();
        PowerControl::new(ignore.clone()).attach(&bus, POWER_PORT).unwrap();
        I8042::new(ignore.clone()).attach(&bus).unwrap();
        ResetControl::new(ignore).attach(&bus).unwrap();
        DelayPort::attach(&bus).unwrap();
        Self { sim, chip, uart, pit, rtc, bus }
    }

    pub(super) fn run(&self, step: &Step) {
        match step {
            Step::Port { port, value: Some(value), len } => {
                self.bus.port_write(*port, &value.to_le_bytes()[..*len]);
            }
            Step::Port { port, value: None, len } => self.bus.port_read(*port, &mut [0; 8][..*len]),
            Step::Mmio { addr, value: Some(value), len } => {
                self.bus.mmio_write(*addr, &value.to_le_bytes()[..*len]);
            }
            Step::Mmio { addr, value: None, len } => self.bus.mmio_read(*addr, &mut [0; 8][..*len]),
            Step::Apic { cpu, offset, value } => {
                let apic = self.chip.lapic(*cpu).unwrap();
                match value {
                    Some(value) => apic.mmio_write(*offset, *value),
                    None => drop(apic.mmio_read(*offset)),
                }
            }
            Step::Msr { cpu, msr, value } => {
                let apic = self.chip.lapic(*cpu).unwrap();
                match value {
                    Some(value) => drop(apic.msr_write(*msr, *value)),
                    None => drop(apic.msr_read(*msr)),
                }
            }
            Step::Take { cpu, enabled } => {
                let apic = self.chip.lapic(*cpu).unwrap();
                let expected = apic.has_event(*enabled);
                assert_eq!(apic.take_event(*enabled).is_some(), expected);
            }
            Step::Irq { gsi, level } => self.chip.set_irq(*gsi, *level),
            Step::Input(data) => drop(self.uart.input(data)),
            Step::Pass(ns) => self.sim.advance(*ns),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_accesses(steps in proptest::collection::vec(step(), 1..400)) {
        let chipset = Chipset::new();
        for step in &steps {
            chipset.run(step);
        }
        // Any state that a guest can reach is one that can be put back.
        let (chip, pit, rtc, uart) =
            (chipset.chip.state(), chipset.pit.state(), chipset.rtc.state(), chipset.uart.state());
        let other = Chipset::new();
        other.sim.advance(chipset.sim.now());
        other.chip.set_state(chip.clone());
        other.pit.set_state(pit.clone());
        other.rtc.set_state(rtc);
        other.uart.set_state(uart.clone()).unwrap();
        prop_assert_eq!(other.pit.state(), pit);
        prop_assert_eq!(&other.uart.state().fifo, &uart.fifo);
        prop_assert_eq!(other.chip.state().lapics.len(), chip.lapics.len());
        for step in &steps {
            other.run(step);
        }
    }
}
