//! `OpenOptions`.

use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};

use super::{Fs, Place};

pub(crate) fn access_and_creation(at: &Place<'_, impl Fs + Sync>) {
    let path = at.file("f", b"content");
    let mut read = at.on.open_options().read(true).open(&path).unwrap();
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    assert_eq!(text, "content");
    // EBADF, which std has no kind for.
    assert_eq!(super::raw_os_error(&read.write(b"x").unwrap_err()), Some(9));
    let mut write = at.on.open_options().write(true).open(&path).unwrap();
    assert_eq!(super::raw_os_error(&write.read(&mut [0]).unwrap_err()), Some(9));
    write.write_all(b"CON").unwrap();
    assert_eq!(at.on.read(&path).unwrap(), b"CONtent");
    let error = at.on.open_options().write(true).open(at.path("absent")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    at.on.open_options().write(true).create(true).open(at.path("absent")).unwrap();
    assert_eq!(at.on.read(at.path("absent")).unwrap(), b"");
    let mut both = at.on.open_options().read(true).write(true).open(&path).unwrap();
    both.write_all(b"12").unwrap();
    both.read_exact(&mut [0; 2]).unwrap();
    assert_eq!(both.stream_position().unwrap(), 4);
}

pub(crate) fn contradictions(at: &Place<'_, impl Fs + Sync>) {
    at.file("f", b"content");
    // read, write, append, truncate, create, create_new
    for wrong in [
        [false, false, false, false, false, false],
        [true, false, false, true, false, false],
        [true, false, false, false, true, false],
        [true, false, false, false, false, true],
        [false, false, true, true, false, false],
        [false, true, true, true, true, false],
        [false, false, false, true, true, false],
        [false, false, false, false, false, true],
    ] {
        let [read, write, append, truncate, create, create_new] = wrong;
        let mut options = at.on.open_options();
        options
            .read(read)
            .write(write)
            .append(append)
            .truncate(truncate)
            .create(create)
            .create_new(create_new);
        let error = options.open(at.path("f")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{wrong:?}");
    }
    assert_eq!(at.on.read(at.path("f")).unwrap(), b"content", "nothing was done");
}

pub(crate) fn append_and_truncate(at: &Place<'_, impl Fs + Sync>) {
    let path = at.file("f", b"one\n");
    let mut log = at.on.open_options().append(true).open(&path).unwrap();
    log.write_all(b"two\n").unwrap();
    log.seek(SeekFrom::Start(0)).unwrap();
    log.write_all(b"three\n").unwrap();
    assert_eq!(at.on.read_to_string(&path).unwrap(), "one\ntwo\nthree\n");
    at.on.open_options().write(true).truncate(true).open(&path).unwrap();
    assert_eq!(at.on.metadata(&path).unwrap().len(), 0);
    log.write_all(b"four\n").unwrap();
    assert_eq!(at.on.read_to_string(&path).unwrap(), "four\n");
    at.on.create(&path).unwrap().write_all(b"x").unwrap();
    assert_eq!(at.on.read_to_string(&path).unwrap(), "x");
}

pub(crate) fn create_new_is_exclusive(at: &Place<'_, impl Fs + Sync>) {
    let path = at.path("f");
    let mut file = at.on.create_new(&path).unwrap();
    file.write_all(b"new").unwrap();
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "new");
    assert_eq!(at.on.create_new(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
    // Not through a link that leads nowhere either.
    at.on.symlink("nowhere", at.path("link")).unwrap();
    assert_eq!(at.on.create_new(at.path("link")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    at.on.create(at.path("link")).unwrap();
    assert!(at.on.exists(at.path("nowhere")).unwrap());
}

pub(crate) fn mode_and_custom_flags(at: &Place<'_, impl Fs + Sync>) {
    const O_DIRECTORY: i32 = 0o200_000;
    const O_NOFOLLOW: i32 = 0o400_000;
    let mut options = at.on.open_options();
    options.write(true).create(true).mode(0o600).open(at.path("f")).unwrap();
    assert_eq!(at.on.metadata(at.path("f")).unwrap().mode() & 0o7777, 0o600);
    at.on.symlink("f", at.path("link")).unwrap();
    let refused = at.on.open_options().read(true).custom_flags(O_NOFOLLOW).open(at.path("link")).unwrap_err();
    assert_eq!(super::raw_os_error(&refused), Some(40));
    let refused = at.on.open_options().read(true).custom_flags(O_DIRECTORY).open(at.path("f")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotADirectory);
    // Flags cannot change what the options say.
    let file = at.on.open_options().read(true).custom_flags(0o2).open(at.path("f")).unwrap();
    assert!((&file).write(b"x").is_err());
}
