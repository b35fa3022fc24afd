//! How fast the guest's sockets are from here: through a server inside the machine that sends back what
//! it gets (busybox's `nc -ll -e cat`, on the guest's loopback).

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Instant;

use cc::net::TcpStream;
use cc::process::Stdio;
use cc::{Instance, Source};

use crate::{Report, Result, counted, median, milliseconds};

pub(super) const NAMES: [&str; 7] = [
    "net.rtt_us",
    "net.connect_us",
    "net.mb_s",
    "net.instructions_per_kib",
    "net.exposed_mb_s",
    "net.loopback_mb_s",
    "net.exposed_vs_loopback",
];

const PORT: u16 = 7;
/// Round trips, and connections.
const TRIPS: usize = 500;
/// MiB that go there and come back.
const LARGE: usize = 32;
/// Bytes of one read of the guest's client.
const BLOCK: usize = 64 * 1024;
/// Of the transfers the medians are taken.
const ROUNDS: usize = 3;

pub(super) fn measure(report: &mut Report) -> Result<()> {
    let instance = Instance::new(Source::busybox()?)?;
    let port = PORT.to_string();
    let arguments = ["nc", "-ll", "-p", &port, "-e", "/bin/cat"];
    let mut server = instance.command("busybox").args(arguments).stdin(Stdio::null()).spawn()?;
    let start = Instant::now();
    let mut conn = loop {
        match instance.connect_tcp(("127.0.0.1", PORT)) {
            Ok(conn) => break conn,
            Err(e) if start.elapsed().as_secs() > 20 => return Err(e.into()),
            Err(_) => thread::yield_now(),
        }
    };
    let mut byte = [0];
    let mut trip = |conn: &mut TcpStream| -> Result<f64> {
        let start = Instant::now();
        conn.write_all(&[1])?;
        conn.read_exact(&mut byte)?;
        Ok(1e3 * milliseconds(start.elapsed()))
    };
    // The first starts the program.
    trip(&mut conn)?;
    let trips = (0..TRIPS).map(|_| trip(&mut conn)).collect::<Result<Vec<_>>>()?;
    report.add("net.rtt_us", median(trips), "µs");

    // The guest's kernel takes them without the server.
    let listener = instance.listen_tcp("127.0.0.1:0")?;
    let at = listener.local_addr()?;
    let mut times = Vec::new();
    for _ in 0..TRIPS {
        let start = Instant::now();
        let conn = instance.connect_tcp(at)?;
        times.push(1e3 * milliseconds(start.elapsed()));
        drop((conn, listener.accept()?));
    }
    report.add("net.connect_us", median(times), "µs");

    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let conn = instance.connect_tcp(("127.0.0.1", PORT))?;
        let (seconds, instructions) = counted(&instance, || echo(&conn))?;
        rates.push(megabytes() / seconds);
        costs.push(instructions as f64 / (LARGE * 1024) as f64);
    }
    report.add("net.mb_s", median(rates), "MB/s");
    report.add("net.instructions_per_kib", median(costs), "instr/KiB");

    let exposed = instance.expose(0, ("127.0.0.1", PORT))?;
    let (mut rates, mut inside, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    instance.write("/tmp/bytes", bytes())?;
    for _ in 0..ROUNDS {
        let conn = std::net::TcpStream::connect(exposed.local_addr())?;
        let rate = megabytes() / echo(&conn.into())?;
        // In turn with the same between two programs of the guest, over its own loopback.
        let loopback = megabytes() / within(&instance)?;
        rates.push(rate);
        inside.push(loopback);
        ratios.push(rate / loopback);
    }
    report.add("net.exposed_mb_s", median(rates), "MB/s");
    report.add("net.loopback_mb_s", median(inside), "MB/s");
    report.add("net.exposed_vs_loopback", median(ratios), "x");
    drop(exposed);
    server.kill()?;
    server.wait()?;
    instance.close()?;
    Ok(())
}

fn megabytes() -> f64 {
    (LARGE << 20) as f64 / 1e6
}

fn bytes() -> Vec<u8> {
    (0..LARGE << 20).map(|n| (n ^ (n >> 13)) as u8).collect()
}

/// A program of the guest sends the same bytes to the same server and takes them back; how many seconds that took.
fn within(instance: &Instance) -> Result<f64> {
    // As few calls of the kernel as the server makes: nc by itself would copy a KiB at a time.
    let blocks = (LARGE << 20) / BLOCK;
    let take = format!("dd of=/dev/null bs={BLOCK} count={blocks} iflag=fullblock");
    instance.write("/tmp/client", format!("cat /tmp/bytes & {take} 2>/tmp/said; wait"))?;
    let port = PORT.to_string();
    let mut client = instance.command("busybox");
    let start = Instant::now();
    let status = client.args(["nc", "127.0.0.1", &port, "-e", "/bin/sh", "/tmp/client"]).status()?;
    let seconds = start.elapsed().as_secs_f64();
    let said = instance.read_to_string("/tmp/said")?;
    if !status.success() || !said.contains(&format!("{blocks}+0 records in")) {
        return Err(format!("the guest's client: {status}, {said}").into());
    }
    Ok(seconds)
}

/// Sends [`LARGE`] MiB and takes them back at the same time; how many seconds that took.
fn echo(conn: &TcpStream) -> Result<f64> {
    let bytes = bytes();
    let mut back = Vec::with_capacity(bytes.len());
    let start = Instant::now();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            (&*conn).write_all(&bytes)?;
            conn.shutdown(Shutdown::Write)
        });
        (&*conn).read_to_end(&mut back)?;
        writer.join().map_err(|_| "the writing thread panicked")??;
        Ok::<(), Box<dyn std::error::Error>>(())
    })?;
    let seconds = start.elapsed().as_secs_f64();
    if back != bytes {
        return Err("the guest sent back something else".into());
    }
    Ok(seconds)
}
