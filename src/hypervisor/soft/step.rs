//! One instruction at a time, for another backend: state in, state out.

use std::sync::Arc;

use iced_x86::{
    CpuidFeature, Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, OpAccess, UsedMemory,
};
use vm_memory::{Bytes, GuestAddress};

use super::cpu::{Access, Setup};
use super::run::SoftVcpu;
use crate::arch::x86_64::VcpuState;
use crate::hypervisor::model::Identity;
use crate::hypervisor::{Exit, ExitIo, HypervisorError, Vcpu};
use crate::memory::GuestRam;
use crate::sys::clock::Clock;

/// A processor that executes single instructions. Keeps nothing between them: the guest runs elsewhere
/// meanwhile, and changes its code and page tables without a word.
pub(in crate::hypervisor) struct Stepper {
    vcpu: SoftVcpu,
    ram: Arc<GuestRam>,
    info: InstructionInfoFactory,
}

/// Most instructions that are executed for one that was refused: bounds the time between two looks at events.
const MOST: u32 = 4096;

/// Whether memory may be changed by it.
fn stores(used: &UsedMemory) -> bool {
    !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
}

impl Stepper {
    pub(in crate::hypervisor) fn new(
        identity: Identity,
        ram: Arc<GuestRam>,
        clock: Arc<Clock>,
    ) -> Result<Self, HypervisorError> {
        let Identity { model, id, cpus, .. } = identity;
        let fellows = Arc::default();
        let vcpu = SoftVcpu::new(Setup { id, cpus, model, ram: ram.clone(), clock, apic: None, fellows })?;
        Ok(Self { vcpu, ram, info: InstructionInfoFactory::new() })
    }

    /// Executes the instruction at `state`'s instruction pointer, or delivers what it raises. Returns how
    /// that left the guest, if it did.
    pub(in crate::hypervisor) fn step(
        &mut self,
        state: &mut VcpuState,
        io: &dyn ExitIo,
    ) -> Result<Option<Exit>, HypervisorError> {
        self.step_with(state, None, io)
    }

    /// The same, and then what follows, up to the first instruction that may change more than registers: emulators that
    /// refuse one SSE instruction refuse the next. Nothing but an SSE or x87 instruction stores to memory, so no page table
    /// changes behind the back of a hypervisor that keeps copies of them.
    pub(in crate::hypervisor) fn step_on(
        &mut self,
        state: &mut VcpuState,
        io: &dyn ExitIo,
    ) -> Result<Option<Exit>, HypervisorError> {
        let beyond = self.enter(state)?;
        let mut exit = self.vcpu.step(io, None);
        for _ in 0..MOST {
            if exit.is_some() || !self.may_go_on() {
                break;
            }
            exit = self.vcpu.step(io, None);
        }
        *state = self.vcpu.state()?;
        state.cr4 |= beyond;
        Ok(exit)
    }

    /// Whether the next instruction only reads, computes and branches, and is not a program's, which no hypervisor
    /// emulates.
    fn may_go_on(&mut self) -> bool {
        let cpu = &mut self.vcpu.cpu;
        if cpu.cpl == 3 {
            return false;
        }
        let Ok(gpa) = cpu.translate(cpu.rip, Access::Execute) else { return false };
        let mut code = [0; 15];
        let there = code.len().min(4096 - (gpa & 4095) as usize);
        if self.ram.memory().read_slice(&mut code[..there], GuestAddress(gpa)).is_err() {
            return false;
        }
        let bitness = if cpu.long { 64 } else { 32 };
        let next = Decoder::new(bitness, &code[..there], DecoderOptions::NONE).decode();
        let harmless = !next.is_invalid()
            && !next.is_privileged()
            && !next.is_string_instruction()
            && matches!(
                next.flow_control(),
                FlowControl::Next | FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
            );
        let vector = |feature: &CpuidFeature| {
            use CpuidFeature::*;
            matches!(feature, FPU | MMX | SSE | SSE2 | SSE3 | SSSE3 | SSE4_1 | SSE4_2 | AES | PCLMULQDQ)
        };
        let general = next
            .cpuid_features()
            .iter()
            .all(|f| matches!(f, CpuidFeature::INTEL8086 | CpuidFeature::INTEL386 | CpuidFeature::X64));
        harmless
            && (next.cpuid_features().iter().any(vector)
                || general && !self.info.info(&next).used_memory().iter().any(stores))
    }

    /// The same as [`Stepper::step`] if `code` began at the instruction pointer.
    pub(in crate::hypervisor) fn step_code(
        &mut self,
        state: &mut VcpuState,
        code: &[u8],
        io: &dyn ExitIo,
    ) -> Result<Option<Exit>, HypervisorError> {
        self.step_with(state, Some(code), io)
    }

    fn step_with(
        &mut self,
        state: &mut VcpuState,
        code: Option<&[u8]>,
        io: &dyn ExitIo,
    ) -> Result<Option<Exit>, HypervisorError> {
        let beyond = self.enter(state)?;
        let exit = self.vcpu.step(io, code);
        *state = self.vcpu.state()?;
        state.cr4 |= beyond;
        Ok(exit)
    }

    /// Reads as far as `state` may, without its guest noticing. Returns how many bytes of `data` were filled.
    pub(in crate::hypervisor) fn read(
        &mut self,
        state: &VcpuState,
        mut address: u64,
        data: &mut [u8],
    ) -> Result<usize, HypervisorError> {
        self.enter(&mut state.clone())?;
        let mut read = 0;
        while read < data.len() {
            let Ok(gpa) = self.vcpu.cpu.translate(address, Access::Read) else { break };
            let part = (data.len() - read).min(4096 - (gpa & 4095) as usize);
            if self.ram.memory().read_slice(&mut data[read..read + part], GuestAddress(gpa)).is_err() {
                break;
            }
            (read, address) = (read + part, address.wrapping_add(part as u64));
        }
        Ok(read)
    }

    /// The guest-physical address of the code at `address`, if `state` may execute it.
    pub(in crate::hypervisor) fn code_at(
        &mut self,
        state: &VcpuState,
        address: u64,
    ) -> Result<Option<u64>, HypervisorError> {
        self.enter(&mut state.clone())?;
        Ok(self.vcpu.cpu.translate(address, Access::Execute).ok())
    }

    /// Takes the state over. Returns the bits of CR4 that the processor does not know: a hypervisor may let its guest
    /// have more than the model.
    fn enter(&mut self, state: &mut VcpuState) -> Result<u64, HypervisorError> {
        self.vcpu.forget();
        let beyond = state.cr4 & !self.vcpu.cpu.model.cr4();
        state.cr4 &= !beyond;
        self.vcpu.set_state(state)?;
        Ok(beyond)
    }
}
