//! Locks on files.

use std::fs::TryLockError;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Fs, Kind, Place};

pub(crate) fn exclusive_and_shared_locks(at: &Place<'_, impl Fs + Sync>) {
    let path = at.file("f", b"");
    let open = || at.on.open_options().read(true).write(true).open(&path).unwrap();
    let would_block = |tried: Result<(), TryLockError>| matches!(tried, Err(TryLockError::WouldBlock));
    let (one, two) = (open(), open());
    one.lock().unwrap();
    assert!(would_block(two.try_lock()) && would_block(two.try_lock_shared()));
    one.unlock().unwrap();
    one.lock_shared().unwrap();
    two.lock_shared().unwrap();
    assert!(would_block(two.try_lock()));
    drop(one);
    two.try_lock().unwrap();
    // A lock is the open file's: a clone keeps it.
    let clone = two.try_clone().unwrap();
    drop(two);
    let other = open();
    assert!(would_block(other.try_lock()));
    let got = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            other.lock().unwrap();
            got.store(true, Ordering::SeqCst);
        });
        // Who waits holds up nobody.
        for n in 0..20 {
            at.on.write(at.path("g"), [n]).unwrap();
        }
        assert!(!got.load(Ordering::SeqCst));
        drop(clone);
    });
    assert!(got.load(Ordering::SeqCst));
    for _ in 0..100 {
        // The end of a handle is the end of its lock, at once.
        drop(other.try_lock());
        let file = at.on.create(at.path("h")).unwrap();
        file.try_lock().unwrap();
    }
    other.unlock().unwrap();
    // What other programs there are sees the same locks; the guest's userland has none to ask.
    if at.kind != Kind::Machine {
        assert_eq!(at.sh("flock -n f true && echo free"), "free");
        other.lock().unwrap();
        assert_eq!(at.sh("flock -n f true || echo taken"), "taken");
    }
}
