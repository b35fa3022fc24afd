//! PAX extension headers: what they say about the entry after them.

use super::TarProblem;
use crate::vfs::{NAME_MAX, Time};

/// Extended attributes of one file, and bytes of their names.
const MAX_XATTRS: usize = 1024;
const MAX_NAMES: usize = 64 << 10;

/// What the extension headers before an entry say.
#[derive(Default)]
pub(super) struct Extension {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: SparsePax,
}

#[derive(Default)]
pub(super) struct SparsePax {
    pub(super) seen: bool,
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) major: u64,
    /// Offset and length by turns, from the formats 0.0 and 0.1.
    pub(super) map: Vec<u64>,
}

impl Extension {
    /// Takes the records of one header over.
    pub(super) fn pax(&mut self, data: &[u8]) -> Result<(), TarProblem> {
        let mut pending = None;
        for record in Records(data) {
            let (key, value) = record?;
            match key {
                b"path" => self.path = some_path(value)?,
                b"linkpath" => self.link = some_path(value)?,
                b"size" => self.size = some_number(value, "size")?,
                b"uid" => self.uid = some_id(value, "uid")?,
                b"gid" => self.gid = some_id(value, "gid")?,
                b"mtime" => self.mtime = if value.is_empty() { None } else { Some(time(value)?) },
                b"GNU.sparse.major" => {
                    self.sparse.seen = true;
                    self.sparse.major = decimal(value).filter(|&v| v <= 1).ok_or(TarProblem::Sparse)?;
                }
                b"GNU.sparse.name" => self.sparse.name = some_path(value)?,
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                    self.sparse.seen = true;
                    self.sparse.size = Some(decimal(value).ok_or(TarProblem::Sparse)?);
                }
                b"GNU.sparse.offset" => pending = Some(decimal(value).ok_or(TarProblem::Sparse)?),
                b"GNU.sparse.numbytes" => {
                    let offset = pending.take().ok_or(TarProblem::Sparse)?;
                    self.sparse.map.extend([offset, decimal(value).ok_or(TarProblem::Sparse)?]);
                }
                b"GNU.sparse.map" => {
                    for part in value.split(|&b| b == b',').filter(|part| !part.is_empty()) {
                        self.sparse.map.push(decimal(part).ok_or(TarProblem::Sparse)?);
                    }
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        if name.is_empty()
                            || name.len() > NAME_MAX
                            || name.contains(&0)
                            || value.len() > 1 << 16
                        {
                            return Err(TarProblem::Pax);
                        }
                        self.xattrs.retain(|(other, _)| other != name);
                        // What Linux can list of one file.
                        if self.xattrs.iter().map(|(n, _)| n.len() + 1).sum::<usize>() + name.len()
                            >= MAX_NAMES
                            || self.xattrs.len() >= MAX_XATTRS
                        {
                            return Err(TarProblem::Pax);
                        }
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Global records set defaults for all that follows. Readers do not agree on them, so those that matter are refused.
pub(super) fn global(data: &[u8]) -> Result<(), TarProblem> {
    for record in Records(data) {
        let (key, _) = record?;
        if matches!(key, b"path" | b"linkpath" | b"size" | b"uid" | b"gid") || key.starts_with(b"GNU.sparse.")
        {
            return Err(TarProblem::Unsupported(b'g'));
        }
    }
    Ok(())
}

/// The records of a PAX header: `length key=value\n`.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), TarProblem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let parse = |data: &'a [u8]| {
            let space = data.iter().take(20).position(|&b| b == b' ')?;
            let len = usize::try_from(decimal(&data[..space])?).ok()?;
            let (record, rest) = data.split_at_checked(len)?;
            let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
            let equals = body.iter().position(|&b| b == b'=').filter(|&at| at > 0)?;
            Some(((&body[..equals], &body[equals + 1..]), rest))
        };
        match parse(self.0) {
            Some((record, rest)) => {
                self.0 = rest;
                Some(Ok(record))
            }
            None => {
                self.0 = &[];
                Some(Err(TarProblem::Pax))
            }
        }
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 20 {
        return None;
    }
    text.iter().try_fold(0u64, |value, &b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

fn some_path(value: &[u8]) -> Result<Option<Vec<u8>>, TarProblem> {
    if value.contains(&0) {
        return Err(TarProblem::BadPath);
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn some_number(value: &[u8], what: &'static str) -> Result<Option<u64>, TarProblem> {
    if value.is_empty() { Ok(None) } else { decimal(value).map(Some).ok_or(TarProblem::Number(what)) }
}

fn some_id(value: &[u8], what: &'static str) -> Result<Option<u32>, TarProblem> {
    match some_number(value, what)? {
        None => Ok(None),
        Some(id) => match u32::try_from(id) {
            Ok(id) if id != u32::MAX => Ok(Some(id)),
            _ => Err(TarProblem::Number(what)),
        },
    }
}

/// A PAX time: seconds, possibly negative, possibly with a fraction.
fn time(value: &[u8]) -> Result<Time, TarProblem> {
    let bad = || TarProblem::Number("mtime");
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let dot = value.iter().position(|&b| b == b'.');
    let (whole, fraction) = match dot {
        Some(at) => (&value[..at], &value[at + 1..]),
        None => (value, &[][..]),
    };
    let secs = decimal(whole).and_then(|s| i64::try_from(s).ok()).ok_or_else(bad)?;
    let mut nanos = 0;
    for i in 0..9 {
        let digit = fraction.get(i).copied().unwrap_or(b'0');
        if !digit.is_ascii_digit() {
            return Err(bad());
        }
        nanos = nanos * 10 + u32::from(digit - b'0');
    }
    if fraction.iter().any(|b| !b.is_ascii_digit()) {
        return Err(bad());
    }
    Ok(match (negative, nanos) {
        (false, nanos) => Time { secs, nanos },
        (true, 0) => Time { secs: -secs, nanos: 0 },
        (true, nanos) => Time { secs: -secs - 1, nanos: 1_000_000_000 - nanos },
    })
}
