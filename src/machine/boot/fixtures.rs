//! Kernels, modules and packages made for tests.

use std::io::Write;

fn put(bytes: &mut [u8], at: usize, n: usize, value: u64) {
    bytes[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
}

/// A minimal ELF kernel: one segment with `code` at 16 MiB.
pub(super) fn tiny_elf(code: &[u8]) -> Vec<u8> {
    let mut elf = vec![0u8; 120];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let fields =
        [(16, 2, 2), (18, 2, 62), (20, 4, 1), (24, 8, 0x100_0000), (32, 8, 64), (52, 2, 64), (54, 2, 56)];
    for (at, n, value) in fields {
        put(&mut elf, at, n, value);
    }
    put(&mut elf, 56, 2, 1);
    for (at, n, value) in [(64, 4, 1), (68, 4, 5), (72, 8, 120), (80, 8, 0x100_0000), (88, 8, 0x100_0000)] {
        put(&mut elf, at, n, value);
    }
    put(&mut elf, 96, 8, code.len() as u64);
    put(&mut elf, 104, 8, code.len() as u64 + 0x5000);
    elf.extend_from_slice(code);
    elf
}

/// A bzImage around a packed kernel, of release `6.1.0-test`.
pub(super) fn bzimage(payload: &[u8]) -> Vec<u8> {
    bzimage_of("6.1.0-test", payload)
}

fn bzimage_of(release: &str, payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0u8; 1024];
    image[0x1f1] = 1;
    put(&mut image, 0x1fe, 2, 0xaa55);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    put(&mut image, 0x206, 2, 0x20f);
    put(&mut image, 0x20e, 2, 0x300 - 0x200);
    let release = format!("{release} (someone) #1\0");
    image[0x300..0x300 + release.len()].copy_from_slice(release.as_bytes());
    put(&mut image, 0x248, 4, 64);
    put(&mut image, 0x24c, 4, payload.len() as u64);
    image.resize(1024 + 64, 0x90);
    image.extend_from_slice(payload);
    image.resize(image.len().next_multiple_of(16), 0);
    let paragraphs = (image.len() - 1024) as u64 / 16;
    put(&mut image, 0x1f4, 4, paragraphs);
    image
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A kernel module with the given `.modinfo` strings.
pub(super) fn module(info: &[&str]) -> Vec<u8> {
    let strings: String = info.iter().map(|s| format!("{s}\0")).collect();
    let names = b"\0.modinfo\0.shstrtab\0";
    let names_at = 64 + strings.len();
    let table = (names_at + names.len()).next_multiple_of(8);
    let mut elf = vec![0u8; table + 3 * 64];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    for (at, n, value) in
        [(16, 2, 1), (18, 2, 62), (40, 8, table as u64), (58, 2, 64), (60, 2, 3), (62, 2, 2)]
    {
        put(&mut elf, at, n, value);
    }
    elf[64..names_at].copy_from_slice(strings.as_bytes());
    elf[names_at..names_at + names.len()].copy_from_slice(names);
    for (section, name, at, len) in [(1, 1, 64, strings.len()), (2, 10, names_at, names.len())] {
        let header = table + section * 64;
        put(&mut elf, header, 4, name);
        put(&mut elf, header + 24, 8, at as u64);
        put(&mut elf, header + 32, 8, len as u64);
    }
    elf
}

/// A tar archive of files; `end` adds the closing blocks.
pub(super) fn tar(files: &[(&str, &[u8])], end: bool) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    let mut bytes = builder.into_inner().unwrap();
    if !end {
        bytes.truncate(bytes.len() - 1024);
    }
    bytes
}

/// The files of a kernel package, with `prefix` before each path.
pub(super) fn kernel_tar(prefix: &str, release: &str) -> Vec<u8> {
    let kernel = bzimage_of(release, &gzip(&tiny_elf(&[0x90; 600])));
    let modules = format!("{prefix}lib/modules/{release}");
    tar(
        &[
            (&format!("{prefix}boot/vmlinuz-{release}"), &kernel),
            (
                &format!("{modules}/kernel/drivers/virtio/virtio_mmio.ko.gz"),
                &gzip(&module(&["depends=virtio"])),
            ),
            (&format!("{modules}/kernel/drivers/virtio/virtio.ko.xz"), &xz(&module(&["depends="]))),
            (&format!("{modules}/kernel/drivers/usb/big.ko"), &module(&[])),
            (&format!("{modules}/modules.builtin"), b"kernel/fs/fuse/fuse.ko\n"),
        ],
        true,
    )
}

/// A program that passes for a static busybox.
pub(super) fn busybox() -> Vec<u8> {
    let mut program = tiny_elf(b"");
    program.extend_from_slice(b"\x01");
    for name in super::applets::applets(b"") {
        program.extend_from_slice(name.as_bytes());
        program.push(0);
    }
    program
}

/// A Debian package around a `data.tar`.
pub(super) fn deb(data: &[u8]) -> Vec<u8> {
    let mut builder = ar::Builder::new(Vec::new());
    for (name, content) in [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.xz", xz(&tar(&[], true))),
        ("data.tar.xz", xz(data)),
    ] {
        let header = ar::Header::new(name.as_bytes().to_vec(), content.len() as u64);
        builder.append(&header, content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}
