//! What a client knows of a host directory, written down and taken up again.
//!
//! Files are found again by the names they had, and are taken only if they are the same inodes; for others, and for
//! files that had no name any more, the client gets `ESTALE`, or `EBADF` where they were open.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{self, OFlags};

use super::nodes::Key;
use super::{HostDir, HostDirOptions, Ownership, lock, stat};
use crate::state::files::{HostDirectory, Owners};
use crate::vfs::NodeId;
use crate::vfs::saved::{LoadError, invalid};

/// Flags of `open` that an open file goes on with.
const KEPT: OFlags = OFlags::RDWR.union(OFlags::WRONLY).union(OFlags::APPEND).union(OFlags::DIRECTORY);

impl HostDir {
    pub(in crate::vfs) fn saved(&self) -> HostDirectory {
        let HostDirOptions { read_only, ownership, cache, max_open, cached_fds } = self.options;
        let open = lock(&self.open).clone();
        let nodes = lock(&self.nodes);
        let mut handles: Vec<(u64, u64, u32)> = open
            .handles
            .iter()
            .filter_map(|(&handle, file)| {
                let node = nodes.number(Key::of(&stat(&**file).ok()?))?;
                let flags = fs::fcntl_getfl(&**file).ok()?;
                Some((handle, node, (flags & KEPT).bits()))
            })
            .collect();
        handles.sort_unstable();
        let (next, nodes) = nodes.saved();
        HostDirectory {
            path: self.path.as_os_str().as_bytes().to_vec(),
            read_only,
            owners: match ownership {
                Ownership::AsIs => Owners::AsIs,
                Ownership::Fixed { uid, gid } => Owners::Fixed(uid, gid),
                Ownership::Recorded { uid, gid } => Owners::Recorded(uid, gid),
                Ownership::UserAsRoot => Owners::UserAsRoot,
            },
            cache_ns: u64::try_from(cache.as_nanos()).unwrap_or(u64::MAX),
            open: (
                u32::try_from(max_open).unwrap_or(u32::MAX),
                u32::try_from(cached_fds).unwrap_or(u32::MAX),
            ),
            next,
            nodes,
            handles,
            last_handle: open.next,
        }
    }

    pub(in crate::vfs) fn load(saved: &HostDirectory) -> Result<HostDir, LoadError> {
        let path = Path::new(OsStr::from_bytes(&saved.path));
        let options = HostDirOptions {
            read_only: saved.read_only,
            ownership: match saved.owners {
                Owners::AsIs => Ownership::AsIs,
                Owners::Fixed(uid, gid) => Ownership::Fixed { uid, gid },
                Owners::Recorded(uid, gid) => Ownership::Recorded { uid, gid },
                Owners::UserAsRoot => Ownership::UserAsRoot,
            },
            cache: Duration::from_nanos(saved.cache_ns),
            max_open: saved.open.0 as usize,
            cached_fds: saved.open.1 as usize,
        };
        if !path.is_absolute() {
            return Err(invalid("path of a directory"));
        }
        let failed = |source| LoadError::Io { path: path.to_owned(), source };
        let dir = HostDir::new(path, options).map_err(failed)?;
        if !lock(&dir.nodes).load(saved.next, &saved.nodes) {
            return Err(invalid("files of a directory"));
        }
        if saved.handles.len() > options.max_open {
            return Err(invalid("open files of a directory"));
        }
        let mut handles = HashMap::new();
        for &(handle, node, flags) in &saved.handles {
            if handle == 0 || handle > saved.last_handle {
                return Err(invalid("open files of a directory"));
            }
            let flags = OFlags::from_bits_retain(flags) & KEPT;
            if saved.read_only && flags.intersects(OFlags::RDWR | OFlags::WRONLY) {
                return Err(invalid("open files of a directory"));
            }
            // What is gone, or has become something else, is no open file any more.
            if let Ok(file) = dir.fd(NodeId(node)).and_then(|fd| dir.reopen(&*fd, flags)) {
                handles.insert(handle, Arc::new(file));
            }
        }
        let mut open = lock(&dir.open);
        (open.handles, open.next) = (handles, saved.last_handle);
        drop(open);
        Ok(dir)
    }

    /// For an overlay above, which counts anew: takes all lookup counts away.
    pub(in crate::vfs) fn forget_all(&self) {
        lock(&self.nodes).forget_all();
    }

    /// For an overlay above: one more lookup of a node that was loaded; false if there is none.
    pub(in crate::vfs) fn look_up_again(&self, node: NodeId) -> bool {
        lock(&self.nodes).look_up_again(node.0)
    }

    /// For an overlay above: drops what was not looked up again.
    pub(in crate::vfs) fn settle(&self) {
        let dropped = lock(&self.nodes).settle();
        drop(dropped);
    }
}
