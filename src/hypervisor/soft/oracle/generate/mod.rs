//! Turns a seed into a case: instructions whose addresses, counts and branch targets make sense most of
//! the time, on registers and memory full of edge values.
//!
//! An instruction is random bytes behind a [`Template`], decoded, and then completed: registers that
//! address memory get initial values (or a `mov` in front, when an earlier instruction has changed
//! them), displacements, branch offsets and immediates are filled in.

mod operands;
mod place;
mod special;
mod state;

use iced_x86::{
    Code, Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register,
};

use super::rng::Rng;
use super::templates::{Template, discover};
use super::{ARENA, ARENA_LEN, CODE, Case, GS_BASE, Patch, Unit, undefined, values};

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
}

/// RET, RETF and IRET.
fn returns(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Ret | M::Retf | M::Iret | M::Iretd | M::Iretq)
}

fn segment_base(instruction: &Instruction) -> u64 {
    if instruction.segment_prefix() == Register::GS { GS_BASE } else { 0 }
}

/// The number of the general register that `register` is a part of.
fn number(register: Register) -> Option<usize> {
    let full = register.full_register();
    full.is_gpr64().then(|| full.number())
}
