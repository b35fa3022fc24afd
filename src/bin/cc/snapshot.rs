//! `cc snapshot`: machines put away under a name, to go on from.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use cc::Snapshot;
use clap::Subcommand;

use super::CacheArgs;
use super::exit::{Failure, IMAGE, MACHINE, USAGE};
use super::run::{self, RunArgs};

#[derive(Subcommand)]
pub(crate) enum Action {
    /// Starts a machine, runs a command in it to its end, and puts the machine away with all that still runs in it.
    ///
    /// Exit status: that of the command; if it is not 0, there is no snapshot.
    Create {
        /// Name of the snapshot
        name: String,
        #[command(flatten)]
        run: Box<RunArgs>,
    },
    /// Lists the snapshots.
    #[command(visible_alias = "ls")]
    List {
        /// As JSON, one object a line.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        cache: CacheArgs,
    },
    /// Removes snapshots. Machines that were started from them run on.
    Rm {
        /// The snapshots.
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        cache: CacheArgs,
    },
}

pub(crate) fn snapshot(action: &Action) -> Result<u8, Failure> {
    match action {
        Action::Create { name, run } => create(name, run),
        Action::List { json, cache } => list(*json, cache),
        Action::Rm { names, cache } => remove(names, cache),
    }
}

/// The snapshot `name`.
pub(crate) fn open(name: &str, cache: &CacheArgs) -> Result<Snapshot, Failure> {
    let path = place(name, cache)?;
    if !path.is_dir() {
        return Err(Failure::new(IMAGE, format!("there is no snapshot {name}")));
    }
    Ok(Snapshot::open(path)?)
}

fn dir(cache: &CacheArgs) -> Result<PathBuf, Failure> {
    let cache = cache.cache_dir.clone().or_else(cc::sys::cache_dir::locate);
    let none = || Failure::new(MACHINE, "no place for snapshots: set CC_CACHE_DIR or HOME");
    Ok(cache.ok_or_else(none)?.join("machines"))
}

/// Where the snapshot `name` is or will be.
fn place(name: &str, cache: &CacheArgs) -> Result<PathBuf, Failure> {
    // A name is never a path, and none that is being written is taken for one.
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.bytes().all(fine) {
        let text = format!("{name:?} is no name: 1 to 128 letters, digits, '-', '_' and '.', not '.' first");
        return Err(Failure::new(USAGE, text));
    }
    Ok(dir(cache)?.join(name))
}

fn create(name: &str, args: &RunArgs) -> Result<u8, Failure> {
    let to = place(name, args.cache())?;
    if to.exists() {
        return Err(Failure::new(USAGE, format!("there is a snapshot {name} already")));
    }
    let instance = run::start(args)?;
    let status = match run::has_command(args) {
        true => run::command(&instance, args)?,
        false => 0,
    };
    if status == 0 {
        instance.snapshot()?.save(&to)?;
    }
    Ok(status)
}

fn list(json: bool, cache: &CacheArgs) -> Result<u8, Failure> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir(cache)?).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if place(&name, cache).is_err() {
            continue;
        }
        let memory = fs::metadata(entry.path().join("memory")).map_or(0, |m| m.len());
        let made = entry.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        found.push((name, memory, taken(&entry.path()), made));
    }
    found.sort();
    if !json {
        println!("{:<40} {:>10} {:>12}  CREATED", "SNAPSHOT", "MEMORY", "ON DISK");
    }
    for (name, memory, bytes, made) in found {
        let age = made.elapsed().unwrap_or_default();
        if json {
            let made = made.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
            let object = serde_json::json!({
                "name": name, "memory_mb": memory >> 20, "disk_bytes": bytes, "created": made,
            });
            println!("{object}");
        } else {
            let bytes = indicatif::HumanBytes(bytes).to_string();
            let age = indicatif::HumanDuration(age);
            println!("{name:<40} {:>6} MiB {bytes:>12}  {age} ago", memory >> 20);
        }
    }
    Ok(0)
}

/// Bytes that the files of a snapshot take; layers may be shared with images.
fn taken(dir: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|f| f.metadata().ok()).map(|m| m.blocks() * 512).sum()
}

fn remove(names: &[String], cache: &CacheArgs) -> Result<u8, Failure> {
    for name in names {
        let path = place(name, cache)?;
        if !path.is_dir() {
            return Err(Failure::new(IMAGE, format!("there is no snapshot {name}")));
        }
        // Out of the way first: half a snapshot must not have its name.
        let failed = |e| Failure::new(MACHINE, format!("removing {name}: {e}"));
        let dir = dir(cache)?;
        let away = tempfile::Builder::new().prefix(".cc-snapshot-").tempdir_in(&dir).map_err(failed)?;
        fs::rename(&path, away.path().join(name)).map_err(failed)?;
        away.close().map_err(failed)?;
        println!("removed {name}");
    }
    Ok(0)
}
