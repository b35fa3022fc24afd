//! The file systems of one machine, and how its agent is told to live in them.

use std::ffi::{CString, OsStr};
use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Error, Mount, Source};
use crate::agent::{Client, protocol};
use crate::machine::MAX_FILE_SYSTEMS;
use crate::vfs::{FileSystem, Limits};
use crate::virtio::fs::{Caching, FsHost};

/// The tag of the root.
const ROOT: &str = "cc-root";
/// Longest host name of Linux.
const MAX_HOSTNAME: usize = 64;

/// What a machine is served, before it runs.
pub(super) struct Root {
    /// The machine's name, 16 hexadecimal digits.
    pub(super) id: String,
    hostname: CString,
    served: Vec<(String, Arc<dyn FileSystem>, Caching)>,
    mounts: Vec<(CString, CString, bool)>,
    directory: Option<CString>,
}

impl Root {
    /// Opens the source and all mounts.
    pub(super) fn new(
        source: &Source,
        mounts: &[Mount],
        hostname: Option<String>,
        limits: &Limits,
    ) -> Result<Self, Error> {
        let (id, hostname) = identity(hostname)?;
        let mut served = vec![(ROOT.to_owned(), source.root(limits.clone())?, Caching::Private)];
        let mut places = Vec::new();
        for mount in mounts {
            let bad = |reason: &str| Error::Mount { tag: mount.tag.clone(), reason: reason.to_owned() };
            if served.iter().any(|(tag, ..)| *tag == mount.tag) {
                return Err(bad("the tag is taken"));
            }
            if served.len() == MAX_FILE_SYSTEMS {
                return Err(bad("a machine has room for 14 mounts"));
            }
            let (fs, caching) = mount.file_system(limits.clone())?;
            served.push((mount.tag.clone(), fs, caching));
            let string = |s: &str| CString::new(s).map_err(|_| bad("NUL in a name"));
            places.push((string(&mount.tag)?, string(&mount.target)?, !mount.writable));
        }
        Ok(Self { id, hostname, served, mounts: places, directory: None })
    }

    /// Has the directory made that commands start in.
    pub(super) fn start_in(&mut self, directory: Option<&OsStr>) {
        // With NUL in it, starting a command says what is wrong.
        self.directory = directory.and_then(|dir| CString::new(dir.as_encoded_bytes()).ok());
    }

    /// The tags of all file systems, in the order of the devices.
    pub(super) fn tags(&self) -> Vec<String> {
        self.served.iter().map(|(tag, ..)| tag.clone()).collect()
    }

    /// Puts the file systems behind their devices.
    pub(super) fn serve(&self, devices: &[FsHost]) {
        for (device, (_, fs, caching)) in devices.iter().zip(&self.served) {
            device.serve(fs.clone(), *caching);
        }
    }

    /// Has the guest mount them and live in the root. A guest that was `restored` first forgets what all that were
    /// restored from the same snapshot have in common: its random numbers and its time.
    pub(super) fn enter(&self, client: &Client, restored: bool) -> io::Result<()> {
        if restored {
            renew(client, None)?;
        }
        let tag = CString::new(ROOT).unwrap_or_default();
        let mounts = self
            .mounts
            .iter()
            .map(|(tag, target, read_only)| protocol::Mount { tag, target, read_only: *read_only })
            .collect();
        let names = Names::of(&self.hostname)?;
        let file = |path, contents, only_over| protocol::File { path, contents, only_over };
        client.mount_root(protocol::Root {
            tag: &tag,
            read_only: false,
            hostname: &self.hostname,
            directory: self.directory.as_deref(),
            files: vec![
                file(c"/etc/hostname", names.line.as_bytes(), false),
                file(c"/etc/hosts", names.hosts.as_bytes(), false),
                file(c"/etc/resolv.conf", b"# This machine has no network.\n", false),
                // Who has none gets none.
                file(c"/etc/machine-id", names.machine_id.as_bytes(), true),
            ],
            mounts,
        })
    }
}

/// The files of a root by which machines are told apart.
struct Names {
    line: String,
    hosts: String,
    machine_id: String,
}

impl Names {
    fn of(hostname: &CString) -> io::Result<Self> {
        let name = hostname.to_string_lossy();
        let mut id = [0; 16];
        random(&mut id)?;
        Ok(Self {
            line: format!("{name}\n"),
            hosts: format!("127.0.0.1\tlocalhost {name}\n::1\tlocalhost ip6-localhost ip6-loopback {name}\n"),
            machine_id: id.iter().map(|byte| format!("{byte:02x}")).chain(["\n".to_owned()]).collect(),
        })
    }
}

/// A name for a machine, 16 hexadecimal digits, and its host name, unless that is given.
pub(super) fn identity(hostname: Option<String>) -> Result<(String, CString), Error> {
    let id = format!("{:016x}", crate::sys::random::u64().unwrap_or_default());
    let hostname = hostname.unwrap_or_else(|| format!("cc-{}", id.get(..8).unwrap_or(&id)));
    let hostname = CString::new(hostname).ok().filter(|h| (1..=MAX_HOSTNAME).contains(&h.count_bytes()));
    Ok((id, hostname.ok_or(Error::Hostname)?))
}

/// Gives a restored guest random numbers of its own and the time. One that had a root gets names too, and then what ran
/// in it goes on.
pub(super) fn renew(client: &Client, hostname: Option<&CString>) -> io::Result<()> {
    let mut seed = [0; 256];
    random(&mut seed)?;
    let names = hostname.map(Names::of).transpose()?;
    let files = names.iter().flat_map(|names| {
        [
            (c"/etc/hostname", names.line.as_bytes()),
            (c"/etc/hosts", names.hosts.as_bytes()),
            (c"/etc/machine-id", names.machine_id.as_bytes()),
        ]
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    client.renew(protocol::Renewal {
        time_ns: u64::try_from(now.as_nanos()).map_err(io::Error::other)?,
        seed: &seed,
        hostname: hostname.map(CString::as_c_str),
        files: files.collect(),
        thaw: hostname.is_some(),
    })
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    match crate::sys::random::fill(bytes) {
        true => Ok(()),
        false => Err(io::Error::other("the host has no random numbers")),
    }
}
