//! Loads of segment registers with every selector, and what LAR, LSL, VERR and VERW say of them.

use super::super::Program;
use super::super::world::sel;
use crate::arch::x86_64::vector;

pub(super) fn programs() -> Vec<Program> {
    let mut all = known();
    all.extend(loads());
    all.extend(questions());
    all
}

/// mov REGISTER, ax
const MOVES: [(&str, u8); 5] = [("es", 0xc0), ("ss", 0xd0), ("ds", 0xd8), ("fs", 0xe0), ("gs", 0xe8)];

/// Those whose result is written down.
fn known() -> Vec<Program> {
    let data = |name: &str, selector: u16| {
        Program::new(format!("mov ds: {name}"), &[0x8e, 0xd8]).rax(selector.into())
    };
    let stack = |name: &str, selector: u16| {
        Program::new(format!("mov ss: {name}"), &[0x8e, 0xd0]).rax(selector.into())
    };
    let gp = |q: Program, error: u16| q.code(vector::GP, error.into());
    vec![
        data("null", 0).ends(),
        data("null with an RPL", 3).ends(),
        data("user data", 0x2b).ends(),
        data("user code that can be read", 0x33).ends(),
        data("read-only data", sel::READ_ONLY | 3).ends(),
        data("conforming code of the kernel", sel::CONFORMING_0 | 3).ends(),
        data("fresh data", sel::FRESH_DATA | 3).ends(),
        data("data with a base", sel::BASED | 3).ends(),
        data("the LDT's data", 0x07).ends(),
        gp(data("kernel data", sel::KERNEL_DATA), sel::KERNEL_DATA),
        gp(data("kernel data, RPL 3", sel::KERNEL_DATA | 3), sel::KERNEL_DATA),
        gp(data("data of privilege 1", sel::DATA_1 | 3), sel::DATA_1),
        gp(data("code that cannot be read", sel::EXECUTE_ONLY | 3), sel::EXECUTE_ONLY),
        gp(data("a TSS", sel::TSS | 3), sel::TSS),
        gp(data("an LDT", sel::LDT), sel::LDT),
        gp(data("a call gate", sel::GATE | 3), sel::GATE),
        gp(data("an empty entry", sel::EMPTY | 3), sel::EMPTY),
        gp(data("beyond the limit", sel::BEYOND | 3), sel::BEYOND),
        gp(data("far beyond the limit", 0xfffb), 0xfff8),
        gp(data("the LDT's kernel data", 0x1f), 0x1c),
        gp(data("beyond the LDT", 0x27), 0x24),
        data("absent data", sel::ABSENT_DATA | 3).code(vector::NP, sel::ABSENT_DATA.into()),
        data("the LDT's absent data", 0x17).code(vector::NP, 0x14),
        gp(stack("null", 0), 0),
        gp(stack("null, RPL 3", 3), 0),
        stack("user data", 0x2b).ends(),
        stack("fresh data", sel::FRESH_DATA | 3).ends(),
        stack("the LDT's data", 0x07).ends(),
        gp(stack("user data, RPL 0", 0x28), 0x28),
        gp(stack("read-only data", sel::READ_ONLY | 3), sel::READ_ONLY),
        gp(stack("code", 0x33), 0x30),
        gp(stack("kernel data", sel::KERNEL_DATA | 3), sel::KERNEL_DATA),
        stack("absent data", sel::ABSENT_DATA | 3).code(vector::SS, sel::ABSENT_DATA.into()),
        gp(stack("absent data, RPL 0", sel::ABSENT_DATA), sel::ABSENT_DATA),
        Program::compat("mov ss: null, 32-bit", &[0x8e, 0xd0]).rax(0).code(vector::GP, 0),
        Program::compat("mov ds: null, then used", &[0x8e, 0xd8, 0x90]).rax(0).ends(),
    ]
}

fn selectors() -> impl Iterator<Item = u16> {
    sel::ALL.into_iter().chain(sel::LOCAL).chain([sel::BEYOND, 0xfff8]).flat_map(|s| [s, s | 1, s | 3])
}

/// Every selector into every register, by MOV, POP and far pointers.
fn loads() -> Vec<Program> {
    let mut all = Vec::new();
    for selector in selectors() {
        let push = move |size: usize| move |s: &mut super::super::Setup| s.push(size, &[selector.into()]);
        for (name, modrm) in MOVES {
            all.push(
                Program::new(format!("load {name}, {selector:#x}"), &[0x8e, modrm]).rax(selector.into()),
            );
        }
        for (name, modrm) in [("ss", 0xd0), ("ds", 0xd8)] {
            all.push(
                Program::compat(format!("load {name}, {selector:#x}, 32-bit"), &[0x8e, modrm])
                    .rax(selector.into()),
            );
        }
        all.push(Program::new(format!("pop fs, {selector:#x}"), &[0x0f, 0xa1]).with(push(8)));
        all.push(Program::compat(format!("pop es, {selector:#x}"), &[0x07]).with(push(4)));
        let pointer = move |s: &mut super::super::Setup| {
            let at = s.state.gpr[3];
            s.memory.push((at, [0x1234_5678_u32.to_le_bytes().as_slice(), &selector.to_le_bytes()].concat()));
        };
        // lss eax, [rbx]; lfs eax, [rbx]
        all.push(Program::new(format!("lss, {selector:#x}"), &[0x0f, 0xb2, 0x03]).with(pointer));
        all.push(Program::new(format!("lfs, {selector:#x}"), &[0x0f, 0xb4, 0x03]).with(pointer));
    }
    all
}

fn questions() -> Vec<Program> {
    let list: [(&str, &[u8]); 6] = [
        ("lar", &[0x0f, 0x02, 0xc8]),
        ("lar of 16 bits", &[0x66, 0x0f, 0x02, 0xc8]),
        ("lsl", &[0x0f, 0x03, 0xc8]),
        ("lsl of 64 bits", &[0x48, 0x0f, 0x03, 0xc8]),
        ("verr", &[0x0f, 0x00, 0xe0]),
        ("verw", &[0x0f, 0x00, 0xe8]),
    ];
    let mut all = Vec::new();
    for selector in selectors() {
        for (name, code) in list {
            all.push(Program::new(format!("{name}, {selector:#x}"), code).rax(selector.into()).ends());
        }
    }
    all
}
