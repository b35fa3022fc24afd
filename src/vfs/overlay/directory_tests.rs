//! Tests of the overlay over a host directory, which must never change it.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use super::tests::{OPEN, memory, names, remove_all};
use super::*;
use crate::vfs::testing::{Names, Paths, against_host};
use crate::vfs::{Errno, FileSystem, HostDirOptions, NodeId, Ownership, Seek, SetAttr, Time, falloc, mode};

/// Everything about a host tree: what a change of any kind would show, but the times of access.
fn host_tree(dir: &std::path::Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(path) = todo.pop() {
        let m = std::fs::symlink_metadata(&path).expect("stat");
        let content = if m.is_file() {
            format!("{:08x}", crc32fast::hash(&std::fs::read(&path).expect("read")))
        } else if m.is_symlink() {
            format!("{:?}", std::fs::read_link(&path).expect("readlink"))
        } else {
            String::new()
        };
        lines.push(format!(
            "{path:?} i{} {:o} n{} {}:{} {} {}.{} {}.{} {content}",
            m.ino(),
            m.mode(),
            m.nlink(),
            m.uid(),
            m.gid(),
            m.size(),
            m.mtime(),
            m.mtime_nsec(),
            m.ctime(),
            m.ctime_nsec(),
        ));
        if m.is_dir() {
            todo.extend(std::fs::read_dir(&path).expect("list").map(|e| e.expect("entry").path()));
        }
    }
    lines.sort();
    lines
}

fn over(dir: &std::path::Path) -> Overlay {
    Overlay::over_directory(dir, HostDirOptions::default(), Limits::default()).expect("overlay")
}

/// The same random operations on an overlay over a copy of the host's tree.
#[test]
fn a_model_run_agrees_with_the_host_and_leaves_the_lower_as_it_was() {
    for seed in 1..7 {
        let dir = tempfile::tempdir().expect("dir");
        against_host(&memory(), dir.path(), seed * 37, 700);
        let lower = tempfile::tempdir().expect("dir");
        let copied = std::process::Command::new("cp")
            .args(["-a", "--sparse=always"])
            .arg(dir.path().join("."))
            .arg(lower.path())
            .status();
        assert!(copied.is_ok_and(|s| s.success()), "cp of GNU coreutils");
        let before = host_tree(lower.path());
        assert!(before.len() > 5, "{before:?}");
        let options = HostDirOptions { cached_fds: [128, 0, 3][seed as usize % 3], ..Default::default() };
        let limits = Limits { memory: 1 << 20, ..Limits::default() };
        let fs = Overlay::over_directory(lower.path(), options, limits).expect("overlay");
        against_host(&fs, dir.path(), seed * 88_883, 2000);
        assert_eq!(host_tree(lower.path()), before, "seed {seed}");
        // The negative control: the tree of the model has changed, and the comparison tells.
        assert_ne!(host_tree(dir.path()), before);
        // Everything removed gives all room back.
        remove_all(&Paths(&fs), "");
        assert_eq!(fs.usage().0, 0);
        assert_eq!(host_tree(lower.path()), before, "seed {seed}");
    }
}

#[test]
fn changes_stay_above_and_holes_show() {
    let lower = tempfile::tempdir().expect("dir");
    let at = |name: &str| lower.path().join(name);
    std::fs::create_dir_all(at("d/sub/deep")).expect("mkdir");
    let sparse = std::fs::File::create(at("d/f")).expect("create");
    sparse.write_all_at(&[7; 8192], 1 << 20).expect("write");
    sparse.set_len(2 << 20).expect("set_len");
    std::fs::write(at("d/sub/deep/x"), "x").expect("write");
    std::fs::hard_link(at("d/f"), at("d/g")).expect("link");
    symlink("f", at("d/l")).expect("symlink");
    symlink("/etc/passwd", at("out")).expect("symlink");
    std::fs::write(at(".wh.plain"), "a name like any other").expect("write");
    std::fs::set_permissions(at("d/f"), PermissionsExt::from_mode(0o4755)).expect("chmod");
    let before = host_tree(lower.path());
    let fs = over(lower.path());
    let paths = Paths(&fs);

    assert_eq!(names(&paths, ""), ".wh.plain d out");
    let attr = paths.attr("d/f").expect("attr");
    assert_eq!((attr.size, attr.nlink, attr.mode & 0o7777), (2 << 20, 2, 0o4755));
    assert_eq!(attr.ino, std::fs::metadata(at("d/f")).expect("stat").ino());
    assert!(attr.blocks < 100, "{}", attr.blocks);
    assert_eq!(paths.seek("d/f", Seek::Data(0)), Ok(1 << 20));
    assert_eq!(paths.seek("d/f", Seek::Hole(1 << 20)), Ok((1 << 20) + 8192));
    assert_eq!(paths.readlink("out"), Ok("/etc/passwd".into()));
    assert_eq!(paths.attr("out/x"), Err(Errno::ENOTDIR));

    // One inode under two names, before and after the copy-up.
    paths.write("d/g", (1 << 20) + 4095, b"new").expect("write");
    assert_eq!(fs.usage(), (2, 1));
    assert_eq!(paths.attr("d/g").map(|a| a.ino), Ok(attr.ino));
    let content = paths.read("d/f").expect("read");
    assert_eq!(&content[(1 << 20) + 4094..(1 << 20) + 4099], b"\x07new\x07");
    assert_eq!(paths.seek("d/f", Seek::Data(0)), Ok(1 << 20));
    paths.fallocate("d/f", 1 << 20, 4096, falloc::PUNCH_HOLE | falloc::KEEP_SIZE).expect("punch");
    assert_eq!(paths.seek("d/f", Seek::Data(0)), Ok((1 << 20) + 4096));
    assert!(paths.read("d/f").expect("read")[..(1 << 20) + 4096].iter().all(|&b| b == 0));

    paths.rename("d/sub", "s", 0).expect("rename");
    assert_eq!(paths.read("s/deep/x"), Ok(b"x".to_vec()));
    assert_eq!(names(&paths, "d"), "f g l");
    paths.mkdir("d/sub", 0o755).expect("mkdir");
    assert_eq!(names(&paths, "d/sub"), "", "a new directory does not show the host's");
    paths.unlink("d/f").expect("unlink");
    assert_eq!(paths.attr("d/f"), Err(Errno::ENOENT));
    assert_eq!(paths.attr("d/g").map(|a| a.nlink), Ok(1));
    assert_eq!(paths.rmdir("d"), Err(Errno::ENOTEMPTY));
    paths.mknod("null", mode::CHAR | 0o666, 0x103).expect("devices are the client's own");
    paths.set_xattr("d/g", "security.capability", b"caps").expect("setxattr");
    paths.set("d/l", SetAttr { uid: Some(4), ..SetAttr::default() }).expect("lchown");
    assert_eq!(paths.attr("d/l").map(|a| a.uid), Ok(4));
    assert_eq!(host_tree(lower.path()), before);
    let again = over(lower.path());
    assert_eq!(names(&Paths(&again), "d"), "f g l sub");
}

#[test]
fn opening_reads_nothing_and_listing_needs_no_nodes() {
    let lower = tempfile::tempdir().expect("dir");
    let count = 3000;
    for i in 0..count {
        std::fs::write(lower.path().join(format!("file-{i}")), "").expect("write");
    }
    let fs = over(lower.path());
    let paths = Paths(&fs);
    for i in 0..50 {
        paths.create(&format!("new-{i}"), 0o644).expect("create");
        paths.unlink(&format!("file-{}", i * 7)).expect("unlink");
        paths.rename(&format!("file-{}", i * 7 + 1), &format!("moved-{i}"), 0).expect("rename");
    }
    for step in [1, 33, 100_000] {
        let all = paths.list("", step).expect("list");
        assert_eq!(all.len(), count - 50 + 50, "step {step}");
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "each once");
    }
    // The root, the files made, and those moved.
    assert_eq!(fs.shared().len(), 101);
}

#[test]
fn inode_numbers_agree_between_listing_and_attributes() {
    let lower = tempfile::tempdir().expect("dir");
    std::fs::create_dir(lower.path().join("d")).expect("mkdir");
    std::fs::write(lower.path().join("f"), "x").expect("write");
    let fs = over(lower.path());
    let paths = Paths(&fs);
    paths.create("new", 0o644).expect("create");
    let mut sink = Names::default();
    fs.readdir(NodeId::ROOT, OPEN, 0, &mut sink).expect("readdir");
    for (name, ino, kind, _) in &sink.all {
        let name = std::str::from_utf8(name).expect("text");
        if name != ".." {
            let attr = paths.attr(if name == "." { "" } else { name }).expect("attr");
            assert_eq!((attr.ino, attr.file_type()), (*ino, *kind), "{name}");
        }
    }
    let known = paths.resolve("f").expect("resolve");
    assert_eq!(paths.resolve("f"), Ok(known), "the node's number is stable while it is known");
}

#[test]
fn owners_are_the_hosts_or_the_user_is_root() {
    let lower = tempfile::tempdir().expect("dir");
    std::fs::write(lower.path().join("f"), "x").expect("write");
    let ours = std::fs::metadata(lower.path().join("f")).expect("stat");
    let attr = |ownership| {
        let options = HostDirOptions { ownership, ..HostDirOptions::default() };
        let fs = Overlay::over_directory(lower.path(), options, Limits::default()).expect("overlay");
        let paths = Paths(&fs);
        let first = paths.attr("f").map(|a| (a.uid, a.gid)).expect("attr");
        let set = SetAttr { uid: Some(12), gid: Some(13), ..SetAttr::default() };
        assert_eq!(paths.set("f", set).map(|a| (a.uid, a.gid)), Ok((12, 13)));
        first
    };
    assert_eq!(attr(Ownership::AsIs), (ours.uid(), ours.gid()));
    assert_eq!(attr(Ownership::UserAsRoot), (0, 0));
    assert_eq!(attr(Ownership::Fixed { uid: 5, gid: 6 }), (5, 6));
    // Somebody else's file keeps its owner; only root can make one.
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(lower.path().join("f"), Some(77), Some(78)).expect("chown");
        assert_eq!(attr(Ownership::UserAsRoot), (77, 78));
    }
}

#[test]
fn edits_on_the_host_show_until_there_is_a_change_above() {
    let lower = tempfile::tempdir().expect("dir");
    let file = lower.path().join("f");
    std::fs::write(&file, "one").expect("write");
    let fs = over(lower.path());
    let paths = Paths(&fs);
    let node = paths.resolve("f").expect("resolve");
    assert_eq!(fs.getattr(node, None).map(|a| a.size), Ok(3));
    std::fs::write(&file, "longer").expect("write");
    assert_eq!(fs.getattr(node, None).map(|a| a.size), Ok(6));
    assert_eq!(paths.read("f"), Ok(b"longer".to_vec()));
    std::fs::write(lower.path().join("other"), "replaced").expect("write");
    std::fs::rename(lower.path().join("other"), &file).expect("rename");
    assert_eq!(paths.read("f"), Ok(b"replaced".to_vec()));
    paths.write("f", 0, b"R").expect("write");
    std::fs::write(&file, "x").expect("write");
    assert_eq!(paths.attr("f").map(|a| a.size), Ok(8));
    // What was cut away below is an error, never another file's bytes or zeros that nobody wrote.
    assert_eq!(paths.read("f"), Ok(b"Replaced".to_vec()));
    std::fs::write(lower.path().join("big"), vec![1; 20_000]).expect("write");
    paths.write("big", 0, b"R").expect("write");
    std::fs::write(lower.path().join("big"), "").expect("write");
    assert_eq!(paths.read("big"), Err(Errno::EIO));
    std::fs::remove_file(&file).expect("remove");
    assert_eq!(paths.attr("f"), Err(Errno::ENOENT));
    paths.drop(node);
}

#[test]
fn files_are_read_with_few_descriptors_and_given_back() {
    let fds = || std::fs::read_dir("/proc/self/fd").expect("fds").count();
    let lower = tempfile::tempdir().expect("dir");
    for i in 0..1000 {
        std::fs::write(lower.path().join(format!("f{i}")), [i as u8]).expect("write");
    }
    let before = fds();
    let fs = over(lower.path());
    let paths = Paths(&fs);
    let nodes: Vec<NodeId> = (0..1000).map(|i| paths.resolve(&format!("f{i}")).expect("resolve")).collect();
    for (i, &node) in nodes.iter().enumerate() {
        let mut byte = Vec::new();
        assert_eq!(fs.read(node, OPEN, 0, 10, &mut byte), Ok(1));
        assert_eq!(byte, [i as u8]);
    }
    // Other tests open files meanwhile, but not hundreds.
    assert!(fds() < before + 500, "{} {before}", fds());
    nodes.into_iter().for_each(|node| fs.forget(node, 1));
    assert_eq!(fs.shared().len(), 1);
}

#[test]
fn times_of_access_stay_as_they_are() {
    let lower = tempfile::tempdir().expect("dir");
    let file = lower.path().join("f");
    std::fs::write(&file, "x").expect("write");
    // Older than the change, so that any reading but a quiet one would move it.
    let old = rustix::fs::Timespec { tv_sec: 1000, tv_nsec: 0 };
    let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0x3fff_fffe };
    let times = rustix::fs::Timestamps { last_access: old, last_modification: omit };
    for path in [&file, &lower.path().to_path_buf()] {
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()).expect("utime");
    }
    let fs = over(lower.path());
    let paths = Paths(&fs);
    assert_eq!(paths.read("f"), Ok(b"x".to_vec()));
    assert_eq!(names(&paths, ""), "f");
    for path in [&file, &lower.path().to_path_buf()] {
        assert_eq!(std::fs::metadata(path).expect("stat").atime(), 1000, "{path:?}");
    }
    let now = Time::now();
    paths.set("f", SetAttr { atime: Some(crate::vfs::SetTime::At(now)), ..SetAttr::default() }).expect("set");
    assert_eq!(paths.attr("f").map(|a| a.atime), Ok(now));
    assert_eq!(std::fs::metadata(&file).expect("stat").atime(), 1000);
}

#[test]
fn what_is_no_directory_is_an_error() {
    let error =
        Overlay::over_directory("/nonexistent".as_ref(), HostDirOptions::default(), Limits::default());
    assert!(matches!(error, Err(OverlayError::Directory { .. })), "{error:?}");
}

#[test]
fn positions_are_numbered_again_at_their_end() {
    let mut dir = crate::vfs::overlay::node::Dir::new(1, below::LowerDir::none(), 0, 0);
    dir.start_at(crate::vfs::overlay::node::END_OF_POSITIONS - 2);
    for (i, name) in [b"a", b"b", b"c", b"d"].iter().enumerate() {
        dir.put(*name, i as u64 + 2, crate::vfs::FileType::File);
    }
    let listed: Vec<_> = dir.upper(0).map(|(at, name, ino, _)| (at, name.to_vec(), ino)).collect();
    let want: Vec<_> = (0..4).map(|i| (i, vec![b'a' + i as u8], i + 2)).collect();
    assert_eq!(listed, want);
}
