use proptest::prelude::*;

use super::super::fixtures::{gzip, module, xz};
use super::*;

fn store(files: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, ModuleStore) {
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let store = ModuleStore::from_dir(dir.path(), "6.1.0-test").unwrap();
    (dir, store)
}

fn names(modules: &[Module]) -> Vec<&str> {
    modules.iter().map(|m| m.name.as_str()).collect()
}

#[test]
fn what_is_needed_comes_first_and_once() {
    let (_dir, store) = store(&[
        ("kernel/a.ko", module(&["license=GPL", "depends=b-1,c"])),
        ("kernel/sub/b_1.ko.gz", gzip(&module(&["depends=d"]))),
        ("kernel/c.ko.xz", xz(&module(&["depends=d,built_in"]))),
        ("kernel/d.ko", module(&["depends=", "softdep=pre: e gone post: a"])),
        ("kernel/e.ko", module(&[])),
        ("kernel/other.ko", module(&[])),
        ("modules.builtin", b"kernel/lib/built-in.ko\nkernel/virtio_ring.ko\n".to_vec()),
    ]);
    assert_eq!(store.len(), 6);
    let modules = store.resolve(&["a", "b-1", "virtio-ring"]).unwrap();
    assert_eq!(names(&modules), ["e", "d", "b_1", "c", "a"]);
    // Paths without the compression, content without it too.
    assert_eq!(modules[2].path, "kernel/sub/b_1.ko");
    assert_eq!(modules[2].bytes, module(&["depends=d"]));
}

#[test]
fn a_missing_module_is_an_error_only_if_it_is_known_not_to_be_built_in() {
    let files = [("kernel/a.ko", module(&["depends=x"]))];
    let (_dir, without_list) = store(&files);
    assert_eq!(names(&without_list.resolve(&["a", "y"]).unwrap()), ["a"]);
    let [a] = files;
    let (_dir, with_list) = store(&[a, ("modules.builtin", b"kernel/y.ko\n".to_vec())]);
    assert!(with_list.resolve(&["y"]).unwrap().is_empty());
    let Err(BootError::NoModule { module, kernel }) = with_list.resolve(&["a"]) else { panic!() };
    assert_eq!((module.as_str(), kernel.as_str()), ("x", "6.1.0-test"));
    assert!(ModuleStore::empty("x").resolve(&["anything"]).unwrap().is_empty());
}

#[test]
fn circles_and_damaged_files_are_refused() {
    let (_dir, store) = store(&[
        ("a.ko", module(&["depends=b"])),
        ("b.ko", module(&["depends=a"])),
        ("text.ko", b"not a module".to_vec()),
        ("cut.ko", module(&["depends=a"])[..100].to_vec()),
        ("broken.ko.xz", b"\xfd7zXZ\0rubbish".to_vec()),
        // A wish in a circle is no error.
        ("w.ko", module(&["softdep=pre: v"])),
        ("v.ko", module(&["softdep=pre: w"])),
    ]);
    for name in ["a", "text", "cut"] {
        assert!(matches!(store.resolve(&[name]), Err(BootError::BadModule { .. })), "{name}");
    }
    assert!(matches!(store.resolve(&["broken"]), Err(BootError::File { .. })));
    assert_eq!(names(&store.resolve(&["w"]).unwrap()), ["v", "w"]);
}

#[test]
fn an_archive_gives_the_same_as_the_directory() {
    let mut packer = Packer::new(tempfile::tempfile().unwrap());
    let a = module(&["depends=b"]);
    let packed = xz(&a);
    packer.add("kernel/a.ko.xz", packed.len() as u64, packed.as_slice()).unwrap();
    let b = module(&["depends="]);
    packer.add("kernel/b.ko", b.len() as u64, b.as_slice()).unwrap();
    packer.add("kernel/drivers/usb/u.ko", b.len() as u64, b.as_slice()).unwrap();
    packer.add("modules.order", 1, &b"x"[..]).unwrap();
    packer.add("../../etc/evil.ko", b.len() as u64, b.as_slice()).unwrap();
    packer.add("modules.builtin", 16, &b"kernel/inside.ko"[..]).unwrap();
    let store = ModuleStore::from_archive(packer.finish().unwrap(), "r").unwrap();
    assert_eq!(store.len(), 2);
    let modules = store.resolve(&["a", "inside"]).unwrap();
    assert_eq!(names(&modules), ["b", "a"]);
    assert_eq!((modules[1].path.as_str(), &modules[1].bytes), ("kernel/a.ko", &a));
    assert!(matches!(store.resolve(&["u"]), Err(BootError::NoModule { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn damaged_modules_never_panic(at in 0usize..400, value: u8, len in 0usize..500) {
        let mut bytes = module(&["depends=a,b", "softdep=pre: c"]);
        if let Some(byte) = bytes.get_mut(at) { *byte = value; }
        bytes.truncate(len.max(64));
        let _ = modinfo(&bytes);
    }
}
