//! A running command and the host's ends of its pipes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use super::host::{HostChild, Started};
use super::status::{ExitStatus, Output, ResourceUsage};
use crate::agent::protocol::Exited;
use crate::agent::{self, Stream};

const SIGKILL: i32 = 9;

/// A process in the guest.
///
/// This corresponds to [`std::process::Child`], and like it goes on running when dropped: call
/// [`wait`](Child::wait) or [`kill`](Child::kill). It never becomes a zombie either way. Differences:
/// [`kill`](Child::kill) and [`signal`](Child::signal) reach the whole process group, which the
/// command leads unless [`Command::process_group`](super::Command::process_group) says otherwise, and
/// every method fails with [`io::ErrorKind::NotConnected`] once the machine has ended.
#[derive(Debug)]
pub struct Child {
    /// The writing end of its standard input, if that is piped. Take it to write while other methods
    /// are used; drop it to end the input.
    pub stdin: Option<ChildStdin>,
    /// The reading end of its standard output, if that is piped.
    pub stdout: Option<ChildStdout>,
    /// The reading end of its standard error, if that is piped.
    pub stderr: Option<ChildStderr>,
    pub(super) process: Process,
    pub(super) terminal: bool,
    pub(super) timeout: Option<Duration>,
}

/// Where a process is.
#[derive(Debug, Clone)]
pub(super) enum Process {
    Guest(Stream),
    Host(HostChild),
}

impl Process {
    fn signal(&self, signal: i32) -> io::Result<()> {
        match self {
            Process::Guest(stream) => stream.signal(signal),
            Process::Host(child) => child.signal(signal),
        }
    }
}

/// Signals and resizes a process. Made by [`Child::controller`]; does not keep the process, nor its pipes.
#[derive(Debug, Clone)]
pub struct Controller {
    process: Process,
    terminal: bool,
}

impl Controller {
    /// As [`Child::signal`].
    ///
    /// # Errors
    /// As there.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.process.signal(signal)
    }

    /// As [`Child::resize`].
    ///
    /// # Errors
    /// As there.
    pub fn resize(&self, rows: u16, cols: u16) -> io::Result<()> {
        match &self.process {
            Process::Guest(stream) if self.terminal => stream.resize(rows, cols),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "the process has no terminal of its own")),
        }
    }
}

impl Child {
    pub(super) fn of_host(started: Started, timeout: Option<Duration>) -> io::Result<Self> {
        let Started { child, stdin, stdout, stderr } = started;
        Ok(Child {
            stdin: stdin.map(|fd| ChildStdin(End::Host(fd.into()))),
            stdout: stdout.map(|fd| ChildStdout(End::Host(fd.into()))),
            stderr: stderr.map(|fd| ChildStderr(End::Host(fd.into()))),
            process: Process::Host(child),
            terminal: false,
            timeout,
        })
    }

    /// The process id in the guest.
    pub fn id(&self) -> u32 {
        match &self.process {
            Process::Guest(stream) => stream.pid(),
            Process::Host(child) => child.id(),
        }
    }

    /// Closes [`stdin`](Child::stdin), if it is still here, and waits for the process to end. Returns
    /// when it has, whoever else holds its pipes open. Can be called again.
    ///
    /// Inherited output, and output to a [`File`](std::fs::File), has been written by then up to the
    /// process's end. After the end of its time ([`Command::timeout`](super::Command::timeout)) this and
    /// all other ways to wait fail with [`io::ErrorKind::TimedOut`].
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        drop(self.stdin.take());
        self.wait_until(None)?.ok_or_else(|| io::ErrorKind::TimedOut.into())
    }

    /// As [`wait`](Child::wait), but for at most `timeout`; `None` when the process still runs then.
    /// Has no twin in std.
    pub fn wait_timeout(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        drop(self.stdin.take());
        // A timeout beyond what the clock can count is none.
        self.wait_until(Instant::now().checked_add(timeout))
    }

    fn wait_until(&self, until: Option<Instant>) -> io::Result<Option<ExitStatus>> {
        match &self.process {
            Process::Guest(stream) => self.status(stream.wait_exit(until)?),
            Process::Host(child) => self.host_status(child.wait(until)?, child),
        }
    }

    /// The exit status if the process has ended. Does not close [`stdin`](Child::stdin).
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        match &self.process {
            Process::Guest(stream) => self.status(stream.exited()?),
            Process::Host(child) => self.host_status(child.try_wait()?, child),
        }
    }

    /// Closes [`stdin`](Child::stdin), reads what is still here of [`stdout`](Child::stdout) and
    /// [`stderr`](Child::stderr) to the end, and waits for the process to end.
    ///
    /// Unlike std's this does not hang on processes that the command left running with its pipes open:
    /// after its end it takes what was in the pipes then and what else comes within half a second.
    /// Those processes run on, and what they write later is thrown away.
    pub fn wait_with_output(mut self) -> io::Result<Output> {
        drop(self.stdin.take());
        let (stdout, stderr) = match self.process.clone() {
            Process::Guest(stream) => {
                let collected = stream.collect(self.stdout.is_some(), self.stderr.is_some())?;
                (collected.stdout, collected.stderr)
            }
            Process::Host(child) => {
                let stdout = self.stdout.take().map(ChildStdout::into_host).transpose()?;
                let stderr = self.stderr.take().map(ChildStderr::into_host).transpose()?;
                let [stdout, stderr] = child.collect([stdout, stderr])?;
                (stdout, stderr)
            }
        };
        // Also waits for inherited output, which is the other kind.
        Ok(Output { status: self.wait()?, stdout, stderr })
    }

    fn status(&self, exited: Option<Exited>) -> io::Result<Option<ExitStatus>> {
        match exited {
            Some(exited) if exited.timed_out => Err(self.killed()),
            other => Ok(other.map(|exited| ExitStatus::from_raw(exited.status))),
        }
    }

    fn host_status(&self, ended: Option<ExitStatus>, child: &HostChild) -> io::Result<Option<ExitStatus>> {
        match ended.and_then(|status| status.signal()) {
            Some(SIGKILL) if child.timed_out() => Err(self.killed()),
            _ => Ok(ended),
        }
    }

    fn killed(&self) -> io::Error {
        let timeout = self.timeout.unwrap_or_default();
        let what = format!("the command was killed after its timeout of {timeout:?}");
        io::Error::new(io::ErrorKind::TimedOut, what)
    }

    /// Ends the process and its process group with SIGKILL. Does nothing when it has ended. Call
    /// [`wait`](Child::wait) to know that it has taken effect.
    pub fn kill(&mut self) -> io::Result<()> {
        self.process.signal(SIGKILL)
    }

    /// Sends a signal, as Linux numbers them, to the process and its process group. Does nothing when
    /// the process has ended. Has no twin in std.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.process.signal(signal)
    }

    /// Gives the process's terminal another size and has its foreground programs told (`SIGWINCH`).
    /// Does nothing, and costs nothing, when the process has ended. Has no twin in std.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a process without a terminal of its own
    /// ([`Command::pty`](super::Command::pty)), [`io::ErrorKind::NotConnected`] once the machine has
    /// ended.
    pub fn resize(&self, rows: u16, cols: u16) -> io::Result<()> {
        self.controller().resize(rows, cols)
    }

    /// What signals and resizes this process from other threads while one waits for it. Has no twin in std.
    pub fn controller(&self) -> Controller {
        Controller { process: self.process.clone(), terminal: self.terminal }
    }

    /// What the process used, once it has ended. Has no twin in std.
    pub fn resource_usage(&self) -> Option<ResourceUsage> {
        match &self.process {
            Process::Guest(stream) => stream.exited().ok().flatten().map(ResourceUsage::from),
            Process::Host(child) => child.usage(),
        }
    }
}

/// One end of a pipe: its other end is with the process.
#[derive(Debug)]
enum End {
    Guest(Stream),
    Host(File),
    /// Somebody else has it now.
    Gone,
}

impl End {
    /// The descriptor, where it is the host's.
    fn into_host(self) -> io::Result<File> {
        match self {
            End::Host(file) => Ok(file),
            _ => {
                let what = "a stream of a guest's command cannot be a descriptor of the host's";
                Err(io::Error::new(io::ErrorKind::InvalidInput, what))
            }
        }
    }
}

/// The writing end of a command's standard input. Dropping it ends the input.
///
/// This corresponds to [`std::process::ChildStdin`]. A write returns when the guest has room, so a
/// command that does not read holds its writer up, and fails with [`io::ErrorKind::BrokenPipe`] once
/// nobody reads any more.
#[derive(Debug)]
pub struct ChildStdin(End);

impl ChildStdin {
    pub(super) fn new(stream: Stream) -> Self {
        ChildStdin(End::Guest(stream))
    }

    pub(super) fn into_host(mut self) -> io::Result<File> {
        std::mem::replace(&mut self.0, End::Gone).into_host()
    }
}

impl Write for &ChildStdin {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0 {
            End::Guest(stream) => stream.write(bytes, false),
            End::Host(file) => (&*file).write(bytes),
            End::Gone => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for ChildStdin {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ChildStdin {
    fn drop(&mut self) {
        if let End::Guest(stream) = &self.0 {
            stream.end_input();
        }
    }
}

macro_rules! reading_end {
    ($(#[$doc:meta])* $name:ident, $output:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name(End);

        impl $name {
            pub(super) fn new(stream: Stream) -> Self {
                $name(End::Guest(stream))
            }

            pub(super) fn into_host(mut self) -> io::Result<File> {
                std::mem::replace(&mut self.0, End::Gone).into_host()
            }
        }

        impl Read for &$name {
            fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
                match &self.0 {
                    End::Guest(stream) => stream.read($output, bytes),
                    End::Host(file) => (&*file).read(bytes),
                    End::Gone => Ok(0),
                }
            }
        }

        impl Read for $name {
            fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
                (&*self).read(bytes)
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                if let End::Guest(stream) = &self.0 {
                    stream.close($output);
                }
            }
        }
    };
}

reading_end!(
    /// The reading end of a command's standard output. Dropping it closes the pipe: the command's
    /// writes fail with `EPIPE`.
    ///
    /// This corresponds to [`std::process::ChildStdout`].
    ChildStdout,
    agent::Output::Stdout
);

reading_end!(
    /// The reading end of a command's standard error. Dropping it closes the pipe: the command's
    /// writes fail with `EPIPE`.
    ///
    /// This corresponds to [`std::process::ChildStderr`].
    ChildStderr,
    agent::Output::Stderr
);
