//! Snapshots of running machines as directories.
//!
//! ```text
//! state, memory     as in every snapshot; docs/snapshot-format.md
//! files             file systems, what the guest holds of them, what its commands start with, where memory has what
//! data, layer-…     see `vfs::saved`
//! ```
//! Such a directory has all the machine needs but the host directories that it mounts or runs from, and those must be
//! where they were. It is whole or not there: it gets its name by one rename after all of it is on disk.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use super::snapshot::{Inner, Snapshot};
use crate::machine::snapshot::{self, Draft, Place, SnapshotError};
use crate::oci::ImageConfig;
use crate::process::Defaults;
use crate::state::container::{Reader, Writer};
use crate::state::files::{FileClient, FileSystem, Guest};
use crate::state::{StateError, kind};
use crate::vfs::saved::{LoadError, Loader, Saver};
use crate::virtio::fs::Forked;

const FILES: &str = "files";

pub(super) fn save(snapshot: &Snapshot, to: &Path) -> Result<(), SnapshotError> {
    let failed = |source| SnapshotError::Io { action: "save the snapshot", source };
    let to = std::path::absolute(to).map_err(failed)?;
    let parent = to.parent().ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
    if to.symlink_metadata().is_ok() {
        return Err(failed(std::io::ErrorKind::AlreadyExists.into()));
    }
    let inner = &snapshot.inner;
    let draft = Draft::in_directory(parent)?;
    let mut out = Writer::new();
    let mut saver = Saver::new(draft.path()).map_err(failed)?;
    for (n, (tag, forked)) in (0..).zip(&inner.file_systems) {
        if let Some(forked) = forked {
            let (client, file_system) = forked.save(tag, &mut saver).map_err(failed)?;
            out.put(n, &client)?;
            out.put(n, &file_system)?;
        } else {
            out.put(n, &FileClient { tag: tag.clone(), ..FileClient::default() })?;
        }
    }
    out.put(0, &guest(inner, saver.layers()))?;
    snapshot::keep(&inner.state, &inner.ram, &draft, &mut out)?;
    draft.write(FILES, &out.finish())?;
    draft.publish_at(&to)
}

pub(super) fn open(from: &Path) -> Result<Snapshot, SnapshotError> {
    let place = Place::at(from);
    let bytes = place.read(FILES)?;
    let mut reader = Reader::parse(&bytes)?;
    let guest: Guest = reader.take(0)?;
    let (state, ram) = snapshot::check(&place, &mut reader)?;
    let loader = Loader::new(place.dir(), guest.layers).map_err(load_failed)?;
    let mut file_systems = Vec::new();
    for n in 0..guest.file_systems {
        let n = u16::try_from(n).map_err(|_| StateError::TooLarge)?;
        let client: FileClient = reader.take(n)?;
        let forked = match reader.has(kind::FILE_SYSTEM, n) {
            true => {
                let saved: FileSystem = reader.take(n)?;
                Some(Forked::load(&client, saved, &loader).map_err(load_failed)?)
            }
            false => None,
        };
        file_systems.push((client.tag, forked));
    }
    reader.finish()?;
    let config = match &guest.image_config {
        Some(text) => Some(
            ImageConfig::parse(text.as_bytes(), "the snapshot")
                .map_err(|_| StateError::Invalid { what: "configuration of the image" })?,
        ),
        None => None,
    };
    let defaults = Arc::new(defaults(guest));
    Ok(Snapshot { inner: Arc::new(Inner { ram, state, file_systems, defaults, config, origin: None }) })
}

fn load_failed(e: LoadError) -> SnapshotError {
    match e {
        LoadError::State(e) => e.into(),
        other => SnapshotError::Files(Box::new(other)),
    }
}

fn guest(inner: &Inner, layers: u32) -> Guest {
    let bytes = |text: &OsString| text.as_bytes().to_vec();
    let Defaults { env, current_dir, user, uid, gid, groups } = &*inner.defaults;
    Guest {
        env: env.iter().map(|(name, value)| (bytes(name), bytes(value))).collect(),
        current_dir: current_dir.as_ref().map(bytes),
        user: user.as_ref().map(bytes),
        ids: (*uid, *gid, groups.clone()),
        image_config: inner.config.as_ref().map(ImageConfig::to_json),
        file_systems: inner.file_systems.len() as u32,
        layers,
    }
}

fn defaults(guest: Guest) -> Defaults {
    let text = |bytes: Vec<u8>| OsString::from_vec(bytes);
    let (uid, gid, groups) = guest.ids;
    Defaults {
        env: guest.env.into_iter().map(|(name, value)| (text(name), text(value))).collect(),
        current_dir: guest.current_dir.map(text),
        user: guest.user.map(text),
        uid,
        gid,
        groups,
    }
}
