use super::*;
use crate::hypervisor::soft::SoftVm;
use crate::hypervisor::{CpuModel, LocalApic, Vcpu};

fn soft(ram: Arc<GuestRam>, clock: Arc<Clock>) -> Result<Box<dyn Vm>, HypervisorError> {
    Ok(Box::new(SoftVm::new(ram, clock, 1, CpuModel::Minimal)))
}

/// The pieces are right: the software CPU, which is checked against silicon, runs all of them.
#[test]
fn all_pieces_work_on_a_processor_that_has_everything() {
    let verdict = probe(soft).unwrap();
    assert_eq!(verdict.figures().refused, [""; 0]);
    assert!(verdict.figures().kernel_instructions_per_s > 1_000_000, "{verdict}");
}

#[test]
fn verdicts_follow_from_figures() {
    let figures = |rate, refused: &[&str]| Figures {
        kernel_instructions_per_s: rate,
        refused: refused.iter().map(|&s| s.to_owned()).collect(),
        took_us: 1,
    };
    let verdict = |rate, refused| Verdict::of(figures(rate, refused));
    assert_eq!(verdict(2_300_000_000, &[]).to_string(), "ring 0 runs on the processor (2.3 G instr/s)");
    assert!(verdict(2_300_000_000, &[]).is_native());
    let emulated = verdict(3_900_000, &["cmpxchg16b"]);
    assert_eq!(emulated.to_string(), "ring 0 is emulated (4 M instr/s, cmpxchg16b not supported)");
    assert!(!emulated.is_native() && matches!(emulated, Verdict::Emulated(_)));
    assert!(emulated.runs_linux() && !emulated.wants_traps());
    let emulated = verdict(3_900_000, &["cmpxchg16b", "system calls"]);
    assert!(emulated.runs_linux() && emulated.wants_traps());
    assert!(verdict(3_900_000, &["hiding CPU features"]).wants_traps());
    let broken = verdict(2_300_000_000, &["system calls"]);
    assert!(!broken.runs_linux() && !broken.wants_traps());
    assert!(matches!(verdict(2_300_000_000, &["int3"]), Verdict::Broken(_)));
    assert_eq!(verdict(0, &[]).to_string(), "it cannot run a kernel (a loop in ring 0 does not end)");
}

/// A machine whose processor stops at once.
struct Broken;

impl Vm for Broken {
    fn create_vcpu(
        &self,
        _id: u32,
        _apic: Option<Arc<dyn LocalApic>>,
    ) -> Result<Box<dyn Vcpu>, HypervisorError> {
        Err(HypervisorError::Unsupported("anything"))
    }
}

#[test]
fn a_hypervisor_that_makes_no_processor_is_an_error() {
    assert!(probe(|_, _| Ok(Box::new(Broken))).is_err());
}
