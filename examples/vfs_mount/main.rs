//! Serves one of the file systems on the host through `/dev/fuse`, without a machine, so that test suites for file
//! systems run on it at native speed:
//!
//! ```text
//! vfs_mount [--threads N] [--memory BYTES] memory MOUNTPOINT
//! vfs_mount ... dir DIRECTORY MOUNTPOINT
//! vfs_mount ... layers LAYER.tar... MOUNTPOINT
//! vfs_mount ... over DIRECTORY MOUNTPOINT
//! ```
//! `--memory` is what file data may take in memory; more goes to an unlinked file. It runs until the mount is undone
//! (`umount MOUNTPOINT`).

#[cfg(target_os = "linux")]
mod convert;
#[cfg(target_os = "linux")]
mod served;

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("vfs_mount needs Linux");
    std::process::exit(1);
}

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::fs::File;
    use std::path::Path;
    use std::sync::Arc;

    use cc::vfs::layer::{Index, Layer, TarLimits};
    use cc::vfs::{FileSystem, HostDir, HostDirOptions, Limits, Overlay};

    let usage = "usage: vfs_mount [--threads N] [--memory BYTES] \
                 memory|dir DIRECTORY|layers LAYER.tar...|over DIRECTORY MOUNTPOINT";
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mountpoint = args.pop().ok_or(usage)?;
    let mut words: Vec<&str> = args.iter().map(String::as_str).collect();
    let (mut threads, mut limits) = (1, Limits::default());
    while let [option, value, ..] = words[..] {
        match option {
            "--threads" => threads = value.parse()?,
            "--memory" => limits.memory = value.parse()?,
            _ => break,
        }
        words.drain(..2);
    }
    let options = HostDirOptions::default();
    let fs: Box<dyn FileSystem> = match words[..] {
        ["memory"] => Box::new(Overlay::memory(limits)),
        ["dir", path] => Box::new(HostDir::new(Path::new(path), options)?),
        ["layers", ref tars @ ..] => {
            let mut layers = Vec::new();
            for tar in tars {
                let file = File::open(tar)?;
                let index = Index::build_from_file(&file, TarLimits::default())?;
                layers.push(Layer::new(Arc::new(index), file)?);
            }
            Box::new(Overlay::new(layers, limits)?)
        }
        ["over", path] => Box::new(Overlay::over_directory(Path::new(path), options, limits)?),
        _ => return Err(usage.into()),
    };
    served::serve(fs, Path::new(&mountpoint), threads)?.join()?;
    Ok(())
}
