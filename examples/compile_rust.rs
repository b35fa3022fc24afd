//! Compiles a Rust program of this host with a compiler in an image, into a directory of this host, and runs it.
//!
//! Sources are often in many files; here they come as a directory of this host that the machine cannot change.
//!
//! ```text
//! cargo run --release --example compile_rust [IMAGE]     # rust:slim unless told otherwise
//! ```

use std::error::Error;
use std::fs;

use cc::{Instance, Mount};

const MAIN: &str = r#"
mod sieve;

fn main() {
    let limit = std::env::args().nth(1).and_then(|limit| limit.parse().ok()).unwrap_or(30);
    let primes = sieve::primes(limit);
    println!("{} primes below {limit}, the last is {:?}", primes.len(), primes.last());
    std::process::exit(if primes.is_empty() { 1 } else { 0 });
}
"#;

const SIEVE: &str = "
pub fn primes(limit: usize) -> Vec<usize> {
    let mut composite = vec![false; limit];
    let mut primes = Vec::new();
    for n in 2..limit {
        if !composite[n] {
            primes.push(n);
            (n * n..limit).step_by(n).for_each(|multiple| composite[multiple] = true);
        }
    }
    primes
}
";

fn main() -> Result<(), Box<dyn Error>> {
    let reference = std::env::args().nth(1).unwrap_or_else(|| "rust:slim".into());
    let image = cc::oci::Client::new()?.pull(&reference)?;

    let host = tempfile::tempdir()?;
    let (source, made) = (host.path().join("source"), host.path().join("made"));
    fs::create_dir(&source)?;
    fs::create_dir(&made)?;
    fs::write(source.join("main.rs"), MAIN)?;
    fs::write(source.join("sieve.rs"), SIEVE)?;

    let instance = Instance::builder(image)
        .memory_mb(1024)
        .mount(Mount::directory("source", &source).at("/source"))
        .mount(Mount::directory("made", &made).at("/made").writable(true))
        .current_dir("/made")
        .start()?;

    let mut rustc = instance.command("rustc");
    let out = rustc.args(["--edition=2021", "-O", "-o", "primes", "/source/main.rs"]).output()?;
    if !out.status.success() {
        return Err(format!("rustc: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr)).into());
    }
    println!("made {} bytes", fs::metadata(made.join("primes"))?.len());

    for limit in ["100000", "2"] {
        let out = instance.command("./primes").arg(limit).output()?;
        print!("{}", String::from_utf8_lossy(&out.stdout));
        println!("it ended with {}", out.status);
    }
    Ok(())
}
