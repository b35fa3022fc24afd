//! The container against damage and malice, and the golden files.

use std::path::PathBuf;

use proptest::prelude::*;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::container::{FORMAT, MAGIC, MAX_BYTES, MAX_SECTIONS, Reader, Writer};
use super::files::{FileClient, FileSystem, Guest};
use super::*;

/// Where a section's header has what.
mod at {
    pub(super) const FORMAT: usize = 8;
    pub(super) const COUNT: usize = 12;
    pub(super) const KIND: usize = 16;
    pub(super) const VERSION: usize = 18;
    pub(super) const RESERVED: usize = 22;
    pub(super) const LENGTH: usize = 24;
    pub(super) const BODY: usize = 32;
}

fn samples() -> Vec<u8> {
    let mut writer = Writer::new();
    writer.put(0, &samples::machine()).unwrap();
    writer.put(0, &samples::vcpu()).unwrap();
    writer.put(0, &samples::lapic()).unwrap();
    writer.put(0, &samples::ioapic()).unwrap();
    writer.put(0, &samples::pic()).unwrap();
    writer.put(0, &samples::pit()).unwrap();
    writer.put(0, &samples::rtc()).unwrap();
    writer.put(0, &samples::uart()).unwrap();
    writer.put(2, &samples::virtio_transport()).unwrap();
    writer.finish()
}

/// Reads all that [`samples`] writes.
fn read_samples(bytes: &[u8]) -> Result<(), StateError> {
    let mut reader = Reader::parse(bytes)?;
    assert_eq!(reader.take::<Machine>(0)?, samples::machine());
    assert_eq!(reader.take::<Vcpu>(0)?, samples::vcpu());
    assert_eq!(reader.take::<Lapic>(0)?, samples::lapic());
    assert_eq!(reader.take::<IoApic>(0)?, samples::ioapic());
    assert_eq!(reader.take::<Pic>(0)?, samples::pic());
    assert_eq!(reader.take::<Pit>(0)?, samples::pit());
    assert_eq!(reader.take::<Rtc>(0)?, samples::rtc());
    assert_eq!(reader.take::<Uart>(0)?, samples::uart());
    assert_eq!(reader.take::<VirtioTransport>(2)?, samples::virtio_transport());
    reader.finish()
}

/// A checksum for bytes that have none.
fn seal(mut body: Vec<u8>) -> Vec<u8> {
    let sum = Sha256::digest(&body);
    body.extend_from_slice(&sum);
    body
}

/// A good container of one section, changed by `spoil` before its checksum is made.
fn spoiled(spoil: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.put(7, &samples::uart()).unwrap();
    let mut bytes = writer.finish();
    bytes.truncate(bytes.len() - 32);
    spoil(&mut bytes);
    seal(bytes)
}

fn set<const N: usize>(at: usize, value: [u8; N]) -> impl Fn(&mut Vec<u8>) {
    move |bytes| bytes[at..at + N].copy_from_slice(&value)
}

/// Everything a reader does, with whatever bytes.
fn read_anything(bytes: &[u8]) -> Result<(), StateError> {
    let mut reader = Reader::parse(bytes)?;
    for instance in 0..8 {
        let results = [
            reader.take::<Machine>(instance).map(drop),
            reader.take::<Vcpu>(instance).map(drop),
            reader.take::<Lapic>(instance).map(drop),
            reader.take::<IoApic>(instance).map(drop),
            reader.take::<Pic>(instance).map(drop),
            reader.take::<Pit>(instance).map(drop),
            reader.take::<Rtc>(instance).map(drop),
            reader.take::<Uart>(instance).map(drop),
            reader.take::<VirtioTransport>(instance).map(drop),
            reader.take::<FileClient>(instance).map(drop),
            reader.take::<FileSystem>(instance).map(drop),
            reader.take::<Guest>(instance).map(drop),
        ];
        for result in results {
            match result {
                Ok(()) | Err(StateError::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    reader.finish()
}

#[test]
fn what_is_written_is_read() {
    assert_eq!(read_samples(&samples()), Ok(()));
    assert_eq!(read_samples(&Writer::new().finish()), Err(StateError::Missing { kind: kind::MACHINE }));
    assert_eq!(Reader::parse(&Writer::new().finish()).unwrap().finish(), Ok(()));
}

#[test]
fn sections_are_found_by_kind_and_instance() {
    let bytes = samples();
    let mut reader = Reader::parse(&bytes).unwrap();
    assert!(reader.has(kind::VIRTIO_TRANSPORT, 2));
    assert!(!reader.has(kind::VIRTIO_TRANSPORT, 0));
    assert_eq!(reader.version(kind::VCPU, 0), Some(Vcpu::VERSION));
    assert_eq!(reader.version(kind::VCPU, 1), None);
    let missing = StateError::Missing { kind: kind::VIRTIO_TRANSPORT };
    assert_eq!(reader.take::<VirtioTransport>(0), Err(missing));
    assert!(reader.take::<Uart>(0).is_ok());
    assert!(!reader.has(kind::UART, 0));
    assert_eq!(reader.take::<Uart>(0), Err(StateError::Missing { kind: kind::UART }));
    assert_eq!(reader.finish(), Err(StateError::Unexpected { kind: kind::MACHINE }), "what nobody took");
}

#[test]
fn kinds_are_told_apart() {
    let kinds = [
        (Machine::KIND, Machine::MAX_BYTES),
        (Vcpu::KIND, Vcpu::MAX_BYTES),
        (Lapic::KIND, Lapic::MAX_BYTES),
        (IoApic::KIND, IoApic::MAX_BYTES),
        (Pic::KIND, Pic::MAX_BYTES),
        (Pit::KIND, Pit::MAX_BYTES),
        (Rtc::KIND, Rtc::MAX_BYTES),
        (Uart::KIND, Uart::MAX_BYTES),
        (VirtioTransport::KIND, VirtioTransport::MAX_BYTES),
        (Guest::KIND, Guest::MAX_BYTES),
        (FileClient::KIND, FileClient::MAX_BYTES),
        (FileSystem::KIND, FileSystem::MAX_BYTES),
    ];
    let numbers: std::collections::BTreeSet<u16> = kinds.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(numbers.len(), kinds.len());
    assert!(kinds.iter().all(|(kind, max)| kind::name(*kind) != "unknown" && *max <= 48 << 20));
}

#[test]
fn r5_7_a_flipped_byte_anywhere_is_refused() {
    let good = samples();
    for at in 0..good.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            let error = read_anything(&bad).expect_err("a byte has changed");
            let expected = match at {
                0..8 => matches!(error, StateError::NotState),
                8..12 => matches!(error, StateError::Format { .. }),
                _ => matches!(error, StateError::Checksum | StateError::Truncated),
            };
            assert!(expected, "byte {at} by {flip:#x}: {error}");
        }
    }
    assert_eq!(read_samples(&good), Ok(()));
}

#[test]
fn r5_7_every_shorter_file_is_refused() {
    let good = samples();
    for length in 0..good.len() {
        let error = Reader::parse(&good[..length]).expect_err("its end is missing");
        let expected = match length {
            0 => error == StateError::NotState,
            1..48 => error == StateError::Truncated,
            _ => matches!(error, StateError::Truncated | StateError::Checksum),
        };
        assert!(expected, "{length} bytes: {error}");
    }
    // Nor is a longer one read.
    for extra in [1, 31, 32, 33, 1000] {
        let mut long = good.clone();
        long.resize(good.len() + extra, 0);
        assert_eq!(Reader::parse(&long).unwrap_err(), StateError::Checksum, "{extra}");
    }
}

#[test]
fn a_good_checksum_does_not_make_a_good_structure() {
    let parse = |bytes: Vec<u8>| Reader::parse(&bytes).map(drop);
    let invalid = |what| Err(StateError::Invalid { what });
    assert_eq!(parse(spoiled(|_| ())), Ok(()), "the same, unspoiled");
    assert_eq!(parse(spoiled(set(0, *b"ELF"))), Err(StateError::NotState));
    assert_eq!(parse(spoiled(set(at::FORMAT, 2u32.to_le_bytes()))), Err(StateError::Format { found: 2 }));
    assert_eq!(parse(spoiled(set(at::COUNT, 2u32.to_le_bytes()))), Err(StateError::Truncated));
    assert_eq!(parse(spoiled(set(at::COUNT, u32::MAX.to_le_bytes()))), Err(StateError::TooLarge));
    assert_eq!(parse(spoiled(set(at::COUNT, 0u32.to_le_bytes()))), invalid("bytes after the last section"));
    for length in [1 << 63, u64::MAX, u64::MAX - 31, 1 << 32, 1 << 20] {
        assert_eq!(
            parse(spoiled(set(at::LENGTH, length.to_le_bytes()))),
            Err(StateError::Truncated),
            "{length:#x}"
        );
    }
    assert_eq!(parse(spoiled(set(at::LENGTH, 1u64.to_le_bytes()))), invalid("bytes after the last section"));
    assert_eq!(parse(spoiled(set(at::RESERVED, [1]))), invalid("a section with reserved bits"));
    assert_eq!(parse(spoiled(|bytes| bytes.push(0))), invalid("bytes after the last section"));
    let twice = spoiled(|bytes| {
        bytes.extend_from_within(at::KIND..);
        bytes[at::COUNT] = 2;
    });
    assert_eq!(parse(twice), Err(StateError::Unexpected { kind: kind::UART }));
}

#[test]
fn the_number_of_sections_has_a_cap() {
    let empty = |count: usize| {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&(count as u32).to_le_bytes());
        for n in 0..count {
            for half in [999, 1, n as u16, 0] {
                bytes.extend_from_slice(&half.to_le_bytes());
            }
            bytes.extend_from_slice(&[0; 8]);
        }
        seal(bytes)
    };
    let most = empty(MAX_SECTIONS);
    assert_eq!(Reader::parse(&most).unwrap().finish(), Err(StateError::Unexpected { kind: 999 }));
    assert_eq!(Reader::parse(&empty(MAX_SECTIONS + 1)).unwrap_err(), StateError::TooLarge);
    let mut huge = samples();
    huge.resize(MAX_BYTES + 1, 0);
    assert_eq!(Reader::parse(&huge).unwrap_err(), StateError::TooLarge);

    let mut writer = Writer::new();
    for instance in 0..MAX_SECTIONS as u16 {
        writer.put(instance, &samples::pic()).unwrap();
    }
    assert_eq!(writer.put(0, &samples::pit()), Err(StateError::TooLarge));
    assert!(Reader::parse(&writer.finish()).is_ok());
}

#[test]
fn sections_that_are_no_value_of_their_kind_are_refused() {
    let take = |bytes: Vec<u8>| Reader::parse(&bytes).unwrap().take::<Uart>(7);
    let invalid = |what| Err(StateError::Invalid { what });
    assert_eq!(take(spoiled(|_| ())), Ok(samples::uart()));
    let longer = spoiled(|bytes| {
        bytes.push(0);
        bytes[at::LENGTH] += 1;
    });
    assert_eq!(take(longer), invalid("bytes after the value of a section"));
    let shorter = spoiled(|bytes| {
        bytes.pop();
        bytes[at::LENGTH] -= 1;
    });
    assert_eq!(take(shorter), invalid("a section that does not decode"));
    // The length of the FIFO, which follows nine registers, as 2^63.
    let endless = spoiled(|bytes| {
        bytes.splice(at::BODY + 9..at::BODY + 10, [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1]);
        bytes[at::LENGTH] += 9;
    });
    assert_eq!(take(endless), invalid("a section that does not decode"));
    let newer = spoiled(set(at::VERSION, 2u16.to_le_bytes()));
    assert_eq!(take(newer), Err(StateError::Version { kind: kind::UART, found: 2, expected: 1 }));
    let other = spoiled(set(at::KIND, 999u16.to_le_bytes()));
    let mut reader = Reader::parse(&other).unwrap();
    assert_eq!(reader.take::<Uart>(7), Err(StateError::Missing { kind: kind::UART }));
    assert_eq!(reader.finish(), Err(StateError::Unexpected { kind: 999 }));
}

#[test]
fn lengths_of_lists_and_names_have_caps_both_ways() {
    let machine = samples::machine;
    let bad_machines = [
        Machine { memory: 0, ..machine() },
        Machine { memory: 4097, ..machine() },
        Machine { memory: 1 << 63, ..machine() },
        Machine { cpus: 0, ..machine() },
        Machine { cpus: 256, ..machine() },
        Machine { cpu_model: String::new(), ..machine() },
        Machine { cpu_model: "x".repeat(256), ..machine() },
        Machine { cpu_model: "x86\n".into(), ..machine() },
        Machine { devices: vec!["a".into(); 257], ..machine() },
        Machine { devices: vec![String::new()], ..machine() },
    ];
    for bad in bad_machines {
        refused(&bad, true);
    }
    refused(&Uart { fifo: vec![0; 65], ..samples::uart() }, true);
    refused(&Uart { input: vec![0; Uart::MAX_INPUT + 1], ..samples::uart() }, true);
    refused(&Rtc { ram: vec![0; 127], ..samples::rtc() }, true);
    refused(&Rtc { ram: vec![0; 129], ..samples::rtc() }, true);
    let queues =
        |n| VirtioTransport { queues: vec![VirtioQueue::default(); n], ..samples::virtio_transport() };
    refused(&queues(65), true);
    refused(&queues(64), false);
    refused(&Uart { fifo: vec![0; 64], input: vec![0xff; Uart::MAX_INPUT], ..samples::uart() }, false);
    refused(
        &Machine { devices: vec!["x".repeat(255); 256], cpu_model: "x".repeat(255), cpus: 255, ..machine() },
        false,
    );
}

/// Whether `value` is refused as invalid, by the writer and by the reader.
fn refused<T: Saved + std::fmt::Debug>(value: &T, expected: bool) {
    let put = Writer::new().put(0, value);
    let mut writer = Writer::new();
    writer.put(0, &Forged::<T>(value)).unwrap();
    let bytes = writer.finish();
    let taken = Reader::parse(&bytes).unwrap().take::<T>(0);
    let invalid = |error: &StateError| matches!(error, StateError::Invalid { .. });
    assert_eq!(put.as_ref().is_err_and(invalid), expected, "{put:?}");
    assert_eq!(taken.as_ref().is_err_and(invalid), expected, "{taken:?}");
    assert_eq!(put.is_ok() && taken.is_ok(), !expected);
}

/// Written as a `T`, but without its caps.
struct Forged<'a, T>(&'a T);

impl<T: Saved> Serialize for Forged<'_, T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Saved> Deserialize<'de> for Forged<'_, T> {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("only to be written"))
    }
}

impl<T: Saved> Saved for Forged<'_, T> {
    const KIND: u16 = T::KIND;
    const VERSION: u16 = T::VERSION;
}

#[test]
fn a_section_longer_than_its_kind_may_be_is_not_decoded() {
    // Half a million empty names would be twelve million bytes in memory.
    let names = Machine { devices: vec![String::new(); 500_000], ..samples::machine() };
    let mut writer = Writer::new();
    writer.put(0, &Forged(&names)).unwrap();
    let bytes = writer.finish();
    assert_eq!(Reader::parse(&bytes).unwrap().take::<Machine>(0), Err(StateError::TooLarge));
}

#[test]
fn a_section_is_written_once() {
    let mut writer = Writer::new();
    writer.put(0, &samples::pic()).unwrap();
    assert_eq!(writer.put(0, &samples::pic()), Err(StateError::Unexpected { kind: kind::PIC }));
    writer.put(1, &samples::pic()).unwrap();
    let bytes = writer.finish();
    let mut reader = Reader::parse(&bytes).unwrap();
    assert!(reader.take::<Pic>(0).is_ok() && reader.take::<Pic>(1).is_ok());
    assert_eq!(reader.finish(), Ok(()));
}

fn golden(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", name].iter().collect()
}

/// The golden file with the vCPU's section of another version: what a later version would write.
fn with_a_newer_vcpu(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.len() - 32);
    let mut at = 16;
    while bytes[at..at + 2] != kind::VCPU.to_le_bytes() {
        at += 16 + u64::from_le_bytes(bytes[at + 8..at + 16].try_into().unwrap()) as usize;
    }
    bytes[at + 2] = 3;
    seal(bytes)
}

/// What lies beside the state of a machine that is put away with its files.
fn file_samples() -> Vec<u8> {
    let mut writer = Writer::new();
    for (n, file_system) in (0..).zip(samples::file_systems()) {
        writer.put(n, &samples::file_client()).unwrap();
        writer.put(n, &file_system).unwrap();
    }
    writer.put(0, &samples::guest()).unwrap();
    writer.finish()
}

fn read_file_samples(bytes: &[u8]) -> Result<(), StateError> {
    let mut reader = Reader::parse(bytes)?;
    for (n, file_system) in (0..).zip(samples::file_systems()) {
        assert_eq!(reader.take::<FileClient>(n)?, samples::file_client());
        assert_eq!(reader.take::<FileSystem>(n)?, file_system);
    }
    assert_eq!(reader.take::<Guest>(0)?, samples::guest());
    reader.finish()
}

#[test]
fn the_golden_file_of_file_systems_is_read_and_would_be_written_the_same() {
    let bytes = std::fs::read(golden("files-v1")).unwrap();
    assert_eq!(read_file_samples(&bytes), Ok(()));
    assert!(
        bytes == file_samples(),
        "the layout has changed: that needs a new version and a new golden file"
    );
}

#[test]
fn r5_7_a_flipped_byte_of_saved_file_systems_is_refused() {
    let bytes = file_samples();
    for at in 0..bytes.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= change;
            assert!(Reader::parse(&damaged).is_err(), "byte {at} ^ {change:#x}");
        }
    }
    for len in 0..bytes.len() {
        assert!(Reader::parse(&bytes[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn caps_of_file_systems_are_kept() {
    let client = |change: &dyn Fn(&mut FileClient)| {
        let mut client = samples::file_client();
        change(&mut client);
        Writer::new().put(0, &client)
    };
    assert_eq!(client(&|_| {}), Ok(()));
    assert!(client(&|c| c.tag.clear()).is_err());
    assert!(client(&|c| c.tag = "x".repeat(37)).is_err());
    assert!(client(&|c| c.files[0].2 = u64::MAX).is_err());
    assert!(client(&|c| c.dirs[0].2 = 1 << 21).is_err());
    let guest = |change: &dyn Fn(&mut Guest)| {
        let mut guest = samples::guest();
        change(&mut guest);
        Writer::new().put(0, &guest)
    };
    assert_eq!(guest(&|_| {}), Ok(()));
    assert!(guest(&|g| g.file_systems = 65).is_err());
    assert!(guest(&|g| g.layers = 4097).is_err());
}

/// Run it only for a file that is not there yet: the files stand for what is out in the world.
#[test]
#[ignore = "writes the golden files"]
fn write_golden_files() {
    let files = [
        ("state-v2", samples()),
        ("state-v2-vcpu-v3", with_a_newer_vcpu(samples())),
        ("files-v1", file_samples()),
    ];
    for (name, bytes) in files {
        if let Ok(mut file) = std::fs::File::create_new(golden(name)) {
            std::io::Write::write_all(&mut file, &bytes).unwrap();
        }
    }
}

#[test]
fn the_golden_file_is_read_and_would_be_written_the_same() {
    let bytes = std::fs::read(golden("state-v2")).unwrap();
    assert_eq!(read_samples(&bytes), Ok(()));
    assert!(bytes == samples(), "the layout has changed: that needs a new version and a new golden file");
}

#[test]
fn the_golden_file_of_a_newer_version_is_refused_clearly() {
    let bytes = std::fs::read(golden("state-v2-vcpu-v3")).unwrap();
    let error = read_samples(&bytes).unwrap_err();
    assert_eq!(error, StateError::Version { kind: kind::VCPU, found: 3, expected: 2 });
    assert_eq!(
        error.to_string(),
        "saved state of the vCPU (kind 2) has version 3, this version reads 2; take a new snapshot"
    );
    let mut newer = std::fs::read(golden("state-v2")).unwrap();
    newer[at::FORMAT] = 2;
    let error = Reader::parse(&newer).unwrap_err();
    assert_eq!(error, StateError::Format { found: 2 });
    assert_eq!(error.to_string(), "saved state has format 2, this version reads 1; take a new snapshot");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read_anything(&bytes).is_err());
        let mut sealed = MAGIC.to_vec();
        sealed.extend_from_slice(&FORMAT.to_le_bytes());
        sealed.extend_from_slice(&bytes);
        prop_assert!(read_anything(&sealed).is_err());
    }

    /// Bytes in the place of sections and values, behind a checksum that is right: refused or read,
    /// and nothing else.
    #[test]
    fn sealed_garbage_never_panics(
        kind in 0..14u16,
        instance in 0..8u16,
        body in proptest::collection::vec(prop_oneof![any::<u8>(), 0..3u8], 0..900),
        cut in any::<Option<u16>>(),
    ) {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&1u32.to_le_bytes());
        for half in [kind, 1, instance, 0] {
            bytes.extend_from_slice(&half.to_le_bytes());
        }
        bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&body);
        if let Some(cut) = cut {
            let length = bytes.len() - usize::from(cut) % bytes.len();
            bytes.truncate(length);
        }
        let _ = read_anything(&seal(bytes));
    }

    /// Some bytes of a good container changed, and the checksum made right again.
    #[test]
    fn sealed_changes_never_panic(changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6)) {
        let mut bytes = samples();
        bytes.truncate(bytes.len() - 32);
        for (at, value) in changes {
            let at = usize::from(at) % bytes.len();
            bytes[at] = value;
        }
        let _ = read_anything(&seal(bytes));
    }
}
