//! Large directories, few descriptors, a full disk.
//!
//! What counts for a whole process (its memory, its descriptors) runs in a process of its own, see [`alone`].

use std::fs::File;
use std::io::Read;
use std::process::Command;
use std::sync::Arc;

use cc::vfs::layer::{Index, Layer, TarLimits};
use cc::vfs::{
    Caller, DirEntry, DirSink, Entry, Errno, FileSystem, Handle, HostDir, HostDirOptions, Limits, Name,
    NodeId, Overlay, SetAttr, falloc, mode, open,
};

const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 1 };

/// Runs `body` in a process that does nothing else. `test` is the full name of the calling test.
fn alone(test: &str, body: impl FnOnce()) {
    const MARK: &str = "CC_VFS_ALONE";
    if std::env::var_os(MARK).is_some() {
        return body();
    }
    let output = Command::new(std::env::current_exe().expect("own path"))
        .args([test, "--exact", "--nocapture", "--include-ignored"])
        .env(MARK, "1")
        .output()
        .expect("the test's own program runs");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    print!("{text}");
}

/// A line of `/proc/self/status`, in KiB.
fn status(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find(|line| line.starts_with(key)).expect("the line is there");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

/// The most memory `body` took beyond what was taken before, in KiB.
fn peak<T>(body: impl FnOnce() -> T) -> (T, u64) {
    // Sets the high-water mark to what is in use.
    std::fs::write("/proc/self/clear_refs", "5").expect("clear_refs");
    let before = status("VmRSS:");
    let result = body();
    (result, status("VmHWM:").saturating_sub(before))
}

/// A layer of `count` empty files in one directory, made while it is read.
struct Files {
    next: u64,
    count: u64,
    block: [u8; 512],
    at: usize,
}

impl Files {
    fn new(count: u64) -> Files {
        Files { next: 0, count, block: [0; 512], at: 512 }
    }
}

impl Read for Files {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at == 512 {
            // Two blocks of zeros are the end.
            if self.next == self.count + 2 {
                return Ok(0);
            }
            self.block.fill(0);
            if self.next < self.count {
                let name = format!("d/file-{}", self.next);
                self.block[..name.len()].copy_from_slice(name.as_bytes());
                for (at, field) in [
                    (100, "0000644"),
                    (108, "0000000"),
                    (116, "0000000"),
                    (124, "00000000000"),
                    (136, "00000000000"),
                ] {
                    self.block[at..at + field.len()].copy_from_slice(field.as_bytes());
                }
                self.block[156] = b'0';
                self.block[257..265].copy_from_slice(b"ustar\x0000");
                self.block[148..156].fill(b' ');
                let sum: u32 = self.block.iter().map(|&b| u32::from(b)).sum();
                self.block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            self.next += 1;
            self.at = 0;
        }
        let n = buffer.len().min(512 - self.at);
        buffer[..n].copy_from_slice(&self.block[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// Marks the numbers of the files it is given; has room for a few at a time.
struct Marks {
    seen: Vec<u64>,
    room: usize,
    cookie: u64,
    nodes: Vec<NodeId>,
}

impl DirSink for Marks {
    fn entry(&mut self, entry: DirEntry<'_>, node: Option<&Entry>) -> bool {
        if self.room == 0 {
            return false;
        }
        assert_ne!(entry.ino, 0);
        self.room -= 1;
        self.cookie = entry.cookie;
        self.nodes.extend(node.map(|entry| entry.node));
        if let Some(number) = entry.name.strip_prefix(b"file-") {
            let number: usize =
                std::str::from_utf8(number).ok().and_then(|n| n.parse().ok()).expect("number");
            let (word, bit) = (number / 64, 1 << (number % 64));
            assert_eq!(self.seen[word] & bit, 0, "file-{number} is listed twice");
            self.seen[word] |= bit;
        }
        true
    }
}

/// Lists a directory of `count` files in steps, with and without attributes; gives the most memory that took in KiB.
fn list(fs: &dyn FileSystem, dir: NodeId, count: u64) -> u64 {
    let mut most = 0;
    for plus in [false, true] {
        let mut marks =
            Marks { seen: vec![0; count as usize / 64 + 1], room: 0, cookie: 0, nodes: Vec::new() };
        let opened = fs.opendir(&ROOT, dir).expect("opendir");
        let (_, kib) = peak(|| {
            loop {
                marks.room = 500;
                if plus {
                    fs.readdirplus(&ROOT, dir, opened.handle, marks.cookie, &mut marks).expect("readdirplus");
                } else {
                    fs.readdir(dir, opened.handle, marks.cookie, &mut marks).expect("readdir");
                }
                marks.nodes.drain(..).for_each(|node| fs.forget(node, 1));
                if marks.room == 500 {
                    break;
                }
            }
        });
        fs.releasedir(dir, opened.handle);
        let seen: u64 = marks.seen.iter().map(|word| u64::from(word.count_ones())).sum();
        assert_eq!(seen, count, "plus: {plus}");
        most = most.max(kib);
    }
    most
}

fn lookup(fs: &dyn FileSystem, name: &str) -> NodeId {
    fs.lookup(&ROOT, NodeId::ROOT, Name::new(name.as_bytes()).expect("name")).expect("lookup").node
}

#[test]
fn r3_8_a_million_entries_of_a_layer_are_indexed_and_listed_in_flat_memory() {
    const COUNT: u64 = 1_000_000;
    alone("scale::r3_8_a_million_entries_of_a_layer_are_indexed_and_listed_in_flat_memory", || {
        let start = std::time::Instant::now();
        let (index, kib) = peak(|| Index::build(Files::new(COUNT), TarLimits::default()).expect("index"));
        println!("index: {} bytes, built in {:?} with {kib} KiB", index.as_bytes().len(), start.elapsed());
        assert!(kib < 600 << 10, "{kib} KiB");
        assert!(index.as_bytes().len() < 110 << 20);
        let file = tempfile::tempfile().expect("file");
        file.set_len(index.tar_len()).expect("set_len");
        let layer = Layer::new(Arc::new(index), file).expect("layer");
        let fs = Overlay::new(vec![layer], Limits::default()).expect("overlay");
        let dir = lookup(&fs, "d");
        let start = std::time::Instant::now();
        let kib = list(&fs, dir, COUNT);
        println!("listed twice in {:?} with {kib} KiB", start.elapsed());
        assert!(kib < 4 << 10, "{kib} KiB");
    });
}

#[test]
fn r3_8_a_large_host_directory_is_listed_in_flat_memory() {
    // `CC_BIG_DIR` sets the number of files.
    let count = std::env::var("CC_BIG_DIR").ok().and_then(|n| n.parse().ok()).unwrap_or(30_000);
    alone("scale::r3_8_a_large_host_directory_is_listed_in_flat_memory", || {
        let host = tempfile::tempdir().expect("dir");
        std::fs::create_dir(host.path().join("d")).expect("mkdir");
        for i in 0..count {
            File::create(host.path().join(format!("d/file-{i}"))).expect("create");
        }
        let dir = HostDir::new(host.path(), HostDirOptions::default()).expect("host directory");
        let over = Overlay::over_directory(host.path(), HostDirOptions::default(), Limits::default());
        for fs in [&dir as &dyn FileSystem, &over.expect("overlay")] {
            let d = lookup(fs, "d");
            let start = std::time::Instant::now();
            let kib = list(fs, d, count);
            println!("{count} listed twice in {:?} with {kib} KiB", start.elapsed());
            assert!(kib < 4 << 10, "{kib} KiB");
            fs.forget(d, 1);
        }
    });
}

#[test]
fn r3_7_fifty_thousand_open_and_unlink_cycles_with_256_descriptors() {
    alone("scale::r3_7_fifty_thousand_open_and_unlink_cycles_with_256_descriptors", || {
        use rustix::process::{Resource, Rlimit, setrlimit};
        let limit = Rlimit { current: Some(256), maximum: Some(256) };
        setrlimit(Resource::Nofile, limit).expect("setrlimit");
        let host = tempfile::tempdir().expect("dir");
        for i in 0..300 {
            std::fs::write(host.path().join(format!("stays-{i}")), "here").expect("write");
        }
        let dir = HostDir::new(host.path(), HostDirOptions::default()).expect("host directory");
        let over = Overlay::over_directory(host.path(), HostDirOptions::default(), Limits::default());
        let systems = [(&dir as &dyn FileSystem, true), (&over.expect("overlay"), false)];
        for (fs, opens) in systems {
            // More nodes than descriptors are known all the time.
            let known: Vec<NodeId> = (0..300).map(|i| lookup(fs, &format!("stays-{i}"))).collect();
            for i in 0..50_000u32 {
                let text = format!("f{i}");
                let name = Name::new(text.as_bytes()).expect("name");
                let (entry, opened) =
                    fs.create(&ROOT, NodeId::ROOT, name, 0o600, open::RDWR).expect("create");
                fs.write(entry.node, opened.handle, 0, 4, &mut &b"data"[..], false).expect("write");
                fs.unlink(&ROOT, NodeId::ROOT, name).expect("unlink");
                let mut bytes = Vec::new();
                assert_eq!(fs.read(entry.node, opened.handle, 0, 10, &mut bytes), Ok(4));
                fs.release(entry.node, opened.handle);
                fs.forget(entry.node, 1);
                let node = known[i as usize % known.len()];
                assert_eq!(fs.getattr(node, None).map(|a| a.size), Ok(4), "cycle {i}");
            }
            // Every descriptor is taken by somebody else: that is an error of its own, never a missing file.
            let mut taken = Vec::new();
            while let Ok(file) = File::open("/dev/null") {
                taken.push(file);
            }
            let opened: Vec<_> = known.iter().map(|&n| fs.open(&ROOT, n, open::RDONLY, false)).collect();
            let full = |e: &Errno| matches!(*e, Errno::ENFILE | Errno::EMFILE);
            // An overlay opens nothing before it reads.
            assert_eq!(opened.iter().any(Result::is_err), opens);
            assert!(opened.iter().filter_map(|o| o.as_ref().err()).all(full), "{opened:?}");
            let name = Name::new(b"stays-7").expect("name");
            match fs.lookup(&ROOT, NodeId::ROOT, name) {
                Ok(entry) => fs.forget(entry.node, 1),
                Err(e) => assert!(full(&e), "{e:?}"),
            }
            for (node, opened) in known.iter().zip(opened) {
                if let Ok(opened) = opened {
                    fs.release(*node, opened.handle);
                }
            }
            drop(taken);
            assert_eq!(fs.getattr(known[7], None).map(|a| a.size), Ok(4));
            known.into_iter().for_each(|node| fs.forget(node, 1));
        }
    });
}

#[test]
fn a_fork_takes_room_for_its_nodes_and_none_for_their_data() {
    const DATA: u64 = 200 << 20;
    alone("scale::a_fork_takes_room_for_its_nodes_and_none_for_their_data", || {
        let make = |fs: &Overlay, dir, text: &str| {
            let name = Name::new(text.as_bytes()).expect("name");
            fs.create(&ROOT, dir, name, 0o644, open::RDWR).expect("create").0.node
        };
        let fill = |fs: &Overlay, node, len: u64| {
            let bytes = vec![7; 1 << 20];
            for at in (0..len).step_by(1 << 20) {
                let size = (len - at).min(1 << 20) as u32;
                let n = fs.write(node, Handle(0), at, size, &mut &bytes[..size as usize], false);
                assert_eq!(n, Ok(size as usize));
            }
        };
        let forked = |what: &str, fs: &Overlay| {
            let start = std::time::Instant::now();
            let (fork, kib) = peak(|| fs.fork().expect("fork"));
            println!("{what}: forked in {:?} with {kib} KiB", start.elapsed());
            (fork, kib)
        };
        // The allocator takes memory from the host in larger pieces.
        const LITTLE: u64 = 512;
        let one = Overlay::memory(Limits::default());
        let node = make(&one, NodeId::ROOT, "f");
        fill(&one, node, DATA);
        let (_one_fork, kib) = forked("one file of 200 MiB", &one);
        assert!(kib < LITTLE, "{kib} KiB");

        let many = Overlay::memory(Limits::default());
        let mut nodes = Vec::new();
        for d in 0..100 {
            let name = format!("d{d}");
            let name = Name::new(name.as_bytes()).expect("name");
            let dir = many.mkdir(&ROOT, NodeId::ROOT, name, 0o755).expect("mkdir").node;
            nodes.extend((0..1000).map(|f| make(&many, dir, &format!("a file with a longer name {f}"))));
        }
        let (empty, without) = forked("100 000 empty files", &many);
        drop(empty);
        nodes.iter().step_by(31).for_each(|&node| fill(&many, node, DATA / 3226));
        let (fork, with) = forked("100 000 files with 200 MiB", &many);
        // The nodes are of one size, whether they have data or not.
        assert!(with < without + LITTLE && without < 40 << 10, "{with} and {without} KiB");
        let start = std::time::Instant::now();
        let (n, kib) = peak(|| fork.write(nodes[0], Handle(0), 5, 1, &mut &b"x"[..], false));
        println!("the first write after it: {:?} with {kib} KiB", start.elapsed());
        assert_eq!(n, Ok(1));
        assert!(kib < LITTLE, "{kib} KiB");
        let name = Name::new(b"new").expect("name");
        let dir = lookup(&*fork, "d50");
        let start = std::time::Instant::now();
        let (made, kib) = peak(|| fork.mknod(&ROOT, dir, name, mode::FILE | 0o644, 0));
        println!("the first name in a directory of 1000: {:?} with {kib} KiB", start.elapsed());
        made.expect("mknod");
        let start = std::time::Instant::now();
        drop(fork);
        println!("the fork dropped in {:?}", start.elapsed());
        let mut bytes = Vec::new();
        assert_eq!(many.read(nodes[0], Handle(0), 0, 10, &mut bytes), Ok(10));
        assert_eq!(bytes, [7; 10]);
    });
}

/// A small tmpfs of root's, undone at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().expect("dir");
        let options = format!("size={size}");
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).output();
        done.is_ok_and(|d| d.status.success()).then(|| SmallDisk(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn r3_11_a_full_disk_is_a_clean_enospc_isolated_and_recoverable() {
    let Some(disk) = SmallDisk::new("1m") else {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    };
    let limits = Limits { memory: 64 << 10, spill_dir: Some(disk.0.path().into()), ..Limits::default() };
    let fs = Overlay::memory(limits);
    let make = |name: &str| {
        let name = Name::new(name.as_bytes()).expect("name");
        fs.create(&ROOT, NodeId::ROOT, name, 0o644, open::RDWR).expect("create")
    };
    let write = |node, handle, offset, len: usize, byte: u8| {
        let bytes = vec![byte; len];
        fs.write(node, handle, offset, len as u32, &mut &bytes[..], false)
    };
    let read = |node, handle| {
        let mut bytes = Vec::new();
        fs.read(node, handle, 0, 8 << 20, &mut bytes).expect("read");
        bytes
    };
    let (small, small_open) = make("small");
    assert_eq!(write(small.node, small_open.handle, 0, 1000, 1), Ok(1000));
    let (big, opened) = make("big");
    let mut written = 0;
    let error = loop {
        match write(big.node, opened.handle, written, 100_000, 2) {
            Ok(n) => written += n as u64,
            Err(e) => break e,
        }
    };
    assert_eq!(error, Errno::ENOSPC);
    assert!((900_000..1_200_000).contains(&written), "{written}");
    // Clean: what was said to be written is there, and nothing else.
    assert_eq!(fs.getattr(big.node, None).map(|a| a.size), Ok(written));
    assert_eq!(read(big.node, opened.handle), vec![2; written as usize]);
    assert_eq!(fs.fallocate(big.node, opened.handle, written, 100_000, 0), Err(Errno::ENOSPC));
    // Isolated: what is there can be written over, other files and names are as ever.
    assert_eq!(write(big.node, opened.handle, 500_000, 1000, 3), Ok(1000));
    assert_eq!(write(small.node, small_open.handle, 0, 1000, 4), Ok(1000));
    assert_eq!(read(small.node, small_open.handle), vec![4; 1000]);
    let dir = fs.mkdir(&ROOT, NodeId::ROOT, Name::new(b"d").expect("name"), 0o755).expect("mkdir");
    fs.forget(dir.node, 1);
    // A write that fails leaves no stale bytes: the hole it was for reads as zeros.
    let (other, other_open) = make("other");
    assert_eq!(write(other.node, other_open.handle, 70_000, 70_000, 5), Err(Errno::ENOSPC));
    let set = SetAttr { size: Some(200_000), ..SetAttr::default() };
    fs.setattr(&ROOT, other.node, None, &set).expect("truncate");
    assert_eq!(read(other.node, other_open.handle), vec![0; 200_000]);
    // Recoverable: room comes back with the file, and the host gets its space again.
    fs.unlink(&ROOT, NodeId::ROOT, Name::new(b"big").expect("name")).expect("unlink");
    fs.release(big.node, opened.handle);
    fs.forget(big.node, 1);
    assert_eq!(write(other.node, other_open.handle, 0, 600_000, 6), Ok(600_000));
    assert_eq!(read(other.node, other_open.handle), vec![6; 600_000]);
    assert_eq!(fs.fallocate(other.node, other_open.handle, 600_000, 200_000, 0), Ok(()));
    assert_eq!(read(other.node, other_open.handle)[600_000..], [0; 200_000]);
}

#[test]
fn r3_11_a_fork_on_a_full_disk_fails_cleanly_and_alone() {
    const SIZE: usize = 600_000;
    let Some(disk) = SmallDisk::new("1m") else {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    };
    let limits = Limits { memory: 64 << 10, spill_dir: Some(disk.0.path().into()), ..Limits::default() };
    let fs = Overlay::memory(limits);
    let name = Name::new(b"f").expect("name");
    let f = fs.create(&ROOT, NodeId::ROOT, name, 0o644, open::RDWR).expect("create").0.node;
    let write = |fs: &dyn FileSystem, offset: usize, len: usize, byte: u8| {
        fs.write(f, Handle(0), offset as u64, len as u32, &mut &vec![byte; len][..], false)
    };
    let read = |fs: &dyn FileSystem| {
        let mut bytes = Vec::new();
        fs.read(f, Handle(0), 0, 8 << 20, &mut bytes).expect("read");
        bytes
    };
    assert_eq!(write(&fs, 0, SIZE, 1), Ok(SIZE));
    let fork = fs.fork().expect("fork");
    // There is room for some copies, not for all. Cutting at the end of a page drops chunks and keeps a part of one.
    let written = write(&*fork, 0, SIZE, 2).expect("a part");
    assert!((64 << 10..SIZE).contains(&written), "{written}");
    assert_eq!(write(&*fork, written, 1, 2), Err(Errno::ENOSPC));
    let set = SetAttr { size: Some(written as u64 + 4096), ..SetAttr::default() };
    assert_eq!(fork.setattr(&ROOT, f, None, &set).map(drop), Err(Errno::ENOSPC));
    let punch = falloc::PUNCH_HOLE | falloc::KEEP_SIZE;
    assert_eq!(fork.fallocate(f, Handle(0), written as u64, 4096, punch), Err(Errno::ENOSPC));
    // Clean and alone: what was said to be written is, and nothing else, here and there.
    let mut want = vec![1; SIZE];
    want[..written].fill(2);
    assert!(read(&*fork) == want);
    assert!(read(&fs) == [1; SIZE]);
    // Recoverable, by removing what is the fork's own and by the other's going.
    let whole = SetAttr { size: Some(0), ..SetAttr::default() };
    fork.setattr(&ROOT, f, None, &whole).expect("what keeps nothing copies nothing");
    assert_eq!(write(&*fork, 0, 300_000, 3), Ok(300_000));
    assert!(read(&*fork) == [3; 300_000]);
    drop(fork);
    assert_eq!(write(&fs, 0, 900_000, 4), Ok(900_000));
    assert!(read(&fs) == [4; 900_000]);
}

#[test]
fn r3_12_privileges_go_with_a_write_and_links_have_attributes() {
    let host = tempfile::tempdir().expect("dir");
    let below = tempfile::tempdir().expect("dir");
    let root = rustix::process::geteuid().is_root();
    let dir = HostDir::new(host.path(), HostDirOptions::default()).expect("host directory");
    let over = Overlay::over_directory(below.path(), HostDirOptions::default(), Limits::default());
    let memory = Overlay::memory(Limits::default());
    let systems: [(&str, &dyn FileSystem); 3] =
        [("memory", &memory), ("over", &over.expect("overlay")), ("dir", &dir)];
    // Version 2, one permitted capability.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (what, fs) in systems {
        let name = Name::new(b"f").expect("name");
        let (f, opened) = fs.create(&ROOT, NodeId::ROOT, name, 0o755, open::RDWR).expect("create");
        let arm = || {
            let set = SetAttr { mode: Some(0o6755), ..SetAttr::default() };
            fs.setattr(&ROOT, f.node, None, &set).expect("chmod");
            if what != "dir" {
                fs.setxattr(&ROOT, f.node, b"security.capability", &capability, 0).expect("setxattr");
            } else if root {
                let path = host.path().join("f");
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(path, "security.capability", &capability, flags).expect("setxattr");
            }
        };
        let state = || {
            let armed = match what {
                "dir" => {
                    let mut value = [0; 64];
                    rustix::fs::getxattr(host.path().join("f"), "security.capability", &mut value[..]).is_ok()
                }
                _ => fs.getxattr(f.node, b"security.capability").is_ok(),
            };
            (fs.getattr(f.node, None).expect("attr").mode & mode::PERM, armed)
        };
        arm();
        assert_eq!(state(), (0o6755, what != "dir" || root), "{what}: the control");
        fs.write(f.node, opened.handle, 0, 1, &mut &b"x"[..], true).expect("write");
        assert_eq!(state(), (0o755, false), "{what}: write");
        arm();
        let set = SetAttr { uid: Some(0), ..SetAttr::default() };
        if fs.setattr(&ROOT, f.node, None, &set).is_ok() {
            assert_eq!(state(), (0o755, false), "{what}: chown");
        }
        arm();
        let set = SetAttr { size: Some(0), kill_suidgid: true, ..SetAttr::default() };
        fs.setattr(&ROOT, f.node, None, &set).expect("truncate");
        assert_eq!(state(), (0o755, false), "{what}: truncate");
        arm();
        fs.open(&ROOT, f.node, open::WRONLY | open::TRUNC, true).expect("open");
        assert_eq!(state(), (0o755, false), "{what}: open with truncation");

        fs.setxattr(&ROOT, f.node, b"user.a", b"1", 0).expect("setxattr");
        assert_eq!(fs.getxattr(f.node, b"user.a"), Ok(b"1".to_vec()), "{what}");
        let link = fs.symlink(&ROOT, NodeId::ROOT, Name::new(b"l").expect("name"), b"f").expect("symlink");
        assert_eq!(fs.setxattr(&ROOT, link.node, b"user.a", b"2", 0), Err(Errno::EPERM), "{what}");
        if what != "dir" {
            fs.setxattr(&ROOT, link.node, b"trusted.a", b"3", 0).expect("setxattr on a link");
            assert_eq!(fs.getxattr(link.node, b"trusted.a"), Ok(b"3".to_vec()), "{what}");
            assert_eq!(fs.getxattr(f.node, b"trusted.a"), Err(Errno::ENODATA), "{what}: not on its target");
        }
    }
}
