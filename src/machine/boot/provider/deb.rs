//! Debian packages: an `ar` archive whose member `data.tar.*` holds the files.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::super::BootError;
use super::unpack::{Counted, broken};
use super::{OnProgress, Phase};

/// Lends the uncompressed tar stream of the package in `file` to `take`.
pub(super) fn with_data<T>(
    file: &Path,
    progress: OnProgress<'_>,
    take: impl FnOnce(&str, &mut dyn Read) -> Result<T, BootError>,
) -> Result<T, BootError> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let read = |source| BootError::Read { path: file.to_owned(), source };
    let open = File::open(file).map_err(read)?;
    let total = Some(open.metadata().map_err(read)?.len());
    let counted = Counted { inner: open, phase: Phase::Unpack, what: &name, done: 0, total, progress };
    let mut archive = ar::Archive::new(BufReader::with_capacity(1 << 18, counted));
    while let Some(entry) = archive.next_entry() {
        let entry = entry.map_err(broken(&name))?;
        let member = String::from_utf8_lossy(entry.header().identifier()).into_owned();
        let Some(extension) = member.trim_end_matches('/').strip_prefix("data.tar") else { continue };
        let entry = BufReader::with_capacity(1 << 18, entry);
        return match extension {
            "" => take(&name, &mut { entry }),
            ".xz" => take(&name, &mut liblzma::bufread::XzDecoder::new(entry)),
            ".gz" => take(&name, &mut flate2::bufread::GzDecoder::new(entry)),
            ".zst" => {
                let decoder = ruzstd::decoding::StreamingDecoder::new(entry);
                take(&name, &mut decoder.map_err(|e| broken(&name)(std::io::Error::other(e)))?)
            }
            _ => {
                let reason = format!("{member} has a compression format that is not known");
                Err(BootError::Package { package: name.clone(), reason })
            }
        };
    }
    Err(BootError::Package { package: name.clone(), reason: "no data.tar in it".into() })
}
