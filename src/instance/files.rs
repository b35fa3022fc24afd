//! Files of an instance: [`std::fs`]'s functions as methods, and how its workers are reached.

use std::ffi::{CStr, CString};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Instance;
use crate::agent::Client;
use crate::agent::files::{Connection, Dial, Files, Offer};
use crate::fs::{
    DirBuilder, File, FileSystem, FileTimes, Fs, Metadata, OpenOptions, Permissions, ReadDir, TempDir,
    operations,
};
use crate::machine::Machine;
use crate::process::Defaults;
use crate::virtio::fs::{self, FsHost};
use crate::virtio::vsock::{VsockHost, VsockStream};

/// How long a guest may take to accept a connection that it has said it will accept. A machine that is paused
/// meanwhile does not count as slow, so it is long.
const CONNECT: Duration = Duration::from_secs(600);

pub(super) fn file_system(machine: &Machine, client: &Arc<Client>, defaults: &Defaults) -> FileSystem {
    let board = machine.board();
    let ports = Ports { vsock: board.vsock().clone(), file_systems: board.file_systems().to_vec() };
    let files = Files::new(client.clone(), ports);
    FileSystem::of_guest(Arc::new(files), defaults.current_dir.clone())
}

#[derive(Debug)]
struct Ports {
    vsock: VsockHost,
    /// The devices with the root, first, and all mounts behind them.
    file_systems: Vec<FsHost>,
}

impl Ports {
    /// What `make` offers in the root, which is found on all mounts too.
    fn offered(&self, make: impl FnOnce(&FsHost) -> Option<fs::Offer>) -> Option<Box<dyn Offer>> {
        let (root, mounts) = self.file_systems.split_first()?;
        let mut offer = make(root)?;
        for mount in mounts {
            // Where it is not, bytes take a longer way.
            mount.share(&mut offer);
        }
        InRoot::of(offer)
    }
}

impl Dial for Ports {
    fn dial(&self, port: u32) -> io::Result<Box<dyn Connection>> {
        Ok(Box::new(Worker(self.vsock.connect(port, Some(CONNECT))?)))
    }

    fn stands_still(&self) -> bool {
        self.vsock.is_paused()
    }

    fn offer(&self, bytes: Arc<Vec<u8>>) -> Option<Box<dyn Offer>> {
        self.offered(|root| root.offer(bytes))
    }

    fn accept(&self, most: usize) -> Option<Box<dyn Offer>> {
        self.offered(|root| root.accept(most))
    }
}

#[derive(Debug)]
struct InRoot {
    path: CString,
    offer: fs::Offer,
}

impl InRoot {
    fn of(offer: fs::Offer) -> Option<Box<dyn Offer>> {
        let path = CString::new([b"/", offer.name().to_bytes()].concat()).ok()?;
        Some(Box::new(InRoot { path, offer }))
    }
}

impl Offer for InRoot {
    fn path(&self) -> &CStr {
        &self.path
    }

    fn take(&self) -> Vec<u8> {
        self.offer.take()
    }
}

#[derive(Debug)]
struct Worker(VsockStream);

impl Connection for Worker {
    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(bytes)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.0).write_all(bytes)
    }

    fn is_open(&self) -> bool {
        self.0.is_open()
    }

    fn wait(&self) -> bool {
        self.0.wait_readable()
    }
}

impl Fs for Instance {
    fn file_system(&self) -> FileSystem {
        self.files.clone()
    }
}

macro_rules! as_methods {
    ($($(#[$doc:meta])* fn $name:ident($fs:ident, $($arg:ident: $type:ty),*) -> $result:ty $body:block)*) => {
        /// Files of the guest; the trait [`Fs`] has the same, for code that also works on the [`Host`](crate::Host).
        impl Instance {
            $($(#[$doc])*
            pub fn $name(&self $(, $arg: $type)*) -> $result {
                Fs::$name(self $(, $arg)*)
            })*
        }
    };
}
operations!(as_methods);
