//! Records of images: which reference means which manifest, for which platform.
//!
//! A record holds the manifest and the configuration as they were received. It is believed only when they have the
//! digests it names, so a damaged record is as good as none.

use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;

use super::{Store, names, write_whole};
use crate::oci::manifest::{Document, ImageConfig, LayerInfo, MAX_DOCUMENT, layers};
use crate::oci::{Digest, Error, Platform};

#[derive(serde::Serialize, serde::Deserialize)]
struct Stored {
    /// `None` for an image that was loaded without a name.
    reference: Option<String>,
    /// What was asked for, which may say less than the configuration.
    platform: String,
    manifest_digest: String,
    config_digest: String,
    manifest: String,
    config: String,
}

/// One image of the store.
#[derive(Clone, Debug)]
pub(in crate::oci) struct Record {
    pub(in crate::oci) reference: Option<String>,
    pub(in crate::oci) platform: String,
    pub(in crate::oci) digest: Digest,
    pub(in crate::oci) config_digest: Digest,
    pub(in crate::oci) manifest: String,
    pub(in crate::oci) config_text: String,
    pub(in crate::oci) config: ImageConfig,
    pub(in crate::oci) layers: Vec<LayerInfo>,
}

impl Record {
    /// Checks documents against their digests and each other. `what` names the image in errors.
    pub(in crate::oci) fn new(
        reference: Option<String>,
        platform: String,
        (digest, manifest): (Digest, Vec<u8>),
        (config_digest, config): (Digest, Vec<u8>),
        what: &str,
    ) -> Result<Record, Error> {
        for (digest, bytes) in [(&digest, &manifest), (&config_digest, &config)] {
            digest.check(bytes).map_err(|found| Error::Digest {
                what: what.to_owned(),
                server: "the store".into(),
                expected: digest.to_string(),
                found: found.to_string(),
            })?;
        }
        let text = |bytes| String::from_utf8(bytes).map_err(|_| Error::malformed(what, "it is not UTF-8"));
        let (manifest, config_text) = (text(manifest)?, text(config)?);
        let config = ImageConfig::parse(config_text.as_bytes(), what)?;
        let layers = match Document::parse(manifest.as_bytes(), what)? {
            Document::Image(manifest) => layers(&manifest, &config, what)?,
            Document::Index(_) => return Err(Error::malformed(what, "it is an index, not a manifest")),
        };
        Ok(Record { reference, platform, digest, config_digest, manifest, config_text, config, layers })
    }

    /// The name of its file: from what it is looked up by.
    fn file_name(key: &str, platform: &str) -> String {
        format!("{}.json", Digest::of(format!("{key}\n{platform}").as_bytes()).hex())
    }

    /// The diff-ids of its layers as names of files.
    pub(super) fn layer_names(&self) -> impl Iterator<Item = String> {
        self.layers.iter().map(|layer| layer.diff.file_name())
    }
}

impl Store {
    /// The record that a reference and platform, or a digest, lead to.
    pub(in crate::oci) fn find(&self, key: &str, platform: &Platform) -> Result<Option<Record>, Error> {
        self.read_record(self.images().join(Record::file_name(key, &platform.to_string())))
    }

    fn read_record(&self, path: PathBuf) -> Result<Option<Record>, Error> {
        let mut bytes = Vec::new();
        let read = fs::File::open(&path).and_then(|file| file.take(4 * MAX_DOCUMENT).read_to_end(&mut bytes));
        match read {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::store("read", &path)(e)),
        }
        let record = serde_json::from_slice::<Stored>(&bytes).map_err(|e| e.to_string()).and_then(|stored| {
            let checked = || {
                let manifest = (stored.manifest_digest.parse()?, stored.manifest.into_bytes());
                let config = (stored.config_digest.parse()?, stored.config.into_bytes());
                Record::new(stored.reference, stored.platform, manifest, config, "a record of the store")
            };
            checked().map_err(|e: Error| e.to_string())
        });
        match record {
            Ok(record) => Ok(Some(record)),
            Err(error) => {
                tracing::warn!(path = %path.display(), error, "a record in the store is damaged");
                Ok(None)
            }
        }
    }

    /// Writes a record. The caller has all its layers open.
    pub(in crate::oci) fn write_record(&self, record: &Record) -> Result<(), Error> {
        let digest = record.digest.to_string();
        let key = record.reference.as_deref().unwrap_or(&digest);
        let path = self.images().join(Record::file_name(key, &record.platform));
        let stored = Stored {
            reference: record.reference.clone(),
            platform: record.platform.clone(),
            manifest_digest: digest.clone(),
            config_digest: record.config_digest.to_string(),
            manifest: record.manifest.clone(),
            config: record.config_text.clone(),
        };
        let bytes =
            serde_json::to_vec(&stored).map_err(|e| Error::store("write", &path)(io::Error::other(e)))?;
        write_whole(&path, &bytes)
    }

    /// All records that are whole, with their files.
    pub(in crate::oci) fn records(&self) -> Result<Vec<(PathBuf, Record)>, Error> {
        let dir = self.images();
        let mut found = Vec::new();
        for name in names(&dir)?.into_iter().filter(|name| name.ends_with(".json")) {
            let path = dir.join(name);
            if let Some(record) = self.read_record(path.clone())? {
                found.push((path, record));
            }
        }
        Ok(found)
    }
}
