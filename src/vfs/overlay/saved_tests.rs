//! Tests of saved overlays: what is loaded is what was saved, and what nobody could have saved is refused.

use super::fork_tests::{KINDS, changed, copy, state};
use super::tests::OPEN;
use super::*;
use crate::state::files::{self, FileSystem as Saved};
use crate::vfs::saved::{LoadError, Loader, Saver};
use crate::vfs::testing::{Names, Paths, ROOT, against_host};
use crate::vfs::{Errno, FileSystem, Name, NodeId, open};

/// Saves and loads by way of bytes, as another process would.
fn again(fs: &dyn FileSystem, dir: &std::path::Path) -> Arc<dyn FileSystem> {
    let mut saver = Saver::new(dir).expect("saver");
    let bytes = postcard::to_stdvec(&fs.save(&mut saver).expect("save")).expect("bytes");
    let loader = Loader::new(dir, saver.layers()).expect("loader");
    loader.file_system(postcard::from_bytes(&bytes).expect("the same")).expect("load")
}

#[test]
fn what_is_loaded_is_what_was_saved_and_goes_on_apart() {
    for (at, kind) in KINDS.into_iter().enumerate() {
        for memory in [64 << 20, 100_000] {
            let (fs, real, _lower) = changed(kind, at as u64 + 13, 700, memory);
            let before = state(&fs);
            let dir = tempfile::tempdir().expect("dir");
            let loaded = again(&fs, dir.path());
            assert_eq!(state(&*loaded), before, "{kind}");
            let real_of_loaded = copy(real.path());
            against_host(&*loaded, real_of_loaded.path(), 91, 1200);
            let changed = state(&*loaded);
            assert_ne!(changed, before, "{kind}");
            assert_eq!(state(&fs), before, "{kind}");
            // Nothing of the place is needed any more, and the original goes.
            let once_more = tempfile::tempdir().expect("dir");
            let second = again(&*loaded, once_more.path());
            drop((fs, loaded, dir));
            assert_eq!(state(&*second), changed, "{kind}");
            drop(once_more);
            against_host(&*second, real_of_loaded.path(), 92, 300);
        }
    }
}

#[test]
fn what_a_client_holds_works_on() {
    for kind in KINDS {
        let (fs, _real, _lower) = changed(kind, 5, 300, 64 << 20);
        let name = Name::new(b"held").expect("name");
        let flags = open::RDWR | open::EXCL;
        let (entry, opened) = fs.create(&ROOT, NodeId::ROOT, name, 0o600, flags).expect("create");
        let node = entry.node;
        fs.write(node, opened.handle, 100_000, 5, &mut &b"bytes"[..], false).expect("write");
        // Without a name it lives by what the client holds.
        fs.unlink(&ROOT, NodeId::ROOT, name).expect("unlink");
        let dir = tempfile::tempdir().expect("dir");
        let loaded = again(&fs, dir.path());
        let mut bytes = Vec::new();
        assert_eq!(loaded.read(node, opened.handle, 99_999, 100, &mut bytes), Ok(6), "{kind}");
        assert_eq!(bytes, b"\0bytes");
        loaded.release(node, opened.handle);
        loaded.forget(node, 1);
        assert_eq!(loaded.getattr(node, None).err(), Some(Errno::ESTALE), "{kind}");
        assert!(fs.getattr(node, None).is_ok(), "the original still has it");
    }
}

/// Uses every file without expecting anything of it.
fn use_all(fs: &dyn FileSystem) {
    let paths = Paths(fs);
    let mut todo = vec![(String::new(), 0)];
    let mut seen = 0;
    while let Some((path, depth)) = todo.pop() {
        seen += 1;
        if seen > 500 || depth > 20 {
            continue;
        }
        let Ok(node) = paths.resolve(&path) else { continue };
        let mut sink = Names::default();
        if fs.readdir(node, OPEN, 0, &mut sink).is_ok() {
            for (name, ..) in &sink.all {
                let name = String::from_utf8_lossy(name);
                if name != "." && name != ".." {
                    todo.push((format!("{path}/{name}"), depth + 1));
                }
            }
        }
        let mut bytes = Vec::new();
        for offset in [0, 100_000, 1 << 40] {
            let _ = fs.read(node, OPEN, offset, 64 << 10, &mut bytes);
        }
        paths.drop(node);
        let _ = (paths.attr(&path), paths.xattrs(&path));
        let _ = (paths.unlink(&path), paths.rmdir(&path));
    }
}

#[test]
fn what_nobody_could_have_saved_is_refused_or_harmless() {
    let mut refused = 0;
    for kind in KINDS {
        let (fs, _real, _lower) = changed(kind, 7, 120, 64 << 20);
        let dir = tempfile::tempdir().expect("dir");
        let mut saver = Saver::new(dir.path()).expect("saver");
        let good = postcard::to_stdvec(&fs.save(&mut saver).expect("save")).expect("bytes");
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize
        };
        for _ in 0..4000 {
            let mut bytes = good.clone();
            for _ in 0..1 + random() % 3 {
                let at = random() % bytes.len();
                bytes[at] = if random() % 2 == 0 { random() as u8 } else { bytes[at] ^ 1 << (random() % 8) };
            }
            let Ok((saved, _)) = postcard::take_from_bytes::<Saved>(&bytes) else { continue };
            // A number that names a layer may be any.
            let loader = Loader::new(dir.path(), saver.layers()).expect("loader");
            match loader.file_system(saved) {
                Ok(loaded) if kind != "directory" => use_all(&*loaded),
                Ok(_) => {}
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 500, "{refused}: the changes are seen");
}

#[test]
fn what_is_missing_or_damaged_beside_is_told() {
    let (fs, _real, _lower) = changed("layers", 3, 200, 64 << 20);
    let dir = tempfile::tempdir().expect("dir");
    let mut saver = Saver::new(dir.path()).expect("saver");
    let saved = fs.save(&mut saver).expect("save");
    let load = || Loader::new(dir.path(), saver.layers()).and_then(|from| from.file_system(saved.clone()));
    assert!(load().is_ok());
    let data = std::fs::read(dir.path().join("data")).expect("data");
    let mut damaged = data.clone();
    damaged[data.len() / 2] ^= 4;
    std::fs::write(dir.path().join("data"), &damaged).expect("write");
    assert!(matches!(load(), Err(LoadError::Damaged(_))));
    std::fs::write(dir.path().join("data"), &data[..data.len() - 1]).expect("write");
    assert!(matches!(load(), Err(LoadError::Damaged(_))));
    std::fs::write(dir.path().join("data"), &data).expect("write");
    assert!(load().is_ok());
    std::fs::rename(dir.path().join("layer-0.tar"), dir.path().join("x")).expect("rename");
    assert!(matches!(load(), Err(LoadError::Io { .. })));
    assert!(Loader::new(dir.path(), 7).is_err());
}

#[test]
fn nodes_that_contradict_each_other_are_refused() {
    let (fs, ..) = changed("memory", 3, 200, 64 << 20);
    let dir = tempfile::tempdir().expect("dir");
    let mut saver = Saver::new(dir.path()).expect("saver");
    let Saved::Overlay(good) = fs.save(&mut saver).expect("save") else { panic!("an overlay") };
    let loader = Loader::new(dir.path(), saver.layers()).expect("loader");
    let change = |f: &dyn Fn(&mut files::Upper)| {
        let mut upper = good.clone();
        f(&mut upper);
        loader.file_system(Saved::Overlay(upper)).map(drop)
    };
    let dir_of = |upper: &mut files::Upper, f: &dyn Fn(&mut u64, &mut Vec<files::Name>)| {
        for node in &mut upper.nodes {
            if let files::Body::Directory { parent, names, .. } = &mut node.body
                && !names.is_empty()
            {
                return f(parent, names);
            }
        }
    };
    change(&|_| {}).expect("unchanged it is good");
    assert!(change(&|u| u.nodes.clear()).is_err());
    assert!(change(&|u| u.nodes.push(u.nodes[1].clone())).is_err());
    assert!(change(&|u| u.next = 2).is_err());
    assert!(change(&|u| u.limits = [4096, 1, 1, 1]).is_err());
    assert!(change(&|u| u.nodes[0].times[0].1 = 1_000_000_000).is_err());
    assert!(change(&|u| u.nodes[0].mode = 0o100_644).is_err());
    assert!(change(&|u| dir_of(u, &|parent, _| *parent = 12_345)).is_err());
    assert!(change(&|u| dir_of(u, &|_, names| names.push(names[0].clone()))).is_err());
    assert!(change(&|u| dir_of(u, &|_, names| names[0].name = b"..".to_vec())).is_err());
    assert!(change(&|u| dir_of(u, &|_, names| names[0].name = b"a/b".to_vec())).is_err());
    assert!(change(&|u| dir_of(u, &|_, names| names[0].node = Some((99_999, 0o100_000, 3)))).is_err());
    assert!(change(&|u| dir_of(u, &|_, names| names[0].node = Some((1, 0o040_000, 1 << 40)))).is_err());
    assert!(change(&|u| u.below = files::Below::Layers(vec![3])).is_err());
}
