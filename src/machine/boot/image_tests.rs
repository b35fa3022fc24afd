use std::io::Write;

use liblzma::stream::{Filters, LzmaOptions, Stream};
use proptest::prelude::*;

use super::super::fixtures::{bzimage, gzip, tiny_elf, xz};
use super::*;

/// An ELF with content that does and does not compress, and calls for the x86 filter to change.
fn kernel() -> Vec<u8> {
    let code: Vec<u8> = (0..300_000u32)
        .flat_map(|i| if i % 7 == 0 { [0xe8, i as u8, (i >> 8) as u8, 0, 0] } else { [i as u8; 5] })
        .collect();
    tiny_elf(&code)
}

/// As the kernel's build packs it: with the unpacked size after it.
fn with_size(mut packed: Vec<u8>, elf: &[u8]) -> Vec<u8> {
    packed.extend_from_slice(&(elf.len() as u32).to_le_bytes());
    packed
}

fn encode(stream: Stream, bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut out = b"\x02\x21\x4c\x18".to_vec();
    for block in bytes.chunks(8 << 20) {
        let packed = lz4_flex::block::compress(block);
        out.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        out.extend_from_slice(&packed);
    }
    out
}

/// A zstd frame with a 128 MiB window and nothing but raw blocks.
fn zstd_with_large_window(bytes: &[u8]) -> Vec<u8> {
    let mut out = b"\x28\xb5\x2f\xfd\x00\x88".to_vec();
    let chunks: Vec<&[u8]> = bytes.chunks(100_000).collect();
    for (index, chunk) in chunks.iter().enumerate() {
        let last = u32::from(index + 1 == chunks.len());
        out.extend_from_slice(&(last | (chunk.len() as u32) << 3).to_le_bytes()[..3]);
        out.extend_from_slice(chunk);
    }
    out
}

#[test]
fn every_compression_of_a_bzimage() {
    let elf = kernel();
    let mut lzma2 = LzmaOptions::new_preset(1).unwrap();
    lzma2.dict_size(1 << 20);
    let mut filters = Filters::new();
    filters.x86().lzma2(&lzma2);
    let filtered = Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc32).unwrap();
    let zstd = ruzstd::encoding::compress_to_vec(elf.as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
    let packed = [
        ("gzip", gzip(&elf)),
        ("xz", with_size(xz(&elf), &elf)),
        ("xz with the x86 filter", with_size(encode(filtered, &elf), &elf)),
        ("lzma", with_size(encode(Stream::new_lzma_encoder(&lzma2).unwrap(), &elf), &elf)),
        ("zstd", with_size(zstd, &elf)),
        ("zstd with a large window", with_size(zstd_with_large_window(&elf), &elf)),
        ("lz4", with_size(lz4(&elf), &elf)),
    ];
    for (name, payload) in packed {
        let image = bzimage(&payload);
        let found = vmlinux(&image).unwrap_or_else(|e| panic!("{name}: {}", e.chain()));
        assert!(*found == *elf, "{name}");
        assert_eq!(release(&image).as_deref(), Some("6.1.0-test"));
    }
}

#[test]
fn an_elf_kernel_is_taken_as_it_is() {
    let elf = tiny_elf(b"..Linux version %s..Linux version 6.12.1-a (b@c)..");
    assert!(matches!(vmlinux(&elf).unwrap(), Cow::Borrowed(_)));
    assert_eq!(release(&elf).as_deref(), Some("6.12.1-a"));
    let found = Elf::parse(&elf).unwrap();
    assert_eq!((found.entry, found.start), (0x100_0000, 0x100_0000));
    assert_eq!(found.end, 0x100_0000 + (elf.len() as u64 - 120) + 0x5000);
    // Also when the whole file is packed.
    assert_eq!(*vmlinux(&gzip(&elf)).unwrap(), *elf);
}

#[test]
fn what_is_no_kernel_is_refused_with_the_reason() {
    let text = |bytes: &[u8]| vmlinux(bytes).unwrap_err().chain();
    assert!(matches!(vmlinux(&[b'#'; 4096]), Err(BootError::NotAKernel { .. })));
    assert!(matches!(vmlinux(b""), Err(BootError::TruncatedKernel { .. })));

    let mut arm64 = vec![0; 4096];
    arm64[..2].copy_from_slice(b"MZ");
    arm64[0x38..0x3c].copy_from_slice(b"ARM\x64");
    assert!(matches!(vmlinux(&arm64), Err(BootError::WrongArchitecture { .. })));
    assert!(text(&arm64).contains("arm64"), "{}", text(&arm64));
    // Distributions ship it packed.
    assert!(text(&gzip(&arm64)).contains("arm64"));

    let mut elf = kernel();
    elf[18] = 183;
    assert!(text(&elf).contains("arm64"));
    elf[18] = 3;
    elf[4] = 1;
    assert!(text(&bzimage(&gzip(&elf))).contains("32-bit x86"));

    let mut low = kernel();
    low[88..96].copy_from_slice(&0x7000u64.to_le_bytes());
    assert!(matches!(vmlinux(&low), Err(BootError::NotAKernel { .. })));
    let mut lost = kernel();
    lost[24..32].copy_from_slice(&0x50u64.to_le_bytes());
    assert!(matches!(vmlinux(&lost), Err(BootError::NotAKernel { .. })));
}

#[test]
fn a_cut_file_is_called_truncated() {
    let image = bzimage(&xz(&kernel()));
    for len in [0x210, 0x24f, 1024, 2000, image.len() / 2, image.len() - 16] {
        assert!(matches!(vmlinux(&image[..len]), Err(BootError::TruncatedKernel { .. })), "{len}");
    }
    let elf = kernel();
    for len in [10, 63, 100, 130, elf.len() - 1] {
        assert!(matches!(vmlinux(&elf[..len]), Err(BootError::TruncatedKernel { .. })), "{len}");
    }
}

#[test]
fn a_bomb_is_stopped_at_the_cap() {
    let zeros = vec![0; 3 << 20];
    for (format, packed) in [
        (Format::Gzip, gzip(&zeros)),
        (Format::Xz, xz(&zeros)),
        (Format::Lz4, lz4(&zeros)),
        (Format::Zstd, zstd_with_large_window(&zeros)),
    ] {
        assert!(decompress_capped(format, &packed, 3 << 20).is_ok(), "{format:?}");
        let refused = decompress_capped(format, &packed, 1 << 20);
        assert!(matches!(refused, Err(BootError::Unpackable { .. })), "{format:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_images_never_panic(at in 0usize..2000, value: u8, cut in 0usize..4000) {
        let mut image = bzimage(&gzip(&tiny_elf(&[0x90; 600])));
        if let Some(byte) = image.get_mut(at) { *byte = value; }
        image.truncate(image.len() - cut.min(image.len()) / 4);
        let _ = vmlinux(&image);
        let _ = release(&image);
    }

    #[test]
    fn damaged_elf_headers_never_panic(at in 0usize..120, value: u8) {
        let mut elf = tiny_elf(&[0x90; 600]);
        elf[at] = value;
        let _ = Elf::parse(&elf);
    }
}
