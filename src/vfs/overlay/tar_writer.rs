//! Writes tar entries: ustar where it suffices, PAX records for what does not fit, GNU's format 1.0 for sparse files.

use std::io::{self, Write};

use super::below::Below;
use super::data::Data;
use super::node::{Body, Node};
use super::store::Store;
use crate::vfs::io::ReadSink;
use crate::vfs::{Errno, FileType, Time, mode};

const BLOCK: u64 = 512;
const PIECE: u64 = 256 << 10;
/// Holes of less than this are written as zeros: not every reader knows sparse files.
const WORTH: u64 = 64 << 10;
/// The largest number in the 8 and 12 bytes of a ustar field.
const MAX_ID: u32 = 0o7_777_777;
const MAX_SIZE: u64 = 0o77_777_777_777;

pub(super) struct TarWriter<'a, W> {
    out: W,
    below: &'a Below,
    store: &'a Store,
    times: Times,
}

/// Whether entries have times.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Times {
    Kept,
    /// All are the epoch.
    LeftOut,
}

fn failed(e: Errno) -> io::Error {
    io::Error::other(e)
}

/// Records of a PAX header: `length key=value\n`, the length counting itself.
#[derive(Default)]
struct Pax(Vec<u8>);

impl Pax {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while len != rest + len.to_string().len() {
            len = rest + len.to_string().len();
        }
        self.0.extend_from_slice(len.to_string().as_bytes());
        self.0.push(b' ');
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}

/// Runs of data as (offset, length).
fn extents(data: &Data) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    let mut at = 0;
    while let Some(start) = data.next_data(at) {
        let end = data.next_hole(start);
        runs.push((start, end - start));
        at = end;
    }
    runs
}

/// The map of format 1.0: the number of runs and then each, a number a line, padded to a block.
fn sparse_map(runs: &[(u64, u64)]) -> Vec<u8> {
    let mut map = format!("{}\n", runs.len()).into_bytes();
    for (offset, len) in runs {
        map.extend_from_slice(format!("{offset}\n{len}\n").as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK as usize), 0);
    map
}

fn seconds(time: Time) -> String {
    match (time.secs, time.nanos) {
        (secs, 0) => secs.to_string(),
        (secs @ 0.., nanos) => format!("{secs}.{nanos:09}"),
        // One second and a fraction before the epoch is second -2 and the rest.
        (secs, nanos) => format!("-{}.{:09}", (secs + 1).unsigned_abs(), 1_000_000_000 - nanos),
    }
}

/// Passes bytes on.
struct Through<'a, W>(&'a mut W, io::Result<()>);

impl<W: Write> ReadSink for Through<'_, W> {
    fn data(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.1 = self.0.write_all(bytes);
        if self.1.is_ok() { Ok(()) } else { Err(Errno::EIO) }
    }
}

impl<'a, W: Write> TarWriter<'a, W> {
    pub(super) fn new(out: W, below: &'a Below, store: &'a Store, times: Times) -> Self {
        TarWriter { out, below, store, times }
    }

    /// Writes a node; a directory's path ends with `/`.
    pub(super) fn entry(&mut self, path: &[u8], node: &Node) -> io::Result<()> {
        let kind = match node.kind() {
            FileType::File => b'0',
            FileType::Symlink => b'2',
            FileType::Char => b'3',
            FileType::Block => b'4',
            FileType::Dir => b'5',
            FileType::Fifo => b'6',
            FileType::Socket => return Ok(()),
        };
        let mut pax = Pax::default();
        for (name, value) in node.all_xattrs(self.below).map_err(failed)?.iter() {
            if !name.contains(&b'=') {
                pax.add(&[b"SCHILY.xattr.", &**name].concat(), value);
            }
        }
        match &node.body {
            Body::Symlink(target) => self.header(path, kind, 0, target, node, pax),
            Body::File(data) => {
                let runs = extents(data);
                let stored: u64 = runs.iter().map(|(_, len)| len).sum();
                if data.size().saturating_sub(stored) < WORTH {
                    self.header(path, kind, data.size(), b"", node, pax)?;
                    self.content(data, 0, data.size())?;
                    return self.pad(data.size());
                }
                let map = sparse_map(&runs);
                pax.add(b"GNU.sparse.major", b"1");
                pax.add(b"GNU.sparse.minor", b"0");
                pax.add(b"GNU.sparse.name", path);
                pax.add(b"GNU.sparse.realsize", data.size().to_string().as_bytes());
                let size = map.len() as u64 + stored;
                // The name that a reader sees who does not know sparse files.
                self.header(b"GNUSparseFile.0/file", kind, size, b"", node, pax)?;
                self.out.write_all(&map)?;
                for (offset, len) in runs {
                    self.content(data, offset, len)?;
                }
                self.pad(size)
            }
            _ => self.header(path, kind, 0, b"", node, pax),
        }
    }

    /// One more name of what is written under `first`.
    pub(super) fn hard_link(&mut self, path: &[u8], first: &[u8], node: &Node) -> io::Result<()> {
        self.header(path, b'1', 0, first, node, Pax::default())
    }

    /// A whiteout or opaque marker: an empty file that means something by its name.
    pub(super) fn marker(&mut self, path: &[u8]) -> io::Result<()> {
        let mut pax = Pax::default();
        if path.len() > 100 {
            pax.add(b"path", path);
        }
        self.extension(pax)?;
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        self.block(header, path, b'0', 0, b"")
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK as usize])?;
        self.out.flush()
    }

    fn header(
        &mut self,
        path: &[u8],
        kind: u8,
        size: u64,
        link: &[u8],
        node: &Node,
        mut pax: Pax,
    ) -> io::Result<()> {
        if path.len() > 100 {
            pax.add(b"path", path);
        }
        if link.len() > 100 {
            pax.add(b"linkpath", link);
        }
        if size > MAX_SIZE {
            pax.add(b"size", size.to_string().as_bytes());
        }
        for (key, id) in [(&b"uid"[..], node.uid), (b"gid", node.gid)] {
            if id > MAX_ID {
                pax.add(key, id.to_string().as_bytes());
            }
        }
        let mtime = match self.times {
            Times::Kept => node.mtime,
            Times::LeftOut => Time { secs: 0, nanos: 0 },
        };
        let whole = u64::try_from(mtime.secs).ok().filter(|&secs| secs <= MAX_SIZE);
        if whole.is_none() || mtime.nanos != 0 {
            pax.add(b"mtime", seconds(mtime).as_bytes());
        }
        self.extension(pax)?;
        let mut header = tar::Header::new_ustar();
        header.set_mode(node.mode & mode::PERM);
        header.set_uid(node.uid.min(MAX_ID).into());
        header.set_gid(node.gid.min(MAX_ID).into());
        header.set_mtime(whole.unwrap_or(0));
        if matches!(kind, b'3' | b'4') {
            header.set_device_major(node.rdev >> 8 & 0xfff)?;
            header.set_device_minor(node.rdev & 0xff | node.rdev >> 12 & 0xf_ff00)?;
        }
        self.block(header, path, kind, size.min(MAX_SIZE), link)
    }

    /// Writes a header; of names that do not fit, the PAX records before it hold the whole.
    fn block(
        &mut self,
        mut header: tar::Header,
        path: &[u8],
        kind: u8,
        size: u64,
        link: &[u8],
    ) -> io::Result<()> {
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(size);
        let old = header.as_old_mut();
        for (field, bytes) in [(&mut old.name, path), (&mut old.linkname, link)] {
            let len = bytes.len().min(field.len());
            field[..len].copy_from_slice(&bytes[..len]);
        }
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    fn extension(&mut self, pax: Pax) -> io::Result<()> {
        if pax.0.is_empty() {
            return Ok(());
        }
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        self.block(header, b"PaxHeaders.0/file", b'x', pax.0.len() as u64, b"")?;
        self.out.write_all(&pax.0)?;
        self.pad(pax.0.len() as u64)
    }

    fn content(&mut self, data: &Data, offset: u64, len: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let mut through = Through(&mut self.out, Ok(()));
            let read = data.read(offset + done, (len - done).min(PIECE), &mut through, self.store);
            through.1?;
            match read.map_err(failed)? {
                0 => return Err(failed(Errno::EIO)),
                n => done += n,
            }
        }
        Ok(())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = size.next_multiple_of(BLOCK) - size;
        self.out.write_all(&[0; BLOCK as usize][..rest as usize])
    }
}
