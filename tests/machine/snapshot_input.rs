//! Snapshots of boots that are not what this machine needs, and processes that leave the same one at once.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use cc::machine::snapshot::{Place, SnapshotError, restore};
use cc::state::container::{Reader, Writer};
use cc::state::{self, StateError};
use cc::{Instance, InstanceBuilder};
use sha2::Digest;

use crate::support::{SmallDisk, scratch, sh, small};
use crate::world::oci;

const MEMORY: u64 = 160 << 20;
const DIR: &str = "CC_TEST_SNAPSHOTS";

/// The one snapshot in `dir`.
fn only(dir: &Path) -> PathBuf {
    let found = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.join("state").exists());
    let found: Vec<PathBuf> = found.collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

fn start(dir: &Path) -> Instance {
    small().snapshot_dir(dir).start().unwrap()
}

/// A state with its checksum made right.
fn summed(mut state: Vec<u8>) -> Vec<u8> {
    let end = state.len() - 32;
    let sum = sha2::Sha256::digest(&state[..end]);
    state[end..].copy_from_slice(&sum);
    state
}

/// Where each section begins.
fn sections(state: &[u8]) -> Vec<usize> {
    let mut at = 16;
    let mut found = Vec::new();
    while at < state.len() - 32 {
        found.push(at);
        at += 16 + u64::from_le_bytes(state[at + 8..at + 16].try_into().unwrap()) as usize;
    }
    found
}

/// The state with another section that says what the machine is.
fn with_machine(state: &[u8], change: impl Fn(&mut state::Machine)) -> Vec<u8> {
    let mut machine: state::Machine = Reader::parse(state).unwrap().take(0).unwrap();
    change(&mut machine);
    let mut writer = Writer::new();
    writer.put(0, &machine).unwrap();
    let written = writer.finish();
    let begin = sections(state);
    assert_eq!(state[begin[0]..begin[0] + 2], [1, 0], "it comes first");
    let changed = [&state[..16], &written[16..written.len() - 32], &state[begin[1]..]].concat();
    summed(changed)
}

/// Every way in which a real state may be another's, with a right checksum; and each of its bytes changed.
#[test]
fn r5_7_a_state_of_another_make_is_refused() {
    let dir = scratch();
    drop(start(dir.path()));
    let place = only(dir.path());
    let state = fs::read(place.join("state")).unwrap();
    let file = OpenOptions::new().write(true).open(place.join("state")).unwrap();
    let open = |state: &[u8]| {
        file.set_len(state.len() as u64).unwrap();
        file.write_all_at(state, 0).unwrap();
        restore(&Place::at(&place), MEMORY, 1).map(drop)
    };
    open(&state).unwrap();
    open(&with_machine(&state, |_| {})).unwrap();

    let begins = sections(&state);
    assert!(begins.len() > 10, "{begins:?}");
    for begin in begins {
        for version in [0u16, 3, u16::MAX] {
            let mut bumped = state.clone();
            bumped[begin + 2..begin + 4].copy_from_slice(&version.to_le_bytes());
            let error = open(&summed(bumped)).unwrap_err();
            let found =
                matches!(error, SnapshotError::State(StateError::Version { found, .. }) if found == version);
            assert!(found, "section at {begin}, version {version}: {error:?}");
        }
    }
    let mut format = state.clone();
    format[8] += 1;
    let error = open(&summed(format)).unwrap_err();
    assert!(matches!(error, SnapshotError::State(StateError::Format { found: 2 })), "{error:?}");
    type Change = fn(&mut state::Machine);
    let foreign: [(&str, Change); 5] = [
        ("cpu", |m| m.cpu_model = "x86-64-v3".into()),
        ("cpus", |m| m.cpus = 2),
        ("more memory", |m| m.memory += 4096),
        ("less memory", |m| m.memory /= 2),
        ("most memory", |m| m.memory = state::Machine::MAX_MEMORY),
    ];
    for (what, change) in foreign {
        let error = open(&with_machine(&state, change)).unwrap_err();
        assert!(matches!(error, SnapshotError::Other(_)), "{what}: {error:?}");
    }
    assert!(open(&with_machine(&state, |m| _ = m.devices.pop())).is_err(), "a device that nobody takes");
    assert!(open(&with_machine(&state, |m| m.devices.push("one more".into()))).is_err());

    open(&state).unwrap();
    for at in 0..state.len() {
        file.write_all_at(&[state[at] ^ 1 << (at % 8)], at as u64).unwrap();
        assert!(restore(&Place::at(&place), MEMORY, 1).is_err(), "byte {at}");
        file.write_all_at(&state[at..at + 1], at as u64).unwrap();
    }
    for len in [0, 1, 15, 16, 47, 48, state.len() / 2, state.len() - 1] {
        assert!(open(&state[..len]).is_err(), "{len} bytes");
    }
}

/// What is not this machine's is not run: it boots, and leaves one of its own.
#[test]
fn r5_7_a_foreign_or_half_snapshot_makes_it_boot() {
    let dir = scratch();
    drop(start(dir.path()));
    let place = only(dir.path());
    let state = || fs::read(place.join("state")).unwrap();
    let rewrite = |change: fn(&mut state::Machine)| {
        fs::write(place.join("state"), with_machine(&state(), change)).unwrap();
    };
    let spoilt: [(&str, &dyn Fn()); 3] = [
        ("other devices", &|| rewrite(|m| m.devices.reverse())),
        ("other memory", &|| rewrite(|m| m.memory += 1 << 20)),
        // What it lacks in a draft that somebody has left.
        ("only a state", &|| {
            fs::create_dir_all(dir.path().join("drafts/left")).unwrap();
            fs::rename(place.join("memory"), dir.path().join("drafts/left/memory")).unwrap();
        }),
    ];
    for (what, spoil) in spoilt {
        spoil();
        let machine = start(dir.path());
        assert!(!machine.timing().restored, "{what}");
        assert_eq!(sh(&machine, "echo well"), "well", "{what}");
        assert_eq!(only(dir.path()), place, "{what}");
        let left: state::Machine = Reader::parse(&state()).unwrap().take(0).unwrap();
        assert_eq!((left.memory, left.cpus), (MEMORY, 1), "{what}");
    }
    let machine = start(dir.path());
    assert!(machine.timing().restored);
    assert_eq!(sh(&machine, "echo well"), "well");
}

/// The host's clock may have been set between the boot and the restore, by hours and either way.
#[test]
fn r5_2_the_time_that_a_snapshot_was_taken_is_not_believed() {
    const HOURS: u64 = 7 * 3600 * 1_000_000_000;
    let dir = scratch();
    drop(start(dir.path()));
    let place = only(dir.path());
    let state = fs::read(place.join("state")).unwrap();
    let moved: [fn(&mut state::Machine); 3] =
        [|m| m.wall_clock_ns += HOURS, |m| m.wall_clock_ns -= HOURS, |m| m.wall_clock_ns = 0];
    for change in moved {
        fs::write(place.join("state"), with_machine(&state, change)).unwrap();
        let machine = start(dir.path());
        assert!(machine.timing().restored);
        crate::snapshot_clones::assert_time_is_right(&machine);
    }
}

/// Not a test of its own: what another test starts as another process.
#[test]
fn child_starts() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let builder: InstanceBuilder = small().snapshot_dir(&dir);
    let machine = builder.start().unwrap();
    assert_eq!(sh(&machine, "echo up"), "up");
}

#[test]
fn processes_that_leave_the_first_snapshot_at_once_leave_one() {
    let dir = scratch();
    let variables = [(DIR, dir.path().to_str().unwrap())];
    let mut children: Vec<_> = (0..2)
        .map(|_| {
            let mut command = oci::this_test("snapshot_input::child_starts", &variables);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    only(dir.path());
    assert_eq!(fs::read_dir(dir.path().join("drafts")).unwrap().count(), 0);
    let machine = start(dir.path());
    assert!(machine.timing().restored);
    assert_eq!(sh(&machine, "echo up"), "up");
}

/// A full disk costs the snapshot, not the machine, and leaves nothing.
#[test]
fn a_full_disk_is_no_failure_of_the_boot() {
    let Some(disk) = SmallDisk::new(16) else { return };
    let machine = start(disk.path());
    assert!(!machine.timing().restored);
    assert_eq!(sh(&machine, "echo up"), "up");
    let left = fs::read_dir(disk.path()).unwrap().map(|e| e.unwrap().path());
    assert!(left.filter(|path| path.join("state").exists()).count() == 0);
    assert_eq!(fs::read_dir(disk.path().join("drafts")).unwrap().count(), 0);
}
