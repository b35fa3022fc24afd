//! Paths.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{Fs, Place};

pub(crate) fn bytes_of_every_kind(at: &Place<'_, impl Fs + Sync>) {
    // Every byte that a name can have, in names that say nothing to anybody.
    for byte in (1..=255u8).filter(|b| *b != b'/' && *b != b'.') {
        let name = OsStr::from_bytes(&[byte]).to_owned();
        at.on.write(at.dir.join(&name), [byte]).unwrap();
    }
    let mut seen = Vec::new();
    for entry in at.on.read_dir(&at.dir).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(at.on.read(entry.path()).unwrap(), entry.file_name().as_bytes());
        seen.push(entry.file_name().as_bytes()[0]);
    }
    seen.sort_unstable();
    assert_eq!(seen.len(), 253);
    let odd = at.dir.join(OsStr::from_bytes(b"\xff\xfe\n \"'"));
    at.on.create_dir(&odd).unwrap();
    assert_eq!(at.on.canonicalize(&odd).unwrap().file_name(), odd.file_name());
    at.on.symlink(OsStr::from_bytes(b"\x80\x81"), at.path("odd-link")).unwrap();
    assert_eq!(at.on.read_link(at.path("odd-link")).unwrap().as_os_str().as_bytes(), b"\x80\x81");
}

pub(crate) fn empty_long_and_nul(at: &Place<'_, impl Fs + Sync>) {
    let nul = at.path("a\0b");
    let refused = [
        at.on.read(&nul).map(drop),
        at.on.write(&nul, b""),
        at.on.create_dir(&nul),
        at.on.metadata(&nul).map(drop),
        at.on.read_dir(&nul).map(drop),
        at.on.rename(at.path("x"), &nul),
        at.on.symlink("a\0b", at.path("l")),
        at.on.open(&nul).map(drop),
    ];
    for result in refused {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    for result in
        [at.on.read("").map(drop), at.on.create_dir(""), at.on.remove_file(""), at.on.rename("", "x")]
    {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::NotFound);
    }
    let name = |len: usize| at.dir.join("n".repeat(len));
    at.on.write(name(255), b"longest").unwrap();
    assert_eq!(at.on.read(name(255)).unwrap(), b"longest");
    assert_eq!(at.on.write(name(256), b"").unwrap_err().kind(), ErrorKind::InvalidFilename);
    // 4095 bytes are a path, 4096 are not.
    let base = at.dir.to_str().unwrap();
    let path = |len: usize| PathBuf::from(format!("{base}{}f", "/".repeat(len - base.len() - 1)));
    at.on.write(path(4095), b"long").unwrap();
    assert_eq!(at.on.read(at.path("f")).unwrap(), b"long");
    for len in [4096, 4097, 100_000] {
        let error = at.on.write(path(len), b"").unwrap_err();
        assert_eq!((error.kind(), super::raw_os_error(&error)), (ErrorKind::InvalidFilename, Some(36)));
    }
}

pub(crate) fn relative_paths(at: &Place<'_, impl Fs + Sync>) {
    // Where they begin is the place's affair: this package's directory, or that of the machine's commands. Paths that
    // lead up from there to the root and down again are the same everywhere.
    let up = Path::new("../../../../../../../../../../../../..");
    let relative = up.join(at.dir.strip_prefix("/").unwrap());
    at.on.write(relative.join("f"), b"there").unwrap();
    assert_eq!(at.on.read(at.path("f")).unwrap(), b"there");
    assert!(at.on.canonicalize(".").unwrap().is_absolute());
    // A link's target is kept as it is.
    at.on.symlink("f", relative.join("link")).unwrap();
    assert_eq!(at.on.read_link(at.path("link")).unwrap(), Path::new("f"));
    let entry = at.on.read_dir(&relative).unwrap().next().unwrap().unwrap();
    assert!(entry.path().starts_with(up));
    assert!(entry.metadata().is_ok());
}
