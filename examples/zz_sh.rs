//! Scratch.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let t = std::time::Instant::now();
    let mut b = cc::Instance::builder(cc::Source::busybox()?).dmesg(std::env::var_os("DMESG").is_some()).memory_mb(512);
    if let Some(d) = std::env::var_os("DIR") { b = b.mount(cc::Mount::directory("d", d).writable(true)); }
    let i = b.start()?;
    eprintln!("start {:?}", t.elapsed());
    for a in std::env::args().skip(1) {
        let t = std::time::Instant::now();
        let o = i.command("sh").arg("-c").arg(&a).output()?;
        println!("$ {a}\n{}{}[{:?} {:?}]", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr), o.status, t.elapsed());
    }
    Ok(())
}
