//! Values for tests: one of each kind, accepted by the part it is of, its fields told apart.

use super::*;

pub(crate) fn machine() -> Machine {
    Machine {
        memory: 512 << 20,
        cpus: 1,
        machine_time_ns: 1_234_567_890,
        wall_clock_ns: 1_700_000_000_123_456_789,
        cpu_model: "x86-64-v2".into(),
        devices: vec!["vsock".into(), "entropy".into(), "console".into()],
    }
}

pub(crate) fn vcpu() -> Vcpu {
    let segment = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
    Vcpu {
        gpr: std::array::from_fn(|n| 0x1111_1111_1111_1111 * n as u64),
        rip: 0xffff_ffff_8100_0123,
        rflags: 0x0024_0ad7,
        seg: [
            segment(0x2b, 0xc0f3),
            segment(0x10, 0xa09b),
            segment(0x18, 0xc093),
            segment(0x2a, 0xc0f3),
            Segment { base: 0x7f00_1234_5678, ..Segment::default() },
            Segment { base: 0xffff_8880_0000_1000, ..Segment::default() },
        ],
        tr: Segment { selector: 0x40, base: 0xffff_fe00_0000_3000, limit: 0x4087, attributes: 0x8b },
        ldtr: Segment { selector: 0x50, base: 0xffff_fe00_0000_5000, limit: 0xf, attributes: 0x82 },
        gdt: DescriptorTable { base: 0xffff_fe00_0000_1000, limit: 0x7f },
        idt: DescriptorTable { base: 0xffff_fe00_0000_0000, limit: 0xfff },
        cr0: 0x8005_003b,
        cr2: 0x7f00_dead_beef,
        cr3: 0x0123_4000,
        cr4: 0x0030_06f0,
        xcr0: 1,
        efer: 0xd01,
        dr: [0x10, 0x20, 0x30, 0x40, 0xffff_0ff0, 0x455],
        fpu: Fpu {
            significands: std::array::from_fn(|n| 0x8000_0000_0000_0000 + n as u64),
            exponents: std::array::from_fn(|n| 0x3fff + n as u16),
            control: 0x37f,
            status: 0x3821,
            tag: 0xa5,
            opcode: 0x5d9,
            ip: 0x7f00_0000_1001,
            dp: 0x7f00_0000_2002,
            xmm: std::array::from_fn(|n| [0xaaaa_0000 + n as u64, 0xbbbb_0000_0000_0000 + n as u64]),
            mxcsr: 0x1fa0,
        },
        msrs: Msrs {
            star: 0x0023_0010_0000_0000,
            lstar: 0xffff_ffff_8180_0000,
            cstar: 0xffff_ffff_8180_1000,
            sfmask: 0x0025_7fd5,
            kernel_gs_base: 0x7f00_9876_0000,
            sysenter_cs: 0x10,
            sysenter_esp: 0xffff_fe00_0000_4000,
            sysenter_eip: 0xffff_ffff_8180_2000,
            tsc_aux: 3,
            pat: 0x0407_0506_0007_0106,
            misc_enable: 1,
            spec_ctrl: 4,
            mtrr_def_type: 0x806,
            kvm_system_time: 0x0100_0001,
            kvm_wall_clock: 0x0100_0040,
            tsc_offset: u64::MAX - 99,
        },
        tsc_khz: 2_300_000,
        halted: true,
        interrupt_shadow: false,
        nmi_blocked: true,
        nmi_pending: true,
    }
}

pub(crate) fn lapic() -> Lapic {
    Lapic {
        id: 0,
        base: 0xfee0_0d00,
        tpr: 0x21,
        ldr: 0x0300_0000,
        dfr: 0x0fff_ffff,
        svr: 0x1ff,
        esr: 0x20,
        esr_pending: 0x40,
        icr: 0x0000_0005_0008_08fd,
        lvt: [0x400ec, 0x10033, 0x10400, 0x10700, 0x400, 0xfe],
        irr: [0x1_0000, 2, 4, 8, 0x10, 0x20, 0x40, 0x80],
        isr: [0, 1, 0, 0, 0, 0, 0, 0],
        tmr: [0x8000_0000, 2, 0, 0, 0, 0, 0, 0],
        timer_initial: 0,
        timer_divide: 0xb,
        deadline: Some(1_234_999_999),
        nmi: true,
        init: false,
        startup: Some(0x9a),
        wait_for_startup: false,
        lint0: true,
    }
}

pub(crate) fn ioapic() -> IoApic {
    let mut redirection = std::array::from_fn(|n| 0x0001_0030 + n as u64);
    redirection[5] = 0x0300_0000_0000_c831;
    IoApic { select: 0x1a, id: 0x0100_0000, redirection, lines: 0x20 }
}

pub(crate) fn pic() -> Pic {
    Pic {
        chips: [
            PicChip {
                irr: 0x04,
                imr: 0xfb,
                isr: 0x01,
                lines: 0x11,
                elcr: 0x20,
                base: 0x30,
                first: 3,
                awaited_icw: 4,
                needs_icw4: true,
                auto_eoi: true,
                special_mask: true,
                poll: true,
                ..PicChip::default()
            },
            PicChip {
                irr: 0x08,
                imr: 0xf7,
                lines: 0x08,
                elcr: 0x0c,
                base: 0x38,
                single: true,
                rotate_auto: true,
                fully_nested: true,
                read_isr: true,
                ..PicChip::default()
            },
        ],
    }
}

pub(crate) fn pit() -> Pit {
    Pit {
        channels: [
            PitChannel {
                mode: 2,
                access: 3,
                count: Some(0x1_0000),
                written_low: Some(0x34),
                read_high: true,
                gate: true,
                since: Some(123_456),
                ..PitChannel::default()
            },
            PitChannel { mode: 5, access: 1, gate: true, ..PitChannel::default() },
            PitChannel {
                mode: 0,
                bcd: true,
                access: 2,
                count: Some(9900),
                latched_count: Some(0x1234),
                latched_status: Some(0x61),
                counted: 77,
                gate: true,
                ..PitChannel::default()
            },
        ],
        control: 3,
        deadline: Some(1_240_000_000),
    }
}

pub(crate) fn rtc() -> Rtc {
    let mut ram: Vec<u8> = (0..128).map(|n| n ^ 0x55).collect();
    ram[0x0a] = 0x26;
    Rtc {
        index: 0x0c,
        ram,
        flags: 0x50,
        offset_ns: -3_600_000_000_000,
        seen_second: 1_700_000_000,
        seen_ns: 17,
    }
}

pub(crate) fn uart() -> Uart {
    Uart {
        baud_divisor_low: 1,
        baud_divisor_high: 2,
        interrupt_enable: 5,
        interrupt_identification: 4,
        line_control: 0x13,
        line_status: 0x61,
        modem_control: 0x0b,
        modem_status: 0xb0,
        scratch: 0x5a,
        fifo: b"typed".to_vec(),
        input: b" ahead".to_vec(),
    }
}

pub(crate) fn virtio_transport() -> VirtioTransport {
    let queue = |n: u64, size: u16| VirtioQueue {
        size,
        ready: true,
        desc_table: 0x10_0000 * (n + 1),
        avail_ring: 0x10_0000 * (n + 1) + 0x4000,
        used_ring: 0x10_0000 * (n + 1) + 0x8000,
        next_avail: 0x1234,
        next_used: 0x1230 + n as u16,
    };
    VirtioTransport {
        device_id: 19,
        status: 0xf,
        interrupt_status: 1,
        device_features_sel: 1,
        driver_features_sel: 0,
        driver_features: 1 << 32 | 1 << 29 | 1 << 28,
        queue_sel: 2,
        queues: vec![queue(0, 256), queue(1, 128), VirtioQueue { size: 16, ..VirtioQueue::default() }],
    }
}

pub(crate) fn file_client() -> files::FileClient {
    files::FileClient {
        tag: "cc-root".into(),
        minor: 38,
        shared: true,
        nodes: vec![(2, 1), (17, 300)],
        files: vec![(17, 0, 2)],
        dirs: vec![(1, 0, 1)],
    }
}

fn host_directory() -> files::HostDirectory {
    files::HostDirectory {
        path: b"/srv/\xffdata".to_vec(),
        read_only: true,
        owners: files::Owners::Recorded(1000, 100),
        cache_ns: 1_000_000_000,
        open: (4096, 128),
        next: 9,
        nodes: vec![files::HostNode {
            number: 8,
            parent: 1,
            name: b"name".to_vec(),
            inode: (8, 1, 123_456_789, (1_700_000_000, 5), 0o100_000),
            lookups: 3,
        }],
        handles: vec![(4, 8, 0o2001)],
        last_handle: 5,
    }
}

pub(crate) fn file_systems() -> [files::FileSystem; 3] {
    use files::{Below, BelowData, BelowDirectory, BelowFile, Body, Chunk, Name, Node, Upper, Xattrs};
    let node = |number, mode, body| Node {
        number,
        mode,
        uid: 1000,
        gid: 100,
        rdev: 0x501,
        links: 2,
        times: [(1_600_000_000, 1), (-2, 999_999_999), (1_700_000_000, 0)],
        lookups: 7,
        changed: true,
        xattrs: Xattrs::Own(vec![(b"user.a".to_vec(), b"value".to_vec())]),
        host: None,
        body,
    };
    let directory = |below| Body::Directory {
        parent: 1,
        below,
        positions: 4,
        directories: 1,
        next: 6,
        names: vec![
            Name { name: b"gone".to_vec(), node: None },
            Name { name: b"new".to_vec(), node: Some((90, 0o100_000, 5)) },
        ],
    };
    let file = |below| Body::File {
        size: 70_000,
        below: Some(BelowFile { file: below, len: 5000, blocks: 16 }),
        chunks: vec![Chunk { index: 1, have: 3, hole: 0x8000, offset: 4096, len: 4464, crc: 0xdead_beef }],
    };
    let upper = |below, nodes| {
        let limits = [64 << 30, 4 << 20, 1 << 30, 64 << 20];
        files::FileSystem::Overlay(Upper {
            below,
            limits,
            next: 100,
            root_changed: (1_700_000_001, 2),
            nodes,
        })
    };
    let layers = upper(
        Below::Layers(vec![1, 0]),
        vec![
            node(1, 0o040_755, directory(BelowDirectory::Layers(vec![(1, 0), (0, 3)]))),
            Node { xattrs: Xattrs::Layer(1, 2), ..node(90, 0o100_644, file(BelowData::Layer(0, 2))) },
            node(91, 0o120_777, Body::Symlink(b"target".to_vec())),
            node(92, 0o020_600, Body::Special),
        ],
    );
    let below = Node {
        xattrs: Xattrs::Host,
        host: Some((8, 123_456_789)),
        ..node(90, 0o100_644, file(BelowData::Host(8, 123_456_789)))
    };
    let over = upper(
        Below::Directory(host_directory()),
        vec![node(1, 0o040_755, directory(BelowDirectory::Host(1, 2))), below],
    );
    [layers, over, files::FileSystem::Directory(host_directory())]
}

pub(crate) fn guest() -> files::Guest {
    files::Guest {
        env: vec![(b"PATH".to_vec(), b"/bin".to_vec()), (b"N".to_vec(), b"\xff".to_vec())],
        current_dir: Some(b"/srv".to_vec()),
        user: Some(b"app:staff".to_vec()),
        ids: (Some(1000), None, Some(vec![1, 2])),
        image_config: Some("{}".into()),
        file_systems: 3,
        layers: 2,
    }
}
