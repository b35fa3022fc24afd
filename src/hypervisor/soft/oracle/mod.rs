//! The silicon oracle: generated instruction sequences run on the host's own CPU and on the software
//! CPU, from the same state, and everything a program can see afterwards is compared.
//!
//! A *case* is a seed. [`generate`] turns it into machine code (built from what the decoder says every
//! byte pattern means, see [`templates`]), register and memory contents. [`native`] runs it in an
//! executable page of this process, [`guest`] in ring 3 of a vCPU whose page tables give it the
//! same virtual addresses: the software CPU's, and KVM's where there is one; [`compare`] lists the
//! differences. Faults are results like any other.
//!
//! Only built for tests on x86-64 Linux. Tests print how to repeat a failing case.

#![allow(unsafe_code)]

mod compare;
mod generate;
mod guest;
mod native;
mod quirks;
mod rng;
mod system;
mod templates;
mod tests;
mod undefined;
mod values;

use iced_x86::Code;

use crate::arch::x86_64::FpuState;

pub(super) use native::with_sigfpe;
use quirks::Quirks;

/// Address of the code area, read-only and executable for snippets.
pub(super) const CODE: u64 = 0x1000_0000;
/// Bytes of code area: two pages, so that instructions can lie across their border.
pub(super) const CODE_LEN: usize = 0x2000;
/// Eight bytes in the code area that hold the address every snippet jumps to when it is done.
pub(super) const EXIT_SLOT: u64 = CODE + CODE_LEN as u64 - 8;
/// 64-bit code in the code area that ends a snippet; 32-bit snippets jump to it.
pub(super) const EXIT: u64 = EXIT_SLOT - 8;
/// Address of the data area. The page before it and the page after [`READ_ONLY`] are not mapped.
pub(super) const ARENA: u64 = 0x1010_0000;
/// Bytes of writable data; the last page of it is where RSP starts.
pub(super) const ARENA_LEN: usize = 0x4000;
/// Address of one read-only data page, right after the writable ones.
pub(super) const READ_ONLY: u64 = ARENA + ARENA_LEN as u64;
/// Base of GS while a snippet runs.
pub(super) const GS_BASE: u64 = ARENA + 0x800;
/// Selectors of 64-bit user code and data, the same on both sides (snippets can read them).
pub(super) const USER_CS: u16 = 0x33;
/// 32-bit user code, see [`USER_CS`].
pub(super) const USER_CS32: u16 = 0x23;
/// See [`USER_CS`]. In DS and ES too when the code is 32-bit.
pub(super) const USER_SS: u16 = 0x2b;

/// The registers of a ring-3 program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CpuImage {
    /// In encoding order.
    pub(super) gpr: [u64; 16],
    pub(super) rip: u64,
    pub(super) rflags: u64,
    pub(super) fpu: FpuState,
}

/// An exception that ended a snippet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) vector: u8,
    pub(super) error: u32,
    /// Only meaningful for #PF.
    pub(super) cr2: u64,
}

/// What a snippet left behind, besides memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) cpu: CpuImage,
    /// None when the snippet reached its end.
    pub(super) fault: Option<Fault>,
}

/// A place to run cases on.
pub(super) trait Side {
    /// The writable data area.
    fn arena(&mut self) -> &mut [u8; ARENA_LEN];
    /// Runs `case` on memory that holds `template` with the case's patches.
    fn run(&mut self, case: &Case, template: &[u8; ARENA_LEN]) -> Outcome;
}

/// Whose results the software CPU's are measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reference {
    /// The host's processor, as a process of the host's kernel sees it.
    Process,
    /// The same at privilege 3 of a vCPU on KVM, whose handlers see what the processor pushes.
    Kvm(Quirks),
}

/// A piece of a sequence that may be cut off behind: one instruction with what it needs around it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    /// Code under test.
    pub(super) code: Code,
    /// Length in bytes of the sequence up to and with this unit.
    pub(super) end: usize,
    /// RFLAGS bits that are undefined when the sequence ends here.
    pub(super) undefined: u64,
}

/// Bytes put into the data area before a case runs.
#[derive(Debug, Clone)]
pub(super) struct Patch {
    /// Offset in the data area.
    pub(super) offset: usize,
    pub(super) bytes: Vec<u8>,
}

/// One generated test.
#[derive(Debug, Clone)]
pub(super) struct Case {
    /// 64, or 32 for compatibility mode.
    pub(super) bits: u32,
    /// Where the code lies.
    pub(super) entry: u64,
    /// The sequence, without the jump at its end.
    pub(super) bytes: Vec<u8>,
    pub(super) units: Vec<Unit>,
    pub(super) cpu: CpuImage,
    pub(super) patches: Vec<Patch>,
}

impl Case {
    /// The code as it is run, with the jump to the way out.
    pub(super) fn program(&self) -> Vec<u8> {
        let mut code = self.bytes.clone();
        if self.bits == 64 {
            // jmp [EXIT_SLOT]
            code.extend_from_slice(&[0xff, 0x24, 0x25]);
            code.extend_from_slice(&(EXIT_SLOT as u32).to_le_bytes());
        } else {
            // jmp USER_CS:EXIT
            code.push(0xea);
            code.extend_from_slice(&(EXIT as u32).to_le_bytes());
            code.extend_from_slice(&USER_CS.to_le_bytes());
        }
        code
    }

    /// The same case with only the first `units` units.
    pub(super) fn truncated(&self, units: usize) -> Self {
        let mut case = self.clone();
        case.units.truncate(units);
        case.bytes.truncate(case.units.last().map_or(0, |u| u.end));
        case
    }
}

/// Reads an FXSAVE64 image.
pub(super) fn fpu_from_fxsave(image: &[u8; 512]) -> FpuState {
    let u16_at = |o: usize| u16::from_le_bytes([image[o], image[o + 1]]);
    let u64_at = |o: usize| u64::from_le_bytes(image[o..o + 8].try_into().unwrap());
    let mut fpu = FpuState {
        control: u16_at(0),
        status: u16_at(2),
        tag: image[4],
        opcode: u16_at(6),
        ip: u64_at(8),
        dp: u64_at(16),
        mxcsr: u32::from_le_bytes(image[24..28].try_into().unwrap()),
        ..FpuState::default()
    };
    let top = usize::from(fpu.status >> 11 & 7);
    for i in 0..8 {
        fpu.st[(top + i) & 7] = (u64_at(32 + 16 * i), u16_at(40 + 16 * i));
    }
    for (i, xmm) in fpu.xmm.iter_mut().enumerate() {
        *xmm = u128::from_le_bytes(image[160 + 16 * i..176 + 16 * i].try_into().unwrap());
    }
    fpu
}

/// Makes an FXRSTOR64 image.
pub(super) fn fpu_to_fxsave(fpu: &FpuState) -> [u8; 512] {
    let mut image = [0; 512];
    image[0..2].copy_from_slice(&fpu.control.to_le_bytes());
    image[2..4].copy_from_slice(&fpu.status.to_le_bytes());
    image[4] = fpu.tag;
    image[6..8].copy_from_slice(&fpu.opcode.to_le_bytes());
    image[8..16].copy_from_slice(&fpu.ip.to_le_bytes());
    image[16..24].copy_from_slice(&fpu.dp.to_le_bytes());
    image[24..28].copy_from_slice(&fpu.mxcsr.to_le_bytes());
    let top = usize::from(fpu.status >> 11 & 7);
    for i in 0..8 {
        let (significand, exponent) = fpu.st[(top + i) & 7];
        image[32 + 16 * i..40 + 16 * i].copy_from_slice(&significand.to_le_bytes());
        image[40 + 16 * i..42 + 16 * i].copy_from_slice(&exponent.to_le_bytes());
    }
    for (i, xmm) in fpu.xmm.iter().enumerate() {
        image[160 + 16 * i..176 + 16 * i].copy_from_slice(&xmm.to_le_bytes());
    }
    image
}
