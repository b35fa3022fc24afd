use super::*;

fn quiet(_: Progress<'_>) {}

#[test]
#[ignore = "asks the system's package mirrors"]
fn stock_kernels_from_apt() {
    let cache = std::env::var_os("CC_TEST_CACHE")
        .map(PathBuf::from)
        .unwrap_or_else(|| std::env::temp_dir().join("cc-test-cache"));
    let provider = Provider::new().with_cache_dir(&cache).use_alpine(false);
    for version in [None, Some("6.12"), Some("6.1")] {
        let mut p = provider.clone();
        p.version = version.map(str::to_owned);
        let t = std::time::Instant::now();
        let kernel = p.kernel(&quiet).unwrap();
        eprintln!(
            "{:?} {} from {} in {:?}, {} modules",
            version,
            kernel.release,
            kernel.origin,
            t.elapsed(),
            kernel.modules.len()
        );
        let modules = kernel
            .modules
            .resolve(&[
                "virtio_mmio",
                "virtio_console",
                "virtio_rng",
                "vmw_vsock_virtio_transport",
                "virtiofs",
                "fuse",
                "overlay",
                "virtio_net",
            ])
            .unwrap();
        eprintln!("{:?}", modules.iter().map(|m| (&m.name, m.bytes.len())).collect::<Vec<_>>());
    }
    let busybox = provider.busybox(&quiet).unwrap();
    eprintln!(
        "busybox {} bytes, {} applets",
        busybox.len(),
        super::super::initramfs::applets(&busybox).len()
    );
}
