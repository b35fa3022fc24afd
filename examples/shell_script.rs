//! Runs a shell script in an image, shows its output line by line as it comes, and ends with its exit status.
//!
//! ```text
//! cargo run --release --example shell_script [IMAGE]     # alpine:latest unless told otherwise
//! ```

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::process::ExitCode;

use cc::process::Stdio;

const SCRIPT: &str = r#"
set -eu
. /etc/os-release
echo "This is $NAME, $(uname -s) $(uname -m), and I am $(id -un)."
for name in "$@"; do
    echo "Good day, $name!" | tee -a /tmp/greeted
done
echo "$(wc -l </tmp/greeted) greeted"
exit 3
"#;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let reference = std::env::args().nth(1).unwrap_or_else(|| "alpine:latest".into());
    let instance = cc::Instance::new(cc::oci::Client::new()?.pull(&reference)?)?;

    let mut shell = instance.command("sh");
    shell.args(["-c", SCRIPT, "script", "Ada", "Grace Hopper"]).stdout(Stdio::piped());
    let mut child = shell.spawn()?;
    let output = child.stdout.take().ok_or("a pipe was asked for")?;
    for line in BufReader::new(output).lines() {
        println!("| {}", line?);
    }
    let status = child.wait()?;
    println!("the script ended with {status}");
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
