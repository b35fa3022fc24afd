//! Tests of the export: what is written gives the same tree again, and other readers of tar understand it.

use std::io::{self, Write};
use std::process::Command;
use std::sync::Arc;

use super::*;
use crate::vfs::layer::tests::Maker;
use crate::vfs::layer::{Index, TarLimits};
use crate::vfs::testing::{Paths, ROOT, against_host};
use crate::vfs::{
    Errno, FileSystem, FileType, Name, NodeId, Seek, SetAttr, SetTime, Time, apply, falloc, mode, rename,
};

fn exported(fs: &Overlay) -> Vec<u8> {
    let mut tar = Vec::new();
    fs.write_layer(&mut tar, &|_| false).expect("export");
    tar
}

fn layer(tar: &[u8]) -> Layer {
    let mut file = tempfile::tempfile().expect("file");
    file.write_all(tar).expect("write");
    let index = Index::build(tar, TarLimits::default()).unwrap_or_else(|e| panic!("{e}: {:?}", e.problem));
    Layer::new(Arc::new(index), file).expect("layer")
}

/// Everything about a tree but what a layer does not say: times of access and change, and how many names a file has
/// that other layers hide.
fn tree(fs: &Paths<'_>, path: &str, out: &mut Vec<String>) {
    let attr = fs.attr(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let kind = attr.file_type();
    if kind == FileType::Socket {
        return;
    }
    let mut line = format!("{path} {:o} {}:{} {:x}", attr.mode, attr.uid, attr.gid, attr.rdev);
    line += &format!(" {}.{:09}", attr.mtime.secs, attr.mtime.nanos);
    for name in fs.xattrs(path).expect("listxattr") {
        let name = String::from_utf8_lossy(&name).into_owned();
        line += &format!(" {name}={:?}", fs.xattr(path, &name).expect("getxattr"));
    }
    match kind {
        FileType::File => line += &format!(" {:08x}", crc32fast::hash(&fs.read(path).expect("read"))),
        FileType::Symlink => line += &format!(" -> {}", fs.readlink(path).expect("readlink")),
        _ => {}
    }
    out.push(line);
    if kind == FileType::Dir {
        for name in fs.list(path, 50).expect("list") {
            tree(fs, &format!("{path}/{name}"), out);
        }
    }
}

fn whole(fs: &Overlay) -> Vec<String> {
    let mut out = Vec::new();
    tree(&Paths(fs), "", &mut out);
    out
}

fn same(fs: &Overlay, again: &Overlay, what: &str) {
    for (mine, theirs) in whole(fs).iter().zip(&whole(again)) {
        assert_eq!(mine, theirs, "{what}");
    }
    assert_eq!(whole(fs).len(), whole(again).len(), "{what}");
}

fn lower() -> Maker {
    let mut low = Maker::default();
    low.dir("./").dir("d").file("d/f", &[7; 100_000]).hard("d/g", "d/f").file("d/sub/deep/x", b"x");
    low.dir("gone").file("gone/a", b"a").dir("new").file("new/old", b"old").file("kept", b"kept").dir("same");
    low.symlink("lib", "d/sub").file("file-to-dir", b"f").dir("dir-to-file").file("dir-to-file/in", b"i");
    low
}

fn entries(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().expect("entries");
    entries.map(|e| e.expect("entry").path().expect("path").display().to_string()).collect()
}

#[test]
fn changes_come_back_on_the_same_layers() {
    let low = lower().layer();
    let fs = Overlay::new(vec![low.clone()], Limits::default()).expect("overlay");
    assert_eq!(exported(&fs), [0; 1024], "no change, no entry");
    let paths = Paths(&fs);
    paths.write("d/g", 50_000, b"changed through one of two names").expect("write");
    paths.rename("d/sub", "moved", 0).expect("rename");
    paths.rename("gone", "gone2", 0).expect("rename");
    paths.unlink("new/old").expect("unlink");
    paths.rmdir("new").expect("rmdir");
    paths.mkdir("new", 0o711).expect("mkdir");
    paths.create("new/inside", 0o600).expect("create");
    paths.unlink("file-to-dir").expect("unlink");
    paths.mkdir("file-to-dir", 0o755).expect("mkdir");
    paths.unlink("dir-to-file/in").expect("unlink");
    paths.rmdir("dir-to-file").expect("rmdir");
    paths.create("dir-to-file", 0o4755).expect("create");
    paths.mknod("null", mode::CHAR | 0o666, 0x103).expect("mknod");
    paths.mknod("disk", mode::BLOCK | 0o660, 0xffff_ffff).expect("mknod");
    paths.mknod("pipe", mode::FIFO | 0o600, 0).expect("mknod");
    paths.mknod("socket", mode::SOCKET | 0o600, 0).expect("mknod");
    paths.symlink(&"t".repeat(300), "long-link").expect("symlink");
    let long = format!("{}-ä", "n".repeat(200));
    paths.mkdir(&long, 0o755).expect("mkdir");
    paths.create(&format!("{long}/{long}"), 0o644).expect("create");
    paths.link(&format!("{long}/{long}"), "second-name").expect("link");
    paths.set_xattr("second-name", "user.bin", b"a\0=\n\xff").expect("setxattr");
    paths.set_xattr("new", "trusted.empty", b"").expect("setxattr");
    paths.set_xattr("second-name", "user.with=equals", b"cannot be kept").expect("setxattr");
    for (name, secs, nanos) in
        [("kept", -2, 250_000_000), ("null", 1 << 40, 1), ("pipe", -5, 0), ("second-name", 12, 999_999_999)]
    {
        let mtime = Some(SetTime::At(Time { secs, nanos }));
        paths
            .set(name, SetAttr { mtime, uid: Some(4_000_000_000), gid: Some(1 << 21), ..SetAttr::default() })
            .expect("setattr");
    }
    paths.create("sparse", 0o644).expect("create");
    paths.write("sparse", 3 << 30, b"end").expect("write");
    paths.write("sparse", 1 << 20, &[1; 5000]).expect("write");
    paths.fallocate("d/f", 8192, 16384, falloc::PUNCH_HOLE | falloc::KEEP_SIZE).expect("punch");

    let tar = exported(&fs);
    assert!(tar.len() < 300_000, "{}: holes are not written out", tar.len());
    assert_eq!(tar, exported(&fs), "equal changes give equal tars");
    let again = Overlay::new(vec![low.clone(), layer(&tar)], Limits::default()).expect("overlay");
    // What a tar cannot hold is all that is missing.
    let node = paths.resolve("second-name").expect("resolve");
    fs.removexattr(&ROOT, node, b"user.with=equals").expect("removexattr");
    paths.drop(node);
    // The sparse file is too large to read whole.
    let copy = Paths(&again);
    assert_eq!(copy.attr("sparse").map(|a| a.size), Ok((3 << 30) + 3));
    assert_eq!(copy.seek("sparse", Seek::Data(0)), Ok(1 << 20));
    assert_eq!(copy.seek("sparse", Seek::Data(2 << 20)), Ok(3 << 30));
    paths.unlink("sparse").expect("unlink");
    copy.unlink("sparse").expect("unlink");
    let now = SetAttr { mtime: Some(SetTime::At(Time { secs: 1, nanos: 0 })), ..SetAttr::default() };
    paths.set("", now).expect("set");
    copy.set("", now).expect("set");
    same(&fs, &again, "by hand");
    let ino = |name: &str| copy.attr(name).expect("attr").ino;
    assert_eq!(ino("d/f"), ino("d/g"), "names of one file stay so");
    assert_eq!(ino(&format!("{long}/{long}")), ino("second-name"));
    assert_eq!(copy.attr("socket"), Err(Errno::ENOENT));
    let applied = Overlay::new(vec![low.clone()], Limits::default()).expect("overlay");
    apply(&applied, &layer(&exported(&fs))).expect("apply");
    same(&fs, &applied, "by hand, applied");
    let ino = |name: &str| Paths(&applied).attr(name).expect("attr").ino;
    assert_eq!((ino("d/f"), ino(&format!("{long}/{long}"))), (ino("d/g"), ino("second-name")));
    // Nothing is kept that nobody needs.
    assert!(applied.usage().1 <= fs.usage().1 + 8, "{:?} {:?}", applied.usage(), fs.usage());
    // The negative control: without the layer, the trees differ.
    let without = Overlay::new(vec![low], Limits::default()).expect("overlay");
    assert_ne!(whole(&without), whole(&fs));
}

#[test]
fn what_is_left_out_is_left_out_and_only_that() {
    let low = lower().layer();
    let fs = Overlay::new(vec![low], Limits::default()).expect("overlay");
    let paths = Paths(&fs);
    paths.unlink("kept").expect("unlink");
    paths.mkdir("proc", 0o555).expect("mkdir");
    paths.create("proc/x", 0o644).expect("create");
    paths.create("d/sub/deep/y", 0o644).expect("create");
    paths.unlink("gone/a").expect("unlink");
    let names = entries(&exported(&fs));
    let all = [
        "./",
        ".wh.kept",
        "d/",
        "d/sub/",
        "d/sub/deep/",
        "d/sub/deep/y",
        "gone/",
        "gone/.wh.a",
        "proc/",
        "proc/x",
    ];
    // Markers are sorted by what they hide.
    assert_eq!(names, [&all[..1], &all[2..8], &all[1..2], &all[8..]].concat());
    let mut tar = Vec::new();
    let asked = std::cell::RefCell::new(Vec::new());
    let leave_out = |path: &[u8]| {
        asked.borrow_mut().push(String::from_utf8_lossy(path).into_owned());
        matches!(path, b"proc" | b"kept" | b"d/sub/deep")
    };
    fs.write_layer(&mut tar, &leave_out).expect("export");
    assert_eq!(entries(&tar), ["./", "gone/", "gone/.wh.a"]);
    assert!(asked.borrow().iter().all(|p| !p.starts_with('/') && !p.starts_with("proc/")), "{asked:?}");
}

#[test]
fn what_no_layer_can_hold_is_an_error() {
    let fs = Overlay::memory(Limits::default());
    let paths = Paths(&fs);
    paths.create(".wh.me", 0o644).expect("create");
    let error = fs.write_layer(io::sink(), &|_| false).expect_err("refused");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    fs.write_layer(io::sink(), &|path| path == b".wh.me").expect("left out, it does no harm");
    paths.unlink(".wh.me").expect("unlink");
    // Deeper than any path: a client can do so step by step.
    let mut node = NodeId::ROOT;
    for _ in 0..3000 {
        let name = Name::new(b"deep").expect("name");
        node = fs.mkdir(&ROOT, node, name, 0o755).expect("mkdir").node;
    }
    let error = fs.write_layer(io::sink(), &|_| false).expect_err("refused");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let fs = Overlay::memory(Limits::default());
    Paths(&fs).create("f", 0o644).expect("create");
    Paths(&fs).write("f", 0, &[1; 1000]).expect("write");
    let error = fs.write_layer(Full, &|_| false).expect_err("refused");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn names_that_went_and_came_back_are_whole() {
    let low = lower().layer();
    let fs = Overlay::new(vec![low.clone()], Limits::default()).expect("overlay");
    let paths = Paths(&fs);
    paths.rename("d", "elsewhere", 0).expect("rename");
    paths.unlink("elsewhere/f").expect("unlink");
    paths.rename("elsewhere", "d", 0).expect("rename");
    paths.rename("gone", "new", rename::EXCHANGE).expect("exchange");
    let tar = exported(&fs);
    let again = Overlay::new(vec![low, layer(&tar)], Limits::default()).expect("overlay");
    same(&fs, &again, "there and back");
    assert_eq!(Paths(&again).list("d", 9), Ok(vec!["g".into(), "sub".into()]));
    assert_eq!(Paths(&again).list("new", 9), Ok(vec!["a".into()]));
}

/// After random changes over random layers, and over a directory.
#[cfg(target_os = "linux")]
#[test]
fn random_changes_come_back() {
    for seed in 1..9 {
        let host = tempfile::tempdir().expect("dir");
        let first = Overlay::memory(Limits::default());
        against_host(&first, host.path(), seed * 41, 500);
        let low = layer(&exported(&first));
        let fs = Overlay::new(vec![low.clone()], Limits::default()).expect("overlay");
        same(&first, &fs, "the first layer");
        against_host(&fs, host.path(), seed * 51_511, 600);
        let again =
            Overlay::new(vec![low.clone(), layer(&exported(&fs))], Limits::default()).expect("overlay");
        same(&fs, &again, &format!("seed {seed}"));
        // The second layer is a lower one of a third.
        against_host(&again, host.path(), seed * 99_991, 600);
        let third = layer(&exported(&again));
        let second = layer(&exported(&fs));
        let last = Overlay::new(vec![low, second, third], Limits::default()).expect("overlay");
        same(&again, &last, &format!("seed {seed}, third layer"));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn changes_over_a_directory_come_back_over_it() {
    for seed in 1..4 {
        let host = tempfile::tempdir().expect("dir");
        against_host(&Overlay::memory(Limits::default()), host.path(), seed * 43, 500);
        let below = tempfile::tempdir().expect("dir");
        let copied = Command::new("cp").arg("-a").arg(host.path().join(".")).arg(below.path()).status();
        assert!(copied.is_ok_and(|s| s.success()), "cp of GNU coreutils");
        // As a layer, the directory is what GNU tar makes of it.
        let tar = Command::new("tar")
            .args(["--format=posix", "-C"])
            .arg(below.path())
            .args(["-cf", "-", "."])
            .output();
        let low = layer(&tar.expect("tar runs").stdout);
        let fs =
            Overlay::over_directory(below.path(), Default::default(), Limits::default()).expect("overlay");
        against_host(&fs, host.path(), seed * 7_001, 800);
        let changes = layer(&exported(&fs));
        let again = Overlay::new(vec![low, changes.clone()], Limits::default()).expect("overlay");
        same(&fs, &again, &format!("seed {seed}"));
        // Made to the directory once more, they are the same, and so are the changes then.
        let applied =
            Overlay::over_directory(below.path(), Default::default(), Limits::default()).expect("overlay");
        apply(&applied, &changes).expect("apply");
        same(&fs, &applied, &format!("seed {seed}, applied"));
        let copy = layer(&exported(&applied));
        let twice =
            Overlay::over_directory(below.path(), Default::default(), Limits::default()).expect("overlay");
        apply(&twice, &copy).expect("apply");
        same(&fs, &twice, &format!("seed {seed}, applied twice"));
    }
}

/// Only times tell the same changes apart that were made at other times.
#[test]
fn times_can_be_left_out() {
    let low = lower().layer();
    let changed = |secs: i64, content: &[u8]| {
        let fs = Overlay::new(vec![low.clone()], Limits::default()).expect("overlay");
        let paths = Paths(&fs);
        paths.write("d/f", 0, content).expect("write");
        paths.create("d/sub/new", 0o644).expect("create");
        paths.mkdir("made", 0o755).expect("mkdir");
        paths.unlink("kept").expect("unlink");
        let mtime = Some(SetTime::At(Time { secs, nanos: 5 }));
        paths.set("made", SetAttr { mtime, ..SetAttr::default() }).expect("set");
        let mut tar = Vec::new();
        fs.write_layer_without_times(&mut tar, &|_| false).expect("export");
        (tar, exported(&fs))
    };
    let (one, two, other) = (changed(1, b"x"), changed(-70, b"x"), changed(1, b"y"));
    assert_eq!(one.0, two.0);
    assert_ne!(one.1, two.1);
    assert_ne!(one.0, other.0);
    assert_eq!(entries(&one.0), entries(&one.1));
}

/// GNU tar lists and unpacks it.
#[cfg(target_os = "linux")]
#[test]
fn other_readers_agree() {
    use std::os::unix::fs::MetadataExt;
    let fs = Overlay::memory(Limits::default());
    let paths = Paths(&fs);
    let long = "l".repeat(180);
    paths.mkdir(&long, 0o755).expect("mkdir");
    paths.create(&format!("{long}/file"), 0o640).expect("create");
    paths.write(&format!("{long}/file"), 0, b"content").expect("write");
    paths.link(&format!("{long}/file"), "link").expect("link");
    paths.symlink("link", "symlink").expect("symlink");
    paths.create("sparse", 0o644).expect("create");
    paths.write("sparse", 5 << 20, b"end").expect("write");
    let mtime = Some(SetTime::At(Time { secs: 1_234_567, nanos: 123_456_789 }));
    paths.set("sparse", SetAttr { mtime, ..SetAttr::default() }).expect("set");
    let tar = exported(&fs);
    let host = tempfile::tempdir().expect("dir");
    std::fs::write(host.path().join("layer.tar"), &tar).expect("write");
    let gnu = |args: &[&str]| {
        let out = Command::new("tar").current_dir(host.path()).args(args).output().expect("tar runs");
        assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let listed = gnu(&["-tf", "layer.tar"]);
    let want = [
        "./".into(),
        "link".into(),
        format!("{long}/"),
        format!("{long}/file"),
        "sparse".into(),
        "symlink".into(),
    ];
    let mut names: Vec<&str> = listed.lines().collect();
    names.sort_unstable();
    let mut want: Vec<&str> = want.iter().map(|s: &String| &s[..]).collect();
    want.sort_unstable();
    assert_eq!(names, want);
    std::fs::create_dir(host.path().join("out")).expect("mkdir");
    gnu(&["-C", "out", "-xf", "layer.tar"]);
    let at = |name: &str| host.path().join("out").join(name);
    assert_eq!(std::fs::read(at(&format!("{long}/file"))).expect("read"), b"content");
    let ino = |name: &str| std::fs::symlink_metadata(at(name)).expect("stat").ino();
    assert_eq!(ino("link"), ino(&format!("{long}/file")));
    let sparse = std::fs::metadata(at("sparse")).expect("stat");
    assert_eq!((sparse.len(), sparse.mtime(), sparse.mtime_nsec()), ((5 << 20) + 3, 1_234_567, 123_456_789));
    assert!(sparse.blocks() < 100, "{}", sparse.blocks());
    assert!(std::fs::read(at("sparse")).expect("read").ends_with(b"\0end"));
}
