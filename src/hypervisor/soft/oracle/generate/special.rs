//! What particular instructions want: counts that end, selectors, flags and environments that mean something.

use iced_x86::{ConstantOffsets, FlowControl, Instruction, Mnemonic, OpKind};

use super::super::{ARENA, values};
use super::{Builder, Needs, RAX, RBP, RCX, RDX, number, returns};

impl Builder {
    /// What particular instructions want.
    pub(super) fn special(
        &mut self,
        instruction: &Instruction,
        offsets: &ConstantOffsets,
        bytes: &mut [u8],
        needs: &mut Needs,
    ) {
        use Mnemonic as M;
        let mnemonic = instruction.mnemonic();
        let immediate = offsets.immediate_offset()..offsets.immediate_offset() + offsets.immediate_size();
        let branch = matches!(
            instruction.flow_control(),
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call
        );
        if !branch && !immediate.is_empty() {
            let value = values::integer(&mut self.rng).to_le_bytes();
            bytes[immediate.clone()].copy_from_slice(&value[..immediate.len()]);
        }
        if instruction.is_string_instruction()
            && (instruction.has_rep_prefix() || instruction.has_repne_prefix())
        {
            let high = if bytes.contains(&0x67) { self.rng.next() << 32 } else { 0 };
            let count = self.rng.below(24) as u64 | high;
            needs.register(RCX, count);
        }
        match mnemonic {
            M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr
                if instruction.op_kind(1) == OpKind::Register && self.rng.chance(70) =>
            {
                let count = self.rng.next() & !0xff | self.rng.below(70) as u64;
                self.prefer(RCX, count, needs);
            }
            // A system call of the host.
            M::Int if bytes[immediate.start] == 0x80 => bytes[immediate.start] = 0x81,
            M::Shld | M::Shrd => {
                // Counts beyond 16 leave a 16-bit result undefined.
                let word = instruction.op1_register().is_gpr16();
                if instruction.op_kind(2) == OpKind::Register {
                    let count = self.rng.below(if word { 17 } else { 70 }) as u64;
                    if word {
                        needs.registers.retain(|(r, _)| *r != RCX);
                        needs.register(RCX, count);
                    } else {
                        self.prefer(RCX, count, needs);
                    }
                } else if word {
                    bytes[immediate][0] = self.rng.below(17) as u8;
                }
            }
            M::Div | M::Idiv if self.rng.chance(75) => {
                let small = self.rng.below(0x100) as u64;
                let high = if mnemonic == M::Idiv { self.rng.pick(&[0, 0, u64::MAX, small]) } else { small };
                self.prefer(RDX, high, needs);
                if instruction.op0_register().is_gpr8() || instruction.memory_size().size() == 1 {
                    let low = self.rng.next() & if self.rng.chance(50) { !0xff00 } else { !0xf000 };
                    self.prefer(RAX, low, needs);
                }
            }
            M::Bt | M::Bts | M::Btr | M::Btc
                if instruction.op0_kind() == OpKind::Memory && instruction.op1_kind() == OpKind::Register =>
            {
                if let Some(register) = number(instruction.op1_register()) {
                    let value = (self.rng.below(0x1000) as u64).wrapping_sub(0x800);
                    needs.register(register, value);
                    // The same register in the address: whatever comes of it.
                }
            }
            M::Lar | M::Lsl | M::Verr | M::Verw => {
                let selector = self.selector();
                let last = instruction.op_count() - 1;
                match instruction.op_kind(last) {
                    OpKind::Memory => self.patch(needs.address, &selector.to_le_bytes()[..2]),
                    _ => {
                        if let Some(register) = number(instruction.op_register(last)) {
                            needs.register(register, selector | self.rng.next() << 16);
                        }
                    }
                }
            }
            M::Loop | M::Loope | M::Loopne => {
                let count = self.rng.below(5) as u64;
                needs.register(RCX, count);
            }
            M::Jrcxz | M::Jecxz => {
                let value = self.rng.pick(&[0, 0, 1, 1 << 32, u64::MAX]);
                needs.register(RCX, value);
            }
            M::Enter => {
                let frame = ARENA + 0x3400 + self.rng.below(0x800) as u64;
                needs.register(RBP, frame);
                bytes[immediate][1] = 0;
                let level = offsets.immediate_offset2();
                bytes[level] = self.rng.below(6) as u8;
            }
            M::Leave => {
                let frame = ARENA + 0x3400 + self.rng.below(0x800) as u64;
                needs.register(RBP, frame);
            }
            M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b if self.rng.chance(60) => {
                let (low, high) = (values::integer(&mut self.rng), values::integer(&mut self.rng));
                self.prefer(RAX, low, needs);
                let mut expected = low.to_le_bytes().to_vec();
                match mnemonic {
                    M::Cmpxchg8b => {
                        self.prefer(RDX, high, needs);
                        expected.truncate(4);
                        expected.extend_from_slice(&high.to_le_bytes()[..4]);
                    }
                    M::Cmpxchg16b => {
                        self.prefer(RDX, high, needs);
                        expected.extend_from_slice(&high.to_le_bytes());
                    }
                    _ => {}
                }
                self.patch(needs.address, &expected);
            }
            M::Popf | M::Popfd | M::Popfq => {
                let value = self.popped_flags();
                needs.stack = Some(value.to_le_bytes().to_vec());
            }
            M::Ldmxcsr if self.rng.chance(80) => {
                let value = self.mxcsr();
                self.patch(needs.address, &value.to_le_bytes());
            }
            M::Fxrstor | M::Fxrstor64 => {
                let mut header = [0; 32];
                header[..24].iter_mut().for_each(|b| *b = self.rng.next() as u8);
                header[0..2].copy_from_slice(&self.control().to_le_bytes());
                // FXRSTOR makes no pending exceptions of its own.
                header[2] = 0;
                header[3] &= 0x7f;
                // Pointers that no program can have lose their upper bits.
                for unused in [14, 15, 22, 23] {
                    header[unused] = 0;
                }
                let mxcsr = if self.rng.chance(90) { self.mxcsr() } else { self.rng.next() as u32 };
                header[24..28].copy_from_slice(&mxcsr.to_le_bytes());
                self.patch(needs.address, &header);
            }
            M::Fldcw | M::Fldenv | M::Frstor if self.rng.chance(80) => {
                let value = self.control();
                self.patch(needs.address, &value.to_le_bytes());
            }
            _ => {}
        }
        let near = !instruction.is_call_far_indirect() && !instruction.is_jmp_far_indirect();
        if near
            && matches!(instruction.flow_control(), FlowControl::IndirectBranch | FlowControl::IndirectCall)
        {
            match instruction.op0_kind() {
                OpKind::Register => needs.branch_register = number(instruction.op0_register()),
                _ => needs.branch_memory = true,
            }
        }
        if returns(mnemonic) {
            needs.stack = Some(Vec::new());
        }
    }
}
