//! `Metadata`, `FileType`, `FileTimes`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{FileTimes, Fs, Place};

pub(crate) fn of_each_kind(at: &Place<'_, impl Fs + Sync>) {
    at.sh("mkfifo fifo; mkdir dir; ln -s file link");
    at.file("file", b"12345");
    let kinds = |name: &str| {
        let kind = at.on.symlink_metadata(at.path(name)).unwrap().file_type();
        [
            kind.is_dir(),
            kind.is_file(),
            kind.is_symlink(),
            kind.is_fifo(),
            kind.is_char_device(),
            kind.is_socket(),
        ]
    };
    assert_eq!(kinds("dir"), [true, false, false, false, false, false]);
    assert_eq!(kinds("file"), [false, true, false, false, false, false]);
    assert_eq!(kinds("link"), [false, false, true, false, false, false]);
    assert_eq!(kinds("fifo"), [false, false, false, true, false, false]);
    let device = at.on.metadata("/dev/null").unwrap();
    assert!(device.file_type().is_char_device() && !device.file_type().is_block_device());
    assert_eq!(device.rdev(), 1 << 8 | 3);
    let (of_link, of_file) =
        (at.on.metadata(at.path("link")).unwrap(), at.on.metadata(at.path("file")).unwrap());
    assert!(of_link.is_file() && !of_link.is_symlink() && !of_link.is_dir());
    assert_eq!((of_link.ino(), of_link.dev()), (of_file.ino(), of_file.dev()));
    assert_eq!(of_link.file_type(), of_file.file_type());
    assert_ne!(of_link.file_type(), device.file_type());
    assert_eq!(
        format!("{:?}", at.on.symlink_metadata(at.path("link")).unwrap().file_type()),
        "symbolic link"
    );
}

pub(crate) fn times_and_numbers(at: &Place<'_, impl Fs + Sync>) {
    let path = at.file("f", b"12345");
    at.on.hard_link(&path, at.path("g")).unwrap();
    let m = at.on.metadata(&path).unwrap();
    assert_eq!((m.len(), m.size(), m.nlink()), (5, 5, 2));
    assert_eq!(m.mode() & 0o170_000, 0o100_000);
    assert_eq!((m.uid(), m.gid()), at.user());
    assert!(m.blksize() >= 512);
    let said = at.sh("stat -c '%i %h %u %g %s %b' f; stat -c %Y f");
    let expected = format!("{} 2 {} {} 5 {}\n{}", m.ino(), m.uid(), m.gid(), m.blocks(), m.mtime());
    assert_eq!(said, expected);
    let since = m.modified().unwrap().duration_since(UNIX_EPOCH).unwrap();
    assert_eq!((since.as_secs() as i64, i64::from(since.subsec_nanos())), (m.mtime(), m.mtime_nsec()));
    assert!((0..1_000_000_000).contains(&m.ctime_nsec()) && m.ctime() >= m.mtime());
    assert!(m.accessed().unwrap() > UNIX_EPOCH && m.atime() > 0 && m.atime_nsec() >= 0);
    // Not every file system keeps it: either way std's answer.
    match m.created() {
        Ok(time) => assert!(time > UNIX_EPOCH),
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::Unsupported),
    }
    // The place's clock goes right.
    let now = SystemTime::now();
    let off = now.duration_since(m.modified().unwrap()).unwrap_or_else(|e| e.duration());
    assert!(off < Duration::from_secs(3600), "{off:?}");
}

pub(crate) fn times_are_set(at: &Place<'_, impl Fs + Sync>) {
    let path = at.file("f", b"");
    let (one, two) =
        (UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789), UNIX_EPOCH + Duration::from_secs(77));
    at.on.set_times(&path, FileTimes::new().set_accessed(one).set_modified(two)).unwrap();
    let m = at.on.metadata(&path).unwrap();
    assert_eq!((m.accessed().unwrap(), m.modified().unwrap()), (one, two));
    let file = at.on.open_options().write(true).open(&path).unwrap();
    file.set_times(FileTimes::new().set_modified(one)).unwrap();
    assert_eq!(file.metadata().unwrap().accessed().unwrap(), one, "what is not set stays");
    file.set_modified(two).unwrap();
    assert_eq!(at.on.metadata(&path).unwrap().modified().unwrap(), two);
    let before = UNIX_EPOCH - Duration::new(86_400, 5);
    if at.on.set_times(&path, FileTimes::new().set_modified(before)).is_ok() {
        // A file system may have none so early, and says its first.
        let said = at.on.metadata(&path).unwrap().modified().unwrap();
        assert!(said == before || said >= UNIX_EPOCH, "{said:?}");
    }
}
