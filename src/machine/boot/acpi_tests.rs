use super::*;

const AT: u32 = 0xe_0000;

fn machine() -> Description {
    let virtio =
        (0..5).map(|i| VirtioMmio { base: 0xd000_0000 + i * 0x1000, size: 0x1000, gsi: 5 + i }).collect();
    Description { cpus: 3, serial_gsi: Some(4), virtio }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The table at guest-physical `at`, its checksum checked.
fn table(block: &[u8], at: u64, signature: &[u8; 4]) -> Vec<u8> {
    let start = (at - u64::from(AT)) as usize;
    assert_eq!(&block[start..start + 4], signature);
    let len = u32_at(block, start + 4) as usize;
    let bytes = block[start..start + len].to_vec();
    assert_eq!(bytes.iter().fold(0u8, |sum, &b| sum.wrapping_add(b)), 0, "{signature:?}");
    bytes
}

#[test]
fn every_table_is_reached_from_the_rsdp_and_sums_to_zero() {
    let block = tables(&machine(), AT);
    assert_eq!(&block[..8], b"RSD PTR ");
    assert_eq!(block[..20].iter().fold(0u8, |s, &b| s.wrapping_add(b)), 0);
    assert_eq!(block[..36].iter().fold(0u8, |s, &b| s.wrapping_add(b)), 0);
    let xsdt = table(&block, u64_at(&block, 24), b"XSDT");
    assert_eq!(xsdt.len(), 36 + 2 * 8);
    let fadt = table(&block, u64_at(&xsdt, 36), b"FACP");
    let madt = table(&block, u64_at(&xsdt, 44), b"APIC");

    // Hardware-reduced, with a reset register: the i8042's pulse.
    let flags = u32_at(&fadt, 112);
    assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
    assert_eq!((fadt[116], u64_at(&fadt, 120), fadt[128]), (1, 0x64, 0xfe));
    let dsdt = table(&block, u64_at(&fadt, 140), b"DSDT");

    // Power off: type 5 into the sleep control register.
    for (at, port) in [(244, 0x600), (256, 0x601)] {
        assert_eq!((&fadt[at..at + 4], u64_at(&fadt, at + 4)), (&[1, 8, 0, 1][..], port));
    }
    let off = [b"\x08_S5_\x12".as_slice(), &[8, 4, 0x0a, 5, 0x0a, 5, 0, 0]].concat();
    assert!(dsdt.windows(off.len()).any(|w| w == off), "{dsdt:x?}");

    assert_eq!(u32_at(&madt, 36), LOCAL_APIC);
    let mut kinds = Vec::new();
    let mut at = 44;
    while at < madt.len() {
        kinds.push(madt[at]);
        if madt[at] == 0 {
            assert_eq!((madt[at + 2], madt[at + 3], u32_at(&madt, at + 4)), (madt[at + 3], madt[at + 2], 1));
        }
        at += usize::from(madt[at + 1]);
    }
    assert_eq!((at, kinds.as_slice()), (madt.len(), [0, 0, 0, 1, 2, 0x10].as_slice()));

    // The mailbox, version 0.
    assert_eq!(&madt[madt.len() - 16..madt.len() - 8], &[0x10, 16, 0, 0, 0, 0, 0, 0]);
    assert_eq!(u64_at(&madt, madt.len() - 8), MAILBOX);

    for (index, device) in machine().virtio.iter().enumerate() {
        let name = format!("V{index:03X}");
        let start = dsdt.windows(4).position(|w| w == name.as_bytes()).unwrap();
        let body = &dsdt[start..(start + 96).min(dsdt.len())];
        assert!(body.windows(9).any(|w| w == b"LNRO0005\0"));
        // Memory32Fixed, read-write; then an extended interrupt: consumer, level, high, not shared.
        let mut memory = vec![0x86, 9, 0, 1];
        memory.extend(device.base.to_le_bytes());
        memory.extend(device.size.to_le_bytes());
        memory.extend([0x89, 6, 0, 1, 1]);
        memory.extend(device.gsi.to_le_bytes());
        assert!(body.windows(memory.len()).any(|w| w == memory), "{name}");
    }
    assert!(dsdt.windows(4).any(|w| w == b"COM1"));
}

#[test]
fn without_serial_and_devices() {
    let block = tables(&Description { cpus: 1, serial_gsi: None, virtio: Vec::new() }, AT);
    assert!(!block.windows(4).any(|w| w == b"COM1"));
    let many = Description {
        cpus: 255,
        serial_gsi: Some(4),
        virtio: vec![VirtioMmio { base: 0xd000_0000, size: 0x1000, gsi: 5 }; 300],
    };
    let dsdt = tables(&many, AT);
    assert!(dsdt.windows(4).any(|w| w == b"V0FF") && !dsdt.windows(4).any(|w| w == b"V100"));
}

#[test]
#[ignore = "needs iasl"]
fn the_reference_compiler_understands_the_tables() {
    let dir = tempfile::tempdir().unwrap();
    let block = tables(&machine(), AT);
    for signature in [b"FACP", b"APIC", b"DSDT", b"XSDT"] {
        let start = block.windows(4).position(|w| w == signature).unwrap();
        let len = u32_at(&block, start + 4) as usize;
        let name = String::from_utf8_lossy(signature).to_lowercase();
        std::fs::write(dir.path().join(format!("{name}.aml")), &block[start..start + len]).unwrap();
        let run = |arg: &[&str]| {
            let out = std::process::Command::new("iasl").args(arg).current_dir(dir.path()).output().unwrap();
            (out.status.success(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
        };
        let (ok, text) = run(&["-d", &format!("{name}.aml")]);
        assert!(ok && !text.contains("Error"), "{text}");
        if signature == b"DSDT" {
            let (ok, text) = run(&["-vs", "dsdt.dsl"]);
            assert!(ok && text.contains("0 Errors"), "{text}");
        }
    }
}
