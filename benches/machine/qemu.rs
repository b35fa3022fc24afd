//! The same kernel on QEMU's emulator, to compare with.
//!
//! QEMU gets the kernel file that ours gets (its PVH entry), the same command line, and an initramfs
//! written by the same code with the same modules and userland, in which PID 1 is a shell script
//! that runs `echo`. The script loads no modules and talks to nobody, so QEMU's guest does less.
//! ACPI is off: without the devices that KVM would give, the microvm machine's ACPI tables leave the
//! kernel no timer to calibrate against.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cc::machine::boot::cmdline::{CommandLine, Console};
use cc::machine::boot::initramfs;
use cc::machine::boot::loader::Vmlinux;
use cc::machine::boot::provider::Provider;

use crate::Result;

const PROGRAM: &str = "qemu-system-x86_64";
const INIT: &[u8] = b"#!/bin/busybox sh\nPATH=/bin\n/bin/busybox echo cc-qemu-ready\nexec sleep 1000\n";
const READY: &[u8] = b"cc-qemu-ready";
/// The modules that a machine of ours loads.
const MODULES: &[&str] =
    &["virtio_mmio", "vmw_vsock_virtio_transport", "virtio_rng", "virtio_console", "virtiofs"];
/// A boot that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(120);

/// What QEMU needs for a boot.
pub(crate) struct Qemu {
    kernel: PathBuf,
    initramfs: PathBuf,
    command_line: String,
    _files: tempfile::TempDir,
}

impl Qemu {
    /// Writes the files. Fails where there is no QEMU.
    pub(crate) fn find() -> Result<Self> {
        let version = Command::new(PROGRAM).arg("--version").stdin(Stdio::null()).output();
        version.map_err(|e| format!("{PROGRAM} does not run: {e}"))?;
        let provider = Provider::new();
        let kernel = provider.kernel(&|_| {})?;
        let files = tempfile::tempdir()?;
        let initramfs_path = files.path().join("initramfs");
        let modules = kernel.modules.resolve(MODULES)?;
        let mut archive = initramfs::build(&initramfs::Contents {
            agent: INIT,
            release: &kernel.release,
            modules: &modules,
        })?;
        // The kernel unpacks archives that follow one another.
        let mut userland = initramfs::Cpio::new();
        userland.file("bin/busybox", 0o755, &provider.busybox(&|_| {})?)?;
        archive.extend(userland.finish()?);
        std::fs::write(&initramfs_path, archive)?;
        let kernel = match kernel.vmlinux {
            Vmlinux::File(path) => path,
            Vmlinux::Bytes(bytes) => {
                let path = files.path().join("vmlinux");
                std::fs::write(&path, bytes)?;
                path
            }
        };
        let command_line = CommandLine::new(Console::Serial).build()?;
        Ok(Self { kernel, initramfs: initramfs_path, command_line, _files: files })
    }

    /// The time from starting QEMU to the guest's output.
    pub(crate) fn boot(&self) -> Result<Duration> {
        let start = Instant::now();
        let child = Command::new(PROGRAM)
            .args(["-M", "microvm,acpi=off", "-accel", "tcg", "-cpu", "max", "-m", "256"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", &self.command_line])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let mut child = Guard(child);
        let mut output = child.0.stdout.take().ok_or("no stdout")?;
        let (send, receive) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let (mut seen, mut buffer, mut sent) = (Vec::new(), [0; 4096], false);
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                seen.extend_from_slice(&buffer[..n]);
                if !sent && seen.windows(READY.len()).any(|w| w == READY) {
                    sent = send.send(Instant::now()).is_ok();
                }
            }
            String::from_utf8_lossy(&seen).into_owned()
        });
        let ready = receive.recv_timeout(LIMIT);
        drop(child);
        let console = reader.join().map_err(|_| "the reading thread panicked")?;
        match ready {
            Ok(at) => Ok(at - start),
            Err(_) => Err(format!("QEMU's guest did not come up; its console:\n{console}").into()),
        }
    }
}

/// Ends QEMU however the measurement ends.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
