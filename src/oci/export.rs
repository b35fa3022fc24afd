//! Images as OCI layouts in directories, for other tools.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use serde_json::json;

use super::load::oci_manifest;
use super::{Digest, Error, Image};

/// Writes an image as an OCI layout into an empty or new directory. Its layers are plain tars, so the manifest is
/// another than the one it came with; the configuration is the same.
pub(super) fn export(image: &Image, dir: &Path) -> Result<Digest, Error> {
    let failed = Error::store("write", dir);
    fs::create_dir_all(dir).map_err(&failed)?;
    if fs::read_dir(dir).map_err(&failed)?.next().is_some() {
        let reason = format!("{} is not empty", dir.display());
        return Err(Error::Option { option: "directory", reason });
    }
    let put = |digest: &Digest| {
        let blobs = dir.join("blobs").join(digest.algorithm_name());
        fs::create_dir_all(&blobs).map_err(Error::store("create the directory", &blobs))?;
        Ok::<_, Error>(blobs.join(digest.hex()))
    };
    let write = |path: &Path, bytes: &[u8]| fs::write(path, bytes).map_err(Error::store("write", path));

    let record = image.record();
    let mut written = HashSet::new();
    let mut layers = Vec::new();
    for (info, layer) in record.layers.iter().zip(image.layers()) {
        let size = layer.index().tar_len();
        if written.insert(&info.diff) {
            let to = put(&info.diff)?;
            // The image keeps its layers where they are. The host copies without moving bytes where it can.
            let copied = fs::copy(image.store().tar_path(&info.diff), &to);
            let copied = copied.map_err(Error::store("write", &to))?;
            if copied != size {
                return Err(Error::malformed(format!("the layer {}", info.diff), "its length has changed"));
            }
        }
        layers.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": info.diff.to_string(),
            "size": size,
        }));
    }
    let config = record.config_text.as_bytes();
    write(&put(&record.config_digest)?, config)?;
    let manifest = oci_manifest(&record.config_digest, config.len() as u64, &layers);
    let digest = Digest::of(&manifest);
    write(&put(&digest)?, &manifest)?;
    let platform = &record.config.platform;
    let mut entry = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest.to_string(),
        "size": manifest.len(),
        "platform": {"os": platform.os, "architecture": platform.architecture},
    });
    if let (Some(variant), Some(entry)) = (&platform.variant, entry.get_mut("platform")) {
        entry["variant"] = json!(variant);
    }
    if let (Some(name), Some(entry)) = (image.reference(), entry.as_object_mut()) {
        entry.insert("annotations".into(), json!({"org.opencontainers.image.ref.name": name}));
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    write(&dir.join("index.json"), index.to_string().as_bytes())?;
    // Last: it is what makes the directory a layout.
    write(&dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(digest)
}
