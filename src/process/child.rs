//! A running command and the host's ends of its pipes.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

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
    pub(super) stream: Stream,
    pub(super) terminal: bool,
    pub(super) timeout: Option<Duration>,
}

/// Signals and resizes a process. Made by [`Child::controller`]; does not keep the process, nor its pipes.
#[derive(Debug, Clone)]
pub struct Controller {
    stream: Stream,
    terminal: bool,
}

impl Controller {
    /// As [`Child::signal`].
    ///
    /// # Errors
    /// As there.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.stream.signal(signal)
    }

    /// As [`Child::resize`].
    ///
    /// # Errors
    /// As there.
    pub fn resize(&self, rows: u16, cols: u16) -> io::Result<()> {
        if !self.terminal {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the process has no terminal of its own",
            ));
        }
        self.stream.resize(rows, cols)
    }
}

impl Child {
    /// The process id in the guest.
    pub fn id(&self) -> u32 {
        self.stream.pid()
    }

    /// Closes [`stdin`](Child::stdin), if it is still here, and waits for the process to end. Returns
    /// when it has, whoever else holds its pipes open. Can be called again.
    ///
    /// Inherited output, and output to a [`File`](std::fs::File), has been written by then up to the
    /// process's end. After the end of its time ([`Command::timeout`](super::Command::timeout)) this and
    /// all other ways to wait fail with [`io::ErrorKind::TimedOut`].
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        drop(self.stdin.take());
        match self.stream.wait_exit(None)? {
            Some(exited) => self.status(exited),
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// As [`wait`](Child::wait), but for at most `timeout`; `None` when the process still runs then.
    /// Has no twin in std.
    pub fn wait_timeout(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        drop(self.stdin.take());
        // A timeout beyond what the clock can count is none.
        let exited = self.stream.wait_exit(Instant::now().checked_add(timeout))?;
        exited.map(|exited| self.status(exited)).transpose()
    }

    /// The exit status if the process has ended. Does not close [`stdin`](Child::stdin).
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.stream.exited()?.map(|exited| self.status(exited)).transpose()
    }

    /// Closes [`stdin`](Child::stdin), reads what is still here of [`stdout`](Child::stdout) and
    /// [`stderr`](Child::stderr) to the end, and waits for the process to end.
    ///
    /// Unlike std's this does not hang on processes that the command left running with its pipes open:
    /// after its end it takes what was in the pipes then and what else comes within half a second.
    /// Those processes run on, and what they write later is thrown away.
    pub fn wait_with_output(mut self) -> io::Result<Output> {
        drop(self.stdin.take());
        let collected = self.stream.collect(self.stdout.is_some(), self.stderr.is_some())?;
        // Also waits for inherited output, which is the other kind.
        self.wait()?;
        Ok(Output {
            status: ExitStatus::from_raw(collected.exited.status),
            stdout: collected.stdout,
            stderr: collected.stderr,
        })
    }

    fn status(&self, exited: Exited) -> io::Result<ExitStatus> {
        if exited.timed_out {
            let what =
                format!("the command was killed after its timeout of {:?}", self.timeout.unwrap_or_default());
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
        Ok(ExitStatus::from_raw(exited.status))
    }

    /// Ends the process and its process group with SIGKILL. Does nothing when it has ended. Call
    /// [`wait`](Child::wait) to know that it has taken effect.
    pub fn kill(&mut self) -> io::Result<()> {
        self.stream.signal(SIGKILL)
    }

    /// Sends a signal, as Linux numbers them, to the process and its process group. Does nothing when
    /// the process has ended. Has no twin in std.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.stream.signal(signal)
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
        Controller { stream: self.stream.clone(), terminal: self.terminal }
    }

    /// What the process used, once it has ended. Has no twin in std.
    pub fn resource_usage(&self) -> Option<ResourceUsage> {
        self.stream.exited().ok().flatten().map(ResourceUsage::from)
    }
}

/// The writing end of a command's standard input. Dropping it ends the input.
///
/// This corresponds to [`std::process::ChildStdin`]. A write returns when the guest has room, so a
/// command that does not read holds its writer up, and fails with [`io::ErrorKind::BrokenPipe`] once
/// nobody reads any more.
#[derive(Debug)]
pub struct ChildStdin(Stream);

impl ChildStdin {
    pub(super) fn new(stream: Stream) -> Self {
        ChildStdin(stream)
    }
}

impl Write for &ChildStdin {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes, false)
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
        self.0.end_input();
    }
}

macro_rules! reading_end {
    ($(#[$doc:meta])* $name:ident, $output:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name(Stream);

        impl $name {
            pub(super) fn new(stream: Stream) -> Self {
                $name(stream)
            }
        }

        impl Read for &$name {
            fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
                self.0.read($output, bytes)
            }
        }

        impl Read for $name {
            fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
                (&*self).read(bytes)
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                self.0.close($output);
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
