//! From a compressed layer to a finished one, in one pass.
//!
//! Two threads share the work: one takes the blob in pieces, hashes and decompresses it; the other hashes the tar,
//! writes it and builds its index. Nothing is believed before both digests are right, and nothing of a layer is seen
//! before it is published.

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use bytes::Bytes;

use super::digest::Hasher;
use super::manifest::LayerInfo;
use super::store::Work;
use super::{Digest, Error};
use crate::vfs::layer::{Index, Layer, TarError, TarLimits};

/// Bytes that go from one thread to the other at once.
const PIECE: usize = 256 << 10;
/// Pieces between the two.
const PIECES: usize = 4;

/// Where the pieces of a blob come from.
pub(super) trait Pieces {
    /// The next piece; `None` at the end. An empty one says nothing.
    fn next(&mut self) -> Result<Option<Bytes>, Error>;
}

/// What is to be unpacked.
pub(super) struct Job<'a> {
    pub(super) layer: &'a LayerInfo,
    /// Most bytes the layer may unpack to.
    pub(super) limit: u64,
    /// Where the blob is from, for errors.
    pub(super) origin: &'a str,
}

/// Why a blob became no layer.
pub(super) enum Failure {
    /// The blob is not what its digest says: another copy of it may be.
    Blob(Error),
    /// Another copy would not help.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Final(error)
    }
}

/// Unpacks a blob to the draft of `work`. Gives what [`Work::publish`] wants.
pub(super) fn unpack(job: &Job<'_>, pieces: &mut dyn Pieces, work: &Work) -> Result<(File, Index), Failure> {
    let (tar, path) = work.create_tar()?;
    let mut blob = Blob::new(job.layer, pieces);
    let (full, pieces_in) = sync_channel::<Vec<u8>>(PIECES);
    let (empty_out, empty) = channel();
    let (pumped, written) = std::thread::scope(|scope| {
        let sink = Sink {
            input: pieces_in,
            spent: empty_out,
            piece: Vec::new(),
            at: 0,
            hasher: work.diff().hasher(),
            tar: &tar,
            path: &path,
            error: None,
        };
        let writer = std::thread::Builder::new().name("cc-layer".into()).spawn_scoped(scope, || sink.run());
        let writer = match writer {
            Ok(writer) => writer,
            Err(e) => return (Err(Stop::Error(host_thread(e))), None),
        };
        let pumped = decompress(&mut blob, &full, &empty, job);
        drop(full);
        (pumped, writer.join().ok())
    });
    let written = written.unwrap_or_else(|| Err(Written::Lost));
    if let Some(error) = blob.error.take() {
        return Err(error.into());
    }
    // What stops at once: there is no space, or too much of it would be taken.
    match (&pumped, &written) {
        (Err(Stop::Error(_)), _) => {
            if let Err(Stop::Error(error)) = pumped {
                return Err(error.into());
            }
        }
        (_, Err(Written::Store(_))) => {
            if let Err(Written::Store(error)) = written {
                return Err(error.into());
            }
        }
        _ => {}
    }
    // Then the blob's digest: all else may only follow from a wrong one.
    blob.drain()?;
    blob.check(job.origin).map_err(Failure::Blob)?;
    let what = || format!("the layer {} from {}", job.layer.blob, job.origin);
    let (index, found) = match written {
        Ok(done) => done,
        Err(Written::Tar(source)) if !matches!(pumped, Err(Stop::Data(_))) => {
            return Err(Error::Layer { layer: what(), source }.into());
        }
        Err(Written::Tar(_)) => {
            let reason = match pumped {
                Err(Stop::Data(reason)) => reason,
                _ => String::new(),
            };
            return Err(Error::malformed(what(), reason).into());
        }
        Err(Written::Store(error)) => return Err(error.into()),
        Err(Written::Lost) => return Err(host_thread(io::Error::other("it panicked")).into()),
    };
    if let Err(Stop::Data(reason)) = pumped {
        return Err(Error::malformed(what(), reason).into());
    }
    if found != *work.diff() {
        let expected = work.diff().to_string();
        let what = format!("the unpacked layer {}", job.layer.blob);
        return Err(
            Error::Digest { what, server: job.origin.into(), expected, found: found.to_string() }.into()
        );
    }
    Ok((tar, index))
}

/// Unpacks and publishes.
pub(super) fn into_layer(job: &Job<'_>, pieces: &mut dyn Pieces, work: &Work) -> Result<Layer, Failure> {
    let (tar, index) = unpack(job, pieces, work)?;
    Ok(work.publish(tar, index)?)
}

fn host_thread(e: io::Error) -> Error {
    Error::Host { what: "run a thread that writes the layer", source: e.into() }
}

/// Why decompressing stopped.
enum Stop {
    /// The data is at fault.
    Data(String),
    Error(Error),
    /// The other thread has stopped.
    Sink,
}

enum Written {
    Tar(TarError),
    Store(Error),
    Lost,
}

/// The blob as a reader that hashes what it gives.
struct Blob<'a> {
    layer: &'a LayerInfo,
    pieces: &'a mut dyn Pieces,
    piece: Bytes,
    hasher: Option<Hasher>,
    taken: u64,
    ended: bool,
    error: Option<Error>,
}

impl<'a> Blob<'a> {
    fn new(layer: &'a LayerInfo, pieces: &'a mut dyn Pieces) -> Self {
        let hasher = Some(layer.blob.hasher());
        Blob { layer, pieces, piece: Bytes::new(), hasher, taken: 0, ended: false, error: None }
    }

    fn more(&mut self) -> Result<Option<Bytes>, ()> {
        if self.error.is_some() {
            return Err(());
        }
        while !self.ended {
            match self.pieces.next() {
                Ok(Some(piece)) if piece.is_empty() => {}
                Ok(Some(piece)) => {
                    self.taken += piece.len() as u64;
                    // Beyond what was announced nothing is looked at: the length alone makes it another blob.
                    if self.taken > self.layer.size {
                        self.ended = true;
                        break;
                    }
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update(&piece);
                    }
                    return Ok(Some(piece));
                }
                Ok(None) => self.ended = true,
                Err(error) => {
                    self.error = Some(error);
                    return Err(());
                }
            }
        }
        Ok(None)
    }

    /// The first bytes, as many as there are up to four.
    fn magic(&mut self) -> io::Result<[u8; 4]> {
        let mut head = Vec::new();
        while self.piece.len() < 4 {
            head.extend_from_slice(&self.piece);
            match self.more() {
                Ok(Some(piece)) => {
                    head.extend_from_slice(&piece);
                    self.piece = Bytes::from(std::mem::take(&mut head));
                }
                Ok(None) => {
                    self.piece = Bytes::from(head);
                    break;
                }
                Err(()) => return Err(io::Error::other("the source failed")),
            }
        }
        let mut magic = [0; 4];
        magic.iter_mut().zip(&*self.piece).for_each(|(to, from)| *to = *from);
        Ok(magic)
    }

    fn drain(&mut self) -> Result<(), Error> {
        while let Ok(Some(_)) = self.more() {}
        self.error.take().map_or(Ok(()), Err)
    }

    fn check(&mut self, origin: &str) -> Result<(), Error> {
        let wrong = |found: String| Error::Digest {
            what: "a layer".into(),
            server: origin.to_owned(),
            expected: self.layer.blob.to_string(),
            found,
        };
        if self.taken != self.layer.size {
            let more = if self.taken > self.layer.size { "at least " } else { "" };
            return Err(wrong(format!("{more}{} bytes, not {},", self.taken, self.layer.size)));
        }
        match self.hasher.take().map(Hasher::finish) {
            Some(found) if found == self.layer.blob => Ok(()),
            found => Err(wrong(found.map(|f| f.to_string()).unwrap_or_default())),
        }
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let n = ready.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..n), ready.get(..n)) {
            to.copy_from_slice(from);
        }
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Blob<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.piece.is_empty() {
            match self.more() {
                Ok(Some(piece)) => self.piece = piece,
                Ok(None) => {}
                Err(()) => return Err(io::Error::other("the source failed")),
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        let _ = self.piece.split_to(amount.min(self.piece.len()));
    }
}

/// Decompresses to the end. How it is compressed its first bytes tell: what registries say of it is often wrong.
fn decompress(
    blob: &mut Blob<'_>,
    full: &SyncSender<Vec<u8>>,
    empty: &Receiver<Vec<u8>>,
    job: &Job<'_>,
) -> Result<(), Stop> {
    let magic = blob.magic().map_err(|_| Stop::Sink)?;
    match magic {
        [0x1f, 0x8b, ..] => pump(flate2::bufread::MultiGzDecoder::new(blob), full, empty, job),
        // A frame, or one to be skipped, of which some tools put one first.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => pump(Zstd::new(blob), full, empty, job),
        _ => pump(blob, full, empty, job),
    }
}

fn pump(
    mut from: impl Read,
    full: &SyncSender<Vec<u8>>,
    empty: &Receiver<Vec<u8>>,
    job: &Job<'_>,
) -> Result<(), Stop> {
    let mut total = 0;
    loop {
        let mut piece = empty.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let mut filled = 0;
        while let Some(rest) = piece.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match from.read(rest) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Stop::Data(e.to_string())),
            }
        }
        if filled == 0 {
            return Ok(());
        }
        piece.truncate(filled);
        total += filled as u64;
        if total > job.limit {
            let what = format!("the unpacked layer {}", job.layer.blob);
            let hint = "; the builder's max_layer_size raises it";
            return Err(Stop::Error(Error::TooLarge { what, limit: job.limit, hint }));
        }
        if full.send(piece).is_err() {
            return Err(Stop::Sink);
        }
    }
}

/// An empty Zstandard frame.
const EMPTY_FRAME: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0];

/// Zstandard frames one after the other.
struct Zstd<'a, 'b> {
    blob: &'a mut Blob<'b>,
    frame: ruzstd::decoding::FrameDecoder,
    inside: bool,
}

impl<'a, 'b> Zstd<'a, 'b> {
    fn new(blob: &'a mut Blob<'b>) -> Self {
        let mut frame = ruzstd::decoding::FrameDecoder::new();
        // The decoder caps the window, which it holds in memory, of every frame but its first.
        let _ = frame.reset(EMPTY_FRAME);
        Zstd { blob, frame, inside: false }
    }
}

impl Read for Zstd<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use ruzstd::decoding::BlockDecodingStrategy;
        use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
        loop {
            if !self.inside {
                if self.blob.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                match self.frame.reset(&mut *self.blob) {
                    Ok(()) => self.inside = true,
                    Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                        length,
                        ..
                    })) => {
                        let mut skipped = self.blob.take(length.into());
                        if io::copy(&mut skipped, &mut io::sink())? != u64::from(length) {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                        continue;
                    }
                    Err(e) => return Err(io::Error::other(e)),
                }
            }
            if self.frame.can_collect() == 0 && !self.frame.is_finished() {
                let strategy = BlockDecodingStrategy::UptoBytes(buffer.len().max(1));
                self.frame.decode_blocks(&mut *self.blob, strategy).map_err(io::Error::other)?;
            }
            let n = self.frame.read(buffer)?;
            if n > 0 {
                return Ok(n);
            }
            if self.frame.is_finished() {
                self.inside = false;
            }
        }
    }
}

/// The other thread: hashes, writes and indexes the tar. The indexer drives it by reading.
struct Sink<'a> {
    input: Receiver<Vec<u8>>,
    spent: Sender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    hasher: Hasher,
    tar: &'a File,
    path: &'a PathBuf,
    error: Option<Error>,
}

impl Sink<'_> {
    fn run(mut self) -> Result<(Index, Digest), Written> {
        match Index::build(&mut self, TarLimits::default()) {
            Ok(index) => Ok((index, self.hasher.finish())),
            Err(error) => Err(match self.error.take() {
                Some(error) => Written::Store(error),
                None => Written::Tar(error),
            }),
        }
    }
}

impl Read for Sink<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            let Ok(piece) = self.input.recv() else { return Ok(0) };
            self.hasher.update(&piece);
            if let Err(e) = { self.tar }.write_all(&piece) {
                let copy = io::Error::new(e.kind(), "the disk");
                self.error = Some(Error::store("write", self.path)(e));
                return Err(copy);
            }
            let spent = std::mem::replace(&mut self.piece, piece);
            self.at = 0;
            let _ = self.spent.send(spent);
        }
        let ready = self.piece.get(self.at..).unwrap_or_default();
        let n = ready.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..n), ready.get(..n)) {
            to.copy_from_slice(from);
        }
        self.at += n;
        Ok(n)
    }
}

/// A file, or a part of one, as pieces.
pub(super) struct FilePieces {
    file: io::Take<File>,
    path: PathBuf,
}

impl FilePieces {
    /// From the file's position on, `len` bytes.
    pub(super) fn new(file: File, len: u64, path: &Path) -> FilePieces {
        FilePieces { file: file.take(len), path: path.to_owned() }
    }
}

impl Pieces for FilePieces {
    fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let mut piece = Vec::with_capacity(PIECE);
        let read = (&mut self.file).take(PIECE as u64).read_to_end(&mut piece);
        match read.map_err(Error::store("read", &self.path))? {
            0 => Ok(None),
            _ => Ok(Some(Bytes::from(piece))),
        }
    }
}
