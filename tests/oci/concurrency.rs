//! Several at once, and being killed.

use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::images::{Image, noise, tar};
use crate::support::proxy::{Action, Proxy};
use crate::support::registry::Registry;
use crate::support::{client_in, read, root, scratch, text, this_test};

const STORE: &str = "CC_TEST_STORE";
const REFERENCE: &str = "CC_TEST_REFERENCE";

/// Not a test of its own: what other tests start as another process, which pulls and checks.
#[test]
fn child_pulls() {
    let (Ok(store), Ok(reference)) = (std::env::var(STORE), std::env::var(REFERENCE)) else { return };
    let image = client_in(store.as_ref()).build().unwrap().pull(&reference).unwrap();
    assert_eq!(image.layers().len(), layers().len());
    println!("pulled {}", image.digest());
}

fn child(store: &std::path::Path, reference: &str) -> Child {
    let variables = [(STORE, store.to_str().unwrap()), (REFERENCE, reference)];
    let mut command = this_test("concurrency::child_pulls", &variables);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn layers() -> Vec<Vec<u8>> {
    (0..4u64)
        .map(|i| tar(&[("name", &[b'0' + i as u8]), (&format!("data{i}"), &noise(i, 1_500_000))]))
        .collect()
}

fn assert_whole(image: &cc::oci::Image) {
    assert_eq!(text(image), "3");
    let fs = root(image);
    for i in 0..4 {
        assert_eq!(read(&fs, &format!("data{i}")).unwrap(), noise(i, 1_500_000), "layer {i}");
    }
}

#[test]
fn r6_7_kill_9_at_any_moment_never_harms_the_store() {
    let registry = Registry::start();
    let reference = registry.push(&Image::new(layers()), "app:1");
    let dir = scratch();
    // How long an undisturbed pull takes, to spread the kills over all of it.
    let start = std::time::Instant::now();
    assert!(child(dir.path(), &reference).wait().unwrap().success());
    let whole = start.elapsed();

    let store = scratch();
    let mut finished = 0;
    for n in 0..50u32 {
        let mut child = child(store.path(), &reference);
        // Every moment of it comes up, those at the end more than once: finished layers stay.
        std::thread::sleep(whole * (n % 25) / 25 + Duration::from_micros(u64::from(n) * 97 % 1000));
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            finished += 1;
            // So that the next have something to do again.
            let client = client_in(store.path()).build().unwrap();
            assert_whole(&client.pull(&reference).unwrap());
            client.remove(&reference).unwrap();
        } else {
            // Whatever is in the store as an image is whole.
            let client = client_in(store.path()).policy(cc::oci::PullPolicy::Never).build().unwrap();
            match client.pull(&reference) {
                Ok(image) => assert_whole(&image),
                Err(error) => assert!(matches!(error, cc::oci::Error::NotLocal { .. }), "{error}"),
            }
        }
    }
    println!("{finished} of 50 had finished before they were killed");
    assert!(finished < 50, "no child was killed in time");
    let client = client_in(store.path()).build().unwrap();
    assert_whole(&client.pull(&reference).unwrap());
    client.remove(&reference).unwrap();
    client.prune().unwrap();
    for part in ["layers", "work", "locks", "images"] {
        let left: Vec<_> = std::fs::read_dir(store.path().join("oci/1").join(part)).unwrap().collect();
        assert!(left.len() <= 1, "{part}: {left:?}");
        assert!(part == "images" || left.is_empty(), "{part}: {left:?}");
    }
}

#[test]
fn r6_7_processes_that_pull_at_once_share_the_work() {
    let registry = Registry::start();
    registry.push(&Image::new(layers()), "app:1");
    // Each blob is held back until all have come for the manifest, so that they meet.
    let arrived = Arc::new(AtomicUsize::new(0));
    let proxy = Proxy::start(&registry.address(), {
        let arrived = arrived.clone();
        move |request| {
            if request.path.contains("/manifests/") {
                arrived.fetch_add(1, Ordering::SeqCst);
            } else {
                crate::support::wait_until("all have come", || arrived.load(Ordering::SeqCst) >= 4);
            }
            Action::Forward
        }
    });
    let reference = format!("{}/app:1", proxy.address());
    let store = scratch();
    let mut children: Vec<Child> = (0..2).map(|_| child(store.path(), &reference)).collect();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                assert_whole(&client_in(store.path()).build().unwrap().pull(&reference).unwrap());
            });
        }
    });
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    // Four configurations, and each layer once for all of them.
    assert_eq!(proxy.requests().iter().filter(|request| request.is_blob()).count(), 8);
}

#[test]
fn r6_7_pruning_beside_pulls_takes_nothing_that_is_needed() {
    let registry = Registry::start();
    let shared = tar(&[("data", &noise(77, 200_000))]);
    let references: Vec<String> = (0..3)
        .map(|i| {
            let own = tar(&[("name", format!("{i}").as_bytes())]);
            registry.push(&Image::new(vec![shared.clone(), own]), &format!("app:{i}"))
        })
        .collect();
    let store = scratch();
    let ended = AtomicBool::new(false);
    let pruned = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let pruner = scope.spawn(|| {
            let client = client_in(store.path()).build().unwrap();
            while !ended.load(Ordering::SeqCst) {
                pruned.fetch_add(client.prune().unwrap().layers.len(), Ordering::SeqCst);
            }
        });
        let pullers: Vec<_> = references
            .iter()
            .enumerate()
            .map(|(i, reference)| {
                let store = store.path();
                scope.spawn(move || {
                    let client = client_in(store).build().unwrap();
                    for _ in 0..15 {
                        let image = client.pull(reference).unwrap();
                        client.remove(reference).unwrap();
                        // No name leads to it any more; it is held all the same.
                        assert_eq!(text(&image), i.to_string());
                        assert_eq!(read(&root(&image), "data").unwrap(), noise(77, 200_000));
                    }
                })
            })
            .collect();
        for puller in pullers {
            puller.join().unwrap();
        }
        ended.store(true, Ordering::SeqCst);
        pruner.join().unwrap();
    });
    assert!(pruned.load(Ordering::SeqCst) > 0, "the pruner had something to do");
    client_in(store.path()).build().unwrap().prune().unwrap();
    assert_eq!(std::fs::read_dir(store.path().join("oci/1/layers")).unwrap().count(), 0);
}

#[test]
fn r6_7_a_damaged_store_mends_itself() {
    let registry = Registry::start();
    let reference = registry.push(&Image::new(layers()), "app:1");
    let store = scratch();
    let client = client_in(store.path()).build().unwrap();
    client.pull(&reference).unwrap();
    let base = store.path().join("oci/1");
    let layer = || std::fs::read_dir(base.join("layers")).unwrap().next().unwrap().unwrap().path();
    let record = || std::fs::read_dir(base.join("images")).unwrap().next().unwrap().unwrap().path();
    let damages: [(&str, &dyn Fn()); 6] = [
        ("no index", &|| std::fs::remove_file(layer().join("index")).unwrap()),
        ("an index of another kind", &|| std::fs::write(layer().join("index"), [7; 100]).unwrap()),
        ("an empty index", &|| std::fs::write(layer().join("index"), []).unwrap()),
        ("a short tar", &|| {
            let tar = std::fs::OpenOptions::new().write(true).open(layer().join("tar")).unwrap();
            tar.set_len(1000).unwrap();
        }),
        ("no tar", &|| std::fs::remove_file(layer().join("tar")).unwrap()),
        ("a short record", &|| {
            let record = std::fs::OpenOptions::new().write(true).open(record()).unwrap();
            record.set_len(100).unwrap();
        }),
    ];
    for (what, damage) in damages {
        damage();
        assert_whole(&client.pull(&reference).unwrap());
        println!("{what}: mended");
    }
}
