//! pjdfstest and fsx on every file system of the library.
//!
//! They need root, `/dev/fuse`, `fusermount3` and a registry to install the two tools from, and take minutes:
//! ```text
//! cargo test --test vfs -- --ignored --nocapture --test-threads 1
//! ```
//! `CC_FSX_OPERATIONS` sets the operations of fsx for each seed.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cc::vfs::layer::{Index, Layer, TarLimits};
use cc::vfs::{FileSystem, HostDir, HostDirOptions, Limits, Overlay};

use crate::served;

const TOOLS: [(&str, &str); 2] = [("pjdfstest", "0.2.2"), ("fsx", "0.3.2")];
const EXPLAINED: &str = include_str!("explained.txt");

/// The file systems by the names in `explained.txt`.
const KINDS: [&str; 5] = ["memory", "spilled", "layers", "dir", "over"];

fn file_system(kind: &str, scratch: &Path) -> Box<dyn FileSystem> {
    let below = scratch.join("below");
    std::fs::create_dir_all(below.join("a/b")).expect("mkdir");
    std::fs::write(below.join("a/f"), vec![7; 100_000]).expect("write");
    match kind {
        "memory" => Box::new(Overlay::memory(Limits::default())),
        // Nearly everything goes to the file.
        "spilled" => Box::new(Overlay::memory(Limits { memory: 64 << 10, ..Limits::default() })),
        "layers" => {
            let path = scratch.join("layer.tar");
            let tar = Command::new("tar").arg("-C").arg(&below).arg("-cf").arg(&path).arg(".").status();
            assert!(tar.expect("tar runs").success());
            let file = File::open(path).expect("open");
            let index = Index::build_from_file(&file, TarLimits::default()).expect("index");
            let layer = Layer::new(Arc::new(index), file).expect("layer");
            Box::new(Overlay::new(vec![layer], Limits::default()).expect("overlay"))
        }
        "dir" => Box::new(HostDir::new(&below, HostDirOptions::default()).expect("host directory")),
        "over" => Box::new(
            Overlay::over_directory(&below, HostDirOptions::default(), Limits::default()).expect("overlay"),
        ),
        other => panic!("{other}"),
    }
}

/// Whether this machine can mount at all; says so by name where it cannot.
fn able(test: &str) -> bool {
    let root = std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    let able = root && Path::new("/dev/fuse").exists();
    if !able {
        eprintln!("skipped: {test} needs root and /dev/fuse");
    }
    able
}

/// Installs the suites once, into the directory for what tests make.
fn tool(name: &str) -> PathBuf {
    static INSTALL: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = INSTALL.lock();
    let (_, version) = TOOLS.into_iter().find(|(tool, _)| *tool == name).expect("a known tool");
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{version}"));
    let path = root.join("bin").join(name);
    if !path.exists() {
        let done = Command::new(env!("CARGO"))
            .args(["install", "--quiet", "--root"])
            .arg(&root)
            .arg(format!("{name}@{version}"))
            .status();
        assert!(done.expect("cargo runs").success(), "cargo install {name}");
    }
    path
}

/// Runs `body` with a mounted file system and undoes everything after.
fn mounted(kind: &str, body: impl FnOnce(&Path, &Path)) {
    let scratch = tempfile::tempdir().expect("dir");
    // The suite's unprivileged users have to get through.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(scratch.path(), open).expect("chmod");
    let at = scratch.path().join("mnt");
    std::fs::create_dir(&at).expect("mkdir");
    let session = served::serve(file_system(kind, scratch.path()), &at, 2).expect("mount");
    body(&at, scratch.path());
    std::fs::read_dir(&at).expect("still served");
    match session.umount_and_join() {
        // How the kernel ends the reading of requests, when the unmounting is faster than the last of them.
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionAborted => {}
        other => other.expect("unmount"),
    }
}

/// Two users and their groups, which pjdfstest acts as.
fn users() -> String {
    let (passwd, group) = (std::fs::read_to_string("/etc/passwd"), std::fs::read_to_string("/etc/group"));
    let (passwd, group) = (passwd.expect("users"), group.expect("groups"));
    let pair = |user: &str| {
        let line = passwd.lines().find(|l| l.split(':').next() == Some(user)).expect("the user is there");
        let gid = line.split(':').nth(3).expect("group");
        let group = group.lines().find(|l| l.split(':').nth(2) == Some(gid)).expect("the group is there");
        format!("[\"{user}\", \"{}\"]", group.split(':').next().expect("name"))
    };
    format!("[{}, {}]", pair("nobody"), pair("daemon"))
}

/// Case by case, what pjdfstest says: `ok`, `FAILED` or `skipped`.
fn outcomes(output: &str) -> BTreeMap<String, String> {
    let mut plain = String::new();
    let mut colour = false;
    for c in output.chars() {
        match c {
            '\x1b' => colour = true,
            'm' if colour => colour = false,
            _ if colour => {}
            _ => plain.push(c),
        }
    }
    let lines = plain.lines().filter(|line| !line.starts_with(char::is_whitespace));
    lines
        .filter_map(|line| {
            let (name, result) = line.split_once(char::is_whitespace)?;
            let result = result.trim();
            (name.contains("::") && ["ok", "FAILED", "skipped"].contains(&result))
                .then(|| (name.to_owned(), result.to_owned()))
        })
        .collect()
}

/// What `explained.txt` says to expect of a case.
fn expected(kind: &str, case: &str) -> &'static str {
    let lines = EXPLAINED.lines().map(|line| line.split('#').next().unwrap_or_default());
    for line in lines {
        let [system, what, pattern] = line.split_whitespace().collect::<Vec<_>>()[..] else { continue };
        let name = match pattern.strip_prefix('*') {
            Some(end) => case.ends_with(end),
            None => case == pattern,
        };
        if name && (system == "*" || system == kind) {
            return if what == "fails" { "FAILED" } else { "skipped" };
        }
    }
    "ok"
}

#[test]
#[ignore = "installs pjdfstest, needs root and takes minutes"]
fn pjdfstest_passes_but_for_what_is_explained() {
    if !able("pjdfstest") {
        return;
    }
    let tool = tool("pjdfstest");
    for kind in KINDS {
        mounted(kind, |at, scratch| {
            let config = scratch.join("pjdfstest.toml");
            // Longer than the granularity of the kernel's coarse clock, which stamps the files of the host.
            let text = format!(
                "[features]\nposix_fallocate = {{}}\nrename_ctime = {{}}\nutime_now = {{}}\nutimensat = {{}}\n\
                 [settings]\nnaptime = 0.02\nallow_remount = false\nexpected_failures = []\n\
                 [dummy_auth]\nentries = {}\n",
                users()
            );
            std::fs::write(&config, text).expect("write");
            let second = scratch.join("second");
            std::fs::create_dir(&second).expect("mkdir");
            let output = Command::new(&tool)
                .arg("-c")
                .arg(&config)
                .arg("-s")
                .arg(&second)
                .arg("-p")
                .arg(at)
                .env("RUST_BACKTRACE", "0")
                .output()
                .expect("pjdfstest runs");
            let text = String::from_utf8_lossy(&output.stdout);
            let outcomes = outcomes(&text);
            assert!(outcomes.len() > 350, "{kind}: {} cases: {text}", outcomes.len());
            let wrong: Vec<_> = outcomes
                .iter()
                .filter(|(case, result)| *result != expected(kind, case))
                .map(|(case, result)| format!("{case}: {result}, expected {}", expected(kind, case)))
                .collect();
            assert!(wrong.is_empty(), "{kind}:\n{}\n{text}", wrong.join("\n"));
            let count = |what: &str| outcomes.values().filter(|r| *r == what).count();
            println!("{kind}: {} ok, {} explained", count("ok"), count("FAILED") + count("skipped"));
        });
    }
}

#[test]
#[ignore = "installs fsx, needs root and takes minutes"]
fn fsx_finds_nothing() {
    if !able("fsx") {
        return;
    }
    let tool = tool("fsx");
    let operations = std::env::var("CC_FSX_OPERATIONS").unwrap_or_else(|_| "60000".into());
    for kind in KINDS {
        mounted(kind, |at, scratch| {
            let config = scratch.join("fsx.toml");
            let weights = "close_open = 1\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ninvalidate = 1\n\
                           truncate = 5\nfsync = 0.2\nfdatasync = 0.2\nposix_fallocate = 3\npunch_hole = 5\n\
                           sendfile = 3\nposix_fadvise = 1\ncopy_file_range = 5\n";
            let text = format!("flen = 1048576\n[opsize]\nmax = 131072\nmin = 0\n[weights]\n{weights}");
            std::fs::write(&config, text).expect("write");
            for seed in ["1", "22", "333", "4444"] {
                let output = Command::new(&tool)
                    .args(["-q", "-N", &operations, "-S", seed, "-f"])
                    .arg(&config)
                    .arg("-P")
                    .arg(scratch)
                    .arg(at.join("file"))
                    .output()
                    .expect("fsx runs");
                let said = [output.stdout, output.stderr].concat();
                let said = String::from_utf8_lossy(&said);
                assert!(output.status.success(), "{kind}, seed {seed}: {said}");
            }
            println!("{kind}: 4 seeds of {operations} operations");
        });
    }
}

#[test]
fn outcomes_are_read_and_compared() {
    let text = "\x1b[34munlink::a::char\x1b[0m     \x1b[32mok\x1b[0m\n\
                chmod::b::char   FAILED\n\tcalled `Result::unwrap()`\n\
                link::link_count_max   skipped\n\nSummary: 1 failed\n";
    let outcomes = outcomes(text);
    let all: Vec<_> = outcomes.iter().map(|(case, result)| (&case[..], &result[..])).collect();
    assert_eq!(
        all,
        [("chmod::b::char", "FAILED"), ("link::link_count_max", "skipped"), ("unlink::a::char", "ok")]
    );
    assert_eq!(expected("memory", "chmod::b::char"), "ok");
    assert_eq!(expected("dir", "chmod::b::char"), "FAILED");
    assert_eq!(expected("over", "link::link_count_max"), "skipped");
}
