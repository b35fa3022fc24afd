//! Directories of the host in a machine: nothing leaves them, what is read-only stays so whatever the guest does, and
//! both sides see each other's changes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cc::{Error, Instance, Mount, Source};

use crate::images::directory_root;
use crate::support::{scratch, sh, small};
use crate::world;

/// A machine with mounts, for all tests here.
struct Mounted {
    machine: Instance,
    host: PathBuf,
}

fn mounted() -> &'static Mounted {
    static SHARED: OnceLock<Mounted> = OnceLock::new();
    SHARED.get_or_init(|| {
        let host = world::dir().join("mounts");
        for name in ["ro", "rw", "outside"] {
            fs::create_dir_all(host.join(name)).unwrap();
        }
        fs::write(host.join("outside/secret"), "of the host\n").unwrap();
        let machine = small()
            .mount(Mount::directory("ro", host.join("ro")))
            .mount(Mount::directory("rw", host.join("rw")).writable(true))
            .mount(Mount::empty("empty").at("/deep/in/empty"))
            .start()
            .unwrap();
        Mounted { machine, host }
    })
}

impl Mounted {
    fn sh(&self, script: &str) -> String {
        sh(&self.machine, &format!("{{ {script}; }} 2>&1; true"))
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.host.join(path)).unwrap()
    }
}

/// Paths, modes, lengths and times of all that is below.
fn state(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let m = fs::symlink_metadata(&path).unwrap();
        lines.push(format!("{path:?} {:o} {} {} {}", m.mode(), m.uid(), m.len(), m.mtime_nsec()));
        if m.is_dir() {
            lines.extend(state(&path));
        }
    }
    lines.sort();
    lines
}

#[test]
fn r3_2_read_only_is_enforced_on_the_host() {
    let m = mounted();
    let ro = m.host.join("ro");
    fs::create_dir_all(ro.join("dir")).unwrap();
    fs::write(ro.join("file"), "content\n").unwrap();
    let before = state(&ro);
    // The guest's own flag is one thing; a guest that takes it away, or mounts the tag anew, meets the host.
    for (place, prepare) in [
        ("/mnt/ro", "true"),
        ("/mnt/ro", "mount -o remount,rw /mnt/ro"),
        ("/mnt/again", "mkdir /mnt/again; mount -t virtiofs ro /mnt/again"),
    ] {
        m.sh(prepare);
        if prepare != "true" {
            assert!(
                m.sh(&format!("grep ' {place} ' /proc/mounts")).contains(" rw,"),
                "the guest has it writable"
            );
        }
        for attempt in [
            "echo x >file",
            "echo x >>file",
            "echo x >new",
            "rm file",
            "mv file new",
            "mkdir new",
            "rmdir dir",
            "ln file new",
            "ln -s file new",
            "chmod 777 file",
            "chown 5 file",
            "touch file",
            "truncate -s 0 file",
            "mknod new c 1 3",
            "mkfifo new",
            "mv dir new",
            "fallocate -l 100 file",
        ] {
            let said = m.sh(&format!("cd {place}; {attempt} || echo refused"));
            // Devices cannot be made in any directory of the host, which is found first.
            let why = said.contains("Read-only file system")
                || attempt.starts_with("mknod") && said.contains("Operation not permitted");
            assert!(said.ends_with("refused") && why, "{prepare}: {attempt}: {said}");
        }
        assert_eq!(m.sh(&format!("cat {place}/file; ls {place}")), "content\ndir\nfile");
    }
    assert_eq!(state(&ro), before);
    fs::write(ro.join("file"), "other\n").unwrap();
    assert_ne!(state(&ro), before, "a change would be seen");
    fs::write(ro.join("file"), "content\n").unwrap();
}

#[test]
fn r3_1_no_link_leads_out() {
    let m = mounted();
    let dir = m.host.join("rw/links");
    fs::create_dir_all(&dir).unwrap();
    symlink("/etc/passwd", dir.join("passwd")).unwrap();
    symlink(m.host.join("outside/secret"), dir.join("absolute")).unwrap();
    symlink("../../outside/secret", dir.join("relative")).unwrap();
    symlink("../../outside", dir.join("directory")).unwrap();
    // What the links say is true, and where they lead is the guest's.
    let said = m.sh("cd /mnt/rw/links; readlink passwd; readlink relative; cat passwd | head -1; cat absolute relative directory/secret");
    let own = m.sh("head -1 /etc/passwd");
    assert!(said.starts_with(&format!("/etc/passwd\n../../outside/secret\n{own}\n")), "{said}");
    assert_eq!(said.matches("No such file or directory").count(), 3, "{said}");
    assert!(!said.contains("of the host"), "{said}");
    // Writing through them, and upward, stays in the guest too.
    let said = m.sh(
        "cd /mnt/rw/links; echo x >relative; echo x >directory/secret; cat /mnt/rw/../../outside/secret; \
        ls -d /mnt/rw/../../../../../../outside; echo $?",
    );
    assert!(said.ends_with('1') && !said.contains("of the host"), "{said}");
    assert_eq!(m.read("outside/secret"), "of the host\n");
    // A directory that becomes a link while the guest is in it.
    fs::create_dir(dir.join("swapped")).unwrap();
    fs::write(dir.join("swapped/secret"), "inside\n").unwrap();
    assert_eq!(m.sh("cat /mnt/rw/links/swapped/secret"), "inside");
    fs::rename(dir.join("swapped"), dir.join("away")).unwrap();
    symlink(m.host.join("outside"), dir.join("swapped")).unwrap();
    let said = m.sh("cat /mnt/rw/links/swapped/secret; echo over >/mnt/rw/links/swapped/secret; true");
    assert!(!said.contains("of the host"), "{said}");
    assert_eq!(m.read("outside/secret"), "of the host\n");
}

#[test]
fn r3_4_both_sides_see_changes_at_once() {
    let m = mounted();
    let file = m.host.join("rw/seen");
    for n in 0..20 {
        // Longer, shorter, of the same length; in place and by a rename.
        let text = format!("{n} {}\n", "x".repeat([10, 5000, 10, 10, 9000, 0][n % 6]));
        if n % 2 == 0 {
            fs::write(&file, &text).unwrap();
        } else {
            fs::write(m.host.join("rw/draft"), &text).unwrap();
            fs::rename(m.host.join("rw/draft"), &file).unwrap();
        }
        assert_eq!(m.sh("cat /mnt/rw/seen; stat -c %s /mnt/rw/seen"), format!("{text}{}", text.len()));
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o604)).unwrap();
    assert_eq!(m.sh("stat -c %a /mnt/rw/seen"), "604");
    fs::remove_file(&file).unwrap();
    assert!(m.sh("cat /mnt/rw/seen || true").contains("No such file"));
    fs::create_dir(m.host.join("rw/list")).unwrap();
    for n in 0..5 {
        fs::write(m.host.join(format!("rw/list/{n}")), "").unwrap();
        assert_eq!(m.sh("ls /mnt/rw/list | wc -l"), (n + 1).to_string());
    }
    // And the other way; also of a file that the guest has open.
    m.sh("cd /mnt/rw; echo guest >theirs; mkdir -p a/b; mv theirs a/b; chmod 640 a/b/theirs; ln -s b a/c");
    assert_eq!(m.read("rw/a/c/theirs"), "guest\n");
    assert_eq!(fs::metadata(m.host.join("rw/a/b/theirs")).unwrap().mode() & 0o777, 0o640);
    let said = m.sh("cd /mnt/rw; exec 3<>open; echo one >&3; cat open; mkfifo /tmp/p; echo done");
    assert_eq!(said, "one\ndone");
    assert_eq!(m.read("rw/open"), "one\n");
}

#[test]
fn r3_4_what_both_sides_append_is_all_there() {
    let m = mounted();
    let log = m.host.join("rw/log");
    fs::write(&log, "first\n").unwrap();
    // The guest has the file open all the time, and knows a length that is no longer right. A file that it makes
    // itself is opened another way.
    let script = "exec 3>>/mnt/rw/log 4>>/mnt/rw/made; touch /mnt/rw/ready; \
        for n in 1 2 3 4 5; do read x < /tmp/turn; echo guest $n >&3; echo guest $n >&4; echo > /tmp/turn; done";
    m.sh("mkfifo /tmp/turn");
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| m.sh(script));
        m.sh("while [ ! -e /mnt/rw/ready ]; do sleep 0.01; done");
        for n in 1..=5 {
            for name in ["log", "made"] {
                let mut file =
                    fs::OpenOptions::new().append(true).open(m.host.join("rw").join(name)).unwrap();
                std::io::Write::write_all(&mut file, format!("host {n}\n").as_bytes()).unwrap();
            }
            m.sh("echo > /tmp/turn; read x < /tmp/turn");
        }
        writer.join().unwrap();
    });
    let lines: String = (1..=5).map(|n| format!("host {n}\nguest {n}\n")).collect();
    assert_eq!(m.read("rw/made"), lines);
    assert_eq!(m.read("rw/log"), format!("first\n{lines}"));
    assert_eq!(m.sh("cat /mnt/rw/log"), format!("first\n{lines}").trim());
}

#[test]
fn mounts_come_and_go_in_the_guest() {
    let m = mounted();
    fs::write(m.host.join("rw/stays"), "there\n").unwrap();
    for _ in 0..5 {
        assert_eq!(
            m.sh("mkdir -p /mnt/second; mount -t virtiofs rw /mnt/second && cat /mnt/second/stays"),
            "there"
        );
        assert_eq!(m.sh("umount /mnt/second; ls -A /mnt/second"), "");
    }
    // The first too; and what is in memory survives that.
    assert_eq!(m.sh("echo kept >/deep/in/empty/f; umount /deep/in/empty && ls -A /deep/in/empty"), "");
    assert_eq!(m.sh("mount -t virtiofs empty /deep/in/empty; cat /deep/in/empty/f"), "kept");
    let said = m.sh("mount -t virtiofs no-such-tag /mnt/second || echo refused");
    assert!(said.ends_with("refused"), "{said}");
    assert_eq!(m.sh("df /deep/in/empty | tail -1 | awk '{ print $1, $6 }'"), "empty /deep/in/empty");
}

/// As root the host's owners are the guest's; what is special on the host cannot be made there.
#[test]
fn owners_modes_and_special_files() {
    let m = mounted();
    if !rustix::process::geteuid().is_root() {
        return world::missing("owners of files as on the host take root");
    }
    m.sh("cd /mnt/rw; echo x >owned; chown 12345:65534 owned; chmod 4751 owned; ln owned linked");
    let owned = fs::metadata(m.host.join("rw/owned")).unwrap();
    assert_eq!((owned.uid(), owned.gid(), owned.mode() & 0o7777, owned.nlink()), (12345, 65534, 0o4751, 2));
    std::os::unix::fs::lchown(m.host.join("rw/linked"), Some(7), Some(8)).unwrap();
    assert_eq!(m.sh("stat -c '%u:%g %h' /mnt/rw/owned"), "7:8 2");
    let said = m.sh("cd /mnt/rw; mknod null c 1 3 || echo refused; mkfifo fifo; stat -c %F fifo");
    assert!(said.contains("refused") && said.ends_with("fifo"), "{said}");
    assert!(!m.host.join("rw/null").exists());
    // A FIFO works within the guest, and holds nobody up on the host.
    assert_eq!(m.sh("cd /mnt/rw; cat fifo & echo through >fifo; wait"), "through");
}

#[test]
fn mounts_that_cannot_be_are_refused() {
    let host = scratch();
    let file = host.path().join("file");
    fs::write(&file, "").unwrap();
    let start =
        |mount: Mount| small().mount(Mount::empty("taken")).mount(mount).start().map(drop).unwrap_err();
    let root = |e: &Error| matches!(e, Error::Root { .. });
    let mount = |e: &Error| matches!(e, Error::Mount { .. });
    let e = start(Mount::directory("a", host.path().join("absent")));
    assert!(root(&e) && e.kind() == std::io::ErrorKind::NotFound, "{e}");
    let e = start(Mount::directory("a", &file));
    assert!(root(&e) && e.kind() == std::io::ErrorKind::NotADirectory, "{e}");
    for bad in [
        Mount::empty("taken"),
        Mount::empty(""),
        Mount::empty("x".repeat(37)),
        Mount::empty("a").at("relative"),
        Mount::empty("a\0b"),
    ] {
        let e = start(bad);
        assert!(mount(&e), "{e:?}");
    }
}

/// A directory as root and mounts in it, one over a directory of it.
#[test]
fn mounts_in_a_directory_root() {
    let host = scratch();
    let (root, data) = (host.path().join("root"), host.path().join("data"));
    directory_root(&root);
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "of the mount\n").unwrap();
    let builder = Instance::builder(Source::directory(&root).unwrap()).memory_mb(160);
    let machine = builder.mount(Mount::directory("d", &data).at("/data").writable(true)).start().unwrap();
    assert_eq!(
        sh(&machine, "cat /data/file; echo more >>/data/file; ls -A /data; echo x >/outside"),
        "of the mount\nfile"
    );
    drop(machine);
    assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "of the mount\nmore\n");
    assert_eq!(fs::read_to_string(root.join("data/file")).unwrap(), "of the host\n");
    assert!(!root.join("outside").exists());
}
