//! Directories.

use std::collections::HashSet;
use std::io::ErrorKind;

use super::{Fs, Place};

pub(crate) fn make_and_remove(at: &Place<'_, impl Fs + Sync>) {
    at.on.create_dir(at.path("a")).unwrap();
    assert_eq!(at.on.create_dir(at.path("a")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(at.on.create_dir(at.path("x/y")).unwrap_err().kind(), ErrorKind::NotFound);
    at.on.create_dir_all(at.path("a/b/c//d/./e/")).unwrap();
    at.on.create_dir_all(at.path("a/b/c/d/e")).unwrap();
    at.on.create_dir_all("").unwrap();
    at.on.create_dir_all("/").unwrap();
    assert!(at.on.metadata(at.path("a/b/c/d/e")).unwrap().is_dir());
    at.file("a/f", b"");
    for below_file in ["a/f/b", "a/f/b/c"] {
        let error = at.on.create_dir_all(at.path(below_file)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotADirectory);
    }
    assert_eq!(at.on.create_dir_all(at.path("a/f")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    at.on.symlink("b", at.path("a/link")).unwrap();
    at.on.create_dir_all(at.path("a/link")).unwrap();
    at.on.create_dir_all(at.path("a/link/new")).unwrap();
    assert_eq!(at.names(at.path("a/b")), ["c", "new"]);
    at.on.dir_builder().mode(0o700).create(at.path("private")).unwrap();
    assert_eq!(at.on.metadata(at.path("private")).unwrap().mode() & 0o7777, 0o700);

    assert_eq!(at.on.remove_dir(at.path("a")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    assert_eq!(at.on.remove_dir(at.path("a/f")).unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(at.on.remove_file(at.path("a")).unwrap_err().kind(), ErrorKind::IsADirectory);
    at.on.remove_dir(at.path("private")).unwrap();
    assert_eq!(at.on.remove_dir(at.path("private")).unwrap_err().kind(), ErrorKind::NotFound);
    at.on.remove_dir_all(at.path("a")).unwrap();
    assert!(at.names(&at.dir).is_empty());
    assert_eq!(at.on.remove_dir_all(at.path("a")).unwrap_err().kind(), ErrorKind::NotFound);
    at.file("f", b"");
    assert_eq!(at.on.remove_dir_all(at.path("f")).unwrap_err().kind(), ErrorKind::NotADirectory);
    assert!(at.on.exists(at.path("f")).unwrap());
}

pub(crate) fn read_dir_is_complete_and_lazy(at: &Place<'_, impl Fs + Sync>) {
    assert_eq!(at.on.read_dir(&at.dir).unwrap().count(), 0);
    at.sh("mkdir d; ln -s d l; mkfifo p; echo x >f");
    let mut entries: Vec<_> = at.on.read_dir(&at.dir).unwrap().map(Result::unwrap).collect();
    entries.sort_by_key(|entry| entry.file_name());
    let said: Vec<String> =
        entries.iter().map(|e| format!("{:?} {:?}", e.file_name(), e.file_type().unwrap())).collect();
    // The host's std has other words for kinds in its own type; these are ours on both.
    assert_eq!(said, [r#""d" directory"#, r#""f" file"#, r#""l" symbolic link"#, r#""p" pipe"#]);
    for entry in &entries {
        let metadata = entry.metadata().unwrap();
        assert_eq!(metadata.ino(), entry.ino());
        assert_eq!(metadata.file_type(), entry.file_type().unwrap());
        assert_eq!(entry.path(), at.dir.join(entry.file_name()));
    }
    assert_eq!(at.on.read_dir(at.path("f")).unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(at.on.read_dir(at.path("absent")).unwrap_err().kind(), ErrorKind::NotFound);
    // One that is not read to its end leaves nothing behind, and several may be read at once.
    for _ in 0..50 {
        let (mut one, mut two) = (at.on.read_dir(&at.dir).unwrap(), at.on.read_dir(&at.dir).unwrap());
        assert!(one.next().is_some() && two.next().is_some());
    }
}

pub(crate) fn many_entries(at: &Place<'_, impl Fs + Sync>) {
    const COUNT: usize = 5000;
    at.on.create_dir(at.path("d")).unwrap();
    at.sh(&format!(
        "cd d; n=0; while [ $n -lt {COUNT} ]; do : >some-rather-long-name-of-a-file-$n; n=$((n+1)); done"
    ));
    let names: HashSet<_> = at.on.read_dir(at.path("d")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), COUNT);
    assert!(names.contains(std::ffi::OsStr::new("some-rather-long-name-of-a-file-4321")));
    // Given up in the middle.
    assert_eq!(at.on.read_dir(at.path("d")).unwrap().take(10).count(), 10);
    at.on.remove_dir_all(at.path("d")).unwrap();
}

pub(crate) fn remove_dir_all_stays_inside(at: &Place<'_, impl Fs + Sync>) {
    at.sh("mkdir outside tree tree/sub; echo keep >outside/keep; ln -s ../outside tree/out; \
           ln -s ../../outside/keep tree/sub/file; ln -s tree top");
    at.on.remove_dir_all(at.path("top")).unwrap();
    assert_eq!(at.names(&at.dir), ["outside", "tree"], "of a link only the link goes");
    at.on.remove_dir_all(at.path("tree")).unwrap();
    assert_eq!(at.names(&at.dir), ["outside"]);
    assert_eq!(at.on.read(at.path("outside/keep")).unwrap(), b"keep\n");
    // What others do to the tree meanwhile: a directory becomes a link that leads out, over and over.
    for _ in 0..5 {
        at.sh(
            "mkdir -p tree/a/b/c; for n in 0 1 2 3 4 5 6 7 8 9; do mkdir -p tree/$n/x; : >tree/$n/x/f; done",
        );
        std::thread::scope(|scope| {
            let swapping = scope.spawn(|| {
                at.sh("n=0; while [ $n -lt 40 ]; do mv tree/$((n%10)) moved 2>/dev/null; \
                       ln -s ../outside tree/$((n%10)) 2>/dev/null; rm -rf moved; n=$((n+1)); done; true")
            });
            // It may find new entries to the last, which is an error and not a step outside.
            let _ = at.on.remove_dir_all(at.path("tree"));
            swapping.join().unwrap();
        });
        assert_eq!(at.on.read(at.path("outside/keep")).unwrap(), b"keep\n");
        at.sh("rm -rf tree");
    }
}

pub(crate) fn temp_dirs_go(at: &Place<'_, impl Fs + Sync>) {
    let (one, two) = (at.on.temp_dir().unwrap(), at.on.temp_dir().unwrap());
    assert_ne!(one.path(), two.path());
    let path = one.path().to_owned();
    assert_eq!(at.on.metadata(&path).unwrap().mode() & 0o7777, 0o700);
    at.on.create_dir_all(path.join("a/b")).unwrap();
    at.on.write(path.join("a/b/c"), b"").unwrap();
    drop(one);
    assert!(!at.on.exists(&path).unwrap());
    let kept = two.keep();
    assert!(at.on.exists(&kept).unwrap());
    at.on.remove_dir(&kept).unwrap();
    at.on.temp_dir().unwrap().close().unwrap();
}

pub(crate) fn deep_trees_go(at: &Place<'_, impl Fs + Sync>) {
    // Deeper than a path can say: made step by step.
    at.sh("n=0; mkdir deep; cd deep; while [ $n -lt 300 ]; do mkdir a-name-of-twenty-byte; cd a-name-of-twenty-byte; n=$((n+1)); done; : >f");
    at.on.remove_dir_all(at.path("deep")).unwrap();
    assert!(!at.on.exists(at.path("deep")).unwrap());
}
