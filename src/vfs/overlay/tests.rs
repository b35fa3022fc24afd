//! Tests of the overlay: as a memory file system, over layers, at its caps.

use super::*;
use crate::vfs::layer::tests::Maker;
use crate::vfs::testing::{Names, Paths, ROOT, Random, against_host};
use crate::vfs::{Errno, FileSystem, Name, NodeId, Seek, SetAttr, falloc, mode, open};

fn memory() -> Overlay {
    Overlay::memory(Limits::default())
}

#[test]
fn a_model_run_agrees_with_the_host() {
    for seed in 1..9 {
        let dir = tempfile::tempdir().expect("dir");
        let limits = Limits { memory: if seed % 2 == 0 { 100_000 } else { 64 << 20 }, ..Limits::default() };
        let fs = Overlay::memory(limits);
        against_host(&fs, dir.path(), seed * 7919, 3000);
        // Everything removed and forgotten gives everything back.
        remove_all(&Paths(&fs), "");
        assert_eq!(fs.usage(), (0, 0), "seed {seed}");
    }
}

fn remove_all(fs: &Paths<'_>, path: &str) {
    for name in fs.list(path, 100).expect("list") {
        let path = format!("{path}/{name}");
        match fs.unlink(&path) {
            Err(Errno::EISDIR) => {
                remove_all(fs, &path);
                fs.rmdir(&path).expect("rmdir");
            }
            other => other.expect("unlink"),
        }
    }
}

#[test]
fn holes_are_truthful() {
    let fs = memory();
    let fs = Paths(&fs);
    fs.create("f", 0o644).expect("create");
    fs.write("f", 10 << 30, b"x").expect("write");
    let attr = fs.attr("f").expect("attr");
    assert_eq!((attr.size, attr.blocks), ((10 << 30) + 1, 8));
    assert_eq!(fs.seek("f", Seek::Data(0)), Ok(10 << 30));
    assert_eq!(fs.seek("f", Seek::Hole(0)), Ok(0));
    assert_eq!(fs.seek("f", Seek::Hole(10 << 30)), Ok((10 << 30) + 1));
    assert_eq!(fs.seek("f", Seek::Data((10 << 30) + 1)), Err(Errno::ENXIO));
    fs.write("f", 4096, &[1; 8192]).expect("write");
    assert_eq!(fs.attr("f").expect("attr").blocks, 24);
    fs.fallocate("f", 4096, 4096, falloc::PUNCH_HOLE | falloc::KEEP_SIZE).expect("punch");
    assert_eq!(fs.attr("f").expect("attr").blocks, 16);
    assert_eq!(fs.seek("f", Seek::Data(0)), Ok(8192));
    assert_eq!(fs.seek("f", Seek::Hole(8192)), Ok(12288));
    fs.fallocate("f", 0, 1 << 20, 0).expect("allocate");
    assert_eq!(fs.attr("f").expect("attr").blocks, 2048 + 8);
}

#[test]
fn a_full_upper_is_a_clean_enospc_and_recovers() {
    let fs = Overlay::memory(Limits { bytes: 1 << 20, inodes: 10, memory: 1 << 16, ..Limits::default() });
    let paths = Paths(&fs);
    paths.create("a", 0o644).expect("create");
    assert_eq!(paths.write("a", 0, &vec![7; 2 << 20]), Ok(1 << 20));
    assert_eq!(paths.write("a", 1 << 20, b"x"), Err(Errno::ENOSPC));
    assert_eq!(paths.attr("a").expect("attr").size, 1 << 20);
    assert_eq!(paths.fallocate("a", 2 << 20, 4096, 0), Err(Errno::ENOSPC));
    assert_eq!(fs.statfs(NodeId::ROOT).expect("statfs").blocks_free, 0);
    // Overwriting needs no room; removing makes some.
    assert_eq!(paths.write("a", 0, b"new"), Ok(3));
    for i in 0..9 {
        paths.create(&format!("n{i}"), 0o644).expect("create");
    }
    assert_eq!(paths.create("more", 0o644), Err(Errno::ENOSPC));
    assert_eq!(paths.attr("more"), Err(Errno::ENOENT));
    paths.unlink("a").expect("unlink");
    paths.create("more", 0o644).expect("create");
    assert_eq!(paths.write("more", 0, &vec![7; 1 << 20]), Ok(1 << 20));
}

#[test]
fn a_spill_directory_that_is_not_there_is_an_error_and_nothing_breaks() {
    let limits = Limits { memory: 4096, spill_dir: Some("/nonexistent/spill".into()), ..Limits::default() };
    let fs = Overlay::memory(limits);
    let fs = Paths(&fs);
    fs.create("f", 0o644).expect("create");
    assert_eq!(fs.write("f", 0, &[1; 100]), Ok(100));
    assert_eq!(fs.write("f", 65536, &[1; 9000]), Err(Errno::ENOENT));
    assert_eq!(fs.read("f"), Ok(vec![1; 100]));
}

#[test]
fn an_unlinked_file_lives_until_it_is_forgotten() {
    let fs = memory();
    let paths = Paths(&fs);
    paths.create("f", 0o644).expect("create");
    paths.write("f", 0, b"data").expect("write");
    let node = paths.resolve("f").expect("resolve");
    paths.unlink("f").expect("unlink");
    let mut bytes = Vec::new();
    let opened = fs.open(&ROOT, node, open::RDONLY, false).expect("open");
    assert_eq!(fs.read(node, opened.handle, 0, 100, &mut bytes), Ok(4));
    assert_eq!(fs.getattr(node, None).expect("attr").nlink, 0);
    let name = Name::new(b"again").expect("name");
    assert_eq!(fs.link(&ROOT, node, NodeId::ROOT, name).map(|e| e.node), Err(Errno::ENOENT));
    fs.forget(node, 1);
    assert_eq!(fs.getattr(node, None), Err(Errno::ESTALE));
    assert_eq!(fs.usage(), (0, 0));
}

#[test]
fn hostile_ids_offsets_and_counts_are_refused() {
    let fs = memory();
    let paths = Paths(&fs);
    paths.create("f", 0o644).expect("create");
    let f = paths.resolve("f").expect("resolve");
    let forged = NodeId(u64::MAX);
    let handle = crate::vfs::Handle(99);
    assert_eq!(fs.getattr(forged, None), Err(Errno::ESTALE));
    assert_eq!(fs.getattr(NodeId(0), None), Err(Errno::ESTALE));
    fs.forget(forged, u64::MAX);
    fs.forget(NodeId::ROOT, u64::MAX);
    assert_eq!(fs.read(f, handle, 1 << 63, 10, &mut Vec::new()), Err(Errno::EINVAL));
    assert_eq!(fs.write(f, handle, 1 << 63, 10, &mut &[0; 10][..], false), Err(Errno::EINVAL));
    assert_eq!(fs.write(f, handle, i64::MAX as u64, 10, &mut &[0; 10][..], false), Err(Errno::EFBIG));
    assert_eq!(fs.write(f, handle, 0, 10, &mut &[0; 3][..], false), Err(Errno::EFAULT));
    assert_eq!(fs.fallocate(f, handle, u64::MAX, 1, 0), Err(Errno::EINVAL));
    assert_eq!(fs.fallocate(f, handle, 1, u64::MAX, 0), Err(Errno::EFBIG));
    assert_eq!(fs.fallocate(f, handle, 0, 1 << 62, 0), Err(Errno::ENOSPC));
    assert_eq!(fs.lseek(f, handle, Seek::Data(u64::MAX)), Err(Errno::ENXIO));
    let size = SetAttr { size: Some(u64::MAX), ..SetAttr::default() };
    assert_eq!(fs.setattr(&ROOT, f, None, &size), Err(Errno::EFBIG));
    let mut names = Names::default();
    fs.readdir(NodeId::ROOT, handle, u64::MAX, &mut names).expect("readdir");
    assert!(names.all.is_empty());
    assert_eq!(fs.getattr(f, None).expect("attr").size, 0);
    fs.forget(f, u64::MAX);
}

#[test]
fn set_id_bits_and_capabilities_go_on_write() {
    let fs = memory();
    let paths = Paths(&fs);
    paths.create("f", 0o755).expect("create");
    let f = paths.resolve("f").expect("resolve");
    let arm = || {
        paths.set("f", SetAttr { mode: Some(0o6755), ..SetAttr::default() }).expect("chmod");
        paths.set_xattr("f", "security.capability", b"caps").expect("setxattr");
    };
    let state =
        || (paths.attr("f").expect("attr").mode & 0o7777, paths.xattr("f", "security.capability").is_ok());
    arm();
    assert_eq!(state(), (0o6755, true));
    fs.write(f, OPEN, 0, 1, &mut &b"x"[..], false).expect("write");
    assert_eq!(state(), (0o6755, false));
    arm();
    fs.write(f, OPEN, 0, 1, &mut &b"x"[..], true).expect("write");
    assert_eq!(state(), (0o755, false));
    arm();
    paths.set("f", SetAttr { uid: Some(5), ..SetAttr::default() }).expect("chown");
    assert_eq!(state(), (0o755, false));
    arm();
    paths.set("f", SetAttr { size: Some(0), kill_suidgid: true, ..SetAttr::default() }).expect("truncate");
    assert_eq!(state(), (0o755, false));
    paths.drop(f);
}

const OPEN: crate::vfs::Handle = crate::vfs::Handle(0);

#[test]
fn set_gid_directories_and_acls_are_inherited() {
    let fs = memory();
    let paths = Paths(&fs);
    paths.mkdir("d", 0o755).expect("mkdir");
    paths.set("d", SetAttr { mode: Some(0o2775), gid: Some(50), ..SetAttr::default() }).expect("chmod");
    paths.mkdir("d/sub", 0o755).expect("mkdir");
    let sub = paths.attr("d/sub").expect("attr");
    assert_eq!((sub.mode & mode::PERM, sub.gid), (0o2755, 50));
    // user::rwx, user:7:rw-, group::r-x, mask::rwx, other::---
    let acl = |entries: &[(u16, u16, u32)]| {
        let mut acl = vec![2, 0, 0, 0];
        for (tag, perm, id) in entries {
            acl.extend(tag.to_le_bytes());
            acl.extend(perm.to_le_bytes());
            acl.extend(id.to_le_bytes());
        }
        acl
    };
    let none = u32::MAX;
    let default = acl(&[(1, 7, none), (2, 6, 7), (4, 5, none), (0x10, 7, none), (0x20, 0, none)]);
    paths.set_xattr("d", "system.posix_acl_default", &default).expect("setxattr");
    paths.create("d/f", 0o666).expect("create");
    assert_eq!(paths.attr("d/f").expect("attr").mode & 0o777, 0o660);
    let access = acl(&[(1, 6, none), (2, 6, 7), (4, 5, none), (0x10, 6, none), (0x20, 0, none)]);
    assert_eq!(paths.xattr("d/f", "system.posix_acl_access"), Ok(access));
    paths.set("d/f", SetAttr { mode: Some(0o604), ..SetAttr::default() }).expect("chmod");
    let changed = acl(&[(1, 6, none), (2, 6, 7), (4, 5, none), (0x10, 0, none), (0x20, 4, none)]);
    assert_eq!(paths.xattr("d/f", "system.posix_acl_access"), Ok(changed));
    assert_eq!(paths.set_xattr("d/f", "system.posix_acl_access", b"junk"), Err(Errno::EINVAL));
    assert_eq!(paths.set_xattr("d/f", "other.name", b"x"), Err(Errno::EOPNOTSUPP));
}

/// A large directory is listed in steps, with memory for one step. `CC_BIG_DIR` sets the number of entries.
#[test]
fn a_large_directory_is_listed_in_flat_memory_while_it_changes() {
    let count = std::env::var("CC_BIG_DIR").ok().and_then(|n| n.parse().ok()).unwrap_or(50_000u64);
    let fs = memory();
    for i in 0..count {
        let name = format!("file-{i}");
        let name = Name::new(name.as_bytes()).expect("name");
        let entry = fs.mknod(&ROOT, NodeId::ROOT, name, mode::FILE | 0o644, 0).expect("mknod");
        fs.forget(entry.node, 1);
    }
    let mut seen = vec![0u8; count as usize];
    let mut random = Random(77);
    let mut cookie = 0;
    let mut removed = 0;
    loop {
        let mut sink = Names { limit: 100, ..Names::default() };
        fs.readdir(NodeId::ROOT, OPEN, cookie, &mut sink).expect("readdir");
        let Some(last) = sink.all.last() else { break };
        cookie = last.3;
        for (name, ..) in &sink.all {
            if let Some(i) = std::str::from_utf8(name).expect("text").strip_prefix("file-") {
                seen[i.parse::<usize>().expect("number")] += 1;
            }
        }
        // One that was seen goes; the rest of the listing must not move.
        let (name, ..) = &sink.all[random.below(sink.all.len() as u64) as usize];
        if let Ok(name) = Name::new(name) {
            fs.unlink(&ROOT, NodeId::ROOT, name).expect("unlink");
            removed += 1;
        }
    }
    assert!(seen.iter().all(|&n| n == 1));
    assert_eq!(fs.usage().1, count - removed);
}

fn over(layers: &[&Maker]) -> Overlay {
    Overlay::new(layers.iter().map(|m| m.layer()).collect(), Limits::default()).expect("overlay")
}

fn names(fs: &Paths<'_>, path: &str) -> String {
    let all = fs.list(path, 1).expect("list");
    for name in &all {
        fs.attr(&format!("{path}/{name}")).expect("what is listed is there");
    }
    all.join(" ")
}

#[test]
fn layers_merge_with_whiteouts_and_opaque_directories_in_any_order() {
    let mut low = Maker::default();
    low.dir("d").file("d/a", b"low").file("d/b", b"low").file("d/c", b"low").dir("gone").file("gone/x", b"");
    low.dir("o").file("o/old", b"").dir("again").file("again/old", b"").file("file", b"low").dir("dir");
    low.file("dir/in", b"");
    for order in [false, true] {
        let mut high = Maker::default();
        high.file("d/b", b"high").file("d/.wh.c", b"").file(".wh.gone", b"").file("d/new", b"");
        if order {
            high.file("o/.wh..wh..opq", b"").file("o/new", b"").file(".wh.again", b"").file("again/new", b"");
        } else {
            high.file("o/new", b"").file("o/.wh..wh..opq", b"").file("again/new", b"").file(".wh.again", b"");
        }
        high.dir("file").file("dir", b"high").file(".wh..wh.plnk", b"").file(".wh.never", b"");
        let fs = over(&[&low, &high]);
        let fs = Paths(&fs);
        assert_eq!(names(&fs, ""), "again d dir file o");
        assert_eq!(names(&fs, "d"), "a b new");
        assert_eq!(fs.read("d/a"), Ok(b"low".to_vec()));
        assert_eq!(fs.read("d/b"), Ok(b"high".to_vec()));
        assert_eq!(fs.attr("d/c"), Err(Errno::ENOENT));
        assert_eq!(names(&fs, "o"), "new");
        assert_eq!(names(&fs, "again"), "new");
        assert_eq!(names(&fs, "file"), "");
        assert_eq!(fs.read("dir"), Ok(b"high".to_vec()));
        // An implied directory keeps the attributes below it.
        assert_eq!(fs.attr("d").map(|a| (a.uid, a.mtime.secs)), Ok((10, 100)));
        // And a third layer brings names back.
        let mut top = Maker::default();
        top.file("gone/back", b"").file("d/c", b"back");
        let fs = over(&[&low, &high, &top]);
        let fs = Paths(&fs);
        assert_eq!(names(&fs, "gone"), "back");
        assert_eq!(names(&fs, "d"), "a b c new");
        assert_eq!(fs.read("d/c"), Ok(b"back".to_vec()));
    }
}

#[test]
fn what_hides_a_directory_keeps_its_attributes_and_what_replaces_it_does_not() {
    let mut low = Maker::default();
    low.dir("hidden").file("hidden/old", b"").dir("anew").file("anew/old", b"").dir("real");
    low.symlink("link", "real");
    for order in [false, true] {
        let mut high = Maker::default();
        if order {
            high.file("hidden/.wh..wh..opq", b"").file(".wh.anew", b"").file(".wh.link", b"");
        }
        high.file("hidden/new", b"").file("anew/new", b"").file("link/new", b"");
        if !order {
            high.file("hidden/.wh..wh..opq", b"").file(".wh.anew", b"").file(".wh.link", b"");
        }
        let mut top = Maker::default();
        top.file("hidden/more", b"");
        let fs = over(&[&low, &high, &top]);
        let fs = Paths(&fs);
        assert_eq!(names(&fs, "hidden"), "more new");
        assert_eq!(fs.attr("hidden").map(|a| (a.uid, a.mtime.secs)), Ok((10, 100)));
        assert_eq!(names(&fs, "anew"), "new");
        assert_eq!(fs.attr("anew").map(|a| (a.uid, a.mtime.secs)), Ok((0, 0)));
        // The link is removed, so nothing goes where it led.
        assert_eq!((names(&fs, "link"), names(&fs, "real")), ("new".into(), String::new()));
    }
}

#[test]
fn entries_go_through_symbolic_links_of_lower_layers() {
    let mut low = Maker::default();
    low.dir("usr/lib").file("usr/lib/a", b"a").symlink("lib", "usr/lib").symlink("abs", "/usr/lib");
    low.symlink("replaced", "usr");
    let mut high = Maker::default();
    high.file("lib/b", b"b")
        .file("abs/sub/c", b"c")
        .file("lib/.wh.a", b"")
        .dir("replaced")
        .file("replaced/x", b"");
    let fs = over(&[&low, &high]);
    let fs = Paths(&fs);
    assert_eq!(names(&fs, ""), "abs lib replaced usr");
    assert_eq!(fs.readlink("lib"), Ok("usr/lib".into()));
    assert_eq!(names(&fs, "usr/lib"), "b sub");
    assert_eq!(fs.read("usr/lib/sub/c"), Ok(b"c".to_vec()));
    assert_eq!(names(&fs, "replaced"), "x");
}

#[test]
fn hard_links_reach_into_lower_layers_or_are_refused() {
    let mut low = Maker::default();
    low.file("bin/a", b"data").symlink("sbin", "bin");
    let mut high = Maker::default();
    high.hard("b", "bin/a").hard("c", "sbin/a");
    let fs = over(&[&low, &high]);
    let fs = Paths(&fs);
    let ino = fs.attr("bin/a").expect("attr").ino;
    assert_eq!(fs.attr("b").map(|a| a.ino), Ok(ino));
    assert_eq!(fs.attr("c").map(|a| a.ino), Ok(ino));
    fs.write("b", 0, b"DA").expect("write");
    assert_eq!(fs.read("bin/a"), Ok(b"DAta".to_vec()));
    assert_eq!(fs.attr("b").map(|a| a.nlink), Ok(3));
    fs.unlink("b").expect("unlink");
    fs.unlink("bin/a").expect("unlink");
    assert_eq!(fs.read("c"), Ok(b"DAta".to_vec()), "what was written outlives two of three names");
    let refused = Overlay::new(vec![high.layer()], Limits::default()).expect_err("refused");
    assert!(matches!(refused, OverlayError::HardLink { layer: 0, .. }), "{refused}");
}

#[test]
fn changes_do_not_reach_the_layers_and_inode_numbers_stay() {
    let big: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    let mut low = Maker::default();
    low.dir("d").file("d/f", &big).hard("d/g", "d/f").file("d/sub/deep/x", b"x").symlink("d/l", "f");
    let layer = low.layer();
    let fs = Overlay::new(vec![layer.clone()], Limits::default()).expect("overlay");
    let paths = Paths(&fs);
    let before = paths.attr("d/f").expect("attr");
    assert_eq!((before.size, before.blocks, before.nlink), (300_000, 586, 2));
    // Changing attributes copies nothing.
    paths.set("d/f", SetAttr { mode: Some(0o600), ..SetAttr::default() }).expect("chmod");
    assert_eq!(fs.usage(), (0, 1));
    assert_eq!(paths.attr("d/g").map(|a| (a.ino, a.mode & 0o777)), Ok((before.ino, 0o600)));
    // A write copies its pages only.
    paths.write("d/g", 100_001, b"changed").expect("write");
    assert_eq!(fs.usage(), (1, 1));
    let mut want = big.clone();
    want[100_001..100_008].copy_from_slice(b"changed");
    assert_eq!(paths.read("d/f"), Ok(want.clone()));
    paths.fallocate("d/f", 5000, 20_000, falloc::PUNCH_HOLE | falloc::KEEP_SIZE).expect("punch");
    want[5000..25_000].fill(0);
    assert_eq!(paths.read("d/f"), Ok(want.clone()));
    assert_eq!(paths.seek("d/f", Seek::Hole(0)), Ok(8192));
    assert_eq!(paths.seek("d/f", Seek::Data(8192)), Ok(24576));
    paths.set("d/f", SetAttr { size: Some(150_000), ..SetAttr::default() }).expect("truncate");
    paths.set("d/f", SetAttr { size: Some(200_000), ..SetAttr::default() }).expect("truncate");
    want.truncate(150_000);
    want.resize(200_000, 0);
    assert_eq!(paths.read("d/f"), Ok(want.clone()));
    assert_eq!(paths.seek("d/f", Seek::Hole(30_000)).map(|at| at / 4096), Ok(150_000 / 4096 + 1));
    // Directories of layers move as a whole.
    let sub = paths.attr("d/sub").expect("attr");
    paths.rename("d", "e", 0).expect("rename");
    paths.rename("e/sub", "s", 0).expect("rename");
    assert_eq!(names(&paths, ""), "e s");
    assert_eq!(names(&paths, "e"), "f g l");
    assert_eq!(paths.read("s/deep/x"), Ok(b"x".to_vec()));
    assert_eq!(paths.read("e/g"), Ok(want));
    assert_eq!(paths.attr("s").map(|a| a.ino), Ok(sub.ino));
    assert_eq!(paths.rename("s", "s/deep/t", 0), Err(Errno::EINVAL));
    assert_eq!(paths.rmdir("s"), Err(Errno::ENOTEMPTY));
    paths.mkdir("d", 0o755).expect("mkdir");
    assert_eq!(names(&paths, "d"), "", "a new directory does not show the layer's");
    remove_all(&paths, "");
    assert_eq!(fs.statfs(NodeId::ROOT).expect("statfs").blocks_free, (64 << 30) / 4096);
    let again = Overlay::new(vec![layer], Limits::default()).expect("overlay");
    let again = Paths(&again);
    assert_eq!(again.read("d/f"), Ok(big));
    assert_eq!(again.attr("d/f").map(|a| a.ino), Ok(before.ino));
}

/// The same random operations on an overlay over a tar of the host's tree.
#[cfg(target_os = "linux")]
#[test]
fn a_model_run_over_layers_agrees_with_the_host() {
    use std::process::Command;
    if Command::new("tar").arg("--version").output().is_err() {
        eprintln!("skipped: no tar on this host");
        return;
    }
    for seed in 1..7 {
        let dir = tempfile::tempdir().expect("dir");
        // A random tree on the host, made by a first run; then its tar is a layer.
        let scratch = memory();
        against_host(&scratch, dir.path(), seed * 31, 700);
        let mut tar = Command::new("tar");
        tar.args(["--format=posix", "--sparse", "-C"]).arg(dir.path()).args(["-cf", "-", "."]);
        let tar = tar.output().expect("tar runs").stdout;
        let mut file = tempfile::tempfile().expect("file");
        std::io::Write::write_all(&mut file, &tar).expect("write");
        let index = crate::vfs::layer::Index::build(&tar[..], Default::default()).expect("index");
        let layer = crate::vfs::layer::Layer::new(std::sync::Arc::new(index), file).expect("layer");
        let fs = Overlay::new(vec![layer], Limits { memory: 1 << 20, ..Limits::default() }).expect("overlay");
        against_host(&fs, dir.path(), seed * 77_777, 2000);
    }
}

/// Everything about a host tree: what a change of any kind would show, but the times of access.
#[cfg(target_os = "linux")]
fn host_tree(dir: &std::path::Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
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

#[cfg(target_os = "linux")]
mod over_directory {
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::vfs::{HostDirOptions, Ownership, Time};

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
        let nodes: Vec<NodeId> =
            (0..1000).map(|i| paths.resolve(&format!("f{i}")).expect("resolve")).collect();
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
            rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty())
                .expect("utime");
        }
        let fs = over(lower.path());
        let paths = Paths(&fs);
        assert_eq!(paths.read("f"), Ok(b"x".to_vec()));
        assert_eq!(names(&paths, ""), "f");
        for path in [&file, &lower.path().to_path_buf()] {
            assert_eq!(std::fs::metadata(path).expect("stat").atime(), 1000, "{path:?}");
        }
        let now = Time::now();
        paths
            .set("f", SetAttr { atime: Some(crate::vfs::SetTime::At(now)), ..SetAttr::default() })
            .expect("set");
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
}
