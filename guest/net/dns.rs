//! Questions to name servers and their answers, as bytes. What a server says is taken as hostile: lengths
//! are checked, jumps within a message are counted, and only records count whose owner is the name that
//! was asked for, or what that is an alias of.

extern crate alloc;

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most addresses that an answer gives.
pub(crate) const MAX_ADDRESSES: usize = 32;
/// Longest chain of aliases.
const MAX_ALIASES: usize = 16;
/// Most records of one answer that are looked at.
const MAX_RECORDS: usize = 256;
/// Most jumps within one name.
const MAX_JUMPS: usize = 32;
const MAX_NAME: usize = 255;
const HEADER: usize = 12;

const CNAME: u16 = 5;
const INTERNET: u16 = 1;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    A = 1,
    Aaaa = 28,
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The name's addresses; none when it has other things only.
    Addresses(Vec<IpAddr>),
    /// There is no such name.
    NoName,
    /// It does not fit here: ask by TCP.
    Truncated,
    /// The server cannot or will not tell.
    Failure,
}

/// A name as it travels, in lower case. `None` if it cannot be one.
fn encode_name(name: &[u8]) -> Option<Vec<u8>> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let mut wire = Vec::new();
    for label in name.split(|b| *b == b'.') {
        let len = u8::try_from(label.len()).ok().filter(|len| (1..64).contains(len))?;
        wire.push(len);
        wire.extend(label.iter().map(u8::to_ascii_lowercase));
    }
    wire.push(0);
    (wire.len() <= MAX_NAME).then_some(wire)
}

/// A question, `None` if `name` cannot be asked for.
pub(crate) fn question(id: u16, name: &[u8], kind: Kind) -> Option<Vec<u8>> {
    const RECURSION_DESIRED: u8 = 1;
    let name = encode_name(name)?;
    let [high, low] = id.to_be_bytes();
    let mut message = Vec::from([high, low, RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend(name);
    message.extend([0, kind as u8, 0, INTERNET as u8]);
    Some(message)
}

struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn u8(&mut self) -> Option<u8> {
        let byte = *self.message.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from(self.u8()?) << 8 | u16::from(self.u8()?))
    }

    /// A name in lower case, as it travels without compression.
    fn name(&mut self) -> Option<Vec<u8>> {
        let mut wire = Vec::new();
        let (mut end, mut jumps) = (None, 0);
        loop {
            let len = self.u8()?;
            match len {
                0 => break,
                1..64 => {
                    let label = self.message.get(self.at..self.at + usize::from(len))?;
                    self.at += label.len();
                    if wire.len() + label.len() + 2 > MAX_NAME {
                        return None;
                    }
                    wire.push(len);
                    wire.extend(label.iter().map(u8::to_ascii_lowercase));
                }
                0xc0.. => {
                    let to = usize::from(len & 0x3f) << 8 | usize::from(self.u8()?);
                    end.get_or_insert(self.at);
                    jumps += 1;
                    if jumps > MAX_JUMPS {
                        return None;
                    }
                    self.at = to;
                }
                _ => return None,
            }
        }
        wire.push(0);
        self.at = end.unwrap_or(self.at);
        Some(wire)
    }
}

/// What `message` says to the question; `None` if it is no answer to it.
pub(crate) fn answer(message: &[u8], id: u16, name: &[u8], kind: Kind) -> Option<Answer> {
    let name = encode_name(name)?;
    let mut r = Reader { message, at: 0 };
    let (its_id, flags) = (r.u16()?, r.u16()?);
    let (questions, records) = (r.u16()?, r.u16()?);
    const ANSWER_TO_QUERY: u16 = 0x8000;
    if its_id != id || flags & 0xf800 != ANSWER_TO_QUERY || questions != 1 {
        return None;
    }
    r.at = HEADER;
    if r.name()? != name || r.u16()? != kind as u16 || r.u16()? != INTERNET {
        return None;
    }
    const TRUNCATED: u16 = 0x200;
    match flags & 0xf {
        _ if flags & TRUNCATED != 0 => return Some(Answer::Truncated),
        0 => {}
        3 => return Some(Answer::NoName),
        _ => return Some(Answer::Failure),
    }
    Some(match collect(&mut r, usize::from(records).min(MAX_RECORDS), name, kind) {
        Some(addresses) => Answer::Addresses(addresses),
        None => Answer::Failure,
    })
}

fn collect(r: &mut Reader<'_>, records: usize, mut name: Vec<u8>, kind: Kind) -> Option<Vec<IpAddr>> {
    let mut addresses: Vec<(Vec<u8>, IpAddr)> = Vec::new();
    let mut aliases: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for _ in 0..records {
        let owner = r.name()?;
        let (its_kind, class) = (r.u16()?, r.u16()?);
        let (_time_to_live, len) = ((r.u16()?, r.u16()?), usize::from(r.u16()?));
        let data = r.message.get(r.at..r.at + len)?;
        let next = r.at + len;
        match its_kind {
            _ if class != INTERNET => {}
            CNAME => {
                let alias = r.name()?;
                aliases.push((owner, alias));
            }
            its if its == kind as u16 => {
                let address = match kind {
                    Kind::A => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?)),
                    Kind::Aaaa => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?)),
                };
                addresses.push((owner, address));
            }
            _ => {}
        }
        r.at = next;
    }
    for _ in 0..MAX_ALIASES {
        let found: Vec<IpAddr> =
            addresses.iter().filter(|a| a.0 == name).map(|a| a.1).take(MAX_ADDRESSES).collect();
        let alias = aliases.iter().find(|alias| alias.0 == name);
        match alias {
            Some((_, to)) if found.is_empty() => name = to.clone(),
            _ => return Some(found),
        }
    }
    None
}
