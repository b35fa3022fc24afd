//! Who may do what: segments, ports, flags, control registers, MSRs; and what CPUID promises.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::arch::x86_64::{cr0, cr4, gpr, rflags, seg, vector};

use super::support::*;
use super::{CODE, GDT, HANDLERS, Machine, NoIo, TSS};

/// What `code` ends in; `None` when the HLT behind it is reached.
fn outcome(m: &mut Machine, code: &[u8]) -> Option<(u8, Option<u64>)> {
    let mut all = code.to_vec();
    all.push(0xf4);
    let s = m.run(&all);
    (s.rip != CODE + all.len() as u64).then(|| m.frame(&s).what())
}

const GP0: Option<(u8, Option<u64>)> = Some((vector::GP, Some(0)));

#[test]
fn privileged_instructions_need_privilege_0() {
    type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let list: [(&str, Write); 24] = [
        ("hlt", |a| a.hlt()),
        ("mov cr0", |a| a.mov(cr0, rax)),
        ("mov from cr0", |a| a.mov(rax, cr0)),
        ("mov from cr2", |a| a.mov(rax, cr2)),
        ("mov cr3", |a| a.mov(cr3, rax)),
        ("mov cr4", |a| a.mov(cr4, rax)),
        ("mov cr8", |a| a.mov(cr8, rax)),
        ("mov dr0", |a| a.mov(dr0, rax)),
        ("mov from dr7", |a| a.mov(rax, dr7)),
        ("clts", |a| a.clts()),
        ("lmsw", |a| a.lmsw(ax)),
        ("lgdt", |a| a.lgdt(tbyte_ptr(rsp - 16))),
        ("lidt", |a| a.lidt(tbyte_ptr(rsp - 16))),
        ("lldt", |a| a.lldt(ax)),
        ("ltr", |a| a.ltr(ax)),
        ("invlpg", |a| a.invlpg(byte_ptr(rax))),
        ("invpcid", |a| a.invpcid(rax, xmmword_ptr(rsp - 16))),
        ("wbinvd", |a| a.wbinvd()),
        ("invd", |a| a.invd()),
        ("rdmsr", |a| a.rdmsr()),
        ("wrmsr", |a| a.wrmsr()),
        ("swapgs", |a| a.swapgs()),
        ("sysexit", |a| a.sysexit()),
        ("rdpmc", |a| a.rdpmc()),
    ];
    let mut m = Machine::new();
    m.user();
    for (what, write) in list {
        assert_eq!(outcome(&mut m, &asm(write)), GP0, "{what}");
    }
    let stac = outcome(&mut m, &asm(|a| a.stac()));
    assert_eq!(stac, Some((vector::UD, None)), "STAC");
}

#[test]
fn cli_and_sti_go_by_iopl() {
    let mut m = Machine::new();
    m.user();
    m.state.rflags |= rflags::IF;
    for code in [[0xfa], [0xfb]] {
        assert_eq!(m.fault(&code).what(), (vector::GP, Some(0)));
    }
    m.state.rflags |= rflags::IOPL;
    let f = m.fault(&[0xfa, 0x0f, 0x0b]);
    assert_eq!((f.vector, f.flags & rflags::IF), (vector::UD, 0));
}

#[test]
fn ports_go_by_iopl_and_the_tss_bitmap() {
    let mut m = Machine::new();
    m.user();
    let byte = |port: u8| [0xe4, port, 0x0f, 0x0b];
    let word = |port: u8| [0x66, 0xe5, port, 0x0f, 0x0b];
    let dword = |port: u8| [0xe5, port, 0x0f, 0x0b];
    m.put(TSS + 0x60, 0x68 << 48);
    assert_eq!(m.fault(&byte(0x10)).vector, vector::GP, "no bitmap within the limit");
    // The bitmap at 0x68: ports 0x10..=0x12 open, the rest closed.
    m.put(TSS + 0x68, !(7 << 0x10));
    m.put(TSS + 0x70, u64::MAX);
    m.state.tr.limit = 0x6f;
    assert_eq!(m.fault(&byte(0x10)).vector, vector::UD);
    assert_eq!(m.fault(&byte(0x13)).vector, vector::GP);
    assert_eq!(m.fault(&word(0x11)).vector, vector::UD);
    assert_eq!(m.fault(&word(0x12)).vector, vector::GP);
    assert_eq!(m.fault(&dword(0x10)).vector, vector::GP, "the fourth is closed");
    m.put(TSS + 0x68, !(15 << 5));
    assert_eq!(m.fault(&dword(5)).vector, vector::UD, "across two bytes of the map");
    m.put(TSS + 0x68, 0);
    assert_eq!(m.fault(&byte(0x37)).vector, vector::UD);
    assert_eq!(m.fault(&byte(0x38)).vector, vector::GP, "the map must have one byte more");
    m.state.rflags |= rflags::IOPL;
    assert_eq!(m.fault(&dword(0x80)).vector, vector::UD);
    let outs = asm(|a| {
        a.mov(edx, 0x80)?;
        a.outsb()
    });
    m.state.rflags &= !rflags::IOPL;
    assert_eq!(m.fault(&outs).what(), (vector::GP, Some(0)));
}

#[test]
fn control_registers_refuse_what_the_manual_forbids() {
    let mut m = Machine::new();
    let old0 = m.state.cr0;
    let old4 = m.state.cr4;
    let mut set = |number: u8, v: u64| {
        let code = asm(|a| {
            a.mov(rax, v)?;
            match number {
                0 => a.mov(cr0, rax),
                _ => a.mov(cr4, rax),
            }
        });
        outcome(&mut m, &code)
    };
    assert_eq!(set(0, old0 | cr0::TS), None);
    assert_eq!(set(0, old0 & !cr0::PE), GP0, "paging without protection");
    assert_eq!(set(0, old0 & !cr0::PG), GP0, "paging off in 64-bit code");
    assert_eq!(set(0, old0 | cr0::NW), GP0, "NW without CD");
    assert_eq!(set(0, old0 | 1 << 32), GP0);
    assert_eq!(set(4, old4 & !cr4::PAE), GP0, "PAE in long mode");
    for bit in [11, 12, 13, 14, 15, 18, 19, 22, 23, 24, 25, 31, 63] {
        assert_eq!(set(4, old4 | 1 << bit), GP0, "CR4 bit {bit}");
    }
    for bit in [2, 3, 7, 8, 16, 17, 20, 21] {
        let smep_or_smap = bit == 20 || bit == 21;
        if !smep_or_smap {
            assert_eq!(set(4, old4 | 1 << bit), None, "CR4 bit {bit}");
        }
    }
    let absent = outcome(&mut m, &[0x0f, 0x20, 0xc8]);
    assert_eq!(absent, Some((vector::UD, None)), "CR1");
}

#[test]
fn debug_registers_4_and_5_are_aliases_until_de() {
    let mut m = Machine::new();
    m.state.dr[5] = 0x400;
    let s = m.run(&asm(|a| {
        a.mov(eax, 0xffff_0ff1u32)?;
        a.mov(dr4, rax)?;
        a.mov(rbx, dr6)?;
        a.mov(rcx, dr5)?;
        a.hlt()
    }));
    assert_eq!((s.gpr[gpr::RBX], s.gpr[gpr::RCX]), (0xffff_0ff1, 0x400));
    m.state.cr4 |= cr4::DE;
    assert_eq!(outcome(&mut m, &asm(|a| a.mov(rax, dr4))), Some((vector::UD, None)));
    assert_eq!(outcome(&mut m, &asm(|a| a.mov(dr5, rax))), Some((vector::UD, None)));
    let high = asm(|a| {
        a.mov(rax, 1u64 << 32)?;
        a.mov(dr7, rax)
    });
    assert_eq!(outcome(&mut m, &high), GP0);
}

#[test]
fn msrs_refuse_what_the_manual_forbids() {
    let mut m = Machine::new();
    let mut set = |msr: u32, v: u64| {
        let code = asm(|a| {
            a.mov(ecx, msr)?;
            a.mov(eax, v as u32)?;
            a.mov(edx, (v >> 32) as u32)?;
            a.wrmsr()
        });
        outcome(&mut m, &code)
    };
    let address = [0xc000_0082u32, 0xc000_0083, 0xc000_0100, 0xc000_0101, 0xc000_0102, 0x175, 0x176];
    for msr in address {
        assert_eq!(set(msr, 0xffff_8000_0000_0000), None, "{msr:#x}");
        assert_eq!(set(msr, 0x8000_0000_0000), GP0, "{msr:#x}");
    }
    assert_eq!(set(0xc000_0080, 0xd01), None, "EFER");
    assert_eq!(set(0xc000_0080, 0xd01 | 1 << 1), GP0, "reserved");
    assert_eq!(set(0xc000_0080, 0xc01), GP0, "LME while paging");
    assert_eq!(set(0x277, 0x0007_0406_0007_0406), None, "PAT");
    assert_eq!(set(0x277, 0x0002_0406_0007_0406), GP0, "PAT type 2");
    assert_eq!(set(0x1234_5678, 0), GP0, "no such MSR");
    let read = asm(|a| {
        a.mov(ecx, 0x1234_5678)?;
        a.rdmsr()
    });
    assert_eq!(outcome(&mut m, &read), GP0);
}

#[test]
fn data_segments_are_checked_when_loaded() {
    let mut m = Machine::new();
    m.state.gdt.limit = 0x6f;
    for (at, v) in [
        (0x30, 0x00cf_7300_0000_ffff), // absent user data
        (0x38, 0x00af_f900_0000_ffff), // user code that cannot be read
        (0x40, 0x00cf_f100_0000_ffff), // user data, read-only
        (0x48, 0x00af_9f00_0000_ffff), // the kernel's, conforming and readable
        (0x50, 0x00cf_f200_1234_ffff), // user data, never loaded so far
    ] {
        m.put(GDT + at, v);
    }
    let load = |which: u8, selector: u32| {
        asm(|a| {
            a.mov(eax, selector)?;
            match which {
                0 => a.mov(ds, eax),
                1 => a.mov(ss, eax),
                _ => a.mov(fs, eax),
            }
        })
    };
    let gp = |e: u64| Some((vector::GP, Some(e)));
    // Selector, then what privilege 0 gets for DS and SS.
    for (selector, ds_, ss_) in [
        (0, None, None),
        (3, None, GP0),
        (0x10, None, None),
        (0x13, gp(0x10), gp(0x10)),
        (0x1b, None, gp(0x18)),
        (0x18, None, gp(0x18)),
        (0x08, None, gp(0x08)),
        (0x28, gp(0x28), gp(0x28)),
        (0x30, Some((vector::NP, Some(0x30))), gp(0x30)),
        (0x38, gp(0x38), gp(0x38)),
        (0x40, None, gp(0x40)),
        (0x48, None, gp(0x48)),
        (0x70, gp(0x70), gp(0x70)),
        (0x14, gp(0x14), gp(0x14)),
    ] {
        assert_eq!(outcome(&mut m, &load(0, selector)), ds_, "DS {selector:#x}");
        assert_eq!(outcome(&mut m, &load(1, selector)), ss_, "SS {selector:#x}");
    }
    let s = m.run(&[&load(2, 0x50)[..], &[0xf4]].concat());
    assert_eq!((s.seg[seg::FS].base, s.seg[seg::FS].limit), (0x1234, u32::MAX));
    assert_eq!(m.read_u64(GDT + 0x50) >> 40 & 1, 1, "marked accessed");
    m.user();
    let mut user = |which, selector| {
        let mut code = load(which, selector);
        code.extend([0x0f, 0x0b]);
        m.fault(&code).what()
    };
    let ok = (vector::UD, None);
    assert_eq!(user(0, 0x10), (vector::GP, Some(0x10)));
    assert_eq!(user(0, 0x1b), ok);
    assert_eq!(user(0, 0x48), ok, "conforming code may be read");
    assert_eq!(user(1, 0x1b), ok);
    assert_eq!(user(1, 0x18), (vector::GP, Some(0x18)), "RPL");
    assert_eq!(user(1, 0), (vector::GP, Some(0)), "null SS");
    assert_eq!(user(1, 0x33), (vector::SS, Some(0x30)), "absent");
}

#[test]
fn the_ldt_and_the_task_register_load_what_they_must() {
    let mut m = Machine::new();
    m.state.gdt.limit = 0x5f;
    m.put(GDT + 0x30, 0x0000_8230_0000_000f);
    m.put(GDT + 0x38, 0);
    m.put(GDT + 0x40, 0x0000_8930_1000_0067);
    m.put(GDT + 0x48, 0);
    m.put(GDT + 0x50, 0x0000_0930_1000_0067);
    m.put(GDT + 0x58, 0);
    m.put(0x30_0008, 0x00cf_9312_3400_ffff);
    let s = m.run(&asm(|a| {
        a.mov(eax, 0x30)?;
        a.lldt(ax)?;
        a.mov(ebx, 0x0c)?;
        a.mov(fs, ebx)?;
        a.mov(eax, 0x40)?;
        a.ltr(ax)?;
        a.str(ecx)?;
        a.sldt(edx)?;
        a.hlt()
    }));
    assert_eq!((s.ldtr.base, s.ldtr.limit), (0x30_0000, 15));
    assert_eq!(s.seg[seg::FS].base, 0x12_3400, "a segment from the LDT");
    assert_eq!((s.tr.base, s.tr.limit, s.tr.attributes & 15), (0x30_1000, 0x67, 11));
    assert_eq!((s.gpr[gpr::RCX], s.gpr[gpr::RDX]), (0x40, 0x30));
    assert_eq!(m.read_u64(GDT + 0x40) >> 40 & 15, 11, "busy");
    let ltr = |selector: u32| {
        asm(|a| {
            a.mov(eax, selector)?;
            a.ltr(ax)
        })
    };
    assert_eq!(outcome(&mut m, &ltr(0x40)), Some((vector::GP, Some(0x40))), "a busy one");
    assert_eq!(outcome(&mut m, &ltr(0)), GP0);
    assert_eq!(outcome(&mut m, &ltr(0x30)), Some((vector::GP, Some(0x30))), "an LDT");
    assert_eq!(outcome(&mut m, &ltr(0x44)), Some((vector::GP, Some(0x44))), "from the LDT");
    assert_eq!(outcome(&mut m, &ltr(0x50)), Some((vector::NP, Some(0x50))));
    let lldt = asm(|a| {
        a.mov(eax, 0x40)?;
        a.lldt(ax)
    });
    assert_eq!(outcome(&mut m, &lldt), Some((vector::GP, Some(0x40))));
}

#[test]
fn lar_lsl_verr_and_verw_tell_without_faulting() {
    let mut m = Machine::new();
    m.state.gdt.limit = 0x4f;
    m.put(GDT + 0x30, 0x0000_8c00_0000_0000);
    m.put(GDT + 0x38, 0);
    m.put(GDT + 0x40, 0x00cf_f100_0000_ffff);
    let mut ask = |selector: u32| {
        let s = m.run(&asm(|a| {
            a.mov(ebx, selector)?;
            a.mov(eax, 0x5555)?;
            a.mov(ecx, 0x5555)?;
            a.lar(eax, ebx)?;
            a.setz(dl)?;
            a.lsl(ecx, ebx)?;
            a.setz(dh)?;
            a.verr(bx)?;
            a.setz(r8b)?;
            a.verw(bx)?;
            a.setz(r9b)?;
            a.hlt()
        }));
        let flags = [s.gpr[2] as u8, (s.gpr[2] >> 8) as u8, s.gpr[8] as u8, s.gpr[9] as u8];
        (flags, s.gpr[0], s.gpr[1])
    };
    assert_eq!(ask(0), ([0; 4], 0x5555, 0x5555), "null");
    assert_eq!(ask(0x1000), ([0; 4], 0x5555, 0x5555), "outside");
    assert_eq!(ask(0x14), ([0; 4], 0x5555, 0x5555), "no LDT");
    assert_eq!(ask(0x08), ([1, 1, 1, 0], 0xaf_9b00, 0xffff_ffff), "code");
    assert_eq!(ask(0x10), ([1, 1, 1, 1], 0xcf_9300, 0xffff_ffff), "data");
    assert_eq!(ask(0x13), ([0; 4], 0x5555, 0x5555), "RPL above DPL");
    assert_eq!(ask(0x28), ([1, 1, 0, 0], 0x8b00, 0x67), "TSS");
    assert_eq!(ask(0x30), ([1, 0, 0, 0], 0x8c00, 0x5555), "a call gate has no limit");
    assert_eq!(ask(0x40), ([1, 1, 1, 0], 0xcf_f100, 0xffff_ffff), "read-only data");
}

#[test]
fn swapgs_and_the_base_instructions() {
    let mut m = Machine::new();
    m.state.seg[seg::GS].base = 0x1111;
    m.state.msrs.kernel_gs_base = 0x30_0000;
    m.put(0x30_0008, 0x2222);
    m.state.cr4 |= cr4::FSGSBASE;
    let s = m.run(&asm(|a| {
        a.swapgs()?;
        a.mov(rax, qword_ptr(8).gs())?;
        a.rdgsbase(rbx)?;
        a.mov(rcx, 0xffff_8000_0000_0000u64)?;
        a.wrfsbase(rcx)?;
        a.hlt()
    }));
    assert_eq!((s.gpr[gpr::RAX], s.gpr[gpr::RBX], s.msrs.kernel_gs_base), (0x2222, 0x30_0000, 0x1111));
    assert_eq!(s.seg[seg::FS].base, 0xffff_8000_0000_0000);
    let bad = asm(|a| {
        a.mov(rcx, 1u64 << 47)?;
        a.wrgsbase(rcx)
    });
    assert_eq!(outcome(&mut m, &bad), GP0);
    m.state.cr4 &= !cr4::FSGSBASE;
    assert_eq!(outcome(&mut m, &asm(|a| a.rdfsbase(rax))), Some((vector::UD, None)));
}

/// EAX, EBX, ECX, EDX of a leaf.
fn cpuid_leaf(m: &mut Machine, leaf: u32, sub: u32) -> [u32; 4] {
    let s = m.run(&asm(|a| {
        a.mov(eax, leaf)?;
        a.mov(ecx, sub)?;
        a.cpuid()?;
        a.hlt()
    }));
    [gpr::RAX, gpr::RBX, gpr::RCX, gpr::RDX].map(|r| s.gpr[r] as u32)
}

#[test]
fn cpuid_is_consistent() {
    let mut m = Machine::new();
    assert!(cpuid_leaf(&mut m, 0, 0)[0] >= 0x16);
    assert!(cpuid_leaf(&mut m, 0x8000_0000, 0)[0] >= 0x8000_0008);
    let mut brand = Vec::new();
    for leaf in 0x8000_0002..=0x8000_0004u32 {
        for word in cpuid_leaf(&mut m, leaf, 0) {
            brand.extend(word.to_le_bytes());
        }
    }
    let end = brand.iter().position(|&b| b == 0).expect("a terminator");
    assert!(brand[..end].iter().all(|b| b.is_ascii_graphic() || *b == b' ') && end > 0);
    assert!(brand[end..].iter().all(|&b| b == 0));
    assert_eq!(cpuid_leaf(&mut m, 0x4000_0000, 0)[1..], [0x4b4d_564b, 0x564b_4d56, 0x4d]);
    let widths = cpuid_leaf(&mut m, 0x8000_0008, 0)[0];
    assert_eq!((widths & 0xff, widths >> 8 & 0xff), (46, 48), "what the page walk takes");
}

#[test]
fn announced_features_execute_and_others_are_undefined() {
    let mut m = Machine::new();
    let [_, _, c1, d1] = cpuid_leaf(&mut m, 1, 0);
    let [_, b7, c7, d7] = cpuid_leaf(&mut m, 7, 0);
    let [_, _, c8, d8] = cpuid_leaf(&mut m, 0x8000_0001, 0);
    let sub_d = cpuid_leaf(&mut m, 0xd, 1)[0];
    m.state.cr4 |= cr4::FSGSBASE;
    m.state.gpr[gpr::RAX] = 0x30_0000;
    m.state.msrs.star = 8 << 32;
    m.state.msrs.lstar = CODE + 0x100;
    m.write(CODE + 0x100, &[0xf4]);
    let word = |w: u32, bit: u32| w >> bit & 1 != 0;
    let list: [(&str, bool, &[u8]); 47] = [
        ("FPU", word(d1, 0), &[0xd9, 0xe8]),
        ("TSC", word(d1, 4), &[0x0f, 0x31]),
        ("CX8", word(d1, 8), &[0x0f, 0xc7, 0x08]),
        ("CMOV", word(d1, 15), &[0x0f, 0x44, 0xc1]),
        ("CLFSH", word(d1, 19), &[0x0f, 0xae, 0x38]),
        ("MMX", word(d1, 23), &[0x0f, 0xfc, 0xc1]),
        ("FXSR", word(d1, 24), &[0x0f, 0xae, 0x00]),
        ("SSE", word(d1, 25), &[0x0f, 0x58, 0xc1]),
        ("SSE2", word(d1, 26), &[0x66, 0x0f, 0xfe, 0xc1]),
        ("SSE3", word(c1, 0), &[0xf2, 0x0f, 0x7c, 0xc1]),
        ("PCLMULQDQ", word(c1, 1), &[0x66, 0x0f, 0x3a, 0x44, 0xc1, 0]),
        ("MONITOR", word(c1, 3), &[0x0f, 0x01, 0xc8]),
        ("SSSE3", word(c1, 9), &[0x66, 0x0f, 0x38, 0x00, 0xc1]),
        ("FMA", word(c1, 12), &[0xc4, 0xe2, 0xf1, 0x98, 0xc2]),
        ("CX16", word(c1, 13), &[0x48, 0x0f, 0xc7, 0x08]),
        ("SSE4.1", word(c1, 19), &[0x66, 0x0f, 0x38, 0x10, 0xc1]),
        ("SSE4.2", word(c1, 20), &[0x66, 0x0f, 0x38, 0x37, 0xc1]),
        ("MOVBE", word(c1, 22), &[0x0f, 0x38, 0xf0, 0x08]),
        ("POPCNT", word(c1, 23), &[0xf3, 0x0f, 0xb8, 0xc8]),
        ("AES", word(c1, 25), &[0x66, 0x0f, 0x38, 0xdc, 0xc1]),
        ("XSAVE", word(c1, 26), &[0x0f, 0xae, 0x20]),
        ("XGETBV", word(c1, 27), &[0x0f, 0x01, 0xd0]),
        ("AVX", word(c1, 28), &[0xc5, 0xf0, 0x58, 0xc2]),
        ("F16C", word(c1, 29), &[0xc4, 0xe2, 0x79, 0x13, 0xc1]),
        ("RDRAND", word(c1, 30), &[0x0f, 0xc7, 0xf1]),
        ("FSGSBASE", word(b7, 0), &[0xf3, 0x48, 0x0f, 0xae, 0xc1]),
        ("BMI1", word(b7, 3), &[0xc4, 0xe2, 0x70, 0xf2, 0xc2]),
        ("AVX2", word(b7, 5), &[0xc5, 0xf5, 0xfe, 0xc2]),
        ("BMI2", word(b7, 8), &[0xc4, 0xe2, 0x6b, 0xf5, 0xc1]),
        ("INVPCID", word(b7, 10), &[0x66, 0x0f, 0x38, 0x82, 0x08]),
        ("RTM", word(b7, 11), &[0xc7, 0xf8, 0, 0, 0, 0]),
        ("RDSEED", word(b7, 18), &[0x0f, 0xc7, 0xf9]),
        ("ADX", word(b7, 19), &[0x66, 0x0f, 0x38, 0xf6, 0xc1]),
        ("SMAP", word(b7, 20), &[0x0f, 0x01, 0xcb]),
        ("CLFLUSHOPT", word(b7, 23), &[0x66, 0x0f, 0xae, 0x38]),
        ("CLWB", word(b7, 24), &[0x66, 0x0f, 0xae, 0x30]),
        ("SHA", word(b7, 29), &[0x0f, 0x38, 0xc8, 0xc1]),
        ("GFNI", word(c7, 8), &[0x66, 0x0f, 0x38, 0xcf, 0xc1]),
        ("RDPID", word(c7, 22), &[0xf3, 0x0f, 0xc7, 0xf9]),
        ("MOVDIRI", word(c7, 27), &[0x0f, 0x38, 0xf9, 0x08]),
        ("SERIALIZE", word(d7, 14), &[0x0f, 0x01, 0xe8]),
        ("LAHF", word(c8, 0), &[0x9f]),
        ("SSE4A", word(c8, 6), &[0x66, 0x0f, 0x79, 0xc1]),
        ("SYSCALL", word(d8, 11), &[0x0f, 0x05]),
        ("RDTSCP", word(d8, 27), &[0x0f, 0x01, 0xf9]),
        ("3DNow", word(d8, 31), &[0x0f, 0x0f, 0xc1, 0x9e]),
        ("XSAVEC", word(sub_d, 1), &[0x0f, 0xc7, 0x20]),
    ];
    for (name, announced, code) in list {
        m.write(0x30_0000, &[0; 512]);
        m.write(CODE, code);
        m.write(CODE + code.len() as u64, &[0xf4]);
        let s = m.go(&NoIo);
        let undefined = (HANDLERS..CODE).contains(&s.rip);
        if undefined {
            assert_eq!(Machine::vector(&s), vector::UD as u64, "{name}");
        }
        assert_eq!(undefined, !announced, "{name}: announced {announced}");
    }
}
