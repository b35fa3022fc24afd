//! Kernel images: from whatever file a distribution ships to the 64-bit ELF inside.
//!
//! A bzImage holds the ELF kernel compressed, at a place its setup header tells; a bare ELF is taken
//! as it is. Unpacking here, on the host, saves the guest from doing it. Anything else is refused
//! with the reason: no kernel, truncated, for another processor.

use std::borrow::Cow;
use std::io::{self, Read};

use super::BootError;

/// No unpacked kernel or module is larger than this, in bytes.
const MAX_UNPACKED: u64 = 512 << 20;

/// Offsets in the setup header of a bzImage (the kernel's `Documentation/arch/x86/boot.rst`).
mod setup {
    pub(super) const SETUP_SECTS: usize = 0x1f1;
    pub(super) const SYSSIZE: usize = 0x1f4;
    pub(super) const BOOT_FLAG: usize = 0x1fe;
    pub(super) const HEADER: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const KERNEL_VERSION: usize = 0x20e;
    pub(super) const PAYLOAD_OFFSET: usize = 0x248;
    pub(super) const PAYLOAD_LENGTH: usize = 0x24c;
    /// The last byte that is read here.
    pub(super) const END: usize = 0x250;
    /// The protocol version that brought the payload fields.
    pub(super) const PAYLOAD_VERSION: u16 = 0x208;
}

const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_TLS: u32 = 7;

/// The ELF kernel inside `bytes`: borrowed when `bytes` is one, unpacked when it is a bzImage.
pub fn vmlinux(bytes: &[u8]) -> Result<Cow<'_, [u8]>, BootError> {
    let elf = match Format::of(bytes) {
        Some(format @ (Format::Gzip | Format::Xz | Format::Zstd | Format::Lz4)) => {
            Cow::Owned(inner(&decompress(format, bytes)?)?.into_owned())
        }
        _ => inner(bytes)?,
    };
    Elf::parse(&elf)?;
    Ok(elf)
}

fn inner(bytes: &[u8]) -> Result<Cow<'_, [u8]>, BootError> {
    if bytes.starts_with(b"\x7fELF") {
        return Ok(Cow::Borrowed(bytes));
    }
    if bytes.get(0x38..0x3c) == Some(b"ARM\x64") {
        return Err(BootError::WrongArchitecture { found: "arm64 (a Linux Image file)".into() });
    }
    if bytes.get(0x38..0x3c) == Some(b"RSC\x05") {
        return Err(BootError::WrongArchitecture { found: "riscv64 (a Linux Image file)".into() });
    }
    if bytes.starts_with(b"MZ") && bytes.get(4..8) == Some(b"zimg") {
        return Err(BootError::WrongArchitecture { found: "arm64 or riscv64 (an EFI zboot image)".into() });
    }
    if u16_at(bytes, setup::BOOT_FLAG) == Some(0xaa55)
        && bytes.get(setup::HEADER..setup::HEADER + 4) == Some(b"HdrS")
    {
        let payload = payload(bytes)?;
        let format = Format::of(payload).ok_or(BootError::Unpackable {
            reason: "the bzImage's payload has a compression format that is not known",
        })?;
        return Ok(Cow::Owned(decompress(format, payload)?));
    }
    if bytes.len() < setup::END {
        return Err(BootError::TruncatedKernel {
            part: "the smallest kernel header",
            need: setup::END as u64,
            have: bytes.len() as u64,
        });
    }
    Err(BootError::NotAKernel { reason: "neither an ELF file nor a bzImage" })
}

/// The compressed part of a bzImage.
fn payload(bytes: &[u8]) -> Result<&[u8], BootError> {
    let have = bytes.len() as u64;
    let cut = |part, need| BootError::TruncatedKernel { part, need, have };
    let header = || cut("the setup header", setup::END as u64);
    if u16_at(bytes, setup::VERSION).ok_or_else(header)? < setup::PAYLOAD_VERSION {
        return Err(BootError::NotAKernel { reason: "a bzImage from before Linux 2.6.26" });
    }
    let sectors = match bytes.get(setup::SETUP_SECTS).ok_or_else(header)? {
        0 => 4,
        &n => u64::from(n),
    };
    let protected = (sectors + 1) * 512;
    let image = protected + u64::from(u32_at(bytes, setup::SYSSIZE).ok_or_else(header)?) * 16;
    // The build pads the image to paragraphs but not always the file.
    if have + 15 < image {
        return Err(cut("the whole image", image));
    }
    let start = protected + u64::from(u32_at(bytes, setup::PAYLOAD_OFFSET).ok_or_else(header)?);
    let end = start + u64::from(u32_at(bytes, setup::PAYLOAD_LENGTH).ok_or_else(header)?);
    if have < end {
        return Err(cut("the packed kernel", end));
    }
    if end <= start {
        return Err(BootError::NotAKernel { reason: "a bzImage without a packed kernel in it" });
    }
    Ok(&bytes[start as usize..end as usize])
}

/// The kernel's release name as a bzImage tells it (`6.1.0-56-cloud-amd64`).
pub fn release(bytes: &[u8]) -> Option<String> {
    if bytes.get(setup::HEADER..setup::HEADER + 4) != Some(b"HdrS") {
        return elf_release(bytes);
    }
    let at = usize::from(u16_at(bytes, setup::KERNEL_VERSION)?) + 512;
    first_word(bytes.get(at..)?)
}

/// The release name from the banner that every vmlinux carries.
fn elf_release(bytes: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    if !bytes.starts_with(b"\x7fELF") {
        return None;
    }
    let mut rest = bytes;
    while let Some(at) = rest.windows(BANNER.len()).position(|w| w == BANNER) {
        rest = &rest[at + BANNER.len()..];
        // A kernel also carries this text as a format string.
        if rest.first().is_some_and(u8::is_ascii_digit) {
            return first_word(rest);
        }
    }
    None
}

fn first_word(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().take(128).position(|b| !b.is_ascii_graphic())?;
    let word = std::str::from_utf8(&bytes[..end]).ok()?;
    (!word.is_empty()).then(|| word.to_owned())
}

/// A 64-bit x86 ELF kernel whose program headers have been checked against the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// Physical address of the first instruction.
    pub entry: u64,
    /// First physical address the kernel takes.
    pub start: u64,
    /// First physical address after the kernel and its zeroed data.
    pub end: u64,
}

impl Elf {
    /// Checks the headers of an ELF kernel. `bytes` is the whole file.
    pub fn parse(bytes: &[u8]) -> Result<Self, BootError> {
        Self::check(bytes, bytes.len() as u64)
    }

    /// Checks the headers, which are in `bytes`, the beginning of a file of `have` bytes.
    pub(crate) fn check(bytes: &[u8], have: u64) -> Result<Self, BootError> {
        let head = |at, n| {
            field(bytes, at, n).ok_or(BootError::TruncatedKernel { part: "the ELF header", need: 64, have })
        };
        if !bytes.starts_with(b"\x7fELF") {
            return Err(BootError::NotAKernel { reason: "what is packed in it is no ELF file" });
        }
        let (class, order) = (head(4, 1)?, head(5, 1)?);
        let machine = if order == 2 { (head(18, 2)? as u16).swap_bytes() } else { head(18, 2)? as u16 };
        if machine != EM_X86_64 || class != 2 || order != 1 {
            return Err(BootError::WrongArchitecture { found: machine_name(machine, class) });
        }
        if head(16, 2)? != 2 {
            return Err(BootError::NotAKernel {
                reason: "an ELF file, but no fixed-address executable: a shared or position-independent one",
            });
        }
        let (entry, table, size, count) = (head(24, 8)?, head(32, 8)?, head(54, 2)?, head(56, 2)?);
        if size != 56 || count == 0 {
            return Err(BootError::NotAKernel { reason: "an ELF file without program headers" });
        }
        let mut found = Self { entry, start: u64::MAX, end: 0 };
        let mut entry_inside = false;
        for index in 0..count {
            let at = table.saturating_add(index * size);
            let get = |offset: u64, n| {
                usize::try_from(at.saturating_add(offset)).ok().and_then(|at| field(bytes, at, n)).ok_or(
                    BootError::TruncatedKernel {
                        part: "the ELF program headers",
                        need: table.saturating_add(count * size),
                        have,
                    },
                )
            };
            match get(0, 4)? as u32 {
                PT_LOAD => {}
                // No kernel has an interpreter or thread-local storage; C programs have one of them.
                PT_INTERP | PT_TLS => {
                    return Err(BootError::NotAKernel { reason: "a program for an operating system" });
                }
                _ => continue,
            }
            let (offset, physical, in_file, in_memory) = (get(8, 8)?, get(24, 8)?, get(32, 8)?, get(40, 8)?);
            let file_end = offset.saturating_add(in_file);
            if file_end > have {
                return Err(BootError::TruncatedKernel { part: "an ELF segment", need: file_end, have });
            }
            let end = physical.saturating_add(in_memory.max(in_file));
            if physical < super::loader::HIGH_MEMORY || end > crate::memory::MMIO_HOLE_START {
                return Err(BootError::NotAKernel { reason: "an ELF file that loads where no kernel does" });
            }
            entry_inside |= (physical..physical.saturating_add(in_file)).contains(&entry);
            found.start = found.start.min(physical);
            found.end = found.end.max(end);
        }
        if !entry_inside {
            return Err(BootError::NotAKernel {
                reason: "an ELF file whose entry point lies outside its segments",
            });
        }
        Ok(found)
    }
}

fn machine_name(machine: u16, class: u64) -> String {
    match (machine, class) {
        (3, _) => "32-bit x86".into(),
        (EM_X86_64, 1) => "the x32 ABI".into(),
        (40, _) => "32-bit arm".into(),
        (183, _) => "arm64".into(),
        (243, _) => "riscv".into(),
        (21, _) => "ppc64".into(),
        (22, _) => "s390x".into(),
        (258, _) => "loongarch".into(),
        (other, _) => format!("ELF machine {other}"),
    }
}

/// A compression format, told by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Gzip,
    Xz,
    Zstd,
    Lzma,
    Lz4,
    Bzip2,
    Lzo,
}

impl Format {
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        const MAGIC: [(&[u8], Format); 7] = [
            (b"\x1f\x8b\x08", Format::Gzip),
            (b"\xfd7zXZ\0", Format::Xz),
            (b"\x28\xb5\x2f\xfd", Format::Zstd),
            (b"\x5d\0\0", Format::Lzma),
            (b"\x02\x21\x4c\x18", Format::Lz4),
            (b"BZh", Format::Bzip2),
            (b"\x89LZO", Format::Lzo),
        ];
        MAGIC.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|&(_, format)| format)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lzma => "lzma",
            Self::Lz4 => "lz4",
            Self::Bzip2 => "bzip2",
            Self::Lzo => "lzo",
        }
    }
}

/// Unpacks one stream of `format`. What follows the stream in `bytes` is not looked at: the kernel's
/// build appends the unpacked size there.
pub(crate) fn decompress(format: Format, bytes: &[u8]) -> Result<Vec<u8>, BootError> {
    decompress_capped(format, bytes, MAX_UNPACKED)
}

pub(crate) fn decompress_capped(format: Format, bytes: &[u8], cap: u64) -> Result<Vec<u8>, BootError> {
    let failed = |source| BootError::Unpack { format: format.name(), source };
    let out = match format {
        Format::Gzip => read_all(flate2::bufread::GzDecoder::new(bytes), cap),
        Format::Xz => read_all(liblzma::bufread::XzDecoder::new(bytes), cap),
        Format::Lzma => liblzma::stream::Stream::new_lzma_decoder(MAX_UNPACKED)
            .map_err(io::Error::from)
            .and_then(|s| read_all(liblzma::bufread::XzDecoder::new_stream(bytes, s), cap)),
        Format::Zstd => zstd(bytes, cap),
        Format::Lz4 => lz4_legacy(bytes, cap),
        Format::Bzip2 | Format::Lzo => {
            return Err(BootError::Unpackable { reason: "bzip2 and lzo packed kernels are not supported" });
        }
    }
    .map_err(failed)?;
    if out.len() as u64 > cap {
        return Err(BootError::Unpackable { reason: "it unpacks to more than any kernel or module has" });
    }
    Ok(out)
}

/// Reads to the end, but at most one byte more than `cap`.
fn read_all(from: impl Read, cap: u64) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    from.take(cap + 1).read_to_end(&mut out)?;
    Ok(out)
}

fn zstd(bytes: &[u8], cap: u64) -> io::Result<Vec<u8>> {
    // Kernels are packed with a 128 MiB window, which the decoder refuses. A smaller window changes
    // nothing as long as no more than it is unpacked: no distance can be longer than the output.
    const WINDOW: u64 = 96 << 20;
    const WINDOW_BYTE: u8 = (16 << 3) | 4;
    let mut head = bytes.get(..6).map(<[u8]>::to_vec).ok_or(io::ErrorKind::UnexpectedEof)?;
    let single_segment = head[4] & 0x20 != 0;
    let mut limit = cap;
    if !single_segment && head[5] > WINDOW_BYTE {
        head[5] = WINDOW_BYTE;
        limit = cap.min(WINDOW);
    }
    let decoder =
        ruzstd::decoding::StreamingDecoder::new(head.chain(&bytes[6..])).map_err(io::Error::other)?;
    let out = read_all(decoder, limit)?;
    if limit < cap && out.len() as u64 > limit {
        return Err(io::Error::other("more than 96 MiB packed with a window larger than that"));
    }
    Ok(out)
}

/// The legacy frame: blocks of at most 8 MiB, each with its packed size before it.
fn lz4_legacy(bytes: &[u8], cap: u64) -> io::Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let mut rest = bytes.get(4..).unwrap_or_default();
    let mut out = Vec::new();
    let mut block = vec![0; BLOCK];
    while let Some(size) = u32_at(rest, 0) {
        let size = size as usize;
        let Some(packed) = rest.get(4..).and_then(|r| r.get(..size)) else {
            // Four bytes that are no block: the unpacked size that the kernel's build appends.
            if rest.len() == 4 && size == out.len() {
                break;
            }
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let n = lz4_flex::block::decompress_into(packed, &mut block).map_err(io::Error::other)?;
        out.extend_from_slice(&block[..n]);
        if out.len() as u64 > cap {
            break;
        }
        rest = &rest[4 + size..];
    }
    Ok(out)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    field(bytes, at, 2).map(|v| v as u16)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    field(bytes, at, 4).map(|v| v as u32)
}

/// A little-endian number of `n` bytes, `n` at most 8.
pub(crate) fn field(bytes: &[u8], at: usize, n: usize) -> Option<u64> {
    let slice = bytes.get(at..at.checked_add(n)?)?;
    Some(slice.iter().rev().fold(0, |value, &b| value << 8 | u64::from(b)))
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
