//! The register stack, and the frame of an x87 instruction: checks before, flags after.

use crate::arch::x86_64::{FpuState, cr0, vector};

use super::super::cpu::Cpu;
use super::super::fp::{Env, F80, flag};
use super::super::op::{Exec, Op, Stop};

/// Status word bits beside the exception flags.
pub(super) mod status {
    /// Stack fault.
    pub(crate) const SF: u16 = 1 << 6;
    /// Exception summary: an unmasked exception is pending.
    pub(crate) const ES: u16 = 1 << 7;
    pub(crate) const C0: u16 = 1 << 8;
    pub(crate) const C1: u16 = 1 << 9;
    pub(crate) const C2: u16 = 1 << 10;
    pub(crate) const TOP: u16 = 7 << 11;
    pub(crate) const C3: u16 = 1 << 14;
    /// Busy: follows ES.
    pub(crate) const B: u16 = 1 << 15;
    /// The condition code of comparisons.
    pub(crate) const CODE: u16 = C0 | C2 | C3;
}

/// Physical register of ST(`i`).
pub(super) fn physical(fpu: &FpuState, i: u8) -> usize {
    usize::from((fpu.status >> 11) as u8).wrapping_add(usize::from(i)) & 7
}

/// Sets ES and B to whether an unmasked exception flag is set.
pub(super) fn summarize(fpu: &mut FpuState) {
    fpu.status &= !(status::ES | status::B);
    if fpu.status & !fpu.control & 0x3f != 0 {
        fpu.status |= status::ES | status::B;
    }
}

/// Moves the top of stack by `by` registers.
pub(super) fn rotate(fpu: &mut FpuState, by: u16) {
    fpu.status = fpu.status & !status::TOP | fpu.status.wrapping_add(by << 11) & status::TOP;
}

/// What comes before every waiting instruction: #NM, and #MF if an exception is
/// pending.
#[inline]
pub(super) fn check(cpu: &mut Cpu) -> Exec {
    if !cpu.fpu_ok {
        return Err(cpu.fpu_unavailable());
    }
    if cpu.fpu.status & status::ES != 0 {
        return pending(cpu);
    }
    Ok(())
}

/// #MF, if the processor reports exceptions so.
#[cold]
pub(super) fn pending(cpu: &mut Cpu) -> Exec {
    if cpu.cr0 & cr0::NE != 0 { Err(cpu.raise(vector::MF, None)) } else { Ok(()) }
}

/// A computing instruction under way. Memory operands are read before the first change of state;
/// [`Frame::done`] writes back flags, C1 and pointers.
pub(super) struct Frame<'a> {
    pub(super) cpu: &'a mut Cpu,
    op: &'a Op,
    /// The control word's settings, and the flags of this instruction alone.
    pub(super) env: Env,
    /// Leave C1 as it is.
    pub(super) keep_c1: bool,
    stack_fault: bool,
}

impl<'a> Frame<'a> {
    #[inline]
    pub(super) fn new(cpu: &'a mut Cpu, op: &'a Op) -> Result<Self, Stop> {
        check(cpu)?;
        let env = Env::from_control(cpu.fpu.control);
        Ok(Self { cpu, op, env, keep_c1: false, stack_fault: false })
    }

    /// ST(`i`), if it is not empty.
    #[inline]
    pub(super) fn get(&self, i: u8) -> Option<F80> {
        let n = physical(&self.cpu.fpu, i);
        (self.cpu.fpu.tag >> n & 1 != 0).then(|| self.content(i))
    }

    /// What is in ST(`i`), empty or not.
    pub(super) fn content(&self, i: u8) -> F80 {
        let (sig, se) = self.cpu.fpu.st[physical(&self.cpu.fpu, i)];
        F80 { sig, se }
    }

    /// Writes ST(`i`), which is not empty afterwards.
    #[inline]
    pub(super) fn set(&mut self, i: u8, v: F80) {
        let n = physical(&self.cpu.fpu, i);
        self.cpu.fpu.st[n] = (v.sig, v.se);
        self.cpu.fpu.tag |= 1 << n;
    }

    /// Empties ST(0) and moves the top.
    #[inline]
    pub(super) fn pop(&mut self) {
        let n = physical(&self.cpu.fpu, 0);
        self.cpu.fpu.tag &= !(1 << n);
        rotate(&mut self.cpu.fpu, 1);
    }

    /// Moves the top and writes the new ST(0). Overflow has been looked at.
    #[inline]
    pub(super) fn push(&mut self, v: F80) {
        rotate(&mut self.cpu.fpu, 7);
        self.set(0, v);
    }

    /// A push would overwrite a register in use.
    #[inline]
    pub(super) fn full(&self) -> bool {
        self.get(7).is_some()
    }

    /// Stack underflow. Whether it is masked, so that the indefinite stands in for the result.
    #[cold]
    pub(super) fn underflow(&mut self) -> bool {
        self.stack_fault = true;
        self.env.rounded_up = false;
        self.keep_c1 = false;
        !self.env.raise(flag::IE)
    }

    /// Stack overflow; the answer is as of [`Frame::underflow`].
    #[cold]
    pub(super) fn overflow(&mut self) -> bool {
        self.stack_fault = true;
        self.env.rounded_up = true;
        !self.env.raise(flag::IE)
    }

    /// An unmasked exception forbids the result.
    #[inline]
    pub(super) fn refused(&self) -> bool {
        self.env.flags & self.env.unmasked & flag::BEFORE != 0
    }

    /// Sets condition bits of `mask` to `bits`.
    #[inline]
    pub(super) fn condition(&mut self, mask: u16, bits: u16) {
        self.cpu.fpu.status = self.cpu.fpu.status & !mask | bits;
    }

    /// The end of the instruction.
    #[inline]
    pub(super) fn done(mut self) -> Exec {
        let up = self.env.rounded_up && (self.stack_fault || !self.refused());
        let ip = self.cpu.ip(self.op);
        let fpu = &mut self.cpu.fpu;
        if !self.keep_c1 {
            fpu.status = fpu.status & !status::C1 | if up { status::C1 } else { 0 };
        }
        fpu.status |= u16::from(self.env.flags) | if self.stack_fault { status::SF } else { 0 };
        fpu.ip = ip;
        if self.env.flags & self.env.unmasked != 0 {
            self.trapped();
        }
        Ok(())
    }

    /// An unmasked exception: to be reported at the next waiting instruction.
    #[cold]
    fn trapped(&mut self) {
        self.cpu.fpu.status |= status::ES | status::B;
        if let Some(opcode) = self.opcode() {
            self.cpu.fpu.opcode = opcode;
            // A memory form has a ModRM byte below 0xc0.
            if opcode & 0xff < 0xc0 {
                self.cpu.fpu.dp = self.cpu.offset(self.op);
            }
        }
    }

    /// The 11 opcode bits, read again from the code: too rare to be carried by every operation.
    fn opcode(&mut self) -> Option<u16> {
        let mut bytes = [0; 15];
        let bytes = bytes.get_mut(..usize::from(self.op.len))?;
        let saved = self.cpu.fault;
        let at = self.cpu.ip(self.op).wrapping_add(self.cpu.base_of(super::super::op::SEG_FLAT));
        let read = self.cpu.read_bytes(at, bytes);
        self.cpu.fault = saved;
        read.ok()?;
        let at = bytes.iter().position(|b| b & 0xf8 == 0xd8)?;
        Some(u16::from(bytes[at] & 7) << 8 | u16::from(*bytes.get(at + 1)?))
    }
}
