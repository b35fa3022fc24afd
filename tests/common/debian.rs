//! A Debian with python3 and gcc as an image of several layers, by the tools that other people use.
//!
//! [`base`] is made once for a target directory, which takes a minute: mmdebstrap's files as the only layer of an OCI
//! layout. Processes that want it at once wait for the one that makes it; a rename publishes it, so a killed maker
//! leaves only a draft, which the next one clears. [`layout`] puts two more layers on it, with everything that a layer
//! can do to the files below it and every kind of file; that is quick.
//!
//! The module that includes this file has `digest` (of `tests/oci`) and `run` in scope.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{digest, run};

/// Packages beyond Debian's smallest system. The first is there to keep perl away.
const PACKAGES: &str = "usr-is-merged,python3-minimal,gcc,libc6-dev";
/// What no test looks at and takes time to unpack.
const NOT_UNPACKED: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/lib/gcc/*/*/lto1",
    "/usr/lib/*/lib?san.*",
    "/usr/bin/*lto-dump*",
];
/// Compilers and interpreters that take a gigabyte, for tests that are run on request.
const TOOLCHAINS: &str = "usr-is-merged,nodejs,rustc,golang-go,libc6-dev";
/// What those bring and nobody needs.
const UNUSED: &[&str] = &[
    "/usr/share/go-*/test/*",
    "/usr/share/go-*/src/*/testdata/*",
    "/usr/share/icu/*",
    "/usr/share/perl/*/unicore/*",
];
/// Prefix of what is being made.
const DRAFT: &str = "debian-draft-";

/// The stable Debian that this host has, or the present one.
fn suite() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let get = |key: &str| {
        release
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .map(|value| value.trim_matches('"').to_owned())
    };
    match (get("ID="), get("VERSION_CODENAME=")) {
        (Some(id), Some(name)) if id == "debian" => name,
        _ => "stable".to_owned(),
    }
}

/// An OCI layout with the image `base` of one layer. It must not be changed.
///
/// # Errors
/// Why there is none: no root, no apt, no network.
pub(crate) fn base() -> Result<PathBuf, String> {
    made_of(PACKAGES, &[])
}

/// The same with nodejs, rustc and Go.
///
/// # Errors
/// As [`base`].
pub(crate) fn toolchains() -> Result<PathBuf, String> {
    made_of(TOOLCHAINS, UNUSED)
}

fn made_of(packages: &str, besides: &[&str]) -> Result<PathBuf, String> {
    let mut arguments = vec![
        "--quiet".to_owned(),
        "--variant=minbase".to_owned(),
        format!("--include={packages}"),
        "--dpkgopt=force-unsafe-io".to_owned(),
    ];
    arguments.extend(NOT_UNPACKED.iter().chain(besides).map(|path| format!("--dpkgopt=path-exclude={path}")));
    arguments.push(suite());

    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let recipe = digest(arguments.join("\n").as_bytes());
    let done = dir.join(format!("debian-{}", &recipe[7..19]));
    if done.is_dir() {
        return Ok(done);
    }
    if !rustix::process::geteuid().is_root() {
        return Err("making a Debian image takes root".to_owned());
    }
    let io = |what: &'static str| move |e: std::io::Error| format!("{what}: {e}");
    let lock = File::create(dir.join("debian.lock")).map_err(io("the lock"))?;
    lock.lock().map_err(io("the lock"))?;
    if done.is_dir() {
        return Ok(done);
    }
    for entry in fs::read_dir(dir).map_err(io("the target directory"))?.flatten() {
        if entry.file_name().as_bytes().starts_with(DRAFT.as_bytes()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let draft = tempfile::Builder::new().prefix(DRAFT).tempdir_in(dir).map_err(io("a directory"))?;
    let tar = draft.path().join("base.tar");
    let out = Command::new("mmdebstrap")
        .args(&arguments)
        .arg(&tar)
        .output()
        .map_err(io("mmdebstrap; it is Debian's package of that name"))?;
    if !out.status.success() {
        return Err(format!("mmdebstrap: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr)));
    }
    let layout = draft.path().join("layout");
    let image = format!("{}:base", layout.display());
    umoci(&["init", "--layout", &layout.display().to_string()]);
    umoci(&["new", "--image", &image]);
    umoci(&["raw", "add-layer", "--image", &image, &tar.display().to_string()]);
    fs::rename(layout, &done).map_err(io("publishing the image"))?;
    Ok(done)
}

pub(crate) fn umoci(arguments: &[&str]) {
    run("umoci", arguments);
}

/// Writes into `dir` a layout with the image `debian`, and `configured`, which is the same with a configuration.
pub(crate) fn layout(base: &Path, dir: &Path) {
    // Blobs never change, so they can be shared; the rest is rewritten.
    run("cp", &["--archive", "--link", &base.display().to_string(), &dir.display().to_string()]);
    let index = dir.join("index.json");
    let text = fs::read(&index).expect("an index");
    fs::remove_file(&index).expect("an index");
    fs::write(&index, text).expect("a file");

    let scratch = tempfile::tempdir().expect("a temporary directory");
    let first = scratch.path().join("first.tar");
    fs::write(&first, strange_layer()).expect("a file");
    let second = scratch.path().join("second.tar");
    packed_layer(scratch.path(), &second);
    let image = |tag: &str| format!("{}:{tag}", dir.display());
    let add = |from: &str, tar: &Path| {
        let tar = tar.display().to_string();
        umoci(&["raw", "add-layer", "--image", &image(from), "--tag", "debian", &tar]);
    };
    add("base", &first);
    add("debian", &second);
    umoci(&[
        "config",
        "--image",
        &image("debian"),
        "--tag",
        "configured",
        "--config.user=games:65534",
        "--config.env=PATH=/usr/bin",
        "--config.env=GREETING=good day = fine",
        "--config.workingdir=/odd/made by nobody",
        "--config.entrypoint=python3",
        "--config.entrypoint=-c",
        "--config.cmd=import os; print(os.getcwd(), os.getuid(), os.getgid(), os.environ['GREETING'], 6 * 7)",
    ]);
}

/// A writer of tars that says only what a test is about.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn add(&mut self, path: impl AsRef<Path>, kind: tar::EntryType, mode: u32, content: &[u8]) {
        self.owned(path, kind, mode, (0, 0), content);
    }

    fn owned(
        &mut self,
        path: impl AsRef<Path>,
        kind: tar::EntryType,
        mode: u32,
        owner: (u64, u64),
        content: &[u8],
    ) {
        let mut header = Tar::header(kind, mode, owner);
        header.set_size(content.len() as u64);
        self.0.append_data(&mut header, path, content).expect("memory");
    }

    fn header(kind: tar::EntryType, mode: u32, (uid, gid): (u64, u64)) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_mtime(1_234_567_890);
        header.set_size(0);
        header
    }

    fn file(&mut self, path: impl AsRef<Path>, content: &[u8]) {
        self.add(path, tar::EntryType::Regular, 0o644, content);
    }

    fn dir(&mut self, path: impl AsRef<Path>) {
        self.add(path, tar::EntryType::Directory, 0o755, b"");
    }

    fn link(&mut self, path: &str, kind: tar::EntryType, target: &str) {
        let mut header = Tar::header(kind, 0o777, (0, 0));
        self.0.append_link(&mut header, path, target).expect("memory");
    }

    fn device(&mut self, path: &str, kind: tar::EntryType, major: u32, minor: u32) {
        let mut header = Tar::header(kind, 0o620, (0, 5));
        header.set_device_major(major).expect("a number");
        header.set_device_minor(minor).expect("a number");
        self.0.append_data(&mut header, path, &b""[..]).expect("memory");
    }

    /// Attributes of the entry that comes next.
    fn pax(&mut self, pairs: &[(&str, &[u8])]) {
        self.0.append_pax_extensions(pairs.iter().copied()).expect("memory");
    }
}

/// `security.capability` with CAP_NET_RAW, effective.
pub(crate) const NET_RAW: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Names that are legal and that few expect.
pub(crate) fn odd_names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        &b"two words"[..],
        b"new\nline",
        b"\xff\xfe not UTF-8",
        b"-rf",
        b"*",
        b"\\",
        b"\x01\x7f",
        b" ",
        b"...",
    ]
    .map(<[u8]>::to_vec)
    .into();
    names.push("ü".repeat(127).into_bytes());
    names.push(vec![b'n'; 255]);
    names
}

/// The second layer: changes to Debian's files, and what tar can say and a file system cannot be made to.
fn strange_layer() -> Vec<u8> {
    use tar::EntryType::{Block, Char, Fifo, Link, Regular, Symlink};
    let mut tar = Tar(tar::Builder::new(Vec::new()));
    // Of Debian: changed, removed, replaced by another type, a directory emptied, hard links to what is below.
    tar.file("etc/issue", b"changed\n");
    tar.file("etc/.wh.issue.net", b"");
    tar.file("usr/share/.wh.perl5", b"");
    tar.link("etc/motd", Symlink, "issue");
    tar.file("etc/.wh.skel", b"");
    tar.file("etc/skel", b"was a directory\n");
    // umoci gives a directory that is emptied, and not in the layer itself, the time of the unpacking.
    tar.dir("etc/default");
    tar.file("etc/default/.wh..wh..opq", b"");
    tar.file("etc/default/only", b"alone\n");
    tar.file("usr/share/.wh.common-licenses", b"");
    tar.dir("usr/share/common-licenses");
    tar.file("usr/share/common-licenses/again", b"removed and made anew\n");
    tar.link("etc/issue.linked", Link, "etc/issue");
    tar.link("usr/bin/true.linked", Link, "usr/bin/true");
    // What the machine shows files of its own over; without them it would make them.
    for name in ["etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        tar.file(name, b"");
    }

    tar.dir("odd");
    for name in odd_names() {
        tar.file(Path::new("odd").join(std::ffi::OsStr::from_bytes(&name)), &name);
    }
    tar.link("odd/to-nowhere", Symlink, "/does/not/exist");
    tar.link("odd/absolute", Symlink, "/etc/passwd");
    tar.link("odd/upward", Symlink, "../../../../etc/passwd");
    tar.add("odd/fifo", Fifo, 0o600, b"");
    tar.device("odd/null", Char, 1, 3);
    tar.device("odd/large", Block, 259, 70_000);
    tar.add("odd/setuid", Regular, 0o4755, b"s");
    tar.add("odd/setgid", Regular, 0o2711, b"s");
    tar.add("odd/none", Regular, 0, b"nobody may");
    tar.owned("odd/sticky", tar::EntryType::Directory, 0o3777, (12345, 65534), b"");
    tar.owned("odd/owned", Regular, 0o640, (12345, 65534), b"mine");
    tar.owned("odd/largest-owner", Regular, 0o640, (4_000_000_000, 4_000_000_001), b"");
    // Not an empty one: those go missing in Go's reader of tars, which umoci has.
    tar.pax(&[("SCHILY.xattr.user.colour", b"blue")]);
    tar.file("odd/attributes", b"a");
    tar.pax(&[("SCHILY.xattr.security.capability", NET_RAW)]);
    tar.add("odd/capable", Regular, 0o755, b"c");
    tar.pax(&[("SCHILY.xattr.trusted.secret", b"\0\xff\n=")]);
    tar.dir("odd/trusted");
    tar.pax(&[("mtime", b"987654321.123456789")]);
    tar.file("odd/nanoseconds", b"");
    tar.pax(&[("mtime", b"-86400")]);
    tar.file("odd/before-the-epoch", b"");
    let mut deep = PathBuf::from("odd");
    for _ in 0..60 {
        deep.push("deep");
        tar.dir(&deep);
    }
    tar.file(deep.join("file"), b"deep down\n");
    tar.0.into_inner().expect("memory")
}

/// The third layer: a directory of this host as GNU tar packs it.
fn packed_layer(scratch: &Path, tar: &Path) {
    use rustix::fs::{CWD, Mode, XattrFlags, chownat, mkdirat, mknodat, setxattr};
    let root = scratch.join("packed");
    let packed = root.join("odd/packed");
    fs::create_dir_all(&packed).expect("a directory");
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).expect("a mode");

    let sparse = File::create(packed.join("sparse")).expect("a file");
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"island", 5 << 20).expect("room");
    std::os::unix::fs::FileExt::write_all_at(&sparse, &[b'x'; 10_000], 11_000_001).expect("room");
    sparse.set_len(32 << 20).expect("room");
    File::create(packed.join("hole")).expect("a file").set_len(3 << 20).expect("room");
    fs::write(packed.join("one"), b"three names").expect("a file");
    fs::hard_link(packed.join("one"), packed.join("two")).expect("a link");
    fs::hard_link(packed.join("one"), root.join("odd/three")).expect("a link");
    symlink("one", packed.join("pointer")).expect("a link");
    mknodat(CWD, packed.join("fifo"), rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o644), 0)
        .expect("mknod");
    let device = rustix::fs::makedev(10, 229);
    mknodat(
        CWD,
        packed.join("fuse"),
        rustix::fs::FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        device,
    )
    .expect("mknod");
    mkdirat(CWD, packed.join("theirs"), Mode::from_raw_mode(0o700)).expect("a directory");
    let (user, group) = (rustix::fs::Uid::from_raw(65534), rustix::fs::Gid::from_raw(12345));
    chownat(CWD, packed.join("theirs"), Some(user), Some(group), rustix::fs::AtFlags::empty())
        .expect("chown");
    fs::set_permissions(packed.join("theirs"), fs::Permissions::from_mode(0o2775)).expect("a mode");
    for (name, value) in [("user.of.the.host", &b"value"[..]), ("security.capability", NET_RAW)] {
        setxattr(packed.join("one"), name, value, XattrFlags::empty()).expect("an attribute");
    }
    // What the layer below brought.
    fs::write(root.join("odd/.wh.setgid"), b"").expect("a file");
    fs::write(root.join("odd/sticky"), b"was a directory").expect("a file");
    let text = |path: &Path| path.display().to_string();
    let attributes = ["--sparse", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--format=pax"];
    let mut arguments = vec!["--create"];
    arguments.extend(attributes);
    let (root, tar) = (text(&root), text(tar));
    arguments.extend(["--directory", &root, "--file", &tar, "."]);
    run("tar", &arguments);
}
