//! Tests of forks: each is what it was forked from, and no change of one shows in another.

use std::path::Path;
use std::process::Command;

use super::tests::{OPEN, memory, names, remove_all};
use super::*;
use crate::vfs::layer::tests::Maker;
use crate::vfs::testing::{Names, Paths, ROOT, Random, against_host};
use crate::vfs::{
    Errno, FileSystem, FileType, HostDirOptions, Name, NodeId, Seek, SetAttr, falloc, mode, open,
};

/// Everything about a tree: attributes with times and inode numbers, cookies, content, holes, extended attributes.
pub(super) fn state(fs: &dyn FileSystem) -> Vec<String> {
    let mut lines = vec![format!("{:?}", fs.statfs(NodeId::ROOT))];
    let paths = Paths(fs);
    let mut todo = vec![String::new()];
    while let Some(path) = todo.pop() {
        let attr = paths.attr(&path).expect("attr");
        let mut line = format!("{path} {attr:?}");
        match attr.file_type() {
            FileType::Dir => {
                let node = paths.resolve(&path).expect("resolve");
                let mut sink = Names::default();
                fs.readdir(node, OPEN, 0, &mut sink).expect("readdir");
                paths.drop(node);
                line += &format!(" {:?}", sink.all);
                let inside = sink.all.iter().map(|entry| String::from_utf8_lossy(&entry.0).into_owned());
                todo.extend(inside.filter(|n| n != "." && n != "..").map(|n| format!("{path}/{n}")));
            }
            FileType::File => {
                line += &format!(" {:08x}", crc32fast::hash(&paths.read(&path).expect("read")));
                let mut at = 0;
                while let Ok(data) = paths.seek(&path, Seek::Data(at)) {
                    at = paths.seek(&path, Seek::Hole(data)).expect("a hole at the end");
                    line += &format!(" {data}-{at}");
                }
            }
            FileType::Symlink => line += &paths.readlink(&path).expect("readlink"),
            _ => {}
        }
        for name in paths.xattrs(&path).expect("xattrs") {
            let name = String::from_utf8(name).expect("text");
            line += &format!(" {name}={:?}", paths.xattr(&path, &name).expect("xattr"));
        }
        lines.push(line);
    }
    lines.sort();
    lines
}

pub(super) fn copy(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("dir");
    let mut cp = Command::new("cp");
    cp.args(["-a", "--sparse=always"]).arg(dir.join(".")).arg(copy.path());
    assert!(cp.status().is_ok_and(|s| s.success()), "cp of GNU coreutils");
    copy
}

fn layer_of(dir: &Path) -> Layer {
    let mut tar = Command::new("tar");
    tar.args(["--format=posix", "--sparse", "-C"]).arg(dir).args(["-cf", "-", "."]);
    let tar = tar.output().expect("GNU tar").stdout;
    let mut file = tempfile::tempfile().expect("file");
    std::io::Write::write_all(&mut file, &tar).expect("write");
    let index = crate::vfs::layer::Index::build(&tar[..], Default::default()).expect("index");
    Layer::new(Arc::new(index), file).expect("layer")
}

/// What may be below the upper.
pub(super) const KINDS: [&str; 3] = ["memory", "layers", "directory"];

/// An overlay with random changes in its upper, the host's directory with the same tree, and what must outlive them.
pub(super) fn changed(
    kind: &str,
    seed: u64,
    steps: usize,
    memory: u64,
) -> (Overlay, tempfile::TempDir, tempfile::TempDir) {
    let limits = Limits { memory, ..Limits::default() };
    let real = tempfile::tempdir().expect("dir");
    let mut lower = tempfile::tempdir().expect("dir");
    if kind != "memory" {
        against_host(&super::tests::memory(), real.path(), seed * 41, 500);
    }
    let fs = match kind {
        "memory" => Overlay::memory(limits),
        "layers" => Overlay::new(vec![layer_of(real.path())], limits).expect("overlay"),
        _ => {
            lower = copy(real.path());
            Overlay::over_directory(lower.path(), HostDirOptions::default(), limits).expect("overlay")
        }
    };
    against_host(&fs, real.path(), seed * 53, steps);
    (fs, real, lower)
}

#[test]
fn the_model_run_agrees_on_a_fork_and_leaves_the_original_and_the_other_way_round() {
    for (at, kind) in KINDS.into_iter().enumerate() {
        for memory in [64 << 20, 100_000] {
            let (fs, real, _lower) = changed(kind, at as u64 + 3, 700, memory);
            let before = state(&fs);
            let real_of_fork = copy(real.path());
            let fork = fs.fork().expect("fork");
            assert_eq!(state(&*fork), before, "{kind}");
            against_host(&*fork, real_of_fork.path(), 77, 1500);
            // The dump is not blind: the fork has changed.
            let changed = state(&*fork);
            assert_ne!(changed, before, "{kind}");
            assert_eq!(state(&fs), before, "{kind}");
            against_host(&fs, real.path(), 78, 1500);
            assert_ne!(state(&fs), before, "{kind}");
            assert_eq!(state(&*fork), changed, "{kind}");
            drop(fs);
            assert_eq!(state(&*fork), changed, "{kind}");
            against_host(&*fork, real_of_fork.path(), 79, 500);
        }
    }
}

/// Random operations, forks at random points (also of forks), random operations on all in turn: each is as the host's
/// directory that saw its own operations alone. `CC_FORK_SEEDS` sets how many.
#[test]
fn forks_at_random_points_go_their_own_ways() {
    let seeds = std::env::var("CC_FORK_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(12u64);
    for seed in 1..=seeds {
        let mut random = Random(seed * 9973);
        let kind = KINDS[random.below(3) as usize];
        let memory = [0, 100_000, 64 << 20][random.below(3) as usize];
        let (fs, real, _lower) = changed(kind, seed, 100 + random.below(600) as usize, memory);
        let spill = fs.store.spill.clone();
        let mut all = vec![(fs, real)];
        for round in 0..12 {
            if all.len() < 5 && random.below(3) == 0 {
                let (fs, real) = &all[random.below(all.len() as u64) as usize];
                all.push((fs.duplicate(), copy(real.path())));
            }
            for (at, (fs, real)) in all.iter().enumerate() {
                against_host(fs, real.path(), seed * 1009 + round * 101 + at as u64, 60);
            }
            if all.len() > 2 && random.below(4) == 0 {
                all.swap_remove(random.below(all.len() as u64) as usize);
            }
        }
        // What is removed from all is given back by each to its own count, and the slots by the last.
        for (fs, real) in &all {
            against_host(fs, real.path(), seed, 0);
            remove_all(&Paths(fs), "");
            assert_eq!((fs.usage().0, fs.store.room_taken().0), (0, 0), "seed {seed} {kind}");
            if kind == "memory" {
                assert_eq!((fs.usage(), fs.store.room_taken()), ((0, 0), (0, 0)), "seed {seed}");
            }
        }
        assert_eq!(spill.usage(), (0, 0), "seed {seed} {kind} {memory}");
    }
}

#[test]
fn everything_an_upper_can_hold_survives() {
    let mut low = Maker::default();
    low.dir("d").file("d/gone", b"low").file("d/kept", b"low").hard("d/twin", "d/kept").dir("o");
    low.file("o/old", b"low").dir("moved/deep").file("moved/deep/x", b"deep");
    let limits = Limits { memory: 70_000, ..Limits::default() };
    let fs = Overlay::new(vec![low.layer()], limits).expect("overlay");
    let paths = Paths(&fs);
    paths.unlink("d/gone").expect("whiteout");
    paths.unlink("o/old").expect("unlink");
    paths.rmdir("o").expect("rmdir");
    paths.mkdir("o", 0o700).expect("an opaque directory");
    paths.rename("moved", "o/here", 0).expect("rename");
    paths.create("a", 0o4755).expect("create");
    paths.write("a", 1 << 20, &[5; 100_000]).expect("a sparse, spilled file");
    paths.fallocate("a", 1 << 19, 8192, 0).expect("allocate");
    paths.link("a", "d/b").expect("link");
    paths.set_xattr("a", "user.note", b"one").expect("setxattr");
    paths.symlink("a", "l").expect("symlink");
    for (name, mode, rdev) in [
        ("null", mode::CHAR, 0x103),
        ("disk", mode::BLOCK, 0x800),
        ("p", mode::FIFO, 0),
        ("s", mode::SOCKET, 0),
    ] {
        paths.mknod(name, mode | 0o640, rdev).expect("mknod");
    }
    paths.create("u", 0o600).expect("create");
    paths.write("u", 0, b"unlinked").expect("write");
    let unlinked = paths.resolve("u").expect("resolve");
    paths.unlink("u").expect("unlink");
    let of_layer = paths.resolve("d/kept").expect("resolve");
    let mut first = Names { limit: 4, ..Names::default() };
    fs.readdir(NodeId::ROOT, OPEN, 0, &mut first).expect("readdir");

    let before = state(&fs);
    let fork = fs.duplicate();
    let second = fork.fork().expect("a fork of a fork");
    for copy in [&fork as &dyn FileSystem, &*second] {
        let forked = Paths(copy);
        assert_eq!(state(copy), before);
        assert_eq!(names(&forked, "d"), "b kept twin");
        assert_eq!(names(&forked, "o"), "here");
        // A listing goes on where it was.
        let mut rest = Names::default();
        copy.readdir(NodeId::ROOT, OPEN, first.all[3].3, &mut rest).expect("readdir");
        let mut whole = Names::default();
        fs.readdir(NodeId::ROOT, OPEN, 0, &mut whole).expect("readdir");
        assert_eq!([first.all.clone(), rest.all].concat(), whole.all);
        // The nodes a client knows, also without a name.
        let mut bytes = Vec::new();
        assert_eq!(copy.read(unlinked, OPEN, 0, 100, &mut bytes), Ok(8));
        assert_eq!(bytes, b"unlinked");
        assert_eq!(copy.getattr(of_layer, None).map(|a| a.nlink), Ok(2));
        assert_eq!(copy.write(unlinked, OPEN, 0, 2, &mut &b"UN"[..], false), Ok(2));
        // Two names are still one file, here and only here.
        forked.write("d/b", 1 << 20, b"new").expect("write");
        assert_eq!(&forked.read("a").expect("read")[1 << 20..][..4], b"new\x05");
        forked.set_xattr("d/b", "user.note", b"two").expect("setxattr");
        assert_eq!(forked.xattr("a", "user.note"), Ok(b"two".to_vec()));
        forked.write("d/kept", 0, b"L").expect("write");
        assert_eq!(forked.read("d/twin"), Ok(b"Low".to_vec()));
        forked.create("d/gone", 0o600).expect("the name is free");
        forked.rename("o/here", "moved", 0).expect("rename");
        forked.fallocate("a", 0, 4 << 20, falloc::PUNCH_HOLE | falloc::KEEP_SIZE).expect("punch");
        forked.set("l", SetAttr { uid: Some(9), ..SetAttr::default() }).expect("chown");
        // Counts are each one's own.
        copy.forget(unlinked, 1);
        assert_eq!(copy.getattr(unlinked, None), Err(Errno::ESTALE));
        assert_ne!(state(copy), before);
        assert_eq!(state(&fs), before);
        assert_eq!(fs.getattr(unlinked, None).map(|a| a.size), Ok(8));
    }
    let mut bytes = Vec::new();
    assert_eq!(fs.read(unlinked, OPEN, 0, 100, &mut bytes), Ok(8));
    assert_eq!(bytes, b"unlinked");
    fs.forget(unlinked, 1);
    assert_eq!(fs.getattr(unlinked, None), Err(Errno::ESTALE));
    paths.drop(of_layer);
}

#[test]
fn the_changes_of_a_fork_are_written_as_a_layer_of_their_own() {
    let fs = memory();
    Paths(&fs).create("both", 0o644).expect("create");
    let fork = fs.duplicate();
    Paths(&fork).create("fork", 0o644).expect("create");
    Paths(&fs).create("original", 0o644).expect("create");
    let listed = |fs: &Overlay| {
        let mut tar = Vec::new();
        fs.write_layer(&mut tar, &|_| false).expect("layer");
        let index = crate::vfs::layer::Index::build(&tar[..], Default::default()).expect("index");
        let mut file = tempfile::tempfile().expect("file");
        std::io::Write::write_all(&mut file, &tar).expect("write");
        let layer = Layer::new(Arc::new(index), file).expect("layer");
        names(&Paths(&Overlay::new(vec![layer], Limits::default()).expect("overlay")), "")
    };
    assert_eq!((listed(&fs), listed(&fork)), ("both original".into(), "both fork".into()));
}

#[test]
fn limits_are_counted_apart_and_what_is_shared_counts_in_each() {
    let limits = Limits { bytes: 1 << 20, inodes: 2, metadata: 800, memory: 1 << 19, ..Limits::default() };
    let fs = Overlay::memory(limits);
    let paths = Paths(&fs);
    paths.create("a", 0o644).expect("create");
    paths.create("b", 0o644).expect("create");
    assert_eq!(paths.write("a", 0, &vec![7; 2 << 20]), Ok(1 << 20));
    let used = (fs.usage(), fs.store.room_taken());
    let fork = fs.duplicate();
    let forked = Paths(&fork);
    for side in [&paths, &forked] {
        assert_eq!(side.create("more", 0o644), Err(Errno::ENOSPC));
        assert_eq!(side.write("b", 0, b"x"), Err(Errno::ENOSPC));
        // What is there may be written over, whoever shares it.
        assert_eq!(side.write("a", 0, &vec![8; 1 << 20]), Ok(1 << 20));
        assert_eq!((fs.usage(), fs.store.room_taken()), used);
        assert_eq!((fork.usage(), fork.store.room_taken()), used);
    }
    forked.unlink("a").expect("unlink");
    assert_eq!((fork.usage(), fork.store.room_taken().0), ((0, 1), 0));
    assert_eq!((fs.usage(), fs.store.room_taken()), used);
    assert_eq!(forked.write("b", 0, b"x"), Ok(1));
    assert_eq!(paths.write("b", 0, b"x"), Err(Errno::ENOSPC));
    assert_eq!(paths.read("a"), Ok(vec![8; 1 << 20]));
}

#[test]
fn a_hundred_forks_leave_nothing_behind() {
    let (memory, slots) = (512 << 10, 56);
    let fs = Overlay::memory(Limits { memory, ..Limits::default() });
    let paths = Paths(&fs);
    paths.create("f", 0o644).expect("create");
    let bytes: Vec<u8> = (0..4u32 << 20).map(|i| (i / 4096 % 255) as u8 + 1).collect();
    paths.write("f", 0, &bytes).expect("write");
    let before = fs.store.spill.usage();
    assert_eq!(before.0, slots);
    let forks: Vec<Overlay> = (0..100).map(|_| fs.duplicate()).collect();
    assert_eq!(fs.store.spill.usage(), before, "a fork copies nothing");
    for (at, fork) in forks.iter().enumerate() {
        let forked = Paths(fork);
        // One chunk of those in memory, one of the spilled.
        for offset in [65536 + 3, (3 << 20) + 5] {
            forked.write("f", offset, &[at as u8]).expect("write");
        }
        assert_eq!(fs.store.spill.usage().0, slots + at as u64 + 1);
    }
    for (at, fork) in forks.iter().enumerate() {
        let mut want = bytes.clone();
        want[65536 + 3] = at as u8;
        want[(3 << 20) + 5] = at as u8;
        assert!(Paths(fork).read("f") == Ok(want), "fork {at}");
    }
    assert!(fs.store.spill.usage().1 > before.1);
    drop(forks);
    assert_eq!(fs.store.spill.usage(), before);
    assert_eq!(Arc::strong_count(&fs.store.spill), 1);
    assert!(paths.read("f") == Ok(bytes));
    // Nothing is shared any more, so a write takes no slot.
    paths.write("f", 0, &vec![1; 4 << 20]).expect("write");
    assert_eq!(fs.store.spill.usage(), before);
    // The original goes first: its slots stay with who shows them.
    let (spill, last) = (fs.store.spill.clone(), fs.duplicate());
    drop(fs);
    assert_eq!(spill.usage(), before);
    Paths(&last).unlink("f").expect("unlink");
    assert_eq!(spill.usage(), (0, 0));
}

#[test]
fn forks_that_write_at_the_same_time_do_not_meet() {
    let fs = Overlay::memory(Limits { memory: 256 << 10, ..Limits::default() });
    let paths = Paths(&fs);
    paths.create("f", 0o644).expect("create");
    paths.write("f", 0, &vec![255; 1 << 20]).expect("write");
    let before = fs.store.spill.usage();
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let fs = &fs;
            scope.spawn(move || {
                let mut random = Random(u64::from(thread) + 11);
                for turn in 0..30u8 {
                    let fork = fs.duplicate();
                    let forked = Paths(&fork);
                    let mut want = vec![255; 1 << 20];
                    for _ in 0..20 {
                        let (at, len) = (random.below(1 << 20) as usize, random.below(9000) as usize);
                        let end = (at + len).min(1 << 20);
                        want[at..end].fill(thread * 30 + turn);
                        let n = forked.write("f", at as u64, &want[at..end]);
                        assert_eq!(n, Ok(end - at));
                    }
                    assert!(forked.read("f") == Ok(want));
                }
            });
        }
    });
    assert!(paths.read("f") == Ok(vec![255; 1 << 20]));
    assert_eq!(fs.store.spill.usage(), before);
}

#[test]
fn a_fork_in_the_middle_of_a_forget_keeps_no_lost_node() {
    let fs = memory();
    let name = Name::new(b"f").expect("name");
    let (entry, _) = fs.create(&ROOT, NodeId::ROOT, name, 0o600, open::RDWR).expect("create");
    fs.unlink(&ROOT, NodeId::ROOT, name).expect("unlink");
    // The first half of a `forget`.
    assert!(fs.shared().give_back(entry.node.0, 1));
    let fork = fs.duplicate();
    assert_eq!(fork.getattr(entry.node, None), Err(Errno::ESTALE));
    assert_eq!(fork.usage(), (0, 0));
    assert_eq!(fs.usage(), (0, 1));
}

#[test]
fn over_a_directory_nodes_of_the_host_outlive_each_of_their_holders() {
    let lower = tempfile::tempdir().expect("dir");
    std::fs::write(lower.path().join("f"), "host").expect("write");
    std::fs::write(lower.path().join("g"), "other").expect("write");
    let fs = Overlay::over_directory(lower.path(), HostDirOptions::default(), Limits::default());
    let fs = fs.expect("overlay");
    let f = Paths(&fs).resolve("f").expect("resolve");
    let fork = fs.duplicate();
    fs.forget(f, 1);
    assert_eq!(fs.getattr(f, None), Err(Errno::ESTALE));
    let mut bytes = Vec::new();
    assert_eq!(fork.read(f, OPEN, 0, 10, &mut bytes), Ok(4));
    // A number stays that of one file, whoever looked it up.
    let g = Paths(&fs).resolve("g").expect("resolve");
    assert_ne!(f, g);
    assert_eq!(Paths(&fork).resolve("g"), Ok(g));
    drop(fs);
    assert_eq!(fork.read(g, OPEN, 0, 10, &mut bytes), Ok(5));
    assert_eq!(bytes, b"hostother");
    assert_eq!(Paths(&fork).resolve("f"), Ok(f));
}
