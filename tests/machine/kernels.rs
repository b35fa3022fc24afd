//! Kernels and options that cannot be, and another kernel that can.

use std::error::Error as _;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cc::machine::boot::BootError;
use cc::machine::boot::loader::Vmlinux;
use cc::machine::boot::provider::Provider;
use cc::{Error, Instance, Source};

use crate::support::{scratch, sh, small, source};

fn boot_error(error: Error) -> BootError {
    match error {
        Error::Boot(error) => error,
        other => panic!("{other}"),
    }
}

/// What is behind the file's name in an error about a file.
fn inner(error: BootError, path: &Path) -> BootError {
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    match error {
        BootError::File { source, .. } => *source,
        other => other,
    }
}

fn start_with_kernel(name: &str, bytes: &[u8]) -> BootError {
    let dir = scratch();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    inner(boot_error(small().kernel(&path).start().unwrap_err()), &path)
}

/// The head of the kernel that the other tests boot.
fn head_of_a_kernel(len: u64) -> Vec<u8> {
    let kernel = Provider::new().kernel(&|_| {}).unwrap();
    let mut bytes = Vec::new();
    match &kernel.vmlinux {
        Vmlinux::Bytes(all) => bytes.extend_from_slice(&all[..len as usize]),
        Vmlinux::File(path) => {
            std::fs::File::open(path).unwrap().take(len).read_to_end(&mut bytes).unwrap();
        }
    }
    assert_eq!(bytes.len() as u64, len);
    bytes
}

#[test]
fn files_that_are_no_kernel_are_told_apart() {
    for (name, bytes) in [
        ("empty", &b""[..]),
        ("text", b"#!/bin/sh\necho no kernel\n"),
        ("zeros", &[0; 100_000]),
        // Packed, but no kernel in it.
        (
            "gzip",
            b"\x1f\x8b\x08\0\0\0\0\0\x02\x03\xcb\xcb\x57\xc8\x4e\x2d\xca\x4b\xcd\x51\x48\xcd\x2c\xc9\x48\x2d\
              \xe2\x02\0\x9a\x75\x30\x1d\x11\0\0\0",
        ),
    ] {
        let error = start_with_kernel(name, bytes);
        assert!(
            matches!(error, BootError::NotAKernel { .. } | BootError::TruncatedKernel { .. }),
            "{name}: {error}"
        );
    }
    // An ELF file for this processor, but a program.
    let error = start_with_kernel("program", crate::support::busybox());
    assert!(matches!(error, BootError::NotAKernel { .. }), "{error}");

    let missing = PathBuf::from("/nonexistent/kernel");
    let error = boot_error(small().kernel(&missing).start().unwrap_err());
    assert!(
        matches!(&error, BootError::Read { source, .. } if source.kind() == ErrorKind::NotFound),
        "{error}"
    );
    let dir = scratch();
    let error = boot_error(small().kernel(dir.path()).start().unwrap_err());
    assert!(matches!(inner(error, dir.path()), BootError::NotAKernel { .. }));
}

#[test]
fn a_truncated_kernel_is_told_apart() {
    let head = head_of_a_kernel(3 << 20);
    let error = start_with_kernel("vmlinux", &head);
    assert!(matches!(error, BootError::TruncatedKernel { .. }), "{error}");

    // A bzImage whose header promises more than there is.
    let mut image = vec![0; 4096];
    image[0x1f1] = 3;
    image[0x1f4..0x1f8].copy_from_slice(&100_000u32.to_le_bytes());
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x248..0x24c].copy_from_slice(&64u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&1_500_000u32.to_le_bytes());
    let error = start_with_kernel("bzImage", &image);
    assert!(matches!(error, BootError::TruncatedKernel { .. }), "{error}");
}

#[test]
fn kernels_for_other_processors_are_told_apart() {
    // arm64's Image: a header with its own magic.
    let mut image = vec![0; 100_000];
    image[..4].copy_from_slice(&[0x4d, 0x5a, 0x00, 0x91]);
    image[0x38..0x3c].copy_from_slice(b"ARMd");
    let error = start_with_kernel("Image", &image);
    assert!(matches!(&error, BootError::WrongArchitecture { found } if found.contains("arm64")), "{error}");
    assert!(error.to_string().contains("x86-64"), "{error}");

    // And its vmlinux: the same file as ours but for the processor.
    let mut elf = head_of_a_kernel(100_000);
    elf[18..20].copy_from_slice(&183u16.to_le_bytes());
    let error = start_with_kernel("vmlinux", &elf);
    assert!(matches!(&error, BootError::WrongArchitecture { found } if found.contains("arm64")), "{error}");
}

#[test]
fn amounts_of_memory_that_cannot_be_are_refused() {
    let refused = |mb: u64| {
        let start = Instant::now();
        let error = Instance::builder(source()).memory_mb(mb).start().unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(60));
        assert!(matches!(error, Error::Memory { mb: told, .. } if told == mb), "{error}");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        error.to_string()
    };
    refused(0);
    for mb in [1, 8, 63] {
        let text = refused(mb);
        assert!(text.contains("at least"), "{text}");
    }
    let total = cc::sys::memory::total().expect("Linux tells") >> 20;
    for mb in [total + 1024, u64::MAX >> 20, u64::MAX] {
        refused(mb);
    }
}

#[test]
fn the_least_memory_that_is_not_refused_is_enough() {
    let Err(Error::Memory { reason, .. }) = Instance::builder(source()).memory_mb(8).start() else {
        panic!("8 MiB are too little")
    };
    let least = reason.split_whitespace().find_map(|word| word.parse::<u64>().ok()).expect("an amount");
    let instance = Instance::builder(source()).memory_mb(least).start().unwrap();
    assert_eq!(sh(&instance, "echo alive"), "alive");
}

#[test]
fn without_any_kernel_the_error_says_what_was_tried() {
    let cache = scratch();
    let nowhere = Provider::new().with_cache_dir(cache.path()).use_apt(false).use_alpine(false);
    for provider in [nowhere.clone(), nowhere.offline(true)] {
        let error = Instance::builder(source()).provider(provider).start().unwrap_err();
        let text = error.to_string();
        assert!(matches!(boot_error(error), BootError::NoKernel { .. }), "{text}");
        assert!(text.contains("CC_KERNEL"), "{text}");
        assert!(text.contains(&cache.path().display().to_string()), "{text}");
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_an_error_of_the_cache() {
    let dir = scratch();
    let file = dir.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    // No mode keeps root out of a directory, but nobody makes one in procfs or below a file.
    for place in [file, PathBuf::from("/proc/cc-cache")] {
        let error = Source::busybox_in(&place).unwrap_err();
        let error = inner(boot_error(error), &place);
        assert!(matches!(error, BootError::Cache { .. }), "{error}");
        assert!(error.source().is_some() && error.to_string().contains("CC_CACHE_DIR"), "{error}");
        let error = small().cache_dir(&place).start().unwrap_err();
        assert!(matches!(boot_error(error), BootError::Cache { .. }));
    }
}

/// The system's package sources with those of its backports, where there are such.
fn sources_with_backports(dir: &Path) -> Option<PathBuf> {
    let release = std::fs::read_to_string("/etc/os-release").ok()?;
    let codename =
        release.lines().find_map(|l| l.strip_prefix("VERSION_CODENAME="))?.trim_matches('"').to_owned();
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(std::fs::read_dir("/etc/apt/sources.list.d").ok()?.filter_map(|e| Some(e.ok()?.path())));
    let mut uri = None;
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        // One-line and deb822 style; the main archive is the one with a suite named like the release.
        for paragraph in text.split("\n\n") {
            let suites = paragraph.lines().find_map(|l| l.strip_prefix("Suites:")).unwrap_or_default();
            if suites.split_whitespace().any(|suite| suite == codename) {
                let found = paragraph.lines().find_map(|l| l.strip_prefix("URIs:"));
                uri = uri.or(found.and_then(|l| l.split_whitespace().next()).map(str::to_owned));
            }
        }
        for line in text.lines().filter(|l| l.starts_with("deb ")) {
            let words: Vec<&str> = line.split_whitespace().filter(|w| !w.starts_with('[')).collect();
            if words.get(2) == Some(&codename.as_str()) {
                uri = uri.or(words.get(1).map(|w| (*w).to_owned()));
            }
        }
    }
    let path = dir.join("sources.list");
    std::fs::write(&path, format!("deb {} {codename}-backports main\n", uri?)).unwrap();
    Some(path)
}

#[test]
#[ignore = "downloads a kernel of some 30 MiB from the system's backports"]
fn kernel_6_12_runs_too() {
    let dir = scratch();
    let mut provider = Provider::new().with_version("6.12").use_alpine(false);
    let plain = provider.kernel(&|_| {});
    if plain.is_err() {
        let Some(sources) = sources_with_backports(dir.path()) else {
            panic!("no 6.12 kernel in the system's sources and no backports to look in");
        };
        provider = provider.with_apt_sources(sources);
    }
    let kernel = provider.kernel(&|_| {}).unwrap();
    println!("{} from {}", kernel.release, kernel.origin);
    let instance = Instance::builder(source()).provider(provider).start().unwrap();
    assert!(sh(&instance, "uname -r").starts_with("6.12."));
    assert_eq!(sh(&instance, "echo hello | sha256sum | cut -c1-8"), "5891b5b5");
    println!("{:?}", instance.timing());
    let error = instance.command("sh").args(["-c", "echo c >/proc/sysrq-trigger"]).output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected);
    assert!(matches!(instance.wait(), Err(Error::Panicked { .. })));
    let instance = Instance::builder(source())
        .provider(Provider::new().with_version("6.12"))
        .start()
        .expect("it is in the cache now");
    let _ = instance.command("poweroff").arg("-f").output();
    instance.wait().expect("it turned itself off");
}
