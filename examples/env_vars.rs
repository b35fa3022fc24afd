//! Shows where a command's environment comes from: the image, the machine's builder, the command itself.
//!
//! ```text
//! cargo run --release --example env_vars [IMAGE]     # alpine:latest unless told otherwise
//! ```

use std::error::Error;

use cc::Instance;

fn main() -> Result<(), Box<dyn Error>> {
    let reference = std::env::args().nth(1).unwrap_or_else(|| "alpine:latest".into());
    let image = cc::oci::Client::new()?.pull(&reference)?;
    println!("the image sets {} variables", image.config().env.len());

    let instance =
        Instance::builder(image).env("GREETING", "good day").env("LANGUAGE", "of the machine").start()?;
    let show = "echo \"$GREETING, ${NAME-nobody}; $LANGUAGE\"";
    let mut plain = instance.command("sh");
    let mut own = instance.command("sh");
    own.env("NAME", "Ada").env("LANGUAGE", "of the command");
    let mut less = instance.command("sh");
    less.env("NAME", "Grace").env_remove("GREETING");
    for command in [&mut plain, &mut own, &mut less] {
        let out = command.args(["-c", show]).output()?;
        print!("{}", String::from_utf8_lossy(&out.stdout));
    }

    // Nothing of this process's environment comes along, and nothing else is there without the image's.
    let out = instance.command("env").env_clear().env("ONLY", "this").output()?;
    print!("{}", String::from_utf8_lossy(&out.stdout));
    Ok(())
}
