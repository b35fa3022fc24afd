//! Machines of images that other people's tools made: pulled from a registry, booted, and looked at from inside.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use cc::oci::PullPolicy;
use cc::{Instance, Source};

use crate::support::{busybox, scratch, sh};
use crate::world::{self, SHOW_DATA, SMALL_DATA, client, debian, debian_machine, python};

/// What a tree is, see the script.
const LISTER: &str = include_str!("../common/lister.py");

/// What the machine has in places of its own: below the kernel's file systems and the agent's `/tmp` nothing is the
/// image's, and over four files the machine has its own.
const NOT_THE_IMAGES: &[&str] =
    &["/proc", "/sys", "/dev", "/tmp", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/machine-id"];

#[test]
fn python_computes() {
    let Some(machine) = debian_machine() else { return };
    let out = machine.command("python3").args(["-c", "print(6*7)"]).output().unwrap();
    assert_eq!((out.status.code(), &*out.stdout, &*out.stderr), (Some(0), &b"42\n"[..], &b""[..]));
    let out = machine.command("python3").args(["-c", "import sys; sys.exit(3)"]).status().unwrap();
    assert_eq!(out.code(), Some(3));
    let out = machine.command("python3").args(["-c", "1/0"]).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("ZeroDivisionError"), "{out:?}");
}

/// The lines of a listing by path.
fn by_path(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .map(|line| line.split_once("' ").or_else(|| line.split_once("\" ")).unwrap_or((line, "")))
        .collect()
}

/// What two listings do not agree on.
fn differences(expected: &str, found: &str) -> Vec<String> {
    let (expected, found) = (by_path(expected), by_path(found));
    let mut differences = Vec::new();
    for (path, line) in &expected {
        match found.get(path) {
            Some(other) if other == line => {}
            Some(other) => differences.push(format!("{path}\n  expected {line}\n  found    {other}")),
            None => differences.push(format!("{path} is not there")),
        }
    }
    differences.extend(
        found.keys().filter(|path| !expected.contains_key(*path)).map(|path| format!("{path} is too much")),
    );
    differences
}

fn list_host(root: &Path, left_out: &[&str]) -> String {
    let mut arguments = vec!["-B", "-c", LISTER];
    let root = root.display().to_string();
    arguments.push(&root);
    arguments.extend(left_out);
    world::run("python3", &arguments)
}

/// Every file of the image is in the guest what another implementation of the specification unpacks.
#[test]
fn r6_4_the_root_is_what_umoci_unpacks() {
    let Some(debian) = debian() else { return };
    let scratch = scratch();
    let bundle = scratch.path().join("bundle");
    let image = format!("{}:debian", debian.layout.display());
    world::run("umoci", &["unpack", "--image", &image, &bundle.display().to_string()]);
    let root = bundle.join("rootfs");
    let expected = list_host(&root, NOT_THE_IMAGES);

    // Of a machine that nothing else changes.
    let fresh = Instance::builder(client().pull(&debian.reference).unwrap()).memory_mb(512).start().unwrap();
    let list = |instance: &Instance, root: &str, left_out: &[&str]| {
        let mut python = instance.command("python3");
        let out = python.args(["-B", "-c", LISTER, root]).args(left_out).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let found = list(&fresh, "", NOT_THE_IMAGES);
    drop(fresh);
    let differences_found = differences(&expected, &found);
    assert!(
        differences_found.is_empty(),
        "{} of {} files differ:\n{}",
        differences_found.len(),
        expected.lines().count(),
        differences_found[..differences_found.len().min(40)].join("\n")
    );
    assert!(expected.lines().count() > 5000, "the listing is of all of Debian");
    for part in ["security.capability=", "user.colour=626c7565", "same as b'/etc/issue'", "device=259,70000"]
    {
        assert!(expected.contains(part), "the image has {part}");
    }

    // The same comparison notices each kind of change.
    let odd = root.join("odd");
    let before = list_host(&odd, &[]);
    assert_eq!(differences(&before, &list_host(&odd, &[])), Vec::<String>::new());
    let noticed = |path: &str, change: &dyn Fn(&Path)| {
        let path_on_host = odd.join(path);
        let times = fs::symlink_metadata(&path_on_host).unwrap();
        let before = list_host(&odd, &[]);
        change(&path_on_host);
        // What was changed shall be noticed by itself.
        let time =
            std::time::UNIX_EPOCH + std::time::Duration::new(times.mtime() as u64, times.mtime_nsec() as u32);
        fs::File::open(&path_on_host).unwrap().set_modified(time).unwrap();
        let after = differences(&before, &list_host(&odd, &[]));
        assert!(after.len() == 1 && after[0].contains(path), "{path}: {after:?}");
    };
    noticed("owned", &|path| fs::write(path, "fine").unwrap());
    noticed("none", &|path| fs::set_permissions(path, fs::Permissions::from_mode(0o001)).unwrap());
    noticed("capable", &|path| rustix::fs::removexattr(path, "security.capability").unwrap());
    noticed("attributes", &|path| std::os::unix::fs::lchown(path, Some(1), None).unwrap());
}

/// `umoci config` says how it is run; through the library and through the program.
#[test]
fn r2_10_a_configured_image_runs_as_it_says() {
    let Some(debian) = debian() else { return };
    let config = client().pull(&debian.configured).unwrap().config().clone();
    assert_eq!(config.user.as_deref(), Some("games:65534"));
    assert_eq!(config.entrypoint, ["python3", "-c"]);
    // Who makes the working directory, and the games' number, are Debian's.
    let said = "/odd/made by nobody 5 65534 good day = fine 42\n";
    let expected = |what: &str| (Some(0), what.to_owned(), String::new());
    assert_eq!(world::said(&["run", &debian.configured]), expected(said));
    let machine = Instance::builder(client().pull(&debian.configured).unwrap()).start().unwrap();
    let out = machine.entrypoint_command(["print('not', 6 * 7)"]).output().unwrap();
    assert_eq!((out.status.code(), &*out.stdout), (Some(0), &b"not 42\n"[..]));
    let none: [&str; 0] = [];
    assert_eq!(String::from_utf8(machine.entrypoint_command(none).output().unwrap().stdout).unwrap(), said);
}

#[test]
fn r6_4_layers_remove_empty_and_replace() {
    let image = client().pull(world::small()).unwrap();
    assert_eq!(image.layers().len(), 3);
    let one = Instance::new(&image).unwrap();
    let show = |instance: &Instance| sh(instance, SHOW_DATA) + "\n";
    assert_eq!(show(&one), SMALL_DATA);
    assert_eq!(
        sh(&one, "stat -c %F /data/to-dir /data/to-file /data/to-link /data/emptied"),
        "directory\nregular file\nsymbolic link\ndirectory"
    );

    // What a machine writes is its own, also where it removes and makes anew.
    let two = Instance::new(&image).unwrap();
    sh(
        &one,
        "cd /data; rm -rf emptied dir; mkdir dir; echo mine >dir/mine; echo more >>stays; mv to-dir moved",
    );
    assert_eq!(
        sh(&one, "ls /data/dir; cat /data/stays; ls -d /data/moved"),
        "mine\nfirst\nmore\n/data/moved"
    );
    assert_eq!(show(&two), SMALL_DATA);
    drop((one, two));

    // Nothing of it reaches the store.
    let never = world::oci::client_in(world::shared_cache()).policy(PullPolicy::Never).build().unwrap();
    let again = Instance::new(never.pull(world::small()).unwrap()).unwrap();
    assert_eq!(show(&again), SMALL_DATA);
}

/// Everything about every file below `dir`, but for when it was read.
fn snapshot(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest = vec![dir.to_owned()];
    while let Some(path) = rest.pop() {
        let m = fs::symlink_metadata(&path).unwrap();
        let content = match m.file_type() {
            t if t.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
            t if t.is_file() => world::digest(&fs::read(&path).unwrap()),
            t if t.is_dir() => {
                rest.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                String::new()
            }
            other => format!("{other:?}"),
        };
        let times = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        lines.push(format!(
            "{path:?} {:o} {}:{} {} {times:?} {content}",
            m.mode(),
            m.uid(),
            m.gid(),
            m.nlink()
        ));
    }
    lines.sort();
    lines
}

/// A root with a shell in a directory of the host.
pub(crate) fn directory_root(dir: &Path) {
    fs::create_dir_all(dir.join("bin")).unwrap();
    fs::write(dir.join("bin/busybox"), busybox()).unwrap();
    fs::set_permissions(dir.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    for name in
        ["sh", "cat", "ls", "rm", "mkdir", "mv", "chmod", "echo", "touch", "ln", "stat", "chown", "find"]
    {
        std::os::unix::fs::symlink("busybox", dir.join("bin").join(name)).unwrap();
    }
    fs::create_dir_all(dir.join("data/sub")).unwrap();
    fs::write(dir.join("data/file"), "of the host\n").unwrap();
    fs::hard_link(dir.join("data/file"), dir.join("data/linked")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("data/passwd")).unwrap();
}

#[test]
fn a_directory_is_a_root_and_stays_as_it_is() {
    let dir = scratch();
    directory_root(dir.path());
    let before = snapshot(dir.path());
    let script = "cat /data/file; echo changed >/data/file; cat /data/linked; rm -r /data/sub; mkdir /data/sub; \
        echo new >/data/sub/new; chmod 700 /bin; chown 5:6 /data; mv /data/linked /data/moved; touch /bin/cat; \
        ln /bin/busybox /data/busybox; ls -A /data; cat /data/passwd";
    let said = "of the host\nchanged\nbusybox\nfile\nmoved\npasswd\nsub\n";
    let machine = Instance::new(Source::directory(dir.path()).unwrap()).unwrap();
    let out = machine.command("sh").args(["-c", script]).output().unwrap();
    assert_eq!((out.status.code(), &*String::from_utf8_lossy(&out.stdout)), (Some(1), said), "{out:?}");
    // A symbolic link leads to what the guest has of that name: nothing.
    assert!(String::from_utf8_lossy(&out.stderr).contains("'/data/passwd': No such file"), "{out:?}");
    drop(machine);
    assert_eq!(snapshot(dir.path()), before);

    let (status, stdout, stderr) =
        world::said(&["run", dir.path().to_str().unwrap(), "--", "sh", "-c", script]);
    assert_eq!((status, &*stdout), (Some(1), said), "{stderr}");
    assert_eq!(snapshot(dir.path()), before);
    fs::write(dir.path().join("data/sub/more"), "").unwrap();
    assert_ne!(snapshot(dir.path()), before, "a change would be seen");
}

/// A compiler's work: hundreds of files read, programs that start programs, what they make is run.
#[test]
fn gcc_compiles_what_then_runs() {
    let Some(machine) = debian_machine() else { return };
    let program = "import subprocess as s\n\
        open('/tmp/p.c', 'w').write('#include <stdio.h>\\nint main(int c, char **v) { return printf(\"%d\\\\n\", c * 21) < 0; }')\n\
        s.run(['gcc', '-O2', '-Wall', '-o', '/tmp/p', '/tmp/p.c'], check=True)\n\
        print(s.run(['/tmp/p', 'x'], check=True, capture_output=True).stdout)";
    assert_eq!(python(machine, program), "b'42\\n'");
}
