//! Turns a seed into a case: instructions whose addresses, counts and branch targets make sense most of
//! the time, on registers and memory full of edge values.
//!
//! An instruction is random bytes behind a [`Template`], decoded, and then completed: registers that
//! address memory get initial values (or a `mov` in front, when an earlier instruction has changed
//! them), displacements, branch offsets and immediates are filled in.

use iced_x86::{
    Code, ConstantOffsets, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory,
    MemorySize, Mnemonic, OpAccess, OpKind, Register,
};

use super::rng::Rng;
use super::templates::{Template, discover};
use super::{
    ARENA, ARENA_LEN, CODE, CODE_LEN, Case, CpuImage, GS_BASE, Patch, READ_ONLY, USER_SS, Unit, undefined,
    values,
};
use crate::arch::x86_64::{FpuState, rflags};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

/// Makes cases.
pub(super) struct Generator {
    pub(super) codes: Vec<(Code, Vec<Template>)>,
    seed: u64,
    bits: u32,
    memory: Box<[u8; ARENA_LEN]>,
}

impl Generator {
    /// All codes under test, or those whose mnemonic is in the comma-separated list `only`.
    /// `bits` is 64, or 32 for compatibility mode.
    pub(super) fn new(bits: u32, seed: u64, only: Option<&str>) -> Self {
        let mut codes = discover(bits);
        if let Some(only) = only {
            let names: Vec<String> = only.split(',').map(|n| n.trim().to_lowercase()).collect();
            codes.retain(|(code, _)| {
                names.contains(&format!("{:?}", code.mnemonic()).to_lowercase())
                    || names.contains(&format!("{code:?}").to_lowercase())
            });
            assert!(!codes.is_empty(), "no opcode under test is called {only}");
        }
        let mut rng = Rng::new(seed ^ 0x6d65_6d6f_7279);
        let mut memory = Box::new([0; ARENA_LEN]);
        for chunk in memory.chunks_exact_mut(16) {
            chunk.copy_from_slice(&values::vector(&mut rng).to_le_bytes());
        }
        Self { codes, seed, bits, memory }
    }

    /// What the data area holds before the patches of a case.
    pub(super) fn memory(&self) -> &[u8; ARENA_LEN] {
        &self.memory
    }

    /// The case with this number.
    pub(super) fn case(&self, index: u64) -> Case {
        let mut rng = Rng::new(self.seed ^ index.wrapping_mul(0xd6e8_feb8_6659_fd93));
        rng.next();
        let offset = match rng.below(4) {
            0 => 0xfe0 + rng.below(32),
            _ => 0x100 + rng.below(64),
        };
        let length = if rng.chance(60) { 1 } else { 2 + rng.below(7) };
        let mut init = [None; 16];
        let slack = if rng.chance(90) { rng.below(0x100) * 8 } else { rng.below(0x800) };
        init[RSP] = Some(ARENA + 0x3400 + slack as u64);
        let mut builder = Builder {
            rng,
            bits: self.bits,
            info: InstructionInfoFactory::new(),
            entry: CODE + offset as u64,
            bytes: Vec::with_capacity(256),
            units: Vec::with_capacity(length),
            init,
            dirty: 0,
            rsp_moved: false,
            rsp_wild: false,
            undefined: 0,
            small_operand: false,
            patches: Vec::new(),
        };
        for _ in 0..length {
            let pick = builder.rng.below(self.codes.len());
            let (code, templates) = &self.codes[pick];
            let inexact = undefined::approximate(code.mnemonic());
            if undefined::small_operand(code.mnemonic()) {
                if !builder.units.is_empty() {
                    continue;
                }
                builder.small_operand = true;
            }
            for _ in 0..64 {
                if builder.instruction(*code, templates) {
                    break;
                }
            }
            if inexact || builder.bytes.len() > 0x400 {
                break;
            }
        }
        builder.finish()
    }
}

struct Builder {
    rng: Rng,
    bits: u32,
    info: InstructionInfoFactory,
    entry: u64,
    bytes: Vec<u8>,
    units: Vec<Unit>,
    /// Initial register values that something depends on.
    init: [Option<u64>; 16],
    /// Registers that no longer hold their initial value.
    dirty: u16,
    rsp_moved: bool,
    /// RSP may point anywhere.
    rsp_wild: bool,
    undefined: u64,
    /// ST(0) must be small.
    small_operand: bool,
    patches: Vec<Patch>,
}

/// What an instruction needs before it can run.
#[derive(Default)]
struct Needs {
    registers: Vec<(usize, u64)>,
    /// Address of the explicit memory operand.
    address: Option<u64>,
    /// Displacement to write, or the address an RIP-relative one must reach.
    displacement: Option<u64>,
    rip_relative: bool,
    /// What the top of the stack must hold.
    stack: Option<Vec<u8>>,
    branch_register: Option<usize>,
    branch_memory: bool,
}

impl Needs {
    fn register(&mut self, register: usize, value: u64) {
        if !self.registers.iter().any(|(r, _)| *r == register) {
            self.registers.push((register, value));
        }
    }
    fn value(&self, register: usize) -> Option<u64> {
        self.registers.iter().find(|(r, _)| *r == register).map(|(_, v)| *v)
    }
}

impl Builder {
    /// Adds an instruction of `code`. False when the bytes came out as something else: try again.
    fn instruction(&mut self, code: Code, templates: &[Template]) -> bool {
        let template = &templates[self.rng.below(templates.len())];
        let mut bytes = self.encode(template);
        let mut decoder = Decoder::with_ip(self.bits, &bytes, 0, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid() || instruction.code() != code {
            return false;
        }
        let offsets = decoder.get_constant_offsets(&instruction);
        bytes.truncate(instruction.len());
        let mut needs = Needs::default();
        let masked = instruction.op_kinds().any(|kind| {
            matches!(kind, OpKind::MemorySegDI | OpKind::MemorySegEDI) && segment_base(&instruction) != 0
                || kind == OpKind::MemorySegDI
        });
        if masked {
            return false;
        }
        self.operands(&instruction, &mut needs);
        self.special(&instruction, &offsets, &mut bytes, &mut needs);
        self.place(&instruction, &offsets, bytes, needs)
    }

    /// Random bytes that start like `template`.
    fn encode(&mut self, template: &Template) -> Vec<u8> {
        let rng = &mut self.rng;
        let mut bytes = Vec::with_capacity(32);
        if rng.chance(8) {
            // CS, SS, DS and ES do nothing in 64-bit mode.
            // The software CPU does not model what protects segments in 32-bit code: no writes
            // through CS, no null selectors.
            bytes.push(rng.pick::<u8>(if self.bits == 64 {
                &[0x2e, 0x36, 0x3e, 0x26, 0x65, 0x65]
            } else {
                &[0x36, 0x3e, 0x26]
            }));
        }
        bytes.extend_from_slice(&template.prefixes);
        if rng.chance(6) {
            bytes.push(0xf0);
        }
        if template.wide {
            bytes.push(0x48 | rng.below(8) as u8);
        } else if self.bits == 64 && rng.chance(40) {
            bytes.push(0x40 | rng.below(8) as u8);
        }
        bytes.extend_from_slice(&template.opcode);
        let memory = template.modrm.iter().filter(|m| **m < 0xc0).count();
        let modrm = if memory != 0 && (memory == template.modrm.len() || rng.chance(50)) {
            template.modrm[rng.below(memory)] | (rng.below(3) << 6 | rng.below(8)) as u8
        } else {
            template.modrm[memory + rng.below(template.modrm.len() - memory)]
        };
        bytes.push(modrm);
        bytes.push(rng.next() as u8);
        let displacement =
            if rng.chance(80) { rng.below(0x1000) as i32 - 0x800 } else { values::integer(rng) as i32 };
        // An instruction without SIB or displacement takes its immediate from here, which is as good.
        bytes.extend_from_slice(&displacement.to_le_bytes());
        bytes.extend_from_slice(&values::integer(rng).to_le_bytes());
        bytes
    }

    /// An address for an operand of `size` bytes.
    fn target(&mut self, size: usize) -> u64 {
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
    fn settled(&mut self, register: usize, needs: &mut Needs) -> u64 {
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
    fn operands(&mut self, instruction: &Instruction, needs: &mut Needs) {
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

    fn memory(&mut self, instruction: &Instruction, needs: &mut Needs) {
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
    fn operand_bytes(&mut self, kind: MemorySize) -> Vec<u8> {
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

    fn patch(&mut self, address: Option<u64>, bytes: &[u8]) {
        let Some(offset) = address.and_then(|a| a.checked_sub(ARENA)) else { return };
        let offset = offset as usize;
        if !bytes.is_empty() && offset < ARENA_LEN && offset + bytes.len() <= ARENA_LEN {
            self.patches.push(Patch { offset, bytes: bytes.to_vec() });
        }
    }

    /// Gives `register` a value if nothing depends on it yet.
    fn prefer(&mut self, register: usize, value: u64, needs: &mut Needs) {
        if self.init[register].is_none() && self.dirty & 1 << register == 0 {
            needs.register(register, value);
        }
    }

    /// What particular instructions want.
    fn special(
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

    /// Puts the instruction where it belongs and completes it.
    fn place(
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

    fn here(&self) -> u64 {
        self.entry + self.bytes.len() as u64
    }

    fn mov_len(&self) -> usize {
        if self.bits == 64 { 10 } else { 5 }
    }

    fn filler_len(&self) -> usize {
        if self.bits == 64 { 3 } else { 2 }
    }

    /// `mov register, value`.
    fn load(&mut self, register: usize, value: u64) {
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
    fn fill(&mut self) {
        let choice: &[usize] = &[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        let register = self.rng.pick(if self.bits == 64 { choice } else { &choice[..7] });
        if self.bits == 64 {
            self.bytes.push(0x48 | (register >> 3) as u8);
        }
        self.bytes.extend_from_slice(&[0xf7, 0xd0 | (register & 7) as u8]);
        self.dirty |= 1 << register;
    }

    /// Notes which registers `instruction` changes.
    fn track(&mut self, instruction: &Instruction) {
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

    /// Flags for the stack. Never TF: the way out would be stepped through. Never AC: the software
    /// CPU has no alignment checks.
    fn popped_flags(&mut self) -> u64 {
        let mut value = self.rng.next() & (rflags::STATUS | rflags::DF | rflags::ID);
        if self.rng.chance(20) {
            value |= rflags::NT | rflags::IOPL | rflags::IF | rflags::RF | rflags::VIF;
        }
        value
    }

    /// Mostly the right one; never another that would work.
    fn code_selector(&mut self) -> u16 {
        self.rng.pick(&[0x33, 0x33, 0x33, 0x33, 0x33, 0])
    }

    /// A selector that means the same on both sides.
    fn selector(&mut self) -> u64 {
        self.rng.pick(&[0, 1, 3, 0x08, 0x10, 0x13, 0x18, 0x20, 0x23, 0x28, 0x2b, 0x30, 0x33])
    }

    fn mxcsr(&mut self) -> u32 {
        let rng = &mut self.rng;
        let base = (rng.next() as u32) & 0xe07f;
        match rng.below(16) {
            0..8 => 0x1f80,
            8..15 => base & if rng.chance(50) { 0xffc0 } else { !0 } | 0x1f80,
            _ => base & 0xffc0 | (rng.next() as u32) & 0x1f80,
        }
    }

    fn control(&mut self) -> u16 {
        let rng = &mut self.rng;
        let precision = rng.pick(&[0, 2, 3, 3]) << 8 | (rng.below(4) as u16) << 10;
        match rng.below(16) {
            0..8 => 0x37f,
            8..15 => 0x7f | precision,
            _ => 0x40 | precision | (rng.next() as u16) & 0x3f,
        }
    }

    fn fpu(&mut self) -> FpuState {
        let control = self.control();
        let mxcsr = self.mxcsr();
        let rng = &mut self.rng;
        let mut status = (rng.next() as u16) & 0x7f7f;
        if rng.chance(80) {
            status &= !0x7f;
        }
        if status & !control & 0x3f != 0 {
            status |= 0x8080;
        }
        let tag = match rng.below(8) {
            0..5 => 0xff,
            5 => 0,
            _ => rng.next() as u8,
        };
        let mut fpu = FpuState { control, status, tag, mxcsr, ..FpuState::default() };
        fpu.opcode = (rng.next() as u16) & 0x7ff;
        fpu.ip = CODE + rng.below(0x1000) as u64;
        fpu.dp = ARENA + rng.below(0x1000) as u64;
        let mmx = rng.chance(30);
        for st in &mut fpu.st {
            *st = if mmx { (values::vector(rng) as u64, 0xffff) } else { values::extended(rng) };
        }
        if self.small_operand {
            let top = usize::from(status >> 11 & 7);
            fpu.st[top] =
                (rng.next() | 1 << 63, (0x3fd0 + rng.below(0x2d) as u16) | (rng.next() as u16) & 0x8000);
        }
        for xmm in &mut fpu.xmm {
            *xmm = values::vector(rng);
        }
        fpu
    }

    fn finish(mut self) -> Case {
        let fpu = self.fpu();
        let mut gpr = [0; 16];
        for (register, slot) in gpr.iter_mut().enumerate() {
            *slot = match self.init[register] {
                Some(value) => value,
                None => values::integer(&mut self.rng),
            };
            if self.bits == 32 {
                *slot &= 0xffff_ffff;
            }
        }
        let mut flags = self.rng.next() & rflags::STATUS | rflags::FIXED | rflags::IF;
        if self.rng.chance(15) {
            flags |= rflags::DF;
        }
        debug_assert!(self.bytes.len() + 64 < CODE_LEN - 0x1000);
        Case {
            bits: self.bits,
            entry: self.entry,
            bytes: self.bytes,
            units: self.units,
            cpu: CpuImage { gpr, rip: self.entry, rflags: flags, fpu },
            patches: self.patches,
        }
    }
}

/// RET, RETF and IRET.
fn returns(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Ret | M::Retf | M::Iret | M::Iretd | M::Iretq)
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

fn segment_base(instruction: &Instruction) -> u64 {
    if instruction.segment_prefix() == Register::GS { GS_BASE } else { 0 }
}

/// The number of the general register that `register` is a part of.
fn number(register: Register) -> Option<usize> {
    let full = register.full_register();
    full.is_gpr64().then(|| full.number())
}
