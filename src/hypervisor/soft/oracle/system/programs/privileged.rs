//! Instructions that need a privilege, and those that IOPL, the I/O permission bitmap or CR4 open to programs.

use super::super::Program;
use super::super::world::IO_MAP;
use crate::arch::x86_64::{cr4, rflags, vector};

pub(super) fn programs() -> Vec<Program> {
    let mut all = refused();
    all.extend(flags());
    all.extend(ports());
    all.extend(stores());
    all
}

fn refused() -> Vec<Program> {
    let list: [(&str, &[u8]); 33] = [
        ("hlt", &[0xf4]),
        ("clts", &[0x0f, 0x06]),
        ("invd", &[0x0f, 0x08]),
        ("wbinvd", &[0x0f, 0x09]),
        ("lgdt", &[0x0f, 0x01, 0x13]),
        ("lidt", &[0x0f, 0x01, 0x1b]),
        ("lldt", &[0x0f, 0x00, 0xd0]),
        ("lldt of memory", &[0x0f, 0x00, 0x13]),
        ("ltr", &[0x0f, 0x00, 0xd8]),
        ("lmsw", &[0x0f, 0x01, 0xf0]),
        ("lmsw of memory", &[0x0f, 0x01, 0x33]),
        ("invlpg", &[0x0f, 0x01, 0x3b]),
        ("swapgs", &[0x0f, 0x01, 0xf8]),
        ("mov from cr0", &[0x0f, 0x20, 0xc0]),
        ("mov from cr2", &[0x0f, 0x20, 0xd0]),
        ("mov from cr3", &[0x0f, 0x20, 0xd8]),
        ("mov from cr4", &[0x0f, 0x20, 0xe0]),
        ("mov from cr8", &[0x44, 0x0f, 0x20, 0xc0]),
        ("mov to cr0", &[0x0f, 0x22, 0xc0]),
        ("mov to cr2", &[0x0f, 0x22, 0xd0]),
        ("mov to cr3", &[0x0f, 0x22, 0xd8]),
        ("mov to cr4", &[0x0f, 0x22, 0xe0]),
        ("mov to cr8", &[0x44, 0x0f, 0x22, 0xc0]),
        ("mov from dr0", &[0x0f, 0x21, 0xc0]),
        ("mov from dr6", &[0x0f, 0x21, 0xf0]),
        ("mov from dr7", &[0x0f, 0x21, 0xf8]),
        ("mov to dr0", &[0x0f, 0x23, 0xc0]),
        ("mov to dr7", &[0x0f, 0x23, 0xf8]),
        ("rdmsr", &[0x0f, 0x32]),
        ("wrmsr", &[0x0f, 0x30]),
        ("sysretq", &[0x48, 0x0f, 0x07]),
        ("sysretd", &[0x0f, 0x07]),
        ("rdpmc", &[0x0f, 0x33]),
    ];
    let mut all: Vec<Program> = list
        .iter()
        .map(|(name, code)| Program::new(format!("refused: {name}"), code).code(vector::GP, 0))
        .collect();
    // The privilege is looked at before the operand.
    let bad = 0x8000_0000_0000;
    all.extend([
        Program::new("refused: lgdt of nowhere", &[0x0f, 0x01, 0x13]).at(bad).code(vector::GP, 0),
        Program::new("refused: invlpg of nowhere", &[0x0f, 0x01, 0x3b]).at(bad).code(vector::GP, 0),
        Program::compat("refused: hlt, 32-bit", &[0xf4]).code(vector::GP, 0),
        Program::compat("refused: mov to cr0, 32-bit", &[0x0f, 0x22, 0xc0]).code(vector::GP, 0),
        Program::new("rdtsc", &[0x0f, 0x31]).open(&[0, 2]).ends(),
        Program::new("rdtsc, TSD", &[0x0f, 0x31]).with(|s| s.state.cr4 |= cr4::TSD).code(vector::GP, 0),
    ]);
    all
}

fn flags() -> Vec<Program> {
    let p = Program::new;
    let io = rflags::IOPL;
    let every =
        rflags::STATUS | rflags::DF | rflags::NT | rflags::RF | rflags::AC | rflags::ID | rflags::IOPL;
    let set = every | rflags::VM | rflags::VIF | rflags::VIP | rflags::FIXED;
    let pop = move |size: usize, value: u64| move |s: &mut super::super::Setup| s.push(size, &[value]);
    vec![
        p("cli", &[0xfa]).code(vector::GP, 0),
        p("sti", &[0xfb]).code(vector::GP, 0),
        p("cli, IOPL 3", &[0xfa]).flags(io).ends(),
        p("sti, IOPL 3", &[0xfb]).flags(io).ends(),
        p("cli, IOPL 2", &[0xfa]).flags(2 << 12).code(vector::GP, 0),
        p("cli and sti, IOPL 3", &[0xfa, 0x9c, 0xfb]).flags(io).ends(),
        p("pushfq", &[0x9c]).flags(rflags::AC | rflags::NT | rflags::ID | rflags::DF).ends(),
        p("pushfq, IOPL 3", &[0x9c]).flags(io).ends(),
        p("pushfw", &[0x66, 0x9c]).flags(rflags::NT).ends(),
        p("popfq of all", &[0x9d]).with(pop(8, set)).ends(),
        p("popfq of none", &[0x9d]).with(pop(8, 0)).ends(),
        p("popfq of all, IOPL 3", &[0x9d]).flags(io).with(pop(8, set)).ends(),
        p("popfq of none, IOPL 3", &[0x9d]).flags(io).with(pop(8, 0)).ends(),
        p("popfw of all", &[0x66, 0x9d]).with(pop(2, set & !rflags::TF)).ends(),
        p("popfw of none, IOPL 3", &[0x66, 0x9d]).flags(io).with(pop(2, 0)).ends(),
        Program::compat("popfd of all", &[0x9d]).with(pop(4, set)).ends(),
        Program::compat("popfd of none, IOPL 3", &[0x9d]).flags(io).with(pop(4, 0)).ends(),
        Program::compat("cli, 32-bit", &[0xfa]).code(vector::GP, 0),
        Program::compat("cli, 32-bit, IOPL 3", &[0xfa]).flags(io).ends(),
    ]
}

fn ports() -> Vec<Program> {
    let p =
        |name: &str, code: &[u8]| Program::new(format!("port: {name}"), code).with(|s| s.state.gpr[2] = 0x80);
    let open = |at: u64, bits: u8| move |s: &mut super::super::Setup| s.tss.push((IO_MAP + at, vec![bits]));
    let port = |n: u64| move |s: &mut super::super::Setup| s.state.gpr[2] = n;
    let string = |s: &mut super::super::Setup| s.state.gpr[1] = 2;
    vec![
        p("in al", &[0xec]).code(vector::GP, 0),
        p("in al, imm", &[0xe4, 0x80]).code(vector::GP, 0),
        p("out al", &[0xee]).code(vector::GP, 0),
        p("insb", &[0x6c]).code(vector::GP, 0),
        p("rep outsb", &[0xf3, 0x6e]).with(string).code(vector::GP, 0),
        p("in al, IOPL 3", &[0xec]).flags(rflags::IOPL).ends(),
        p("in eax, IOPL 3", &[0xed]).flags(rflags::IOPL).ends(),
        p("out ax, IOPL 3", &[0x66, 0xef]).flags(rflags::IOPL).ends(),
        p("insw, IOPL 3", &[0x66, 0x6d]).flags(rflags::IOPL).ends(),
        p("rep outsd, IOPL 3", &[0xf3, 0x6f]).flags(rflags::IOPL).with(string).ends(),
        p("in al, open in the map", &[0xec]).with(open(0x10, 0xfe)).ends(),
        p("in al, the next is open", &[0xec]).with(open(0x10, 0xfd)).code(vector::GP, 0),
        p("in ax, one of two is open", &[0x66, 0xed]).with(open(0x10, 0xfe)).code(vector::GP, 0),
        p("in ax, both are open", &[0x66, 0xed]).with(open(0x10, 0xfc)).ends(),
        p("in eax across bytes of the map", &[0xed])
            .with(port(0x86))
            .with(open(0x10, 0x3f))
            .with(open(0x11, 0xfc))
            .ends(),
        p("in eax across, half is open", &[0xed]).with(port(0x86)).with(open(0x10, 0x3f)).code(vector::GP, 0),
        p("outsb, open", &[0x6e]).with(open(0x10, 0xfe)).ends(),
        p("the map's last port", &[0xec]).with(port(0x3ff)).with(open(0x7f, 0x7f)).ends(),
        p("the map's last port, beyond by half", &[0x66, 0xed])
            .with(port(0x3ff))
            .with(open(0x7f, 0x7f))
            .code(vector::GP, 0),
        p("beyond the map", &[0xec]).with(port(0x408)).code(vector::GP, 0),
        p("a map beyond the limit", &[0xec]).with(|s| s.tss.push((0x66, vec![0, 0x10]))).code(vector::GP, 0),
        Program::compat("port: in al, 32-bit", &[0xec]).code(vector::GP, 0),
        // The refusal goes before the page fault.
        p("insb to an absent page", &[0x6c])
            .with(|s| s.state.gpr[7] = super::super::world::place::ABSENT)
            .code(vector::GP, 0),
    ]
}

/// What programs may ask without UMIP, which no processor model has.
fn stores() -> Vec<Program> {
    let p = Program::new;
    let mut all = vec![
        p("sgdt", &[0x0f, 0x01, 0x03]).ends(),
        p("sidt", &[0x0f, 0x01, 0x0b]).ends(),
        p("sgdt to an absent page", &[0x0f, 0x01, 0x03])
            .at(super::super::world::place::ABSENT)
            .page(6, super::super::world::place::ABSENT),
        p("sgdt of a register", &[0x0f, 0x01, 0xc0]).raises(vector::UD),
        Program::compat("sgdt, 32-bit", &[0x0f, 0x01, 0x03]).ends(),
        Program::compat("sldt, 32-bit", &[0x0f, 0x00, 0xc0]).ends(),
    ];
    for (name, modrm) in [("sldt", 0xc0_u8), ("str", 0xc8)] {
        all.push(p(name, &[0x0f, 0x00, modrm]).rax(u64::MAX).ends());
        all.push(Program::new(format!("{name} ax"), &[0x66, 0x0f, 0x00, modrm]).rax(u64::MAX).ends());
        all.push(Program::new(format!("{name} rax"), &[0x48, 0x0f, 0x00, modrm]).rax(u64::MAX).ends());
        all.push(Program::new(format!("{name} of memory"), &[0x0f, 0x00, modrm & 0x3f | 3]).ends());
    }
    all.push(p("smsw eax", &[0x0f, 0x01, 0xe0]).rax(u64::MAX).ends());
    all.push(p("smsw ax", &[0x66, 0x0f, 0x01, 0xe0]).rax(u64::MAX).ends());
    all.push(p("smsw rax", &[0x48, 0x0f, 0x01, 0xe0]).rax(u64::MAX).ends());
    all.push(p("smsw of memory", &[0x0f, 0x01, 0x23]).ends());
    let base = |q: Program| q.with(|s| s.state.cr4 |= cr4::FSGSBASE).rax(0x1234_5678_9abc);
    all.push(base(p("rdgsbase", &[0xf3, 0x48, 0x0f, 0xae, 0xc8])).ends());
    all.push(base(p("rdgsbase of 32 bits", &[0xf3, 0x0f, 0xae, 0xc8])).ends());
    all.push(base(p("wrfsbase", &[0xf3, 0x48, 0x0f, 0xae, 0xd0])).ends());
    all.push(base(p("wrgsbase of 32 bits", &[0xf3, 0x0f, 0xae, 0xd8])).ends());
    all.push(
        base(p("wrgsbase, non-canonical", &[0xf3, 0x48, 0x0f, 0xae, 0xd8])).rax(1 << 60).code(vector::GP, 0),
    );
    all
}
