//! `cc run`: a machine for one command.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use cc::process::{Child, Command, ExitStatus, Stdio};
use cc::{Backend, Instance, Mount, Source};
use clap::{Args, ValueEnum};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;

use super::exit::{Failure, MACHINE, NOT_EXECUTABLE, NOT_FOUND, TIMEOUT, USAGE};
use super::terminal::{self, Raw};
use super::{CacheArgs, RegistryArgs, images, snapshot};

/// The name of the built-in userland among images.
const BUILT_IN: &str = "@busybox";

#[derive(Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    /// Go on from this snapshot; what follows is the command
    #[arg(long, value_name = "NAME", conflicts_with_all = ["memory", "cpus", "kernel", "mount", "platform", "pull"])]
    snapshot: Option<String>,
    /// Memory in MiB
    #[arg(short, long, default_value_t = 512, value_name = "MIB")]
    memory: u64,
    /// Processors
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32))]
    cpus: u32,
    /// The longest the machine may live, such as 90, 90s, 5m or 1h
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// User, such as app, 1000, app:staff or 1000:1000 [default: the image's]
    #[arg(short, long)]
    user: Option<String>,
    /// Environment variable; without =VALUE with the value it has here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Directory to start in [default: the image's]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Directory of the host to mount, read-only unless :rw follows; without SOURCE an empty one
    #[arg(short = 'v', long, value_name = "[SOURCE:]TARGET[:rw]")]
    mount: Vec<String>,
    /// Host name of the machine
    #[arg(long)]
    hostname: Option<String>,
    /// Run this instead of the image's entry point
    #[arg(long)]
    entrypoint: Option<String>,
    /// What the machine runs on
    #[arg(long, value_enum, default_value_t)]
    backend: BackendArg,
    /// Kernel to boot: a bzImage or vmlinux file, or a directory with one and its modules
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// Boot, also where a snapshot of an earlier boot could be restored
    #[arg(long)]
    no_boot_snapshot: bool,
    /// Show the kernel's messages on standard error
    #[arg(long)]
    dmesg: bool,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Image, a directory (with a / in its name), or @busybox for the built-in userland
    #[arg(required_unless_present = "snapshot")]
    image: Option<OsString>,
    /// Command and its arguments [default: the image's]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum BackendArg {
    /// The best that works here
    #[default]
    Auto,
    /// The software CPU
    Soft,
    /// Linux's KVM
    Kvm,
}

fn duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("unknown unit {unit:?}; use s, m or h")),
    };
    let n: u64 = digits.parse().map_err(|_| "a number and s, m or h".to_owned())?;
    n.checked_mul(seconds).map(Duration::from_secs).ok_or_else(|| "too long".to_owned())
}

/// `[SOURCE:]TARGET[:rw|:ro]`; `n` makes the tag.
fn mount(text: &str, n: usize) -> Result<Mount, String> {
    let mut parts: Vec<&str> = text.split(':').collect();
    let writable = match parts.last() {
        Some(&"rw") => Some(true),
        Some(&"ro") => Some(false),
        _ => None,
    };
    parts.truncate(parts.len() - usize::from(writable.is_some()));
    let tag = format!("mount{n}");
    let (mount, target) = match parts[..] {
        [target] => (Mount::empty(tag), target),
        [source, target] => (Mount::directory(tag, source), target),
        _ => return Err(format!("--mount {text}: expected [SOURCE:]TARGET[:rw]")),
    };
    if !target.starts_with('/') {
        return Err(format!("--mount {text}: {target:?} is not an absolute path in the machine"));
    }
    let mount = mount.at(target);
    Ok(match writable {
        Some(on) => mount.writable(on),
        None => mount,
    })
}

fn source(name: &str, registry: &RegistryArgs) -> Result<Source, Failure> {
    let directory = name.starts_with(['/', '.']) || (name.contains('/') && Path::new(name).is_dir());
    if name == BUILT_IN {
        return Ok(match &registry.cache.cache_dir {
            Some(dir) => Source::busybox_in(dir)?,
            None => Source::busybox()?,
        });
    }
    if directory {
        return Ok(Source::directory(name)?);
    }
    Ok(images::fetch(name, registry)?.into())
}

impl RunArgs {
    pub(crate) fn cache(&self) -> &CacheArgs {
        &self.registry.cache
    }

    /// The command's words: all that are no image.
    fn words(&self) -> impl Iterator<Item = &OsString> {
        let first = self.image.as_ref().filter(|_| self.snapshot.is_some());
        first.into_iter().chain(&self.command)
    }
}

/// Whether a command was given.
pub(crate) fn has_command(args: &RunArgs) -> bool {
    args.entrypoint.is_some() || args.words().next().is_some()
}

pub(crate) fn run(args: &RunArgs) -> Result<u8, Failure> {
    command(&start(args)?, args)
}

/// Starts the machine that `args` say.
pub(crate) fn start(args: &RunArgs) -> Result<Instance, Failure> {
    let usage = |text: String| Failure::new(USAGE, text);
    let mounts: Result<Vec<Mount>, String> =
        args.mount.iter().enumerate().map(|(n, m)| mount(m, n)).collect();
    let mounts = mounts.map_err(usage)?;
    let source = match (&args.snapshot, args.image.as_ref().map(|image| image.to_str())) {
        (Some(name), _) => snapshot::open(name, args.cache())?.into(),
        (None, Some(Some(image))) => source(image, &args.registry)?,
        (None, _) => return Err(usage("the name of the image is not UTF-8".to_owned())),
    };

    let mut builder = Instance::builder(source).memory_mb(args.memory).cpus(args.cpus).dmesg(args.dmesg);
    if args.no_boot_snapshot {
        builder = builder.boot_snapshot(false);
    }
    builder = builder.backend(match args.backend {
        BackendArg::Auto => Backend::Auto,
        BackendArg::Soft => Backend::Soft,
        BackendArg::Kvm => Backend::Kvm,
    });
    builder = mounts.into_iter().fold(builder, |b, m| b.mount(m));
    if let Some(timeout) = args.timeout {
        builder = builder.timeout(timeout);
    }
    if let Some(user) = &args.user {
        builder = builder.user(user);
    }
    if let Some(dir) = &args.workdir {
        builder = builder.current_dir(dir);
    }
    if let Some(name) = &args.hostname {
        builder = builder.hostname(name);
    }
    if let Some(path) = &args.kernel {
        builder = builder.kernel(path);
    }
    if let Some(dir) = &args.registry.cache.cache_dir {
        builder = builder.cache_dir(dir);
    }
    for variable in &args.env {
        match variable.split_once('=') {
            Some((name, value)) => builder = builder.env(name, value),
            None => {
                if let Some(value) = std::env::var_os(variable) {
                    builder = builder.env(variable, value);
                }
            }
        }
    }
    Ok(builder.start()?)
}

/// Runs the command that `args` say, or the image's.
pub(crate) fn command(instance: &Instance, args: &RunArgs) -> Result<u8, Failure> {
    let mut command = match &args.entrypoint {
        Some(program) => instance.command(program),
        None => instance.entrypoint_command(args.words()),
    };
    if args.entrypoint.is_some() {
        command.args(args.words());
    }
    let status = attend(&mut command, args);
    finish(instance, status, command.get_program().to_string_lossy().as_ref())
}

/// Runs the command with the caller's streams and signals.
fn attend(command: &mut Command, args: &RunArgs) -> io::Result<ExitStatus> {
    command.stdin(if args.interactive { Stdio::inherit() } else { Stdio::null() });
    command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
    // Before the command runs: a signal that comes at once must find somebody.
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH])?;
    let handle = signals.handle();
    let mut raw = None;
    if args.tty {
        command.pty(terminal::size());
        raw = if args.interactive { Raw::new()? } else { None };
    }
    let mut child: Child = command.spawn()?;
    let control = child.controller();
    let attendant = thread::spawn(move || {
        let mut asked = 0;
        for signal in signals.forever() {
            if signal == SIGWINCH {
                let size = terminal::size();
                let _ = control.resize(size.rows, size.cols);
                continue;
            }
            asked += 1;
            // Who asks a third time does not want to wait for the command.
            if asked > 2 || control.signal(signal).is_err() {
                terminal::restore();
                std::process::exit(128 + signal);
            }
        }
    });
    let status = child.wait();
    handle.close();
    let _ = attendant.join();
    drop(raw);
    status
}

fn finish(instance: &Instance, status: io::Result<ExitStatus>, program: &str) -> Result<u8, Failure> {
    let failed = |status, e: io::Error| Failure::new(status, format!("{program}: {e}"));
    match status {
        Ok(status) => Ok(match (status.code(), status.signal()) {
            (Some(code), _) => code as u8,
            (None, Some(signal)) => 128u8.saturating_add(signal as u8),
            (None, None) => MACHINE,
        }),
        Err(e) if e.kind() == ErrorKind::TimedOut => Err(failed(TIMEOUT, e)),
        // How it ended says more than that it did.
        Err(e) if !instance.is_running() => {
            Err(instance.wait().err().map_or_else(|| failed(MACHINE, e), Failure::from))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Err(failed(NOT_FOUND, e)),
        Err(e) => Err(failed(NOT_EXECUTABLE, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["", "m", "5 m", "5d", "-1", "99999999999999999999", "9999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mounts_are_absolute_and_read_only() {
        let text = |m: &str| format!("{:?}", mount(m, 3).unwrap());
        assert!(text("/a:/b").contains("writable: false") && text("/a:/b").contains("\"mount3\""));
        assert!(text("/a:/b:rw").contains("writable: true"));
        assert!(text("/b").contains("path: None") && text("/b").contains("writable: true"));
        for bad in ["", "a", "/a:b", "/a:/b:/c:rw", "/a:/b:x"] {
            assert!(mount(bad, 0).is_err(), "{bad}");
        }
    }
}
