//! Boots once, prepares something, and makes a hundred machines of it that go on from there.
//!
//! ```text
//! cargo run --release --example fork [HOW MANY]
//! ```

use std::error::Error;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let count = std::env::args().nth(1).map_or(Ok(100), |n| n.parse())?;
    let parent = cc::Instance::new(cc::Source::busybox()?)?;
    // What takes long is done once; every clone has it, in its memory and its files.
    let prepared = parent.command("sh").args(["-c", "seq 1 1000 > /srv/numbers; sleep 1000 &"]).status()?;
    assert!(prepared.success());

    let start = Instant::now();
    let clones = parent.fork(count)?;
    let forked = start.elapsed();
    println!("{count} clones in {forked:.1?}, {:.1?} each", forked / u32::try_from(count.max(1))?);

    println!("{:>5} {:<12} {:<36} {:>7} {:>8}", "clone", "host name", "random uuid", "numbers", "answer");
    let script = "hostname; cat /proc/sys/kernel/random/uuid; tail -n 1 /srv/numbers; pgrep sleep | wc -l";
    for (n, clone) in clones.iter().enumerate() {
        let start = Instant::now();
        let out = clone.command("sh").args(["-c", script]).output()?;
        let answer = start.elapsed();
        let text = String::from_utf8(out.stdout)?;
        let [name, uuid, last, sleepers] = text.lines().collect::<Vec<_>>()[..] else {
            return Err(format!("clone {n} wrote {text:?}").into());
        };
        assert_eq!((last, sleepers), ("1000", "1"), "a clone has the parent's files and processes");
        if n < 10 || n + 1 == clones.len() {
            println!("{n:>5} {name:<12} {uuid:<36} {last:>7} {answer:>8.1?}");
        }
    }
    // What one writes, no other sees.
    let first = clones.first().ok_or("no clones")?;
    assert!(first.command("sh").args(["-c", "echo mine > /srv/mine"]).status()?.success());
    assert!(!parent.command("test").args(["-e", "/srv/mine"]).status()?.success());
    Ok(())
}
