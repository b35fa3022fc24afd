//! What only machines do to files: clones, pauses, ends.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use cc::fs::Fs;

use crate::support::{sh, small, wait_until};

/// Processes of the guest that work on files, by what they run as beside PID 1.
fn workers(instance: &cc::Instance) -> usize {
    let script =
        "for p in /proc/[0-9]*; do [ $p = /proc/1 ] || { tr '\\0' ' ' <$p/cmdline; echo; }; done 2>/dev/null";
    let init = sh(instance, "tr '\\0' ' ' </proc/1/cmdline");
    sh(instance, script).lines().filter(|line| !init.is_empty() && line.trim() == init).count()
}

#[test]
fn clones_begin_with_the_files_and_without_the_handles() {
    let parent = small().start().unwrap();
    sh(&parent, "mkfifo /tmp/fifo");
    let mut file = parent.open_options().read(true).write(true).create(true).open("/tmp/f").unwrap();
    file.write_all(b"before ").unwrap();
    file.lock().unwrap();
    std::thread::scope(|scope| {
        // A worker that waits is no obstacle, and goes on waiting.
        let waiting = scope.spawn(|| parent.read("/tmp/fifo").unwrap());
        wait_until("a worker waits", || {
            parent.metadata("/").unwrap();
            workers(&parent) >= 3
        });
        let clone = parent.fork(1).unwrap().remove(0);
        assert_eq!(clone.read("/tmp/f").unwrap(), b"before ");
        file.write_all(b"after").unwrap();
        clone.write("/tmp/g", b"clone's own").unwrap();
        assert!(!parent.exists("/tmp/g").unwrap());
        assert_eq!(parent.read("/tmp/f").unwrap(), b"before after");
        assert_eq!(clone.read("/tmp/f").unwrap(), b"before ");
        // What the parent's handles held is free in the clone: locks, and the workers themselves.
        let again = clone.open("/tmp/f").unwrap();
        again.try_lock().unwrap();
        clone.metadata("/").unwrap();
        wait_until("the parent's workers end in the clone", || workers(&clone) <= 3);
        assert!(parent.open("/tmp/f").unwrap().try_lock().is_err());
        // A clone of the clone, while it has files open.
        let second = clone.fork(1).unwrap().remove(0);
        assert_eq!(second.read("/tmp/g").unwrap(), b"clone's own");
        second.open("/tmp/f").unwrap().try_lock().unwrap();
        assert!(!waiting.is_finished());
        parent.write("/tmp/fifo", b"done").unwrap();
        assert_eq!(waiting.join().unwrap(), b"done");
    });
}

#[test]
fn the_end_of_a_machine_is_the_end_of_its_files() {
    let instance = small().start().unwrap();
    sh(&instance, "mkfifo /tmp/fifo");
    let mut file = instance.create("/tmp/f").unwrap();
    let (mut dir, temp) = (instance.read_dir("/").unwrap(), instance.temp_dir().unwrap());
    let files = instance.file_system();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| instance.read("/tmp/fifo").unwrap_err());
        instance.write("/tmp/f", b"x").unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(!waiting.is_finished());
        instance.close().unwrap();
        assert_eq!(waiting.join().unwrap().kind(), ErrorKind::NotConnected);
    });
    let errors = [
        file.write(b"x").map(drop).unwrap_err(),
        file.read(&mut [0]).map(drop).unwrap_err(),
        file.metadata().map(drop).unwrap_err(),
        instance.read("/etc/passwd").map(drop).unwrap_err(),
        files.create_dir("/tmp/d").unwrap_err(),
        instance.copy_in("/etc/passwd", "/tmp/x").map(drop).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::NotConnected, "{error}");
        assert!(error.to_string().contains("the machine was stopped"), "{error}");
    }
    // What had been read can still be had.
    assert!(dir.next().is_some_and(|entry| entry.is_ok()));
    drop((file, temp, dir));
}

#[test]
fn a_paused_machine_is_waited_for() {
    let instance = small().start().unwrap();
    instance.write("/tmp/f", b"content").unwrap();
    instance.pause().unwrap();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| instance.read("/tmp/f").unwrap());
        std::thread::sleep(Duration::from_millis(200));
        assert!(!reading.is_finished());
        instance.resume().unwrap();
        assert_eq!(reading.join().unwrap(), b"content");
    });
    // And can be ended in the middle.
    instance.pause().unwrap();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| instance.read("/tmp/f").unwrap_err());
        std::thread::sleep(Duration::from_millis(100));
        instance.close().unwrap();
        assert_eq!(reading.join().unwrap().kind(), ErrorKind::NotConnected);
    });
}

#[test]
fn a_shutdown_asks_workers_too() {
    let instance = small().start().unwrap();
    let file = instance.create("/f").unwrap();
    sh(&instance, "mkfifo /tmp/fifo");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| instance.read("/tmp/fifo").unwrap_err());
        instance.write("/g", b"x").unwrap();
        // With ten minutes of grace it would take them if anything did not go when asked.
        let start = std::time::Instant::now();
        instance.shutdown(Duration::from_secs(600)).unwrap();
        assert!(start.elapsed() < Duration::from_secs(300));
        assert!(matches!(waiting.join().unwrap().kind(), ErrorKind::NotConnected | ErrorKind::BrokenPipe));
    });
    drop(file);
}

#[test]
fn machines_do_not_share_files() {
    let instances: Vec<cc::Instance> = (0..3).map(|_| small().start().unwrap()).collect();
    for (n, instance) in instances.iter().enumerate() {
        instance.write("/tmp/f", [n as u8]).unwrap();
    }
    let all: Vec<Box<dyn Fs>> =
        instances.into_iter().map(|instance| Box::new(instance) as Box<dyn Fs>).collect();
    for (n, place) in all.iter().enumerate() {
        assert_eq!(place.file_system().read("/tmp/f").unwrap(), [n as u8]);
    }
}
