//! `Permissions`, owners, the umask.

use std::io::ErrorKind;

use super::{Fs, Permissions, Place};

pub(crate) fn modes(at: &Place<'_, impl Fs + Sync>) {
    let path = at.file("f", b"");
    for mode in [0o0, 0o600, 0o4755, 0o777] {
        at.on.set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        assert_eq!(at.on.metadata(&path).unwrap().permissions().mode(), 0o100_000 | mode);
    }
    let mut permissions = at.on.metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    at.on.set_permissions(&path, permissions).unwrap();
    assert!(at.on.metadata(&path).unwrap().permissions().readonly());
    let file = at.on.open(&path).unwrap();
    file.set_permissions(Permissions::from_mode(0o640)).unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o640);
    at.on.symlink("f", at.path("link")).unwrap();
    at.on.set_permissions(at.path("link"), Permissions::from_mode(0o604)).unwrap();
    assert_eq!(at.on.metadata(&path).unwrap().mode() & 0o7777, 0o604, "through the link");
    let error = at.on.set_permissions(at.path("absent"), Permissions::from_mode(0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

pub(crate) fn owners(at: &Place<'_, impl Fs + Sync>) {
    let path = at.file("f", b"");
    let owner = |name: &str| {
        let m = at.on.symlink_metadata(at.path(name)).unwrap();
        (m.uid(), m.gid())
    };
    if at.user().0 != 0 {
        // Only root gives files away.
        assert_eq!(at.on.chown(&path, Some(7), None).unwrap_err().kind(), ErrorKind::PermissionDenied);
        at.on.chown(&path, None, None).unwrap();
        return;
    }
    at.on.chown(&path, Some(7), Some(8)).unwrap();
    assert_eq!(owner("f"), (7, 8));
    let file = at.on.open(&path).unwrap();
    file.chown(None, Some(9)).unwrap();
    assert_eq!(owner("f"), (7, 9));
    file.chown(Some(7), Some(8)).unwrap();
    assert_eq!(owner("f"), (7, 8));
    at.on.chown(&path, None, Some(9)).unwrap();
    at.on.chown(&path, None, None).unwrap();
    assert_eq!(owner("f"), (7, 9));
    at.on.symlink("f", at.path("link")).unwrap();
    at.on.lchown(at.path("link"), Some(5), None).unwrap();
    assert_eq!((owner("link").0, owner("f").0), (5, 7));
    at.on.chown(at.path("link"), Some(6), None).unwrap();
    assert_eq!((owner("link").0, owner("f").0), (5, 6));
    assert_eq!(at.on.chown(at.path("absent"), Some(1), None).unwrap_err().kind(), ErrorKind::NotFound);
}

pub(crate) fn umask_is_022(at: &Place<'_, impl Fs + Sync>) {
    at.file("f", b"");
    at.on.create_dir(at.path("d")).unwrap();
    at.on.open_options().write(true).create(true).mode(0o777).open(at.path("g")).unwrap();
    let mode = |name: &str| at.on.metadata(at.path(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("f"), mode("d"), mode("g")), (0o644, 0o755, 0o755));
}
