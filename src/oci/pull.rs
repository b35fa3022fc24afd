//! One pull: from a reference to a record whose layers are in the store.
//!
//! Documents first, then the missing layers, some at once. A layer's bytes go from the connection into a file, so
//! that a later pull can continue, and at the same time to the unpacker. When a connection breaks it is taken up
//! again where it broke.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oci_spec::image::Descriptor;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;

use super::http::{Fault, Http, Patience};
use super::manifest::{self, Document, ImageConfig, LayerInfo, MAX_DOCUMENT};
use super::options::{Options, Progress};
use super::registry::{Received, Repository};
use super::store::{Record, Store, Work};
use super::unpack::{Failure, FilePieces, Job, Pieces, into_layer};
use super::{Error, Platform, Reference};
use crate::vfs::layer::Layer;

/// How deep indexes may be nested.
const MAX_DEPTH: usize = 4;
/// How many documents may be read to find one for the platform.
const MAX_DOCUMENTS: usize = 16;
/// Progress that makes a broken connection worth another full round of tries.
const WORTHWHILE: u64 = 256 << 10;
/// Pieces of a blob between the network and the unpacker.
const IN_FLIGHT: usize = 64;
/// How often it is looked whether another process has finished a layer.
const POLL: Duration = Duration::from_millis(20);
/// Progress is told after so many bytes.
const TELL: u64 = 256 << 10;

/// Fetches an image. Gives its record, written, and its layers, opened.
pub(super) async fn pull(
    options: Arc<Options>,
    store: Store,
    reference: Reference,
) -> Result<(Record, Vec<Layer>), Error> {
    let http = Arc::new(Http::new(&options)?);
    let repository = Arc::new(Repository::new(http, options.clone(), &reference)?);
    let received = repository.document(&reference.target(), reference.digest()).await?;
    let what = reference.to_string();
    let (received, manifest) = resolve(&repository, received, &options.platform, &what).await?;
    let (config_digest, config_size) = manifest::target(manifest.config())?;
    if config_size > MAX_DOCUMENT {
        let what = format!("the configuration of {what}");
        return Err(Error::TooLarge { what, limit: MAX_DOCUMENT, hint: "" });
    }
    let config = repository.small_blob(&config_digest).await?;
    let record = Record::new(
        Some(reference.to_string()),
        options.platform.to_string(),
        (received.digest, received.bytes),
        (config_digest, config.bytes),
        &what,
    )?;
    check_platform(&record.config, &options.platform, &what)?;
    let layers = fetch_layers(&options, &store, &repository, &record).await?;
    store.write_record(&record)?;
    Ok((record, layers))
}

fn check_platform(config: &ImageConfig, wanted: &Platform, what: &str) -> Result<(), Error> {
    if wanted.accepts(&config.platform) {
        return Ok(());
    }
    Err(Error::Platform {
        image: what.to_owned(),
        wanted: wanted.to_string(),
        available: vec![config.platform.to_string()],
    })
}

/// Goes from an index, of indexes perhaps, to the manifest for the platform.
async fn resolve(
    repository: &Repository,
    first: Received,
    platform: &Platform,
    what: &str,
) -> Result<(Received, Box<oci_spec::image::ImageManifest>), Error> {
    let mut available = Vec::new();
    let mut read = 0;
    let mut todo = vec![(first, 0)];
    while let Some((received, depth)) = todo.pop() {
        let entries = match parse(&received, what)? {
            Document::Image(manifest) => return Ok((received, manifest)),
            Document::Index(entries) => entries,
        };
        if depth >= MAX_DEPTH {
            return Err(Error::malformed(what, format!("its indexes are nested more than {MAX_DEPTH} deep")));
        }
        let next = next_entries(&entries, platform);
        available.extend(entries.iter().filter_map(Platform::of).map(|p| p.to_string()));
        // The last is looked at first.
        for entry in next.into_iter().rev() {
            read += 1;
            if read > MAX_DOCUMENTS {
                return Err(Error::malformed(
                    what,
                    format!("it takes more than {MAX_DOCUMENTS} documents to tell"),
                ));
            }
            let (digest, size) = manifest::target(entry)?;
            if size > MAX_DOCUMENT {
                return Err(Error::TooLarge { what: what.to_owned(), limit: MAX_DOCUMENT, hint: "" });
            }
            todo.push((repository.document(&digest.to_string(), Some(&digest)).await?, depth + 1));
        }
    }
    available.sort();
    available.dedup();
    available.retain(|name| !name.contains("unknown"));
    Err(Error::Platform { image: what.to_owned(), wanted: platform.to_string(), available })
}

/// The entries of an index that may lead to the platform: the one for it, else indexes that do not say, else the
/// only manifest there is.
pub(super) fn next_entries<'a>(entries: &'a [Descriptor], platform: &Platform) -> Vec<&'a Descriptor> {
    if let Some(entry) = platform.choose(entries) {
        return vec![entry];
    }
    let silent: Vec<_> = entries.iter().filter(|entry| entry.platform().is_none()).collect();
    let indexes: Vec<_> = silent.iter().copied().filter(|entry| manifest::is_index(entry)).collect();
    if indexes.is_empty() && silent.len() == 1 && entries.len() == 1 { silent } else { indexes }
}

/// What is not even JSON is not a malformed image but no answer of a registry.
fn parse(received: &Received, what: &str) -> Result<Document, Error> {
    if serde_json::from_slice::<serde::de::IgnoredAny>(&received.bytes).is_err() {
        let what = "something other than JSON".into();
        return Err(Error::NotARegistry { server: received.server.clone(), what });
    }
    Document::parse(&received.bytes, what)
}

async fn fetch_layers(
    options: &Arc<Options>,
    store: &Store,
    repository: &Arc<Repository>,
    record: &Record,
) -> Result<Vec<Layer>, Error> {
    store.prepare()?;
    let mut layers: Vec<Option<Layer>> = Vec::new();
    let mut missing: Vec<LayerInfo> = Vec::new();
    let mut seen = HashSet::new();
    for info in &record.layers {
        let layer = store.open_layer(&info.diff)?;
        if layer.is_none() && seen.insert(info.diff.clone()) {
            missing.push(info.clone());
        }
        layers.push(layer);
    }
    let count = missing.len();
    let turns = Arc::new(Semaphore::new(options.parallel.max(1)));
    let mut tasks = JoinSet::new();
    for (index, info) in missing.into_iter().enumerate() {
        let fetch = Fetch {
            options: options.clone(),
            store: store.clone(),
            repository: repository.clone(),
            info,
            index,
            count,
        };
        let turns = turns.clone();
        tasks.spawn(async move {
            let _turn = turns.acquire_owned().await;
            let diff = fetch.info.diff.clone();
            fetch.layer().await.map(|layer| (diff, layer))
        });
    }
    // The first error ends the others: dropping the set stops them, and their unpackers with them.
    while let Some(done) = tasks.join_next().await {
        let (diff, layer) = done.map_err(|e| Error::Host { what: "fetch a layer", source: e.into() })??;
        for (slot, info) in layers.iter_mut().zip(&record.layers) {
            if info.diff == diff {
                *slot = Some(layer.clone());
            }
        }
    }
    let found: Option<Vec<Layer>> = layers.into_iter().collect();
    found.ok_or_else(|| Error::malformed(record.digest.to_string(), "a layer of it is lost"))
}

/// One layer on its way.
struct Fetch {
    options: Arc<Options>,
    store: Store,
    repository: Arc<Repository>,
    info: LayerInfo,
    index: usize,
    count: usize,
}

impl Fetch {
    async fn layer(self) -> Result<Layer, Error> {
        let this = Arc::new(self);
        // Each server has one try with what is left of earlier downloads, and one from the beginning.
        let (mut server, mut fresh) = (0, false);
        loop {
            let work = match this.clone().right().await? {
                Ok(work) => work,
                Err(layer) => return Ok(layer),
            };
            let error = match this.clone().attempt(work, server, fresh).await {
                Ok(layer) => return Ok(layer),
                Err(Failure::Blob(error)) => {
                    if fresh {
                        server += 1;
                    }
                    fresh = !fresh;
                    error
                }
                Err(Failure::Final(error)) if of_server(&error) => {
                    (server, fresh) = (server + 1, false);
                    error
                }
                Err(Failure::Final(error)) => return Err(error),
            };
            if server >= this.repository.servers() {
                return Err(error);
            }
            tracing::debug!(%error, server, fresh, "trying otherwise");
        }
    }

    /// The right to make the layer, or the layer that another has made meanwhile.
    async fn right(self: Arc<Self>) -> Result<Result<Work, Layer>, Error> {
        let mut seen = (0, Instant::now());
        // Another may be slow to fetch, but not without any progress for several times as long as we would wait.
        let patience = self.options.no_progress * 4;
        loop {
            // In this order: whoever publishes lets go of the right only afterwards.
            let work = self.store.try_work(&self.info.diff)?;
            if let Some(layer) = self.store.open_layer(&self.info.diff)? {
                if let Some(work) = work {
                    work.discard();
                }
                return Ok(Err(layer));
            }
            if let Some(work) = work {
                return Ok(Ok(work));
            }
            let size = self.store.work_size(&self.info.diff);
            if size != seen.0 {
                seen = (size, Instant::now());
                self.tell(size.min(self.info.size));
            } else if seen.1.elapsed() > patience {
                return Err(Error::Busy { what: format!("the layer {}", self.info.diff) });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn attempt(self: Arc<Self>, work: Work, server: usize, fresh: bool) -> Result<Layer, Failure> {
        let (mut partial, path) = work.partial(&self.info.blob)?;
        let failed = Error::store("read", &path);
        let mut have = partial.metadata().map_err(&failed)?.len();
        if fresh || have > self.info.size {
            partial.set_len(0).map_err(&failed)?;
            have = 0;
        }
        partial.seek(SeekFrom::Start(0)).map_err(&failed)?;
        let prefix = FilePieces::new(partial.try_clone().map_err(&failed)?, have, &path);
        let (send, receive) = mpsc::channel(IN_FLIGHT);
        let left = self.info.size.saturating_sub(have);
        let mut pieces = Incoming { prefix: Some(prefix), receive, left, partial, path };
        let this = self.clone();
        let unpacker = spawn_blocking(move || {
            let job = Job {
                layer: &this.info,
                limit: this.options.max_layer,
                origin: &this.repository.name(server),
            };
            let result = into_layer(&job, &mut pieces, &work);
            match &result {
                Ok(_) => {}
                // What was fetched is of no use, or takes the space that is missing.
                Err(Failure::Blob(_)) => work.discard(),
                Err(Failure::Final(Error::Store { source, .. })) if is_full(source) => work.discard(),
                Err(Failure::Final(_)) => work.keep_partial(),
            }
            result
        });
        self.tell(have);
        let fetched = self.clone().feed(&send, have, server).await;
        if let Err(error) = fetched {
            let _ = send.send(Err(error)).await;
        }
        drop(send);
        let result = unpacker.await;
        match result {
            Ok(Ok(layer)) => {
                self.tell(self.info.size);
                Ok(layer)
            }
            Ok(Err(failure)) => Err(failure),
            Err(e) => Err(Error::Host { what: "unpack a layer", source: e.into() }.into()),
        }
    }

    /// Sends the blob from byte `at` on to the unpacker. An end of the unpacker is no error here: it has its own.
    async fn feed(
        self: Arc<Self>,
        send: &mpsc::Sender<Result<Bytes, Error>>,
        mut at: u64,
        server: usize,
    ) -> Result<(), Error> {
        let mut patience = Patience::new(&self.options);
        let mut told = at;
        while at < self.info.size {
            let began = at;
            let fault = match self.repository.blob(&self.info.blob, at, server).await {
                Err(fault) => fault,
                Ok((mut body, start, name)) => {
                    let mut skip = at - start;
                    loop {
                        match body.chunk().await {
                            Err(fault) => break fault,
                            Ok(None) => {
                                break Fault::broken(&name, "the answer ended before the blob did");
                            }
                            Ok(Some(mut chunk)) => {
                                let skipped = skip.min(chunk.len() as u64);
                                skip -= skipped;
                                let _ = chunk.split_to(
                                    usize::try_from(skipped).unwrap_or(usize::MAX).min(chunk.len()),
                                );
                                at += chunk.len() as u64;
                                if at.saturating_sub(told) >= TELL {
                                    told = at;
                                    self.tell(at);
                                }
                                if send.send(Ok(chunk)).await.is_err() || at >= self.info.size {
                                    return Ok(());
                                }
                            }
                        }
                    }
                }
            };
            if at - began >= WORTHWHILE {
                patience.restore();
            }
            patience.wait(fault).await?;
        }
        Ok(())
    }

    fn tell(&self, current: u64) {
        if let Some(progress) = &self.options.progress {
            progress(Progress {
                current: current.min(self.info.size),
                total: self.info.size,
                name: self.info.blob.short(),
                index: self.index,
                count: self.count,
            });
        }
    }
}

/// Whether another server may do better.
fn of_server(error: &Error) -> bool {
    matches!(
        error,
        Error::Unauthorized { .. }
            | Error::Forbidden { .. }
            | Error::NotFound { .. }
            | Error::RateLimited { .. }
            | Error::Status { .. }
            | Error::Network { .. }
            | Error::Stalled { .. }
            | Error::Redirect { .. }
    )
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The pieces of a blob: first those in the file from earlier, then those from the network, which go to the file.
struct Incoming {
    prefix: Option<FilePieces>,
    receive: mpsc::Receiver<Result<Bytes, Error>>,
    /// Bytes that the network still owes.
    left: u64,
    partial: File,
    path: PathBuf,
}

impl Pieces for Incoming {
    fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if let Some(prefix) = &mut self.prefix {
            match prefix.next()? {
                Some(piece) => return Ok(Some(piece)),
                None => self.prefix = None,
            }
        }
        let Some(piece) = self.receive.blocking_recv() else {
            if self.left == 0 {
                return Ok(None);
            }
            // Another layer has failed, which must not look like a blob that is too short.
            return Err(Error::Host {
                what: "go on with a pull that has failed",
                source: "it was given up".into(),
            });
        };
        let piece = piece?;
        self.left = self.left.saturating_sub(piece.len() as u64);
        self.partial.write_all(&piece).map_err(Error::store("write", &self.path))?;
        Ok(Some(piece))
    }
}
