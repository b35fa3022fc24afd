//! What a handler in ring 0 finds when a program has ended in it.

use std::fmt::Write;

use super::{Expect, Program};
use crate::arch::x86_64::{FpuState, Segment, VcpuState, rflags, seg, vector};

/// The program reached its HLT.
const END: u8 = 0xff;
/// It did not end in a handler.
const LOST: u8 = 0xfe;

/// Everything visible, with what has no meaning made equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) vector: u8,
    /// Error code, where one was pushed.
    pub(super) error: Option<u64>,
    /// RIP, CS, RFLAGS, RSP, SS as they were pushed; a call gate's frame has no RFLAGS.
    pub(super) frame: Vec<u64>,
    pub(super) cr2: u64,
    pub(super) dr6: u64,
    pub(super) gpr: [u64; 16],
    /// RFLAGS in the handler.
    pub(super) flags: u64,
    /// All in encoding order.
    pub(super) seg: [Segment; 6],
    pub(super) fpu: FpuState,
    /// Data area, GDT, TSS, LDT, pages.
    pub(super) memory: Vec<u8>,
    pub(super) why: String,
}

impl Seen {
    pub(super) fn new(
        vector: u8,
        mut frame: Vec<u64>,
        state: &VcpuState,
        memory: Vec<u8>,
        program: &Program,
        end: u64,
    ) -> Self {
        frame.truncate(6);
        let error = (frame.len() == 6).then(|| frame.remove(0));
        let mut seen = Self { vector, error, frame, memory, ..Self::lost(state, String::new()) };
        for register in (0..16).filter(|r| program.open >> r & 1 != 0) {
            seen.gpr[register] = 0;
        }
        let ended = seen.frame.first() == Some(&end);
        if seen.vector == vector::GP && seen.error == Some(0) && ended {
            seen.vector = END;
            seen.error = None;
            if let Some(flags) = seen.frame.get_mut(2) {
                // The HLT's.
                *flags &= !rflags::RF;
            }
        }
        seen
    }

    /// A program that has not ended in a handler, for the reason `why`.
    pub(super) fn lost(state: &VcpuState, why: String) -> Self {
        let mut s = state.seg;
        for (which, s) in s.iter_mut().enumerate() {
            if s.attributes & 1 << 7 == 0 {
                // Nothing but the selector is there, and the base of FS and GS.
                let base = if matches!(which, seg::FS | seg::GS) { s.base } else { 0 };
                *s = Segment { selector: s.selector, base, ..Segment::default() };
            }
        }
        let (gpr, flags, fpu, dr6) = (state.gpr, state.rflags, state.fpu, state.dr[4]);
        let (cr2, frame, memory) = (state.cr2, Vec::new(), Vec::new());
        Self { vector: LOST, error: None, frame, cr2, dr6, gpr, flags, seg: s, fpu, memory, why }
    }

    /// Vector and error code, in words.
    pub(super) fn what(&self) -> String {
        match (self.vector, self.error) {
            (END, _) => "end".to_owned(),
            (LOST, _) => self.why.clone(),
            (vector, None) => format!("#{vector:#x}"),
            (vector, Some(error)) => format!("#{vector:#x}({error:#x})"),
        }
    }

    /// Whether it is what the table wants.
    pub(super) fn is(&self, expect: Expect) -> bool {
        let error = self.error.map(|e| e as u32);
        match expect {
            Expect::End => self.vector == END,
            Expect::Vector(vector) => self.vector == vector,
            Expect::Code(vector, code) => self.vector == vector && error == Some(code),
            Expect::Page(code, cr2) => self.vector == vector::PF && error == Some(code) && self.cr2 == cr2,
        }
    }

    /// What differs in `kvm`, one a line; empty when they agree.
    pub(super) fn differences(&self, kvm: &Self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, a: String, b: String| {
            if a != b {
                let _ = writeln!(out, "  {name}: soft {a} kvm {b}");
            }
        };
        line("vector", self.what(), kvm.what());
        for (i, name) in ["rip", "cs", "rflags", "rsp", "ss"].iter().enumerate() {
            let word = |s: &Self| s.frame.get(i).map_or("-".to_owned(), |w| format!("{w:#x}"));
            line(&format!("pushed {name}"), word(self), word(kvm));
        }
        line("cr2", format!("{:#x}", self.cr2), format!("{:#x}", kvm.cr2));
        line("dr6", format!("{:#x}", self.dr6), format!("{:#x}", kvm.dr6));
        line("rflags", format!("{:#x}", self.flags), format!("{:#x}", kvm.flags));
        for i in 0..16 {
            line(&format!("r{i}"), format!("{:#x}", self.gpr[i]), format!("{:#x}", kvm.gpr[i]));
        }
        for (i, name) in ["es", "cs", "ss", "ds", "fs", "gs"].iter().enumerate() {
            line(name, format!("{:x?}", self.seg[i]), format!("{:x?}", kvm.seg[i]));
        }
        line("fpu", format!("{:x?}", self.fpu), format!("{:x?}", kvm.fpu));
        let lines = self.memory.chunks(8).zip(kvm.memory.chunks(8)).enumerate().filter(|(_, (a, b))| a != b);
        for (i, (a, b)) in lines.take(8) {
            line(&format!("memory {:#x}", i * 8), format!("{a:02x?}"), format!("{b:02x?}"));
        }
        out
    }
}
