//! Snapshots of file systems: what is in them, their keys, and what others do to the store meanwhile.

use std::fs;
use std::path::Path;

use cc::oci::{Client, Parent};
use cc::{Error, FileSystemSnapshot, FileSystemSnapshotOptions, Instance, InstanceBuilder, Source};

use crate::images::directory_root;
use crate::support::{scratch, sh, small};
use crate::world;

fn into(store: &Path) -> FileSystemSnapshotOptions {
    FileSystemSnapshotOptions::new().cache_dir(store)
}

fn client(store: &Path) -> Client {
    Client::builder().cache_dir(store).docker_config(None).build().unwrap()
}

fn from(snapshot: &FileSystemSnapshot) -> InstanceBuilder {
    Instance::builder(snapshot).memory_mb(160)
}

/// Everything about the files of a machine but for when they were read.
const LIST: &str = "cd /; { find srv etc/passwd* etc/group* home usr/local var -print0 | sort -z > /tmp/names
    xargs -0 stat -c '%n %F %a %u:%g %h %t:%T %s %Y' < /tmp/names
    find srv etc/passwd etc/groups -type f -print0 | sort -z | xargs -0 md5sum
    find srv -type l | sort | xargs readlink; ls etc; } | tr '\\377' '?'";

const CHANGE: &str = "cd /srv; umask 022
    echo one > file; ln file linked; mkdir -p deep/er; ln file deep/er/too; chmod 4751 file
    ln -s ../nowhere link; mkfifo pipe; mknod null c 1 3; mknod disk b 259 70000
    dd if=/dev/zero of=sparse bs=1 count=1 seek=5000000 2>/dev/null; echo data >> sparse
    mkdir owned; chown 12:34 owned; chmod 1770 owned; touch -d '2001-02-03 04:05:06' old
    printf 'x' > \"$(printf 'new\\nline \\377 -rf *')\"; touch ./-n
    rm /etc/os-release; echo changed >> /etc/passwd; mv /etc/group /etc/groups
    rm -r /usr/local; mkdir -p /usr/local/own; rm -r /var/log; echo file > /var/log";

#[test]
fn everything_of_a_root_comes_back() {
    let store = scratch();
    let machine = small().start().unwrap();
    sh(&machine, CHANGE);
    let listed = sh(&machine, LIST);
    assert!(
        listed.lines().count() > 30 && listed.contains("block special") && listed.contains("103:11170"),
        "{listed}"
    );
    let snapshot = machine.snapshot_filesystem_with(&into(store.path())).unwrap();
    assert!(matches!(snapshot.parent(), Parent::Userland(_)) && snapshot.layers().len() == 2);
    assert!((1000..100_000).contains(&snapshot.size()), "a hole takes no space: {}", snapshot.size());
    sh(&machine, "echo later > /srv/later");

    let again = from(&snapshot).start().unwrap();
    assert_eq!(sh(&again, LIST), listed);
    assert!(again.timing().restored || !machine.timing().restored, "it starts as any other");
    // They are apart, and the snapshot is of its moment.
    sh(&again, "rm -r /srv/*; echo 2 > /srv/only");
    assert_eq!(sh(&machine, "cat /srv/file /srv/later"), "one\nlater");
    // A snapshot of that: a chain of three.
    let second = again.snapshot_filesystem_with(&into(store.path())).unwrap();
    assert_eq!((second.parent(), second.layers().len()), (&Parent::Snapshot(snapshot.key().clone()), 3));
    let third = from(&second).start().unwrap();
    assert_eq!(sh(&third, "ls -A /srv; cat /srv/only; ls /usr/local"), "only\n2\nown");

    // By its key from the store, also without the parent's record.
    let client = client(store.path());
    let keys: Vec<_> = client.snapshots().unwrap().into_iter().map(|entry| entry.key).collect();
    assert!(keys.len() == 2 && keys.contains(snapshot.key()) && keys.contains(second.key()));
    let opened = client.snapshot(second.key()).unwrap();
    assert_eq!((opened.key(), opened.parent(), opened.layers().len()), (second.key(), second.parent(), 3));
    client.remove_snapshot(snapshot.key()).unwrap();
    drop((snapshot, second, again, third));
    assert_eq!(client.prune().unwrap().layers, [], "all layers are the second's too");
    assert_eq!(sh(&from(&opened).start().unwrap(), "cat /srv/only"), "2");
    drop(opened);
    let opened_key = &keys.iter().find(|key| client.snapshot(key).is_ok()).unwrap();
    assert_eq!(client.remove_snapshot(opened_key).unwrap().layers.len(), 3);
    let gone = client.snapshot(opened_key).unwrap_err();
    assert!(matches!(gone, cc::oci::Error::NoSnapshot { .. }) && gone.kind() == std::io::ErrorKind::NotFound);
    assert!(matches!(client.remove_snapshot(opened_key), Err(cc::oci::Error::NoSnapshot { .. })));
}

#[test]
fn equal_changes_have_equal_keys_and_others_not() {
    let (here, there) = (scratch(), scratch());
    let make = "mkdir /srv/d; seq 1000 > /srv/d/a; ln /srv/d/a /srv/d/b; rm /etc/os-release";
    let (one, two) = (small().start().unwrap(), small().start().unwrap());
    sh(&one, make);
    sh(
        &two,
        &format!("sleep 1.1; echo x > /srv/other; rm /srv/other; {make}; echo noise > /srv/d/noise.tmp"),
    );
    let quiet = |store: &Path| into(store).exclude("*.tmp");
    let first = one.snapshot_filesystem_with(&into(here.path())).unwrap();
    let same = two.snapshot_filesystem_with(&quiet(there.path())).unwrap();
    assert_eq!(first.key(), same.key(), "other times, another store, and the difference left out");
    // What is there already is taken, with its times.
    let taken = two.snapshot_filesystem_with(&quiet(here.path())).unwrap();
    let lengths = |s: &FileSystemSnapshot| s.layers().iter().map(|l| l.index().tar_len()).collect::<Vec<_>>();
    assert_eq!((taken.key(), lengths(&taken)), (first.key(), lengths(&first)));
    let time = |s: &FileSystemSnapshot| sh(&from(s).start().unwrap(), "stat -c %Y /srv/d/a");
    assert_eq!(time(&taken), time(&first));
    assert_ne!(time(&same), time(&first));

    let mut keys = vec![first.key().clone()];
    keys.push(two.snapshot_filesystem_with(&into(here.path())).unwrap().key().clone());
    for change in [
        "chmod 600 /srv/d/a",
        "chown 1 /srv/d/a",
        "echo >> /srv/d/b",
        "mv /srv/d/b /srv/d/c",
        "rm /srv/d/c; cp /srv/d/a /srv/d/c",
        "rm /etc/passwd",
        "mknod /srv/n c 1 3",
        "rm /srv/n; mknod /srv/n c 1 5",
    ] {
        sh(&one, change);
        keys.push(one.snapshot_filesystem_with(&into(here.path())).unwrap().key().clone());
    }
    let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
    assert_eq!(distinct.len(), keys.len(), "{keys:?}");
    // The same changes to another parent.
    let child = from(&first).start().unwrap();
    let unchanged = child.snapshot_filesystem_with(&into(here.path())).unwrap();
    assert!(!keys.contains(unchanged.key()));
    // A clone has the parent that its machine has.
    let clone = one.fork(1).unwrap().remove(0);
    let of_clone = clone.snapshot_filesystem_with(&into(here.path())).unwrap();
    assert_eq!(Some(of_clone.key()), keys.last());
}

#[test]
fn what_is_left_out_is_as_the_parent_has_it() {
    let store = scratch();
    let machine = small().start().unwrap();
    sh(
        &machine,
        "mkdir -p /var/cache/a/b /srv/keep; echo 1 > /var/cache/a/b/c; echo 1 > /srv/x.tmp; echo 1 > /srv/keep/x",
    );
    sh(&machine, "rm /etc/os-release; echo more >> /etc/passwd; ln /srv/keep/x /srv/link");
    let options = into(store.path())
        .exclude("/var/cache/**")
        .exclude("*.tmp")
        .exclude("/srv/keep")
        .exclude("/etc/os-release");
    let snapshot = machine.snapshot_filesystem_with(&options).unwrap();
    let again = from(&snapshot).start().unwrap();
    let seen = "find /var/cache /srv; cat /srv/link; grep -c busybox /etc/os-release; tail -n 1 /etc/passwd";
    assert_eq!(sh(&again, seen), "/var/cache\n/srv\n/srv/link\n1\n3\nmore");
    let error = machine.snapshot_filesystem_with(&into(store.path()).exclude("[")).unwrap_err();
    assert!(matches!(error, Error::Exclude { .. }), "{error}");
}

#[test]
fn an_image_stays_the_image_it_was() {
    let image = world::client().pull(world::entry()).unwrap();
    let machine = Instance::builder(&image).memory_mb(160).start().unwrap();
    let said = |machine: &Instance| {
        let out = machine.entrypoint_command(["x"]).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    let output = said(&machine);
    assert!(output.contains("entry x\napp\nstaff\n/data/dir"), "{output}");
    let root = |script: &str| {
        let out = machine.command("sh").user("0").args(["-c", script]).output().unwrap();
        assert!(out.status.success(), "{out:?}");
    };
    root("rm -r /data/to-dir /data/emptied; mkdir /data/emptied; echo new > /data/new; rm /data/returns");
    // To where the image is, without being told.
    let snapshot = machine.snapshot_filesystem().unwrap();
    assert!(matches!(snapshot.parent(), Parent::Image(_)), "{snapshot:?}");
    assert_eq!(snapshot.layers().len(), 4);
    assert!(world::client().snapshots().unwrap().iter().any(|entry| entry.key == *snapshot.key()));
    // Its layers are needed whatever becomes of the image.
    let key = snapshot.key().clone();
    let other = scratch();
    let copied = machine.snapshot_filesystem_with(&into(other.path())).unwrap();
    assert_eq!(copied.key(), &key);
    drop((machine, snapshot, copied));
    for snapshot in [world::client().snapshot(&key).unwrap(), client(other.path()).snapshot(&key).unwrap()] {
        let again = from(&snapshot).start().unwrap();
        assert_eq!(said(&again), output);
        assert_eq!(again.image_config(), Some(image.config()));
        let out = again
            .command("sh")
            .args(["-c", "cd /data; ls emptied; cat new; ls -d to-dir returns"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), "new\n", "{out:?}");
    }
    world::client().remove_snapshot(&key).unwrap();
}

#[test]
fn a_directory_must_stay_below_its_snapshots() {
    let (dir, store) = (scratch(), scratch());
    directory_root(dir.path());
    fs::create_dir_all(dir.path().join("full/of/things")).unwrap();
    fs::write(dir.path().join("full/of/things/x"), "x").unwrap();
    let machine = Instance::builder(Source::directory(dir.path()).unwrap()).memory_mb(160).start().unwrap();
    let changes = "cd /data; echo changed > file; rm linked passwd; rm -r /full; mkdir /full; echo mine > /full/y; \
        rm -r sub; echo sub > sub; ln /full/y y; chmod 2750 /full; chown 7:8 /bin/cat; touch -d '2001-02-03 04:05:06' y";
    sh(&machine, changes);
    let list = "cd /; find bin data full -type f -o -type d | sort | while read f; do stat -c '%n %F %a %u:%g %h %s %Y' $f; done; cat /data/*";
    let listed = sh(&machine, list);
    let snapshot = machine.snapshot_filesystem_with(&into(store.path())).unwrap();
    assert_eq!((snapshot.parent(), snapshot.layers().len()), (&Parent::Directory(dir.path().to_owned()), 1));
    let again = from(&client(store.path()).snapshot(snapshot.key()).unwrap()).start().unwrap();
    assert_eq!(sh(&again, list), listed);
    sh(&again, "echo 2 >> /data/y; rm /data/file");
    let second = again.snapshot_filesystem_with(&into(store.path())).unwrap();
    assert_eq!(second.directory(), Some(dir.path()));
    let third = from(&second).start().unwrap();
    assert_eq!(
        sh(&third, "cat /full/y; ls /data; cat /bin/busybox | wc -c"),
        sh(&again, "cat /full/y; ls /data; cat /bin/busybox | wc -c")
    );
    assert_eq!(sh(&third, "cat /full/y"), "mine\n2");
    let place = dir.path().to_owned();
    drop((machine, again, third, dir));
    let gone = from(&second).start().unwrap_err();
    assert!(matches!(gone, Error::Root { .. }) && !place.exists(), "{gone:?}");
}

#[test]
fn names_that_no_layer_holds_are_refused_and_nothing_is_left() {
    let store = scratch();
    let machine = small().start().unwrap();
    for hostile in [".wh.x", ".wh..wh..opq", ".wh."] {
        sh(&machine, &format!("touch /srv/{hostile}"));
        let error = machine.snapshot_filesystem_with(&into(store.path())).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
        assert!(matches!(error, Error::FileSystemSnapshot(cc::oci::Error::Changes { .. })), "{error:?}");
        sh(&machine, &format!("rm /srv/{hostile}"));
    }
    assert_eq!(client(store.path()).snapshots().unwrap(), []);
    assert_eq!(client(store.path()).prune().unwrap().bytes(), 0);
    // Left out they do no harm; names that only look odd never did.
    sh(
        &machine,
        "touch /srv/.wh.x; mkdir '/srv/..x' '/srv/ '; touch '/srv/GNUSparseFile.0' '/srv/a=b' '/srv/..x/...'",
    );
    let snapshot = machine.snapshot_filesystem_with(&into(store.path()).exclude(".wh.*")).unwrap();
    assert_eq!(
        sh(&from(&snapshot).start().unwrap(), "find /srv | sort"),
        "/srv\n/srv/ \n/srv/..x\n/srv/..x/...\n/srv/GNUSparseFile.0\n/srv/a=b"
    );
    machine.close().unwrap();
    assert!(matches!(machine.snapshot_filesystem(), Err(Error::NotRunning(_))));
}

/// Whoever stops the guest's processes lets them go on, and for nobody else.
#[test]
fn snapshots_of_both_kinds_may_be_taken_at_once() {
    let store = scratch();
    let machine = small().start().unwrap();
    sh(&machine, "echo x > /srv/x; sleep 1000 > /dev/null 2>&1 & echo $! > /tmp/running");
    sh(&machine, "sleep 1000 > /dev/null 2>&1 & echo $! > /tmp/stopped");
    // By another shell: a group that is orphaned while a member is stopped gets SIGHUP.
    sh(&machine, "kill -STOP $(cat /tmp/stopped)");
    let states = "for p in running stopped; do cut -d' ' -f3 /proc/$(cat /tmp/$p)/stat; done";
    let (keys, clones) = std::thread::scope(|scope| {
        let keys: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| machine.snapshot_filesystem_with(&into(store.path())).unwrap().key().clone())
            })
            .collect();
        let clones: Vec<_> = (0..2).map(|_| scope.spawn(|| machine.fork(1).unwrap().remove(0))).collect();
        let keys: Vec<_> = keys.into_iter().map(|key| key.join().unwrap()).collect();
        (keys, clones.into_iter().map(|clone| clone.join().unwrap()).collect::<Vec<_>>())
    });
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    for one in clones.iter().chain([&machine]) {
        assert_eq!(sh(one, states), "S\nT");
    }
    // A paused machine runs on for it, and is paused again.
    machine.pause().unwrap();
    assert_eq!(machine.snapshot_filesystem_with(&into(store.path())).unwrap().key(), &keys[0]);
    std::thread::scope(|scope| {
        let command = scope.spawn(|| sh(&machine, "cat /srv/x"));
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(!command.is_finished(), "nothing runs in a paused machine");
        machine.resume().unwrap();
        assert_eq!(command.join().unwrap(), "x");
    });
}
