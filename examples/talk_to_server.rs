//! Runs a web server in a machine and talks to it, from this program and from any other on this host; then lets a
//! program in the machine talk to a server out here. There is no network device: what goes in and out is what is asked
//! for here.
//!
//! ```text
//! cargo run --release --example talk_to_server
//! ```

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use cc::process::Stdio;

fn main() -> Result<(), Box<dyn Error>> {
    let instance = cc::Instance::new(cc::Source::busybox()?)?;
    let page = "mkdir -p /srv/www && echo '<h1>Hello from the guest</h1>' > /srv/www/index.html";
    assert!(instance.command("sh").args(["-c", page]).status()?.success());
    let mut server = instance.command("httpd");
    let mut server =
        server.args(["-f", "-p", "127.0.0.1:8000", "-h", "/srv/www"]).stdin(Stdio::null()).spawn()?;

    // The guest's own loopback, from here.
    let start = Instant::now();
    let mut conn = loop {
        match instance.connect_tcp("127.0.0.1:8000") {
            Ok(conn) => break conn,
            // It has not begun to listen yet.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused && start.elapsed().as_secs() < 20 => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(e) => return Err(e.into()),
        }
    };
    println!("from this program: {}", get(&mut conn)?);

    // A port of the host, for programs that know nothing of machines.
    let exposed = instance.expose(0, "127.0.0.1:8000")?;
    println!(
        "http://{}/ says: {}",
        exposed.local_addr(),
        get(&mut TcpStream::connect(exposed.local_addr())?)?
    );
    server.kill()?;
    server.wait()?;

    // The other way round: a port of the guest that leads to a server of the host.
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let forward = instance.forward(9000, listener.local_addr()?)?;
    let host = thread::spawn(move || -> std::io::Result<String> {
        let (stream, _) = listener.accept()?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        (&stream).write_all(b"well received\n")?;
        Ok(line)
    });
    let out = instance.command("sh").args(["-c", "echo greetings | nc 127.0.0.1 9000"]).output()?;
    println!("the guest said: {}", host.join().map_err(|_| "the host's server panicked")??.trim());
    println!("and was told: {}", String::from_utf8(out.stdout)?.trim());
    drop(forward);
    instance.close()?;
    Ok(())
}

/// Asks for a page and gives the last line of the answer.
fn get(conn: &mut (impl Read + Write)) -> std::io::Result<String> {
    conn.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    conn.read_to_string(&mut answer)?;
    Ok(answer.lines().last().unwrap_or_default().to_owned())
}
