//! Page faults in all forms, non-canonical addresses, accesses across pages.

use super::super::Program;
use super::super::world::{KERNEL, place};
use crate::arch::x86_64::vector;

/// First address that is not canonical, and the last below.
const EDGE: u64 = 0x0000_8000_0000_0000;

pub(super) fn programs() -> Vec<Program> {
    let mut all = pages();
    all.extend(crossings());
    all.extend(fetches());
    all.extend(non_canonical());
    all
}

/// Each kind of access to each kind of page.
fn pages() -> Vec<Program> {
    let read: [(&str, &[u8]); 5] = [
        ("mov from", &[0x8b, 0x03]),
        ("movups from", &[0x0f, 0x10, 0x03]),
        ("cmp", &[0x39, 0x03]),
        ("fld tbyte", &[0xdb, 0x2b]),
        ("test", &[0xf6, 0x03, 1]),
    ];
    let write: [(&str, &[u8]); 8] = [
        ("mov to", &[0x89, 0x03]),
        ("movups to", &[0x0f, 0x11, 0x03]),
        ("add to", &[0x01, 0x03]),
        ("lock inc", &[0xf0, 0xff, 0x03]),
        ("xchg", &[0x87, 0x03]),
        ("cmpxchg", &[0x0f, 0xb1, 0x0b]),
        ("bts", &[0x0f, 0xba, 0x2b, 0]),
        ("fstp tbyte", &[0xd9, 0xe8, 0xdb, 0x3b]),
    ];
    // Error codes of a read and of a write; none where it is allowed.
    let places: [(&str, u64, Option<u32>, Option<u32>); 9] = [
        ("an absent page", place::ABSENT, Some(4), Some(6)),
        ("an absent page with other bits", place::ABSENT_ENTRY, Some(4), Some(6)),
        ("the kernel's page", place::SUPERVISOR, Some(5), Some(7)),
        ("the kernel's read-only page", place::SUPERVISOR_READ_ONLY, Some(5), Some(7)),
        ("a read-only page", place::READ_ONLY, None, Some(7)),
        ("a page with a reserved bit", place::RESERVED, Some(0xd), Some(0xf)),
        ("the kernel's half", KERNEL, Some(5), Some(7)),
        ("no table", place::NO_TABLE, Some(4), Some(6)),
        ("a good page", place::DATA, None, None),
    ];
    let mut all = Vec::new();
    for (place, at, of_read, of_write) in places {
        for (what, code, error) in read
            .map(|(what, code)| (what, code, of_read))
            .into_iter()
            .chain(write.map(|(what, code)| (what, code, of_write)))
        {
            // An address that is not the first of its page.
            let address = at + 0x120;
            let program = Program::new(format!("{what} {place}"), code).at(address);
            all.push(match error {
                Some(error) => program.page(error, address),
                None => program.ends(),
            });
        }
    }
    let p = |name: &str, code: &[u8]| Program::new(name, code);
    let stack = |rsp: u64| move |s: &mut super::super::Setup| s.state.gpr[4] = rsp;

    all.extend([
        p("push, absent page", &[0x50]).with(stack(place::ABSENT + 0x100)).page(6, place::ABSENT + 0xf8),
        p("pop, absent page", &[0x58]).with(stack(place::ABSENT + 0x100)).page(4, place::ABSENT + 0x100),
        p("push, read-only page", &[0x50])
            .with(stack(place::READ_ONLY + 0x100))
            .page(7, place::READ_ONLY + 0xf8),
        p("call, read-only page", &[0xe8, 0, 0, 0, 0])
            .with(stack(place::READ_ONLY + 8))
            .page(7, place::READ_ONLY),
        p("enter, absent page", &[0xc8, 16, 0, 0]).with(stack(place::ABSENT + 8)).page(6, place::ABSENT),
        // rep movsb from the good page into the next: two bytes are done
        p("rep movsb, out of the page", &[0xf3, 0xa4])
            .with(|s| {
                s.state.gpr[1] = 10;
                s.state.gpr[7] = place::READ_ONLY - 2;
                s.state.gpr[7] = place::DATA + 0x1000 - 2;
            })
            .page(0xf, place::RESERVED),
        p("rep stosq, read-only page", &[0xf3, 0x48, 0xab])
            .with(|s| {
                s.state.gpr[1] = 4;
                s.state.gpr[7] = place::BEFORE_READ_ONLY + 0x1000 - 16;
            })
            .page(7, place::BEFORE_READ_ONLY + 0x1000),
        p("repe cmpsb, absent page", &[0xf3, 0xa6])
            .with(|s| {
                s.state.gpr[1] = 4;
                s.state.gpr[6] = place::ABSENT + 5;
            })
            .page(4, place::ABSENT + 5),
        p("xlat, absent page", &[0xd7]).at(place::ABSENT).rax(0x55).page(4, place::ABSENT + 0x55),
        p("prefetch, absent page", &[0x0f, 0x18, 0x0b]).at(place::ABSENT).ends(),
        p("clflush, absent page", &[0x0f, 0xae, 0x3b]).at(place::ABSENT).page(4, place::ABSENT),
        p("nop with an operand, absent page", &[0x0f, 0x1f, 0x03]).at(place::ABSENT).ends(),
        p("cmov that is not taken", &[0x31, 0xc9, 0x0f, 0x45, 0x03]).at(place::ABSENT).page(4, place::ABSENT),
    ]);
    all
}

fn crossings() -> Vec<Program> {
    let absent = place::CODE + 0x1000;
    let mut all = Vec::new();
    for before in [1, 4, 7] {
        let name = |what: &str| format!("{what}, {before} bytes before the absent page");
        all.push(
            Program::new(name("mov of 8 bytes"), &[0x48, 0x8b, 0x03]).at(absent - before).page(4, absent),
        );
        all.push(
            Program::new(name("store of 8 bytes"), &[0x48, 0x89, 0x03]).at(absent - before).page(6, absent),
        );
        all.push(
            Program::new(name("add of 8 bytes"), &[0x48, 0x01, 0x03]).at(absent - before).page(6, absent),
        );
        all.push(Program::new(name("movups"), &[0x0f, 0x10, 0x03]).at(absent - before).page(4, absent));
        all.push(
            Program::new(name("lock xadd of 8 bytes"), &[0xf0, 0x48, 0x0f, 0xc1, 0x03])
                .at(absent - before)
                .page(6, absent),
        );
        let read_only = place::BEFORE_READ_ONLY + 0x1000;
        let name = |what: &str| format!("{what}, {before} bytes before a read-only page");
        all.push(
            Program::new(name("store of 8 bytes"), &[0x48, 0x89, 0x03])
                .at(read_only - before)
                .page(7, read_only),
        );
        all.push(Program::new(name("mov of 8 bytes"), &[0x48, 0x8b, 0x03]).at(read_only - before).ends());
        let good = place::DATA;
        let name = |what: &str| format!("{what}, {before} bytes before a good page");
        all.push(
            Program::new(name("store of 8 bytes"), &[0x48, 0x89, 0x03])
                .at(good - before)
                .page(7, good - before),
        );
    }
    all
}

/// Code in pages without code.
fn fetches() -> Vec<Program> {
    // jmp rbx
    let jump = |name: &str, at: u64| Program::new(format!("jmp to {name}"), &[0xff, 0xe3]).at(at);
    let (absent, end) = (place::ABSENT + 0x10, place::CODE + 0x1000);
    let at = |rip: u64| move |s: &mut super::super::Setup| s.state.rip = rip;
    vec![
        jump("an absent page", absent).page(0x14, absent),
        jump("data", place::DATA).page(0x15, place::DATA),
        jump("the kernel's page", place::SUPERVISOR).page(0x15, place::SUPERVISOR),
        jump("a page with a reserved bit", place::RESERVED).page(0x1d, place::RESERVED),
        jump("the kernel's half", KERNEL + 0x2000).page(0x15, KERNEL + 0x2000),
        // Five NOPs up to the absent page: the HLT behind them is in it.
        jump("the end of a page", end - 5)
            .with(move |s| s.memory.push((end - 5, vec![0x90; 5])))
            .page(0x14, end),
        // mov eax, imm32, of which three bytes are there
        jump("an instruction across pages", end - 4)
            .with(move |s| s.memory.push((end - 4, vec![0xb8, 1, 2, 3])))
            .page(0x14, end),
        // ud2 is complete, whatever follows
        jump("an instruction up to the page's end", end - 2)
            .with(move |s| s.memory.push((end - 2, vec![0x0f, 0x0b])))
            .raises(vector::UD),
        // call to data: the address has been pushed
        Program::new("call to data", &[0xff, 0xd3]).at(place::DATA).page(0x15, place::DATA),
        Program::new("ret to data", &[0xc3]).with(|s| s.push(8, &[place::DATA])).page(0x15, place::DATA),
        Program::new("code in a writable page", &[0x90, 0x90]).with(at(place::CODE + 0x200)).ends(),
        // mov byte [rip + 0], 0xcc; nop: code that writes the instruction behind it
        Program::new("code that writes itself", &[0xc6, 5, 0, 0, 0, 0, 0xcc, 0x90])
            .with(at(place::CODE + 0x300))
            .raises(vector::BP),
    ]
}

fn non_canonical() -> Vec<Program> {
    let gp = |q: Program| q.code(vector::GP, 0);
    let ss = |q: Program| q.code(vector::SS, 0);
    let stack = |rsp: u64| move |s: &mut super::super::Setup| s.state.gpr[4] = rsp;
    let mut all = Vec::new();
    for (name, at) in
        [("the edge", EDGE), ("the middle", 0x1234_5678_9abc_def0), ("the upper edge", 0xffff_7fff_ffff_fff0)]
    {
        let name = |what: &str| format!("non-canonical: {what}, {name}");
        all.push(gp(Program::new(name("mov"), &[0x8b, 0x03]).at(at)));
        all.push(gp(Program::new(name("store"), &[0x89, 0x03]).at(at)));
        all.push(gp(Program::new(name("lock add"), &[0xf0, 0x01, 0x03]).at(at)));
        all.push(gp(Program::new(name("movups"), &[0x0f, 0x10, 0x03]).at(at)));
        all.push(gp(Program::new(name("movaps"), &[0x0f, 0x28, 0x03]).at(at)));
        all.push(gp(Program::new(name("stosb"), &[0xaa]).with(move |s| s.state.gpr[7] = at)));
        all.push(gp(Program::new(name("clflush"), &[0x0f, 0xae, 0x3b]).at(at)));
        all.push(Program::new(name("prefetch"), &[0x0f, 0x18, 0x0b]).at(at).ends());
        all.push(ss(Program::new(name("push"), &[0x50]).with(stack(at + 8))));
        all.push(ss(Program::new(name("pop"), &[0x58]).with(stack(at))));
        all.push(ss(Program::new(name("ret"), &[0xc3]).with(stack(at))));
        all.push(ss(Program::new(name("call"), &[0xe8, 0, 0, 0, 0]).with(stack(at + 8))));
        all.push(ss(Program::new(name("pushfq"), &[0x9c]).with(stack(at + 8))));
        all.push(ss(Program::new(name("popfq"), &[0x9d]).with(stack(at))));
        all.push(ss(Program::new(name("leave"), &[0xc9]).with(move |s| s.state.gpr[5] = at)));
        all.push(ss(Program::new(name("mov by rbp"), &[0x8b, 0x45, 0]).with(move |s| s.state.gpr[5] = at)));
        all.push(ss(Program::new(name("mov by rsp"), &[0x8b, 0x04, 0x24]).with(stack(at))));
        all.push(ss(Program::new(name("iretq"), &[0x48, 0xcf]).with(stack(at))));
        all.push(ss(Program::new(name("retf"), &[0x48, 0xcb]).with(stack(at))));
        all.push(gp(Program::new(name("jmp"), &[0xff, 0xe3]).at(at)));
        all.push(gp(Program::new(name("call of a register"), &[0xff, 0xd3]).at(at)));
        all.push(gp(Program::new(name("ret to"), &[0xc3]).with(move |s| s.push(8, &[at]))));
    }
    all.push(gp(Program::new("non-canonical: mov across the edge", &[0x48, 0x8b, 0x03]).at(EDGE - 4)));
    all.push(ss(Program::new("non-canonical: pop across the edge", &[0x58]).with(stack(EDGE - 4))));
    all.push(Program::new("mov up to the edge", &[0x48, 0x8b, 0x03]).at(EDGE - 8).page(4, EDGE - 8));
    all
}
