//! The agent as a process of the host, for tests: the same program, over an inherited socket.

use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::Client;

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
