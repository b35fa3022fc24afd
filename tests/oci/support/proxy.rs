//! An HTTP server that passes requests on to a registry, or does with them what a test wants.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }
}

/// What becomes of a request.
pub(crate) enum Action {
    /// The registry answers.
    Forward,
    /// This answers.
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// The registry answers, but after so many bytes of the body the connection ends.
    Cut(usize),
    /// The registry answers, but after so many bytes of the body nothing more comes until the proxy ends.
    Stall(usize),
    /// The registry answers, with one byte of the body changed.
    Corrupt,
}

type Rule = dyn Fn(&Request) -> Action + Send + Sync;

pub(crate) struct Proxy {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    requests: Arc<Mutex<Vec<Request>>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Before `upstream` (`host:port`); a test without a registry gives any address and never forwards.
    pub(crate) fn start(upstream: &str, rule: impl Fn(&Request) -> Action + Send + Sync + 'static) -> Proxy {
        Proxy::start_knowing(upstream, |_| rule)
    }

    /// The same for a rule that needs to know the proxy's own address.
    pub(crate) fn start_knowing<R: Fn(&Request) -> Action + Send + Sync + 'static>(
        upstream: &str,
        rule: impl FnOnce(&str) -> R,
    ) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let rule: Arc<Rule> = Arc::new(rule(&address.to_string()));
        let ended = Arc::new(AtomicBool::new(false));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let thread = std::thread::spawn({
            let (ended, requests, upstream) = (ended.clone(), requests.clone(), upstream.to_owned());
            move || {
                let mut open = Vec::new();
                for stream in listener.incoming() {
                    if ended.load(Ordering::SeqCst) {
                        break;
                    }
                    let Ok(stream) = stream else { continue };
                    let (rule, requests, upstream) = (rule.clone(), requests.clone(), upstream.clone());
                    let clone = stream.try_clone().expect("a socket");
                    open.push((
                        clone,
                        std::thread::spawn(move || serve(stream, &*rule, &requests, &upstream)),
                    ));
                }
                for (stream, thread) in open {
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                    let _ = thread.join();
                }
            }
        });
        Proxy { address, ended, requests, thread: Some(thread) }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// The same server by another name: another origin.
    pub(crate) fn other_name(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no panic").clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(stream: TcpStream, rule: &Rule, requests: &Mutex<Vec<Request>>, upstream: &str) {
    let Ok(clone) = stream.try_clone() else { return };
    let mut reader = BufReader::new(clone);
    let mut stream = stream;
    let Some(request) = read_request(&mut reader) else { return };
    requests.lock().expect("no panic").push(request.clone());
    answer(&request, rule(&request), &mut stream, &mut reader, upstream);
    // Another handle of the socket is still open.
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

fn answer(
    request: &Request,
    action: Action,
    stream: &mut TcpStream,
    reader: &mut BufReader<TcpStream>,
    upstream: &str,
) {
    if let Action::Answer(status, headers, body) = action {
        let mut head = format!("HTTP/1.1 {status} Whatever\r\nConnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        return;
    }
    let Some((head, mut body)) = forward(request, upstream) else { return };
    if matches!(action, Action::Corrupt)
        && let Some(byte) = body.last_mut()
    {
        *byte ^= 1;
    }
    let until = match action {
        Action::Cut(n) | Action::Stall(n) => n.min(body.len()),
        _ => body.len(),
    };
    let _ = stream.write_all(&head).and_then(|()| stream.write_all(&body[..until]));
    if matches!(action, Action::Stall(_)) {
        // Until the client or the proxy goes.
        let _ = reader.read(&mut [0]);
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, path, headers, body })
}

/// The registry's answer: head and body.
fn forward(request: &Request, upstream: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut stream = TcpStream::connect(upstream).ok()?;
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.path);
    for (name, value) in request.headers.iter().filter(|(name, _)| *name != "connection") {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("connection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(&request.body).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let body = answer.split_off(end);
    Some((answer, body))
}
