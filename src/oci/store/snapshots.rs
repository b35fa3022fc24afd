//! Records of snapshots of file systems: what each is made of.
//!
//! A record is a file named by its snapshot's key. It holds its text under the text's digest, and the key follows from
//! what the text says; a record of which either is not true counts as absent.

use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;

use super::{Freed, Store, names, sync_dir, write_whole};
use crate::oci::fs_snapshot::{Parent, key_of};
use crate::oci::manifest::{ImageConfig, MAX_DOCUMENT, MAX_LAYERS};
use crate::oci::{Digest, Error};

#[derive(serde::Serialize, serde::Deserialize)]
struct Stored {
    digest: String,
    text: String,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Text {
    parent: StoredParent,
    changes: String,
    layers: Vec<String>,
    directory: Option<Directory>,
    config: Option<String>,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredParent {
    Userland(String),
    Image(String),
    Directory,
    Snapshot(String),
}

/// A directory of the host below all layers.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(in crate::oci) struct Directory {
    pub(in crate::oci) path: PathBuf,
    /// Whether the files of the host's user look like root's.
    pub(in crate::oci) user_as_root: bool,
}

/// One snapshot of the store.
#[derive(Clone, Debug)]
pub(in crate::oci) struct SnapshotRecord {
    pub(in crate::oci) key: Digest,
    pub(in crate::oci) parent: Parent,
    /// Digest of the changes without their times.
    pub(in crate::oci) changes: Digest,
    /// Diff-ids, lowest first; the last is the snapshot's own.
    pub(in crate::oci) layers: Vec<Digest>,
    pub(in crate::oci) directory: Option<Directory>,
    /// The configuration of the image at the beginning, as it was received.
    pub(in crate::oci) config: Option<(String, ImageConfig)>,
}

impl SnapshotRecord {
    fn text(&self) -> Text {
        Text {
            parent: match &self.parent {
                Parent::Userland(diff) => StoredParent::Userland(diff.to_string()),
                Parent::Image(config) => StoredParent::Image(config.to_string()),
                Parent::Directory(_) => StoredParent::Directory,
                Parent::Snapshot(key) => StoredParent::Snapshot(key.to_string()),
            },
            changes: self.changes.to_string(),
            layers: self.layers.iter().map(Digest::to_string).collect(),
            directory: self.directory.clone(),
            config: self.config.as_ref().map(|(text, _)| text.clone()),
        }
    }

    fn parse(bytes: &[u8]) -> Result<SnapshotRecord, Error> {
        let what = "a record of a snapshot";
        let bad = |reason: &str| Error::malformed(what, reason);
        let json = |e: serde_json::Error| bad(&e.to_string());
        let stored: Stored = serde_json::from_slice(bytes).map_err(json)?;
        let digest: Digest = stored.digest.parse()?;
        digest.check(stored.text.as_bytes()).map_err(|_| bad("its digest is another"))?;
        let text: Text = serde_json::from_str(&stored.text).map_err(json)?;
        if text.layers.is_empty() || text.layers.len() > MAX_LAYERS {
            return Err(bad("no such number of layers can be"));
        }
        let parent = match (text.parent, &text.directory) {
            (StoredParent::Userland(diff), None) => Parent::Userland(diff.parse()?),
            (StoredParent::Image(config), None) => Parent::Image(config.parse()?),
            (StoredParent::Directory, Some(directory)) => Parent::Directory(directory.path.clone()),
            (StoredParent::Snapshot(key), _) => Parent::Snapshot(key.parse()?),
            _ => return Err(bad("its parent and its directory do not go together")),
        };
        let config = text
            .config
            .map(|text| ImageConfig::parse(text.as_bytes(), what).map(|config| (text, config)))
            .transpose()?;
        let changes = text.changes.parse()?;
        let key = key_of(&parent, text.directory.as_ref(), &changes);
        let layers = text.layers.iter().map(|diff| diff.parse()).collect::<Result<_, Error>>()?;
        Ok(SnapshotRecord { key, parent, changes, layers, directory: text.directory, config })
    }
}

impl Store {
    pub(super) fn snapshots(&self) -> PathBuf {
        self.dir.join("snapshots")
    }

    /// The record of the snapshot with this key.
    pub(in crate::oci) fn find_snapshot(&self, key: &Digest) -> Result<Option<SnapshotRecord>, Error> {
        let path = self.snapshots().join(format!("{}.json", key.file_name()));
        let mut bytes = Vec::new();
        let read = fs::File::open(&path).and_then(|file| file.take(8 * MAX_DOCUMENT).read_to_end(&mut bytes));
        match read {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::store("read", &path)(e)),
        }
        match SnapshotRecord::parse(&bytes) {
            Ok(record) if record.key == *key => Ok(Some(record)),
            Ok(_) => {
                tracing::warn!(path = %path.display(), "a snapshot's record is another's");
                Ok(None)
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a snapshot's record is damaged");
                Ok(None)
            }
        }
    }

    /// Writes a record. The caller has all its layers open.
    pub(in crate::oci) fn write_snapshot(&self, record: &SnapshotRecord) -> Result<(), Error> {
        let dir = self.snapshots();
        fs::create_dir_all(&dir).map_err(Error::store("create the directory", &dir))?;
        let path = dir.join(format!("{}.json", record.key.file_name()));
        let failed = |e: serde_json::Error| Error::store("write", &path)(io::Error::other(e));
        let text = serde_json::to_string(&record.text()).map_err(failed)?;
        let stored = Stored { digest: Digest::of(text.as_bytes()).to_string(), text };
        write_whole(&path, &serde_json::to_vec(&stored).map_err(failed)?)
    }

    /// All records of snapshots that are whole, by key.
    pub(in crate::oci) fn snapshot_records(&self) -> Result<Vec<SnapshotRecord>, Error> {
        let mut found = Vec::new();
        for name in names(&self.snapshots())? {
            let key = name.strip_suffix(".json").and_then(Digest::from_file_name);
            if let Some(record) = key.map(|key| self.find_snapshot(&key)).transpose()?.flatten() {
                found.push(record);
            }
        }
        Ok(found)
    }

    /// Removes a snapshot and those of its layers that nothing else names and nobody uses; `None` if there is none.
    pub(in crate::oci) fn remove_snapshot(&self, key: &Digest) -> Result<Option<Freed>, Error> {
        let record = self.find_snapshot(key)?;
        let path = self.snapshots().join(format!("{}.json", key.file_name()));
        match fs::remove_file(&path) {
            Ok(()) => sync_dir(&self.snapshots())?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::store("remove", &path)(e)),
        }
        let layers: Vec<String> =
            record.iter().flat_map(|record| &record.layers).map(Digest::file_name).collect();
        let layers = self.remove_layers(&layers)?;
        Ok(Some(Freed { layers, ..Freed::default() }))
    }
}
