//! Requests as they come and answers as they go: little-endian, naturally aligned words.
//!
//! Everything read here is the guest's choice. A request that is shorter than its layout, or a name that is none, is
//! an errno; nothing is taken for longer than it is.

use std::time::Duration;

use super::spec::IN_HEADER;
use crate::vfs::{Attr, Caller, Entry, Errno, Name, NodeId, StatFs, Time};

/// What every request begins with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) len: usize,
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) node: NodeId,
    pub(super) caller: Caller,
}

impl Header {
    /// `None` if there are not enough bytes.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut args = Args(bytes.get(..IN_HEADER)?);
        Some(Self {
            len: args.u32().ok()? as usize,
            opcode: args.u32().ok()?,
            unique: args.u64().ok()?,
            node: NodeId(args.u64().ok()?),
            caller: Caller { uid: args.u32().ok()?, gid: args.u32().ok()?, pid: args.u32().ok()? },
        })
    }
}

/// The rest of a request. What is missing is `EINVAL`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Args<'a>(pub(super) &'a [u8]);

impl<'a> Args<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Errno::EINVAL)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Errno> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Errno> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Bytes up to a NUL, which is taken too.
    pub(super) fn string(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|&b| b == 0).ok_or(Errno::EINVAL)?;
        let (head, rest) = self.0.split_at(end);
        self.0 = rest.get(1..).unwrap_or_default();
        Ok(head)
    }

    pub(super) fn name(&mut self) -> Result<Name<'a>, Errno> {
        Name::new(self.string()?)
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Errno> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(Errno::EINVAL)?;
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn time(secs: u64, nanos: u32) -> Result<Time, Errno> {
        if nanos >= 1_000_000_000 {
            return Err(Errno::EINVAL);
        }
        Ok(Time { secs: secs as i64, nanos })
    }
}

/// The body of an answer.
#[derive(Debug, Default)]
pub(super) struct Body(pub(super) Vec<u8>);

impl Body {
    pub(super) fn u16(&mut self, v: u16) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }

    pub(super) fn u32(&mut self, v: u32) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }

    pub(super) fn u64(&mut self, v: u64) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }

    pub(super) fn zeros(&mut self, n: usize) -> &mut Self {
        self.0.resize(self.0.len() + n, 0);
        self
    }

    /// `fuse_attr`.
    pub(super) fn attr(&mut self, a: &Attr) -> &mut Self {
        self.u64(a.ino).u64(a.size).u64(a.blocks);
        for t in [a.atime, a.mtime, a.ctime] {
            self.u64(t.secs as u64);
        }
        for t in [a.atime, a.mtime, a.ctime] {
            self.u32(t.nanos);
        }
        self.u32(a.mode).u32(a.nlink).u32(a.uid).u32(a.gid).u32(a.rdev).u32(a.blksize).u32(0)
    }

    /// `fuse_entry_out`.
    pub(super) fn entry(&mut self, e: &Entry) -> &mut Self {
        self.u64(e.node.0).u64(e.generation);
        self.u64(e.entry_ttl.as_secs()).u64(e.attr_ttl.as_secs());
        self.u32(e.entry_ttl.subsec_nanos()).u32(e.attr_ttl.subsec_nanos()).attr(&e.attr)
    }

    /// `fuse_entry_out` of a name that is not there, to be remembered for `ttl`; or, with a `ttl` of 0, of `.` and
    /// `..` in READDIRPLUS, whose attributes nobody takes.
    pub(super) fn no_entry(&mut self, ttl: Duration) -> &mut Self {
        self.u64(0).u64(0).u64(ttl.as_secs()).u64(0).u32(ttl.subsec_nanos()).u32(0).zeros(ATTR)
    }

    /// `fuse_attr_out`.
    pub(super) fn attr_out(&mut self, a: &Attr, ttl: Duration) -> &mut Self {
        self.u64(ttl.as_secs()).u32(ttl.subsec_nanos()).u32(0).attr(a)
    }

    /// `fuse_statfs_out`.
    pub(super) fn statfs(&mut self, s: &StatFs) -> &mut Self {
        self.u64(s.blocks).u64(s.blocks_free).u64(s.blocks_available).u64(s.files).u64(s.files_free);
        self.u32(s.block_size).u32(s.name_max).u32(s.block_size).zeros(28)
    }
}

/// Bytes of `fuse_attr`.
pub(super) const ATTR: usize = 88;
/// Bytes of `fuse_entry_out`.
pub(super) const ENTRY_OUT: usize = 40 + ATTR;
/// Bytes of `fuse_dirent` before the name.
pub(super) const DIRENT: usize = 24;
