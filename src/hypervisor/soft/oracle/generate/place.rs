//! Puts a completed instruction into the sequence, with the loads of registers in front of it and the fillers
//! behind a branch.

use iced_x86::{
    Code, ConstantOffsets, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpAccess, Register,
};

use super::super::{ARENA, USER_SS, Unit, undefined, values};
use super::{Builder, Needs, RCX, RSP, number, returns};

impl Builder {
    /// Puts the instruction where it belongs and completes it.
    pub(super) fn place(
        &mut self,
        instruction: &Instruction,
        offsets: &ConstantOffsets,
        mut bytes: Vec<u8>,
        mut needs: Needs,
    ) -> bool {
        if needs.branch_register == Some(RSP)
            || needs.branch_register.is_some_and(|r| needs.value(r).is_some())
        {
            return false;
        }
        if flags_missing(instruction, self.undefined) {
            // cmp eax, imm32: defines every status flag.
            let immediate = (values::integer(&mut self.rng) as u32).to_le_bytes();
            self.bytes.push(0x3d);
            self.bytes.extend_from_slice(&immediate);
            self.undefined = 0;
        }
        let stack = instruction.is_stack_instruction();
        if (self.rsp_wild && stack || needs.stack.is_some() && self.rsp_moved) && needs.value(RSP).is_none() {
            let top = ARENA + 0x3400 + 8 * self.rng.below(0x100) as u64;
            needs.register(RSP, top);
        }
        let mut registers = std::mem::take(&mut needs.registers);
        registers.retain(|&(register, value)| {
            if self.dirty & 1 << register != 0 {
                return true;
            }
            match self.init[register] {
                Some(old) => old != value,
                None => {
                    self.init[register] = Some(value);
                    false
                }
            }
        });
        for &(register, value) in &registers {
            self.load(register, value);
        }
        let stack_top = registers.iter().find(|(r, _)| *r == RSP).map(|(_, v)| *v);
        let fillers = if self.rng.chance(75) { 1 + self.rng.below(3) } else { 0 };
        if let Some(register) = needs.branch_register {
            let open = self.init[register].is_none() && self.dirty & 1 << register == 0;
            let movs = if open { 0 } else { self.mov_len() };
            let label = self.here() + (movs + bytes.len() + fillers * self.filler_len()) as u64;
            match open {
                true => self.init[register] = Some(label),
                false => self.load(register, label),
            }
        }
        let end = self.here() + bytes.len() as u64;
        let mut label = end + (fillers * self.filler_len()) as u64;
        let branch = matches!(
            instruction.flow_control(),
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call
        );
        if branch && offsets.has_immediate() {
            if matches!(instruction.mnemonic(), Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne)
                && self.init[RCX].is_some_and(|c| c as u32 != 0)
                && registers.is_empty()
                && self.dirty & 1 << RCX == 0
                && self.rng.chance(30)
            {
                label = self.here();
            }
            let relative = label.wrapping_sub(end).to_le_bytes();
            let at = offsets.immediate_offset()..offsets.immediate_offset() + offsets.immediate_size();
            bytes[at.clone()].copy_from_slice(&relative[..at.len()]);
        }
        if let Some(displacement) = needs.displacement {
            let value = if needs.rip_relative { displacement.wrapping_sub(end) } else { displacement };
            let at =
                offsets.displacement_offset()..offsets.displacement_offset() + offsets.displacement_size();
            let fits = at.len() == 8
                || needs.rip_relative
                || value as i32 as u64 == value
                || self.bits == 32
                || bytes.contains(&0x67);
            if !fits {
                return false;
            }
            bytes[at.clone()].copy_from_slice(&value.to_le_bytes()[..at.len()]);
        }
        let far = instruction.is_call_far_indirect() || instruction.is_jmp_far_indirect();
        if needs.branch_memory || far {
            let offset = if far { instruction.memory_size().size().wrapping_sub(2).min(8) } else { 8 };
            let mut pointer = label.to_le_bytes()[..offset].to_vec();
            if far {
                pointer.extend_from_slice(&self.code_selector().to_le_bytes());
            }
            self.patch(needs.address, &pointer);
        }
        if let Some(mut content) = needs.stack {
            if returns(instruction.mnemonic()) {
                let top = ARENA + 0x3400 + self.rng.next() % 0x800;
                let flags = self.popped_flags();
                let (cs, ss) = (self.code_selector().into(), USER_SS.into());
                for word in [label, cs, flags, top, ss] {
                    content.extend_from_slice(&word.to_le_bytes()[..return_size(instruction)]);
                }
            }
            self.patch(stack_top.or(self.init[RSP]), &content);
        }
        // Filling fields in can turn an instruction into another one (NOP and PAUSE, shifts by 1).
        let mut complete = Instruction::default();
        Decoder::with_ip(self.bits, &bytes, self.here(), DecoderOptions::NONE).decode_out(&mut complete);
        if complete.code() != instruction.code() || complete.len() != bytes.len() {
            return false;
        }
        self.bytes.extend_from_slice(&bytes);
        self.undefined = undefined::undefined_after(&complete, self.undefined);
        self.track(&complete);
        let jumps = branch
            || needs.branch_memory
            || needs.branch_register.is_some()
            || far
            || returns(instruction.mnemonic());
        if jumps {
            for _ in 0..fillers {
                self.fill();
            }
        }
        self.units.push(Unit { code: complete.code(), end: self.bytes.len(), undefined: self.undefined });
        true
    }

    pub(super) fn here(&self) -> u64 {
        self.entry + self.bytes.len() as u64
    }

    pub(super) fn mov_len(&self) -> usize {
        if self.bits == 64 { 10 } else { 5 }
    }

    pub(super) fn filler_len(&self) -> usize {
        if self.bits == 64 { 3 } else { 2 }
    }

    /// `mov register, value`.
    pub(super) fn load(&mut self, register: usize, value: u64) {
        if self.bits == 64 {
            self.bytes.push(0x48 | (register >> 3) as u8);
        }
        self.bytes.push(0xb8 | (register & 7) as u8);
        self.bytes.extend_from_slice(&value.to_le_bytes()[..self.bits as usize / 8]);
        self.dirty |= 1 << register;
        if register == RSP {
            self.rsp_moved = true;
            self.rsp_wild = false;
        }
    }

    /// `not` of some register: visible where it should have been jumped over.
    pub(super) fn fill(&mut self) {
        let choice: &[usize] = &[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        let register = self.rng.pick(if self.bits == 64 { choice } else { &choice[..7] });
        if self.bits == 64 {
            self.bytes.push(0x48 | (register >> 3) as u8);
        }
        self.bytes.extend_from_slice(&[0xf7, 0xd0 | (register & 7) as u8]);
        self.dirty |= 1 << register;
    }

    /// Notes which registers `instruction` changes.
    pub(super) fn track(&mut self, instruction: &Instruction) {
        let stack = instruction.is_stack_instruction();
        for used in self.info.info(instruction).used_registers() {
            let writes = matches!(
                used.access(),
                OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
            );
            if let (true, Some(register)) = (writes, number(used.register())) {
                self.dirty |= 1 << register;
                if register == RSP {
                    self.rsp_moved = true;
                    self.rsp_wild |= !stack
                        || instruction.op0_register().full_register() == Register::RSP
                        || returns(instruction.mnemonic()) && instruction.op_count() != 0;
                }
            }
        }
    }
}

/// Bytes of each word that RET, RETF or IRET pops.
fn return_size(instruction: &Instruction) -> usize {
    use Code as C;
    match instruction.code() {
        C::Retnw | C::Retnw_imm16 | C::Retfw | C::Retfw_imm16 | C::Iretw => 2,
        C::Retnd | C::Retnd_imm16 | C::Retfd | C::Retfd_imm16 | C::Iretd => 4,
        _ => 8,
    }
}

fn flags_missing(instruction: &Instruction, undefined: u64) -> bool {
    undefined::flags_read(instruction) & undefined != 0
}
