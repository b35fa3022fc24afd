//! What every backend must do alike, on small programs. One body for all: each test says on which
//! backends it ran; a backend that this host has not is named with the reason.

mod lapic;
mod programs;
mod state;
mod system_calls;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use iced_x86::code_asm::CodeAssembler;
use vm_memory::{Bytes, GuestAddress};

use crate::arch::x86_64::{DescriptorTable, Segment, VcpuState, gpr, rflags, seg};
use crate::hypervisor::flat::{self, CODE, STACK, entry};
use crate::hypervisor::{CpuModel, Exit, ExitIo, Vcpu, VcpuSignal, Vm, VmOptions, soft};
use crate::memory::GuestRam;
use crate::sys::clock::Clock;

/// A write to this port ends the program; the value is its result.
const END: u16 = 0xf4;
/// Device memory.
const DEVICE: u64 = 0xd000_0000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    Soft,
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    Kvm,
}

/// The backends of this host. Says once which they are.
fn backends() -> &'static [Backend] {
    static FOUND: OnceLock<Vec<Backend>> = OnceLock::new();
    FOUND.get_or_init(|| {
        #[allow(unused_mut)]
        let mut found = vec![Backend::Soft];
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        match super::kvm::System::open() {
            Ok(_) => found.push(Backend::Kvm),
            Err(e) => println!("NOT RUN on KVM: {e}"),
        }
        println!("backends: {found:?}");
        found
    })
}

/// Ports and device memory of a test program.
#[derive(Default)]
struct Recorder {
    signal: OnceLock<Arc<dyn VcpuSignal>>,
    ended: AtomicBool,
    /// What was written: port or address, and value.
    writes: Mutex<Vec<(u64, u64)>>,
}

impl Recorder {
    fn note(&self, at: u64, data: &[u8]) {
        let value = data.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b));
        self.writes.lock().unwrap().push((at, value));
    }
}

impl ExitIo for Recorder {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(port as u8);
    }
    fn port_write(&self, port: u16, data: &[u8]) {
        self.note(port.into(), data);
        if port == END {
            self.ended.store(true, Ordering::SeqCst);
            self.signal.get().unwrap().kick();
        }
    }
    fn mmio_read(&self, addr: u64, data: &mut [u8]) {
        let len = data.len();
        data.copy_from_slice(&(addr.wrapping_mul(0x0101_0101)).to_le_bytes()[..len]);
    }
    fn mmio_write(&self, addr: u64, data: &[u8]) {
        self.note(addr, data);
    }
}

/// A machine of one vCPU in the world of [`flat`], whose handlers end the program with their vector.
struct Machine {
    backend: Backend,
    ram: Arc<GuestRam>,
    clock: Arc<Clock>,
    vm: Box<dyn Vm>,
    vcpu: Box<dyn Vcpu>,
    state: VcpuState,
    io: Arc<Recorder>,
}

impl Machine {
    fn new(backend: Backend) -> Self {
        let ram = GuestRam::new(64 << 20).unwrap();
        Self::with_ram(backend, ram)
    }

    fn with_ram(backend: Backend, ram: Arc<GuestRam>) -> Self {
        Self::with(backend, ram, false)
    }

    fn with(backend: Backend, ram: Arc<GuestRam>, traps: bool) -> Self {
        let clock = Arc::new(Clock::new());
        let options = VmOptions { model: CpuModel::Minimal, traps, ..VmOptions::default() };
        let vm: Box<dyn Vm> = match backend {
            Backend::Soft => Box::new(soft::SoftVm::new(ram.clone(), clock.clone(), 1, options.model)),
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Backend::Kvm => {
                let system = super::kvm::System::open().unwrap();
                Box::new(super::kvm::KvmVm::new(system, ram.clone(), clock.clone(), 1, options).unwrap())
            }
        };
        let vcpu = vm.create_vcpu(0, None).unwrap();
        let io = Arc::new(Recorder::default());
        assert!(io.signal.set(vcpu.signal()).is_ok());
        lay_out(&ram);
        Self { backend, ram, clock, vm, vcpu, state: entry(), io }
    }

    fn assemble(&self, at: u64, program: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) {
        let mut a = CodeAssembler::new(64).unwrap();
        program(&mut a).unwrap();
        let code = a.assemble(at).unwrap();
        self.ram.memory().write_slice(&code, GuestAddress(at)).unwrap();
    }

    fn read_u64(&self, at: u64) -> u64 {
        self.ram.memory().read_obj(GuestAddress(at)).unwrap()
    }

    fn resume_time(&self) {
        self.clock.resume();
        self.vm.time_resumed();
    }

    /// Runs from `self.state` until the program ends; returns its result and the state then.
    fn run(&mut self) -> (u64, VcpuState) {
        self.vcpu.set_state(&self.state).unwrap();
        self.resume_time();
        assert_eq!(self.vcpu.run(&*self.io).unwrap(), Exit::Kicked);
        assert!(self.io.ended.swap(false, Ordering::SeqCst), "kicked by nobody");
        let state = self.vcpu.state().unwrap();
        // Whatever a program makes of the state, it can be saved and brought back.
        assert_eq!(crate::state::Vcpu::from(&state).try_into(), Ok(state.clone()));
        let (port, result) = *self.io.writes.lock().unwrap().last().unwrap();
        assert_eq!(port, u64::from(END));
        (result, state)
    }
}

/// Tables, and handlers that end the program with their vector.
fn lay_out(ram: &GuestRam) {
    flat::lay_out(ram, |vector| {
        // mov al, vector; out 0xf4, al; jmp $
        let mut code = [0x90; 16];
        code[..6].copy_from_slice(&[0xb0, vector, 0xe6, END as u8, 0xeb, 0xfe]);
        code
    })
    .unwrap();
}

/// At privilege 3.
fn user(state: &mut VcpuState) {
    state.seg[seg::CS] = Segment { selector: 0x23, base: 0, limit: u32::MAX, attributes: 0xa0fb };
    for s in [seg::SS, seg::DS, seg::ES] {
        state.seg[s] = Segment { selector: 0x1b, base: 0, limit: u32::MAX, attributes: 0xc0f3 };
    }
    // So that it may end itself.
    state.rflags |= rflags::IOPL;
}

/// Runs `test` on a machine of each backend.
fn on_each(test: impl Fn(&mut Machine)) {
    for &backend in backends() {
        println!("on {backend:?}");
        test(&mut Machine::new(backend));
    }
}
