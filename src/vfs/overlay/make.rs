//! Making entries of any type.

use super::node::{Body, Xattrs};
use super::source::new_node;
use super::{Overlay, acl};
use crate::vfs::{Caller, Entry, Errno, FileType, Name, NodeId, Result, mode};

impl Overlay {
    /// Makes an entry with what its directory passes on: group, access lists.
    pub(super) fn make(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: Name<'_>,
        mut mode: u32,
        rdev: u32,
        body: impl FnOnce() -> Body,
    ) -> Result<Entry> {
        let mut tree = self.exclusive();
        tree.live_dir(parent.0)?;
        if tree.child(&self.below, parent.0, &name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        let kind = FileType::from_mode(mode).ok_or(Errno::EINVAL)?;
        let is_dir = kind == FileType::Dir;
        if let Xattrs::Host = tree.get(parent.0)?.xattrs {
            tree.get_mut(parent.0)?.own_xattrs(&self.below, &self.store)?;
        }
        let above = tree.get(parent.0)?;
        let mut gid = caller.gid;
        if above.mode & mode::SGID != 0 {
            gid = above.gid;
            mode |= if is_dir { mode::SGID } else { 0 };
        }
        let default =
            if kind == FileType::Symlink { None } else { above.xattr(&self.below, acl::DEFAULT)? };
        let mut acls = Vec::new();
        if let Some(default) = default {
            mode &= !0o777 | acl::mode_of(&default);
            if !acl::minimal(&default) {
                acls.push((acl::ACCESS, acl::with_mode(&default, mode)));
            }
            if is_dir {
                acls.push((acl::DEFAULT, default.into_vec()));
            }
        }
        let mut node = new_node(mode, caller.uid, gid, if is_dir { 2 } else { 1 }, body());
        node.rdev = rdev;
        if let Body::Dir(dir) = &mut node.body {
            dir.parent = parent.0;
        }
        let ino = tree.add(&self.store, node)?;
        let bytes = acls.iter().map(|(n, v)| (n.len() + v.len()) as u64).sum();
        let named = self.store.take_metadata(bytes).and_then(|()| {
            if let Xattrs::Own(own) = &mut tree.get_mut(ino)?.xattrs
                && !acls.is_empty()
            {
                own.edit().extend(acls.into_iter().map(|(n, v)| (n.into(), v.into())));
            }
            tree.put_name(&self.store, parent.0, &name, ino, kind)
        });
        if let Err(e) = named {
            tree.unlinked(&self.store, ino)?;
            return Err(e);
        }
        if is_dir {
            tree.add_subdir(parent.0, 1)?;
        }
        tree.entry(ino)
    }
}
