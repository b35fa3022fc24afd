//! The tables on the software CPU and on KVM.

use std::collections::BTreeMap;

use super::super::quirks::Quirks;
use super::super::tests::{kvm_vcpu, on_kvm, soft_vcpu};
use super::{Expect, Program, Seen, World, kvm, programs};
use crate::arch::x86_64::vector;

/// The tables, or the programs whose names contain ORACLE_ONLY.
fn chosen() -> Vec<Program> {
    let mut all = programs::all();
    if let Ok(only) = std::env::var("ORACLE_ONLY") {
        all.retain(|p| p.name.contains(&only));
    }
    all
}

#[test]
fn the_software_cpu_raises_what_the_manual_says() {
    let mut world = World::new(soft_vcpu);
    let (mut checked, mut wrong) = (0, Vec::new());
    let mut seen = [0_u32; 256];
    for program in chosen() {
        let got = world.run(&program);
        seen[usize::from(got.vector)] += 1;
        let Some(expect) = program.expect else {
            if got.frame.is_empty() {
                wrong.push(format!("{}: {}", program.name, got.what()));
            }
            continue;
        };
        checked += 1;
        if !got.is(expect) {
            wrong.push(format!("{}: {} with CR2 {:#x}, not {expect:x?}", program.name, got.what(), got.cr2));
        }
    }
    println!("{checked} programs checked, {} wrong", wrong.len());
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    if std::env::var_os("ORACLE_ONLY").is_none() {
        use vector as v;
        for vector in
            [v::DE, v::DB, v::BP, v::OF, v::BR, v::UD, v::NM, v::NP, v::SS, v::GP, v::PF, v::MF, v::AC, v::XM]
        {
            assert_ne!(seen[usize::from(vector)], 0, "no program raises {vector}");
        }
    }
}

#[test]
fn kvm_and_the_software_cpu_see_the_same() {
    let Some((_, quirks)) = on_kvm() else { return };
    let (mut soft, mut host) = (World::new(soft_vcpu), World::new(|ram| kvm_vcpu(ram).unwrap()));
    let mut excused: BTreeMap<&str, u32> = BTreeMap::new();
    let (mut alike, mut wrong) = (0, Vec::new());
    for program in chosen() {
        let (ours, theirs) = (soft.run(&program), host.run(&program));
        let text = ours.differences(&theirs);
        if text.is_empty() {
            alike += 1;
        } else if let Some(why) = kvm::excuse(quirks, &program, &ours, &theirs) {
            *excused.entry(why).or_default() += 1;
        } else {
            wrong.push(format!("{}\n{text}", program.name));
        }
    }
    println!("{alike} programs end alike; left out: {excused:#?}");
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}

/// A single wrong bit of KVM's, wherever a handler can see it, is reported.
#[test]
fn differences_of_a_handler_are_noticed() {
    let mut world = World::new(soft_vcpu);
    let program = programs::all().into_iter().find(|p| p.name == "mov to a read-only page").unwrap();
    let right = world.run(&program);
    assert_eq!(right.differences(&world.run(&program)), "", "a program repeats itself");
    type Change = fn(&mut Seen);
    let changes: [(&str, Change); 15] = [
        ("vector", |s| s.vector ^= 1),
        ("vector", |s| s.error = s.error.map(|e| e ^ 1)),
        ("vector", |s| s.error = None),
        ("pushed rip", |s| s.frame[0] ^= 1),
        ("pushed cs", |s| s.frame[1] ^= 1),
        ("pushed rflags", |s| s.frame[2] ^= 1 << 16),
        ("pushed rsp", |s| s.frame[3] ^= 1 << 63),
        ("pushed ss", |s| s.frame[4] ^= 1),
        ("cr2", |s| s.cr2 ^= 1),
        ("dr6", |s| s.dr6 ^= 1 << 14),
        ("rflags", |s| s.flags ^= 1 << 9),
        ("r15", |s| s.gpr[15] ^= 1),
        ("gs", |s| s.seg[5].base ^= 1),
        ("fpu", |s| s.fpu.mxcsr ^= 1),
        ("memory", |s| *s.memory.last_mut().unwrap() ^= 1),
    ];
    for (name, change) in changes {
        let mut wrong = right.clone();
        change(&mut wrong);
        let text = right.differences(&wrong);
        assert!(text.starts_with(&format!("  {name}")), "a changed {name} gave {text:?}");
        assert_eq!(text.lines().count(), 1, "a changed {name} gave {text:?}");
        let excuse = kvm::excuse(Quirks::default(), &program, &right, &wrong);
        assert_eq!(excuse, None, "nothing is excused on a KVM without faults");
    }
    // And what the table wants is really asked for.
    let place = super::world::place::READ_ONLY + 0x120;
    assert!(right.is(Expect::Page(7, place)));
    for other in [
        Expect::End,
        Expect::Vector(vector::GP),
        Expect::Code(vector::PF, 5),
        Expect::Page(6, place),
        Expect::Page(7, place + 1),
    ] {
        assert!(!right.is(other), "{other:?}");
    }
}
