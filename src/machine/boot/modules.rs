//! Kernel modules: where a kernel's modules lie, what each needs, and the order to load them in.
//!
//! Dependencies are read from each module's own `.modinfo`, since packages come without a
//! `modules.dep` (it is made at installation). A needed module without a file is taken to be built in
//! only if the kernel's `modules.builtin` says so, or if there is no such list at all.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::BootError;
use super::image::{Format, decompress_capped, field};

/// No module is larger, in bytes.
const MAX_MODULE: u64 = 64 << 20;
/// Directories are not followed deeper than this.
const MAX_DEPTH: usize = 16;

/// A module, unpacked.
#[derive(Debug, Clone)]
pub struct Module {
    /// Name with underscores, as `/proc/modules` shows it.
    pub name: String,
    /// Path below `/lib/modules/<release>/`, ending in `.ko`.
    pub path: String,
    /// The ELF object.
    pub bytes: Vec<u8>,
}

#[derive(Debug)]
enum Place {
    File(PathBuf),
    /// Offset and length in the archive.
    Archive(u64, u64),
}

/// All modules of one kernel: an index; the files are read when asked for.
#[derive(Debug)]
pub struct ModuleStore {
    release: String,
    archive: Option<File>,
    /// Normalised name to (path below the modules' root, place).
    index: BTreeMap<String, (String, Place)>,
    builtin: Option<HashSet<String>>,
}

impl ModuleStore {
    /// A kernel that has no modules: everything is taken to be built in.
    pub fn empty(release: impl Into<String>) -> Self {
        Self { release: release.into(), archive: None, index: BTreeMap::new(), builtin: None }
    }

    /// The modules below `root`, which is what is `/lib/modules/<release>` when installed.
    pub fn from_dir(root: &Path, release: impl Into<String>) -> Result<Self, BootError> {
        let mut store = Self::empty(release);
        let list = root.join("modules.builtin");
        match std::fs::read_to_string(&list) {
            Ok(text) => store.builtin = Some(parse_builtin(&text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(BootError::Read { path: list, source }),
        }
        store.scan(root, "", 0)?;
        Ok(store)
    }

    fn scan(&mut self, dir: &Path, below: &str, depth: usize) -> Result<(), BootError> {
        let failed = |source| BootError::Read { path: dir.to_owned(), source };
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = format!("{below}{name}");
            // `build` and `source` are links to trees of headers, so links are not followed.
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() && depth < MAX_DEPTH {
                self.scan(&entry.path(), &format!("{path}/"), depth + 1)?;
            } else if let Some((module, stem)) = module_name(&path) {
                self.index.insert(module, (stem, Place::File(entry.path())));
            }
        }
        Ok(())
    }

    /// The modules in an uncompressed tar archive, made by [`Packer`].
    pub(crate) fn from_archive(mut file: File, release: impl Into<String>) -> Result<Self, std::io::Error> {
        let mut store = Self::empty(release);
        file.seek(SeekFrom::Start(0))?;
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek()? {
            let mut entry = entry?;
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if path == "modules.builtin" {
                let mut text = String::new();
                entry.by_ref().take(4 << 20).read_to_string(&mut text)?;
                store.builtin = Some(parse_builtin(&text));
            } else if let Some((module, path)) = module_name(&path) {
                let place = Place::Archive(entry.raw_file_position(), entry.size());
                store.index.insert(module, (path, place));
            }
        }
        store.archive = Some(file);
        Ok(store)
    }

    /// The kernel's release name, the name of the directory below `/lib/modules`.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Number of modules that have a file.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether no module has a file.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Whether `name` has a file here.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(&normalise(name))
    }

    /// Loads the modules `wanted` and all that they need, in an order in which they can be inserted.
    /// Built-in ones are left out. `-` and `_` in names are the same.
    pub fn resolve(&self, wanted: &[&str]) -> Result<Vec<Module>, BootError> {
        let mut order = Order { store: self, done: HashSet::new(), pending: Vec::new(), out: Vec::new() };
        for name in wanted {
            order.visit(&normalise(name), true)?;
        }
        Ok(order.out)
    }

    fn read(&self, name: &str) -> Result<Option<Module>, BootError> {
        let Some((path, place)) = self.index.get(name) else { return Ok(None) };
        let (raw, from) = match place {
            Place::File(file) => {
                let read = || File::open(file).and_then(|f| read_capped(f, MAX_MODULE));
                let raw = read().map_err(|source| BootError::Read { path: file.clone(), source })?;
                (raw, file.clone())
            }
            Place::Archive(offset, len) => {
                let read = || {
                    // A handle of its own would share the offset all the same, so no seeking.
                    use std::os::unix::fs::FileExt;
                    let file = self.archive.as_ref().ok_or(std::io::ErrorKind::NotFound)?;
                    let len = usize::try_from((*len).min(MAX_MODULE)).unwrap_or(0);
                    let mut raw = vec![0; len];
                    file.read_exact_at(&mut raw, *offset)?;
                    Ok(raw)
                };
                (read().map_err(|source| BootError::Read { path: path.into(), source })?, path.into())
            }
        };
        let bytes = unpack(raw).map_err(|e| e.in_file(from))?;
        Ok(Some(Module { name: name.to_owned(), path: path.clone(), bytes }))
    }
}

struct Order<'a> {
    store: &'a ModuleStore,
    done: HashSet<String>,
    pending: Vec<String>,
    out: Vec<Module>,
}

impl Order<'_> {
    fn visit(&mut self, name: &str, required: bool) -> Result<(), BootError> {
        if self.done.contains(name) {
            return Ok(());
        }
        if self.pending.iter().any(|p| p == name) {
            let reason = "it needs itself through others";
            return Err(BootError::BadModule { module: name.to_owned(), reason });
        }
        let Some(module) = self.store.read(name)? else {
            if required && self.store.builtin.as_ref().is_some_and(|list| !list.contains(name)) {
                let kernel = self.store.release.clone();
                return Err(BootError::NoModule { kernel, module: name.to_owned() });
            }
            self.done.insert(name.to_owned());
            return Ok(());
        };
        let info = modinfo(&module.bytes)
            .map_err(|reason| BootError::BadModule { module: name.to_owned(), reason })?;
        self.pending.push(name.to_owned());
        for need in info.depends {
            self.visit(&need, true)?;
        }
        for wish in info.soft_before {
            // A wish that leads back to its own module is not worth an error.
            if !self.pending.contains(&wish) {
                self.visit(&wish, false)?;
            }
        }
        self.pending.pop();
        self.done.insert(name.to_owned());
        self.out.push(module);
        Ok(())
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct ModInfo {
    depends: Vec<String>,
    /// What `softdep` asks to have before.
    soft_before: Vec<String>,
}

/// What a module says it needs.
fn modinfo(elf: &[u8]) -> Result<ModInfo, &'static str> {
    const CUT: &str = "truncated";
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return Err("not a 64-bit ELF file");
    }
    if field(elf, 18, 2) != Some(62) {
        return Err("not for x86-64");
    }
    let at = |at: u64, n| usize::try_from(at).ok().and_then(|at| field(elf, at, n)).ok_or(CUT);
    let (table, size, count, names) = (at(40, 8)?, at(58, 2)?, at(60, 2)?, at(62, 2)?);
    let section = |index: u64| -> Result<(u64, u64, u64), &'static str> {
        let header = table.checked_add(index * size).ok_or(CUT)?;
        let get = |offset: u64, n| at(header.checked_add(offset).ok_or(CUT)?, n);
        Ok((get(0, 4)?, get(24, 8)?, get(32, 8)?))
    };
    let (_, names_at, _) = section(names)?;
    for index in 0..count {
        let (name, offset, len) = section(index)?;
        let name_at = names_at.checked_add(name).and_then(|n| usize::try_from(n).ok()).ok_or(CUT)?;
        if !elf.get(name_at..).is_some_and(|n| n.starts_with(b".modinfo\0")) {
            continue;
        }
        let end = offset.checked_add(len).and_then(|n| usize::try_from(n).ok()).ok_or(CUT)?;
        let strings = elf.get(offset as usize..end).ok_or(CUT)?;
        let mut info = ModInfo::default();
        for entry in strings.split(|&b| b == 0).filter_map(|s| std::str::from_utf8(s).ok()) {
            if let Some(list) = entry.strip_prefix("depends=") {
                info.depends.extend(list.split(',').filter(|s| !s.is_empty()).map(normalise));
            } else if let Some(list) = entry.strip_prefix("softdep=") {
                let before = list.split("post:").next().unwrap_or_default().trim_start();
                let before = before.strip_prefix("pre:").unwrap_or_default();
                info.soft_before.extend(before.split_whitespace().map(normalise));
            }
        }
        return Ok(info);
    }
    Err("no .modinfo section")
}

fn unpack(raw: Vec<u8>) -> Result<Vec<u8>, BootError> {
    match Format::of(&raw) {
        Some(format) => decompress_capped(format, &raw, MAX_MODULE),
        None => Ok(raw),
    }
}

fn read_capped(from: impl Read, cap: u64) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    from.take(cap + 1).read_to_end(&mut out)?;
    if out.len() as u64 > cap {
        return Err(std::io::Error::other("too large for a module"));
    }
    Ok(out)
}

/// The module's normalised name and its path with `.ko` as the last extension, if `path` is one's.
fn module_name(path: &str) -> Option<(String, String)> {
    let path = path.trim_start_matches("./");
    let stem =
        ["", ".xz", ".gz", ".zst"].iter().find_map(|ext| path.strip_suffix(ext)?.strip_suffix(".ko"))?;
    let file = stem.rsplit('/').next().filter(|f| !f.is_empty())?;
    if stem.split('/').any(|part| part.is_empty() || part == ".." || part == ".") {
        return None;
    }
    Some((normalise(file), format!("{stem}.ko")))
}

fn normalise(name: &str) -> String {
    name.replace('-', "_")
}

fn parse_builtin(text: &str) -> HashSet<String> {
    text.lines().filter_map(|line| module_name(line.trim())).map(|(name, _)| name).collect()
}

/// Subtrees that drive hardware no virtual machine of ours has. They are most of a kernel package.
const LEFT_OUT: [&str; 14] = [
    "kernel/drivers/infiniband/",
    "kernel/drivers/net/ethernet/",
    "kernel/drivers/net/wireless/",
    "kernel/drivers/net/usb/",
    "kernel/drivers/scsi/",
    "kernel/drivers/media/",
    "kernel/drivers/usb/",
    "kernel/drivers/gpu/drm/amd/",
    "kernel/drivers/gpu/drm/i915/",
    "kernel/drivers/gpu/drm/nouveau/",
    "kernel/drivers/gpu/drm/radeon/",
    "kernel/drivers/gpu/drm/xe/",
    "kernel/drivers/staging/",
    "kernel/sound/",
];

/// Collects the modules of a package, unpacked, into one archive for [`ModuleStore::from_archive`].
/// One file, because publishing a thousand durably is slow.
pub(crate) struct Packer<W: std::io::Write> {
    tar: tar::Builder<W>,
}

impl<W: std::io::Write> Packer<W> {
    pub(crate) fn new(to: W) -> Self {
        Self { tar: tar::Builder::new(to) }
    }

    /// Adds the file at `path` (below the modules' root) if it is a module worth keeping or the list
    /// of built-in ones. `size` is its packed size in bytes.
    pub(crate) fn add(&mut self, path: &str, size: u64, from: impl Read) -> Result<(), BootError> {
        if size > MAX_MODULE {
            return Err(BootError::Unpackable { reason: "a module larger than any is" });
        }
        let failed = |source| BootError::Cache { action: "write", path: "modules.tar".into(), source };
        let path = if path == "modules.builtin" {
            path.to_owned()
        } else {
            match module_name(path) {
                Some((_, path)) if !LEFT_OUT.iter().any(|tree| path.starts_with(tree)) => path,
                _ => return Ok(()),
            }
        };
        let raw = read_capped(from, MAX_MODULE)
            .map_err(|source| BootError::Unpack { format: "package", source })?;
        let bytes = unpack(raw).map_err(|e| e.in_file(&path))?;
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        self.tar.append_data(&mut header, path, bytes.as_slice()).map_err(failed)
    }

    /// Ends the archive.
    pub(crate) fn finish(self) -> std::io::Result<W> {
        self.tar.into_inner()
    }
}

#[cfg(test)]
#[path = "modules_tests.rs"]
mod tests;
