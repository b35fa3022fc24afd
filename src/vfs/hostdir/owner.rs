//! Owners as clients see them.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{self, AtFlags, Gid, Statx, Uid, XattrFlags};
use rustix::process::{getegid, geteuid};

use super::nodes::Key;
use super::{HostDir, Ownership, errno, lock, proc_path};
use crate::vfs::{Caller, Errno, Result};

/// Where a changed owner is kept.
pub(super) const RECORD: &str = "user.cc.owner";
/// Records in memory, for files that can have none beside them.
const MAX_IN_MEMORY: usize = 1 << 20;

fn parse(record: &[u8]) -> Option<(u32, u32)> {
    let (uid, gid) = std::str::from_utf8(record).ok()?.split_once(':')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

impl HostDir {
    pub(super) fn owner(&self, status: &Statx, fd: &impl AsRawFd) -> (u32, u32) {
        match self.options.ownership {
            Ownership::AsIs => (status.stx_uid, status.stx_gid),
            Ownership::Fixed { uid, gid } => (uid, gid),
            Ownership::UserAsRoot => {
                let shown = |id, ours| if id == ours { 0 } else { id };
                (shown(status.stx_uid, geteuid().as_raw()), shown(status.stx_gid, getegid().as_raw()))
            }
            Ownership::Recorded { uid, gid } => {
                if let Some(&owner) = lock(&self.owners).get(&Key::of(status)) {
                    return owner;
                }
                let mut record = [0; 32];
                match fs::getxattr(proc_path(fd), RECORD, &mut record) {
                    Ok(len) => record.get(..len).and_then(parse).unwrap_or((uid, gid)),
                    Err(_) => (uid, gid),
                }
            }
        }
    }

    /// Changes the owner as the options say.
    pub(super) fn chown(&self, fd: &OwnedFd, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let status = super::stat(fd)?;
        let (old_uid, old_gid) = self.owner(&status, fd);
        let (new_uid, new_gid) = (uid.unwrap_or(old_uid), gid.unwrap_or(old_gid));
        if new_uid == u32::MAX || new_gid == u32::MAX {
            return Err(Errno::EINVAL);
        }
        match self.options.ownership {
            Ownership::AsIs | Ownership::UserAsRoot => {
                let ours = self.options.ownership == Ownership::UserAsRoot;
                let uid = uid.map(|id| if ours && id == 0 { geteuid() } else { Uid::from_raw(id) });
                let gid = gid.map(|id| if ours && id == 0 { getegid() } else { Gid::from_raw(id) });
                fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW).map_err(errno)
            }
            Ownership::Fixed { .. } if (new_uid, new_gid) == (old_uid, old_gid) => Ok(()),
            Ownership::Fixed { .. } => Err(Errno::EPERM),
            Ownership::Recorded { .. } if (new_uid, new_gid) == (old_uid, old_gid) => Ok(()),
            Ownership::Recorded { .. } => {
                let record = format!("{new_uid}:{new_gid}");
                let key = Key::of(&status);
                match fs::setxattr(proc_path(fd), RECORD, record.as_bytes(), XattrFlags::empty()) {
                    Ok(()) => {
                        lock(&self.owners).remove(&key);
                        Ok(())
                    }
                    Err(rustix::io::Errno::NOSPC) => Err(Errno::ENOSPC),
                    Err(rustix::io::Errno::ROFS) => Err(Errno::EROFS),
                    Err(_) => {
                        let mut owners = lock(&self.owners);
                        if owners.len() >= MAX_IN_MEMORY && !owners.contains_key(&key) {
                            return Err(Errno::ENOSPC);
                        }
                        owners.insert(key, (new_uid, new_gid));
                        Ok(())
                    }
                }
            }
        }
    }

    /// Gives a new file to its maker, as far as the options and the host allow.
    pub(super) fn own(&self, fd: &OwnedFd, caller: &Caller, keep_group: bool) -> Result<()> {
        if matches!(self.options.ownership, Ownership::Fixed { .. }) {
            return Ok(());
        }
        let gid = (!keep_group).then_some(caller.gid);
        match self.chown(fd, Some(caller.uid), gid) {
            Err(Errno::EPERM)
                if matches!(self.options.ownership, Ownership::AsIs | Ownership::UserAsRoot) =>
            {
                Ok(())
            }
            other => other,
        }
    }
}
