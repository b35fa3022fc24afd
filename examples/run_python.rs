//! Runs a Python program in an image: its source through standard input, its answer as text.
//!
//! ```text
//! cargo run --release --example run_python [IMAGE]     # python:3-slim unless told otherwise
//! ```

use std::error::Error;
use std::io::Write;

use cc::process::Stdio;

const PROGRAM: &str = "
import math, sys
numbers = [int(word) for word in sys.argv[1:]]
print('sum', sum(numbers), 'product', math.prod(numbers))
";

fn main() -> Result<(), Box<dyn Error>> {
    let reference = std::env::args().nth(1).unwrap_or_else(|| "python:3-slim".into());
    let image = cc::oci::Client::new()?.pull(&reference)?;
    let instance = cc::Instance::builder(image).memory_mb(512).start()?;

    let out = instance.command("python3").args(["-c", "print(6*7)"]).output()?;
    print!("6*7 is {}", String::from_utf8(out.stdout)?);

    let mut python = instance.command("python3");
    let mut child = python.args(["-", "2", "3", "7"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().ok_or("a pipe was asked for")?.write_all(PROGRAM.as_bytes())?;
    let out = child.wait_with_output()?;
    if !out.status.success() {
        return Err(format!("python3: {}", out.status).into());
    }
    print!("{}", String::from_utf8(out.stdout)?);
    Ok(())
}
