//! Values of the library as those of the FUSE library, and back.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cc::vfs::{Attr, Caller, Errno, FileType, Handle, Name, NodeId, Time};
use fuser::{FileAttr, FileHandle, INodeNo, Request};

pub(crate) fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

pub(crate) fn errno(e: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(e.raw())
}

pub(crate) fn id(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

pub(crate) fn handle(fh: FileHandle) -> Handle {
    Handle(fh.0)
}

pub(crate) fn name(name: &OsStr) -> Result<Name<'_>, Errno> {
    Name::new(name.as_bytes())
}

pub(crate) fn to_system(time: Time) -> SystemTime {
    let whole = match u64::try_from(time.secs) {
        Ok(secs) => UNIX_EPOCH + Duration::from_secs(secs),
        Err(_) => UNIX_EPOCH - Duration::from_secs(time.secs.unsigned_abs()),
    };
    whole + Duration::from_nanos(time.nanos.into())
}

pub(crate) fn from_system(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(d) => Time { secs: d.as_secs() as i64, nanos: d.subsec_nanos() },
        Err(e) => {
            let (secs, nanos) = (e.duration().as_secs() as i64, e.duration().subsec_nanos());
            if nanos == 0 {
                Time { secs: -secs, nanos }
            } else {
                Time { secs: -secs - 1, nanos: 1_000_000_000 - nanos }
            }
        }
    }
}

pub(crate) fn kind(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Char => fuser::FileType::CharDevice,
        FileType::Dir => fuser::FileType::Directory,
        FileType::Block => fuser::FileType::BlockDevice,
        FileType::File => fuser::FileType::RegularFile,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Socket => fuser::FileType::Socket,
    }
}

/// The library takes the node's id from the inode number.
pub(crate) fn attr(node: NodeId, attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(node.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: to_system(attr.atime),
        mtime: to_system(attr.mtime),
        ctime: to_system(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: kind(attr.file_type()),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

pub(crate) fn dot(file_type: FileType) -> FileAttr {
    let none = Time::default();
    let zero = Attr {
        ino: 0,
        size: 0,
        blocks: 0,
        atime: none,
        mtime: none,
        ctime: none,
        mode: file_type.mode(),
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
    };
    attr(NodeId(0), &zero)
}
