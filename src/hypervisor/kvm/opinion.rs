//! A second opinion: the software CPU executes the one instruction that the kernel refused.
//!
//! Where KVM has to emulate the guest's kernel (no virtualization in the processor that it runs on),
//! its emulator knows few instructions and gives up at the others. The software CPU takes the same
//! state and the same memory, executes that one instruction with all it can lead to (an exception,
//! an access to a device), and KVM goes on behind it. Each is counted, and told once for every
//! opcode; [`VmOptions::opinions`] bounds how many there may be.
//!
//! [`VmOptions::opinions`]: crate::hypervisor::VmOptions::opinions

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_ioctls::VcpuFd;

use super::{HypervisorError, Shared, state};
use crate::hypervisor::model::Identity;
use crate::hypervisor::soft::Stepper;
use crate::hypervisor::{Exit, ExitIo};
use crate::memory::GuestRam;
use crate::sys::clock::Clock;

/// Most opcodes that are told apart in the trace.
const MAX_TOLD: usize = 1000;

pub(super) struct Opinion {
    identity: Identity,
    ram: Arc<GuestRam>,
    clock: Arc<Clock>,
    /// Made at the first refusal: where KVM works, there is none.
    stepper: Option<Stepper>,
    told: HashSet<[u8; 4]>,
}

/// What the kernel says of an instruction that it refuses: its bytes, where it gives them.
pub(super) type Code = Option<[u8; 15]>;

impl Opinion {
    pub(super) fn new(identity: Identity, shared: &Shared) -> Self {
        let (ram, clock) = (shared.ram.clone(), shared.time.clock());
        Self { identity, ram, clock, stepper: None, told: HashSet::new() }
    }

    fn stepper(&mut self) -> Result<&mut Stepper, HypervisorError> {
        Ok(match &mut self.stepper {
            Some(stepper) => stepper,
            none => none.insert(Stepper::new(self.identity, self.ram.clone(), self.clock.clone())?),
        })
    }

    /// Places the machine's traps ([`super::traps`]) before it runs.
    pub(super) fn set_traps(&mut self, fd: &VcpuFd, shared: &Shared) -> Result<(), HypervisorError> {
        let (state, _) = state::get(fd)?;
        shared.traps.place(self.stepper()?, &state)
    }

    /// Executes the instruction that `fd` stands at. Returns how the vCPU is left, if it is.
    pub(super) fn give(
        &mut self,
        fd: &VcpuFd,
        code: Code,
        shared: &Shared,
        io: &dyn ExitIo,
    ) -> Result<Option<Exit>, HypervisorError> {
        let count = shared.opinions.fetch_add(1, Ordering::Relaxed);
        let (before, _) = state::get(fd)?;
        if count >= shared.options.opinions {
            tracing::error!(
                rip = format_args!("{:#x}", before.rip),
                count,
                "KVM refuses another instruction"
            );
            return Err(HypervisorError::Refused { rip: before.rip, count });
        }
        let stepper = self.stepper()?;
        shared.traps.place(stepper, &before)?;
        let mut after = before.clone();
        let exit = match shared.traps.sprung(stepper, &mut after, io)? {
            Some(exit) => exit,
            None => stepper.step_on(&mut after, io)?,
        };
        if let Some(code) = code
            && let [a, b, c, d, ..] = code
            && self.told.len() < MAX_TOLD
            && self.told.insert([a, b, c, d])
        {
            tracing::debug!(
                code = format_args!("{code:02x?}"),
                rip = format_args!("{:#x}", before.rip),
                "an instruction that KVM refuses is executed by the software CPU"
            );
        }
        state::step(fd, &before, &after)?;
        Ok(exit)
    }
}
