//! What ring 3 can bring about in the system: each fault with its error code, loads of segment registers,
//! transfers between segments, IRET in all forms, instructions that need a privilege.
//!
//! A [`Program`] is a few instructions of ring-3 code with the state they start from, ended by a HLT. The
//! tables in [`programs`] are run in a [`World`] on the software CPU, where each program that says what has
//! to come of it is checked, and on KVM where there is one. What the two leave must be the same: everything
//! that a handler in ring 0 can see ([`Seen`]).

mod kvm;
mod programs;
mod seen;
mod tests;
mod world;

use crate::arch::x86_64::VcpuState;

use seen::Seen;
use world::World;

/// What a program must end in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    /// Its last instruction, a HLT, is reached.
    End,
    /// A vector that has no error code, or whose code the table leaves open.
    Vector(u8),
    /// A vector and its error code.
    Code(u8, u32),
    /// A page fault with its error code and address.
    Page(u32, u64),
}

/// The state a program starts from.
pub(super) struct Setup {
    pub(super) state: VcpuState,
    /// Linear addresses below the kernel's, and what is written there.
    pub(super) memory: Vec<(u64, Vec<u8>)>,
    /// Offsets in the TSS, and what is written there.
    pub(super) tss: Vec<(u64, Vec<u8>)>,
}

impl Setup {
    /// Puts `words` on the stack, the first where RSP then points, each of `size` bytes.
    pub(super) fn push(&mut self, size: usize, words: &[u64]) {
        let at = self.state.gpr[crate::arch::x86_64::gpr::RSP];
        let bytes = words.iter().flat_map(|w| w.to_le_bytes()[..size].to_vec()).collect();
        self.memory.push((at, bytes));
    }
}

type Change = Box<dyn Fn(&mut Setup)>;

/// A few instructions in ring 3.
pub(super) struct Program {
    pub(super) name: String,
    /// 64, or 32 for compatibility mode.
    pub(super) bits: u32,
    /// Without the HLT.
    pub(super) code: Vec<u8>,
    pub(super) changes: Vec<Change>,
    pub(super) expect: Option<Expect>,
    /// General registers that nobody can foretell, as a bit mask.
    pub(super) open: u16,
}

impl Program {
    /// 64-bit code.
    pub(super) fn new(name: impl Into<String>, code: &[u8]) -> Self {
        let (name, code) = (name.into(), code.to_vec());
        Self { name, bits: 64, code, changes: Vec::new(), expect: None, open: 0 }
    }

    /// 32-bit code, in compatibility mode.
    pub(super) fn compat(name: impl Into<String>, code: &[u8]) -> Self {
        let mut program = Self::new(name, code);
        program.bits = 32;
        program
    }

    /// Changes what it starts from.
    pub(super) fn with(mut self, change: impl Fn(&mut Setup) + 'static) -> Self {
        self.changes.push(Box::new(change));
        self
    }

    pub(super) fn flags(self, flags: u64) -> Self {
        self.with(move |s| s.state.rflags |= flags)
    }

    /// RAX at the start.
    pub(super) fn rax(self, value: u64) -> Self {
        self.with(move |s| s.state.gpr[0] = value)
    }

    /// RBX at the start: where most programs have their memory operand.
    pub(super) fn at(self, address: u64) -> Self {
        self.with(move |s| s.state.gpr[3] = address)
    }

    pub(super) fn open(mut self, registers: &[usize]) -> Self {
        self.open = registers.iter().fold(0, |all, r| all | 1 << r);
        self
    }

    /// Address of its first instruction, where no change has moved it.
    pub(super) fn start(&self) -> u64 {
        world::START
    }

    pub(super) fn ends(mut self) -> Self {
        self.expect = Some(Expect::End);
        self
    }

    pub(super) fn raises(mut self, vector: u8) -> Self {
        self.expect = Some(Expect::Vector(vector));
        self
    }

    pub(super) fn code(mut self, vector: u8, error: u32) -> Self {
        self.expect = Some(Expect::Code(vector, error));
        self
    }

    pub(super) fn page(mut self, error: u32, cr2: u64) -> Self {
        self.expect = Some(Expect::Page(error, cr2));
        self
    }
}
