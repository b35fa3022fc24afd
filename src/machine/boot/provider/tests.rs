use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::super::fixtures;
use super::alpine::tests::{Mirror, repository};
use super::*;

fn quiet(_: Progress<'_>) {}

fn local(cache: &Path) -> Provider {
    Provider::bare().with_cache_dir(cache).use_apt(false).use_alpine(false)
}

#[test]
fn when_there_is_no_kernel_the_error_lists_every_way() {
    let cache = tempfile::tempdir().unwrap();
    // An address where nothing listens.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let sources = cache.path().join("no-sources");
    std::fs::write(&sources, "").unwrap();
    let provider = local(cache.path())
        .use_apt(true)
        .with_apt_sources(&sources)
        .use_alpine(true)
        .with_alpine_mirror(format!("http://{closed}/alpine"));
    let error = provider.kernel(&quiet).unwrap_err();
    let text = error.to_string();
    let BootError::NoKernel { tried } = error else { panic!("{text}") };
    assert_eq!(tried.len(), 3, "{text}");
    for part in ["the cache", "(apt): ", "Alpine Linux from http://127.0.0.1", "CC_KERNEL", "`kernel` option"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }

    let offline = provider.offline(true);
    let text = offline.kernel(&quiet).unwrap_err().to_string();
    assert!(text.contains("offline") && text.contains("CC_KERNEL"), "{text}");
    let text = offline.busybox(&quiet).unwrap_err().to_string();
    assert!(text.contains("CC_BUSYBOX"), "{text}");
}

#[test]
fn a_kernel_by_path() {
    let dir = tempfile::tempdir().unwrap();
    let elf = fixtures::tiny_elf(&[0x90; 100]);
    let file = dir.path().join("bzImage");
    std::fs::write(&file, fixtures::bzimage(&fixtures::gzip(&elf))).unwrap();
    let provider = |path: &Path| Provider::bare().with_kernel(path);

    let kernel = provider(&file).kernel(&quiet).unwrap();
    assert_eq!(kernel.release, "6.1.0-test");
    assert!(matches!(&kernel.vmlinux, Vmlinux::Bytes(bytes) if **bytes == *elf));
    assert!(kernel.modules.is_empty());

    let modules = dir.path().join("lib/modules/6.1.0-test/kernel");
    std::fs::create_dir_all(&modules).unwrap();
    std::fs::write(modules.join("virtio_mmio.ko"), fixtures::module(&[])).unwrap();
    let kernel = provider(dir.path()).kernel(&quiet).unwrap();
    assert!(kernel.modules.contains("virtio-mmio"));

    let text = |path: &Path| provider(path).kernel(&quiet).unwrap_err().chain();
    assert!(text(&dir.path().join("lib")).contains("without a file named"));
    assert!(text(&dir.path().join("absent")).contains("absent"));
    std::fs::write(&file, b"#!/bin/sh\n".repeat(100)).unwrap();
    assert!(text(&file).contains("not a Linux kernel"), "{}", text(&file));
    assert!(text(&file).contains("bzImage"));
}

#[test]
fn the_environment_gives_paths() {
    if std::env::var_os("CC_TEST_ROLE").is_some() {
        let provider = Provider::new();
        assert_eq!(provider.kernel(&quiet).unwrap().release, "6.1.0-test");
        assert_eq!(provider.busybox(&quiet).unwrap(), fixtures::busybox());
        let missing = provider.with_kernel("/absent").kernel(&quiet);
        assert!(matches!(missing, Err(BootError::Read { .. })));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (kernel, busybox) = (dir.path().join("vmlinuz"), dir.path().join("busybox"));
    std::fs::write(&kernel, fixtures::bzimage(&fixtures::gzip(&fixtures::tiny_elf(&[0x90; 64])))).unwrap();
    std::fs::write(&busybox, fixtures::busybox()).unwrap();
    let mut child = again("the_environment_gives_paths", "env", dir.path(), "");
    succeeded(child.env("CC_KERNEL", kernel).env("CC_BUSYBOX", busybox).spawn().unwrap());
}

#[test]
fn a_busybox_by_path_must_be_static_and_for_x86_64() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("busybox");
    let result = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        Provider::bare().with_busybox(&file).busybox(&quiet)
    };
    let program = fixtures::busybox();
    assert_eq!(result(&program).unwrap(), program);
    let mut dynamic = program.clone();
    dynamic[64] = 3;
    assert!(result(&dynamic).unwrap_err().chain().contains("static"));
    let mut arm64 = program;
    arm64[18] = 183;
    assert!(result(&arm64).is_err());
    assert!(result(b"").is_err());
}

#[test]
fn versions_that_could_be_paths_or_options_are_refused() {
    let cache = tempfile::tempdir().unwrap();
    for version in ["", "../6", "6.1/..", "-o", "six", "6.1 6.2"] {
        let refused = local(cache.path()).with_version(version).kernel(&quiet);
        assert!(matches!(refused, Err(BootError::NoKernel { .. })), "{version:?}");
    }
    assert!(version_matches("6.1.0-56-cloud-amd64", "6.1") && version_matches("6.1", "6.1"));
    assert!(!version_matches("6.12.1", "6.1") && !version_matches("6.1", "6.1.0"));
}

#[test]
fn a_damaged_entry_is_fetched_again() {
    let cache = tempfile::tempdir().unwrap();
    let mirror = Mirror::serve(repository());
    let provider = mirror.provider(cache.path());
    let kernel = provider.kernel(&quiet).unwrap();
    let Vmlinux::File(path) = kernel.vmlinux else { panic!() };
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..100]).unwrap();
    provider.kernel(&quiet).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    // A pointer that leads outside is no pointer.
    std::fs::write(cache.path().join("wanted/kernel"), "../entries").unwrap();
    let before = mirror.asked.lock().unwrap().len();
    provider.kernel(&quiet).unwrap();
    assert!(mirror.asked.lock().unwrap().len() > before);
}

#[test]
fn what_a_killed_process_left_is_cleared() {
    let cache = tempfile::tempdir().unwrap();
    let left = cache.path().join("drafts/dkilled");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("vmlinux"), "half").unwrap();
    std::fs::write(cache.path().join("lock"), "").unwrap();
    Mirror::serve(repository()).provider(cache.path()).kernel(&quiet).unwrap();
    assert!(!left.exists());
    assert_eq!(std::fs::read_dir(cache.path().join("drafts")).unwrap().count(), 0);
}

/// Runs the test named `name` again in another process, which does its part because of `role`.
fn again(name: &str, role: &str, cache: &Path, mirror: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &format!("machine::boot::provider::tests::{name}"), "--nocapture"])
        .env("CC_TEST_ROLE", role)
        .env("CC_TEST_CACHE", cache)
        .env("CC_TEST_MIRROR", mirror)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// In the other process: its provider.
fn role() -> Option<(String, Provider)> {
    let role = std::env::var("CC_TEST_ROLE").ok()?;
    let cache = PathBuf::from(std::env::var_os("CC_TEST_CACHE")?);
    let mirror = Mirror { url: std::env::var("CC_TEST_MIRROR").ok()?, asked: Default::default() };
    Some((role, mirror.provider(&cache)))
}

fn succeeded(child: std::process::Child) {
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&[out.stdout, out.stderr].concat()));
}

#[test]
fn two_processes_fetch_the_same_kernel_once() {
    if let Some((_, provider)) = role() {
        provider.kernel(&quiet).unwrap();
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let mirror = Mirror::serve(repository());
    let children: Vec<_> = (0..4)
        .map(|_| {
            again("two_processes_fetch_the_same_kernel_once", "fetch", cache.path(), &mirror.url)
                .spawn()
                .unwrap()
        })
        .collect();
    children.into_iter().for_each(succeeded);
    let asked = mirror.asked.lock().unwrap();
    assert_eq!(asked.iter().filter(|path| path.ends_with(".apk")).count(), 1, "{asked:?}");
}

/// The test binary and cache are in places an unprivileged user may not reach; then this says so.
#[test]
fn a_read_only_cache_serves_what_is_in_it_and_else_says_why_not() {
    if let Some((role, provider)) = role() {
        let found = provider.kernel(&quiet);
        match role.as_str() {
            "populated" => assert_eq!(found.unwrap().release, "6.12.9-0-virt"),
            _ => {
                let Err(BootError::Cache { path, .. }) = found else { panic!("{found:?}") };
                assert!(!path.as_os_str().is_empty());
            }
        }
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let empty = tempfile::tempdir().unwrap();
    let mirror = Mirror::serve(repository());
    mirror.provider(cache.path()).kernel(&quiet).unwrap();
    let read_only =
        |dir: &Path, mode| std::fs::set_permissions(dir, PermissionsExt::from_mode(mode)).unwrap();
    for dir in [cache.path(), &cache.path().join("entries"), &cache.path().join("wanted"), empty.path()] {
        read_only(dir, 0o555);
    }
    // Permissions do not bind root, so as root this is done as nobody.
    let root = std::fs::write(empty.path().join("x"), "").is_ok();
    for (role, dir) in [("populated", cache.path()), ("empty", empty.path())] {
        let mut command =
            again("a_read_only_cache_serves_what_is_in_it_and_else_says_why_not", role, dir, &mirror.url);
        if root {
            command.uid(65534).gid(65534);
        }
        match command.spawn() {
            Ok(child) => succeeded(child),
            Err(e) if root => eprintln!("skipped: cannot run as nobody: {e}"),
            Err(e) => panic!("{e}"),
        }
    }
    for dir in [cache.path(), &cache.path().join("entries"), &cache.path().join("wanted"), empty.path()] {
        read_only(dir, 0o755);
    }
}

#[test]
fn a_cache_that_is_a_file_or_full_is_an_error_of_the_cache() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mirror = Mirror::serve(repository());
    let refused = mirror.provider(file.path()).kernel(&quiet);
    assert!(matches!(refused, Err(BootError::Cache { .. })), "{refused:?}");
    assert!(refused.unwrap_err().to_string().contains("CC_CACHE_DIR"));

    // A file system of two pages, in a mount namespace of its own.
    if let Some((_, provider)) = role() {
        let refused = provider.kernel(&quiet);
        let Err(BootError::Cache { source, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let inner =
        again("a_cache_that_is_a_file_or_full_is_an_error_of_the_cache", "full", dir.path(), &mirror.url);
    let script = r#"mount -t tmpfs -o size=8k none "$CC_TEST_CACHE" || exit 77; exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", script, "sh"]).arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let out = match command.output() {
        Ok(out) if out.status.success() => return,
        Ok(out) => out,
        Err(e) => return eprintln!("skipped: no unshare: {e}"),
    };
    let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    // 77: no mounting allowed; 1 without a test run: no namespaces allowed.
    assert!(out.status.code() == Some(77) || !text.contains("running 1 test"), "{text}");
    eprintln!("skipped: cannot mount here: {text}");
}

/// A repository of two packages that apt reads from a directory.
fn debian_repository(dir: &Path) -> PathBuf {
    use sha2::Digest;
    let release = "6.1.0-56-cloud-amd64";
    let newer = "6.12.117+deb12-cloud-amd64";
    let busybox = fixtures::tar(&[("./bin/busybox", &fixtures::busybox())], true);
    let packages = [
        ("linux-image-cloud-amd64", "6.1.9-1", "linux-image-6.1.0-56-cloud-amd64 (= 6.1.9-1)", Vec::new()),
        ("linux-image-6.1.0-56-cloud-amd64", "6.1.9-1", "kmod | x", fixtures::kernel_tar("./", release)),
        (
            "linux-image-6.12.117+deb12-cloud-amd64",
            "6.12.117-1",
            "kmod",
            fixtures::kernel_tar("./usr/", newer),
        ),
        ("linux-image-6.12.20+deb12-cloud-amd64", "6.12.20-1", "kmod", Vec::new()),
        ("busybox-static", "1:1.35.0-4", "libc", busybox),
    ];
    let mut index = String::new();
    for (name, version, depends, data) in packages {
        let deb = fixtures::deb(&data);
        let file = format!("{name}.deb");
        std::fs::write(dir.join(&file), &deb).unwrap();
        let digest: String = sha2::Sha256::digest(&deb).iter().map(|b| format!("{b:02x}")).collect();
        index.push_str(&format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\nDepends: {depends}\nFilename: ./{file}\n\
             Size: {}\nSHA256: {digest}\nDescription: test\n\n",
            deb.len()
        ));
    }
    std::fs::write(dir.join("Packages"), index).unwrap();
    let sources = dir.join("sources.list");
    std::fs::write(&sources, format!("deb [trusted=yes] file:{} ./\n", dir.display())).unwrap();
    sources
}

#[test]
fn apt_gives_current_and_wanted_kernels_and_busybox() {
    if !Command::new("apt-get").arg("--version").output().is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: no apt-get");
        return;
    }
    let repository = tempfile::tempdir().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let sources = debian_repository(repository.path());
    let provider = local(cache.path()).use_apt(true).with_apt_sources(&sources);
    let kernel = provider.kernel(&quiet).unwrap();
    assert_eq!(kernel.release, "6.1.0-56-cloud-amd64");
    assert_eq!(kernel.origin, "linux-image-6.1.0-56-cloud-amd64 6.1.9-1");
    assert_eq!(kernel.modules.resolve(&["virtio_mmio"]).unwrap().len(), 2);
    let newer = provider.clone().with_version("6.12").kernel(&quiet).unwrap();
    assert_eq!(newer.release, "6.12.117+deb12-cloud-amd64");
    assert_eq!(newer.modules.len(), 2);
    assert_eq!(provider.busybox(&quiet).unwrap(), fixtures::busybox());
    let none = provider.clone().with_version("5.10").kernel(&quiet).unwrap_err().to_string();
    assert!(none.contains("linux-image-5.10*: not in any of apt's sources"), "{none}");

    // A package that is not what the index says.
    let deb = repository.path().join("linux-image-6.1.0-56-cloud-amd64.deb");
    let mut bytes = std::fs::read(&deb).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&deb, bytes).unwrap();
    let fresh = tempfile::tempdir().unwrap();
    let refused = provider.with_cache_dir(fresh.path()).kernel(&quiet).unwrap_err().to_string();
    assert!(refused.contains("Hash Sum mismatch") || refused.contains("unexpected size"), "{refused}");
}

/// The real thing: needs package mirrors, and takes 70 MB from them unless `CC_TEST_CACHE` names a
/// cache that is filled already.
#[test]
#[ignore = "asks the system's package mirrors"]
fn stock_kernels_from_the_system_load() {
    let own = tempfile::tempdir().unwrap();
    let cache = std::env::var_os("CC_TEST_CACHE").map_or_else(|| own.path().to_owned(), PathBuf::from);
    let provider = Provider::bare().with_cache_dir(&cache).use_alpine(false);
    let busybox = provider.busybox(&quiet).unwrap();
    let applets = super::super::applets::applets(&busybox);
    assert!(applets.len() > 200, "{}", applets.len());
    for version in ["6.1", "6.12"] {
        let kernel = provider.clone().with_version(version).kernel(&quiet).unwrap();
        assert!(version_matches(&kernel.release, version), "{}", kernel.release);
        let wanted =
            ["virtio_mmio", "virtio_console", "virtio_rng", "vmw_vsock_virtio_transport", "virtiofs", "fuse"];
        let modules = kernel.modules.resolve(&wanted).unwrap();
        assert!(modules.iter().any(|m| m.name == "virtio_mmio"));
        load_and_dump(&kernel, &modules, &busybox);
    }
}

/// Loads everything into RAM. Where `CC_TEST_DUMP` names a directory, leaves RAM there, for looking at
/// it or starting it in another emulator, with `CC_TEST_INIT` as `/init`.
fn load_and_dump(kernel: &Kernel, modules: &[super::super::modules::Module], busybox: &[u8]) {
    use super::super::{acpi, cmdline, initramfs, loader};
    use vm_memory::{Bytes, GuestAddress};
    let agent =
        std::env::var_os("CC_TEST_INIT").map_or_else(|| busybox.to_vec(), |p| std::fs::read(p).unwrap());
    let contents = initramfs::Contents { agent: &agent, release: &kernel.release, modules };
    let initramfs = initramfs::build(&contents).unwrap();
    let mut line = cmdline::CommandLine::new(cmdline::Console::Serial);
    line.dmesg = true;
    line.extra =
        std::env::var("CC_TEST_ARGS").map(|a| a.split(' ').map(str::to_owned).collect()).unwrap_or_default();
    let virtio =
        (0..8).map(|i| acpi::VirtioMmio { base: 0xfeb0_0000 + i * 0x200, size: 0x200, gsi: 5 + i }).collect();
    let machine = acpi::Description { cpus: 1, serial_gsi: Some(4), virtio };
    let ram = crate::memory::GuestRam::new(256 << 20).unwrap();
    let boot = loader::Boot {
        kernel: &kernel.vmlinux,
        initramfs: &initramfs,
        command_line: &line.build().unwrap(),
        machine: &machine,
    };
    let state = loader::load(&ram, &boot).unwrap();
    let mut code = [0; 16];
    ram.memory().read_slice(&mut code, GuestAddress(state.rip)).unwrap();
    assert_ne!(code, [0; 16]);
    if let Some(dir) = std::env::var_os("CC_TEST_DUMP").map(PathBuf::from) {
        let mut bytes = vec![0; ram.size() as usize];
        ram.memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
        std::fs::write(dir.join(format!("ram-{:#x}-{}", state.rip, kernel.release)), bytes).unwrap();
    }
}
