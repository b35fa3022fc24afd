//! Far jumps, calls and returns, call gates, and IRET, all from ring 3.

use super::super::Program;
use super::super::world::{GATE_USER, sel};
use crate::arch::x86_64::{rflags, vector};

pub(super) fn programs() -> Vec<Program> {
    let mut all = known();
    all.extend(far());
    all.extend(returns());
    all
}

const FLAGS: u64 = rflags::FIXED | rflags::IF;
const NOWHERE: u64 = 0x8000_0000_0000;

/// The frame of an IRETQ to the instruction behind it.
fn iretq(name: &str, change: impl Fn(&mut [u64; 5]) + 'static) -> Program {
    Program::new(format!("iretq: {name}"), &[0x48, 0xcf]).with(move |s| {
        let mut frame = [s.state.rip + 2, 0x33, FLAGS, s.state.gpr[4] + 0x100, 0x2b];
        change(&mut frame);
        s.push(8, &frame);
    })
}

/// The frame of an IRETD in 64-bit code (five words) or 32-bit code (three).
fn iretd(name: &str, bits: u32, change: impl Fn(&mut [u64; 5]) + 'static) -> Program {
    let program = Program::new(format!("iretd: {name}, {bits}-bit"), &[0xcf]);
    let (cs, words) = if bits == 64 { (0x33, 5) } else { (0x23, 3) };
    Program { bits, ..program }.with(move |s| {
        let mut frame = [s.state.rip + 1, cs, FLAGS, s.state.gpr[4] + 0x100, 0x2b];
        change(&mut frame);
        s.push(4, &frame[..words]);
    })
}

fn known() -> Vec<Program> {
    let every = rflags::STATUS | rflags::DF | rflags::NT | rflags::AC | rflags::ID;
    let system = rflags::IOPL | rflags::VIF | rflags::VIP;
    let gp = |q: Program, error: u32| q.code(vector::GP, error);
    let mut all = vec![
        iretq("same privilege", |_| {}).ends(),
        iretq("to 32-bit code", |f| f[1] = 0x23).ends(),
        iretq("all flags", move |f| f[2] |= every).ends(),
        iretq("flags of the system", move |f| f[2] |= system).ends(),
        iretq("no flags", |f| f[2] = 0).ends(),
        iretq("no flags, IOPL 3", |f| f[2] = 0).flags(rflags::IOPL).ends(),
        iretq("RF", |f| f[2] |= rflags::RF).ends(),
        iretq("VM", |f| f[2] |= rflags::VM).ends(),
        gp(iretq("NT", |_| {}).flags(rflags::NT), 0),
        gp(iretq("to the kernel", |f| f[1] = 0x10), 0x10),
        gp(iretq("to the kernel, RPL 3", |f| f[1] = 0x13), 0x10),
        gp(iretq("null CS", |f| f[1] = 0), 0),
        gp(iretq("null CS, RPL 3", |f| f[1] = 3), 0),
        gp(iretq("data as CS", |f| f[1] = 0x2b), 0x28),
        gp(iretq("CS beyond the limit", |f| f[1] = (sel::BEYOND | 3).into()), sel::BEYOND.into()),
        gp(iretq("CS with L and D", |f| f[1] = (sel::LONG_AND_BIG | 3).into()), sel::LONG_AND_BIG.into()),
        iretq("absent CS", |f| f[1] = (sel::ABSENT_CODE | 3).into())
            .code(vector::NP, sel::ABSENT_CODE.into()),
        iretq("conforming CS", |f| f[1] = (sel::CONFORMING_3 | 3).into()).ends(),
        iretq("CS of the LDT", |f| f[1] = 0x0f).ends(),
        iretq("fresh CS", |f| f[1] = (sel::FRESH_CODE | 3).into()).ends(),
        gp(iretq("null SS", |f| f[4] = 0), 0),
        gp(iretq("null SS, RPL 3", |f| f[4] = 3), 0),
        gp(iretq("kernel's SS", |f| f[4] = 0x18), 0x18),
        gp(iretq("SS with RPL 0", |f| f[4] = 0x28), 0x28),
        gp(iretq("read-only SS", |f| f[4] = (sel::READ_ONLY | 3).into()), sel::READ_ONLY.into()),
        gp(iretq("code as SS", |f| f[4] = 0x33), 0x30),
        iretq("absent SS", |f| f[4] = (sel::ABSENT_DATA | 3).into())
            .code(vector::SS, sel::ABSENT_DATA.into()),
        gp(iretq("non-canonical RIP", |f| f[0] = NOWHERE), 0),
        gp(iretq("bad CS and bad SS", |f| (f[1], f[4]) = (0x10, 0)), 0x10),
        iretq("non-canonical RSP", |f| f[3] = NOWHERE).ends(),
        iretq("high RIP to 32-bit code", |f| {
            f[0] |= 0x5_0000_0000;
            f[1] = 0x23;
        })
        .ends(),
    ];
    for bits in [64, 32] {
        all.extend([
            iretd("same privilege", bits, |_| {}).ends(),
            iretd("all flags", bits, move |f| f[2] |= every).ends(),
            iretd("flags of the system", bits, move |f| f[2] |= system).ends(),
            gp(iretd("NT", bits, |_| {}).flags(rflags::NT), 0),
            gp(iretd("null CS", bits, |f| f[1] = 0), 0),
            gp(iretd("to the kernel", bits, |f| f[1] = 0x08), 0x08),
            iretd("to 64-bit code", bits, |f| f[1] = 0x33).ends(),
            iretd("absent CS", bits, |f| f[1] = (sel::ABSENT_CODE | 3).into())
                .code(vector::NP, sel::ABSENT_CODE.into()),
        ]);
    }
    let selector = |q: Program, selector: u16| far_pointer(q, selector, 3);
    let jump =
        |name: &str, to: u16| selector(Program::new(format!("far jmp: {name}"), &[0xff, 0x2b, 0xcc]), to);
    let call =
        |name: &str, to: u16| selector(Program::new(format!("far call: {name}"), &[0xff, 0x1b, 0xcc]), to);
    all.extend([
        jump("user code", 0x33).ends(),
        jump("32-bit code", 0x23).ends(),
        jump("the LDT's code", 0x0f).ends(),
        jump("conforming code", sel::CONFORMING_3 | 3).ends(),
        gp(jump("null", 0), 0),
        gp(jump("the kernel", 0x10), 0x10),
        gp(jump("data", 0x2b), 0x28),
        gp(jump("beyond the limit", sel::BEYOND | 3), sel::BEYOND.into()),
        gp(jump("a TSS", sel::TSS_3 | 3), sel::TSS_3.into()),
        gp(jump("a closed gate", sel::GATE_DPL_0 | 3), sel::GATE_DPL_0.into()),
        gp(jump("a gate inwards", sel::GATE | 3), 0x10),
        gp(jump("an interrupt gate", sel::INTERRUPT_GATE | 3), sel::INTERRUPT_GATE.into()),
        jump("absent code", sel::ABSENT_CODE | 3).code(vector::NP, sel::ABSENT_CODE.into()),
        jump("an absent gate", sel::GATE_ABSENT | 3).code(vector::NP, sel::GATE_ABSENT.into()),
        call("user code", 0x33).ends(),
        call("32-bit code", 0x23).ends(),
        gp(call("null", 0), 0),
        gp(call("the kernel", 0x10), 0x10),
        call("absent code", sel::ABSENT_CODE | 3).code(vector::NP, sel::ABSENT_CODE.into()),
        call("a gate inwards", sel::GATE | 3).raises(0x3f),
        gp(call("a closed gate", sel::GATE_DPL_0 | 3), sel::GATE_DPL_0.into()),
        gp(call("a gate to 32-bit code", sel::GATE_TO_32 | 3), 0x20),
        call("an absent gate", sel::GATE_ABSENT | 3).code(vector::NP, sel::GATE_ABSENT.into()),
        // The HLTs at the gate's target are not the program's own.
        call("a gate outwards", sel::GATE_TO_USER | 3).code(vector::GP, 0),
        jump("a gate outwards", sel::GATE_TO_USER | 3).code(vector::GP, 0),
    ]);
    all.push(Program::new("a gate's target", &[]).with(|s| s.state.rip = GATE_USER).ends());
    all
}

/// A far pointer at RBX to `skip` bytes behind the program's start.
fn far_pointer(program: Program, selector: u16, skip: u64) -> Program {
    program.with(move |s| {
        let to = (s.state.rip + skip) as u32;
        s.memory.push((s.state.gpr[3], [to.to_le_bytes().as_slice(), &selector.to_le_bytes()].concat()));
    })
}

fn selectors() -> impl Iterator<Item = u16> {
    sel::ALL.into_iter().chain(sel::LOCAL).chain([sel::BEYOND]).flat_map(|s| [s, s | 3])
}

/// Jumps, calls and returns to every selector.
fn far() -> Vec<Program> {
    let mut all = Vec::new();
    for selector in selectors() {
        let name = |what: &str| format!("{what} to {selector:#x}");
        // jmp and call through [rbx]; the INT3 behind is jumped over
        all.push(far_pointer(Program::new(name("jmp far"), &[0xff, 0x2b, 0xcc]), selector, 3));
        all.push(far_pointer(Program::new(name("call far"), &[0xff, 0x1b, 0xcc]), selector, 3));
        all.push(far_pointer(Program::compat(name("32-bit jmp far"), &[0xff, 0x2b, 0xcc]), selector, 3));
        all.push(Program::new(name("retf"), &[0xcb, 0xcc]).with(move |s| {
            let rip = s.state.rip + 2;
            s.push(4, &[rip, selector.into()]);
        }));
        all.push(Program::new(name("retfq 16"), &[0x48, 0xca, 16, 0, 0xcc]).with(move |s| {
            let rip = s.state.rip + 5;
            s.push(8, &[rip, selector.into()]);
        }));
    }
    all
}

/// IRET to every selector as CS and as SS.
fn returns() -> Vec<Program> {
    let mut all = Vec::new();
    for selector in selectors() {
        all.push(iretq(&format!("CS {selector:#x}"), move |f| f[1] = selector.into()));
        all.push(iretq(&format!("SS {selector:#x}"), move |f| f[4] = selector.into()));
        all.push(iretd(&format!("CS {selector:#x}"), 32, move |f| f[1] = selector.into()));
    }
    all
}
