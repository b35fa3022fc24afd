//! Links, names, `canonicalize`.

use std::io::ErrorKind;
use std::path::Path;

use super::{Fs, Place};

pub(crate) fn symbolic(at: &Place<'_, impl Fs + Sync>) {
    at.file("f", b"content");
    at.on.symlink("f", at.path("link")).unwrap();
    at.on.symlink("nowhere", at.path("dangling")).unwrap();
    at.on.symlink("loop", at.path("loop")).unwrap();
    assert_eq!(at.on.read(at.path("link")).unwrap(), b"content");
    assert_eq!(at.on.read(at.path("dangling")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(super::raw_os_error(&at.on.read(at.path("loop")).unwrap_err()), Some(40));
    assert!(!at.on.exists(at.path("dangling")).unwrap());
    assert!(at.on.exists(at.path("loop")).is_err(), "that is not to know");
    assert_eq!(at.on.symlink("x", at.path("f")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(at.on.symlink("", at.path("empty")).unwrap_err().kind(), ErrorKind::NotFound);
    at.on.remove_file(at.path("link")).unwrap();
    assert!(at.on.exists(at.path("f")).unwrap(), "the link went and nothing else");
}

pub(crate) fn hard(at: &Place<'_, impl Fs + Sync>) {
    at.file("f", b"content");
    at.on.hard_link(at.path("f"), at.path("g")).unwrap();
    at.on.write(at.path("g"), b"changed").unwrap();
    assert_eq!(at.on.read(at.path("f")).unwrap(), b"changed");
    assert_eq!(at.on.metadata(at.path("f")).unwrap().nlink(), 2);
    at.on.remove_file(at.path("f")).unwrap();
    assert_eq!(at.on.metadata(at.path("g")).unwrap().nlink(), 1);
    assert_eq!(at.on.hard_link(at.path("f"), at.path("h")).unwrap_err().kind(), ErrorKind::NotFound);
    at.on.create_dir(at.path("d")).unwrap();
    assert_eq!(at.on.hard_link(at.path("d"), at.path("h")).unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(at.on.hard_link(at.path("g"), at.path("d")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    // Of a symbolic link the link itself.
    at.on.symlink("g", at.path("s")).unwrap();
    at.on.hard_link(at.path("s"), at.path("t")).unwrap();
    assert!(at.on.symlink_metadata(at.path("t")).unwrap().is_symlink());
}

pub(crate) fn rename_replaces(at: &Place<'_, impl Fs + Sync>) {
    at.file("a", b"a");
    at.file("b", b"b");
    at.on.rename(at.path("a"), at.path("b")).unwrap();
    assert_eq!((at.on.read(at.path("b")).unwrap(), at.names(&at.dir)), (b"a".to_vec(), vec!["b".to_owned()]));
    assert_eq!(at.on.rename(at.path("a"), at.path("b")).unwrap_err().kind(), ErrorKind::NotFound);
    at.on.create_dir_all(at.path("d/e")).unwrap();
    at.on.create_dir(at.path("empty")).unwrap();
    assert_eq!(at.on.rename(at.path("b"), at.path("d")).unwrap_err().kind(), ErrorKind::IsADirectory);
    assert_eq!(at.on.rename(at.path("d"), at.path("b")).unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(
        at.on.rename(at.path("empty"), at.path("d")).unwrap_err().kind(),
        ErrorKind::DirectoryNotEmpty
    );
    assert_eq!(at.on.rename(at.path("d"), at.path("d/e/f")).unwrap_err().kind(), ErrorKind::InvalidInput);
    at.on.rename(at.path("d"), at.path("empty")).unwrap();
    assert_eq!(at.names(at.path("empty")), ["e"]);
    let across = at.on.rename(at.path("b"), "/proc/b").unwrap_err();
    assert_eq!(across.kind(), ErrorKind::CrossesDevices);
}

pub(crate) fn canonicalize_and_read_link(at: &Place<'_, impl Fs + Sync>) {
    let dir = at.on.canonicalize(&at.dir).unwrap();
    at.on.create_dir_all(at.path("a/b")).unwrap();
    at.file("a/f", b"");
    at.on.symlink("a/b", at.path("to-b")).unwrap();
    at.on.symlink(dir.join("a/f"), at.path("a/b/to-f")).unwrap();
    assert_eq!(at.on.canonicalize(at.path("to-b/.././/b/to-f")).unwrap(), dir.join("a/f"));
    assert_eq!(at.on.canonicalize("/").unwrap(), Path::new("/"));
    assert_eq!(at.on.canonicalize("/..").unwrap(), Path::new("/"));
    assert_eq!(at.on.canonicalize(at.path("absent")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(at.on.canonicalize(at.path("a/f/x")).unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(at.on.canonicalize("").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(at.on.read_link(at.path("to-b")).unwrap(), Path::new("a/b"));
    assert_eq!(at.on.read_link(at.path("a")).unwrap_err().kind(), ErrorKind::InvalidInput);
    let long = "x/".repeat(1500) + "end";
    at.on.symlink(&long, at.path("long")).unwrap();
    assert_eq!(at.on.read_link(at.path("long")).unwrap(), Path::new(&long));
}
