//! IN and OUT, and who may use which port.

use crate::arch::x86_64::rflags;

use super::super::cpu::Cpu;
use super::super::int::Int;
use super::super::op::{Exec, Op, Stop};

/// #GP(0) unless the current privilege may use `len` ports from `port`.
pub(in super::super) fn check_port(cpu: &mut Cpu, port: u16, len: u64) -> Exec {
    if cpu.cpl as u64 <= (cpu.sysflags & rflags::IOPL) >> 12 {
        return Ok(());
    }
    if cpu.tr.limit < 0x67 {
        return Err(cpu.gp());
    }
    let map = cpu.read_system::<u16>(cpu.tr.base.wrapping_add(0x66))? as u64;
    let byte = map + port as u64 / 8;
    if byte + 1 > cpu.tr.limit as u64 {
        return Err(cpu.gp());
    }
    let bits = cpu.read_system::<u16>(cpu.tr.base.wrapping_add(byte))?;
    let mask = ((1u32 << len) - 1) << (port & 7);
    if bits as u32 & mask != 0 { Err(cpu.gp()) } else { Ok(()) }
}

pub(in super::super) fn port_in<T: Int>(cpu: &Cpu, port: u16) -> T {
    let mut data = [0xff; 8];
    if let Some(io) = cpu.io() {
        io.port_read(port, &mut data[..T::BYTES as usize]);
    }
    T::from_u64(u64::from_le_bytes(data))
}

pub(in super::super) fn port_out<T: Int>(cpu: &Cpu, port: u16, v: T) {
    if let Some(io) = cpu.io() {
        io.port_write(port, &v.to_u64().to_le_bytes()[..T::BYTES as usize]);
    }
}

pub(super) fn port_of(cpu: &Cpu, op: &Op) -> u16 {
    if op.extra != 0 { op.imm as u16 } else { cpu.get(16) }
}

pub(super) fn in_<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let port = port_of(cpu, op);
    check_port(cpu, port, T::BYTES)?;
    let v = port_in::<T>(cpu, port);
    cpu.set(0, v);
    Err(Stop::Next)
}

pub(super) fn out<T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let port = port_of(cpu, op);
    check_port(cpu, port, T::BYTES)?;
    port_out::<T>(cpu, port, cpu.get(0));
    Err(Stop::Next)
}
