//! Works on a directory of this host with an image's programs, and shows what a machine can and cannot change.
//!
//! ```text
//! cargo run --release --example file_ops [IMAGE]     # alpine:latest unless told otherwise
//! ```

use std::error::Error;
use std::fs;

use cc::{Instance, Mount};

fn main() -> Result<(), Box<dyn Error>> {
    let reference = std::env::args().nth(1).unwrap_or_else(|| "alpine:latest".into());
    let image = cc::oci::Client::new()?.pull(&reference)?;

    let host = tempfile::tempdir()?;
    let (input, output) = (host.path().join("input"), host.path().join("output"));
    fs::create_dir(&input)?;
    fs::create_dir(&output)?;
    fs::write(input.join("fruit.txt"), "pear\napple\nplum\n")?;

    let instance = Instance::builder(image)
        .mount(Mount::directory("input", &input).at("/input"))
        .mount(Mount::directory("output", &output).at("/output").writable(true))
        .mount(Mount::empty("scratch").at("/scratch"))
        .start()?;
    let sh = |script: &str| -> Result<String, Box<dyn Error>> {
        let out = instance.command("sh").args(["-c", script]).output()?;
        Ok(String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
    };

    // From one directory through the machine's own into the other.
    sh("sort /input/fruit.txt >/scratch/sorted && cp /scratch/sorted /output/ && chmod 600 /output/sorted")?;
    print!("sorted in the machine, read here:\n{}", fs::read_to_string(output.join("sorted"))?);

    // A change here shows there at once.
    fs::write(input.join("fruit.txt"), "fig\n")?;
    print!("changed here, read in the machine: {}", sh("cat /input/fruit.txt")?);

    // What is read-only stays so, whatever the machine's root does.
    let refused = sh("mount -o remount,rw /input; echo kiwi >/input/fruit.txt || echo refused >&2")?;
    println!("writing to the input: {}", refused.lines().last().unwrap_or_default());
    println!("the input is still: {}", fs::read_to_string(input.join("fruit.txt"))?.trim());

    // The root is writable, for this machine alone.
    sh("rm -rf /home && echo mine >/mine")?;
    print!("in this machine: {}", sh("cat /mine; test -e /home || echo and no /home")?);
    Ok(())
}
