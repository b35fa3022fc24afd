//! Linux in a virtual machine inside your program.
//!
//! An [`Instance`] is a running machine with a stock Linux kernel. What is done with it has the names
//! and manners of [`std`]:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let instance = cc::Instance::new(cc::Source::busybox()?)?;
//! let out = instance.command("echo").arg("hello").output()?;
//! assert_eq!(out.stdout, b"hello\n");
//! # Ok(()) }
//! ```
//!
//! There is no daemon, and neither root nor a hypervisor is needed: the machine's processor is
//! software of this crate. Dropping the instance ends the machine; no thread, descriptor, process or
//! file of it is left then.
//!
//! # What callers use
//!
//! * [`Instance`] and [`InstanceBuilder`]: making a machine, its lifetime, pausing and ending it.
//! * [`Source`]: what its file system starts from.
//! * [`Snapshot`] and [`FileSystemSnapshot`]: a machine with all that runs in it, or only its files, as sources.
//! * [`process`]: [`std::process`] for programs in the guest.
//! * [`fs`]: [`std::fs`] for files in the guest, and a trait for code that works on both.
//! * [`Host`]: this process's own system behind the same traits, and [`Machine`]: all of them at once.
//! * [`net`]: [`std::net`] where the guest is; ports of the host that lead into it, and out of it.
//! * [`Error`]: what can go wrong with the machine as a whole. What goes wrong with something inside
//!   it is an [`std::io::Error`], as in std, and [`raw_os_error`] has the guest's errno.
//!
//! Options come before the start, commands have pipes, and kinds of errors are std's:
//!
//! ```no_run
//! use std::io::{ErrorKind, Read, Write};
//! use std::time::Duration;
//!
//! use cc::process::Stdio;
//! use cc::{Instance, Source};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let instance = Instance::builder(Source::busybox()?)
//!     .memory_mb(512)
//!     .timeout(Duration::from_secs(60))
//!     .start()?;
//!
//! let mut child = instance.command("sort").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
//! child.stdin.take().unwrap().write_all(b"pear\napple\n")?;
//! let mut sorted = String::new();
//! child.stdout.take().unwrap().read_to_string(&mut sorted)?;
//! assert!(child.wait()?.success());
//! assert_eq!(sorted, "apple\npear\n");
//!
//! let error = instance.command("no-such-program").output().unwrap_err();
//! assert_eq!(error.kind(), ErrorKind::NotFound);
//! instance.close()?;
//! # Ok(()) }
//! ```
//!
//! # What it stands on
//!
//! Each layer uses only those below it. They are public so that they can be used and tested by
//! themselves, and change more often than what is above.
//!
//! | layer | modules |
//! |---|---|
//! | 5 what callers write | [`instance`], [`fs`], [`process`], [`net`] |
//! | 4 where machines come from | [`oci`]: images, registries, the store of layers |
//! | 3 the running computer | [`machine`]: board, run loop, boot; the host's end of the guest protocol |
//! | 2 hardware the guest sees | [`chipset`]: bus, interrupt controllers, timers, serial port; [`virtio`]: console, sockets, entropy |
//! | 1 processors | [`hypervisor`]: the interface of all backends, the software CPU, KVM, the probe that chooses |
//! | 1 files | [`vfs`]: layers of tar files, an overlay, memory, a host directory |
//! | 0 ground | [`arch`]: processor state; [`memory`]: guest RAM; [`state`]: saved state; [`sys`]: the host's clock, entropy, memory |
//!
//! A call goes down: `process` writes a message for the program that is PID 1 in the guest, and the
//! message travels through a virtual socket. A guest's access to a device comes up, from the
//! processor through [`hypervisor::ExitIo`] to the bus, and goes down again into the device. The
//! repository's `docs/architecture.md` follows both on their way.
//!
//! # The environment
//!
//! `CC_KERNEL` and `CC_BUSYBOX` name a kernel and a userland to use, `CC_CACHE_DIR` where fetched
//! ones are kept, `CC_ALPINE_MIRROR` where to fetch from on hosts without apt; `CC_PROGRESS=never`
//! hides the progress bar, `CC_BOOT_SNAPSHOT=never` has every machine boot. Options of the builder come before them.

#[doc(hidden)]
pub mod agent;
pub mod arch;
pub mod chipset;
pub mod fs;
mod host;
pub mod hypervisor;
pub mod instance;
pub mod machine;
pub mod memory;
pub mod net;
pub mod oci;
pub mod process;
pub mod state;
pub mod sys;
pub mod vfs;
pub mod virtio;

pub use agent::raw_os_error;
pub use host::Host;
pub use hypervisor::CpuModel;
pub use instance::place::Machine;
pub use instance::{
    Backend, Error, FileSystemSnapshotOptions, Instance, InstanceBuilder, Mount, Snapshot, Source, Timing,
    supports_hypervisor,
};
pub use oci::FileSystemSnapshot;
