//! The portable state comes back as it was set.
use super::*;

#[test]
fn state_that_is_set_comes_back() {
    on_each(|m| {
        let mut state = entry();
        state.gpr = std::array::from_fn(|n| 0x0123_4567_89ab_cdef_u64.rotate_left(4 * n as u32));
        state.rip = 0xffff_ffff_8100_0123;
        state.rflags = 0xad7;
        state.cr2 = 0x7f00_dead_beef;
        state.dr = [0x10, 0x20, 0x30, 0x40, 0xffff_0ff0, 0x400];
        state.seg[seg::FS].base = 0x7f00_1234_5678;
        state.seg[seg::GS].base = 0xffff_8880_0000_1000;
        state.ldtr = Segment { selector: 0x50, base: 0xffff_fe00_0000_5000, limit: 0xf, attributes: 0x82 };
        state.fpu.st = std::array::from_fn(|n| (0x8000_0000_0000_0000 + n as u64, 0x3fff + n as u16));
        state.fpu.status = 0x3821;
        state.fpu.tag = 0xa5;
        state.fpu.mxcsr = 0x1fa0;
        state.fpu.xmm = std::array::from_fn(|n| 0x1111_2222_3333_4444_5555_6666_7777_0000 + n as u128);
        state.msrs.star = 0x0023_0010_0000_0000;
        state.msrs.lstar = 0xffff_ffff_8180_0000;
        state.msrs.cstar = 0xffff_ffff_8180_1000;
        state.msrs.sfmask = 0x0004_7700;
        state.msrs.kernel_gs_base = 0x7f00_9876_0000;
        state.msrs.sysenter_cs = 0x10;
        state.msrs.sysenter_esp = 0xffff_fe00_0000_4000;
        state.msrs.sysenter_eip = 0xffff_ffff_8180_2000;
        state.interrupt_shadow = true;
        state.nmi_blocked = true;
        m.vcpu.set_state(&state).unwrap();
        let mut back = m.vcpu.state().unwrap();
        // A host without scaling has its own rate; the value is what counts.
        back.tsc_khz = state.tsc_khz;
        back.msrs.tsc_offset = state.msrs.tsc_offset;
        assert_eq!(back, state);
        state.halted = true;
        state.interrupt_shadow = false;
        m.vcpu.set_state(&state).unwrap();
        assert!(m.vcpu.state().unwrap().halted);
    });
}
