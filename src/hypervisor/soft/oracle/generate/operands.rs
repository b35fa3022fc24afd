//! Where memory operands lie, and what is in them.

use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind};

use super::super::{ARENA, ARENA_LEN, Patch, READ_ONLY, values};
use super::{Builder, Needs, RDI, RSI, RSP, number, segment_base};

impl Builder {
    /// An address for an operand of `size` bytes.
    pub(super) fn target(&mut self, size: usize) -> u64 {
        let rng = &mut self.rng;
        let reach = size.clamp(1, 0x200);
        if rng.chance(4) {
            let back = rng.below(reach + 8) as u64;
            return match rng.below(6) {
                0 | 1 => READ_ONLY + 0x1000 - back,
                2 => ARENA - back,
                3 => READ_ONLY + rng.below(0x1000 - reach) as u64,
                4 => 0x0000_8000_0000_0000 - back,
                _ => values::integer(rng) & 0xffff_ffff | (0xffff_c000_0000_0000 * (rng.below(2) as u64)),
            };
        }
        if rng.chance(8) {
            return ARENA + 0x1000 * (1 + rng.below(2) as u64) - rng.below(reach) as u64;
        }
        let offset = 0x200 + rng.below(0x2c00 - reach);
        let align = if rng.chance(75) { reach.next_power_of_two().min(16) } else { 1 };
        ARENA + (offset & !(align - 1)) as u64
    }

    /// The value `register` has now, if that is known; settles it if it is still open.
    pub(super) fn settled(&mut self, register: usize, needs: &mut Needs) -> u64 {
        if let Some(value) = needs.value(register) {
            return value;
        }
        let value = match self.init[register] {
            Some(value) if self.dirty & 1 << register == 0 => value,
            _ if self.rng.chance(90) => self.rng.below(0x400) as u64,
            _ => values::integer(&mut self.rng),
        };
        needs.register(register, value);
        value
    }

    /// Finds what the operands need.
    pub(super) fn operands(&mut self, instruction: &Instruction, needs: &mut Needs) {
        let size = instruction.memory_size().size();
        for op in 0..instruction.op_count() {
            match instruction.op_kind(op) {
                OpKind::MemorySegRSI | OpKind::MemorySegESI => {
                    let address = self.target(size).wrapping_sub(segment_base(instruction));
                    needs.register(RSI, address);
                }
                OpKind::MemorySegRDI | OpKind::MemorySegEDI => {
                    // MASKMOVQ: whether bytes that are not stored can fault is the processor's own.
                    let address = ARENA + 0x400 + self.rng.below(0x2000) as u64;
                    needs.register(RDI, address.wrapping_sub(segment_base(instruction)));
                }
                OpKind::MemoryESRDI | OpKind::MemoryESEDI => {
                    let address = self.target(size);
                    needs.register(RDI, address);
                }
                OpKind::Memory if instruction.mnemonic() != Mnemonic::Lea => self.memory(instruction, needs),
                _ => {}
            }
        }
    }

    pub(super) fn memory(&mut self, instruction: &Instruction, needs: &mut Needs) {
        let size = instruction.memory_size().size();
        let target = self.target(size);
        let wanted = target.wrapping_sub(segment_base(instruction));
        needs.address = Some(target);
        if instruction.is_ip_rel_memory_operand() {
            needs.rip_relative = true;
            needs.displacement = Some(wanted);
            return;
        }
        let base = number(instruction.memory_base());
        let mut index = number(instruction.memory_index());
        if instruction.memory_index().is_gpr8() {
            // XLAT: AL adds up to 255.
            index = None;
        }
        let scale = u64::from(instruction.memory_index_scale());
        let displacement = instruction.memory_displacement64();
        let narrow = [instruction.memory_base(), instruction.memory_index()].iter().any(|r| r.is_gpr32());
        if [instruction.memory_base(), instruction.memory_index()].iter().any(|r| r.is_gpr16()) {
            // 16-bit addresses reach none of our memory.
            needs.address = None;
            return;
        }
        let high = if narrow { self.rng.next() << 32 } else { 0 };
        let register = |value: u64| if narrow { value & 0xffff_ffff | high } else { value };
        let rest = wanted.wrapping_sub(displacement);
        match (base, index) {
            (None, None) => needs.displacement = Some(wanted),
            (Some(RSP), None) if !self.rsp_wild => {
                // Near the top of the stack already.
                needs.address = (!self.rsp_moved)
                    .then(|| self.init[RSP].unwrap_or(0).wrapping_add(displacement))
                    .map(|a| a.wrapping_add(segment_base(instruction)));
            }
            (Some(base), None) => needs.register(base, register(rest)),
            (Some(base), Some(index)) if base == index => {
                let value = rest as i64 / (1 + scale as i64);
                needs.register(base, register(value as u64));
                needs.address = Some(target.wrapping_sub((rest as i64 % (1 + scale as i64)) as u64));
            }
            (Some(base), Some(index)) => {
                let offset = self.settled(index, needs);
                let offset = if narrow { offset & 0xffff_ffff } else { offset }.wrapping_mul(scale);
                needs.register(base, register(rest.wrapping_sub(offset)));
            }
            (None, Some(index)) => {
                let value = rest as i64 / scale as i64;
                needs.register(index, register(value as u64));
                needs.address = Some(target.wrapping_sub((rest as i64 % scale as i64) as u64));
            }
        }
        if self.rng.chance(60) {
            let bytes = self.operand_bytes(instruction.memory_size());
            self.patch(needs.address, &bytes);
        }
    }

    /// An interesting value of a memory operand's type.
    pub(super) fn operand_bytes(&mut self, kind: MemorySize) -> Vec<u8> {
        use MemorySize as S;
        let rng = &mut self.rng;
        match kind {
            S::Float32 => values::single(rng).to_le_bytes().to_vec(),
            S::Float64 => values::double(rng).to_le_bytes().to_vec(),
            S::Float80 => {
                let (significand, exponent) = values::extended(rng);
                let mut bytes = significand.to_le_bytes().to_vec();
                bytes.extend_from_slice(&exponent.to_le_bytes());
                bytes
            }
            S::Bcd => {
                let mut bytes: Vec<u8> = (0..9).map(|_| (rng.below(10) << 4 | rng.below(10)) as u8).collect();
                bytes.push(rng.next() as u8 & 0x80);
                bytes
            }
            _ if kind.size() <= 8 => values::integer(rng).to_le_bytes()[..kind.size()].to_vec(),
            _ if kind.size() <= 16 => values::vector(rng).to_le_bytes()[..kind.size()].to_vec(),
            _ => Vec::new(),
        }
    }

    pub(super) fn patch(&mut self, address: Option<u64>, bytes: &[u8]) {
        let Some(offset) = address.and_then(|a| a.checked_sub(ARENA)) else { return };
        let offset = offset as usize;
        if !bytes.is_empty() && offset < ARENA_LEN && offset + bytes.len() <= ARENA_LEN {
            self.patches.push(Patch { offset, bytes: bytes.to_vec() });
        }
    }

    /// Gives `register` a value if nothing depends on it yet.
    pub(super) fn prefer(&mut self, register: usize, value: u64, needs: &mut Needs) {
        if self.init[register].is_none() && self.dirty & 1 << register == 0 {
            needs.register(register, value);
        }
    }
}
