use super::*;

fn quiet(_: Progress<'_>) {}

#[test]
#[ignore = "asks the system's package mirrors"]
fn stock_kernels_from_apt() {
    let cache = std::env::var_os("CC_TEST_CACHE").map(PathBuf::from).unwrap_or_else(|| std::env::temp_dir().join("cc-test-cache"));
    let provider = Provider::new().with_cache_dir(&cache).use_alpine(false);
    for version in [None, Some("6.12"), Some("6.1")] {
        let mut p = provider.clone();
        p.version = version.map(str::to_owned);
        let t = std::time::Instant::now();
        let kernel = p.kernel(&quiet).unwrap();
        eprintln!("{:?} {} from {} in {:?}, {} modules", version, kernel.release, kernel.origin, t.elapsed(), kernel.modules.len());
        let modules = kernel.modules.resolve(&["virtio_mmio", "virtio_console", "virtio_rng", "vmw_vsock_virtio_transport", "virtiofs", "fuse", "overlay", "virtio_net"]).unwrap();
        eprintln!("{:?}", modules.iter().map(|m| (&m.name, m.bytes.len())).collect::<Vec<_>>());
    }
    let busybox = provider.busybox(&quiet).unwrap();
    eprintln!("busybox {} bytes, {} applets", busybox.len(), super::super::initramfs::applets(&busybox).len());
}

/// Writes RAM as the loader leaves it, for looking at it in another emulator.
#[test]
#[ignore = "a tool: writes a RAM image"]
fn dump_ram() {
    use vm_memory::{Bytes, GuestAddress};
    let cache = std::env::var_os("CC_TEST_CACHE").map(PathBuf::from).unwrap();
    let out = PathBuf::from(std::env::var_os("CC_TEST_OUT").unwrap());
    let version = std::env::var("CC_TEST_VERSION").unwrap_or("6.1".into());
    let provider = Provider::new().with_cache_dir(&cache).use_alpine(false).with_version(&version);
    let kernel = provider.kernel(&quiet).unwrap();
    let busybox = provider.busybox(&quiet).unwrap();
    let modules = kernel.modules.resolve(&["virtio_mmio", "virtio_console", "virtio_rng", "vmw_vsock_virtio_transport", "virtiofs", "overlay", "virtio_net"]).unwrap();
    let agent = std::fs::read(std::env::var_os("CC_TEST_INIT").unwrap()).unwrap();
    let initramfs = super::super::initramfs::build(&super::super::initramfs::Contents { agent: &agent, config: b"", release: &kernel.release, modules: &modules, busybox: Some(&busybox), hostname: "cc" }).unwrap();
    std::fs::write(out.join("initramfs"), &initramfs).unwrap();
    let mut line = super::super::cmdline::CommandLine::new(super::super::cmdline::Console::Serial);
    line.dmesg = true;
    if let Ok(x) = std::env::var("CC_TEST_EXTRA") { line.extra = x.split(' ').map(str::to_owned).collect(); }
    let line = line.build().unwrap();
    std::fs::write(out.join("cmdline"), &line).unwrap();
    let virtio = (0..8).map(|i| super::super::acpi::VirtioMmio { base: 0xfeb0_0000 + i * 0x200, size: 0x200, gsi: 5 + i }).collect();
    let machine = super::super::acpi::Description { cpus: 1, serial_gsi: Some(4), virtio };
    let ram = crate::memory::GuestRam::new(256 << 20).unwrap();
    let state = super::super::loader::load(&ram, &super::super::loader::Boot { kernel: &kernel.vmlinux, initramfs: &initramfs, command_line: &line, machine: &machine }).unwrap();
    eprintln!("{state:x?}");
    let mut bytes = vec![0; 256 << 20];
    ram.memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
    std::fs::write(out.join("ram"), &bytes).unwrap();
    std::fs::write(out.join("acpi"), &bytes[0xe0000..0xe2000]).unwrap();
}
