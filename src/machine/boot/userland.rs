//! The built-in userland as an image layer: a busybox, a link for each of its applets, and the files that programs
//! look for.
//!
//! `/sbin`, `/usr/bin` and `/usr/sbin` lead to `/bin`.

use std::io::{self, Write};
use std::sync::Arc;

use tar::{Builder, EntryType, Header};

use super::applets::applets;
use crate::vfs::layer::{Index, Layer, TarLimits};

const DIRECTORIES: &[(&str, u32)] = &[
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("lib", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/lib", 0o755),
    ("usr/local", 0o755),
    ("usr/local/bin", 0o755),
    ("var", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];
const LINKS: &[(&str, &str)] =
    &[("sbin", "bin"), ("usr/bin", "../bin"), ("usr/sbin", "../bin"), ("var/run", "../run")];
const FILES: &[(&str, &[u8])] = &[
    ("etc/group", b"root:x:0:\nnogroup:x:65534:\n"),
    ("etc/hosts", b"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"),
    ("etc/os-release", b"NAME=busybox\nID=busybox\nPRETTY_NAME=\"busybox\"\n"),
    ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
];

/// The layer around the static program `busybox`, in a file without a name.
///
/// # Errors
/// The host's, from writing that file.
pub fn layer(busybox: &[u8]) -> io::Result<Layer> {
    let mut file = tempfile::tempfile()?;
    write(&mut file, busybox)?;
    let index = Index::build_from_file(&file, TarLimits::default()).map_err(io::Error::other)?;
    Layer::new(Arc::new(index), file)
}

fn write(out: &mut impl Write, busybox: &[u8]) -> io::Result<()> {
    let mut tar = Builder::new(io::BufWriter::new(out));
    for (path, mode) in DIRECTORIES {
        entry(&mut tar, path, EntryType::Directory, *mode, b"")?;
    }
    for (path, target) in LINKS {
        link(&mut tar, path, target)?;
    }
    for (path, contents) in FILES {
        entry(&mut tar, path, EntryType::Regular, 0o644, contents)?;
    }
    entry(&mut tar, "bin/busybox", EntryType::Regular, 0o755, busybox)?;
    for name in applets(busybox) {
        if name != "busybox" {
            link(&mut tar, &format!("bin/{name}"), "busybox")?;
        }
    }
    tar.into_inner()?.flush()
}

fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header
}

fn entry(
    tar: &mut Builder<impl Write>,
    path: &str,
    kind: EntryType,
    mode: u32,
    data: &[u8],
) -> io::Result<()> {
    tar.append_data(&mut header(kind, mode, data.len()), path, data)
}

fn link(tar: &mut Builder<impl Write>, path: &str, target: &str) -> io::Result<()> {
    tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::{Caller, FileSystem, Limits, Name, NodeId, Overlay};

    #[test]
    fn every_applet_leads_to_the_program() {
        let fs = Overlay::new(vec![layer(b"the program").unwrap()], Limits::default()).unwrap();
        let caller = Caller::default();
        let find = |parent, name: &str| fs.lookup(&caller, parent, Name::new(name.as_bytes()).unwrap());
        let bin = find(NodeId::ROOT, "bin").unwrap().node;
        let busybox = find(bin, "busybox").unwrap();
        assert_eq!((busybox.attr.mode, busybox.attr.size), (0o100755, 11));
        for name in ["sh", "cat", "ls", "[", "wc"] {
            assert_eq!(fs.readlink(find(bin, name).unwrap().node).unwrap(), b"busybox", "{name}");
        }
        assert_eq!(fs.readlink(find(NodeId::ROOT, "sbin").unwrap().node).unwrap(), b"bin");
        assert_eq!(find(NodeId::ROOT, "tmp").unwrap().attr.mode, 0o041777);
        assert!(find(bin, "no-such-applet").is_err());
    }
}
