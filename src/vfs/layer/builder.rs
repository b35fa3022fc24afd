//! From tar entries to the tree of one layer, and from the tree to its index.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::Read;

use super::index::{self, Extent, Inode};
use super::input::{Input, Seekable, Stream};
use super::tar::{Kind, Parser, TarEntry};
use super::writer::Writer;
use super::{Index, TarError, TarLimits, TarProblem};
use crate::vfs::{NAME_MAX, Time, mode};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const BOOKKEEPING: &[u8] = b".wh..wh.";
const MAX_LINKS: u32 = 40;
/// Bytes of link targets that a layer may make us walk through, at least: else its paths could cost more than their
/// length allows for.
const MAX_STEPS: u64 = 1 << 20;
const ROOT: usize = 0;

impl Index {
    /// Reads a tar from a stream to its end and indexes it.
    ///
    /// # Errors
    /// [`TarError`] for what is no proper layer.
    pub fn build(tar: impl Read, limits: TarLimits) -> Result<Index, TarError> {
        build(Stream(tar), limits)
    }

    /// The same for a file, whose data is jumped over.
    ///
    /// # Errors
    /// As [`Index::build`].
    pub fn build_from_file(tar: &File, limits: TarLimits) -> Result<Index, TarError> {
        let input =
            Seekable::new(tar).map_err(|e| TarError { offset: 0, path: String::new(), problem: e.into() })?;
        build(input, limits)
    }
}

fn build(input: impl Input, limits: TarLimits) -> Result<Index, TarError> {
    let mut parser = Parser::new(input, limits);
    let mut tree = Tree::new(limits);
    while let Some(entry) = parser.next()? {
        let offset = entry.offset;
        let path = entry.path.clone();
        tree.add(entry).map_err(|problem| TarError {
            offset,
            path: String::from_utf8_lossy(&path).into_owned(),
            problem,
        })?;
    }
    let len = parser.finish()?;
    tree.write(len).ok_or(TarError { offset: len, path: String::new(), problem: TarProblem::TooLarge })
}

struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Time,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Default)]
struct Dir {
    children: BTreeMap<Box<[u8]>, usize>,
    whiteouts: BTreeSet<Box<[u8]>>,
    opaque: bool,
    implicit: bool,
}

enum Body {
    Dir(Dir),
    File { size: u64, data: u64, extents: Option<Vec<Extent>> },
    Symlink(Vec<u8>),
    LowerLink(Vec<u8>),
    Special { rdev: u32 },
}

struct Node {
    meta: Meta,
    body: Body,
}

struct Tree {
    nodes: Vec<Node>,
    limits: TarLimits,
    metadata: u64,
    /// Components of link targets walked through so far.
    steps: u64,
}

impl Tree {
    fn new(limits: TarLimits) -> Self {
        Tree { nodes: vec![implicit_dir()], limits, metadata: 0, steps: 0 }
    }

    fn charge(&mut self, bytes: usize) -> Result<(), TarProblem> {
        self.metadata += bytes as u64;
        if self.metadata > self.limits.metadata { Err(TarProblem::TooLarge) } else { Ok(()) }
    }

    fn push(&mut self, node: Node) -> Result<usize, TarProblem> {
        if self.nodes.len() >= self.limits.entries as usize {
            return Err(TarProblem::TooLarge);
        }
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    fn dir(&self, node: usize) -> Option<&Dir> {
        match self.nodes.get(node).map(|n| &n.body) {
            Some(Body::Dir(dir)) => Some(dir),
            _ => None,
        }
    }

    fn dir_mut(&mut self, node: usize) -> Result<&mut Dir, TarProblem> {
        match self.nodes.get_mut(node).map(|n| &mut n.body) {
            Some(Body::Dir(dir)) => Ok(dir),
            _ => Err(TarProblem::NotDirectory),
        }
    }

    /// Checks a path and cuts it into components, without `.` and empty ones.
    fn components<'a>(&self, path: &'a [u8]) -> Result<Vec<&'a [u8]>, TarProblem> {
        let mut parts = Vec::new();
        if path.is_empty() || path.contains(&0) {
            return Err(TarProblem::BadPath);
        }
        if path.len() > self.limits.path {
            return Err(TarProblem::PathTooLong);
        }
        for part in path.split(|&b| b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(TarProblem::ParentDir),
                part if part.len() > NAME_MAX => return Err(TarProblem::NameTooLong),
                part => parts.push(part),
            }
        }
        if parts.len() > self.limits.depth { Err(TarProblem::PathTooLong) } else { Ok(parts) }
    }

    /// The directory a path leads to, through symbolic links of this layer and never above the root. Missing
    /// directories are made when `create`, else the answer is `None`.
    fn walk(&mut self, parts: &[&[u8]], create: bool) -> Result<Option<usize>, TarProblem> {
        let mut todo: VecDeque<Box<[u8]>> = parts.iter().map(|&p| p.into()).collect();
        let mut stack = vec![ROOT];
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            let here = stack.last().copied().unwrap_or(ROOT);
            if &*part == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let child = self.dir(here).and_then(|dir| dir.children.get(&part).copied());
            match child.and_then(|c| self.nodes.get(c).map(|n| (c, &n.body))) {
                Some((child, Body::Dir(_))) => stack.push(child),
                Some((_, Body::Symlink(target))) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(TarProblem::LinkLoop);
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    self.steps += target.len() as u64;
                    if self.steps > MAX_STEPS.max(16 * u64::from(self.limits.entries)) {
                        return Err(TarProblem::LinkLoop);
                    }
                    for part in target.split(|&b| b == b'/').rev() {
                        match part {
                            b"" | b"." => {}
                            part if part.len() > NAME_MAX => return Err(TarProblem::NameTooLong),
                            part => todo.push_front(part.into()),
                        }
                    }
                }
                Some(_) => return Err(TarProblem::NotDirectory),
                None if create => {
                    self.charge(part.len())?;
                    let child = self.push(implicit_dir())?;
                    self.dir_mut(here)?.children.insert(part, child);
                    stack.push(child);
                }
                None => return Ok(None),
            }
            if stack.len() > self.limits.depth {
                return Err(TarProblem::PathTooLong);
            }
        }
        Ok(stack.last().copied())
    }

    fn add(&mut self, entry: TarEntry) -> Result<(), TarProblem> {
        let parts = self.components(&entry.path)?;
        let Some((&name, parents)) = parts.split_last() else {
            // The root itself.
            return match entry.kind {
                Kind::Dir => {
                    self.charge(entry.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum())?;
                    self.nodes[ROOT].meta = meta(&entry, mode::DIR);
                    self.dir_mut(ROOT)?.implicit = false;
                    Ok(())
                }
                _ => Err(TarProblem::BadPath),
            };
        };
        let extents = match &entry.kind {
            Kind::File { extents: Some(e), .. } => e.len() * 24,
            Kind::Symlink(target) | Kind::HardLink(target) => target.len(),
            _ => 0,
        };
        self.charge(
            name.len() + extents + entry.xattrs.iter().map(|(n, v)| n.len() + v.len() + 6).sum::<usize>(),
        )?;
        // Names with two prefixes, the opaque marker aside, are the bookkeeping of an old storage driver.
        if name != OPAQUE && parts.iter().any(|part| part.starts_with(BOOKKEEPING)) {
            return Ok(());
        }
        if parents.iter().any(|part| part.starts_with(WHITEOUT)) {
            return Err(TarProblem::Whiteout);
        }
        let parent = self.walk(parents, true)?.ok_or(TarProblem::NotDirectory)?;
        if name == OPAQUE {
            self.dir_mut(parent)?.opaque = true;
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(TarProblem::Whiteout);
            }
            self.dir_mut(parent)?.whiteouts.insert(hidden.into());
            return Ok(());
        }
        let there = self.dir(parent).and_then(|dir| dir.children.get(name).copied());
        let kind_mode = match &entry.kind {
            Kind::Dir => mode::DIR,
            Kind::File { .. } | Kind::HardLink(_) => mode::FILE,
            Kind::Symlink(_) => mode::SYMLINK,
            Kind::Special { kind, .. } => kind.mode(),
        };
        let meta = meta(&entry, kind_mode);
        let node = match entry.kind {
            Kind::Dir => {
                if let Some(old) = there.filter(|&n| self.dir(n).is_some()) {
                    self.nodes[old].meta = meta;
                    self.dir_mut(old)?.implicit = false;
                    return Ok(());
                }
                self.push(Node { meta, body: Body::Dir(Dir::default()) })?
            }
            Kind::HardLink(target) => {
                let parts = self.components(&target).map_err(|problem| match problem {
                    TarProblem::BadPath => TarProblem::HardLink,
                    other => other,
                })?;
                let (&last, dirs) = parts.split_last().ok_or(TarProblem::HardLink)?;
                let dir = self.walk(dirs, false)?;
                let found = dir.and_then(|d| self.dir(d)).and_then(|d| d.children.get(last).copied());
                match found {
                    Some(node) if self.dir(node).is_some() => return Err(TarProblem::HardLink),
                    Some(node) => node,
                    None => {
                        let path = parts.join(&b'/');
                        self.push(Node { meta, body: Body::LowerLink(path) })?
                    }
                }
            }
            Kind::File { size, data, extents } => {
                self.push(Node { meta, body: Body::File { size, data, extents } })?
            }
            Kind::Symlink(target) => self.push(Node { meta, body: Body::Symlink(target) })?,
            Kind::Special { rdev, .. } => self.push(Node { meta, body: Body::Special { rdev } })?,
        };
        self.dir_mut(parent)?.children.insert(name.into(), node);
        Ok(())
    }

    /// `None` when the index would be beyond its format's bounds.
    fn write(self, tar_len: u64) -> Option<Index> {
        let mut out = Writer::default();
        let mut ids: Vec<Option<u32>> = vec![None; self.nodes.len()];
        let mut links = vec![0u32; self.nodes.len()];
        // In the order of their ids.
        let mut order = vec![ROOT];
        ids[ROOT] = Some(0);
        let mut ranges: BTreeMap<usize, (u32, u32, u32, u32)> = BTreeMap::new();
        let mut queue = VecDeque::from([(ROOT, Vec::new(), false)]);
        let mut written = 0u32;
        let mut paths = Vec::new();
        while let Some((node, path, anew)) = queue.pop_front() {
            let dir = self.dir(node)?;
            // One that is made anew has nothing of what was there before, nor is it where a link there led.
            let implicit = dir.implicit && !anew;
            if implicit && node != ROOT {
                paths.push((node, path.clone()));
            }
            let first = written;
            let mut subdirs = 0;
            let mut names: Vec<(&[u8], Option<usize>)> =
                dir.children.iter().map(|(name, &child)| (&**name, Some(child))).collect();
            names.extend(
                dir.whiteouts.iter().filter(|w| !dir.children.contains_key(*w)).map(|w| (&**w, None)),
            );
            names.sort_unstable_by_key(|&(name, _)| name);
            for (name, child) in names {
                let id = match child {
                    None => None,
                    Some(child) => {
                        if ids[child].is_none() {
                            ids[child] = Some(u32::try_from(order.len()).ok()?);
                            order.push(child);
                        }
                        links[child] += 1;
                        match &self.nodes[child].body {
                            Body::Dir(_) => {
                                subdirs += 1;
                                let mut path = path.clone();
                                if !path.is_empty() {
                                    path.push(b'/');
                                }
                                path.extend_from_slice(name);
                                // A whiteout and a directory of one name: nothing below shows through.
                                queue.push_back((child, path, dir.whiteouts.contains(name)));
                            }
                            Body::LowerLink(target) if links[child] == 1 => {
                                paths.push((child, target.clone()))
                            }
                            _ => {}
                        }
                        ids[child]
                    }
                };
                out.name(name, id)?;
                written = written.checked_add(1)?;
            }
            let opaque = if dir.opaque || anew { index::OPAQUE } else { 0 };
            let implicit = if implicit { index::IMPLICIT } else { 0 };
            ranges.insert(node, (first, written - first, subdirs, opaque | implicit));
        }
        for &node in &order {
            let Node { meta, body } = &self.nodes[node];
            let xattrs = out.xattrs(meta.xattrs.iter().map(|(n, v)| (&n[..], &v[..])))?;
            let mut record = Inode {
                mode: meta.mode,
                uid: meta.uid,
                gid: meta.gid,
                nlink: links[node],
                rdev: 0,
                flags: 0,
                mtime: meta.mtime,
                xattrs,
                size: 0,
                data: 0,
                extra: 0,
                extents: 0,
            };
            match body {
                Body::Dir(_) => {
                    let &(first, count, subdirs, flags) = ranges.get(&node)?;
                    record.nlink = subdirs + 2;
                    record.data = u64::from(first) | u64::from(count) << 32;
                    record.extra = subdirs;
                    record.flags = flags;
                }
                Body::File { size, data, extents } => {
                    record.size = *size;
                    record.data = *data;
                    if let Some(extents) = extents {
                        record.flags = index::SPARSE;
                        record.extra = out.extents(extents)?;
                        record.extents = u32::try_from(extents.len()).ok()?;
                    }
                }
                Body::Symlink(target) | Body::LowerLink(target) => {
                    record.data = out.blob(target)?.into();
                    record.size = target.len() as u64;
                    record.flags = if matches!(body, Body::LowerLink(_)) { index::LOWER_LINK } else { 0 };
                }
                Body::Special { rdev } => record.rdev = *rdev,
            }
            out.inode(&record);
        }
        for (node, path) in paths {
            out.path(ids[node]?, &path)?;
        }
        out.finish(tar_len).ok()
    }
}

fn meta(entry: &TarEntry, kind: u32) -> Meta {
    Meta {
        mode: entry.mode | kind,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        xattrs: entry.xattrs.clone(),
    }
}

fn implicit_dir() -> Node {
    let meta = Meta { mode: mode::DIR | 0o755, uid: 0, gid: 0, mtime: Time::default(), xattrs: Vec::new() };
    Node { meta, body: Body::Dir(Dir { implicit: true, ..Dir::default() }) }
}
