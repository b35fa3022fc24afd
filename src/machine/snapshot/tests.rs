//! The memory file and the store. Whole machines are restored in the integration tests.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress};

use super::memory::{Extent, Memory, verify, write};
use super::*;
use crate::memory::{GuestRam, SavedRam};

const SIZE: u64 = 8 << 20;

/// RAM with something in some pages, and its file.
fn written() -> (tempfile::TempDir, File, Memory) {
    let ram = GuestRam::new(SIZE).unwrap();
    for page in [0u64, 1, 2, 700, 1023, 1024, 2047] {
        ram.memory().write_slice(&[page as u8 | 1; 4096], GuestAddress(page * 4096)).unwrap();
    }
    ram.memory().write_slice(b"one byte of a page", GuestAddress(1500 * 4096 + 4078)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file =
        OpenOptions::new().create_new(true).read(true).write(true).open(dir.path().join("memory")).unwrap();
    let map = write(&ram, &file).unwrap();
    (dir, file, map)
}

#[test]
fn zeros_are_left_out_and_the_rest_comes_back() {
    let (_dir, file, map) = written();
    let ranges: Vec<(u64, u64)> = map.extents.iter().map(|e| (e.offset / 4096, e.len / 4096)).collect();
    // 1023 and 1024 lie in two chunks.
    let wanted = [(0, 3), (700, 1), (1023, 1), (1024, 1), (1500, 1), (2047, 1)];
    assert_eq!(ranges.iter().map(|r| r.1).sum::<u64>(), 8);
    assert_eq!(ranges.iter().map(|r| r.0).collect::<Vec<_>>(), wanted.map(|w| w.0));
    verify(&file, &map, SIZE).unwrap();
    let ram = GuestRam::start_from(&SavedRam::of_file(file.try_clone().unwrap(), SIZE).unwrap()).unwrap();
    let mut text = [0; 18];
    ram.memory().read_slice(&mut text, GuestAddress(1500 * 4096 + 4078)).unwrap();
    assert_eq!(&text, b"one byte of a page");
    // What the guest writes stays here.
    ram.memory().write_slice(b"changed", GuestAddress(0)).unwrap();
    verify(&file, &map, SIZE).unwrap();
}

#[test]
fn r5_7_a_damaged_memory_file_is_refused() {
    let (_dir, file, map) = written();
    let mut state = 1u64;
    for _ in 0..2000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (at, bit) = ((state >> 20) % SIZE, 1u8 << (state >> 60 & 7));
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ bit], at).unwrap();
        assert!(verify(&file, &map, SIZE).is_err(), "bit {bit:#x} of byte {at:#x}");
        file.write_all_at(&byte, at).unwrap();
    }
    verify(&file, &map, SIZE).unwrap();
    for len in [0, 1, SIZE / 2, SIZE - 1, SIZE + 1] {
        let (_dir, file, map) = written();
        file.set_len(len).unwrap();
        assert!(verify(&file, &map, SIZE).is_err(), "{len} bytes");
    }
}

#[test]
fn a_map_that_makes_no_sense_is_refused() {
    let (_dir, file, map) = written();
    let first = map.extents[0].clone();
    let change = |f: &dyn Fn(&mut Vec<Extent>)| {
        let mut map = map.clone();
        f(&mut map.extents);
        verify(&file, &map, SIZE)
    };
    assert!(change(&|_| {}).is_ok());
    assert!(change(&|e| e[0].offset = 1).is_err());
    assert!(change(&|e| e[0].len = 0).is_err());
    assert!(change(&|e| e[0].len = !4095).is_err());
    assert!(change(&|e| e[0].crc ^= 1).is_err());
    assert!(change(&|e| e.swap(0, 1)).is_err());
    assert!(change(&|e| e.insert(0, first.clone())).is_err());
    assert!(change(&|e| _ = e.remove(2)).is_err());
    assert!(change(&|e| e.clear()).is_err());
    assert!(verify(&file, &map, 2 * SIZE).is_err());
}

#[test]
fn keys_tell_everything_apart() {
    let key = |parts: &[(&str, &[u8])]| {
        parts.iter().fold(KeyBuilder::default(), |k, (name, value)| k.part(name, value)).build()
    };
    let one = key(&[("a", b"bc"), ("d", b"")]);
    assert_eq!(one, key(&[("a", b"bc"), ("d", b"")]));
    for other in [key(&[("ab", b"c"), ("d", b"")]), key(&[("a", b"bcd")]), key(&[("d", b""), ("a", b"bc")])] {
        assert_ne!(one, other);
    }
}

fn publish(store: &Store, name: &[u8]) -> Key {
    let key = KeyBuilder::default().part("test", name).build();
    let draft = store.draft().unwrap();
    draft.write("state", name).unwrap();
    draft.write("memory", b"m").unwrap();
    store.publish(&key, draft).unwrap();
    key
}

#[test]
fn the_store_has_whole_snapshots_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path().join("not/there/yet"));
    let key = KeyBuilder::default().part("test", b"x").build();
    assert!(store.find(&key).is_none());
    let draft = store.draft().unwrap();
    draft.write("state", b"half").unwrap();
    assert!(store.find(&key).is_none());
    drop(draft);
    assert_eq!(publish(&store, b"x"), key);
    let place = store.find(&key).unwrap();
    assert_eq!(place.read("state").unwrap(), b"x");
    // The first stays.
    let draft = store.draft().unwrap();
    draft.write("state", b"y").unwrap();
    store.publish(&key, draft).unwrap();
    assert_eq!(store.find(&key).unwrap().read("state").unwrap(), b"x");
    // A reader keeps what is removed.
    let open = place.open("memory").unwrap();
    store.remove(&key);
    assert!(store.find(&key).is_none());
    assert_eq!(open.metadata().unwrap().len(), 1);
    assert_eq!(fs::read_dir(dir.path().join("not/there/yet/drafts")).unwrap().count(), 0);
}

#[test]
fn what_is_used_least_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path());
    let keys: Vec<Key> = (0..8u8).map(|n| publish(&store, &[n])).collect();
    assert!(store.find(&keys[0]).is_some(), "and now it is used");
    publish(&store, b"one more");
    assert!(store.find(&keys[0]).is_some());
    assert!(store.find(&keys[1]).is_none());
    assert!(keys[2..].iter().all(|k| store.find(k).is_some()));
}

#[test]
fn many_may_publish_the_same_at_once() {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let store = Store::at(dir.path());
                for n in 0..20u8 {
                    let key = publish(&store, &[n]);
                    if let Some(place) = store.find(&key)
                        && let Ok(state) = place.read("state")
                    {
                        assert_eq!(state, [n]);
                    }
                }
            });
        }
    });
}

#[test]
fn what_a_killed_writer_left_goes_with_the_next_draft() {
    let dir = tempfile::tempdir().unwrap();
    let made = |name: &str, age: u64| {
        let path = dir.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("memory"), b"half").unwrap();
        let then = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
        File::open(&path).unwrap().set_modified(then).unwrap();
        path
    };
    let (left, new, other) =
        (made(".cc-snapshot-a", 3600), made(".cc-snapshot-b", 1), made(".somebodys", 3600));
    // One that is old and still being written.
    let slow = made(".cc-snapshot-c", 3600);
    let lock = File::open(&slow).unwrap();
    lock.lock_shared().unwrap();
    let draft = Draft::in_directory(dir.path()).unwrap();
    assert_eq!([&left, &new, &other, &slow].map(|path| path.exists()), [false, true, true, true]);
    drop(lock);
    draft.publish_at(&dir.path().join("whole")).unwrap();
    drop(Draft::in_directory(dir.path()).unwrap());
    assert!(!slow.exists() && dir.path().join("whole").exists());
}
