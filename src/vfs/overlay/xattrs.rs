//! Extended attributes in the overlay.

use super::node::Xattrs;
use super::{Overlay, acl};
use crate::vfs::{Errno, FileType, NAME_MAX, NodeId, Result, Time, xattr};

const MAX_XATTR: usize = 64 << 10;

impl Overlay {
    pub(super) fn set_xattr(&self, id: NodeId, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        if name.is_empty() || name.len() > NAME_MAX || name.contains(&0) {
            return Err(Errno::ERANGE);
        }
        if value.len() > MAX_XATTR {
            return Err(Errno::E2BIG);
        }
        if !matches!(flags, 0 | xattr::CREATE | xattr::REPLACE) {
            return Err(Errno::EINVAL);
        }
        let mut tree = self.exclusive();
        let kind = tree.get(id.0)?.kind();
        let is_acl = name == acl::ACCESS || name == acl::DEFAULT;
        if name.starts_with(b"user.") {
            if !matches!(kind, FileType::File | FileType::Dir) {
                return Err(Errno::EPERM);
            }
        } else if is_acl {
            acl::check(value)?;
            if kind == FileType::Symlink {
                return Err(Errno::EOPNOTSUPP);
            }
            if name == acl::DEFAULT && kind != FileType::Dir {
                return Err(Errno::EACCES);
            }
        } else if !name.starts_with(b"trusted.") && !name.starts_with(b"security.") {
            return Err(Errno::EOPNOTSUPP);
        }
        let exists = tree.get(id.0)?.xattr(&self.below, name)?.is_some();
        match flags {
            xattr::CREATE if exists => return Err(Errno::EEXIST),
            xattr::REPLACE if !exists => return Err(Errno::ENODATA),
            _ => {}
        }
        let node = tree.dirty(&self.store, id.0, false)?;
        let own = node.own_xattrs(&self.below, &self.store)?;
        let names: usize = own.keys().map(|n| n.len() + 1).sum();
        if !exists && names + name.len() >= MAX_XATTR {
            return Err(Errno::ENOSPC);
        }
        self.store.take_metadata((name.len() + value.len()) as u64)?;
        if let Some(old) = own.insert(name.into(), value.into()) {
            self.store.give_metadata((name.len() + old.len()) as u64);
        }
        if name == acl::ACCESS {
            node.mode = node.mode & !0o777 | acl::mode_of(value);
        }
        node.ctime = Time::now();
        Ok(())
    }

    pub(super) fn get_xattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        let tree = self.shared();
        tree.get(node.0)?.xattr(&self.below, name)?.map(|v| v.into_vec()).ok_or(Errno::ENODATA)
    }

    pub(super) fn list_xattrs(&self, node: NodeId) -> Result<Vec<u8>> {
        let tree = self.shared();
        let mut list = Vec::new();
        let mut add = |name: &[u8]| {
            list.extend_from_slice(name);
            list.push(0);
        };
        let node = tree.get(node.0)?;
        match &node.xattrs {
            Xattrs::Own(own) => own.keys().for_each(|name| add(name)),
            Xattrs::Host => {
                if let Some(host) = &node.host {
                    host.xattr_names()?.iter().for_each(|name| add(name));
                }
            }
            Xattrs::Lower(id) => {
                if let Some(layer) = self.below.lowers().and_then(|lowers| lowers.layer(*id)) {
                    layer.index().xattrs(&layer.index().inode(id.inode)).for_each(|(name, _)| add(name));
                }
            }
        }
        Ok(list)
    }

    pub(super) fn remove_xattr(&self, id: NodeId, name: &[u8]) -> Result<()> {
        let mut tree = self.exclusive();
        tree.get(id.0)?.xattr(&self.below, name)?.ok_or(Errno::ENODATA)?;
        let node = tree.dirty(&self.store, id.0, false)?;
        if let Some(old) = node.own_xattrs(&self.below, &self.store)?.remove(name) {
            self.store.give_metadata((name.len() + old.len()) as u64);
        }
        node.ctime = Time::now();
        Ok(())
    }
}
