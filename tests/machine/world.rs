//! What surrounds machines made of images: a registry, a store, images, and the `cc` program.
//!
//! All of it is there once for this process and goes with it, however it ends: a shell waits for that, on a pipe that
//! closes then.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use cc::oci::Client;
use cc::{Instance, Mount};
use serde_json::json;
use tar::EntryType;

#[path = "../common/debian.rs"]
mod debian;
#[allow(dead_code)]
#[path = "../oci/support/mod.rs"]
pub(crate) mod oci;

pub(crate) use oci::images::digest;
pub(crate) use oci::run;

use oci::images::Image;
use oci::registry::Registry;

use crate::support;

/// A directory of this process's.
pub(crate) fn dir() -> &'static Path {
    static DIR: OnceLock<(PathBuf, Child)> = OnceLock::new();
    let (dir, _) = DIR.get_or_init(|| {
        let dir =
            tempfile::Builder::new().prefix("cc-test-").tempdir().expect("a temporary directory").keep();
        let mut shell = Command::new("sh");
        shell.args(["-c", "cat; rm -rf \"$0\""]).arg(&dir).stdin(Stdio::piped());
        let watcher = shell.stdout(Stdio::null()).process_group_of_its_own().spawn().expect("a shell");
        (dir, watcher)
    });
    dir
}

trait Detached {
    fn process_group_of_its_own(&mut self) -> &mut Self;
}

impl Detached for Command {
    /// A key that ends the tests must not end what cleans up after them.
    fn process_group_of_its_own(&mut self) -> &mut Self {
        std::os::unix::process::CommandExt::process_group(self, 0)
    }
}

/// Says past the capture of output that a test cannot run here. Where everything must run, it fails.
pub(crate) fn missing(what: &str) {
    oci::note(&format!("NOT RUN: {}: {what}", std::thread::current().name().unwrap_or("a test")));
    assert!(std::env::var_os("CI").is_none(), "{what}");
}

pub(crate) fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| Registry::start_for_process(&dir().join("registry")))
}

/// A cache with images of its own and the user's kernels.
pub(crate) fn cache(name: &str) -> PathBuf {
    let cache = dir().join(name);
    if fs::create_dir(&cache).is_ok() {
        let users = cc::sys::cache_dir::locate().expect("a place for caches");
        for dir in ["apt", "drafts", "entries", "wanted"] {
            fs::create_dir_all(users.join(dir)).expect("a directory");
        }
        for name in ["apt", "drafts", "entries", "wanted", "lock"] {
            std::os::unix::fs::symlink(users.join(name), cache.join(name)).expect("a link");
        }
    }
    cache
}

/// The cache that most tests share.
pub(crate) fn shared_cache() -> &'static Path {
    static CACHE: OnceLock<PathBuf> = OnceLock::new();
    CACHE.get_or_init(|| cache("cache"))
}

pub(crate) fn client() -> Client {
    oci::client_in(shared_cache()).build().expect("a client")
}

/// A program of this package with the shared cache, and nothing of the user's.
pub(crate) fn program(path: impl AsRef<Path>) -> Command {
    let mut command = Command::new(path.as_ref());
    command.env("CC_CACHE_DIR", shared_cache()).env("DOCKER_CONFIG", dir()).stdin(Stdio::null());
    command
}

/// `cc` with these arguments.
pub(crate) fn cc(arguments: &[&str]) -> Command {
    let mut command = program(env!("CARGO_BIN_EXE_cc"));
    command.args(arguments);
    command
}

/// What `cc` does with these arguments: exit status, standard output, standard error.
pub(crate) fn said(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = cc(arguments).output().expect("the program");
    (status.code(), String::from_utf8(stdout).expect("text"), String::from_utf8(stderr).expect("text"))
}

/// The programs of the small image.
const APPLETS: &[&str] = &[
    "cat", "chmod", "chown", "cp", "dd", "echo", "env", "find", "head", "hostname", "id", "kill", "ln", "ls",
    "mkdir", "mv", "printf", "pwd", "rm", "sed", "sh", "sleep", "sort", "stat", "stty", "test", "touch",
    "true", "wc", "xargs",
];

/// Three layers around a static busybox: the second removes, empties and replaces what the first has, the third makes
/// some of it anew.
fn small_layers() -> Vec<Vec<u8>> {
    let mut first = Layer::default();
    first.add("bin/busybox", EntryType::Regular, 0o755, support::busybox());
    for name in APPLETS {
        first.link(&format!("bin/{name}"), "busybox");
    }
    first.add(
        "bin/entry",
        EntryType::Regular,
        0o755,
        b"#!/bin/sh\necho entry \"$@\"\nid -un\nid -gn\npwd\necho $A\n",
    );
    first.file("bin/no-program", b"echo no\n");
    first.file("etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n");
    first.file("etc/group", b"root:x:0:\nstaff:x:50:\napp:x:1000:\n");
    for name in ["stays", "goes", "returns", "dir/goes", "dir/stays", "emptied/goes", "emptied/too", "to-dir"]
    {
        first.file(&format!("data/{name}"), b"first\n");
    }
    first.file("data/to-file/below", b"first\n");
    first.file("data/to-link", b"first\n");
    let mut second = Layer::default();
    for name in [".wh.goes", ".wh.returns", "dir/.wh.goes", "emptied/.wh..wh..opq", ".wh.to-file"] {
        second.file(&format!("data/{name}"), b"");
    }
    second.file("data/emptied/new", b"second\n");
    second.file("data/to-dir/below", b"second\n");
    second.file("data/to-file", b"second\n");
    second.link("data/to-link", "stays");
    let mut third = Layer::default();
    third.file("data/returns", b"third\n");
    third.file("data/dir/goes", b"third\n");
    [first, second, third].map(Layer::finish).into()
}

/// What `find /data -type f -o -type l` finds in the small image, sorted, each with its content.
pub(crate) const SMALL_DATA: &str = "dir/goes: third\ndir/stays: first\nemptied/new: second\nreturns: third\n\
    stays: first\nto-dir/below: second\nto-file: second\nto-link: first\n";
/// The script that shows it.
pub(crate) const SHOW_DATA: &str = "cd /data && find . -type f -o -type l | sed 's,^./,,' | sort | while read f; do echo \"$f: $(cat $f)\"; done";

struct Layer(tar::Builder<Vec<u8>>);

impl Default for Layer {
    fn default() -> Layer {
        Layer(tar::Builder::new(Vec::new()))
    }
}

impl Layer {
    fn add(&mut self, path: &str, kind: EntryType, mode: u32, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        self.0.append_data(&mut header, path, content).expect("memory");
    }

    fn file(&mut self, path: &str, content: &[u8]) {
        self.add(path, EntryType::Regular, 0o644, content);
    }

    fn link(&mut self, path: &str, target: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        self.0.append_link(&mut header, path, target).expect("memory");
    }

    fn finish(self) -> Vec<u8> {
        self.0.into_inner().expect("memory")
    }
}

/// The references of two small images of equal layers: one with a shell as its command, one with an entry point.
fn small_images() -> &'static (String, String) {
    static IMAGES: OnceLock<(String, String)> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let mut plain = Image::new(small_layers());
        let mut entry = plain.clone();
        plain.config["config"] = json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]});
        entry.config["config"] = json!({
            "Env": ["PATH=/bin", "A=of the image"], "User": "app:staff", "WorkingDir": "/data/dir",
            "Entrypoint": ["/bin/entry"], "Cmd": ["one", "two words"],
        });
        (registry().push(&plain, "small:1"), registry().push(&entry, "entry:1"))
    })
}

/// A small image with a shell.
pub(crate) fn small() -> &'static str {
    &small_images().0
}

/// A small image with an entry point, user and working directory.
pub(crate) fn entry() -> &'static str {
    &small_images().1
}

/// Debian with python3 and gcc, see [`debian`].
pub(crate) struct Debian {
    /// The OCI layout that was pushed.
    pub(crate) layout: PathBuf,
    pub(crate) reference: String,
    /// The same with a configuration.
    pub(crate) configured: String,
}

/// `None` where it cannot be made, which has been said then.
pub(crate) fn debian() -> Option<&'static Debian> {
    static DEBIAN: OnceLock<Result<Debian, String>> = OnceLock::new();
    let made = DEBIAN.get_or_init(|| {
        let base = debian::base()?;
        let layout = dir().join("layout");
        debian::layout(&base, &layout);
        let push = |tag: &str| {
            let from = PathBuf::from(format!("{}:{tag}", layout.display()));
            registry().push_layout(&from, &format!("debian:{tag}"), &[])
        };
        let (reference, configured) = (push("debian"), push("configured"));
        Ok(Debian { layout, reference, configured })
    });
    made.as_ref().map_err(|reason| missing(reason)).ok()
}

/// The reference of a Debian with nodejs, rustc and Go; `None` where it cannot be made, which has been said then.
pub(crate) fn toolchains() -> Option<&'static str> {
    static TOOLCHAINS: OnceLock<Result<String, String>> = OnceLock::new();
    let made = TOOLCHAINS.get_or_init(|| {
        let from = PathBuf::from(format!("{}:base", debian::toolchains()?.display()));
        Ok(registry().push_layout(&from, "debian:toolchains", &[]))
    });
    made.as_ref().map(String::as_str).map_err(|reason| missing(reason)).ok()
}

/// A directory of the host that the shared Debian machine has at `/mnt/host`.
pub(crate) fn host_mount() -> PathBuf {
    dir().join("mount")
}

/// The machine that all tests share which need Debian's programs.
pub(crate) fn debian_machine() -> Option<&'static Instance> {
    static SHARED: OnceLock<Instance> = OnceLock::new();
    let debian = debian()?;
    Some(SHARED.get_or_init(|| {
        let image = client().pull(&debian.reference).expect("the image");
        fs::create_dir(host_mount()).expect("a directory");
        Instance::builder(image)
            .memory_mb(512)
            .mount(Mount::directory("host", host_mount()).writable(true))
            .mount(Mount::empty("empty"))
            .start()
            .expect("a machine")
    }))
}

/// Runs a python3 program in the shared Debian machine; gives its trimmed output.
pub(crate) fn python(instance: &Instance, program: &str) -> String {
    let out = instance.command("python3").args(["-B", "-c", program]).output().expect("python3");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{program}\n{:?}\n{}{}", out.status, text(&out.stdout), text(&out.stderr));
    text(&out.stdout).trim().to_owned()
}
