//! POSIX access control lists in their extended-attribute form, as far as they and file modes depend on each other.

use crate::vfs::{Errno, Result};

pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

fn entries(acl: &[u8]) -> impl Iterator<Item = (u16, u32)> {
    acl.get(4..)
        .unwrap_or_default()
        .chunks_exact(8)
        .map(|e| (u16::from_le_bytes([e[0], e[1]]), u32::from(u16::from_le_bytes([e[2], e[3]]) & 7)))
}

/// Checks the form: version 2, whole entries, one each of owner, group and others.
pub(super) fn check(acl: &[u8]) -> Result<()> {
    let one = |tag| entries(acl).filter(|&(t, _)| t == tag).count() == 1;
    let form = acl.len() >= 4 && acl[..4] == [2, 0, 0, 0] && (acl.len() - 4).is_multiple_of(8);
    if form && one(USER_OBJ) && one(GROUP_OBJ) && one(OTHER) { Ok(()) } else { Err(Errno::EINVAL) }
}

/// The permission bits that an access list stands for.
pub(super) fn mode_of(acl: &[u8]) -> u32 {
    let find = |tag| entries(acl).find(|&(t, _)| t == tag).map(|(_, perm)| perm);
    let group = find(MASK).or(find(GROUP_OBJ)).unwrap_or(0);
    find(USER_OBJ).unwrap_or(0) << 6 | group << 3 | find(OTHER).unwrap_or(0)
}

/// Whether the list says no more than permission bits do.
pub(super) fn minimal(acl: &[u8]) -> bool {
    entries(acl).count() == 3
}

/// The list with its entries for owner, group or mask, and others as `mode` says.
pub(super) fn with_mode(acl: &[u8], mode: u32) -> Vec<u8> {
    let mut acl = acl.to_vec();
    let mask = entries(&acl).any(|(tag, _)| tag == MASK);
    for entry in acl.get_mut(4..).unwrap_or_default().chunks_exact_mut(8) {
        let perm = match u16::from_le_bytes([entry[0], entry[1]]) {
            USER_OBJ => mode >> 6,
            MASK => mode >> 3,
            GROUP_OBJ if !mask => mode >> 3,
            OTHER => mode,
            _ => continue,
        };
        entry[2] = (perm & 7) as u8;
        entry[3] = 0;
    }
    acl
}
