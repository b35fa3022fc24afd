//! Runs a server for Node.js in an image and talks to it, as a program beside it would.
//!
//! The machine has no network: the connections are to the guest's own loopback.
//!
//! ```text
//! cargo run --release --example run_node [IMAGE]     # node:slim unless told otherwise
//! ```

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};

use cc::process::Stdio;

const SERVER: &str = r#"
const http = require('http');
let visits = 0;
const server = http.createServer((request, response) => {
    let body = '';
    request.on('data', piece => body += piece);
    request.on('end', () => {
        visits += 1;
        const numbers = body ? JSON.parse(body) : [];
        const answer = { path: request.url, visits, sum: numbers.reduce((a, b) => a + b, 0) };
        response.setHeader('Connection', 'close');
        response.end(JSON.stringify(answer));
    });
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
"#;

fn main() -> Result<(), Box<dyn Error>> {
    let reference = std::env::args().nth(1).unwrap_or_else(|| "node:slim".into());
    let image = cc::oci::Client::new()?.pull(&reference)?;
    let instance = cc::Instance::builder(image).memory_mb(512).start()?;

    instance.create_dir_all("/srv/app")?;
    instance.write("/srv/app/server.js", SERVER)?;
    let mut node = instance.command("node").arg("/srv/app/server.js").stdout(Stdio::piped()).spawn()?;
    let mut port = String::new();
    BufReader::new(node.stdout.take().ok_or("a pipe was asked for")?).read_line(&mut port)?;
    let address = format!("127.0.0.1:{}", port.trim());

    for (path, body) in [("/first", ""), ("/second", "[1,2,39]")] {
        let mut conn = instance.connect_tcp(&*address)?;
        let head = format!("POST {path} HTTP/1.1\r\nHost: guest\r\nContent-Length: {}\r\n\r\n", body.len());
        conn.write_all((head + body).as_bytes())?;
        let mut answer = String::new();
        conn.read_to_string(&mut answer)?;
        println!("{}", answer.lines().last().unwrap_or_default());
    }

    node.signal(15)?;
    println!("the server ended with {}", node.wait()?);
    Ok(())
}
