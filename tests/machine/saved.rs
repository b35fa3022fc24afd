//! Machines put away in directories, and gone on from by other processes.

use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::SystemTime;

use cc::process::Stdio;
use cc::{Error, Instance, Mount, Snapshot, Source};

use crate::support::{scratch, sh, small};
use crate::world::{self, SHOW_DATA, SMALL_DATA, cc as program, client, said};

/// A script that holds what a machine can hold, and tells about it when it is asked.
const HOLDER: &str = "cd /srv/held; exec 3<>gone; rm gone; echo kept >&3; exec 4</mnt/ro/file; exec 5>>/mnt/rw/log; \
    v=mine; mkfifo /tmp/go /tmp/done; touch /tmp/ready; \
    while read a < /tmp/go; do echo $a >&5; \
    echo $v $a $(cat /proc/self/fd/3) $(cat /proc/self/fd/4) $(pwd) > /tmp/done; done";

fn ask(machine: &Instance, word: &str) -> String {
    sh(machine, &format!("echo {word} > /tmp/go & cat /tmp/done"))
}

#[test]
fn a_saved_machine_goes_on_as_it_was() {
    let dir = scratch();
    let place = |name: &str| dir.path().join(name);
    for name in ["ro", "rw"] {
        fs::create_dir(place(name)).unwrap();
    }
    fs::write(place("ro/file"), "of the host\n").unwrap();
    let parent = small()
        .env("E", "of the parent")
        .mount(Mount::directory("ro", place("ro")))
        .mount(Mount::directory("rw", place("rw")).writable(true))
        .mount(Mount::empty("empty"))
        .start()
        .unwrap();
    sh(
        &parent,
        "mkdir /srv/held; echo before > /srv/held/file; echo in tmp > /tmp/file; echo e > /mnt/empty/e",
    );
    sh(&parent, "head -c 300000 /dev/urandom > /srv/large; ln /srv/large /srv/linked; rm /bin/wc");
    let sum = sh(&parent, "md5sum < /srv/large");
    let _holder = parent.command("sh").args(["-c", HOLDER]).stdout(Stdio::null()).spawn().unwrap();
    sh(&parent, "while [ ! -e /tmp/ready ]; do sleep 0.01; done");
    let name = sh(&parent, "cat /etc/hostname");
    parent.snapshot().unwrap().save(place("saved")).unwrap();
    // Nothing else is left of the machine.
    drop(parent);

    let snapshot = Snapshot::open(place("saved")).unwrap();
    assert_eq!(snapshot.memory_mb(), 160);
    let machines = [Instance::new(&snapshot).unwrap(), Instance::new(snapshot).unwrap()];
    for (n, machine) in machines.iter().enumerate() {
        assert!(machine.timing().restored);
        assert_eq!(
            sh(machine, "cat /srv/held/file /tmp/file /mnt/empty/e; echo $E"),
            "before\nin tmp\ne\nof the parent"
        );
        assert_eq!(
            sh(machine, "md5sum < /srv/linked; stat -c %h /srv/large; [ -e /bin/wc ] || echo none"),
            format!("{sum}\n2\nnone")
        );
        assert_eq!(ask(machine, &format!("go{n}")), format!("mine go{n} kept of the host /srv/held"));
        sh(machine, &format!("echo {n} > /srv/held/file; rm /srv/large"));
        // A name of its own, in all places.
        let own = sh(machine, "cat /etc/hostname; hostname; grep -c \"$(hostname)\" /etc/hosts");
        let lines: Vec<&str> = own.lines().collect();
        assert!(lines[0] != name && lines[0] == lines[1] && lines[2] == "2", "{own}");
    }
    assert_ne!(sh(&machines[0], "hostname"), sh(&machines[1], "hostname"));
    for (n, machine) in machines.iter().enumerate() {
        assert_eq!(sh(machine, "cat /srv/held/file; md5sum < /srv/linked"), format!("{n}\n{sum}"));
    }
    // Mounts of the host are the host's, in all of them.
    assert_eq!(fs::read_to_string(place("rw/log")).unwrap(), "go0\ngo1\n");
    // What was loaded can be saved again, and the first may go meanwhile.
    machines[1].snapshot().unwrap().save(place("again")).unwrap();
    fs::remove_dir_all(place("saved")).unwrap();
    assert_eq!(ask(&machines[0], "still"), "mine still kept of the host /srv/held");
    drop(machines);
    let machine = Instance::new(Snapshot::open(place("again")).unwrap()).unwrap();
    assert_eq!(ask(&machine, "more"), "mine more kept of the host /srv/held");
    assert_eq!(sh(&machine, "cat /srv/held/file"), "1");
    // A mount whose directory is gone cannot be had.
    drop(machine);
    fs::rename(place("rw"), place("moved")).unwrap();
    let error = Snapshot::open(place("again")).unwrap_err();
    assert!(matches!(error, Error::Snapshot(_)) && chain(&error).contains("rw"), "{}", chain(&error));
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(e) = next {
        text += &format!(": {e}");
        next = e.source();
    }
    text
}

/// Roots of each kind, from which more is read after the restore than before the snapshot.
#[test]
fn roots_of_images_and_directories_are_saved() {
    let dir = scratch();
    let image = client().pull(world::small()).unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::write(root.join("bin/sh"), crate::support::busybox()).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(root.join("bin/sh"), mode).unwrap();
    fs::write(root.join("file"), "of the directory").unwrap();
    fs::write(root.join("other"), "for later").unwrap();

    let machine = Instance::builder(image).memory_mb(160).start().unwrap();
    sh(&machine, "echo more > /data/stays");
    machine.snapshot().unwrap().save(dir.path().join("image")).unwrap();
    let machine = Instance::builder(Source::directory(&root).unwrap()).memory_mb(160).start().unwrap();
    let run = |m: &Instance, script: &str| {
        let out = m.command("/bin/sh").args(["-c", script]).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    assert_eq!(run(&machine, "read x < /file; echo $x changed > /file; echo $x"), "of the directory\n");
    machine.snapshot().unwrap().save(dir.path().join("directory")).unwrap();
    drop(machine);

    let machine = Instance::new(Snapshot::open(dir.path().join("image")).unwrap()).unwrap();
    assert_eq!(
        sh(&machine, SHOW_DATA),
        SMALL_DATA
            .replace("stays: first\nto-dir", "stays: more\nto-dir")
            .replace("to-link: first", "to-link: more")
            .trim()
    );
    assert_eq!(machine.image_config().unwrap().cmd, ["sh"]);
    let machine = Instance::new(Snapshot::open(dir.path().join("directory")).unwrap()).unwrap();
    assert_eq!(
        run(&machine, "read x < /file; read y < /other; echo $x $y"),
        "of the directory changed for later\n"
    );
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "of the directory");
}

fn flip(path: &Path, at: u64, bit: u8) {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ bit]).unwrap();
}

#[test]
fn r5_7_what_is_damaged_is_an_error() {
    let dir = scratch();
    let place = dir.path().join("saved");
    let parent = small().start().unwrap();
    sh(&parent, "head -c 100000 /dev/urandom > /srv/data");
    let snapshot = parent.snapshot().unwrap();
    snapshot.save(&place).unwrap();
    let refused = |what: &str| {
        let error = Snapshot::open(&place).and_then(Instance::new).expect_err(what);
        assert!(matches!(error, Error::Snapshot(_)), "{what}: {error}");
        assert!(matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::NotFound), "{what}: {error}");
    };
    let mut seed = 7u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 20) % below
    };
    let names: Vec<String> =
        fs::read_dir(&place).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(
        ["state", "memory", "files", "data"].iter().all(|name| names.iter().any(|n| n == name)),
        "{names:?}"
    );
    for name in &names {
        let path = place.join(name);
        let len = fs::metadata(&path).unwrap().len();
        // The tar of a layer is taken by its length, as in the store of images.
        let rounds = if name.ends_with(".tar") { 0 } else { 25 };
        for _ in 0..rounds {
            let (at, bit) = (random(len), 1 << random(8));
            flip(&path, at, bit);
            refused(&format!("bit {bit:#x} of byte {at} of {name}"));
            flip(&path, at, bit);
        }
        let away = dir.path().join("away");
        fs::rename(&path, &away).unwrap();
        refused(&format!("without {name}"));
        let half = fs::read(&away).unwrap();
        fs::write(&path, &half[..half.len() / 2]).unwrap();
        refused(&format!("half of {name}"));
        fs::rename(&away, &path).unwrap();
    }
    for name in ["state", "files"] {
        // The number of the format, which is not the checksum's.
        flip(&place.join(name), 8, 0x02);
        let error = Snapshot::open(&place).and_then(Instance::new).unwrap_err();
        assert!(chain(&error).contains("has format 3, this version reads 1"), "{}", chain(&error));
        flip(&place.join(name), 8, 0x02);
    }
    assert_eq!(sh(&Instance::new(Snapshot::open(&place).unwrap()).unwrap(), "echo well"), "well");

    // A name that is taken stays what it is, and what fails leaves nothing.
    let taken = snapshot.save(&place).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(snapshot.save(dir.path().join("file/below")).is_err());
    assert_eq!(Snapshot::open(dir.path().join("absent")).unwrap_err().kind(), ErrorKind::NotFound);
    let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["file", "saved"]);
}

#[test]
fn two_may_save_under_one_name() {
    let dir = scratch();
    let place = dir.path().join("saved");
    let parent = small().start().unwrap();
    let snapshot = parent.snapshot().unwrap();
    let results: Vec<Result<(), Error>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| snapshot.save(&place))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1, "{results:?}");
    let others = results.iter().filter_map(|r| r.as_ref().err());
    assert!(others.into_iter().all(|e| e.kind() == ErrorKind::AlreadyExists), "{results:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(sh(&Instance::new(Snapshot::open(&place).unwrap()).unwrap(), "echo well"), "well");
}

#[test]
fn the_program_keeps_snapshots_by_name() {
    let begun = SystemTime::now();
    let script =
        "echo made > /data/made; (while :; do read x < /data/ask; echo $x there > /data/answer; done) & ";
    let fifos = "mkfifo /data/ask /data/answer; ";
    let (status, out, err) = said(&[
        "snapshot",
        "create",
        "one.a-b_c",
        "--memory",
        "160",
        world::small(),
        "--",
        "sh",
        "-c",
        &format!("{fifos}{script} echo ready"),
    ]);
    assert_eq!((status, out.as_str()), (Some(0), "ready\n"), "{err}");
    // From another process, several times, with what was running there.
    for word in ["first", "second"] {
        let ask = format!(
            "cat /data/made; echo {word} > /data/ask; cat /data/answer; cat /data/own 2>&1; echo x > /data/own"
        );
        let (status, out, err) = said(&["run", "--snapshot", "one.a-b_c", "--", "sh", "-c", &ask]);
        assert_eq!(status, Some(0), "{err}");
        assert_eq!(
            out.lines().collect::<Vec<_>>(),
            ["made", &format!("{word} there"), "cat: can't open '/data/own': No such file or directory"]
        );
    }
    assert_eq!(said(&["run", "--snapshot", "one.a-b_c", "sh", "-c", "exit 9"]).0, Some(9));

    let (status, out, _) = said(&["snapshot", "list", "--json"]);
    assert_eq!(status, Some(0));
    let lines: Vec<serde_json::Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let one = lines.iter().find(|l| l["name"] == "one.a-b_c").expect(&out);
    assert_eq!(one["memory_mb"], 160);
    assert!(one["disk_bytes"].as_u64().unwrap() > 1 << 20, "{one}");
    let made = one["created"].as_u64().unwrap();
    let begun = begun.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!((begun..begun + 600).contains(&made), "{one}");
    assert!(said(&["snapshot", "ls"]).1.contains("one.a-b_c"));

    // A command that fails leaves none; a name that is taken, or is none, is refused before anything runs.
    let create = ["snapshot", "create"];
    let (status, _, _) = said(&[&create[..], &["two", world::small(), "sh", "-c", "exit 5"]].concat());
    assert_eq!(status, Some(5));
    assert_eq!(said(&["run", "--snapshot", "two", "true"]).0, Some(69));
    for bad in ["one.a-b_c", "", ".hidden", "../up", "a/b", "a b", "é"] {
        let (status, out, err) = said(&[&create[..], &[bad, world::small(), "echo", "ran"]].concat());
        assert_eq!((status, out.as_str()), (Some(64), ""), "{bad}: {err}");
    }
    assert_eq!(said(&["run", "--snapshot", "one.a-b_c", "--memory", "99", "true"]).0, Some(64));
    assert_eq!(said(&["snapshot", "rm", "two"]).0, Some(69));

    // One that runs is not disturbed by its snapshot's removal.
    let mut child = program(&[
        "run",
        "-i",
        "--snapshot",
        "one.a-b_c",
        "sh",
        "-c",
        "echo up; read x; cat /data/made; echo $x",
    ])
    .stdin(std::process::Stdio::piped())
    .stdout(std::process::Stdio::piped())
    .spawn()
    .unwrap();
    let mut up = [0; 3];
    let stdout = child.stdout.as_mut().unwrap();
    stdout.read_exact(&mut up).unwrap();
    assert_eq!(said(&["snapshot", "rm", "one.a-b_c"]).0, Some(0));
    child.stdin.as_mut().unwrap().write_all(b"end\n").unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.status.code(), &*out.stdout), (Some(0), &b"made\nend\n"[..]));
    assert_eq!(said(&["run", "--snapshot", "one.a-b_c", "true"]).0, Some(69));
    assert!(!said(&["snapshot", "ls"]).1.contains("one.a-b_c"));
}
