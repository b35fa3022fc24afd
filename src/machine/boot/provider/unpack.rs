//! Takes what is needed out of packages. Archive paths only choose what an entry *is*; they never
//! become paths on the host.

use std::fs::File;
use std::io::{BufWriter, Read};

use super::super::BootError;
use super::super::image::{self, field};
use super::super::modules::Packer;
use super::cache::Draft;
use super::{MAX_BUSYBOX, OnProgress, Phase, Progress};

/// A packed kernel in a package is not larger, in bytes.
const MAX_PACKED_KERNEL: u64 = 256 << 20;

/// Puts a kernel's parts, maybe from several packages, into a draft.
pub(super) struct KernelUnpacker<'a> {
    draft: &'a mut Draft,
    modules: Packer<BufWriter<File>>,
    release: Option<String>,
    has_kernel: bool,
}

impl<'a> KernelUnpacker<'a> {
    pub(super) fn new(draft: &'a mut Draft) -> Result<Self, BootError> {
        let modules = Packer::new(BufWriter::new(draft.create("modules.tar")?));
        Ok(Self { draft, modules, release: None, has_kernel: false })
    }

    /// Takes kernel and modules out of a package's tar stream.
    pub(super) fn take(&mut self, package: &str, tar: impl Read) -> Result<(), BootError> {
        each_file(package, tar, |path, size, mut content| {
            let path = path.strip_prefix("usr/").unwrap_or(path);
            if let Some(rest) = path.strip_prefix("lib/modules/") {
                let Some((release, below)) = rest.split_once('/') else { return Ok(true) };
                if !self.has_kernel {
                    self.release.get_or_insert_with(|| release.to_owned());
                }
                if below != "vmlinuz" {
                    self.modules.add(below, size, content)?;
                    return Ok(true);
                }
            } else if !path.strip_prefix("boot/").is_some_and(|name| name.starts_with("vmlinuz")) {
                return Ok(true);
            }
            if !self.has_kernel {
                let mut packed = Vec::new();
                (&mut content).take(MAX_PACKED_KERNEL).read_to_end(&mut packed).map_err(broken(package))?;
                // What the kernel calls itself counts, not what the package calls its directories.
                self.release = image::release(&packed).or(self.release.take());
                self.has_kernel = true;
                let vmlinux = image::vmlinux(&packed).map_err(|e| e.in_file(format!("{package}: {path}")))?;
                self.draft.write("vmlinux", &vmlinux)?;
            }
            Ok(true)
        })
    }

    /// Ends the draft. `origin` is for people, `name` for the cache.
    pub(super) fn finish(self, origin: &str, name: &str) -> Result<(), BootError> {
        let lacking =
            |reason: &str| BootError::Package { package: origin.to_owned(), reason: reason.to_owned() };
        if !self.has_kernel {
            return Err(lacking("no kernel image in it"));
        }
        let release = self.release.ok_or_else(|| lacking("no release name to be found in it"))?;
        let failed = |source| BootError::Cache { action: "write", path: "modules.tar".into(), source };
        self.modules.finish().and_then(|w| w.into_inner().map_err(|e| e.into_error())).map_err(failed)?;
        self.draft.note("release", &release);
        self.draft.note("origin", origin);
        self.draft.set_name(format!("kernel-{name}"));
        Ok(())
    }
}

/// Takes the busybox program out of a package's tar stream into a draft.
pub(super) fn busybox(draft: &Draft, package: &str, tar: impl Read) -> Result<(), BootError> {
    let mut found = false;
    each_file(package, tar, |path, size, content| {
        let name = path.strip_prefix("usr/").unwrap_or(path);
        if !matches!(name, "bin/busybox" | "bin/busybox.static") {
            return Ok(true);
        }
        if size > MAX_BUSYBOX {
            return Err(BootError::Package {
                package: package.into(),
                reason: "its busybox is too large".into(),
            });
        }
        let mut program = Vec::new();
        content.read_to_end(&mut program).map_err(broken(package))?;
        check_program(&program).map_err(|e| e.in_file(format!("{package}: {path}")))?;
        draft.write("busybox", &program)?;
        found = true;
        Ok(false)
    })?;
    if found {
        return Ok(());
    }
    Err(BootError::Package { package: package.into(), reason: "no bin/busybox in it".into() })
}

/// A program that the guest can run without libraries: a static x86-64 ELF executable.
pub(super) fn check_program(bytes: &[u8]) -> Result<(), BootError> {
    const PT_INTERP: u64 = 3;
    let cut =
        || BootError::TruncatedKernel { part: "the program's headers", need: 64, have: bytes.len() as u64 };
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return Err(BootError::Unpackable { reason: "not a 64-bit ELF program" });
    }
    let machine = field(bytes, 18, 2).ok_or_else(cut)?;
    if machine != 62 {
        return Err(BootError::WrongArchitecture { found: format!("ELF machine {machine}") });
    }
    let table = field(bytes, 32, 8).ok_or_else(cut)?;
    for index in 0..field(bytes, 56, 2).ok_or_else(cut)? {
        let at = usize::try_from(table.saturating_add(index * 56)).map_err(|_| cut())?;
        if field(bytes, at, 4).ok_or_else(cut)? == PT_INTERP {
            return Err(BootError::Unpackable {
                reason: "a program that needs shared libraries; a static one is needed",
            });
        }
    }
    Ok(())
}

/// Calls `visit` with path, size and content of each regular file until it returns false.
fn each_file(
    package: &str,
    tar: impl Read,
    mut visit: impl FnMut(&str, u64, &mut dyn Read) -> Result<bool, BootError>,
) -> Result<(), BootError> {
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().map_err(broken(package))? {
        let mut entry = entry.map_err(broken(package))?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let path = path.trim_start_matches("./").trim_start_matches('/');
        let size = entry.size();
        if !visit(path, size, &mut entry)? {
            break;
        }
    }
    Ok(())
}

pub(super) fn broken(package: &str) -> impl Fn(std::io::Error) -> BootError + '_ {
    move |e| BootError::Package { package: package.to_owned(), reason: format!("cannot be unpacked: {e}") }
}

/// Reports how much of `inner` was read.
pub(super) struct Counted<'a, R> {
    pub(super) inner: R,
    pub(super) phase: Phase,
    pub(super) what: &'a str,
    pub(super) done: u64,
    pub(super) total: Option<u64>,
    pub(super) progress: OnProgress<'a>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.done += n as u64;
        (self.progress)(Progress {
            phase: self.phase,
            what: self.what,
            current: self.done,
            total: self.total,
        });
        Ok(n)
    }
}
