//! Compiles a Go program with the toolchain of an image, takes the result out, and gives it to another machine.
//!
//! What Go makes needs nothing around it: the second machine has no files but that one and the built-in userland's.
//!
//! ```text
//! cargo run --release --example compile_go [IMAGE]     # golang:latest unless told otherwise
//! ```

use std::error::Error;
use std::io::Write;

use cc::process::Stdio;
use cc::{Instance, Source};

const PROGRAM: &str = r#"
package main

import (
	"bufio"
	"fmt"
	"os"
	"sort"
	"strings"
)

func main() {
	count := map[string]int{}
	words := bufio.NewScanner(os.Stdin)
	words.Split(bufio.ScanWords)
	for words.Scan() {
		count[strings.ToLower(words.Text())]++
	}
	var names []string
	for name := range count {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Println(count[name], name)
	}
	os.Exit(len(names))
}
"#;

fn main() -> Result<(), Box<dyn Error>> {
    let reference = std::env::args().nth(1).unwrap_or_else(|| "golang:latest".into());
    let image = cc::oci::Client::new()?.pull(&reference)?;
    let host = tempfile::tempdir()?;
    let program = host.path().join("words");

    let workshop = Instance::builder(image).memory_mb(1024).start()?;
    workshop.write("/tmp/words.go", PROGRAM)?;
    let mut go = workshop.command("go");
    // Without C there is nothing to link with at run time. The cache may as well be in memory.
    go.args(["build", "-o", "/tmp/words", "/tmp/words.go"])
        .env("CGO_ENABLED", "0")
        .env("GOCACHE", "/tmp/cache");
    let out = go.current_dir("/tmp").output()?;
    if !out.status.success() {
        return Err(format!("go: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr)).into());
    }
    println!("made {} bytes", workshop.copy_out("/tmp/words", &program)?);
    workshop.close()?;

    let instance = Instance::new(Source::busybox()?)?;
    instance.copy_in(&program, "/usr/bin/words")?;
    let mut child = instance.command("words").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child
        .stdin
        .take()
        .ok_or("a pipe was asked for")?
        .write_all(b"One word and another word AND one more\n")?;
    let out = child.wait_with_output()?;
    print!("{}", String::from_utf8_lossy(&out.stdout));
    println!("it ended with {}", out.status);
    Ok(())
}
