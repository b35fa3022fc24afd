//! Every x87 opcode from random states, against the silicon this test runs on, and what silicon
//! cannot be asked for here: #MF, #NM and faults.

use crate::arch::x86_64::{cr0, vector};

use super::super::tests::{CODE, Machine};

#[test]
fn unmasked_exception_is_reported_by_the_next_waiting_instruction() {
    let mut m = Machine::new();
    m.state.fpu.control = 0x37b;
    // fldz; fld1; fdivrp st(1), st; fnstsw ax; fld1; hlt
    let s = m.run(&[0xd9, 0xee, 0xd9, 0xe8, 0xde, 0xf1, 0xdf, 0xe0, 0xd9, 0xe8, 0xf4]);
    assert_eq!(Machine::vector(&s), u64::from(vector::MF));
    assert_eq!(s.gpr[0] & 0xb8ff, 0xb084, "busy, summary and ZE; nothing popped");
    assert_eq!(m.read_u64(s.gpr[4]), CODE + 8, "the waiting instruction's address");
    assert_eq!(s.fpu.ip, CODE + 4, "the faulting instruction's address");
    assert_eq!(s.fpu.opcode, 0x6f1);
}

#[test]
fn pending_exceptions_are_ignored_without_numeric_errors() {
    let mut m = Machine::new();
    m.state.cr0 &= !cr0::NE;
    m.state.fpu.control = 0x37e;
    // fchs (underflow); fwait; fninit; hlt
    let s = m.run(&[0xd9, 0xe0, 0x9b, 0xdb, 0xe3, 0xf4]);
    assert_eq!(s.rip, CODE + 6);
}

#[test]
fn device_not_available() {
    for (control, code, faults) in [
        (cr0::TS, [0xd9, 0xe8, 0xf4], true),
        (cr0::EM, [0xdf, 0xe0, 0xf4], true),
        (cr0::TS, [0x9b, 0x90, 0xf4], false),
        (cr0::TS | cr0::MP, [0x9b, 0x90, 0xf4], true),
        (cr0::MP, [0x9b, 0x90, 0xf4], false),
        // fxsave [rax] in three bytes
        (cr0::TS, [0x0f, 0xae, 0x00], true),
    ] {
        let mut m = Machine::new();
        m.state.cr0 |= control;
        let s = m.run(&code);
        assert_eq!(s.rip != CODE + 3, faults, "{control:#x} {code:x?}");
        if faults {
            assert_eq!(Machine::vector(&s), u64::from(vector::NM));
        }
    }
}

#[test]
fn a_page_fault_leaves_the_stack_alone() {
    let mut m = Machine::new();
    m.state.gpr[0] = 1 << 40;
    // fld1; fstp qword [rax]
    let s = m.run(&[0xd9, 0xe8, 0xdd, 0x18, 0xf4]);
    assert_eq!(Machine::vector(&s), u64::from(vector::PF));
    assert_eq!((s.fpu.tag, s.fpu.status), (0x80, 7 << 11));
    assert_eq!(s.fpu.ip, CODE);
}

#[test]
fn fxrstor_refuses_bad_images() {
    let mut m = Machine::new();
    m.state.gpr[0] = 0x30_0008;
    let s = m.run(&[0x0f, 0xae, 0x08, 0xf4]);
    assert_eq!(Machine::vector(&s), u64::from(vector::GP));
    m.state.gpr[0] = 0x30_0000;
    m.write(0x30_0018, &0x1_0000u32.to_le_bytes());
    let s = m.run(&[0x0f, 0xae, 0x08, 0xf4]);
    assert_eq!(Machine::vector(&s), u64::from(vector::GP));
    m.write(0x30_0018, &0x1f80u32.to_le_bytes());
    let s = m.run(&[0x0f, 0xae, 0x08, 0xf4]);
    assert_eq!(s.rip, CODE + 4);
    assert_eq!(s.fpu.control, 0x40);
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod silicon {
    #![allow(unsafe_code)]

    use std::arch::asm;

    use iced_x86::{Decoder, DecoderOptions, Mnemonic};
    use vm_memory::{Bytes, GuestAddress};

    use super::super::super::tests::{Machine, NoIo};
    use crate::arch::x86_64::gpr;
    use crate::hypervisor::{Exit, Vcpu};

    /// Code, then data, at the same address in the host process and in the guest.
    const BASE: u64 = 0x200_0000;
    const IMAGE: u64 = BASE + 0x1000;
    const RESULT: u64 = BASE + 0x1400;
    const DATA: u64 = BASE + 0x1800;
    const DATA_LEN: usize = 256;

    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }
        fn below(&mut self, n: u64) -> u64 {
            self.next() % n
        }
        fn extended(&mut self) -> [u8; 10] {
            let bits = self.next();
            let sig = match self.below(6) {
                0 => 1 << 63,
                1 => bits,
                2 => bits << self.below(64) | 1 << 63,
                3 => 0,
                _ => bits | 1 << 63,
            };
            let sign = (self.next() as u16) & 0x8000;
            let exponent = match self.below(8) {
                0 => [0, 1, 0x7fff, 0x7ffe][self.below(4) as usize],
                1 => self.next() as u16 & 0x7fff,
                2 => 0x3fff - 1074 + self.below(60) as u16,
                _ => 0x3fff - 16 + self.below(80) as u16,
            };
            let mut out = [0; 10];
            out[..8].copy_from_slice(&sig.to_le_bytes());
            out[8..].copy_from_slice(&(exponent | sign).to_le_bytes());
            out
        }
        /// An FXSAVE image with nothing pending.
        fn image(&mut self) -> [u8; 512] {
            let mut image = [0; 512];
            let masks = if self.below(3) == 0 { self.next() as u16 & 0x3f } else { 0x3f };
            let control = self.next() as u16 & 0xf00 | masks | 0x40;
            let status = self.next() as u16 & (0x7f00 | 0x40 | masks);
            let tag = match self.below(4) {
                0 => self.next() as u8,
                1 => 0xff,
                _ => !(1u16 << (status >> 11 & 7).wrapping_sub(1 + self.below(3) as u16).rem_euclid(8)) as u8,
            };
            image[..2].copy_from_slice(&control.to_le_bytes());
            image[2..4].copy_from_slice(&status.to_le_bytes());
            image[4] = tag;
            image[6..8].copy_from_slice(&(self.next() as u16 & 0x7ff).to_le_bytes());
            image[8..16].copy_from_slice(&(self.next() >> 17).to_le_bytes());
            image[16..24].copy_from_slice(&(self.next() >> 17).to_le_bytes());
            image[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
            for i in 0..8 {
                let v = self.extended();
                image[32 + 16 * i..][..10].copy_from_slice(&v);
            }
            for byte in &mut image[160..416] {
                *byte = self.next() as u8;
            }
            image
        }
    }

    /// Maps the test's page range in this process, once.
    fn map() {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            // SAFETY: a fresh mapping that replaces nothing.
            let p = unsafe {
                libc::mmap(
                    BASE as *mut libc::c_void,
                    0x3000,
                    libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                    -1,
                    0,
                )
            };
            assert_eq!(p as u64, BASE, "the address is taken in this process");
        });
    }

    /// The instruction between loads and stores of the state, ended by `end`.
    fn program(instruction: &[u8], end: u8) -> Vec<u8> {
        let mut code = vec![0x48, 0x0f, 0xae, 0x0e]; // fxrstor64 [rsi]
        code.extend([0x41, 0x50, 0x9d]); // push r8; popfq
        code.extend(instruction);
        code.extend([0x9c, 0x41, 0x59]); // pushfq; pop r9
        code.extend([0x48, 0x0f, 0xae, 0x02]); // fxsave64 [rdx]
        code.push(end);
        code
    }

    #[derive(PartialEq)]
    struct Outcome {
        image: Vec<u8>,
        data: Vec<u8>,
        rax: u64,
        flags: u64,
    }

    fn put(at: u64, bytes: &[u8]) {
        // SAFETY: inside the mapping of `map`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
    }

    fn get(at: u64, len: usize) -> Vec<u8> {
        // SAFETY: inside the mapping of `map`.
        unsafe { std::slice::from_raw_parts(at as *const u8, len) }.to_vec()
    }

    fn on_silicon(instruction: &[u8], image: &[u8], data: &[u8], rax: u64, flags: u64) -> Outcome {
        put(BASE, &program(instruction, 0xc3));
        put(IMAGE, image);
        put(RESULT, &[0xcc; 512]);
        put(DATA, data);
        let (mut rax, mut out) = (rax, 0u64);
        // SAFETY: the program keeps to its registers and to the mapping; nothing is left pending.
        unsafe {
            asm!(
                "call {code}", "fninit", "cld",
                code = in(reg) BASE,
                inout("rax") rax, in("rsi") IMAGE, in("rdx") RESULT, in("rdi") DATA, in("r8") flags,
                out("r9") out,
                clobber_abi("C"),
            );
        }
        let mask = 0x8d5;
        std::mem::swap(&mut out, &mut rax);
        Outcome { image: get(RESULT, 512), data: get(DATA, DATA_LEN), rax: out, flags: rax & mask }
    }

    fn on_soft(
        m: &mut Machine,
        instruction: &[u8],
        image: &[u8],
        data: &[u8],
        rax: u64,
        flags: u64,
    ) -> Outcome {
        m.write(BASE, &program(instruction, 0xf4));
        m.write(IMAGE, image);
        m.write(RESULT, &[0xcc; 512]);
        m.write(DATA, data);
        m.state.rip = BASE;
        m.state.gpr[gpr::RAX] = rax;
        m.state.gpr[gpr::RSI] = IMAGE;
        m.state.gpr[gpr::RDX] = RESULT;
        m.state.gpr[gpr::RDI] = DATA;
        m.state.gpr[8] = flags;
        m.vcpu.set_state(&m.state).unwrap();
        assert_eq!(m.vcpu.run(&NoIo).unwrap(), Exit::Halted);
        let s = m.vcpu.state().unwrap();
        let mut out =
            Outcome { image: vec![0; 512], data: vec![0; DATA_LEN], rax: s.gpr[0], flags: s.gpr[9] & 0x8d5 };
        m.ram.memory().read_slice(&mut out.image, GuestAddress(RESULT)).unwrap();
        m.ram.memory().read_slice(&mut out.data, GuestAddress(DATA)).unwrap();
        out
    }

    /// Every x87 instruction with a register operand, or with memory at [rdi + 64].
    fn instructions() -> Vec<(Vec<u8>, Mnemonic)> {
        let mut all = Vec::new();
        let mut add = |bytes: Vec<u8>| {
            let ins = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
            if !ins.is_invalid() && ins.len() == bytes.len() {
                all.push((bytes, ins.mnemonic()));
            }
        };
        for escape in 0xd8..=0xdf {
            for modrm in 0xc0..=0xff {
                add(vec![escape, modrm]);
            }
            for reg in 0..8 {
                add(vec![escape, 0x47 | reg << 3, 64]);
                add(vec![0x66, escape, 0x47 | reg << 3, 64]);
            }
        }
        add(vec![0x9b]);
        for reg in 0..2 {
            // fxsave and fxrstor, both sizes; 208 bytes would not hold them, so they use rsi.
            add(vec![0x0f, 0xae, 0x06 | reg << 3]);
            add(vec![0x48, 0x0f, 0xae, 0x06 | reg << 3]);
        }
        all
    }

    fn near(a: &[u8], b: &[u8]) -> bool {
        let key = |v: &[u8]| {
            let sig = u64::from_le_bytes(v[..8].try_into().unwrap());
            let se = u16::from_le_bytes(v[8..10].try_into().unwrap());
            (se >> 15, i128::from(se & 0x7fff) << 63 | i128::from(sig & !(1 << 63)))
        };
        let ((s, x), (t, y)) = (key(a), key(b));
        a == b || s == t && (x - y).abs() <= 1
    }

    fn same(mnemonic: Mnemonic, a: &Outcome, b: &Outcome) -> bool {
        use Mnemonic as M;
        if a == b {
            return true;
        }
        let approximate = matches!(
            mnemonic,
            M::Fsin | M::Fcos | M::Fsincos | M::Fptan | M::Fpatan | M::F2xm1 | M::Fyl2x | M::Fyl2xp1
        );
        if !approximate || (&a.data, a.rax, a.flags) != (&b.data, b.rax, b.flags) {
            return false;
        }
        let c1 = |i: usize| if i == 3 { !2 } else { !0u8 };
        (0..32).all(|i| a.image[i] & c1(i) == b.image[i] & c1(i))
            && a.image[160..] == b.image[160..]
            && (0..8).all(|i| near(&a.image[32 + 16 * i..][..10], &b.image[32 + 16 * i..][..10]))
    }

    /// Cases whose results the manual leaves open.
    fn open(mnemonic: Mnemonic, image: &[u8]) -> bool {
        let exponent = u16::from_le_bytes([image[40], image[41]]) & 0x7fff;
        match mnemonic {
            Mnemonic::F2xm1 => (0x3fff..0x7fff).contains(&exponent),
            Mnemonic::Fyl2xp1 => (0x3ffd..0x7fff).contains(&exponent),
            _ => false,
        }
    }

    #[test]
    fn every_opcode_is_silicons() {
        map();
        let mut m = Machine::new();
        let mut r = Random(0x1bad_5eed_0dd5_ca1e);
        let rounds: u32 = std::env::var("CC_X87_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(100);
        let mut failures = Vec::new();
        let mut cases = 0u64;
        for (bytes, mnemonic) in instructions() {
            for _ in 0..rounds {
                let image = r.image();
                let mut data = [0u8; DATA_LEN];
                data.iter_mut().for_each(|b| *b = r.next() as u8);
                if r.below(2) == 0 {
                    let v = r.extended();
                    data[64..74].copy_from_slice(&v);
                }
                // Floats in memory: special exponents come up.
                match r.below(6) {
                    0 => data[66..68].copy_from_slice(&[0, 0x80]),
                    1 => data[66] |= 0x80,
                    2 => data[67] = 0x7f,
                    3 => data[71] = 0x7f,
                    _ => {}
                }
                let flags = 2 | r.next() & 0x8d5;
                let rax = r.next();
                if open(mnemonic, &image) {
                    continue;
                }
                cases += 1;
                let silicon = on_silicon(&bytes, &image, &data, rax, flags);
                let soft = on_soft(&mut m, &bytes, &image, &data, rax, flags);
                if !same(mnemonic, &silicon, &soft) {
                    let differs: Vec<_> = (0..416)
                        .filter(|&i| silicon.image[i] != soft.image[i])
                        .map(|i| format!("{i}:{:02x}/{:02x}", silicon.image[i], soft.image[i]))
                        .collect();
                    failures.push(format!(
                        "{mnemonic:?} {bytes:02x?} silicon/soft {differs:?} data {} rax {:x}/{:x} flags {:x}/{:x}\n  from {:02x?} st0 {:02x?} st1 {:02x?} mem {:02x?}",
                        silicon.data == soft.data,
                        silicon.rax,
                        soft.rax,
                        silicon.flags,
                        soft.flags,
                        &image[..8],
                        &image[32..42],
                        &image[48..58],
                        &data[64..80],
                    ));
                    break;
                }
            }
        }
        println!("{cases} cases");
        assert!(cases > 1000);
        assert!(failures.is_empty(), "{} opcodes differ:\n{}", failures.len(), failures.join("\n"));
    }
}
