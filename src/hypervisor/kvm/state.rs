//! The portable state of a vCPU to and from the kernel's structures.
//!
//! The portable form is that of a processor between two instructions. An event that the kernel has
//! begun to deliver is therefore put back where it came from: an interrupt from the local APIC into
//! its requests (see [`Undelivered`]), an exception or software interrupt nowhere, since the
//! instruction that raised it has not been left and will raise it again.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_SHADOW, kvm_debugregs, kvm_dtable, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs,
    kvm_vcpu_events, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

use super::{HypervisorError, host};
use crate::arch::x86_64::{DescriptorTable, FpuState, Segment, VcpuState, gpr, seg};

/// Held off by STI, and by MOV SS.
const SHADOW: u8 = 1 | 2;
const STI: u8 = 1;
/// Type of a busy 64-bit task state segment.
const BUSY_TSS: u8 = 11;

/// An interrupt that the kernel had taken from the local APIC without the guest having seen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Undelivered(pub(super) u8);

pub(super) fn segment(s: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u16| u16::from(value & 1) << at;
    let attributes = u16::from(s.type_ & 15)
        | bit(s.s, 4)
        | u16::from(s.dpl & 3) << 5
        | bit(s.present, 7)
        | bit(s.avl, 12)
        | bit(s.l, 13)
        | bit(s.db, 14)
        | bit(s.g, 15);
    let attributes = if s.unusable != 0 { attributes & !(1 << 7) } else { attributes };
    Segment { selector: s.selector, base: s.base, limit: s.limit, attributes }
}

pub(super) fn kvm_segment_of(s: &Segment) -> kvm_segment {
    let bit = |at: u16| (s.attributes >> at & 1) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: (s.attributes & 15) as u8,
        present: bit(7),
        dpl: s.dpl(),
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: 1 - bit(7),
        padding: 0,
    }
}

fn table(t: &kvm_dtable) -> DescriptorTable {
    DescriptorTable { base: t.base, limit: t.limit }
}

fn kvm_table(t: &DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: t.base, limit: t.limit, padding: [0; 3] }
}

pub(super) fn regs_of(state: &VcpuState) -> kvm_regs {
    let g = &state.gpr;
    kvm_regs {
        rax: g[gpr::RAX],
        rbx: g[gpr::RBX],
        rcx: g[gpr::RCX],
        rdx: g[gpr::RDX],
        rsi: g[gpr::RSI],
        rdi: g[gpr::RDI],
        rsp: g[gpr::RSP],
        rbp: g[gpr::RBP],
        r8: g[8],
        r9: g[9],
        r10: g[10],
        r11: g[11],
        r12: g[12],
        r13: g[13],
        r14: g[14],
        r15: g[15],
        rip: state.rip,
        rflags: state.rflags,
    }
}

fn from_regs(state: &mut VcpuState, r: &kvm_regs) {
    state.gpr = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15,
    ];
    state.rip = r.rip;
    state.rflags = r.rflags;
}

fn from_sregs(state: &mut VcpuState, s: &kvm_sregs) {
    for (to, from) in [
        (seg::ES, &s.es),
        (seg::CS, &s.cs),
        (seg::SS, &s.ss),
        (seg::DS, &s.ds),
        (seg::FS, &s.fs),
        (seg::GS, &s.gs),
    ] {
        state.seg[to] = segment(from);
    }
    state.tr = segment(&s.tr);
    state.ldtr = segment(&s.ldt);
    state.gdt = table(&s.gdt);
    state.idt = table(&s.idt);
    state.cr0 = s.cr0;
    state.cr2 = s.cr2;
    state.cr3 = s.cr3;
    state.cr4 = s.cr4;
    state.efer = s.efer;
}

/// What `state` says, over the local APIC's part of `now`.
pub(super) fn sregs_of(state: &VcpuState, now: &kvm_sregs) -> kvm_sregs {
    let part = |n: usize| kvm_segment_of(&state.seg[n]);
    let mut tr = kvm_segment_of(&state.tr);
    if tr.unusable != 0 {
        // The processor has no machine without one.
        tr = kvm_segment { limit: 0x67, type_: BUSY_TSS, present: 1, ..kvm_segment::default() };
    }
    tr.type_ |= 2;
    kvm_sregs {
        es: part(seg::ES),
        cs: part(seg::CS),
        ss: part(seg::SS),
        ds: part(seg::DS),
        fs: part(seg::FS),
        gs: part(seg::GS),
        tr,
        ldt: kvm_segment_of(&state.ldtr),
        gdt: kvm_table(&state.gdt),
        idt: kvm_table(&state.idt),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        efer: state.efer,
        interrupt_bitmap: [0; 4],
        ..*now
    }
}

/// Where FXSAVE puts things, in bytes.
mod fxsave {
    pub(super) const CONTROL: usize = 0;
    pub(super) const STATUS: usize = 2;
    pub(super) const TAG: usize = 4;
    pub(super) const OPCODE: usize = 6;
    pub(super) const IP: usize = 8;
    pub(super) const DP: usize = 16;
    pub(super) const MXCSR: usize = 24;
    pub(super) const ST: usize = 32;
    pub(super) const XMM: usize = 160;
    /// Behind it, XSAVE's: which parts are not in their initial state.
    pub(super) const XSTATE_BV: usize = 512;
    /// x87 and SSE.
    pub(super) const PARTS: u64 = 3;
}

/// The kernel's save area: KVM_GET_FPU would leave out MXCSR.
fn load<const N: usize>(area: &kvm_xsave, at: usize) -> [u8; N] {
    std::array::from_fn(|n| area.region[(at + n) / 4].to_le_bytes()[(at + n) % 4])
}

fn store(area: &mut kvm_xsave, at: usize, bytes: &[u8]) {
    for (n, byte) in (at..).zip(bytes) {
        let word = &mut area.region[n / 4];
        *word = *word & !(0xff << (n % 4 * 8)) | u32::from(*byte) << (n % 4 * 8);
    }
}

fn fpu(area: &kvm_xsave) -> FpuState {
    let present = u64::from_le_bytes(load(area, fxsave::XSTATE_BV));
    let initial = FpuState::default();
    let mut state = FpuState { mxcsr: u32::from_le_bytes(load(area, fxsave::MXCSR)), ..initial };
    if present & 1 != 0 {
        let word = |at| u16::from_le_bytes(load(area, at));
        state.control = word(fxsave::CONTROL) & 0x1f7f;
        state.status = word(fxsave::STATUS);
        [state.tag] = load(area, fxsave::TAG);
        state.opcode = word(fxsave::OPCODE) & 0x7ff;
        state.ip = u64::from_le_bytes(load(area, fxsave::IP));
        state.dp = u64::from_le_bytes(load(area, fxsave::DP));
        let top = usize::from(state.status >> 11 & 7);
        for n in 0..8 {
            let at = fxsave::ST + n * 16;
            // The area has them relative to the top of the stack.
            state.st[(n + top) & 7] =
                (u64::from_le_bytes(load(area, at)), u16::from_le_bytes(load(area, at + 8)));
        }
    }
    if present & 2 != 0 {
        state.xmm = std::array::from_fn(|n| u128::from_le_bytes(load(area, fxsave::XMM + n * 16)));
    }
    state
}

/// Writes `f` into what the kernel gave.
fn put_fpu(area: &mut kvm_xsave, f: &FpuState) {
    store(area, fxsave::CONTROL, &f.control.to_le_bytes());
    store(area, fxsave::STATUS, &f.status.to_le_bytes());
    store(area, fxsave::TAG, &[f.tag, 0]);
    store(area, fxsave::OPCODE, &f.opcode.to_le_bytes());
    store(area, fxsave::IP, &f.ip.to_le_bytes());
    store(area, fxsave::DP, &f.dp.to_le_bytes());
    store(area, fxsave::MXCSR, &f.mxcsr.to_le_bytes());
    let top = usize::from(f.status >> 11 & 7);
    for n in 0..8 {
        let (significand, exponent) = f.st[(n + top) & 7];
        let at = fxsave::ST + n * 16;
        store(area, at, &significand.to_le_bytes());
        store(area, at + 8, &exponent.to_le_bytes());
    }
    for (n, register) in f.xmm.iter().enumerate() {
        store(area, fxsave::XMM + n * 16, &register.to_le_bytes());
    }
    let present = u64::from_le_bytes(load(area, fxsave::XSTATE_BV)) | fxsave::PARTS;
    store(area, fxsave::XSTATE_BV, &present.to_le_bytes());
}

#[allow(unsafe_code)]
fn set_fpu(fd: &VcpuFd, f: &FpuState) -> Result<(), HypervisorError> {
    let mut area = fd.get_xsave().map_err(host)?;
    put_fpu(&mut area, f);
    // SAFETY: larger areas are for features that a process has to ask its kernel for (AMX), which this
    // crate never does; the structure is as large as the kernel reads without them.
    unsafe { fd.set_xsave(&area) }.map_err(|_| HypervisorError::BadState("floating-point registers"))
}

/// The portable state but for the TSC's offset, and what was under way.
pub(super) fn get(fd: &VcpuFd) -> Result<(VcpuState, Option<Undelivered>), HypervisorError> {
    let mut state = VcpuState::default();
    from_regs(&mut state, &fd.get_regs().map_err(host)?);
    from_sregs(&mut state, &fd.get_sregs().map_err(host)?);
    state.fpu = fpu(&fd.get_xsave().map_err(host)?);
    let debug = fd.get_debug_regs().map_err(host)?;
    state.dr = [debug.db[0], debug.db[1], debug.db[2], debug.db[3], debug.dr6, debug.dr7];
    let xcrs = fd.get_xcrs().map_err(host)?;
    state.xcr0 = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).find(|x| x.xcr == 0).map_or(1, |x| x.value);
    state.msrs = super::msr::state(fd)?;
    state.halted = fd.get_mp_state().map_err(host)?.mp_state == KVM_MP_STATE_HALTED;
    let events = fd.get_vcpu_events().map_err(host)?;
    state.interrupt_shadow = events.interrupt.shadow & SHADOW != 0;
    state.nmi_blocked = events.nmi.masked != 0;
    state.nmi_pending = events.nmi.pending != 0 || events.nmi.injected != 0;
    let taken = events.interrupt.injected != 0 && events.interrupt.soft == 0;
    Ok((state, taken.then_some(Undelivered(events.interrupt.nr))))
}

/// Replaces the state but for the TSC.
pub(super) fn set(fd: &VcpuFd, state: &VcpuState) -> Result<(), HypervisorError> {
    let refused = |what| move |_| HypervisorError::BadState(what);
    let sregs = sregs_of(state, &fd.get_sregs().map_err(host)?);
    fd.set_sregs(&sregs).map_err(refused("control or segment registers"))?;
    fd.set_regs(&regs_of(state)).map_err(refused("general registers"))?;
    set_fpu(fd, &state.fpu)?;
    let mut xcrs = fd.get_xcrs().map_err(host)?;
    if let Some(xcr0) = xcrs.xcrs.iter_mut().find(|x| x.xcr == 0).filter(|x| x.value != state.xcr0) {
        xcr0.value = state.xcr0;
        fd.set_xcrs(&xcrs).map_err(refused("XCR0"))?;
    }
    let [db0, db1, db2, db3, dr6, dr7] = state.dr;
    let debug = kvm_debugregs { db: [db0, db1, db2, db3], dr6, dr7, ..kvm_debugregs::default() };
    fd.set_debug_regs(&debug).map_err(refused("debug registers"))?;
    super::msr::set(fd, &super::msr::pairs(&state.msrs, None))?;
    let mp_state = if state.halted { KVM_MP_STATE_HALTED } else { KVM_MP_STATE_RUNNABLE };
    fd.set_mp_state(kvm_mp_state { mp_state }).map_err(refused("activity state"))?;
    fd.set_vcpu_events(&events_of(state)).map_err(refused("pending events"))
}

fn events_of(state: &VcpuState) -> kvm_vcpu_events {
    let mut events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING,
        ..kvm_vcpu_events::default()
    };
    events.interrupt.shadow = if state.interrupt_shadow { STI } else { 0 };
    events.nmi.masked = state.nmi_blocked.into();
    events.nmi.pending = state.nmi_pending.into();
    events
}

/// The vCPU waits until somebody sets its state.
pub(super) fn set_waiting(fd: &VcpuFd) -> Result<(), HypervisorError> {
    fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_UNINITIALIZED }).map_err(host)
}

/// Brings the kernel's state from `old` to `new`, where one instruction lies between them.
pub(super) fn step(fd: &VcpuFd, old: &VcpuState, new: &VcpuState) -> Result<(), HypervisorError> {
    let now = fd.get_sregs().map_err(host)?;
    let system = |s: &VcpuState| (s.seg, s.tr, s.ldtr, s.gdt, s.idt, [s.cr0, s.cr2, s.cr3, s.cr4, s.efer]);
    if system(old) != system(new) {
        fd.set_sregs(&sregs_of(new, &now)).map_err(host)?;
    }
    fd.set_regs(&regs_of(new)).map_err(host)?;
    if old.fpu != new.fpu {
        set_fpu(fd, &new.fpu)?;
    }
    let pairs = super::msr::pairs(&new.msrs, Some(&old.msrs));
    if !pairs.is_empty() {
        super::msr::set(fd, &pairs)?;
    }
    if new.halted {
        fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_HALTED }).map_err(host)?;
    }
    let events = |s: &VcpuState| (s.interrupt_shadow, s.nmi_blocked);
    if events(old) != events(new) {
        fd.set_vcpu_events(&events_of(new)).map_err(host)?;
    }
    Ok(())
}
