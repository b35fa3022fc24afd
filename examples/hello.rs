//! Boots Linux and runs three commands in it, with the time that each phase took.
//!
//! ```text
//! cargo run --release --example hello
//! ```

use std::error::Error;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let source = cc::Source::busybox()?;
    let userland = start.elapsed();

    let instance = cc::Instance::new(source)?;

    let (out, first) = timed(|| instance.command("echo").arg("hello").output())?;
    print!("$ echo hello\n{}", String::from_utf8_lossy(&out.stdout));
    let (out, next) = timed(|| instance.command("uname").arg("-a").output())?;
    print!("$ uname -a\n{}", String::from_utf8_lossy(&out.stdout));
    let out = instance.command("cat").arg("/proc/cpuinfo").output()?;
    print!("$ cat /proc/cpuinfo\n{}", String::from_utf8_lossy(&out.stdout));

    let timing = instance.timing();
    println!("backend        {:>12?}", instance.backend());
    println!("fetch          {:>12.1?}", userland + timing.fetch);
    println!("load           {:>12.1?}", timing.load);
    println!("{}        {:>12.1?}", if timing.restored { "restore" } else { "boot   " }, timing.boot);
    println!("first command  {first:>12.1?}");
    println!("next command   {next:>12.1?}");
    Ok(())
}

fn timed<T, E>(f: impl FnOnce() -> Result<T, E>) -> Result<(T, Duration), E> {
    let start = Instant::now();
    let value = f()?;
    Ok((value, start.elapsed()))
}
