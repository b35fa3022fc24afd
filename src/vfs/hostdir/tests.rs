//! Tests of the host directory, on temporary directories.

use std::os::unix::fs::{MetadataExt, symlink};

use super::*;
use crate::vfs::testing::{Names, Paths, ROOT, against_host};
use crate::vfs::{FileSystem, Name, SetAttr, mode, open};

fn served(options: HostDirOptions) -> (tempfile::TempDir, HostDir) {
    let dir = tempfile::tempdir().expect("dir");
    let fs = HostDir::new(dir.path(), options).expect("host dir");
    (dir, fs)
}

#[test]
fn a_model_run_agrees_with_the_host() {
    for (seed, cached_fds, openat2) in
        [(1, 128, true), (2, 0, true), (3, 2, true), (4, 2, false), (5, 0, false)]
    {
        let (_dir, fs) = served(HostDirOptions { cached_fds, ..HostDirOptions::default() });
        fs.openat2.store(openat2, Ordering::Relaxed);
        let real = tempfile::tempdir().expect("dir");
        against_host(&fs, real.path(), seed * 104_729, 1500);
        // Only the root is left known, and no descriptor is held for what is gone.
        let (nodes, _, pinned) = lock(&fs.nodes).counts();
        assert_eq!((nodes, pinned), (1, 0));
        assert!(lock(&fs.open).handles.is_empty());
    }
}

#[test]
fn no_link_leads_out() {
    let outside = tempfile::tempdir().expect("dir");
    std::fs::write(outside.path().join("secret"), "s").expect("write");
    for openat2 in [true, false] {
        let (dir, fs) = served(HostDirOptions::default());
        fs.openat2.store(openat2, Ordering::Relaxed);
        let paths = Paths(&fs);
        symlink(outside.path(), dir.path().join("abs")).expect("symlink");
        symlink("../../../../../../etc", dir.path().join("up")).expect("symlink");
        std::fs::create_dir(dir.path().join("d")).expect("mkdir");
        for link in ["abs", "up"] {
            assert_eq!(paths.attr(link).expect("attr").mode & mode::FMT, mode::SYMLINK);
            assert_eq!(paths.attr(&format!("{link}/secret")), Err(Errno::ENOTDIR));
            assert_eq!(paths.create(&format!("{link}/new"), 0o644), Err(Errno::ENOTDIR));
            assert_eq!(paths.open(link, open::RDONLY, |_, _| Ok(())), Err(Errno::ELOOP));
        }
        // A directory the client knows becomes a link on the host: the old node does not lead through it.
        let d = paths.resolve("d").expect("resolve");
        drop(lock(&fs.nodes).drop_cache());
        std::fs::remove_dir(dir.path().join("d")).expect("rmdir");
        symlink(outside.path(), dir.path().join("d")).expect("symlink");
        let secret = Name::new(b"secret").expect("name");
        assert_eq!(fs.lookup(&ROOT, d, secret).map(|e| e.node), Err(Errno::ESTALE));
        assert_eq!(fs.mkdir(&ROOT, d, secret, 0o755).map(|e| e.node), Err(Errno::ESTALE));
        paths.drop(d);
    }
    assert_eq!(std::fs::read_dir(outside.path()).expect("list").count(), 1);
}

#[test]
fn read_only_refuses_every_change() {
    let (dir, fs) = served(HostDirOptions { read_only: true, ..HostDirOptions::default() });
    std::fs::write(dir.path().join("f"), "old").expect("write");
    std::fs::create_dir(dir.path().join("d")).expect("mkdir");
    let paths = Paths(&fs);
    let erofs = Err(Errno::EROFS);
    assert_eq!(paths.read("f"), Ok(b"old".to_vec()));
    assert_eq!(paths.create("new", 0o644), erofs);
    assert_eq!(paths.mkdir("new", 0o755), erofs);
    assert_eq!(paths.symlink("x", "new"), erofs);
    assert_eq!(paths.mknod("new", mode::FIFO | 0o644, 0), erofs);
    assert_eq!(paths.link("f", "new"), erofs);
    assert_eq!(paths.unlink("f"), erofs);
    assert_eq!(paths.rmdir("d"), erofs);
    assert_eq!(paths.rename("f", "new", 0), erofs);
    assert_eq!(paths.open("f", open::WRONLY, |_, _| Ok(())), erofs);
    assert_eq!(paths.open("f", open::RDWR, |_, _| Ok(())), erofs);
    assert_eq!(paths.open("f", open::RDONLY | open::TRUNC, |_, _| Ok(())), erofs);
    assert_eq!(paths.set_xattr("f", "user.a", b"x"), erofs);
    for set in [
        SetAttr { mode: Some(0o600), ..SetAttr::default() },
        SetAttr { size: Some(0), ..SetAttr::default() },
        SetAttr { uid: Some(1), ..SetAttr::default() },
        SetAttr { mtime: Some(crate::vfs::SetTime::Now), ..SetAttr::default() },
    ] {
        assert_eq!(paths.set("f", set).map(drop), erofs);
    }
    let write =
        paths.open("f", open::RDONLY, |node, handle| fs.write(node, handle, 0, 1, &mut &b"x"[..], false));
    assert_eq!(write, Err(Errno::EROFS));
    let punch = paths.open("f", open::RDONLY, |node, handle| fs.fallocate(node, handle, 0, 1, 0));
    assert_eq!(punch, erofs);
    assert_eq!(std::fs::read(dir.path().join("f")).expect("read"), b"old");
}

#[test]
fn recorded_owners_need_no_privilege_and_do_not_show() {
    let options =
        HostDirOptions { ownership: Ownership::Recorded { uid: 0, gid: 0 }, ..HostDirOptions::default() };
    let (dir, fs) = served(options);
    let paths = Paths(&fs);
    paths.create("f", 0o644).expect("create");
    paths.symlink("f", "l").expect("symlink");
    let host = std::fs::metadata(dir.path().join("f")).expect("stat");
    for name in ["f", "l"] {
        let set = SetAttr { uid: Some(1000), gid: Some(1001), ..SetAttr::default() };
        let attr = paths.set(name, set).expect("chown");
        assert_eq!((attr.uid, attr.gid), (1000, 1001));
        let attr = paths.attr(name).expect("attr");
        assert_eq!((attr.uid, attr.gid), (1000, 1001), "{name}");
    }
    let set_id = SetAttr { mode: Some(0o6755), ..SetAttr::default() };
    assert_eq!(paths.set("f", set_id).map(|a| a.mode & mode::PERM), Ok(0o755));
    assert_eq!(paths.xattrs("f"), Ok(vec![]));
    assert_eq!(paths.xattr("f", "user.cc.owner"), Err(Errno::ENODATA));
    assert_eq!(paths.set_xattr("f", "user.cc.owner", b"0:0"), Err(Errno::EPERM));
    let after = std::fs::metadata(dir.path().join("f")).expect("stat");
    assert_eq!((after.uid(), after.gid()), (host.uid(), host.gid()));
    // The record of a file is beside it and outlives us.
    let again = HostDir::new(dir.path(), options).expect("host dir");
    assert_eq!(Paths(&again).attr("f").expect("attr").uid, 1000);

    let fixed =
        HostDirOptions { ownership: Ownership::Fixed { uid: 7, gid: 8 }, ..HostDirOptions::default() };
    let fixed = HostDir::new(dir.path(), fixed).expect("host dir");
    let fixed = Paths(&fixed);
    assert_eq!(fixed.attr("f").map(|a| (a.uid, a.gid)), Ok((7, 8)));
    assert_eq!(fixed.set("f", SetAttr { uid: Some(0), ..SetAttr::default() }).map(drop), Err(Errno::EPERM));
}

#[test]
fn device_nodes_and_foreign_attributes_are_refused() {
    let (_dir, fs) = served(HostDirOptions::default());
    let paths = Paths(&fs);
    assert_eq!(paths.mknod("null", mode::CHAR | 0o666, 0x103), Err(Errno::EPERM));
    assert_eq!(paths.mknod("disk", mode::BLOCK | 0o666, 0x800), Err(Errno::EPERM));
    paths.mknod("fifo", mode::FIFO | 0o640, 0).expect("mknod");
    assert_eq!(paths.attr("fifo").expect("attr").mode, mode::FIFO | 0o640);
    assert_eq!(paths.open("fifo", open::RDONLY, |_, _| Ok(())), Err(Errno::ENXIO));
    for name in ["security.capability", "trusted.overlay.opaque", "system.other"] {
        assert_eq!(paths.set_xattr("fifo", name, b"x"), Err(Errno::EOPNOTSUPP), "{name}");
    }
}

#[test]
fn changes_on_the_host_show_and_replaced_files_are_stale() {
    let (dir, fs) = served(HostDirOptions { cached_fds: 0, ..HostDirOptions::default() });
    let paths = Paths(&fs);
    std::fs::write(dir.path().join("f"), "one").expect("write");
    let f = paths.resolve("f").expect("resolve");
    assert_eq!(fs.getattr(f, None).expect("attr").size, 3);
    std::fs::write(dir.path().join("f"), "longer").expect("write");
    assert_eq!(fs.getattr(f, None).expect("attr").size, 6);
    std::fs::write(dir.path().join("g"), "other").expect("write");
    std::fs::rename(dir.path().join("g"), dir.path().join("f")).expect("rename");
    assert_eq!(fs.getattr(f, None), Err(Errno::ESTALE));
    assert_eq!(paths.read("f"), Ok(b"other".to_vec()));
    paths.drop(f);
}

#[test]
fn open_and_unlink_cycles_hold_no_descriptors() {
    let fds = || std::fs::read_dir("/proc/self/fd").expect("fds").count();
    let (_dir, fs) = served(HostDirOptions { cached_fds: 16, max_open: 64, ..HostDirOptions::default() });
    let count = std::env::var("CC_UNLINK_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(5_000u32);
    let before = fds();
    for i in 0..count {
        let text = format!("f{i}");
        let name = Name::new(text.as_bytes()).expect("name");
        let (entry, opened) = fs.create(&ROOT, NodeId::ROOT, name, 0o600, open::RDWR).expect("create");
        fs.write(entry.node, opened.handle, 0, 4, &mut &b"data"[..], false).expect("write");
        fs.unlink(&ROOT, NodeId::ROOT, name).expect("unlink");
        // Open and without a name, it still has all.
        assert_eq!(fs.getattr(entry.node, None).expect("attr").size, 4);
        assert_eq!(fs.getattr(entry.node, None).expect("attr").nlink, 0);
        let mut bytes = Vec::new();
        assert_eq!(fs.read(entry.node, opened.handle, 0, 10, &mut bytes), Ok(4));
        fs.release(entry.node, opened.handle);
        fs.forget(entry.node, 1);
        assert_eq!(fs.getattr(entry.node, None), Err(Errno::ESTALE));
    }
    // Other tests open files meanwhile, but not thousands.
    assert!(fds() < before + 500, "{} {before}", fds());
    let mut handles = Vec::new();
    let name = Name::new(b"many").expect("name");
    let (entry, opened) = fs.create(&ROOT, NodeId::ROOT, name, 0o600, open::RDWR).expect("create");
    handles.push(opened.handle);
    let refused = loop {
        match fs.open(&ROOT, entry.node, open::RDONLY, false) {
            Ok(opened) => handles.push(opened.handle),
            Err(e) => break e,
        }
    };
    assert_eq!((refused, handles.len()), (Errno::ENFILE, 64));
    handles.into_iter().for_each(|h| fs.release(entry.node, h));
    fs.open(&ROOT, entry.node, open::RDONLY, false).expect("open");
}

#[test]
fn appending_goes_to_the_end_that_the_host_knows() {
    let (dir, fs) = served(HostDirOptions::default());
    let name = Name::new(b"log").expect("name");
    let flags = open::WRONLY | open::APPEND;
    let (entry, made) = fs.create(&ROOT, NodeId::ROOT, name, 0o600, flags).expect("create");
    let opened = fs.open(&ROOT, entry.node, flags, false).expect("open");
    let append = |handle, text: &str| {
        let n = text.len() as u32;
        assert_eq!(fs.append(entry.node, handle, 0, n, &mut text.as_bytes(), false), Ok(n as usize));
    };
    append(made.handle, "one ");
    std::fs::OpenOptions::new()
        .append(true)
        .open(dir.path().join("log"))
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"host "))
        .expect("append");
    append(opened.handle, "two ");
    append(made.handle, "three");
    // Pages that were mapped come back by the same handles, to where they are.
    for (handle, at) in [(made.handle, 0), (opened.handle, 4)] {
        assert_eq!(fs.write(entry.node, handle, at, 1, &mut &b"X"[..], false), Ok(1));
    }
    assert_eq!(std::fs::read(dir.path().join("log")).expect("read"), b"Xne Xost two three");
}

#[test]
fn a_fork_has_the_same_nodes_and_handles_and_then_its_own() {
    let (dir, fs) = served(HostDirOptions { cached_fds: 1, ..HostDirOptions::default() });
    let name = |text: &'static str| Name::new(text.as_bytes()).expect("name");
    let make = |text| fs.create(&ROOT, NodeId::ROOT, name(text), 0o600, open::RDWR).expect("create");
    let (f, f_open) = make("f");
    let (u, u_open) = make("u");
    let (other, _) = make("other");
    for (entry, opened) in [(&f, &f_open), (&u, &u_open)] {
        fs.write(entry.node, opened.handle, 0, 4, &mut &b"data"[..], false).expect("write");
    }
    fs.unlink(&ROOT, NodeId::ROOT, name("u")).expect("unlink");
    let listed = fs.opendir(&ROOT, NodeId::ROOT).expect("opendir");
    let mut first = Names { limit: 2, ..Names::default() };
    fs.readdir(NodeId::ROOT, listed.handle, 0, &mut first).expect("readdir");
    let known = lock(&fs.nodes).counts();

    let fork = fs.duplicate();
    assert_eq!(lock(&fork.nodes).counts(), known);
    let second = fork.fork().expect("a fork of a fork");
    // What the original gives up, its forks keep.
    fs.release(u.node, u_open.handle);
    fs.forget(u.node, 1);
    assert_eq!(fs.getattr(u.node, None), Err(Errno::ESTALE));
    for fork in [&fork as &dyn FileSystem, &*second] {
        assert_eq!(fork.getattr(u.node, None).map(|a| (a.size, a.nlink)), Ok((4, 0)));
        assert_eq!(fork.read(u.node, u_open.handle, 0, 10, &mut Vec::new()), Ok(4));
        let (mut rest, mut whole) = (Names::default(), Names::default());
        fork.readdir(NodeId::ROOT, listed.handle, first.all[1].3, &mut rest).expect("readdir");
        fs.readdir(NodeId::ROOT, listed.handle, 0, &mut whole).expect("readdir");
        assert_eq!([first.all.clone(), rest.all].concat(), whole.all);
        assert_eq!(fork.lookup(&ROOT, NodeId::ROOT, name("other")).map(|e| e.node), Ok(other.node));
    }
    // One directory: changes show in all, and a known node is the same file in each.
    fork.write(f.node, f_open.handle, 1, 2, &mut &b"AT"[..], false).expect("write");
    assert_eq!(Paths(&fs).read("f"), Ok(b"dATa".to_vec()));
    assert_eq!(std::fs::read(dir.path().join("f")).expect("read"), b"dATa");
    Paths(&fs).create("late", 0o600).expect("create");
    Paths(&fork).attr("late").expect("attr");
    // New handles are of one side only.
    let own = fork.open(&ROOT, f.node, open::RDONLY, false).expect("open");
    assert_eq!(fs.read(f.node, own.handle, 0, 1, &mut Vec::new()), Err(Errno::EBADF));
    assert_eq!(second.read(f.node, own.handle, 0, 1, &mut Vec::new()), Err(Errno::EBADF));
}

#[test]
fn the_model_run_goes_on_in_a_fork() {
    let (_dir, fs) = served(HostDirOptions { cached_fds: 3, ..HostDirOptions::default() });
    let real = tempfile::tempdir().expect("dir");
    against_host(&fs, real.path(), 5, 500);
    let known: Vec<_> =
        (b'a'..b'f').filter_map(|c| Paths(&fs).resolve(&char::from(c).to_string()).ok()).collect();
    assert!(!known.is_empty());
    let fork = fs.duplicate();
    against_host(&fork, real.path(), 6, 1000);
    against_host(&fs, real.path(), 7, 1000);
    for &node in &known {
        Paths(&fs).drop(node);
        Paths(&fork).drop(node);
    }
    for side in [&fs, &fork] {
        let (nodes, _, pinned) = lock(&side.nodes).counts();
        assert_eq!((nodes, pinned), (1, 0));
    }
}

#[test]
fn forks_take_no_descriptors_and_share_owners_kept_in_memory() {
    let fds = || std::fs::read_dir("/proc/self/fd").expect("fds").count();
    let ownership = Ownership::Recorded { uid: 0, gid: 0 };
    let (_dir, fs) = served(HostDirOptions { ownership, ..HostDirOptions::default() });
    let paths = Paths(&fs);
    paths.create("f", 0o600).expect("create");
    let f = paths.resolve("f").expect("resolve");
    let handles: Vec<_> = (0..64).map(|_| fs.open(&ROOT, f, open::RDONLY, false).expect("open")).collect();
    let before = fds();
    let forks: Vec<HostDir> = (0..100).map(|_| fs.duplicate()).collect();
    // Other tests open files meanwhile, but not thousands.
    assert!(fds() < before + 500, "{} {before}", fds());
    // Links have no attributes beside them, so their owner is in memory.
    let set = SetAttr { uid: Some(7), ..SetAttr::default() };
    paths.symlink("f", "l").expect("symlink");
    Paths(&forks[3]).set("l", set).expect("chown");
    assert_eq!(paths.attr("l").map(|a| a.uid), Ok(7));
    // Removed, it stays owned while anybody knows it, and no longer.
    let l = paths.resolve("l").expect("resolve");
    paths.unlink("l").expect("unlink");
    let fork = fs.duplicate();
    fs.forget(l, 1);
    assert_eq!(fork.getattr(l, None).map(|a| a.uid), Ok(7));
    assert_eq!(lock(&fs.owners).len(), 1);
    fork.forget(l, 1);
    assert_eq!(lock(&fs.owners).len(), 0);
    drop(forks);
    for opened in handles {
        assert_eq!(fs.read(f, opened.handle, 0, 1, &mut Vec::new()), Ok(0));
    }
}
