//! Renaming in the overlay.

use super::Overlay;
use crate::vfs::{Errno, FileType, Name, NodeId, Result, Time, rename};

impl Overlay {
    pub(super) fn rename_entry(
        &self,
        parent: NodeId,
        name: Name<'_>,
        new_parent: NodeId,
        new_name: Name<'_>,
        flags: u32,
    ) -> Result<()> {
        let exchange = flags == rename::EXCHANGE;
        if !matches!(flags, 0 | rename::NOREPLACE | rename::EXCHANGE) {
            return Err(Errno::EINVAL);
        }
        let mut tree = self.exclusive();
        tree.live_dir(parent.0)?;
        tree.live_dir(new_parent.0)?;
        let source = tree.child(&self.below, parent.0, &name)?.ok_or(Errno::ENOENT)?;
        let target = tree.child(&self.below, new_parent.0, &new_name)?;
        if flags == rename::NOREPLACE && target.is_some() {
            return Err(Errno::EEXIST);
        }
        if exchange && target.is_none() {
            return Err(Errno::ENOENT);
        }
        tree.load(&self.below, parent.0, &source)?;
        let source_dir = source.kind == FileType::Dir;
        if source_dir && tree.is_below(new_parent.0, source.ino)? {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = &target {
            if target.ino == source.ino {
                return Ok(());
            }
            tree.load(&self.below, new_parent.0, target)?;
            let target_dir = target.kind == FileType::Dir;
            if target_dir && tree.is_below(parent.0, target.ino)? {
                return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
            }
            if !exchange {
                match (source_dir, target_dir) {
                    (true, false) => return Err(Errno::ENOTDIR),
                    (false, true) => return Err(Errno::EISDIR),
                    (true, true) if !tree.is_empty(&self.below, target.ino)? => {
                        return Err(Errno::ENOTEMPTY);
                    }
                    _ => {}
                }
            }
        }
        let (old, new) = (parent.0, new_parent.0);
        let now = Time::now();
        // Everything that can fail for want of room comes before the first change that shows.
        tree.dirty(&self.store, source.ino, false)?;
        tree.dirty(&self.store, old, false)?;
        if let (true, Some(target)) = (exchange, &target) {
            tree.dirty(&self.store, target.ino, false)?;
            tree.put_name(&self.store, new, &new_name, source.ino, source.kind)?;
            if let Err(e) = tree.put_name(&self.store, old, &name, target.ino, target.kind) {
                tree.put_name(&self.store, new, &new_name, target.ino, target.kind)?;
                return Err(e);
            }
            if target.kind == FileType::Dir {
                tree.set_parent(&self.store, target.ino, old)?;
                tree.add_subdir(new, -1)?;
                tree.add_subdir(old, 1)?;
            }
            tree.get_mut(target.ino)?.ctime = now;
        } else {
            tree.put_name(&self.store, new, &new_name, source.ino, source.kind)?;
            tree.remove_name(&self.below, &self.store, old, &name)?;
            if let Some(target) = &target {
                if target.kind == FileType::Dir {
                    tree.add_subdir(new, -1)?;
                }
                tree.unlinked(&self.store, target.ino)?;
            }
        }
        if source_dir {
            tree.set_parent(&self.store, source.ino, new)?;
            tree.add_subdir(old, -1)?;
            tree.add_subdir(new, 1)?;
        }
        tree.get_mut(source.ino)?.ctime = now;
        Ok(())
    }
}
