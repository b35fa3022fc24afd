//! KVM's paravirtual clock: two structures in guest memory, written when the guest names them.
//!
//! Machine time is the TSC, less its offset, at its rate, so the conversion never changes; only a
//! restored machine needs them written again.

use crate::sys::clock::wall_clock_ns;

use super::cpu::Cpu;

/// `pvclock_vcpu_time_info`: version, padding, TSC and system time at the update, multiplier,
/// shift, flags (bit 0: the TSC is stable across vCPUs).
pub(super) fn write_system_time(cpu: &mut Cpu) {
    let msr = cpu.msrs.kvm_system_time;
    if msr & 1 == 0 {
        return;
    }
    let mut info = [0u8; 32];
    info[0..4].copy_from_slice(&2u32.to_le_bytes());
    info[8..16].copy_from_slice(&cpu.msrs.tsc_offset.to_le_bytes());
    let (shift, multiplier) = scale(cpu.tsc_khz);
    info[24..28].copy_from_slice(&multiplier.to_le_bytes());
    info[28] = shift as u8;
    info[29] = 1;
    let gpa = msr & !1;
    put(cpu, gpa, &info);
}

/// Shift and multiplier that make nanoseconds of ticks at `khz`:
/// ns = (ticks << shift) × multiplier >> 32, the multiplier having its highest bit set.
fn scale(khz: u32) -> (i8, u32) {
    let khz = u64::from(khz.max(1));
    let mut shift = 0;
    // 10^6 / khz as a fraction of 2^shift, brought into 1/2..1.
    let (mut ns, mut ticks) = (1_000_000_u64, khz);
    while ns >= ticks {
        ticks <<= 1;
        shift += 1;
    }
    while ns << 1 < ticks {
        ns <<= 1;
        shift -= 1;
    }
    (shift, ((u128::from(ns) << 32) / u128::from(ticks)) as u32)
}

/// `pvclock_wall_clock`: version, seconds and nanoseconds of the wall clock at system time zero.
pub(super) fn write_wall_clock(cpu: &mut Cpu, gpa: u64) {
    let boot = wall_clock_ns().saturating_sub(cpu.clock.now());
    let mut info = [0u8; 12];
    info[0..4].copy_from_slice(&2u32.to_le_bytes());
    info[4..8].copy_from_slice(&((boot / 1_000_000_000) as u32).to_le_bytes());
    info[8..12].copy_from_slice(&((boot % 1_000_000_000) as u32).to_le_bytes());
    put(cpu, gpa, &info);
}

/// Writes to RAM at any alignment, page by page.
fn put(cpu: &mut Cpu, gpa: u64, data: &[u8]) {
    let first = data.len().min(4096 - (gpa & 4095) as usize);
    let (a, b) = data.split_at(first);
    cpu.phys_write(gpa, a);
    if !b.is_empty() {
        cpu.phys_write(gpa.wrapping_add(first as u64), b);
    }
}
