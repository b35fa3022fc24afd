//! Extended attributes of a host directory: which are served, and how.

use rustix::fs::{self, XattrFlags};

use super::owner::RECORD;
use super::{HostDir, errno, proc_path};
use crate::vfs::{Errno, NAME_MAX, NodeId, Result};

const CAPABILITY: &[u8] = b"security.capability";
const MAX_XATTR: usize = 64 << 10;

fn check_xattr(name: &[u8]) -> Result<()> {
    if name.is_empty() || name.len() > NAME_MAX || name.contains(&0) {
        return Err(Errno::ERANGE);
    }
    if name == RECORD.as_bytes() {
        return Err(Errno::EPERM);
    }
    let served = name.starts_with(b"user.")
        || matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default");
    if served { Ok(()) } else { Err(Errno::EOPNOTSUPP) }
}

impl HostDir {
    pub(super) fn set_xattr(&self, node: NodeId, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        self.writable()?;
        check_xattr(name)?;
        if value.len() > MAX_XATTR {
            return Err(Errno::E2BIG);
        }
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
        fs::setxattr(proc_path(&*self.fd(node)?), name, value, flags).map_err(errno)
    }

    pub(super) fn get_xattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        match check_xattr(name) {
            Err(Errno::EPERM | Errno::EOPNOTSUPP) => return Err(Errno::ENODATA),
            other => other?,
        }
        self.host_xattr(node, name)
    }

    pub(super) fn list_xattrs(&self, node: NodeId) -> Result<Vec<u8>> {
        let mut served = Vec::new();
        for name in self.host_xattrs(node)?.split_inclusive(|&b| b == 0) {
            if check_xattr(name.strip_suffix(b"\0").unwrap_or(name)).is_ok() {
                served.extend_from_slice(name);
            }
        }
        Ok(served)
    }

    pub(super) fn remove_xattr(&self, node: NodeId, name: &[u8]) -> Result<()> {
        self.writable()?;
        check_xattr(name)?;
        fs::removexattr(proc_path(&*self.fd(node)?), name).map_err(errno)
    }
}

impl HostDir {
    fn host_xattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        let mut value = vec![0; MAX_XATTR];
        let len = fs::getxattr(proc_path(&*self.fd(node)?), name, &mut value[..]).map_err(errno)?;
        value.truncate(len);
        Ok(value)
    }

    fn host_xattrs(&self, node: NodeId) -> Result<Vec<u8>> {
        let mut names = vec![0; MAX_XATTR];
        let len = fs::listxattr(proc_path(&*self.fd(node)?), &mut names[..]).map_err(errno)?;
        names.truncate(len);
        Ok(names)
    }

    /// For an overlay above: an attribute it shows, capabilities of programs among them. They take effect only in
    /// front of the client, so that nothing of the host depends on them.
    pub(in crate::vfs) fn lower_xattr(&self, node: NodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
        if check_xattr(name).is_err() && name != CAPABILITY {
            return Ok(None);
        }
        match self.host_xattr(node, name) {
            Ok(value) => Ok(Some(value)),
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The attributes that [`lower_xattr`](Self::lower_xattr) gives.
    pub(in crate::vfs) fn lower_xattrs(&self, node: NodeId) -> Result<Vec<Box<[u8]>>> {
        let names = match self.host_xattrs(node) {
            Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
            other => other?,
        };
        let shown = |name: &&[u8]| check_xattr(name).is_ok() || *name == CAPABILITY;
        Ok(names.split(|&b| b == 0).filter(shown).map(Box::from).collect())
    }
}
