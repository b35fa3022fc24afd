//! The store of snapshots of file systems: several processes, kill -9, a full disk, damage; and programs that write
//! while a snapshot is taken.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use cc::oci::{Client, Digest};
use cc::{FileSystemSnapshot, FileSystemSnapshotOptions, Instance};

use crate::support::{SmallDisk, compiled, install, scratch, sh, small, wait_until};
use crate::world::{self, oci};

const STORE: &str = "CC_TEST_STORE";
const MODE: &str = "CC_TEST_MODE";

fn client(store: &Path) -> Client {
    Client::builder().cache_dir(store).docker_config(None).build().unwrap()
}

fn take(machine: &Instance, store: &Path) -> Result<FileSystemSnapshot, cc::Error> {
    machine.snapshot_filesystem_with(&FileSystemSnapshotOptions::new().cache_dir(store))
}

/// Changes of some megabytes that tell by themselves whether they are whole.
fn change(machine: &Instance, n: u32) {
    sh(
        machine,
        &format!("printf '%04000d' {n} > /srv/n; yes \"$(cat /srv/n)\" | head -c 4001000 > /srv/data"),
    );
}

fn assert_whole(snapshot: &FileSystemSnapshot) {
    let root = cc::vfs::Overlay::new(snapshot.layers().to_vec(), cc::vfs::Limits::default()).unwrap();
    let line = oci::read(&root, "srv/n").unwrap();
    let data = oci::read(&root, "srv/data").unwrap();
    let whole = data.chunks_exact(4001).all(|found| found.strip_suffix(b"\n") == Some(&line));
    assert!(data.len() == 4_001_000 && whole, "{:?}", &line[3990..]);
}

/// Not a test of its own: what other tests start as another process.
#[test]
fn child_takes_snapshots() {
    let (Ok(store), Ok(mode)) = (std::env::var(STORE), std::env::var(MODE)) else { return };
    let store = Path::new(&store);
    let machine = small().start().unwrap();
    match mode.strip_prefix("from ") {
        // Until it is killed.
        Some(first) => {
            println!("\nbegins");
            for n in first.parse().unwrap().. {
                change(&machine, n);
                println!("\nkey {}", take(&machine, store).unwrap().key());
            }
        }
        None => {
            change(&machine, 7);
            println!("\nbegins");
            wait_until("the other is ready", || store.join("go").exists());
            println!("\nkey {}", take(&machine, store).unwrap().key());
        }
    }
}

fn child(store: &Path, mode: &str) -> (Child, impl Iterator<Item = String> + use<>) {
    let variables = [(STORE, store.to_str().unwrap()), (MODE, mode)];
    let mut command: Command = oci::this_test("fs_snapshot_store::child_takes_snapshots", &variables);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    (child, out.lines().map_while(Result::ok).filter(|line| line == "begins" || line.starts_with("key ")))
}

fn left(store: &Path, part: &str) -> usize {
    fs::read_dir(store.join("oci/1").join(part)).unwrap().count()
}

#[test]
fn processes_that_take_the_same_snapshot_at_once_take_one() {
    let store = scratch();
    let mut children: Vec<_> = (0..2).map(|_| child(store.path(), "once")).collect();
    for (_, lines) in &mut children {
        assert_eq!(lines.next().as_deref(), Some("begins"));
    }
    fs::write(store.path().join("go"), "").unwrap();
    let keys: Vec<String> = children.iter_mut().map(|(_, lines)| lines.next().unwrap()).collect();
    for (child, _) in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(keys[0], keys[1]);
    let found = client(store.path()).snapshots().unwrap();
    assert!(found.len() == 1 && keys[0] == format!("key {}", found[0].key), "{found:?} {keys:?}");
    assert_whole(&client(store.path()).snapshot(&found[0].key).unwrap());
    assert_eq!(["layers", "work", "locks"].map(|part| left(store.path(), part)), [2, 0, 0]);
}

#[test]
fn r6_7_kill_9_while_taking_a_snapshot_never_harms_the_store() {
    let store = scratch();
    let client = client(store.path());
    let mut taken: Vec<Digest> = Vec::new();
    let mut whole_ones = BTreeSet::new();
    let mut unfinished = 0;
    for round in 0..5u32 {
        let (mut child, mut lines) = child(store.path(), &format!("from {}", 1000 + round * 100));
        assert_eq!(lines.next().as_deref(), Some("begins"));
        // One is finished, then at any moment of the next ones.
        let begin = Instant::now();
        let first = lines.next().unwrap();
        let whole = begin.elapsed();
        taken.push(first.strip_prefix("key ").unwrap().parse().unwrap());
        std::thread::sleep(whole * round / 4);
        child.kill().unwrap();
        child.wait().unwrap();
        unfinished += left(store.path(), "work");
        let listed = client.snapshots().unwrap();
        assert!(
            taken.iter().all(|key| listed.iter().any(|entry| entry.key == *key)),
            "what was told is there"
        );
        for entry in listed.into_iter().filter(|entry| whole_ones.insert(entry.key.clone())) {
            assert_whole(&client.snapshot(&entry.key).unwrap());
        }
    }
    println!("{unfinished} snapshots were cut off");
    client.prune().unwrap();
    assert_eq!(["work", "locks"].map(|part| left(store.path(), part)), [0, 0]);
    let listed = client.snapshots().unwrap();
    assert!(listed.len() >= 5);
    for entry in listed {
        assert_whole(&client.snapshot(&entry.key).unwrap());
        client.remove_snapshot(&entry.key).unwrap();
    }
    assert_eq!(["layers", "snapshots", "work", "locks"].map(|part| left(store.path(), part)), [0; 4]);
}

#[test]
fn a_damaged_snapshot_is_absent_and_taken_anew() {
    let store = scratch();
    let machine = small().start().unwrap();
    change(&machine, 1);
    let other = take(&machine, store.path()).unwrap().key().clone();
    change(&machine, 2);
    let key = take(&machine, store.path()).unwrap().key().clone();
    let base = store.path().join("oci/1");
    let record = |key: &Digest| base.join(format!("snapshots/sha256-{}.json", key.hex()));
    let text = fs::read(record(&key)).unwrap();
    let flipped = |at: usize| {
        let mut text = text.clone();
        text[at] ^= 1;
        fs::write(record(&key), text).unwrap();
    };
    let layers = || {
        let layers = fs::read_dir(base.join("layers")).unwrap().map(|e| e.unwrap().path());
        layers.filter(|layer| layer.join("tar").metadata().unwrap().len() > 3_000_000).collect::<Vec<_>>()
    };
    let cut_tars = || {
        for layer in layers() {
            fs::OpenOptions::new().write(true).open(layer.join("tar")).unwrap().set_len(70_000).unwrap();
        }
    };
    assert_eq!(layers().len(), 2);
    let damages: [(&str, &dyn Fn()); 7] = [
        ("flipped at the start", &|| flipped(20)),
        ("flipped in the middle", &|| flipped(text.len() / 2)),
        ("flipped at the end", &|| flipped(text.len() - 3)),
        ("cut", &|| fs::write(record(&key), &text[..text.len() / 2]).unwrap()),
        ("another's", &|| _ = fs::copy(record(&other), record(&key)).unwrap()),
        ("no layers", &|| layers().iter().for_each(|layer| fs::remove_dir_all(layer).unwrap())),
        ("short layers", &cut_tars),
    ];
    for (what, damage) in damages {
        damage();
        let error = client(store.path()).snapshot(&key).unwrap_err();
        assert!(matches!(error, cc::oci::Error::NoSnapshot { .. }), "{what}: {error}");
        let again = take(&machine, store.path()).unwrap();
        assert_eq!(again.key(), &key, "{what}");
        assert_whole(&client(store.path()).snapshot(&key).unwrap());
    }
}

/// A record that somebody made up, with a right digest, leads nowhere.
#[test]
fn made_up_records_are_absent() {
    let store = scratch();
    let machine = small().start().unwrap();
    change(&machine, 1);
    let key = take(&machine, store.path()).unwrap().key().clone();
    let path = store.path().join(format!("oci/1/snapshots/sha256-{}.json", key.hex()));
    let record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let text = record["text"].as_str().unwrap().to_owned();
    let write = |text: &str| {
        let record = serde_json::json!({"digest": Digest::of(text.as_bytes()).to_string(), "text": text});
        fs::write(&path, record.to_string()).unwrap();
    };
    let opened = || client(store.path()).snapshot(&key);
    write(&text);
    assert_whole(&opened().unwrap());
    let forge = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut forged: serde_json::Value = serde_json::from_str(&text).unwrap();
        change(&mut forged);
        write(&forged.to_string());
        let error = opened().unwrap_err();
        assert!(matches!(error, cc::oci::Error::NoSnapshot { .. }), "{forged}: {error}");
        assert_eq!(client(store.path()).snapshots().unwrap(), [], "{forged}");
    };
    let other = Digest::of(b"").to_string();
    forge(&|r| r["changes"] = other.clone().into());
    forge(&|r| r["parent"] = serde_json::json!({"userland": other}));
    forge(&|r| r["parent"] = "directory".into());
    forge(&|r| r["directory"] = serde_json::json!({"path": "/", "user_as_root": false}));
    forge(&|r| r["layers"] = serde_json::json!([]));
    forge(&|r| r["layers"] = vec![other.clone(); 1025].into());
    forge(&|r| r["layers"][1] = "sha256:../../../../etc/passwd".into());
    forge(&|r| r["config"] = "{}".into());
    write("no text at all");
    assert!(opened().is_err());
    fs::write(&path, vec![b'['; 100_000]).unwrap();
    assert!(opened().is_err());
}

#[test]
fn a_full_disk_is_a_clean_error() {
    let Some(dir) = SmallDisk::new(8) else { return };
    let machine = small().start().unwrap();
    sh(&machine, "yes $(printf '%04000d' 1) | head -c 12000000 > /srv/large");
    let error = take(&machine, dir.path()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error:?}");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("the disk is full"), "{source}");
    assert_eq!(client(dir.path()).snapshots().unwrap(), []);
    assert_eq!(["work", "locks"].map(|part| left(dir.path(), part)), [0, 0]);
    // There is room for less, and the machine has not suffered.
    sh(&machine, "rm /srv/large");
    change(&machine, 3);
    assert_whole(&take(&machine, dir.path()).unwrap());
}

/// Counts in many mapped pages, one after the other, for ever, and never synchronises; the last page is first. With an
/// argument it shows its extended attribute.
const COUNTING: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/xattr.h>
#include <unistd.h>
#define PAGES 1024

int main(int count, char **arguments) {
    char value[4];
    if (count > 1) {
        int n = getxattr("/srv/mapped", "user.x", value, 4);
        return n == 3 && !memcmp(value, "\0=\xff", 3) ? 0 : 1;
    }
    int file = open("/srv/mapped", O_RDWR | O_CREAT, 0644);
    if (file < 0 || ftruncate(file, PAGES * 4096) || fsetxattr(file, "user.x", "\0=\xff", 3, 0)) return 1;
    volatile unsigned long *mapped = mmap(0, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) return 2;
    for (unsigned long n = 1;; n++) {
        for (int page = PAGES - 1; page >= 0; page--) mapped[page * 512] = n;
        if (n == 3 && write(1, "counts\n", 7) != 7) return 3;
    }
}
"#;

/// Data that programs have only put into mapped files is in the snapshot, and all of it is of one moment.
#[test]
fn programs_that_write_stand_still_for_the_snapshot() {
    let store = scratch();
    let Some(program) = compiled(COUNTING) else {
        return world::missing("a C compiler with a static C library");
    };
    let machine = small().start().unwrap();
    install(&machine, "/bin/counting", &program);
    let mut child = machine.command("counting").stdout(cc::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "counts\n");
    let (mut last, mut taken) = (0, None);
    for _ in 0..4 {
        let snapshot = take(&machine, store.path()).unwrap();
        let root = cc::vfs::Overlay::new(snapshot.layers().to_vec(), cc::vfs::Limits::default()).unwrap();
        let bytes = oci::read(&root, "srv/mapped").unwrap();
        let counts: Vec<u64> =
            bytes.chunks(4096).map(|page| u64::from_le_bytes(page[..8].try_into().unwrap())).collect();
        // The later pages are counted first: never behind the earlier ones, and never more than one ahead.
        assert!(counts.len() == 1024, "{}", counts.len());
        assert!(
            counts.is_sorted() && counts[1023] - counts[0] <= 1,
            "{:?}",
            counts.iter().collect::<BTreeSet<_>>()
        );
        let sum = counts.iter().sum::<u64>();
        assert!(sum > last, "it goes on in between: {last} {sum}");
        (last, taken) = (sum, Some(snapshot));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let again = Instance::builder(taken.unwrap()).memory_mb(160).start().unwrap();
    assert!(again.command("counting").arg("show").status().unwrap().success());
}
