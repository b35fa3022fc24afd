//! Helpers of the tests: paths over a [`FileSystem`], and a random-operations model against the real host.

use super::*;

pub(super) const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 1 };

/// Walks paths on a file system as a client's kernel would, giving every lookup back.
pub(super) struct Paths<'a>(pub(super) &'a dyn FileSystem);

/// Gathers a listing.
#[derive(Default)]
pub(super) struct Names {
    pub(super) all: Vec<(Vec<u8>, u64, FileType, u64)>,
    pub(super) limit: usize,
    pub(super) nodes: Vec<NodeId>,
}

impl DirSink for Names {
    fn entry(&mut self, entry: DirEntry<'_>, node: Option<&Entry>) -> bool {
        if self.limit != 0 && self.all.len() >= self.limit {
            return false;
        }
        assert_ne!(entry.ino, 0);
        assert_ne!(entry.cookie, 0);
        self.all.push((entry.name.to_vec(), entry.ino, entry.kind, entry.cookie));
        self.nodes.extend(node.map(|n| n.node));
        true
    }
}

impl Paths<'_> {
    /// Resolves a path without following links.
    pub(super) fn resolve(&self, path: &str) -> Result<NodeId> {
        let mut node = NodeId::ROOT;
        for part in path.split('/').filter(|p| !p.is_empty()) {
            let next = self.0.lookup(&ROOT, node, Name::new(part.as_bytes())?);
            self.drop(node);
            node = next?.node;
        }
        Ok(node)
    }

    pub(super) fn drop(&self, node: NodeId) {
        if node != NodeId::ROOT {
            self.0.forget(node, 1);
        }
    }

    fn with<T>(&self, path: &str, f: impl FnOnce(NodeId) -> Result<T>) -> Result<T> {
        let node = self.resolve(path)?;
        let result = f(node);
        self.drop(node);
        result
    }

    fn at<T>(&self, path: &str, f: impl FnOnce(NodeId, Name<'_>) -> Result<T>) -> Result<T> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.with(dir, |dir| match self.0.getattr(dir, None)?.file_type() {
            FileType::Dir => f(dir, Name::new(name.as_bytes())?),
            _ => Err(Errno::ENOTDIR),
        })
    }

    fn made(&self, entry: Result<Entry>) -> Result<()> {
        self.drop(entry?.node);
        Ok(())
    }

    pub(super) fn attr(&self, path: &str) -> Result<Attr> {
        self.with(path, |node| self.0.getattr(node, None))
    }

    pub(super) fn set(&self, path: &str, set: SetAttr) -> Result<Attr> {
        self.with(path, |node| self.0.setattr(&ROOT, node, None, &set))
    }

    pub(super) fn create(&self, path: &str, mode: u32) -> Result<()> {
        self.at(path, |dir, name| {
            let (entry, opened) = self.0.create(&ROOT, dir, name, mode, open::RDWR | open::EXCL)?;
            self.0.release(entry.node, opened.handle);
            self.drop(entry.node);
            Ok(())
        })
    }

    pub(super) fn mkdir(&self, path: &str, mode: u32) -> Result<()> {
        self.at(path, |dir, name| self.made(self.0.mkdir(&ROOT, dir, name, mode)))
    }

    pub(super) fn symlink(&self, target: &str, path: &str) -> Result<()> {
        self.at(path, |dir, name| self.made(self.0.symlink(&ROOT, dir, name, target.as_bytes())))
    }

    pub(super) fn mknod(&self, path: &str, mode: u32, rdev: u32) -> Result<()> {
        self.at(path, |dir, name| self.made(self.0.mknod(&ROOT, dir, name, mode, rdev)))
    }

    pub(super) fn link(&self, from: &str, to: &str) -> Result<()> {
        self.with(from, |node| self.at(to, |dir, name| self.made(self.0.link(&ROOT, node, dir, name))))
    }

    pub(super) fn unlink(&self, path: &str) -> Result<()> {
        self.at(path, |dir, name| self.0.unlink(&ROOT, dir, name))
    }

    pub(super) fn rmdir(&self, path: &str) -> Result<()> {
        self.at(path, |dir, name| self.0.rmdir(&ROOT, dir, name))
    }

    pub(super) fn rename(&self, from: &str, to: &str, flags: u32) -> Result<()> {
        self.at(from, |dir, name| {
            self.at(to, |new_dir, new_name| self.0.rename(&ROOT, dir, name, new_dir, new_name, flags))
        })
    }

    pub(super) fn open<T>(
        &self,
        path: &str,
        flags: u32,
        f: impl FnOnce(NodeId, Handle) -> Result<T>,
    ) -> Result<T> {
        self.with(path, |node| {
            let opened = self.0.open(&ROOT, node, flags, false)?;
            let result = f(node, opened.handle);
            self.0.release(node, opened.handle);
            result
        })
    }

    pub(super) fn write(&self, path: &str, offset: u64, mut bytes: &[u8]) -> Result<usize> {
        let size = bytes.len() as u32;
        self.open(path, open::RDWR, |node, handle| {
            self.0.write(node, handle, offset, size, &mut bytes, false)
        })
    }

    pub(super) fn read(&self, path: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(path, open::RDONLY, |node, handle| {
            while self.0.read(node, handle, bytes.len() as u64, 70_000, &mut bytes)? > 0 {}
            Ok(())
        })?;
        Ok(bytes)
    }

    pub(super) fn fallocate(&self, path: &str, offset: u64, len: u64, flags: u32) -> Result<()> {
        self.open(path, open::RDWR, |node, handle| self.0.fallocate(node, handle, offset, len, flags))
    }

    pub(super) fn seek(&self, path: &str, seek: Seek) -> Result<u64> {
        self.open(path, open::RDONLY, |node, handle| self.0.lseek(node, handle, seek))
    }

    pub(super) fn readlink(&self, path: &str) -> Result<String> {
        self.with(path, |node| Ok(String::from_utf8_lossy(&self.0.readlink(node)?).into_owned()))
    }

    pub(super) fn xattr(&self, path: &str, name: &str) -> Result<Vec<u8>> {
        self.with(path, |node| self.0.getxattr(node, name.as_bytes()))
    }

    pub(super) fn set_xattr(&self, path: &str, name: &str, value: &[u8]) -> Result<()> {
        self.with(path, |node| self.0.setxattr(&ROOT, node, name.as_bytes(), value, 0))
    }

    pub(super) fn xattrs(&self, path: &str) -> Result<Vec<Vec<u8>>> {
        let list = self.with(path, |node| self.0.listxattr(node))?;
        let mut names: Vec<_> =
            list.split(|&b| b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect();
        names.sort();
        Ok(names)
    }

    /// Names of a directory without `.` and `..`, sorted; `step` entries for each call.
    pub(super) fn list(&self, path: &str, step: usize) -> Result<Vec<String>> {
        self.with(path, |node| {
            let opened = self.0.opendir(&ROOT, node)?;
            let mut all = Vec::new();
            let mut cookie = 0;
            loop {
                let mut sink = Names { limit: step, ..Names::default() };
                self.0.readdir(node, opened.handle, cookie, &mut sink)?;
                let Some(last) = sink.all.last() else { break };
                cookie = last.3;
                all.extend(sink.all.iter().map(|e| String::from_utf8_lossy(&e.0).into_owned()));
            }
            self.0.releasedir(node, opened.handle);
            assert_eq!(all.iter().filter(|n| *n == "." || *n == "..").count(), 2, "{all:?}");
            all.retain(|n| n != "." && n != "..");
            all.sort();
            Ok(all)
        })
    }

    /// Everything below a path, as lines that say all about each file but times and inode numbers.
    pub(super) fn dump(&self, path: &str, out: &mut Vec<String>) {
        let attr = self.attr(path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let kind = attr.file_type();
        let mut line = format!("{path} {kind:?} {:o} n{}", attr.mode, attr.nlink);
        match kind {
            FileType::File => {
                let bytes = self.read(path).expect("read");
                assert_eq!(bytes.len() as u64, attr.size, "{path}");
                line += &format!(" {} {:08x}", attr.size, crc32fast::hash(&bytes));
            }
            FileType::Symlink => line += &format!(" -> {}", self.readlink(path).expect("readlink")),
            FileType::Char | FileType::Block => line += &format!(" {:x}", attr.rdev),
            _ => {}
        }
        out.push(line);
        if kind == FileType::Dir {
            for name in self.list(path, 3).expect("list") {
                self.dump(&format!("{path}/{name}"), out);
            }
        }
    }
}

/// A small deterministic random generator (xorshift).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }
}

/// Runs random operations on `fs` and on the host directory `real` and compares each result and the whole trees.
#[cfg(target_os = "linux")]
pub(super) fn against_host(fs: &dyn FileSystem, real: &std::path::Path, seed: u64, steps: usize) {
    use rustix::fs as host;
    use std::os::unix::fs::{FileExt, PermissionsExt};

    let model = HostDir::new(real, HostDirOptions::default()).expect("host dir");
    let (fs, model) = (Paths(fs), Paths(&model));
    let mut random = Random(seed | 1);
    let host_err = |e: std::io::Error| Errno::from(e);
    for step in 0..steps {
        // Few names and little depth, so that operations meet.
        let pick = |random: &mut Random| {
            let parts: Vec<String> =
                (0..=random.below(3)).map(|_| char::from(b'a' + random.below(5) as u8).to_string()).collect();
            parts.join("/")
        };
        let (a, b) = (pick(&mut random), pick(&mut random));
        let (ra, rb) = (real.join(&a), real.join(&b));
        // The host would follow links in the middle of a path.
        if has_link_parent(real, &a) || has_link_parent(real, &b) {
            continue;
        }
        let op = random.below(16);
        let (mine, theirs, what): (Result<()>, Result<()>, String) = match op {
            0 | 1 => {
                let file = std::fs::OpenOptions::new().write(true).create_new(true).open(&ra);
                let file = file.and_then(|f| f.set_permissions(PermissionsExt::from_mode(0o640)));
                (fs.create(&a, 0o640), file.map_err(host_err), format!("create {a}"))
            }
            2 | 3 => {
                let made = std::fs::create_dir(&ra)
                    .and_then(|()| std::fs::set_permissions(&ra, PermissionsExt::from_mode(0o751)));
                (fs.mkdir(&a, 0o751), made.map_err(host_err), format!("mkdir {a}"))
            }
            4 => (
                fs.symlink(&b, &a),
                std::os::unix::fs::symlink(&b, &ra).map_err(host_err),
                format!("symlink {b} {a}"),
            ),
            5 => (fs.link(&a, &b), std::fs::hard_link(&ra, &rb).map_err(host_err), format!("link {a} {b}")),
            6 => (fs.unlink(&a), host_unlink(&ra, false), format!("unlink {a}")),
            7 => (fs.rmdir(&a), host_unlink(&ra, true), format!("rmdir {a}")),
            8 | 9 => {
                let flags = [0, 0, rename::NOREPLACE, rename::EXCHANGE][random.below(4) as usize];
                let kind = host::RenameFlags::from_bits_retain(flags);
                let done = host::renameat_with(host::CWD, &ra, host::CWD, &rb, kind);
                let done = done.map_err(|e| Errno::from_raw(e.raw_os_error()));
                (fs.rename(&a, &b, flags), done, format!("rename {a} {b} {flags}"))
            }
            10 | 11 => {
                let offset = random.below(200_000);
                let bytes = vec![random.below(255) as u8 + 1; random.below(9000) as usize + 1];
                let file = regular(&ra).and_then(|()| {
                    let file = std::fs::OpenOptions::new().write(true).open(&ra).map_err(host_err)?;
                    file.write_all_at(&bytes, offset).map_err(host_err)
                });
                (fs.write(&a, offset, &bytes).map(drop), file, format!("write {a} {offset}+{}", bytes.len()))
            }
            12 => {
                let size = random.below(200_000);
                let file = regular(&ra).and_then(|()| {
                    let file = std::fs::OpenOptions::new().write(true).open(&ra).map_err(host_err)?;
                    file.set_len(size).map_err(host_err)
                });
                let mine = fs.open(&a, open::RDWR, |_, _| Ok(()));
                let set = SetAttr { size: Some(size), ..SetAttr::default() };
                (mine.and_then(|()| fs.set(&a, set).map(drop)), file, format!("truncate {a} {size}"))
            }
            13 => {
                let (offset, len) = (random.below(150_000), random.below(60_000) + 1);
                let flags = [
                    0,
                    falloc::KEEP_SIZE,
                    falloc::PUNCH_HOLE | falloc::KEEP_SIZE,
                    falloc::PUNCH_HOLE | falloc::KEEP_SIZE,
                    falloc::ZERO_RANGE,
                ][random.below(5) as usize];
                let file = regular(&ra).and_then(|()| {
                    let file = std::fs::OpenOptions::new().write(true).open(&ra).map_err(host_err)?;
                    let flags = host::FallocateFlags::from_bits_retain(flags);
                    host::fallocate(&file, flags, offset, len).map_err(|e| Errno::from_raw(e.raw_os_error()))
                });
                if file == Err(Errno::EOPNOTSUPP) {
                    continue;
                }
                (fs.fallocate(&a, offset, len, flags), file, format!("fallocate {a} {offset}+{len} {flags}"))
            }
            14 => {
                // The host holds its owner's bits against anybody but root.
                let kept = if rustix::process::geteuid().is_root() { 0o400 } else { 0o700 };
                let mode = random.below(0o1000) as u32 | kept;
                let kind = fs.attr(&a).map(|attr| attr.file_type());
                if kind == Ok(FileType::Symlink) {
                    continue;
                }
                let done = std::fs::symlink_metadata(&ra)
                    .and_then(|_| std::fs::set_permissions(&ra, PermissionsExt::from_mode(mode)));
                let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
                (fs.set(&a, set).map(drop), done.map_err(host_err), format!("chmod {a} {mode:o}"))
            }
            _ => {
                let (offset, to) = (random.below(100_000), random.below(100_000));
                let len = random.below(50_000) + 1;
                let bytes = match regular(&ra).and_then(|()| std::fs::read(&ra).map_err(host_err)) {
                    Ok(bytes) => bytes,
                    Err(_) => continue,
                };
                if regular(&rb).is_err() || fs.attr(&a).map(|x| x.ino) == fs.attr(&b).map(|x| x.ino) {
                    continue;
                }
                let from = (offset as usize).min(bytes.len());
                let part = &bytes[from..(from + len as usize).min(bytes.len())];
                let file = std::fs::OpenOptions::new().write(true).open(&rb).expect("open");
                file.write_all_at(part, to).expect("write");
                let copied = fs.open(&a, open::RDONLY, |node, handle| {
                    fs.open(&b, open::RDWR, |to_node, to_handle| {
                        fs.0.copy_file_range(node, handle, offset, to_node, to_handle, to, len)
                    })
                });
                assert_eq!(copied, Ok(part.len() as u64), "copy {a} {b}");
                continue;
            }
        };
        assert_eq!(mine, theirs, "seed {seed} step {step}: {what}");
        if step % 64 == 0 {
            compare(&fs, &model, seed, step);
        }
    }
    compare(&fs, &model, seed, steps);
}

/// What `open` for writing says of what is no regular file, before the host would follow a link or wait for a reader.
#[cfg(target_os = "linux")]
fn regular(path: &std::path::Path) -> Result<()> {
    let kind = std::fs::symlink_metadata(path).map_err(Errno::from)?.file_type();
    match (kind.is_file(), kind.is_dir()) {
        (true, _) => Ok(()),
        (_, true) => Err(Errno::EISDIR),
        _ => Err(Errno::ELOOP),
    }
}

#[cfg(target_os = "linux")]
fn host_unlink(path: &std::path::Path, dir: bool) -> Result<()> {
    if dir { std::fs::remove_dir(path) } else { std::fs::remove_file(path) }.map_err(Errno::from)
}

#[cfg(target_os = "linux")]
fn has_link_parent(real: &std::path::Path, path: &str) -> bool {
    let mut at = real.to_path_buf();
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    parts.into_iter().any(|part| {
        at.push(part);
        std::fs::symlink_metadata(&at).is_ok_and(|m| m.is_symlink())
    })
}

fn compare(mine: &Paths<'_>, theirs: &Paths<'_>, seed: u64, step: usize) {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    mine.dump("", &mut a);
    theirs.dump("", &mut b);
    // The roots were made by different hands.
    a.remove(0);
    b.remove(0);
    for (mine, theirs) in a.iter().zip(&b) {
        assert_eq!(mine, theirs, "seed {seed} step {step}");
    }
    assert_eq!(a.len(), b.len(), "seed {seed} step {step}");
}
