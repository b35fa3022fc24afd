//! What makes a machine that was restored one of its own.

extern crate alloc;

use alloc::vec::Vec;
use core::ffi::CStr;

use super::{Error, Reader, put_str};

/// Most files that get other contents.
const MAX_FILES: usize = 64;

/// What a guest must not have in common with others that were restored from the same snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Renewal<'a> {
    /// The wall clock, in nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// Random bytes that the kernel's generator is reseeded with.
    pub seed: &'a [u8],
    /// Host name; without one, it stays.
    pub hostname: Option<&'a CStr>,
    /// Contents for files that [`Root::files`](super::Root::files) had put over the root's; others are left alone.
    pub files: Vec<(&'a CStr, &'a [u8])>,
    /// Whether the processes that [`Message::Freeze`](super::Message::Freeze) stopped go on after that.
    pub thaw: bool,
}

impl<'a> Renewal<'a> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.thaw) | u8::from(self.hostname.is_some()) << 1);
        out.extend_from_slice(&self.time_ns.to_le_bytes());
        put_bytes(self.seed, out);
        if let Some(hostname) = self.hostname {
            put_str(hostname, out);
        }
        out.extend_from_slice(&(self.files.len() as u32).to_le_bytes());
        for (path, contents) in &self.files {
            put_str(path, out);
            put_bytes(contents, out);
        }
    }

    pub(super) fn decode(r: &mut Reader<'a>) -> Result<Self, Error> {
        let flags = r.u8()?;
        if flags & !3 != 0 {
            return Err(Error::Malformed);
        }
        let time_ns = r.u64()?;
        let seed = counted(r)?;
        let hostname = if flags & 2 != 0 { Some(r.string()?) } else { None };
        let files = r.list(9, |r| Ok((r.string()?, counted(r)?)))?;
        if files.len() > MAX_FILES {
            return Err(Error::TooLong);
        }
        Ok(Renewal { time_ns, seed, hostname, files, thaw: flags & 1 != 0 })
    }
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn counted<'a>(r: &mut Reader<'a>) -> Result<&'a [u8], Error> {
    let len = r.u32()? as usize;
    r.bytes(len)
}
