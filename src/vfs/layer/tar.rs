//! A strict reader of tar headers: ustar, GNU long names and sparse files, PAX.
//!
//! Whatever two readers could understand differently is refused: wrong checksums, sizes on entries without data,
//! numbers that do not fit, records that do not end where they say. The size that counts for skipping is always the
//! one that counts for the file, so no header can hide inside another file's data.

use std::fmt;
use std::io;

use super::index::Extent;
use super::input::Input;
use super::pax::{Extension, SparsePax, global};
use crate::vfs::{FileType, Time, makedev};

const BLOCK: usize = 512;

/// What a tar may ask of us.
#[derive(Clone, Copy, Debug)]
pub struct TarLimits {
    /// Entries, and directories implied by them.
    pub entries: u32,
    /// Bytes of the PAX and GNU extension headers of one entry.
    pub extension: u64,
    /// Bytes of a path.
    pub path: usize,
    /// Components of a path.
    pub depth: usize,
    /// Bytes of names, link targets, extended attributes and sparse maps in all.
    pub metadata: u64,
}

impl Default for TarLimits {
    fn default() -> Self {
        TarLimits { entries: 4_000_000, extension: 1 << 20, path: 4096, depth: 256, metadata: 512 << 20 }
    }
}

/// Why a tar was refused, and where.
#[derive(Debug, thiserror::Error)]
pub struct TarError {
    /// Offset in bytes of the header at fault.
    pub offset: u64,
    /// The path it names, as far as known.
    pub path: String,
    /// What is wrong.
    #[source]
    pub problem: TarProblem,
}

impl fmt::Display for TarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer refused at offset {}", self.offset)?;
        if self.path.is_empty() { Ok(()) } else { write!(f, ", path {:?}", self.path) }
    }
}

/// What can be wrong with a tar.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarProblem {
    /// Reading failed.
    #[error("reading the tar failed")]
    Io(#[from] io::Error),
    /// The tar ends inside an entry.
    #[error("the tar is truncated")]
    Truncated,
    /// A header's checksum is wrong: no tar, damaged, or out of step.
    #[error("a header's checksum is wrong; this is no tar or it is damaged")]
    Checksum,
    /// A number is malformed or out of range.
    #[error("the field {0} is malformed or out of range")]
    Number(&'static str),
    /// A path or hard link target has a `..` component.
    #[error("the path has a `..` component")]
    ParentDir,
    /// A path is empty where it must not be, or has a NUL.
    #[error("the path is empty or has a NUL")]
    BadPath,
    /// A component is longer than 255 bytes.
    #[error("a name is longer than 255 bytes")]
    NameTooLong,
    /// A path is longer or deeper than the limit.
    #[error("the path is too long or too deep")]
    PathTooLong,
    /// More entries, or more bytes of metadata, than the limit.
    #[error("more entries or metadata than the limit")]
    TooLarge,
    /// The extension headers of an entry are larger than the limit.
    #[error("extension headers of {0} bytes are beyond the limit")]
    Extension(u64),
    /// A PAX record is malformed.
    #[error("a PAX record is malformed")]
    Pax,
    /// The map of a sparse file is malformed.
    #[error("the map of a sparse file is malformed")]
    Sparse,
    /// An entry of a type that has no place in a layer.
    #[error("entries of type {:?} are not supported", char::from(*.0))]
    Unsupported(u8),
    /// An entry that has no data gives a size.
    #[error("an entry without data has a size")]
    UnexpectedData,
    /// A path leads through something that is no directory.
    #[error("the path leads through a file that is no directory")]
    NotDirectory,
    /// Symbolic links lead in a circle, or take too long to follow.
    #[error("symbolic links in the path lead in a circle or nearly so")]
    LinkLoop,
    /// A hard link to a directory or to nothing.
    #[error("a hard link to a directory or to nothing")]
    HardLink,
    /// A whiteout without a proper name.
    #[error("a whiteout without a proper name")]
    Whiteout,
}

/// What an entry is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File { size: u64, data: u64, extents: Option<Vec<Extent>> },
    Dir,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Special { kind: FileType, rdev: u32 },
}

/// One entry, with its extension headers applied.
#[derive(Debug)]
pub(super) struct TarEntry {
    pub(super) offset: u64,
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(super) struct Parser<I> {
    input: I,
    limits: TarLimits,
    at: u64,
}

type Header = [u8; BLOCK];

impl<I: Input> Parser<I> {
    pub(super) fn new(input: I, limits: TarLimits) -> Self {
        Parser { input, limits, at: 0 }
    }

    /// The next entry; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<TarEntry>, TarError> {
        let offset = self.at;
        let mut path = Vec::new();
        self.entry(offset, &mut path).map_err(|problem| TarError {
            offset,
            path: String::from_utf8_lossy(&path).into_owned(),
            problem,
        })
    }

    /// After the last entry: the length of the whole tar.
    pub(super) fn finish(mut self) -> Result<u64, TarError> {
        let offset = self.at;
        let rest =
            self.input.drain().map_err(|e| TarError { offset, path: String::new(), problem: e.into() })?;
        Ok(self.at + rest)
    }

    fn entry(&mut self, offset: u64, shown: &mut Vec<u8>) -> Result<Option<TarEntry>, TarProblem> {
        let mut ext = Extension::default();
        let (mut extended, mut bytes) = (false, 0);
        loop {
            let Some(header) = self.header()? else {
                return if extended { Err(TarProblem::Truncated) } else { Ok(None) };
            };
            let kind = header[156];
            if matches!(kind, b'x' | b'g' | b'L' | b'K') {
                extended = true;
                let size = number(&header[124..136], "size")?;
                let size = u64::try_from(size).map_err(|_| TarProblem::Number("size"))?;
                // All that an entry has, since they add up before it comes.
                bytes = size.saturating_add(bytes);
                if bytes > self.limits.extension {
                    return Err(TarProblem::Extension(bytes));
                }
                let data = self.data(size)?;
                match kind {
                    b'x' => ext.pax(&data)?,
                    b'g' => global(&data)?,
                    // A PAX path, if there is one, comes after and wins.
                    b'L' => ext.path = Some(c_string(&data).to_vec()),
                    _ => ext.link = Some(c_string(&data).to_vec()),
                }
                continue;
            }
            return self.finish_entry(offset, &header, ext, shown).map(Some);
        }
    }

    fn finish_entry(
        &mut self,
        offset: u64,
        header: &Header,
        mut ext: Extension,
        shown: &mut Vec<u8>,
    ) -> Result<TarEntry, TarProblem> {
        let path = ext.sparse.name.take().or(ext.path.take()).unwrap_or_else(|| header_path(header));
        shown.clone_from(&path);
        if path.contains(&0) {
            return Err(TarProblem::BadPath);
        }
        if path.len() > self.limits.path {
            return Err(TarProblem::PathTooLong);
        }
        let size = match ext.size {
            Some(size) => size,
            None => {
                u64::try_from(number(&header[124..136], "size")?).map_err(|_| TarProblem::Number("size"))?
            }
        };
        if size > i64::MAX as u64 - 1024 {
            return Err(TarProblem::Number("size"));
        }
        let link = ext.link.take().unwrap_or_else(|| c_string(&header[157..257]).to_vec());
        if link.contains(&0) {
            return Err(TarProblem::BadPath);
        }
        if link.len() >= 4096 {
            return Err(TarProblem::PathTooLong);
        }
        let kind = match header[156] {
            b'0' | 0 | b'7' if path.ends_with(b"/") && header[156] != b'7' => Kind::Dir,
            b'0' | 0 | b'7' if ext.sparse.seen => self.pax_sparse(size, &ext.sparse)?,
            b'0' | 0 | b'7' => {
                let data = self.at;
                self.skip_data(size)?;
                Kind::File { size, data, extents: None }
            }
            b'S' => self.gnu_sparse(header, size)?,
            b'1' => Kind::HardLink(link),
            b'2' if link.is_empty() => return Err(TarProblem::BadPath),
            b'2' => Kind::Symlink(link),
            b'3' => Kind::Special { kind: FileType::Char, rdev: device(header)? },
            b'4' => Kind::Special { kind: FileType::Block, rdev: device(header)? },
            b'5' => Kind::Dir,
            b'6' => Kind::Special { kind: FileType::Fifo, rdev: 0 },
            other => return Err(TarProblem::Unsupported(other)),
        };
        if size != 0 && !matches!(kind, Kind::File { .. }) {
            return Err(TarProblem::UnexpectedData);
        }
        let id = |field: Option<u32>, range: std::ops::Range<usize>, what| match field {
            Some(id) => Ok(id),
            // 2^32 - 1 means "no change" to chown, and a larger number would wrap to a smaller one.
            None => match u32::try_from(number(&header[range], what)?) {
                Ok(id) if id != u32::MAX => Ok(id),
                _ => Err(TarProblem::Number(what)),
            },
        };
        Ok(TarEntry {
            offset,
            path,
            kind,
            mode: (number(&header[100..108], "mode")? & 0o7777) as u32,
            uid: id(ext.uid, 108..116, "uid")?,
            gid: id(ext.gid, 116..124, "gid")?,
            mtime: match ext.mtime {
                Some(time) => time,
                None => Time { secs: number(&header[136..148], "mtime")?, nanos: 0 },
            },
            xattrs: ext.xattrs,
        })
    }

    /// Reads a block that must be there.
    fn block(&mut self) -> Result<Header, TarProblem> {
        let mut block = [0; BLOCK];
        if self.input.fill(&mut block)? < BLOCK {
            return Err(TarProblem::Truncated);
        }
        self.at += BLOCK as u64;
        Ok(block)
    }

    /// The next header, its checksum checked; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, TarProblem> {
        let mut block = [0; BLOCK];
        match self.input.fill(&mut block)? {
            0 => return Ok(None),
            BLOCK => self.at += BLOCK as u64,
            _ => return Err(TarProblem::Truncated),
        }
        if block.iter().all(|&b| b == 0) {
            let mut second = [0; BLOCK];
            let n = self.input.fill(&mut second)?;
            self.at += n as u64;
            // One zero block and then more would be the end to some readers and not to others.
            return if second.iter().all(|&b| b == 0) { Ok(None) } else { Err(TarProblem::Checksum) };
        }
        let given = number(&block[148..156], "checksum").map_err(|_| TarProblem::Checksum)?;
        let sum: i64 = block
            .iter()
            .enumerate()
            .map(|(i, &b)| if (148..156).contains(&i) { 32 } else { i64::from(b) })
            .sum();
        if given == sum { Ok(Some(block)) } else { Err(TarProblem::Checksum) }
    }

    fn data(&mut self, size: u64) -> Result<Vec<u8>, TarProblem> {
        let padded = size.next_multiple_of(BLOCK as u64);
        let mut data = vec![0; padded as usize];
        if self.input.fill(&mut data)? < data.len() {
            return Err(TarProblem::Truncated);
        }
        self.at += padded;
        data.truncate(size as usize);
        Ok(data)
    }

    fn skip_data(&mut self, size: u64) -> Result<(), TarProblem> {
        let padded = size.next_multiple_of(BLOCK as u64);
        if !self.input.skip(padded)? {
            return Err(TarProblem::Truncated);
        }
        self.at += padded;
        Ok(())
    }

    /// The old GNU format: the map is in the header and in blocks after it.
    fn gnu_sparse(&mut self, header: &Header, size: u64) -> Result<Kind, TarProblem> {
        let real = u64::try_from(number(&header[483..495], "real size")?).map_err(|_| TarProblem::Sparse)?;
        let mut map = Vec::new();
        let mut take = |bytes: &[u8]| -> Result<(), TarProblem> {
            for pair in bytes.chunks_exact(24) {
                if pair.iter().all(|&b| b == 0) {
                    break;
                }
                for field in [&pair[..12], &pair[12..]] {
                    map.push(u64::try_from(number(field, "sparse map")?).map_err(|_| TarProblem::Sparse)?);
                }
            }
            if map.len() as u64 * 12 > self.limits.metadata { Err(TarProblem::TooLarge) } else { Ok(()) }
        };
        take(&header[386..482])?;
        let mut more = header[482] != 0;
        while more {
            let mut block = [0; BLOCK];
            if self.input.fill(&mut block)? < BLOCK {
                return Err(TarProblem::Truncated);
            }
            self.at += BLOCK as u64;
            take(&block[..504])?;
            more = block[504] != 0;
        }
        self.sparse_file(real, size, &map)
    }

    fn pax_sparse(&mut self, size: u64, sparse: &SparsePax) -> Result<Kind, TarProblem> {
        let real = sparse.size.ok_or(TarProblem::Sparse)?;
        if sparse.major == 0 {
            return self.sparse_file(real, size, &sparse.map);
        }
        // Format 1.0: decimal numbers, one a line, at the start of the data and padded to a block.
        let mut map = Vec::new();
        let mut left = size;
        let mut want = None;
        let mut digits: Option<u64> = None;
        while want.is_none_or(|want| (map.len() as u64) < want) {
            left = left.checked_sub(BLOCK as u64).ok_or(TarProblem::Sparse)?;
            for &byte in &self.block()? {
                match byte {
                    b'0'..=b'9' => {
                        let value = digits.unwrap_or(0).checked_mul(10);
                        digits = value.and_then(|v| v.checked_add(u64::from(byte - b'0')));
                        if digits.is_none() {
                            return Err(TarProblem::Sparse);
                        }
                    }
                    b'\n' => {
                        let value = digits.take().ok_or(TarProblem::Sparse)?;
                        match want {
                            None => want = Some(value.checked_mul(2).ok_or(TarProblem::Sparse)?),
                            Some(_) => map.push(value),
                        }
                        if want == Some(map.len() as u64) {
                            break;
                        }
                    }
                    _ => return Err(TarProblem::Sparse),
                }
            }
            if map.len() as u64 * 12 > self.limits.metadata {
                return Err(TarProblem::TooLarge);
            }
        }
        self.sparse_file(real, left, &map)
    }

    /// `stored` bytes of data follow, which `map` places in a file of `real` bytes.
    fn sparse_file(&mut self, real: u64, stored: u64, map: &[u64]) -> Result<Kind, TarProblem> {
        if real > i64::MAX as u64 || !map.len().is_multiple_of(2) {
            return Err(TarProblem::Sparse);
        }
        let start = self.at;
        self.skip_data(stored)?;
        let mut extents = Vec::new();
        let (mut end, mut used) = (0, 0);
        for pair in map.chunks_exact(2) {
            let (offset, len) = (pair[0], pair[1]);
            let stop = offset.checked_add(len).filter(|&stop| stop <= real).ok_or(TarProblem::Sparse)?;
            if offset < end {
                return Err(TarProblem::Sparse);
            }
            if len > 0 {
                extents.push(Extent { offset, len, tar: start + used });
            }
            end = stop;
            used += len;
        }
        if used != stored {
            return Err(TarProblem::Sparse);
        }
        Ok(Kind::File { size: real, data: 0, extents: Some(extents) })
    }
}

/// A number of a header: octal text, or base 256 where the top bit is set.
fn number(field: &[u8], what: &'static str) -> Result<i64, TarProblem> {
    let bad = || TarProblem::Number(what);
    let first = *field.first().ok_or_else(bad)?;
    if first & 0x80 != 0 {
        let mut value: i128 = if first & 0x40 != 0 { -1 } else { 0 };
        value = (value << 6) | i128::from(first & 0x3f);
        for &byte in &field[1..] {
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| bad());
    }
    let text = field.trim_ascii_start();
    let end = text.iter().position(|&b| b == 0 || b == b' ').unwrap_or(text.len());
    if text[end..].iter().any(|&b| b != 0 && b != b' ') {
        return Err(bad());
    }
    text[..end].iter().try_fold(0i64, |value, &b| {
        let digit = (b'0'..=b'7').contains(&b).then(|| i64::from(b - b'0')).ok_or_else(bad)?;
        value.checked_mul(8).map(|v| v + digit).ok_or_else(bad)
    })
}

fn c_string(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len())]
}

fn header_path(header: &Header) -> Vec<u8> {
    let name = c_string(&header[..100]);
    // GNU headers have other fields where ustar has the prefix.
    let prefix = if &header[257..263] == b"ustar\0" { c_string(&header[345..500]) } else { &[] };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

fn device(header: &Header) -> Result<u32, TarProblem> {
    let part = |range: std::ops::Range<usize>| {
        u32::try_from(number(&header[range], "device")?).map_err(|_| TarProblem::Number("device"))
    };
    makedev(part(329..337)?, part(337..345)?).ok_or(TarProblem::Number("device"))
}
