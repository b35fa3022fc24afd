//! The agent as a process of the host, for tests: the same program, over an inherited socket.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Client;
use super::files::{Connection, Dial, Files};
use super::protocol::{Decoder, Message, VERSION};

/// An agent and the connection to it. Dropping it ends both.
pub(crate) struct HostAgent {
    pub(crate) client: Arc<Client>,
    pub(crate) socket: UnixStream,
    process: Child,
}

impl HostAgent {
    pub(crate) fn start() -> Self {
        let (process, socket) = start_process(Stdio::inherit());
        let reader = socket.try_clone().unwrap();
        let writer = socket.try_clone().unwrap();
        let client = Client::connect(reader, writer, Duration::from_secs(30)).unwrap();
        HostAgent { client, socket, process }
    }

    /// The agent's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Where it serves files.
    pub(crate) fn ports(&self) -> Local {
        Local { agent: self.pid() }
    }

    /// Closes the connection and waits for the agent to end; its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        let _ = self.socket.shutdown(Shutdown::Both);
        self.client.join();
        self.process.wait().unwrap().code()
    }
}

impl Drop for HostAgent {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An agent that waits for a greeting on the socket.
pub(crate) fn start_process(stderr: Stdio) -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let process = Command::new(env!("CC_AGENT"))
        .args(["--fd", "0"])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stderr(stderr)
        .spawn()
        .expect("the agent starts");
    (process, ours)
}

/// The ports of an agent that is a process: sockets without files.
#[derive(Debug)]
pub(crate) struct Local {
    agent: u32,
}

impl Local {
    pub(crate) fn connect(&self, port: u32) -> io::Result<UnixStream> {
        UnixStream::connect_addr(&SocketAddr::from_abstract_name(format!("cc-files-{}-{port}", self.agent))?)
    }
}

impl Dial for Local {
    fn dial(&self, port: u32) -> io::Result<Box<dyn Connection>> {
        Ok(Box::new(Socket(self.connect(port)?)))
    }
}

/// A connection to a worker that is a process.
#[derive(Debug)]
pub(crate) struct Socket(pub(crate) UnixStream);

impl Connection for Socket {
    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(bytes)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.0).write_all(bytes)
    }

    fn is_open(&self) -> bool {
        use rustix::net::{RecvFlags, recv};
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match recv(&self.0, &mut [0u8; 1], flags) {
            Ok((n, _)) => n > 0,
            Err(e) => e == rustix::io::Errno::AGAIN,
        }
    }
}

/// Files of an agent that is none: every connection to a worker is given to `talk`, with its number from 0.
pub(crate) fn files_of(talk: impl Fn(usize, UnixStream) + Send + Sync + 'static) -> Arc<Files> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || -> io::Result<()> {
        let mut out = Vec::new();
        Message::Hello(VERSION).encode(0, &mut out);
        theirs.write_all(&out)?;
        let mut decoder = Decoder::new();
        loop {
            let n = theirs.read(decoder.spare().unwrap())?;
            if n == 0 {
                return Ok(());
            }
            decoder.advance(n);
            while let Some(frame) = decoder.next().unwrap() {
                if frame.stream != 0 {
                    out.clear();
                    Message::Reply(0).encode(frame.stream, &mut out);
                    theirs.write_all(&out)?;
                }
            }
        }
    });
    let client = Client::connect(ours.try_clone().unwrap(), ours, Duration::from_secs(30)).unwrap();
    let connections = Mutex::new((0, None));
    Arc::new(Files::new(client, Fake { talk: Arc::new(talk), connections }))
}

type Talk = Arc<dyn Fn(usize, UnixStream) + Send + Sync>;

struct Fake {
    talk: Talk,
    /// How many there were, and the other end of the first, which carries nothing.
    connections: Mutex<(usize, Option<UnixStream>)>,
}

impl std::fmt::Debug for Fake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fake")
    }
}

impl Dial for Fake {
    fn dial(&self, _: u32) -> io::Result<Box<dyn Connection>> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut connections = self.connections.lock().unwrap();
        if connections.1.is_none() {
            connections.1 = Some(theirs);
        } else {
            let (talk, number) = (self.talk.clone(), connections.0);
            connections.0 += 1;
            std::thread::spawn(move || talk(number, theirs));
        }
        Ok(Box::new(Socket(ours)))
    }
}

/// An agent to whose every request the answer is an errno.
pub(crate) fn refusing(errno: i32) -> Arc<Client> {
    use super::protocol::Obstacle;
    use super::protocol::net::{Event, Reason, Request};

    let (ours, mut theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || -> io::Result<()> {
        let mut out = Vec::new();
        Message::Hello(VERSION).encode(0, &mut out);
        theirs.write_all(&out)?;
        let mut decoder = Decoder::new();
        loop {
            let n = theirs.read(decoder.spare().unwrap())?;
            if n == 0 {
                return Ok(());
            }
            decoder.advance(n);
            while let Some(frame) = decoder.next().unwrap() {
                out.clear();
                match Message::decode(&frame).unwrap() {
                    Message::Socket(Request::Close(_)) | Message::Hello(_) => continue,
                    Message::Socket(_) => {
                        Message::SocketEvent(Event::Failed(Reason::System, errno))
                            .encode(frame.stream, &mut out);
                    }
                    Message::Spawn(_) => {
                        Message::SpawnFailed(errno, Obstacle::Program).encode(frame.stream, &mut out);
                    }
                    other => panic!("{other:?}"),
                }
                theirs.write_all(&out)?;
            }
        }
    });
    Client::connect(ours.try_clone().unwrap(), ours, Duration::from_secs(30)).unwrap()
}
