//! Machine time on KVM: the machine's clock, the kernel's paravirtual clock and the guest's TSCs.
//!
//! While vCPUs run, the kernel's clock is what the guest sees; the machine's own ([`Clock`]) serves
//! the chipset. They start together at each [`Time::resume`]; at [`Time::pause`] the machine's is set
//! to the kernel's, so that no drift between them ever shows as a step in the guest.
//!
//! A vCPU's TSC counts `khz` and is `machine time × khz + offset`, the offset being part of its
//! portable state. Its form here, relative to the host's TSC, follows at each resume.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use kvm_bindings::{KVM_CLOCK_HOST_TSC, kvm_clock_data};
use kvm_ioctls::{VcpuFd, VmFd};

use super::{Capabilities, HypervisorError, host, ioctl};
use crate::arch::x86_64::msr;
use crate::sys::clock::{Clock, TSC_HZ};

/// A moment, in machine time and on the host's TSC.
#[derive(Debug, Clone, Copy, Default)]
struct Moment {
    ns: u64,
    host_tsc: u64,
}

/// The time of one machine.
#[derive(Debug)]
pub(super) struct Time {
    clock: Arc<Clock>,
    scaling: bool,
    resumed: Mutex<Moment>,
    /// Grows with each resume: vCPUs set their TSCs anew when it has.
    generation: AtomicU64,
}

/// The TSC of one vCPU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tsc {
    /// Its rate.
    pub(super) khz: u32,
    /// The host's rate.
    host_khz: u32,
    /// Added to machine time, in ticks, to give its value.
    pub(super) offset: u64,
    /// [`Time::generation`] that it follows.
    generation: u64,
    /// The kernel takes offsets; else the value is written.
    offsets: bool,
}

/// Differences of rates that nobody notices: what a crystal is off by.
const TOLERANCE: u64 = 4000;

impl Time {
    pub(super) fn new(clock: Arc<Clock>, capabilities: Capabilities) -> Self {
        let scaling = capabilities.tsc_scaling;
        Self { clock, scaling, resumed: Mutex::default(), generation: AtomicU64::new(1) }
    }

    /// The machine's clock.
    pub(super) fn clock(&self) -> Arc<Clock> {
        self.clock.clone()
    }

    /// Machine time goes on.
    pub(super) fn resume(&self, fd: &VmFd) {
        let clock = kvm_clock_data { clock: self.clock.now(), ..kvm_clock_data::default() };
        if let Err(e) = fd.set_clock(&clock) {
            tracing::error!(error = &e as &dyn std::error::Error, "the guest's clock cannot be set");
        }
        *self.resumed.lock().unwrap_or_else(|e| e.into_inner()) = self.moment(fd);
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Machine time has been stopped: it is what the guest saw last.
    pub(super) fn pause(&self, fd: &VmFd) {
        if let Ok(clock) = fd.get_clock() {
            self.clock.set(clock.clock);
        }
    }

    /// Now.
    fn moment(&self, fd: &VmFd) -> Moment {
        match fd.get_clock() {
            Ok(clock) if clock.flags & KVM_CLOCK_HOST_TSC != 0 => {
                Moment { ns: clock.clock, host_tsc: clock.host_tsc }
            }
            Ok(clock) => Moment { ns: clock.clock, host_tsc: host_tsc() },
            Err(_) => Moment { ns: self.clock.now(), host_tsc: host_tsc() },
        }
    }

    /// The TSC of a new vCPU, at the rate of all machines where the host can give it that.
    pub(super) fn tsc(&self, fd: &VcpuFd) -> Result<Tsc, HypervisorError> {
        let host_khz = fd.get_tsc_khz().map_err(host)?;
        let offsets = ioctl::has_tsc_offset(fd);
        let mut tsc = Tsc { khz: host_khz, host_khz, offset: 0, generation: 0, offsets };
        if self.scaling {
            tsc.set_khz(fd, (TSC_HZ / 1000) as u32)?;
        }
        Ok(tsc)
    }

    /// Takes up a saved TSC of `khz` and this offset. Where it has to run at another rate, it goes on
    /// from the value it would have now.
    pub(super) fn set(
        &self,
        tsc: &mut Tsc,
        fd: &VcpuFd,
        khz: u32,
        offset: u64,
    ) -> Result<(), HypervisorError> {
        if self.scaling {
            tsc.set_khz(fd, khz)?;
        }
        // A guest counts on its deadlines not being late. Early ones it sets again.
        if u64::from(khz) * TOLERANCE > u64::from(tsc.khz) * (TOLERANCE + 1) {
            return Err(HypervisorError::BadState(
                "its TSC runs faster than this host's, which cannot scale it",
            ));
        }
        let now = self.clock.now();
        tsc.offset = ticks(now, khz).wrapping_add(offset).wrapping_sub(ticks(now, tsc.khz));
        tsc.generation = 0;
        Ok(())
    }

    /// Brings the vCPU's TSC to where it has to be, if time was resumed since.
    pub(super) fn follow(&self, tsc: &mut Tsc, fd: &VcpuFd) -> Result<(), HypervisorError> {
        let generation = self.generation.load(Ordering::SeqCst);
        if tsc.generation == generation {
            return Ok(());
        }
        let at = *self.resumed.lock().unwrap_or_else(|e| e.into_inner());
        let wanted = ticks(at.ns, tsc.khz).wrapping_add(tsc.offset);
        if tsc.offsets {
            ioctl::set_tsc_offset(fd, wanted.wrapping_sub(tsc.scaled(at.host_tsc)))?;
        } else {
            let since = tsc.scaled(host_tsc()).wrapping_sub(tsc.scaled(at.host_tsc));
            super::msr::set(fd, &[(msr::TSC, wanted.wrapping_add(since))])?;
        }
        tsc.generation = generation;
        Ok(())
    }

    /// The TSC as the vCPU has it: the guest may have changed the offset.
    pub(super) fn read(&self, tsc: &Tsc, vm: &VmFd, fd: &VcpuFd) -> Result<Tsc, HypervisorError> {
        // One that has not run since time was resumed is not there yet.
        if tsc.generation != self.generation.load(Ordering::SeqCst) {
            return Ok(*tsc);
        }
        let at = self.moment(vm);
        let value = if tsc.offsets {
            tsc.scaled(at.host_tsc).wrapping_add(ioctl::tsc_offset(fd)?)
        } else {
            super::msr::get(fd, &[msr::TSC])?[0]
        };
        Ok(Tsc { offset: value.wrapping_sub(ticks(at.ns, tsc.khz)), ..*tsc })
    }
}

impl Tsc {
    fn set_khz(&mut self, fd: &VcpuFd, khz: u32) -> Result<(), HypervisorError> {
        if self.khz != khz {
            fd.set_tsc_khz(khz).map_err(host)?;
            self.khz = khz;
        }
        Ok(())
    }

    /// The TSC's value at machine time `ns`.
    pub(super) fn at(&self, ns: u64) -> u64 {
        ticks(ns, self.khz).wrapping_add(self.offset)
    }

    /// Machine time when the TSC shows `value`.
    pub(super) fn when(&self, value: u64) -> u64 {
        let ticks = value.wrapping_sub(self.offset);
        // A deadline that lies before machine time began has passed.
        let ticks = if ticks >> 63 == 0 { ticks } else { 0 };
        (u128::from(ticks) * 1_000_000 / u128::from(self.khz.max(1))) as u64
    }

    /// Ticks of the host's TSC at this one's rate.
    fn scaled(&self, host: u64) -> u64 {
        if self.khz == self.host_khz {
            return host;
        }
        (u128::from(host) * u128::from(self.khz) / u128::from(self.host_khz.max(1))) as u64
    }
}

/// Ticks at `khz` in `ns`.
fn ticks(ns: u64, khz: u32) -> u64 {
    (u128::from(ns) * u128::from(khz) / 1_000_000) as u64
}

#[allow(unsafe_code)]
fn host_tsc() -> u64 {
    // SAFETY: RDTSC is there on every x86-64 processor; nobody has turned it off for this process.
    unsafe { std::arch::x86_64::_rdtsc() }
}
