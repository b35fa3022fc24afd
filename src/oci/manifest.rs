//! Manifests, indexes and configurations: checked views of what registries and archives give.
//!
//! OCI's and Docker's schema 2 differ in media types only. A document that could be taken for two kinds is refused.

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use serde::de::IgnoredAny;

use super::{Digest, Error, Platform};

/// No manifest, index or configuration is larger.
pub(super) const MAX_DOCUMENT: u64 = 8 << 20;
/// No image has more layers.
pub(super) const MAX_LAYERS: usize = 1024;
/// No index has more entries.
const MAX_ENTRIES: usize = 4096;

/// What is asked for, best first.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// One layer as its manifest tells: the blob and what it unpacks to.
#[derive(Clone, Debug)]
pub(super) struct LayerInfo {
    pub(super) blob: Digest,
    /// Bytes of the blob.
    pub(super) size: u64,
    pub(super) diff: Digest,
}

/// A manifest or an index.
pub(super) enum Document {
    Index(Vec<Descriptor>),
    Image(Box<ImageManifest>),
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
}

impl Document {
    /// Reads a document; `what` names it in errors.
    pub(super) fn parse(bytes: &[u8], what: &str) -> Result<Document, Error> {
        let bad = |e: serde_json::Error| Error::malformed(what, e.to_string());
        let shape: Shape = serde_json::from_slice(bytes).map_err(bad)?;
        if shape.schema_version == Some(1) {
            return Err(Error::Unsupported {
                what: format!(
                    "{what}, in Docker's old format (schema 1): push the image again with a current tool; it"
                ),
            });
        }
        if shape.schema_version != Some(2) {
            return Err(Error::malformed(what, "its schema version is not 2"));
        }
        let declared = shape.media_type.as_deref().unwrap_or_default();
        let says_index = declared.contains("image.index") || declared.contains("manifest.list");
        match (shape.manifests.is_some(), shape.layers.is_some() || shape.config.is_some()) {
            (true, true) => Err(Error::malformed(what, "it is an index and a manifest at once")),
            (true, false) if says_index || declared.is_empty() => {
                let index: ImageIndex = serde_json::from_slice(bytes).map_err(bad)?;
                if index.manifests().len() > MAX_ENTRIES {
                    return Err(Error::malformed(what, format!("it has more than {MAX_ENTRIES} entries")));
                }
                Ok(Document::Index(index.manifests().clone()))
            }
            (false, true) if !says_index => {
                let manifest: ImageManifest = serde_json::from_slice(bytes).map_err(bad)?;
                if manifest.layers().len() > MAX_LAYERS {
                    return Err(Error::malformed(what, format!("it has more than {MAX_LAYERS} layers")));
                }
                Ok(Document::Image(Box::new(manifest)))
            }
            (false, false) => Err(Error::malformed(what, "it is neither an index nor a manifest")),
            _ => Err(Error::malformed(what, format!("its content is not what its type {declared:?} says"))),
        }
    }
}

/// Whether an entry of an index leads to another index.
pub(super) fn is_index(entry: &Descriptor) -> bool {
    match entry.media_type() {
        MediaType::ImageIndex => true,
        MediaType::Other(other) => other == "application/vnd.docker.distribution.manifest.list.v2+json",
        _ => false,
    }
}

/// The digest and size of a descriptor, checked.
pub(super) fn target(descriptor: &Descriptor) -> Result<(Digest, u64), Error> {
    Ok((descriptor.digest().to_string().parse()?, descriptor.size()))
}

/// The layers of an image, lowest first.
pub(super) fn layers(
    manifest: &ImageManifest,
    config: &ImageConfig,
    what: &str,
) -> Result<Vec<LayerInfo>, Error> {
    if manifest.layers().len() != config.diff_ids.len() {
        return Err(Error::malformed(
            what,
            format!(
                "the manifest has {} layers, the configuration {}",
                manifest.layers().len(),
                config.diff_ids.len()
            ),
        ));
    }
    let pairs = manifest.layers().iter().zip(&config.diff_ids);
    pairs
        .map(|(layer, diff)| {
            let media_type = layer.media_type().to_string();
            if !is_layer(&media_type) {
                return Err(Error::Unsupported { what: format!("a layer of type {media_type:?} in {what}") });
            }
            let (blob, size) = target(layer)?;
            Ok(LayerInfo { blob, size, diff: diff.clone() })
        })
        .collect()
}

/// How a layer is compressed is told from its bytes; what else was done to it only its type tells.
fn is_layer(media_type: &str) -> bool {
    let Some((base, suffix)) = media_type.split_once(".tar") else { return false };
    let known = [
        "application/vnd.oci.image.layer.v1",
        "application/vnd.oci.image.layer.nondistributable.v1",
        "application/vnd.docker.image.rootfs.diff",
        "application/vnd.docker.image.rootfs.foreign.diff",
        "application/vnd.docker.image.rootfs.foreign",
        "application/vnd.docker.image.rootfs",
    ];
    known.contains(&base) && matches!(suffix, "" | "+gzip" | ".gzip" | "+zstd" | ".zstd")
}

/// What an image says about how its programs are to be run. Nothing in it configures the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageConfig {
    /// What it is made for.
    pub platform: Platform,
    /// Environment variables as `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; `None` for the root.
    pub working_dir: Option<String>,
    /// What is always run, with [`cmd`](ImageConfig::cmd) as further arguments.
    pub entrypoint: Vec<String>,
    /// Default command, or default arguments of the entry point.
    pub cmd: Vec<String>,
    /// User as `user`, `uid`, `user:group` or `uid:gid`; `None` for root.
    pub user: Option<String>,
    /// Labels, sorted by name.
    pub labels: Vec<(String, String)>,
    /// Ports its programs listen on, such as `80/tcp`, sorted.
    pub exposed_ports: Vec<String>,
    /// The signal that asks its program to end, such as `SIGTERM`.
    pub stop_signal: Option<String>,
    pub(super) diff_ids: Vec<Digest>,
}

impl ImageConfig {
    /// As OCI's documents have it, for [`ImageConfig::parse`].
    pub(crate) fn to_json(&self) -> String {
        let none = serde_json::Map::new;
        let ports = self.exposed_ports.iter().map(|port| (port.clone(), none().into())).collect();
        let labels = self.labels.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        let run: [(&str, serde_json::Value); 8] = [
            ("Env", self.env.clone().into()),
            ("WorkingDir", self.working_dir.clone().into()),
            ("Entrypoint", self.entrypoint.clone().into()),
            ("Cmd", self.cmd.clone().into()),
            ("User", self.user.clone().into()),
            ("Labels", serde_json::Value::Object(labels)),
            ("ExposedPorts", serde_json::Value::Object(ports)),
            ("StopSignal", self.stop_signal.clone().into()),
        ];
        let run: serde_json::Map<String, serde_json::Value> =
            run.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.to_owned(), v)).collect();
        let diff_ids: Vec<String> = self.diff_ids.iter().map(Digest::to_string).collect();
        let mut all = none();
        all.insert("os".into(), self.platform.os.clone().into());
        all.insert("architecture".into(), self.platform.architecture.clone().into());
        if let Some(variant) = &self.platform.variant {
            all.insert("variant".into(), variant.as_str().into());
        }
        all.insert("config".into(), run.into());
        all.insert("rootfs".into(), serde_json::json!({"type": "layers", "diff_ids": diff_ids}));
        serde_json::Value::Object(all).to_string()
    }

    /// Reads a configuration; `what` names it in errors.
    pub(crate) fn parse(bytes: &[u8], what: &str) -> Result<ImageConfig, Error> {
        let bad = |reason: String| Error::malformed(what, reason);
        let parsed: ImageConfiguration = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        if parsed.rootfs().typ() != "layers" {
            return Err(bad(format!("its root is made of {:?}, not of layers", parsed.rootfs().typ())));
        }
        let diff_ids = parsed.rootfs().diff_ids();
        if diff_ids.len() > MAX_LAYERS {
            return Err(bad(format!("it has more than {MAX_LAYERS} layers")));
        }
        let diff_ids = diff_ids.iter().map(|id| id.parse()).collect::<Result<_, Error>>()?;
        let run = parsed.config().clone().unwrap_or_default();
        let text = |value: &Option<String>| value.clone().filter(|v| !v.is_empty());
        let list = |value: &Option<Vec<String>>| value.clone().unwrap_or_default();
        let mut labels: Vec<_> = run.labels().clone().unwrap_or_default().into_iter().collect();
        labels.sort();
        let mut exposed_ports = list(run.exposed_ports());
        exposed_ports.sort();
        Ok(ImageConfig {
            platform: Platform {
                os: parsed.os().to_string(),
                architecture: parsed.architecture().to_string(),
                variant: text(parsed.variant()),
            },
            env: list(run.env()),
            working_dir: text(run.working_dir()),
            entrypoint: list(run.entrypoint()),
            cmd: list(run.cmd()),
            user: text(run.user()),
            labels,
            exposed_ports,
            stop_signal: text(run.stop_signal()),
            diff_ids,
        })
    }
}
