//! Builds the guest agent (`guest/`): one static x86-64 Linux program, made by the `rustc` that builds
//! this crate and by nothing else. No libc, no second toolchain, no network; the source may be
//! read-only. The path of the result is `CC_AGENT` to the crate.
//!
//! It also tells the crate which sources its machines are made of (`CC_MACHINE_SOURCES`, a hash), so that a snapshot
//! of another build's machine is not taken for one of this build's.
//!
//! A toolchain that has no x86-64 Linux `core` (another host, no such target installed) gets an empty
//! file and a warning: the crate still builds, and starting a machine says what is missing.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Linkers to try in turn: the toolchain's own, the system's, the system's C compiler.
const LINKERS: [&[&str]; 4] = [
    &["-Clinker=rust-lld", "-Clinker-flavor=ld.lld", "-Clink-self-contained=no"],
    &["-Clinker=ld.lld", "-Clinker-flavor=ld.lld", "-Clink-self-contained=no"],
    &["-Clinker=ld", "-Clinker-flavor=ld", "-Clink-self-contained=no"],
    &[
        "-Clinker=cc",
        "-Clinker-flavor=gcc",
        "-Clink-arg=-nostdlib",
        "-Clink-arg=-nostartfiles",
        "-Clink-arg=-static",
    ],
];

fn main() {
    let agent = ["build.rs", "guest", "src/agent/protocol.rs", "src/agent/protocol"];
    for input in agent.iter().chain(&MACHINE) {
        println!("cargo::rerun-if-changed={input}");
    }
    println!("cargo::rustc-env=CC_MACHINE_SOURCES={:016x}", sources());
    let out = PathBuf::from(variable("OUT_DIR")).join("cc-agent");
    println!("cargo::rustc-env=CC_AGENT={}", out.display());
    let mut failures = String::new();
    for target in targets() {
        for linker in LINKERS {
            match compile(&target, linker, &out) {
                Ok(()) => return,
                Err(why) => failures.push_str(&format!("{target}, {}: {why}\n", linker[0])),
            }
        }
    }
    std::fs::write(&out, []).expect("OUT_DIR is writable");
    println!(
        "cargo::warning=no guest agent: this toolchain cannot build for x86-64 Linux \
         (rustup target add x86_64-unknown-linux-musl)"
    );
    for line in failures.lines().filter(|line| !line.trim().is_empty()).take(40) {
        println!("cargo::warning={line}");
    }
}

/// Where a change may make another machine.
const MACHINE: [&str; 7] =
    ["src/arch", "src/chipset", "src/hypervisor", "src/machine", "src/memory", "src/state", "src/virtio"];

/// A hash (FNV-1a) over all files below [`MACHINE`].
fn sources() -> u64 {
    let mut paths: Vec<PathBuf> = MACHINE.iter().map(PathBuf::from).collect();
    let mut files = Vec::new();
    while let Some(path) = paths.pop() {
        match std::fs::read_dir(&path) {
            Ok(entries) => paths.extend(entries.flatten().map(|e| e.path())),
            Err(_) => files.push(path),
        }
    }
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for file in files {
        let name = file.to_string_lossy().into_owned().into_bytes();
        for byte in name.into_iter().chain(std::fs::read(&file).unwrap_or_default()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    hash
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// Targets whose `core` would do: what the crate is built for or on, if x86-64 Linux, then the usual.
fn targets() -> Vec<String> {
    let mut targets = Vec::new();
    let fits = |t: &String| t.starts_with("x86_64-") && t.contains("-linux-") && !t.ends_with("x32");
    let usual = ["x86_64-unknown-linux-gnu", "x86_64-unknown-linux-musl"].map(String::from);
    for target in [variable("TARGET"), variable("HOST")].into_iter().filter(fits).chain(usual) {
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    targets
}

fn compile(target: &str, linker: &[&str], out: &Path) -> Result<(), String> {
    let root = variable("CARGO_MANIFEST_DIR");
    let source = Path::new(&root).join("guest/main.rs");
    let output = Command::new(variable("RUSTC"))
        .arg(source)
        .args(["--crate-name=cc_agent", "--crate-type=bin", "--edition=2024", "--target", target])
        .args(["-Copt-level=s", "-Clto=fat", "-Ccodegen-units=1", "-Cpanic=abort", "-Cstrip=symbols"])
        .args(["-Ctarget-cpu=x86-64", "-Crelocation-model=static", "-Ctarget-feature=+crt-static"])
        // The same bytes wherever the source lies: snapshots are keyed by them.
        .arg(format!("--remap-path-prefix={root}="))
        .arg("-o")
        .arg(out)
        .args(linker)
        // Set for the crate's own build, not for a program of another target.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .output()
        .map_err(|e| e.to_string())?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(messages.into_owned());
    }
    for line in messages.lines().filter(|line| !line.is_empty()) {
        println!("cargo::warning={line}");
    }
    Ok(())
}
