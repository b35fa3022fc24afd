//! Saved forms of the chipset: there and back, what a guest can reach, and what nobody can.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::chipset::fuzz::{Chipset, Step, step};
use crate::chipset::irqchip::IrqChipState;
use crate::state::Saved;
use crate::state::container::{Reader, Writer};
use crate::state::samples;

/// `value` through the part's own type and a container.
fn there_and_back<S, R>(value: &S) -> Result<R, StateError>
where
    S: Saved + PartialEq + std::fmt::Debug + for<'a> From<&'a R>,
    R: TryFrom<S, Error = StateError>,
{
    let mut writer = Writer::new();
    writer.put(3, value)?;
    let bytes = writer.finish();
    let mut reader = Reader::parse(&bytes)?;
    let state = R::try_from(reader.take::<S>(3)?)?;
    reader.finish()?;
    assert_eq!(S::from(&state), *value);
    Ok(state)
}

/// Bits of `mask`.
fn bits(mask: u32) -> impl Strategy<Value = u32> {
    any::<u32>().prop_map(move |value| value & mask)
}

/// A time that is near, or at an end of what there is.
fn time() -> impl Strategy<Value = u64> {
    prop_oneof![0..10_000_000_000u64, any::<u64>(), Just(0), Just(u64::MAX)]
}

fn vectors() -> impl Strategy<Value = [u32; 8]> {
    any::<[u32; 8]>().prop_map(|mut vectors| {
        vectors[0] &= 0xffff_0000;
        vectors
    })
}

fn lapic() -> impl Strategy<Value = saved::Lapic> {
    let mode = prop_oneof![Just(0u64), Just(0x800), Just(0xc00)];
    let registers =
        (0..3u32, mode, any::<u64>(), bits(0xff), bits(0xff00_0000), bits(0xf000_0000), bits(0x1ff));
    let errors = (bits(0xe0), bits(0xe0), any::<u64>());
    let arrays = (any::<[u32; 6]>(), vectors(), vectors(), vectors());
    let timer = (any::<u32>(), bits(0xb), proptest::option::of(time()));
    let pins = (any::<bool>(), any::<bool>(), any::<Option<u8>>(), any::<bool>(), any::<bool>());
    (registers, errors, arrays, timer, pins).prop_map(|(registers, errors, arrays, timer, pins)| {
        let (id, mode, address, tpr, ldr, dfr, svr) = registers;
        let (esr, esr_pending, icr) = errors;
        let (mut lvt, irr, isr, tmr) = arrays;
        let (timer_initial, timer_divide, deadline) = timer;
        let (nmi, init, startup, wait_for_startup, lint0) = pins;
        lvt.iter_mut().zip(spec::LVT_WRITABLE).for_each(|(entry, writable)| *entry &= writable);
        let command = if mode == 0xc00 { 0xffff_ffff_000c_cfff } else { 0xff00_0000_000c_cfff };
        let runs = mode != 0 && (timer_initial != 0 || lvt[0] >> 17 & 3 == 2);
        saved::Lapic {
            id,
            base: address & spec::BASE_ADDR | mode | if id == 0 { spec::BASE_BSP } else { 0 },
            tpr,
            ldr,
            dfr: dfr | 0x0fff_ffff,
            svr,
            esr,
            esr_pending,
            icr: icr & command,
            lvt,
            irr,
            isr,
            tmr,
            timer_initial,
            timer_divide,
            deadline: deadline.filter(|_| runs),
            nmi,
            init,
            startup,
            wait_for_startup,
            lint0: lint0 && id == 0,
        }
    })
}

fn ioapic() -> impl Strategy<Value = saved::IoApic> {
    (any::<u8>(), bits(0x0f00_0000), any::<[u64; 24]>(), bits(0x00ff_ffff)).prop_map(
        |(select, id, mut redirection, lines)| {
            for entry in &mut redirection {
                *entry &= 0xff00_0000_0001_efff;
                if *entry & ioapic::RTE_LEVEL == 0 {
                    *entry &= !ioapic::RTE_REMOTE_IRR;
                }
            }
            saved::IoApic { select, id, redirection, lines }
        },
    )
}

fn pic_chip(number: usize) -> impl Strategy<Value = saved::PicChip> {
    (any::<[u8; 6]>(), 0..8u8, 0..4u8, any::<[bool; 8]>()).prop_map(move |(registers, first, step, modes)| {
        let [irr, imr, isr, lines, elcr, base] = registers;
        let [needs_icw4, single, auto_eoi, rotate_auto, special_mask, fully_nested, poll, read_isr] = modes;
        saved::PicChip {
            irr,
            imr,
            isr,
            lines: if number == 0 { lines & !4 } else { lines },
            elcr: elcr & pic::ELCR_WRITABLE[number],
            base: base & 0xf8,
            first,
            awaited_icw: match step {
                2 if !single => 3,
                3 if needs_icw4 => 4,
                1 => 2,
                _ => 0,
            },
            needs_icw4,
            single,
            auto_eoi,
            rotate_auto,
            special_mask,
            fully_nested,
            poll,
            read_isr,
        }
    })
}

fn pic() -> impl Strategy<Value = saved::Pic> {
    (pic_chip(0), pic_chip(1)).prop_map(|(first, second)| saved::Pic { chips: [first, second] })
}

fn pit_channel() -> impl Strategy<Value = saved::PitChannel> {
    let count = proptest::option::of(prop_oneof![1..=0x1_0000u32, Just(1), Just(0x1_0000)]);
    let latches = (any::<Option<u8>>(), any::<bool>(), any::<Option<u16>>(), any::<Option<u8>>());
    let start = (any::<bool>(), proptest::option::of(time()), prop_oneof![Just(0), time()]);
    (0..6u8, any::<bool>(), 1..4u8, count, latches, start).prop_map(
        |(mode, bcd, access, count, latches, start)| {
            let (written_low, read_high, latched_count, latched_status) = latches;
            let (gate, since, counted) = start;
            saved::PitChannel {
                mode,
                bcd,
                access,
                count: count.map(|count| if bcd { count.min(16_665) } else { count }),
                written_low: written_low.filter(|_| access == 3),
                read_high: read_high && access == 3,
                latched_count,
                latched_status,
                gate,
                since: since.filter(|_| count.is_some()),
                counted,
            }
        },
    )
}

fn pit() -> impl Strategy<Value = saved::Pit> {
    (pit_channel(), pit_channel(), pit_channel(), 0..16u8, proptest::option::of(time())).prop_map(
        |(mut first, mut second, mut third, control, deadline)| {
            (first.gate, second.gate, third.gate) = (true, true, control & 1 != 0);
            let deadline = deadline.filter(|_| first.count.is_some());
            saved::Pit { channels: [first, second, third], control, deadline }
        },
    )
}

fn rtc() -> impl Strategy<Value = saved::Rtc> {
    let offset = prop_oneof![any::<i64>(), Just(i64::MIN), Just(i64::MAX), -1_000_000..1_000_000i64];
    let second = -9_223_372_037..=9_223_372_037i64;
    (0..128u8, vec(any::<u8>(), 128), any::<u8>(), offset, second, time()).prop_map(
        |(index, mut ram, flags, offset_ns, seen_second, seen_ns)| {
            ram[rtc::REG_A] &= 0x7f;
            saved::Rtc { index, ram, flags: flags & 0x70, offset_ns, seen_second, seen_ns }
        },
    )
}

fn uart() -> impl Strategy<Value = saved::Uart> {
    (any::<[u8; 9]>(), vec(any::<u8>(), 0..=64), vec(any::<u8>(), 0..300)).prop_map(
        |(registers, fifo, input)| {
            let [low, high, enable, cause, line_control, line_status, modem, modem_status, scratch] =
                registers;
            saved::Uart {
                baud_divisor_low: low,
                baud_divisor_high: high,
                interrupt_enable: enable & 0xf,
                interrupt_identification: cause & 7,
                line_control,
                line_status: line_status & 0x60 | u8::from(!fifo.is_empty()),
                modem_control: modem,
                modem_status,
                scratch,
                fifo,
                input,
            }
        },
    )
}

type All = (saved::Pic, saved::IoApic, Vec<saved::Lapic>, saved::Pit, saved::Rtc, saved::Uart);

/// What is written down of a chipset.
fn save(chipset: &Chipset) -> All {
    let chip = chipset.chip.state();
    (
        (&chip.pic).into(),
        (&chip.ioapic).into(),
        chip.lapics.iter().map(Into::into).collect(),
        (&chipset.pit.state()).into(),
        (&chipset.rtc.state()).into(),
        (&chipset.uart.state()).into(),
    )
}

/// Puts saved state into a chipset, in the order of a restore.
fn restore(chipset: &Chipset, all: &All) -> Result<(), StateError> {
    let (pic, ioapic, lapics, pit, rtc, uart) = all;
    let lapics = lapics.iter().map(there_and_back).collect::<Result<_, _>>()?;
    let chip = IrqChipState { pic: there_and_back(pic)?, ioapic: there_and_back(ioapic)?, lapics };
    let (pit, rtc, uart) = (there_and_back(pit)?, there_and_back(rtc)?, there_and_back(uart)?);
    chipset.chip.set_state(chip);
    chipset.pit.set_state(pit);
    chipset.rtc.set_state(rtc);
    chipset.uart.set_state(uart).unwrap();
    Ok(())
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn whatever_a_guest_reaches_is_accepted(steps in steps()) {
        let chipset = Chipset::new();
        steps.iter().for_each(|step| chipset.run(step));
        let all = save(&chipset);
        let other = Chipset::new();
        other.sim.advance(chipset.sim.now());
        prop_assert_eq!(restore(&other, &all), Ok(()));
    }

    #[test]
    fn whatever_is_accepted_can_be_used(
        controllers in (pic(), ioapic(), lapic(), lapic(), lapic()),
        devices in (pit(), rtc(), uart()),
        now in 0..5_000_000_000u64,
        steps in steps(),
    ) {
        let (pic, ioapic, a, b, c) = controllers;
        let (pit, rtc, uart) = devices;
        let chipset = Chipset::new();
        chipset.sim.stall(now);
        let mut lapics = vec![a, b, c];
        for (id, lapic) in (0..).zip(&mut lapics) {
            // Each in its place.
            lapic.id = id;
            lapic.base = lapic.base & !spec::BASE_BSP | if id == 0 { spec::BASE_BSP } else { 0 };
            lapic.lint0 &= id == 0;
        }
        let all = (pic, ioapic, lapics, pit, rtc, uart);
        prop_assert_eq!(restore(&chipset, &all), Ok(()));
        steps.iter().for_each(|step| chipset.run(step));
        let later = save(&chipset);
        prop_assert_eq!(restore(&Chipset::new(), &later), Ok(()));
    }
}

#[test]
fn the_samples_are_accepted() {
    assert!(there_and_back::<_, LapicState>(&samples::lapic()).is_ok());
    assert!(there_and_back::<_, IoApicState>(&samples::ioapic()).is_ok());
    assert!(there_and_back::<_, Pic>(&samples::pic()).is_ok());
    assert!(there_and_back::<_, PitState>(&samples::pit()).is_ok());
    assert!(there_and_back::<_, RtcState>(&samples::rtc()).is_ok());
    assert!(there_and_back::<_, UartState>(&samples::uart()).is_ok());
}

type Spoil<S> = fn(&mut S);

/// Behind a checksum that is right, `spoil` makes of a good value one that is refused, and for
/// what it names.
fn refuse<S, R>(good: fn() -> S, spoil: Spoil<S>, why: &str)
where
    S: Saved + PartialEq + std::fmt::Debug + for<'a> From<&'a R>,
    R: TryFrom<S, Error = StateError> + std::fmt::Debug,
{
    assert!(there_and_back::<S, R>(&good()).is_ok(), "{why}");
    let mut bad = good();
    spoil(&mut bad);
    match there_and_back::<S, R>(&bad) {
        Err(StateError::Invalid { what }) => assert_eq!(what, why),
        other => panic!("{why}: {other:?}"),
    }
}

#[test]
fn lapics_that_cannot_be_are_refused() {
    let bad: [(Spoil<saved::Lapic>, &str); 22] = [
        (|s| s.id = 255, "local APIC's id"),
        (|s| s.base |= 1 << 9, "local APIC's base"),
        (|s| s.base |= 1 << 52, "local APIC's base"),
        (|s| s.base &= !spec::BASE_ENABLED, "local APIC's base"),
        (|s| s.id = 1, "local APIC of the boot processor"),
        (|s| s.base &= !spec::BASE_BSP, "local APIC of the boot processor"),
        (|s| (s.id, s.base) = (1, 0xfee0_0800), "local APIC of the boot processor"),
        (|s| s.tpr = 0x100, "local APIC's task priority"),
        (|s| s.ldr |= 1, "local APIC's logical destination"),
        (|s| s.dfr = 0, "local APIC's logical destination"),
        (|s| s.svr = 0x200, "local APIC's spurious vector"),
        (|s| s.esr = 1, "local APIC's error status"),
        (|s| s.esr_pending = 1 << 31, "local APIC's error status"),
        (|s| s.icr |= 1 << 12, "local APIC's interrupt command"),
        (|s| s.icr |= 1 << 20, "local APIC's interrupt command"),
        // Ids of eight bits.
        (|s| s.base &= !spec::BASE_X2APIC, "local APIC's interrupt command"),
        (|s| s.lvt[5] |= 1 << 17, "local APIC's local vectors"),
        (|s| s.irr[0] |= 1 << 15, "local APIC's pending vectors"),
        (|s| s.isr[0] |= 1, "local APIC's pending vectors"),
        (|s| s.tmr[0] |= 1, "local APIC's pending vectors"),
        (|s| s.timer_divide = 4, "local APIC's timer divider"),
        // A periodic timer without a period.
        (|s| s.lvt[0] = 0x200ec, "local APIC's timer deadline"),
    ];
    for (spoil, why) in bad {
        refuse::<_, LapicState>(samples::lapic, spoil, why);
    }
}

#[test]
fn ioapics_that_cannot_be_are_refused() {
    let bad: [(Spoil<saved::IoApic>, &str); 5] = [
        (|s| s.id |= 1, "IOAPIC's id"),
        (|s| s.redirection[0] |= 1 << 12, "IOAPIC's redirection entries"),
        (|s| s.redirection[23] |= 1 << 20, "IOAPIC's redirection entries"),
        (|s| s.redirection[5] &= !ioapic::RTE_LEVEL, "IOAPIC's redirection entries"),
        (|s| s.lines |= 1 << 24, "IOAPIC's inputs"),
    ];
    for (spoil, why) in bad {
        refuse::<_, IoApicState>(samples::ioapic, spoil, why);
    }
}

#[test]
fn pics_that_cannot_be_are_refused() {
    let bad: [(Spoil<saved::Pic>, &str); 9] = [
        (|s| s.chips[1].awaited_icw = 1, "PIC's initialisation"),
        (|s| s.chips[0].awaited_icw = 255, "PIC's initialisation"),
        (|s| s.chips[1].awaited_icw = 3, "PIC's initialisation"),
        (|s| s.chips[1].awaited_icw = 4, "PIC's initialisation"),
        (|s| s.chips[0].base = 0x33, "PIC's vector base"),
        (|s| s.chips[1].first = 8, "PIC's highest priority"),
        (|s| s.chips[0].elcr = 1, "PIC's edge/level control"),
        (|s| s.chips[1].elcr = 1, "PIC's edge/level control"),
        (|s| s.chips[0].lines = 4, "PIC's inputs"),
    ];
    for (spoil, why) in bad {
        refuse::<_, Pic>(samples::pic, spoil, why);
    }
}

#[test]
fn interval_timers_that_cannot_be_are_refused() {
    let bad: [(Spoil<saved::Pit>, &str); 14] = [
        (|s| s.channels[0].access = 0, "interval timer's access mode"),
        (|s| s.channels[1].access = 4, "interval timer's access mode"),
        (|s| s.channels[0].mode = 6, "interval timer's mode"),
        (|s| s.channels[2].mode = 255, "interval timer's mode"),
        (|s| s.channels[0].count = Some(0), "interval timer's count"),
        (|s| s.channels[0].count = Some(0x1_0001), "interval timer's count"),
        (|s| s.channels[2].count = Some(16_666), "interval timer's count"),
        (|s| s.channels[1].written_low = Some(1), "interval timer's half access"),
        (|s| s.channels[2].read_high = true, "interval timer's half access"),
        (|s| s.channels[1].since = Some(1), "interval timer's start"),
        (|s| s.control = 0x13, "control port of the interval timer"),
        (|s| s.control = 2, "interval timer's gates"),
        (|s| s.channels[0].gate = false, "interval timer's gates"),
        (|s| (s.channels[0].count, s.channels[0].since) = (None, None), "interval timer's deadline"),
    ];
    for (spoil, why) in bad {
        refuse::<_, PitState>(samples::pit, spoil, why);
    }
}

#[test]
fn clocks_that_cannot_be_are_refused() {
    let bad: [(Spoil<saved::Rtc>, &str); 8] = [
        (|s| s.index = 0x80, "clock's index"),
        (|s| s.flags = 0x80, "clock's flags"),
        (|s| s.flags = 1, "clock's flags"),
        (|s| s.ram[0x0a] |= 0x80, "clock's register A"),
        (|s| s.ram.truncate(127), "length of the clock's RAM"),
        (|s| s.ram.push(0), "length of the clock's RAM"),
        (|s| s.seen_second = i64::MAX, "clock's time"),
        (|s| s.seen_second = i64::MIN, "clock's time"),
    ];
    for (spoil, why) in bad {
        refuse::<_, RtcState>(samples::rtc, spoil, why);
    }
    let short = saved::Rtc { ram: vec![0; 11], ..samples::rtc() };
    assert!(RtcState::try_from(short).is_err(), "nor where no container has looked at it");
}

#[test]
fn serial_ports_that_cannot_be_are_refused() {
    let bad: [(Spoil<saved::Uart>, &str); 7] = [
        (|s| s.fifo = vec![0; 65], "length of the serial port's FIFO"),
        (|s| s.input = vec![0; uart::INPUT_CAPACITY + 1], "length of the serial port's input"),
        (|s| s.interrupt_enable = 0x10, "serial port's interrupt enable register"),
        (|s| s.interrupt_identification = 0xc1, "serial port's interrupt identification"),
        (|s| s.line_status |= 2, "serial port's line status"),
        (|s| s.line_status &= !1, "serial port's line status"),
        (|s| s.fifo.clear(), "serial port's line status"),
    ];
    for (spoil, why) in bad {
        refuse::<_, UartState>(samples::uart, spoil, why);
    }
    let long = saved::Uart { fifo: vec![0; 65], ..samples::uart() };
    assert!(UartState::try_from(long).is_err(), "nor where no container has looked at it");
}

#[test]
fn the_caps_of_the_saved_form_are_those_of_the_port() {
    assert_eq!(saved::Uart::MAX_INPUT, uart::INPUT_CAPACITY);
    let power_on = Chipset::new();
    let full = power_on.uart.input(&vec![1; 2 * uart::INPUT_CAPACITY]);
    power_on.uart.input(&vec![2; 2 * uart::INPUT_CAPACITY]);
    assert_eq!(full, uart::INPUT_CAPACITY);
    assert_eq!(restore(&Chipset::new(), &save(&power_on)), Ok(()));
}
