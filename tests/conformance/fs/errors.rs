//! Errors: kinds and numbers of all that Linux says to these calls.

use std::io::{self, ErrorKind, Write};

use super::{Fs, Kind, Permissions, Place, raw_os_error};

/// Each number with std's kind for it, `None` where std has none that can be named.
type Case<'a> = (&'a str, i32, Option<ErrorKind>, io::Result<()>);

pub(crate) fn every_errno(at: &Place<'_, impl Fs + Sync>) {
    let on = at.on;
    at.file("f", b"content");
    on.create_dir_all(at.path("full/below")).unwrap();
    on.symlink("loop", at.path("loop")).unwrap();
    at.sh("mkfifo fifo");
    let p = |name: &str| at.path(name);
    let read_only = on.open(p("f")).unwrap();
    let locked = on.open(p("f")).unwrap();
    read_only.lock().unwrap();
    let tried = match locked.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => Err(io::Error::from_raw_os_error(11)),
        Err(std::fs::TryLockError::Error(e)) => Err(e),
        Ok(()) => Ok(()),
    };
    let nonblocking = 0o4000;
    let cases: Vec<Case<'_>> = vec![
        ("EPERM", 1, Some(ErrorKind::PermissionDenied), on.hard_link(p("full"), p("x"))),
        ("ENOENT", 2, Some(ErrorKind::NotFound), on.open(p("absent")).map(drop)),
        ("ENXIO", 6, None, on.open_options().write(true).custom_flags(nonblocking).open(p("fifo")).map(drop)),
        ("EBADF", 9, None, (&read_only).write(b"x").map(drop)),
        ("EAGAIN", 11, Some(ErrorKind::WouldBlock), tried),
        ("EEXIST", 17, Some(ErrorKind::AlreadyExists), on.create_dir(p("f"))),
        ("EXDEV", 18, Some(ErrorKind::CrossesDevices), on.rename(p("f"), "/proc/x")),
        ("ENOTDIR", 20, Some(ErrorKind::NotADirectory), on.read_dir(p("f")).map(drop)),
        ("EISDIR", 21, Some(ErrorKind::IsADirectory), on.write(p("full"), "x")),
        ("EINVAL", 22, Some(ErrorKind::InvalidInput), on.read_link(p("f")).map(drop)),
        ("ENOSPC", 28, Some(ErrorKind::StorageFull), on.write("/dev/full", "x")),
        ("ESPIPE", 29, Some(ErrorKind::NotSeekable), {
            let fifo = on.open_options().read(true).write(true).open(p("fifo")).unwrap();
            io::Seek::seek(&mut &fifo, io::SeekFrom::Start(1)).map(drop)
        }),
        ("ENAMETOOLONG", 36, Some(ErrorKind::InvalidFilename), on.create_dir(p(&"n".repeat(256)))),
        ("ENOTEMPTY", 39, Some(ErrorKind::DirectoryNotEmpty), on.remove_dir(p("full"))),
        ("ELOOP", 40, None, on.metadata(p("loop")).map(drop)),
    ];
    for (name, errno, kind, result) in cases {
        let error = result.expect_err(name);
        assert_eq!(raw_os_error(&error), Some(errno), "{name}: {error:?}");
        if let Some(kind) = kind {
            assert_eq!(error.kind(), kind, "{name}: {error:?}");
        }
        assert_eq!(error.kind(), io::Error::from_raw_os_error(errno).kind(), "{name}");
    }
    // A file system without room, and a file that is run.
    if at.kind == Kind::Machine {
        at.sh("mkdir small; mount -t tmpfs -o size=64k,nr_inodes=8 none small");
        let error = at.on.write(p("small/f"), vec![1; 1 << 20]).unwrap_err();
        assert_eq!((error.kind(), raw_os_error(&error)), (ErrorKind::StorageFull, Some(28)));
        at.on.remove_file(p("small/f")).unwrap();
        at.on.write(p("small/f"), "fits again").unwrap();
        at.sh("mount -o remount,ro small");
        let error = at.on.write(p("small/f"), "x").unwrap_err();
        assert_eq!((error.kind(), raw_os_error(&error)), (ErrorKind::ReadOnlyFilesystem, Some(30)));
        assert_eq!(at.on.remove_dir(p("small")).unwrap_err().kind(), ErrorKind::ResourceBusy);
        at.sh("umount small");
        // A program that has just been written and closed can be started: closing has happened then.
        let bytes = at.on.read("/bin/busybox").unwrap();
        for _ in 0..5 {
            at.on.write(p("busybox"), &bytes).unwrap();
            at.on.set_permissions(p("busybox"), Permissions::from_mode(0o755)).unwrap();
            assert_eq!(at.sh("./busybox echo ran"), "ran");
        }
    }
}

pub(crate) fn messages_name_operation_and_path(at: &Place<'_, impl Fs + Sync>) {
    let said = at.on.read(at.path("absent")).unwrap_err().to_string();
    assert!(said.contains("No such file or directory"), "{said}");
    // std's own errors, which are the host's, say no more than that.
    if at.kind != Kind::Host {
        assert!(said.starts_with("read ") && said.contains(at.path("absent").to_str().unwrap()), "{said}");
        let said = at.on.rename(at.path("a"), at.path("b")).unwrap_err().to_string();
        assert!(said.contains("rename") && said.contains("/a\" to ") && said.contains("/b\""), "{said}");
        let file = at.on.open(&at.dir).unwrap();
        let said = io::Read::read(&mut &file, &mut [0]).unwrap_err().to_string();
        assert!(said.contains("read") && said.contains(at.dir.to_str().unwrap()), "{said}");
    }
}
