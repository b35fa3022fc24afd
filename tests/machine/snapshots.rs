//! Starts from the snapshot of an earlier boot, and snapshots and clones of running machines.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cc::process::Stdio;
use cc::{Instance, Source};

use super::support::{scratch, sh, small};

/// The one snapshot in `dir`.
fn only(dir: &Path) -> PathBuf {
    let mut found: Vec<PathBuf> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.join("state").exists()).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// A boot leaves a snapshot, later starts restore it whatever their source, and what is wrong with it makes them boot.
#[test]
fn r5_7_only_a_whole_snapshot_is_restored() {
    let dir = scratch();
    let start = || small().snapshot_dir(dir.path()).start().unwrap();
    assert!(!start().timing().restored);
    let snapshot = only(dir.path());
    let restored = start();
    assert!(restored.timing().restored);
    assert_eq!(sh(&restored, "echo restored; ls /bin/busybox"), "restored\n/bin/busybox");
    drop(restored);

    // Another root, the same snapshot.
    let root = scratch();
    for made in ["bin", "etc"] {
        fs::create_dir(root.path().join(made)).unwrap();
    }
    fs::copy("/bin/busybox", root.path().join("bin/busybox")).unwrap();
    fs::write(root.path().join("etc/here"), "a directory").unwrap();
    let other = Instance::builder(Source::directory(root.path()).unwrap())
        .memory_mb(160)
        .snapshot_dir(dir.path())
        .start()
        .unwrap();
    assert!(other.timing().restored);
    let out = other.command("/bin/busybox").args(["cat", "/etc/here"]).output().unwrap();
    assert_eq!(out.stdout, b"a directory");
    drop(other);

    // Not with other memory, not if it is not wanted, not if somebody watches the console.
    assert!(!small().memory_mb(161).snapshot_dir(dir.path()).start().unwrap().timing().restored);
    assert!(!small().boot_snapshot(false).snapshot_dir(dir.path()).start().unwrap().timing().restored);

    // A changed byte of each file, once more with a file that is too short.
    let flip = |name: &str, at: u64| {
        let file = OpenOptions::new().read(true).write(true).open(snapshot.join(name)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
    };
    let shorten = |name: &str| {
        let file = OpenOptions::new().write(true).open(snapshot.join(name)).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    };
    let damages: [&dyn Fn(); 4] =
        [&|| flip("state", 200), &|| flip("memory", 0x12_3456), &|| shorten("state"), &|| shorten("memory")];
    for (n, damage) in damages.iter().enumerate() {
        damage();
        let booted = start();
        assert!(!booted.timing().restored, "damage {n}");
        assert_eq!(sh(&booted, "echo well"), "well");
        // It has left another.
        assert!(start().timing().restored, "after damage {n}");
    }
}

#[test]
fn r5_1_restored_machines_share_no_secrets() {
    let ask = "cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1; \
               grep -e stack -e heap /proc/self/maps; hostname; cat /etc/hostname";
    let answers: Vec<Vec<String>> = (0..3)
        .map(|_| {
            let machine = small().start().unwrap();
            sh(&machine, ask).lines().map(str::to_owned).collect()
        })
        .collect();
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        for (line, (a, b)) in answers[a].iter().zip(&answers[b]).enumerate() {
            assert_ne!(a, b, "line {line}");
        }
    }
    assert!(answers.iter().all(|a| a.len() == 6 && a[4] == a[5] && a[4].starts_with("cc-")), "{answers:?}");
}

#[test]
fn r5_2_the_time_is_right_and_goes_on() {
    drop(small().start().unwrap());
    let machine = small().start().unwrap();
    assert!(machine.timing().restored);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let guest: u64 = sh(&machine, "date +%s").parse().unwrap();
    let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!((now.saturating_sub(1)..=after + 1).contains(&guest), "{guest} is not between {now} and {after}");
    // The time of the machine goes on where the first boot left it, not where the host's is.
    let uptime: f64 = sh(&machine, "cut -d' ' -f1 /proc/uptime").parse().unwrap();
    assert!((0.1..600.0).contains(&uptime), "{uptime}");
    assert_eq!(sh(&machine, "dmesg | grep -ci -e 'soft lockup' -e 'rcu.*stall' || true"), "0");
}

#[test]
fn a_restored_machine_has_its_lifetime() {
    drop(small().start().unwrap());
    let machine = small().timeout(Duration::from_secs(2)).start().unwrap();
    assert!(machine.timing().restored);
    assert_eq!(sh(&machine, "echo runs"), "runs");
    let error = machine.command("sleep").arg("100").status().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert!(matches!(machine.wait(), Err(cc::Error::Timeout(_))));
    // One that is over before the agent is back is told, and is no fault of the snapshot's.
    let over = small().timeout(Duration::from_millis(1)).start();
    assert!(matches!(over, Err(cc::Error::Timeout(_))), "{over:?}");
    assert!(small().start().unwrap().timing().restored);
}

#[test]
fn many_may_leave_the_first_snapshot_at_once() {
    let dir = scratch();
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| sh(&small().snapshot_dir(dir.path()).start().unwrap(), "echo up")))
            .collect();
        for machine in started {
            assert_eq!(machine.join().unwrap(), "up");
        }
    });
    only(dir.path());
    assert!(small().snapshot_dir(dir.path()).start().unwrap().timing().restored);
    assert_eq!(fs::read_dir(dir.path().join("drafts")).unwrap().count(), 0);
}

/// A place that cannot be written to is no obstacle.
#[test]
fn no_room_for_a_snapshot_is_no_failure() {
    let dir = scratch();
    let file = dir.path().join("in the way");
    fs::write(&file, "").unwrap();
    let machine = small().snapshot_dir(file.join("below")).start().unwrap();
    assert_eq!(sh(&machine, "echo up"), "up");
}

#[test]
fn a_clone_goes_on_from_where_its_parent_was() {
    let parent = small().start().unwrap();
    sh(&parent, "mkdir /srv/x; echo before > /srv/x/file; echo in tmp > /tmp/file; mkfifo /tmp/go /tmp/done");
    // A process with memory, an unlinked open file and a working directory of its own, which waits.
    let mut waiting = parent
        .command("sh")
        .args(["-c", "cd /srv/x; exec 3<>gone; rm gone; echo kept >&3; v=mine; read a < /tmp/go; echo $v $a $(cat /proc/self/fd/3) $(pwd) > /tmp/done"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // One that somebody has stopped is not set going by being cloned.
    sh(&parent, "sleep 1000 > /dev/null 2>&1 & echo $! > /srv/stopped");
    // By another shell: a group that is orphaned while a member is stopped gets SIGHUP.
    sh(&parent, "kill -STOP $(cat /srv/stopped)");
    let state = "cut -d' ' -f3 /proc/$(cat /srv/stopped)/stat";
    let clones = parent.fork(2).unwrap();
    assert!(clones.iter().chain([&parent]).all(|m| sh(m, state) == "T"));
    // Everybody's process can be woken, once each.
    for (n, machine) in clones.iter().chain([&parent]).enumerate() {
        assert_eq!(sh(machine, "cat /srv/x/file /tmp/file"), "before\nin tmp");
        let answer = sh(machine, &format!("echo go{n} > /tmp/go & cat /tmp/done"));
        assert_eq!(answer, format!("mine go{n} kept /srv/x"));
        sh(machine, &format!("echo {n} > /srv/x/file; echo {n} > /tmp/own"));
    }
    assert!(waiting.wait().unwrap().success(), "the parent's handle is the parent's");
    for (n, machine) in clones.iter().chain([&parent]).enumerate() {
        assert_eq!(sh(machine, "cat /srv/x/file /tmp/own"), format!("{n}\n{n}"));
    }
    let asked: Vec<String> =
        clones.iter().chain([&parent]).map(|m| sh(m, "hostname; cat /proc/sys/kernel/random/uuid")).collect();
    assert!(asked[0] != asked[1] && asked[1] != asked[2] && asked[0] != asked[2], "{asked:?}");
    // A clone of a clone, after its parents are gone.
    let grandchild = clones[0].fork(1).unwrap().remove(0);
    drop(clones);
    drop(parent);
    assert_eq!(sh(&grandchild, "cat /srv/x/file"), "0");
}

#[test]
fn a_snapshot_of_a_paused_machine_leaves_it_paused() {
    let parent = small().start().unwrap();
    sh(&parent, "echo x > /srv/x");
    parent.pause().unwrap();
    let snapshot = parent.snapshot().unwrap();
    let clone = Instance::builder(&snapshot).hostname("another").env("E", "1").start().unwrap();
    assert_eq!(sh(&clone, "cat /srv/x; hostname; echo $E"), "x\nanother\n1");
    parent.resume().unwrap();
    assert_eq!(sh(&parent, "cat /srv/x"), "x");
    parent.close().unwrap();
    assert!(matches!(parent.snapshot(), Err(cc::Error::NotRunning(_))));
    assert_eq!(sh(&Instance::new(&snapshot).unwrap(), "cat /srv/x"), "x");
    let mount = cc::Mount::empty("m");
    assert!(matches!(Instance::builder(&snapshot).mount(mount).start(), Err(cc::Error::Mount { .. })));
}

/// What is under way when the snapshot is taken stays whole in the machine it belongs to.
#[test]
fn r5_3_output_under_way_is_not_disturbed() {
    let parent = small().start().unwrap();
    let child = parent.command("seq").args(["1", "200000"]).stdout(Stdio::piped()).spawn().unwrap();
    let clones = parent.fork(1).unwrap();
    let out = child.wait_with_output().unwrap();
    let wanted: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    assert!(out.status.success() && out.stdout == wanted.as_bytes(), "{} bytes", out.stdout.len());
    assert_eq!(sh(&clones[0], "echo well"), "well");
}

/// Who wonders why a start takes long is told.
#[test]
fn a_boot_has_a_reason() {
    let dir = scratch();
    let start = || small().snapshot_dir(dir.path()).start().unwrap();
    let reason = start().boot_reason().unwrap().to_owned();
    assert!(reason.contains("160 MiB") && reason.contains(&dir.path().display().to_string()), "{reason}");
    assert_eq!(start().boot_reason(), None);
    let state = only(dir.path()).join("state");
    let mut bytes = fs::read(&state).unwrap();
    bytes[8] = 9;
    fs::write(&state, bytes).unwrap();
    let reason = start().boot_reason().unwrap().to_owned();
    assert!(reason.contains("cannot be used") && reason.contains("has format 9"), "{reason}");
    let off = small().boot_snapshot(false).start().unwrap();
    assert!(off.boot_reason().unwrap().contains("turned off"));
}
