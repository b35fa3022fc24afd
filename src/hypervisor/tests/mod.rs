//! What every backend must do alike, on small programs. One body for all: each test says on which
//! backends it ran; a backend that this host has not is named with the reason.

mod lapic;
mod programs;
mod state;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use iced_x86::code_asm::CodeAssembler;
use vm_memory::{Bytes, GuestAddress};

use crate::arch::x86_64::{DescriptorTable, Segment, VcpuState, cr0, cr4, efer, gpr, rflags, seg};
use crate::hypervisor::{CpuModel, Exit, ExitIo, Vcpu, VcpuSignal, Vm, VmOptions, soft};
use crate::memory::GuestRam;
use crate::sys::clock::Clock;

const CODE: u64 = 0x10_0000;
const STACK: u64 = 0x20_0000;
const IDT: u64 = 0x5000;
const GDT: u64 = 0x6000;
const TSS: u64 = 0x7000;
/// Handler of vector `v`, at `HANDLERS + 16 * v`: `mov al, v; out 0xf4, al; jmp $`.
const HANDLERS: u64 = 0x8000;
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

/// A machine of one vCPU in 64-bit mode at privilege 0, the first GiB mapped one to one, with a GDT
/// (0x08 code, 0x10 data, 0x1b user data, 0x23 user code, 0x28 TSS) and an IDT whose handlers end the
/// program with their vector.
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
        let clock = Arc::new(Clock::new());
        let options = VmOptions { model: CpuModel::Minimal, ..VmOptions::default() };
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

/// Tables and handlers.
fn lay_out(ram: &GuestRam) {
    let put = |at: u64, v: u64| ram.memory().write_obj(v, GuestAddress(at)).unwrap();
    put(0x1000, 0x2000 | 7);
    put(0x2000, 0x3000 | 7);
    // The device's GiB in 2 MiB pages too.
    put(0x2018, 0x4000 | 7);
    for i in 0..512u64 {
        put(0x3000 + i * 8, i << 21 | 0x87);
        put(0x4000 + i * 8, 3 << 30 | i << 21 | 0x83);
    }
    put(GDT + 0x08, 0x00af_9b00_0000_ffff);
    put(GDT + 0x10, 0x00cf_9300_0000_ffff);
    put(GDT + 0x18, 0x00cf_f300_0000_ffff);
    put(GDT + 0x20, 0x00af_fb00_0000_ffff);
    put(GDT + 0x28, 0x0000_8b00_0000_0067 | TSS << 16);
    put(GDT + 0x30, 0);
    put(TSS + 4, STACK - 0x1000);
    for v in 0..256u64 {
        let handler = HANDLERS + 16 * v;
        put(IDT + 16 * v, handler & 0xffff | 0x08 << 16 | 0x8e00 << 32);
        put(IDT + 16 * v + 8, 0);
        // mov al, v; out 0xf4, al; jmp $
        put(handler, 0x00fe_eb_f4_e6_00_b0 | v << 8);
    }
}

fn entry() -> VcpuState {
    let ordinary =
        |selector: u16, attributes: u16| Segment { selector, base: 0, limit: u32::MAX, attributes };
    let mut state = VcpuState {
        rip: CODE,
        rflags: rflags::FIXED,
        cr0: cr0::PE | cr0::PG | cr0::ET | cr0::NE | cr0::WP,
        cr3: 0x1000,
        cr4: cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT,
        xcr0: 1,
        efer: efer::LME | efer::LMA | efer::NXE | efer::SCE,
        dr: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
        gdt: DescriptorTable { base: GDT, limit: 0x37 },
        idt: DescriptorTable { base: IDT, limit: 0xfff },
        ..VcpuState::default()
    };
    for s in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        state.seg[s] = ordinary(0x10, 0xc093);
    }
    state.seg[seg::CS] = ordinary(0x08, 0xa09b);
    state.tr = Segment { selector: 0x28, base: TSS, limit: 0x67, attributes: 0x8b };
    state.msrs.pat = 0x0007_0406_0007_0406;
    state.gpr[gpr::RSP] = STACK;
    state
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
