//! Users and groups by name, from the text of the root's `/etc/passwd` and `/etc/group`.
//!
//! Both files may be anybody's work. A line that is not as it should be is no line; an id beyond
//! `i32::MAX` is refused where it was asked for and makes a line void where it stands in a file, so
//! that none is ever cut down to one that means another user. Only digits are a number, and a word of
//! digits is never a name.

extern crate alloc;

use alloc::vec::Vec;

/// Largest id: what all of the kernel, user spaces and file systems agree on.
const MAX_ID: u32 = i32::MAX as u32;

/// What a `user`, `user:group` or `:group` stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct User<'a> {
    /// `None` where only a group was given.
    pub(crate) uid: Option<u32>,
    pub(crate) gid: u32,
    /// All groups, the primary one included.
    pub(crate) groups: Vec<u32>,
    /// Home directory, `/` for a user without one.
    pub(crate) home: &'a [u8],
}

/// Why there is no such user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Error {
    NoUser,
    NoGroup,
    UserOutOfRange,
    GroupOutOfRange,
}

struct Entry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// Looks `wanted` up in the text of the two files.
///
/// A number without an entry is a user of group 0, as container runtimes have it. Without a group of
/// its own, `wanted` is in all groups that name it as a member; with one, in that alone.
pub(crate) fn resolve<'a>(wanted: &[u8], passwd: &'a [u8], group: &[u8]) -> Result<User<'a>, Error> {
    let (user, own_group) = match wanted.iter().position(|b| *b == b':') {
        Some(at) => (wanted.get(..at).unwrap_or_default(), wanted.get(at + 1..)),
        None => (wanted, None),
    };
    let own_group = own_group.filter(|group| !group.is_empty());
    let number = number(user).transpose().map_err(|()| Error::UserOutOfRange)?;
    let entry = entries(passwd).find(|entry| match number {
        Some(uid) => entry.uid == uid,
        None => !user.is_empty() && entry.name == user,
    });
    let uid = entry.as_ref().map(|entry| entry.uid).or(number);
    if uid.is_none() && (!user.is_empty() || own_group.is_none()) {
        return Err(Error::NoUser);
    }
    let home = entry.as_ref().map(|entry| entry.home).filter(|home| !home.is_empty()).unwrap_or(b"/");
    if let Some(own_group) = own_group {
        let gid = group_id(own_group, group)?;
        return Ok(User { uid, gid, groups: Vec::from([gid]), home });
    }
    let gid = entry.as_ref().map_or(0, |entry| entry.gid);
    let mut groups = Vec::from([gid]);
    if let Some(entry) = &entry {
        let member = |list: &[u8]| list.split(|b| *b == b',').any(|name| name == entry.name);
        groups.extend(group_lines(group).filter(|(_, _, list)| member(list)).map(|(_, gid, _)| gid));
        groups.sort_unstable();
        groups.dedup();
    }
    Ok(User { uid, gid, groups, home })
}

fn group_id(wanted: &[u8], group: &[u8]) -> Result<u32, Error> {
    match number(wanted) {
        Some(gid) => gid.map_err(|()| Error::GroupOutOfRange),
        None => group_lines(group)
            .find(|(name, _, _)| *name == wanted)
            .map(|(_, gid, _)| gid)
            .ok_or(Error::NoGroup),
    }
}

/// `name:password:uid:gid:comment:home:shell`; what follows the gid may be missing.
fn entries(passwd: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    lines(passwd).filter_map(|line| {
        let mut fields = line.split(|b| *b == b':');
        let name = fields.next()?;
        let (uid, gid) = (id(fields.nth(1)?)?, id(fields.next()?)?);
        Some(Entry { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

/// Name, id and members of all groups: `name:password:gid:members`.
fn group_lines(group: &[u8]) -> impl Iterator<Item = (&[u8], u32, &[u8])> {
    lines(group).filter_map(|line| {
        let mut fields = line.split(|b| *b == b':');
        let name = fields.next()?;
        Some((name, id(fields.nth(1)?)?, fields.next().unwrap_or_default()))
    })
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| *b == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !matches!(line.first(), None | Some(b'#')))
}

fn id(field: &[u8]) -> Option<u32> {
    number(field)?.ok()
}

/// The id that a word of nothing but digits is, `None` for any other word.
fn number(word: &[u8]) -> Option<Result<u32, ()>> {
    if word.is_empty() || !word.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = word.iter().try_fold(0u32, |value, digit| {
        value.checked_mul(10)?.checked_add(u32::from(digit - b'0')).filter(|value| *value <= MAX_ID)
    });
    Some(value.ok_or(()))
}
