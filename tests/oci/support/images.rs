//! Images that the tests write themselves.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

/// An image as its parts.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) layers: Vec<(Vec<u8>, Compression)>,
    pub(crate) config: Value,
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

/// A tar with these files.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1);
        builder.append_data(&mut header, path, *content).expect("a tar");
    }
    builder.into_inner().expect("a tar")
}

/// Bytes that do not compress, the same for a seed every time.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(len);
    bytes
}

pub(crate) fn compress(bytes: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::Plain => bytes.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).expect("memory");
            encoder.finish().expect("memory")
        }
        Compression::Zstd => {
            ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
        }
    }
}

impl Image {
    /// For `linux/amd64`, with layers compressed by gzip.
    pub(crate) fn new(layers: Vec<Vec<u8>>) -> Image {
        let layers: Vec<_> = layers.into_iter().map(|tar| (tar, Compression::Gzip)).collect();
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| digest(tar)).collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Env": ["PATH=/bin", "A=1"],
                "WorkingDir": "/w",
                "Entrypoint": ["/entry"],
                "Cmd": ["one", "two"],
                "User": "1000:1000",
                "Labels": {"b": "2", "a": "1"},
                "ExposedPorts": {"80/tcp": {}, "443/tcp": {}},
                "StopSignal": "SIGINT",
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        Image { layers, config }
    }

    /// One small layer that tells images apart.
    pub(crate) fn small(text: &str) -> Image {
        Image::new(vec![tar(&[("name", text.as_bytes())])])
    }

    pub(crate) fn for_platform(mut self, architecture: &str, variant: Option<&str>) -> Image {
        self.config["architecture"] = json!(architecture);
        if let Some(variant) = variant {
            self.config["variant"] = json!(variant);
        }
        self
    }

    pub(crate) fn compressed(mut self, compression: Compression) -> Image {
        self.layers.iter_mut().for_each(|layer| layer.1 = compression);
        self
    }

    /// The blobs, the manifest last.
    pub(crate) fn blobs(&self) -> Vec<Vec<u8>> {
        let mut blobs: Vec<Vec<u8>> = self.layers.iter().map(|(tar, how)| compress(tar, *how)).collect();
        let layers: Vec<Value> = blobs
            .iter()
            .zip(&self.layers)
            .map(|(blob, (_, how))| {
                let suffix = match how {
                    Compression::Plain => "",
                    Compression::Gzip => "+gzip",
                    Compression::Zstd => "+zstd",
                };
                let kind = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
                json!({"mediaType": kind, "digest": digest(blob), "size": blob.len()})
            })
            .collect();
        let config = serde_json::to_vec(&self.config).expect("JSON");
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&config),
                "size": config.len(),
            },
            "layers": layers,
        });
        blobs.push(config);
        blobs.push(serde_json::to_vec(&manifest).expect("JSON"));
        blobs
    }

    /// What an index says of the image.
    pub(crate) fn descriptor(&self) -> Value {
        let manifest = self.blobs().pop().expect("a manifest");
        let mut platform = json!({"os": "linux", "architecture": self.config["architecture"]});
        if let Some(variant) = self.config.get("variant") {
            platform["variant"] = variant.clone();
        }
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest(&manifest),
            "size": manifest.len(),
            "platform": platform,
        })
    }

    /// Writes an OCI layout of this one image.
    pub(crate) fn write_layout(&self, dir: &Path, name: Option<&str>) {
        let mut descriptor = self.descriptor();
        if let Some(name) = name {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        write_layout(dir, &[self], &[], &index(&[descriptor]));
    }
}

pub(crate) fn index(manifests: &[Value]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    })
}

/// An index as an entry of another.
pub(crate) fn index_descriptor(index: &Value) -> Value {
    let bytes = serde_json::to_vec(index).expect("JSON");
    json!({
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": digest(&bytes),
        "size": bytes.len(),
    })
}

/// Writes an OCI layout with these images, further documents, and its index.
pub(crate) fn write_layout(dir: &Path, images: &[&Image], documents: &[&Value], index: &Value) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a directory");
    let documents = documents.iter().map(|document| serde_json::to_vec(document).expect("JSON"));
    for blob in images.iter().flat_map(|image| image.blobs()).chain(documents) {
        fs::write(blobs.join(&digest(&blob)[7..]), blob).expect("a file");
    }
    fs::write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#).expect("a file");
    fs::write(dir.join("index.json"), serde_json::to_vec(index).expect("JSON")).expect("a file");
}
