//! Faults and traps of computing: division, breakpoints, single steps, INT n through all kinds of gates,
//! invalid opcodes, x87 and SSE exceptions and their control bits, alignment checks.

use super::super::Program;
use super::super::world::gate;
use crate::arch::x86_64::{FpuState, cr0, cr4, rflags, vector};

pub(super) fn programs() -> Vec<Program> {
    let mut all = arithmetic();
    all.extend(interrupts());
    all.extend(single_step());
    all.extend(invalid());
    all.extend(floating_point());
    all.extend(alignment());
    all
}

fn arithmetic() -> Vec<Program> {
    let p = Program::new;
    let c = Program::compat;
    vec![
        // xor ecx, ecx; div ecx
        p("div by zero", &[0x31, 0xc9, 0xf7, 0xf1]).raises(vector::DE),
        // mov edx, 5; mov ecx, 5; div ecx
        p("div overflow", &[0xba, 5, 0, 0, 0, 0xb9, 5, 0, 0, 0, 0xf7, 0xf1]).raises(vector::DE),
        // mov rax, 1 << 63; cqo; mov rcx, -1; idiv rcx
        p(
            "idiv overflow",
            &[
                0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x48, 0x99, 0x48, 0xc7, 0xc1, 255, 255, 255, 255,
                0x48, 0xf7, 0xf9,
            ],
        )
        .raises(vector::DE),
        c("aam 0", &[0xd4, 0]).raises(vector::DE),
        // mov al, 0x7f; add al, 1; into
        c("into, overflow", &[0xb0, 0x7f, 4, 1, 0xce]).raises(vector::OF),
        c("into, none", &[0xb0, 1, 4, 1, 0xce]).ends(),
        p("into in 64-bit code", &[0xce]).raises(vector::UD),
        // bound eax, [ebx]: ARENA + 0x400 holds two bounds
        c("bound, above", &[0x62, 3]).rax(0x7fff_fff0).with(bounds).raises(vector::BR),
        c("bound, below", &[0x62, 3]).rax(0xffff_fff0).with(bounds).raises(vector::BR),
        c("bound, between", &[0x62, 3]).rax(7).with(bounds).ends(),
        c("bound of 16 bits", &[0x66, 0x62, 3]).rax(0x7000).raises(vector::BR),
        c("bound of a register", &[0x62, 0xc3]).raises(vector::UD),
        c("arpl raises the RPL", &[0x66, 0xb9, 3, 0, 0x63, 0xc8]).rax(0x10).ends(),
        c("arpl leaves the RPL", &[0x66, 0xb9, 1, 0, 0x63, 0xc8]).rax(0x13).ends(),
        c("arpl of memory", &[0x63, 0x0b]).ends(),
    ]
}

fn bounds(s: &mut super::super::Setup) {
    let at = s.state.gpr[3];
    s.memory.push((at, [5_u32.to_le_bytes(), 9_u32.to_le_bytes()].concat()));
}

fn interrupts() -> Vec<Program> {
    let p = Program::new;
    let idt = |vector: u8| u32::from(vector) * 8 + 2;
    let int = |vector: u8| [0xcd, vector];
    let mut all = vec![
        p("int3", &[0xcc]).raises(vector::BP),
        p("int 3", &int(3)).raises(vector::BP),
        p("int3, closed gate", &[0xcc]).with(|s| s.state.idt.limit = 0).code(vector::GP, idt(3)),
        p("int 3, closed gate", &int(3)).with(|s| s.state.idt.limit = 0).code(vector::GP, idt(3)),
        p("int 4", &int(4)).raises(vector::OF),
        p("int1", &[0xf1]).raises(vector::DB),
        p("int, open gate", &int(gate::OPEN)).raises(gate::OPEN),
        p("int, trap gate", &int(gate::TRAP)).raises(gate::TRAP),
        p("int, closed gate", &int(gate::CLOSED)).code(vector::GP, idt(gate::CLOSED)),
        p("int, absent gate", &int(gate::ABSENT)).code(vector::NP, idt(gate::ABSENT)),
        p("int, absent and closed", &int(gate::ABSENT_CLOSED)).code(vector::GP, idt(gate::ABSENT_CLOSED)),
        p("int, no gate", &int(gate::BAD_TYPE)).code(vector::GP, idt(gate::BAD_TYPE)),
        p("int, gate to null", &int(gate::NULL_CS)).code(vector::GP, 0),
        p("int, gate to data", &int(gate::DATA_CS)).code(vector::GP, 0x18),
        p("int, gate to 32-bit code", &int(gate::CS_32)).code(vector::GP, 0x08),
        p("int, gate to nowhere", &int(gate::NON_CANONICAL)).code(vector::GP, 0),
        p("int beyond the limit", &int(gate::BEYOND)).code(vector::GP, idt(gate::BEYOND)),
        p("int 0xff", &int(0xff)).code(vector::GP, idt(0xff)),
        Program::compat("int, open gate, 32-bit", &int(gate::OPEN)).raises(gate::OPEN),
        Program::compat("int, closed gate, 32-bit", &int(gate::CLOSED)).code(vector::GP, idt(gate::CLOSED)),
        Program::compat("int3, 32-bit", &[0xcc]).raises(vector::BP),
        Program::compat("int1, 32-bit", &[0xf1]).raises(vector::DB),
    ];
    // Exceptions by their number push no error code.
    for v in [0, 8, 10, 13, 14, 17] {
        all.push(Program::new(format!("int {v}"), &int(v)).code(vector::GP, idt(v)));
    }
    // NT and RF do not survive, TF and AC are off in the handler.
    let odd = rflags::NT | rflags::AC | rflags::DF | rflags::ID;
    all.push(p("int with odd flags", &int(gate::OPEN)).flags(odd).raises(gate::OPEN));
    all.push(p("int3 with odd flags", &[0xcc]).flags(odd).raises(vector::BP));
    all.push(p("ud2 with odd flags", &[0x0f, 0x0b]).flags(odd).raises(vector::UD));
    all
}

fn single_step() -> Vec<Program> {
    let p = |name: &str, code: &[u8]| Program::new(format!("single step: {name}"), code);
    let flags = |set: u64| set | rflags::FIXED | rflags::IF;
    let mut all = vec![
        p("nop", &[0x90, 0x90]).flags(rflags::TF).raises(vector::DB),
        p("jmp", &[0xeb, 0, 0x90]).flags(rflags::TF).raises(vector::DB),
        // popfq; nop; nop: the trap comes behind the first NOP
        p("popfq", &[0x9d, 0x90, 0x90]).with(move |s| s.push(8, &[flags(rflags::TF)])).raises(vector::DB),
        // popfq that clears TF still traps
        p("popfq clears", &[0x9d, 0x90])
            .flags(rflags::TF)
            .with(move |s| s.push(8, &[flags(0)]))
            .raises(vector::DB),
        p("rep movsb", &[0xf3, 0xa4]).flags(rflags::TF).with(|s| s.state.gpr[1] = 3).raises(vector::DB),
        p("rep movsb of nothing", &[0xf3, 0xa4])
            .flags(rflags::TF)
            .with(|s| s.state.gpr[1] = 0)
            .raises(vector::DB),
        p("a fault goes first", &[0x0f, 0x0b]).flags(rflags::TF).raises(vector::UD),
        p("int3", &[0xcc]).flags(rflags::TF).raises(vector::BP),
        p("int", &[0xcd, gate::OPEN]).flags(rflags::TF).raises(gate::OPEN),
        p("int1", &[0xf1]).flags(rflags::TF).raises(vector::DB),
        // mov eax, ss; mov ss, eax; nop; nop
        p("pushfq", &[0x9c, 0x58]).flags(rflags::TF).raises(vector::DB),
        p("call", &[0xe8, 1, 0, 0, 0, 0x90, 0x90]).flags(rflags::TF).raises(vector::DB),
        p("page fault", &[0x48, 0xa1, 0, 0, 0, 0, 0, 0, 0, 0]).flags(rflags::TF).page(4, 0),
    ];
    let frame = move |s: &mut super::super::Setup, set: u64| {
        let (rip, rsp) = (s.state.rip + 3, s.state.gpr[4]);
        s.push(8, &[rip, 0x33, flags(set), rsp, 0x2b]);
    };
    // iretq; nop behind it, with TF: one instruction runs
    let iret = [0x48, 0xcf, 0xcc, 0x90, 0x90];
    all.push(p("iretq sets TF", &iret).with(move |s| frame(s, rflags::TF)).raises(vector::DB));
    all.push(p("iretq clears TF", &iret).flags(rflags::TF).with(move |s| frame(s, 0)).raises(vector::DB));
    // mov ss holds the trap off for one instruction
    all.push(p("mov ss", &[0x8e, 0xd0, 0x90, 0x90, 0x90]).flags(rflags::TF).rax(0x2b).raises(vector::DB));
    all
}

fn invalid() -> Vec<Program> {
    let ud = |name: &str, code: &[u8]| Program::new(format!("invalid: {name}"), code).raises(vector::UD);
    let mut all = vec![
        ud("ud2", &[0x0f, 0x0b]),
        ud("ud1", &[0x0f, 0xb9, 0xc0]),
        ud("ud0", &[0x0f, 0xff, 0xc0]),
        ud("lock nop", &[0xf0, 0x90]),
        ud("lock add of a register", &[0xf0, 0x01, 0xc0]),
        ud("lock mov", &[0xf0, 0x89, 0x03]),
        ud("push es", &[0x06]),
        ud("daa", &[0x27]),
        ud("mov cs", &[0x8e, 0xc8]),
        ud("mov of segment register 6", &[0x8e, 0xf0]),
        ud("far jmp to an immediate", &[0xea, 0, 0, 0, 0, 0x33, 0]),
        ud("lea of a register", &[0x8d, 0xc0]),
        ud("stac", &[0x0f, 0x01, 0xcb]),
        ud("clac", &[0x0f, 0x01, 0xca]),
        ud("xgetbv without OSXSAVE", &[0x0f, 0x01, 0xd0]),
        ud("rdfsbase without FSGSBASE", &[0xf3, 0x48, 0x0f, 0xae, 0xc0]),
        ud("wrgsbase without FSGSBASE", &[0xf3, 0x48, 0x0f, 0xae, 0xd8]),
        ud("mov from cr1", &[0x0f, 0x20, 0xc8]),
        ud("cmpxchg16b of a register", &[0x48, 0x0f, 0xc7, 0xc8]),
    ];
    // Fifteen prefixes and an opcode.
    let mut long = vec![0x66; 15];
    long.push(0x90);
    all.push(Program::new("invalid: 16 bytes", &long).code(vector::GP, 0));
    all.push(Program::new("15 bytes", &long[1..]).ends());
    all
}

fn unmasked(mxcsr: u32) -> FpuState {
    FpuState { mxcsr, ..FpuState::default() }
}

fn floating_point() -> Vec<Program> {
    let p = |name: &str, code: &[u8]| Program::new(format!("fp: {name}"), code);
    let fld1: [u8; 2] = [0xd9, 0xe8];
    let (movaps, pxor, emms): ([u8; 3], [u8; 3], [u8; 2]) =
        ([0x0f, 0x28, 0xc1], [0x0f, 0xef, 0xc0], [0x0f, 0x77]);
    let (fwait, fxsave, fninit) = ([0x9b], [0x0f, 0xae, 0x03], [0xdb, 0xe3]);
    let ts = |q: Program| q.with(|s| s.state.cr0 |= cr0::TS);
    let em = |q: Program| q.with(|s| s.state.cr0 |= cr0::EM);
    let no_mp = |q: Program| q.with(|s| s.state.cr0 &= !cr0::MP);
    let no_sse = |q: Program| q.with(|s| s.state.cr4 &= !cr4::OSFXSR);
    let pending = |q: Program| {
        q.with(|s| {
            s.state.fpu.control = 0x37b;
            s.state.fpu.status = 0x8084;
        })
    };
    let zero = |s: &mut super::super::Setup| s.state.fpu.xmm[0] = 0x3f80_0000;
    let mut all = vec![
        ts(p("fld1, TS", &fld1)).raises(vector::NM),
        ts(p("fninit, TS", &fninit)).raises(vector::NM),
        ts(p("movaps, TS", &movaps)).raises(vector::NM),
        ts(p("pxor mm, TS", &pxor)).raises(vector::NM),
        ts(p("emms, TS", &emms)).raises(vector::NM),
        ts(p("fxsave, TS", &fxsave)).raises(vector::NM),
        ts(p("fwait, TS and MP", &fwait)).raises(vector::NM),
        no_mp(ts(p("fwait, TS without MP", &fwait))).ends(),
        ts(p("ldmxcsr, TS", &[0x0f, 0xae, 0x13])).raises(vector::NM),
        ts(p("lfence, TS", &[0x0f, 0xae, 0xe8])).ends(),
        ts(p("prefetch, TS", &[0x0f, 0x18, 0x0b])).ends(),
        ts(p("movnti, TS", &[0x0f, 0xc3, 0x03])).ends(),
        ts(p("crc32, TS", &[0xf2, 0x0f, 0x38, 0xf1, 0xc1])).ends(),
        em(p("fld1, EM", &fld1)).raises(vector::NM),
        em(p("movaps, EM", &movaps)).raises(vector::UD),
        em(p("pxor mm, EM", &pxor)).raises(vector::UD),
        em(p("fwait, EM", &fwait)).ends(),
        em(p("fxsave, EM", &fxsave)).raises(vector::NM),
        em(ts(p("movaps, EM and TS", &movaps))).raises(vector::UD),
        no_sse(p("movaps without OSFXSR", &movaps)).raises(vector::UD),
        no_sse(p("pxor mm without OSFXSR", &pxor)).ends(),
        no_sse(p("ldmxcsr without OSFXSR", &[0x0f, 0xae, 0x13])).raises(vector::UD),
        no_sse(ts(p("movaps without OSFXSR, TS", &movaps))).raises(vector::UD),
        pending(p("fwait, pending", &fwait)).raises(vector::MF),
        pending(p("fld1, pending", &fld1)).raises(vector::MF),
        pending(p("fnstsw, pending", &[0xdf, 0xe0])).ends(),
        pending(p("fninit, pending", &fninit)).ends(),
        pending(p("pxor mm, pending", &pxor)).raises(vector::MF),
        pending(p("movaps, pending", &movaps)).ends(),
        pending(p("fxsave, pending", &fxsave)).ends(),
        // fld1; fldz; fdivp; fwait
        p("x87 division by zero", &[0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0x9b])
            .with(|s| s.state.fpu.control = 0x37b)
            .raises(vector::MF),
        // divss xmm0, xmm1
        p("divss by zero", &[0xf3, 0x0f, 0x5e, 0xc1])
            .with(|s| s.state.fpu = unmasked(0x1d80))
            .with(zero)
            .raises(vector::XM),
        p("divss by zero, masked", &[0xf3, 0x0f, 0x5e, 0xc1]).with(zero).ends(),
        p("divss by zero without OSXMMEXCPT", &[0xf3, 0x0f, 0x5e, 0xc1])
            .with(|s| s.state.fpu = unmasked(0x1d80))
            .with(zero)
            .with(|s| s.state.cr4 &= !cr4::OSXMMEXCPT)
            .raises(vector::UD),
        p("ldmxcsr of a reserved bit", &[0x0f, 0xae, 0x13])
            .with(|s| s.memory.push((s.state.gpr[3], vec![0, 0, 1, 0])))
            .code(vector::GP, 0),
    ];
    let mut odd = fxsave;
    odd[2] = 0x43;
    let mut misaligned = odd.to_vec();
    misaligned.push(8);
    all.push(p("fxsave, misaligned", &misaligned).code(vector::GP, 0));
    // movaps xmm0, [rbx + 8]; movups
    all.push(p("movaps, misaligned", &[0x0f, 0x28, 0x43, 8]).code(vector::GP, 0));
    all.push(p("movaps of the stack, misaligned", &[0x0f, 0x28, 0x44, 0x24, 8]).code(vector::GP, 0));
    all.push(p("paddb, misaligned", &[0x66, 0x0f, 0xfc, 0x43, 8]).code(vector::GP, 0));
    all.push(p("movups, misaligned", &[0x0f, 0x10, 0x43, 8]).ends());
    all.push(p("cmpxchg16b, misaligned", &[0x48, 0x0f, 0xc7, 0x4b, 8]).code(vector::GP, 0));
    all
}

/// Alignment checks: EFLAGS.AC and CR0.AM at privilege 3.
fn alignment() -> Vec<Program> {
    let p = |name: &str, code: &[u8]| Program::new(format!("alignment: {name}"), code).flags(rflags::AC);
    let ac = |q: Program| q.code(vector::AC, 0);
    let one = |s: &mut super::super::Setup| s.state.gpr[1] = 1;
    let odd_strings = |s: &mut super::super::Setup| {
        s.state.gpr[6] += 1;
        s.state.gpr[7] += 1;
    };
    let odd_stack = |s: &mut super::super::Setup| s.state.gpr[4] += 4;
    vec![
        ac(p("mov of 2 bytes", &[0x66, 0x8b, 0x43, 1])),
        ac(p("mov of 4 bytes", &[0x8b, 0x43, 2])),
        ac(p("mov of 8 bytes", &[0x48, 0x8b, 0x43, 4])),
        ac(p("store of 4 bytes", &[0x89, 0x43, 1])),
        ac(p("add to memory", &[0x01, 0x43, 1])),
        ac(p("lock add", &[0xf0, 0x01, 0x43, 1])),
        ac(p("xchg", &[0x87, 0x43, 3])),
        ac(p("xadd", &[0x0f, 0xc1, 0x43, 3])),
        ac(p("cmpxchg8b", &[0x0f, 0xc7, 0x4b, 4])),
        ac(p("movsd", &[0xa5]).with(odd_strings)),
        ac(p("rep movsd", &[0xf3, 0xa5]).with(odd_strings).with(one)),
        ac(p("stosw", &[0x66, 0xab]).with(odd_strings)),
        p("movsb", &[0xa4]).with(odd_strings).ends(),
        ac(p("push", &[0x50]).with(odd_stack)),
        ac(p("pop", &[0x58]).with(odd_stack)),
        ac(p("call", &[0xe8, 0, 0, 0, 0]).with(odd_stack)),
        ac(p("ret", &[0xc3]).with(odd_stack)),
        ac(p("fld of 4 bytes", &[0xd9, 0x43, 2])),
        ac(p("fld of 8 bytes", &[0xdd, 0x43, 4])),
        ac(p("fld of 10 bytes", &[0xdb, 0x6b, 4])),
        p("fld of 10 bytes at 8", &[0xdb, 0x6b, 8]).ends(),
        ac(p("fstp of 10 bytes", &[0xd9, 0xe8, 0xdb, 0x7b, 4])),
        ac(p("fild of 2 bytes", &[0xdf, 0x43, 1])),
        ac(p("fldenv", &[0xd9, 0x63, 2])),
        ac(p("fnstenv", &[0xd9, 0x73, 2])),
        ac(p("frstor", &[0xdd, 0x63, 2])),
        ac(p("fnsave", &[0xdd, 0x73, 2])),
        ac(p("movss", &[0xf3, 0x0f, 0x10, 0x43, 2])),
        ac(p("movsd of xmm", &[0xf2, 0x0f, 0x10, 0x43, 4])),
        ac(p("movq mm", &[0x0f, 0x6f, 0x43, 4])),
        ac(p("movd", &[0x66, 0x0f, 0x6e, 0x43, 1])),
        p("movups", &[0x0f, 0x10, 0x43, 4]).ends(),
        p("movups at 8", &[0x0f, 0x10, 0x43, 8]).ends(),
        p("movdqu store", &[0xf3, 0x0f, 0x7f, 0x43, 4]).ends(),
        p("lddqu", &[0xf2, 0x0f, 0xf0, 0x43, 4]).ends(),
        p("movaps, misaligned", &[0x0f, 0x28, 0x43, 4]).code(vector::GP, 0),
        p("fxsave, misaligned by 4", &[0x0f, 0xae, 0x43, 4]),
        ac(p("movhps", &[0x0f, 0x16, 0x43, 4])),
        ac(p("ldmxcsr", &[0x0f, 0xae, 0x53, 2])),
        ac(p("bt", &[0x0f, 0xa3, 0x43, 1]).rax(0)),
        ac(p("movbe", &[0x0f, 0x38, 0xf0, 0x43, 1])),
        ac(p("popfq", &[0x9d]).with(odd_stack)),
        ac(p("iretq", &[0x48, 0xcf]).with(odd_stack)),
        ac(p("enter", &[0xc8, 8, 0, 0]).with(odd_stack)),
        ac(p("enter that leaves the stack odd", &[0xc8, 1, 0, 0])),
        ac(p("mov across the edge", &[0x8b, 0x03]).at(0x7fff_ffff_fffd)),
        ac(p("far pointer", &[0x48, 0x0f, 0xb4, 0x43, 4])),
        ac(p("jmp of memory", &[0xff, 0x63, 4])),
        p("sldt", &[0x0f, 0x00, 0x43, 1]),
        p("aligned", &[0x8b, 0x43, 4, 0x48, 0x89, 0x43, 8, 0x66, 0x8b, 0x43, 2]).ends(),
        p("bytes", &[0x8a, 0x43, 1, 0x88, 0x43, 3]).ends(),
        // It goes before a page fault, as processors do it; the manual has it the other way round.
        ac(p("absent page", &[0x8b, 0x43, 1]).at(super::super::world::place::ABSENT)),
        ac(p("read-only page", &[0x89, 0x43, 1]).at(super::super::world::place::READ_ONLY)),
        p("non-canonical", &[0x8b, 0x43, 1]).at(0x8000_0000_0000).code(vector::GP, 0),
        // Off without CR0.AM.
        p("without AM", &[0x8b, 0x43, 1]).with(|s| s.state.cr0 &= !cr0::AM).ends(),
        Program::compat("alignment: 32-bit", &[0x8b, 0x43, 1]).flags(rflags::AC).code(vector::AC, 0),
        // popfq that sets AC; mov eax, [rbx + 1]
        Program::new("alignment: popfq turns it on", &[0x9d, 0x8b, 0x43, 1])
            .with(|s| s.push(8, &[rflags::AC | rflags::FIXED | rflags::IF]))
            .code(vector::AC, 0),
        p("popfq turns it off", &[0x9d, 0x8b, 0x43, 1])
            .with(|s| s.push(8, &[rflags::FIXED | rflags::IF]))
            .ends(),
    ]
}
