//! Compiles a C program of this host with a compiler in an image, into a directory of this host, and runs it.
//!
//! The machine sees two directories: the source, read-only, and the one for what is made. Nothing else of the host is
//! within its reach.
//!
//! ```text
//! cargo run --release --example compile_c [IMAGE]     # gcc:latest unless told otherwise
//! ```

use std::error::Error;
use std::fs;

use cc::{Instance, Mount};

const PROGRAM: &str = r#"
#include <stdio.h>

int main(int argc, char **argv) {
    for (int i = argc - 1; i > 0; i--)
        printf("%s%c", argv[i], i > 1 ? ' ' : '\n');
    return argc - 1;
}
"#;

fn main() -> Result<(), Box<dyn Error>> {
    let reference = std::env::args().nth(1).unwrap_or_else(|| "gcc:latest".into());
    let image = cc::oci::Client::new()?.pull(&reference)?;

    let host = tempfile::tempdir()?;
    let (source, made) = (host.path().join("source"), host.path().join("made"));
    fs::create_dir(&source)?;
    fs::create_dir(&made)?;
    fs::write(source.join("reverse.c"), PROGRAM)?;

    let instance = Instance::builder(image)
        .memory_mb(1024)
        .mount(Mount::directory("source", &source).at("/source"))
        .mount(Mount::directory("made", &made).at("/made").writable(true))
        .current_dir("/made")
        .start()?;

    let mut gcc = instance.command("gcc");
    let out = gcc.args(["-O2", "-Wall", "-static", "-o", "reverse", "/source/reverse.c"]).output()?;
    if !out.status.success() {
        return Err(format!("gcc: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr)).into());
    }
    println!("made {} bytes", fs::metadata(made.join("reverse"))?.len());

    let out = instance.command("./reverse").args(["inside", "machine", "a"]).output()?;
    print!("it says: {}", String::from_utf8_lossy(&out.stdout));
    println!("it ended with {}", out.status);
    Ok(())
}
