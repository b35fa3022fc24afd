//! Images from files: OCI layouts, as directory or tar, and what `docker save` writes.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use oci_spec::image::Descriptor;
use serde_json::json;

use super::archive::{Archive, Member};
use super::manifest::{self, Document, ImageConfig, LayerInfo, MAX_DOCUMENT, MAX_LAYERS};
use super::options::{Options, Progress};
use super::pull::next_entries;
use super::store::{Record, Store, Work};
use super::unpack::{Failure, FilePieces, Job, into_layer};
use super::{Digest, Error, Image, Platform, Reference};
use crate::vfs::layer::Layer;

const MAX_DEPTH: usize = 4;
const MAX_IMAGES: usize = 1024;
const POLL: Duration = Duration::from_millis(20);
/// Where archives keep the names of their images.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// One image of an archive: its record, and where its layers lie.
struct Found {
    record: Record,
    /// The member of each layer.
    members: Vec<String>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Loads all images of an archive that are for the client's platform.
pub(super) fn load(options: &Options, store: &Store, path: &Path) -> Result<Vec<Image>, Error> {
    let archive = Archive::open(path)?;
    let name = archive.name();
    let saved = if archive.is_tar() { archive.document("manifest.json")? } else { None };
    let found = if let Some(saved) = saved {
        from_docker(&archive, options, &saved)?
    } else if let Some(index) = archive.document("index.json")? {
        from_layout(&archive, options, &index)?
    } else {
        return Err(Error::malformed(name, "it is neither an OCI layout nor an archive of docker save"));
    };
    store.prepare()?;
    let mut images = Vec::new();
    for Found { record, members } in found {
        let mut layers = Vec::new();
        for (index, (info, member)) in record.layers.iter().zip(&members).enumerate() {
            layers.push(layer(options, store, &archive, info, member, (index, members.len()))?);
        }
        store.write_record(&record)?;
        images.push(Image::new(record, layers, store.clone()));
    }
    Ok(images)
}

fn from_layout(archive: &Archive, options: &Options, index: &[u8]) -> Result<Vec<Found>, Error> {
    let name = archive.name();
    let Document::Index(entries) = Document::parse(index, &name)? else {
        return Err(Error::malformed(name, "its index.json is no index"));
    };
    if entries.len() > MAX_IMAGES {
        return Err(Error::malformed(name, format!("it has more than {MAX_IMAGES} images")));
    }
    let mut found = Vec::new();
    let mut available = Vec::new();
    for entry in &entries {
        let Some((digest, bytes)) = resolve(archive, entry, &options.platform, &mut available, 0)? else {
            continue;
        };
        let Document::Image(image) = Document::parse(&bytes, &name)? else { continue };
        let (config_digest, _) = manifest::target(image.config())?;
        let config = archive.blob(&config_digest)?.read("the configuration")?;
        let reference = reference_of(entry);
        let platform = options.platform.to_string();
        let record = Record::new(reference, platform, (digest, bytes), (config_digest, config), &name)?;
        if !options.platform.accepts(&record.config.platform) {
            available.push(record.config.platform.to_string());
            continue;
        }
        let members = record
            .layers
            .iter()
            .map(|info| format!("blobs/{}/{}", info.blob.algorithm_name(), info.blob.hex()));
        found.push(Found { members: members.collect(), record });
    }
    some(found, available, name, &options.platform)
}

fn some(
    found: Vec<Found>,
    mut available: Vec<String>,
    image: String,
    wanted: &Platform,
) -> Result<Vec<Found>, Error> {
    if !found.is_empty() {
        return Ok(found);
    }
    available.sort();
    available.dedup();
    Err(Error::Platform { image, wanted: wanted.to_string(), available })
}

/// The manifest that an entry leads to, for the platform.
fn resolve(
    archive: &Archive,
    entry: &Descriptor,
    platform: &Platform,
    available: &mut Vec<String>,
    depth: usize,
) -> Result<Option<(Digest, Vec<u8>)>, Error> {
    let name = archive.name();
    if let Some(other) = Platform::of(entry).filter(|other| !platform.accepts(other)) {
        available.push(other.to_string());
        return Ok(None);
    }
    if depth > MAX_DEPTH {
        return Err(Error::malformed(name, format!("its indexes are nested more than {MAX_DEPTH} deep")));
    }
    let (digest, size) = manifest::target(entry)?;
    if size > MAX_DOCUMENT {
        return Err(Error::TooLarge { what: name, limit: MAX_DOCUMENT, hint: "" });
    }
    let bytes = archive.blob(&digest)?.read("a manifest")?;
    digest.check(&bytes).map_err(|found| Error::Digest {
        what: "a manifest".into(),
        server: name.clone(),
        expected: digest.to_string(),
        found: found.to_string(),
    })?;
    match Document::parse(&bytes, &name)? {
        Document::Image(_) => Ok(Some((digest, bytes))),
        Document::Index(entries) => {
            available.extend(entries.iter().filter_map(Platform::of).map(|p| p.to_string()));
            for entry in next_entries(&entries, platform) {
                if let Some(found) = resolve(archive, entry, platform, available, depth + 1)? {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        }
    }
}

/// The reference that a layout gives an image. A bare word there is by convention a tag of who knows what.
fn reference_of(entry: &Descriptor) -> Option<String> {
    let annotations = entry.annotations().as_ref()?;
    let names = NAMES.iter().filter_map(|name| annotations.get(*name));
    let mut named = names.filter(|name| name.contains(['/', ':']));
    named.find_map(|name| name.parse::<Reference>().ok()).map(|reference| reference.to_string())
}

fn from_docker(archive: &Archive, options: &Options, bytes: &[u8]) -> Result<Vec<Found>, Error> {
    let name = archive.name();
    let bad = |reason: String| Error::malformed(archive.name(), reason);
    let saved: Vec<Saved> =
        serde_json::from_slice(bytes).map_err(|e| bad(format!("its manifest.json: {e}")))?;
    if saved.len() > MAX_IMAGES {
        return Err(bad(format!("it has more than {MAX_IMAGES} images")));
    }
    let (mut found, mut available) = (Vec::new(), Vec::new());
    for Saved { config, repo_tags, layers } in saved {
        let missing = |member: &str| bad(format!("it has no {member:?}, which its manifest.json names"));
        let config = archive.document(&config)?.ok_or_else(|| missing(&config))?;
        let parsed = ImageConfig::parse(&config, &name)?;
        if !options.platform.accepts(&parsed.platform) {
            available.push(parsed.platform.to_string());
            continue;
        }
        if layers.len() != parsed.diff_ids.len() || layers.len() > MAX_LAYERS {
            return Err(bad(format!(
                "its manifest.json has {} layers, the configuration {}",
                layers.len(),
                parsed.diff_ids.len()
            )));
        }
        let mut descriptors = Vec::new();
        for (member, diff) in layers.iter().zip(&parsed.diff_ids) {
            let file = archive.member(member)?.ok_or_else(|| missing(member))?;
            let size = file.len;
            let (kind, digest) = blob_of(file, diff, member)?;
            let kind = format!("application/vnd.oci.image.layer.v1.tar{kind}");
            descriptors.push(json!({"mediaType": kind, "digest": digest.to_string(), "size": size}));
        }
        // Such archives have no manifest; this is the one it would have.
        let config_digest = Digest::of(&config);
        let manifest = oci_manifest(&config_digest, config.len() as u64, &descriptors);
        let digest = Digest::of(&manifest);
        let tags = repo_tags.unwrap_or_default();
        let mut references: Vec<Option<String>> = tags
            .iter()
            .filter_map(|tag| tag.parse::<Reference>().ok())
            .map(|r| Some(r.to_string()))
            .collect();
        if references.is_empty() {
            references.push(None);
        }
        for reference in references {
            let documents = ((digest.clone(), manifest.clone()), (config_digest.clone(), config.clone()));
            let platform = options.platform.to_string();
            let record = Record::new(reference, platform, documents.0, documents.1, &name)?;
            found.push(Found { record, members: layers.clone() });
        }
    }
    some(found, available, name, &options.platform)
}

/// A manifest, as the bytes it is stored as.
pub(super) fn oci_manifest(config: &Digest, size: u64, layers: &[serde_json::Value]) -> Vec<u8> {
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.to_string(),
            "size": size,
        },
        "layers": layers,
    });
    manifest.to_string().into_bytes()
}

/// What a layer of an archive would be called as a blob: how it is compressed, and its digest. A plain tar is what
/// the configuration says, or will be found not to be.
fn blob_of(mut member: Member, diff: &Digest, name: &str) -> Result<(&'static str, Digest), Error> {
    let failed = Error::store("read", Path::new(name));
    let mut magic = Vec::new();
    (&mut member.file).take(4.min(member.len)).read_to_end(&mut magic).map_err(&failed)?;
    let kind = match magic.as_slice() {
        [0x1f, 0x8b, ..] => "+gzip",
        [0x28, 0xb5, 0x2f, 0xfd] => "+zstd",
        _ => return Ok(("", diff.clone())),
    };
    let back = i64::try_from(magic.len()).unwrap_or(0);
    member.file.seek(SeekFrom::Current(-back)).map_err(&failed)?;
    let mut hasher = diff.hasher();
    let mut buffer = vec![0; 256 << 10];
    let mut rest = member.file.take(member.len);
    loop {
        match rest.read(&mut buffer).map_err(&failed)? {
            0 => return Ok((kind, hasher.finish())),
            n => hasher.update(buffer.get(..n).unwrap_or_default()),
        }
    }
}

fn layer(
    options: &Options,
    store: &Store,
    archive: &Archive,
    info: &LayerInfo,
    member: &str,
    (index, count): (usize, usize),
) -> Result<Layer, Error> {
    let work = match right(options, store, info)? {
        Ok(work) => work,
        Err(layer) => return Ok(layer),
    };
    let name = archive.name();
    let file = archive.member(member)?;
    let file = file.ok_or_else(|| Error::malformed(&name, format!("it has no {member:?}")))?;
    let tell = |current| {
        if let Some(progress) = &options.progress {
            progress(Progress { current, total: info.size, name: info.blob.short(), index, count });
        }
    };
    tell(0);
    let mut pieces = FilePieces::new(file.file, file.len, Path::new(&name));
    let job = Job { layer: info, limit: options.max_layer, origin: &name };
    match into_layer(&job, &mut pieces, &work) {
        Ok(layer) => {
            tell(info.size);
            Ok(layer)
        }
        Err(Failure::Blob(error) | Failure::Final(error)) => {
            work.discard();
            Err(error)
        }
    }
}

/// The right to make a layer, or the layer that is there or that another process makes meanwhile.
fn right(options: &Options, store: &Store, info: &LayerInfo) -> Result<Result<Work, Layer>, Error> {
    let mut seen = (0, Instant::now());
    loop {
        let work = store.try_work(&info.diff)?;
        if let Some(layer) = store.open_layer(&info.diff)? {
            if let Some(work) = work {
                work.discard();
            }
            return Ok(Err(layer));
        }
        if let Some(work) = work {
            return Ok(Ok(work));
        }
        let size = store.work_size(&info.diff);
        if size != seen.0 {
            seen = (size, Instant::now());
        } else if seen.1.elapsed() > options.no_progress * 4 {
            return Err(Error::Busy { what: format!("the layer {}", info.diff) });
        }
        std::thread::sleep(POLL);
    }
}
