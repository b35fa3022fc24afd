//! What the backends cost by themselves, without an operating system: making a machine, and a guest's access to a port
//! with its way back. For KVM also what the probe found.

use std::sync::Arc;
use std::time::Instant;

use cc::hypervisor::{CpuModel, HypervisorError, Vm, VmOptions, probe, soft::SoftVm};
use cc::machine::bare::{BareMetal, Image};
use cc::machine::{Backend, Ending, Platform};
use cc::memory::GuestRam;
use cc::sys::clock::Clock;
use cc::{Instance, Source};

use crate::{Report, Result, expect, median, milliseconds};

pub(super) const NAMES: [&str; 7] = [
    "soft.vm_create_ms",
    "soft.exit_us",
    "kvm.vm_create_ms",
    "kvm.exit_us",
    "kvm.probe_ms",
    "kvm.kernel_mips",
    "kvm.restore.first_output_ms",
];

/// Accesses to the port.
const EXITS: u32 = 20_000;
const ROUNDS: usize = 9;
/// RAM of the machines that are made.
const MEMORY: u64 = 512 << 20;

pub(super) fn measure(report: &mut Report) -> Result<()> {
    let options = VmOptions { model: CpuModel::Minimal, ..VmOptions::default() };
    let soft = |ram, clock| Ok(Box::new(SoftVm::new(ram, clock, 1, options.model)) as Box<dyn Vm>);
    report.add("soft.vm_create_ms", creation(soft)?, "ms");
    report.add("soft.exit_us", exit(Platform::default())?, "µs");
    match probe::kvm() {
        Err(why) => report.note(&format!("kvm is left out: {why}")),
        Ok(_) => {
            let kvm = |ram, clock| cc::hypervisor::kvm_vm(ram, clock, 1, options);
            report.add("kvm.vm_create_ms", creation(kvm)?, "ms");
            report.add("kvm.exit_us", exit(Platform { backend: Backend::Kvm, options })?, "µs");
            let begin = Instant::now();
            let verdict = probe::kvm_anew()?;
            report.add("kvm.probe_ms", milliseconds(begin.elapsed()), "ms");
            let rate = verdict.figures().kernel_instructions_per_s;
            report.add("kvm.kernel_mips", rate as f64 / 1e6, "M/s");
            report.note(&format!("kvm: {verdict}"));
            if verdict.runs_linux() {
                report.add("kvm.restore.first_output_ms", first_output()?, "ms");
            }
        }
    }
    Ok(())
}

/// A machine with its memory and one vCPU, made and dropped.
fn creation(
    make: impl Fn(Arc<GuestRam>, Arc<Clock>) -> std::result::Result<Box<dyn Vm>, HypervisorError>,
) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let vm = make(GuestRam::new(MEMORY)?, Arc::new(Clock::new()))?;
        drop(vm.create_vcpu(0, None)?);
        drop(vm);
        times.push(milliseconds(begin.elapsed()));
    }
    Ok(median(times))
}

/// From the snapshot of a machine on the software CPU to the output of a command on KVM.
fn first_output() -> Result<f64> {
    let source = Source::busybox()?;
    let machine = Instance::builder(&source).backend(Backend::Soft).cpu_model(CpuModel::Minimal).start()?;
    let snapshot = machine.snapshot()?;
    drop(machine);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let machine = Instance::builder(&snapshot).backend(Backend::Kvm).start()?;
        expect(machine.command("echo").arg("ready").output()?.stdout, b"ready\n")?;
        times.push(milliseconds(begin.elapsed()));
    }
    Ok(median(times))
}

/// Microseconds of one `out`, the loop's own instructions included.
fn exit(platform: Platform) -> Result<f64> {
    let [a, b, c, d] = EXITS.to_le_bytes();
    // mov ecx, EXITS; l: out 0x80, al; dec ecx; jnz l; mov dx, 0xcf9; mov al, 6; out dx, al; hlt
    let program =
        [0xb9, a, b, c, d, 0xe6, 0x80, 0xff, 0xc9, 0x75, 0xfa, 0x66, 0xba, 0xf9, 0x0c, 0xb0, 6, 0xee, 0xf4];
    let run = |image: &[u8]| -> Result<f64> {
        let machine = BareMetal::new(Image::flat(0x10_0000, image)).platform(platform);
        let begin = Instant::now();
        let machine = machine.start()?;
        let ending = machine.wait(None);
        let took = begin.elapsed();
        match ending {
            Some(Ending::Reset) => Ok(milliseconds(took) * 1000.0),
            other => Err(format!("the program ended with {other:?}").into()),
        }
    };
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        // What a machine takes that only ends.
        let without = run(&program[11..])?;
        times.push((run(&program)? - without) / f64::from(EXITS));
    }
    Ok(median(times))
}
