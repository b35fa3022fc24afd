//! Local APICs of backends that have their own: what is set comes back, and goes on from there.

use super::*;
use crate::state::Lapic;

/// One in use: enabled, in x2APIC mode, with interrupts that wait and are in service.
fn used() -> Lapic {
    let mut lapic = Lapic {
        id: 0,
        base: 0xfee0_0d00,
        tpr: 0x20,
        dfr: u32::MAX,
        svr: 0x1ff,
        icr: 0x41,
        lvt: [0x1_0040, 0x1_0000, 0x1_0000, 0x1_0700, 0x400, 0x1_0000],
        timer_initial: 5_000_000,
        timer_divide: 0xb,
        ..Lapic::default()
    };
    lapic.irr[2] = 1 << 3;
    lapic.isr[3] = 1 << 4;
    lapic.tmr[2] = 1 << 3;
    lapic
}

fn own_apics(test: impl Fn(&mut Machine)) {
    on_each(|m| {
        if m.vm.message_sink().is_some() {
            m.vcpu.set_state(&m.state).unwrap();
            test(m);
        } else {
            assert!(m.vcpu.local_apic(0).unwrap().is_none());
            assert!(m.vcpu.set_local_apic(&used(), 0).is_err());
        }
    });
}

#[test]
fn registers_that_are_set_come_back() {
    own_apics(|m| {
        for x2apic in [true, false] {
            let mut lapic = used();
            if !x2apic {
                lapic.base &= !(1 << 10);
                (lapic.ldr, lapic.dfr) = (0x0100_0000, u32::MAX);
            }
            m.vcpu.set_local_apic(&lapic, 1000).unwrap();
            let back = m.vcpu.local_apic(1000).unwrap().unwrap();
            assert_eq!(back, lapic, "x2APIC: {x2apic}");
            // It is one that the chipset could have, too.
            crate::state::container::Writer::new().put(0, &back).unwrap();
        }
    });
}

#[test]
fn timers_go_on_with_what_was_left() {
    own_apics(|m| {
        let now = m.clock.now();
        for (mode, name) in [(0, "once"), (1 << 17, "again and again"), (2 << 17, "at a deadline")] {
            let mut lapic = used();
            // Not masked, so that it runs; interrupts are off.
            lapic.lvt[0] = 0x40 | mode;
            lapic.timer_initial = if mode == 2 << 17 { 0 } else { 4_000_000_000 };
            lapic.deadline = Some(now + 4_000_000_000);
            m.vcpu.set_local_apic(&lapic, now).unwrap();
            let back = m.vcpu.local_apic(now).unwrap().unwrap();
            let left = back.deadline.expect(name) - now;
            // Some of it has passed; never is there more than there was.
            assert!(left <= 4_000_000_001 && left > 1_000_000_000, "{name}: {left}");
            lapic.deadline = None;
            m.vcpu.set_local_apic(&lapic, now).unwrap();
            assert_eq!(m.vcpu.local_apic(now).unwrap().unwrap().deadline, None, "{name}");
        }
    });
}
