//! `copy` within a place, and copies and archives in and out of it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use super::{Fs, Permissions, Place, pattern};

pub(crate) fn copy_keeps_content_and_mode(at: &Place<'_, impl Fs + Sync>) {
    let content = pattern(700_001);
    at.file("f", &content);
    at.on.set_permissions(at.path("f"), Permissions::from_mode(0o751)).unwrap();
    assert_eq!(at.on.copy(at.path("f"), at.path("g")).unwrap(), 700_001);
    assert!(at.on.read(at.path("g")).unwrap() == content);
    assert_eq!(at.on.metadata(at.path("g")).unwrap().mode() & 0o7777, 0o751);
    at.file("short", b"short");
    assert_eq!(at.on.copy(at.path("short"), at.path("g")).unwrap(), 5);
    assert_eq!(at.on.read(at.path("g")).unwrap(), b"short");
    // What the kernel makes as it is read.
    assert!(at.on.copy("/proc/self/status", at.path("status")).unwrap() > 100);
    assert!(at.on.read_to_string(at.path("status")).unwrap().starts_with("Name:"));
    assert_eq!(at.on.copy(at.path("absent"), at.path("x")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(at.on.copy(at.path("f"), &at.dir).unwrap_err().kind(), ErrorKind::IsADirectory);
    assert!(at.on.copy(&at.dir, at.path("x")).is_err());
    assert!(!at.on.exists(at.path("x")).unwrap());
    at.on.write(at.path("empty"), b"").unwrap();
    assert_eq!(at.on.copy(at.path("empty"), at.path("e2")).unwrap(), 0);
}

/// A tree on this program's host, with everything that a tree has.
fn make_tree(dir: &Path) {
    fs::create_dir_all(dir.join("sub/deeper/deepest")).unwrap();
    fs::create_dir(dir.join("empty")).unwrap();
    for (n, len) in [0, 1, 65_535, 65_536, 65_537, 262_144, 1_500_000].into_iter().enumerate() {
        fs::write(dir.join(format!("sub/file-{n}")), pattern(len)).unwrap();
    }
    for n in 0..150 {
        fs::write(dir.join(format!("sub/deeper/small-{n}")), format!("{n}")).unwrap();
    }
    fs::write(dir.join("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(dir.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.join("secret"), "s").unwrap();
    fs::set_permissions(dir.join("secret"), fs::Permissions::from_mode(0o400)).unwrap();
    std::os::unix::fs::symlink("sub/file-1", dir.join("link")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("sub/abroad")).unwrap();
    std::os::unix::fs::symlink("..", dir.join("sub/up")).unwrap();
    let old = UNIX_EPOCH + Duration::new(1_234_567_890, 987_654_321);
    fs::File::options().write(true).open(dir.join("script")).unwrap().set_modified(old).unwrap();
    fs::set_permissions(dir.join("empty"), fs::Permissions::from_mode(0o700)).unwrap();
    for dir in [dir.join("sub/deeper"), dir.join("sub"), dir.to_owned()] {
        fs::File::open(dir).unwrap().set_modified(old).unwrap();
    }
}

/// What is in a tree: names, kinds, modes, content, and with `nanos` times to that.
fn describe(dir: &Path, nanos: i64) -> Vec<String> {
    fn add(dir: &Path, name: &str, nanos: i64, all: &mut Vec<String>) {
        let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(Result::unwrap).collect();
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            let m = entry.metadata().unwrap();
            let rest = if m.is_symlink() {
                format!("-> {:?}", fs::read_link(entry.path()).unwrap())
            } else {
                let content = if m.is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
                let sum =
                    content.iter().fold(0u32, |sum, b| sum.wrapping_mul(31).wrapping_add(u32::from(*b)));
                let old = m.mtime() == 1_234_567_890;
                let time = if old { format!("{}", m.mtime_nsec() / nanos) } else { "now".into() };
                format!("{:o} {} bytes {sum:x} {time}", m.mode(), content.len())
            };
            all.push(format!("{name} {rest}"));
            if m.is_dir() {
                add(&entry.path(), &name, nanos, all);
            }
        }
    }
    let mut all = Vec::new();
    add(dir, "", nanos, &mut all);
    all
}

pub(crate) fn trees_go_in_and_out(at: &Place<'_, impl Fs + Sync>) {
    let scratch = tempfile::tempdir().unwrap();
    let (tree, back) = (scratch.path().join("tree"), scratch.path().join("back"));
    make_tree(&tree);
    let bytes = at.on.copy_in(&tree, at.path("tree")).unwrap();
    assert!(bytes > 1_900_000);
    assert_eq!(
        at.sh("cat tree/sub/deeper/small-77; readlink tree/sub/abroad; stat -c %a tree/script"),
        "77/etc/passwd\n755"
    );
    assert_eq!(at.on.metadata(at.path("tree")).unwrap().mtime(), 1_234_567_890);
    assert_eq!(at.on.copy_out(at.path("tree"), &back).unwrap(), bytes);
    assert_eq!(describe(&back, 1), describe(&tree, 1));
    assert_eq!(fs::metadata(&back).unwrap().mtime(), 1_234_567_890);
    // Into one that is there: added, and files replaced, not what links lead to.
    fs::write(back.join("more"), "stays").unwrap();
    fs::remove_file(back.join("script")).unwrap();
    fs::write(scratch.path().join("outside"), "untouched").unwrap();
    std::os::unix::fs::symlink("../outside", back.join("script")).unwrap();
    at.on.copy_out(at.path("tree"), &back).unwrap();
    assert_eq!(fs::read(back.join("more")).unwrap(), b"stays");
    assert_eq!(fs::read(scratch.path().join("outside")).unwrap(), b"untouched");
    assert_eq!(fs::read(back.join("script")).unwrap(), b"#!/bin/sh\n");
    at.sh("echo untouched >outside; rm tree/script; ln -s ../outside tree/script; echo stays >tree/more");
    at.on.copy_in(&tree, at.path("tree")).unwrap();
    assert_eq!(at.sh("cat outside tree/more tree/script"), "untouched\nstays\n#!/bin/sh");
    // One file.
    at.on.copy_in(tree.join("sub/file-6"), at.path("one")).unwrap();
    assert!(at.on.read(at.path("one")).unwrap() == pattern(1_500_000));
    at.on.copy_out(at.path("one"), scratch.path().join("one")).unwrap();
    assert!(fs::read(scratch.path().join("one")).unwrap() == pattern(1_500_000));
    // What a program runs as is not copied out.
    at.sh("echo x >setuid; chmod 6755 setuid; mkfifo pipe");
    at.on.copy_out(at.path("setuid"), scratch.path().join("setuid")).unwrap();
    assert_eq!(fs::metadata(scratch.path().join("setuid")).unwrap().mode() & 0o7777, 0o755);
    // Failures.
    assert_eq!(
        at.on.copy_in(scratch.path().join("absent"), at.path("x")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(
        at.on.copy_out(at.path("absent"), scratch.path().join("x")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert!(at.on.copy_in(&tree, at.path("one")).is_err());
    assert!(at.on.copy_in(tree.join("script"), &at.dir).is_err());
    assert!(at.on.copy_out(at.path("one"), scratch.path()).is_err());
    // And whatever went wrong, it goes on.
    assert_eq!(at.on.read(at.path("tree/secret")).unwrap(), b"s");
}

pub(crate) fn archives_go_in_and_out(at: &Place<'_, impl Fs + Sync>) {
    let scratch = tempfile::tempdir().unwrap();
    let (tree, back) = (scratch.path().join("tree"), scratch.path().join("back"));
    make_tree(&tree);
    at.on.copy_in(&tree, at.path("tree")).unwrap();
    let owner = if at.user().0 == 0 { (12, 34) } else { at.user() };
    at.on.chown(at.path("tree/secret"), Some(owner.0), Some(owner.1)).unwrap();
    let mut archive = Vec::new();
    at.on.write_archive(at.path("tree"), &mut archive).unwrap();
    at.on.read_archive(&archive[..], at.path("unpacked")).unwrap();
    let secret = at.on.metadata(at.path("unpacked/secret")).unwrap();
    assert_eq!((secret.uid(), secret.gid()), owner);
    at.on.copy_out(at.path("unpacked"), &back).unwrap();
    // Whole seconds are what the format has; a part is left only of times that were not old.
    let strip = |lines: Vec<String>| -> Vec<String> {
        lines
            .into_iter()
            .map(|line| line.rsplit_once(' ').map_or(line.clone(), |(head, _)| head.to_owned()))
            .collect()
    };
    assert_eq!(strip(describe(&back, 1)), strip(describe(&tree, 1)));
    assert_eq!(fs::metadata(back.join("script")).unwrap().mtime(), 1_234_567_890);
    assert_eq!(fs::metadata(back.join("sub")).unwrap().mtime(), 1_234_567_890);

    // Names that lead out.
    let entry = |kind: tar::EntryType, name: &str, target: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_mtime(1);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        (header.as_old_mut().name[..name.len()]).copy_from_slice(name.as_bytes());
        if let Some(target) = target {
            header.set_link_name_literal(target).unwrap();
        }
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    use tar::EntryType::{Link, Regular, Symlink};
    at.sh("mkdir prison outside; echo untouched >outside/f");
    for hostile in [
        vec![entry(Regular, "../outside/f", None)],
        vec![entry(Regular, "a/../../outside/f", None)],
        vec![entry(Symlink, "out", Some("../outside")), entry(Regular, "out/f", None)],
        vec![entry(Symlink, "out2", Some("../outside")), entry(Link, "stolen", Some("out2/f"))],
        vec![entry(Link, "stolen2", Some("../outside/f"))],
        vec![entry(tar::EntryType::Char, "device", None)],
    ] {
        let archive = [hostile.concat(), vec![0; 1024]].concat();
        let error = at.on.read_archive(&archive[..], at.path("prison")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    }
    assert_eq!(at.on.read(at.path("outside/f")).unwrap(), b"untouched\n");
    assert!(!at.on.exists(at.path("prison/stolen")).unwrap());
    // Absolute names are taken as if they began there.
    let archive = [entry(Regular, "/abs/f", None), vec![0; 1024]].concat();
    at.on.read_archive(&archive[..], at.path("prison")).unwrap();
    assert!(at.on.exists(at.path("prison/abs/f")).unwrap());
}

pub(crate) fn holes_stay_holes(at: &Place<'_, impl Fs + Sync>) {
    let scratch = tempfile::tempdir().unwrap();
    let (sparse, back) = (scratch.path().join("sparse"), scratch.path().join("back"));
    let file = fs::File::create(&sparse).unwrap();
    use std::os::unix::fs::FileExt;
    file.write_all_at(b"head", 0).unwrap();
    file.write_all_at(&pattern(300_000), 40 << 20).unwrap();
    file.set_len(100 << 20).unwrap();
    assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20, "this host's file system has holes");
    assert_eq!(at.on.copy_in(&sparse, at.path("sparse")).unwrap(), 100 << 20);
    let there = at.on.metadata(at.path("sparse")).unwrap();
    assert_eq!(there.len(), 100 << 20);
    assert!(there.blocks() * 512 < 2 << 20, "{} blocks", there.blocks());
    let mut part = vec![0; 300_000];
    at.on.open(at.path("sparse")).unwrap().read_exact_at(&mut part, 40 << 20).unwrap();
    assert!(part == pattern(300_000));
    assert_eq!(at.on.copy_out(at.path("sparse"), &back).unwrap(), 100 << 20);
    let m = fs::metadata(&back).unwrap();
    assert_eq!(m.len(), 100 << 20);
    assert!(m.blocks() * 512 < 2 << 20, "{} blocks", m.blocks());
    let back = fs::File::open(&back).unwrap();
    let mut head = [0; 5];
    back.read_exact_at(&mut head, 0).unwrap();
    back.read_exact_at(&mut part, 40 << 20).unwrap();
    assert!(&head == b"head\0" && part == pattern(300_000));
}
