//! Instructions to operations: fetching and decoding guest code, filling in what all families
//! share (memory operand, length, position), and asking each family for its handler.

#![allow(unsafe_code)]

use std::collections::HashSet;

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, OpKind, Register};

use super::block::{BlockCache, BlockId};
use super::cpu::{Access, Cpu};
use super::op::{Exec, Handler, Op, SEG_FLAT, SLOT_BLOCK, SLOT_ZERO, Stop, flag};
use super::{control, int, sse, string, system, x87};

/// Instructions that were refused, so that each opcode is traced once.
#[derive(Default)]
pub(super) struct Unknown {
    seen: HashSet<(u16, [u8; 3])>,
}

/// The guest chooses how many different bad opcodes it tries.
const MAX_UNKNOWN: usize = 4096;

impl Unknown {
    fn trace(&mut self, code: Code, bytes: &[u8]) {
        let mut head = [0; 3];
        let n = bytes.len().min(3);
        head[..n].copy_from_slice(&bytes[..n]);
        if code != Code::INVALID {
            head = [0; 3];
        }
        if self.seen.len() < MAX_UNKNOWN && self.seen.insert((code as u16, head)) {
            tracing::warn!(
                bytes = format!("{bytes:02x?}"),
                ?code,
                "instruction not known to the software CPU"
            );
        }
    }
}

/// Longest block, in instructions: bounds the time between two looks at events.
const MAX_OPS: usize = 64;

/// Decodes the block at `rip` and caches it. Faults as an instruction fetch does.
pub(super) fn block_at(cpu: &mut Cpu, cache: &mut BlockCache, rip: u64) -> Result<BlockId, Stop> {
    let gpa = cpu.translate(rip, Access::Execute)?;
    let key = BlockCache::key(gpa, cpu.long);
    if let Some(id) = cache.find(key)
        && let Some(block) = cache.get(id)
    {
        match block.page2 {
            None => return Ok(id),
            Some(page2) => {
                // The last instruction reaches into the next linear page: it must still be the
                // physical page that was decoded.
                let next = (rip & !4095).wrapping_add(4096);
                let gpa2 = cpu.translate(next, Access::Execute)?;
                if cpu.ram.host(gpa2).is_some_and(|(_, p)| p == page2) {
                    return Ok(id);
                }
                cache.drop_page(page2);
            }
        }
    }
    let Some((host, page)) = cpu.ram.host(gpa) else {
        // Code in device memory: nothing useful can be there.
        return Err(cpu.ud());
    };
    mark(cpu, page);
    let in_page = 4096 - (gpa & 4095) as usize;
    let mut bytes = [0u8; 4096 + 16];
    // SAFETY: `host` is valid to the end of its page.
    unsafe { std::ptr::copy_nonoverlapping(host, bytes.as_mut_ptr(), in_page) };
    let mut ops = Vec::with_capacity(16);
    let mut len = decode(cpu, &bytes[..in_page], &mut ops);
    let mut page2 = None;
    if ops.is_empty() {
        // The first instruction does not end in this page.
        let next = (rip & !4095).wrapping_add(4096);
        let gpa2 = cpu.translate(next, Access::Execute)?;
        let Some((host2, p2)) = cpu.ram.host(gpa2) else { return Err(cpu.ud()) };
        mark(cpu, p2);
        // SAFETY: 15 bytes at the start of a mapped page.
        unsafe { std::ptr::copy_nonoverlapping(host2, bytes.as_mut_ptr().add(in_page), 15) };
        len = decode_one(cpu, &bytes[..in_page + 15], &mut ops);
        page2 = Some(p2);
    }
    Ok(cache.insert(key, ops, len, page, page2))
}

/// A block of the one instruction that `code` begins with, wherever the guest has it.
pub(super) fn block_of(cpu: &mut Cpu, cache: &mut BlockCache, code: &[u8]) -> BlockId {
    let mut ops = Vec::with_capacity(1);
    let len = decode_one(cpu, code, &mut ops);
    // No guest-physical address: nothing finds it.
    cache.insert(u64::MAX, ops, len, u32::MAX, None)
}

fn mark(cpu: &mut Cpu, page: u32) {
    let Some(writers) = cpu.code.mark(page) else { return };
    if cpu.several {
        cpu.stop_writers(writers, page);
    } else {
        cpu.tlb.protect(page);
    }
}

/// Decodes until the block ends. Leaves `ops` empty if not even the first instruction is complete.
fn decode(cpu: &mut Cpu, bytes: &[u8], ops: &mut Vec<Op>) -> u32 {
    run_decoder(cpu, bytes, ops, MAX_OPS, false)
}

fn decode_one(cpu: &mut Cpu, bytes: &[u8], ops: &mut Vec<Op>) -> u32 {
    run_decoder(cpu, bytes, ops, 1, true)
}

fn run_decoder(cpu: &mut Cpu, bytes: &[u8], ops: &mut Vec<Op>, max: usize, all_there: bool) -> u32 {
    let bitness = if cpu.long { 64 } else { 32 };
    // Addresses are decoded relative to the block: the same bytes may be mapped anywhere.
    let mut decoder = Decoder::with_ip(bitness, bytes, 0, DecoderOptions::NONE);
    let mut ins = Instruction::default();
    while ops.len() < max {
        let start = decoder.position();
        decoder.decode_out(&mut ins);
        let mut end = decoder.position();
        if decoder.last_error() == DecoderError::NoMoreBytes && !all_there && start + 15 > bytes.len() {
            return start as u32;
        }
        let mut op = prefill(cpu.long, &ins, start, end - start);
        let known = if ins.is_invalid() { None } else { lower(&ins, &mut op) };
        match known {
            Some(handler) => op.run = handler,
            None => {
                end = end.max(start + 1);
                let text = &bytes[start..end.min(bytes.len())];
                if ins.is_invalid() && text.len() >= 15 {
                    op.run = too_long;
                } else {
                    cpu.unknown.trace(ins.code(), text);
                    op.run = undefined;
                }
                op.flags |= flag::ENDS;
            }
        }
        let ends = op.flags & flag::ENDS != 0
            || !matches!(ins.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch);
        if ends {
            op.flags |= flag::ENDS;
        }
        ops.push(op);
        if ends {
            return end as u32;
        }
    }
    decoder.position() as u32
}

/// More than 15 bytes: #GP(0).
fn too_long(cpu: &mut Cpu, _: &Op) -> Exec {
    Err(cpu.gp())
}

/// #UD.
pub(super) fn undefined(cpu: &mut Cpu, _: &Op) -> Exec {
    Err(cpu.ud())
}

fn lower(ins: &Instruction, op: &mut Op) -> Option<Handler> {
    int::alu::lower(ins, op)
        .or_else(|| int::data::lower(ins, op))
        .or_else(|| control::lower(ins, op))
        .or_else(|| int::shift::lower(ins, op))
        .or_else(|| int::bits::lower(ins, op))
        .or_else(|| int::muldiv::lower(ins, op))
        .or_else(|| string::lower(ins, op))
        .or_else(|| sse::lower(ins, op))
        .or_else(|| x87::lower(ins, op))
        .or_else(|| system::lower(ins, op))
}

fn prefill(long: bool, ins: &Instruction, start: usize, len: usize) -> Op {
    let mut op = Op {
        run: undefined,
        imm: 0,
        disp: 0,
        base: SLOT_ZERO,
        index: SLOT_ZERO,
        scale: 0,
        seg: SEG_FLAT,
        dst: 0,
        src: 0,
        len: len as u8,
        flags: if long { 0 } else { flag::CODE32 },
        off: start as u16,
        extra: 0,
    };
    if ins.has_lock_prefix() {
        op.flags |= flag::LOCK;
    }
    for i in 0..ins.op_count() {
        if ins.op_kind(i) == OpKind::Memory {
            memory_operand(long, ins, &mut op);
        }
    }
    op
}

fn memory_operand(long: bool, ins: &Instruction, op: &mut Op) {
    let (base, index) = (ins.memory_base(), ins.memory_index());
    op.base = slot(base);
    op.index = slot(index);
    op.scale = ins.memory_index_scale().trailing_zeros() as u8;
    op.disp = ins.memory_displacement64() as i64;
    let segment = ins.memory_segment();
    op.seg = Cpu::seg_slot(long, segment.number());
    // In 64-bit code, prefixes other than FS and GS do not even change which exception it is.
    let stack = if long && !matches!(segment, Register::FS | Register::GS) {
        matches!(base.full_register(), Register::RSP | Register::RBP)
    } else {
        segment == Register::SS
    };
    if stack {
        op.flags |= flag::STACK;
    }
    let size = if base != Register::None && base != Register::RIP {
        if base == Register::EIP { 4 } else { base.size() }
    } else if base == Register::RIP {
        8
    } else if index != Register::None {
        index.size()
    } else {
        match ins.memory_displ_size() {
            2 => 2,
            8 => 8,
            // A bare 32-bit displacement is sign-extended in 64-bit code, unless the address
            // size is 32; the decoder has done either already.
            _ if long => 8,
            _ => 4,
        }
    };
    match size {
        4 => op.flags |= flag::ADDR32,
        2 => op.flags |= flag::ADDR16,
        _ => {}
    }
}

fn slot(r: Register) -> u8 {
    match r {
        Register::None => SLOT_ZERO,
        Register::RIP | Register::EIP => SLOT_BLOCK,
        r => r.full_register().number() as u8,
    }
}

/// Byte offset of a general register in the register file.
pub(super) fn gpr(r: Register) -> u8 {
    let high = matches!(r, Register::AH | Register::CH | Register::DH | Register::BH) as u8;
    r.full_register().number() as u8 * 8 + high
}

/// Size in bytes of operand `i`: a register or memory.
pub(super) fn operand_size(ins: &Instruction, i: u32) -> usize {
    match ins.op_kind(i) {
        OpKind::Register => ins.op_register(i).size(),
        _ => ins.memory_size().size(),
    }
}

/// Picks a handler that is generic over the operand width.
macro_rules! sized {
    ($size:expr, $f:ident $(, $a:ty)*) => {
        match $size {
            1 => Some($f::<$($a,)* u8> as Handler),
            2 => Some($f::<$($a,)* u16> as Handler),
            4 => Some($f::<$($a,)* u32> as Handler),
            8 => Some($f::<$($a,)* u64> as Handler),
            _ => None,
        }
    };
}
pub(super) use sized;
