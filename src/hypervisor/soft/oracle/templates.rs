//! What to test: every opcode the decoder knows in 64-bit mode that a ring-3 program may run on the
//! baseline, each with the byte patterns that mean it.
//!
//! The patterns are found by asking the decoder about all of them, so no second table of encodings
//! exists that could be wrong in the same way as the emulator.

use std::collections::BTreeMap;

use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, EncodingKind, Instruction, Mnemonic, OpKind};

/// One way to write an opcode, up to the ModRM byte.
#[derive(Debug, Clone)]
pub(super) struct Template {
    /// Address-size, operand-size and repeat prefixes.
    pub(super) prefixes: Vec<u8>,
    /// REX.W.
    pub(super) wide: bool,
    /// The opcode with its escape bytes.
    pub(super) opcode: Vec<u8>,
    /// Values for the byte after the opcode. Those below 0xc0 have mod and r/m 0: other values of them
    /// mean the same opcode. Opcodes without ModRM have all.
    pub(super) modrm: Vec<u8>,
}

/// All opcodes under test in code of `bits` bits.
pub(super) fn discover(bits: u32) -> Vec<(Code, Vec<Template>)> {
    let mut found: BTreeMap<usize, Vec<Template>> = BTreeMap::new();
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    let repeats: [&[u8]; 6] = [&[], &[0x66], &[0xf2], &[0xf3], &[0x66, 0xf2], &[0x66, 0xf3]];
    let modrm: Vec<u8> = (0..8).map(|reg| reg << 3).chain(0xc0..=0xff).collect();
    let mut instruction = Instruction::default();
    for map in maps {
        for byte in 0..=255_u8 {
            if map.is_empty() && is_prefix_or_escape(bits, byte)
                || map == [0x0f] && matches!(byte, 0x38 | 0x3a)
            {
                continue;
            }
            for (repeat, wide, short) in repeats
                .iter()
                .flat_map(|r| [false, true].map(|w| (r, w)))
                .flat_map(|(r, w)| [false, true].map(|a| (r, w, a)))
                .filter(|(_, wide, _)| bits == 64 || !wide)
            {
                let mut prefixes = if short { vec![0x67] } else { vec![] };
                prefixes.extend_from_slice(repeat);
                let mut opcode = map.to_vec();
                opcode.push(byte);
                let mut bytes = prefixes.clone();
                if wide {
                    bytes.push(0x48);
                }
                bytes.extend_from_slice(&opcode);
                let at = bytes.len();
                bytes.resize(at + 12, 0);
                let mut here: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
                for &modrm in &modrm {
                    bytes[at] = modrm;
                    Decoder::new(bits, &bytes, DecoderOptions::NONE).decode_out(&mut instruction);
                    if !instruction.is_invalid() && wanted(bits, &instruction) {
                        here.entry(instruction.code() as usize).or_default().push(modrm);
                    }
                }
                for (code, modrm) in here {
                    found.entry(code).or_default().push(Template {
                        prefixes: prefixes.clone(),
                        wide,
                        opcode: opcode.clone(),
                        modrm,
                    });
                }
            }
        }
    }
    let codes: Vec<Code> = Code::values().collect();
    found.into_iter().map(|(code, templates)| (codes[code], templates)).collect()
}

fn is_prefix_or_escape(bits: u32, byte: u8) -> bool {
    matches!(byte, 0x0f | 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
        || bits == 64 && matches!(byte, 0x40..=0x4f)
}

/// Processor features whose instructions are tested: x86-64-v2 and what stock kernels and userlands
/// use beyond it.
fn in_baseline(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL186
            | F::INTEL286
            | F::INTEL386
            | F::INTEL486
            | F::X64
            | F::AES
            | F::BMI1
            | F::CLFSH
            | F::CMOV
            | F::CMPXCHG16B
            | F::CX8
            | F::FPU
            | F::FPU287
            | F::FPU387
            | F::FXSR
            | F::LZCNT
            | F::MMX
            | F::MOVBE
            | F::MSR
            | F::MULTIBYTENOP
            | F::PAUSE
            | F::PCLMULQDQ
            | F::POPCNT
            | F::PREFETCHW
            | F::CET_IBT
            | F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::SSSE3
    )
}

fn wanted(bits: u32, instruction: &Instruction) -> bool {
    let code = instruction.code();
    code.encoding() == EncodingKind::Legacy
        && code.cpuid_features().iter().all(|&f| in_baseline(f))
        && !excluded(bits, instruction)
}

/// What cannot be compared, and why.
fn excluded(bits: u32, instruction: &Instruction) -> bool {
    use Mnemonic as M;
    match instruction.mnemonic() {
        // A system call of the host.
        M::Syscall | M::Sysenter => true,
        // Different on every run or every processor.
        M::Rdtsc | M::Rdtscp | M::Cpuid | M::Rdpmc => true,
        // The host's kernel emulates them for its programs (UMIP).
        M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw => true,
        // Would take the test's thread pointer away.
        M::Lss | M::Lfs | M::Lgs | M::Lds | M::Les => true,
        M::Mov => {
            instruction.op0_kind() == OpKind::Register && instruction.op0_register().is_segment_register()
        }
        M::Pop => instruction.op0_register().is_segment_register(),
        // In 32-bit code they would lead back into 64-bit code.
        M::Retf | M::Iret | M::Iretd | M::Iretq => bits == 32,
        M::Call | M::Jmp => {
            bits == 32 && (instruction.is_call_far_indirect() || instruction.is_jmp_far_indirect())
                || instruction.is_call_far()
                || instruction.is_jmp_far()
        }
        // The result is undefined.
        M::Bswap => instruction.op0_register().is_gpr16(),
        _ => false,
    }
}
