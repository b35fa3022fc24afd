//! Tests of the overlay: as a memory file system, over layers, at its caps.

use super::*;
use crate::vfs::layer::tests::Maker;
use crate::vfs::testing::{Names, Paths, ROOT, Random, against_host};
use crate::vfs::{Errno, FileSystem, Name, NodeId, Seek, SetAttr, falloc, mode, open};

pub(super) fn memory() -> Overlay {
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

pub(super) fn remove_all(fs: &Paths<'_>, path: &str) {
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

pub(super) const OPEN: crate::vfs::Handle = crate::vfs::Handle(0);

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

pub(super) fn names(fs: &Paths<'_>, path: &str) -> String {
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
