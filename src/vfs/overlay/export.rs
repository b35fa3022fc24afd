//! The upper as an image layer: a tar of what has changed, with OCI's whiteouts and opaque directories.
//!
//! Entries come sorted by name, a directory before what is in it, so equal changes give equal tars. Of a directory
//! that is where it was below, only what changed is written; what was made or moved is written whole.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

use super::Overlay;
use super::below::{Below, Found};
use super::node::{Body, Change, Dir, Node};
use super::source::make_node;
use super::tar_writer::{TarWriter, Times};
use super::tree::Tree;
use crate::vfs::{Errno, FileType, NodeId};

const WHITEOUT: &[u8] = b".wh.";
/// What a reader of layers takes by default; deeper or longer paths could not be read back.
const MAX_PATH: usize = 4096;
const MAX_DEPTH: usize = 256;

impl Overlay {
    /// Writes the changes of the upper as an uncompressed layer: put on the same layers, it gives the same tree.
    ///
    /// `leave_out` is asked for each path that would be written, without a leading `/`; with `true`, neither it nor
    /// anything below it is. Sockets are left out always, as are extended attributes with a `=` in their names: a
    /// tar cannot hold them. Changes to the file system wait until this has returned.
    ///
    /// # Errors
    /// `out`'s; `InvalidData` for a name that begins with `.wh.` or a path beyond 4096 bytes or 256 components, which
    /// no layer can hold; the host's, from reading data. What was written until then is no whole tar.
    pub fn write_layer(&self, out: impl Write, leave_out: &dyn Fn(&[u8]) -> bool) -> io::Result<()> {
        self.write(out, leave_out, Times::Kept)
    }

    /// As [`Overlay::write_layer`], with the epoch for all times: equal changes give equal bytes, whenever they were
    /// made. Times also of what lies below, where its directories are written.
    ///
    /// # Errors
    /// As there.
    pub fn write_layer_without_times(
        &self,
        out: impl Write,
        leave_out: &dyn Fn(&[u8]) -> bool,
    ) -> io::Result<()> {
        self.write(out, leave_out, Times::LeftOut)
    }

    fn write(&self, out: impl Write, leave_out: &dyn Fn(&[u8]) -> bool, times: Times) -> io::Result<()> {
        let tree = self.shared();
        let changed =
            tree.nodes().filter(|(_, node)| node.dirty).map(|(ino, node)| node.shown(ino)).collect();
        let mut export = Export {
            tree: &tree,
            below: &self.below,
            out: TarWriter::new(out, &self.below, &self.store, times),
            leave_out,
            changed,
            written: HashMap::new(),
            parents: Vec::new(),
        };
        let root = tree.get(NodeId::ROOT.0).map_err(failed)?;
        if tree.root_changed() {
            export.out.entry(b"./", root)?;
        }
        export.changes(&mut Vec::new(), root, 0)?;
        export.out.finish()
    }
}

fn failed(e: Errno) -> io::Error {
    io::Error::other(e)
}

struct Export<'a, W> {
    tree: &'a Tree,
    below: &'a Below,
    out: TarWriter<'a, W>,
    leave_out: &'a dyn Fn(&[u8]) -> bool,
    /// Inode numbers, as shown, of what differs from below.
    changed: HashSet<u64>,
    /// Files with several names that are written, by node number.
    written: HashMap<u64, Vec<u8>>,
    /// Unchanged directories on the way here that are not written yet.
    parents: Vec<(Vec<u8>, Found)>,
}

/// What a name of a directory stands for in the tar.
enum Item {
    Whiteout,
    /// A node of the upper under this name.
    Upper(u64),
    /// What is under this name below.
    Lower,
}

impl<W: Write> Export<'_, W> {
    /// Writes what has changed in a directory that is where it was.
    fn changes(&mut self, path: &mut Vec<u8>, node: &Node, depth: usize) -> io::Result<()> {
        let Body::Dir(dir) = &node.body else { return Ok(()) };
        let visited = |_: &[u8], ino, kind| kind == FileType::Dir || self.changed.contains(&ino);
        for (name, item) in items(self.below, dir, visited)? {
            let len = path.len();
            self.enter(path, &name, depth)?;
            if !(self.leave_out)(path) {
                match item {
                    Item::Whiteout => {
                        check_name(path, &name)?;
                        self.write_parents()?;
                        path.truncate(path.len() - name.len());
                        path.extend_from_slice(WHITEOUT);
                        path.extend_from_slice(&name);
                        self.out.marker(path)?;
                    }
                    Item::Upper(ino) => {
                        self.write_parents()?;
                        let node = self.tree.get(ino).map_err(failed)?;
                        let hides = matches!(
                            self.below.child(&dir.lower, &name).map_err(failed)?,
                            Some(Found { kind: FileType::Dir, .. })
                        );
                        self.whole(path, ino, node, hides, depth + 1)?;
                    }
                    Item::Lower => self.lower_change(path, dir, &name, depth)?,
                }
            }
            path.truncate(len);
        }
        Ok(())
    }

    /// What may have changed under a name that means what it meant below.
    fn lower_change(&mut self, path: &mut Vec<u8>, dir: &Dir, name: &[u8], depth: usize) -> io::Result<()> {
        let Some(found) = self.below.child(&dir.lower, name).map_err(failed)? else { return Ok(()) };
        let known = self.tree.get(found.ino).ok().filter(|node| node.dirty);
        if found.kind != FileType::Dir {
            return match known {
                Some(node) => {
                    self.write_parents()?;
                    self.whole(path, found.ino, node, false, depth + 1)
                }
                None => Ok(()),
            };
        }
        match known {
            Some(node) => {
                self.write_parents()?;
                self.out.entry(&slashed(path), node)?;
                self.changes(path, node, depth + 1)
            }
            None => {
                let node = make_node(self.below, 0, &found).map_err(failed)?;
                let waiting = self.parents.len();
                self.parents.push((slashed(path), found));
                self.changes(path, &node, depth + 1)?;
                self.parents.truncate(waiting);
                Ok(())
            }
        }
    }

    /// Writes a node and all that is in it. `opaque`: nothing from below may show through.
    fn whole(
        &mut self,
        path: &mut Vec<u8>,
        ino: u64,
        node: &Node,
        opaque: bool,
        depth: usize,
    ) -> io::Result<()> {
        check_name(path, path.rsplit(|&b| b == b'/').next().unwrap_or_default())?;
        let Body::Dir(dir) = &node.body else {
            if node.kind() == FileType::Socket {
                return Ok(());
            }
            if let Some(first) = self.written.get(&ino) {
                return self.out.hard_link(path, first, node);
            }
            self.out.entry(path, node)?;
            if node.nlink > 1 {
                self.written.insert(ino, path.clone());
            }
            return Ok(());
        };
        self.out.entry(&slashed(path), node)?;
        if opaque {
            self.out.marker(&[path, &b"/.wh..wh..opq"[..]].concat())?;
        }
        for (name, item) in items(self.below, dir, |_, _, _| true)? {
            let len = path.len();
            self.enter(path, &name, depth)?;
            if !(self.leave_out)(path) {
                match item {
                    // Below a directory that is written whole, there is nothing to hide.
                    Item::Whiteout => {}
                    Item::Upper(ino) => {
                        self.whole(path, ino, self.tree.get(ino).map_err(failed)?, false, depth + 1)?;
                    }
                    Item::Lower => {
                        if let Some(found) = self.below.child(&dir.lower, &name).map_err(failed)? {
                            match self.tree.get(found.ino) {
                                Ok(node) => self.whole(path, found.ino, node, false, depth + 1)?,
                                Err(_) => {
                                    let node = make_node(self.below, 0, &found).map_err(failed)?;
                                    self.whole(path, found.ino, &node, false, depth + 1)?;
                                }
                            }
                        }
                    }
                }
            }
            path.truncate(len);
        }
        Ok(())
    }

    fn enter(&self, path: &mut Vec<u8>, name: &[u8], depth: usize) -> io::Result<()> {
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        if path.len() + WHITEOUT.len() >= MAX_PATH || depth + 1 >= MAX_DEPTH {
            let why = format!("{}: the path is too long or too deep for a layer", path.escape_ascii());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(())
    }

    /// Directories above what is written come before it, so that the layer does not depend on who unpacks it.
    fn write_parents(&mut self) -> io::Result<()> {
        for (path, found) in std::mem::take(&mut self.parents) {
            self.out.entry(&path, &make_node(self.below, 0, &found).map_err(failed)?)?;
        }
        Ok(())
    }
}

fn check_name(path: &[u8], name: &[u8]) -> io::Result<()> {
    if !name.starts_with(WHITEOUT) {
        return Ok(());
    }
    let path = path.escape_ascii();
    let why = format!("{path}: a layer cannot hold names that begin with .wh., they mean removed files");
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}

fn slashed(path: &[u8]) -> Vec<u8> {
    [path, b"/"].concat()
}

/// The names of a directory that are to be looked at, sorted: all changed ones, and of those below the ones that
/// `visited` wants.
fn items(
    below: &Below,
    dir: &Dir,
    visited: impl Fn(&[u8], u64, FileType) -> bool,
) -> io::Result<Vec<(Box<[u8]>, Item)>> {
    let mut items: Vec<(Box<[u8]>, Item)> = Vec::new();
    for (name, change) in dir.changes() {
        let item = match change {
            Change::Whiteout => Item::Whiteout,
            Change::Node { ino, .. } => Item::Upper(ino),
        };
        items.push((name.into(), item));
    }
    below
        .list(&dir.lower, 0, &mut |_, name, ino, kind| {
            if dir.get(name).is_none() && visited(name, ino, kind) {
                items.push((name.into(), Item::Lower));
            }
            true
        })
        .map_err(failed)?;
    items.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    Ok(items)
}
