//! Two cascaded 8259A interrupt controllers.
//!
//! Each chip is *uninitialised* until it has had ICW1 to ICW3 (and ICW4 where ICW1 says so), then
//! *operating*. The second chip's output is the first one's input 2; the first one's output is the
//! line that the owner asks for with [`Pic::output`] after each change. Level or edge per input is
//! set in the ELCR. Buffered mode and MCS-80 mode are not modelled; polling is.

/// First port of the primary chip, two ports long.
pub const PRIMARY_PORT: u64 = 0x20;
/// First port of the secondary chip, two ports long.
pub const SECONDARY_PORT: u64 = 0xa0;
/// First port of the two edge/level control registers.
pub const ELCR_PORT: u64 = 0x4d0;

/// Input of the primary chip that the secondary drives.
pub(super) const CASCADE: u8 = 2;
/// ELCR bits that can be set: timer, keyboard, cascade, RTC and FPU are edges for ever.
pub(super) const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];

const ICW1: u8 = 1 << 4;
const ICW1_NEEDS_ICW4: u8 = 1 << 0;
const ICW1_SINGLE: u8 = 1 << 1;
const ICW4_AUTO_EOI: u8 = 1 << 1;
const ICW4_FULLY_NESTED: u8 = 1 << 4;
const OCW3: u8 = 1 << 3;

/// Which initialisation word a chip waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InitStep {
    /// None: it is operating.
    #[default]
    Done,
    /// ICW2, the vector base.
    Vector,
    /// ICW3, the cascade.
    Cascade,
    /// ICW4, the mode.
    Mode,
}

/// Registers of one 8259A.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChipState {
    /// Requested interrupts.
    pub irr: u8,
    /// Masked inputs.
    pub imr: u8,
    /// Interrupts in service.
    pub isr: u8,
    /// Level of each input.
    pub lines: u8,
    /// Inputs that are level-triggered.
    pub elcr: u8,
    /// Vector of input 0.
    pub base: u8,
    /// Input with the highest priority.
    pub first: u8,
    /// Initialisation word it waits for.
    pub step: InitStep,
    /// ICW1 announced an ICW4.
    pub needs_icw4: bool,
    /// ICW1 said that there is no cascade, hence no ICW3.
    pub single: bool,
    /// Interrupts end as they are acknowledged.
    pub auto_eoi: bool,
    /// Priority rotates at each automatic EOI.
    pub rotate_auto: bool,
    /// Special mask mode: masked inputs in service do not hold back others.
    pub special_mask: bool,
    /// Special fully nested mode: the cascade input does not hold back itself.
    pub fully_nested: bool,
    /// The next read acknowledges.
    pub poll: bool,
    /// Reads give the ISR rather than the IRR.
    pub read_isr: bool,
}

/// Both chips, primary first. Holds all of the state and needs outside locking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pic {
    /// The chips.
    pub chips: [ChipState; 2],
}

impl Default for Pic {
    /// As firmware leaves it: all inputs masked. Without that a device that signals before the
    /// guest has programmed vectors would raise exceptions.
    fn default() -> Self {
        Self { chips: [ChipState { imr: 0xff, ..Default::default() }; 2] }
    }
}

impl ChipState {
    fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << (input & 7);
        if self.elcr & bit != 0 {
            self.irr = if level { self.irr | bit } else { self.irr & !bit };
        } else if level && self.lines & bit == 0 {
            self.irr |= bit;
        }
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
    }

    /// The most urgent of `bits` as (distance from the highest priority, input).
    fn most_urgent(&self, bits: u8) -> Option<(u8, u8)> {
        (0..8).map(|d| (d, self.first.wrapping_add(d) & 7)).find(|(_, input)| bits & 1 << input != 0)
    }

    /// The input that asks to be served now.
    fn request(&self, primary: bool) -> Option<u8> {
        let (rank, input) = self.most_urgent(self.irr & !self.imr)?;
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.fully_nested && primary {
            in_service &= !(1 << CASCADE);
        }
        match self.most_urgent(in_service) {
            Some((busy, _)) if busy <= rank => None,
            _ => Some(input),
        }
    }

    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        if self.auto_eoi {
            if self.rotate_auto {
                self.first = (input + 1) & 7;
            }
        } else {
            self.isr |= bit;
        }
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & ICW1 != 0 {
            *self = Self {
                lines: self.lines,
                elcr: self.elcr,
                // Levels ask again; edges have to come anew.
                irr: self.lines & self.elcr,
                base: self.base,
                step: InitStep::Vector,
                needs_icw4: value & ICW1_NEEDS_ICW4 != 0,
                single: value & ICW1_SINGLE != 0,
                ..Self::default()
            };
        } else if value & OCW3 != 0 {
            self.poll = value & 4 != 0;
            if value & 2 != 0 {
                self.read_isr = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.write_ocw2(value >> 5, value & 7);
        }
    }

    fn write_ocw2(&mut self, command: u8, input: u8) {
        // With special mask the inputs that are masked are not what a non-specific EOI ends.
        let ended = |chip: &Self| {
            let bits = if chip.special_mask { chip.isr & !chip.imr } else { chip.isr };
            chip.most_urgent(bits).map(|(_, input)| input)
        };
        match command {
            0 | 4 => self.rotate_auto = command == 4,
            1 | 5 => {
                if let Some(input) = ended(self) {
                    self.isr &= !(1 << input);
                    if command == 5 {
                        self.first = (input + 1) & 7;
                    }
                }
            }
            3 | 7 => {
                self.isr &= !(1 << input);
                if command == 7 {
                    self.first = (input + 1) & 7;
                }
            }
            6 => self.first = (input + 1) & 7,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        let last = if self.needs_icw4 { InitStep::Mode } else { InitStep::Done };
        match self.step {
            InitStep::Done => self.imr = value,
            InitStep::Vector => {
                self.base = value & 0xf8;
                self.step = if self.single { last } else { InitStep::Cascade };
            }
            InitStep::Cascade => self.step = last,
            InitStep::Mode => {
                self.auto_eoi = value & ICW4_AUTO_EOI != 0;
                self.fully_nested = value & ICW4_FULLY_NESTED != 0;
                self.step = InitStep::Done;
            }
        }
    }
}

impl Pic {
    /// Drives input 0..16; the cascade input is not to be had.
    pub fn set_irq(&mut self, irq: u8, level: bool) {
        if irq == CASCADE {
            return;
        }
        if let Some(chip) = self.chips.get_mut(usize::from(irq >> 3)) {
            chip.set_line(irq & 7, level);
        }
        self.cascade();
    }

    /// Whether it asks for an interrupt.
    pub fn output(&self) -> bool {
        self.chips[0].request(true).is_some()
    }

    /// The interrupt-acknowledge cycle: the vector. `None` when no interrupt is asked for; hardware
    /// would give a spurious one there.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let [primary, secondary] = &mut self.chips;
        let input = primary.request(true)?;
        let vector = if input == CASCADE {
            // The request may have gone in between the two chips: input 7 is the spurious one.
            let second = secondary.request(false);
            if let Some(second) = second {
                secondary.acknowledge(second);
            }
            secondary.base.wrapping_add(second.unwrap_or(7))
        } else {
            primary.base.wrapping_add(input)
        };
        primary.acknowledge(input);
        self.cascade();
        Some(vector)
    }

    /// Reads register `offset` (0 or 1) of chip 0 or 1.
    pub fn read(&mut self, chip: usize, offset: u64) -> u8 {
        let Some(state) = self.chips.get_mut(chip) else { return 0xff };
        if state.poll {
            state.poll = false;
            let request = state.request(chip == 0);
            if let Some(input) = request {
                state.acknowledge(input);
                self.cascade();
            }
            return request.map_or(0, |input| 0x80 | input);
        }
        match offset {
            0 if state.read_isr => state.isr,
            0 => state.irr,
            _ => state.imr,
        }
    }

    /// Writes register `offset` (0 or 1) of chip 0 or 1.
    pub fn write(&mut self, chip: usize, offset: u64, value: u8) {
        let Some(state) = self.chips.get_mut(chip) else { return };
        match offset {
            0 => state.write_command(value),
            _ => state.write_data(value),
        }
        self.cascade();
    }

    /// Reads the edge/level control register of chip 0 or 1.
    pub fn read_elcr(&self, chip: usize) -> u8 {
        self.chips.get(chip).map_or(0xff, |state| state.elcr)
    }

    /// Writes the edge/level control register of chip 0 or 1.
    pub fn write_elcr(&mut self, chip: usize, value: u8) {
        if let (Some(state), Some(writable)) = (self.chips.get_mut(chip), ELCR_WRITABLE.get(chip)) {
            state.elcr = value & writable;
        }
        self.cascade();
    }

    /// The secondary's output is the primary's input; it follows as a level would, since the
    /// secondary keeps what it has not delivered.
    fn cascade(&mut self) {
        let [primary, secondary] = &mut self.chips;
        let bit = 1 << CASCADE;
        if secondary.request(false).is_some() {
            primary.irr |= bit;
        } else {
            primary.irr &= !bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As every PC programs it: vectors from 0x20 and 0x28, nothing masked.
    fn pic(icw4: u8) -> Pic {
        let mut pic = Pic::default();
        for (chip, base, cascade) in [(0, 0x20, 4), (1, 0x28, 2)] {
            pic.write(chip, 0, 0x11);
            pic.write(chip, 1, base);
            pic.write(chip, 1, cascade);
            pic.write(chip, 1, icw4);
            pic.write(chip, 1, 0);
        }
        pic
    }

    #[test]
    fn edges_are_latched_once_and_served_by_priority() {
        let mut pic = pic(1);
        assert!(!pic.output());
        pic.set_irq(4, true);
        pic.set_irq(4, false);
        pic.set_irq(1, true);
        assert!(pic.output());
        assert_eq!(pic.acknowledge(), Some(0x21));
        assert!(!pic.output(), "irq 4 is less urgent than 1 in service");
        pic.set_irq(0, true);
        assert_eq!(pic.acknowledge(), Some(0x20), "irq 0 nests");
        pic.write(0, 0, 0x20);
        assert!(!pic.output());
        pic.write(0, 0, 0x61);
        assert_eq!(pic.acknowledge(), Some(0x24));
        pic.write(0, 0, 0x20);
        assert!(!pic.output(), "lines that stay high are no new edges");
        assert_eq!(pic.acknowledge(), None);
    }

    #[test]
    fn masks_hold_back_without_losing() {
        let mut pic = pic(1);
        pic.write(0, 1, 0xff);
        pic.set_irq(4, true);
        pic.set_irq(4, false);
        assert!(!pic.output());
        assert_eq!(pic.read(0, 1), 0xff);
        assert_eq!(pic.read(0, 0), 0x10);
        pic.write(0, 1, 0xef);
        assert_eq!(pic.acknowledge(), Some(0x24));
        pic.write(0, 0, 0x0b);
        assert_eq!(pic.read(0, 0), 0x10, "ISR");
    }

    #[test]
    fn the_secondary_comes_through_input_2_and_needs_two_eois() {
        let mut pic = pic(1);
        pic.set_irq(2, true);
        assert!(!pic.output(), "input 2 is the cascade");
        pic.set_irq(8, true);
        assert_eq!(pic.acknowledge(), Some(0x28));
        assert_eq!((pic.chips[0].isr, pic.chips[1].isr), (4, 1));
        pic.set_irq(9, true);
        pic.write(0, 0, 0x20);
        assert!(!pic.output(), "the secondary still serves 8");
        pic.write(1, 0, 0x20);
        assert_eq!(pic.acknowledge(), Some(0x29));
    }

    #[test]
    fn levels_ask_again_after_eoi_until_they_fall() {
        let mut pic = pic(1);
        pic.write_elcr(1, 0xff);
        assert_eq!(pic.read_elcr(1), 0xde);
        pic.write_elcr(0, 0xff);
        assert_eq!(pic.read_elcr(0), 0xf8);
        pic.set_irq(10, true);
        for _ in 0..2 {
            assert_eq!(pic.acknowledge(), Some(0x2a));
            assert!(!pic.output());
            pic.write(1, 0, 0x20);
            pic.write(0, 0, 0x20);
            assert!(pic.output());
        }
        pic.set_irq(10, false);
        assert!(!pic.output());
    }

    #[test]
    fn automatic_eoi_and_rotation() {
        let mut pic = pic(3);
        pic.set_irq(4, true);
        assert_eq!(pic.acknowledge(), Some(0x24));
        assert_eq!(pic.chips[0].isr, 0);
        pic.write(0, 0, 0x80);
        pic.set_irq(4, false);
        pic.set_irq(4, true);
        pic.acknowledge();
        pic.set_irq(4, false);
        pic.set_irq(4, true);
        pic.set_irq(5, true);
        assert_eq!(pic.acknowledge(), Some(0x25), "4 went to the end of the row");
    }

    #[test]
    fn polling_acknowledges_and_special_mask_lets_lower_through() {
        let mut pic = pic(1);
        pic.set_irq(3, true);
        pic.write(0, 0, 0x0c);
        assert_eq!(pic.read(0, 0), 0x83);
        pic.write(0, 0, 0x0c);
        assert_eq!(pic.read(0, 0), 0);
        pic.set_irq(6, true);
        assert!(!pic.output());
        pic.write(0, 1, 0x08);
        pic.write(0, 0, 0x68);
        assert_eq!(pic.acknowledge(), Some(0x26));
    }

    #[test]
    fn icw1_clears_and_a_single_chip_skips_icw3() {
        let mut pic = pic(1);
        pic.set_irq(1, true);
        pic.acknowledge();
        pic.write(0, 1, 0xaa);
        pic.write(0, 0, 0x12);
        assert_eq!((pic.chips[0].isr, pic.chips[0].imr, pic.chips[0].irr), (0, 0, 0));
        pic.write(0, 1, 0x47);
        assert_eq!(pic.chips[0].step, InitStep::Done);
        assert_eq!(pic.chips[0].base, 0x40);
        pic.write(0, 1, 0x55);
        assert_eq!(pic.read(0, 1), 0x55);
    }
}
