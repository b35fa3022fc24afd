//! The command line: a thin user of the library.
//!
//! `cc IMAGE [CMD…]` is `cc run IMAGE -- CMD…`. Its exit status is the command's; [`exit`] says what others there are.

mod doctor;
mod exit;
mod images;
mod progress;
mod run;
mod snapshot;
mod terminal;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::exit::Failure;

/// Runs Linux programs of container images in a virtual machine of their own.
///
/// Works without root, daemon and hypervisor: where there is no hardware virtualization, the machine runs on a software
/// CPU.
///
/// Exit status: that of the command; 128 + n if signal n ended it; 127 if it is not found, 126 if it cannot be run. 64
/// for a wrong command line, 69 if the image or snapshot cannot be had, 70 if the machine failed, 75 if --timeout was over.
#[derive(Parser)]
#[command(name = "cc", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: run::RunArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a command in a new machine. The default command.
    Run(Box<run::RunArgs>),
    /// Fetches an image without running it.
    Pull {
        /// Image, such as alpine, debian:12 or registry.example.com:5000/team/app@sha256:…
        image: String,
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Lists the images in the cache.
    Images {
        /// As JSON, one object a line.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        cache: CacheArgs,
    },
    /// Removes images by name.
    Rmi {
        /// The images.
        #[arg(required = true)]
        images: Vec<String>,
        #[command(flatten)]
        cache: CacheArgs,
    },
    /// Removes what no image and no running machine uses.
    Prune {
        #[command(flatten)]
        cache: CacheArgs,
    },
    /// Puts machines away and lists those that are.
    Snapshot {
        #[command(subcommand)]
        action: snapshot::Action,
    },
    /// Tells what can run here and why, and boots a machine to prove it.
    Doctor {
        /// As JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        cache: CacheArgs,
    },
    /// Prints the version.
    Version,
}

#[derive(Args, Clone, Default)]
struct CacheArgs {
    /// Where images, kernels and layers are kept [default: $CC_CACHE_DIR, else the user's cache directory]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

#[derive(Args, Clone, Default)]
struct RegistryArgs {
    #[command(flatten)]
    cache: CacheArgs,
    /// Talk to the image's registry without TLS (always so for loopback addresses)
    #[arg(long)]
    plain_http: bool,
    /// When to ask the registry
    #[arg(long, value_enum, default_value_t)]
    pull: Pull,
    /// Which of an image's platforms, as os/architecture[/variant]
    #[arg(long)]
    platform: Option<String>,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Pull {
    /// If the image is not in the cache
    #[default]
    Missing,
    /// Every time
    Always,
    /// Only use the cache
    Never,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { exit::USAGE } else { 0 });
        }
    };
    let result = match cli.command {
        None => run::run(&cli.run),
        Some(Command::Run(args)) => run::run(&args),
        Some(Command::Pull { image, registry }) => images::pull(&image, &registry),
        Some(Command::Images { json, cache }) => images::list(json, &cache),
        Some(Command::Rmi { images, cache }) => images::remove(&images, &cache),
        Some(Command::Prune { cache }) => images::prune(&cache),
        Some(Command::Snapshot { action }) => snapshot::snapshot(&action),
        Some(Command::Doctor { json, cache }) => doctor::doctor(json, &cache),
        Some(Command::Version) => {
            println!("cc {}", env!("CARGO_PKG_VERSION"));
            Ok(0)
        }
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(Failure { status, error }) => {
            eprintln!("cc: {}", exit::chain(&*error));
            ExitCode::from(status)
        }
    }
}
