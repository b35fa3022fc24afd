use vm_memory::{Bytes, GuestAddress};

use super::super::fixtures::tiny_elf;
use super::*;

fn machine() -> acpi::Description {
    acpi::Description {
        cpus: 1,
        serial_gsi: Some(4),
        virtio: vec![acpi::VirtioMmio { base: 0xd000_0000, size: 0x1000, gsi: 5 }],
    }
}

fn read<const N: usize>(ram: &GuestRam, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    ram.memory().read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

fn u64_at(ram: &GuestRam, at: u64) -> u64 {
    u64::from_le_bytes(read(ram, at))
}

#[test]
fn everything_is_where_the_boot_protocol_wants_it() {
    let ram = GuestRam::new(128 << 20).unwrap();
    let code: Vec<u8> = (0..5000u32).map(|i| i as u8 | 1).collect();
    let kernel = Vmlinux::Bytes(tiny_elf(&code).into());
    let initramfs = vec![0xa5u8; 10_001];
    let state = load(
        &ram,
        &Boot {
            kernel: &kernel,
            initramfs: &initramfs,
            command_line: "console=ttyS0 x=1",
            machine: &machine(),
        },
    )
    .unwrap();

    assert_eq!(state.rip, 0x100_0000);
    let zero_page = state.gpr[gpr::RSI];
    let mut loaded = vec![0; code.len()];
    ram.memory().read_slice(&mut loaded, GuestAddress(0x100_0000)).unwrap();
    assert_eq!(loaded, code);

    // Setup header: boot flag, magic, command line.
    assert_eq!(read::<2>(&ram, zero_page + 0x1fe), [0x55, 0xaa]);
    assert_eq!(&read::<4>(&ram, zero_page + 0x202), b"HdrS");
    let line_at = u32::from_le_bytes(read(&ram, zero_page + 0x228));
    assert_eq!(&read::<18>(&ram, line_at.into()), b"console=ttyS0 x=1\0");

    // Initramfs: at the top, page-aligned, whole.
    let at = u64::from(u32::from_le_bytes(read(&ram, zero_page + 0x218)));
    let len = u64::from(u32::from_le_bytes(read(&ram, zero_page + 0x21c)));
    assert_eq!((at % PAGE_SIZE, len), (0, 10_001));
    assert!(at + len <= 128 << 20 && at + len + PAGE_SIZE > 128 << 20);
    assert_eq!(read::<1>(&ram, at + len - 1), [0xa5]);

    let rsdp = u64_at(&ram, zero_page + 0x70);
    assert_eq!(&read::<8>(&ram, rsdp), b"RSD PTR ");

    check_entry(&ram, &state);
}

#[test]
fn other_processors_start_in_memory_that_stays() {
    let kernel = Vmlinux::Bytes(tiny_elf(&[0x90; 64]).into());
    let machine = acpi::Description { cpus: 2, ..machine() };
    let boot = Boot { kernel: &kernel, initramfs: &[], command_line: "", machine: &machine };
    let ram = GuestRam::new(128 << 20).unwrap();
    load(&ram, &boot).unwrap();
    let state = secondary_state(0x9_a000);
    assert_eq!((state.rip, state.rflags & rflags::IF), (0x9_a000, 0));
    check_entry(&ram, &state);
    let map = e820(ram.size(), ACPI + 0x2000, true);
    let kept = |at: u64| map.iter().any(|e| e.2 == E820_RESERVED && (e.0..e.0 + e.1).contains(&at));
    assert!(kept(state.cr3) && kept(state.cr3 + 5 * PAGE_SIZE) && kept(state.gdt.base));
}

fn check_entry(ram: &GuestRam, state: &VcpuState) {
    // Walk the page tables for addresses all over the first 4 GiB.
    for address in [0, 0x7123, 0x100_0000, 0xbfff_f000, 0xfee0_0000, 0xffff_fff0u64] {
        let l4 = u64_at(ram, state.cr3 + (address >> 39 & 511) * 8);
        let l3 = u64_at(ram, (l4 & !0xfff) + (address >> 30 & 511) * 8);
        let l2 = u64_at(ram, (l3 & !0xfff) + (address >> 21 & 511) * 8);
        assert_eq!((l4 & 3, l3 & 0x83, l2 & 0x83), (3, 3, 0x83), "{address:#x}");
        assert_eq!((l2 & !0x1f_ffff) | (address & 0x1f_ffff), address);
    }

    // The descriptors in RAM say what the hidden parts of the segment registers hold.
    for (selector, attributes) in [(0x10u64, 0xa09bu16), (0x18, 0xc093)] {
        let entry = u64_at(ram, state.gdt.base + selector);
        assert_eq!((entry >> 40) as u16 & 0xf0ff, attributes);
        assert_eq!(entry & 0x000f_0000_0000_ffff, 0x000f_0000_0000_ffff);
        assert_eq!(entry & 0xff00_00ff_ffff_0000, 0);
    }
    assert!(state.seg[seg::CS].long() && !state.seg[seg::CS].big());
    assert_eq!((state.seg[seg::CS].selector, state.seg[seg::DS].selector), (0x10, 0x18));
    assert_eq!(state.rflags & rflags::IF, 0);
}

#[test]
fn the_memory_map_matches_ram() {
    for size in [64 << 20, MMIO_HOLE_START, MMIO_HOLE_START + (512 << 20), 6 << 30] {
        let map = e820(size, 0xe_2000, true);
        let ram: u64 = map.iter().filter(|e| e.2 == E820_RAM).map(|e| e.1).sum();
        // All but the PC's legacy area below 1 MiB.
        assert_eq!(ram, size - (HIGH_MEMORY - LOW_MEMORY_END), "{size:#x}");
        for (start, len, kind) in &map {
            let end = start + len;
            assert!(end <= MMIO_HOLE_START || *start >= MMIO_HOLE_END, "{start:#x}+{len:#x} kind {kind}");
        }
        for pair in map.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0);
        }
    }
}

#[test]
fn too_little_memory_says_how_much_is_enough() {
    let kernel = Vmlinux::Bytes(tiny_elf(&[0x90; 64]).into());
    let machine = machine();
    let boot = Boot { kernel: &kernel, initramfs: &[0; 4096], command_line: "", machine: &machine };
    let small = GuestRam::new(16 << 20).unwrap();
    let Err(BootError::MemoryTooSmall { have: 16, need }) = load(&small, &boot) else { panic!() };
    load(&GuestRam::new(need << 20).unwrap(), &boot).unwrap();
    let less = GuestRam::new((need - 1) << 20).unwrap();
    assert!(matches!(load(&less, &boot), Err(BootError::MemoryTooSmall { .. })));
}

#[test]
fn a_file_is_loaded_like_bytes_and_a_cut_one_refused() {
    use std::io::Write;
    let elf = tiny_elf(&[0x90; 3000]);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&elf).unwrap();
    let kernel = Vmlinux::File(file.path().to_owned());
    let machine = machine();
    let boot = Boot { kernel: &kernel, initramfs: &[], command_line: "", machine: &machine };
    let ram = GuestRam::new(128 << 20).unwrap();
    let state = load(&ram, &boot).unwrap();
    assert_eq!(read::<2>(&ram, state.rip + 2998), [0x90, 0x90]);
    // No initramfs, no pointer to one.
    assert_eq!(read::<8>(&ram, state.gpr[gpr::RSI] + 0x218), [0; 8]);

    file.as_file().set_len(2000).unwrap();
    let refused = load(&GuestRam::new(128 << 20).unwrap(), &boot).unwrap_err();
    assert!(refused.chain().contains("truncated"), "{}", refused.chain());
}

#[test]
fn command_lines_that_would_overrun_are_refused() {
    let kernel = Vmlinux::Bytes(tiny_elf(&[0x90; 64]).into());
    let machine = machine();
    let ram = GuestRam::new(64 << 20).unwrap();
    for line in ["x".repeat(cmdline::MAX_LEN), "a\0b".into()] {
        let boot = Boot { kernel: &kernel, initramfs: &[], command_line: &line, machine: &machine };
        assert!(matches!(load(&ram, &boot), Err(BootError::CommandLine { .. })));
    }
}
