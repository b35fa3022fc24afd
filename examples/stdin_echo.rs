//! Gives a command in a machine its input line by line and reads each answer before the next line.
//!
//! ```text
//! cargo run --release --example stdin_echo [LINE…]     # or lines on standard input
//! ```

use std::error::Error;
use std::io::{self, BufRead, BufReader, Write};

use cc::process::Stdio;

const ECHO: &str =
    r#"n=0; while read -r line; do n=$((n+1)); echo "$n: $line"; done; echo "$n lines"; exit $n"#;

fn main() -> Result<(), Box<dyn Error>> {
    let mut lines: Vec<String> = std::env::args().skip(1).collect();
    if lines.is_empty() {
        lines = io::stdin().lock().lines().collect::<Result<_, _>>()?;
    }
    let instance = cc::Instance::new(cc::Source::busybox()?)?;
    let mut shell = instance.command("sh");
    let mut child = shell.args(["-c", ECHO]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().ok_or("a pipe was asked for")?;
    let mut answers = BufReader::new(child.stdout.take().ok_or("a pipe was asked for")?).lines();
    for line in &lines {
        writeln!(input, "{line}")?;
        println!("{}", answers.next().ok_or("it has ended early")??);
    }
    // The end of its input, at which it says how much there was.
    drop(input);
    for answer in answers {
        println!("{}", answer?);
    }
    println!("it ended with {}", child.wait()?);
    Ok(())
}
