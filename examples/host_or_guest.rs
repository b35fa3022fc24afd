//! One function for both sides: finds files of equal content below a directory, here and in a machine.
//!
//! ```text
//! cargo run --release --example host_or_guest [DIRECTORY]     # this package's sources unless told otherwise
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use cc::fs::Fs;
use cc::{Host, Instance, Source};

/// Regular files below `dir`, by their length.
fn by_length(on: &impl Fs, dir: &Path, found: &mut BTreeMap<u64, Vec<PathBuf>>) -> io::Result<()> {
    for entry in on.read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            by_length(on, &entry.path(), found)?;
        } else if kind.is_file() {
            found.entry(entry.metadata()?.len()).or_default().push(entry.path());
        }
    }
    Ok(())
}

/// Pairs of files with the same content, each with the first that has it. Only files of one length are read.
fn duplicates(on: &impl Fs, dir: &Path) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let mut found = BTreeMap::new();
    by_length(on, dir, &mut found)?;
    let mut pairs = Vec::new();
    for (length, mut paths) in found {
        if length == 0 || paths.len() < 2 {
            continue;
        }
        paths.sort();
        let mut seen: BTreeMap<Vec<u8>, PathBuf> = BTreeMap::new();
        for path in paths {
            let content = on.read(&path)?;
            match seen.get(&content) {
                Some(first) => pairs.push((first.clone(), path)),
                None => drop(seen.insert(content, path)),
            }
        }
    }
    Ok(pairs)
}

fn print(place: &str, dir: &Path, pairs: &[(PathBuf, PathBuf)]) {
    println!("{place}: {} duplicates", pairs.len());
    for (first, second) in pairs {
        let name = |path: &Path| path.strip_prefix(dir).unwrap_or(path).display().to_string();
        println!("  {} = {}", name(second), name(first));
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let here = std::env::args_os()
        .nth(1)
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src"), PathBuf::from);
    print("here", &here, &duplicates(&Host, &here)?);

    let instance = Instance::new(Source::busybox()?)?;
    let there = instance.temp_dir()?;
    instance.copy_in(&here, &there)?;
    print("in the machine", there.path(), &duplicates(&instance, there.path())?);

    // What is done there stays there.
    instance.write(there.path().join("one"), "the same twice")?;
    instance.write(there.path().join("two"), "the same twice")?;
    print("in the machine", there.path(), &duplicates(&instance, there.path())?);
    Ok(())
}
