use super::super::modules::Module;
use super::*;

#[derive(Debug)]
struct Entry {
    mode: u32,
    device: (u32, u32),
    data: Vec<u8>,
}

/// Reads an archive back, as the kernel would.
fn parse(archive: &[u8]) -> Vec<(String, Entry)> {
    let mut at = 0;
    let mut out = Vec::new();
    loop {
        assert_eq!(at % 4, 0);
        assert_eq!(&archive[at..at + 6], b"070701");
        let field = |n: usize| {
            let text = &archive[at + 6 + n * 8..at + 14 + n * 8];
            u32::from_str_radix(std::str::from_utf8(text).unwrap(), 16).unwrap()
        };
        let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
        let name = std::str::from_utf8(&archive[at + 110..at + 110 + name_size - 1]).unwrap().to_owned();
        assert_eq!(archive[at + 110 + name_size - 1], 0);
        let device = (field(9), field(10));
        at = (at + 110 + name_size).next_multiple_of(4);
        if name == "TRAILER!!!" {
            assert_eq!(at, archive.len());
            return out;
        }
        out.push((name, Entry { mode, device, data: archive[at..at + size].to_vec() }));
        at = (at + size).next_multiple_of(4);
    }
}

#[test]
fn all_parts_are_in_it() {
    let module = |name: &str| Module {
        name: name.into(),
        path: format!("kernel/drivers/{name}.ko"),
        bytes: name.as_bytes().to_vec(),
    };
    let modules = [module("virtio_ring"), module("virtio")];
    let archive = build(&Contents { agent: b"the agent", release: "6.1.0-test", modules: &modules }).unwrap();
    let entries = parse(&archive);
    let get =
        |path: &str| &entries.iter().find(|(name, _)| name == path).unwrap_or_else(|| panic!("{path}")).1;

    assert_eq!((get("init").mode, get("init").data.as_slice()), (0o100755, b"the agent".as_slice()));
    assert_eq!(
        get("cc/modules").data,
        b"/lib/modules/6.1.0-test/kernel/drivers/virtio_ring.ko\n/lib/modules/6.1.0-test/kernel/drivers/virtio.ko\n"
    );
    assert_eq!(get("lib/modules/6.1.0-test/kernel/drivers/virtio.ko").data, b"virtio");
    assert_eq!((get("dev/console").mode, get("dev/console").device), (0o020600, (5, 1)));
    // Every parent comes before what is in it.
    for (index, (path, _)) in entries.iter().enumerate() {
        if let Some((parent, _)) = path.rsplit_once('/') {
            let at = entries.iter().position(|(name, e)| name == parent && e.mode & 0o170000 == DIRECTORY);
            assert!(at.is_some_and(|at| at < index), "{path}");
        }
    }
}

#[test]
fn paths_that_are_not_plain_are_refused() {
    for path in ["", "/init", "a//b", "../x", "a/./b", "a\0b", "a/"] {
        let refused = Cpio::new().file(path, 0o644, b"");
        assert!(matches!(refused, Err(BootError::Initramfs { .. })), "{path:?}");
    }
    let mut cpio = Cpio::new();
    cpio.file("a", 0o644, b"").unwrap();
    assert!(matches!(cpio.file("a", 0o644, b""), Err(BootError::Initramfs { .. })));
}
