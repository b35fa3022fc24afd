//! What a large image adds to the start of a machine: opening it from the store and making a root of
//! it, against the same with a small one.
//!
//! No machine boots for it: a boot varies by more than the difference. What a machine does with its
//! root afterwards does not depend on the image's size, but for what the guest reads.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use sha2::{Digest as _, Sha256};

use cc::oci::{Client, PullPolicy};
use cc::vfs::{Limits, Overlay};

use crate::{Report, Result, median, milliseconds};

pub(crate) const NAME: &str = "start.image_overhead_ms";
/// Openings of each image, in turns; the figure is the difference of the medians.
const ROUNDS: usize = 15;
/// Bytes of each file.
const SIZE: usize = 5000;
const SMALL: usize = 1000;
const LARGE: usize = 100_000;

/// Measures. Takes 1.1 GB below `target` for the time.
pub(crate) fn measure(report: &mut Report, target: &Path) -> Result<()> {
    let base = target.join("tmp");
    fs::create_dir_all(&base)?;
    let store = tempfile::tempdir_in(&base)?;
    let build =
        || Client::builder().cache_dir(store.path()).docker_config(None).policy(PullPolicy::Never).build();
    let mut names = Vec::new();
    for (name, files) in [("bench.invalid/small:1", SMALL), ("bench.invalid/large:1", LARGE)] {
        let layout = tempfile::tempdir_in(&base)?;
        write_layout(layout.path(), name, files)?;
        let images = build()?.load(layout.path())?;
        let image = images.first().ok_or("no image was loaded")?;
        if image.size() < (files * SIZE) as u64 {
            return Err("the image is smaller than what was put into it".into());
        }
        names.push(image.reference().ok_or("the image has no name")?.to_owned());
    }
    let mut times = vec![Vec::new(); names.len()];
    for _ in 0..ROUNDS {
        for (name, times) in names.iter().zip(&mut times) {
            let start = Instant::now();
            let image = build()?.pull(name)?;
            let root = Overlay::new(image.layers().to_vec(), Limits::default())?;
            times.push(milliseconds(start.elapsed()));
            drop((root, image));
        }
    }
    let [small, large] = [0, 1].map(|n| median(times.get(n).cloned().unwrap_or_default()));
    report.note(&format!("opening an image of 5 MB takes {small:.2} ms, one of 500 MB {large:.2} ms"));
    report.add(NAME, large - small, "ms");
    Ok(())
}

/// Writes an image of one layer as an OCI layout.
fn write_layout(dir: &Path, name: &str, files: usize) -> Result<()> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let layer = dir.join("layer");
    let mut tar =
        tar::Builder::new(Hashing { to: BufWriter::new(File::create(&layer)?), hash: Sha256::new() });
    for n in 0..files {
        let mut header = tar::Header::new_ustar();
        header.set_size(SIZE as u64);
        header.set_mode(0o644);
        let content: Vec<u8> = (0..SIZE).map(|at| (n * 31 + at * 7) as u8).collect();
        tar.append_data(&mut header, format!("usr/{:02}/{:02}/file-{n}", n % 37, n % 89), &content[..])?;
    }
    let mut written = tar.into_inner()?;
    written.flush()?;
    let diff = hex(written.hash);
    fs::rename(&layer, blobs.join(&diff))?;
    let bytes = fs::metadata(blobs.join(&diff))?.len();

    let put = |text: String| -> Result<String> {
        let digest = hex(Sha256::new().chain_update(&text));
        fs::write(blobs.join(&digest), &text)?;
        Ok(format!(r#""digest":"sha256:{digest}","size":{}"#, text.len()))
    };
    let types = "application/vnd.oci.image";
    let config = put(format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:{diff}"]}}}}"#
    ))?;
    let manifest = put(format!(
        r#"{{"schemaVersion":2,"mediaType":"{types}.manifest.v1+json",
            "config":{{"mediaType":"{types}.config.v1+json",{config}}},
            "layers":[{{"mediaType":"{types}.layer.v1.tar","digest":"sha256:{diff}","size":{bytes}}}]}}"#
    ))?;
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{types}.manifest.v1+json",{manifest},
            "annotations":{{"org.opencontainers.image.ref.name":"{name}"}}}}]}}"#
    );
    fs::write(dir.join("index.json"), index)?;
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

struct Hashing {
    to: BufWriter<File>,
    hash: Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.to.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
